//! Errors on OpenAI's wire: one envelope for everything under `/v1`, whatever goes wrong.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use chatstore_core::rates::Rates;
use chatstore_core::store::StoreError;
use chatstore_server::access::AccessSettings;
use serde_json::{Value, json};

use crate::app::{TestApp, access, api_tests, limits};
use crate::client::Reply;
use crate::faulty::{Fault, FaultyStore};

api_tests! {
    every_refusal_is_an_envelope
    every_error_of_the_store_is_an_envelope
    too_many_requests_are_a_429_that_may_be_tried_again
    the_envelope_stands_under_v1_alone
}

const PATH: &str = "/v1/conversations";

/// Type, param and code.
fn said(reply: &Reply) -> (u16, Value) {
    let error = &reply.json()["error"];
    (reply.status, json!([error["type"], error["param"], error["code"]]))
}

async fn every_refusal_is_an_envelope(app: TestApp) {
    let invalid = "invalid_request_error";
    let admin = app.admin();
    let typed = admin.with("content-type", "text/plain");
    for (reply, status, expected) in [
        (app.anon().get(PATH).await, 401, json!([invalid, null, "invalid_api_key"])),
        (app.client("cs_x").get(PATH).await, 401, json!([invalid, null, "invalid_api_key"])),
        (
            app.anon().with("authorization", "Bearer a.b.c").get(PATH).await,
            401,
            json!([invalid, null, "invalid_api_key"]),
        ),
        (app.reader().post(PATH, json!({})).await, 403, json!(["permission_error", null, "missing_scope"])),
        (app.alice().with("x-user-id", "bob").get(PATH).await, 403, json!(["permission_error", null, "user_mismatch"])),
        (admin.get("/v1/conversations/conv_x").await, 404, json!([invalid, null, null])),
        (admin.get("/v1/models").await, 404, json!([invalid, null, null])),
        (admin.send(Method::PUT, PATH, Body::empty()).await, 405, json!([invalid, null, "method_not_allowed"])),
        (typed.post(PATH, "x").await, 415, json!([invalid, null, "unsupported_media_type"])),
        (admin.post(PATH, "{").await, 400, json!([invalid, null, "invalid_json"])),
        (admin.post(PATH, "[]").await, 400, json!([invalid, null, "invalid_value"])),
        (admin.post(PATH, json!({"items": 1})).await, 400, json!([invalid, "items", "invalid_value"])),
        (admin.with("idempotency-key", "").post(PATH, json!({})).await, 400, json!([invalid, null, "invalid_header"])),
        (admin.get("/v1/conversations?user=%FF").await, 400, json!([invalid, "user", "invalid_value"])),
    ] {
        assert_eq!(said(&reply), (status, expected), "{reply:?}");
    }
    let small =
        app.rebuild(|store| store, chatstore_server::app::RequestLimits { body_bytes_max: 10, ..limits() }).await;
    let reply = small.admin().post(PATH, json!({"metadata": {"a": "b"}})).await;
    assert_eq!(said(&reply), (413, json!([invalid, null, "body_too_large"])));
}

async fn every_error_of_the_store_is_an_envelope(app: TestApp) {
    let reason = || "select canary from /tmp".to_owned();
    for (error, status, kind, code) in [
        (StoreError::NotFound, 404, "invalid_request_error", json!(null)),
        (StoreError::InFlight, 409, "invalid_request_error", json!("request_in_flight")),
        (StoreError::KeyReused, 422, "invalid_request_error", json!("idempotency_key_reused")),
        (StoreError::Gone, 410, "invalid_request_error", json!("gone")),
        (
            StoreError::QuotaExceeded { quota: "messages_per_session", max: 3 },
            403,
            "permission_error",
            json!("quota_exceeded"),
        ),
        (StoreError::Busy, 503, "server_error", json!("overloaded")),
        (StoreError::Unavailable { reason: reason() }, 503, "server_error", json!("store_unavailable")),
        (StoreError::Full, 507, "server_error", json!("storage_full")),
        (StoreError::Internal { reason: reason() }, 500, "server_error", json!("internal_error")),
    ] {
        let broken =
            app.rebuild(|store| FaultyStore::wrap(store, "append_messages", Fault::Error(error)), limits()).await;
        let path = format!("{PATH}/conv_019b0f3e5c007a419d523f6a8c1e2b47/items");
        let reply = broken.admin().post(&path, json!({"items": [{"type": "x"}]})).await;
        assert_eq!(said(&reply), (status, json!([kind, null, code])), "{reply:?}");
        assert!(!reply.text().contains("canary"));
        let should_retry = (status == 409).then_some("true");
        assert_eq!(reply.header("x-should-retry"), should_retry);
        assert_eq!(reply.header("retry-after").is_some(), matches!(status, 409 | 503));
    }
    let broken = app.rebuild(|store| FaultyStore::wrap(store, "create_session", Fault::Panic), limits()).await;
    let reply = broken.admin().with("x-request-id", "mine").post(PATH, json!({})).await;
    assert_eq!(
        (said(&reply), reply.header("x-request-id")),
        ((500, json!(["server_error", null, "internal_error"])), Some("mine"))
    );
    let short = chatstore_server::app::RequestLimits { request_timeout: Duration::from_millis(20), ..limits() };
    let slow = app.rebuild(|store| FaultyStore::wrap(store, "get_session", Fault::Hang), short).await;
    let reply = slow.admin().get(&format!("{PATH}/conv_019b0f3e5c007a419d523f6a8c1e2b47")).await;
    assert_eq!(said(&reply), (503, json!(["server_error", null, "request_timeout"])));
}

async fn too_many_requests_are_a_429_that_may_be_tried_again(app: TestApp) {
    let limited = app.with_access(AccessSettings { global_rates: Rates::parse("1/day").unwrap(), ..access() }).await;
    limited.admin().get(PATH).await.expect(200);
    let reply = limited.admin().get(PATH).await;
    assert_eq!(said(&reply), (429, json!(["rate_limit_error", null, "rate_limit_exceeded"])));
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!(seconds >= 1 && reply.header("ratelimit").is_some(), "{reply:?}");
}

async fn the_envelope_stands_under_v1_alone(app: TestApp) {
    for (path, media_type) in [
        ("/v1", "application/json"),
        ("/v1/", "application/json"),
        ("/v1/x", "application/json"),
        ("/v10", "application/problem+json"),
        ("/v1x/y", "application/problem+json"),
        ("/api/v1/x", "application/problem+json"),
    ] {
        let reply = app.admin().get(path).await;
        assert_eq!((reply.status, reply.header("content-type")), (404, Some(media_type)), "{path}");
    }
}
