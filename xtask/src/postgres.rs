//! `postgres`: a PostgreSQL with pgvector for tests, its programs fetched once, gone when this command ends.

pub(crate) mod fetch;

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

fn named(variable: &str) -> Option<std::ffi::OsString> {
    env::var_os(variable).filter(|value| !value.is_empty())
}

/// A server for suites of tests; dropping it ends it if it was started here.
pub(crate) struct Server {
    programs: PathBuf,
    cluster: Option<Cluster>,
}

impl Server {
    pub(crate) fn start(version: Version) -> Result<Self> {
        let programs = fetch::programs(version)?;
        let cluster = Cluster::start(&programs, Settings::fast()).context("PostgreSQL could not be started")?;
        Ok(Self { programs, cluster: Some(cluster) })
    }

    /// Whether a server is named: nothing is fetched then but the programs of tests that end one, unless they are
    /// named too.
    pub(crate) fn is_named() -> bool {
        named("TEST_POSTGRES_URL").is_some()
    }

    /// The server that `TEST_POSTGRES_URL` names, if it is set, else the newest.
    pub(crate) fn named_or_newest() -> Result<Self> {
        if !Self::is_named() {
            return Self::start(Version::V18);
        }
        let programs = named("TEST_POSTGRES_PROGRAMS").map(PathBuf::from);
        Ok(Self { programs: programs.map_or_else(|| fetch::programs(Version::V18), Ok)?, cluster: None })
    }

    /// What tests find it by, beside what the user has set.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let url = self.cluster.as_ref().map(|cluster| ("TEST_POSTGRES_URL", cluster.url("postgres")));
        url.into_iter().chain([("TEST_POSTGRES_PROGRAMS", self.programs.display().to_string())]).collect()
    }
}
