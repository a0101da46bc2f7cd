//! Too much at once: who waits, who is turned away, and what is always answered.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Method;
use chatstore_server::access::AccessSettings;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::app::{ROOT_KEY, TestApp, access, api_tests, limits};
use crate::client::{Client, Reply};
use crate::faulty::{Fault, FaultyStore};

const SESSIONS: &str = "/api/v1/sessions";

api_tests! {
    what_cannot_be_handled_soon_is_turned_away_at_once
    who_is_turned_away_waits_for_no_body
    deletes_and_administration_wait_where_others_are_turned_away
    a_slow_body_holds_no_place
    a_refused_body_holds_no_place
}

fn small(requests_max: usize) -> AccessSettings {
    AccessSettings { requests_max, ..access() }
}

/// The same application, with so many places, where lists of sessions never end.
async fn hanging(app: &TestApp, requests_max: usize) -> TestApp {
    let hang = |store| FaultyStore::wrap(store, "list_sessions", Fault::Hang);
    app.rebuild_with(hang, small(requests_max), limits()).await
}

async fn what_cannot_be_handled_soon_is_turned_away_at_once(app: TestApp) {
    let full = hanging(&app, 2).await;
    let began = Instant::now();
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
    for path in ["/", "/docs", "/openapi.json"] {
        full.anon().get(path).await.expect_problem(503, "overloaded");
    }
    for path in ["/healthz", "/livez", "/readyz"] {
        full.anon().get(path).await.expect(200);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    // Whoever goes away makes room.
    requests.shutdown().await;
    full.admin().new_session("n").await;
}

/// What comes over a connection until it is closed, and how long that took.
async fn exchange(app: &TestApp, request: &str) -> (String, Duration) {
    let (mut stream, _stop) = app.connect().await;
    let began = Instant::now();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.expect("it stays open").unwrap();
    (answer, began.elapsed())
}

async fn who_is_turned_away_waits_for_no_body(app: TestApp) {
    let full = hanging(&app, 1).await;
    let mut requests = JoinSet::new();
    for _ in 0..1 + 8 + 1 {
        let client = full.admin();
        requests.spawn(async move { client.get(SESSIONS).await });
    }
    requests.join_next().await.unwrap().unwrap().expect_problem(503, "overloaded");
    let post = |more: &str| format!("POST {SESSIONS} HTTP/1.1\r\nhost: t\r\nx-api-key: {ROOT_KEY}\r\n{more}");
    // A body that never comes to its end: the answer, and the end of the connection.
    let (answer, took) = exchange(&full, &post("content-length: 100\r\n\r\n{")).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    // Where a request is refused for another reason, its body is awaited for two seconds.
    assert!(took < Duration::from_secs(2), "{took:?}");
    // One that is there is read, so that the connection serves on.
    let next = "GET /livez HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n";
    let (answer, _) = exchange(&full, &(post("content-length: 2\r\n\r\n{}") + next)).await;
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|rest| &rest[..3]).collect();
    assert_eq!(statuses, ["503", "200"], "{answer}");
}

async fn deletes_and_administration_wait_where_others_are_turned_away(app: TestApp) {
    let session = format!("{SESSIONS}/{}", app.admin().new_session("n").await);
    let app = hanging(&app, 1).await;
    let admin = app.admin();
    let soon = async |path: &str| timeout(Duration::from_millis(20), admin.get(path)).await.ok();
    let hung = tokio::spawn({
        let admin = admin.clone();
        async move { admin.get(SESSIONS).await }
    });
    while soon(&session).await.is_some() {
        tokio::task::yield_now().await;
    }
    // While somebody waits and nobody is done, the wait that is foreseen for others grows.
    let mut waiting = JoinSet::new();
    let (client, path) = (admin.clone(), session.clone());
    waiting.spawn(async move { client.get(&path).await });
    let refused: Reply = loop {
        if let Some(reply) = soon(&session).await {
            break reply;
        }
    };
    refused.expect_problem(503, "overloaded");
    let import = json!([{"id": "c", "messages": []}]);
    admin.post("/api/v1/admin/import", import).await.expect_problem(503, "overloaded");
    let (client, path) = (admin.clone(), session.clone());
    waiting.spawn(async move { client.delete(&path).await });
    let client = admin.clone();
    waiting.spawn(async move { client.post("/api/v1/admin/keys", json!({"name": "k", "scopes": ["read"]})).await });
    assert!(timeout(Duration::from_millis(100), waiting.join_next()).await.is_err());
    hung.abort();
    let mut statuses: Vec<u16> = waiting.join_all().await.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 201]);
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
