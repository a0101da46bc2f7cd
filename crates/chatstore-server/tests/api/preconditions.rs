//! `ETag` and `If-Match`: nobody overwrites what they have not seen.

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, api_tests};
use crate::client::{Client, Reply, text};

api_tests! {
    a_change_with_the_current_version_is_made
    a_change_with_another_version_is_a_412_and_changes_nothing
    a_weak_or_unknown_etag_never_matches
    an_if_match_that_is_no_etag_is_a_400
    a_precondition_on_what_is_absent_is_a_404
    of_two_writers_with_one_version_one_wins
}

/// A fresh message and its session, by their paths.
async fn things(app: &TestApp) -> [String; 2] {
    let id = app.admin().new_session("n").await;
    let message = app.admin().new_message(&id, "x").await;
    [format!("/api/v1/messages/{}", text(&message["message_id"])), format!("/api/v1/sessions/{id}")]
}

/// A patch that changes either kind of thing.
fn change(n: u32) -> Value {
    json!({"metadata": {"n": n}})
}

async fn send(client: &Client, method: Method, path: &str) -> Reply {
    match method {
        Method::PATCH => client.patch(path, change(1)).await,
        method => client.send(method, path, Body::empty()).await,
    }
}

async fn a_change_with_the_current_version_is_made(app: TestApp) {
    for condition in ["\"1\"", "*", "\"7\", \"1\"", "\"1\",W/\"9\"", " \"1\" "] {
        for method in [Method::PATCH, Method::DELETE] {
            for path in things(&app).await {
                let reply = send(&app.admin().with("if-match", condition), method.clone(), &path).await;
                assert_eq!(reply.status, 200, "{method} {condition}: {}", reply.text());
            }
        }
    }
    for path in things(&app).await {
        let two = app.admin().with("if-match", "\"5\"").with("if-match", "\"1\"");
        let etag = two.patch(&path, change(1)).await.header("etag").unwrap().to_owned();
        assert_eq!(etag, "\"2\"");
        app.admin().with("if-match", etag).patch(&path, change(2)).await.expect(200);
        app.admin().with("if-match", "\"3\"").patch(&path, json!({})).await.expect(200);
        app.admin().with("if-match", "\"3\"").delete(&path).await.expect(200);
    }
}

async fn a_change_with_another_version_is_a_412_and_changes_nothing(app: TestApp) {
    for path in things(&app).await {
        let before = app.admin().get(&path).await.expect(200);
        for method in [Method::PATCH, Method::DELETE] {
            for condition in ["\"2\"", "\"0\"", "\"2\", \"3\"", "\"-1\"", "\"9223372036854775807\""] {
                let reply = send(&app.admin().with("if-match", condition), method.clone(), &path).await;
                reply.expect_problem(412, "version_mismatch");
            }
        }
        app.admin().with("if-match", "\"2\"").patch(&path, json!({})).await.expect_problem(412, "version_mismatch");
        assert_eq!(app.admin().get(&path).await.expect(200), before);
        app.admin().with("if-match", "\"2\"").get(&path).await.expect(200);
    }
}

async fn a_weak_or_unknown_etag_never_matches(app: TestApp) {
    for path in things(&app).await {
        for condition in
            ["W/\"1\"", "\"\"", "\"01\"", "\"+1\"", "\"1 \"", "\"one\"", "\"1.0\"", "\"99999999999999999999\""]
        {
            let reply = app.admin().with("if-match", condition).patch(&path, change(1)).await;
            reply.expect_problem(412, "version_mismatch");
        }
    }
}

async fn an_if_match_that_is_no_etag_is_a_400(app: TestApp) {
    for path in things(&app).await {
        for condition in ["1", "", "\"1", "1\"", "\"1\" \"2\"", "w/\"1\"", "\"1\",", "'1'", "\"1\";", "\u{E9}"] {
            for method in [Method::PATCH, Method::DELETE] {
                let reply = send(&app.admin().with("if-match", condition), method, &path).await;
                reply.expect_problem(400, "invalid_header");
            }
        }
        assert_eq!(app.admin().get(&path).await.expect(200)["version"], 1);
    }
}

async fn a_precondition_on_what_is_absent_is_a_404(app: TestApp) {
    for path in things(&app).await {
        app.admin().delete(&path).await.expect(200);
        for condition in ["\"1\"", "\"2\"", "*"] {
            for method in [Method::PATCH, Method::DELETE] {
                let reply = send(&app.admin().with("if-match", condition), method, &path).await;
                reply.expect_problem(404, "not_found");
            }
        }
    }
}

async fn of_two_writers_with_one_version_one_wins(app: TestApp) {
    for path in things(&app).await {
        let client = app.admin().with("if-match", "\"1\"");
        let writes = (0..8).map(|n| {
            let (client, path) = (client.clone(), path.clone());
            async move { client.patch(&path, change(n)).await.status }
        });
        let mut answers = futures_util::future::join_all(writes).await;
        answers.sort_unstable();
        assert_eq!(answers, [200, 412, 412, 412, 412, 412, 412, 412]);
        assert_eq!(app.admin().get(&path).await.expect(200)["version"], 2);
    }
}
