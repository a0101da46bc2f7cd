//! What only SQLite does: group commit, locks, erasing, backups.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chatstore_core::api_keys::ApiKeyStore as _;
use chatstore_core::clock::Ctx;
use chatstore_core::conformance::join_all;
use chatstore_core::ids::ProjectId;
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessageQuery, MessageStore as _, NewMessage};
use chatstore_core::page::{Order, PageRequest, PageStart};
use chatstore_core::sessions::{NewSession, Session, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, Scope, Store as _, StoreError};
use chatstore_sqlite::{SqliteOptions, SqliteStore, backup, migrate};
use rusqlite::{Connection, params};
use tempfile::TempDir;

/// A store, the file it stands in and the clock of the test.
struct Engine {
    store: SqliteStore,
    path: PathBuf,
    ctx: Ctx,
    scope: Scope,
    folder: TempDir,
}

impl Engine {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join("chatstore.db");
        migrate(&path, &Ctx::system()).expect("a fresh file can be migrated");
        Self { store: open(&path), path, ctx: Ctx::system(), scope: Scope::project(ProjectId::DEFAULT), folder }
    }

    /// A connection as another process would have it.
    fn outsider(&self) -> Connection {
        let connection = Connection::open(&self.path).expect("the file can be opened twice");
        connection.busy_timeout(Duration::from_secs(10)).expect("a timeout can be set");
        connection
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
        let appended = self.store.append_messages(&self.scope, session.session_id, new, self.ctx.now(), None).await;
        appended.map(|answered| answered.value)
    }

    async fn say(&self, session: &Session) -> Result<Message, StoreError> {
        self.append(session, vec![self.new_message(session)]).await.map(|mut stored| stored.remove(0))
    }

    async fn reload(&self, session: &Session) -> Session {
        self.store.get_session(&self.scope, session.session_id).await.expect("it can be read").expect("it is there")
    }
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(&SqliteOptions::new(path)).expect("the file can be opened")
}

/// Locks writing, so that what is sent meanwhile queues up.
fn lock(connection: &Connection) {
    connection.execute_batch("begin immediate").expect("the lock is free");
}

