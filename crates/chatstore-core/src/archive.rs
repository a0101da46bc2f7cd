//! Archives: whole conversations on their way in or out, tombstones included.

mod checksum;

use async_trait::async_trait;

use crate::embeddings::Embedding;
use crate::ids::SessionId;
use crate::messages::Message;
use crate::sessions::Session;
use crate::store::{Scope, StoreError};

pub use checksum::Checksum;

/// How an arriving conversation is recognised when it comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveIdentity {
    /// By `session_id`: it was exported from a store.
    SessionId,
    /// By `external_id` within project and user, among those not deleted.
    ExternalId,
}

/// A conversation, or the next part of one, to be stored as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchivedSession {
    /// How it is recognised.
    pub identity: ArchiveIdentity,
    /// The session; its counters are derived from the messages that are stored.
    pub session: Session,
    /// Messages with their final `seq`, rising by one from the first.
    pub messages: Vec<Message>,
    /// Vectors of those of the messages that are stored.
    pub embeddings: Vec<Embedding>,
    /// Whether messages that are stored are queued for the embedding source.
    pub embed: bool,
}

/// What an import stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Whether the session was new.
    pub session: bool,
    /// Messages that were new.
    pub messages: u64,
}

/// What a store does with archives.
#[async_trait]
pub trait ArchiveStore: Send + Sync {
    /// Stores what is not there yet: the session if it is new, and the messages past its
    /// `last_seq`; what is there stays as it is, so that a second import adds nothing. A new
    /// session keeps the times it came with; a later part moves them on, unless it came with the
    /// very same, so that parts of one archive make what the whole would. `Invalid` if the messages
    /// leave a gap or go on from another message than the last one here, `Conflict` if an id is
    /// taken by something else.
    async fn import_session(&self, scope: &Scope, archived: ArchivedSession) -> Result<Imported, StoreError>;

    /// Sessions of the scope in the order of their ids, tombstones included, after `after`.
    async fn export_sessions(
        &self,
        scope: &Scope,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError>;

    /// Messages of one of those sessions by `seq`, tombstones included, after `after_seq` and up
    /// to `last_seq`. A page that holds [`crate::limits::PAGE_BYTES_MAX`] ends before `limit`; an
    /// empty one is the end.
    async fn export_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        after_seq: i64,
        last_seq: i64,
        limit: u32,
    ) -> Result<Vec<Message>, StoreError>;
}
