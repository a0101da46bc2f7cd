//! What becomes of a key over time: refusals, faults, changes, deletions, crowds, expiry.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chatstore_core::idempotency::{Claim, ClaimId, Recognition};
use chatstore_core::ids::{ProjectId, SessionId};
use chatstore_core::messages::NewMessage;
use chatstore_core::store::{Scope, StoreError};
use chatstore_server::access::AccessSettings;
use chatstore_server::app::App;
use chatstore_server::config::Secret;
use chatstore_server::worker::{self, WorkerPace};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{KEY, SESSIONS, assert_first, assert_replay, is_replay, messages, say, stored};
use crate::app::{TestApp, access, api_tests, limits};
use crate::client::{Client, Reply, text};
use crate::faulty::{Fault, FaultyStore};

api_tests! {
    a_refused_request_uses_up_no_key
    a_request_that_failed_on_our_side_uses_up_no_key
    a_request_in_flight_is_a_409_that_says_when_to_come_again
    a_409_that_stays_one_says_so
    a_crowd_of_one_request_is_stored_once
    a_replay_shows_the_first_answer_whatever_changed
    what_was_deleted_since_is_gone
    a_deleted_project_is_not_made_again
    a_key_names_its_request_for_a_day
    the_secret_of_a_key_may_change_between_two_tries
    a_user_token_may_be_renewed_between_two_tries
    a_replay_needs_what_the_first_request_needed
    requests_that_make_nothing_ignore_a_key
    a_secret_is_shown_once_and_the_answer_says_what_to_do
    a_replay_is_noted_as_such_in_the_audit_log
    records_are_purged_in_the_background_when_they_have_expired
}

const DAY: Duration = Duration::from_secs(86_400);

async fn create(client: &Client, key: &str, name: &str) -> Reply {
    client.with(KEY, key).post(SESSIONS, json!({"session_name": name})).await
}

fn message_path(message: &Value) -> String {
    format!("/api/v1/messages/{}", text(&message["message_id"]))
}

async fn faulty(app: &TestApp, method: &'static str, fault: Fault) -> TestApp {
    app.rebuild(|store| FaultyStore::wrap(store, method, fault), limits()).await
}

