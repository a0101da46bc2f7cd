//! What the PostgreSQL engine promises of claims beyond the contract: they share commits with other appends, replicas
//! never wait for each other in a circle, and nobody waits long.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chatstore_core::api_keys::{ApiKey, ApiKeyStore as _, KeyScopes, PresentedKey};
use chatstore_core::clock::Ctx;
use chatstore_core::conformance::join_all;
use chatstore_core::idempotency::{Answered, Claim, ClaimId, IdempotencyStore as _, Recognition};
use chatstore_core::ids::{Bucket, ProjectId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::limits::{IN_FLIGHT_WAIT_MS, PURGE_RECORDS_BATCH};
use chatstore_core::messages::{Message, MessageStore as _, NewMessage};
use chatstore_core::sessions::{NewSession, Session, SessionStore as _};
use chatstore_core::store::{Scope, Store as _, StoreError, StoreStats};
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{AppendForm, PostgresOptions, PostgresStore};
use tokio_postgres::Client;

use support::await_waiting;

/// A claim counts for this long.
const LIFE_US: i64 = 60_000_000;
/// What an answer may take beyond its deadline on a busy machine. With that, less than an operation takes that waits for
/// as long as it may.
const SLACK: Duration = Duration::from_secs(5);

type Appended = Result<Answered<Vec<Message>>, StoreError>;

/// Stores on one database, and the clock of the test.
struct Engine {
    stores: Vec<Arc<PostgresStore>>,
    database: TestDatabase,
    ctx: Ctx,
    scope: Scope,
}

impl Engine {
    /// Replicas, one for each form.
    async fn new(forms: &[AppendForm]) -> Self {
        Self::with(forms, true).await
    }

    async fn with(forms: &[AppendForm], prepared_statements: bool) -> Self {
        let database = TestDatabase::create().await;
        let mut stores = Vec::new();
        for form in forms {
            let mut options = PostgresOptions::new(database.url());
            (options.connections_max, options.append_form) = (6, *form);
            (options.acquire_timeout, options.statement_timeout) = (Duration::from_secs(30), Duration::from_secs(10));
            options.prepared_statements = prepared_statements;
            stores.push(Arc::new(PostgresStore::open(&options).await.expect("a fresh database can be opened")));
        }
        Self { stores, database, ctx: Ctx::system(), scope: Scope::project(ProjectId::DEFAULT) }
    }

    async fn outsider(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.database.owner_url(), tokio_postgres::NoTls).await.expect("it answers");
        tokio::spawn(connection);
        client
    }

    fn new_session(&self, bucket: Bucket) -> NewSession {
        let created_at = self.ctx.now();
        NewSession {
            session_id: self.ctx.new_session_id(created_at, bucket),
            user_id: None,
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at,
        }
    }

    async fn session(&self) -> SessionId {
        let new = self.new_session(self.scope.bucket(None, None, self.ctx.random()));
        let created = self.stores[0].create_session(&self.scope, new, Vec::new(), None).await;
        created.expect("a session can be created").value.session_id
    }

    fn claim(&self, key: &str, bucket: Option<Bucket>) -> Claim {
        let (claim_id, now) = (ClaimId::of(&[key.as_bytes()]), self.ctx.now());
        Claim {
            project_id: self.scope.project_id,
            claim_id,
            bucket: bucket.unwrap_or(claim_id.bucket()),
            fingerprint: [7; 32],
            recognition: Recognition::Key,
            now,
            expires_at: now.plus_micros(LIFE_US),
        }
    }

    fn new_message(&self, session_id: SessionId) -> NewMessage {
        NewMessage::text(self.ctx.new_message_id(self.ctx.now(), session_id), "user", "some words")
    }

    async fn say(&self, store: &PostgresStore, session_id: SessionId) -> Appended {
        store.append_messages(&self.scope, session_id, vec![self.new_message(session_id)], self.ctx.now(), None).await
    }

    /// Appends two messages under a claim.
    async fn send(&self, store: &PostgresStore, session_id: SessionId, claim: &Claim) -> Appended {
        let new = vec![self.new_message(session_id), self.new_message(session_id)];
        store.append_messages(&self.scope, session_id, new, claim.now, Some(claim)).await
    }

    /// The same with a key.
    async fn say_once(&self, store: &PostgresStore, session_id: SessionId, key: &str) -> Appended {
        self.send(store, session_id, &self.claim(key, Some(session_id.bucket()))).await
    }

    /// Creates a session under a key.
    async fn create_once(&self, store: &PostgresStore, key: &str) -> Result<Answered<Session>, StoreError> {
        let claim = self.claim(key, None);
        let new = NewSession { created_at: claim.now, ..self.new_session(claim.bucket) };
        let messages = vec![self.new_message(new.session_id)];
        store.create_session(&self.scope, new, messages, Some(&claim)).await
    }
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect("it can be counted").get(0)
}

