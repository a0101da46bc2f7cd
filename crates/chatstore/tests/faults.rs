//! A disk that fails or fills up under a running server: refused with the right answer, survived,
//! and never at the cost of what was acknowledged.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;
#[path = "support/trace.rs"]
mod trace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde_json::{Value, json};

use support::{Answer, Client, DATABASE, Server, eventually, integrity};
use trace::{Call, Kind, Phase, Traced, Verdict};

/// How soon writes must work again once there is room.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);
/// How soon a write must be refused while there is none; one that waits in vain for a lock takes five seconds.
const REFUSAL_LIMIT: Duration = Duration::from_secs(4);

/// A server whose disk can be told to fail.
struct Faulty {
    traced: Traced,
    /// Matching calls to let pass before one fails; `i64::MAX` for none.
    pass: Arc<AtomicI64>,
    failed: Arc<AtomicU64>,
}

/// What becomes of the calls that match.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Span {
    /// One fails.
    Once,
    /// All fail from then on.
    Lasting,
}

const NEVER: i64 = i64::MAX;

impl Faulty {
    fn start(folder: &Path, span: Span, error: Errno, matches: fn(&Call) -> bool) -> Self {
        let server = Server::start(folder);
        let pass = Arc::new(AtomicI64::new(NEVER));
        let failed = Arc::new(AtomicU64::new(0));
        let (left, failures) = (pass.clone(), failed.clone());
        let traced = Traced::attach(server, move |call, phase| {
            if phase != Phase::Begin || !matches(call) {
                return Verdict::Pass;
            }
            match left.load(Ordering::SeqCst) {
                NEVER => return Verdict::Pass,
                0 if span == Span::Once => left.store(NEVER, Ordering::SeqCst),
                0 => {}
                n => {
                    left.store(n - 1, Ordering::SeqCst);
                    return Verdict::Pass;
                }
            }
            failures.fetch_add(1, Ordering::SeqCst);
            Verdict::Fail(error)
        });
        Self { traced, pass, failed }
    }

    fn client(&self) -> Client {
        self.traced.server.client()
    }

    /// Lets `pass` more matching calls work, and then none or all but one.
    fn fail_after(&self, pass: i64) {
        self.pass.store(pass, Ordering::SeqCst);
    }

    fn heal(&self) {
        self.pass.store(NEVER, Ordering::SeqCst);
    }

    fn failures(&self) -> u64 {
        self.failed.load(Ordering::SeqCst)
    }
}

/// Every message that was acknowledged, to be looked for at the end.
#[derive(Default)]
struct Journal(Vec<Value>);

impl Journal {
    /// Appends a message and notes it if it was acknowledged.
    fn append(&mut self, client: &mut Client, messages: &str, content: &str) -> Answer {
        let answer = client.append(messages, content);
        if answer.status == 201 {
            self.0.push(answer.json());
        }
        answer
    }

    /// Everything acknowledged is there as it was acknowledged, in an unbroken order.
    fn check(&self, client: &mut Client, messages: &str) {
        let found = client.all(messages);
        for (message, seq) in found.iter().zip(1_i64..) {
            assert_eq!(message["seq"], seq);
        }
        for acknowledged in &self.0 {
            assert!(found.contains(acknowledged), "acknowledged and lost: {acknowledged}");
        }
    }
}

fn is_sync_of_log(call: &Call) -> bool {
    call.kind == Kind::Sync && call.is_on_log()
}

fn is_write_of_log(call: &Call) -> bool {
    call.kind == Kind::Write && call.is_on_log()
}

fn is_write_of_data(call: &Call) -> bool {
    call.kind == Kind::Write && (call.is_on_log() || call.target.ends_with(".db"))
}

#[test]
fn a_failed_sync_stops_all_writing_until_a_restart() {
    refuses_to_write_after(Errno::EIO, is_sync_of_log);
}

#[test]
fn a_failed_write_of_the_log_stops_all_writing_until_a_restart() {
    refuses_to_write_after(Errno::EIO, is_write_of_log);
}

/// One call fails, once; what the disk holds is not known from then on.
fn refuses_to_write_after(error: Errno, matches: fn(&Call) -> bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut faulty = Faulty::start(folder.path(), Span::Once, error, matches);
    let mut client = faulty.client();
    let messages = client.new_session();
    let mut journal = Journal::default();
    for n in 0..20 {
        journal.append(&mut client, &messages, &format!("before {n}")).expect(201);
    }
    faulty.fail_after(0);
    journal.append(&mut client, &messages, "the one that fails").expect_problem(503, "store_unavailable");
    assert_eq!(faulty.failures(), 1);

    // The disk is well again, but nobody knows what it has forgotten.
    for n in 0..5 {
        journal.append(&mut client, &messages, &format!("after {n}")).expect_problem(503, "store_unavailable");
    }
    let session = messages.strip_suffix("/messages").unwrap();
    client.post("/api/v1/sessions", &json!({"session_name": "no"})).expect_problem(503, "store_unavailable");
    client
        .try_send("PATCH", session, Some("{\"session_name\":\"no\"}"))
        .unwrap()
        .expect_problem(503, "store_unavailable");
    client.try_send("DELETE", session, None).unwrap().expect_problem(503, "store_unavailable");
    client.get(session).expect(200);
    client.get("/api/v1/sessions").expect(200);
    journal.check(&mut client, &messages);
    client.get("/readyz").expect_problem(503, "not_ready");
    client.get("/livez").expect(200);
    assert_eq!(faulty.failures(), 1);
    faulty.traced.kill();

    let mut server = Server::start(folder.path());
    let mut client = server.client();
    client.get("/readyz").expect(200);
    journal.check(&mut client, &messages);
    journal.append(&mut client, &messages, "after the restart").expect(201);
    journal.check(&mut client, &messages);
    server.stop();
    assert_eq!(integrity(&folder.path().join(DATABASE)), "ok");
}

