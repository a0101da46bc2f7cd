//! Messages on the wire.

mod wire;

use axum::extract::State;
use chatstore_core::ids::SessionId;
use chatstore_core::limits::{APPEND_MESSAGES_MAX, PAGE_BYTES_MAX, ROLE_BYTES_MAX};
use chatstore_core::messages::{Message, MessageQuery};
use chatstore_core::page::{MessagePosition, Order, Page};
use chatstore_core::store::StoreError;
use serde_json::json;

pub use wire::{
    AppendMessageRequest, AppendMessagesRequest, AppendMessagesResponse, MessageResponse, UpdateMessageRequest,
};

use super::embeddings::{Include, include_embeddings};
use super::{OperationDoc, check_length};
use crate::app::App;
use crate::auth::Caller;
use crate::body::OneOrMany;
use crate::error::ApiError;
use crate::extract::{FromQuery, IfMatch, MessagePath, Query, SessionPath, Stored};
use crate::idempotency::{Doing, Once, Replayable};
use crate::openapi::Operation;
use crate::query::{Paging, Pairs, binding, describe_order};
use crate::respond::{Created, Listed, Versioned};

/// Which messages to list.
#[derive(Debug)]
pub struct ListMessagesQuery {
    query: MessageQuery,
    include: Include,
    paging: Paging,
}

impl FromQuery for ListMessagesQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let seq = |text: &str| text.parse::<i64>().ok().filter(|seq| *seq >= 0);
        let query = MessageQuery {
            role: pairs.get("role").map(ToOwned::to_owned),
            after_seq: pairs.read("after_seq", "a whole number from 0", seq, &mut errors),
            before_seq: pairs.read("before_seq", "a whole number from 0", seq, &mut errors),
            order: pairs.order(Order::Desc, &mut errors),
        };
        check_length("?role", query.role.as_deref(), ROLE_BYTES_MAX, &mut errors);
        let include = Include::read(pairs, &mut errors);
        let paging = pairs.paging(&mut errors);
        if errors.is_empty() { Ok(Self { query, include, paging }) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        let seq = json!({"type": "integer", "minimum": 0});
        operation.query_parameter("role", "Only this role's.", json!({"type": "string"}));
        operation.query_parameter("after_seq", "Only those after this place.", seq.clone());
        operation.query_parameter("before_seq", "Only those before this place.", seq);
        describe_order(operation, "By place: newest or oldest first.", "desc");
        Include::describe(operation);
        Paging::describe(operation);
    }
}

impl ListMessagesQuery {
    /// What a cursor of this list is bound to.
    fn binding(&self, caller: &Caller, session_id: SessionId) -> Vec<u8> {
        let query = &self.query;
        binding(&(
            ("messages", caller.scope.project_id, &caller.scope.user_id, session_id),
            (&query.role, query.after_seq, query.before_seq, query.order == Order::Asc),
        ))
    }
}

/// See [`append_messages`].
pub const APPEND_MESSAGES: OperationDoc = OperationDoc {
    id: "append_messages",
    summary: "Append one message, or several at once",
    description: "Takes one message, or an array of up to 1,000, which is stored whole or not at all. Each gets the next \
        place (`seq`) of the session. The answer comes when all is durable, in the form of the request: one or an array.",
    tag: "messages",
};

/// Appends messages to a session.
pub async fn append_messages(
    State(app): State<App>,
    caller: Caller,
    SessionPath(session_id): SessionPath,
    Once(Stored(AppendMessagesRequest(body)), repeatable): Once<Stored<AppendMessagesRequest>>,
) -> Result<Replayable<Created<AppendMessagesResponse>>, ApiError> {
    let now = app.ctx.now();
    let is_batch = matches!(body, OneOrMany::Many(_));
    let requests = match body {
        OneOrMany::One(request) => vec![request],
        OneOrMany::Many(requests) if (1..=APPEND_MESSAGES_MAX).contains(&requests.len()) => requests,
        OneOrMany::Many(_) => {
            return Err(ApiError::invalid_field("", format!("must hold 1 to {APPEND_MESSAGES_MAX} messages")));
        }
    };
    let mut errors = Vec::new();
    let mut messages = Vec::with_capacity(requests.len());
    for (n, request) in requests.into_iter().enumerate() {
        let at = if is_batch { format!("/{n}") } else { String::new() };
        messages.push(request.check(&at, &app, (session_id, now), &mut errors)?);
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(errors));
    }
    let is_queued = messages.iter().any(|message| message.embed);
    let doing = Doing {
        operation: APPEND_MESSAGES.id,
        target: &session_id.to_string(),
        user_id: caller.scope.user_id.as_deref(),
        bucket: Some(session_id.bucket()),
        now,
    };
    let claim = repeatable.claim(&app, &caller, doing).await?;
    let appended = app.store.append_messages(&caller.scope, session_id, messages, now, claim.as_ref()).await;
    let appended = appended.map_err(|error| append_error(error, is_batch))?;
    if is_queued && !appended.is_replay {
        app.embedding_queued();
    }
    Ok(Replayable(appended.map(|messages| created(messages, is_batch))))
}

/// The answer to an append: one message for one, an array for an array.
fn created(messages: Vec<Message>, is_batch: bool) -> Created<AppendMessagesResponse> {
    let mut messages: Vec<MessageResponse> = messages.into_iter().map(MessageResponse::from).collect();
    match (is_batch, messages.pop()) {
        (false, Some(message)) => Created {
            version: Some(message.version),
            location: Some(format!("/api/v1/messages/{}", message.message_id)),
            body: AppendMessagesResponse::One(Box::new(message)),
        },
        (_, last) => {
            messages.extend(last);
            Created { body: AppendMessagesResponse::Many(messages), version: None, location: None }
        }
    }
}

