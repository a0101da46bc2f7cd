//! What a client is told when it is our fault: the store's errors, panics, and time that ran out.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use chatstore_core::store::StoreError;
use chatstore_server::app::RequestLimits;
use chatstore_server::router::{Access, routes};
use serde_json::json;

use crate::app::{TestApp, api_tests, limits};
use crate::client::{Client, Reply, fill};
use crate::faulty::{Fault, FaultyStore};

api_tests! {
    each_error_of_the_store_has_its_status
    an_error_of_the_store_is_documented_for_every_operation
    a_conflict_and_an_invalid_field_are_pointed_at
    a_store_that_fails_while_a_key_is_looked_up_lets_nobody_in
    a_panic_is_a_500_and_the_application_lives
    a_request_that_takes_too_long_is_a_503
    a_body_that_stops_coming_is_a_408
    a_body_that_breaks_off_is_a_400
    a_store_that_is_closed_is_not_ready
}

const ID: &str = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";
const REASON: &str = "select canary from /tmp/chatstore.db at 127.0.0.1";

async fn faulty(app: &TestApp, method: &'static str, fault: Fault) -> TestApp {
    app.rebuild(|store| FaultyStore::wrap(store, method, fault), limits()).await
}

/// A well-formed request to the operation with this id.
async fn call(client: &Client, operation: &str) -> Reply {
    call_about(client, operation, (ID, "0000000000aZ")).await
}

/// The same about this project, or this key.
async fn call_about(client: &Client, operation: &str, (project_id, key_id): (&str, &str)) -> Reply {
    let route = routes().into_iter().find(|route| route.doc.id == operation).unwrap();
    let mut path = fill(route.path, ID, ID);
    path = path.replace("{project_id}", project_id).replace("{key_id}", key_id);
    if route.method == Method::GET && path.ends_with("/search") {
        path.push_str("?q=x");
    }
    let body = match operation {
        "create_session" => json!({"session_name": "n"}),
        "append_messages" => json!({"content": "x"}),
        "create_items" => json!({"items": [{"role": "user", "content": "x"}]}),
        "update_conversation" => json!({"metadata": {}}),
        "import_sessions" => json!([{"id": "c", "messages": []}]),
        "search_messages" => json!({"query": "x"}),
        "set_embedding" => json!({"embedding": [1, 2]}),
        "create_api_key" | "create_project" => json!({"name": "n"}),
        "create_token" => json!({"user_id": "ada"}),
        _ => json!({}),
    };
    client.with("content-type", "application/json").send(route.method, &path, Body::from(body.to_string())).await
}

fn guarded() -> Vec<&'static str> {
    routes().iter().filter(|route| matches!(route.access, Access::Needs(_))).map(|route| route.doc.id).collect()
}

/// Those that ask the store for more than the guard does.
fn asking() -> impl Iterator<Item = &'static str> {
    guarded().into_iter().filter(|operation| !["get_api_key", "create_token"].contains(operation))
}

/// The id of a project, and of a key.
async fn things(app: &TestApp) -> (String, String) {
    let key = app.admin().post("/api/v1/admin/keys", json!({"name": "n"})).await.expect(201);
    (app.other.to_string(), key["key_id"].as_str().unwrap().to_owned())
}

async fn each_error_of_the_store_has_its_status(app: TestApp) {
    let reason = || REASON.to_owned();
    let cases = [
        (StoreError::NotFound, 404, "not_found"),
        (StoreError::Conflict { field: "external_id" }, 409, "conflict"),
        (StoreError::VersionMismatch { current: 3 }, 412, "version_mismatch"),
        (
            StoreError::Invalid { pointer: "/status".to_owned(), detail: "is final".to_owned() },
            422,
            "validation_failed",
        ),
        (StoreError::Busy, 503, "overloaded"),
        (StoreError::Unavailable { reason: reason() }, 503, "store_unavailable"),
        (StoreError::Full, 507, "storage_full"),
        (StoreError::Internal { reason: reason() }, 500, "internal_error"),
    ];
    for (error, status, code) in cases {
        let broken = faulty(&app, "*", Fault::Error(error.clone())).await;
        // Each error from an operation that can meet it.
        let operation = if matches!(error, StoreError::Conflict { .. }) { "create_session" } else { "update_message" };
        let reply = call(&broken.admin(), operation).await;
        reply.expect_problem(status, code);
        assert!(!reply.text().contains("canary"), "{}", reply.text());
        assert_eq!(reply.header("retry-after").is_some(), status == 503, "{reply:?}");
    }
}

async fn an_error_of_the_store_is_documented_for_every_operation(app: TestApp) {
    let reads = |operation: &str| ["get_", "list_", "search_"].iter().any(|verb| operation.starts_with(verb));
    let (project_id, key_id) = things(&app).await;
    for (error, status) in [
        (StoreError::Busy, 503),
        (StoreError::Unavailable { reason: REASON.to_owned() }, 503),
        (StoreError::Internal { reason: REASON.to_owned() }, 500),
        (StoreError::Full, 507),
    ] {
        let broken = faulty(&app, "*", Fault::Error(error)).await;
        for operation in asking().filter(|operation| status != 507 || !reads(operation)) {
            let reply = call_about(&broken.admin(), operation, (&project_id, &key_id)).await;
            assert_eq!(reply.status, status, "{operation}: {}", reply.text());
            assert!(!reply.text().contains("canary"), "{}", reply.text());
        }
    }
    let broken = faulty(&app, "check", Fault::Error(StoreError::Unavailable { reason: REASON.to_owned() })).await;
    broken.anon().get("/readyz").await.expect_problem(503, "not_ready");
    assert_eq!(broken.anon().get("/").await.expect(200)["status"], "not_ready");
    broken.anon().get("/livez").await.expect(200);
}

