//! Sessions: conversations, with their owner, metadata and counters.

use async_trait::async_trait;

use crate::clock::Timestamp;
use crate::idempotency::{Answered, Claim};
use crate::ids::{ProjectId, SessionId};
use crate::json::RawJson;
use crate::messages::{NewMessage, plus_tokens};
use crate::page::{Order, Page, PageRequest, SessionPosition};
use crate::store::{ExpectedVersion, Scope, StoreError};

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub session_id: SessionId,
    /// The tenant it belongs to.
    pub project_id: ProjectId,
    /// Its owner, as the caller named it; never changes.
    pub user_id: Option<String>,
    /// What people call it; may be empty.
    pub session_name: String,
    /// Whether its owner marked it.
    pub is_favorite: bool,
    /// A JSON object, kept byte for byte.
    pub metadata: RawJson,
    /// The id a client brought, unique within project and user among those not deleted.
    pub external_id: Option<String>,
    /// The highest `seq` ever given in it; only grows.
    pub last_seq: i64,
    /// Messages that are not deleted.
    pub message_count: i64,
    /// Sum of the token counts that clients gave; `None` while none did.
    pub token_count: Option<i64>,
    /// Grows with every change a client makes to a settable field; the ETag.
    pub version: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it or one of its messages last changed.
    pub updated_at: Timestamp,
    /// When a message was last appended.
    pub last_message_at: Option<Timestamp>,
    /// When it was deleted.
    pub deleted_at: Option<Timestamp>,
    /// The session it was copied from.
    pub forked_from: Option<SessionId>,
}

impl Session {
    /// Roughly how many bytes it takes.
    pub fn bytes(&self) -> usize {
        512 + self.session_name.len() + self.metadata.bytes()
    }

    /// The time by which `sort` orders it.
    pub fn sorted_by(&self, sort: SessionSort) -> Timestamp {
        match sort {
            SessionSort::CreatedAt => self.created_at,
            SessionSort::UpdatedAt => self.updated_at,
            SessionSort::LastMessageAt => self.last_message_at.unwrap_or(self.created_at),
        }
    }

    /// Its place in a list ordered by `sort`.
    pub fn position(&self, sort: SessionSort) -> SessionPosition {
        SessionPosition { sorted_by: self.sorted_by(sort), session_id: self.session_id }
    }
}

/// A session to be stored. The store adds nothing but zeroes: counters start there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// Its id, minted by the caller in the bucket of its owner.
    pub session_id: SessionId,
    /// Its owner; inside a user's scope it must be that user.
    pub user_id: Option<String>,
    /// What people call it.
    pub session_name: String,
    /// Whether its owner marked it.
    pub is_favorite: bool,
    /// A JSON object.
    pub metadata: RawJson,
    /// The id the client brought.
    pub external_id: Option<String>,
    /// When it is created.
    pub created_at: Timestamp,
}

impl NewSession {
    /// The session as it stands when stored in `project_id`.
    pub fn into_session(self, project_id: ProjectId) -> Session {
        Session {
            session_id: self.session_id,
            project_id,
            user_id: self.user_id,
            session_name: self.session_name,
            is_favorite: self.is_favorite,
            metadata: self.metadata,
            external_id: self.external_id,
            last_seq: 0,
            message_count: 0,
            token_count: None,
            version: 1,
            created_at: self.created_at,
            updated_at: self.created_at,
            last_message_at: None,
            deleted_at: None,
            forked_from: None,
        }
    }

    /// The same with its first messages in it.
    pub fn with_messages(self, project_id: ProjectId, messages: &[NewMessage]) -> Session {
        let session = self.into_session(project_id);
        if messages.is_empty() {
            return session;
        }
        let count = i64::try_from(messages.len()).unwrap_or(i64::MAX);
        Session {
            last_seq: count,
            message_count: count,
            token_count: messages.iter().fold(None, |sum, message| plus_tokens(sum, message.token_count)),
            last_message_at: Some(session.created_at),
            ..session
        }
    }
}

/// Changes to a session: only what is present changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionPatch {
    /// New name.
    pub session_name: Option<String>,
    /// New mark.
    pub is_favorite: Option<bool>,
    /// New metadata, whole.
    pub metadata: Option<RawJson>,
}

impl SessionPatch {
    /// Applies the patch at `now`; tells whether anything changed. A patch that says what is
    /// already so changes nothing, neither version nor time.
    pub fn apply(self, session: &mut Session, now: Timestamp) -> bool {
        let before = session.clone();
        if let Some(session_name) = self.session_name {
            session.session_name = session_name;
        }
        if let Some(is_favorite) = self.is_favorite {
            session.is_favorite = is_favorite;
        }
        if let Some(metadata) = self.metadata {
            session.metadata = metadata;
        }
        let changed = *session != before;
        if changed {
            session.version = session.version.saturating_add(1);
            session.updated_at = now.max(session.updated_at);
        }
        changed
    }
}

/// What a list of sessions is ordered by; ties are broken by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionSort {
    /// Creation.
    CreatedAt,
    /// Last change of the session or its messages.
    UpdatedAt,
    /// Last append; a session without messages counts as of its creation.
    LastMessageAt,
}

/// Which sessions a list shows, and in which order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionQuery {
    /// Only this user's.
    pub user_id: Option<String>,
    /// Only marked, or only unmarked ones.
    pub is_favorite: Option<bool>,
    /// Only those whose metadata has all these top-level scalars.
    pub metadata: Vec<(String, String)>,
    /// Only those created later than this.
    pub created_after: Option<Timestamp>,
    /// Only those created earlier than this.
    pub created_before: Option<Timestamp>,
    /// What orders them.
    pub sort: SessionSort,
    /// In which direction.
    pub order: Order,
}

impl Default for SessionQuery {
    fn default() -> Self {
        Self {
            user_id: None,
            is_favorite: None,
            metadata: Vec::new(),
            created_after: None,
            created_before: None,
            sort: SessionSort::CreatedAt,
            order: Order::Asc,
        }
    }
}

/// A page of sessions.
pub type SessionPage = Page<Session, SessionPosition>;

/// What a store does with sessions.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Stores a session and its first messages, all or none. [`StoreError::Conflict`] if its `external_id` is taken by
    /// another of the same project and user; for the messages as `append_messages`. The claim's record names the session.
    async fn create_session(
        &self,
        scope: &Scope,
        session: NewSession,
        messages: Vec<NewMessage>,
        claim: Option<&Claim>,
    ) -> Result<Answered<Session>, StoreError>;

    /// The session, unless it is deleted or outside the scope.
    async fn get_session(&self, scope: &Scope, session_id: SessionId) -> Result<Option<Session>, StoreError>;

    /// The sessions that match, in a total order.
    async fn list_sessions(
        &self,
        scope: &Scope,
        query: &SessionQuery,
        page: &PageRequest<SessionPosition>,
    ) -> Result<SessionPage, StoreError>;

    /// Applies a patch and returns the session as it is then.
    async fn update_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        patch: SessionPatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError>;

    /// Removes the session from every list and read at once and erases what it and its messages
    /// say; a tombstone keeps ids and `seq`. Returns the session as it was.
    async fn delete_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError>;
}
