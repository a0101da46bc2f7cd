//! The OpenAPI 3.1 document, built from the routes and the types of their handlers, so that it
//! says what the code does.

mod looks;

use std::collections::{BTreeMap, HashSet};

use axum::http::{Method, StatusCode};
use chatstore_core::api_keys::Permission;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::error::{Code, Problem};
use crate::openai;
use crate::openai::error::ErrorResponse;
use crate::router::{Access, Route, routes};

pub use looks::{
    anything, id, numbers, object, optional_id, optional_numbers, optional_object, optional_time, status, time,
};

/// A wire type that shows how it looks.
pub trait Example {
    /// A typical value.
    fn example() -> Value;
}

impl<T: Example> Example for Vec<T> {
    fn example() -> Value {
        json!([T::example()])
    }
}

/// Something a handler takes in.
pub trait Describe {
    /// Writes what it needs and how it fails into the operation.
    fn describe(operation: &mut Operation);
}

/// Something a handler gives back.
pub trait DescribeOutput {
    /// Writes the answer into the operation.
    fn describe(operation: &mut Operation);
}

/// A handler whose signature tells what it takes in and gives back; `Args` is there for inference.
pub trait DescribedHandler<Args> {
    /// Writes the signature into the operation.
    fn describe(operation: &mut Operation);
}

macro_rules! described_handler {
    ($($arg:ident),*) => {
        impl<F, Fut, Out, $($arg),*> DescribedHandler<($($arg,)*)> for F
        where
            F: Fn(axum::extract::State<crate::app::App>, $($arg),*) -> Fut,
            Fut: Future<Output = Result<Out, crate::error::ApiError>>,
            Out: DescribeOutput,
            $($arg: Describe),*
        {
            fn describe(operation: &mut Operation) {
                $($arg::describe(operation);)*
                Out::describe(operation);
            }
        }
    };
}
described_handler!();
described_handler!(A);
described_handler!(A, B);
described_handler!(A, B, C);
described_handler!(A, B, C, D);

/// An operation of the document while it is described.
pub struct Operation {
    generator: SchemaGenerator,
    parameters: Vec<Value>,
    request_body: Option<Value>,
    responses: BTreeMap<u16, Value>,
    failures: Vec<Code>,
}

impl Operation {
    /// A parameter in the path.
    pub fn path_parameter(&mut self, name: &str, description: &str, schema: Value) {
        self.parameter("path", name, description, schema, true);
    }

    /// A parameter in the query.
    pub fn query_parameter(&mut self, name: &str, description: &str, schema: Value) {
        self.parameter("query", name, description, schema, false);
    }

    /// A parameter in the query that is an object, as `name[key]=value`.
    pub fn query_map(&mut self, name: &str, description: &str) {
        let schema = json!({"type": "object", "additionalProperties": {"type": "string"}});
        self.parameter("query", name, description, schema, false);
        if let Some(Value::Object(parameter)) = self.parameters.last_mut() {
            parameter.insert("style".to_owned(), "deepObject".into());
            parameter.insert("explode".to_owned(), true.into());
        }
    }

    /// A header that may be sent.
    pub fn header_parameter(&mut self, name: &str, description: &str) {
        self.parameter("header", name, description, json!({"type": "string"}), false);
    }

    fn parameter(&mut self, place: &str, name: &str, description: &str, schema: Value, required: bool) {
        self.parameters.push(
            json!({"name": name, "in": place, "description": description, "required": required, "schema": schema}),
        );
    }

    /// The body it takes, or may take.
    pub fn request_body<T: JsonSchema + Example>(&mut self, required: bool) {
        let schema = self.generator.subschema_for::<T>();
        self.request_body = Some(
            json!({"required": required, "content": {"application/json": {"schema": schema, "example": T::example()}}}),
        );
    }

    /// An answer with a JSON body and these headers.
    pub fn answers<T: JsonSchema + Example>(&mut self, status: u16, description: &str, headers: &[(&str, &str)]) {
        let schema = self.generator.subschema_for::<T>();
        let content = json!({"application/json": {"schema": schema, "example": T::example()}});
        self.response(status, description, content, headers);
    }

    /// An answer that is a document of one of these types.
    pub fn answers_text(&mut self, description: &str, media_types: &[&str]) {
        let text = |media_type: &&str| match *media_type {
            "application/json" => (media_type.to_string(), json!({"schema": {"type": "object"}, "example": {}})),
            _ => (media_type.to_string(), json!({"schema": {"type": "string"}, "example": "…"})),
        };
        let content: Map<String, Value> = media_types.iter().map(text).collect();
        self.response(200, description, content.into(), &[]);
    }

