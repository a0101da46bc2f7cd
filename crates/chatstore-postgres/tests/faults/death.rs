//! The database is killed, restarted or frozen under writers.

use std::time::{Duration, Instant};

use chatstore_core::clock::Ctx;
use chatstore_core::store::Store as _;
use chatstore_postgres::testing::{Settings, Shutdown, TestDatabase};

use crate::ledger::Ledger;
use crate::{SLACK, assert_passing, cluster, connect, eventually, open, read_session, rounds, within};

const WRITERS: usize = 16;
const SESSIONS: usize = 6;
/// Rounds after which everything is checked, and new sessions are begun.
const ROUNDS_TOGETHER: usize = 30;

/// What is committed is on the disk. After a crash the server sees to that for all files at once:
/// file by file takes seconds.
fn durable() -> Settings {
    Settings::durable().set("recovery_init_sync_method", "syncfs")
}

/// From 100 ms to 355 ms.
fn any_life() -> Duration {
    let [ms] = Ctx::system().random();
    Duration::from_millis(100 + u64::from(ms))
}

/// Red if an append is answered before its commit is on the disk (or `synchronous_commit` is off),
/// if one whose commit broke off is stored a second time, or if a broken connection is lent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_database_is_killed() {
    let mut cluster = cluster(durable());
    let database = TestDatabase::create_on(&cluster.url("postgres")).await;
    let statement_timeout = Duration::from_secs(3);
    let store = open(&database.url(), |options| options.statement_timeout = statement_timeout).await;
    let mut left = rounds();
    let (mut acknowledged, mut slowest) = (0, Duration::ZERO);
    while left > 0 {
        let ledger = Ledger::open(&store, SESSIONS, statement_timeout + SLACK).await;
        let writers = ledger.start_writers(WRITERS, &[&store]);
        for _ in 0..left.min(ROUNDS_TOGETHER) {
            tokio::time::sleep(any_life()).await;
            cluster.kill().unwrap();
            cluster.start_again().unwrap();
            slowest = slowest.max(ledger.await_service(&store).await);
            left -= 1;
        }
        writers.finish().await;
        ledger.check(&store).await;
        acknowledged += ledger.acknowledged();
    }
    assert!(acknowledged > 10 * rounds(), "the test has hardly tested: {acknowledged} acknowledged");
    eprintln!("killed {} times, service within {slowest:?} of each start", rounds());
}

/// Red if a restart is answered with anything but a refusal that passes, or late, or if connections
/// of the old server are lent when the new one is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_survived() {
    let mut cluster = cluster(durable());
    let database = TestDatabase::create_on(&cluster.url("postgres")).await;
    let store = open(&database.url(), |_| {}).await;
    let ledger = Ledger::open(&store, SESSIONS, Duration::from_secs(5) + SLACK).await;
    let writers = ledger.start_writers(WRITERS, &[&store]);
    for shutdown in [Shutdown::Fast, Shutdown::Immediate, Shutdown::Fast, Shutdown::Immediate] {
        tokio::time::sleep(any_life()).await;
        cluster.restart(shutdown).unwrap();
        ledger.await_service(&store).await;
    }
    // One that stays away for longer than any deadline.
    cluster.stop(Shutdown::Fast).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Sooner than a statement has to end.
    assert_passing(&within(Duration::from_secs(4), store.check()).await.unwrap_err());
    cluster.start_again().unwrap();
    ledger.await_service(&store).await;
    writers.finish().await;
    ledger.check(&store).await;
}

/// Red if an operation waits for a frozen server beyond its deadline, if it takes longer than others
/// to get over that, or if connections that were given up stay open at the server.
async fn freeze(frozen: Duration, acquire_timeout: Duration, statement_timeout: Duration) {
    let cluster = cluster(durable());
    let database = TestDatabase::create_on(&cluster.url("postgres")).await;
    let store = open(&database.url(), |options| {
        options.acquire_timeout = acquire_timeout;
        options.statement_timeout = statement_timeout;
    })
    .await;
    let limit = statement_timeout + SLACK;
    assert!(frozen >= limit, "an append that waits for the server would be in time");
    let ledger = Ledger::open(&store, SESSIONS, limit).await;
    let writers = ledger.start_writers(WRITERS, &[&store]);
    tokio::time::sleep(any_life()).await;
    let watcher = connect(&cluster.url("postgres")).await;
    cluster.pause().unwrap();
    let (end, mut refused) = (Instant::now() + frozen, 0);
    while Instant::now() < end {
        let read = within(limit, read_session(&store, ledger.sessions[0])).await;
        assert_passing(&read.expect_err("a frozen server answers nothing"));
        assert_passing(&within(limit, store.check()).await.expect_err("a frozen server is not ready"));
        refused += 2;
    }
    cluster.resume().unwrap();
    let took = ledger.await_service(&store).await;
    eprintln!("frozen for {frozen:?}: {refused} reads refused, service {took:?} after");
    writers.finish().await;
    ledger.check(&store).await;
    let ours = "select count(*) from pg_stat_activity where application_name = 'chatstore'";
    eventually("connections that were given up are closed", SLACK, async || {
        let count: i64 = watcher.query_one(ours, &[]).await.unwrap().get(0);
        (count <= 16).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_database_is_answered_for_in_time() {
    freeze(Duration::from_secs(6), Duration::from_millis(500), Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_frozen_for_ten_seconds_is_answered_for_with_the_usual_deadlines() {
    freeze(Duration::from_secs(10), Duration::from_secs(1), Duration::from_secs(5)).await;
}
