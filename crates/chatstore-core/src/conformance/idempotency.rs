//! What every engine does with requests that come again.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use std::sync::Arc;

use crate::api_keys::{ApiKey, Authority, KeyDigest, KeyScopes, PresentedKey};
use crate::clock::Timestamp;
use crate::conformance::{ODD_JSON, ODD_TEXT, STEP_US, TestStore, is_invalid, join_all, json};
use crate::idempotency::{Answered, Claim, ClaimId, Recognition};
use crate::ids::Bucket;
use crate::messages::{Message, MessagePatch, MessageStatus, NewMessage};
use crate::projects::{Project, TokenSecret};
use crate::sessions::{NewSession, Session, SessionPatch, SessionQuery};
use crate::store::ExpectedVersion::Any;
use crate::store::{Quotas, Scope, StoreError};

/// How long the records of these checks count.
const LIFE_US: i64 = 100 * STEP_US;

/// A claim by `key` of the request with this body.
fn keyed(t: &TestStore, key: &str, body: &str, bucket: Option<Bucket>) -> Claim {
    let (claim_id, now) = (ClaimId::of(&[key.as_bytes()]), t.ctx.now());
    let mut fingerprint = [0; 32];
    fingerprint[..body.len()].copy_from_slice(body.as_bytes());
    Claim {
        project_id: t.project.project_id,
        claim_id,
        bucket: bucket.unwrap_or_else(|| claim_id.bucket()),
        fingerprint,
        recognition: Recognition::Key,
        now,
        expires_at: now.plus_micros(LIFE_US),
    }
}

/// A claim by the body alone, of the request or of its `retry`th retry.
fn by_body(t: &TestStore, session: &Session, body: &str, retry: u32) -> Claim {
    let bucket = Some(session.session_id.bucket());
    Claim { recognition: Recognition::Body { retry, tried: None }, ..keyed(t, body, body, bucket) }
}

/// Appends under a claim, at the claim's time.
async fn append(
    t: &TestStore,
    session: &Session,
    new: Vec<NewMessage>,
    claim: &Claim,
) -> Result<Answered<Vec<Message>>, StoreError> {
    t.store.append_messages(&t.project, session.session_id, new, claim.now, Some(claim)).await
}

/// A message with something in every field that a client gives.
fn rich(t: &TestStore, session: &Session) -> NewMessage {
    NewMessage {
        role: "assistant".to_owned(),
        kind: "function_call".to_owned(),
        status: MessageStatus::InProgress,
        payload: Some(json(ODD_JSON)),
        metadata: json(ODD_JSON),
        context: Some(json("[ 1.0 ]")),
        token_count: Some(7),
        ..t.new_message(session, ODD_TEXT)
    }
}

/// The same that says `content`.
fn saying(t: &TestStore, session: &Session, content: &str) -> NewMessage {
    NewMessage { content: content.to_owned(), ..rich(t, session) }
}

pub async fn a_keyed_append_is_stored_once_and_answered_alike(t: TestStore) {
    let session = t.session().await;
    t.say(&session, "before").await;
    let bucket = Some(session.session_id.bucket());
    let send =
        async || append(&t, &session, vec![rich(&t, &session), rich(&t, &session)], &keyed(&t, "k", "a", bucket)).await;
    let first = send().await.unwrap();
    assert!(!first.is_replay);
    let after = t.reload(&session).await;
    t.say(&session, "between").await;
    for _ in 0..3 {
        let again = send().await.unwrap();
        assert!(again.is_replay);
        assert_eq!(again.value, first.value);
    }
    assert_eq!(t.messages(&session).await.len(), 4);
    assert_eq!(t.messages(&session).await[1..3], first.value[..]);
    assert_eq!((after.message_count, after.token_count), (3, Some(14)));
    // A single one, too.
    let send = async || append(&t, &session, vec![rich(&t, &session)], &keyed(&t, "l", "a", bucket)).await.unwrap();
    let first = send().await;
    assert_eq!(send().await, Answered::replay(first.value));
    assert_eq!(t.reload(&session).await.last_seq, 5);
}

