//! The forms of a message: as it comes, as it is changed, as it is shown.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::limits::{APPEND_MESSAGES_MAX, KIND_BYTES_MAX, ROLE_BYTES_MAX, TOKEN_COUNT_MAX};
use chatstore_core::messages::{KIND_MESSAGE, Message, MessagePatch, MessageStatus, NewMessage, payload_text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::embeddings::{Brought, EmbeddingResponse, is_wanted};
use crate::api::{check_external_id, check_id, check_length, check_metadata};
use crate::app::App;
use crate::body::{Body, Field, OneOrMany, parse_body};
use crate::error::{ApiError, FieldError};
use crate::openapi::{Example, anything, id, object, optional_id, optional_numbers, optional_object, status, time};
use crate::quotas::AddsText;

/// One message of a session.
#[derive(Debug, Serialize, JsonSchema)]
pub struct MessageResponse {
    /// Its id.
    #[schemars(schema_with = "id")]
    pub(in crate::api) message_id: MessageId,
    /// The session it stands in.
    #[schemars(schema_with = "id")]
    session_id: SessionId,
    /// Its place in the session: 1, 2, 3 … without gaps, never given twice.
    seq: i64,
    /// The message it answers or replaces, when the session branches.
    #[schemars(schema_with = "optional_id")]
    parent_id: Option<MessageId>,
    /// Who speaks.
    role: String,
    /// What it is: `message`, `function_call`, `reasoning` …
    kind: String,
    /// Whether it is whole.
    #[schemars(schema_with = "status")]
    status: &'static str,
    /// What people read.
    content: String,
    /// The structured item, byte for byte as it was sent.
    #[schemars(schema_with = "anything")]
    payload: Option<RawJson>,
    /// A JSON object, byte for byte as it was sent.
    #[schemars(schema_with = "object")]
    metadata: RawJson,
    /// What retrieval gave the model, byte for byte as it was sent.
    #[schemars(schema_with = "anything")]
    context: Option<RawJson>,
    /// The id the client brought.
    external_id: Option<String>,
    /// Its size in tokens, as the client counted.
    token_count: Option<i64>,
    /// Grows with every change; the ETag.
    pub(super) version: i64,
    /// When it was stored.
    #[schemars(schema_with = "time")]
    created_at: Timestamp,
    /// When it last changed.
    #[schemars(schema_with = "time")]
    updated_at: Timestamp,
    /// Its vectors by model, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<EmbeddingResponse>")]
    pub(in crate::api) embeddings: Option<Vec<EmbeddingResponse>>,
}

impl From<Message> for MessageResponse {
    fn from(message: Message) -> Self {
        Self {
            message_id: message.message_id,
            session_id: message.session_id,
            seq: message.seq,
            parent_id: message.parent_id,
            role: message.role,
            kind: message.kind,
            status: message.status.as_str(),
            content: message.content,
            payload: message.payload,
            metadata: message.metadata,
            context: message.context,
            external_id: message.external_id,
            token_count: message.token_count,
            version: message.version,
            created_at: message.created_at,
            updated_at: message.updated_at,
            embeddings: None,
        }
    }
}

impl Example for MessageResponse {
    fn example() -> Value {
        json!({
            "message_id": "019b0f3e-6be2-7c05-8a11-94d7e0c52b47",
            "session_id": "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47",
            "seq": 1,
            "parent_id": null,
            "role": "user",
            "kind": "message",
            "status": "completed",
            "content": "What should I see in Lisbon in two days?",
            "payload": null,
            "metadata": {},
            "context": {"documents": ["guide-12"]},
            "external_id": null,
            "token_count": 11,
            "version": 1,
            "created_at": "2026-01-31T12:00:04.250000Z",
            "updated_at": "2026-01-31T12:00:04.250000Z",
        })
    }
}

/// A message to append.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["content"]))]
pub struct AppendMessageRequest {
    /// Who speaks; free text, `user` if absent.
    #[serde(default)]
    #[schemars(with = "String")]
    role: Field<String>,
    /// What people read; may be empty, at most 1 MiB by default.
    #[serde(default)]
    #[schemars(with = "String")]
    content: Field<String>,
    /// What it is; free text, `message` if absent.
    #[serde(default)]
    kind: Field<String>,
    /// `in_progress`, `completed` (if absent) or `incomplete`.
    #[serde(default)]
    status: Field<String>,
    /// A message of the same session that this one answers or replaces.
    #[serde(default)]
    #[schemars(schema_with = "optional_id")]
    parent_id: Field<String>,
    /// The structured item behind the content, kept byte for byte.
    #[serde(default)]
    #[schemars(schema_with = "anything")]
    payload: Field<RawJson>,
    /// A JSON object of at most 16 KiB, kept byte for byte.
    #[serde(default)]
    #[schemars(schema_with = "optional_object")]
    metadata: Field<RawJson>,
    /// What retrieval gave the model for this message, kept byte for byte.
    #[serde(default)]
    #[schemars(schema_with = "anything")]
    context: Field<RawJson>,
    /// Your own id for it, unique within the session.
    #[serde(default)]
    external_id: Field<String>,
    /// Its size in tokens, if you counted.
    #[serde(default)]
    token_count: Field<i64>,
    /// A vector of its text, if you bring your own.
    #[serde(default)]
    #[schemars(schema_with = "optional_numbers")]
    embedding: Field<Vec<f32>>,
    /// The model that made the vector; required with it where there is an embedding source, else `default` if absent.
    #[serde(default)]
    embedding_model: Field<String>,
}

impl Example for AppendMessageRequest {
    fn example() -> Value {
        json!({"role": "user", "content": "What should I see in Lisbon in two days?"})
    }
}

impl AppendMessageRequest {
    /// Checks the message that stands at `at` in the body.
    pub(super) fn check(
        self,
        at: &str,
        app: &App,
        (session_id, now): (SessionId, Timestamp),
        errors: &mut Vec<FieldError>,
    ) -> Result<NewMessage, ApiError> {
        let pointer = |field: &str| format!("{at}/{field}");
        let content = self.content.required(&pointer("content"), errors).unwrap_or_default();
        check_content(pointer("content"), content.len(), app)?;
        let role = self.role.not_null(&pointer("role"), errors);
        check_length(&pointer("role"), role.as_deref(), ROLE_BYTES_MAX, errors);
        let kind = self.kind.value();
        check_id(&pointer("kind"), kind.as_deref(), KIND_BYTES_MAX, errors);
        let external_id = self.external_id.value();
        check_external_id(&pointer("external_id"), external_id.as_deref(), errors);
        let metadata = self.metadata.value();
        check_metadata(&pointer("metadata"), metadata.as_ref(), errors);
        let token_count = self.token_count.value();
        check_token_count(&pointer("token_count"), token_count, errors);
        let brought = Brought { numbers: self.embedding.value(), model: self.embedding_model.value() };
        let embedding = brought.check(app, (&pointer("embedding"), &pointer("embedding_model")), errors);
        Ok(NewMessage {
            message_id: app.ctx.new_message_id(now, session_id),
            parent_id: self.parent_id.value().and_then(|text| read_parent(&pointer("parent_id"), &text, errors)),
            role: role.unwrap_or_else(|| "user".to_owned()),
            kind: kind.unwrap_or_else(|| KIND_MESSAGE.to_owned()),
            status: read_status(&pointer("status"), self.status.value(), errors).unwrap_or(MessageStatus::Completed),
            embed: !content.is_empty() && is_wanted(app, embedding.as_ref()),
            content,
            payload: self.payload.value(),
            metadata: metadata.unwrap_or_else(RawJson::empty_object),
            context: self.context.value(),
            external_id,
            token_count,
            embedding,
        })
    }
}

/// One message, or an array of them that is stored whole or not at all.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct AppendMessagesRequest(pub(super) OneOrMany<AppendMessageRequest>);

impl JsonSchema for AppendMessagesRequest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AppendMessagesRequest".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = generator.subschema_for::<AppendMessageRequest>();
        schemars::json_schema!({
            "description": "One message, or an array of them that is stored whole or not at all.",
            "oneOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": APPEND_MESSAGES_MAX}],
        })
    }
}

