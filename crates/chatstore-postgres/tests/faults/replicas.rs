//! Several stores on one database.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chatstore_core::api_keys::{ApiKey, ApiKeyStore as _, Authority, KeyScopes, PresentedKey};
use chatstore_core::clock::Ctx;
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use chatstore_core::messages::{Message, MessageStore as _, NewMessage};
use chatstore_core::store::{Store as _, StoreError};
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{AppendForm, PostgresStore};
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::ledger::Ledger;
use crate::{SCOPE, SLACK, eventually, new_session, open, owner, read_session};

/// Appends of each writer.
const APPENDS: usize = 60;
/// Longer than the second after which PostgreSQL looks for circles.
const PATIENT: Duration = Duration::from_secs(5);
/// External ids that all writers choose from, so that most are taken.
const EXTERNAL_IDS: u8 = 40;

/// Two that share commits, and one that does not. They wait for locks until the server sees a circle.
async fn replicas(database: &TestDatabase) -> [Arc<PostgresStore>; 3] {
    [
        open(&database.url(), |options| options.acquire_timeout = PATIENT).await,
        open(&database.url(), |options| {
            options.acquire_timeout = PATIENT;
            options.append_batch_max = 8;
        })
        .await,
        open(&database.url(), |options| {
            options.acquire_timeout = PATIENT;
            options.append_form = AppendForm::PerSession;
        })
        .await,
    ]
}

/// What one writer of the conflicting appends knows.
struct Writer {
    ctx: Ctx,
    store: Arc<PostgresStore>,
    sessions: Vec<SessionId>,
    /// A message that stands in no session of these.
    stranger: MessageId,
    /// The last message that this writer knows in each session.
    known: HashMap<SessionId, MessageId>,
    acknowledged: Vec<Message>,
    conflicts: Vec<(SessionId, String)>,
}

impl Writer {
    /// Plain appends and answers to earlier messages must succeed; a taken id and an absent parent
    /// must be refused for what they are.
    async fn run(mut self) -> Self {
        for _ in 0..APPENDS {
            let [place, kind, number] = self.ctx.random();
            let session_id = self.sessions[usize::from(place) % self.sessions.len()];
            let message_id = self.ctx.new_message_id(self.ctx.now(), session_id);
            let mut new = NewMessage::text(message_id, "user", "one of many");
            let (mut taken_is_fine, mut absent_is_fine) = (false, false);
            match kind % 4 {
                0 => {
                    new.external_id = Some(format!("external-{}", number % EXTERNAL_IDS));
                    // Else it would be the message that has this id.
                    new.content = message_id.to_string();
                    taken_is_fine = true;
                }
                1 => new.parent_id = self.known.get(&session_id).copied(),
                2 => {
                    new.parent_id = Some(self.stranger);
                    absent_is_fine = true;
                }
                _ => {}
            }
            let external_id = new.external_id.clone();
            match self.store.append_messages(&SCOPE, session_id, vec![new], self.ctx.now(), None).await {
                Ok(stored) => {
                    assert!(!absent_is_fine, "a parent from elsewhere was taken");
                    self.known.insert(session_id, message_id);
                    self.acknowledged.extend(stored.value);
                }
                Err(StoreError::ExternalIdTaken { n: 0 }) if taken_is_fine => {
                    self.conflicts.push((session_id, external_id.unwrap()));
                }
                Err(StoreError::Invalid { pointer, .. }) if absent_is_fine => assert_eq!(pointer, "/0/parent_id"),
                Err(error) => panic!("an append failed: {error}"),
            }
        }
        self
    }
}

/// Red if a conflict is dropped, or is told to a neighbour, or if replicas wait for each other in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_give_one_order_and_each_append_its_own_answer() {
    let database = TestDatabase::create().await;
    let stores = replicas(&database).await;
    let (ctx, mut sessions) = (Ctx::system(), Vec::new());
    for _ in 0..5 {
        sessions.push(new_session(&stores[0]).await.session_id);
    }
    let elsewhere = new_session(&stores[0]).await.session_id;
    let stranger = ctx.new_message_id(ctx.now(), elsewhere);
    let mut writers = JoinSet::new();
    for number in 0..30 {
        let writer = Writer {
            ctx: ctx.clone(),
            store: stores[number % stores.len()].clone(),
            sessions: sessions.clone(),
            stranger,
            known: HashMap::new(),
            acknowledged: Vec::new(),
            conflicts: Vec::new(),
        };
        writers.spawn(writer.run());
    }
    let writers = writers.join_all().await;

    let client = owner(&database).await;
    let mut stored = HashMap::new();
    let mut external_ids = HashSet::new();
    for session_id in &sessions {
        let sql = "select seq, message_id, external_id from messages where session_id = $1 order by seq";
        let rows = client.query(sql, &[&session_id.uuid()]).await.unwrap();
        let session = read_session(&stores[0], *session_id).await.unwrap();
        assert_eq!((session.last_seq, session.message_count), (rows.len() as i64, rows.len() as i64));
        for (row, expected_seq) in rows.iter().zip(1..) {
            let seq: i64 = row.get(0);
            assert_eq!(seq, expected_seq, "a gap");
            stored.insert(row.get::<_, uuid::Uuid>(1), (*session_id, seq));
            let external_id = row.get::<_, Option<String>>(2);
            assert!(external_id.is_none_or(|id| external_ids.insert((*session_id, id))), "a conflict was dropped");
        }
    }
    let mut acknowledged = 0;
    for message in writers.iter().flat_map(|writer| &writer.acknowledged) {
        assert_eq!(stored.get(&message.message_id.uuid()), Some(&(message.session_id, message.seq)));
        acknowledged += 1;
    }
    assert_eq!(acknowledged, stored.len(), "what is stored was acknowledged");
    let conflicts: Vec<_> = writers.iter().flat_map(|writer| &writer.conflicts).collect();
    assert!(conflicts.iter().all(|conflict| external_ids.contains(conflict)), "a conflict with nothing");
    assert!(conflicts.len() > 50, "only {} conflicts", conflicts.len());
    assert_eq!(deadlocks(&stores, &client).await, 0);
}