pub async fn a_key_with_another_body_is_refused(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let new = |content: &str| t.new_message(&session, content);
    append(&t, &session, vec![new("a")], &keyed(&t, "k", "a", bucket)).await.unwrap();
    let other = append(&t, &session, vec![new("b")], &keyed(&t, "k", "b", bucket)).await;
    assert_eq!(other, Err(StoreError::KeyReused));
    append(&t, &session, vec![new("b")], &keyed(&t, "l", "b", bucket)).await.unwrap();
    let session = t.new_session(Some("ada"));
    let bucket = Some(session.session_id.bucket());
    let create = async |body: &str| {
        let claim = keyed(&t, "s", body, bucket);
        t.store.create_session(&t.project, t.new_session(Some("ada")), Vec::new(), Some(&claim)).await
    };
    create("a").await.unwrap();
    assert_eq!(create("b").await, Err(StoreError::KeyReused));
    assert!(create("a").await.unwrap().is_replay);
    assert_eq!(
        t.sessions(&t.project, &SessionQuery { user_id: Some("ada".to_owned()), ..SessionQuery::default() })
            .await
            .len(),
        1
    );
}

pub async fn a_replay_shows_what_was_answered_and_not_what_became_of_it(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let send =
        async || append(&t, &session, vec![t.new_message(&session, "a")], &keyed(&t, "k", "a", bucket)).await.unwrap();
    let first = send().await.value;
    let patch = MessagePatch { content: Some("b".to_owned()), ..MessagePatch::default() };
    t.store.update_message(&t.project, first[0].message_id, patch, Any, t.ctx.now()).await.unwrap();
    assert_eq!(send().await, Answered::replay(first));
    assert_eq!(t.messages(&session).await[0].content, "b");
    let at = t.ctx.now();
    let create = async || {
        let claim = Claim { now: t.ctx.now(), ..keyed(&t, "s", "s", None) };
        let created_at = claim.now;
        let session_id = t.ctx.new_session_id(created_at, claim.bucket);
        let new = NewSession { session_id, created_at, metadata: json(ODD_JSON), ..t.new_session(None) };
        t.store.create_session(&t.project, new, Vec::new(), Some(&claim)).await.unwrap()
    };
    let first = create().await.value;
    assert!(first.created_at > at);
    let patch = SessionPatch { session_name: Some("renamed".to_owned()), ..SessionPatch::default() };
    t.store.update_session(&t.project, first.session_id, patch, Any, t.ctx.now()).await.unwrap();
    t.say(&first, "hi").await;
    assert_eq!(create().await, Answered::replay(first));
}

