//! Callers that go away, and statements that nobody waits for any more.

use std::pin::pin;
use std::time::Duration;

use chatstore_core::clock::Ctx;
use chatstore_core::messages::{MessageStore as _, NewMessage};
use chatstore_core::sessions::{SessionPatch, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, Store as _};
use chatstore_postgres::testing::TestDatabase;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::ledger::Ledger;
use crate::{SCOPE, SLACK, assert_passing, eventually, new_session, open, owner, read_messages, read_session, within};

/// How long an impatient caller waits.
const IMPATIENT: Duration = Duration::from_millis(30);
const LOCK_MESSAGES: &str = "begin; lock table messages in access exclusive mode";

/// Statements of the store that the server is at, those that wait for a lock included.
async fn at_work(client: &Client) -> i64 {
    let sql = "select count(*) from pg_stat_activity
        where application_name = 'chatstore' and datname = current_database() and state <> 'idle'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Red if a write lives in its caller's future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_caller_began_is_finished_when_it_goes_away() {
    let database = TestDatabase::create().await;
    let store = open(&database.url(), |_| {}).await;
    let client = owner(&database).await;
    let (ctx, session_id) = (Ctx::system(), new_session(&store).await.session_id);
    client.batch_execute("begin").await.unwrap();
    let lock = "select from sessions where session_id = $1 for update";
    client.execute(lock, &[&session_id.uuid()]).await.unwrap();
    // The first is at the server, the second in the queue; the third is no append.
    for content in ["first", "second"] {
        let new = NewMessage::text(ctx.new_message_id(ctx.now(), session_id), "user", content);
        let appending = store.append_messages(&SCOPE, session_id, vec![new], ctx.now(), None);
        timeout(IMPATIENT, appending).await.expect_err("the row is locked");
    }
    let patch = SessionPatch { session_name: Some("renamed".to_owned()), ..SessionPatch::default() };
    let renaming = store.update_session(&SCOPE, session_id, patch, ExpectedVersion::Any, ctx.now());
    timeout(IMPATIENT, renaming).await.expect_err("the row is locked");
    client.batch_execute("rollback").await.unwrap();
    eventually("all three are done", 2 * SLACK, async || {
        let session = read_session(&store, session_id).await.unwrap();
        (session.message_count == 2 && session.session_name == "renamed").then_some(())
    })
    .await;
    let stored = read_messages(&store, session_id).await.unwrap();
    let contents: Vec<_> = stored.into_iter().map(|message| message.content).collect();
    assert_eq!(contents, ["second", "first"]);
}

/// Red if a read that is given up goes on at the server, or if its connection is lent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_are_given_up_end_at_the_server_and_leave_the_pool_whole() {
    let database = TestDatabase::create().await;
    let store = open(&database.url(), |options| {
        options.connections_max = 2;
        // The first is also how long the server lets them wait for a lock: longer than is waited for their end.
        (options.acquire_timeout, options.statement_timeout) = (6 * SLACK, 6 * SLACK);
    })
    .await;
    let ledger = Ledger::open(&store, 3, Duration::from_secs(5) + SLACK).await;
    let (locker, watcher) = (owner(&database).await, owner(&database).await);
    locker.batch_execute(LOCK_MESSAGES).await.unwrap();
    let mut most = 0;
    for _ in 0..100 {
        let reading = read_messages(&store, ledger.sessions[0]);
        timeout(IMPATIENT, reading).await.expect_err("the table is locked");
        most = most.max(at_work(&watcher).await);
    }
    assert!(most > 0, "no read came as far as the server");
    let none = async || (at_work(&watcher).await == 0).then_some(());
    eventually("nothing is left at work", SLACK, none).await;
    // The lock is still held: what does not need it works.
    for session_id in &ledger.sessions {
        within(SLACK, read_session(&store, *session_id)).await.unwrap();
    }
    locker.batch_execute("rollback").await.unwrap();
    ledger.await_service(&store).await;
    ledger.check(&store).await;
}

/// Red if a statement runs on at the server after its deadline: with what the server is told of
/// deadlines, and behind a pooler, where it is told nothing and has to be asked to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_takes_too_long_is_stopped_at_the_server() {
    let database = TestDatabase::create().await;
    let (locker, watcher) = (owner(&database).await, owner(&database).await);
    let statement_timeout = Duration::from_millis(500);
    for prepared in [true, false] {
        let store = open(&database.url(), |options| {
            options.statement_timeout = statement_timeout;
            // Else the server would soon end waits for locks for this.
            options.acquire_timeout = 6 * SLACK;
            options.prepared_statements = prepared;
        })
        .await;
        let ledger = Ledger::open(&store, 1, statement_timeout + SLACK).await;
        locker.batch_execute(LOCK_MESSAGES).await.unwrap();
        let reading = read_messages(&store, ledger.sessions[0]);
        let (read, append) = tokio::join!(within(statement_timeout + SLACK, reading), ledger.append(&store));
        assert_passing(&read.unwrap_err());
        assert_passing(&append.unwrap_err());
        let none = async || (at_work(&watcher).await == 0).then_some(());
        eventually("nothing is left at work", SLACK, none).await;
        locker.batch_execute("rollback").await.unwrap();
        ledger.await_service(&store).await;
        ledger.check(&store).await;
    }
}

/// Red if closing leaves without what is queued, or waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_finishes_what_is_queued() {
    let database = TestDatabase::create().await;
    let store = open(&database.url(), |_| {}).await;
    let after = open(&database.url(), |_| {}).await;
    let ledger = Ledger::open(&store, 4, Duration::from_secs(5) + SLACK).await;
    let locker = owner(&database).await;
    locker.batch_execute(LOCK_MESSAGES).await.unwrap();
    // An append is in the queue, and the store closed, once it was polled.
    let mut appends = pin!(join_all((0..40).map(|_| ledger.append(&store))));
    assert!(appends.as_mut().now_or_never().is_none());
    let mut closing = pin!(store.close());
    assert!(closing.as_mut().now_or_never().is_none());
    assert_passing(&ledger.append(&store).await.unwrap_err());
    sleep(Duration::from_millis(50)).await;
    assert!(closing.as_mut().now_or_never().is_none());
    locker.batch_execute("rollback").await.unwrap();
    within(Duration::from_secs(5), closing).await;
    for append in appends.await {
        append.expect("it was queued before the end");
    }
    ledger.check(&after).await;
}
