//! Whatever is sent, it is never our fault: no query, body, header or path gives a 5xx.

use axum::body::Body;
use axum::http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::app::{Engine, TestApp};
use crate::client::{Client, text};

const CASES: u32 = 256;

/// Runs `check` on arbitrary input against one application; every reply below 500 is fine, and the
/// client checks the rest.
fn for_all<S: Strategy>(strategy: S, check: impl AsyncFn(&Setup, S::Value)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let setup = runtime.block_on(Setup::new());
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&strategy, |input| {
        runtime.block_on(check(&setup, input));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

struct Setup {
    admin: Client,
    session: String,
    message: String,
    _app: TestApp,
}

impl Setup {
    async fn new() -> Self {
        let app = TestApp::start(Engine::Sqlite).await;
        let admin = app.admin();
        let id = admin.new_session("n").await;
        let message = text(&admin.new_message(&id, "x").await["message_id"]);
        let (session, message) = (format!("/api/v1/sessions/{id}"), format!("/api/v1/messages/{message}"));
        Self { admin, session, message, _app: app }
    }

    fn lists(&self) -> [String; 4] {
        [
            "/api/v1/sessions".to_owned(),
            format!("{}/messages", self.session),
            "/api/v1/search".to_owned(),
            format!("{}/search", self.session),
        ]
    }

    fn bodies(&self) -> [(Method, String); 7] {
        [
            (Method::POST, "/api/v1/sessions".to_owned()),
            (Method::PATCH, self.session.clone()),
            (Method::POST, format!("{}/messages", self.session)),
            (Method::PATCH, self.message.clone()),
            (Method::POST, "/api/v1/admin/import".to_owned()),
            (Method::POST, "/api/v1/search".to_owned()),
            (Method::PUT, format!("{}/embedding", self.message)),
        ]
    }

    async fn send(&self, body: &str) {
        for (method, path) in self.bodies() {
            let client = self.admin.with("content-type", "application/json");
            let reply = client.send(method, &path, Body::from(body.to_owned())).await;
            assert!(reply.status < 500, "{} of {body}: {}", reply.what, reply.text());
        }
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Any text, and texts that mean something somewhere.
fn any_text() -> impl Strategy<Value = String> {
    let telling = prop::sample::select(vec![
        "",
        "0",
        "-1",
        "1",
        "true",
        "null",
        "asc",
        "desc",
        "created_at",
        "user",
        "2026-01-15T12:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
        "-009999-01-01T00:00:00Z",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "18446744073709551615",
        "4294967296",
        "\0",
        "' or 1=1 --",
        "%",
        "_",
        "*",
        "\u{10FFFF}",
    ]);
    prop_oneof![telling.prop_map(ToOwned::to_owned), any::<String>(), "[ -~]{0,40}"]
}

/// Any JSON, with the names that requests have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        let name = prop_oneof![prop::sample::select(NAMES.to_vec()).prop_map(ToOwned::to_owned), any_text()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(name, inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

const NAMES: [&str; 29] = [
    "session_name",
    "content",
    "role",
    "kind",
    "status",
    "metadata",
    "context",
    "payload",
    "user_id",
    "is_favorite",
    "external_id",
    "token_count",
    "parent_id",
    "id",
    "messages",
    "seq",
    "created_at",
    "session_id",
    "version",
    "deleted_at",
    "query",
    "mode",
    "metric",
    "embedding",
    "embedding_model",
    "model",
    "limit",
    "cursor",
    "context_after",
];

const PARAMETERS: [&str; 21] = [
    "limit",
    "skip",
    "offset",
    "cursor",
    "order",
    "sort",
    "user_id",
    "is_favorite",
    "metadata[a]",
    "created_after",
    "created_before",
    "role",
    "after_seq",
    "before_seq",
    "q",
    "mode",
    "session_id",
    "group_by_session",
    "context_before",
    "context_after",
    "include",
];

#[test]
fn no_query_is_our_fault() {
    let name = prop_oneof![3 => prop::sample::select(PARAMETERS.to_vec()).prop_map(ToOwned::to_owned), 1 => any_text()];
    for_all(prop::collection::vec((name, any_text()), 0..4), async |setup, pairs| {
        let query: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        for list in setup.lists() {
            let reply = setup.admin.get(&format!("{list}?{}", query.join("&"))).await;
            assert!(reply.status < 500, "{}: {}", reply.what, reply.text());
        }
    });
}

#[test]
fn no_query_in_the_raw_is_our_fault() {
    for_all("[!$-;=?-Z\\[\\]_a-z~%]{0,60}", async |setup, query| {
        for list in setup.lists() {
            let reply = setup.admin.get(&format!("{list}?{query}")).await;
            assert!(reply.status < 500, "{}: {}", reply.what, reply.text());
        }
    });
}

#[test]
fn no_cursor_is_our_fault() {
    let bytes =
        prop::collection::vec(any::<u8>(), 0..60).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    for_all(prop_oneof!["[A-Za-z0-9_-]{0,80}", any_text(), bytes], async |setup, cursor| {
        for list in setup.lists() {
            let reply = setup.admin.get(&format!("{list}?q=x&limit=1&cursor={}", encode(&cursor))).await;
            assert!(matches!(reply.status, 400 | 422), "{}: {}", reply.what, reply.text());
        }
    });
}

#[test]
fn no_json_is_our_fault() {
    for_all(any_json(), async |setup, body| setup.send(&body.to_string()).await);
}

#[test]
fn no_body_is_our_fault() {
    let broken = (any_json(), any::<prop::sample::Index>(), any_text()).prop_map(|(json, at, text)| {
        let mut body: Vec<char> = json.to_string().chars().collect();
        let at = at.index(body.len().max(1));
        body.splice(at..at, text.chars());
        body.into_iter().collect::<String>()
    });
    for_all(prop_oneof![broken, any::<String>()], async |setup, body| setup.send(&body).await);
}

#[test]
fn no_path_or_header_is_our_fault() {
    let bytes = prop::collection::vec(prop_oneof![0x20u8..=0x7E, 0x80u8..=0xFF], 0..40);
    for_all((any_text(), bytes), async |setup, (segment, value)| {
        for prefix in ["/", "/docs/", "/api/v1/", "/api/v1/sessions/", "/api/v1/messages/"] {
            let path = format!("{prefix}{}", encode(&segment));
            let reply = setup.admin.get(&path).await;
            assert!(reply.status < 500, "{}: {}", reply.what, reply.text());
        }
        for name in ["x-user-id", "x-request-id", "x-api-key", "authorization", "accept", "if-match", "content-type"] {
            let client = setup.admin.with(name, &value);
            for path in ["/api/v1/sessions", "/"] {
                let reply = client.get(path).await;
                assert!(reply.status < 500, "{name}: {}", reply.text());
            }
            let reply = client.patch(&setup.message, json!({"metadata": {"a": 1}})).await;
            assert!(reply.status < 500, "{name}: {}", reply.text());
        }
    });
}
