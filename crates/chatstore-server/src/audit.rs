//! Noting who ruled or destroyed what: an event around each such request, stored before the answer goes out.

use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use chatstore_core::api_keys::Permission;
use chatstore_core::audit::{Actor, AuditEvent};
use chatstore_core::ids::{ProjectId, SessionId};
use percent_encoding::percent_decode_str;

use crate::app::App;
use crate::auth::{Caller, Credential};
use crate::error::{ApiError, Code};
use crate::extract::is_key_id;
use crate::openapi::{DescribeOutput, Operation};

/// The id of a request, as the log line and every answer show it. Every request carries one in its extensions.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// What a handler made or changed, left on its response for the audit log.
#[derive(Clone, Debug)]
pub struct AuditTarget {
    /// Its id.
    pub target_id: String,
    /// Its project, which may be another than the caller's.
    pub project_id: ProjectId,
}

/// An answer that tells the audit log what was made or changed.
pub struct Audited<T>(pub T, pub AuditTarget);

impl<T: IntoResponse> IntoResponse for Audited<T> {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        response.extensions_mut().insert(self.1);
        response
    }
}

impl<T: DescribeOutput> DescribeOutput for Audited<T> {
    fn describe(operation: &mut Operation) {
        T::describe(operation);
        operation.fails(Code::Conflict);
    }
}

/// Whether requests of a route are noted: all that rule, and all that destroy.
pub fn is_audited(method: &Method, permission: Permission) -> bool {
    method != Method::GET && matches!(permission, Permission::Admin | Permission::Operator | Permission::Delete)
}

/// The outcome of a request that succeeded.
const OK: &str = "ok";
/// The outcome of a request whose end nobody saw.
const UNKNOWN: &str = "unknown";

/// How long an answer waits for its event: what was done must not look as if it failed.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// An event that waits for the outcome of its request. Dropped before, it is noted with the outcome `unknown`.
pub struct PendingEvent {
    app: App,
    event: Option<AuditEvent>,
}

impl PendingEvent {
    /// Begins the event of `action`, an operation's id.
    pub fn begin(app: &App, caller: &Caller, action: &'static str, request: &Request) -> Self {
        let (actor, actor_id) = match &caller.credential {
            Credential::RootKey => (Actor::RootKey, None),
            Credential::ApiKey(known) => (Actor::ApiKey, Some(known.key.key_id.clone())),
            Credential::UserToken => (Actor::UserToken, caller.scope.user_id.clone()),
        };
        let target = PathTarget::of(request);
        // Who rules every project is noted where it rules; nobody else writes into another project's log.
        let named = target.project_id.filter(|_| caller.scopes.contains(Permission::Operator));
        let now = app.ctx.now();
        let event = AuditEvent {
            event_id: app.ctx.new_audit_event_id(now),
            project_id: named.unwrap_or(caller.scope.project_id),
            created_at: now,
            actor,
            actor_id,
            user_id: caller.scope.user_id.clone(),
            action: action.to_owned(),
            target_id: target.id,
            outcome: UNKNOWN.to_owned(),
            address: caller.address.0.map(|address| address.to_string()),
            request_id: request.extensions().get::<RequestId>().map(|RequestId(id)| id.clone()),
        };
        Self { app: app.clone(), event: Some(event) }
    }

    /// Stores the event with what came of it; the answer waits for the future. A client that does not wait changes
    /// nothing about it.
    pub fn finish(mut self, response: &Response) -> impl Future<Output = ()> + Send + use<> {
        let pending = self.event.take().map(|mut event| {
            event.outcome = match response.extensions().get::<ApiError>() {
                Some(error) => error.code.as_str(),
                None if response.status().is_success() => OK,
                None => UNKNOWN,
            }
            .to_owned();
            if let Some(AuditTarget { target_id, project_id }) = response.extensions().get().cloned() {
                event.target_id = Some(target_id);
                event.project_id = project_id;
            }
            let names = (event.action.clone(), event.request_id.clone());
            (names, tokio::spawn(store(self.app.clone(), event)))
        });
        async move {
            if let Some(((action, request_id), stored)) = pending
                && tokio::time::timeout(WAIT_MAX, stored).await.is_err()
            {
                tracing::error!(action, request_id, "an event of the audit log takes long to be stored");
            }
        }
    }
}

impl Drop for PendingEvent {
    fn drop(&mut self) {
        if let Some(event) = self.event.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(store(self.app.clone(), event));
        }
    }
}

/// Stores an event. What was asked for has happened by now, so that a failure changes no answer.
async fn store(app: App, event: AuditEvent) {
    let (action, request_id) = (event.action.clone(), event.request_id.clone());
    if let Err(error) = app.store.append_audit_events(vec![event]).await {
        tracing::error!(%error, action, request_id, "an event of the audit log could not be stored");
    }
}

/// What the path of a request names.
#[derive(Default)]
struct PathTarget {
    id: Option<String>,
    project_id: Option<ProjectId>,
}

impl PathTarget {
    /// The last parameter of the path, if it has the form of an id: any other text is not for the log.
    fn of(request: &Request) -> Self {
        let Some(template) = request.extensions().get::<MatchedPath>() else {
            return Self::default();
        };
        let parts = template.as_str().split('/').zip(request.uri().path().split('/'));
        let Some((name, text)) = parts.filter(|(name, _)| name.starts_with('{')).last() else {
            return Self::default();
        };
        let text = percent_decode_str(text).decode_utf8_lossy();
        let uuid = SessionId::parse(&text).map(|id| id.to_string());
        Self {
            id: uuid.or_else(|| (name == "{key_id}" && is_key_id(&text)).then(|| text.clone().into_owned())),
            project_id: ProjectId::parse(&text).filter(|_| name == "{project_id}"),
        }
    }
}
