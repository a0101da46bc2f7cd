//! What handlers take in: bodies, queries, ids and preconditions, each refused with a problem that
//! points at the fault. Every extractor describes itself for the OpenAPI document.

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use chatstore_core::store::ExpectedVersion;
use schemars::JsonSchema;
use serde_json::json;

use crate::app::App;
use crate::auth::Caller;
use crate::body::{Body, discard, read_body, require_few_pieces};
use crate::error::{ApiError, Code};
use crate::openapi::{Describe, Example, Operation};
use crate::query::Pairs;
use crate::quotas::AddsText;

/// A kind of body in JSON.
pub trait JsonBody: Sized + Send + Sync {
    /// Reads it.
    ///
    /// # Errors
    /// 400, 413 or 422, by what is wrong with it.
    fn read(bytes: &[u8]) -> Result<Self, ApiError>;

    /// Whether the caller's project has room for what it holds in `bytes`.
    ///
    /// # Errors
    /// 403 `quota_exceeded`, or those of the store.
    fn admit(
        &self,
        _bytes: usize,
        _caller: Option<&Caller>,
        _app: &App,
    ) -> impl Future<Output = Result<(), ApiError>> + Send {
        std::future::ready(Ok(()))
    }
}

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: Body + Sync> JsonBody for Json<T> {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        T::read(bytes).map(Self)
    }
}

impl<T: Body + Sync> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        read_body_of(request, app).await
    }
}

/// A JSON body that may be left out; then it counts as `{}`.
pub struct OptionalJson<T>(pub T);

impl<T: Body + Default + Sync> JsonBody for OptionalJson<T> {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        if bytes.is_empty() { Ok(Self(T::default())) } else { T::read(bytes).map(Self) }
    }
}

/// A JSON body whose text is stored, if the project has room for it.
pub struct Stored<T>(pub T);

impl<T: Body + AddsText + Sync> JsonBody for Stored<T> {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        T::read(bytes).map(Self)
    }

    async fn admit(&self, bytes: usize, caller: Option<&Caller>, app: &App) -> Result<(), ApiError> {
        let caller = caller.ok_or_else(unguarded)?;
        if self.0.adds_text() { app.usages.admit(&caller.scope, bytes).await } else { Ok(()) }
    }
}

impl<T: Body + AddsText + Sync> FromRequest<App> for Stored<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        read_body_of(request, app).await
    }
}

/// A JSON body whose text is stored, and that may be left out; then it counts as `{}`.
pub struct OptionalStored<T>(pub T);

impl<T: Body + AddsText + Default + Sync> JsonBody for OptionalStored<T> {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        if bytes.is_empty() { Ok(Self(T::default())) } else { T::read(bytes).map(Self) }
    }

    async fn admit(&self, bytes: usize, caller: Option<&Caller>, app: &App) -> Result<(), ApiError> {
        let caller = caller.ok_or_else(unguarded)?;
        if bytes > 0 && self.0.adds_text() { app.usages.admit(&caller.scope, bytes).await } else { Ok(()) }
    }
}

async fn read_body_of<B: JsonBody>(request: Request, app: &App) -> Result<B, ApiError> {
    let caller = request.extensions().get::<Caller>().cloned();
    let bytes = read_json(request, app).await?;
    let body = B::read(&bytes)?;
    body.admit(bytes.len(), caller.as_ref(), app).await?;
    Ok(body)
}

/// The bytes of a body that is declared as JSON.
pub(crate) async fn read_json(request: Request, app: &App) -> Result<Vec<u8>, ApiError> {
    if let Err(error) = require_json(request.headers()) {
        discard(request).await;
        return Err(error);
    }
    let bytes = read_body(request, app).await?;
    require_few_pieces(&bytes)?;
    Ok(bytes)
}

/// A handler asked for a caller on a route without a guard: a defect, and nobody gets in.
fn unguarded() -> ApiError {
    ApiError::internal("a handler asked for a caller on an unguarded route")
}

impl<T: JsonSchema + Example> Describe for Json<T> {
    fn describe(operation: &mut Operation) {
        describe_body::<T>(operation, true);
    }
}

impl<T: JsonSchema + Example> Describe for OptionalJson<T> {
    fn describe(operation: &mut Operation) {
        describe_body::<T>(operation, false);
    }
}

impl<T: JsonSchema + Example> Describe for Stored<T> {
    fn describe(operation: &mut Operation) {
        describe_body::<T>(operation, true);
        operation.fails(Code::QuotaExceeded);
    }
}

impl<T: JsonSchema + Example> Describe for OptionalStored<T> {
    fn describe(operation: &mut Operation) {
        describe_body::<T>(operation, false);
        operation.fails(Code::QuotaExceeded);
    }
}

fn describe_body<T: JsonSchema + Example>(operation: &mut Operation, required: bool) {
    operation.request_body::<T>(required);
    for code in [
        Code::InvalidJson,
        Code::BodyIncomplete,
        Code::BodyTimeout,
        Code::BodyTooLarge,
        Code::UnsupportedMediaType,
        Code::ValidationFailed,
    ] {
        operation.fails(code);
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

    /// A session outside those that a user token is for is absent.
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "session_id").await.as_deref().and_then(SessionId::parse);
        let seen = id.filter(|id| parts.extensions.get::<Caller>().is_some_and(|caller| caller.may_see(*id)));
        seen.map(Self).ok_or_else(|| ApiError::not_found("session"))
    }
}

impl FromRequestParts<App> for MessagePath {
    type Rejection = ApiError;

    /// A message outside the sessions that a user token is for is absent.
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let absent = || ApiError::not_found("message");
        let id = path_param(parts, app, "message_id").await.as_deref().and_then(MessageId::parse).ok_or_else(absent)?;
        let caller = parts.extensions.get::<Caller>().cloned().ok_or_else(unguarded)?;
        if caller.sessions.is_some() {
            let message = app.store.get_message(&caller.scope, id).await;
            let message = message.map_err(|error| ApiError::from_store(error, "message"))?;
            message.filter(|message| caller.may_see(message.session_id)).ok_or_else(absent)?;
        }
        Ok(Self(id))
    }
}

/// The API key named in the path.
pub struct KeyPath(pub String);

/// The project named in the path.
pub struct ProjectPath(pub ProjectId);

impl FromRequestParts<App> for KeyPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "key_id").await.filter(|id| is_key_id(id));
        id.map(Self).ok_or_else(|| ApiError::not_found("API key"))
    }
}

impl FromRequestParts<App> for ProjectPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = path_param(parts, app, "project_id").await.as_deref().and_then(ProjectId::parse);
        id.map(Self).ok_or_else(|| ApiError::not_found("project"))
    }
}

/// Whether a text has the form of a key's id; every other names nothing.
pub(crate) fn is_key_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A caller who may rule a whole project: one who speaks for one user is refused.
pub struct ProjectCaller(pub Caller);

impl FromRequestParts<App> for ProjectCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.require_project()?;
        Ok(Self(caller))
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

impl Describe for KeyPath {
    fn describe(operation: &mut Operation) {
        operation.path_parameter("key_id", "Id of the key: its public part.", json!({"type": "string"}));
        operation.fails(Code::NotFound);
    }
}

impl Describe for ProjectPath {
    fn describe(operation: &mut Operation) {
        operation.path_parameter("project_id", "Id of the project.", json!({"type": "string", "format": "uuid"}));
        operation.fails(Code::NotFound);
    }
}

impl Describe for ProjectCaller {
    fn describe(operation: &mut Operation) {
        for code in [Code::InvalidHeader, Code::MissingApiKey, Code::InsufficientScope] {
            operation.fails(code);
        }
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
