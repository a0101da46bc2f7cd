//! `copy` as a person runs it: real processes between real databases.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;
#[path = "copy/zoo.rs"]
mod zoo;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chatstore_core::api_keys::{ApiKey, ApiKeyPatch, Authority, KeyScopes, PresentedKey};
use chatstore_core::audit::{Actor, AuditEvent, AuditQuery};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::embeddings::Embedding;
use chatstore_core::ids::ProjectId;
use chatstore_core::messages::{Message, MessagePatch, MessageQuery};
use chatstore_core::page::{Order, PageRequest, PageStart};
use chatstore_core::projects::{Project, ProjectPatch};
use chatstore_core::sessions::{Session, SessionQuery};
use chatstore_core::store::{Quotas, Scope, Store};
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{PostgresOptions, PostgresStore};
use chatstore_sqlite::{SqliteOptions, SqliteStore, Synchronous};
use nix::sys::signal::Signal;
use support::{Finished, PATIENCE, Process, Random, Server, chatstore, eventually, tool};
use tempfile::TempDir;
use zoo::{ERASED, Keeper, LONG, embedding};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}
use Engine::{Postgres, Sqlite};

/// A database of a test, with nothing in it at first.
enum Database {
    Sqlite(TempDir),
    Postgres(TestDatabase),
}

impl Database {
    async fn new(engine: Engine) -> Self {
        match engine {
            Sqlite => Self::Sqlite(tempfile::tempdir().unwrap()),
            Postgres => Self::Postgres(TestDatabase::create_empty().await),
        }
    }

    fn path(folder: &TempDir) -> PathBuf {
        folder.path().join("chatstore.db")
    }

    fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite:{}", Self::path(folder).display()),
            Self::Postgres(database) => database.owner_url(),
        }
    }

    /// Opened as a command beside a server does it: nothing is erased meanwhile.
    async fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(folder) => {
                let path = Self::path(folder);
                chatstore_sqlite::migrate(&path, &Ctx::system()).unwrap();
                let synchronous = Synchronous::Normal;
                let options = SqliteOptions { exclusive: false, synchronous, ..SqliteOptions::new(path) };
                Arc::new(SqliteStore::open(&options).unwrap())
            }
            Self::Postgres(database) => {
                chatstore_postgres::migrate(&database.owner_url(), &Ctx::system()).await.unwrap();
                Arc::new(PostgresStore::open(&PostgresOptions::new(database.owner_url())).await.unwrap())
            }
        }
    }

    async fn keeper(&self) -> Keeper {
        Keeper::new(self.open().await)
    }
}

/// A page of everything.
fn whole<P>() -> PageRequest<P> {
    PageRequest { limit: 100, ..PageRequest::default() }
}

/// All that a store holds, as the contract shows it, but for the events that tell of copies.
#[derive(Debug, PartialEq)]
struct Contents {
    projects: Vec<Project>,
    keys: Vec<(String, [Option<[u8; 32]>; 2])>,
    events: Vec<AuditEvent>,
    sessions: Vec<(Session, Vec<Message>)>,
    embeddings: Vec<Embedding>,
}

impl Contents {
    async fn of(database: &Database) -> Self {
        let store = database.open().await;
        let mut projects = store.list_projects(&whole()).await.unwrap().items;
        // Each database has the date of its own making.
        let default = projects.iter_mut().find(|project| project.project_id == ProjectId::DEFAULT).unwrap();
        (default.created_at, default.updated_at) =
            (Timestamp::from_micros(0).unwrap(), Timestamp::from_micros(0).unwrap());
        projects.sort_by_key(|project| project.project_id);
        let keys = store.list_api_keys(None, &whole()).await.unwrap().items;
        let digests = |key: &ApiKey| {
            [Some(key.digest), key.previous.map(|previous| previous.digest)]
                .map(|digest| digest.map(|it| *it.as_bytes()))
        };
        let keys = keys.iter().map(|(key, project)| (format!("{key:?} {project}"), digests(key))).collect();
        let (mut events, mut next) = (Vec::new(), Some(PageStart::Offset(0)));
        while let Some(start) = next {
            let page = PageRequest { limit: 100, start };
            let page = store.list_audit_events(&AuditQuery::default(), &page).await.unwrap();
            events.extend(page.items.into_iter().filter(|event| event.action != "copy"));
            next = page.next.map(PageStart::After);
        }
        let (mut sessions, mut embeddings) = (Vec::new(), Vec::new());
        for project in &projects {
            let scope = Scope::project(project.project_id);
            for session in store.export_sessions(&scope, None, 10_000).await.unwrap() {
                let mut messages: Vec<Message> = Vec::new();
                loop {
                    let after = messages.len() as i64;
                    let page = store.export_messages(&scope, session.session_id, after, i64::MAX, 1_000).await.unwrap();
                    if page.is_empty() {
                        break;
                    }
                    let ids: Vec<_> = page.iter().map(|message| message.message_id).collect();
                    embeddings.extend(store.list_embeddings(&scope, &ids).await.unwrap());
                    messages.extend(page);
                }
                sessions.push((session, messages));
            }
        }
        store.close().await;
        Self { projects, keys, events, sessions, embeddings }
    }

