//! The ids in a path.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use chatstore_core::ids::SessionId;
use chatstore_core::limits::EXTERNAL_ID_BYTES_MAX;
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Code};
use crate::openapi::{Describe, Operation};

/// The conversation named in the path.
pub struct ConversationPath(pub SessionId);

/// The conversation named in the path, and the name of one of its items.
pub struct ItemPath(pub SessionId, pub String);

/// Whether a text has the form of a conversation's id, be it ours or not.
pub(super) fn is_conversation_id(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    text.strip_prefix("conv_").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(is_word))
}

/// A part of the path, decoded: each for itself, so that one that is no text spoils no other.
fn part(parts: &Parts, n: usize) -> Option<String> {
    let part = parts.uri.path().split('/').nth(n)?;
    percent_decode_str(part).decode_utf8().ok().map(Into::into)
}

/// Where the conversation stands in a path, counted by its slashes.
const CONVERSATION_AT: usize = 3;
/// The same of the item.
const ITEM_AT: usize = 5;

impl FromRequestParts<App> for ConversationPath {
    type Rejection = ApiError;

    /// A conversation outside those that a user token is for is absent.
    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, ApiError> {
        let text = part(parts, CONVERSATION_AT).unwrap_or_default();
        if !is_conversation_id(&text) {
            let detail = "must begin with `conv_`, before letters and digits";
            return Err(ApiError::invalid_field("?conversation_id", detail));
        }
        let id = SessionId::parse_conversation_id(&text);
        let seen = id.filter(|id| parts.extensions.get::<Caller>().is_some_and(|caller| caller.may_see(*id)));
        seen.map(Self).ok_or_else(|| ApiError::not_found("conversation"))
    }
}

impl FromRequestParts<App> for ItemPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let ConversationPath(session_id) = ConversationPath::from_request_parts(parts, app).await?;
        let is_name = |name: &String| (1..=EXTERNAL_ID_BYTES_MAX).contains(&name.len()) && !name.contains('\0');
        let name = part(parts, ITEM_AT).filter(is_name);
        name.map(|name| Self(session_id, name)).ok_or_else(|| ApiError::not_found("item"))
    }
}

impl Describe for ConversationPath {
    fn describe(operation: &mut Operation) {
        let schema = json!({"type": "string", "pattern": "^conv_[A-Za-z0-9_-]+$"});
        operation.path_parameter("conversation_id", "Id of the conversation.", schema);
        operation.fails(Code::ValidationFailed);
        operation.fails(Code::NotFound);
    }
}

impl Describe for ItemPath {
    fn describe(operation: &mut Operation) {
        ConversationPath::describe(operation);
        operation.path_parameter("item_id", "Id of the item.", json!({"type": "string"}));
    }
}
