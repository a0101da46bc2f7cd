//! Who is calling: the guard in front of every route that is not open.

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chatstore_core::api_keys::{ApiKey, KeyDigest, KeyScopes, Permission, PresentedKey};
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::USER_ID_BYTES_MAX;
use chatstore_core::store::Scope;

use crate::app::App;
use crate::body::discard;
use crate::error::{ApiError, Code};

/// Names the one user a request speaks for.
pub const USER_ID_HEADER: &str = "x-user-id";
/// Carries an API key.
pub const API_KEY_HEADER: &str = "x-api-key";

/// Who sent the request, and what it may see and do.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose data it sees.
    pub scope: Scope,
    /// What its key may do.
    pub scopes: KeyScopes,
}

impl Caller {
    /// The user a new or listed thing is for: the one the request speaks for, or else `named`.
    ///
    /// # Errors
    /// 403 `user_mismatch` if the request speaks for one user and names another.
    pub fn user(&self, named: Option<String>) -> Result<Option<String>, ApiError> {
        match (&self.scope.user_id, named) {
            (Some(own), Some(named)) if *own != named => Err(user_mismatch()),
            (Some(own), _) => Ok(Some(own.clone())),
            (None, named) => Ok(named),
        }
    }
}

/// The project of a request, left on the response for the log line.
#[derive(Clone, Copy, Debug)]
pub struct CallerProject(pub ProjectId);

/// Lets a request through if its key is valid and has `permission`.
pub async fn guard(app: App, permission: Permission, mut request: Request, next: Next) -> Response {
    let caller = match authenticate(&app, request.headers()).await {
        Ok(caller) => caller,
        Err(error) => {
            discard(request).await;
            return error.into_response();
        }
    };
    let project = CallerProject(caller.scope.project_id);
    let mut response = if caller.scopes.contains(permission) {
        request.extensions_mut().insert(caller);
        next.run(request).await
    } else {
        discard(request).await;
        insufficient_scope(permission).into_response()
    };
    response.extensions_mut().insert(project);
    response
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let presented = presented_key(headers)?;
    let mut caller = identify(app, presented).await?;
    if let Some(user_id) = named_user(headers)? {
        caller.scope.user_id = caller.user(Some(user_id))?;
    }
    Ok(caller)
}

/// The key as sent: exactly one, in either header.
fn presented_key(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut keys = headers.get_all(API_KEY_HEADER).iter();
    let mut bearers = headers.get_all(header::AUTHORIZATION).iter();
    let (key, bearer) = (keys.next(), bearers.next());
    if keys.next().is_some() || bearers.next().is_some() {
        return Err(invalid_api_key());
    }
    let bearer = match (key, bearer) {
        // Beside an `X-API-Key`, another scheme is that of a proxy in between.
        (Some(_), Some(value)) => bearer_token(value),
        (None, Some(value)) => Some(bearer_token(value).unwrap_or_default()),
        (_, None) => None,
    };
    match (key.map(|value| value.to_str().unwrap_or_default()), bearer) {
        (Some(key), Some(bearer)) if key != bearer => Err(invalid_api_key()),
        (Some(key), _) | (None, Some(key)) => Ok(key),
        (None, None) => Err(ApiError::new(
            Code::MissingApiKey,
            "Send an API key in the header `X-API-Key`, or as `Authorization: Bearer <key>`.",
        )),
    }
}

fn bearer_token(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whose key it is. `API_KEY` always works; a stored key is looked up only if its checksum is right.
async fn identify(app: &App, presented: &str) -> Result<Caller, ApiError> {
    if let Some(root) = &app.root_key
        && root.matches(&KeyDigest::of(presented))
    {
        return Ok(Caller { scope: Scope::project(ProjectId::DEFAULT), scopes: KeyScopes::all() });
    }
    let presented = PresentedKey::parse(presented).ok_or_else(invalid_api_key)?;
    let found = app.store.get_api_key(presented.key_id()).await;
    let key = found.map_err(|error| ApiError::from_store(error, "API key"))?;
    let valid = |key: &ApiKey| key.digest.matches(&presented.digest()) && key.is_active(app.ctx.now());
    let key = key.filter(valid).ok_or_else(invalid_api_key)?;
    Ok(Caller { scope: Scope { project_id: key.project_id, user_id: key.user_id }, scopes: key.scopes })
}

/// The user in `X-User-Id`.
fn named_user(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(USER_ID_HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text =
        std::str::from_utf8(value.as_bytes()).ok().filter(|text| !text.is_empty() && text.len() <= USER_ID_BYTES_MAX);
    match (text, values.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(ApiError::new(
            Code::InvalidHeader,
            format!("`X-User-Id` must stand once and hold 1 to {USER_ID_BYTES_MAX} bytes of UTF-8."),
        )),
    }
}

fn invalid_api_key() -> ApiError {
    ApiError::new(Code::InvalidApiKey, "The API key is mistyped, unknown, revoked or expired.")
}

fn insufficient_scope(permission: Permission) -> ApiError {
    ApiError::new(Code::InsufficientScope, format!("This needs a key with the scope `{}`.", permission.as_str()))
}

fn user_mismatch() -> ApiError {
    ApiError::new(Code::UserMismatch, "The request speaks for one user and names another.")
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    /// Only routes behind the guard have a caller; on any other this is a defect, and nobody gets in.
    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| ApiError::internal("a handler asked for a caller on an unguarded route"))
    }
}
