//! The program on PostgreSQL when it is killed, one of several, and when its database freezes,
//! restarts or dies: what was acknowledged stays, and every request is answered in time.
//!
//! `CHATSTORE_TEST_ROUNDS` is how often it is killed; `cargo xtask soak` sets it high.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chatstore_postgres::testing::{Cluster, Settings, Shutdown, TestDatabase, programs};
use support::journal::{End, Writer, check};
use support::{Answer, Client, Random, Server, chatstore, eventually, run};

const WRITERS: usize = 16;
const SESSIONS: usize = 6;
/// Kills after which everything is checked, and new sessions are begun.
const ROUNDS_TOGETHER: usize = 10;
/// From the first append of a round to its kill.
const ROUND_MS: std::ops::Range<u64> = 50..400;
/// How soon service must be normal after the database is back.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);
/// The deadline of a statement in these tests, and what an answer may take beyond it on a busy machine. Together they
/// are less than the usual deadline of five seconds, and than none.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_secs(3);
/// How long a connection is waited for. What asks a database that is frozen takes that long at least.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(500);

fn rounds() -> usize {
    match std::env::var("CHATSTORE_TEST_ROUNDS") {
        Ok(text) => text.parse().expect("CHATSTORE_TEST_ROUNDS must be a number"),
        Err(_) => 30,
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn writers(seed: u64) -> Vec<Writer> {
    (0..WRITERS).map(|number| Writer::new(number, seed)).collect()
}

/// Red if an append is acknowledged before its commit, or if what a dead process leaves at the
/// server (a lock, half a transaction) fails its neighbour.
#[test]
fn nothing_acknowledged_is_lost_when_one_of_two_is_killed_and_the_other_serves_on() {
    let seed = Random::any_seed();
    eprintln!("CHATSTORE_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let database = now(TestDatabase::create());
    let folder = tempfile::tempdir().unwrap();
    // Who waits for a connection on a busy machine is not refused; the deadline of a statement still holds.
    let settings = [("DATABASE_URL", database.url()), ("POSTGRES_ACQUIRE_TIMEOUT_MS", "30000".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let start = || Server::start_with(folder.path(), &settings);
    let mut servers = [start(), start()];
    let (mut left, mut total) = (rounds(), 0);
    while left > 0 {
        let sessions: Vec<_> = (0..SESSIONS).map(|_| servers[0].client().new_session()).collect();
        let mut writers = writers(random.next());
        for _ in 0..left.min(ROUNDS_TOGETHER) {
            let life = ROUND_MS.start + random.below(ROUND_MS.end - ROUND_MS.start);
            let victim = usize::try_from(random.below(2)).unwrap();
            let urls = [servers[0].url.clone(), servers[1].url.clone()];
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for (number, writer) in writers.iter_mut().enumerate() {
                    let end = if number % 2 == victim { End::Broken } else { End::Told };
                    let (url, sessions, stop) = (&urls[number % 2], &sessions, &stop);
                    scope.spawn(move || assert_eq!(writer.append_until(url, sessions, stop), end));
                }
                std::thread::sleep(Duration::from_millis(life));
                servers[victim].process.kill();
                servers[victim] = start();
                stop.store(true, Ordering::Relaxed);
            });
            left -= 1;
        }
        let present = check(&servers[0].url, &sessions, &writers);
        let acknowledged: usize = writers.iter().map(|writer| writer.counts().1).sum();
        eprintln!("{acknowledged} messages acknowledged, {present} there");
        total += acknowledged;
        assert_eq!(writers.iter().map(Writer::refused).sum::<usize>(), 0, "the database was well all the time");
    }
    assert!(total > 10 * rounds(), "the test has hardly tested: {total} acknowledged");
    for mut server in servers {
        server.stop();
    }
}

/// The time that `ask` took, and its answer.
fn timed(ask: impl FnOnce() -> Answer) -> (Answer, Duration) {
    let started = Instant::now();
    let answer = ask();
    (answer, started.elapsed())
}

/// Makes a key in the database.
fn create_key(folder: &Path, url: &str) -> String {
    let mut command = chatstore(folder);
    command.args(["keys", "create", "--name", "phone"]).env("DATABASE_URL", url);
    run(command).ok().out.trim_end().to_owned()
}

/// Checks that the process says it lives, at once, and that it is not ready, in time.
fn assert_alive_but_not_ready(client: &mut Client) {
    for target in ["/livez", "/healthz"] {
        // A busy machine holds up one of them, a database that is asked all.
        let tries = [(); 3].map(|()| {
            let (answer, took) = timed(|| client.get(target));
            answer.expect(200);
            took
        });
        assert!(tries.iter().any(|took| *took < ACQUIRE_TIMEOUT), "{target} took {tries:?}");
    }
    let (answer, took) = timed(|| client.get("/readyz"));
    answer.expect_problem(503, "not_ready");
    assert!(answer.header("retry-after").is_some());
    assert!(took < STATEMENT_TIMEOUT + SLACK, "/readyz took {took:?}");
}

/// Red if a request waits for the database beyond the deadline, if a dead database is answered
/// with anything but 503 and `Retry-After` (a key that cannot be looked up is not a wrong one), if
/// liveness asks the database, or if service does not come back by itself.
#[test]
fn a_database_that_freezes_restarts_or_dies_is_answered_for_with_503_in_time() {
    let mut cluster = Cluster::start(&programs(), Settings::fast()).unwrap();
    let database = now(TestDatabase::create_on(&cluster.url("postgres")));
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("DATABASE_URL", database.url()),
        ("POSTGRES_STATEMENT_TIMEOUT_MS", STATEMENT_TIMEOUT.as_millis().to_string()),
        ("POSTGRES_ACQUIRE_TIMEOUT_MS", ACQUIRE_TIMEOUT.as_millis().to_string()),
    ];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut server = Server::start_with(folder.path(), &settings);
    let key = create_key(folder.path(), &database.url());
    let mut with_stored_key = server.client().with_key(&key);
    let mut client = server.client();
    client.get("/readyz").expect(200);
    with_stored_key.get("/api/v1/sessions").expect(200);
    let sessions: Vec<_> = (0..SESSIONS).map(|_| client.new_session()).collect();
    let own_session = client.new_session();
    let mut writers = writers(Random::any_seed());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in &mut writers {
            scope.spawn(|| assert_eq!(writer.append_until(&server.url, &sessions, &stop), End::Told));
        }
        let mut unavailable = |client: &mut Client| {
            assert_alive_but_not_ready(client);
            let target = sessions[0].strip_suffix("/messages").unwrap();
            for target in [target, &sessions[0], "/api/v1/sessions"] {
                for client in [&mut *client, &mut with_stored_key] {
                    let (answer, took) = timed(|| client.get(target));
                    answer.expect_retry();
                    assert!(took < STATEMENT_TIMEOUT + SLACK, "{target} took {took:?}");
                }
            }
        };
        let back = |client: &mut Client| {
            // A single refusal may be that of a busy machine; that none is wrong in kind is for the writers to see.
            eventually("ready again, and ten appends in a row", RECOVERY_LIMIT, || {
                let is_ready = client.get("/readyz").status == 200;
                (is_ready && (0..10).all(|_| client.append(&own_session, "back").status == 201)).then_some(())
            });
        };
        cluster.pause().unwrap();
        unavailable(&mut client);
        cluster.resume().unwrap();
        back(&mut client);

        cluster.restart(Shutdown::Fast).unwrap();
        back(&mut client);

        cluster.kill().unwrap();
        unavailable(&mut client);
        cluster.start_again().unwrap();
        back(&mut client);
        stop.store(true, Ordering::Relaxed);
    });
    for writer in &writers {
        assert!(writer.slowest < STATEMENT_TIMEOUT + SLACK, "an append was answered after {:?}", writer.slowest);
    }
    assert!(writers.iter().any(|writer| writer.refused() > 0));
    check(&server.url, &sessions, &writers);
    server.stop();
}
