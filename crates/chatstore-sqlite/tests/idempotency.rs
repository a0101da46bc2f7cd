//! What only SQLite does with requests that come again: one writer, shared commits, and the file that outlives both.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::conformance::join_all;
use chatstore_core::idempotency::{Answered, Claim, ClaimId, IdempotencyStore as _, Recognition};
use chatstore_core::ids::ProjectId;
use chatstore_core::json::RawJson;
use chatstore_core::limits::PURGE_RECORDS_BATCH;
use chatstore_core::messages::{Message, MessageQuery, MessageStore as _, NewMessage};
use chatstore_core::page::{Order, PageRequest};
use chatstore_core::sessions::{NewSession, Session, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, Scope, Store as _, StoreError};
use chatstore_sqlite::{SqliteOptions, SqliteStore, migrate};
use rusqlite::Connection;
use tempfile::TempDir;

const LIFE_US: i64 = 60_000_000;
/// How long what happens in the background may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store, the file it stands in and the clock of the test.
struct World {
    store: SqliteStore,
    path: PathBuf,
    ctx: Ctx,
    scope: Scope,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chatstore.db");
        migrate(&path, &Ctx::system()).unwrap();
        Self { store: open(&path), path, ctx: Ctx::system(), scope: Scope::project(ProjectId::DEFAULT), folder }
    }

    /// A connection as another process would have it.
    fn outsider(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }

    fn records(&self) -> i64 {
        self.outsider().query_row("select count(*) from idempotency_records", (), |row| row.get(0)).unwrap()
    }

    fn claim(&self, key: &str, body: u8, now: Timestamp) -> Claim {
        let claim_id = ClaimId::of(&[key.as_bytes()]);
        Claim {
            project_id: ProjectId::DEFAULT,
            claim_id,
            bucket: claim_id.bucket(),
            fingerprint: [body; 32],
            recognition: Recognition::Key,
            now,
            expires_at: now.plus_micros(LIFE_US),
        }
    }

    /// Creates a session that begins with `texts`.
    async fn create(&self, key: &str, texts: &[&str]) -> Result<Answered<Session>, StoreError> {
        let created_at = self.ctx.now();
        let claim = self.claim(key, 0, created_at);
        let session_id = self.ctx.new_session_id(created_at, claim.bucket);
        let text = |text: &&str| NewMessage::text(self.ctx.new_message_id(created_at, session_id), "user", *text);
        let new = NewSession {
            session_id,
            user_id: None,
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at,
        };
        self.store.create_session(&self.scope, new, texts.iter().map(text).collect(), Some(&claim)).await
    }

    async fn session(&self) -> Session {
        self.create(&self.ctx.now().as_micros().to_string(), &[]).await.unwrap().value
    }

    fn message(&self, session: &Session, text: &str) -> NewMessage {
        NewMessage::text(self.ctx.new_message_id(self.ctx.now(), session.session_id), "user", text)
    }

    /// Appends under the key, with `body` as its fingerprint.
    async fn append(
        &self,
        store: &SqliteStore,
        session: &Session,
        key: &str,
        body: u8,
        new: Vec<NewMessage>,
    ) -> Result<Answered<Vec<Message>>, StoreError> {
        let now = self.ctx.now();
        store.append_messages(&self.scope, session.session_id, new, now, Some(&self.claim(key, body, now))).await
    }

    /// Says `text` under the key.
    async fn say(&self, session: &Session, key: &str, text: &str) -> Result<Answered<Vec<Message>>, StoreError> {
        self.append(&self.store, session, key, 0, vec![self.message(session, text)]).await
    }

    async fn messages(&self, session: &Session) -> Vec<Message> {
        let query = MessageQuery { order: Order::Asc, ..MessageQuery::default() };
        let page = PageRequest { limit: 100, ..PageRequest::default() };
        self.store.list_messages(&self.scope, session.session_id, &query, &page).await.unwrap().items
    }
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(&SqliteOptions::new(path)).unwrap()
}

