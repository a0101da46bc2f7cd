//! The OpenAPI 3.1 document, built from the routes and the types of their handlers, so that it
//! says what the code does.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use chatstore_core::api_keys::Permission;
use chatstore_core::limits::VECTOR_DIMENSIONS_MAX;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::error::{Code, Problem};
use crate::router::{Access, Route, routes};

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

    /// A way it can fail.
    pub fn fails(&mut self, code: Code) {
        if !self.failures.contains(&code) {
            self.failures.push(code);
        }
    }
}

const REQUEST_ID: &str =
    "The id under which the request stands in the log: the caller's, if it has the form `[A-Za-z0-9_-]{1,64}`.";

/// How a time looks.
pub fn time(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "date-time"})
}

/// How a time that may be absent looks.
pub fn optional_time(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["string", "null"], "format": "date-time"})
}

/// How an id looks.
pub fn id(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "uuid"})
}

/// How an id that may be absent looks.
pub fn optional_id(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["string", "null"], "format": "uuid"})
}

/// How an object that is kept byte for byte looks.
pub fn object(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "additionalProperties": {}})
}

/// How an object that is kept byte for byte and may be absent looks.
pub fn optional_object(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["object", "null"], "additionalProperties": {}})
}

/// How the status of a message looks.
pub fn status(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "enum": ["in_progress", "completed", "incomplete"]})
}

/// How a vector looks.
pub fn numbers(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": VECTOR_DIMENSIONS_MAX,
    })
}

/// How a vector that may be absent looks.
pub fn optional_numbers(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["array", "null"], "items": {"type": "number"}, "minItems": 1, "maxItems": VECTOR_DIMENSIONS_MAX,
    })
}

/// How any JSON that is kept byte for byte looks.
pub fn anything(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({})
}

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
        let method = route.method.as_str().to_ascii_lowercase();
        paths.entry(route.path).or_default().insert(method, write_operation(&route, operation, &problem));
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

fn write_operation(route: &Route, operation: Operation, problem: &schemars::Schema) -> Value {
    let mut responses = operation.responses;
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in operation.failures {
        by_status.entry(code.status().as_u16()).or_default().push(code);
        // All ways to lack a credential are one answer of the same operation.
        if code == Code::MissingApiKey {
            by_status.entry(401).or_default().extend([Code::InvalidApiKey, Code::InvalidToken]);
        }
        if code == Code::InsufficientScope {
            let others = [Code::UserMismatch, Code::OriginNotAllowed, Code::AddressNotAllowed];
            by_status.entry(403).or_default().extend(others);
        }
        if code == Code::BodyTooLarge && route.doc.tag == "messages" {
            by_status.entry(413).or_default().push(Code::ContentTooLarge);
        }
        if code == Code::Overloaded {
            by_status.entry(503).or_default().extend([Code::StoreUnavailable, Code::RequestTimeout]);
        }
    }
    for (status, codes) in by_status {
        responses.insert(status, failure(status, &codes, problem));
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

fn failure(status: u16, codes: &[Code], problem: &schemars::Schema) -> Value {
    let names: Vec<String> = codes.iter().map(|code| format!("`{}`", code.as_str())).collect();
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
    let example = |code: &Code| {
        json!({
            "type": format!("urn:chatstore:problem:{}", code.as_str()),
            "title": code.title(),
            "status": status,
            "detail": format!("{}.", code.title()),
            "code": code.as_str(),
            "request_id": "9f2c1d4e5a6b47c8a1b2c3d4e5f60718",
        })
    };
    let examples: Map<String, Value> =
        codes.iter().map(|code| (code.as_str().to_owned(), json!({"value": example(code)}))).collect();
    let mut response = json!({
        "description": format!("{reason}: {}.", names.join(", ")),
        "headers": {"X-Request-Id": {"description": REQUEST_ID, "schema": {"type": "string"}}},
        "content": {"application/problem+json": {"schema": problem, "examples": examples}},
    });
    if matches!(status, 429 | 503) {
        response["headers"]["Retry-After"] =
            json!({"description": "Seconds after which a retry may succeed.", "schema": {"type": "integer"}});
    }
    response
}
