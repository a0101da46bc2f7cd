//! What handlers take in: bodies, queries, ids and preconditions, each refused with a problem that
//! points at the fault. Every extractor describes itself for the OpenAPI document.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::json::{escape_pointer, find_unstorable};
use chatstore_core::store::ExpectedVersion;
use http_body_util::BodyExt as _;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Code, FieldError};
use crate::openapi::{Describe, Example, Operation};
use crate::query::Pairs;

/// A slow body gets this long before its rate counts.
const BODY_GRACE: Duration = Duration::from_secs(5);

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        require_json(request.headers())?;
        let bytes = read_body(request, app).await?;
        parse_body(&bytes).map(Self)
    }
}

impl<T: JsonSchema + Example> Describe for Json<T> {
    fn describe(operation: &mut Operation) {
        operation.request_body::<T>();
        for code in [
            Code::InvalidJson,
            Code::BodyTimeout,
            Code::BodyTooLarge,
            Code::UnsupportedMediaType,
            Code::ValidationFailed,
        ] {
            operation.fails(code);
        }
    }
}

/// A missing content type passes: the body is read as JSON all the same.
fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(ApiError::new(Code::UnsupportedMediaType, "Send the body with the header `Content-Type: application/json`."))
}

/// Reads a body within its limits of size, time and rate.
async fn read_body(request: Request, app: &App) -> Result<Vec<u8>, ApiError> {
    let limits = &app.limits;
    let too_large =
        || ApiError::new(Code::BodyTooLarge, format!("A body may have at most {} bytes.", limits.body_bytes_max));
    let declared =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limits.body_bytes_max as u64) {
        return Err(too_large());
    }
    let mut body = request.into_body();
    let started = Instant::now();
    let mut bytes = Vec::with_capacity(usize::try_from(declared.unwrap_or(0)).unwrap_or(0).min(64 << 10));
    loop {
        let earned = bytes.len() as u64 * 1_000 / limits.body_bytes_per_second_min.max(1);
        let paced = if limits.body_bytes_per_second_min == 0 { u64::MAX / 4 } else { earned };
        let allowed = limits.body_read_timeout.min(BODY_GRACE.saturating_add(Duration::from_millis(paced)));
        let Ok(frame) = tokio::time::timeout_at(started + allowed, body.frame()).await else {
            return Err(ApiError::new(Code::BodyTimeout, "The body came too slowly; send it again, faster."));
        };
        match frame {
            None => return Ok(bytes),
            Some(Err(_)) => return Err(ApiError::new(Code::InvalidJson, "The body ended early.")),
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                if bytes.len() + data.len() > limits.body_bytes_max {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&data);
            }
        }
    }
}

/// Reads JSON. What is no JSON is a 400 with its place; what cannot be stored or has the wrong
/// shape is a 422 with a pointer.
pub fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // A parser looks at the encoding of what it keeps, not of what it passes over.
    let text = std::str::from_utf8(bytes).map_err(|_| ApiError::new(Code::InvalidJson, "The body is not UTF-8."))?;
    let unstorable = find_unstorable(bytes);
    let parsed = serde_json::from_str(text);
    if let (Ok(value), None) = (parsed, &unstorable) {
        return Ok(value);
    }
    if let Err(error) = serde_json::from_slice::<&serde_json::value::RawValue>(bytes) {
        return Err(malformed(bytes, &error));
    }
    Err(match unstorable {
        Some((pointer, fault)) => ApiError::invalid_field(pointer, fault.to_string()),
        None => misfit::<T>(bytes),
    })
}

fn malformed(bytes: &[u8], error: &serde_json::Error) -> ApiError {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return ApiError::new(Code::InvalidJson, "The body is empty; send JSON.");
    }
    let (line, column) = (error.line(), error.column());
    let detail = format!("The body is not well-formed JSON at line {line}, column {column}: {}.", reason(error));
    ApiError::new(Code::InvalidJson, detail)
}

/// The message of an error without its place.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

/// Reads `bytes`, known to be JSON of the wrong shape, once more and tells where it is wrong.
fn misfit<T: DeserializeOwned>(bytes: &[u8]) -> ApiError {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Ok(_) => ApiError::invalid_field("", "has trailing data"),
        Err(error) => {
            let mut pointer = String::new();
            for segment in error.path() {
                match segment {
                    serde_path_to_error::Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
                    serde_path_to_error::Segment::Map { key } => {
                        pointer.push('/');
                        pointer.push_str(&escape_pointer(key));
                    }
                    _ => {}
                }
            }
            ApiError::invalid_field(pointer, format!("is not acceptable: {}", reason(error.inner())))
        }
    }
}

/// A body's field that tells absent from null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field<T> {
    /// The key does not stand in the body.
    #[default]
    Absent,
    /// The key stands there with `null`.
    Null,
    /// The key stands there with a value.
    Value(T),
}

impl<T> Field<T> {
    /// The value; null counts as absent.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// The value of a field that may be absent but not null.
    pub fn not_null(self, pointer: &str, errors: &mut Vec<FieldError>) -> Option<T> {
        if matches!(self, Self::Null) {
            errors.push(FieldError::new(pointer, "must not be null"));
        }
        self.value()
    }

