//! `postgres`: a PostgreSQL with pgvector for tests, its programs fetched once, gone when this command ends.

mod fetch;

use std::{env, path::PathBuf, thread};

use anyhow::{Context as _, Result};
use chatstore_postgres::testing::{Cluster, Settings};
use clap::{Args, ValueEnum};

pub(crate) use fetch::is_fetchable;

/// The versions that Chatstore is tested on, the newest and the oldest that it supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    #[value(name = "16")]
    V16,
    #[value(name = "18")]
    V18,
}

/// What `postgres` takes.
#[derive(Debug, Args)]
pub(crate) struct PostgresArgs {
    /// The major version
    #[arg(long, default_value = "18")]
    version: Version,
}

/// Starts a server for tests run by hand and keeps it until this process is ended.
pub(crate) fn run(args: &PostgresArgs) -> Result<()> {
    let server = Server::start(args.version)?;
    for (name, value) in server.variables() {
        println!("export {name}='{value}'");
    }
    eprintln!("PostgreSQL runs until Ctrl-C; run tests with these two set");
    // However this process ends, its cluster ends with it.
    loop {
        thread::park();
    }
}

/// A server for suites of tests; dropping it ends it if it was started here.
pub(crate) struct Server {
    url: String,
    programs: PathBuf,
    _cluster: Option<Cluster>,
}

impl Server {
    pub(crate) fn start(version: Version) -> Result<Self> {
        let programs = fetch::programs(version)?;
        let cluster = Cluster::start(&programs, Settings::fast()).context("PostgreSQL could not be started")?;
        Ok(Self { url: cluster.url("postgres"), programs, _cluster: Some(cluster) })
    }

    /// The server of `TEST_POSTGRES_URL` if that is set, else the newest.
    pub(crate) fn named_or_newest() -> Result<Self> {
        let named = |variable| env::var(variable).ok().filter(|value| !value.is_empty());
        let Some(url) = named("TEST_POSTGRES_URL") else { return Self::start(Version::V18) };
        let programs = named("TEST_POSTGRES_PROGRAMS").map(PathBuf::from);
        let programs = programs.map_or_else(|| fetch::programs(Version::V18), Ok)?;
        Ok(Self { url, programs, _cluster: None })
    }

    /// What tests find it by.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [("TEST_POSTGRES_URL", self.url.clone()), ("TEST_POSTGRES_PROGRAMS", self.programs.display().to_string())]
    }
}
