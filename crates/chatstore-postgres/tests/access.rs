//! What the PostgreSQL engine promises of projects and keys beyond the contract: what each session holds is counted
//! right in every form of writing and after the migration, and nothing comes into a project that is being deleted.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;

use chatstore_core::api_keys::{ApiKey, ApiKeyStore as _, Authority, KeyDigest, KeyScopes, PresentedKey};
use chatstore_core::archive::{ArchiveIdentity, ArchiveStore as _, ArchivedSession};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::conformance::join_all;
use chatstore_core::embeddings::{NewEmbedding, Vector};
use chatstore_core::ids::ProjectId;
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessagePatch, MessageStore as _, NewMessage};
use chatstore_core::projects::{Project, ProjectStore as _, TokenSecret};
use chatstore_core::sessions::{NewSession, Session, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, Quotas, Scope, Store as _, StoreError};
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{AppendForm, PostgresOptions, PostgresStore, migrate};
use tokio_postgres::{Client, NoTls};

/// Takes the third step of the schema back.
const UNDO_ACCESS: &str = "delete from schema_migrations where version > 2; drop table audit_events, idempotency_records; \
    drop index api_keys_created, api_keys_project; alter table sessions drop column stored_bytes; \
    alter table api_keys drop column previous_digest, drop column previous_expires_at, drop column settings, \
        drop column updated_at; \
    alter table projects drop column settings, drop column token_secret, drop column previous_token_secret, \
        drop column previous_token_secret_expires_at, drop column updated_at, drop column deleted_at, \
        drop column erased_at";
/// Counting has all the time it needs.
const REFUSE_TIMEOUTS: &str = "create function refuse_timeouts() returns trigger language plpgsql as $$ begin
        if current_setting('statement_timeout') <> '0' then raise 'it must not end'; end if;
        return new;
    end $$;
    create trigger refuse_timeouts before update on sessions for each row execute function refuse_timeouts()";
/// After that, nothing can come into a project that was deleted.
const LATE_US: i64 = 2 * 3_600 * 1_000_000;
/// Sessions that say something else of their messages than a look at these.
const WRONG_SESSIONS: &str = "select count(*) from sessions s where (s.message_count, s.stored_bytes) <> (
    select count(*), coalesce(sum(octet_length(m.content) + coalesce(octet_length(m.payload), 0)
        + octet_length(m.metadata) + coalesce(octet_length(m.context), 0)), 0)
    from messages m where m.bucket = s.bucket and m.session_id = s.session_id and m.deleted_at is null
        and s.deleted_at is null)";

/// A store, its database, and a clock and dice that repeat.
struct Engine {
    store: Arc<PostgresStore>,
    database: TestDatabase,
    ctx: Ctx,
}

async fn open(database: &TestDatabase, form: AppendForm) -> Arc<PostgresStore> {
    let mut options = PostgresOptions::new(database.url());
    options.append_form = form;
    Arc::new(PostgresStore::open(&options).await.unwrap())
}

impl Engine {
    async fn new(form: AppendForm) -> Self {
        let database = TestDatabase::create().await;
        let store = open(&database, form).await;
        let ctx = Ctx::fixed(Timestamp::parse("2026-01-15T12:00:00Z").unwrap(), 1_000, 7);
        Self { store, database, ctx }
    }

