//! Messages: the items of a session, in order.

mod prefix;
mod text;

use crate::clock::Timestamp;
use crate::embeddings::NewEmbedding;
use crate::idempotency::{Answered, Claim};
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::json::RawJson;
use crate::page::{MessagePosition, Order, Page, PageRequest};
use crate::store::{ExpectedVersion, Scope, StoreError};
use async_trait::async_trait;

use prefix::MESSAGE_PREFIX;
pub use prefix::item_prefix;
pub use text::payload_text;

/// The kind of an ordinary message.
pub const KIND_MESSAGE: &str = "message";

/// One item of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id; ends in its session's bucket.
    pub message_id: MessageId,
    /// The session it stands in.
    pub session_id: SessionId,
    /// The tenant it belongs to.
    pub project_id: ProjectId,
    /// Its place: 1, 2, 3 … without gaps, never given twice.
    pub seq: i64,
    /// The message it answers or replaces, when the session branches.
    pub parent_id: Option<MessageId>,
    /// Who speaks; free text.
    pub role: String,
    /// What it is; free text, [`KIND_MESSAGE`] unless said otherwise.
    pub kind: String,
    /// Whether it is complete.
    pub status: MessageStatus,
    /// What people read and search; may be empty.
    pub content: String,
    /// The item as a structured surface sent it, byte for byte.
    pub payload: Option<RawJson>,
    /// A JSON object, kept byte for byte.
    pub metadata: RawJson,
    /// What retrieval gave the model for it, kept byte for byte.
    pub context: Option<RawJson>,
    /// The id a client brought, unique within the session among those not deleted.
    pub external_id: Option<String>,
    /// Its size in tokens, as the client counted.
    pub token_count: Option<i64>,
    /// Grows with every change a client makes; the ETag.
    pub version: i64,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was deleted.
    pub deleted_at: Option<Timestamp>,
}

/// Bytes of what is beside the texts, roughly.
const FIXED_BYTES: usize = 256;

fn json_bytes(json: Option<&RawJson>) -> usize {
    json.map_or(0, RawJson::bytes)
}

impl Message {
    /// Roughly how many bytes it takes.
    pub fn bytes(&self) -> usize {
        let json = json_bytes(self.payload.as_ref()) + json_bytes(self.context.as_ref());
        FIXED_BYTES + self.content.len() + self.metadata.bytes() + json
    }

    /// Whether `name` names it: as its `external_id`, or as its id in the form of the Conversations wire, with the prefix
    /// of its kind or that of messages.
    pub fn is_named(&self, name: &str) -> bool {
        let is_spelled = |prefix| name == self.message_id.to_item_id(prefix);
        self.external_id.as_deref() == Some(name)
            || MessageId::parse_item_id(name).is_some()
                && (is_spelled(MESSAGE_PREFIX) || is_spelled(item_prefix(&self.kind)))
    }
}

/// The sum of token counts, `None` while nobody gave one.
pub fn plus_tokens(sum: Option<i64>, tokens: Option<i64>) -> Option<i64> {
    match (sum, tokens) {
        (sum, None) => sum,
        (sum, Some(tokens)) => Some(sum.unwrap_or(0).saturating_add(tokens)),
    }
}

/// Whether a message is complete: it may move from in progress to one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageStatus {
    /// Still being written.
    InProgress,
    /// Whole.
    Completed,
    /// Cut off.
    Incomplete,
}

impl MessageStatus {
    /// Its name, on the wire and in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }

    /// The status of this name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::InProgress, Self::Completed, Self::Incomplete].into_iter().find(|status| status.as_str() == text)
    }
}

