//! Sessions on the wire.

mod list;
mod some;

use axum::extract::State;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::Claim;
use chatstore_core::ids::SessionId;
use chatstore_core::json::RawJson;
use chatstore_core::limits::{SESSION_NAME_BYTES_MAX, USER_ID_BYTES_MAX};
use chatstore_core::page::{PageRequest, SessionPosition};
use chatstore_core::sessions::{NewSession, Session, SessionPage, SessionPatch, SessionQuery};
use chatstore_core::store::StoreError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{OperationDoc, check_external_id, check_id, check_length, check_metadata};
use crate::app::App;
use crate::auth::Caller;
use crate::body::{Body, Field};
use crate::error::ApiError;
use crate::extract::{IfMatch, Query, SessionPath, Stored};
use crate::idempotency::{Doing, Once, Repeatable, Replayable};
use crate::openapi::{Example, id, object, optional_id, optional_object, optional_time, time};
use crate::quotas::AddsText;
use crate::respond::{Created, Listed, Versioned};

pub use list::ListSessionsQuery;
use some::list_some;

/// A conversation.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SessionResponse {
    /// Its id.
    #[schemars(schema_with = "id")]
    session_id: SessionId,
    /// The user it belongs to, as the caller named it.
    user_id: Option<String>,
    /// What people call it; may be empty.
    session_name: String,
    /// Whether its owner marked it.
    is_favorite: bool,
    /// A JSON object, byte for byte as it was sent.
    #[schemars(schema_with = "object")]
    metadata: RawJson,
    /// The id the client brought.
    external_id: Option<String>,
    /// The highest place given to a message.
    last_seq: i64,
    /// Messages that are not deleted.
    message_count: i64,
    /// Sum of the token counts that were sent with messages.
    token_count: Option<i64>,
    /// Grows with every change to a settable field; the ETag.
    version: i64,
    /// When it was created.
    #[schemars(schema_with = "time")]
    created_at: Timestamp,
    /// When it or one of its messages last changed.
    #[schemars(schema_with = "time")]
    updated_at: Timestamp,
    /// When a message was last appended.
    #[schemars(schema_with = "optional_time")]
    last_message_at: Option<Timestamp>,
    /// The session it was copied from.
    #[schemars(schema_with = "optional_id")]
    forked_from: Option<SessionId>,
}

impl From<Session> for SessionResponse {
    fn from(session: Session) -> Self {
        Self {
            session_id: session.session_id,
            user_id: session.user_id,
            session_name: session.session_name,
            is_favorite: session.is_favorite,
            metadata: session.metadata,
            external_id: session.external_id,
            last_seq: session.last_seq,
            message_count: session.message_count,
            token_count: session.token_count,
            version: session.version,
            created_at: session.created_at,
            updated_at: session.updated_at,
            last_message_at: session.last_message_at,
            forked_from: session.forked_from,
        }
    }
}

impl Example for SessionResponse {
    fn example() -> Value {
        json!({
            "session_id": "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47",
            "user_id": "ada",
            "session_name": "Trip to Lisbon",
            "is_favorite": false,
            "metadata": {"app": "travel", "model": "large"},
            "external_id": null,
            "last_seq": 2,
            "message_count": 2,
            "token_count": 57,
            "version": 1,
            "created_at": "2026-01-31T12:00:00.000000Z",
            "updated_at": "2026-01-31T12:00:04.250000Z",
            "last_message_at": "2026-01-31T12:00:04.250000Z",
            "forked_from": null,
        })
    }
}

/// A session to create.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["session_name"]))]
pub struct CreateSessionRequest {
    /// What people call it; may be empty.
    #[serde(default)]
    #[schemars(with = "String")]
    session_name: Field<String>,
    /// The user it belongs to; with `X-User-Id` or a key bound to a user it can only be that user.
    #[serde(default)]
    user_id: Field<String>,
    /// Whether its owner marked it.
    #[serde(default)]
    #[schemars(with = "bool")]
    is_favorite: Field<bool>,
    /// A JSON object of at most 16 KiB, kept byte for byte.
    #[serde(default)]
    #[schemars(schema_with = "optional_object")]
    metadata: Field<RawJson>,
    /// Your own id for it, unique among the user's sessions.
    #[serde(default)]
    external_id: Field<String>,
}

