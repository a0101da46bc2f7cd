//! Requests with a key, repeated by clients that do not know what became of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chatstore_core::clock::Ctx;
use chatstore_core::idempotency::{Answered, Claim, ClaimId, Recognition};
use chatstore_core::ids::{Bucket, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessagePatch, MessageStore as _, NewMessage};
use chatstore_core::sessions::{NewSession, Session, SessionPatch, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, StoreError};
use chatstore_postgres::{AppendForm, PostgresOptions, PostgresStore};
use futures_util::future::join_all;

use crate::network::Place;
use crate::proxy::Fate;
use crate::support::await_waiting;
use crate::{SCOPE, assert_passing, eventually, new_session, owner, rounds};

const CLIENTS: usize = 12;
const SESSIONS: usize = 4;

/// What a client sends until it has an answer.
struct Client {
    ctx: Ctx,
    number: usize,
    session_id: SessionId,
}

impl Client {
    fn claim(&self, kind: &str, n: usize, bucket: Option<Bucket>) -> Claim {
        let claim_id = ClaimId::of(&[kind.as_bytes(), &self.number.to_be_bytes(), &n.to_be_bytes()]);
        let now = self.ctx.now();
        Claim {
            project_id: SCOPE.project_id,
            claim_id,
            bucket: bucket.unwrap_or(claim_id.bucket()),
            fingerprint: [1; 32],
            recognition: Recognition::Key,
            now,
            expires_at: now.plus_micros(600_000_000),
        }
    }

    async fn append(&self, store: &PostgresStore, n: usize) -> Result<Answered<Vec<Message>>, StoreError> {
        let claim = self.claim("append", n, Some(self.session_id.bucket()));
        let new = || NewMessage::text(self.ctx.new_message_id(claim.now, self.session_id), "user", format!("{n}"));
        store.append_messages(&SCOPE, self.session_id, vec![new(), new()], claim.now, Some(&claim)).await
    }

    async fn create(&self, store: &PostgresStore, n: usize) -> Result<Answered<Session>, StoreError> {
        let claim = self.claim("create", n, None);
        let session_id = self.ctx.new_session_id(claim.now, claim.bucket);
        let new = NewSession {
            session_id,
            user_id: None,
            session_name: format!("{n}"),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at: claim.now,
        };
        let first = NewMessage::text(self.ctx.new_message_id(claim.now, session_id), "user", "first");
        store.create_session(&SCOPE, new, vec![first], Some(&claim)).await
    }
}

