//! Clients repeat every request of which they do not know what became, over a way that cuts connections and to servers
//! that are killed meanwhile: each request is done once, and every answer to it is the same.
//!
//! `CHATSTORE_TEST_ROUNDS` is how many requests are sent at least twice, on each engine; `cargo xtask soak` sets it high.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod audit;
mod client;
mod proxy;
mod request;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use audit::{Audit, audit};
use chatstore_postgres::testing::TestDatabase;
use client::{Done, Field, Worker};
use proxy::Proxy;
use request::{Kind, Place};
use support::{DATABASE, PATIENCE, Random, Server, integrity};

const CLIENTS: usize = 48;
const PLACES: usize = 24;
/// From the start of all servers, or the last kill, to the next.
const LIFE_MS: std::ops::Range<u64> = 500..4_000;
/// Longer than the pauses before two retries of an SDK, shorter than they wait for the tries before them.
const BUSY: Duration = Duration::from_secs(1);

/// How many requests are to be sent at least twice.
fn rounds() -> usize {
    match std::env::var("CHATSTORE_TEST_ROUNDS") {
        Ok(text) => text.parse().expect("CHATSTORE_TEST_ROUNDS must be a number"),
        Err(_) => 300,
    }
}

#[test]
fn on_sqlite_nothing_is_stored_twice_or_lost_when_answers_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join(DATABASE);
    let audit = retry_everything("SQLite", 1, rounds(), || Server::start(folder.path()), || keep_busy(&database));
    assert!(audit.is_clean(), "{audit}");
    assert_eq!(integrity(&database), "ok");
}

/// A retry goes to either of two servers.
#[test]
fn on_postgresql_nothing_is_stored_twice_or_lost_when_answers_are_lost() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let database = runtime.block_on(TestDatabase::create());
    let folder = tempfile::tempdir().unwrap();
    let variables = [("DATABASE_URL", database.url())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let audit = retry_everything("PostgreSQL", 2, rounds(), || Server::start_with(folder.path(), &variables), || {});
    assert!(audit.is_clean(), "{audit}");
}

/// The proof that the audit sees what it looks for: here the retries of SDKs are not known again.
#[test]
fn the_audit_finds_what_is_stored_twice() {
    let folder = tempfile::tempdir().unwrap();
    let forgetful = [("SDK_RETRY_DEDUPE", "false")];
    let audit = retry_everything("SQLite, forgetful", 1, 150, || Server::start_with(folder.path(), &forgetful), || {});
    let is_of_sdk = |sentence: &String| sentence.contains(&format!("{:?}", Kind::ItemsFromSdk));
    assert!(!audit.duplicates.is_empty() && !audit.faults.is_empty(), "{audit}");
    assert!(audit.duplicates.iter().chain(&audit.faults).all(is_of_sdk), "{audit}");
    assert!(audit.lost.is_empty(), "{audit}");
}

fn address(server: &Server) -> SocketAddr {
    server.url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Writes nothing, and lets nobody write, so that what the server has begun is at work when its retry comes.
fn keep_busy(database: &Path) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = rusqlite::Connection::open_with_flags(database, flags).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection.execute_batch("begin immediate").unwrap();
    std::thread::sleep(BUSY);
    connection.execute_batch("rollback").unwrap();
}

/// Sends requests until `goal` of them were sent at least twice, and looks at what is there then. Before a server is
/// killed, `hinder` makes it slow.
fn retry_everything(
    engine: &str,
    replicas: usize,
    goal: usize,
    start: impl Fn() -> Server,
    hinder: impl Fn(),
) -> Audit {
    let seed = Random::any_seed();
    eprintln!("{engine}: CHATSTORE_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let started = Instant::now();
    let mut servers: Vec<Server> = (0..replicas).map(|_| start()).collect();
    let mut first = servers[0].client();
    let places: Vec<Place> = (0..PLACES).map(|_| Place::of(first.new_session())).collect();
    let proxy = Proxy::start(servers.iter().map(address).collect(), Random::new(random.next()));
    let field = Field::new(&proxy, &places, goal);
    let workers: Vec<Worker<'_>> = std::thread::scope(|scope| {
        let (working, stopped) = mpsc::channel::<()>();
        let start_worker = |number| {
            let worker = Worker::new(number, Random::new(random.next()), &field);
            let working = working.clone();
            scope.spawn(move || {
                let worker = worker.work();
                drop(working);
                worker
            })
        };
        let threads: Vec<_> = (0..CLIENTS).map(start_worker).collect();
        drop(working);
        let mut life = || Duration::from_millis(LIFE_MS.start + random.below(LIFE_MS.end - LIFE_MS.start));
        while stopped.recv_timeout(life()) == Err(RecvTimeoutError::Timeout) {
            hinder();
            let victim = field.kills.load(Ordering::Relaxed) % replicas;
            servers[victim].process.kill();
            servers[victim] = start();
            proxy.lead_to(victim, address(&servers[victim]));
            field.kills.fetch_add(1, Ordering::Relaxed);
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    report(engine, &workers, &field, started.elapsed());
    let done: Vec<Done> = workers.into_iter().flat_map(|worker| worker.done).collect();
    let mut audit = audit(&servers[0].url, &places, &done);
    audit.faults.extend(field.faults.into_inner().unwrap());
    eprintln!("{engine}: {}", audit.counts());
    for mut server in servers {
        server.stop();
    }
    audit
}

fn report(engine: &str, workers: &[Worker<'_>], field: &Field<'_>, took: Duration) {
    let sum = |count: fn(&Worker<'_>) -> usize| workers.iter().map(count).sum::<usize>();
    let mut put_off: BTreeMap<u16, usize> = BTreeMap::new();
    let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
    for worker in workers {
        for (status, count) in &worker.put_off {
            *put_off.entry(*status).or_default() += count;
        }
        for done in &worker.done {
            *kinds.entry(done.kind).or_default() += 1;
        }
    }
    let requests = sum(|worker| worker.done.len());
    let [retried, kills] = [&field.retried, &field.kills].map(|count| count.load(Ordering::Relaxed));
    let (tries, replays) = (sum(|worker| worker.tries), sum(|worker| worker.replays));
    eprintln!("{engine}: {requests} requests, {retried} of them retried, sent {tries} times, in {took:.0?}");
    let slowest = workers.iter().map(|worker| worker.slowest).max().unwrap_or_default();
    eprintln!("{engine}: {replays} replays, {kills} kills, put off with {put_off:?}, waited {slowest:.1?} at most");
    eprintln!("{engine}: {kinds:?}");
    eprintln!("{engine}: {:?}", field.proxy.met());
}