impl Body for CreateSessionRequest {}

impl AddsText for CreateSessionRequest {}

impl Example for CreateSessionRequest {
    fn example() -> Value {
        json!({"session_name": "Trip to Lisbon", "user_id": "ada", "metadata": {"app": "travel"}})
    }
}

impl CreateSessionRequest {
    async fn check(
        self,
        app: &App,
        caller: &Caller,
        repeatable: &Repeatable,
    ) -> Result<(NewSession, Option<Claim>), ApiError> {
        let mut errors = Vec::new();
        let session_name = self.session_name.required("/session_name", &mut errors);
        let is_favorite = self.is_favorite.not_null("/is_favorite", &mut errors).unwrap_or(false);
        let (user_id, external_id) = (self.user_id.value(), self.external_id.value());
        let metadata = self.metadata.value();
        check_length("/session_name", session_name.as_deref(), SESSION_NAME_BYTES_MAX, &mut errors);
        check_id("/user_id", user_id.as_deref(), USER_ID_BYTES_MAX, &mut errors);
        check_external_id("/external_id", external_id.as_deref(), &mut errors);
        check_metadata("/metadata", metadata.as_ref(), &mut errors);
        let (Some(session_name), true) = (session_name, errors.is_empty()) else {
            return Err(ApiError::invalid(errors));
        };
        let user_id = caller.user(user_id)?;
        let created_at = app.ctx.now();
        let doing = Doing {
            operation: CREATE_SESSION.id,
            target: "",
            user_id: user_id.as_deref(),
            bucket: None,
            now: created_at,
        };
        let claim = repeatable.claim(app, caller, doing).await?;
        let elsewhere = claim.as_ref().map_or_else(|| app.ctx.random().into(), |claim| claim.bucket);
        let bucket = caller.scope.bucket(user_id.as_deref(), external_id.as_deref(), elsewhere);
        let new = NewSession {
            session_id: app.ctx.new_session_id(created_at, bucket),
            user_id,
            session_name,
            is_favorite,
            metadata: metadata.unwrap_or_else(RawJson::empty_object),
            external_id,
            created_at,
        };
        Ok((new, claim))
    }
}

/// Changes to a session: only the keys that are present change.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct UpdateSessionRequest {
    /// New name; may be empty.
    #[serde(default)]
    #[schemars(with = "String")]
    session_name: Field<String>,
    /// New mark.
    #[serde(default)]
    #[schemars(with = "bool")]
    is_favorite: Field<bool>,
    /// New metadata, whole; null empties it.
    #[serde(default)]
    #[schemars(schema_with = "optional_object")]
    metadata: Field<RawJson>,
}

impl Body for UpdateSessionRequest {}

impl AddsText for UpdateSessionRequest {
    fn adds_text(&self) -> bool {
        matches!(self.session_name, Field::Value(_)) || matches!(self.metadata, Field::Value(_))
    }
}

impl Example for UpdateSessionRequest {
    fn example() -> Value {
        json!({"session_name": "Lisbon in May", "is_favorite": true})
    }
}

impl UpdateSessionRequest {
    fn check(self) -> Result<SessionPatch, ApiError> {
        let mut errors = Vec::new();
        let patch = SessionPatch {
            session_name: self.session_name.not_null("/session_name", &mut errors),
            is_favorite: self.is_favorite.not_null("/is_favorite", &mut errors),
            metadata: self.metadata.change().map(|metadata| metadata.unwrap_or_else(RawJson::empty_object)),
        };
        check_length("/session_name", patch.session_name.as_deref(), SESSION_NAME_BYTES_MAX, &mut errors);
        check_metadata("/metadata", patch.metadata.as_ref(), &mut errors);
        if errors.is_empty() { Ok(patch) } else { Err(ApiError::invalid(errors)) }
    }
}

/// See [`create_session`].
pub const CREATE_SESSION: OperationDoc = OperationDoc {
    id: "create_session",
    summary: "Create a session",
    description: "Stores a conversation. The answer comes when it is durable.",
    tag: "sessions",
};