    /// The value of a field that must be there.
    pub fn required(self, pointer: &str, errors: &mut Vec<FieldError>) -> Option<T> {
        if matches!(self, Self::Absent) {
            errors.push(FieldError::new(pointer, "is required"));
        }
        self.not_null(pointer, errors)
    }

    /// The change a patch makes: `None` for none, `Some(None)` to clear.
    pub fn change(self) -> Option<Option<T>> {
        match self {
            Self::Absent => None,
            Self::Null => Some(None),
            Self::Value(value) => Some(Some(value)),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Option::<T>::deserialize(deserializer)? {
            Some(value) => Self::Value(value),
            None => Self::Null,
        })
    }
}

impl<T: JsonSchema> JsonSchema for Field<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// A body that is one thing or an array of them.
#[derive(Debug)]
pub enum OneOrMany<T> {
    /// An object.
    One(T),
    /// An array of objects.
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object or an array of objects")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(OneOrMany::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(OneOrMany::Many(items))
            }
        }
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

/// A query string, read by the type it is for.
pub struct Query<T>(pub T);

/// A list's parameters.
pub trait FromQuery: Sized {
    /// Reads the parameters; unknown ones are ignored.
    ///
    /// # Errors
    /// 422 with a pointer `?name` for each parameter at fault.
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError>;

    /// Writes the parameters into the document.
    fn describe(operation: &mut Operation);
}

impl<T: FromQuery> FromRequestParts<App> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        let pairs = Pairs::parse(parts.uri.path(), parts.uri.query().unwrap_or_default())?;
        T::from_query(&pairs).map(Self)
    }
}

impl<T: FromQuery> Describe for Query<T> {
    fn describe(operation: &mut Operation) {
        T::describe(operation);
        operation.fails(Code::ValidationFailed);
        operation.fails(Code::InvalidCursor);
    }
}

/// The session named in the path.
pub struct SessionPath(pub SessionId);

/// The message named in the path.
pub struct MessagePath(pub MessageId);

impl FromRequestParts<App> for SessionPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "session_id").await.as_deref().and_then(SessionId::parse);
        id.map(Self).ok_or_else(|| ApiError::not_found("session"))
    }
}

impl FromRequestParts<App> for MessagePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "message_id").await.as_deref().and_then(MessageId::parse);
        id.map(Self).ok_or_else(|| ApiError::not_found("message"))
    }
}

/// The text of a path parameter; a text that cannot be decoded names nothing.
pub(crate) async fn path_param(parts: &mut Parts, app: &App, name: &str) -> Option<String> {
    let params = RawPathParams::from_request_parts(parts, app).await.ok()?;
    params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

impl Describe for SessionPath {
    fn describe(operation: &mut Operation) {
        operation.path_parameter("session_id", "Id of the session.");
        operation.fails(Code::NotFound);
    }
}

impl Describe for MessagePath {
    fn describe(operation: &mut Operation) {
        operation.path_parameter("message_id", "Id of the message.");
        operation.fails(Code::NotFound);
    }
}

impl Describe for Caller {
    fn describe(operation: &mut Operation) {
        operation.header_parameter(
            "X-User-Id",
            "Narrows the whole request to one end user: only that user's sessions exist for it, and what it creates is that user's.",
        );
        for code in [Code::InvalidHeader, Code::MissingApiKey, Code::InsufficientScope] {
            operation.fails(code);
        }
    }
}

/// The precondition `If-Match` (RFC 9110, section 13.1.1).
pub struct IfMatch(pub ExpectedVersion);

impl FromRequestParts<App> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        let mut versions = Vec::new();
        for value in parts.headers.get_all(header::IF_MATCH) {
            let value = value.to_str().unwrap_or_default().trim();
            if value == "*" {
                return Ok(Self(ExpectedVersion::Any));
            }
            for tag in value.split(',') {
                versions.push(entity_tag(tag.trim()).ok_or_else(|| {
                    ApiError::new(Code::InvalidHeader, "`If-Match` must hold ETags such as `\"3\"`, or `*`.")
                })?);
            }
        }
        let none = parts.headers.get(header::IF_MATCH).is_none();
        Ok(Self(if none {
            ExpectedVersion::Any
        } else {
            ExpectedVersion::OneOf(versions.into_iter().flatten().collect())
        }))
    }
}

/// The version in an ETag; `Some(None)` for a well-formed tag that no version has, `None` for
/// what is no tag. Weak tags never match (RFC 9110, section 13.1.1).
fn entity_tag(tag: &str) -> Option<Option<i64>> {
    let (weak, tag) = tag.strip_prefix("W/").map_or((false, tag), |tag| (true, tag));
    let opaque = tag.strip_prefix('"')?.strip_suffix('"')?;
    if opaque.contains('"') {
        return None;
    }
    let version = opaque.parse().ok().filter(|version: &i64| version.to_string() == opaque);
    Some(version.filter(|_| !weak))
}

impl Describe for IfMatch {
    fn describe(operation: &mut Operation) {
        operation.header_parameter(
            "If-Match",
            "ETag the thing must still have; else nothing is changed and the answer is 412.",
        );
        operation.fails(Code::InvalidHeader);
        operation.fails(Code::VersionMismatch);
    }
}
