//! An append is acknowledged only after the write-ahead log has been synced to the disk, seen at
//! the boundary where it counts: the system calls of the running server.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;
#[path = "support/trace.rs"]
mod trace;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use nix::unistd::Pid;

use support::Server;
use trace::{Call, Kind, Phase, Traced, Verdict};

const APPENDS: usize = 100;

#[test]
fn every_acknowledgement_follows_the_sync_of_its_commit() {
    let report = trace_appends("full");
    eprintln!("{} responses, {} syncs of the log", report.responses, report.syncs);
    assert_eq!(report.responses, APPENDS);
    assert_eq!(report.violations, Vec::<String>::new());
    assert!(report.syncs >= APPENDS);
}

/// The proof that the checker sees what it looks for: here the log is not synced on commit.
#[test]
fn the_checker_finds_acknowledgements_that_come_too_early() {
    let report = trace_appends("normal");
    assert_eq!(report.responses, APPENDS);
    let found = report.violations.len();
    assert!(found > APPENDS / 2, "{found} of {APPENDS}");
}

/// Appends one after the other on one connection and judges what the server did meanwhile.
fn trace_appends(synchronous: &str) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &[("SQLITE_SYNCHRONOUS", synchronous)]);
    let mut client = server.client();
    let messages = client.new_session();
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let mut traced = Traced::attach(server, move |call, phase| {
        seen.lock().unwrap().push((call.clone(), phase));
        Verdict::Pass
    });
    for n in 0..APPENDS {
        client.append(&messages, &format!("message {n}")).expect(201);
    }
    traced.kill();
    let events = events.lock().unwrap();
    judge(&events)
}

#[derive(Default)]
struct Report {
    responses: usize,
    syncs: usize,
    violations: Vec<String>,
}

/// Between the last byte read of a request and the first byte written in answer, a successful sync
/// of the log must have begun and ended, with nothing written to the log since it began.
fn judge(events: &[(Call, Phase)]) -> Report {
    let mut report = Report::default();
    // Where each socket's unanswered request was last read.
    let mut requests: HashMap<u64, usize> = HashMap::new();
    let mut syncs_begun: HashMap<Pid, usize> = HashMap::new();
    let mut synced = None;
    let mut log_written = None;
    for (at, (call, phase)) in events.iter().enumerate() {
        match (call.kind, phase) {
            (Kind::Read, Phase::End(1..)) if call.is_on_socket() => {
                requests.insert(call.fd, at);
            }
            (Kind::Write, Phase::Begin) if call.is_on_log() => log_written = Some(at),
            (Kind::Sync, Phase::Begin) if call.is_on_log() => {
                syncs_begun.insert(call.thread, at);
            }
            (Kind::Sync, Phase::End(0)) if call.is_on_log() => {
                report.syncs += 1;
                synced = syncs_begun.get(&call.thread).copied();
            }
            (Kind::Write, Phase::Begin) if call.is_on_socket() => {
                let Some(read) = requests.remove(&call.fd) else {
                    continue;
                };
                report.responses += 1;
                if synced < Some(read) {
                    report.violations.push(format!("response {}: no sync since its request", report.responses));
                } else if synced < log_written {
                    report.violations.push(format!("response {}: the log grew after the sync", report.responses));
                }
            }
            _ => {}
        }
    }
    report
}
