//! `copy` as a person runs it: real processes between real databases.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;
#[path = "copy/zoo.rs"]
mod zoo;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chatstore_core::api_keys::PresentedKey;
use chatstore_core::archive::{ArchiveIdentity, ArchivedSession, Checksum};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::ids::ProjectId;
use chatstore_core::messages::{Message, MessagePatch, MessageQuery};
use chatstore_core::page::{Order, PageRequest};
use chatstore_core::projects::Project;
use chatstore_core::sessions::{Session, SessionQuery};
use chatstore_core::store::{Scope, Store};
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{PostgresOptions, PostgresStore};
use chatstore_sqlite::{SqliteOptions, SqliteStore};
use nix::sys::signal::Signal;
use support::{Finished, PATIENCE, Process, Random, Server, chatstore, eventually, tool};
use tempfile::TempDir;
use zoo::{ERASED, Keeper, LONG};

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
                Arc::new(SqliteStore::open(&SqliteOptions { exclusive: false, ..SqliteOptions::new(path) }).unwrap())
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

/// All that a store holds, as the contract shows it.
#[derive(Debug, PartialEq)]
struct Contents {
    projects: Vec<Project>,
    keys: Vec<(String, [u8; 32])>,
    sessions: Vec<(Session, Vec<Message>)>,
}

impl Contents {
    async fn of(database: &Database) -> Self {
        let store = database.open().await;
        let mut projects = store.list_projects().await.unwrap();
        // Each database has the date of its own making.
        let default = projects.iter_mut().find(|project| project.project_id == ProjectId::DEFAULT).unwrap();
        default.created_at = Timestamp::from_micros(0).unwrap();
        projects.sort_by_key(|project| project.project_id);
        let keys = store.list_api_keys().await.unwrap();
        let keys = keys.iter().map(|(key, project)| (format!("{key:?} {project}"), *key.digest.as_bytes())).collect();
        let mut sessions = Vec::new();
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
                    messages.extend(page);
                }
                sessions.push((session, messages));
            }
        }
        store.close().await;
        Self { projects, keys, sessions }
    }

    fn messages(&self) -> usize {
        self.sessions.iter().map(|(_, messages)| messages.len()).sum()
    }

    /// Fails with the first that differs, for all of it is long.
    #[track_caller]
    fn assert_equals(&self, other: &Self) {
        assert_eq!(self.projects, other.projects);
        assert_eq!(self.keys, other.keys);
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
    assert!(messages > 2 * LONG as u64);

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
        let counted = [expected.projects.len(), expected.keys.len(), expected.sessions.len(), expected.messages()];
        assert_eq!(source[1..5], counted.map(commas));
        sums.push(source[5].clone());
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
async fn busy_store() -> (Database, Contents) {
    let database = Database::new(Sqlite).await;
    let keeper = database.keeper().await;
    let scope = Scope::project(ProjectId::DEFAULT);
    for (sessions, messages) in [(600, 5), (1, 12_000), (600, 5)] {
        for _ in 0..sessions {
            let user = format!("user {}", keeper.ctx.random::<1>()[0]);
            let bucket = scope.bucket(Some(&user), None, [0; 2]);
            let now = keeper.ctx.now();
            let new = chatstore_core::sessions::NewSession {
                session_id: keeper.ctx.new_session_id(now, bucket),
                user_id: Some(user),
                session_name: String::new(),
                is_favorite: false,
                metadata: chatstore_core::json::RawJson::empty_object(),
                external_id: None,
                created_at: now,
            };
            let session = new.into_session(ProjectId::DEFAULT);
            let message = |seq| {
                let new = keeper.message(&session, &format!("message {seq}"));
                new.into_message(ProjectId::DEFAULT, session.session_id, seq, now)
            };
            let messages = (1..=messages).map(message).collect();
            let archived = ArchivedSession { identity: ArchiveIdentity::SessionId, session, messages };
            keeper.store.import_session(&scope, archived).await.unwrap();
        }
    }
    keeper.store.close().await;
    let contents = Contents::of(&database).await;
    (database, contents)
}
