//! `test` and `ci`: the checks in order, each with its command line and its time, stopping at the first failure.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

/// What `test` and `ci` take.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Passed on to `cargo test`, for example `-- -p chatstore-core` or `-- --test api -- sessions`
    #[arg(last = true)]
    extra: Vec<String>,
}

struct Step {
    args: Vec<String>,
    env: Option<(&'static str, &'static str)>,
}

impl Step {
    fn cargo(args: &str) -> Self {
        Self { args: args.split(' ').map(str::to_owned).collect(), env: None }
    }

    fn line(&self) -> String {
        let env = self.env.map(|(name, value)| format!("{name}=\"{value}\" ")).unwrap_or_default();
        format!("{env}cargo {}", self.args.join(" "))
    }

    fn run(&self) -> Result<()> {
        let line = self.line();
        println!("\n==> {line}");
        let started = Instant::now();
        let mut command = cargo();
        command.args(&self.args).current_dir(root()).envs(self.env);
        let status = command.status().with_context(|| format!("`{line}` could not be started"))?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(status.success(), "`{line}` failed after {seconds:.1} s ({status})");
        println!("==> ok after {seconds:.1} s");
        Ok(())
    }
}

/// Runs the checks that need nothing but Rust and a C compiler.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let started = Instant::now();
    let mut tests = Step::cargo("test --workspace --locked");
    tests.args.extend(args.extra.iter().cloned());
    let mut doc = Step::cargo("doc --workspace --no-deps --locked");
    doc.env = Some(("RUSTDOCFLAGS", "-D warnings"));
    let steps = [
        Step::cargo("fmt --all --check"),
        Step::cargo("clippy --workspace --all-targets --locked -- -D warnings"),
        tests,
        doc,
    ];
    for step in &steps {
        step.run()?;
    }
    println!("\nall {} steps passed in {:.1} s", steps.len(), started.elapsed().as_secs_f64());
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
        let mut step = Step::cargo("doc --no-deps");
        step.env = Some(("RUSTDOCFLAGS", "-D warnings"));
        assert_eq!(step.line(), "RUSTDOCFLAGS=\"-D warnings\" cargo doc --no-deps");
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