/// The store counts messages from 0; the pointer of a single one has no index.
fn append_error(error: StoreError, is_batch: bool) -> ApiError {
    match error {
        StoreError::NotFound => ApiError::not_found("session"),
        StoreError::Invalid { pointer, detail } if !is_batch => {
            ApiError::invalid_field(pointer.strip_prefix("/0").unwrap_or(&pointer), detail)
        }
        StoreError::ExternalIdTaken { n } => {
            ApiError::external_id_taken(if is_batch { format!("/{n}/external_id") } else { "/external_id".to_owned() })
        }
        error => ApiError::from_store(error, "message"),
    }
}

/// See [`list_messages`].
pub const LIST_MESSAGES: OperationDoc = OperationDoc {
    id: "list_messages",
    summary: "List the messages of a session",
    description: "A bare array, newest first unless `order` says otherwise. The cost of a page does not depend on its \
        depth when you follow the `Link` header or use `after_seq` and `before_seq`.",
    tag: "messages",
};

/// Lists the messages of a session.
pub async fn list_messages(
    State(app): State<App>,
    caller: Caller,
    SessionPath(session_id): SessionPath,
    Query(list): Query<ListMessagesQuery>,
) -> Result<Listed<MessageResponse>, ApiError> {
    let binding = list.binding(&caller, session_id);
    let request = list.paging.request(&app.cursor_key, &binding)?;
    let page = app.store.list_messages(&caller.scope, session_id, &list.query, &request).await;
    let page = page.map_err(|error| ApiError::from_store(error, "session"))?;
    let (items, next) = match list.include.embeddings {
        true => with_embeddings(&app, &caller, page).await?,
        false => (page.items.into_iter().map(MessageResponse::from).collect(), page.next),
    };
    Ok(Listed { next: next.map(|next| list.paging.next_link(&app.cursor_key, &binding, &next)), items })
}

/// The page with the vectors of its messages: it ends early if they are large.
async fn with_embeddings(
    app: &App,
    caller: &Caller,
    page: Page<Message, MessagePosition>,
) -> Result<(Vec<MessageResponse>, Option<MessagePosition>), ApiError> {
    let (mut items, mut bytes) = (Vec::new(), 0);
    let mut messages = page.items.into_iter().peekable();
    while let Some(message) = messages.next() {
        let position = MessagePosition { seq: message.seq };
        bytes += message.bytes();
        let mut item = MessageResponse::from(message);
        bytes += include_embeddings(app, &caller.scope, &mut item).await?;
        items.push(item);
        if bytes >= PAGE_BYTES_MAX && messages.peek().is_some() {
            return Ok((items, Some(position)));
        }
    }
    Ok((items, page.next))
}

/// See [`get_message`].
pub const GET_MESSAGE: OperationDoc = OperationDoc {
    id: "get_message",
    summary: "Get a message",
    description: "A message of another project or user answers like one that does not exist.",
    tag: "messages",
};

/// Returns one message.
pub async fn get_message(
    State(app): State<App>,
    caller: Caller,
    MessagePath(message_id): MessagePath,
    Query(include): Query<Include>,
) -> Result<Versioned<MessageResponse>, ApiError> {
    let message = app.store.get_message(&caller.scope, message_id).await.map_err(message_error)?;
    let mut message = message.map(versioned).ok_or_else(|| ApiError::not_found("message"))?;
    if include.embeddings {
        include_embeddings(&app, &caller.scope, &mut message.0).await?;
    }
    Ok(message)
}

/// See [`update_message`].
pub const UPDATE_MESSAGE: OperationDoc = OperationDoc {
    id: "update_message",
    summary: "Change a message",
    description: "Only the keys that are present change; `{}` changes nothing.",
    tag: "messages",
};

/// Changes a message.
pub async fn update_message(
    State(app): State<App>,
    caller: Caller,
    MessagePath(message_id): MessagePath,
    IfMatch(expected): IfMatch,
    Stored(body): Stored<UpdateMessageRequest>,
) -> Result<Versioned<MessageResponse>, ApiError> {
    let patch = body.check(&app)?;
    let is_queued = patch.embed && (patch.content.is_some() || patch.payload.is_some());
    let updated = app.store.update_message(&caller.scope, message_id, patch, expected, app.ctx.now()).await;
    if is_queued && updated.is_ok() {
        app.embedding_queued();
    }
    updated.map(versioned).map_err(message_error)
}

/// See [`delete_message`].
pub const DELETE_MESSAGE: OperationDoc = OperationDoc {
    id: "delete_message",
    summary: "Delete a message",
    description: "Removes the message from every list at once and erases what it says; its place is never given again. \
        Answers with the message as it was.",
    tag: "messages",
};

/// Deletes a message.
pub async fn delete_message(
    State(app): State<App>,
    caller: Caller,
    MessagePath(message_id): MessagePath,
    IfMatch(expected): IfMatch,
) -> Result<Versioned<MessageResponse>, ApiError> {
    let deleted = app.store.delete_message(&caller.scope, message_id, expected, app.ctx.now()).await;
    deleted.map(versioned).map_err(message_error)
}

fn versioned(message: Message) -> Versioned<MessageResponse> {
    let version = message.version;
    Versioned(message.into(), version)
}

fn message_error(error: StoreError) -> ApiError {
    ApiError::from_store(error, "message")
}
