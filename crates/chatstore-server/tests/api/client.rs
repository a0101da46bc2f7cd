//! A client that calls the router in-process and holds every answer to the laws of all answers:
//! the document knows it, an error is a problem, nothing leaks.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use bytes::Bytes;
use chatstore_server::router::routes;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower_service::Service as _;

use crate::schema;

/// Sends requests with the same headers each.
#[derive(Clone)]
pub(crate) struct Client {
    router: Router,
    headers: HeaderMap,
}

/// What can stand in a body.
pub(crate) trait Payload {
    fn into_bytes(self) -> Vec<u8>;
}

impl Payload for Value {
    fn into_bytes(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

impl Payload for &Value {
    fn into_bytes(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

impl Payload for &str {
    fn into_bytes(self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}

impl Payload for String {
    fn into_bytes(self) -> Vec<u8> {
        self.into_bytes()
    }
}

impl Payload for Vec<u8> {
    fn into_bytes(self) -> Vec<u8> {
        self
    }
}

impl Client {
    pub(crate) fn new(router: Router) -> Self {
        Self { router, headers: HeaderMap::new() }
    }

    /// The client with one more header.
    pub(crate) fn with(&self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        let mut client = self.clone();
        client.headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_ref()).unwrap());
        client
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, Body::empty()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Payload) -> Reply {
        self.json(Method::POST, path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: impl Payload) -> Reply {
        self.json(Method::PATCH, path, body).await
    }

    async fn json(&self, method: Method, path: &str, body: impl Payload) -> Reply {
        let typed = self.headers.contains_key("content-type");
        let client = if typed { self.clone() } else { self.with("content-type", "application/json") };
        client.send(method, path, Body::from(body.into_bytes())).await
    }

    /// Sends a request and checks what holds for every answer.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Body) -> Reply {
        let mut request = Request::builder().method(method.clone()).uri(path).body(body).unwrap();
        *request.headers_mut() = self.headers.clone();
        let Ok(response) = self.router.clone().call(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let what = format!("{method} {path}");
        let reply = Reply { what, status: parts.status.as_u16(), headers: parts.headers, bytes };
        reply.check();
        if let Some(operation) = operation_of(&method, path) {
            schema::check_documented(operation, &reply);
        }
        reply
    }

    /// A new session called `name`.
    pub(crate) async fn new_session(&self, name: &str) -> String {
        let reply = self.post("/api/v1/sessions", serde_json::json!({"session_name": name})).await;
        text(&reply.expect(201)["session_id"])
    }

    /// A new message of a session.
    pub(crate) async fn new_message(&self, session_id: &str, content: &str) -> Value {
        let path = format!("/api/v1/sessions/{session_id}/messages");
        self.post(&path, serde_json::json!({"content": content})).await.expect(201)
    }
}

/// The `operationId` of the route that serves a path.
pub(crate) fn operation_of(method: &Method, path: &str) -> Option<&'static str> {
    let path = path.split('?').next().unwrap_or_default();
    let segments =
        |path: &str| path.strip_suffix('/').unwrap_or(path).split('/').map(ToOwned::to_owned).collect::<Vec<_>>();
    let wanted = segments(path);
    let fits = |template: &str| {
        let template = segments(template);
        let fits = |(a, b): (&String, &String)| a == b || (a.starts_with('{') && !b.is_empty());
        template.len() == wanted.len() && template.iter().zip(&wanted).all(fits)
    };
    routes().into_iter().find(|route| route.method == method && fits(route.path)).map(|route| route.doc.id)
}

/// The path of a route about this session and this message, however it spells their ids.
pub(crate) fn fill(path: &str, session_id: &str, message_id: &str) -> String {
    let hex = |id: &str| id.replace('-', "");
    path.replace("{session_id}", session_id)
        .replace("{message_id}", message_id)
        .replace("{conversation_id}", &format!("conv_{}", hex(session_id)))
        .replace("{item_id}", &format!("msg_{}", hex(message_id)))
}

/// A string in a JSON answer.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string")).to_owned()
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) what: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

/// What a code of ours is called on OpenAI's wire.
fn openai_code(code: &str) -> Value {
    match code {
        "not_found" | "route_not_found" => Value::Null,
        "missing_api_key" | "invalid_token" => "invalid_api_key".into(),
        "insufficient_scope" => "missing_scope".into(),
        "rate_limited" => "rate_limit_exceeded".into(),
        "validation_failed" => "invalid_value".into(),
        code => code.into(),
    }
}

/// What no problem may say.
const LEAKS: [&str; 16] = [
    "select ",
    "insert ",
    "sqlite",
    "postgres",
    "constraint",
    "database",
    "/tmp",
    "/work",
    "/home",
    ".rs",
    "src/",
    "panick",
    "backtrace",
    "thread '",
    "127.0.0.1",
    "unwrap",
];

impl Reply {
    fn check(&self) {
        let id = self.header("x-request-id").unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!((1..=64).contains(&id.len()) && id.chars().all(plain), "{self:?}");
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"), "{self:?}");
        assert!(self.header("cache-control").is_some(), "{self:?}");
        assert_eq!(self.header("server"), None, "{self:?}");
        assert!(!(300..400).contains(&self.status) || self.what.contains("/docs/"), "{self:?}");
        // HTTP leaves the body of an answer to HEAD out.
        if self.status >= 400 && !self.what.starts_with("HEAD ") {
            match self.is_openai() {
                true => self.check_openai_error(),
                false => self.check_problem(),
            }
            let said = String::from_utf8_lossy(&self.bytes).to_lowercase();
            for leak in LEAKS {
                assert!(!said.contains(leak), "`{leak}` in {self:?}");
            }
        }
    }

    /// Whether the path speaks OpenAI's wire.
    fn is_openai(&self) -> bool {
        self.what.split(' ').nth(1).is_some_and(|path| path == "/v1" || path.starts_with("/v1/"))
    }

    fn check_openai_error(&self) {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let body = self.json();
        let keys: Vec<&str> = body["error"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!((body.as_object().unwrap().len(), keys), (1, vec!["code", "message", "param", "type"]), "{self:?}");
        let error = &body["error"];
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{self:?}");
        assert!(["code", "param"].iter().all(|key| error[key].is_null() || error[key].is_string()), "{self:?}");
        let kind = match self.status {
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        assert_eq!(error["type"], kind, "{self:?}");
        assert_eq!(self.status == 401, self.header("www-authenticate").is_some(), "{self:?}");
        assert_eq!(self.status == 422, error["code"] == "idempotency_key_reused", "{self:?}");
    }

    fn check_problem(&self) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        for field in ["type", "title", "detail", "code", "request_id"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "no `{field}` in {self:?}");
        }
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"), "{self:?}");
        assert_eq!(problem["type"], format!("urn:chatstore:problem:{}", text(&problem["code"])), "{self:?}");
        assert_eq!(self.status == 401, self.header("www-authenticate").is_some(), "{self:?}");
        let is_invalid = problem["code"] == "validation_failed";
        assert_eq!(self.status == 422, is_invalid || problem["code"] == "idempotency_key_reused", "{self:?}");
        let should_retry = (self.status == 409).then(|| (problem["code"] == "request_in_flight").to_string());
        assert_eq!(self.header("x-should-retry"), should_retry.as_deref(), "{self:?}");
        if is_invalid {
            assert!(problem["errors"].as_array().is_some_and(|errors| !errors.is_empty()), "{self:?}");
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body of an answer that has this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{} answered {}", self.what, self.text());
        self.json()
    }

    /// The items of a page.
    #[track_caller]
    pub(crate) fn items(&self) -> Vec<Value> {
        let body = self.expect(200);
        body.as_array().unwrap_or_else(|| panic!("{body} is no array")).clone()
    }

    /// One field of each item of a page.
    #[track_caller]
    pub(crate) fn column(&self, field: &str) -> Vec<Value> {
        self.items().into_iter().map(|item| item[field].clone()).collect()
    }

    /// Asserts the problem with this status and code.
    #[track_caller]
    pub(crate) fn expect_problem(&self, status: u16, code: &str) -> Value {
        let problem = self.expect(status);
        match self.is_openai() {
            true => assert_eq!(problem["error"]["code"], openai_code(code), "{self:?}"),
            false => assert_eq!(problem["code"], code, "{self:?}"),
        }
        problem
    }

    /// Asserts a 422 that points at exactly these places.
    #[track_caller]
    pub(crate) fn expect_invalid(&self, pointers: &[&str]) {
        let problem = self.expect_problem(422, "validation_failed");
        let errors = problem["errors"].as_array().unwrap();
        let found: Vec<&str> = errors.iter().map(|error| error["pointer"].as_str().unwrap()).collect();
        assert_eq!(found, pointers, "{} answered {}", self.what, self.text());
        assert!(errors.iter().all(|error| error["detail"].as_str().is_some_and(|text| !text.is_empty())));
    }

    /// Asserts a refusal on OpenAI's wire, of this parameter.
    #[track_caller]
    pub(crate) fn expect_refused(&self, param: &str, code: &str) {
        let error = &self.expect(400)["error"];
        assert_eq!((&error["param"], &error["code"]), (&param.into(), &code.into()), "{self:?}");
    }

    /// The path of the next page.
    pub(crate) fn next(&self) -> Option<String> {
        let link = self.header("link")?;
        let next = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
        let next = next.unwrap_or_else(|| panic!("{link} is no link to a next page"));
        assert!(next.starts_with('/') && !next.starts_with("//"), "{next} is no absolute path");
        Some(next.to_owned())
    }

    /// Status, headers and body as one text, without the id of the request.
    pub(crate) fn anonymous(&self) -> String {
        let id = self.header("x-request-id").unwrap_or_default();
        let mut lines: Vec<String> =
            self.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        format!("{}\n{}\n\n{}", self.status, lines.join("\n"), self.text()).replace(id, "ID")
    }
}
