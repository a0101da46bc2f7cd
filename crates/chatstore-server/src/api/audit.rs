//! The audit log on the wire.

use axum::extract::State;
use chatstore_core::api_keys::Permission;
use chatstore_core::audit::{Actor, AuditEvent, AuditQuery};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{AuditEventId, ProjectId};
use chatstore_core::limits::{NAME_BYTES_MAX, USER_ID_BYTES_MAX};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{OperationDoc, check_length, chosen_project};
use crate::app::App;
use crate::error::{ApiError, FieldError};
use crate::extract::{FromQuery, ProjectCaller, Query};
use crate::openapi::{Example, Operation, id, time};
use crate::query::{Paging, Pairs, binding};
use crate::respond::Listed;

/// Something that was ruled or destroyed, or was to be.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuditEventResponse {
    /// Its id.
    #[schemars(schema_with = "id")]
    event_id: AuditEventId,
    /// The project it concerns.
    #[schemars(schema_with = "id")]
    project_id: ProjectId,
    /// When the request began.
    #[schemars(schema_with = "time")]
    created_at: Timestamp,
    /// Who did it: `api_key`, `root_key` (the one in `API_KEY`), `user_token` or `command`.
    actor: &'static str,
    /// The id of the key, or the user of the token.
    actor_id: Option<String>,
    /// The user that the caller spoke for.
    user_id: Option<String>,
    /// What was done: the operation's id, or the command.
    action: String,
    /// The id of what it was done to.
    target_id: Option<String>,
    /// `ok`, `replayed` for a request that was answered before, the `code` of the answer, or `unknown` if the caller did not wait for it.
    outcome: String,
    /// The address it came from.
    address: Option<String>,
    /// The id under which the request stands in the log.
    request_id: Option<String>,
}

impl From<AuditEvent> for AuditEventResponse {
    fn from(event: AuditEvent) -> Self {
        Self {
            event_id: event.event_id,
            project_id: event.project_id,
            created_at: event.created_at,
            actor: event.actor.as_str(),
            actor_id: event.actor_id,
            user_id: event.user_id,
            action: event.action,
            target_id: event.target_id,
            outcome: event.outcome,
            address: event.address,
            request_id: event.request_id,
        }
    }
}

impl Example for AuditEventResponse {
    fn example() -> Value {
        json!({
            "event_id": "019b0f3e-7a10-7d11-8c2f-5b1e0a9d3c46",
            "project_id": "00000000-0000-0000-0000-000000000000",
            "created_at": "2026-01-31T12:00:00.000000Z",
            "actor": Actor::ApiKey.as_str(),
            "actor_id": "4fXb0GmZ2kQa",
            "user_id": null,
            "action": "delete_session",
            "target_id": "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47",
            "outcome": "ok",
            "address": "203.0.113.7",
            "request_id": "9f2c1d4e5a6b47c8a1b2c3d4e5f60718",
        })
    }
}

/// Which events to list.
#[derive(Debug)]
pub struct ListAuditEventsQuery {
    query: AuditQuery,
    paging: Paging,
}

impl FromQuery for ListAuditEventsQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let text = |name: &str| pairs.get(name).map(ToOwned::to_owned);
        let query = AuditQuery {
            project_id: pairs.read("project_id", "the id of a project", ProjectId::parse, &mut errors),
            action: text("action"),
            actor_id: text("actor_id"),
        };
        check_length("?action", query.action.as_deref(), NAME_BYTES_MAX, &mut errors);
        check_length("?actor_id", query.actor_id.as_deref(), USER_ID_BYTES_MAX, &mut errors);
        // Each has an index of its own; both together would walk one of them.
        if query.action.is_some() && query.actor_id.is_some() {
            errors.push(FieldError::new("?actor_id", "cannot be joined with `action`: use one of them"));
        }
        let paging = pairs.cursor_paging(&mut errors);
        if errors.is_empty() { Ok(Self { query, paging }) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        let text = json!({"type": "string"});
        operation.query_parameter(
            "project_id",
            "Only what concerns this project; another than the own needs the scope `operator`.",
            json!({"type": "string", "format": "uuid"}),
        );
        operation.query_parameter(
            "action",
            "Only this operation or command; not together with `actor_id`.",
            text.clone(),
        );
        operation.query_parameter(
            "actor_id",
            "Only by the key of this id, or by tokens of this user; not together with `action`.",
            text,
        );
        Paging::describe_cursor(operation);
    }
}

/// See [`list_audit_events`].
pub const LIST_AUDIT_EVENTS: OperationDoc = OperationDoc {
    id: "list_audit_events",
    summary: "List the audit log",
    description: "Who ruled or destroyed what, newest first, refused tries included; never a text of a message. With \
        the scope `operator` and without `project_id` it shows every project, also deleted ones; else the own project.",
    tag: "audit",
};

/// Lists the audit log.
pub async fn list_audit_events(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    Query(ListAuditEventsQuery { mut query, paging }): Query<ListAuditEventsQuery>,
) -> Result<Listed<AuditEventResponse>, ApiError> {
    query.project_id = chosen_project(&caller, query.project_id)?;
    let every = caller.scopes.contains(Permission::Operator);
    let binding = binding(&("audit", every, query.project_id, &query.action, &query.actor_id));
    let request = paging.request(&app.cursor_key, &binding)?;
    let page = app.store.list_audit_events(&query, &request).await;
    let page = page.map_err(|error| ApiError::from_store(error, "event"))?;
    Ok(Listed {
        next: page.next.map(|next| paging.next_link(&app.cursor_key, &binding, &next)),
        items: page.items.into_iter().map(AuditEventResponse::from).collect(),
    })
}
