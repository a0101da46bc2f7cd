//! Who is calling: the guard in front of every route that is not open.

mod bindings;
mod credentials;
mod failures;
pub mod last_used;
mod tokens;
mod user;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chatstore_core::api_keys::{Authority, KeyDigest, KeyScopes, Permission, PresentedKey};
use chatstore_core::ids::{ProjectId, SessionId};
use chatstore_core::projects::Project;
use chatstore_core::rates::RequestClass;
use chatstore_core::store::{Scope, StoreError};

use crate::app::App;
use crate::audit::PendingEvent;
use crate::body::discard;
use crate::client_address::ClientAddress;
use crate::error::{ApiError, Code};
use crate::listener::Peer;
use crate::openai;
use crate::rate_limit::Account;
use crate::sdk_tries::Try;

pub use bindings::parse_address_range;
use credentials::LastAsked;
pub use credentials::{Credentials, KnownKey};
pub use failures::Failures;
pub use tokens::{AUDIENCE, NewToken, check_public_key, mint};
use user::named_user;
pub use user::{USER_ID_HEADER, USER_ISOLATION_HEADER};

/// Carries an API key.
pub const API_KEY_HEADER: &str = "x-api-key";

/// Who sent the request, and what it may see and do.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose data it sees, and how much of it there may be.
    pub scope: Scope,
    /// What it may do.
    pub scopes: KeyScopes,
    /// What it showed.
    pub credential: Credential,
    /// Its project.
    pub project: Arc<Project>,
    /// The only sessions that exist for it, if a user token names some.
    pub sessions: Option<Arc<[SessionId]>>,
    /// Where it comes from.
    pub address: ClientAddress,
}

/// What a caller showed.
#[derive(Clone, Debug)]
pub enum Credential {
    /// The key in `API_KEY`.
    RootKey,
    /// A stored key.
    ApiKey(Arc<KnownKey>),
    /// A user token; the user stands in the scope.
    UserToken,
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

    /// Whether this session may exist for the caller at all.
    pub fn may_see(&self, session_id: SessionId) -> bool {
        self.sessions.as_ref().is_none_or(|sessions| sessions.contains(&session_id))
    }

    /// Refuses a caller for whom only some sessions exist.
    ///
    /// # Errors
    /// 403 `insufficient_scope`.
    pub fn require_new_sessions(&self) -> Result<(), ApiError> {
        let detail = "The token is for some sessions alone: a new one needs a token without `session_ids`, or a key.";
        if self.sessions.is_none() { Ok(()) } else { Err(ApiError::new(Code::InsufficientScope, detail)) }
    }

    /// Whose keys the caller manages, and with which scopes.
    pub fn authority(&self) -> Authority {
        let every = self.scopes.contains(Permission::Operator);
        Authority { project_id: (!every).then_some(self.scope.project_id), scopes: self.scopes }
    }

    /// Refuses a caller who speaks for one user, where a whole project is ruled.
    ///
    /// # Errors
    /// 403 `insufficient_scope`.
    pub fn require_project(&self) -> Result<(), ApiError> {
        let detail = "This is about a whole project: send it without `X-User-Id`, by a key that is bound to no user.";
        if self.scope.user_id.is_none() { Ok(()) } else { Err(ApiError::new(Code::InsufficientScope, detail)) }
    }

    fn account(&self) -> Account<'_> {
        let key = match &self.credential {
            Credential::ApiKey(known) => Some(&known.key),
            Credential::RootKey | Credential::UserToken => None,
        };
        Account {
            address: self.address,
            project: Some((self.scope.project_id, &self.project.settings)),
            key_id: match &self.credential {
                Credential::RootKey => Some(ROOT_KEY_ID),
                Credential::ApiKey(known) => Some(&known.key.key_id),
                Credential::UserToken => None,
            },
            key_settings: key.map(|key| &key.settings),
            user_id: self.scope.user_id.as_deref(),
        }
    }
}

/// Stands for `API_KEY` where keys have ids; no key has an id of this length.
const ROOT_KEY_ID: &str = "root";

/// The project of a request, left on the response for the log line.
#[derive(Clone, Copy, Debug)]
pub struct CallerProject(pub ProjectId);