    /// A connection of the role that owns the tables.
    async fn owner(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.database.owner_url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A number below `n`.
    fn dice(&self, n: usize) -> usize {
        usize::from(u16::from_be_bytes(self.ctx.random())) % n
    }

    async fn project(&self, name: &str) -> Scope {
        let now = self.ctx.now();
        let project = Project::new(self.ctx.new_project_id(now), name, now);
        Scope::project(self.store.create_project(project, None).await.unwrap().value.project_id)
    }

    fn new_session(&self, scope: &Scope) -> NewSession {
        let created_at = self.ctx.now();
        NewSession {
            session_id: self.ctx.new_session_id(created_at, scope.bucket(None, None, self.ctx.random())),
            user_id: None,
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::parse(r#"{"topic":"tea"}"#.to_owned()).unwrap(),
            external_id: None,
            created_at,
        }
    }

    async fn session(&self, scope: &Scope) -> Session {
        self.store.create_session(scope, self.new_session(scope), Vec::new(), None).await.unwrap().value
    }

    /// A message with something in every field that counts, or in few.
    fn new_message(&self, session: &Session) -> NewMessage {
        let json = |n: usize| (n > 0).then(|| RawJson::parse(format!("\"{}\"", "é".repeat(n))).unwrap());
        let message_id = self.ctx.new_message_id(self.ctx.now(), session.session_id);
        NewMessage {
            payload: json(self.dice(3)),
            context: json(self.dice(30)),
            ..NewMessage::text(message_id, "user", "ü".repeat(self.dice(40)))
        }
    }

    async fn append(&self, scope: &Scope, session: &Session, new: Vec<NewMessage>) -> Result<Vec<Message>, StoreError> {
        let answered = self.store.append_messages(scope, session.session_id, new, self.ctx.now(), None).await;
        answered.map(|answered| answered.value)
    }

    /// A conversation of which some messages are deleted, from somewhere else.
    fn archived(&self, scope: &Scope) -> ArchivedSession {
        let session = self.new_session(scope).into_session(scope.project_id);
        let messages = (1..=6).map(|seq| {
            let new = self.new_message(&session);
            let message = new.into_message(scope.project_id, session.session_id, seq, session.created_at);
            Message { deleted_at: (seq % 3 == 0).then_some(session.created_at), ..message }
        });
        let messages = messages.collect();
        let identity = ArchiveIdentity::SessionId;
        ArchivedSession { identity, session, messages, embeddings: Vec::new(), embed: false }
    }
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Changes of every kind, many at once, then a look at every message.
async fn bytes_are_counted(form: AppendForm) {
    let engine = Engine::new(form).await;
    let (store, scope) = (&engine.store, engine.project("a").await);
    let mut sessions = join_all((0..6).map(|_| engine.session(&scope))).await;
    let mut messages: Vec<Message> = Vec::new();
    for round in 0..30 {
        let appends = (0..8).map(|_| {
            let session = &sessions[engine.dice(sessions.len())];
            let mut new: Vec<_> = (0..=engine.dice(3)).map(|_| engine.new_message(session)).collect();
            if engine.dice(4) == 0 {
                let vector = Vector::new(vec![1.0, 2.0]).unwrap();
                new[0].embedding = Some(NewEmbedding { model: "m".to_owned(), vector });
            }
            engine.append(&scope, session, new)
        });
        let appends: Vec<_> = appends.collect();
        messages.extend(join_all(appends).await.into_iter().flat_map(Result::unwrap));
        let any = ExpectedVersion::Any;
        for _ in 0..4 {
            let message_id = messages[engine.dice(messages.len())].message_id;
            let content = Some("ß".repeat(engine.dice(50)));
            let context = (engine.dice(2) == 0).then_some(None);
            let patch = MessagePatch { content, context, ..MessagePatch::default() };
            store.update_message(&scope, message_id, patch, any.clone(), engine.ctx.now()).await.unwrap();
        }
        let gone = messages.swap_remove(engine.dice(messages.len())).message_id;
        store.delete_message(&scope, gone, any.clone(), engine.ctx.now()).await.unwrap();
        let mut archived = engine.archived(&scope);
        let later = archived.messages.split_off(engine.dice(6));
        store.import_session(&scope, archived.clone()).await.unwrap();
        store.import_session(&scope, ArchivedSession { messages: later, ..archived.clone() }).await.unwrap();
        sessions.push(store.get_session(&scope, archived.session.session_id).await.unwrap().unwrap());
        if round % 3 == 0 {
            let session_id = sessions.swap_remove(engine.dice(sessions.len())).session_id;
            store.delete_session(&scope, session_id, any, engine.ctx.now()).await.unwrap();
            messages.retain(|message| message.session_id != session_id);
        }
    }
    let owner = engine.owner().await;
    assert_eq!(count(&owner, WRONG_SESSIONS).await, 0);
    let usage = store.get_project_usage(scope.project_id).await.unwrap();
    assert_eq!(usage.sessions, sessions.len() as u64);
    assert!(usage.messages > 100 && usage.bytes > 1_000, "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_counted_in_a_random_mix_of_changes() {
    bytes_are_counted(AppendForm::Batched).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_counted_in_a_random_mix_of_changes_of_a_sharded_database() {
    bytes_are_counted(AppendForm::PerSession).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_counts_what_is_there() {
    let engine = Engine::new(AppendForm::Batched).await;
    let (store, scope) = (&engine.store, engine.project("a").await);
    let default = Scope::project(ProjectId::DEFAULT);
    let key =
        ApiKey::new(&PresentedKey::generate(&engine.ctx), scope.project_id, "k", KeyScopes::all(), engine.ctx.now());
    store.create_api_key(key.clone(), None).await.unwrap();
    for scope in [&scope, &default] {
        for _ in 0..3 {
            store.import_session(scope, engine.archived(scope)).await.unwrap();
        }
        let (empty, deleted) = (engine.session(scope).await, engine.session(scope).await);
        assert_eq!(empty.message_count, 0);
        engine.append(scope, &deleted, vec![engine.new_message(&deleted)]).await.unwrap();
        let any = ExpectedVersion::Any;
        store.delete_session(scope, deleted.session_id, any, engine.ctx.now()).await.unwrap();
    }
    let before = [scope.project_id, default.project_id].map(|id| (id, store.get_project_usage(id)));
    let before = join_all(before.map(async |(id, usage)| (id, usage.await.unwrap()))).await;
    let project = store.get_project(scope.project_id).await.unwrap();
    let owner = engine.owner().await;
    owner.batch_execute(UNDO_ACCESS).await.unwrap();
    owner.batch_execute(REFUSE_TIMEOUTS).await.unwrap();
    assert_eq!(migrate(&engine.database.owner_url(), &engine.ctx).await.unwrap(), ["access", "idempotency"]);
    owner.batch_execute("drop function refuse_timeouts cascade").await.unwrap();
    let reopened = PostgresStore::open(&PostgresOptions::new(engine.database.owner_url())).await.unwrap();
    for (project_id, usage) in before {
        assert!(usage.sessions == 4 && usage.messages == 12 && usage.bytes > 0, "{usage:?}");
        assert_eq!(reopened.get_project_usage(project_id).await, Ok(usage));
    }
    assert_eq!(count(&owner, WRONG_SESSIONS).await, 0);
    assert_eq!(reopened.get_project(scope.project_id).await.unwrap(), project);
    let (stored, _) = reopened.get_api_key(&key.key_id).await.unwrap().unwrap();
    assert_eq!(format!("{stored:?}"), format!("{key:?}"));
}

/// What `call` says when it gets a connection: others wait for half of them.
async fn when_free<T>(mut call: impl AsyncFnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    loop {
        match call().await {
            Err(StoreError::Busy) => {}
            result => return result,
        }
    }
}

/// Red if a key does not hold its project, or if erasing ends before the last session is committed.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_project_that_is_deleted_while_it_is_used() {
    let engine = Arc::new(Engine::new(AppendForm::Batched).await);
    let owner = engine.owner().await;
    for round in 0..10 {
        let scope = engine.project(&format!("project {round}")).await;
        let creations = join_all((0..12).map(|n| {
            let (engine, scope) = (&engine, &scope);
            async move {
                let mut made = 0;
                loop {
                    let now = engine.ctx.now();
                    let done = when_free(async || match n % 3 {
                        0 => {
                            let presented = PresentedKey::generate(&engine.ctx);
                            let key = ApiKey::new(&presented, scope.project_id, "k", KeyScopes::all(), now);
                            engine.store.create_api_key(key, None).await.map(drop)
                        }
                        1 => engine
                            .store
                            .create_session(scope, engine.new_session(scope), Vec::new(), None)
                            .await
                            .map(drop),
                        _ => engine.store.import_session(scope, engine.archived(scope)).await.map(drop),
                    });
                    match done.await {
                        Ok(()) => made += 1,
                        Err(StoreError::NotFound) => return made,
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
        }));
        let deletion = async {
            let new = engine.new_session(&scope);
            when_free(async || engine.store.create_session(&scope, new.clone(), Vec::new(), None).await).await.unwrap();
            when_free(async || engine.store.delete_project(scope.project_id, engine.ctx.now()).await).await.unwrap();
            while when_free(async || engine.store.erase_deleted_projects(engine.ctx.now()).await).await.unwrap() {}
        };
        let (made, ()) = tokio::join!(creations, deletion);
        while engine.store.erase_deleted_projects(engine.ctx.now()).await.unwrap() {}
        assert!(made.iter().sum::<i32>() > 0, "{made:?}");
        let live = "select (select count(*) from api_keys k join projects p using (project_id)
                where p.deleted_at is not null and k.revoked_at is null)
            + (select count(*) from sessions s join projects p using (project_id)
                where p.deleted_at is not null and s.deleted_at is null)";
        assert_eq!(count(&owner, live).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_erase_each_session_once() {
    let engine = Engine::new(AppendForm::Batched).await;
    let other = open(&engine.database, AppendForm::Batched).await;
    let (scope, kept) = (engine.project("doomed").await, engine.project("kept").await);
    for scope in [&scope, &kept] {
        for _ in 0..250 {
            let session = engine.session(scope).await;
            engine.append(scope, &session, vec![engine.new_message(&session)]).await.unwrap();
        }
    }
    engine.store.delete_project(scope.project_id, engine.ctx.now()).await.unwrap();
    let erasers = [&engine.store, &other, &engine.store, &other].map(async |store| {
        let mut calls = 0;
        while store.erase_deleted_projects(engine.ctx.now()).await.unwrap() {
            calls += 1;
        }
        calls
    });
    let calls = join_all(erasers).await;
    assert!(calls.iter().sum::<i32>() >= 3, "{calls:?}");
    let owner = engine.owner().await;
    // A session is deleted once: its version tells.
    let once = "select count(*) from sessions where deleted_at is not null and version = 2 and session_name = ''";
    assert_eq!(count(&owner, once).await, 250);
    assert_eq!(count(&owner, "select count(*) from sessions where deleted_at is null").await, 250);
    assert_eq!(count(&owner, "select count(*) from session_metadata").await, 250);
    assert_eq!(engine.store.get_project_usage(kept.project_id).await.unwrap().sessions, 250);
}

/// Red if creations hold their projects, or if a look that finds nothing is the last one too early.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_committed_after_its_project_was_deleted_is_erased() {
    let engine = Engine::new(AppendForm::Batched).await;
    let (scope, next) = (engine.project("doomed").await, engine.project("next").await);
    let session = engine.session(&scope).await;
    engine.session(&next).await;
    let late = engine.owner().await;
    // What a creation does that began before.
    late.batch_execute("begin").await.unwrap();
    let sql = "insert into sessions select (jsonb_populate_record(s, jsonb_build_object('session_id', $1::text))).*
        from sessions s where s.session_id = $2";
    let id = engine.ctx.new_session_id(engine.ctx.now(), session.session_id.bucket());
    late.execute(sql, &[&id.to_string(), &session.session_id.uuid()]).await.unwrap();
    for project_id in [scope.project_id, next.project_id] {
        engine.store.delete_project(project_id, engine.ctx.now()).await.unwrap();
    }
    let erase = async |now: Timestamp| {
        let mut calls = 0;
        while engine.store.erase_deleted_projects(now).await.unwrap() {
            calls += 1;
        }
        calls
    };
    assert_eq!(erase(engine.ctx.now()).await, 2, "one call for each, and none again and again for the first");
    late.batch_execute("commit").await.unwrap();
    let live = "select count(*) from sessions where deleted_at is null";
    let erased = "select count(*) from projects where erased_at is not null";
    assert_eq!((count(&late, live).await, count(&late, erased).await), (1, 0));
    assert_eq!(erase(engine.ctx.now()).await, 1);
    assert_eq!((count(&late, live).await, count(&late, erased).await), (0, 0));
    assert_eq!(erase(engine.ctx.now().plus_micros(LATE_US)).await, 2);
    assert_eq!((count(&late, live).await, count(&late, erased).await), (0, 2));
    assert_eq!(erase(engine.ctx.now().plus_micros(LATE_US)).await, 0);
}

/// Red if a creation takes a lock on its project, which all sessions of a tenant would write.
#[tokio::test(flavor = "multi_thread")]
async fn a_creation_does_not_wait_for_its_project() {
    let engine = Engine::new(AppendForm::Batched).await;
    let scope = engine.project("a").await;
    let owner = engine.owner().await;
    owner.batch_execute("begin; select 1 from projects for update").await.unwrap();
    engine.session(&scope).await;
    engine.store.import_session(&scope, engine.archived(&scope)).await.unwrap();
    owner.batch_execute("rollback").await.unwrap();
}

/// Red if a change writes what it does not concern: an older binary would take away what a newer one said.
#[tokio::test(flavor = "multi_thread")]
async fn rotating_and_revoking_leave_what_a_newer_version_wrote() {
    let engine = Engine::new(AppendForm::Batched).await;
    let (store, scope, now) = (&engine.store, engine.project("a").await, engine.ctx.now());
    let key = ApiKey::new(&PresentedKey::generate(&engine.ctx), scope.project_id, "k", KeyScopes::all(), now);
    store.create_api_key(key.clone(), None).await.unwrap();
    let owner = engine.owner().await;
    let newer = "update api_keys set settings = '{\"newer\":1}', scopes = 'read newer';
        update projects set settings = '{\"newer\":1}' where name = 'a'";
    owner.batch_execute(newer).await.unwrap();
    let (host, secret) = (Authority::host(), TokenSecret::generate(&engine.ctx));
    store.rotate_api_key(&host, &key.key_id, KeyDigest::of("x"), now.plus_micros(9), now, None).await.unwrap();
    store.revoke_api_key(&host, &key.key_id, now).await.unwrap();
    store.rotate_token_secret(scope.project_id, Some(secret), now, now, None).await.unwrap();
    let kept = "select count(*) from api_keys k join projects p using (project_id)
        where k.settings = p.settings and k.settings like '%newer%' and k.scopes = 'read newer'
            and k.previous_digest is not null and k.revoked_at is not null and p.token_secret is not null";
    assert_eq!(count(&owner, kept).await, 1);
}

/// Red if a batch asks for the quota of another session, or leaves out more than the ones past theirs.
#[tokio::test(flavor = "multi_thread")]
async fn appends_with_quotas_share_commits() {
    let engine = Engine::new(AppendForm::Batched).await;
    let free = engine.project("a").await;
    let scope = Scope { quotas: Quotas { messages_per_session: Some(8), ..Quotas::default() }, ..free.clone() };
    let sessions = join_all((0..8).map(|_| engine.session(&free))).await;
    let owner = engine.owner().await;
    let before = engine.store.stats();
    owner.batch_execute("begin; select 1 from sessions for update").await.unwrap();
    let appends = (0..80).map(|n| {
        let session = &sessions[n % 8];
        engine.append(&scope, session, vec![engine.new_message(session)])
    });
    let appends: Vec<_> = appends.collect();
    let (stored, ()) = tokio::join!(join_all(appends), async { owner.batch_execute("rollback").await.unwrap() });
    let past = Err(StoreError::QuotaExceeded { quota: "messages_per_session", max: 8 });
    assert_eq!(stored.iter().filter(|stored| stored.is_ok()).count(), 64);
    assert_eq!(stored.iter().filter(|stored| **stored == past).count(), 16);
    // Those that fit go together.
    let session = engine.session(&free).await;
    let between = engine.store.stats();
    owner.batch_execute("begin; select 1 from sessions for update").await.unwrap();
    let appends: Vec<_> = (0..8).map(|_| engine.append(&scope, &session, vec![engine.new_message(&session)])).collect();
    let (stored, ()) = tokio::join!(join_all(appends), async { owner.batch_execute("rollback").await.unwrap() });
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    let after = engine.store.stats();
    assert_eq!(after.appends - before.appends, 72);
    assert!(after.commits - between.commits <= 2, "{} commits", after.commits - between.commits);
    assert_eq!(count(&owner, WRONG_SESSIONS).await, 0);
}