#[test]
fn a_full_disk_refuses_writes_and_recovers_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut faulty = Faulty::start(folder.path(), Span::Lasting, Errno::ENOSPC, is_write_of_data);
    let mut client = faulty.client();
    let messages = client.new_session();
    let mut journal = Journal::default();
    for n in 0..20 {
        journal.append(&mut client, &messages, &format!("before {n}")).expect(201);
    }
    faulty.fail_after(0);
    for n in 0..10 {
        let asked = Instant::now();
        journal.append(&mut client, &messages, &format!("full {n}")).expect_problem(507, "storage_full");
        assert!(asked.elapsed() < REFUSAL_LIMIT, "refused after {:?}", asked.elapsed());
        client.get(&messages).expect(200);
    }
    client.post("/api/v1/sessions", &json!({"session_name": "no"})).expect_problem(507, "storage_full");
    journal.check(&mut client, &messages);
    client.get("/livez").expect(200);
    assert!(faulty.failures() >= 11);
    // The server, idle by now, tries in vain to copy the log into the file.
    let tried = |text: &str| text.contains("a checkpoint failed").then_some(());
    faulty.traced.server.process.out.wait_for(tried).expect("a checkpoint was tried");

    faulty.heal();
    writes_work_again(&mut client, &messages, &mut journal);
    client.get("/readyz").expect(200);
    journal.check(&mut client, &messages);
    faulty.traced.kill();
    let mut server = Server::start(folder.path());
    journal.check(&mut server.client(), &messages);
    server.stop();
    assert_eq!(integrity(&folder.path().join(DATABASE)), "ok");
}

fn writes_work_again(client: &mut Client, messages: &str, journal: &mut Journal) {
    eventually("writes work again", RECOVERY_LIMIT, || {
        let answer = journal.append(client, messages, "there is room again");
        (answer.status == 201).then_some(())
    });
}

/// The disk is full for one write, which is the first, the second, the third … from now on.
#[test]
fn a_disk_that_is_full_at_any_one_write_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut faulty = Faulty::start(folder.path(), Span::Once, Errno::ENOSPC, is_write_of_data);
    let mut client = faulty.client();
    let messages = client.new_session();
    let mut journal = Journal::default();
    // Some pages long, so that a commit takes several writes.
    let content = "0123456789abcdef".repeat(1_500);
    let mut refused = 0;
    for pass in 0..40 {
        let failures = faulty.failures();
        faulty.fail_after(pass);
        while faulty.failures() == failures {
            let answer = journal.append(&mut client, &messages, &format!("{pass} {content}"));
            if answer.status != 201 {
                answer.expect_problem(507, "storage_full");
                refused += 1;
            }
        }
        journal.append(&mut client, &messages, "there is room again").expect(201);
    }
    assert!(refused >= 20, "only {refused} refused");
    journal.check(&mut client, &messages);
    client.get("/readyz").expect(200);
    faulty.traced.kill();
    let mut server = Server::start(folder.path());
    journal.check(&mut server.client(), &messages);
    server.stop();
    assert_eq!(integrity(&folder.path().join(DATABASE)), "ok");
}

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Says why there is none on this machine.
    fn mount(at: &Path) -> Result<Self, String> {
        fs::create_dir(at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(at).output();
        match mount {
            Ok(output) if output.status.success() => Ok(Self(at.to_owned())),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_real_full_disk_refuses_writes_and_recovers_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(&folder.path().join("data")) {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("SKIPPED: no tmpfs can be mounted here, which takes root: {reason}");
            return;
        }
    };
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 3 << 20]).unwrap();
    let mut server = Server::start(folder.path());
    let mut client = server.client();
    let messages = client.new_session();
    let mut journal = Journal::default();
    let content = "0123456789abcdef".repeat(4_000);
    let refusal = (0..1_000).find_map(|n| {
        let answer = journal.append(&mut client, &messages, &format!("{n} {content}"));
        (answer.status != 201).then_some(answer)
    });
    refusal.expect("8 MiB hold no 60 MiB").expect_problem(507, "storage_full");
    assert!(journal.0.len() > 10, "{} fitted", journal.0.len());
    client.get("/livez").expect(200);
    journal.check(&mut client, &messages);

    fs::remove_file(&ballast).unwrap();
    writes_work_again(&mut client, &messages, &mut journal);
    client.get("/readyz").expect(200);
    journal.check(&mut client, &messages);
    server.process.kill();
    server = Server::start(folder.path());
    journal.check(&mut server.client(), &messages);
    server.stop();
    assert_eq!(integrity(&folder.path().join(DATABASE)), "ok");
}
