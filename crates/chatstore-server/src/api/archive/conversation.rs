//! A conversation as a line of an import or export, and its way to and from the stored form.

use chatstore_core::archive::{ArchiveIdentity, ArchivedSession};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::ids::{Bucket, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::limits::{CONVERSATION_METADATA_BYTES_MAX, SESSION_NAME_BYTES_MAX, USER_ID_BYTES_MAX, VERSION_MAX};
use chatstore_core::sessions::Session;
use chatstore_core::store::Scope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::message::{ConversationMessage, Place};
use crate::api::{check_external_id, check_id, check_length, check_metadata_within};
use crate::body::{Body, objects};
use crate::error::FieldError;
use crate::openapi::{Example, object, optional_id, optional_time};

/// A conversation as one line of JSON. Only `id` and each message's `content` are needed; an
/// export writes every field, and such a line is stored as it was.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct Conversation {
    /// Your id for it: becomes the session's `external_id`, by which it is recognised when it comes again.
    pub id: Option<String>,
    /// The session's own id, in an export; then `external_id` stands apart from `id`.
    #[schemars(schema_with = "optional_id")]
    pub session_id: Option<String>,
    /// The id the client once brought, in an export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// The session's name.
    #[serde(alias = "session_name")]
    pub title: Option<String>,
    /// The user it belongs to.
    pub user_id: Option<String>,
    /// Whether its owner marked it.
    pub is_favorite: bool,
    /// A JSON object.
    #[schemars(schema_with = "object")]
    pub metadata: Option<RawJson>,
    /// The text of `metadata`, in an export, where it spans lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata_text: Option<String>,
    /// The highest place given in it, in an export; an import counts for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<i64>,
    /// Its messages that are not deleted, in an export; an import counts for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_count: Option<i64>,
    /// Its size in tokens, in an export; an import counts for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_count: Option<i64>,
    /// The session's version, in an export.
    pub version: Option<i64>,
    /// When it was created; the first message's time if absent.
    #[schemars(schema_with = "optional_time")]
    pub created_at: Option<Timestamp>,
    /// When it last changed, in an export.
    #[schemars(schema_with = "optional_time")]
    pub updated_at: Option<Timestamp>,
    /// When a message was last appended, in an export.
    #[schemars(schema_with = "optional_time")]
    pub last_message_at: Option<Timestamp>,
    /// When it was deleted, in an export: a tombstone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_time")]
    pub deleted_at: Option<Timestamp>,
    /// The session it was copied from, in an export.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_id")]
    pub forked_from: Option<String>,
    /// The messages in their order.
    #[serde(deserialize_with = "objects")]
    pub messages: Vec<ConversationMessage>,
}

impl Body for Conversation {}

impl Example for Conversation {
    fn example() -> Value {
        json!({
            "id": "thread-17",
            "title": "Trip to Lisbon",
            "user_id": "ada",
            "created_at": "2026-01-31T12:00:00Z",
            "messages": [
                {"role": "user", "content": "What should I see in Lisbon in two days?"},
                {"role": "assistant", "content": "Begin in Alfama."},
            ],
        })
    }
}

impl Conversation {
    /// A stored session as a line, without its messages.
    pub fn of(session: &Session) -> Self {
        let (metadata, metadata_text) = on_one_line(Some(session.metadata.clone()));
        Self {
            id: Some(session.external_id.clone().unwrap_or_else(|| session.session_id.to_string())),
            session_id: Some(session.session_id.to_string()),
            external_id: session.external_id.clone(),
            title: Some(session.session_name.clone()),
            user_id: session.user_id.clone(),
            is_favorite: session.is_favorite,
            metadata,
            metadata_text,
            last_seq: Some(session.last_seq),
            message_count: Some(session.message_count),
            token_count: session.token_count,
            version: Some(session.version),
            created_at: Some(session.created_at),
            updated_at: Some(session.updated_at),
            last_message_at: session.last_message_at,
            deleted_at: session.deleted_at,
            forked_from: session.forked_from.map(|id| id.to_string()),
            messages: Vec::new(),
        }
    }