/// What the guard of one route knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Guarded {
    /// The operation's id.
    pub action: &'static str,
    /// The scope it needs.
    pub permission: Permission,
    /// The budget it draws on.
    pub class: RequestClass,
    /// Whether it is noted in the audit log.
    pub is_audited: bool,
}

/// Lets a request through if its credential is valid, its limits admit it, and it has the scope.
pub async fn guard(app: App, route: Guarded, request: Request, next: Next) -> Response {
    let address = client_address(&app, &request);
    let is_openai = openai::serves(request.uri().path());
    let caller = match authenticate(&app, address, request.headers(), is_openai).await {
        Ok(caller) => caller,
        Err(error) => {
            if !error.code.status().is_server_error() {
                request.extensions().get::<Try>().inspect(|sdk_try| sdk_try.leave_unnoted());
            }
            return refuse(request, error).await;
        }
    };
    let project = CallerProject(caller.scope.project_id);
    let standing = app.limiter.count(&caller.account(), route.class).await;
    let mut response = match standing.refusal() {
        Some(error) => refuse(request, error).await,
        None => let_in(&app, route, caller, request, next).await,
    };
    standing.write(response.headers_mut());
    response.extensions_mut().insert(project);
    response
}

/// Lets a request to an open page through if the limits of its address admit it.
pub async fn guard_open(app: App, request: Request, next: Next) -> Response {
    let address = client_address(&app, &request);
    let standing = app.limiter.count(&Account::of_address(address), RequestClass::Reads).await;
    let mut response = match standing.refusal() {
        Some(error) => refuse(request, error).await,
        None => next.run(request).await,
    };
    standing.write(response.headers_mut());
    response
}

async fn let_in(app: &App, route: Guarded, caller: Caller, mut request: Request, next: Next) -> Response {
    let is_permitted = caller.scopes.contains(route.permission);
    let is_noted =
        route.is_audited && (is_permitted || app.audit.is_refusal_due(&caller, route.action, app.ctx.elapsed()));
    let event = is_noted.then(|| PendingEvent::begin(app, &caller, route.action, &request));
    let response = if is_permitted {
        request.extensions_mut().insert(caller);
        next.run(request).await
    } else {
        refuse(request, insufficient_scope(route.permission)).await
    };
    if let Some(event) = event {
        event.finish(&response).await;
    }
    response
}

/// The answer to a request whose body nobody wants.
async fn refuse(request: Request, error: ApiError) -> Response {
    discard(request).await;
    error.into_response()
}

fn client_address(app: &App, request: &Request) -> ClientAddress {
    ClientAddress::of(request.extensions().get::<Peer>(), request.headers(), app.access.trusted_proxies)
}

async fn authenticate(
    app: &App,
    address: ClientAddress,
    headers: &HeaderMap,
    is_openai: bool,
) -> Result<Caller, ApiError> {
    let identified = match presented_credential(headers) {
        Ok(presented) => identify(app, address, headers, presented).await,
        Err(error) => Err(error.into()),
    };
    let mut caller = identified.map_err(|refused| counted(app, address, refused))?;
    if let Some(user_id) = named_user(headers, is_openai)? {
        caller.scope.user_id = caller.user(Some(user_id))?;
    }
    Ok(caller)
}

/// Why nobody is let in.
struct Refused {
    error: ApiError,
    /// Whether it counts as a failed attempt: whoever shows what was good until a while ago does not guess.
    is_guess: bool,
}

impl Refused {
    /// For what would be let in at another time.
    fn out_of_date(error: ApiError) -> Self {
        Self { error, is_guess: false }
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        let is_guess = matches!(error.code, Code::InvalidApiKey | Code::InvalidToken);
        Self { error, is_guess }
    }
}

/// Counts a failed attempt. Past the budget of its address it is refused for that, whatever else is wrong with it.
fn counted(app: &App, address: ClientAddress, refused: Refused) -> ApiError {
    let too_many = if refused.is_guess { app.failures.count(address) } else { None };
    too_many.map_or(refused.error, too_many_failures)
}