    /// An answer without a body.
    pub fn answers_nothing(&mut self, status: u16, description: &str) {
        self.response(status, description, json!({}), &[]);
    }

    fn response(&mut self, status: u16, description: &str, content: Value, headers: &[(&str, &str)]) {
        let header = |text: &str| json!({"description": text, "schema": {"type": "string"}});
        let mut all: Map<String, Value> =
            headers.iter().map(|(name, text)| ((*name).to_owned(), header(text))).collect();
        all.insert("X-Request-Id".to_owned(), header(REQUEST_ID));
        self.responses.insert(status, json!({"description": description, "headers": all, "content": content}));
    }

    /// A header that answers of success may carry beside their own.
    pub fn answer_header(&mut self, name: &str, description: &str) {
        for response in self.responses.values_mut() {
            response["headers"][name] = json!({"description": description, "schema": {"type": "string"}});
        }
    }

    /// A way it can fail.
    pub fn fails(&mut self, code: Code) {
        if !self.failures.contains(&code) {
            self.failures.push(code);
        }
    }
}

const REQUEST_ID: &str =
    "The id under which the request stands in the log: the caller's, if it has the form `[A-Za-z0-9_-]{1,64}`.";

/// The document, pretty-printed, as it is served and committed.
pub fn document_text() -> String {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
}

/// The document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let problem = generator.subschema_for::<Problem>();
    let error = generator.subschema_for::<ErrorResponse>();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in routes() {
        let mut operation = Operation {
            generator,
            parameters: Vec::new(),
            request_body: None,
            responses: BTreeMap::new(),
            failures: vec![Code::InternalError],
        };
        (route.describe)(&mut operation);
        if openai::serves(route.path) {
            operation
                .header_parameter("X-Ms-User-Isolation-Key", "`X-User-Id` under another name; they must not differ.");
        }
        if route.access != Access::Health {
            operation.fails(Code::RateLimited);
            operation.fails(Code::Overloaded);
        }
        if let Access::Needs(permission) = route.access
            && route.method != Method::GET
            && permission != Permission::Search
        {
            operation.fails(Code::StorageFull);
        }
        generator = std::mem::take(&mut operation.generator);
        let schema = if openai::serves(route.path) { &error } else { &problem };
        let method = route.method.as_str().to_ascii_lowercase();
        paths.entry(route.path).or_default().insert(method, write_operation(&route, operation, schema));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Chatstore",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "sessions", "description": "Conversations."},
            {"name": "messages", "description": "What is said in them, in order."},
            {"name": "conversations", "description": "The same sessions and messages as OpenAI's SDKs know them."},
            {"name": "search", "description": "Find messages by words and by meaning."},
            {"name": "embeddings", "description": "Vectors of messages, and the source that makes them."},
            {"name": "projects", "description": "Tenants: all of them for operators, the own one for its admins."},
            {"name": "api_keys", "description": "Who may call, and what they may do."},
            {"name": "tokens", "description": "Short-lived tokens that speak for one user."},
            {"name": "audit", "description": "Who ruled or destroyed what."},
            {"name": "admin", "description": "For operators."},
            {"name": "service", "description": "Health and documents; open to all."},
        ],
        "paths": paths,
        "components": {
            "schemas": require_what_is_sent(generator.take_definitions(true)),
            "securitySchemes": {
                "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer", "description": BEARER},
            },
        },
    })
}

/// Fields that stand in an answer only when they were asked for or have something to say.
const AT_TIMES: [&str; 5] = ["degraded", "embeddings", "next_cursor", "secret", "usage"];

/// An answer has all its other fields, also those that are null.
fn require_what_is_sent(mut schemas: Map<String, Value>) -> Map<String, Value> {
    for (name, schema) in &mut schemas {
        let names: Option<Vec<Value>> = schema["properties"].as_object().map(|all| {
            let always = all.keys().filter(|name| !AT_TIMES.contains(&name.as_str()));
            always.cloned().map(Value::from).collect()
        });
        if let Some(names) = names.filter(|_| name.ends_with("Response")) {
            schema["required"] = names.into();
        }
    }
    schemas
}

const BEARER: &str = "The same API key; or a user token (JWT), which speaks for one user and may at most read, write, \
    delete and search. `POST /api/v1/admin/tokens` makes one.";

const DESCRIPTION: &str = "Durable storage for AI chat applications: sessions, messages, and the search of them.\n\n\
    Send an API key in `X-API-Key` or as `Authorization: Bearer`, or a user token as the latter. Every path works with and without a trailing slash. \
    Lists are bare arrays; the `Link` header leads to the next page. Errors are `application/problem+json` (RFC 9457) \
    with a stable `code`.";

