//! Appends: one message, a hundred at once, and at a constant rate.

use std::{rc::Rc, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Bench, Target,
    baseline::{Loop, insert_loop},
    check,
    client::request,
    load::{Load, block_on, open_loop},
    report::Measurement,
    server_process::{API_KEY, StoreCounters},
    store::{batch_body, message_body, messages_path},
};

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
const BATCH: usize = 100;
const BATCH_CONNECTIONS: usize = 16;
/// Where the aim for the CPU of an append is judged.
const JUDGED_CONNECTIONS: usize = 64;
const OPEN_CONNECTIONS: usize = 256;

/// Appends of `body` to every session in turn.
fn append_requests(bench: &Bench, body: &str) -> Vec<Vec<u8>> {
    let sessions = bench.seeded.sessions.iter();
    sessions.map(|session| request("POST", &messages_path(session), API_KEY, body)).collect()
}

fn echo_requests(body: &str) -> Vec<Vec<u8>> {
    vec![request("POST", "/echo", API_KEY, body)]
}

/// One message a request, at several numbers of connections, each on its own server and store.
pub(super) fn append(bench: &mut Bench) -> Result<()> {
    let alone = plain_loops(bench)?;
    for connections in CONNECTIONS {
        let (measured, counters) = append_at(bench, connections)?;
        let [append, echo] = &measured[..] else { anyhow::bail!("two targets, two measurements") };
        let per_commit = counters.map(|counters| counters.appends as f64 / counters.commits.max(1) as f64);
        let ratio = append.cpu_us / echo.cpu_us;
        let report = &mut bench.report;
        if connections == JUDGED_CONNECTIONS {
            report.at_most(format!("CPU of an append / bare echo, {connections} connections"), 6.0, " ×", ratio);
        } else {
            report.fact(format!("CPU of an append / bare echo, {connections} connections"), ratio, "×");
        }
        match connections {
            64 => report.at_least("appends that share a commit, 64 connections", 8.0, "", per_commit),
            256 => report.at_least("appends that share a commit, 256 connections", 32.0, "", per_commit),
            _ => report.fact(
                format!("appends that share a commit, {connections} connections"),
                per_commit.unwrap_or_default(),
                "",
            ),
        }
        let gain = append.requests_per_second / alone.per_second;
        report.fact(format!("appends / plain loop of one a commit, {connections} connections"), gain, "×");
        report.measurements(&measured);
    }
    Ok(())
}

/// The same inserts without a server.
fn plain_loops(bench: &mut Bench) -> Result<Loop> {
    let length = bench.plan.turns.measure * 2;
    let run = |per_transaction: usize| {
        let folder = bench.workspace.copy(&bench.seeded.folder, &format!("plain-loop-{per_transaction}"))?;
        insert_loop(&folder, per_transaction, length)
    };
    let (shared, alone) = (run(64)?, run(1)?);
    for (name, measured) in [("64", &shared), ("1", &alone)] {
        bench.report.fact(format!("plain SQLite loop, {name} a transaction"), measured.per_second, "inserts/s");
        bench.report.fact(format!("plain SQLite loop, {name} a transaction, CPU"), measured.cpu_us, "µs an insert");
    }
    Ok(alone)
}

fn append_at(bench: &Bench, connections: usize) -> Result<(Vec<Measurement>, Option<StoreCounters>)> {
    let server = bench.start_seeded(&format!("append-{connections}"))?;
    let body = message_body();
    let targets = [
        Target::new("append one message", &server, append_requests(bench, &body)),
        Target::new("  bare echo of its body", &bench.echo, echo_requests(&body)),
    ];
    let measured = bench.take_turns(connections, &targets)?;
    drop(targets);
    Ok((measured, server.stop()?))
}

/// A hundred messages a request.
pub(super) fn batch(bench: &mut Bench) -> Result<()> {
    let server = bench.start_seeded("batch")?;
    let body = batch_body(BATCH);
    let targets = [
        Target::new("append 100 messages", &server, append_requests(bench, &body)),
        Target::new("  bare echo of their body", &bench.echo, echo_requests(&body)),
    ];
    let measured = bench.take_turns(BATCH_CONNECTIONS, &targets)?;
    let append = measured.first().context("no measurement")?;
    let (rate, cpu_us) = (append.requests_per_second * BATCH as f64, append.cpu_us / BATCH as f64);
    drop(targets);
    server.stop()?;
    bench.report.fact("messages appended 100 at once", rate, "messages/s");
    bench.report.fact("CPU of a message appended 100 at once", cpu_us, "µs");
    bench.report.measurements(&measured);
    Ok(())
}

/// Half of what a closed loop reached a moment ago, at a constant rate.
pub(super) fn open(bench: &mut Bench) -> Result<()> {
    let server = bench.start_seeded("open")?;
    let target = Target::new("append, closed loop", &server, append_requests(bench, &message_body()));
    let closed = bench.take_turns(JUDGED_CONNECTIONS, std::slice::from_ref(&target))?;
    let rate = closed.first().context("no measurement")?.requests_per_second / 2.0;
    let load = Load {
        server: &server,
        database: None,
        requests: Rc::new(append_requests(bench, &message_body())),
        status: None,
        is_numbered: false,
        connections: OPEN_CONNECTIONS,
        warmup: Duration::from_secs(1),
        measure: bench.plan.open_loop,
    };
    let name = format!("append, open loop at {rate:.0}/s");
    let run = check(block_on(open_loop(&load, rate)), &name, OPEN_CONNECTIONS)?;
    let opened = Measurement::new(&name, OPEN_CONNECTIONS, &[run], server.rss_mib()?);
    drop((target, load));
    server.stop()?;
    bench.report.measurements(&closed);
    bench.report.measurements(&[opened]);
    Ok(())
}