async fn a_conflict_and_an_invalid_field_are_pointed_at(app: TestApp) {
    let broken = faulty(&app, "*", Fault::Error(StoreError::Conflict { field: "external_id" })).await;
    for operation in ["create_session", "append_messages"] {
        let problem = call(&broken.admin(), operation).await.expect_problem(409, "conflict");
        assert_eq!(problem["errors"][0]["pointer"], "/external_id");
    }
    let invalid = StoreError::Invalid { pointer: "/0/parent_id".to_owned(), detail: "is absent".to_owned() };
    let broken = faulty(&app, "append_messages", Fault::Error(invalid)).await;
    call(&broken.admin(), "append_messages").await.expect_invalid(&["/parent_id"]);
    let path = format!("/api/v1/sessions/{ID}/messages");
    broken.admin().post(&path, json!([{"content": "x"}])).await.expect_invalid(&["/0/parent_id"]);
}

async fn a_store_that_fails_while_a_key_is_looked_up_lets_nobody_in(app: TestApp) {
    let unavailable = Fault::Error(StoreError::Unavailable { reason: REASON.to_owned() });
    for (fault, status) in [(unavailable, 503), (Fault::Panic, 500)] {
        let broken = faulty(&app, "get_api_key", fault).await;
        for operation in guarded() {
            assert_eq!(call(&broken.alice(), operation).await.status, status, "{operation}");
        }
        broken.admin().get("/api/v1/sessions").await.expect(200);
        broken.client("not-a-key").get("/api/v1/sessions").await.expect_problem(401, "invalid_api_key");
    }
}

async fn a_panic_is_a_500_and_the_application_lives(app: TestApp) {
    for method in ["list_sessions", "create_session", "check"] {
        let broken = faulty(&app, method, Fault::Panic).await;
        let reply = match method {
            "check" => broken.anon().get("/readyz").await,
            operation => call(&broken.admin().with("x-request-id", "my-id"), operation).await,
        };
        reply.expect_problem(500, "internal_error");
        assert!(!reply.text().contains("canary"), "{}", reply.text());
        if method != "check" {
            assert_eq!(reply.header("x-request-id"), Some("my-id"));
        }
        broken.anon().get("/livez").await.expect(200);
        call(&broken.admin(), "get_session").await.expect_problem(404, "not_found");
    }
}

async fn a_request_that_takes_too_long_is_a_503(app: TestApp) {
    let short = RequestLimits { request_timeout: Duration::from_millis(20), ..limits() };
    let broken = app.rebuild(|store| FaultyStore::wrap(store, "*", Fault::Hang), short).await;
    let (project_id, key_id) = things(&app).await;
    for operation in asking() {
        let reply = call_about(&broken.admin(), operation, (&project_id, &key_id)).await;
        reply.expect_problem(503, "request_timeout");
        // It may have happened: no machine is told to repeat it.
        assert!(reply.header("retry-after").is_none());
    }
    broken.anon().get("/readyz").await.expect_problem(503, "request_timeout");
    broken.anon().get("/livez").await.expect(200);
}

async fn a_body_that_stops_coming_is_a_408(app: TestApp) {
    let short = RequestLimits { body_read_timeout: Duration::from_millis(20), ..limits() };
    let app = app.rebuild(|store| store, short).await;
    use futures_util::StreamExt as _;
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>("{\"session_name\":")]);
    let body = Body::from_stream(first.chain(futures_util::stream::pending()));
    let reply = app.admin().send(Method::POST, "/api/v1/sessions", body).await;
    reply.expect_problem(408, "body_timeout");
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(app.admin().get("/api/v1/sessions").await.text(), "[]");
}

async fn a_body_that_breaks_off_is_a_400(app: TestApp) {
    let parts = [Ok("{\"session_name\":\"n\""), Err(std::io::Error::other("reset"))];
    let body = Body::from_stream(futures_util::stream::iter(parts));
    app.admin().send(Method::POST, "/api/v1/sessions", body).await.expect_problem(400, "body_incomplete");
    assert_eq!(app.admin().get("/api/v1/sessions").await.text(), "[]");
}

async fn a_store_that_is_closed_is_not_ready(app: TestApp) {
    app.store.close().await;
    app.anon().get("/readyz").await.expect_problem(503, "not_ready");
    let reply = app.admin().post("/api/v1/sessions", json!({"session_name": "n"})).await;
    reply.expect_problem(503, "store_unavailable");
    assert_eq!(app.admin().get("/api/v1/sessions").await.status, 503);
    app.anon().get("/livez").await.expect(200);
}
