//! Reads: pages and sessions beside an echo of the same size, deep in a session, and in a large store.

use anyhow::{Result, bail};

use super::{
    Bench, Target,
    client::request,
    report::Measurement,
    server_process::{API_KEY, ServerProcess},
    store::{LONG_SESSIONS, USER, create_sessions, fill, get, get_page, messages_path},
};

const CONNECTIONS: usize = 16;
pub(super) const PAGE: usize = 50;
const BATCH: usize = 1000;
const DEEP_MESSAGES: usize = 100_000;

pub(super) fn get_requests(paths: impl IntoIterator<Item = String>) -> Vec<Vec<u8>> {
    paths.into_iter().map(|path| request("GET", &path, API_KEY, "")).collect()
}

pub(super) fn page_path(session: &str) -> String {
    format!("{}?limit={PAGE}", messages_path(session))
}

fn session_path(session: &str) -> String {
    format!("/api/v1/sessions/{session}")
}

/// Every kind of read, each in turns with an echo of as many bytes.
pub(super) fn reads(bench: &mut Bench) -> Result<()> {
    let server = bench.start_seeded("reads")?;
    let long = bench.seeded.sessions[..LONG_SESSIONS].to_vec();
    let pages: Vec<String> = long.iter().map(|session| page_path(session)).collect();
    let sessions: Vec<String> = bench.seeded.sessions.iter().map(|session| session_path(session)).collect();
    let list = format!("/api/v1/sessions?user_id={USER}&limit={PAGE}");
    let recent = format!("{list}&sort=updated_at&order=desc");

    let bytes = get_page(&server, &pages[0], PAGE)?.len();
    let page = beside_echo(bench, &server, "page of 50 messages", pages, bytes)?;
    let bytes = get(&server, &sessions[0])?.len();
    let session = beside_echo(bench, &server, "one session", sessions, bytes)?;
    let bytes = get_page(&server, &list, PAGE)?.len();
    let listed = beside_echo(bench, &server, "50 of 1,000 sessions", vec![list], bytes)?;
    let bytes = get_page(&server, &recent, PAGE)?.len();
    let sidebar = beside_echo(bench, &server, "50 of 1,000 sessions, last updated", vec![recent], bytes)?;
    server.stop()?;

    let report = &mut bench.report;
    report.at_most("CPU of a page of 50 / echo of the same bytes", 10.0, " ×", page);
    report.at_most("CPU of one session / echo of the same bytes", 3.0, " ×", session);
    report.fact("CPU of 50 sessions / echo of the same bytes", listed, "×");
    report.fact("CPU of 50 sessions by last update / echo of the same bytes", sidebar, "×");
    Ok(())
}

/// Measures one kind of read; gives its CPU as a multiple of the echo's.
fn beside_echo(bench: &mut Bench, server: &ServerProcess, name: &str, paths: Vec<String>, bytes: usize) -> Result<f64> {
    let targets = [
        Target::new(name, server, get_requests(paths)),
        Target::new(
            format!("  bare echo of {bytes} bytes"),
            &bench.echo,
            get_requests([format!("/echo-page/{bytes}")]),
        ),
    ];
    let measured = bench.take_turns(CONNECTIONS, &targets)?;
    let [read, echo] = &measured[..] else { bail!("two targets, two measurements") };
    let ratio = read.cpu_us / echo.cpu_us;
    bench.report.measurements(&measured);
    Ok(ratio)
}

/// Pages of one long session: at its start, and at depth from both ends.
pub(super) fn depth(bench: &mut Bench) -> Result<()> {
    let folder = bench.workspace.folder("depth")?;
    let server = ServerProcess::start_chatstore(&bench.binary, &folder)?;
    let sessions = create_sessions(&server, 1)?;
    fill(&server, &sessions, DEEP_MESSAGES / BATCH, BATCH)?;
    let path = messages_path(&sessions[0]);
    let after = DEEP_MESSAGES - 100;
    let paths = [
        ("page of 50, oldest first, at the start", format!("{path}?order=asc&limit={PAGE}")),
        ("  oldest first, at depth 99,900", format!("{path}?order=asc&limit={PAGE}&after_seq={after}")),
        ("page of 50, newest first, at the start", format!("{path}?limit={PAGE}")),
        ("  newest first, at depth 99,900", format!("{path}?limit={PAGE}&before_seq=101")),
    ];
    let mut targets = Vec::new();
    for (name, path) in paths {
        get_page(&server, &path, PAGE)?;
        targets.push(Target::new(name, &server, get_requests([path])));
    }
    let measured = bench.take_turns(CONNECTIONS, &targets)?;
    drop(targets);
    server.stop()?;
    let [oldest, after, newest, before] = &measured[..] else { bail!("four targets, four measurements") };
    compare(bench, "a page after seq 99,900 / at the start", after, oldest);
    compare(bench, "a page before seq 101 / at the start", before, newest);
    bench.report.measurements(&measured);
    Ok(())
}

fn compare(bench: &mut Bench, name: &str, far: &Measurement, near: &Measurement) {
    bench.report.at_most(format!("CPU of {name}"), 1.2, " ×", far.cpu_us / near.cpu_us);
    bench.report.at_most(format!("p50 of {name}"), 1.2, " ×", far.p50_ms / near.p50_ms);
}

/// The same reads in a small and in a large store, whose sessions all have 1,000 messages.
pub(super) fn size(bench: &mut Bench) -> Result<()> {
    let plan = bench.plan;
    let (small, small_sessions) = start_filled(bench, "small", plan.messages_small)?;
    let (large, large_sessions) = start_filled(bench, "large", plan.messages_large)?;
    let names = [thousands(plan.messages_small), thousands(plan.messages_large)];
    for (kind, path) in [("page of 50", page_path as fn(&str) -> String), ("one session", session_path)] {
        let targets = [
            target(&format!("{kind}, {} messages stored", names[0]), &small, &small_sessions, path),
            target(&format!("{kind}, {} messages stored", names[1]), &large, &large_sessions, path),
        ];
        let measured = bench.take_turns(CONNECTIONS, &targets)?;
        let [near, far] = &measured[..] else { bail!("two targets, two measurements") };
        compare(bench, &format!("{kind} in {} messages / in {}", names[1], names[0]), far, near);
        bench.report.measurements(&measured);
    }
    small.stop()?;
    large.stop()?;
    Ok(())
}

fn target<'a>(name: &str, server: &'a ServerProcess, sessions: &[String], path: fn(&str) -> String) -> Target<'a> {
    Target::new(name, server, get_requests(sessions.iter().map(|session| path(session))))
}

/// Fills a store, and starts a server on it that has not filled it.
fn start_filled(bench: &Bench, name: &str, messages: usize) -> Result<(ServerProcess, Vec<String>)> {
    let folder = bench.workspace.folder(name)?;
    let server = ServerProcess::start_chatstore(&bench.binary, &folder)?;
    let sessions = create_sessions(&server, messages / BATCH)?;
    fill(&server, &sessions, messages / BATCH, BATCH)?;
    server.stop()?;
    let server = ServerProcess::start_chatstore(&bench.binary, &folder)?;
    get_page(&server, &page_path(&sessions[0]), PAGE)?;
    Ok((server, sessions))
}

pub(super) fn thousands(count: usize) -> String {
    if count >= 1_000_000 { format!("{} M", count / 1_000_000) } else { format!("{} k", count / 1000) }
}
