//! What only SQLite does about projects, usage and quotas: the migration, sums, batches, and what the file keeps.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::path::{Path, PathBuf};

use chatstore_core::api_keys::ApiKeyStore as _;
use chatstore_core::archive::{ArchiveIdentity, ArchiveStore as _, ArchivedSession};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::conformance::join_all;
use chatstore_core::ids::ProjectId;
use chatstore_core::json::RawJson;
use chatstore_core::limits::ERASE_SESSIONS_BATCH;
use chatstore_core::messages::{Message, MessagePatch, MessageStore as _, NewMessage};
use chatstore_core::migrations::Migration;
use chatstore_core::projects::{Project, ProjectPatch, ProjectStore as _, ProjectUsage, TokenSecret};
use chatstore_core::sessions::{NewSession, Session, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, Quotas, Scope, Store as _, StoreError};
use chatstore_sqlite::{SqliteOptions, SqliteStore, migrate};
use rusqlite::{Connection, params};
use tempfile::TempDir;

/// A store, the file it stands in, and a clock and chance that repeat.
struct World {
    store: SqliteStore,
    path: PathBuf,
    ctx: Ctx,
    scope: Scope,
    _folder: TempDir,
}

impl World {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chatstore.db");
        migrate(&path, &Ctx::system()).unwrap();
        Self {
            store: open(&path),
            path,
            ctx: Ctx::fixed(Timestamp::from_micros(1_800_000_000_000_000).unwrap(), 1_000_000, seed),
            scope: Scope::project(ProjectId::DEFAULT),
            _folder: folder,
        }
    }

    /// A number below `end`.
    fn below(&self, end: usize) -> usize {
        usize::from(u16::from_be_bytes(self.ctx.random())) % end
    }

    fn new_session(&self, scope: &Scope, user_id: Option<&str>) -> NewSession {
        let created_at = self.ctx.now();
        NewSession {
            session_id: self.ctx.new_session_id(created_at, scope.bucket(user_id, None, self.ctx.random())),
            user_id: user_id.map(str::to_owned),
            session_name: "secret".to_owned(),
            is_favorite: false,
            metadata: json(r#"{"topic":"secret"}"#),
            external_id: None,
            created_at,
        }
    }

    async fn session(&self, scope: &Scope) -> Session {
        self.store.create_session(scope, self.new_session(scope, None), Vec::new(), None).await.unwrap().value
    }

    async fn project(&self, name: &str) -> Project {
        let created_at = self.ctx.now();
        let mut project = Project::new(self.ctx.new_project_id(created_at), name, created_at);
        project.token_secrets = vec![TokenSecret::generate(&self.ctx), TokenSecret::generate(&self.ctx)];
        self.store.create_project(project, None).await.unwrap().value
    }

    fn text(&self) -> String {
        ["", "tea", "Grüße", "\u{1F600} and more", "nul\0byte"][self.below(5)].repeat(self.below(4))
    }

    fn odd_json(&self) -> RawJson {
        json(["{}", r#"{ "é" : 1.50 }"#, r#"{"a":"\u00e9"}"#][self.below(3)])
    }

    /// A message with something or nothing in every field that counts.
    fn new_message(&self, session: &Session) -> NewMessage {
        let message_id = self.ctx.new_message_id(self.ctx.now(), session.session_id);
        NewMessage {
            kind: ["message", "function_call"][self.below(2)].to_owned(),
            payload: (self.below(2) == 0).then(|| self.odd_json()),
            metadata: self.odd_json(),
            context: (self.below(2) == 0).then(|| self.odd_json()),
            ..NewMessage::text(message_id, "user", self.text())
        }
    }

    fn patch(&self, message: &Message) -> MessagePatch {
        let mut patch = MessagePatch { token_count: Some(7), ..MessagePatch::default() };
        match self.below(4) {
            0 if message.kind == "message" => patch.content = Some(self.text()),
            0 => patch.payload = Some(self.odd_json()),
            1 => patch.metadata = Some(self.odd_json()),
            2 => patch.context = Some((self.below(2) == 0).then(|| self.odd_json())),
            _ => patch.role = Some(self.text()),
        }
        patch
    }

    /// Compares what is kept with a count of what is there.
    async fn check_sums(&self, step: &str) {
        let connection = Connection::open(&self.path).unwrap();
        let map = |row: &rusqlite::Row<'_>| {
            let live: bool = row.get(0)?;
            Ok((live, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?, row.get::<_, i64>(4)?))
        };
        let counted = "select s.deleted_at is null, s.message_count, s.stored_bytes, count(m.message_no),
                coalesce(sum(length(cast(m.content as blob)) + length(cast(m.metadata as blob))
                    + coalesce(length(cast(m.payload as blob)), 0) + coalesce(length(cast(m.context as blob)), 0)), 0)
            from sessions s left join messages m
                on m.message_no >> 32 = s.session_no and m.deleted_at is null and s.deleted_at is null
            group by s.session_no";
        let mut usage = ProjectUsage::default();
        for row in connection.prepare(counted).unwrap().query_map((), map).unwrap() {
            let (live, messages, bytes, messages_counted, bytes_counted) = row.unwrap();
            assert_eq!((messages, bytes), (messages_counted, bytes_counted), "{step}");
            usage.sessions += u64::from(live);
            usage.messages += messages as u64;
            usage.bytes += bytes as u64;
        }
        assert_eq!(self.store.get_project_usage(ProjectId::DEFAULT).await, Ok(usage), "{step}");
    }

    async fn import(&self, session: &Session, messages: Vec<Message>) -> Result<(), StoreError> {
        let (session, identity) = (session.clone(), ArchiveIdentity::SessionId);
        let archived = ArchivedSession { identity, session, messages, embeddings: Vec::new(), embed: false };
        self.store.import_session(&self.scope, archived).await.map(drop)
    }

    /// Imports a new conversation, or the next part of one, with a tombstone here and there.
    async fn import_some(&self, known: Option<Session>) -> Session {
        let session = known.unwrap_or_else(|| self.new_session(&self.scope, None).into_session(ProjectId::DEFAULT));
        let now = self.ctx.now();
        let messages = (1..=self.below(4)).map(|n| {
            let seq = session.last_seq + n as i64;
            let message = self.new_message(&session).into_message(ProjectId::DEFAULT, session.session_id, seq, now);
            Message { deleted_at: (self.below(3) == 0).then_some(now), ..message }
        });
        self.import(&session, messages.collect()).await.unwrap();
        session
    }
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(&SqliteOptions::new(path)).unwrap()
}

fn json(text: &str) -> RawJson {
    RawJson::parse(text.to_owned()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_bytes_are_those_of_the_live_messages_after_every_change() {
    let world = World::new(11);
    let (mut sessions, mut messages) = (vec![world.session(&world.scope).await], Vec::new());
    for n in 0..400 {
        let session = sessions[world.below(sessions.len())].clone();
        let at = world.below(messages.len().max(1));
        let (scope, any, now) = (&world.scope, ExpectedVersion::Any, world.ctx.now());
        let step = match world.below(12) {
            0 => {
                sessions.push(world.session(scope).await);
                "create_session"
            }
            1 => {
                sessions.push(world.import_some(None).await);
                "import_session"
            }
            2 => {
                let known = world.store.get_session(scope, session.session_id).await.unwrap();
                let known = world.import_some(known).await;
                sessions.push(known);
                "import_session of a next part"
            }
            3 if sessions.len() > 3 => {
                sessions.retain(|kept| kept.session_id != session.session_id);
                messages.retain(|message: &Message| message.session_id != session.session_id);
                let deleted = world.store.delete_session(scope, session.session_id, any, now).await.unwrap();
                world.import_some(Some(deleted)).await;
                "delete_session, and import_session of a next part"
            }
            4 | 5 if !messages.is_empty() => {
                let message = messages.swap_remove(at);
                world.store.delete_message(scope, message.message_id, any, now).await.unwrap();
                "delete_message"
            }
            6..=8 if !messages.is_empty() => {
                let (message, patch) = (&messages[at], world.patch(&messages[at]));
                world.store.update_message(scope, message.message_id, patch, any, now).await.unwrap();
                "update_message"
            }
            9 => {
                let mut new = vec![world.new_message(&session), world.new_message(&session)];
                new[1].parent_id = Some(new[1].message_id);
                let refused = world.store.append_messages(scope, session.session_id, new, now, None).await;
                assert!(refused.is_err());
                "a refused append_messages"
            }
            _ => {
                let new = (0..world.below(4)).map(|_| world.new_message(&session)).collect();
                messages.extend(
                    world.store.append_messages(scope, session.session_id, new, now, None).await.unwrap().value,
                );
                "append_messages"
            }
        };
        world.check_sums(&format!("step {n}: {step}")).await;
    }
    assert!(world.store.get_project_usage(ProjectId::DEFAULT).await.unwrap().bytes > 1_000, "the mix leaves something");
}

/// A file as a binary of the second schema left it: a session of a deleted and two live messages, one that is empty,
/// and a deleted one that is not erased yet.
fn make_old(path: &Path) {
    let steps = [
        ("base", include_str!("../migrations/0001_base.sql")),
        ("search", include_str!("../migrations/0002_search.sql")),
    ];
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(
            "create table schema_migrations (version integer primary key, name text not null, checksum text not null,
                serves_from integer not null, applied_at integer not null) strict;
            pragma application_id = 0x43485354",
        )
        .unwrap();
    for (version, (name, sql)) in (1..).zip(steps) {
        connection.execute_batch(sql).unwrap();
        let checksum = Migration { version, name, sql, serves_from: version }.checksum();
        let insert = "insert into schema_migrations values (?1, ?2, ?3, ?1, 0)";
        connection.execute(insert, params![version, name, checksum]).unwrap();
    }
    connection
        .execute_batch(
            "insert into installation values (1, zeroblob(32), 0);
            insert into text_index values (1, 1);
            insert into projects values (x'00000000000070008000000000000001', 'default', 5);
            insert into api_keys values ('abcdefghijkl', x'00000000000070008000000000000001', 'old', zeroblob(32),
                'read', null, 6, null, null, null);
            insert into sessions select n, randomblob(16), x'00000000000070008000000000000001', null, '', 0, '{}', null,
                3, case when n = 1 then 2 else 0 end, null, 1, 0, 0, 0, 0, 0, case when n = 3 then 9 end, null
                from (select value as n from json_each('[1, 2, 3]'));
            insert into messages select (n << 32) + seq, randomblob(16), null, 'user', 'message', 'completed', 'Grüße',
                case when seq = 1 then '[\"é\"]' end, '{\"a\":1}', case when seq = 2 then 'null' end, null, null, 1, 0,
                0, case when seq = 3 then 7 end
                from (select 1 as n union select 3), (select value as seq from json_each('[1, 2, 3]'))",
        )
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_second_schema_knows_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chatstore.db");
    make_old(&path);
    assert_eq!(migrate(&path, &Ctx::system()).unwrap(), ["access", "idempotency"]);
    let store = open(&path);
    let usage = store.get_project_usage(ProjectId::DEFAULT).await.unwrap();
    assert_eq!(usage, ProjectUsage { sessions: 2, messages: 2, bytes: (7 + 6 + 7) + (7 + 7 + 4) });
    let connection = Connection::open(&path).unwrap();
    let bytes = "select session_no, stored_bytes from sessions order by session_no";
    let bytes: Vec<(i64, i64)> = connection
        .prepare(bytes)
        .unwrap()
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(bytes, [(1, 38), (2, 0), (3, 0)]);
    let (key, project) = store.get_api_key("abcdefghijkl").await.unwrap().unwrap();
    assert_eq!((key.created_at.as_micros(), key.updated_at.as_micros()), (6, 6));
    assert_eq!(project, Project::new(ProjectId::DEFAULT, "default", Timestamp::from_micros(5).unwrap()));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn erase_deleted_projects_deletes_a_batch_at_a_time() {
    let world = World::new(12);
    let doomed = world.project("doomed").await;
    let scope = Scope::project(doomed.project_id);
    let more = i64::from(ERASE_SESSIONS_BATCH) + 20;
    for _ in 0..more {
        let session = world.session(&scope).await;
        let new = vec![NewMessage { content: "secret".to_owned(), ..world.new_message(&session) }];
        world.store.append_messages(&scope, session.session_id, new, world.ctx.now(), None).await.unwrap();
    }
    let kept = world.session(&world.scope).await;
    let outsider = Connection::open(&world.path).unwrap();
    let count = |sql: &str| outsider.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    let live = || count("select count(*) from sessions where deleted_at is null");
    let erased = || count("select count(*) from projects where erased_at is not null");
    world.store.delete_project(doomed.project_id, world.ctx.now()).await.unwrap();
    assert_eq!((live(), erased()), (more + 1, 0));
    assert_eq!(world.store.erase_deleted_projects(world.ctx.now()).await, Ok(true));
    assert_eq!((live(), erased()), (21, 0));
    assert_eq!(world.store.erase_deleted_projects(world.ctx.now()).await, Ok(true));
    assert_eq!((live(), erased()), (1, 1));
    assert_eq!(world.store.erase_deleted_projects(world.ctx.now()).await, Ok(false));
    assert_eq!(count("select count(*) from session_metadata"), 1, "the other project's");
    assert!(world.store.get_session(&world.scope, kept.session_id).await.unwrap().is_some());
    // What their messages say is erased like that of any deleted session.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while count("select count(*) from messages where content <> ''") > 0 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_row_of_a_deleted_project_keeps_no_name_settings_or_secrets() {
    let world = World::new(13);
    let doomed = world.project("doomed").await;
    let quotas = Some(Quotas { project_bytes: Some(1), ..Quotas::default() });
    let patch = ProjectPatch { quotas, ..ProjectPatch::default() };
    world.store.update_project(doomed.project_id, patch, world.ctx.now()).await.unwrap();
    world.store.delete_project(doomed.project_id, world.ctx.now()).await.unwrap();
    let blank = "select settings = '{}' and token_secret is null and previous_token_secret is null
            and previous_token_secret_expires_at is null and name = char(1) || ?2
        from projects where project_id = ?1";
    let params = params![doomed.project_id.as_bytes(), doomed.project_id.to_string()];
    let outsider = Connection::open(&world.path).unwrap();
    assert_eq!(outsider.query_row(blank, params, |row| row.get(0)), Ok(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_project_takes_no_session_that_nobody_would_erase() {
    let world = World::new(14);
    let doomed = world.project("doomed").await;
    let scope = Scope::project(doomed.project_id);
    world.store.delete_project(doomed.project_id, world.ctx.now()).await.unwrap();
    while world.store.erase_deleted_projects(world.ctx.now()).await.unwrap() {}
    let new = world.new_session(&scope, Some("ada"));
    assert_eq!(world.store.create_session(&scope, new.clone(), Vec::new(), None).await, Err(StoreError::NotFound));
    let archived = ArchivedSession {
        identity: ArchiveIdentity::SessionId,
        session: new.into_session(doomed.project_id),
        messages: Vec::new(),
        embeddings: Vec::new(),
        embed: false,
    };
    assert_eq!(world.store.import_session(&scope, archived).await, Err(StoreError::NotFound));
    assert_eq!(world.store.export_sessions(&scope, None, 10).await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_create_session_never_passes_the_quota() {
    let world = World::new(15);
    let quotas = Quotas { sessions_per_user: Some(5), ..Quotas::default() };
    let scope = Scope { quotas, ..world.scope.clone() };
    let creations =
        (0..40).map(|_| world.store.create_session(&scope, world.new_session(&scope, Some("ada")), Vec::new(), None));
    let created = join_all(creations).await;
    assert_eq!(created.iter().filter(|created| created.is_ok()).count(), 5);
    let refused = Err(StoreError::QuotaExceeded { quota: "sessions_per_user", max: 5 });
    assert_eq!(created.iter().filter(|created| **created == refused).count(), 35);
    world.check_sums("after the quota").await;
}
