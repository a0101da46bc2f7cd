//! What the PostgreSQL engine promises beyond the contract: shared commits, bounded queues,
//! erasing in the background, pages that end early.

mod support;

use std::time::{Duration, Instant};

use chatstore_core::clock::Ctx;
use chatstore_core::conformance::join_all;
use chatstore_core::ids::ProjectId;
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessageQuery, MessageStore as _, NewMessage};
use chatstore_core::page::{Order, PageRequest, PageStart};
use chatstore_core::sessions::{NewSession, Session, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, Scope, Store as _, StoreError};
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{PostgresOptions, PostgresStore};
use tokio_postgres::Client;

use support::await_waiting;

/// A store, its database and the clock of the test.
struct Engine {
    store: PostgresStore,
    database: TestDatabase,
    ctx: Ctx,
    scope: Scope,
}

async fn open(database: &TestDatabase, change: impl FnOnce(&mut PostgresOptions)) -> PostgresStore {
    let mut options = PostgresOptions::new(database.url());
    options.connections_max = 4;
    // Writes that come at once wait for each other.
    options.acquire_timeout = Duration::from_secs(30);
    change(&mut options);
    PostgresStore::open(&options).await.expect("a fresh database can be opened")
}

impl Engine {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut PostgresOptions)) -> Self {
        let database = TestDatabase::create().await;
        let store = open(&database, change).await;
        Self { store, database, ctx: Ctx::system(), scope: Scope::project(ProjectId::DEFAULT) }
    }

    /// A connection of somebody else.
    async fn outsider(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.database.owner_url(), tokio_postgres::NoTls).await.expect("it answers");
        tokio::spawn(connection);
        client
    }

    async fn session(&self) -> Session {
        let created_at = self.ctx.now();
        let session_id = self.ctx.new_session_id(created_at, self.scope.bucket(None, None, self.ctx.random()));
        let new = NewSession {
            session_id,
            user_id: None,
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::parse(r#"{"topic":"tea"}"#.to_owned()).expect("JSON"),
            external_id: None,
            created_at,
        };
        self.store.create_session(&self.scope, new, Vec::new(), None).await.expect("a session can be created").value
    }

    fn new_message(&self, session: &Session) -> NewMessage {
        NewMessage::text(self.ctx.new_message_id(self.ctx.now(), session.session_id), "user", "some words")
    }

    async fn append(&self, session: &Session, new: Vec<NewMessage>) -> Result<Vec<Message>, StoreError> {
        let answered = self.store.append_messages(&self.scope, session.session_id, new, self.ctx.now(), None).await;
        answered.map(|answered| answered.value)
    }

    async fn say(&self, session: &Session) -> Result<Message, StoreError> {
        self.append(session, vec![self.new_message(session)]).await.map(|mut stored| stored.remove(0))
    }

    /// Fills a session with text that must go when it is deleted.
    async fn fill(&self, session: &Session) -> Message {
        let json = |text: &str| RawJson::parse(text.to_owned()).expect("JSON");
        let new = (0..600).map(|_| NewMessage {
            payload: Some(json("{\"secret\":1}")),
            metadata: json("{\"secret\":1}"),
            context: Some(json("\"secret\"")),
            ..self.new_message(session)
        });
        self.append(session, new.collect()).await.expect("a batch can be appended").remove(0)
    }

    async fn delete(&self, session: &Session) {
        let deleted =
            self.store.delete_session(&self.scope, session.session_id, ExpectedVersion::Any, self.ctx.now()).await;
        deleted.expect("it can be deleted");
    }
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect("it can be counted").get(0)
}

/// Locks every session's row, so that what is sent meanwhile queues up.
async fn lock(client: &Client) {
    client.batch_execute("begin; select 1 from sessions for update").await.expect("the rows are free");
}

async fn unlock(client: &Client) {
    client.batch_execute("rollback").await.expect("the rows are held");
}