impl AddsText for AppendMessagesRequest {}

impl Body for AppendMessagesRequest {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        parse_body(bytes)
    }
}

impl Example for AppendMessagesRequest {
    fn example() -> Value {
        AppendMessageRequest::example()
    }
}

/// What was appended, in the form it was sent: one message, or an array.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum AppendMessagesResponse {
    /// The message.
    One(Box<MessageResponse>),
    /// The messages, in their order.
    Many(Vec<MessageResponse>),
}

impl JsonSchema for AppendMessagesResponse {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "AppendMessagesResponse".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = generator.subschema_for::<MessageResponse>();
        schemars::json_schema!({
            "description": "What was appended, in the form it was sent: one message, or an array.",
            "oneOf": [one, {"type": "array", "items": one}],
        })
    }
}

impl Example for AppendMessagesResponse {
    fn example() -> Value {
        MessageResponse::example()
    }
}

/// Changes to a message: only the keys that are present change.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct UpdateMessageRequest {
    /// New role.
    #[serde(default)]
    #[schemars(with = "String")]
    role: Field<String>,
    /// New text. It drops the payload of an ordinary message; other kinds refuse it.
    #[serde(default)]
    #[schemars(with = "String")]
    content: Field<String>,
    /// New structured item; `content` is derived from it.
    #[serde(default)]
    #[schemars(schema_with = "anything")]
    payload: Field<RawJson>,
    /// New metadata, whole; null empties it.
    #[serde(default)]
    #[schemars(schema_with = "optional_object")]
    metadata: Field<RawJson>,
    /// New context, whole; null removes it.
    #[serde(default)]
    #[schemars(schema_with = "anything")]
    context: Field<RawJson>,
    /// `completed` or `incomplete`, for a message in progress.
    #[serde(default)]
    #[schemars(with = "String")]
    status: Field<String>,
    /// New size in tokens.
    #[serde(default)]
    #[schemars(with = "i64")]
    token_count: Field<i64>,
}