/// Sends until there is an answer; what went wrong must be something that passes.
async fn insist<T>(mut send: impl AsyncFnMut() -> Result<Answered<T>, StoreError>) -> T {
    loop {
        match send().await {
            Ok(answer) => return answer.value,
            Err(StoreError::InFlight) => {}
            Err(error) => assert_passing(&error),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Red if what has a key is done twice or not at all, or is answered otherwise later.
async fn keyed_requests_meet(fate: Fate, change: impl FnOnce(&mut PostgresOptions)) {
    let place = Place::new(change).await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(new_session(&place.direct).await.session_id);
    }
    let (ctx, stopped) = (Ctx::system(), AtomicBool::new(false));
    place.proxy.spoil(fate, 3);
    let clients = (0..CLIENTS).map(|number| {
        let client = Client { ctx: ctx.clone(), number, session_id: sessions[number % SESSIONS] };
        let (store, stopped) = (&place.store, &stopped);
        async move {
            let mut done = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let n = done.len();
                let messages = insist(async || client.append(store, n).await).await;
                done.push((messages, insist(async || client.create(store, n).await).await));
            }
            (client, done)
        }
    });
    let (done, ()) = tokio::join!(join_all(clients), async {
        let (wanted, limit) = (2 * rounds(), Duration::from_secs(60 + 2 * rounds() as u64));
        let before = place.proxy.begun();
        // Each one costs its connection.
        let enough = async || (place.proxy.begun() - before > wanted).then_some(());
        eventually("enough has gone wrong", limit, enough).await;
        stopped.store(true, Ordering::Relaxed);
        place.proxy.spoil(Fate::Answered, 1);
    });
    let mut count = 0;
    for (client, done) in done {
        for (n, (messages, session)) in done.into_iter().enumerate() {
            count += 1;
            assert_eq!(client.append(&place.direct, n).await, Ok(Answered::replay(messages)));
            assert_eq!(client.create(&place.direct, n).await, Ok(Answered::replay(session)));
        }
    }
    let owner = owner(&place.database).await;
    for (sql, expected) in [
        ("select count(*) from messages", 3 * count),
        ("select count(*) from sessions", SESSIONS + count),
        ("select count(*) from idempotency_records", 2 * count),
        ("select sum(last_seq)::bigint from sessions", 3 * count),
    ] {
        assert_eq!(owner.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), expected as i64, "{sql}");
    }
    assert!(count > CLIENTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyed_request_whose_commit_is_not_answered_is_done_once() {
    keyed_requests_meet(Fate::AnswerLost, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyed_request_of_its_own_whose_commit_is_not_answered_is_done_once() {
    keyed_requests_meet(Fate::AnswerLost, |options| options.append_form = AppendForm::PerSession).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyed_request_that_never_reached_the_server_is_done_once() {
    keyed_requests_meet(Fate::RequestLost, |options| options.prepared_statements = false).await;
}

/// Red if the answer waits for the old attempt longer than it must, or if that ends unseen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyed_request_whose_commit_is_answered_by_silence_is_done_once() {
    keyed_requests_meet(Fate::Silence, |options| options.statement_timeout = Duration::from_millis(500)).await;
}

/// Red if an append with something that is there already, and that changes meanwhile, is stored twice, or refused although
/// it is stored, when its commit is not answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_with_a_known_message_whose_commit_is_not_answered_is_stored_once() {
    let place = Place::new(|_| {}).await;
    let (ctx, session_id) = (Ctx::system(), new_session(&place.direct).await.session_id);
    let new = |name: &str| NewMessage {
        external_id: Some(name.to_owned()),
        ..NewMessage::text(ctx.new_message_id(ctx.now(), session_id), "user", "the same")
    };
    let append = async |store: &PostgresStore, messages: Vec<NewMessage>| {
        store.append_messages(&SCOPE, session_id, messages, ctx.now(), None).await
    };
    let known = append(&place.direct, vec![new("known")]).await.unwrap().value.remove(0);
    place.proxy.spoil(Fate::AnswerLost, 2);
    let stopped = AtomicBool::new(false);
    let appends = async {
        for n in 0..rounds() {
            let stored = loop {
                match append(&place.store, vec![new(&n.to_string()), new("known")]).await {
                    // It says something else at this moment.
                    Err(StoreError::ExternalIdTaken { n: 1 }) => {}
                    stored => break stored.unwrap().value,
                }
            };
            assert_eq!(stored[0].seq, n as i64 + 2);
            let shown = (stored[1].message_id, stored[1].content.as_str());
            assert_eq!(shown, (known.message_id, "the same"));
        }
        stopped.store(true, Ordering::Relaxed);
    };
    tokio::join!(appends, async {
        while !stopped.load(Ordering::Relaxed) {
            for content in ["another", "the same"] {
                let patch = MessagePatch { content: Some(content.to_owned()), ..MessagePatch::default() };
                let (message_id, any) = (known.message_id, ExpectedVersion::Any);
                place.direct.update_message(&SCOPE, message_id, patch, any, ctx.now()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    assert!(place.proxy.swallowed() > rounds() / 4, "{} were swallowed", place.proxy.swallowed());
    let session = crate::read_session(&place.direct, session_id).await.unwrap();
    assert_eq!((session.last_seq, session.message_count), (rounds() as i64 + 1, rounds() as i64 + 1));
}

/// Red if an append whose commit was not answered is told that nothing was done: its client would send it as a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_commit_is_not_answered_is_never_called_refused() {
    let place = Place::new(|options| {
        // One write may hold a row, and the append waits for its turn in vain.
        (options.connections_max, options.acquire_timeout) = (2, Duration::from_secs(2));
        // The write waits for longer; if it were told, the server would end its wait for the lock as early.
        (options.statement_timeout, options.prepared_statements) = (Duration::from_secs(30), false);
    })
    .await;
    let (ctx, outsider) = (Ctx::system(), owner(&place.database).await);
    let sessions = [new_session(&place.direct).await, new_session(&place.direct).await];
    let held = sessions[0].session_id;
    outsider
        .batch_execute(&format!("begin; select 1 from sessions where session_id = '{held}' for update"))
        .await
        .unwrap();
    place.proxy.spoil(Fate::AnswerLost, 1);
    let patch = SessionPatch { session_name: Some("another".to_owned()), ..SessionPatch::default() };
    let update = place.store.update_session(&SCOPE, held, patch, ExpectedVersion::Any, ctx.now());
    let append = async {
        await_waiting(&outsider, 1).await;
        let session_id = sessions[1].session_id;
        let new = NewMessage::text(ctx.new_message_id(ctx.now(), session_id), "user", "stored");
        let answer = place.store.append_messages(&SCOPE, session_id, vec![new], ctx.now(), None).await;
        place.proxy.spoil(Fate::Answered, 1);
        outsider.batch_execute("rollback").await.unwrap();
        answer
    };
    let (updated, answer) = tokio::join!(update, append);
    updated.unwrap();
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    assert_eq!(crate::read_messages(&place.direct, sessions[1].session_id).await.unwrap().len(), 1);
}