async fn a_refused_request_uses_up_no_key(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let path = messages(&session);
    let keyed = app.alice().with(KEY, "k");
    let before = stored(&app).await;
    let absent = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";
    for (body, status) in [
        ("{", 400),
        ("[]", 422),
        (r#"{"content":5}"#, 422),
        (&format!(r#"{{"content":"x","parent_id":"{absent}"}}"#), 422),
        (&format!(r#"{{"content":"{}"}}"#, "x".repeat((1 << 20) + 1)), 413),
    ] {
        for _ in 0..2 {
            let reply = keyed.post(&path, body).await;
            assert_eq!((reply.status, is_replay(&reply)), (status, false), "{}", reply.text());
        }
    }
    keyed.post(&messages(absent), json!({"content": "x"})).await.expect_problem(404, "not_found");
    keyed.with("content-type", "text/plain").post(&path, "x").await.expect_problem(415, "unsupported_media_type");
    app.reader().with(KEY, "k").post(&path, json!({"content": "x"})).await.expect_problem(403, "insufficient_scope");
    app.bob().with(KEY, "k").post(&path, json!({"content": "x"})).await.expect_problem(404, "not_found");
    app.anon().with(KEY, "k").post(&path, json!({"content": "x"})).await.expect_problem(401, "missing_api_key");
    assert_eq!(stored(&app).await, before);
    let first = say(&app.alice(), &session, "k", "x").await;
    assert_eq!(assert_first(&first)["seq"], 1);
    assert_replay(&first, &say(&app.alice(), &session, "k", "x").await);
    // The same of sessions: one whose external id is taken is refused, and the key is free.
    let taken = json!({"session_name": "n", "external_id": "e"});
    app.alice().post(SESSIONS, &taken).await.expect(201);
    app.alice().with(KEY, "s").post(SESSIONS, &taken).await.expect_problem(409, "conflict");
    assert_first(&create(&app.alice(), "s", "n").await);
}

async fn a_request_that_failed_on_our_side_uses_up_no_key(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let before = stored(&app).await;
    let reason = || "reason".to_owned();
    for (error, status) in [
        (StoreError::Internal { reason: reason() }, 500),
        (StoreError::Unavailable { reason: reason() }, 503),
        (StoreError::Busy, 503),
        (StoreError::Full, 507),
    ] {
        let broken = faulty(&app, "*", Fault::Error(error)).await;
        for reply in [say(&broken.writer(), &session, "k", "x").await, create(&broken.writer(), "k", "n").await] {
            assert_eq!((reply.status, is_replay(&reply)), (status, false), "{}", reply.text());
        }
    }
    assert_eq!(stored(&app).await, before);
    let first = say(&app.writer(), &session, "k", "other").await;
    assert_first(&first);
    assert_replay(&first, &say(&app.writer(), &session, "k", "other").await);
    assert_first(&create(&app.writer(), "k", "other").await);
}

async fn a_request_in_flight_is_a_409_that_says_when_to_come_again(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let busy = faulty(&app, "*", Fault::Error(StoreError::InFlight)).await;
    for reply in [say(&busy.writer(), &session, "k", "x").await, create(&busy.writer(), "k", "n").await] {
        let problem = reply.expect_problem(409, "request_in_flight");
        assert!(text(&problem["detail"]).contains("send it again in a moment"), "{problem}");
        assert_eq!((reply.header("retry-after"), reply.header("x-should-retry")), (Some("1"), Some("true")));
    }
}

async fn a_409_that_stays_one_says_so(app: TestApp) {
    let session = json!({"session_name": "n", "external_id": "e"});
    app.alice().post(SESSIONS, &session).await.expect(201);
    let taken = app.alice().post(SESSIONS, &session).await;
    let default = format!("/api/v1/admin/projects/{}", ProjectId::DEFAULT);
    for reply in [taken, app.admin().delete(&default).await] {
        reply.expect_problem(409, "conflict");
        assert_eq!((reply.header("retry-after"), reply.header("x-should-retry")), (None, Some("false")));
    }
    // Only a 409 needs the hint: what else SDKs send again is right.
    assert_eq!(app.alice().get("/api/v1/sessions/none").await.header("x-should-retry"), None);
}

async fn a_crowd_of_one_request_is_stored_once(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let (client, session) = (&app.alice(), session.as_str());
    let appends = join_all((0..10).map(|_| say(client, session, "k", "x"))).await;
    let batch = json!([{"content": "a"}, {"content": "b"}]);
    let batches =
        join_all((0..10).map(|_| async { client.with(KEY, "b").post(&messages(session), &batch).await })).await;
    let creations = join_all((0..10).map(|_| create(client, "k", "made"))).await;
    let users = app.writer();
    let unowned = join_all((0..10).map(|_| create(&users, "k", "unowned"))).await;
    for crowd in [appends, batches, creations, unowned] {
        let (again, first): (Vec<_>, Vec<_>) = crowd.into_iter().partition(is_replay);
        assert_eq!(first.len(), 1, "{first:?}");
        assert_eq!(again.len(), 9);
        for again in again {
            assert_replay(&first[0], &again);
        }
    }
    assert_eq!(app.alice().get(&messages(session)).await.items().len(), 3);
    assert_eq!(app.writer().get(SESSIONS).await.items().len(), 3);
}

async fn a_replay_shows_the_first_answer_whatever_changed(app: TestApp) {
    let alice = app.alice();
    let made = create(&alice, "s", "before").await;
    let session = text(&assert_first(&made)["session_id"]);
    let (one, two) = (say(&alice, &session, "1", "one").await, say(&alice, &session, "2", "two").await);
    let patch = json!({"content": "changed", "role": "tool", "metadata": {"a": 1}});
    alice.patch(&message_path(&one.json()), patch).await.expect(200);
    alice.patch(&format!("{SESSIONS}/{session}"), json!({"session_name": "after"})).await.expect(200);
    assert_replay(&made, &create(&alice, "s", "before").await);
    assert_replay(&one, &say(&alice, &session, "1", "one").await);
    assert_replay(&two, &say(&alice, &session, "2", "two").await);
    // The change stands.
    assert_eq!(alice.get(&messages(&session)).await.column("content"), ["two", "changed"]);
    assert_eq!(alice.get(SESSIONS).await.column("session_name"), ["after"]);
}

async fn what_was_deleted_since_is_gone(app: TestApp) {
    let alice = app.alice();
    let made = assert_first(&create(&alice, "s", "n").await);
    let session = text(&made["session_id"]);
    let one = assert_first(&say(&alice, &session, "1", "one").await);
    let batch = json!([{"content": "a"}, {"content": "b"}]);
    let many = alice.with(KEY, "2").post(&messages(&session), &batch).await.expect(201);
    let kept = say(&alice, &session, "3", "kept").await;
    for message in [&one, &many[1]] {
        alice.delete(&message_path(message)).await.expect(200);
    }
    let gone = |reply: Reply| {
        let problem = reply.expect_problem(410, "gone");
        assert!(text(&problem["detail"]).contains("deleted"), "{problem}");
    };
    gone(say(&alice, &session, "1", "one").await);
    gone(alice.with(KEY, "2").post(&messages(&session), &batch).await);
    assert_replay(&kept, &say(&alice, &session, "3", "kept").await);
    alice.delete(&format!("{SESSIONS}/{session}")).await.expect(200);
    gone(create(&alice, "s", "n").await);
    gone(say(&alice, &session, "3", "kept").await);
    // Another body stays another body.
    create(&alice, "s", "m").await.expect_problem(422, "idempotency_key_reused");
    // What was never there is not gone.
    say(&alice, &session, "4", "new").await.expect_problem(404, "not_found");
}

async fn a_deleted_project_is_not_made_again(app: TestApp) {
    let projects = "/api/v1/admin/projects";
    let found = async || app.admin().with(KEY, "k").post(projects, json!({"name": "p"})).await;
    let made = found().await.expect(201);
    let path = format!("{projects}/{}", text(&made["project_id"]));
    let key = json!({"name": "n", "project_id": made["project_id"], "scopes": ["read", "write"]});
    let key = app.admin().post("/api/v1/admin/keys", key).await.expect(201);
    let own = app.client(key["secret"].as_str().unwrap());
    assert_first(&create(&own, "s", "n").await);
    app.admin().delete(&path).await.expect(200);
    create(&own, "s", "n").await.expect_problem(401, "invalid_api_key");
    found().await.expect_problem(410, "gone");
    assert_eq!(app.admin().get(projects).await.items().len(), 2);
}

async fn a_key_names_its_request_for_a_day(app: TestApp) {
    let alice = app.alice();
    let made = create(&alice, "s", "n").await;
    let session = text(&assert_first(&made)["session_id"]);
    let first = say(&alice, &session, "k", "x").await;
    app.ctx.advance(DAY - Duration::from_secs(60));
    assert_replay(&made, &create(&alice, "s", "n").await);
    assert_replay(&first, &say(&alice, &session, "k", "x").await);
    // A replay does not prolong it.
    app.ctx.advance(Duration::from_secs(120));
    let second = say(&alice, &session, "k", "another body").await;
    assert_eq!(assert_first(&second)["seq"], 2);
    assert_replay(&second, &say(&alice, &session, "k", "another body").await);
    let other = create(&alice, "s", "m").await;
    assert_ne!(assert_first(&other)["session_id"], made.json()["session_id"]);
    assert_replay(&other, &create(&alice, "s", "m").await);
}

async fn the_secret_of_a_key_may_change_between_two_tries(app: TestApp) {
    let key = json!({"name": "k", "scopes": ["read", "write"]});
    let key = app.admin().post("/api/v1/admin/keys", key).await.expect(201);
    let session = app.alice().new_session("n").await;
    let old = app.client(key["secret"].as_str().unwrap());
    let first = say(&old, &session, "k", "x").await;
    assert_first(&first);
    let path = format!("/api/v1/admin/keys/{}/rotate", text(&key["key_id"]));
    let rotated = app.admin().post(&path, json!({})).await.expect(200);
    let new = app.client(rotated["secret"].as_str().unwrap());
    assert_replay(&first, &say(&new, &session, "k", "x").await);
    assert_replay(&first, &say(&old, &session, "k", "x").await);
    say(&new, &session, "k", "y").await.expect_problem(422, "idempotency_key_reused");
}

async fn a_user_token_may_be_renewed_between_two_tries(app: TestApp) {
    let secret_key = Some(Secret::new("a-secret-key-of-at-least-32-bytes!"));
    let app = app.with_access(AccessSettings { secret_key, ..access() }).await;
    let token = async |body: Value| {
        let made = app.admin().post("/api/v1/admin/tokens", body).await.expect(201);
        app.anon().with("authorization", format!("Bearer {}", text(&made["token"])))
    };
    let alice = token(json!({"user_id": "alice"})).await;
    let made = create(&alice, "s", "n").await;
    let session = text(&assert_first(&made)["session_id"]);
    let first = say(&alice, &session, "k", "x").await;
    app.ctx.advance(Duration::from_secs(60));
    let renewed = token(json!({"user_id": "alice", "scopes": ["read", "write"]})).await;
    assert_replay(&made, &create(&renewed, "s", "n").await);
    assert_replay(&first, &say(&renewed, &session, "k", "x").await);
    // Her key is another caller, and another user's token as well.
    assert_first(&say(&app.alice(), &session, "k", "x").await);
    assert_first(&create(&token(json!({"user_id": "bob"})).await, "s", "n").await);
    // A token for some sessions sees no others, and makes none, also when it was done before.
    let narrow = token(json!({"user_id": "alice", "session_ids": [session]})).await;
    assert_replay(&first, &say(&narrow, &session, "k", "x").await);
    create(&narrow, "s", "n").await.expect_problem(403, "insufficient_scope");
    let elsewhere = text(&create(&alice, "t", "n").await.expect(201)["session_id"]);
    say(&alice, &elsewhere, "k", "x").await.expect(201);
    say(&narrow, &elsewhere, "k", "x").await.expect_problem(404, "not_found");
}

async fn a_replay_needs_what_the_first_request_needed(app: TestApp) {
    let key = json!({"name": "k", "scopes": ["read", "write"]});
    let key = app.admin().post("/api/v1/admin/keys", key).await.expect(201);
    let client = app.client(key["secret"].as_str().unwrap());
    let session = client.new_session("n").await;
    let first = say(&client, &session, "k", "x").await;
    let path = format!("/api/v1/admin/keys/{}", text(&key["key_id"]));
    app.admin().patch(&path, json!({"scopes": ["read"]})).await.expect(200);
    say(&client, &session, "k", "x").await.expect_problem(403, "insufficient_scope");
    app.admin().patch(&path, json!({"scopes": ["read", "write"]})).await.expect(200);
    assert_replay(&first, &say(&client, &session, "k", "x").await);
    app.admin().post(&format!("{path}/revoke"), json!({})).await.expect(200);
    say(&client, &session, "k", "x").await.expect_problem(401, "invalid_api_key");
}

async fn requests_that_make_nothing_ignore_a_key(app: TestApp) {
    let (alice, admin) = (app.alice().with(KEY, "k"), app.admin().with(KEY, "k"));
    let session = app.alice().new_session("n").await;
    let (path, message) = (format!("{SESSIONS}/{session}"), app.alice().new_message(&session, "x").await);
    for name in ["a", "b", "a"] {
        let patched = alice.patch(&path, json!({"session_name": name})).await;
        assert_eq!((&patched.expect(200)["session_name"], is_replay(&patched)), (&json!(name), false));
        let patched = alice.patch(&message_path(&message), json!({"content": name})).await;
        assert_eq!((&patched.expect(200)["content"], is_replay(&patched)), (&json!(name), false));
        assert!(!is_replay(&alice.post("/api/v1/search", json!({"query": name})).await));
    }
    let key = app.admin().post("/api/v1/admin/keys", json!({"name": "n"})).await.expect(201);
    let revoke = format!("/api/v1/admin/keys/{}/revoke", text(&key["key_id"]));
    for _ in 0..2 {
        let revoked = admin.post(&revoke, json!({})).await;
        assert!(revoked.status == 200 && !is_replay(&revoked), "{}", revoked.text());
    }
    // Not even a malformed one matters to them.
    app.alice().with(KEY, "\"").get(&path).await.expect(200);
    alice.delete(&path).await.expect(200);
    alice.delete(&path).await.expect_problem(404, "not_found");
}

async fn a_secret_is_shown_once_and_the_answer_says_what_to_do(app: TestApp) {
    let admin = app.admin().with(KEY, "k");
    let made = admin.post("/api/v1/admin/keys", json!({"name": "n"})).await.expect(201);
    let rotate = format!("/api/v1/admin/keys/{}/rotate", text(&made["key_id"]));
    let rotated = admin.post(&rotate, json!({"grace_seconds": 0})).await.expect(200);
    let secret = admin.post("/api/v1/admin/project/token-secret", json!({})).await.expect(201);
    let again = [
        (admin.post("/api/v1/admin/keys", json!({"name": "n"})).await, rotate.as_str()),
        (admin.post(&rotate, json!({"grace_seconds": 0})).await, rotate.as_str()),
        (admin.post("/api/v1/admin/project/token-secret", json!({})).await, "a new `Idempotency-Key`"),
    ];
    for (reply, advice) in again {
        let problem = reply.expect_problem(409, "secret_already_shown");
        assert!(text(&problem["detail"]).contains(advice), "{problem}");
        assert_eq!((reply.header("x-should-retry"), reply.header("retry-after")), (Some("false"), None));
        for shown in [&made, &rotated, &secret] {
            assert!(!reply.text().contains(shown["secret"].as_str().unwrap()));
        }
    }
    // The secret that was shown last works, and the one before does not.
    app.client(rotated["secret"].as_str().unwrap()).get(SESSIONS).await.expect(200);
    app.client(made["secret"].as_str().unwrap()).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
}

async fn a_replay_is_noted_as_such_in_the_audit_log(app: TestApp) {
    let admin = app.admin().with(KEY, "k");
    let project = admin.post("/api/v1/admin/projects", json!({"name": "p"})).await.expect(201);
    admin.post("/api/v1/admin/projects", json!({"name": "p"})).await.expect(201);
    for status in [201, 409] {
        admin.post("/api/v1/admin/keys", json!({"name": "n"})).await.expect(status);
    }
    let events = app.admin().get("/api/v1/admin/audit").await;
    assert_eq!(events.column("outcome"), ["secret_already_shown", "ok", "replayed", "ok"]);
    let made = &project["project_id"];
    assert_eq!(events.column("target_id")[2..], [made.clone(), made.clone()]);
}

async fn records_are_purged_in_the_background_when_they_have_expired(app: TestApp) {
    let session_id = SessionId::parse(&app.alice().new_session("n").await).unwrap();
    let (scope, now) = (Scope::project(ProjectId::DEFAULT), app.ctx.now());
    let claim_id = ClaimId::of(&[b"k"]);
    let claim = Claim {
        project_id: ProjectId::DEFAULT,
        claim_id,
        bucket: session_id.bucket(),
        fingerprint: [0; 32],
        recognition: Recognition::Key,
        now,
        expires_at: now.plus_micros(3_600_000_000),
    };
    // As of `now`, when the record counts, whatever the clock says: it is there, or it is not.
    let is_known = async || {
        let new = vec![NewMessage::text(app.ctx.new_message_id(now, session_id), "user", "x")];
        app.store.append_messages(&scope, session_id, new, now, Some(&claim)).await.unwrap().is_replay
    };
    assert!(!is_known().await);
    let (store, looks) = FaultyStore::count(app.store.clone(), "purge_idempotency_records");
    let stop = CancellationToken::new();
    let same = App::new(store, app.ctx.clone(), access(), limits(), stop.clone()).await.unwrap();
    let worker = worker::start(same, WorkerPace { purge_idle: Duration::from_millis(5), ..WorkerPace::default() });
    let looked = async || {
        let (began, before) = (Instant::now(), looks.load(Ordering::Relaxed));
        // One that began before this may have seen less; of two further ones the first has ended.
        while looks.load(Ordering::Relaxed) < before + 3 {
            assert!(began.elapsed() < Duration::from_secs(20), "the worker does not look");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    looked().await;
    assert!(is_known().await, "it was purged before its time");
    app.ctx.advance(Duration::from_secs(3_600));
    looked().await;
    assert!(!is_known().await, "it was not purged");
    stop.cancel();
    worker.await.unwrap();
}