fn unlock(connection: &Connection) {
    connection.execute_batch("rollback").expect("the lock is held");
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_that_queue_share_a_commit() {
    let engine = Engine::new();
    let (session, outsider) = (engine.session().await, engine.outsider());
    let before = engine.store.stats();
    lock(&outsider);
    let appends = join_all((0..64).map(|_| engine.say(&session)));
    let (stored, ()) = tokio::join!(appends, async { unlock(&outsider) });
    let mut seqs: Vec<i64> = stored.into_iter().map(|message| message.unwrap().seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=64).collect::<Vec<_>>());
    let after = engine.store.stats();
    assert_eq!(after.appends - before.appends, 64);
    assert!(after.commits - before.commits <= 2, "{} commits", after.commits - before.commits);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_append_fails_alone_in_its_batch() {
    let engine = Engine::new();
    let (session, outsider) = (engine.session().await, engine.outsider());
    lock(&outsider);
    let appends = join_all((0..9).map(|n| {
        let mut new = vec![engine.new_message(&session), engine.new_message(&session)];
        // Every third fails at its second message, after the first was written.
        if n % 3 == 1 {
            new[1].parent_id = Some(engine.new_message(&session).message_id);
        }
        engine.append(&session, new)
    }));
    let (stored, ()) = tokio::join!(appends, async { unlock(&outsider) });
    for (n, result) in stored.iter().enumerate() {
        assert_eq!(matches!(result, Err(StoreError::Invalid { .. })), n % 3 == 1, "{n}: {result:?}");
        assert_eq!(result.is_ok(), n % 3 != 1, "{n}: {result:?}");
    }
    let session = engine.reload(&session).await;
    assert_eq!((session.last_seq, session.message_count), (12, 12));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_held_elsewhere_is_busy_and_passes() {
    let engine = Engine::new();
    let (session, outsider) = (engine.session().await, engine.outsider());
    lock(&outsider);
    let begun = Instant::now();
    let results = join_all((0..4).map(|_| engine.say(&session))).await;
    assert!(results.into_iter().all(|result| result == Err(StoreError::Busy)));
    // Those that queued behind the first do not wait once more each.
    assert!(begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
    assert_eq!(engine.reload(&session).await.message_count, 0, "reads do not wait");
    unlock(&outsider);
    assert_eq!(engine.say(&session).await.unwrap().seq, 1);
    engine.store.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_lock_elsewhere_is_waited_for() {
    let engine = Engine::new();
    let (session, outsider) = (engine.session().await, engine.outsider());
    lock(&outsider);
    let (stored, ()) = tokio::join!(engine.say(&session), async { unlock(&outsider) });
    assert_eq!(stored.unwrap().seq, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_busy_and_passes() {
    let mut engine = Engine::new();
    engine.store.close().await;
    let options = SqliteOptions { write_queue_max: 4, ..SqliteOptions::new(&engine.path) };
    engine.store = SqliteStore::open(&options).unwrap();
    let (session, outsider) = (engine.session().await, engine.outsider());
    lock(&outsider);
    let appends = join_all((0..16).map(|_| engine.say(&session)));
    let (results, ()) = tokio::join!(appends, async { unlock(&outsider) });
    let stored = results.iter().filter(|result| result.is_ok()).count();
    // Four wait, and one may be with the writer already.
    assert!((4..=5).contains(&stored), "{stored}");
    assert_eq!(results.iter().filter(|result| **result == Err(StoreError::Busy)).count(), 16 - stored);
    assert_eq!(engine.say(&session).await.unwrap().seq, i64::try_from(stored).unwrap() + 1);
}

/// Polls until nothing of the deleted session's messages is left in the rows.
async fn erased(outsider: &Connection, message: &Message) {
    let left = "select count(*) from messages where deleted_at is null and message_no >> 32 =
            (select message_no >> 32 from messages where message_id = ?1)
        or deleted_at is not null and (content <> '' or payload is not null or metadata <> '{}' or context is not null)";
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left: i64 =
            outsider.query_row(left, params![message.message_id.as_bytes()], |row| row.get(0)).expect("rows");
        if left == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{left} messages are not erased");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn fill(engine: &Engine, session: &Session) -> Message {
    let json = |text: &str| RawJson::parse(text.to_owned()).expect("JSON");
    let new = (0..600).map(|_| NewMessage {
        payload: Some(json("{\"secret\":1}")),
        metadata: json("{\"secret\":1}"),
        context: Some(json("\"secret\"")),
        ..engine.new_message(session)
    });
    engine.append(session, new.collect()).await.expect("a batch can be appended").remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_deleted_session_are_erased_in_the_file() {
    let engine = Engine::new();
    let (deleted, kept) = (engine.session().await, engine.session().await);
    let message = fill(&engine, &deleted).await;
    let neighbour = engine.say(&kept).await.unwrap();
    let now = engine.ctx.now();
    engine.store.delete_session(&engine.scope, deleted.session_id, ExpectedVersion::Any, now).await.unwrap();
    let outsider = engine.outsider();
    erased(&outsider, &message).await;
    let tombstones = "select count(*) from messages where deleted_at = ?1";
    let tombstones: i64 = outsider.query_row(tombstones, params![now.as_micros()], |row| row.get(0)).unwrap();
    assert_eq!(tombstones, 600);
    let count = |sql: &str| outsider.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("select count(*) from session_metadata"), 1, "the other session's");
    assert_eq!(count("select count(*) from sessions where session_name <> '' and deleted_at is not null"), 0);
    assert_eq!(engine.store.get_message(&engine.scope, neighbour.message_id).await, Ok(Some(neighbour)));
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_goes_on_after_a_restart() {
    let engine = Engine::new();
    let deleted = engine.session().await;
    let message = fill(&engine, &deleted).await;
    let now = engine.ctx.now();
    engine.store.delete_session(&engine.scope, deleted.session_id, ExpectedVersion::Any, now).await.unwrap();
    engine.store.close().await;
    let _reopened = open(&engine.path);
    erased(&engine.outsider(), &message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn close_finishes_what_is_queued_and_reopening_sees_it() {
    let mut engine = Engine::new();
    let (session, outsider) = (engine.session().await, engine.outsider());
    lock(&outsider);
    let appends = join_all((0..32).map(|_| engine.say(&session)));
    // Queued behind the lock, then closed, then let go.
    let (stored, (), ()) = tokio::join!(appends, engine.store.close(), async { unlock(&outsider) });
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    assert!(matches!(engine.say(&session).await, Err(StoreError::Unavailable { .. })));
    let key = engine.store.cursor_key().await;
    assert!(key.is_err());
    engine.store = open(&engine.path);
    let session = engine.reload(&session).await;
    assert_eq!((session.last_seq, session.message_count), (32, 32));
    assert_eq!(engine.say(&session).await.unwrap().seq, 33);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_copied_into_the_file_on_close() {
    let engine = Engine::new();
    let session = engine.session().await;
    fill(&engine, &session).await;
    engine.store.close().await;
    let log = engine.folder.path().join("chatstore.db-wal");
    assert_eq!(std::fs::metadata(log).map_or(0, |log| log.len()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_made_by_another_process_is_seen_at_once() {
    let engine = Engine::new();
    assert!(engine.store.get_api_key("abcdefghijkl").await.unwrap().is_none());
    let insert = "insert into api_keys (key_id, project_id, name, digest, scopes, created_at)
        values ('abcdefghijkl', ?1, 'made elsewhere', zeroblob(32), 'read,write', 0)";
    let outsider = engine.outsider();
    outsider.execute(insert, params![ProjectId::DEFAULT.as_bytes()]).unwrap();
    let (key, project) = engine.store.get_api_key("abcdefghijkl").await.unwrap().unwrap();
    assert_eq!(project.project_id, ProjectId::DEFAULT);
    assert_eq!((key.name.as_str(), key.scopes.to_string().as_str()), ("made elsewhere", "read,write"));
    outsider.execute("update api_keys set revoked_at = 1", ()).unwrap();
    assert!(engine.store.get_api_key("abcdefghijkl").await.unwrap().unwrap().0.revoked_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_made_while_appends_run_holds_all_that_was_acknowledged() {
    let engine = Arc::new(Engine::new());
    let session = engine.session().await;
    fill(&engine, &session).await;
    let (acknowledged, done) = (Arc::new(AtomicI64::new(600)), Arc::new(AtomicBool::new(false)));
    let appender = tokio::spawn({
        let (engine, session, acknowledged, done) =
            (engine.clone(), session.clone(), acknowledged.clone(), done.clone());
        async move {
            while !done.load(Ordering::Relaxed) {
                let stored = engine.say(&session).await.expect("appends go on");
                acknowledged.store(stored.seq, Ordering::Release);
            }
        }
    });
    let (path, folder) = (engine.path.clone(), engine.folder.path().to_owned());
    for n in 0..3 {
        let before = acknowledged.load(Ordering::Acquire);
        let target = folder.join(format!("copy-{n}.db"));
        let (from, to) = (path.clone(), target.clone());
        let made = tokio::task::spawn_blocking(move || backup(&from, &to)).await.unwrap().unwrap();
        let after = acknowledged.load(Ordering::Acquire) + 1;
        assert_eq!(made.sessions, 1);
        assert!((before..=after).contains(&made.messages), "{before} {made:?} {after}");
        assert_eq!(made.bytes, std::fs::metadata(&target).unwrap().len());
        let copy = open(&target);
        let copied = copy.get_session(&engine.scope, session.session_id).await.unwrap().unwrap();
        assert_eq!((copied.last_seq, copied.message_count), (made.messages, made.messages));
        let (query, page) = (MessageQuery::default(), PageRequest::default());
        let listed = copy.list_messages(&engine.scope, session.session_id, &query, &page).await.unwrap();
        assert_eq!(listed.items[0].seq, made.messages);
        copy.close().await;
    }
    done.store(true, Ordering::Relaxed);
    appender.await.unwrap();
}

#[test]
fn a_backup_never_overwrites() {
    let engine = Engine::new();
    let target = engine.folder.path().join("copy.db");
    std::fs::write(&target, "precious").unwrap();
    let refusal = backup(&engine.path, &target).unwrap_err().to_string();
    assert!(refusal.contains("copy.db exists"), "{refusal}");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    let refusal = backup(&engine.path, &engine.path).unwrap_err().to_string();
    assert!(refusal.contains("exists"), "{refusal}");
}

#[test]
fn a_backup_that_cannot_be_written_is_refused_with_a_sentence() {
    let engine = Engine::new();
    let target = engine.folder.path().join("missing/copy.db");
    let refusal = backup(&engine.path, &target).unwrap_err().to_string();
    assert!(refusal.contains("missing/copy.db") && refusal.contains("check that"), "{refusal}");
    let refusal = backup(&engine.folder.path().join("absent.db"), &engine.folder.path().join("copy.db"));
    let refusal = refusal.unwrap_err().to_string();
    assert!(refusal.contains("absent.db cannot be opened"), "{refusal}");
    let names: Vec<_> =
        std::fs::read_dir(engine.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name.to_string_lossy().starts_with("chatstore.db")), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_reads_give_the_same_answers_as_quick_ones() {
    let engine = Engine::new();
    let session = engine.session().await;
    let large = "x".repeat(200_000);
    for n in 0..20 {
        let mut messages: Vec<NewMessage> = (0..1_000).map(|_| engine.new_message(&session)).collect();
        if n == 0 {
            messages.iter_mut().take(50).for_each(|message| message.content.clone_from(&large));
            messages[0].role = "rare".to_owned();
        }
        engine.append(&session, messages).await.expect("appended");
    }
    let list = async |role: Option<&str>, order| {
        let query = MessageQuery { role: role.map(ToOwned::to_owned), order, ..MessageQuery::default() };
        let page = PageRequest { limit: 50, ..PageRequest::default() };
        engine.store.list_messages(&engine.scope, session.session_id, &query, &page).await.expect("listed").items
    };
    // Many rows to pass over, and much text to carry: both are more than a quick read may cost.
    let rare = list(Some("rare"), Order::Desc).await;
    assert_eq!(rare.iter().map(|message| message.seq).collect::<Vec<_>>(), [1]);
    let first = list(None, Order::Asc).await;
    assert_eq!(first.iter().map(|message| message.seq).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    assert!(first.iter().all(|message| message.content == large));
    for _ in 0..20 {
        assert_eq!(list(Some("absent"), Order::Desc).await, []);
    }
    assert_eq!(list(None, Order::Desc).await.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_whose_caller_has_gone_away_is_erased_all_the_same() {
    let engine = Engine::new();
    let deleted = engine.session().await;
    let message = fill(&engine, &deleted).await;
    let outsider = engine.outsider();
    // The first look for erasures is over: only the deletion itself can cause the next.
    tokio::time::sleep(Duration::from_millis(50)).await;
    lock(&outsider);
    let deletion =
        engine.store.delete_session(&engine.scope, deleted.session_id, ExpectedVersion::Any, engine.ctx.now());
    let gave_up = tokio::time::timeout(Duration::from_millis(50), deletion).await;
    assert!(gave_up.is_err(), "the lock holds the deletion up");
    unlock(&outsider);
    erased(&outsider, &message).await;
    assert_eq!(engine.store.get_message(&engine.scope, message.message_id).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_much_text_goes_in_small_steps() {
    let engine = Engine::new();
    let deleted = engine.session().await;
    let large = "x".repeat(1 << 20);
    let new = (0..24).map(|_| NewMessage { content: large.clone(), ..engine.new_message(&deleted) });
    let message = engine.append(&deleted, new.collect()).await.unwrap().remove(0);
    let now = engine.ctx.now();
    engine.store.delete_session(&engine.scope, deleted.session_id, ExpectedVersion::Any, now).await.unwrap();
    let outsider = engine.outsider();
    let places = "select coalesce(max(erased_seq), 0) from session_erasures";
    let (mut steps, deadline) = (std::collections::BTreeSet::new(), Instant::now() + Duration::from_secs(20));
    let left = "select count(*) from session_erasures";
    while outsider.query_row(left, (), |row| row.get::<_, i64>(0)).unwrap() > 0 {
        steps.insert(outsider.query_row(places, (), |row| row.get::<_, i64>(0)).unwrap());
        assert!(Instant::now() < deadline);
    }
    erased(&outsider, &message).await;
    assert!(steps.iter().zip(steps.iter().skip(1)).all(|(a, b)| b - a <= 24), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_large_messages_ends_early_and_says_where() {
    let engine = Engine::new();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_command_beside_a_server_neither_erases_nor_empties_the_log() {
    let engine = Engine::new();
    let session = engine.session().await;
    engine.say(&session).await.unwrap();
    let options = SqliteOptions { exclusive: false, ..SqliteOptions::new(&engine.path) };
    let beside = SqliteStore::open(&options).unwrap();
    let outsider = engine.outsider();
    // With a read open, emptying the log would wait, and hold up the server meanwhile.
    outsider.execute_batch("begin; select count(*) from sessions").unwrap();
    let started = Instant::now();
    beside.close().await;
    engine.say(&session).await.unwrap();
    // Whoever waits in vain for a lock takes five seconds.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}
