//! Requests that come again: what is one request, what is another, and how each is answered.

mod external_ids;
mod life;
mod pairs;
mod quotas;
mod sdk_retries;
mod sdk_tries;

use chatstore_core::ids::ProjectId;
use serde_json::{Value, json};

use crate::app::TestApp;
use crate::client::{Client, Reply};

const SESSIONS: &str = "/api/v1/sessions";
const KEY: &str = "idempotency-key";

/// The path of a session's messages.
fn messages(session_id: &str) -> String {
    format!("{SESSIONS}/{session_id}/messages")
}

/// Whether an answer says that it repeats an earlier one.
#[track_caller]
fn is_replay(reply: &Reply) -> bool {
    let mark = reply.header("idempotent-replayed");
    assert!(mark.is_none_or(|mark| mark == "true"), "{reply:?}");
    mark.is_some()
}

/// An answer to a request that was done now.
#[track_caller]
fn assert_first(reply: &Reply) -> Value {
    let body = reply.expect(201);
    assert!(!is_replay(reply), "{reply:?}");
    body
}

/// The answer of `first` again, to the byte.
#[track_caller]
fn assert_replay(first: &Reply, again: &Reply) {
    assert!(again.status < 300 && is_replay(again), "{}: {}", again.status, again.text());
    let said = |reply: &Reply| {
        let headers = ["content-type", "etag", "location"].map(|name| reply.header(name).map(ToOwned::to_owned));
        (reply.status, reply.text().to_owned(), headers)
    };
    assert_eq!(said(again), said(first));
}

/// How much there is of everything that requests make.
async fn stored(app: &TestApp) -> Vec<usize> {
    let mut counts = Vec::new();
    for project_id in [ProjectId::DEFAULT, app.other] {
        let usage = app.store.get_project_usage(project_id).await.unwrap();
        counts.extend([usage.sessions as usize, usage.messages as usize]);
    }
    for path in ["/api/v1/admin/keys", "/api/v1/admin/projects"] {
        counts.push(app.admin().get(&format!("{path}?limit=100")).await.items().len());
    }
    counts
}

/// Appends one message under a key.
async fn say(client: &Client, session_id: &str, key: &str, content: &str) -> Reply {
    client.with(KEY, key).post(&messages(session_id), json!({"content": content})).await
}
