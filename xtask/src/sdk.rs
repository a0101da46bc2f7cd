//! `sdk`: OpenAI's own SDKs for Python and JavaScript, and its Agents SDK, drive a server that runs, on each engine. What
//! they must find is said by the scripts in `xtask/sdk`.

mod fetch;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use chatstore_postgres::testing::{Cluster, Settings};
use clap::Args;

use crate::{
    bench::server_process::{API_KEY, ServerProcess},
    postgres::{self, Version},
    test::root,
    wheel::target,
};
use fetch::Programs;

/// Users' tokens are tried, too. Texts of a mebibyte take a debug build long while others use the processors.
const SETTINGS: [(&str, &str); 2] =
    [("SECRET_KEY", "sdk-secret-5e0c8f6a91d24b7d8c3f2a7be4609d15"), ("POSTGRES_STATEMENT_TIMEOUT_MS", "25000")];

/// Within which a script must be through: it takes half a minute, more on a machine that does much else.
const TIME_LIMIT: Duration = Duration::from_secs(10 * 60);

/// What `sdk` takes.
#[derive(Debug, Default, Args)]
pub(crate) struct SdkArgs {
    /// The binary to run [default: the debug build]
    #[arg(long, value_name = "FILE")]
    bin_path: Option<PathBuf>,
}

/// Runs the scripts on SQLite and on PostgreSQL, both at once: they wait a lot.
pub(crate) fn run(args: &SdkArgs) -> Result<()> {
    let binary = match &args.bin_path {
        Some(path) => path.clone(),
        None => target()?.join("debug/chatstore"),
    };
    let binary =
        binary.canonicalize().with_context(|| format!("no binary at {}: run `cargo build`", binary.display()))?;
    let programs = Programs::fetched(&target()?.join("sdk"))?;
    let postgres = postgres::fetch::programs(Version::V18)?;
    let work = target()?.join(format!("sdk/run-{}", std::process::id()));
    let sqlite_folder = folder(&work, "sqlite")?;
    let postgres_folder = folder(&work, "postgres")?;
    println!("\n==> OpenAI's SDKs on SQLite and on PostgreSQL");
    let started = Instant::now();
    let on_sqlite = || {
        let database = format!("sqlite:{}", sqlite_folder.join("chatstore.db").display());
        check("SQLite", &programs, ServerProcess::start_with(&binary, &sqlite_folder, &database, &SETTINGS)?)
    };
    let on_postgres = || {
        let cluster = Cluster::start(&postgres, Settings::fast())?;
        let url = cluster.url("postgres");
        check("PostgreSQL", &programs, ServerProcess::start_with(&binary, &postgres_folder, &url, &SETTINGS)?)
    };
    let (sqlite, postgres) = thread::scope(|scope| {
        let sqlite = scope.spawn(on_sqlite);
        (on_postgres(), sqlite.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    fs::remove_dir_all(&work).with_context(|| format!("{} could not be removed", work.display()))?;
    sqlite.and(postgres)?;
    println!("==> ok after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn folder(work: &Path, name: &str) -> Result<PathBuf> {
    let folder = work.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("{} could not be made", folder.display()))?;
    Ok(folder)
}

fn check(engine: &str, programs: &Programs, server: ServerProcess) -> Result<()> {
    let scripts = root().join("xtask/sdk");
    let mut python = program(Path::new("python3"));
    python.arg(scripts.join("python/main.py")).env("PYTHONPATH", &programs.packages);
    // Else every run compiles what was installed, or the scripts leave that in the sources.
    python.env_remove("PYTHONDONTWRITEBYTECODE").env("PYTHONPYCACHEPREFIX", &programs.cache);
    python.env("OPENAI_AGENTS_DISABLE_TRACING", "1");
    let of_python = drive(&format!("Python on {engine}"), python, &server);
    let mut node = program(&programs.node);
    node.arg(scripts.join("javascript/main.mjs")).env("OPENAI_SDK", programs.openai.join("index.mjs"));
    of_python.and(drive(&format!("JavaScript on {engine}"), node, &server))?;
    server.stop().map(drop)
}

/// A program without what the user of this machine has set for the SDKs, or for their way to the network.
fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OPENAI_")) {
        command.env_remove(name);
    }
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1").stdin(Stdio::null());
    command
}

/// Runs one of the scripts to its end.
fn drive(what: &str, mut command: Command, server: &ServerProcess) -> Result<()> {
    command.env("CHATSTORE_URL", format!("http://127.0.0.1:{}", server.port())).env("CHATSTORE_API_KEY", API_KEY);
    let status = follow(what, command, TIME_LIMIT)?;
    ensure!(status.success(), "{what}: the SDK found what should not be ({status})");
    Ok(())
}

/// Prints each line of a program as it comes, with its name in front, since others print, too; kills it if it is late.
fn follow(what: &str, mut command: Command, time_limit: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + time_limit;
    let child = command.stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("{what}: the program could not be started"))?;
    let output = BufReader::new(child.stdout.take().context("a piped output can be taken once")?);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => println!("{what}: {line}"),
            Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?),
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    child.kill()?;
    child.wait()?;
    bail!("{what}: not through after {time_limit:?}, and killed; the lines above say how far it came");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_hangs_is_killed() {
        let mut hanging = Command::new("sleep");
        hanging.arg("600");
        let error = follow("a test", hanging, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("killed"), "{error}");
    }

    #[test]
    fn a_script_is_followed_to_its_end() {
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo one; exit 3"]);
        assert_eq!(follow("a test", failing, TIME_LIMIT).unwrap().code(), Some(3));
    }
}