/// Lets a lookup pass, unless the budget of the address is used up and it would be for a guess: an id that nothing
/// has, or one that was `asked` for a moment ago and refused what was shown.
async fn allow_lookup(app: &App, address: ClientAddress, id: &str, asked: Option<&LastAsked>) -> Result<(), ApiError> {
    let Some(wait) = app.failures.wait(address) else {
        return Ok(());
    };
    let is_allowed = match asked {
        Some(asked) => asked.is_due_again(app.ctx.elapsed()),
        None => app.credentials.is_listed(id).await.map_err(lookup_failed)?,
    };
    if is_allowed { Ok(()) } else { Err(too_many_failures(wait)) }
}

fn too_many_failures(wait: Duration) -> ApiError {
    let detail = "Too many attempts to authenticate failed from this address. Valid keys are let in all the same.";
    ApiError::new(Code::RateLimited, detail).retry_after(wait)
}

fn lookup_failed(error: StoreError) -> ApiError {
    ApiError::from_store(error, "API key")
}

/// The key or token as sent: exactly one, in either header.
fn presented_credential(headers: &HeaderMap) -> Result<&str, ApiError> {
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

/// Whose key or token it is. `API_KEY` always works; a stored key is looked up only if its checksum is right.
async fn identify(app: &App, address: ClientAddress, headers: &HeaderMap, presented: &str) -> Result<Caller, Refused> {
    let caller = |project: Arc<Project>, user_id, scopes, credential, sessions| Caller {
        scope: Scope { project_id: project.project_id, user_id, quotas: project.settings.quotas.or(app.access.quotas) },
        scopes,
        credential,
        project,
        sessions,
        address,
    };
    let digest = KeyDigest::of(presented);
    if app.root_key.as_ref().is_some_and(|root| root.matches(&digest)) {
        let project = app.credentials.project(ProjectId::DEFAULT).await.map_err(lookup_failed)?;
        let project = project.ok_or_else(|| ApiError::internal("the default project is not there"))?;
        return Ok(caller(project, None, KeyScopes::all(), Credential::RootKey, None));
    }
    if !presented.starts_with("cs_") && tokens::is_token(presented) {
        let token = tokens::verify(app, address, presented).await?;
        return Ok(caller(token.project, Some(token.user_id), token.scopes, Credential::UserToken, token.sessions));
    }
    let presented = PresentedKey::parse(presented).ok_or_else(invalid_api_key)?;
    let known = find_key(app, address, presented.key_id(), &digest).await?;
    known.bindings.check(address.undisputed(headers, app.access.trusted_proxies), headers)?;
    app.last_uses.note(&known, app.ctx.now());
    let (project, user_id) = (known.project.clone(), known.key.user_id.clone());
    Ok(caller(project, user_id, known.key.scopes, Credential::ApiKey(known), None))
}

/// The stored key with this id, if the digest is of its secret and it may be used now.
async fn find_key(
    app: &App,
    address: ClientAddress,
    key_id: &str,
    digest: &KeyDigest,
) -> Result<Arc<KnownKey>, Refused> {
    let now = app.ctx.now();
    let remembered = app.credentials.remembered_key(key_id);
    if let Some(known) = remembered.as_ref().filter(|known| known.admits(digest, now)) {
        return Ok(known.clone());
    }
    let is_out_of_date = |known: &KnownKey| known.has_admitted(digest);
    let asked = remembered.as_ref().map(|known| &known.asked);
    if let Err(error) = allow_lookup(app, address, key_id, asked).await {
        let is_out_of_date = remembered.as_deref().is_some_and(is_out_of_date);
        return Err(if is_out_of_date { Refused::out_of_date(invalid_api_key()) } else { error.into() });
    }
    let found = app.credentials.look_up_key(key_id).await.map_err(lookup_failed)?;
    // What is not there takes as long as what does not fit.
    let is_admitted = found.as_ref().map_or_else(|| !digest.matches(digest), |known| known.admits(digest, now));
    match found {
        Some(known) if is_admitted => Ok(known),
        Some(known) if is_out_of_date(&known) => Err(Refused::out_of_date(invalid_api_key())),
        _ => Err(invalid_api_key().into()),
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