pub async fn a_replay_of_what_is_deleted_is_gone(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let send = async |key: &str| {
        let new = vec![t.new_message(&session, "a"), t.new_message(&session, "b")];
        append(&t, &session, new, &keyed(&t, key, "a", bucket)).await
    };
    let first = send("k").await.unwrap().value;
    send("l").await.unwrap();
    t.store.delete_message(&t.project, first[1].message_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(send("k").await, Err(StoreError::Gone));
    assert!(send("l").await.unwrap().is_replay);
    let create = async || {
        let claim = keyed(&t, "s", "s", None);
        let new = t.new_session(None);
        let new = NewSession { session_id: t.ctx.new_session_id(new.created_at, claim.bucket), ..new };
        t.store.create_session(&t.project, new, Vec::new(), Some(&claim)).await
    };
    let made = create().await.unwrap().value;
    t.store.delete_session(&t.project, made.session_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(create().await, Err(StoreError::Gone));
    t.store.delete_session(&t.project, session.session_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(send("l").await, Err(StoreError::Gone));
}

pub async fn get_idempotency_record_tells_what_would_answer(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let get = async |claim: &Claim| t.store.get_idempotency_record(claim).await;
    let claim = keyed(&t, "k", "a", bucket);
    assert_eq!(get(&claim).await, Ok(None));
    append(&t, &session, vec![t.new_message(&session, "a")], &claim).await.unwrap();
    let record = get(&keyed(&t, "k", "a", bucket)).await.unwrap().unwrap();
    assert_eq!((record.target, record.places.0), (session.session_id.to_string(), vec![1]));
    assert_eq!(get(&keyed(&t, "k", "b", bucket)).await, Err(StoreError::KeyReused));
    let later = Claim { now: claim.expires_at, ..claim };
    assert_eq!(get(&later).await, Ok(None), "it has expired");
    // Asking is no answer: the retry still has its own.
    let first = append(&t, &session, vec![t.new_message(&session, "b")], &by_body(&t, &session, "b", 0)).await.unwrap();
    assert_eq!(get(&by_body(&t, &session, "b", 0)).await, Ok(None), "the request itself repeats nothing");
    for _ in 0..2 {
        assert_eq!(get(&by_body(&t, &session, "b", 1)).await.unwrap().map(|record| record.places.0), Some(vec![2]));
    }
    let again = append(&t, &session, vec![t.new_message(&session, "b")], &by_body(&t, &session, "b", 1)).await.unwrap();
    assert_eq!(again, Answered::replay(first.value));
    assert_eq!(get(&by_body(&t, &session, "b", 1)).await, Ok(None));
    // What is deleted is done anew.
    let deleted = again.value[0].message_id;
    t.store.delete_message(&t.project, deleted, Any, t.ctx.now()).await.unwrap();
    assert_eq!(get(&by_body(&t, &session, "b", 2)).await, Ok(None));
    append(&t, &session, vec![t.new_message(&session, "c")], &by_body(&t, &session, "c", 0)).await.unwrap();
    t.store.delete_session(&t.project, session.session_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(get(&by_body(&t, &session, "c", 1)).await, Ok(None));
}

pub async fn what_was_refused_leaves_no_record(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let stray = t.new_message(&session, "stray").message_id;
    let orphan = NewMessage { parent_id: Some(stray), ..t.new_message(&session, "x") };
    let refused = append(&t, &session, vec![orphan], &keyed(&t, "k", "a", bucket)).await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })));
    let full = Scope { quotas: Quotas { messages_per_session: Some(0), ..Quotas::default() }, ..t.project.clone() };
    let claim = keyed(&t, "k", "b", bucket);
    let new = vec![t.new_message(&session, "x")];
    let refused = t.store.append_messages(&full, session.session_id, new, claim.now, Some(&claim)).await;
    assert!(matches!(refused, Err(StoreError::QuotaExceeded { .. })));
    let absent = t.new_session(None).into_session(t.project.project_id);
    let new = vec![t.new_message(&absent, "x")];
    let refused = append(&t, &absent, new, &keyed(&t, "k", "c", Some(absent.session_id.bucket()))).await;
    assert_eq!(refused, Err(StoreError::NotFound));
    // The key is as good as new.
    let stored = append(&t, &session, vec![t.new_message(&session, "y")], &keyed(&t, "k", "d", bucket)).await.unwrap();
    assert!(!stored.is_replay);
    assert_eq!(stored.value[0].seq, 1);
}

pub async fn a_record_that_has_expired_counts_no_more(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let send = async |body: &str| {
        append(&t, &session, vec![t.new_message(&session, "a")], &keyed(&t, "k", body, bucket)).await.unwrap()
    };
    let first = send("a").await;
    t.ctx.advance(std::time::Duration::from_micros(LIFE_US.unsigned_abs()));
    let second = send("b").await;
    assert_eq!((second.is_replay, second.value[0].seq), (false, 2));
    assert_ne!(second.value[0].message_id, first.value[0].message_id);
    assert!(send("b").await.is_replay);
    let create = async || {
        let claim = keyed(&t, "s", "s", None);
        let new = t.new_session(None);
        let new = NewSession { session_id: t.ctx.new_session_id(new.created_at, claim.bucket), ..new };
        t.store.create_session(&t.project, new, Vec::new(), Some(&claim)).await.unwrap()
    };
    let first = create().await.value;
    t.ctx.advance(std::time::Duration::from_micros(LIFE_US.unsigned_abs()));
    assert_ne!(create().await.value.session_id, first.session_id);
    assert!(create().await.is_replay);
}

