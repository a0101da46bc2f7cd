//! `cargo xtask bench`: what the release binary costs and how long it takes, beside the limits of the same machine.
//!
//! Three limits are measured in the same run: a bare echo of the same bytes over `axum::serve`, a plain loop of the same
//! inserts on SQLite, and pgbench with the same statements on PostgreSQL. What is measured against a limit takes turns
//! with it, because machines are noisy.

mod access;
mod baseline;
mod client;
mod cpu;
pub(crate) mod echo;
mod histogram;
mod idempotency;
mod load;
mod machine;
mod postgres;
mod reads;
mod report;
mod search;
pub(crate) mod server_process;
mod start;
mod store;
mod target;
mod writes;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use self::{
    load::Run,
    machine::Machine,
    report::{Measurement, Report},
    server_process::ServerProcess,
    store::{Seeded, Workspace},
    target::Target,
};
use crate::{
    postgres::{Version, fetch},
    test::{cargo, root},
};

/// What `bench` takes.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Also write everything as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shorter runs and smaller stores: about six minutes
    #[arg(long)]
    quick: bool,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    bin_path: Option<PathBuf>,
    /// What to measure [default: everything]
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Scenario>,
}

impl BenchArgs {
    /// What is named, or everything that this machine can run; in the order of the help.
    fn scenarios(&self) -> Vec<Scenario> {
        let can_run = |scenario: &Scenario| !scenario.needs_postgres() || fetch::is_fetchable();
        let wanted = |scenario: &Scenario| match self.names.is_empty() {
            true => can_run(scenario),
            false => self.names.contains(scenario),
        };
        Scenario::value_variants().iter().copied().filter(wanted).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Start time, idle memory and the size of the binary
    Start,
    /// The plain SQLite loop, and appends of one message at 1, 16, 64 and 256 connections
    Append,
    /// Appends of 100 messages at once
    Batch,
    /// A page of 50 messages, one session, lists of 50 sessions
    Reads,
    /// Pages at the start and deep in a session of 100,000 messages
    Depth,
    /// Pages and sessions in a small and in a large store
    Size,
    /// Appends at a constant rate, half of what a closed loop reaches
    Open,
    /// The guard beside a bare echo, refusals of keys beside each other, a flood of addresses
    Access,
    /// Appends with an `Idempotency-Key` beside appends without, on both engines
    Idempotency,
    /// The Conversations wire: 20 items created, 100 listed, on both engines
    Items,
    /// Search by words and by meaning, in a small and in a large store, beside a plain scan
    Search,
    /// PostgreSQL: appends of one message at 1, 16, 64 and 256 connections, beside pgbench
    Postgres,
    /// PostgreSQL: a page of 50 messages, lists of 50 sessions, beside pgbench
    PostgresReads,
    /// PostgreSQL: appends, pages and lists in a small and in a large database
    PostgresSize,
    /// PostgreSQL: the same searches, beside the bare SQL
    PostgresSearch,
}

impl Scenario {
    fn needs_postgres(self) -> bool {
        matches!(
            self,
            Self::Access
                | Self::Idempotency
                | Self::Items
                | Self::Postgres
                | Self::PostgresReads
                | Self::PostgresSize
                | Self::PostgresSearch
        )
    }
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
struct Plan {
    turns: Turns,
    /// In whole seconds, for pgbench has no others.
    turns_with_pgbench: Turns,
    messages_small: usize,
    messages_large: usize,
    postgres_messages_large: usize,
    open_loop: Duration,
    refusals: usize,
    flood_addresses: usize,
}

/// How often each of the things that are compared is run, and how long.
#[derive(Debug, Clone, Copy)]
struct Turns {
    repeats: usize,
    warmup: Duration,
    measure: Duration,
}

impl Plan {
    fn new(quick: bool) -> Self {
        let turns = |repeats, warmup, measure| Turns {
            repeats,
            warmup: Duration::from_millis(warmup),
            measure: Duration::from_millis(measure),
        };
        if quick {
            Self {
                turns: turns(3, 200, 700),
                turns_with_pgbench: turns(3, 1000, 2000),
                messages_small: 10_000,
                messages_large: 100_000,
                postgres_messages_large: 500_000,
                open_loop: Duration::from_secs(4),
                refusals: 5_000,
                flood_addresses: 200_000,
            }
        } else {
            Self {
                turns: turns(5, 500, 2000),
                turns_with_pgbench: turns(5, 1000, 4000),
                messages_small: 10_000,
                messages_large: 1_000_000,
                postgres_messages_large: 10_000_000,
                open_loop: Duration::from_secs(20),
                refusals: 20_000,
                flood_addresses: 1_000_000,
            }
        }
    }
}

/// What every scenario works with.
struct Bench {
    binary: PathBuf,
    plan: Plan,
    report: Report,
    seeded: Seeded,
    echo: ServerProcess,
    // Dropped last: the servers above live in it.
    workspace: Workspace,
}

impl Bench {
    /// Measures targets in turn, again and again, with the same number of connections.
    fn take_turns(&self, connections: usize, targets: &[Target<'_>]) -> Result<Vec<Measurement>> {
        let with_pgbench = targets.iter().any(Target::is_pgbench);
        let turns = if with_pgbench { self.plan.turns_with_pgbench } else { self.plan.turns };
        let mut runs: Vec<Vec<Run>> = targets.iter().map(|_| Vec::new()).collect();
        for _ in 0..turns.repeats {
            for (target, runs) in targets.iter().zip(&mut runs) {
                runs.push(check(target.run(connections, &turns), &target.name, connections)?);
            }
        }
        let measured = targets
            .iter()
            .zip(&runs)
            .map(|(target, runs)| Ok(Measurement::new(&target.name, connections, runs, target.rss_mib()?)));
        measured.collect()
    }

    /// Starts a server on a copy of the seeded store.
    fn start_seeded(&self, name: &str) -> Result<ServerProcess> {
        let folder = self.workspace.copy(&self.seeded.folder, name)?;
        ServerProcess::start_chatstore(&self.binary, &folder)
    }

    fn run(&mut self, scenario: Scenario) -> Result<()> {
        let started = Instant::now();
        eprint!("{scenario:?} …");
        let outcome = match scenario {
            Scenario::Start => start::start(self),
            Scenario::Append => writes::append(self),
            Scenario::Batch => writes::batch(self),
            Scenario::Reads => reads::reads(self),
            Scenario::Depth => reads::depth(self),
            Scenario::Size => reads::size(self),
            Scenario::Open => writes::open(self),
            Scenario::Access => access::access(self),
            Scenario::Idempotency => idempotency::idempotency(self),
            Scenario::Items => idempotency::items(self),
            Scenario::Search => search::sqlite(self),
            Scenario::Postgres => postgres::append(self),
            Scenario::PostgresReads => postgres::reads(self),
            Scenario::PostgresSize => postgres::size(self),
            Scenario::PostgresSearch => search::postgres(self),
        };
        eprintln!(" {:.1} s", started.elapsed().as_secs_f64());
        outcome
    }
}

/// A run with a single failed request says nothing about the others.
fn check(run: Result<Run>, name: &str, connections: usize) -> Result<Run> {
    let run = run.with_context(|| format!("{name} at {connections} connections"))?;
    ensure!(
        run.errors == 0,
        "{name} at {connections} connections: {} requests failed, the first with: {}",
        run.errors,
        run.first_error.as_deref().unwrap_or_default()
    );
    ensure!(run.requests > 0, "{name} at {connections} connections: no request was answered");
    Ok(run)
}

/// Measures, prints the report, and fails only when something could not be measured.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        return run_release();
    }
    let program = std::env::current_exe()?;
    let profile = program.parent().context("this program is in no folder")?;
    let binary = match &args.bin_path {
        Some(path) => path.canonicalize().with_context(|| format!("no binary at {}", path.display()))?,
        None => build(profile)?,
    };
    let scenarios = args.scenarios();
    if scenarios.iter().any(|scenario| scenario.needs_postgres()) {
        // Now, for it can fail, and a long run must not at its end.
        fetch::programs(Version::V18)?;
    }
    let started = Instant::now();
    let workspace = Workspace::create(profile.parent().unwrap_or(profile))?;
    let plan = Plan::new(args.quick);
    let machine = Machine::read(workspace.root())?;
    eprint!("seeding …");
    let seeded = Seeded::create(&binary, &workspace)?;
    let echo = ServerProcess::start_echo()?;
    let report = Report::new(machine, method(&plan, &binary));
    let mut bench = Bench { binary, plan, report, seeded, echo, workspace };
    eprintln!(" {:.1} s", started.elapsed().as_secs_f64());
    for scenario in scenarios {
        bench.run(scenario)?;
    }
    bench.report.fact("the whole run", started.elapsed().as_secs_f64(), "s");
    println!("{}", bench.report.table());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&bench.report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    bench.echo.kill()
}

/// Does the same again in a release build: a slow generator would measure itself.
fn run_release() -> Result<()> {
    let given = std::env::args_os().skip(1);
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--locked", "--manifest-path"]).arg(root().join("Cargo.toml"));
    let status = command.args(["--package", "xtask", "--"]).args(given).status()?;
    ensure!(status.success(), "the benchmark failed ({status})");
    Ok(())
}

/// Builds the release binary beside this program.
fn build(profile: &Path) -> Result<PathBuf> {
    let target = profile.parent().context("this program is in no target folder")?;
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--package", "chatstore", "--target-dir"]).arg(target);
    let status = command.current_dir(root()).status()?;
    ensure!(status.success(), "the release binary could not be built ({status})");
    Ok(profile.join("chatstore"))
}

fn method(plan: &Plan, binary: &Path) -> Vec<String> {
    vec![
        format!("binary: {}", binary.display()),
        turns("each row", &plan.turns),
        turns("rows beside pgbench", &plan.turns_with_pgbench),
        "throughput and CPU are medians of the runs, percentiles are over all their requests;".to_owned(),
        "the generator (one thread, HTTP/1.1 keep-alive over loopback) and the server share the machine;".to_owned(),
        "CPU is user + system time of the server process a request, in µs, DB CPU that of all processes of".to_owned(),
        "PostgreSQL, gen CPU that of the generator; others is how many cores did anything else meanwhile:".to_owned(),
        "rows where that is much say little; durable commits, request log on; the server (its pool) and".to_owned(),
        "pgbench (two threads, a connection a client, prepared) use the same unix socket of PostgreSQL.".to_owned(),
    ]
}

fn turns(what: &str, turns: &Turns) -> String {
    let Turns { repeats, warmup, measure } = turns;
    format!(
        "{what}: {repeats} runs of {measure:?} after {warmup:?} of warm-up, in turns with what it is compared with;"
    )
}