    fn vectors(&self) -> usize {
        self.embeddings.iter().map(|embedding| embedding.vectors.len()).sum()
    }

    fn messages(&self) -> usize {
        self.sessions.iter().map(|(_, messages)| messages.len()).sum()
    }

    /// Fails with the first that differs, for all of it is long.
    #[track_caller]
    fn assert_equals(&self, other: &Self) {
        assert_eq!(self.projects, other.projects);
        assert_eq!(self.keys, other.keys);
        assert_eq!(self.events, other.events);
        assert_eq!(self.embeddings, other.embeddings);
        assert_eq!(self.sessions.len(), other.sessions.len());
        for ((session, messages), (other, others)) in self.sessions.iter().zip(&other.sessions) {
            assert_eq!(session, other);
            let differing = messages.iter().zip(others).find(|(one, other)| one != other);
            assert!(differing.is_none(), "{differing:?}");
            assert_eq!(messages.len(), others.len(), "{}", session.session_id);
        }
    }
}

fn copy_words(from: &Database, to: &Database, more: &[&str]) -> Vec<String> {
    let words = ["copy", "--from", &from.url(), "--to", &to.url()].map(str::to_owned);
    words.into_iter().chain(more.iter().map(|word| (*word).to_owned())).collect()
}

/// Runs `copy` from a folder of its own.
fn copy(from: &Database, to: &Database, more: &[&str]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let words = copy_words(from, to, more);
    tool(folder.path(), &words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The rows of the table, each as its words.
fn table(finished: &Finished) -> [Vec<String>; 2] {
    let rows: Vec<Vec<String>> =
        finished.out.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    let rows: [Vec<String>; 2] = rows.try_into().unwrap_or_else(|rows| panic!("{rows:?}"));
    assert_eq!((rows[0][0].as_str(), rows[1][0].as_str()), ("source", "target"));
    rows
}

/// What it said it did: sessions, messages, sessions already there.
#[track_caller]
fn counts(finished: &Finished) -> [u64; 3] {
    let line = finished.err.lines().find(|line| line.starts_with("Copied ")).unwrap_or_default();
    let number_before = |word: &str| -> u64 {
        let before = line.split(word).next().unwrap().trim_end();
        before.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{word} in {:?}", finished.err))
    };
    [number_before(" session"), number_before(" message"), number_before(" already there")]
}

/// A small store, made anew for each test that changes it.
async fn small(engine: Engine) -> Database {
    let database = Database::new(engine).await;
    let keeper = database.keeper().await;
    let other = keeper.project("other", keeper.ctx.now()).await;
    for scope in [Scope::project(ProjectId::DEFAULT), other] {
        for n in 0..3 {
            let session = keeper.session(&scope, Some("ada"), Some(&format!("conv_{n}"))).await;
            keeper.chat(&session, 4).await;
        }
    }
    keeper.key(|_| {}).await;
    keeper.store.close().await;
    database
}

/// A store in every state moves along `route`, each time into an empty one, and is the same at the
/// end and at every stop.
async fn every_state_moves(route: &[Engine]) {
    let origin = Database::new(route[0]).await;
    if let Database::Sqlite(folder) = &origin {
        // One that is erased already, which only the process that holds the file does.
        let path = Database::path(folder);
        chatstore_sqlite::migrate(&path, &Ctx::system()).unwrap();
        let keeper = Keeper::new(Arc::new(SqliteStore::open(&SqliteOptions::new(&path)).unwrap()));
        keeper.deleted(&Scope::project(ProjectId::DEFAULT), "erased").await;
        let file = rusqlite::Connection::open(&path).unwrap();
        let waiting = || file.query_row("select count(*) from session_erasures", (), |row| row.get::<_, i64>(0));
        eventually("erasing", PATIENCE, || (waiting().unwrap() == 0).then_some(()));
        keeper.store.close().await;
    }
    let keeper = origin.keeper().await;
    keeper.fill().await;
    keeper.store.close().await;
    let expected = Contents::of(&origin).await;
    let (sessions, messages) = (expected.sessions.len() as u64, expected.messages() as u64);
    assert!(messages > 2 * LONG as u64 && expected.vectors() >= 2);

    let mut sums = Vec::new();
    let mut from = origin;
    for engine in &route[1..] {
        let to = Database::new(*engine).await;
        let finished = copy(&from, &to, &[]).ok();
        assert_eq!(counts(&finished), [sessions, messages, 0]);
        Contents::of(&to).await.assert_equals(&expected);
        let [source, target] = table(&finished);
        assert_eq!(source[1..], target[1..]);
        let commas = |number: usize| indicatif::HumanCount(number as u64).to_string();
        let [projects, keys] = [expected.projects.len(), expected.keys.len()];
        assert_eq!(expected.events.len(), 3 * zoo::EVENTS_EACH);
        let counted =
            [projects, keys, expected.events.len(), expected.sessions.len(), expected.messages(), expected.vectors()];
        assert_eq!(source[1..7], counted.map(commas));
        sums.push(source[7].clone());
        // What is there is passed over.
        assert_eq!(counts(&copy(&from, &to, &[]).ok()), [0, 0, sessions]);
        from = to;
    }
    assert!(sums.iter().all(|sum| *sum == sums[0] && sum.len() == 64), "{sums:?}");
    lives_on(&from, &expected).await;
}

/// The copy is no picture: lists, filters and counters go on from where they were.
async fn lives_on(copy: &Database, expected: &Contents) {
    let keeper = copy.keeper().await;
    let metadata = vec![("topic".to_owned(), "tea".to_owned())];
    let query = SessionQuery { metadata, ..SessionQuery::default() };
    let scope = Scope::project(ProjectId::DEFAULT);
    let page = PageRequest { limit: 100, ..PageRequest::default() };
    let listed = keeper.store.list_sessions(&scope, &query, &page).await.unwrap().items;
    let live = expected.sessions.iter().map(|(session, _)| session);
    let live = live.filter(|session| session.project_id == ProjectId::DEFAULT && session.deleted_at.is_none());
    let tea = live.clone().filter(|session| session.metadata.as_str().contains("tea")).count();
    assert_eq!(listed.len(), tea);
    for (session, messages) in expected.sessions.iter().filter(|(session, _)| session.deleted_at.is_none()) {
        let scope = Scope::project(session.project_id);
        assert_eq!(keeper.store.get_session(&scope, session.session_id).await.unwrap().as_ref(), Some(session));
        let query = MessageQuery { order: Order::Asc, ..MessageQuery::default() };
        let page = PageRequest { limit: 2, ..PageRequest::default() };
        let listed = keeper.store.list_messages(&scope, session.session_id, &query, &page).await.unwrap().items;
        let live: Vec<_> = messages.iter().filter(|message| message.deleted_at.is_none()).take(2).cloned().collect();
        assert!(listed == live, "{}", session.session_id);
        let appended = keeper.say(session, "it goes on").await;
        assert_eq!(appended.seq, session.last_seq + 1);
        let now = keeper.store.get_session(&scope, session.session_id).await.unwrap().unwrap();
        assert_eq!((now.message_count, now.token_count), (session.message_count + 1, session.token_count));
    }
    keeper.store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_of_a_store_moves() {
    every_state_moves(&[Sqlite, Sqlite]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_of_a_store_moves_to_postgres_and_back() {
    every_state_moves(&[Sqlite, Postgres, Sqlite]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_of_a_store_moves_from_postgres_to_postgres() {
    every_state_moves(&[Postgres, Postgres]).await;
}

/// What tells of copies in the audit log of a database.
async fn copies(database: &Database) -> Vec<(Actor, String)> {
    let store = database.open().await;
    let query = AuditQuery { action: Some("copy".to_owned()), ..AuditQuery::default() };
    let events = store.list_audit_events(&query, &whole()).await.unwrap().items;
    store.close().await;
    events.into_iter().map(|event| (event.actor, event.outcome)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_moved_anything_leaves_one_event() {
    for engine in [Sqlite, Postgres] {
        let (from, to) = (small(Sqlite).await, Database::new(engine).await);
        let copied = (Actor::Command, "ok".to_owned());
        copy(&from, &to, &[]).ok();
        assert_eq!(copies(&to).await, vec![copied.clone(); 1]);
        // Neither of these moves anything, and both find the ends equal.
        copy(&from, &to, &[]).ok();
        copy(&from, &to, &["--verify-only"]).ok();
        assert_eq!(copies(&to).await, vec![copied.clone(); 1]);

        let keeper = from.keeper().await;
        keeper.event(ProjectId::DEFAULT, Actor::RootKey).await;
        keeper.store.close().await;
        copy(&from, &to, &[]).ok();
        assert_eq!(copies(&to).await, vec![copied; 2]);
        // The next copy takes them along and adds its own.
        let third = Database::new(Sqlite).await;
        copy(&to, &third, &[]).ok();
        assert_eq!(copies(&third).await.len(), 3);
        assert_eq!(copies(&from).await, []);

        // One that ends halfway says that it did.
        let sessions = Contents::of(&from).await.sessions;
        for (database, texts) in [(&from, &["here", "and on"][..]), (&to, &["there"])] {
            let keeper = database.keeper().await;
            for text in texts {
                keeper.say(&sessions[0].0, text).await;
            }
            keeper.store.close().await;
        }
        let keeper = from.keeper().await;
        keeper.key(|_| {}).await;
        keeper.store.close().await;
        let refusal = copy(&from, &to, &[]).refusal();
        assert!(refusal.contains("what was copied stays"), "{refusal}");
        assert_eq!(copies(&to).await[0], (Actor::Command, "unknown".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_not_copied() {
    let from = Database::new(Sqlite).await;
    let keeper = from.keeper().await;
    keeper.deleted(&Scope::project(ProjectId::DEFAULT), "secret").await;
    keeper.store.close().await;
    let to = Database::new(Sqlite).await;
    copy(&from, &to, &[]).ok();
    let holds = |database: &Database| {
        let Database::Sqlite(folder) = database else { return false };
        let bytes = std::fs::read(Database::path(folder)).unwrap();
        bytes.windows(ERASED.len()).any(|window| window == ERASED.as_bytes())
    };
    assert!(!holds(&to));
}

/// Many sessions, and one that takes many parts.
async fn busy_store() -> Database {
    let database = Database::new(Sqlite).await;
    let keeper = database.keeper().await;
    let scope = Scope::project(ProjectId::DEFAULT);
    for (sessions, messages) in [(500, 5), (1, 12_000), (500, 5)] {
        for n in 0..sessions {
            let session = keeper.session(&scope, Some(&format!("user {n}")), None).await;
            keeper.chat(&session, messages).await;
        }
    }
    keeper.store.close().await;
    database
}

/// Killed at random moments and run again, until it is through.
async fn a_killed_copy_goes_on(engine: Engine) {
    let seed = Random::any_seed();
    eprintln!("CHATSTORE_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let from = busy_store().await;
    let expected = Contents::of(&from).await;
    let to = Database::new(engine).await;
    let folder = tempfile::tempdir().unwrap();
    let (mut killed, mut halfway) = (0_u64, 0);
    while killed < 12 {
        let mut command = chatstore(folder.path());
        command.args(copy_words(&from, &to, &["--quiet"]));
        let mut process = Process::spawn(command);
        // Later each time, so that every step of it meets its end.
        std::thread::sleep(Duration::from_millis(30 + random.below(100 * (killed + 1))));
        if !process.is_running() {
            break;
        }
        process.signal(Signal::SIGKILL);
        process.wait(PATIENCE);
        killed += 1;
        let there = Contents::of(&to).await.messages();
        halfway += u64::from(there > 0 && there < expected.messages());
    }
    let [sessions, messages, known] = counts(&copy(&from, &to, &[]).ok());
    eprintln!(
        "killed {killed} times, {halfway} of them halfway; the last run copied {sessions} and {messages}, {known} known"
    );
    assert!(halfway > 0, "no kill came halfway");
    assert!(sessions + known <= 1_001 && messages < expected.messages() as u64);
    Contents::of(&to).await.assert_equals(&expected);
    Contents::of(&from).await.assert_equals(&expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_copy_goes_on_when_it_is_run_again() {
    a_killed_copy_goes_on(Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_copy_to_postgres_goes_on_when_it_is_run_again() {
    a_killed_copy_goes_on(Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_when_its_connections_are_ended() {
    let from = busy_store().await;
    let to = Database::new(Postgres).await;
    to.open().await.close().await;
    let (client, connection) = tokio_postgres::connect(&to.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let folder = tempfile::tempdir().unwrap();
    let mut command = chatstore(folder.path());
    command.args(copy_words(&from, &to, &[]));
    let mut process = Process::spawn(command);
    let (mut ended, mut halfway) = (0, 0);
    while process.is_running() {
        let messages = "select count(*) from messages";
        let there: i64 = client.query_one(messages, &[]).await.unwrap().get(0);
        if there > 0 {
            let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()";
            let connections: i64 = client.query_one(end, &[]).await.unwrap().get(0);
            ended += connections;
            halfway += i64::from(connections > 0 && there < 17_000);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let status = process.wait(PATIENCE);
    eprintln!("{ended} connections were ended, {halfway} times halfway");
    assert_eq!(status.code(), Some(0), "{}", process.err.text());
    assert!(halfway > 0, "none was ended halfway");
    Contents::of(&to).await.assert_equals(&Contents::of(&from).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_database_by_two_urls_is_refused() {
    let database = small(Postgres).await;
    let folder = tempfile::tempdir().unwrap();
    let other = database.url().replacen("postgres://", "postgresql://", 1);
    let refusal = tool(folder.path(), &["copy", "--from", &database.url(), "--to", &other]).refusal();
    assert!(refusal.contains("--from and --to name the same database"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn comparing_does_not_migrate_and_copying_gives_advice_of_its_own() {
    let from = small(Sqlite).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.db");
    // A file of nothing is a database without a schema.
    std::fs::write(&path, "").unwrap();
    let old = format!("sqlite:{}", path.display());
    let refusal = tool(folder.path(), &["copy", "--from", &from.url(), "--to", &old, "--verify-only"]).refusal();
    assert!(refusal.contains("--to: ") && refusal.contains("`copy` goes by --to alone"), "{refusal}");
    let file = rusqlite::Connection::open(&path).unwrap();
    let tables: i64 = file.query_row("select count(*) from sqlite_master", (), |row| row.get(0)).unwrap();
    assert_eq!(tables, 0, "it only looked");

    // Its role may write rows alone; the owner is named where `copy` looks.
    let few_rights = TestDatabase::create_empty().await;
    let refusal = tool(folder.path(), &["copy", "--from", &from.url(), "--to", &few_rights.url()]).refusal();
    assert!(refusal.contains("name its owner or another database there"), "{refusal}");
}

/// What the comparison says of a target in which `change` changed something, and what it should name.
async fn named(engine: Engine, change: impl AsyncFnOnce(&Keeper, &[(Session, Vec<Message>)]) -> String) {
    let (from, to) = (small(Sqlite).await, Database::new(engine).await);
    copy(&from, &to, &["--quiet"]).ok();
    let sessions = Contents::of(&to).await.sessions;
    let keeper = to.keeper().await;
    let expected = change(&keeper, &sessions).await;
    keeper.store.close().await;
    let changed = Contents::of(&to).await;
    let finished = copy(&from, &to, &["--verify-only"]);
    assert_eq!(finished.status.code(), Some(1), "{expected}");
    let said: Vec<&str> = finished.err.lines().filter_map(|line| line.strip_prefix("chatstore: ")).collect();
    assert!(said.iter().any(|line| line.starts_with(&expected)), "{expected} in {said:?}");
    assert!(said.len() <= 2, "{said:?}");
    let [source, target] = table(&finished);
    assert_ne!(source[7], target[7], "{expected}");
    // It only looked.
    Contents::of(&to).await.assert_equals(&changed);
}

async fn every_change_is_named(engine: Engine) {
    named(engine, async |keeper, sessions| {
        let (session, messages) = &sessions[1];
        let patch = MessagePatch { content: Some("another".to_owned()), ..MessagePatch::default() };
        keeper.patch(session, messages[2].message_id, patch).await;
        format!("message {} (3 of session {}) differs", messages[2].message_id, session.session_id)
    })
    .await;
    named(engine, async |keeper, sessions| {
        keeper.delete_message(&sessions[0].0, sessions[0].1[0].message_id).await;
        format!("message {} (1 of session {}) differs", sessions[0].1[0].message_id, sessions[0].0.session_id)
    })
    .await;
    named(engine, async |keeper, sessions| {
        let message = keeper.say(&sessions[3].0, "one more").await;
        format!("message {} (5 of session {}) is only at the target", message.message_id, sessions[3].0.session_id)
    })
    .await;
    named(engine, async |keeper, sessions| {
        let (session, messages) = &sessions[2];
        keeper.embed(session, messages[1].message_id, embedding("mini", &[1.0])).await;
        format!("message {} (2 of session {}) differs", messages[1].message_id, session.session_id)
    })
    .await;
    named(engine, async |keeper, sessions| {
        keeper.rename(&sessions[5].0, "another").await;
        format!("session {} differs", sessions[5].0.session_id)
    })
    .await;
    named(engine, async |keeper, sessions| {
        keeper.delete(&sessions[4].0).await;
        format!("session {} differs", sessions[4].0.session_id)
    })
    .await;
    named(engine, async |keeper, sessions| {
        let scope = Scope::project(sessions[0].0.project_id);
        format!("session {} is only at the target", keeper.session(&scope, None, None).await.session_id)
    })
    .await;
    named(engine, async |keeper, _| format!("API key {} is only at the target", keeper.key(|_| {}).await.key_id)).await;
    named(engine, async |keeper, _| {
        let event_id = keeper.event(ProjectId::DEFAULT, Actor::Command).await;
        format!("audit event {event_id} is only at the target")
    })
    .await;
    named(engine, async |keeper, _| {
        keeper.new_token_secret(ProjectId::DEFAULT).await;
        format!("project {} differs", ProjectId::DEFAULT)
    })
    .await;
    named(engine, async |keeper, _| {
        format!("project {} is only at the target", keeper.project("third", keeper.ctx.now()).await.project_id)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_comparison_names_what_differs() {
    every_change_is_named(Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_comparison_names_what_differs_in_postgres() {
    every_change_is_named(Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_comparison_reads_what_is_stored() {
    let (from, to) = (small(Sqlite).await, Database::new(Sqlite).await);
    copy(&from, &to, &["--quiet"]).ok();
    let Database::Sqlite(folder) = &to else { panic!("the target is a file") };
    let file = rusqlite::Connection::open(Database::path(folder)).unwrap();
    for by in [1, -1] {
        let sql = "update messages set created_at = created_at + ?1 where message_no = (select max(message_no) from messages)";
        assert_eq!(file.execute(sql, [by]).unwrap(), 1);
        let finished = copy(&from, &to, &["--verify-only"]);
        assert_eq!(finished.status.code(), Some(if by == 1 { 1 } else { 0 }));
        let [source, target] = table(&finished);
        assert_eq!(source[7] == target[7], by != 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_source_that_went_on_the_rest_follows_and_what_changed_is_named() {
    let (from, to) = (small(Sqlite).await, Database::new(Sqlite).await);
    copy(&from, &to, &[]).ok();
    let sessions = Contents::of(&from).await.sessions;
    let keeper = from.keeper().await;
    keeper.say(&sessions[0].0, "one more").await;
    let fresh = keeper.session(&Scope::project(ProjectId::DEFAULT), None, None).await;
    keeper.chat(&fresh, 3).await;
    let project = keeper.project("third", keeper.ctx.now()).await;
    keeper.session(&project, None, None).await;
    let key = keeper.key(|key| key.project_id = project.project_id).await;
    keeper.store.close().await;
    assert_eq!(counts(&copy(&from, &to, &[]).ok()), [2, 4, 5]);
    Contents::of(&to).await.assert_equals(&Contents::of(&from).await);

    // A revocation follows too: no key that was withdrawn opens the copy.
    let keeper = from.keeper().await;
    let revoked = keeper.store.revoke_api_key(&Authority::host(), &key.key_id, keeper.ctx.now()).await.unwrap();
    keeper.store.close().await;
    copy(&from, &to, &[]).ok();
    let store = to.open().await;
    assert_eq!(store.get_api_key(&key.key_id).await.unwrap().unwrap().0.revoked_at, revoked.revoked_at);
    store.close().await;

    let keeper = from.keeper().await;
    let (session, messages) = &sessions[2];
    let patch = MessagePatch { content: Some("another".to_owned()), ..MessagePatch::default() };
    keeper.patch(session, messages[0].message_id, patch).await;
    keeper.store.close().await;
    let refusal = copy(&from, &to, &[]).refusal();
    let expected = format!("message {} (1 of session {}) differs", messages[0].message_id, session.session_id);
    assert!(refusal.contains(&expected), "{refusal}");
}

/// What ruled at the source since it was copied rules the copy, too: no secret that was replaced opens it.
async fn changes_of_keys_and_projects_follow(engine: Engine) {
    let (from, to) = (small(Sqlite).await, Database::new(engine).await);
    let keeper = from.keeper().await;
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.push(keeper.key(|key| key.user_id = Some("ada".to_owned())).await.key_id);
    }
    keeper.store.close().await;
    copy(&from, &to, &["--quiet"]).ok();
    for _ in 0..2 {
        let keeper = from.keeper().await;
        let (store, ctx, host) = (&keeper.store, &keeper.ctx, Authority::host());
        let rotate = async |key_id: &str, grace_us: i64| {
            let digest = PresentedKey::rotate(ctx, key_id).unwrap().digest();
            let now = ctx.now();
            store.rotate_api_key(&host, key_id, digest, now.plus_micros(grace_us), now, None).await.unwrap();
        };
        rotate(&keys[0], 3_600_000_000).await;
        rotate(&keys[1], 0).await;
        rotate(&keys[2], 3_600_000_000).await;
        rotate(&keys[2], 3_600_000_000).await;
        let patch = ApiKeyPatch {
            name: Some("renamed".to_owned()),
            scopes: Some(KeyScopes::of_users()),
            expires_at: Some(Some(ctx.now())),
            allowed_addresses: Some(vec!["::1/128".to_owned()]),
            ..ApiKeyPatch::default()
        };
        store.update_api_key(&host, &keys[2], patch.clone(), ctx.now()).await.unwrap();
        store.update_api_key(&host, &keys[3], patch, ctx.now()).await.unwrap();
        store.revoke_api_key(&host, &keys[3], ctx.now()).await.unwrap();
        store.note_api_key_uses(vec![(keys[0].clone(), ctx.now())]).await.unwrap();
        for name in ["default", "other"] {
            let project_id = store.get_project_by_name(name).await.unwrap().unwrap().project_id;
            keeper.new_token_secret(project_id).await;
            let quotas = Quotas { project_bytes: Some(u64::from(ctx.random::<1>()[0])), ..Quotas::default() };
            let patch = ProjectPatch { quotas: Some(quotas), ..ProjectPatch::default() };
            store.update_project(project_id, patch, ctx.now()).await.unwrap();
        }
        store.close().await;
        copy(&from, &to, &["--quiet"]).ok();
        Contents::of(&to).await.assert_equals(&Contents::of(&from).await);
    }
    // What was changed at the target is not lost.
    for change_key in [true, false] {
        let keeper = to.keeper().await;
        let now = keeper.ctx.now();
        if change_key {
            keeper.store.revoke_api_key(&Authority::host(), &keys[0], now).await.unwrap();
        } else {
            let other = keeper.store.get_project_by_name("other").await.unwrap().unwrap().project_id;
            let patch = ProjectPatch { quotas: Some(Quotas::default()), ..ProjectPatch::default() };
            keeper.store.update_project(other, patch, now).await.unwrap();
        }
        keeper.store.close().await;
        let refusal = copy(&from, &to, &[]).refusal();
        let expected = if change_key { &format!("API key {}", keys[0]) } else { "project `other` differs" };
        assert!(refusal.contains(expected) && refusal.contains("nothing was copied"), "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_keys_and_projects_follow_their_source() {
    changes_of_keys_and_projects_follow(Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_keys_and_projects_follow_their_source_in_postgres() {
    changes_of_keys_and_projects_follow(Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_went_on_at_both_ends_is_not_mixed() {
    for engine in [Sqlite, Postgres] {
        let (from, to) = (small(Sqlite).await, Database::new(engine).await);
        copy(&from, &to, &[]).ok();
        let sessions = Contents::of(&from).await.sessions;
        let session = &sessions[0].0;
        let keeper = from.keeper().await;
        keeper.say(session, "here").await;
        keeper.say(session, "and on").await;
        keeper.store.close().await;
        let keeper = to.keeper().await;
        keeper.say(session, "there").await;
        keeper.store.close().await;
        let before = Contents::of(&to).await;
        let refusal = copy(&from, &to, &[]).refusal();
        let expected =
            format!("session {} cannot be stored: /messages go on from another message 5", session.session_id);
        assert!(refusal.contains(&expected), "{refusal}");
        Contents::of(&to).await.assert_equals(&before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_at_the_target_is_named_before_anything_is_written() {
    for engine in [Sqlite, Postgres] {
        let (from, to) = (small(Sqlite).await, Database::new(engine).await);
        let contents = Contents::of(&from).await;
        let (source, target) = (from.keeper().await, to.keeper().await);
        let other = source.store.get_project_by_name("other").await.unwrap().unwrap();
        let named = target.project("other", target.ctx.now()).await;
        let renamed = source.project("mine", source.ctx.now()).await;
        let mine = source.store.get_project_by_name("mine").await.unwrap().unwrap();
        target.store.create_project(Project { name: "yours".to_owned(), ..mine }, None).await.unwrap();
        let key = source.store.list_api_keys(None, &whole()).await.unwrap().items.remove(0).0;
        let digest = PresentedKey::generate(&source.ctx).digest();
        target.store.create_api_key(ApiKey { digest, ..key.clone() }, None).await.unwrap();
        source.store.close().await;
        target.store.close().await;
        let before = Contents::of(&to).await;
        let refusal = copy(&from, &to, &[]).refusal();
        for expected in [
            format!(
                "project `other` has the id {} at the source and {} at the target",
                other.project_id, named.project_id
            ),
            format!("project {} is named `mine` at the source and `yours` at the target", renamed.project_id),
            format!("API key {} (`a key`) differs at the target", key.key_id),
        ] {
            assert!(refusal.contains(&expected), "{expected}: {refusal}");
        }
        Contents::of(&to).await.assert_equals(&before);
        assert!(before.sessions.is_empty() && contents.sessions.len() == 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_is_refused_with_a_sentence() {
    let from = small(Sqlite).await;
    let Database::Sqlite(folder) = &from else { panic!("the source is a file") };
    let run = |words: &[&str]| tool(folder.path(), &[&["copy"], words].concat());
    let refusal = run(&["--from", "sqlite:absent.db", "--to", "sqlite:new.db"]).refusal();
    assert!(refusal.contains("--from: there is no database of Chatstore at absent.db"), "{refusal}");
    let refusal = run(&["--from", "sqlite:chatstore.db", "--to", "sqlite:new.db", "--verify-only"]).refusal();
    assert!(refusal.contains("--to: there is no database of Chatstore at new.db"), "{refusal}");
    std::os::unix::fs::symlink("chatstore.db", folder.path().join("link.db")).unwrap();
    for same in ["sqlite:chatstore.db", "sqlite:./chatstore.db", "sqlite:link.db", &from.url()] {
        let refusal = run(&["--from", "sqlite:chatstore.db", "--to", same]).refusal();
        assert!(refusal.contains("--from and --to name the same database"), "{same}: {refusal}");
    }
    let secret = "canary5b21e8";
    let refusal = run(&["--from", &format!("mysql://u:{secret}@h/d"), "--to", "sqlite:new.db"]).refusal();
    assert!(refusal.contains("--from must be sqlite:PATH") && !refusal.contains(secret), "{refusal}");
    let url = format!("postgres://u:{secret}@127.0.0.1:1/d");
    for words in [["--from", &url, "--to", "sqlite:new.db"], ["--from", "sqlite:chatstore.db", "--to", &url]] {
        let refusal = run(&words).refusal();
        assert!(refusal.contains("127.0.0.1") && !refusal.contains(secret), "{refusal}");
    }
    assert!(!folder.path().join("new.db").exists());
    assert_eq!(run(&["--from", "sqlite:chatstore.db"]).status.code(), Some(2));

    let mut server = Server::start_with(folder.path(), &[("DATABASE_URL", "sqlite:chatstore.db")]);
    let refusal = run(&["--from", "sqlite:chatstore.db", "--to", "sqlite:new.db"]).refusal();
    assert!(refusal.contains("is in use by `chatstore serve`"), "{refusal}");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_come_from_files_and_quiet_is_quiet() {
    let (from, to) = (small(Sqlite).await, Database::new(Postgres).await);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("from"), format!("{}\n", from.url())).unwrap();
    std::fs::write(folder.path().join("to"), to.url()).unwrap();
    let words = ["copy", "--from-file", "from", "--to-file", "to", "--quiet"];
    for more in [&[][..], &["--verify-only"]] {
        let finished = tool(folder.path(), &[&words[..], more].concat()).ok();
        assert_eq!((finished.out.as_str(), finished.err.as_str()), ("", ""));
    }
    let twice = tool(folder.path(), &["copy", "--from-file", "from", "--from", "sqlite:x", "--to-file", "to"]);
    assert_eq!(twice.status.code(), Some(2));
    let refusal = tool(folder.path(), &["copy", "--from-file", "absent", "--to-file", "to"]).refusal();
    assert!(refusal.contains("cannot read absent"), "{refusal}");
}
