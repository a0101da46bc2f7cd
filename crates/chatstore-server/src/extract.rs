//! What handlers take in: bodies, queries, ids and preconditions, each refused with a problem that
//! points at the fault. Every extractor describes itself for the OpenAPI document.

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::store::ExpectedVersion;
use schemars::JsonSchema;
use serde_json::json;

use crate::app::App;
use crate::auth::Caller;
use crate::body::{Body, discard, read_body, require_few_pieces};
use crate::error::{ApiError, Code};
use crate::openapi::{Describe, Example, Operation};
use crate::query::Pairs;

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: Body> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if let Err(error) = require_json(request.headers()) {
            discard(request).await;
            return Err(error);
        }
        let bytes = read_body(request, app).await?;
        require_few_pieces(&bytes)?;
        T::read(&bytes).map(Self)
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
        operation.path_parameter("session_id", "Id of the session.", json!({"type": "string", "format": "uuid"}));
        operation.fails(Code::NotFound);
    }
}

impl Describe for MessagePath {
    fn describe(operation: &mut Operation) {
        operation.path_parameter("message_id", "Id of the message.", json!({"type": "string", "format": "uuid"}));
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
