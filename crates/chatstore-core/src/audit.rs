//! The audit log: who ruled or destroyed what, when, from where, and what came of it. Never a text of a message.

use async_trait::async_trait;

use crate::clock::Timestamp;
use crate::ids::{AuditEventId, ProjectId};
use crate::page::{AuditPosition, Page, PageRequest};
use crate::store::StoreError;

/// One thing that somebody did, or tried to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Its id; ids grow with time.
    pub event_id: AuditEventId,
    /// The project it concerns.
    pub project_id: ProjectId,
    /// When it was done.
    pub created_at: Timestamp,
    /// What kind of caller did it.
    pub actor: Actor,
    /// The id of the caller's key, or the `sub` of the token; nothing for `API_KEY` and commands.
    pub actor_id: Option<String>,
    /// The user the caller spoke for.
    pub user_id: Option<String>,
    /// What was done: an operation's id, such as `delete_session`, or a command, such as `keys create`.
    pub action: String,
    /// The id of what it was done to.
    pub target_id: Option<String>,
    /// `ok`, the `code` of the answer, `failed` of a command, or `unknown` where nobody saw how it ended.
    pub outcome: String,
    /// Where the request came from: an IP address.
    pub address: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
}

/// The kinds of callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A stored key.
    ApiKey,
    /// The key in `API_KEY`.
    RootKey,
    /// A user token.
    UserToken,
    /// A command on the host.
    Command,
}

impl Actor {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ApiKey, Self::RootKey, Self::UserToken, Self::Command];

    /// Its name on the wire and in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::RootKey => "root_key",
            Self::UserToken => "user_token",
            Self::Command => "command",
        }
    }

    /// The actor of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|actor| actor.as_str() == text)
    }
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// Of this project; `None` is of every one, also of deleted ones.
    pub project_id: Option<ProjectId>,
    /// Of this action.
    pub action: Option<String>,
    /// By the key of this id.
    pub actor_id: Option<String>,
}

/// What a store does with the audit log: it only grows.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Stores events, at most [`crate::limits::AUDIT_EVENTS_BATCH_MAX`]; one whose id is there already is left as it is.
    async fn append_audit_events(&self, events: Vec<AuditEvent>) -> Result<(), StoreError>;

    /// Events, newest first by their ids.
    async fn list_audit_events(
        &self,
        query: &AuditQuery,
        page: &PageRequest<AuditPosition>,
    ) -> Result<Page<AuditEvent, AuditPosition>, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_read_their_names() {
        assert!(Actor::ALL.into_iter().all(|actor| Actor::parse(actor.as_str()) == Some(actor)));
        assert_eq!(Actor::parse("nobody"), None);
    }
}
