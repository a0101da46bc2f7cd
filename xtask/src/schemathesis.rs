//! `schemathesis`: requests made up from the OpenAPI document, against a server that runs, on each engine. No answer may be
//! a 5xx, of a status or shape that the document does not know, or accept what the document refuses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use chatstore_postgres::testing::{Cluster, Settings};
use clap::Args;

use crate::{
    bench::server_process::{API_KEY, ServerProcess},
    postgres::{Version, fetch},
    wheel::target,
};

const REQUIREMENTS: &str = include_str!("../schemathesis.txt");
/// Whether what was accepted had to be is for us to say: an id that fits the document names nothing here.
const LEFT_OUT: &str = "positive_data_acceptance";

/// It guesses keys all the time, and expects to be told 401.
const SETTINGS: [(&str, &str); 1] = [("RATE_LIMIT_FAILED_AUTH", "off")];

/// What `schemathesis` takes.
#[derive(Debug, Args)]
pub(crate) struct SchemathesisArgs {
    /// Requests made up for each operation and phase
    #[arg(long, default_value_t = 100)]
    examples: u32,
    /// The binary to run [default: the debug build]
    #[arg(long, value_name = "FILE")]
    bin_path: Option<PathBuf>,
}

impl SchemathesisArgs {
    /// Few examples, for every change.
    pub(crate) fn short() -> Self {
        Self { examples: 10, bin_path: None }
    }
}

/// Runs it on SQLite, then on PostgreSQL.
pub(crate) fn run(args: &SchemathesisArgs) -> Result<()> {
    let binary = match &args.bin_path {
        Some(path) => path.clone(),
        None => target()?.join("debug/chatstore"),
    };
    let binary =
        binary.canonicalize().with_context(|| format!("no binary at {}: run `cargo build`", binary.display()))?;
    let packages = packages()?;
    let work = target()?.join(format!("schemathesis/run-{}", std::process::id()));
    let outcome = on_both(args, &binary, &packages, &work);
    fs::remove_dir_all(&work).with_context(|| format!("{} could not be removed", work.display()))?;
    outcome
}

fn on_both(args: &SchemathesisArgs, binary: &Path, packages: &Path, work: &Path) -> Result<()> {
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = work.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("{} could not be made", folder.display()))?;
        Ok(folder)
    };
    println!("\n==> schemathesis on SQLite");
    let sqlite = folder("sqlite")?;
    let database = format!("sqlite:{}", sqlite.join("chatstore.db").display());
    let server = ServerProcess::start_with(binary, &sqlite, &database, &SETTINGS)?;
    check(args, packages, &folder("sqlite-work")?, server)?;
    println!("\n==> schemathesis on PostgreSQL");
    let cluster = Cluster::start(&fetch::programs(Version::V18)?, Settings::fast())?;
    let server = ServerProcess::start_with(binary, &folder("postgres")?, &cluster.url("postgres"), &SETTINGS)?;
    check(args, packages, &folder("postgres-work")?, server)
}

fn check(args: &SchemathesisArgs, packages: &Path, folder: &Path, server: ServerProcess) -> Result<()> {
    let mut command = Command::new("python3");
    command.args(["-m", "schemathesis.cli", "--no-color", "run"]);
    command.arg(format!("http://127.0.0.1:{}/openapi.json", server.port()));
    command.args(["--header", &format!("X-API-Key: {API_KEY}"), "--exclude-checks", LEFT_OUT]);
    command.args(["--max-examples", &args.examples.to_string(), "--continue-on-failure"]);
    command.args(["--suppress-health-check", "all", "--warnings", "off"]);
    command.env("PYTHONPATH", packages).current_dir(folder).stdin(Stdio::null());
    let status = command.status().context("python3 could not be started")?;
    ensure!(status.success(), "schemathesis found what should not be ({status})");
    server.stop().map(drop)
}

/// The folder of the installed packages, made if it is not there yet.
fn packages() -> Result<PathBuf> {
    let store = target()?.join("schemathesis");
    let installed = store.join("packages");
    let marker = installed.join("requirements.txt");
    if fs::read_to_string(&marker).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(installed);
    }
    eprintln!("==> installing Schemathesis from PyPI into {}, once", installed.display());
    if installed.is_dir() {
        fs::remove_dir_all(&installed)?;
    }
    fs::create_dir_all(&installed).with_context(|| format!("{} could not be made", installed.display()))?;
    let requirements = store.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS)?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--no-deps",
        "--only-binary=:all:",
    ]);
    pip.args(["--root-user-action", "ignore", "--requirement"]).arg(&requirements).arg("--target").arg(&installed);
    let status = pip.stdin(Stdio::null()).status().context("python3 could not be started")?;
    ensure!(status.success(), "Schemathesis could not be installed: that needs Python 3.10 or later with pip");
    fs::rename(requirements, marker)?;
    Ok(installed)
}