pub async fn purge_idempotency_records_takes_what_has_expired(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let send = async |key: &str| {
        append(&t, &session, vec![t.new_message(&session, "a")], &keyed(&t, key, "a", bucket)).await.unwrap().is_replay
    };
    assert!(!send("old").await);
    t.ctx.advance(std::time::Duration::from_micros(LIFE_US.unsigned_abs()));
    assert!(!send("new").await);
    let now = t.ctx.now();
    while t.store.purge_idempotency_records(now).await.unwrap() {}
    assert!(send("new").await, "what counts is kept");
    let later = now.plus_micros(10 * LIFE_US);
    while t.store.purge_idempotency_records(later).await.unwrap() {}
    assert!(!send("new").await, "it was taken before its time");
    assert_eq!(t.store.purge_idempotency_records(now).await, Ok(false));
}

pub async fn a_keyed_create_session_with_messages_is_one_whole(t: TestStore) {
    let create = async |key: &str, contents: &[&str]| {
        let claim = keyed(&t, key, "a", None);
        let new = t.new_session(None);
        let session_id = t.ctx.new_session_id(claim.now, claim.bucket);
        let new = NewSession { session_id, created_at: claim.now, ..new };
        let session = new.clone().into_session(t.project.project_id);
        let messages = contents.iter().map(|content| saying(&t, &session, content)).collect();
        t.store.create_session(&t.project, new, messages, Some(&claim)).await
    };
    let first = create("k", &["one", "two", "three"]).await.unwrap();
    assert_eq!((first.value.last_seq, first.value.message_count, first.value.token_count), (3, 3, Some(21)));
    assert_eq!(first.value.last_message_at, Some(first.value.created_at));
    assert_eq!(t.reload(&first.value).await, first.value);
    let contents = |messages: Vec<Message>| messages.into_iter().map(|m| m.content).collect::<Vec<_>>();
    assert_eq!(contents(t.messages(&first.value).await), ["one", "two", "three"]);
    assert_eq!(create("k", &["one", "two", "three"]).await.unwrap(), Answered::replay(first.value.clone()));
    assert_eq!(t.say(&first.value, "four").await.seq, 4);
    assert_eq!(t.sessions(&t.project, &SessionQuery::default()).await.len(), 1);
}

pub async fn create_session_with_messages_stores_all_or_nothing(t: TestStore) {
    let create = async |messages: &dyn Fn(&Session) -> Vec<NewMessage>, scope: &Scope| {
        let new = t.new_session(Some("ada"));
        let session = new.clone().into_session(t.project.project_id);
        t.store.create_session(scope, new, messages(&session), None).await
    };
    let named = |session: &Session| NewMessage { external_id: Some("fc_1".to_owned()), ..t.new_message(session, "x") };
    let twice = create(&|session| vec![named(session), named(session)], &t.project).await;
    assert_eq!(twice, Err(StoreError::ExternalIdTaken { n: 1 }));
    let orphan = |session: &Session| {
        let parent_id = Some(t.new_message(session, "stray").message_id);
        NewMessage { parent_id, ..t.new_message(session, "x") }
    };
    let first = create(&|session| vec![orphan(session), named(session), named(session)], &t.project).await;
    assert!(is_invalid(first, "/0/parent_id"), "the first of several faults is told");
    let quotas = Quotas { messages_per_session: Some(1), ..Quotas::default() };
    let narrow = Scope { quotas, ..t.project.clone() };
    let two = |session: &Session| vec![t.new_message(session, "a"), t.new_message(session, "b")];
    let full = create(&two, &narrow).await;
    assert_eq!(full, Err(StoreError::QuotaExceeded { quota: "messages_per_session", max: 1 }));
    assert_eq!(t.sessions(&t.project, &SessionQuery::default()).await.len(), 0);
    let made = create(&two, &t.project).await.unwrap().value;
    assert_eq!(t.messages(&made).await.len(), 2);
}