/// Runs requests while writing is locked, so that they queue and share a batch.
async fn in_one_batch<F: Future>(world: &World, requests: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let (outsider, before) = (world.outsider(), world.store.stats().commits);
    outsider.execute_batch("begin immediate").unwrap();
    let unlock = async { outsider.execute_batch("rollback").unwrap() };
    let (outputs, ()) = tokio::join!(join_all(requests), unlock);
    assert_eq!(world.store.stats().commits, before + 1, "they share a commit");
    outputs
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_requests_in_one_batch_are_done_once() {
    let world = World::new();
    let session = world.session().await;
    let sent = in_one_batch(&world, (0..9).map(|_| world.say(&session, "k", "once"))).await;
    let sent: Vec<_> = sent.into_iter().map(Result::unwrap).collect();
    assert_eq!(
        sent.iter().map(|answer| answer.is_replay).collect::<Vec<_>>(),
        [[false].as_slice(), &[true; 8]].concat()
    );
    assert!(sent.iter().all(|answer| answer.value == sent[0].value));
    assert_eq!(world.messages(&session).await, sent[0].value);
    let made = in_one_batch(&world, (0..9).map(|_| world.create("s", &["one", "two"]))).await;
    let made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
    assert_eq!(made.iter().filter(|answer| !answer.is_replay).count(), 1);
    assert!(made.iter().all(|answer| answer.value == made[0].value));
    assert_eq!(world.messages(&made[0].value).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_fails_in_a_batch_takes_its_record_back() {
    let world = World::new();
    let session = world.session().await;
    let stray = world.message(&session, "stray").message_id;
    let before = world.records();
    let sent = in_one_batch(
        &world,
        (0..4).map(|n| {
            let mut new = vec![world.message(&session, "a"), world.message(&session, "b")];
            if n < 2 {
                // It fails after its first message was written.
                new[1].parent_id = Some(stray);
            }
            world.append(&world.store, &session, "k", n, new)
        }),
    )
    .await;
    assert!(sent[..2].iter().all(|answer| matches!(answer, Err(StoreError::Invalid { .. }))));
    assert!(!sent[2].as_ref().unwrap().is_replay, "the key was as good as new");
    assert_eq!(sent[3], Err(StoreError::KeyReused));
    assert_eq!(world.messages(&session).await, sent[2].as_ref().unwrap().value);
    assert_eq!(world.records(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_fails_has_answered_for_nothing() {
    let world = World::new();
    let session = world.session().await;
    let send = async |retry| {
        let now = world.ctx.now();
        let claim = Claim { recognition: Recognition::Body { retry, tried: None }, ..world.claim("k", 0, now) };
        let new = vec![world.message(&session, "a")];
        world.store.append_messages(&world.scope, session.session_id, new, now, Some(&claim)).await
    };
    assert!(!send(0).await.unwrap().is_replay);
    let retries = "select retry from idempotency_records where places <> ''";
    let retries = || world.outsider().query_row(retries, (), |row| row.get::<_, i64>(0)).unwrap();
    assert!(send(1).await.unwrap().is_replay);
    assert_eq!(retries(), 1);
    world.store.delete_session(&world.scope, session.session_id, ExpectedVersion::Any, world.ctx.now()).await.unwrap();
    assert_eq!(send(2).await, Err(StoreError::NotFound));
    assert_eq!(retries(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_a_record_waits_for_no_writer() {
    let world = World::new();
    let session = world.session().await;
    world.say(&session, "k", "a").await.unwrap();
    let outsider = world.outsider();
    outsider.execute_batch("begin immediate").unwrap();
    let claim = world.claim("k", 0, world.ctx.now());
    let asked = tokio::time::timeout(PATIENCE, world.store.get_idempotency_record(&claim)).await;
    assert_eq!(asked.unwrap().unwrap().unwrap().target, session.session_id.to_string());
    outsider.execute_batch("rollback").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_do_one_request_once() {
    let world = World::new();
    let session = world.session().await;
    let neighbour = SqliteStore::open(&SqliteOptions { exclusive: false, ..SqliteOptions::new(&world.path) }).unwrap();
    let sent = join_all((0..40).map(|n| {
        let store = if n % 2 == 0 { &world.store } else { &neighbour };
        let (world, session) = (&world, &session);
        async move {
            let new = vec![world.message(session, "a")];
            world.append(store, session, &format!("k{}", n / 8), 0, new).await.unwrap()
        }
    }))
    .await;
    for answers in sent.chunks(8) {
        assert_eq!(answers.iter().filter(|answer| !answer.is_replay).count(), 1);
        assert!(answers.iter().all(|answer| answer.value == answers[0].value));
    }
    assert_eq!(world.messages(&session).await.len(), 5);
    neighbour.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_there_after_a_restart() {
    let world = World::new();
    let made = world.create("s", &["one"]).await.unwrap().value;
    let said = world.say(&made, "k", "two").await.unwrap().value;
    world.store.close().await;
    let world = World { store: open(&world.path), ..world };
    assert_eq!(world.create("s", &["one"]).await, Ok(Answered::replay(made.clone())));
    assert_eq!(world.say(&made, "k", "two").await, Ok(Answered::replay(said)));
    assert_eq!(world.messages(&made).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_and_never_answered_is_replayed_after_a_crash() {
    let world = World::new();
    let (session, outsider) = (world.session().await, world.outsider());
    let commits = world.store.stats().commits;
    outsider.execute_batch("begin immediate").unwrap();
    for request in ["k", "l"] {
        let unanswered = tokio::time::timeout(Duration::from_millis(20), world.say(&session, request, "a")).await;
        assert!(unanswered.is_err(), "the lock holds it up, and its caller goes away");
    }
    outsider.execute_batch("rollback").unwrap();
    let started = Instant::now();
    while world.store.stats().commits == commits {
        assert!(started.elapsed() < PATIENCE, "it is committed all the same");
        tokio::task::yield_now().await;
    }
    // The files as a process leaves them that is killed now.
    let crashed = world.folder.path().join("crashed.db");
    for suffix in ["", "-wal"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        std::fs::copy(name(&world.path), name(&crashed)).unwrap();
    }
    let stored = world.messages(&session).await;
    let world = World { store: open(&crashed), path: crashed, ..world };
    for (n, request) in ["k", "l"].into_iter().enumerate() {
        assert_eq!(world.say(&session, request, "a").await, Ok(Answered::replay(vec![stored[n].clone()])));
    }
    assert_eq!(world.messages(&session).await, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_idempotency_records_takes_a_batch_at_a_time() {
    let world = World::new();
    let now = world.ctx.now();
    let batch = i64::from(PURGE_RECORDS_BATCH);
    world
        .outsider()
        .execute(
            "with recursive n (n) as (select 1 union all select n + 1 from n where n < ?2)
            insert into idempotency_records
                (project_id, claim_id, place, fingerprint, target, places, retry, created_at, expires_at)
            select randomblob(16), randomblob(32), 0, randomblob(32), 'x', '', 0, 0, ?1 + n from n",
            [now.as_micros(), 2 * batch + 10],
        )
        .unwrap();
    let purge = |after: i64| world.store.purge_idempotency_records(now.plus_micros(after));
    assert_eq!((purge(0).await, world.records()), (Ok(false), 2 * batch + 10));
    assert_eq!((purge(2 * batch).await, world.records()), (Ok(true), batch + 10));
    assert_eq!((purge(2 * batch).await, world.records()), (Ok(true), 10));
    assert_eq!((purge(2 * batch).await, world.records()), (Ok(false), 10));
    assert_eq!((purge(2 * batch + 10).await, world.records()), (Ok(false), 0));
}
