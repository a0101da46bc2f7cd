//! `test` and `ci`: the checks in order, each with its command line and its time, stopping at the first failure.
//! Those of the suites find a PostgreSQL that runs as long as they do, and the program of Redis.

use std::{
    num::NonZero,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::postgres::{Server, Version, is_fetchable};
use crate::redis;
use crate::schemathesis::{self, SchemathesisArgs};
use crate::sdk::{self, SdkArgs};

/// What `test` and `ci` take.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Passed on to `cargo test`, for example `-- -p chatstore-core` or `-- --test api -- sessions`; the suite on the
    /// oldest PostgreSQL is then left out
    #[arg(last = true)]
    extra: Vec<String>,
}

struct Step {
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
}

impl Step {
    fn cargo(args: &str) -> Self {
        Self { args: args.split(' ').map(str::to_owned).collect(), env: Vec::new() }
    }

    fn envs(mut self, variables: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        self.env.extend(variables);
        self
    }

    fn line(&self) -> String {
        let env: String = self.env.iter().map(|(name, value)| format!("{name}=\"{value}\" ")).collect();
        format!("{env}cargo {}", self.args.join(" "))
    }

    fn run(&self) -> Result<()> {
        let line = self.line();
        println!("\n==> {line}");
        let started = Instant::now();
        let mut command = cargo();
        command.args(&self.args).current_dir(root()).envs(self.env.iter().map(|(name, value)| (name, value)));
        let status = command.status().with_context(|| format!("`{line}` could not be started"))?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(status.success(), "`{line}` failed after {seconds:.1} s ({status})");
        println!("==> ok after {seconds:.1} s");
        Ok(())
    }
}

/// Twice as many tests at a time as there are cores, unless the caller says otherwise: most wait for a database or a clock.
fn threads() -> (&'static str, String) {
    const NAME: &str = "RUST_TEST_THREADS";
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (NAME, std::env::var(NAME).unwrap_or_else(|_| (2 * cores).to_string()))
}

/// Runs the checks that need nothing but Rust, a C compiler, and Python with pip for PostgreSQL's and Redis' programs.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let started = Instant::now();
    Step::cargo("fmt --all --check").run()?;
    let is_named = Server::is_named();
    let newest = Server::named_or_newest()?;
    Step::cargo("clippy --workspace --all-targets --locked -- -D warnings").run()?;
    let redis = redis::variable()?;
    let mut tests = Step::cargo("test --workspace --locked").envs(newest.variables()).envs([redis, threads()]);
    tests.args.extend(args.extra.iter().cloned());
    tests.run()?;
    drop(newest);
    match args.extra.is_empty() {
        true if is_fetchable() => {
            schemathesis::run(&SchemathesisArgs::short())?;
            sdk::run(&SdkArgs::default())?;
        }
        true => {
            println!("\n==> NOT RUN: schemathesis and sdk, for which there is no PostgreSQL to fetch for this machine")
        }
        false => {}
    }
    if args.extra.is_empty() && is_fetchable() && !is_named {
        let oldest = Server::start(Version::V16)?;
        // Of the whole workspace: for one package alone cargo would build the dependencies again.
        Step::cargo("test --workspace --test conformance --locked").envs(oldest.variables()).envs([threads()]).run()?;
    }
    Step::cargo("doc --workspace --no-deps --locked").envs([("RUSTDOCFLAGS", "-D warnings".to_owned())]).run()?;
    println!("\nevery step passed in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs `test`, then `cargo deny`; a missing `cargo-deny` is said before the long part starts.
pub(crate) fn ci(args: &TestArgs) -> Result<()> {
    let found = cargo()
        .args(["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        bail!("`cargo xtask ci` needs cargo-deny: install it with `cargo install cargo-deny --locked`");
    }
    test(args)?;
    Step::cargo("deny --offline check bans licenses sources").run()?;
    println!("\nnot checked here, because it needs the network: `cargo deny check advisories`");
    Ok(())
}

/// The cargo that runs this command.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_prints_as_a_line_that_can_be_pasted() {
        let step = Step::cargo("doc --no-deps").envs([("RUSTDOCFLAGS", "-D warnings".to_owned())]);
        assert_eq!(step.line(), "RUSTDOCFLAGS=\"-D warnings\" cargo doc --no-deps");
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
