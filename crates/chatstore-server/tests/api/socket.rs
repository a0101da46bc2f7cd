//! What only a real connection shows: heads, chunks, and bodies that HTTP leaves out.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::app::{ROOT_KEY, TestApp, api_tests};

api_tests! {
    a_conversation_over_one_connection
    a_head_answers_like_a_get_without_a_body
    a_chunked_body_past_the_limit_is_a_413
    a_declared_body_past_the_limit_is_a_413_before_it_comes
    an_expected_continue_is_given
    a_head_that_is_not_http_is_a_400
    a_refused_request_on_the_wire_has_its_headers
}

/// Sends bytes and reads until the other side closes, or answers `answers` times and then rests.
async fn exchange(app: &TestApp, request: &[u8]) -> String {
    let (mut stream, _stop) = app.connect().await;
    // A refused body may close the connection while we still write.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    read.expect("the connection stays open").ok();
    String::from_utf8(answer).unwrap()
}

fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: t\r\nx-api-key: {ROOT_KEY}\r\ncontent-type: application/json\r\n{more}")
}

fn post(path: &str, body: &serde_json::Value, more: &str) -> String {
    let body = body.to_string();
    format!("{}content-length: {}\r\n\r\n{body}", head("POST", path, more), body.len())
}

async fn a_conversation_over_one_connection(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = format!("/api/v1/sessions/{id}/messages");
    let requests = [
        post("/api/v1/sessions/", &json!({"session_name": "second"}), ""),
        post(&messages, &json!({"content": "hello"}), ""),
        format!("{}\r\n", head("GET", &format!("{messages}/"), "connection: close\r\n")),
    ];
    let answer = exchange(&app, requests.concat().as_bytes()).await;
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|rest| &rest[..3]).collect();
    assert_eq!(statuses, ["201", "201", "200"], "{answer}");
    assert!(answer.ends_with("}]") && answer.contains("\"content\":\"hello\""), "{answer}");
}

async fn a_head_answers_like_a_get_without_a_body(app: TestApp) {
    let id = app.admin().new_session("n").await;
    for (path, status) in [
        (format!("/api/v1/sessions/{id}"), "200"),
        ("/api/v1/sessions".to_owned(), "200"),
        ("/api/v1/sessions/absent/".to_owned(), "404"),
        ("/docs".to_owned(), "200"),
        ("/nothing".to_owned(), "404"),
    ] {
        let lines = |answer: &str| {
            let head = answer.split("\r\n\r\n").next().unwrap_or_default();
            let keep = |line: &&str| !line.starts_with("x-request-id") && !line.starts_with("date");
            let mut lines: Vec<String> = head.lines().filter(keep).map(ToOwned::to_owned).collect();
            lines.sort();
            lines
        };
        let get = exchange(&app, format!("{}\r\n", head("GET", &path, "connection: close\r\n")).as_bytes()).await;
        let answer = exchange(&app, format!("{}\r\n", head("HEAD", &path, "connection: close\r\n")).as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "a body after HEAD {path}: {answer}");
        assert_eq!(lines(&answer), lines(&get), "{path}");
    }
}

async fn a_chunked_body_past_the_limit_is_a_413(app: TestApp) {
    let mut request = head("POST", "/api/v1/sessions", "transfer-encoding: chunked\r\n\r\n").into_bytes();
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..17 {
        request.extend_from_slice(&chunk);
    }
    let answer = exchange(&app, &request).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"code\":\"body_too_large\""), "{answer}");
    let small = "transfer-encoding: chunked\r\nconnection: close\r\n\r\n16\r\n{\"session_name\":\"in a\"\r\n1\r\n}\r\n0\r\n\r\n";
    let answer = exchange(&app, head("POST", "/api/v1/sessions", small).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

async fn a_declared_body_past_the_limit_is_a_413_before_it_comes(app: TestApp) {
    let request = head("POST", "/api/v1/sessions", "content-length: 16777217\r\nconnection: close\r\n\r\n");
    let answer = exchange(&app, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("application/problem+json"), "{answer}");
}

async fn an_expected_continue_is_given(app: TestApp) {
    let more = "expect: 100-continue\r\nconnection: close\r\n";
    let answer = exchange(&app, post("/api/v1/sessions", &json!({"session_name": "n"}), more).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201"), "{answer}");
}

async fn a_head_that_is_not_http_is_a_400(app: TestApp) {
    for request in [
        "GET / HTTP/1.1\r\nbad header\r\n\r\n",
        "GET / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "\u{1}\u{2}\u{3}\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ] {
        let answer = exchange(&app, request.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{request:?}: {answer}");
    }
    app.anon().get("/livez").await.expect(200);
}

async fn a_refused_request_on_the_wire_has_its_headers(app: TestApp) {
    let answer = exchange(&app, b"GET /api/v1/sessions HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
    for header in [
        "www-authenticate: Bearer",
        "content-type: application/problem+json",
        "x-request-id: ",
        "x-content-type-options: nosniff",
    ] {
        assert!(answer.contains(header), "{header} is not in {answer}");
    }
    assert!(!answer.to_lowercase().contains("\r\nserver:"), "{answer}");
}
