//! Conversations on the wire.

mod list;

use axum::extract::State;
use chatstore_core::ids::SessionId;
use chatstore_core::json::RawJson;
use chatstore_core::sessions::{NewSession, Session, SessionPatch};
use chatstore_core::store::{ExpectedVersion, StoreError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::items::{Appending, items_error};
use super::metadata::check_metadata;
use super::path::ConversationPath;
use crate::api::OperationDoc;
use crate::app::App;
use crate::auth::Caller;
use crate::body::{Body, Field};
use crate::error::ApiError;
use crate::extract::{OptionalStored, Stored};
use crate::idempotency::{Doing, Once, Replayable};
use crate::openapi::{Example, object, optional_object};
use crate::quotas::AddsText;
use crate::respond::Ok200;

pub use list::{LIST_CONVERSATIONS, ListConversationsQuery, list_conversations};

/// A conversation.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConversationResponse {
    /// Its id: that of the session, written otherwise.
    id: String,
    /// `conversation`.
    object: &'static str,
    /// When it was created, in seconds since 1970.
    created_at: i64,
    /// Up to 16 texts, by name.
    #[schemars(schema_with = "object")]
    metadata: RawJson,
}

impl From<Session> for ConversationResponse {
    fn from(session: Session) -> Self {
        Self {
            id: session.session_id.to_conversation_id(),
            object: "conversation",
            created_at: session.created_at.as_micros().div_euclid(1_000_000),
            metadata: session.metadata,
        }
    }
}

const EXAMPLE_ID: &str = "conv_019b0f3e5c007a419d523f6a8c1e2b47";

impl Example for ConversationResponse {
    fn example() -> Value {
        json!({
            "id": EXAMPLE_ID, "object": "conversation", "created_at": 1_769_860_800, "metadata": {"topic": "travel"},
        })
    }
}

/// A conversation to create; all of it may be left out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct CreateConversationRequest {
    /// Its first items.
    #[serde(default)]
    #[schemars(with = "Option<Vec<std::collections::BTreeMap<String, Value>>>")]
    items: Field<Vec<RawJson>>,
    /// Up to 16 texts, by name: 64 characters a name, 512 a text.
    #[serde(default)]
    #[schemars(schema_with = "optional_object")]
    metadata: Field<RawJson>,
}

impl Body for CreateConversationRequest {}

impl AddsText for CreateConversationRequest {}

impl Example for CreateConversationRequest {
    fn example() -> Value {
        json!({"metadata": {"topic": "travel"}, "items": [{"role": "user", "content": "What should I see in Lisbon?"}]})
    }
}

/// See [`create_conversation`].
pub const CREATE_CONVERSATION: OperationDoc = OperationDoc {
    id: "create_conversation",
    summary: "Create a conversation",
    description: "Stores a conversation with its first items, all or nothing. It is a session, too: \
        `/api/v1/sessions` shows the same.",
    tag: "conversations",
};

/// Stores a conversation.
pub async fn create_conversation(
    State(app): State<App>,
    caller: Caller,
    Once(OptionalStored(body), repeatable): Once<OptionalStored<CreateConversationRequest>>,
) -> Result<Replayable<Ok200<ConversationResponse>>, ApiError> {
    caller.require_new_sessions()?;
    let metadata = body.metadata.value().unwrap_or_else(RawJson::empty_object);
    check_metadata(&metadata)?;
    let user_id = caller.user(None)?;
    let now = app.ctx.now();
    let doing = Doing { operation: CREATE_CONVERSATION.id, target: "", user_id: user_id.as_deref(), bucket: None, now };
    let claim = repeatable.claim(&app, &caller, doing).await?;
    let elsewhere = claim.as_ref().map_or_else(|| app.ctx.random().into(), |claim| claim.bucket);
    let bucket = caller.scope.bucket(user_id.as_deref(), None, elsewhere);
    let session_id = app.ctx.new_session_id(now, bucket);
    let appending = Appending { app: &app, caller: &caller, session_id, is_new: true, now };
    let messages = appending.read(body.items.value().unwrap_or_default(), claim.as_ref()).await?;
    let is_queued = messages.iter().any(|message| message.embed);
    let new = NewSession {
        session_id,
        user_id,
        session_name: String::new(),
        is_favorite: false,
        metadata,
        external_id: None,
        created_at: now,
    };
    let created = app.store.create_session(&caller.scope, new, messages, claim.as_ref()).await;
    let created = created.map_err(items_error)?;
    if is_queued && !created.is_replay {
        app.embedding_queued();
    }
    Ok(Replayable(created.map(|session| Ok200(session.into()))))
}