/// A message to be appended; the store gives it its place.
#[derive(Clone, Debug, PartialEq)]
pub struct NewMessage {
    /// Its id, minted by the caller in the session's bucket.
    pub message_id: MessageId,
    /// The message it answers; must stand in the same session.
    pub parent_id: Option<MessageId>,
    /// Who speaks.
    pub role: String,
    /// What it is.
    pub kind: String,
    /// Whether it is complete.
    pub status: MessageStatus,
    /// What people read.
    pub content: String,
    /// The item as a structured surface sent it.
    pub payload: Option<RawJson>,
    /// A JSON object.
    pub metadata: RawJson,
    /// What retrieval gave the model.
    pub context: Option<RawJson>,
    /// The id the client brought.
    pub external_id: Option<String>,
    /// Its size in tokens.
    pub token_count: Option<i64>,
    /// A vector that came with it.
    pub embedding: Option<NewEmbedding>,
    /// Whether it is queued for the embedding source.
    pub embed: bool,
}

impl NewMessage {
    /// A completed message of `role` that says `content`, and nothing else.
    pub fn text(message_id: MessageId, role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            message_id,
            parent_id: None,
            role: role.into(),
            kind: KIND_MESSAGE.to_owned(),
            status: MessageStatus::Completed,
            content: content.into(),
            payload: None,
            metadata: RawJson::empty_object(),
            context: None,
            external_id: None,
            token_count: None,
            embedding: None,
            embed: false,
        }
    }

    /// Roughly how many bytes it takes.
    pub fn bytes(&self) -> usize {
        let json = json_bytes(self.payload.as_ref()) + json_bytes(self.context.as_ref());
        let vector = self.embedding.as_ref().map_or(0, |embedding| size_of::<f32>() * embedding.vector.dimensions());
        FIXED_BYTES + self.content.len() + self.metadata.bytes() + json + vector
    }

    /// Whether it says what `stored` says, in all that a client gives but vectors. JSON counts as equal if its values
    /// are, however they are written.
    pub fn says_what(&self, stored: &Message) -> bool {
        (&self.role, &self.kind, &self.content) == (&stored.role, &stored.kind, &stored.content)
            && (self.parent_id, self.status, self.token_count) == (stored.parent_id, stored.status, stored.token_count)
            && same_json(self.payload.as_ref(), stored.payload.as_ref())
            && same_json(Some(&self.metadata), Some(&stored.metadata))
            && same_json(self.context.as_ref(), stored.context.as_ref())
    }

    /// The message as it stands at place `seq`.
    pub fn into_message(self, project_id: ProjectId, session_id: SessionId, seq: i64, now: Timestamp) -> Message {
        Message {
            message_id: self.message_id,
            session_id,
            project_id,
            seq,
            parent_id: self.parent_id,
            role: self.role,
            kind: self.kind,
            status: self.status,
            content: self.content,
            payload: self.payload,
            metadata: self.metadata,
            context: self.context,
            external_id: self.external_id,
            token_count: self.token_count,
            version: 1,
            created_at: now,
            updated_at: now,
            deleted_at: None,
        }
    }
}

