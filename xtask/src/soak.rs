//! `soak`: the tests of faults as they stand in the suite, with many more rounds.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::postgres::Server;
use crate::test::{cargo, root};

/// The tests that read `CHATSTORE_TEST_ROUNDS`, by package and target.
const SUITES: [[&str; 2]; 2] = [["chatstore-postgres", "faults"], ["chatstore", "postgres"]];

/// What `soak` takes.
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// How often the database is killed, and how often the server; of commits, five times as many lose their answer
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Begin again until so many minutes have passed
    #[arg(long, default_value_t = 0)]
    minutes: u64,
}

/// Runs the suites until the time is up; stops at the first failure.
pub(crate) fn run(args: &SoakArgs) -> Result<()> {
    let server = Server::named_or_newest()?;
    let started = Instant::now();
    let rounds = args.rounds.to_string();
    for turn in 1.. {
        for [package, target] in SUITES {
            let words = ["test", "--locked", "-p", package, "--test", target, "--", "--nocapture"];
            println!("\n==> CHATSTORE_TEST_ROUNDS={rounds} cargo {}", words.join(" "));
            let mut command = cargo();
            command.args(words).current_dir(root()).envs(server.variables()).env("CHATSTORE_TEST_ROUNDS", &rounds);
            let status = command.status().context("cargo could not be started")?;
            let minutes = started.elapsed().as_secs() / 60;
            ensure!(status.success(), "turn {turn} failed after {minutes} minutes ({status})");
        }
        if started.elapsed() >= Duration::from_secs(60 * args.minutes) {
            println!("\n{turn} turns of {rounds} rounds passed in {} minutes", started.elapsed().as_secs() / 60);
            break;
        }
    }
    Ok(())
}
