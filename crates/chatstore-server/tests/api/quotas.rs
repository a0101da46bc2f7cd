//! Quotas over HTTP: how much a user, a session, and a project may hold.

use std::time::{Duration, Instant};

use chatstore_core::ids::ProjectId;
use chatstore_core::store::Quotas;
use chatstore_server::access::AccessSettings;
use serde_json::{Value, json};

use crate::app::{TestApp, access, api_tests, limits};
use crate::client::text;
use crate::faulty::FaultyStore;

api_tests! {
    a_user_has_no_more_sessions_than_the_quota
    a_session_has_no_more_messages_than_the_quota
    a_projects_quotas_stand_before_those_of_the_installation
    a_project_past_its_bytes_takes_no_more_text
    what_is_freed_can_be_used_again
    a_project_is_looked_at_once_in_ten_seconds
    without_the_quota_nobody_looks
}

const SESSIONS: &str = "/api/v1/sessions";

async fn with_quotas(app: &TestApp, quotas: Quotas) -> TestApp {
    app.with_access(AccessSettings { quotas, ..access() }).await
}

async fn a_user_has_no_more_sessions_than_the_quota(app: TestApp) {
    let app = with_quotas(&app, Quotas { sessions_per_user: Some(2), ..Quotas::default() }).await;
    let first = app.alice().new_session("1").await;
    app.alice().new_session("2").await;
    let refused = app.alice().post(SESSIONS, json!({"session_name": "3"})).await;
    let problem = refused.expect_problem(403, "quota_exceeded");
    assert!(text(&problem["detail"]).contains("sessions_per_user") && text(&problem["detail"]).contains('2'));
    app.bob().new_session("1").await;
    app.alice().delete(&format!("{SESSIONS}/{first}")).await.expect(200);
    app.alice().new_session("3").await;
}

async fn a_session_has_no_more_messages_than_the_quota(app: TestApp) {
    let app = with_quotas(&app, Quotas { messages_per_session: Some(3), ..Quotas::default() }).await;
    let id = app.admin().new_session("n").await;
    let path = format!("{SESSIONS}/{id}/messages");
    let batch = |count: usize| Value::from(vec![json!({"content": "x"}); count]);
    app.admin().post(&path, batch(4)).await.expect_problem(403, "quota_exceeded");
    app.admin().post(&path, batch(3)).await.expect(201);
    app.admin().post(&path, json!({"content": "x"})).await.expect_problem(403, "quota_exceeded");
    assert_eq!(app.admin().get(&path).await.items().len(), 3);
    let import = json!([{"id": "big", "messages": batch(4)}, {"id": "small", "messages": batch(3)}]);
    let imported = app.admin().post("/api/v1/admin/import", import).await.expect(200);
    assert_eq!((&imported["sessions"], &imported["refused"][0]["index"]), (&json!(1), &json!(0)));
    assert!(text(&imported["refused"][0]["detail"]).contains("messages_per_session"), "{imported}");
}

async fn a_projects_quotas_stand_before_those_of_the_installation(app: TestApp) {
    let app = with_quotas(&app, Quotas { sessions_per_user: Some(1), ..Quotas::default() }).await;
    let own = format!("/api/v1/admin/projects/{}", ProjectId::DEFAULT);
    app.admin().patch(&own, json!({"quotas": {"sessions_per_user": 2}})).await.expect(200);
    app.alice().new_session("1").await;
    app.alice().new_session("2").await;
    app.alice().post(SESSIONS, json!({"session_name": "3"})).await.expect_problem(403, "quota_exceeded");
    let zoe = app.stranger().with("x-user-id", "zoe");
    zoe.new_session("1").await;
    zoe.post(SESSIONS, json!({"session_name": "2"})).await.expect_problem(403, "quota_exceeded");
}

