//! A message of a conversation in an import or export.

use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::ids::MessageId;
use chatstore_core::json::RawJson;
use chatstore_core::limits::{KIND_BYTES_MAX, ROLE_BYTES_MAX, TOKEN_COUNT_MAX};
use chatstore_core::messages::{KIND_MESSAGE, Message, MessageStatus};
use chatstore_core::sessions::Session;
use chatstore_core::store::Scope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conversation::{check_version, derived, on_one_line, read_id, restore};
use crate::api::{check_external_id, check_id, check_length, check_metadata};
use crate::error::FieldError;
use crate::openapi::{anything, object, optional_id, optional_time};

/// A message of a conversation.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["content"]))]
pub struct ConversationMessage {
    /// Its id, in an export.
    #[schemars(schema_with = "optional_id")]
    pub message_id: Option<String>,
    /// Its place; counted from 1 if absent.
    pub seq: Option<i64>,
    /// The message it answers, in an export.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_id")]
    pub parent_id: Option<String>,
    /// Who speaks; `user` if absent.
    pub role: Option<String>,
    /// What it is; `message` if absent.
    pub kind: Option<String>,
    /// `in_progress`, `completed` (if absent) or `incomplete`.
    pub status: Option<String>,
    /// What people read.
    #[schemars(with = "String")]
    pub content: Option<String>,
    /// The structured item.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub payload: Option<RawJson>,
    /// The text of `payload`, in an export, where it spans lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_text: Option<String>,
    /// A JSON object.
    #[schemars(schema_with = "object")]
    pub metadata: Option<RawJson>,
    /// The text of `metadata`, in an export, where it spans lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata_text: Option<String>,
    /// What retrieval gave the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "anything")]
    pub context: Option<RawJson>,
    /// The text of `context`, in an export, where it spans lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_text: Option<String>,
    /// The id the client brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// Its size in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_count: Option<i64>,
    /// Its version, in an export.
    pub version: Option<i64>,
    /// When it was stored; the conversation's time if absent.
    #[schemars(schema_with = "optional_time")]
    pub created_at: Option<Timestamp>,
    /// When it last changed, in an export.
    #[schemars(schema_with = "optional_time")]
    pub updated_at: Option<Timestamp>,
    /// When it was deleted, in an export: a tombstone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_time")]
    pub deleted_at: Option<Timestamp>,
}

/// Where a message of a conversation is going.
pub(super) struct Place<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) scope: &'a Scope,
    pub(super) session: &'a Session,
    /// Its index in the line.
    pub(super) n: usize,
    /// Whether its messages get ids derived from their own.
    pub(super) derives: bool,
    pub(super) content_bytes_max: usize,
}

impl ConversationMessage {
    /// A stored message as part of a line.
    pub fn of(message: Message) -> Self {
        let (payload, payload_text) = on_one_line(message.payload);
        let (metadata, metadata_text) = on_one_line(Some(message.metadata));
        let (context, context_text) = on_one_line(message.context);
        Self {
            message_id: Some(message.message_id.to_string()),
            seq: Some(message.seq),
            parent_id: message.parent_id.map(|id| id.to_string()),
            role: Some(message.role),
            kind: Some(message.kind),
            status: Some(message.status.as_str().to_owned()),
            content: Some(message.content),
            payload,
            payload_text,
            metadata,
            metadata_text,
            context,
            context_text,
            external_id: message.external_id,
            token_count: message.token_count,
            version: Some(message.version),
            created_at: Some(message.created_at),
            updated_at: Some(message.updated_at),
            deleted_at: message.deleted_at,
        }
    }

    pub(super) fn into_message(self, place: &Place<'_>, errors: &mut Vec<FieldError>) -> Message {
        let at = |field: &str| format!("/messages/{}/{field}", place.n);
        let content = self.content.unwrap_or_else(|| {
            errors.push(FieldError::new(at("content"), "is required"));
            String::new()
        });
        check_length(&at("content"), Some(&content), place.content_bytes_max, errors);
        check_length(&at("role"), self.role.as_deref(), ROLE_BYTES_MAX, errors);
        check_id(&at("kind"), self.kind.as_deref(), KIND_BYTES_MAX, errors);
        check_external_id(&at("external_id"), self.external_id.as_deref(), errors);
        let payload = restore(&at("payload_text"), self.payload, self.payload_text, errors);
        let metadata = restore(&at("metadata_text"), self.metadata, self.metadata_text, errors);
        let context = restore(&at("context_text"), self.context, self.context_text, errors);
        check_metadata(&at("metadata"), metadata.as_ref(), errors);
        check_version(&at("version"), self.version, errors);
        if self.token_count.is_some_and(|tokens| !(0..=TOKEN_COUNT_MAX).contains(&tokens)) {
            errors.push(FieldError::new(at("token_count"), format!("must be from 0 to {TOKEN_COUNT_MAX}")));
        }
        if self.seq.is_some_and(|seq| !(1..1 << 32).contains(&seq)) {
            errors.push(FieldError::new(at("seq"), "must be from 1 to 4294967295"));
        }
        let status = self.status.as_deref().map(|text| MessageStatus::parse(text).ok_or(()));
        if status == Some(Err(())) {
            errors.push(FieldError::new(at("status"), "must be `in_progress`, `completed` or `incomplete`"));
        }
        let session = place.session;
        let created_at = self.created_at.unwrap_or(session.created_at);
        let own_id = read_id(&at("message_id"), self.message_id.as_deref(), MessageId::parse, errors);
        if own_id.is_some_and(|id| !place.derives && id.bucket() != session.session_id.bucket()) {
            errors.push(FieldError::new(at("message_id"), "does not belong to this session"));
        }
        let home = |id: MessageId| match place.derives {
            true => derived(id.uuid(), place.scope, session.session_id.bucket()).into(),
            false => id,
        };
        let parent_id = read_id(&at("parent_id"), self.parent_id.as_deref(), MessageId::parse, errors);
        Message {
            message_id: own_id.map(home).unwrap_or_else(|| place.ctx.new_message_id(created_at, session.session_id)),
            session_id: session.session_id,
            project_id: session.project_id,
            seq: self.seq.unwrap_or(place.n as i64 + 1),
            parent_id: parent_id.map(home),
            role: self.role.unwrap_or_else(|| "user".to_owned()),
            kind: self.kind.unwrap_or_else(|| KIND_MESSAGE.to_owned()),
            status: status.and_then(Result::ok).unwrap_or(MessageStatus::Completed),
            content,
            payload,
            metadata: metadata.unwrap_or_else(RawJson::empty_object),
            context,
            external_id: self.external_id,
            token_count: self.token_count,
            version: self.version.unwrap_or(1),
            created_at,
            updated_at: self.updated_at.unwrap_or(created_at),
            deleted_at: self.deleted_at,
        }
    }
}
