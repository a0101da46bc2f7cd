//! The way to the server swallows answers, breaks or goes black.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chatstore_core::store::Store as _;
use chatstore_postgres::testing::{Cluster, Settings, TestDatabase};
use chatstore_postgres::{AppendForm, PostgresOptions, PostgresStore};

use crate::ledger::Ledger;
use crate::proxy::{Fate, Proxy};
use crate::{
    RECOVERY_LIMIT, SLACK, assert_passing, cluster, eventually, new_session, open, read_session, rounds, within,
};

const WRITERS: usize = 16;
const SESSIONS: usize = 6;

/// A store behind a proxy, what it stands on, and a second store that goes around the proxy.
pub(crate) struct Place {
    pub(crate) store: Arc<PostgresStore>,
    pub(crate) direct: Arc<PostgresStore>,
    pub(crate) proxy: Proxy,
    pub(crate) database: TestDatabase,
    cluster: Cluster,
}

impl Place {
    pub(crate) async fn new(change: impl FnOnce(&mut PostgresOptions)) -> Self {
        let cluster = cluster(Settings::fast().tcp());
        let database = TestDatabase::create_on(&cluster.tcp_url("postgres")).await;
        let proxy = Proxy::start(cluster.port()).await;
        let store = open(&proxy.url(&database.url()), change).await;
        let direct = open(&database.url(), |_| {}).await;
        Self { store, direct, proxy, database, cluster }
    }
}

/// Red if an append whose commit was not answered is stored again without a look for the first, is
/// refused although there was time, or is acknowledged with another place than it has.
async fn commits_meet(fate: Fate, commits: usize, change: impl FnOnce(&mut PostgresOptions)) {
    let place = Place::new(change).await;
    let ledger = Ledger::open(&place.store, SESSIONS, Duration::from_secs(5) + SLACK).await;
    place.proxy.spoil(fate, 3);
    let (before, limit) = (place.proxy.begun(), Duration::from_secs(60 + commits as u64));
    let mut writers = ledger.start_writers(WRITERS, &[&place.store, &place.direct]);
    let enough = async || {
        writers.assert_at_work();
        // Each one costs its connection.
        (place.proxy.begun() - before > commits).then_some(())
    };
    eventually("enough has gone wrong", limit, enough).await;
    writers.finish().await;
    place.proxy.spoil(Fate::Answered, 1);
    ledger.check(&place.direct).await;
    // One in three fails, and an append may have bad luck every time that it is tried.
    assert!(ledger.refused() * 50 < ledger.acknowledged(), "there was time to look for each");
    if fate == Fate::AnswerLost {
        eprintln!("{} commits without an answer", place.proxy.swallowed());
        assert!(place.proxy.swallowed() > commits / 2, "{} were swallowed", place.proxy.swallowed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_commit_is_not_answered_is_stored_once_and_acknowledged() {
    commits_meet(Fate::AnswerLost, 5 * rounds(), |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_of_its_own_whose_commit_is_not_answered_is_stored_once_and_acknowledged() {
    commits_meet(Fate::AnswerLost, 5 * rounds(), |options| options.append_form = AppendForm::PerSession).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_never_reached_the_server_is_sent_again() {
    commits_meet(Fate::RequestLost, 2 * rounds(), |options| options.prepared_statements = false).await;
}

/// Red if a caller waits for a connection that says nothing, or if the append is lost or doubled by
/// what is done about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_answered_by_silence_is_refused_in_time_and_stored_once() {
    let statement_timeout = Duration::from_millis(500);
    let place = Place::new(|options| options.statement_timeout = statement_timeout).await;
    let ledger = Ledger::open(&place.store, SESSIONS, statement_timeout + SLACK).await;
    place.proxy.spoil(Fate::Silence, 2);
    let writers = ledger.start_writers(WRITERS, &[&place.store]);
    let enough = async || (place.proxy.swallowed() >= 8).then_some(());
    eventually("enough commits have met silence", Duration::from_secs(30), enough).await;
    place.proxy.spoil(Fate::Answered, 1);
    ledger.await_service(&place.store).await;
    writers.finish().await;
    ledger.check(&place.direct).await;
    assert!(ledger.refused() > 0 && ledger.acknowledged() > 0);
}

/// Red if an operation outlasts its deadline because its connection is half open, or if half-open
/// connections stay in the pool to be met one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_are_noticed_in_time_and_leave_the_pool() {
    let (acquire_timeout, statement_timeout) = (Duration::from_millis(500), Duration::from_secs(2));
    let place = Place::new(|options| {
        options.acquire_timeout = acquire_timeout;
        options.statement_timeout = statement_timeout;
    })
    .await;
    let limit = statement_timeout + SLACK;
    let ledger = Ledger::open(&place.store, SESSIONS, limit).await;
    let fill = async || {
        eventually("every connection is open", RECOVERY_LIMIT, async || {
            let reads = (0..64).map(|_| read_session(&place.store, ledger.sessions[0]));
            let read = futures_util::future::join_all(reads).await;
            read.iter().all(Result::is_ok).then_some(())
        })
        .await;
    };
    fill().await;
    // One that ends before any deadline: all that is idle is dead, and only use can tell.
    place.proxy.go_black();
    let refused = within(limit, read_session(&place.store, ledger.sessions[0])).await;
    assert_passing(&refused.unwrap_err());
    place.proxy.come_back();
    ledger.await_service(&place.store).await;

    // One under load and longer than any deadline: also connections that begin are met by silence.
    fill().await;
    let writers = ledger.start_writers(WRITERS, &[&place.store]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    place.proxy.go_black();
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert_passing(&within(limit, place.store.check()).await.expect_err("nothing passes"));
    }
    place.proxy.come_back();
    let took = ledger.await_service(&place.store).await;
    assert!(took < RECOVERY_LIMIT);
    writers.finish().await;
    ledger.check(&place.direct).await;
}

/// Red if connections are opened without keepalive: an idle one whose server is gone would be
/// believed in for hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_kept_alive() {
    let place = Place::new(|_| {}).await;
    new_session(&place.direct).await;
    let port = format!(":{:04X}", place.cluster.port());
    // The lines of connections to the server's port: state 1 is open, timer 2 keepalive, with what is left of it.
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let timers: Vec<_> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[2].ends_with(&port) && fields[3] == "01")
        .filter_map(|fields| u32::from_str_radix(fields[5].strip_prefix("02:")?, 16).ok())
        .collect();
    assert!(timers.iter().any(|hundredths| *hundredths <= 30 * 100), "{timers:?}");
}
