//! `chatstore copy`: everything one database holds into another, whatever their engines.
//!
//! `projects` copies what stands above tenants, `events` the audit log, `sessions` the conversations, `verify` compares
//! both ends, `pages` reads either; all of them know the store's contract alone.

mod events;
mod meter;
mod pages;
mod projects;
mod sessions;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use chatstore_core::clock::Ctx;
use chatstore_core::store::Store;
use chatstore_server::config::{Config, DatabaseUrl, Sources};
use clap::{ArgMatches, Args};
use indicatif::HumanCount;

use self::meter::Meter;
use crate::audit::{COPY, Deed, note};
use crate::engine::{self, Absent};
use crate::import::progress::{counted, rate, seconds};
use crate::settings::print;

/// Sessions that are read at once, so that what they wait for overlaps. Each holds a page of
/// messages of either end.
const IN_FLIGHT_MAX: usize = 8;

#[derive(Args)]
pub(crate) struct CopyArgs {
    /// The database to read, sqlite:PATH or postgres://…; nothing else may write to it meanwhile.
    #[arg(long, value_name = "URL", required_unless_present = "from_file")]
    from: Option<String>,
    /// File that holds the value of --from.
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    from_file: Option<PathBuf>,
    /// The database to write; it is made or migrated first.
    #[arg(long, value_name = "URL", required_unless_present = "to_file")]
    to: Option<String>,
    /// File that holds the value of --to.
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    to_file: Option<PathBuf>,
    /// Copy nothing; only compare the two.
    #[arg(long)]
    verify_only: bool,
    /// Say nothing unless something is wrong.
    #[arg(long)]
    quiet: bool,
    /// TOML file of settings [default: chatstore.toml, if it exists].
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Option<String>,
    /// File of variables [default: .env, if it exists].
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    env_file: Option<String>,
}

/// The two databases.
#[derive(Clone)]
struct Ends {
    source: Arc<dyn Store>,
    target: Arc<dyn Store>,
}

#[tokio::main]
pub(crate) async fn copy(args: CopyArgs) -> anyhow::Result<ExitCode> {
    let source = database_url("from", args.from.as_deref(), args.from_file.as_deref())?;
    let target = database_url("to", args.to.as_deref(), args.to_file.as_deref())?;
    if engine::identity(&source).await.context("--from")? == engine::identity(&target).await.context("--to")? {
        bail!("--from and --to name the same database; name another in --to");
    }
    let mut config = args.settings()?;
    // Who only looks changes nothing.
    config.auto_migrate &= !args.verify_only;
    let ctx = Ctx::system();
    let absent = if args.verify_only { Absent::Refuse } else { Absent::Make };
    let source = engine::open_url(&source, Absent::Refuse, "copy", &config, &ctx).await;
    let source = source.map_err(|error| unopened("from", &error))?;
    let target = match engine::open_url(&target, absent, "copy", &config, &ctx).await {
        Ok(target) => target,
        Err(error) => {
            source.store.close().await;
            return Err(unopened("to", &error));
        }
    };
    let ends = Ends { source: source.store.clone(), target: target.store.clone() };
    let result = run(&ends, &ctx, args.verify_only, args.quiet).await;
    target.store.close().await;
    source.store.close().await;
    result
}

impl CopyArgs {
    /// The settings but for the database, which the two URLs name.
    fn settings(&self) -> anyhow::Result<Config> {
        let mut sources = Sources::from_process(&ArgMatches::default());
        for (name, file) in [("config", &self.config), ("env_file", &self.env_file)] {
            if let Some(file) = file {
                sources = sources.with_flag(name, file);
            }
        }
        Ok(Config::load(&sources)?)
    }
}

/// Reads a URL; what was given is not repeated, for it may hold a password.
fn database_url(flag: &str, given: Option<&str>, file: Option<&Path>) -> anyhow::Result<DatabaseUrl> {
    let text = match (given, file) {
        (None, Some(file)) => {
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
        }
        (given, _) => given.unwrap_or_default().to_owned(),
    };
    DatabaseUrl::parse(text.trim_end_matches(['\r', '\n'])).map_err(|accepted| anyhow!("--{flag} must be {accepted}"))
}

/// Why an end cannot be opened: advice about settings that `copy` does not take is put right.
fn unopened(flag: &str, error: &anyhow::Error) -> anyhow::Error {
    let error = format!("--{flag}: {error:#}");
    if error.contains("DATABASE_URL") || error.contains("AUTO_MIGRATE") {
        return anyhow!(
            "{error}; `copy` goes by --{flag} alone: name its owner or another database there, or run \
             `chatstore migrate up` on it first"
        );
    }
    anyhow!(error)
}

async fn run(ends: &Ends, ctx: &Ctx, verify_only: bool, quiet: bool) -> anyhow::Result<ExitCode> {
    if verify_only {
        return compare(ends, quiet).await;
    }
    // Before anything is written: a copy that cannot end well does not begin.
    let missing = projects::missing(ends).await?;
    let meter = Arc::new(Meter::new("copied", quiet));
    let mut has_moved = !missing.is_nothing();
    let copied = async {
        missing.create(ends).await?;
        has_moved |= events::copy(ends).await? > 0;
        sessions::copy(ends, &meter).await
    };
    let copied = copied.await;
    has_moved |= meter.has_counted();
    let result = match copied {
        Ok(known) => {
            meter.finish(|tally| {
                format!(
                    "Copied {} and {} in {} ({} messages/s); {known} already there.",
                    counted(tally.sessions, "session"),
                    counted(tally.messages, "message"),
                    seconds(tally.elapsed),
                    HumanCount(rate(tally.messages, tally.elapsed)),
                )
            });
            compare(ends, quiet).await
        }
        Err(error) => Err(anyhow!("{error:#}; what was copied stays, and the same command goes on from there")),
    };
    if !has_moved {
        return result;
    }
    let mut deed = Deed::new();
    deed.has_begun();
    note(ends.target.as_ref(), ctx, COPY, deed, result).await
}

async fn compare(ends: &Ends, quiet: bool) -> anyhow::Result<ExitCode> {
    let meter = Arc::new(Meter::new("compared", quiet));
    let comparison = verify::compare(ends, &meter).await?;
    meter.finish(|tally| format!("Compared in {}.", seconds(tally.elapsed)));
    if comparison.is_equal() {
        if !quiet {
            print(&comparison.table())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    print(&comparison.table())?;
    for difference in comparison.differences() {
        eprintln!("chatstore: {difference}");
    }
    Ok(ExitCode::FAILURE)
}