async fn a_project_past_its_bytes_takes_no_more_text(app: TestApp) {
    let app = with_quotas(&app, Quotas { project_bytes: Some(2_000), ..Quotas::default() }).await;
    let id = app.admin().new_session("n").await;
    let messages = format!("{SESSIONS}/{id}/messages");
    let message = app.admin().new_message(&id, &"x".repeat(2_001)).await;
    let path = format!("/api/v1/messages/{}", text(&message["message_id"]));
    let put = async |body: Value| {
        let body = axum::body::Body::from(body.to_string());
        app.admin().send(axum::http::Method::PUT, &format!("{path}/embedding"), body).await
    };
    for reply in [
        app.admin().post(SESSIONS, json!({"session_name": "n"})).await,
        app.admin().post(&messages, json!({"content": "x"})).await,
        app.admin().patch(&path, json!({"content": "y"})).await,
        app.admin().patch(&path, json!({"context": "y"})).await,
        app.admin().post("/api/v1/admin/import", json!([{"id": "c", "messages": []}])).await,
        put(json!({"embedding": [1, 2]})).await,
        app.admin().patch(&format!("{SESSIONS}/{id}"), json!({"session_name": "m"})).await,
        app.admin().patch(&format!("{SESSIONS}/{id}"), json!({"metadata": {"k": "v"}})).await,
    ] {
        let problem = reply.expect_problem(403, "quota_exceeded");
        assert!(text(&problem["detail"]).contains("project_bytes"), "{problem}");
    }
    app.admin().get(&messages).await.expect(200);
    app.admin().patch(&path, json!({"status": "completed"})).await.expect(200);
    app.admin().patch(&format!("{SESSIONS}/{id}"), json!({"is_favorite": true, "metadata": null})).await.expect(200);
    app.stranger().new_session("another project").await;
    app.admin().delete(&path).await.expect(200);
    app.admin().delete(&format!("{SESSIONS}/{id}")).await.expect(200);
}

async fn what_is_freed_can_be_used_again(app: TestApp) {
    let app = with_quotas(&app, Quotas { project_bytes: Some(2_000), ..Quotas::default() }).await;
    let id = app.admin().new_session("n").await;
    let message = app.admin().new_message(&id, &"x".repeat(2_001)).await;
    let append = async || app.admin().post(&format!("{SESSIONS}/{id}/messages"), json!({"content": "x"})).await.status;
    assert_eq!(append().await, 403);
    app.admin().delete(&format!("/api/v1/messages/{}", text(&message["message_id"]))).await.expect(200);
    assert_eq!(append().await, 403, "the look of a moment ago still counts");
    app.ctx.advance(Duration::from_secs(11));
    let began = Instant::now();
    while append().await != 201 {
        assert!(began.elapsed() < Duration::from_secs(20), "nobody looks again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_project_is_looked_at_once_in_ten_seconds(app: TestApp) {
    let (mut counter, quotas) = (None, json!({"quotas": {"project_bytes": 1_000_000_000}}));
    app.admin().patch("/api/v1/admin/project", quotas).await.expect(200);
    let wrap = |store| {
        let (store, count) = FaultyStore::count(store, "get_project_usage");
        counter = Some(count);
        store
    };
    let app = app.rebuild(wrap, limits()).await;
    let looks = || counter.as_ref().unwrap().load(std::sync::atomic::Ordering::Relaxed);
    let create = || async { app.admin().new_session("n").await };
    futures_util::future::join_all((0..20).map(|_| create())).await;
    let usage = app.admin().get("/api/v1/admin/project").await.expect(200)["usage"].clone();
    assert_eq!((looks(), &usage["messages"]), (1, &json!(0)));
    app.ctx.advance(Duration::from_secs(11));
    let usage = app.admin().get("/api/v1/admin/project").await.expect(200)["usage"].clone();
    assert_eq!((looks(), &usage["sessions"]), (2, &json!(20)));
}

async fn without_the_quota_nobody_looks(app: TestApp) {
    let mut counter = None;
    let wrap = |store| {
        let (store, count) = FaultyStore::count(store, "get_project_usage");
        counter = Some(count);
        store
    };
    let app = app.rebuild(wrap, limits()).await;
    let id = app.admin().new_session("n").await;
    app.admin().new_message(&id, "x").await;
    assert_eq!(counter.unwrap().load(std::sync::atomic::Ordering::Relaxed), 0);
}
