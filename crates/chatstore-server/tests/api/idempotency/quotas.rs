//! A project that is full: nothing more is stored, and what is stored is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chatstore_core::ids::ProjectId;
use chatstore_core::store::Quotas;
use chatstore_server::access::AccessSettings;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::sdk_retries::{conversation, said, send, send_body};
use super::{KEY, SESSIONS, assert_replay, is_replay, messages, stored};
use crate::app::{TestApp, access, api_tests, limits};
use crate::client::{Client, Reply, text};
use crate::faulty::{Fault, FaultyStore};

api_tests! {
    a_full_project_answers_what_it_has_stored
    a_full_project_answers_a_retry_of_an_sdk
    a_retry_of_what_fills_a_project_waits_for_it
}

const FULL: &str = "quota_exceeded";

async fn with_little_room(app: &TestApp) -> TestApp {
    let quotas = Quotas { project_bytes: Some(4_000), ..Quotas::default() };
    app.with_access(AccessSettings { quotas, ..access() }).await
}

/// Stores more than the project may hold.
async fn fill(client: &Client) {
    let session = client.new_session("n").await;
    client.new_message(&session, &"x".repeat(4_001)).await;
}

fn code(reply: &Reply) -> String {
    let body = reply.json();
    text(if body["error"].is_object() { &body["error"]["code"] } else { &body["code"] })
}

async fn a_full_project_answers_what_it_has_stored(app: TestApp) {
    let app = with_little_room(&app).await;
    let alice = app.alice();
    let session = alice.new_session("n").await;
    let conversation = text(&alice.post("/v1/conversations", json!({})).await.expect(200)["id"]);
    let items = json!([{"role": "user", "content": "x"}]);
    let requests: [(String, Value); 5] = [
        (SESSIONS.to_owned(), json!({"session_name": "n"})),
        (messages(&session), json!({"content": "x"})),
        (messages(&session), json!([{"content": "x"}, {"content": "y"}])),
        ("/v1/conversations".to_owned(), json!({"items": items})),
        (format!("/v1/conversations/{conversation}/items"), json!({"items": items})),
    ];
    let send = async |n: usize, key: &str| {
        let (path, body) = &requests[n];
        alice.with(KEY, format!("{key}{n}")).post(path, body).await
    };
    let mut first = Vec::new();
    for n in 0..requests.len() {
        first.push(send(n, "k").await);
    }
    fill(&alice).await;
    let before = stored(&app).await;
    for (n, first) in first.iter().enumerate() {
        assert_replay(first, &send(n, "k").await);
        let other_key = send(n, "l").await;
        assert_eq!((other_key.status, code(&other_key)), (403, FULL.to_owned()));
        let (path, body) = &requests[n];
        let no_key = alice.post(path, body).await;
        assert_eq!((no_key.status, code(&no_key)), (403, FULL.to_owned()));
        // The key of another body: that is said, whatever room there is.
        let other_body = alice.with(KEY, format!("k{n}")).post(path, format!(" {body}")).await;
        assert_eq!(code(&other_body), "idempotency_key_reused");
    }
    assert_eq!(stored(&app).await, before);
}

async fn a_full_project_answers_a_retry_of_an_sdk(app: TestApp) {
    let app = with_little_room(&app).await;
    let alice = app.alice();
    let conversation = text(&alice.post("/v1/conversations", json!({})).await.expect(200)["id"]);
    let body = json!({"items": [{"role": "user", "content": "x"}]});
    let path = format!("/v1/conversations/{conversation}/items");
    let send = async |retry: &str| alice.with("x-stainless-retry-count", retry).post(&path, &body).await;
    let first = send("0").await;
    assert!(first.status == 200 && !is_replay(&first));
    fill(&alice).await;
    assert_replay(&first, &send("1").await);
    for retry in ["0", "1"] {
        let refused = send(retry).await;
        assert_eq!((refused.status, code(&refused)), (403, FULL.to_owned()));
    }
}

async fn a_retry_of_what_fills_a_project_waits_for_it(app: TestApp) {
    let alice = app.alice();
    let (source, id) = (conversation(&alice).await, conversation(&alice).await);
    let long = send(&alice, &source, &"x".repeat(4_000), "0").await.json();
    let copy = json!({"items": [{"type": "item_reference", "id": long["first_id"]}]});
    for body in [said(&"x".repeat(4_000)), copy] {
        let (calls, release) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let held = Fault::Held(calls.clone(), release.clone());
        let bytes = app.store.get_project_usage(ProjectId::DEFAULT).await.unwrap().bytes;
        // Room for what comes next, and for nothing beside it.
        let quotas = Quotas { project_bytes: Some(bytes + 200), ..Quotas::default() };
        let hold = |store| FaultyStore::wrap(store, "append_messages", held);
        let app = app.rebuild_with(hold, AccessSettings { quotas, ..access() }, limits()).await;
        let alice = app.alice();
        let mut first = Box::pin(send_body(&alice, &id, &body, "0"));
        while calls.load(Ordering::Relaxed) == 0 {
            assert!(timeout(Duration::from_millis(1), &mut first).await.is_err());
        }
        drop(first);
        assert_eq!(code(&send_body(&alice, &id, &body, "1").await), "request_in_flight");
        release.cancel();
        let answer = send_body(&alice, &id, &body, "2").await;
        assert!(answer.status == 200 && is_replay(&answer), "{}", answer.text());
    }
}
