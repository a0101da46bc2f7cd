//! `soak`: the tests of faults as they stand in the suite, with many more rounds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::postgres::Server;
use crate::test::{cargo, root};

/// A test target that reads `CHATSTORE_TEST_ROUNDS`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Suite {
    /// PostgreSQL dies, freezes and restarts, and the way to it swallows answers
    Database,
    /// One of two servers on PostgreSQL is killed
    Server,
    /// Clients repeat requests over a way that cuts connections, to servers that are killed; on both engines
    Retries,
}

impl Suite {
    /// Its package and target.
    fn place(self) -> [&'static str; 2] {
        match self {
            Self::Database => ["chatstore-postgres", "faults"],
            Self::Server => ["chatstore", "postgres"],
            Self::Retries => ["chatstore", "retries"],
        }
    }
}

/// What `soak` takes.
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// Which of them; all if none is named
    suites: Vec<Suite>,
    /// How often the database is killed, and how often the server; of commits, five times as many lose their answer
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many requests `retries` sends at least twice, on each engine
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// The server to be tested, such as target/release/chatstore; without it, the one that is built with the tests
    #[arg(long)]
    program: Option<PathBuf>,
    /// Begin again until so many minutes have passed
    #[arg(long, default_value_t = 0)]
    minutes: u64,
}

impl SoakArgs {
    fn suites(&self) -> &[Suite] {
        if self.suites.is_empty() { Suite::value_variants() } else { &self.suites }
    }

    fn rounds(&self, suite: Suite) -> u32 {
        match suite {
            Suite::Database | Suite::Server => self.rounds,
            Suite::Retries => self.requests,
        }
    }
}

/// Runs the suites until the time is up; stops at the first failure.
pub(crate) fn run(args: &SoakArgs) -> Result<()> {
    let program = args.program.as_ref().map(|path| path.canonicalize().with_context(|| path.display().to_string()));
    let program = program.transpose()?;
    let server = Server::named_or_newest()?;
    let started = Instant::now();
    for turn in 1.. {
        for suite in args.suites() {
            let [package, target] = suite.place();
            let rounds = args.rounds(*suite).to_string();
            let mut words = vec!["test", "--locked", "-p", package, "--test", target, "--", "--nocapture"];
            if matches!(suite, Suite::Retries) {
                // The engines one after the other: each has the machine for itself.
                words.push("--test-threads=1");
            }
            println!("\n==> CHATSTORE_TEST_ROUNDS={rounds} cargo {}", words.join(" "));
            let mut command = cargo();
            command.args(words).current_dir(root()).envs(server.variables()).env("CHATSTORE_TEST_ROUNDS", rounds);
            command.envs(program.iter().map(|path| ("CHATSTORE_TEST_PROGRAM", path)));
            let status = command.status().context("cargo could not be started")?;
            let minutes = started.elapsed().as_secs() / 60;
            ensure!(status.success(), "turn {turn} failed after {minutes} minutes ({status})");
        }
        if started.elapsed() >= Duration::from_secs(60 * args.minutes) {
            println!("\n{turn} turns passed in {} minutes", started.elapsed().as_secs() / 60);
            break;
        }
    }
    Ok(())
}
