//! Noting who ruled or destroyed what: an event around each such request, stored before the answer goes out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use chatstore_core::api_keys::Permission;
use chatstore_core::audit::{Actor, AuditEvent};
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use percent_encoding::percent_decode_str;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::app::App;
use crate::auth::{Caller, Credential};
use crate::error::{ApiError, Code};
use crate::extract::is_key_id;
use crate::idempotency;
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

/// An answer that tells the audit log what was deleted, where the path names it otherwise.
pub struct Deleted<T>(pub T, pub AuditTarget);

impl<T: IntoResponse> IntoResponse for Deleted<T> {
    fn into_response(self) -> Response {
        Audited(self.0, self.1).into_response()
    }
}

impl<T: DescribeOutput> DescribeOutput for Deleted<T> {
    fn describe(operation: &mut Operation) {
        T::describe(operation);
    }
}

/// Whether requests of a route are noted: all that rule, and all that destroy.
pub fn is_audited(method: &Method, permission: Permission) -> bool {
    method != Method::GET && matches!(permission, Permission::Admin | Permission::Operator | Permission::Delete)
}

/// The outcome of a request that succeeded.
const OK: &str = "ok";
/// The outcome of a request that succeeded when it was first sent, and came again.
const REPLAYED: &str = "replayed";
/// The outcome of a request whose end nobody saw.
const UNKNOWN: &str = "unknown";

/// How long an answer waits for its event: what was done must not look as if it failed.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// How often one actor's refusals for lack of scope are noted for one action: nobody fills the log by what they may not
/// do.
const REFUSAL_NOTED_EVERY: Duration = Duration::from_secs(60);
/// Actors and actions whose refusals are told apart; while there are more, all others are one actor.
const REFUSALS_MAX: usize = 4_096;

/// What is on its way to the audit log, and who was noted there a moment ago.
#[derive(Default)]
pub struct AuditLog {
    events: TaskTracker,
    /// When a refusal was last noted.
    refusals: Mutex<HashMap<Refusal, Duration>>,
}

