//! Too much at once: who waits, who is turned away, and what is always answered.

use axum::body::Body;
use axum::http::Method;
use chatstore_server::access::AccessSettings;
use serde_json::json;
use tokio::task::JoinSet;

use crate::app::{TestApp, access, api_tests, limits};
use crate::client::Client;
use crate::faulty::{Fault, FaultyStore};

const SESSIONS: &str = "/api/v1/sessions";

api_tests! {
    what_cannot_be_handled_soon_is_turned_away_at_once
    a_slow_body_holds_no_place
    a_refused_body_holds_no_place
}

fn small(requests_max: usize) -> AccessSettings {
    AccessSettings { requests_max, ..access() }
}

async fn what_cannot_be_handled_soon_is_turned_away_at_once(app: TestApp) {
    let hang = |store| FaultyStore::wrap(store, "list_sessions", Fault::Hang);
    let full = app.rebuild_with(hang, small(2), limits()).await;
    let mut requests = JoinSet::new();
    for _ in 0..60 {
        let client = full.admin();
        requests.spawn(async move { client.get(SESSIONS).await });
    }
    // Two hang and at most 16 wait; no other can have an answer but a refusal.
    for _ in 0..60 - 2 - 16 {
        let reply = requests.join_next().await.unwrap().unwrap();
        reply.expect_problem(503, "overloaded");
        let pause: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=5).contains(&pause), "{reply:?}");
    }
    for path in ["/healthz", "/livez", "/readyz"] {
        full.anon().get(path).await.expect(200);
    }
    // Whoever goes away makes room.
    requests.shutdown().await;
    full.admin().new_session("n").await;
}

/// A body that comes when it is told to.
fn slow_body() -> (tokio::sync::mpsc::Sender<&'static str>, Body) {
    let (sender, receiver) = tokio::sync::mpsc::channel::<&'static str>(4);
    let parts = futures_util::stream::unfold(receiver, async |mut receiver| {
        let part = receiver.recv().await?;
        Some((Ok::<_, std::io::Error>(part), receiver))
    });
    (sender, Body::from_stream(parts))
}

async fn send_slowly(client: Client, path: &'static str) -> tokio::sync::mpsc::Sender<&'static str> {
    let (sender, body) = slow_body();
    sender.send("{").await.unwrap();
    tokio::spawn(async move { client.send(Method::POST, path, body).await });
    // The first part is gone when the body is being read.
    while sender.capacity() < 4 {
        tokio::task::yield_now().await;
    }
    sender
}

async fn a_slow_body_holds_no_place(app: TestApp) {
    let app = app.with_access(small(1)).await;
    let sender = send_slowly(app.admin(), SESSIONS).await;
    app.admin().get(SESSIONS).await.expect(200);
    app.admin().new_session("fast").await;
    sender.send("\"session_name\": \"slow\"}").await.unwrap();
    drop(sender);
    while app.admin().get(SESSIONS).await.items().len() < 2 {
        tokio::task::yield_now().await;
    }
}

async fn a_refused_body_holds_no_place(app: TestApp) {
    let app = app.with_access(small(1)).await;
    let _sender = send_slowly(app.client("no-key"), SESSIONS).await;
    app.admin().post(SESSIONS, json!({"session_name": "n"})).await.expect(201);
}