impl Body for UpdateMessageRequest {}

impl AddsText for UpdateMessageRequest {
    fn adds_text(&self) -> bool {
        let pieces = [&self.payload, &self.metadata, &self.context];
        matches!(self.content, Field::Value(_)) || pieces.iter().any(|piece| matches!(piece, Field::Value(_)))
    }
}

impl Example for UpdateMessageRequest {
    fn example() -> Value {
        json!({"content": "What should I see in Lisbon in three days?", "metadata": {"edited": true}})
    }
}

impl UpdateMessageRequest {
    pub(super) fn check(self, app: &App) -> Result<MessagePatch, ApiError> {
        let mut errors = Vec::new();
        if matches!((&self.content, &self.payload), (Field::Value(_), Field::Value(_))) {
            errors.push(FieldError::new(
                "/payload",
                "cannot be changed together with `content`, which is derived from it",
            ));
        }
        let patch = MessagePatch {
            role: self.role.not_null("/role", &mut errors),
            content: self.content.not_null("/content", &mut errors),
            payload: self.payload.not_null("/payload", &mut errors),
            metadata: self.metadata.change().map(|metadata| metadata.unwrap_or_else(RawJson::empty_object)),
            context: self.context.change(),
            status: {
                let status = self.status.not_null("/status", &mut errors);
                read_status("/status", status, &mut errors)
            },
            token_count: self.token_count.not_null("/token_count", &mut errors),
            embed: app.embedder.is_some(),
        };
        check_content("/content".to_owned(), patch.content.as_ref().map_or(0, String::len), app)?;
        check_content("/payload".to_owned(), patch.payload.as_ref().map_or(0, |it| payload_text(it).len()), app)?;
        check_length("/role", patch.role.as_deref(), ROLE_BYTES_MAX, &mut errors);
        check_metadata("/metadata", patch.metadata.as_ref(), &mut errors);
        check_token_count("/token_count", patch.token_count, &mut errors);
        if errors.is_empty() { Ok(patch) } else { Err(ApiError::invalid(errors)) }
    }
}

fn check_content(pointer: String, bytes: usize, app: &App) -> Result<(), ApiError> {
    let bytes_max = app.limits.content_bytes_max;
    if bytes > bytes_max {
        return Err(ApiError::content_too_large(pointer, bytes_max));
    }
    Ok(())
}

fn check_token_count(pointer: &str, token_count: Option<i64>, errors: &mut Vec<FieldError>) {
    if token_count.is_some_and(|tokens| !(0..=TOKEN_COUNT_MAX).contains(&tokens)) {
        errors.push(FieldError::new(pointer, format!("must be from 0 to {TOKEN_COUNT_MAX}")));
    }
}

fn read_status(pointer: &str, status: Option<String>, errors: &mut Vec<FieldError>) -> Option<MessageStatus> {
    let parsed = MessageStatus::parse(&status?);
    if parsed.is_none() {
        errors.push(FieldError::new(pointer, "must be `in_progress`, `completed` or `incomplete`"));
    }
    parsed
}

fn read_parent(pointer: &str, text: &str, errors: &mut Vec<FieldError>) -> Option<MessageId> {
    let parsed = MessageId::parse(text);
    if parsed.is_none() {
        errors.push(FieldError::new(pointer, "is no message of this session"));
    }
    parsed
}
