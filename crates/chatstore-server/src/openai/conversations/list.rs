//! The list of conversations: the official service has none, others have it in this form.

use axum::extract::State;
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::SessionId;
use chatstore_core::limits::USER_ID_BYTES_MAX;
use chatstore_core::page::{Order, PageRequest, PageStart, SessionPosition};
use chatstore_core::sessions::{Session, SessionPage, SessionQuery, SessionSort};
use serde_json::json;

use super::{ConversationResponse, conversation_error};
use crate::api::sessions::list_page;
use crate::api::{OperationDoc, check_id, check_metadata_filter};
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{FromQuery, Query};
use crate::openai::lists::{ListResponse, Window};
use crate::openapi::Operation;
use crate::query::Pairs;
use crate::respond::Ok200;

/// Which conversations to list.
#[derive(Debug)]
pub struct ListConversationsQuery {
    query: SessionQuery,
    window: Window,
    after: Option<SessionId>,
    before: Option<SessionId>,
}

impl FromQuery for ListConversationsQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let window = Window::read(pairs, &mut errors);
        let query = SessionQuery {
            user_id: pairs.get("user").map(ToOwned::to_owned),
            metadata: pairs.get_map("metadata"),
            sort: SessionSort::CreatedAt,
            order: window.order_of_search(),
            ..SessionQuery::default()
        };
        check_id("?user", query.user_id.as_deref(), USER_ID_BYTES_MAX, &mut errors);
        check_metadata_filter(pairs, &query.metadata, &mut errors);
        let form = "the id of a conversation";
        let after = pairs.read("after", form, SessionId::parse_conversation_id, &mut errors);
        let before = pairs.read("before", form, SessionId::parse_conversation_id, &mut errors);
        if errors.is_empty() { Ok(Self { query, window, after, before }) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        Window::describe(operation, "conversation");
        operation.query_parameter("user", "Only this user's.", json!({"type": "string"}));
        operation.query_map("metadata", "Only those whose metadata has these texts: `metadata[key]=value`.");
    }
}

/// See [`list_conversations`].
pub const LIST_CONVERSATIONS: OperationDoc = OperationDoc {
    id: "list_conversations",
    summary: "List conversations",
    description: "The newest first, unless `order` says otherwise. While `has_more` is true, `after` with the `last_id` of \
        a page leads to the next one.",
    tag: "conversations",
};

/// Lists conversations.
pub async fn list_conversations(
    State(app): State<App>,
    caller: Caller,
    Query(list): Query<ListConversationsQuery>,
) -> Result<Ok200<ListResponse<ConversationResponse>>, ApiError> {
    caller.user(list.query.user_id.clone())?;
    let looks_back = list.window.looks_back();
    let order = list.query.order;
    let before = position(&app, &caller, ("?before", list.before), order).await?;
    let start = if looks_back { before } else { position(&app, &caller, ("?after", list.after), order).await? };
    let page = page_after(&app, &caller, &list, start).await?;
    let (mut sessions, mut has_more) = (page.items, page.next.is_some());
    if let Some(end) = before.filter(|_| !looks_back) {
        let found = sessions.len();
        sessions.retain(|session| precedes(order, session, end));
        has_more = has_more && sessions.len() == found && {
            let further = page_after(&app, &caller, &list, page.next).await?;
            further.items.first().is_some_and(|session| precedes(order, session, end))
        };
    }
    if looks_back {
        sessions.reverse();
    }
    let named = sessions.into_iter().map(ConversationResponse::from).map(|shown| (shown.id.clone(), shown));
    Ok(Ok200(ListResponse::new(named, has_more)))
}

async fn page_after(
    app: &App,
    caller: &Caller,
    list: &ListConversationsQuery,
    after: Option<SessionPosition>,
) -> Result<SessionPage, ApiError> {
    let start = after.map_or(PageStart::Offset(0), PageStart::After);
    let request = PageRequest { limit: list.window.limit, start };
    list_page(app, caller, &list.query, &request).await.map_err(conversation_error)
}

fn precedes(order: Order, session: &Session, end: SessionPosition) -> bool {
    let place = (session.created_at, session.session_id);
    match order {
        Order::Asc => place < (end.sorted_by, end.session_id),
        Order::Desc => place > (end.sorted_by, end.session_id),
    }
}

/// Where a conversation stands. One that is gone still says when it was made, to the millisecond: who deletes what it
/// lists can go on.
async fn position(
    app: &App,
    caller: &Caller,
    (pointer, named): (&str, Option<SessionId>),
    order: Order,
) -> Result<Option<SessionPosition>, ApiError> {
    let Some(session_id) = named else { return Ok(None) };
    let found = match caller.may_see(session_id) {
        true => app.store.get_session(&caller.scope, session_id).await.map_err(conversation_error)?,
        false => None,
    };
    let made = |session_id: SessionId| {
        let (seconds, nanos) = session_id.uuid().get_timestamp()?.to_unix();
        let began = i64::try_from(seconds).ok()?.checked_mul(1_000_000)? + i64::from(nanos / 1_000);
        Timestamp::from_micros(if order == Order::Asc { began } else { began + 999 })
    };
    let absent = || ApiError::invalid_field(pointer, "is the id of no conversation");
    match found {
        Some(session) => Ok(Some(session.position(SessionSort::CreatedAt))),
        None => made(session_id).map(|at| Some(SessionPosition { sorted_by: at, session_id })).ok_or_else(absent),
    }
}
