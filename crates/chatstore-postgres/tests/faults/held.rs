//! Others hold what the store needs: a row, the server's connections, the pool's.

use std::sync::Arc;
use std::time::Duration;

use chatstore_core::ids::SessionId;
use chatstore_core::store::StoreError;
use chatstore_postgres::testing::{Settings, TestDatabase};
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::ledger::Ledger;
use crate::support::await_waiting;
use crate::{SLACK, assert_passing, cluster, connect, open, owner, read_messages, read_session, within};

/// Locks the row of a session until its client goes away or says `rollback`.
async fn lock(database: &TestDatabase, session_id: SessionId) -> Client {
    let client = owner(database).await;
    client.batch_execute("begin").await.unwrap();
    let sql = "select from sessions where session_id = $1 for update";
    client.execute(sql, &[&session_id.uuid()]).await.unwrap();
    client
}

/// Red if whoever shares a batch with an append to a locked session waits for the lock too, if the
/// batches in flight can all be held up, or if an append waits for a lock beyond its deadline.
async fn locked_sessions(prepared_statements: bool) {
    let database = TestDatabase::create().await;
    let (acquire_timeout, statement_timeout) = (Duration::from_secs(2), Duration::from_secs(3));
    let store = open(&database.url(), |options| {
        options.acquire_timeout = acquire_timeout;
        options.statement_timeout = statement_timeout;
        options.prepared_statements = prepared_statements;
    })
    .await;
    let limit = statement_timeout + SLACK;
    let locked = Ledger::open(&store, 3, limit).await;
    let others = Ledger::open(&store, 4, limit).await;
    let mut locks = Vec::new();
    for session_id in &locked.sessions {
        locks.push(lock(&database, *session_id).await);
    }
    let (held, free) = (locked.start_writers(8, &[&store]), others.start_writers(8, &[&store]));
    // An append that waits until the locks are gone is beyond its limit.
    tokio::time::sleep(limit + Duration::from_secs(1)).await;
    assert_eq!(locked.acknowledged(), 0);
    assert!(locked.refused() > 0);
    assert_eq!(others.refused(), 0, "of {} beside the locked ones", others.acknowledged());
    assert!(others.acknowledged() > 100, "{} beside the locked ones", others.acknowledged());
    drop(locks);
    locked.await_service(&store).await;
    held.finish().await;
    free.finish().await;
    locked.check(&store).await;
    others.check(&store).await;
    assert_eq!(others.refused(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_sessions_are_refused_in_time_and_hold_up_no_other() {
    locked_sessions(true).await;
}

/// A server behind a pooler is not told how long to wait for a lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_sessions_hold_up_no_other_behind_a_pooler_either() {
    locked_sessions(false).await;
}

/// Red if a server without a free connection is taken for a defect, or is not asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_free_connection_is_answered_for_in_time() {
    let cluster = cluster(Settings::fast().set("max_connections", "20"));
    let database = TestDatabase::create_on(&cluster.url("postgres")).await;
    let limit = Duration::from_secs(1) + SLACK;
    let store = open(&database.url(), |options| {
        options.connections_max = 8;
        // What waits for a connection until then is beyond its limit.
        options.statement_timeout = 2 * limit;
    })
    .await;
    let ledger = Ledger::open(&store, 4, limit).await;
    // What is reserved is for superusers.
    let mut hoard = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&database.url(), tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        hoard.push(client);
    }
    assert!(hoard.len() > 10);
    // The pool's one connection serves on beside those that cannot be had.
    let writers = ledger.start_writers(16, &[&store]);
    let mut reads = JoinSet::new();
    for _ in 0..16 {
        let (store, session_id) = (store.clone(), ledger.sessions[0]);
        reads.spawn(async move { within(limit, read_session(&store, session_id)).await });
    }
    for read in reads.join_all().await {
        read.map(drop).unwrap_or_else(|error| assert_passing(&error));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(ledger.acknowledged() > 0);
    // Also that one goes.
    let watcher = connect(&cluster.url("postgres")).await;
    let terminate = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'chatstore'";
    watcher.execute(terminate, &[]).await.unwrap();
    while let Ok((client, connection)) = tokio_postgres::connect(&database.url(), tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        hoard.push(client);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(hoard);
    ledger.await_service(&store).await;
    writers.finish().await;
    ledger.check(&store).await;
}

/// Red if a wait for a connection is not bounded, or if it is answered as anything but busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_every_connection_is_at_work_more_is_refused_as_busy() {
    let database = TestDatabase::create().await;
    let acquire_timeout = Duration::from_secs(2);
    let store = open(&database.url(), |options| {
        options.connections_max = 2;
        options.acquire_timeout = acquire_timeout;
        // The two at work outlast the refusals.
        options.statement_timeout = Duration::from_secs(30);
        // Else the server would be told to end waits for locks as early.
        options.prepared_statements = false;
    })
    .await;
    let limit = acquire_timeout + SLACK;
    let ledger = Ledger::open(&store, 2, limit).await;
    let client = owner(&database).await;
    client.batch_execute("begin; lock table messages in access exclusive mode").await.unwrap();
    let mut slow = JoinSet::new();
    for _ in 0..2 {
        let (store, session_id): (Arc<_>, _) = (store.clone(), ledger.sessions[0]);
        slow.spawn(async move { read_messages(&store, session_id).await });
    }
    await_waiting(&client, 2).await;
    let reads = (0..8).map(|_| within(limit, read_session(&store, ledger.sessions[0])));
    for read in join_all(reads).await {
        assert_eq!(read.unwrap_err(), StoreError::Busy);
    }
    assert_eq!(ledger.append(&store).await.unwrap_err(), StoreError::Busy);
    client.batch_execute("rollback").await.unwrap();
    for read in slow.join_all().await {
        assert_eq!(read.unwrap(), []);
    }
    ledger.await_service(&store).await;
    ledger.check(&store).await;
}
