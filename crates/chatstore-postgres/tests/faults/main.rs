//! What happens when the database dies, freezes, restarts or is held by others, and when the way to
//! it swallows answers: nothing acknowledged is lost, nothing is stored twice, and every caller
//! hears in time.
//!
//! `CHATSTORE_TEST_ROUNDS` is how often something is killed; `cargo xtask soak` sets it high.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod death;
mod departures;
mod held;
mod keyed;
mod ledger;
mod network;
mod proxy;
mod replicas;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chatstore_core::clock::Ctx;
use chatstore_core::ids::{ProjectId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessageQuery, MessageStore as _};
use chatstore_core::page::PageRequest;
use chatstore_core::sessions::{NewSession, Session, SessionStore as _};
use chatstore_core::store::{Quotas, Scope, StoreError};
use chatstore_postgres::testing::{Cluster, Settings, TestDatabase, programs};
use chatstore_postgres::{PostgresOptions, PostgresStore};
use tokio_postgres::{Client, NoTls};

/// How soon service must be normal after the database is back.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);
/// What an answer may take beyond its deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// How often something is killed.
fn rounds() -> usize {
    match std::env::var("CHATSTORE_TEST_ROUNDS") {
        Ok(text) => text.parse().expect("CHATSTORE_TEST_ROUNDS must be a number"),
        Err(_) => 30,
    }
}

/// A server to be broken, with a database.
fn cluster(settings: Settings) -> Cluster {
    Cluster::start(&programs(), settings).unwrap()
}

async fn open(url: &str, change: impl FnOnce(&mut PostgresOptions)) -> Arc<PostgresStore> {
    let mut options = PostgresOptions::new(url);
    change(&mut options);
    Arc::new(PostgresStore::open(&options).await.unwrap())
}

static SCOPE: Scope = Scope {
    project_id: ProjectId::DEFAULT,
    user_id: None,
    quotas: Quotas { sessions_per_user: None, messages_per_session: None, project_bytes: None },
};

async fn new_session(store: &PostgresStore) -> Session {
    let ctx = Ctx::system();
    let created = eventually("a session can be created", RECOVERY_LIMIT, async || {
        let created_at = ctx.now();
        let new = NewSession {
            session_id: ctx.new_session_id(created_at, SCOPE.bucket(None, None, ctx.random())),
            user_id: None,
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at,
        };
        store.create_session(&SCOPE, new, Vec::new(), None).await.inspect_err(assert_passing).ok()
    });
    created.await.value
}

async fn read_session(store: &PostgresStore, session_id: SessionId) -> Result<Session, StoreError> {
    Ok(store.get_session(&SCOPE, session_id).await?.expect("the session exists"))
}

/// The last messages of a session, newest first.
async fn read_messages(store: &PostgresStore, session_id: SessionId) -> Result<Vec<Message>, StoreError> {
    let (query, page) = (MessageQuery::default(), PageRequest::default());
    Ok(store.list_messages(&SCOPE, session_id, &query, &page).await?.items)
}

/// A client beside the store, as the owner of the database.
async fn owner(database: &TestDatabase) -> Client {
    connect(&database.owner_url()).await
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Checks that a refusal is one that a caller may repeat later.
#[track_caller]
fn assert_passing(error: &StoreError) {
    assert!(matches!(error, StoreError::Unavailable { .. } | StoreError::Busy), "{error}");
}

/// The result of `operation`, which must come within `limit`, and the time that it took.
async fn within<T>(limit: Duration, operation: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let result = operation.await;
    let took = started.elapsed();
    assert!(took < limit, "answered after {took:?}, not within {limit:?}");
    result
}

/// Asks again and again until there is an answer; the last time after the limit, for whoever asks may be late.
async fn eventually<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        let is_last = Instant::now() >= deadline;
        if let Some(found) = ask().await {
            return found;
        }
        assert!(!is_last, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