pub async fn concurrent_requests_with_one_key_are_done_once(t: TestStore) {
    let (session, neighbour) = (t.session().await, t.session().await);
    let bucket = Some(session.session_id.bucket());
    let sent = join_all((0..48).map(|n| {
        let (t, session, neighbour) = (&t, &session, &neighbour);
        async move {
            if n % 4 == 3 {
                t.append(neighbour, vec![t.new_message(neighbour, "x")]).await.unwrap();
                return None;
            }
            let claim = keyed(t, &format!("k{}", n % 3), "a", bucket);
            Some((n % 3, append(t, session, vec![t.new_message(session, "a")], &claim).await.unwrap()))
        }
    }))
    .await;
    for key in 0..3 {
        let answers: Vec<_> = sent.iter().flatten().filter(|(own, _)| *own == key).collect();
        assert_eq!(answers.iter().filter(|(_, answer)| !answer.is_replay).count(), 1);
        assert!(answers.iter().all(|(_, answer)| answer.value == answers[0].1.value));
    }
    assert_eq!((t.messages(&session).await.len(), t.messages(&neighbour).await.len()), (3, 12));
    let made = join_all((0..16).map(|_| {
        let claim = keyed(&t, "s", "s", None);
        let new = t.new_session(None);
        let new =
            NewSession { session_id: t.ctx.new_session_id(claim.now, claim.bucket), created_at: claim.now, ..new };
        let t = &t;
        async move { t.store.create_session(&t.project, new, Vec::new(), Some(&claim)).await.unwrap() }
    }))
    .await;
    assert_eq!(made.iter().filter(|answer| !answer.is_replay).count(), 1);
    assert!(made.iter().all(|answer| answer.value == made[0].value));
}

pub async fn a_request_known_by_its_body_is_replayed_to_each_retry_once(t: TestStore) {
    let session = t.session().await;
    let send = async |body: &str, retry: u32| {
        let claim = by_body(&t, &session, body, retry);
        append(&t, &session, vec![t.new_message(&session, body)], &claim).await.unwrap()
    };
    // Two that are meant, though alike.
    let (one, two) = (send("a", 0).await, send("a", 0).await);
    assert_eq!((one.is_replay, two.is_replay, two.value[0].seq), (false, false, 2));
    // Each retry of each is answered by one of them, the newest first.
    assert_eq!(send("a", 1).await, Answered::replay(two.value.clone()));
    assert_eq!(send("a", 1).await, Answered::replay(one.value.clone()));
    assert_eq!(send("a", 2).await, Answered::replay(two.value));
    assert_eq!(send("a", 2).await, Answered::replay(one.value));
    // Nothing is left to answer for a third first retry: its request never came.
    let three = send("a", 1).await;
    assert_eq!((three.is_replay, three.value[0].seq), (false, 3));
    assert_eq!(send("a", 2).await, Answered::replay(three.value));
    // Other bodies and other sessions are other requests.
    assert!(!send("b", 1).await.is_replay);
    let neighbour = t.session().await;
    let claim = by_body(&t, &neighbour, "c", 1);
    assert!(!append(&t, &neighbour, vec![t.new_message(&neighbour, "a")], &claim).await.unwrap().is_replay);
    // Not for ever.
    assert!(!send("d", 0).await.is_replay);
    t.ctx.advance(std::time::Duration::from_micros(LIFE_US.unsigned_abs()));
    assert!(!send("d", 1).await.is_replay);
}