/// How many deadlocks the server saw; ends the stores, for a connection counts when it is closed.
async fn deadlocks(stores: &[Arc<PostgresStore>], client: &Client) -> i64 {
    for store in stores {
        store.close().await;
    }
    let sql = "select count(*) from pg_stat_activity
        where application_name = 'chatstore' and datname = current_database()";
    let none = async || (client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(());
    eventually("every connection is closed", 2 * SLACK, none).await;
    let sql = "select deadlocks from pg_stat_database where datname = current_database()";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The same without conflicts and as fast as it goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_give_one_gapless_order_in_every_session() {
    let database = TestDatabase::create().await;
    let stores = replicas(&database).await;
    let ledger = Ledger::open(&stores[0], 3, Duration::from_secs(5) + SLACK).await;
    let writers = ledger.start_writers(24, &stores.each_ref());
    eventually("enough is written", Duration::from_secs(30), async || (ledger.acknowledged() > 800).then_some(()))
        .await;
    writers.finish().await;
    assert_eq!(ledger.refused(), 0);
    ledger.check(&stores[1]).await;
    assert_eq!(deadlocks(&stores, &owner(&database).await).await, 0);
}

/// Red if a batch that fails is not taken apart, for an error that nothing foresees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_the_database_refuses_fails_no_neighbour() {
    let database = TestDatabase::create().await;
    let store = open(&database.url(), |_| {}).await;
    let refusal = "create function refuse() returns trigger language plpgsql as
            $$ begin raise exception 'refused' using errcode = 'P0001'; end $$;
        create trigger refuse before insert on messages for each row when (new.content = 'bad') execute function refuse()";
    owner(&database).await.batch_execute(refusal).await.unwrap();
    let (ctx, mut sessions) = (Ctx::system(), Vec::new());
    for _ in 0..4 {
        sessions.push(new_session(&store).await.session_id);
    }
    for _ in 0..10 {
        let appends = (0..24).map(async |number| {
            let session_id = sessions[number % sessions.len()];
            let content = if number % 5 == 0 { "bad" } else { "good" };
            let new = NewMessage::text(ctx.new_message_id(ctx.now(), session_id), "user", content);
            (content, store.append_messages(&SCOPE, session_id, vec![new], ctx.now(), None).await)
        });
        for (content, result) in join_all(appends).await {
            match result {
                Ok(_) => assert_eq!(content, "good"),
                Err(error) => assert_eq!(content, "bad", "{error}"),
            }
        }
    }
    let mut count = 0;
    for session_id in sessions {
        let session = read_session(&store, session_id).await.unwrap();
        assert_eq!(session.last_seq, session.message_count);
        count += session.message_count;
    }
    assert_eq!(count, 10 * 19);
}

/// Red if a store believes what it knew of a key: every replica reads it anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_known_everywhere_at_once() {
    let database = TestDatabase::create().await;
    let [one, other, _] = replicas(&database).await;
    let ctx = Ctx::system();
    let presented = PresentedKey::generate(&ctx);
    let key = ApiKey::new(&presented, ProjectId::DEFAULT, "phone", KeyScopes::all(), ctx.now());
    let key_id = key.key_id.clone();
    one.create_api_key(key, None).await.unwrap();
    let revoked_in = async |store: &PostgresStore| {
        store.get_api_key(&key_id).await.unwrap().expect("the key exists").0.revoked_at.is_some()
    };
    assert!(!revoked_in(&other).await);
    one.revoke_api_key(&Authority::host(), &key_id, ctx.now()).await.unwrap();
    assert!(revoked_in(&one).await && revoked_in(&other).await);
}