fn same_json(a: Option<&RawJson>, b: Option<&RawJson>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a == b || a.has_value_of(b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// Changes to a message: only what is present changes; `Some(None)` clears.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessagePatch {
    /// New role.
    pub role: Option<String>,
    /// New text. Drops the payload of an ordinary message; refused for other kinds.
    pub content: Option<String>,
    /// New payload; the text is derived from it.
    pub payload: Option<RawJson>,
    /// New metadata, whole.
    pub metadata: Option<RawJson>,
    /// New context, whole.
    pub context: Option<Option<RawJson>>,
    /// New status; only a message in progress can take another.
    pub status: Option<MessageStatus>,
    /// New size in tokens.
    pub token_count: Option<i64>,
    /// Whether a new text is queued for the embedding source. The vectors of the old one go in
    /// any case.
    pub embed: bool,
}

impl MessagePatch {
    /// Roughly how many bytes it takes.
    pub fn bytes(&self) -> usize {
        let context = self.context.as_ref().and_then(Option::as_ref);
        let json = json_bytes(self.payload.as_ref()) + json_bytes(self.metadata.as_ref()) + json_bytes(context);
        FIXED_BYTES + self.content.as_ref().map_or(0, String::len) + json
    }

    /// Applies the patch at `now`; tells whether anything changed. A patch that says what is
    /// already so changes nothing, neither version nor time.
    pub fn apply(self, message: &mut Message, now: Timestamp) -> Result<bool, StoreError> {
        let invalid = |pointer: &str, detail: &str| {
            Err(StoreError::Invalid { pointer: pointer.to_owned(), detail: detail.to_owned() })
        };
        let before = message.clone();
        if let Some(role) = self.role {
            message.role = role;
        }
        if let Some(content) = self.content {
            if message.kind != KIND_MESSAGE {
                return invalid("/content", "cannot be changed for this kind of message: change `payload`");
            }
            message.content = content;
            message.payload = None;
        }
        if let Some(payload) = self.payload {
            message.content = payload_text(&payload);
            message.payload = Some(payload);
        }
        if let Some(metadata) = self.metadata {
            message.metadata = metadata;
        }
        if let Some(context) = self.context {
            message.context = context;
        }
        if let Some(status) = self.status {
            if message.status != MessageStatus::InProgress && status != message.status {
                return invalid("/status", "is final: only a message in progress takes another status");
            }
            message.status = status;
        }
        if self.token_count.is_some() {
            message.token_count = self.token_count;
        }
        let changed = *message != before;
        if changed {
            message.version = message.version.saturating_add(1);
            message.updated_at = now.max(message.updated_at);
        }
        Ok(changed)
    }
}

/// Which messages of a session a list shows, and in which order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MessageQuery {
    /// Only this role's.
    pub role: Option<String>,
    /// Only those after this place.
    pub after_seq: Option<i64>,
    /// Only those before this place.
    pub before_seq: Option<i64>,
    /// By place, in which direction.
    pub order: Order,
}

impl Default for MessageQuery {
    fn default() -> Self {
        Self { role: None, after_seq: None, before_seq: None, order: Order::Desc }
    }
}

/// A page of messages.
pub type MessagePage = Page<Message, MessagePosition>;

/// What a store does with messages.
#[async_trait]
pub trait MessageStore: Send + Sync {
    /// Appends messages, all or none, at the next places, and moves the session's counters, in one
    /// transaction. One whose `external_id` names a message of the session already ([`Message::is_named`]) and that says
    /// the same ([`NewMessage::says_what`]) is that message: it is given back as it stands, and not stored again;
    /// [`StoreError::ExternalIdTaken`] if it says something else. `Invalid` if a parent stands in another session. The
    /// claim's record names the session and the places of what is given back.
    async fn append_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        messages: Vec<NewMessage>,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<Vec<Message>>, StoreError>;

    /// The message of the session that `name` names ([`Message::is_named`]), the one with that `external_id` first. One
    /// that is deleted is found by its message id, for it keeps its place: see `deleted_at`. `NotFound` if there is no
    /// such session.
    async fn find_message(
        &self,
        scope: &Scope,
        session_id: SessionId,
        name: &str,
    ) -> Result<Option<Message>, StoreError>;

    /// The message, unless it or its session is deleted or outside the scope.
    async fn get_message(&self, scope: &Scope, message_id: MessageId) -> Result<Option<Message>, StoreError>;

    /// The messages of a session that match, by `seq`; `NotFound` if there is no such session. A
    /// page that holds [`crate::limits::PAGE_BYTES_MAX`] ends before `limit`, with `next`.
    async fn list_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        query: &MessageQuery,
        page: &PageRequest<MessagePosition>,
    ) -> Result<MessagePage, StoreError>;

    /// Applies a patch and returns the message as it is then.
    async fn update_message(
        &self,
        scope: &Scope,
        message_id: MessageId,
        patch: MessagePatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Message, StoreError>;

    /// Removes the message from every list and read and erases what it says; a tombstone keeps its
    /// ids and place. Returns the message as it was.
    async fn delete_message(
        &self,
        scope: &Scope,
        message_id: MessageId,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Message, StoreError>;
}