/// See [`get_conversation`].
pub const GET_CONVERSATION: OperationDoc = OperationDoc {
    id: "get_conversation",
    summary: "Get a conversation",
    description: "A conversation of another project or user answers like one that does not exist.",
    tag: "conversations",
};

/// Returns a conversation.
pub async fn get_conversation(
    State(app): State<App>,
    caller: Caller,
    ConversationPath(session_id): ConversationPath,
) -> Result<Ok200<ConversationResponse>, ApiError> {
    conversation(&app, &caller, session_id).await.map(Ok200)
}

/// The conversation as it is now.
pub(super) async fn conversation(
    app: &App,
    caller: &Caller,
    session_id: SessionId,
) -> Result<ConversationResponse, ApiError> {
    let session = app.store.get_session(&caller.scope, session_id).await.map_err(conversation_error)?;
    session.map(ConversationResponse::from).ok_or_else(|| ApiError::not_found("conversation"))
}

/// New metadata for a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["metadata"]))]
pub struct UpdateConversationRequest {
    /// All of it: what is not named here goes, and null empties it.
    #[serde(default)]
    #[schemars(schema_with = "optional_object")]
    metadata: Field<RawJson>,
}

impl Body for UpdateConversationRequest {}

impl AddsText for UpdateConversationRequest {}

impl Example for UpdateConversationRequest {
    fn example() -> Value {
        json!({"metadata": {"topic": "Lisbon"}})
    }
}

/// See [`update_conversation`].
pub const UPDATE_CONVERSATION: OperationDoc = OperationDoc {
    id: "update_conversation",
    summary: "Change the metadata of a conversation",
    description: "The metadata is replaced as a whole. `PATCH /api/v1/sessions/{session_id}` changes name and mark.",
    tag: "conversations",
};

/// Changes a conversation.
pub async fn update_conversation(
    State(app): State<App>,
    caller: Caller,
    ConversationPath(session_id): ConversationPath,
    Stored(body): Stored<UpdateConversationRequest>,
) -> Result<Ok200<ConversationResponse>, ApiError> {
    let metadata = match body.metadata {
        Field::Absent => return Err(ApiError::invalid_field("/metadata", "is required")),
        Field::Null => RawJson::empty_object(),
        Field::Value(metadata) => metadata,
    };
    check_metadata(&metadata)?;
    let patch = SessionPatch { metadata: Some(metadata), ..SessionPatch::default() };
    let updated = app.store.update_session(&caller.scope, session_id, patch, ExpectedVersion::Any, app.ctx.now()).await;
    updated.map(|session| Ok200(session.into())).map_err(conversation_error)
}

/// What is left of a conversation.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeletedConversationResponse {
    /// Its id.
    id: String,
    /// `conversation.deleted`.
    object: &'static str,
    /// `true`.
    deleted: bool,
}

impl Example for DeletedConversationResponse {
    fn example() -> Value {
        json!({"id": EXAMPLE_ID, "object": "conversation.deleted", "deleted": true})
    }
}

/// See [`delete_conversation`].
pub const DELETE_CONVERSATION: OperationDoc = OperationDoc {
    id: "delete_conversation",
    summary: "Delete a conversation",
    description: "Removes the conversation and its items from every list at once and erases what they say.",
    tag: "conversations",
};

/// Deletes a conversation.
pub async fn delete_conversation(
    State(app): State<App>,
    caller: Caller,
    ConversationPath(session_id): ConversationPath,
) -> Result<Ok200<DeletedConversationResponse>, ApiError> {
    let deleted = app.store.delete_session(&caller.scope, session_id, ExpectedVersion::Any, app.ctx.now()).await;
    deleted.map_err(conversation_error)?;
    let id = session_id.to_conversation_id();
    Ok(Ok200(DeletedConversationResponse { id, object: "conversation.deleted", deleted: true }))
}

pub(super) fn conversation_error(error: StoreError) -> ApiError {
    ApiError::from_store(error, "conversation")
}
