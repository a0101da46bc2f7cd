//! Items of a conversation on the wire.

mod append;

use axum::extract::State;
use chatstore_core::idempotency::Claim;
use chatstore_core::ids::SessionId;
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessageQuery};
use chatstore_core::page::{Order, PageRequest, PageStart};
use chatstore_core::store::ExpectedVersion;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::conversations::{ConversationResponse, conversation, conversation_error};
use super::item::shown;
use super::lists::{Include, ListResponse, Window};
use super::path::{ConversationPath, ItemPath};
use crate::api::OperationDoc;
use crate::app::App;
use crate::audit::{AuditTarget, Deleted};
use crate::auth::Caller;
use crate::body::{Body, Field};
use crate::error::ApiError;
use crate::extract::{FromQuery, Query, Stored};
use crate::idempotency::{Doing, Once, Replayable};
use crate::openapi::{Example, Operation};
use crate::query::Pairs;
use crate::quotas::AddsText;
use crate::respond::Ok200;

pub(super) use append::{Appending, items_error};

/// An item: an object with `id`, `type`, and whatever else its type has.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ItemResponse(RawJson);

impl JsonSchema for ItemResponse {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ItemResponse".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "object",
            "description": "An object with `id`, `type`, and whatever else its type has, byte for byte as it was sent.",
            "additionalProperties": {},
        })
    }
}

impl Example for ItemResponse {
    fn example() -> Value {
        json!({
            "id": "msg_019b0f3e6be27c058a1194d7e0c52b47", "type": "message", "status": "completed", "role": "user",
            "content": [{"type": "input_text", "text": "What should I see in Lisbon?"}],
        })
    }
}

fn named(message: &Message) -> (String, ItemResponse) {
    let (id, item) = shown(message);
    (id, ItemResponse(item))
}

/// Items to append.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["items"]))]
pub struct CreateItemsRequest {
    /// Objects with `type`, or `role` and `content`; up to 1,000 by default. Unknown types are kept as they are.
    #[serde(default)]
    #[schemars(with = "Vec<std::collections::BTreeMap<String, Value>>")]
    items: Field<Vec<RawJson>>,
}

impl Body for CreateItemsRequest {}

impl AddsText for CreateItemsRequest {}

impl Example for CreateItemsRequest {
    fn example() -> Value {
        json!({"items": [{"role": "user", "content": "What should I see in Lisbon?"}]})
    }
}

/// See [`create_items`].
pub const CREATE_ITEMS: OperationDoc = OperationDoc {
    id: "create_items",
    summary: "Append items to a conversation",
    description: "Stores all of them or none, each byte for byte as it was sent. An item that brings an `id` keeps it; one \
        that stands in the conversation already, with the same content, is not stored again. `item_reference` names an \
        item that is stored.",
    tag: "conversations",
};

/// Appends items to a conversation.
pub async fn create_items(
    State(app): State<App>,
    caller: Caller,
    ConversationPath(session_id): ConversationPath,
    Query(_): Query<Include>,
    Once(Stored(body), repeatable): Once<Stored<CreateItemsRequest>>,
) -> Result<Replayable<Ok200<ListResponse<ItemResponse>>>, ApiError> {
    let items = match body.items {
        Field::Value(items) => items,
        Field::Null | Field::Absent => return Err(ApiError::invalid_field("/items", "is required")),
    };
    let now = app.ctx.now();
    let target = session_id.to_string();
    let doing = Doing {
        operation: CREATE_ITEMS.id,
        target: &target,
        user_id: caller.scope.user_id.as_deref(),
        bucket: Some(session_id.bucket()),
        now,
    };
    let claim = repeatable.claim_by_key_or_body(&app, &caller, doing);
    let sdk_try = repeatable.sdk_try().cloned();
    let append = |claim: Option<Claim>| {
        let (app, caller) = (app.clone(), caller.clone());
        async move {
            repeatable.admit(&app, claim.as_ref()).await?;
            let appending = Appending { app: &app, caller: &caller, session_id, is_new: false, now };
            let messages = appending.read(items, claim.as_ref()).await?;
            let is_queued = messages.iter().any(|message| message.embed);
            let appended = appending.append(messages, claim.as_ref()).await?;
            if is_queued && !appended.is_replay {
                app.embedding_queued();
            }
            Ok(appended)
        }
    };
    let appended = app.sdk_tries.in_turn(sdk_try.as_ref(), claim, append).await?;
    Ok(Replayable(appended.map(|messages| Ok200(ListResponse::new(messages.iter().map(named), false)))))
}