fn write_operation(route: &Route, operation: Operation, error: &schemars::Schema) -> Value {
    let mut responses = operation.responses;
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    let is_openai = openai::serves(route.path);
    for code in operation.failures {
        let status = if is_openai { openai::error::status(code) } else { code.status() };
        by_status.entry(status.as_u16()).or_default().push(code);
        // All ways to lack a credential are one answer of the same operation.
        if code == Code::MissingApiKey {
            by_status.entry(401).or_default().extend([Code::InvalidApiKey, Code::InvalidToken]);
        }
        if code == Code::InsufficientScope {
            let others = [Code::UserMismatch, Code::OriginNotAllowed, Code::AddressNotAllowed];
            by_status.entry(403).or_default().extend(others);
        }
        if code == Code::BodyTooLarge && matches!(route.doc.tag, "messages" | "conversations") {
            by_status.entry(413).or_default().push(Code::ContentTooLarge);
        }
        if code == Code::Overloaded {
            by_status.entry(503).or_default().extend([Code::StoreUnavailable, Code::RequestTimeout]);
        }
    }
    for (status, codes) in by_status {
        let mut examples: Vec<(&str, Value)> = codes.iter().map(|code| example(status, *code, is_openai)).collect();
        if status == 400 && openai::TAKING_ITEMS.contains(&route.doc.id) {
            examples.extend(openai::error::examples_of_items());
        }
        responses.insert(status, failure(status, examples, error, is_openai));
    }
    if route.access != Access::Health {
        for response in responses.values_mut() {
            for (name, description) in RATE_LIMIT_HEADERS {
                response["headers"][name] = json!({"description": description, "schema": {"type": "string"}});
            }
        }
    }
    let responses: Map<String, Value> =
        responses.into_iter().map(|(status, response)| (status.to_string(), response)).collect();
    let mut written = json!({
        "operationId": route.doc.id,
        "summary": route.doc.summary,
        "description": route.doc.description,
        "tags": [route.doc.tag],
        "responses": responses,
        "security": match route.access {
            Access::Open | Access::Health => json!([]),
            Access::Needs(_) => json!([{"api_key": []}, {"bearer": []}]),
        },
    });
    if let Access::Needs(permission) = route.access {
        written["x-required-scope"] = permission.as_str().into();
    }
    if !operation.parameters.is_empty() {
        written["parameters"] = operation.parameters.into();
    }
    if let Some(body) = operation.request_body {
        written["requestBody"] = body;
    }
    written
}

/// The headers by which a caller keeps within its limits.
const RATE_LIMIT_HEADERS: [(&str, &str); 2] = [
    ("RateLimit-Policy", "The limits that apply, where some are set (draft-ietf-httpapi-ratelimit-headers-10)."),
    ("RateLimit", "What is left of them, and in how many seconds there is more."),
];

/// How an error looks, and what it is called.
fn example(status: u16, code: Code, is_openai: bool) -> (&'static str, Value) {
    if is_openai {
        return openai::error::example(code);
    }
    let problem = json!({
        "type": format!("urn:chatstore:problem:{}", code.as_str()),
        "title": code.title(),
        "status": status,
        "detail": format!("{}.", code.title()),
        "code": code.as_str(),
        "request_id": "9f2c1d4e5a6b47c8a1b2c3d4e5f60718",
    });
    (code.as_str(), problem)
}

fn failure(status: u16, mut examples: Vec<(&str, Value)>, error: &schemars::Schema, is_openai: bool) -> Value {
    let mut known = HashSet::new();
    examples.retain(|(name, _)| known.insert(*name));
    // On the other wire some have no name.
    let is_named = |example: &Value| !is_openai || example["error"]["code"].is_string();
    let named = examples.iter().filter(|(_, example)| is_named(example));
    let names: Vec<String> = named.map(|(name, _)| format!("`{name}`")).collect();
    let colon = if names.is_empty() { "" } else { ": " };
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
    let media_type = if is_openai { "application/json" } else { "application/problem+json" };
    let examples: Map<String, Value> =
        examples.into_iter().map(|(name, example)| (name.to_owned(), json!({"value": example}))).collect();
    let mut response = json!({
        "description": format!("{reason}{colon}{}.", names.join(", ")),
        "headers": {"X-Request-Id": {"description": REQUEST_ID, "schema": {"type": "string"}}},
        "content": {media_type: {"schema": error, "examples": examples}},
    });
    if matches!(status, 429 | 503) {
        response["headers"]["Retry-After"] =
            json!({"description": "Seconds after which a retry may succeed.", "schema": {"type": "integer"}});
    }
    response
}