pub async fn a_request_known_by_its_body_is_done_anew_once_what_it_made_is_deleted(t: TestStore) {
    let session = t.session().await;
    let send = async |retry: u32| {
        let claim = by_body(&t, &session, "a", retry);
        append(&t, &session, vec![t.new_message(&session, "a")], &claim).await
    };
    let (one, two) = (send(0).await.unwrap().value, send(0).await.unwrap().value);
    t.store.delete_message(&t.project, two[0].message_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(send(1).await.unwrap(), Answered::replay(one.clone()), "an older one stands");
    t.store.delete_message(&t.project, one[0].message_id, Any, t.ctx.now()).await.unwrap();
    let three = send(2).await.unwrap();
    assert_eq!((three.is_replay, three.value[0].seq), (false, 3));
    assert_eq!(send(3).await.unwrap(), Answered::replay(three.value));
    t.store.delete_session(&t.project, session.session_id, Any, t.ctx.now()).await.unwrap();
    for retry in [0, 4] {
        assert_eq!(send(retry).await, Err(StoreError::NotFound), "{retry}");
    }
}

pub async fn a_retry_repeats_nothing_of_another_time_than_its_tries(t: TestStore) {
    let session = t.session().await;
    let claim = |retry, tried| {
        let claim = by_body(&t, &session, "a", retry);
        Claim { recognition: Recognition::Body { retry, tried }, ..claim }
    };
    let send = async |claim: &Claim| append(&t, &session, vec![t.new_message(&session, "a")], claim).await.unwrap();
    let mut made = Vec::new();
    let at = |times: &[Timestamp]| Some(Arc::from(times));
    for _ in 0..3 {
        let claim = claim(0, None);
        made.push((claim.now, send(&claim).await.value));
    }
    let begun = t.ctx.now();
    let between = send(&claim(0, None)).await.value;
    let failed = t.ctx.now();
    // Its tries did nothing, what was done between them is of another.
    assert_eq!(t.store.get_idempotency_record(&claim(1, at(&[begun, failed]))).await, Ok(None));
    let own = send(&claim(1, at(&[begun, failed]))).await;
    assert_eq!((own.is_replay, own.value[0].seq), (false, 5));
    // One of them did something.
    let (time, second) = made[1].clone();
    assert_eq!(send(&claim(1, at(&[time]))).await, Answered::replay(second));
    let (time, third) = made[2].clone();
    assert_eq!(send(&claim(1, at(&[made[0].0, time]))).await, Answered::replay(third));
    assert_eq!(send(&claim(2, None)).await, Answered::replay(own.value));
    assert_eq!(send(&claim(2, None)).await, Answered::replay(between));
}

pub async fn equal_requests_that_begin_with_what_is_there_are_told_apart(t: TestStore) {
    let session = t.session().await;
    let known = NewMessage { external_id: Some("fc_1".to_owned()), ..t.new_message(&session, "known") };
    t.append(&session, vec![known.clone()]).await.unwrap();
    let send = async |retry: u32| {
        let claim = by_body(&t, &session, "a", retry);
        append(&t, &session, vec![known.clone(), t.new_message(&session, "a")], &claim).await.unwrap()
    };
    let (one, two) = (send(0).await, send(0).await);
    assert_eq!((one.value[1].seq, two.value[1].seq), (2, 3));
    assert_eq!(send(1).await, Answered::replay(two.value));
    assert_eq!(send(1).await, Answered::replay(one.value));
    assert_eq!(t.messages(&session).await.len(), 3);
}

pub async fn a_keyed_append_of_nothing_is_a_request_like_any(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let send = async |body: &str| append(&t, &session, Vec::new(), &keyed(&t, "k", body, bucket)).await;
    assert_eq!(send("a").await, Ok(Answered::first(Vec::new())));
    assert_eq!(send("a").await, Ok(Answered::replay(Vec::new())));
    assert_eq!(send("b").await, Err(StoreError::KeyReused));
}

pub async fn what_is_not_stored_is_not_counted(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let named = || NewMessage { external_id: Some("fc_1".to_owned()), ..t.new_message(&session, "x") };
    let send = async || append(&t, &session, vec![named()], &keyed(&t, "k", "a", bucket)).await.unwrap();
    let before = t.store.stats().appends;
    send().await;
    assert_eq!(t.store.stats().appends, before + 1);
    send().await;
    t.append(&session, vec![named()]).await.unwrap();
    assert_eq!(t.store.stats().appends, before + 1);
}

pub async fn concurrent_retries_known_by_their_body_answer_for_one_request_each(t: TestStore) {
    let session = t.session().await;
    let send = |retry: u32| {
        let claim = by_body(&t, &session, "a", retry);
        let (t, session) = (&t, &session);
        async move { append(t, session, vec![t.new_message(session, "a")], &claim).await.unwrap() }
    };
    join_all((0..4).map(|_| send(0))).await;
    let retried = join_all((0..6).map(|_| send(1))).await;
    assert_eq!(retried.iter().filter(|answer| answer.is_replay).count(), 4);
    let mut seqs: Vec<i64> = retried.iter().map(|answer| answer.value[0].seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
}

pub async fn append_messages_takes_what_it_knows_by_its_external_id(t: TestStore) {
    let session = t.session().await;
    let named =
        |id: &str, content: &str| NewMessage { external_id: Some(id.to_owned()), ..saying(&t, &session, content) };
    let first = t.append(&session, vec![named("fc_1", "a"), named("fc_2", "b")]).await.unwrap();
    let before = t.reload(&session).await;
    assert_eq!(t.append(&session, vec![named("fc_1", "a"), named("fc_2", "b")]).await.unwrap(), first);
    assert_eq!(t.append(&session, vec![named("fc_2", "b")]).await.unwrap(), first[1..]);
    // JSON that is written otherwise says the same.
    let other = NewMessage { context: Some(json("[1.0]")), ..named("fc_1", "a") };
    assert_eq!(t.append(&session, vec![other]).await.unwrap(), first[..1]);
    assert_eq!(t.reload(&session).await, before, "nothing was moved");
    // Something else under the same id is refused, and nothing of the batch is stored.
    let batch = vec![t.new_message(&session, "new"), named("fc_1", "z")];
    assert_eq!(t.append(&session, batch).await, Err(StoreError::ExternalIdTaken { n: 1 }));
    for changed in [
        NewMessage { role: "user".to_owned(), ..named("fc_1", "a") },
        NewMessage { metadata: json("{}"), ..named("fc_1", "a") },
        NewMessage { payload: None, ..named("fc_1", "a") },
        NewMessage { token_count: None, ..named("fc_1", "a") },
    ] {
        assert_eq!(t.append(&session, vec![changed]).await, Err(StoreError::ExternalIdTaken { n: 0 }));
    }
    assert_eq!(t.reload(&session).await, before);
    // Some that are there and some that are not: the answer is in the order of the request.
    let mixed = vec![named("fc_3", "c"), named("fc_1", "a"), t.new_message(&session, "d"), named("fc_2", "b")];
    let stored = t.append(&session, mixed).await.unwrap();
    assert_eq!(stored.iter().map(|message| message.seq).collect::<Vec<_>>(), [3, 1, 4, 2]);
    assert_eq!((&stored[1], &stored[3]), (&first[0], &first[1]));
    let after = t.reload(&session).await;
    assert_eq!((after.last_seq, after.message_count), (4, 4));
    // A quota counts what is new.
    let quotas = Quotas { messages_per_session: Some(4), ..Quotas::default() };
    let full = Scope { quotas, ..t.project.clone() };
    let again = t.store.append_messages(&full, session.session_id, vec![named("fc_1", "a")], t.ctx.now(), None).await;
    assert_eq!(again.unwrap().value, first[..1]);
}

pub async fn append_messages_knows_its_own_ids_as_external_ids(t: TestStore) {
    let (session, neighbour) = (t.session().await, t.session().await);
    let message = t.append(&session, vec![t.new_message(&session, "a")]).await.unwrap().remove(0);
    let name = message.message_id.to_item_id("msg");
    let named = |session: &Session, content: &str| {
        vec![NewMessage { external_id: Some(name.clone()), ..t.new_message(session, content) }]
    };
    assert_eq!(t.append(&session, named(&session, "a")).await.unwrap(), [message]);
    assert_eq!(t.append(&session, named(&session, "b")).await, Err(StoreError::ExternalIdTaken { n: 0 }));
    // In another session it is an id like any other.
    let there = t.append(&neighbour, named(&neighbour, "b")).await.unwrap();
    assert_eq!(there[0].external_id.as_ref(), Some(&name));
    assert_eq!(t.append(&neighbour, named(&neighbour, "b")).await.unwrap(), there);
    assert_eq!((t.messages(&session).await.len(), t.messages(&neighbour).await.len()), (1, 1));
}

pub async fn a_replay_gives_back_what_was_there_before_the_request(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let known = NewMessage { external_id: Some("fc_1".to_owned()), ..t.new_message(&session, "known") };
    t.append(&session, vec![known.clone()]).await.unwrap();
    let send = async || {
        let new = vec![t.new_message(&session, "x"), known.clone(), t.new_message(&session, "y")];
        append(&t, &session, new, &keyed(&t, "k", "a", bucket)).await.unwrap()
    };
    let first = send().await;
    assert_eq!(first.value.iter().map(|message| message.seq).collect::<Vec<_>>(), [2, 1, 3]);
    assert_eq!(send().await, Answered::replay(first.value.clone()));
    assert_eq!(t.messages(&session).await.len(), 3);
    // What was not the request's own shows as it stands, so that its version is true.
    let patch = MessagePatch { content: Some("changed".to_owned()), ..MessagePatch::default() };
    for message in &first.value[..2] {
        t.store.update_message(&t.project, message.message_id, patch.clone(), Any, t.ctx.now()).await.unwrap();
    }
    let again = send().await.value;
    assert_eq!((&again[0], &again[2]), (&first.value[0], &first.value[2]));
    assert_eq!((again[1].content.as_str(), again[1].version), ("changed", 2));
}

pub async fn a_replay_writes_what_was_there_as_it_is_stored(t: TestStore) {
    let session = t.session().await;
    let bucket = Some(session.session_id.bucket());
    let first = t.append(&session, vec![rich(&t, &session)]).await.unwrap().remove(0);
    let name = first.message_id.to_item_id("msg");
    let send = async || {
        let other = NewMessage { context: Some(json("[1.0]")), external_id: Some(name.clone()), ..rich(&t, &session) };
        append(&t, &session, vec![other], &keyed(&t, "k", "a", bucket)).await.unwrap()
    };
    assert_eq!(send().await, Answered::first(vec![first.clone()]));
    assert_eq!(send().await, Answered::replay(vec![first]));
}

pub async fn create_project_and_create_api_key_are_done_once(t: TestStore) {
    let create = async |key: &str, name: &str| {
        let claim = keyed(&t, key, name, None);
        let project = Project::new(t.ctx.new_project_id(claim.now), name, claim.now);
        t.store.create_project(project, Some(&claim)).await
    };
    let first = create("p", "third").await.unwrap();
    let again = create("p", "third").await.unwrap();
    assert_eq!((first.is_replay, again.is_replay), (false, true));
    assert_eq!(format!("{:?}", again.value), format!("{:?}", first.value));
    assert_eq!(create("p", "fourth").await.err(), Some(StoreError::KeyReused));
    assert_eq!(create("q", "third").await.err(), Some(StoreError::Conflict { field: "name" }));
    t.store.delete_project(first.value.project_id, t.ctx.now()).await.unwrap();
    assert_eq!(create("p", "third").await.err(), Some(StoreError::Gone));

    let presented = [(); 2].map(|()| PresentedKey::generate(&t.ctx));
    let make = async |n: usize| {
        let claim = keyed(&t, "a key", "a", None);
        let key = ApiKey::new(&presented[n], t.project.project_id, "a key", KeyScopes::all(), claim.now);
        t.store.create_api_key(key, Some(&claim)).await.unwrap()
    };
    let (first, again) = (make(0).await, make(1).await);
    assert_eq!((first.is_replay, again.is_replay), (false, true));
    assert_eq!(again.value.key_id, presented[0].key_id());
    assert!(t.store.get_api_key(presented[1].key_id()).await.unwrap().is_none());
    let rotate = async |digest: &str, key: &str| {
        let claim = keyed(&t, key, "r", None);
        let (host, digest) = (Authority::host(), KeyDigest::of(digest));
        let rotated =
            t.store.rotate_api_key(&host, presented[0].key_id(), digest, claim.now, claim.now, Some(&claim)).await;
        rotated.unwrap()
    };
    assert!(!rotate("x", "r1").await.is_replay);
    let again = rotate("y", "r1").await;
    assert!(again.is_replay);
    assert!(again.value.digest.matches(&KeyDigest::of("x")), "it was rotated once");
    assert!(!rotate("y", "r2").await.is_replay);
}

pub async fn rotate_token_secret_is_done_once(t: TestStore) {
    let secrets = [(); 2].map(|()| TokenSecret::generate(&t.ctx));
    let rotate = async |n: usize| {
        let claim = keyed(&t, "k", "a", None);
        let project_id = t.other.project_id;
        let rotated =
            t.store.rotate_token_secret(project_id, Some(secrets[n]), claim.now, claim.now, Some(&claim)).await;
        rotated.unwrap()
    };
    assert!(!rotate(0).await.is_replay);
    let again = rotate(1).await;
    assert!(again.is_replay);
    assert_eq!(again.value.token_secrets.len(), 1);
    assert!(again.value.token_secrets[0].bytes == secrets[0].bytes, "it was rotated once");
}