async fn begin(client: &Client, sql: &str) {
    client.batch_execute(&format!("begin; {sql}")).await.expect("nobody is in the way");
}

/// Records a claim of something.
fn insert_record(claim: &Claim) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!(
        "insert into idempotency_records values ({}, '{}', '\\x{}', 0, '\\x{}', 'a target', '', 0, {}, {})",
        claim.bucket.bits().cast_signed(),
        claim.project_id,
        hex(claim.claim_id.as_bytes()),
        hex(&claim.fingerprint),
        claim.now.as_micros(),
        claim.expires_at.as_micros()
    )
}

/// How many deadlocks the server saw, once it has counted them: it does so when a connection ends.
async fn deadlocks(engine: &Engine, client: &Client) -> i64 {
    for store in &engine.stores {
        store.close().await;
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let left = "select count(*) from pg_stat_activity
        where application_name = 'chatstore' and datname = current_database()";
    while count(client, left).await > 0 {
        assert!(Instant::now() < deadline, "connections stay open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    count(client, "select deadlocks from pg_stat_database where datname = current_database()").await
}

/// Waits until the store has counted so many appends.
async fn await_appends(store: &PostgresStore, appends: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.stats().appends < appends {
        assert!(Instant::now() < deadline, "fewer than {appends} appends are stored");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends until somebody who holds what it needs is finished.
async fn insist<T>(mut send: impl AsyncFnMut() -> Result<Answered<T>, StoreError>) -> Answered<T> {
    loop {
        match send().await {
            Err(StoreError::InFlight) => {}
            answer => return answer.expect("nothing is wrong"),
        }
    }
}

/// That one of several answers is the first, and the others its replays.
fn assert_once<T: PartialEq + std::fmt::Debug>(mut answers: Vec<Answered<T>>) -> T {
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay).count(), 1, "{answers:?}");
    let first = answers.pop().expect("there are several").value;
    assert!(answers.iter().all(|answer| answer.value == first), "{answers:?}");
    first
}

/// Red if a record is no part of the batch's statement, or if an append with a claim goes alone for no reason.
#[tokio::test(flavor = "multi_thread")]
async fn appends_with_claims_share_a_commit() {
    let engine = Engine::new(&[AppendForm::Batched]).await;
    let (store, outsider) = (&engine.stores[0], engine.outsider().await);
    let sessions = join_all((0..8).map(|_| engine.session())).await;
    let before = store.stats();
    // The first two have the lanes, which are held until all others have queued.
    begin(&outsider, "lock table messages in share mode").await;
    let appends = join_all((0..64).map(|n| {
        let (engine, session_id) = (&engine, sessions[n % sessions.len()]);
        async move {
            let bucket = Some(session_id.bucket());
            let claim = match n % 3 {
                0 => return engine.say(store, session_id).await,
                1 => engine.claim(&format!("key {n}"), bucket),
                _ => {
                    Claim { recognition: Recognition::Body { retry: 0, tried: None }, ..engine.claim("a body", bucket) }
                }
            };
            engine.send(store, session_id, &claim).await
        }
    }));
    let (stored, ()) = tokio::join!(appends, async {
        await_waiting(&outsider, 2).await;
        outsider.batch_execute("rollback").await.expect("it is held");
    });
    let after = store.stats();
    assert_eq!(after.appends - before.appends, 64);
    // Those two, and the rest in one batch, or two.
    let commits = after.commits - before.commits;
    assert!(commits <= 4, "{commits} commits");
    // The records say what was stored where.
    let expected: Vec<(String, String, i64)> = stored
        .iter()
        .map(|answer| &answer.as_ref().expect("it is stored").value)
        .enumerate()
        .filter(|(n, _)| n % 3 > 0)
        .map(|(n, messages)| {
            let (first, last) = (messages[0].seq, messages[1].seq);
            let place = if n % 3 == 1 { 0 } else { last };
            (messages[0].session_id.to_string(), format!("{first}-{last}"), place)
        })
        .collect();
    let rows = outsider.query("select target, places, place from idempotency_records", &[]).await.expect("readable");
    let mut recorded: Vec<_> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let mut expected = expected;
    recorded.sort();
    expected.sort();
    assert_eq!(recorded, expected);
    // What comes again is neither stored nor counted.
    let again = engine.say_once(store, sessions[1], "key 1").await;
    assert_eq!(again, Ok(Answered::replay(stored[1].clone().expect("it is stored").value)));
    assert_eq!(store.stats(), StoreStats { ..after });
}

/// Red if two replicas both store what came once, or if they wait for each other in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_do_once_what_comes_to_all_of_them_at_once() {
    const ROUNDS: usize = 60;
    let engine = Engine::new(&[AppendForm::Batched, AppendForm::Batched, AppendForm::PerSession]).await;
    let sessions = join_all((0..4).map(|_| engine.session())).await;
    for round in 0..ROUNDS {
        // Several sessions a batch, each in another order at each replica.
        let keys = (0..6).map(|n| {
            let (engine, session_id) = (&engine, sessions[(round + n) % sessions.len()]);
            let key = format!("key {round} {n}");
            async move {
                let key = &key;
                let sent = engine.stores.iter().chain(&engine.stores);
                let sent = sent.map(|store| insist(async || engine.say_once(store, session_id, key).await));
                assert_once(join_all(sent).await);
            }
        });
        let others = (0..6).map(|n| {
            let (engine, session_id) = (&engine, sessions[(round * 2 + n) % sessions.len()]);
            async move { drop(engine.say(&engine.stores[n % engine.stores.len()], session_id).await.expect("stored")) }
        });
        let creations = async {
            let key = format!("session {round}");
            let sent = engine.stores.iter().map(|store| insist(async || engine.create_once(store, &key).await));
            assert_once(join_all(sent).await);
        };
        tokio::join!(join_all(keys), join_all(others), creations);
    }
    let client = engine.outsider().await;
    let appended = "select count(*) from messages m join sessions s using (bucket, session_id) where s.last_seq > 1";
    assert_eq!(count(&client, appended).await, (ROUNDS * (6 * 2 + 6)) as i64);
    assert_eq!(count(&client, "select count(*) from sessions").await, (sessions.len() + ROUNDS) as i64);
    assert_eq!(count(&client, "select count(*) from idempotency_records").await, (ROUNDS * 7) as i64);
    assert_eq!(deadlocks(&engine, &client).await, 0);
}

/// Red if who has a claim waits longer than is said, or stores something before or after its answer.
async fn in_flight(form: AppendForm, prepared_statements: bool) {
    let engine = Engine::with(&[form], prepared_statements).await;
    let (store, outsider, session_id) = (&engine.stores[0], engine.outsider().await, engine.session().await);
    let done = engine.say_once(store, session_id, "done").await.expect("nobody is in the way");
    begin(&outsider, "select 1 from sessions for update").await;
    // What is recorded is answered all the same.
    assert_eq!(engine.say_once(store, session_id, "done").await, Ok(Answered::replay(done.value)));
    let started = Instant::now();
    // So many that it would be seen if each waited by itself, be it only for a moment.
    let keys: Vec<String> = (0..16).map(|n| format!("key {n}")).collect();
    let refused = join_all(keys.iter().map(|key| engine.say_once(store, session_id, key))).await;
    assert!(refused.iter().all(|answer| *answer == Err(StoreError::InFlight)), "{refused:?}");
    let wait = Duration::from_millis(IN_FLIGHT_WAIT_MS);
    let took = started.elapsed();
    assert!(wait.mul_f32(0.9) < took && took < wait + SLACK, "answered after {took:?}");
    outsider.batch_execute("rollback").await.expect("it is held");
    assert_eq!(count(&outsider, "select count(*) from messages").await, 2);
    assert_eq!(count(&outsider, "select count(*) from idempotency_records").await, 1);
    for key in &keys {
        assert!(!engine.say_once(store, session_id, key).await.expect("nobody is in the way").is_replay);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_with_a_claim_does_not_wait_long_for_its_session() {
    in_flight(AppendForm::Batched, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_with_a_claim_does_not_wait_long_for_its_session_behind_a_pooler() {
    in_flight(AppendForm::Batched, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_with_a_claim_does_not_wait_long_for_its_session_on_a_sharded_database() {
    in_flight(AppendForm::PerSession, true).await;
}

/// Red if what is known by its body, and no retry, is refused where the same without a claim would wait.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_is_always_meant_waits_for_its_session_like_any() {
    let engine = Engine::new(&[AppendForm::Batched]).await;
    let (store, outsider, session_id) = (&engine.stores[0], engine.outsider().await, engine.session().await);
    begin(&outsider, "select 1 from sessions for update").await;
    let claim = engine.claim("a body", Some(session_id.bucket()));
    let claim = Claim { recognition: Recognition::Body { retry: 0, tried: None }, ..claim };
    let (stored, ()) = tokio::join!(engine.send(store, session_id, &claim), async {
        tokio::time::sleep(Duration::from_millis(IN_FLIGHT_WAIT_MS + 500)).await;
        outsider.batch_execute("rollback").await.expect("it is held");
    });
    assert!(!stored.expect("it is stored in the end").is_replay);
}

/// Red if a key that another replica is at work for costs the others of its batch their shared commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_stands_in_the_way_of_a_batch_costs_its_neighbours_nothing() {
    let engine = Engine::new(&[AppendForm::Batched]).await;
    let (store, outsider) = (&engine.stores[0], engine.outsider().await);
    let sessions = join_all((0..20).map(|_| engine.session())).await;
    let claim = engine.claim("k", Some(sessions[2].bucket()));
    begin(&outsider, &insert_record(&Claim { fingerprint: [1; 32], ..claim.clone() })).await;
    let before = store.stats();
    // The first two have the lanes, which are held until the others have queued: they are the next batch.
    let holder = engine.outsider().await;
    begin(&holder, "lock table messages in share mode").await;
    let appends = join_all(sessions.iter().enumerate().map(|(n, session_id)| {
        let (engine, claim) = (&engine, &claim);
        async move {
            match n {
                2 => engine.send(store, *session_id, claim).await,
                _ => engine.say(store, *session_id).await,
            }
        }
    }));
    let (answers, ()) = tokio::join!(appends, async {
        await_waiting(&outsider, 2).await;
        holder.batch_execute("rollback").await.expect("it is held");
        await_appends(store, before.appends + 2).await;
        await_waiting(&outsider, 1).await;
        outsider.batch_execute("commit").await.expect("it is held");
    });
    for (n, answer) in answers.into_iter().enumerate() {
        match n {
            2 => assert_eq!(answer, Err(StoreError::KeyReused)),
            _ => drop(answer.expect("nobody is in the way")),
        }
    }
    let commits = store.stats().commits - before.commits;
    assert_eq!(commits, 3);
}

/// Red if a creation does not wait for another of its key, or waits longer than is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_creation_waits_for_another_with_its_key_but_not_long() {
    let engine = Engine::new(&[AppendForm::Batched]).await;
    let (store, outsider) = (&engine.stores[0], engine.outsider().await);
    // The other one has written its record, and is not finished.
    let record = |key: &str| insert_record(&engine.claim(key, None));
    begin(&outsider, &format!("{}; {}", record("s"), record("k"))).await;
    let started = Instant::now();
    let presented = PresentedKey::generate(&engine.ctx);
    let key = ApiKey::new(&presented, ProjectId::DEFAULT, "a key", KeyScopes::all(), engine.ctx.now());
    let claim = engine.claim("k", None);
    let (session, key) = tokio::join!(engine.create_once(store, "s"), store.create_api_key(key, Some(&claim)));
    assert_eq!((session.err(), key.err()), (Some(StoreError::InFlight), Some(StoreError::InFlight)));
    let (wait, took) = (Duration::from_millis(IN_FLIGHT_WAIT_MS), started.elapsed());
    assert!(wait.mul_f32(0.9) < took && took < wait + SLACK, "answered after {took:?}");
    assert_eq!(count(&outsider, "select count(*) from sessions").await, 0);
    // It is undone while somebody waits.
    let (created, ()) = tokio::join!(engine.create_once(store, "s"), async {
        await_waiting(&outsider, 1).await;
        outsider.batch_execute("rollback").await.expect("it is held");
    });
    let created = created.expect("nobody is in the way any more");
    assert!(!created.is_replay);
    assert_eq!(engine.create_once(store, "s").await, Ok(Answered::replay(created.value)));
    assert_eq!(count(&outsider, "select count(*) from sessions").await, 1);
}

/// Red if a purge waits for a request, takes what counts, or does not get on beside another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_share_the_work_and_wait_for_nobody() {
    let engine = Engine::new(&[AppendForm::Batched, AppendForm::Batched]).await;
    let (store, outsider, session_id) = (&engine.stores[0], engine.outsider().await, engine.session().await);
    engine.say_once(store, session_id, "held").await.expect("nobody is in the way");
    engine.say_once(store, session_id, "counts").await.expect("nobody is in the way");
    let many = i64::from(PURGE_RECORDS_BATCH) * 3 + 10;
    let fill = format!(
        "insert into idempotency_records select bucket, project_id, sha256(n::text::bytea), n, fingerprint, target, places,
            0, 0, n from (select * from idempotency_records limit 1) r, generate_series(1, {many}) n;
        update idempotency_records set expires_at = 1 where places = '1-2' and place = 0"
    );
    outsider.batch_execute(&fill).await.expect("the owner may fill it");
    let other = engine.outsider().await;
    begin(&other, "select 1 from idempotency_records where place = 0 for update").await;
    let now = engine.ctx.now();
    let purge = |store: Arc<PostgresStore>| async move {
        while store.purge_idempotency_records(now).await.expect("it waits for nobody") {}
    };
    tokio::join!(purge(engine.stores[0].clone()), purge(engine.stores[1].clone()));
    let left = "select count(*) from idempotency_records";
    // A purge that saw nothing but what the other one had may have ended first.
    tokio::join!(purge(engine.stores[0].clone()));
    assert_eq!(count(&outsider, left).await, 2, "the one that is held, and the one that counts");
    other.batch_execute("rollback").await.expect("it is held");
    // One that has expired counts no more, purged or not.
    assert!(!engine.say_once(store, session_id, "held").await.expect("nobody is in the way").is_replay);
    assert!(engine.say_once(store, session_id, "counts").await.expect("nobody is in the way").is_replay);
    assert_eq!(store.purge_idempotency_records(now).await, Ok(false));
    assert_eq!(count(&outsider, left).await, 2);
}
