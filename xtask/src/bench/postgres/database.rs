//! A PostgreSQL server of this run, and its databases.

use std::{
    fs,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use chatstore_postgres::testing::{Cluster, Settings};

use crate::{
    bench::cpu,
    postgres::{Version, fetch::programs},
};

/// The newest PostgreSQL, with its data on the disk of temporary files.
pub(crate) struct DatabaseServer {
    cluster: Cluster,
    programs: PathBuf,
    postmaster: u32,
}

impl DatabaseServer {
    /// Starts it with the settings of a small machine in production: commits wait for the disk, and no checkpoint falls
    /// into a measurement by the clock.
    pub(in crate::bench) fn start() -> Result<Self> {
        let programs = programs(Version::V18)?;
        let settings = Settings::durable()
            .set("shared_buffers", "1GB")
            .set("max_wal_size", "4GB")
            .set("checkpoint_timeout", "15min")
            .set("log_line_prefix", "");
        let cluster = Cluster::start(&programs, settings).context("PostgreSQL could not be started")?;
        let pid_file = cluster.folder().join("data/postmaster.pid");
        let postmaster = fs::read_to_string(&pid_file)?.lines().next().and_then(|line| line.parse().ok());
        let postmaster = postmaster.with_context(|| format!("{} is not as expected", pid_file.display()))?;
        Ok(Self { cluster, programs, postmaster })
    }

    /// Makes an empty database.
    pub(in crate::bench) fn create(&self, name: &str) -> Result<Database> {
        let maintenance = self.database("postgres");
        maintenance.run(&format!("create database {name}"))?;
        Ok(self.database(name))
    }

    fn database(&self, name: &str) -> Database {
        Database { url: self.cluster.url(name), programs: self.programs.clone() }
    }

    /// All that it has logged.
    pub(super) fn log(&self) -> Result<String> {
        let path = self.cluster.folder().join("log");
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// CPU time of all its processes so far.
    pub(in crate::bench) fn cpu(&self) -> Result<Duration> {
        cpu::of_family(self.postmaster)
    }
}

/// A database of the run.
#[derive(Clone)]
pub(crate) struct Database {
    url: String,
    programs: PathBuf,
}

impl Database {
    pub(in crate::bench) fn url(&self) -> String {
        self.url.clone()
    }

    /// One of PostgreSQL's programs.
    pub(super) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.env_clear();
        command
    }

    fn psql(&self, sql: &str) -> Command {
        let mut command = self.program("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.url]);
        command
    }

    /// Runs SQL and gives the fields of its result, without spaces around them.
    pub(in crate::bench) fn run(&self, sql: &str) -> Result<String> {
        let output = self.psql(sql).stdin(Stdio::null()).output().context("psql could not be started")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{sql}: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a COPY from what `write` writes.
    pub(super) fn copy(&self, sql: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let mut psql = self.psql(sql).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let written = psql.stdin.take().map(|input| {
            let mut input = BufWriter::with_capacity(1 << 20, input);
            write(&mut input).and_then(|()| input.flush())
        });
        let status = psql.wait()?;
        ensure!(status.success(), "{sql}: psql ended with {status}");
        written.context("psql has no input")?.with_context(|| sql.to_owned())
    }
}