/// Polls until nothing of deleted sessions is left in the rows of messages.
async fn erased(client: &Client) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let left = "select count(*) from messages m join sessions s using (bucket, session_id) where s.deleted_at is not null
        and (m.deleted_at is null or content <> '' or payload is not null or m.metadata <> '{}' or context is not null)";
    while count(client, left).await > 0 || count(client, "select count(*) from session_erasures").await > 0 {
        assert!(Instant::now() < deadline, "messages are not erased");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_that_queue_share_a_commit() {
    let engine = Engine::new().await;
    let (one, two, outsider) = (engine.session().await, engine.session().await, engine.outsider().await);
    let before = engine.store.stats();
    lock(&outsider).await;
    let appends = join_all((0..64).map(|n| engine.say(if n % 2 == 0 { &one } else { &two })));
    let (stored, ()) = tokio::join!(appends, unlock(&outsider));
    for session in [&one, &two] {
        let own = stored.iter().flatten().filter(|message| message.session_id == session.session_id);
        let mut seqs: Vec<i64> = own.map(|message| message.seq).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, (1..=32).collect::<Vec<_>>());
    }
    let after = engine.store.stats();
    assert_eq!(after.appends - before.appends, 64);
    // The first of each session goes at once; the rest is one batch, or two.
    assert!(after.commits - before.commits <= 4, "{} commits", after.commits - before.commits);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_held_up_holds_up_no_other() {
    let engine = Engine::new().await;
    let (held, free, outsider) = (engine.session().await, engine.session().await, engine.outsider().await);
    let row = "begin; select 1 from sessions where session_id = '{}' for update";
    outsider.batch_execute(&row.replace("{}", &held.session_id.to_string())).await.unwrap();
    let waiting = join_all((0..8).map(|_| engine.say(&held)));
    let (stored, ()) = tokio::join!(waiting, async {
        for _ in 0..20 {
            engine.say(&free).await.expect("the other lane is free");
        }
        unlock(&outsider).await;
    });
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_busy_and_passes() {
    let engine = Engine::with(|options| options.append_queue_max = 4).await;
    let (session, outsider) = (engine.session().await, engine.outsider().await);
    lock(&outsider).await;
    let appends = join_all((0..16).map(|_| engine.say(&session)));
    let (results, ()) = tokio::join!(appends, unlock(&outsider));
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 4);
    assert_eq!(results.iter().filter(|result| **result == Err(StoreError::Busy)).count(), 12);
    assert_eq!(engine.say(&session).await.unwrap().seq, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_deleted_session_are_erased_in_the_rows() {
    let engine = Engine::new().await;
    let (deleted, kept) = (engine.session().await, engine.session().await);
    engine.fill(&deleted).await;
    let neighbour = engine.say(&kept).await.unwrap();
    engine.delete(&deleted).await;
    let outsider = engine.outsider().await;
    erased(&outsider).await;
    assert_eq!(count(&outsider, "select count(*) from messages where deleted_at is not null").await, 600);
    assert_eq!(count(&outsider, "select count(*) from session_metadata").await, 1, "the other session's");
    let named =
        "select count(*) from sessions where deleted_at is not null and (session_name <> '' or metadata <> '{}')";
    assert_eq!(count(&outsider, named).await, 0);
    assert_eq!(engine.store.get_message(&engine.scope, neighbour.message_id).await, Ok(Some(neighbour)));
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_goes_on_in_another_process() {
    let engine = Engine::new().await;
    let deleted = engine.session().await;
    engine.fill(&deleted).await;
    let outsider = engine.outsider().await;
    // Nobody can claim the erasure until the first store is gone.
    outsider.batch_execute("begin; lock table session_erasures in share row exclusive mode").await.unwrap();
    let (deletion, ()) = tokio::join!(
        engine.store.delete_session(&engine.scope, deleted.session_id, ExpectedVersion::Any, engine.ctx.now()),
        async {
            await_waiting(&outsider, 1).await;
            unlock(&outsider).await;
            engine.store.close().await;
        }
    );
    deletion.expect("it can be deleted");
    let _other = open(&engine.database, |_| {}).await;
    erased(&outsider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_whose_caller_has_gone_away_is_erased_all_the_same() {
    let engine = Engine::new().await;
    let deleted = engine.session().await;
    let message = engine.fill(&deleted).await;
    let outsider = engine.outsider().await;
    lock(&outsider).await;
    let deletion =
        engine.store.delete_session(&engine.scope, deleted.session_id, ExpectedVersion::Any, engine.ctx.now());
    let gave_up = tokio::time::timeout(Duration::from_millis(50), deletion).await;
    assert!(gave_up.is_err(), "the lock holds the deletion up");
    unlock(&outsider).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.store.get_message(&engine.scope, message.message_id).await.expect("it can be read").is_some() {
        assert!(Instant::now() < deadline, "the deletion never happened");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    erased(&outsider).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_large_messages_ends_early_and_says_where() {
    let engine = Engine::new().await;
    let session = engine.session().await;
    let large = "x".repeat(1 << 20);
    for _ in 0..3 {
        let new = (0..10).map(|_| NewMessage { content: large.clone(), ..engine.new_message(&session) });
        engine.append(&session, new.collect()).await.unwrap();
    }
    let query = MessageQuery { order: Order::Asc, ..MessageQuery::default() };
    let (mut page, mut seen) = (PageRequest { limit: 100, ..PageRequest::default() }, Vec::new());
    loop {
        let found = engine.store.list_messages(&engine.scope, session.session_id, &query, &page).await.unwrap();
        assert!(found.items.len() <= 17, "{}", found.items.len());
        seen.extend(found.items.iter().map(|message| message.seq));
        let Some(next) = found.next else { break };
        page.start = PageStart::After(next);
    }
    assert_eq!(seen, (1..=30).collect::<Vec<_>>());
}