/// Stores a session.
pub async fn create_session(
    State(app): State<App>,
    caller: Caller,
    Once(Stored(body), repeatable): Once<Stored<CreateSessionRequest>>,
) -> Result<Replayable<Created<SessionResponse>>, ApiError> {
    caller.require_new_sessions()?;
    let (new, claim) = body.check(&app, &caller, &repeatable).await?;
    let created = app.store.create_session(&caller.scope, new, Vec::new(), claim.as_ref()).await;
    Ok(Replayable(created.map_err(session_error)?.map(|session| Created {
        version: Some(session.version),
        location: Some(format!("/api/v1/sessions/{}", session.session_id)),
        body: session.into(),
    })))
}

/// See [`list_sessions`].
pub const LIST_SESSIONS: OperationDoc = OperationDoc {
    id: "list_sessions",
    summary: "List sessions",
    description: "A bare array, oldest first unless `sort` and `order` say otherwise. The sidebar of a chat application \
        is `?user_id=…&sort=updated_at&order=desc`. While there is more, the `Link` header leads to the next page.",
    tag: "sessions",
};

/// Lists sessions.
pub async fn list_sessions(
    State(app): State<App>,
    caller: Caller,
    Query(list): Query<ListSessionsQuery>,
) -> Result<Listed<SessionResponse>, ApiError> {
    caller.user(list.query.user_id.clone())?;
    let binding = list.binding(&caller);
    let request = list.paging.request(&app.cursor_key, &binding)?;
    let page = list_page(&app, &caller, &list.query, &request).await.map_err(session_error)?;
    Ok(Listed {
        next: page.next.map(|next| list.paging.next_link(&app.cursor_key, &binding, &next)),
        items: page.items.into_iter().map(SessionResponse::from).collect(),
    })
}

/// A page of the sessions that exist for the caller.
pub(crate) async fn list_page(
    app: &App,
    caller: &Caller,
    query: &SessionQuery,
    page: &PageRequest<SessionPosition>,
) -> Result<SessionPage, StoreError> {
    match &caller.sessions {
        Some(sessions) => list_some(app, caller, sessions, query, page).await,
        None => app.store.list_sessions(&caller.scope, query, page).await,
    }
}

/// See [`get_session`].
pub const GET_SESSION: OperationDoc = OperationDoc {
    id: "get_session",
    summary: "Get a session",
    description: "A session of another project or user answers like one that does not exist.",
    tag: "sessions",
};

/// Returns a session.
pub async fn get_session(
    State(app): State<App>,
    caller: Caller,
    SessionPath(session_id): SessionPath,
) -> Result<Versioned<SessionResponse>, ApiError> {
    let session = app.store.get_session(&caller.scope, session_id).await.map_err(session_error)?;
    session.map(versioned).ok_or_else(|| ApiError::not_found("session"))
}

/// See [`update_session`].
pub const UPDATE_SESSION: OperationDoc = OperationDoc {
    id: "update_session",
    summary: "Change a session",
    description: "Only the keys that are present change; `{}` changes nothing.",
    tag: "sessions",
};

/// Changes a session.
pub async fn update_session(
    State(app): State<App>,
    caller: Caller,
    SessionPath(session_id): SessionPath,
    IfMatch(expected): IfMatch,
    Stored(body): Stored<UpdateSessionRequest>,
) -> Result<Versioned<SessionResponse>, ApiError> {
    let patch = body.check()?;
    let updated = app.store.update_session(&caller.scope, session_id, patch, expected, app.ctx.now()).await;
    updated.map(versioned).map_err(session_error)
}

/// See [`delete_session`].
pub const DELETE_SESSION: OperationDoc = OperationDoc {
    id: "delete_session",
    summary: "Delete a session",
    description: "Removes the session and its messages from every list at once and erases what they say. \
        Answers with the session as it was.",
    tag: "sessions",
};

/// Deletes a session.
pub async fn delete_session(
    State(app): State<App>,
    caller: Caller,
    SessionPath(session_id): SessionPath,
    IfMatch(expected): IfMatch,
) -> Result<Versioned<SessionResponse>, ApiError> {
    let deleted = app.store.delete_session(&caller.scope, session_id, expected, app.ctx.now()).await;
    deleted.map(versioned).map_err(session_error)
}

fn versioned(session: Session) -> Versioned<SessionResponse> {
    let version = session.version;
    Versioned(session.into(), version)
}

fn session_error(error: StoreError) -> ApiError {
    ApiError::from_store(error, "session")
}
