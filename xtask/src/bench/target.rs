//! One of the things that take turns: requests to a server, or a script of pgbench.

use std::rc::Rc;

use anyhow::Result;

use super::{
    Turns,
    load::{Load, Requests, Run, block_on, closed_loop},
    postgres::{DatabaseServer, Pgbench},
    server_process::ServerProcess,
};

pub(super) struct Target<'a> {
    pub(super) name: String,
    status: Option<u16>,
    is_numbered: bool,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Http { server: &'a ServerProcess, database: Option<&'a DatabaseServer>, requests: Requests },
    Pgbench(Pgbench<'a>),
}

impl<'a> Target<'a> {
    /// Requests to a server that keeps its data itself, or none.
    pub(super) fn new(name: impl Into<String>, server: &'a ServerProcess, requests: Vec<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            status: None,
            is_numbered: false,
            kind: Kind::Http { server, database: None, requests: Rc::new(requests) },
        }
    }

    /// Requests to a server with a database behind it.
    pub(super) fn with_database(
        name: impl Into<String>,
        server: &'a ServerProcess,
        database: &'a DatabaseServer,
        requests: Vec<Vec<u8>>,
    ) -> Self {
        Self {
            name: name.into(),
            status: None,
            is_numbered: false,
            kind: Kind::Http { server, database: Some(database), requests: Rc::new(requests) },
        }
    }

    /// A statement without a server between.
    pub(super) fn pgbench(name: impl Into<String>, pgbench: Pgbench<'a>) -> Self {
        Self { name: name.into(), status: None, is_numbered: false, kind: Kind::Pgbench(pgbench) }
    }

    /// The same, where every answer has this status.
    pub(super) fn answering(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }

    /// The same, where each request gets a [`super::load::NUMBER`].
    pub(super) fn numbered(self) -> Self {
        Self { is_numbered: true, ..self }
    }

    /// One turn.
    pub(super) fn run(&self, connections: usize, turns: &Turns) -> Result<Run> {
        let (warmup, measure) = (turns.warmup, turns.measure);
        match &self.kind {
            Kind::Http { server, database, requests } => block_on(closed_loop(&Load {
                server,
                database: *database,
                requests: Rc::clone(requests),
                status: self.status,
                is_numbered: self.is_numbered,
                connections,
                warmup,
                measure,
            })),
            Kind::Pgbench(pgbench) => pgbench.run(connections, warmup, measure),
        }
    }

    /// The memory of the server, in MiB; 0 without one.
    pub(super) fn rss_mib(&self) -> Result<f64> {
        match &self.kind {
            Kind::Http { server, .. } => server.rss_mib(),
            Kind::Pgbench(_) => Ok(0.0),
        }
    }

    /// Whether times have to be whole seconds.
    pub(super) fn is_pgbench(&self) -> bool {
        matches!(self.kind, Kind::Pgbench(_))
    }
}