/// Who was refused what; nobody in particular stands for all who are too many.
type Refusal = (Option<(ProjectId, Actor, Option<String>)>, &'static str);

impl AuditLog {
    /// Whether a refusal for lack of scope is to be noted: the first in a while.
    pub fn is_refusal_due(&self, caller: &Caller, action: &'static str, now: Duration) -> bool {
        let (actor, actor_id) = actor(caller);
        self.is_due((Some((caller.scope.project_id, actor, actor_id)), action), now)
    }

    fn is_due(&self, refusal: Refusal, now: Duration) -> bool {
        let mut noted = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = noted.len() >= REFUSALS_MAX && !noted.contains_key(&refusal);
        let refusal = if is_full { (None, refusal.1) } else { refusal };
        let is_recent = |at: &Duration| now < *at + REFUSAL_NOTED_EVERY;
        if noted.get(&refusal).is_some_and(is_recent) {
            return false;
        }
        noted.retain(|_, at| is_recent(at));
        noted.insert(refusal, now);
        true
    }

    /// Waits until the events of all requests are stored, those too that nobody waits for: to be called when no more requests come.
    pub async fn finish(&self) {
        self.events.close();
        self.events.wait().await;
    }
}

/// Who is calling, as events name them.
fn actor(caller: &Caller) -> (Actor, Option<String>) {
    match &caller.credential {
        Credential::RootKey => (Actor::RootKey, None),
        Credential::ApiKey(known) => (Actor::ApiKey, Some(known.key.key_id.clone())),
        Credential::UserToken => (Actor::UserToken, caller.scope.user_id.clone()),
    }
}

/// An event that waits for the outcome of its request. Dropped before, it is noted with the outcome `unknown`.
pub struct PendingEvent {
    app: App,
    event: Option<AuditEvent>,
    /// Whoever waits for all events waits for this one, too.
    _token: TaskTrackerToken,
}

impl PendingEvent {
    /// Begins the event of `action`, an operation's id.
    pub fn begin(app: &App, caller: &Caller, action: &'static str, request: &Request) -> Self {
        let (actor, actor_id) = actor(caller);
        let target = PathTarget::of(request);
        // Who rules every project is noted where it rules; nobody else writes into another project's log.
        let named = target.project_id.filter(|_| caller.scopes.contains(Permission::Operator));
        let address = caller.address.undisputed(request.headers(), app.access.trusted_proxies);
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
            address: address.0.map(|address| address.to_string()),
            request_id: request.extensions().get::<RequestId>().map(|RequestId(id)| id.clone()),
        };
        Self { app: app.clone(), event: Some(event), _token: app.audit.events.token() }
    }

    /// Stores the event with what came of it; the answer waits for the future. A client that does not wait changes
    /// nothing about it.
    pub fn finish(mut self, response: &Response) -> impl Future<Output = ()> + Send + use<> {
        let pending = self.event.take().map(|mut event| {
            event.outcome = match response.extensions().get::<ApiError>() {
                Some(error) => error.code.as_str(),
                None if response.headers().contains_key(idempotency::REPLAYED) => REPLAYED,
                None if response.status().is_success() => OK,
                None => UNKNOWN,
            }
            .to_owned();
            if let Some(AuditTarget { target_id, project_id }) = response.extensions().get().cloned() {
                event.target_id = Some(target_id);
                event.project_id = project_id;
            }
            let names = (event.action.clone(), event.request_id.clone());
            (names, self.app.audit.events.spawn(store(self.app.clone(), event)))
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
            self.app.audit.events.spawn_on(store(self.app.clone(), event), &runtime);
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
    /// The last parameter of the path that has the form of an id: any other text is not for the log, and what it names is
    /// part of what stands before it.
    fn of(request: &Request) -> Self {
        let Some(template) = request.extensions().get::<MatchedPath>() else {
            return Self::default();
        };
        let parts = template.as_str().split('/').zip(request.uri().path().split('/'));
        let parameters = parts.filter(|(name, _)| name.starts_with('{'));
        let parameters: Vec<_> =
            parameters.map(|(name, text)| (name, percent_decode_str(text).decode_utf8_lossy())).collect();
        let id = parameters.iter().rev().find_map(|(name, text)| {
            let uuid = SessionId::parse(text).or_else(|| SessionId::parse_conversation_id(text)).map(SessionId::uuid);
            let uuid = uuid.or_else(|| MessageId::parse_item_id(text).map(MessageId::uuid)).map(|id| id.to_string());
            uuid.or_else(|| (*name == "{key_id}" && is_key_id(text)).then(|| text.clone().into_owned()))
        });
        let project_id = parameters.iter().rev().find(|(name, _)| *name == "{project_id}");
        Self { id, project_id: project_id.and_then(|(_, text)| ProjectId::parse(text)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart_in_bounded_room() {
        let log = AuditLog::default();
        let is_due = |n: usize, action: &'static str, seconds: u64| {
            let actor = (ProjectId::DEFAULT, Actor::UserToken, Some(n.to_string()));
            log.is_due((Some(actor), action), Duration::from_secs(seconds))
        };
        let due = (0..REFUSALS_MAX + 100).filter(|n| is_due(*n, "delete_session", 0)).count();
        assert_eq!(due, REFUSALS_MAX + 1, "those who are too many are one");
        assert!(is_due(0, "delete_message", 0) && !is_due(1, "delete_message", 0));
        assert!(!is_due(0, "delete_session", 59) && !is_due(REFUSALS_MAX, "delete_session", 59));
        assert!(is_due(0, "delete_session", 60) && is_due(REFUSALS_MAX, "delete_session", 60));
        assert_eq!(log.refusals.lock().unwrap().len(), 2);
    }
}