/// Which items to list.
#[derive(Debug)]
pub struct ListItemsQuery {
    window: Window,
}

impl FromQuery for ListItemsQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let window = Window::read(pairs, &mut errors);
        Include::read(pairs, &mut errors);
        if errors.is_empty() { Ok(Self { window }) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        Window::describe(operation, "item");
        <Include as FromQuery>::describe(operation);
    }
}

/// See [`list_items`].
pub const LIST_ITEMS: OperationDoc = OperationDoc {
    id: "list_items",
    summary: "List the items of a conversation",
    description: "The newest first, unless `order` says otherwise. While `has_more` is true, `after` with the `last_id` of \
        a page leads to the next one.",
    tag: "conversations",
};

/// Lists the items of a conversation.
pub async fn list_items(
    State(app): State<App>,
    caller: Caller,
    ConversationPath(session_id): ConversationPath,
    Query(ListItemsQuery { window }): Query<ListItemsQuery>,
) -> Result<Ok200<ListResponse<ItemResponse>>, ApiError> {
    let after = place(&app, &caller, session_id, ("?after", window.after.as_deref())).await?;
    let before = place(&app, &caller, session_id, ("?before", window.before.as_deref())).await?;
    let (after_seq, before_seq) = if window.order == Order::Asc { (after, before) } else { (before, after) };
    let query = MessageQuery { role: None, after_seq, before_seq, order: window.order_of_search() };
    let request = PageRequest { limit: window.limit, start: PageStart::Offset(0) };
    let page = app.store.list_messages(&caller.scope, session_id, &query, &request).await;
    let mut page = page.map_err(conversation_error)?;
    if window.looks_back() {
        page.items.reverse();
    }
    Ok(Ok200(ListResponse::new(page.items.iter().map(named), page.next.is_some())))
}

/// The place of a named item; a deleted one keeps it.
async fn place(
    app: &App,
    caller: &Caller,
    session_id: SessionId,
    (pointer, name): (&str, Option<&str>),
) -> Result<Option<i64>, ApiError> {
    let Some(name) = name else { return Ok(None) };
    let found = app.store.find_message(&caller.scope, session_id, name).await.map_err(conversation_error)?;
    let absent = || ApiError::invalid_field(pointer, "names no item of this conversation");
    found.map(|message| Some(message.seq)).ok_or_else(absent)
}

/// See [`get_item`].
pub const GET_ITEM: OperationDoc = OperationDoc {
    id: "get_item",
    summary: "Get an item of a conversation",
    description: "An item of another conversation answers like one that does not exist.",
    tag: "conversations",
};

/// Returns one item.
pub async fn get_item(
    State(app): State<App>,
    caller: Caller,
    ItemPath(session_id, name): ItemPath,
    Query(_): Query<Include>,
) -> Result<Ok200<ItemResponse>, ApiError> {
    let message = find(&app, &caller, session_id, &name).await?;
    Ok(Ok200(named(&message).1))
}

/// The item of this name, unless it is deleted.
async fn find(app: &App, caller: &Caller, session_id: SessionId, name: &str) -> Result<Message, ApiError> {
    let found = app.store.find_message(&caller.scope, session_id, name).await.map_err(conversation_error)?;
    found.filter(|message| message.deleted_at.is_none()).ok_or_else(|| ApiError::not_found("item"))
}

/// See [`delete_item`].
pub const DELETE_ITEM: OperationDoc = OperationDoc {
    id: "delete_item",
    summary: "Delete an item of a conversation",
    description: "Removes the item from every list at once and erases what it says. Answers with the conversation.",
    tag: "conversations",
};

/// Deletes an item.
pub async fn delete_item(
    State(app): State<App>,
    caller: Caller,
    ItemPath(session_id, name): ItemPath,
) -> Result<Deleted<Ok200<ConversationResponse>>, ApiError> {
    let message_id = find(&app, &caller, session_id, &name).await?.message_id;
    let deleted = app.store.delete_message(&caller.scope, message_id, ExpectedVersion::Any, app.ctx.now()).await;
    deleted.map_err(|error| ApiError::from_store(error, "item"))?;
    let target = AuditTarget { target_id: message_id.to_string(), project_id: caller.scope.project_id };
    Ok(Deleted(Ok200(conversation(&app, &caller, session_id).await?), target))
}