    /// What the store is given. Ids and times that are absent come from `ctx`.
    ///
    /// # Errors
    /// Every field at fault, with its pointer.
    pub fn into_archived(
        self,
        ctx: &Ctx,
        scope: &Scope,
        kept: KeptIds,
        content_bytes_max: usize,
    ) -> Result<ArchivedSession, Vec<FieldError>> {
        let mut errors = Vec::new();
        let exported = self.session_id.is_some();
        // What was stored once is stored again, whatever the limit is now.
        let content_bytes_max = if exported { usize::MAX } else { content_bytes_max };
        let external_id = if exported { self.external_id.clone() } else { self.id.clone() };
        if external_id.is_none() && !exported {
            errors.push(FieldError::new("/id", "is required"));
        }
        check_external_id(if exported { "/external_id" } else { "/id" }, external_id.as_deref(), &mut errors);
        check_length("/title", self.title.as_deref(), SESSION_NAME_BYTES_MAX, &mut errors);
        check_id("/user_id", self.user_id.as_deref(), USER_ID_BYTES_MAX, &mut errors);
        let metadata = restore("/metadata_text", self.metadata, self.metadata_text, &mut errors);
        // What the Conversations wire has taken comes back.
        check_metadata_within(CONVERSATION_METADATA_BYTES_MAX, "/metadata", metadata.as_ref(), &mut errors);
        check_version("/version", self.version, &mut errors);
        let user_id = self.user_id.clone();
        let bucket = scope.bucket(user_id.as_deref(), external_id.as_deref(), ctx.random());
        let first_at = self.messages.iter().find_map(|message| message.created_at);
        let created_at = self.created_at.or(first_at).unwrap_or_else(|| ctx.now());
        let own_id = read_id("/session_id", self.session_id.as_deref(), SessionId::parse, &mut errors);
        let placed = user_id.is_some() || external_id.is_some();
        let home = own_id.filter(|_| !placed).map_or(bucket, SessionId::bucket);
        let moved = own_id.is_some_and(|id| !kept.session || id.bucket() != home);
        let session_id = match own_id {
            Some(id) if moved => derived(id.uuid(), scope, home).into(),
            Some(id) => id,
            None => ctx.new_session_id(created_at, bucket),
        };
        let forked_from = read_id("/forked_from", self.forked_from.as_deref(), SessionId::parse, &mut errors);
        let forked_from = forked_from.map(|id| if moved { derived(id.uuid(), scope, home).into() } else { id });
        let last_at = self.messages.iter().filter_map(|message| message.created_at).max();
        let last_message_at = self.last_message_at.or_else(|| {
            let any = !self.messages.is_empty() && !exported;
            any.then(|| last_at.map_or(created_at, |at| at.max(created_at)))
        });
        let session = Session {
            session_id,
            project_id: scope.project_id,
            user_id,
            session_name: self.title.unwrap_or_default(),
            is_favorite: self.is_favorite,
            metadata: metadata.unwrap_or_else(RawJson::empty_object),
            external_id,
            last_seq: 0,
            message_count: 0,
            token_count: None,
            version: self.version.unwrap_or(1),
            created_at,
            updated_at: self.updated_at.or(last_message_at).unwrap_or(created_at),
            last_message_at,
            deleted_at: self.deleted_at,
            forked_from,
        };
        let mut messages = Vec::with_capacity(self.messages.len());
        for (n, message) in self.messages.into_iter().enumerate() {
            let derives = moved || !kept.messages;
            let place = Place { ctx, scope, session: &session, n, derives, content_bytes_max };
            messages.push(message.into_message(&place, &mut errors));
        }
        if session.deleted_at.is_some() && !exported {
            errors.push(FieldError::new("/deleted_at", "needs `session_id`, as in an export"));
        }
        // A tombstone can only be recognised by its own id.
        let by_external_id = !exported || (moved && session.external_id.is_some() && session.deleted_at.is_none());
        let identity = if by_external_id { ArchiveIdentity::ExternalId } else { ArchiveIdentity::SessionId };
        if errors.is_empty() {
            Ok(ArchivedSession { identity, session, messages, embeddings: Vec::new(), embed: false })
        } else {
            Err(errors)
        }
    }
}

/// Whether an exported conversation keeps its ids, or gets others derived from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptIds {
    /// The session's, if its place fits.
    pub session: bool,
    /// Its messages', if the session keeps its own.
    pub messages: bool,
}

impl KeptIds {
    /// All ids stay.
    pub const ALL: Self = Self { session: true, messages: true };
    /// All ids are derived.
    pub const NONE: Self = Self { session: false, messages: false };
}

/// The id that stands for `id` in this project: its time, its place in `bucket`, and in between a
/// hash, so that it is the same whenever it comes again and never that of another project.
pub(super) fn derived(id: Uuid, scope: &Scope, bucket: Bucket) -> Uuid {
    let digest = Sha256::new().chain_update(scope.project_id.as_bytes()).chain_update(id.as_bytes()).finalize();
    let mut bytes = id.into_bytes();
    bytes[6] = 0x70 | (digest[6] & 0x0f);
    bytes[7] = digest[7];
    bytes[8] = 0x80 | (digest[8] & 0x3f);
    bytes[9..14].copy_from_slice(&digest[9..14]);
    bytes[14..].copy_from_slice(&bucket.bits().to_be_bytes());
    Uuid::from_bytes(bytes)
}

/// JSON as it can stand in a line of an export: line breaks become spaces, and the text as it was
/// stands beside it.
pub(super) fn on_one_line(json: Option<RawJson>) -> (Option<RawJson>, Option<String>) {
    let breaks = ['\n', '\r'];
    match json {
        Some(json) if json.as_str().contains(breaks) => {
            // Inside a JSON string no line break can stand: these are white space.
            let line = RawJson::parse(json.as_str().replace(breaks, " "));
            (line.ok(), Some(json.as_str().to_owned()))
        }
        json => (json, None),
    }
}

/// The opposite of [`on_one_line`].
pub(super) fn restore(
    pointer: &str,
    json: Option<RawJson>,
    text: Option<String>,
    errors: &mut Vec<FieldError>,
) -> Option<RawJson> {
    let Some(text) = text else { return json };
    let restored = RawJson::parse(text).ok();
    if restored.is_none() || on_one_line(restored.clone()).0 != json {
        errors.push(FieldError::new(pointer, "is not the text of the field beside it"));
    }
    restored
}

pub(super) fn check_version(pointer: &str, version: Option<i64>, errors: &mut Vec<FieldError>) {
    if version.is_some_and(|version| !(1..=VERSION_MAX).contains(&version)) {
        errors.push(FieldError::new(pointer, format!("must be from 1 to {VERSION_MAX}")));
    }
}

pub(super) fn read_id<T>(
    pointer: &str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Option<T>,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    let id = parse(text?);
    if id.is_none() {
        errors.push(FieldError::new(pointer, "is not an id"));
    }
    id
}
