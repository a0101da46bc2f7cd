//! The contract as a whole: scope, errors, and the one trait object the server talks to.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::api_keys::ApiKeyStore;
use crate::archive::ArchiveStore;
use crate::audit::AuditStore;
use crate::embeddings::EmbeddingStore;
use crate::idempotency::IdempotencyStore;
use crate::ids::{Bucket, ProjectId};
use crate::messages::MessageStore;
use crate::page::CursorKey;
use crate::projects::ProjectStore;
use crate::search::SearchStore;
use crate::sessions::SessionStore;

/// Whose data a call may see and change, and how much of it there may be. Every method that touches
/// data takes one; rows outside it do not exist for the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The tenant.
    pub project_id: ProjectId,
    /// The one user the caller speaks for; `None` sees all users of the project.
    pub user_id: Option<String>,
    /// How much it may hold.
    pub quotas: Quotas,
}

/// How much a project may hold; `None` is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quotas {
    /// Sessions of one user. Creations at the same moment may together pass it on PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_per_user: Option<u64>,
    /// Messages of one session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_session: Option<u64>,
    /// Bytes of the whole project, as [`crate::projects::ProjectUsage`] counts them. Kept by the server, which looks
    /// now and then, and not by the stores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_bytes: Option<u64>,
}

impl Quotas {
    /// These, and where they say nothing, `defaults`.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        Self {
            sessions_per_user: self.sessions_per_user.or(defaults.sessions_per_user),
            messages_per_session: self.messages_per_session.or(defaults.messages_per_session),
            project_bytes: self.project_bytes.or(defaults.project_bytes),
        }
    }

    /// Refuses a session that would make a user's sessions `count`.
    pub fn check_sessions(&self, count: u64) -> Result<(), StoreError> {
        Self::check("sessions_per_user", self.sessions_per_user, count)
    }

    /// Refuses messages that would make a session's messages `count`.
    pub fn check_messages(&self, count: u64) -> Result<(), StoreError> {
        Self::check("messages_per_session", self.messages_per_session, count)
    }

    /// Refuses a write to a project that holds `bytes`.
    pub fn check_bytes(&self, bytes: u64) -> Result<(), StoreError> {
        Self::check("project_bytes", self.project_bytes, bytes)
    }

    fn check(quota: &'static str, max: Option<u64>, count: u64) -> Result<(), StoreError> {
        match max {
            Some(max) if count > max => Err(StoreError::QuotaExceeded { quota, max }),
            _ => Ok(()),
        }
    }
}

impl Scope {
    /// Everything of one project.
    pub fn project(project_id: ProjectId) -> Self {
        Self { project_id, user_id: None, quotas: Quotas::default() }
    }

    /// One user's part of a project.
    pub fn user(project_id: ProjectId, user_id: impl Into<String>) -> Self {
        Self { user_id: Some(user_id.into()), ..Self::project(project_id) }
    }

    /// Where a new session of `user_id` is placed: with the user's others; without a user by the
    /// id it brought, else `elsewhere`: anywhere, or where the record of its request is.
    pub fn bucket(&self, user_id: Option<&str>, external_id: Option<&str>, elsewhere: impl Into<Bucket>) -> Bucket {
        match (user_id, external_id) {
            (Some(user_id), _) => Bucket::of_user(self.project_id, user_id),
            (None, Some(external_id)) => Bucket::of_external_id(self.project_id, external_id),
            (None, None) => elsewhere.into(),
        }
    }
}

/// Why a store did not do what it was asked. The list is closed: a variant exists because a caller
/// acts on it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// What should be changed is absent, or outside the scope: the same answer.
    #[error("not found")]
    NotFound,
    /// A unique value is taken; names the field.
    #[error("{field} is taken")]
    Conflict {
        /// The field whose value another row holds.
        field: &'static str,
    },
    /// The external id of one of several messages belongs to another message of the session, which says something else,
    /// or to another of them.
    #[error("the external id of message {n} is taken")]
    ExternalIdTaken {
        /// Which, from 0.
        n: usize,
    },
    /// The key of this request has named another one: its body differs.
    #[error("the idempotency key is of another request")]
    KeyReused,
    /// An earlier request of this kind, or one that holds what it needs, is not finished; nothing was written.
    #[error("an earlier request is in flight")]
    InFlight,
    /// What an earlier request of this kind made is deleted.
    #[error("gone")]
    Gone,
    /// The row has another version than the caller demanded.
    #[error("the version is {current}")]
    VersionMismatch {
        /// The version it has.
        current: i64,
    },
    /// The request contradicts the stored row.
    #[error("{pointer} {detail}")]
    Invalid {
        /// JSON Pointer to the field at fault.
        pointer: String,
        /// What is wrong, as the end of a sentence that begins with the field.
        detail: String,
    },
    /// The caller may not do this to this row: it would gain what it lacks.
    #[error("forbidden")]
    Forbidden,
    /// It would be more than a quota allows.
    #[error("the quota {quota} is {max}")]
    QuotaExceeded {
        /// The field of [`Quotas`].
        quota: &'static str,
        /// What it allows.
        max: u64,
    },
    /// Too much is queued; a retry in a moment may succeed.
    #[error("the store is busy")]
    Busy,
    /// The disk is full; nothing was written.
    #[error("the disk is full")]
    Full,
    /// The store cannot be reached or refuses writes; the operator must look.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// For the log, never for a client.
        reason: String,
    },
    /// A defect of ours.
    #[error("internal error: {reason}")]
    Internal {
        /// For the log, never for a client.
        reason: String,
    },
}

impl StoreError {
    /// A defect, described for the log.
    pub fn internal(reason: impl std::fmt::Display) -> Self {
        Self::Internal { reason: reason.to_string() }
    }
}

/// The version a caller demands of a row before it is changed (`If-Match`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// Any.
    #[default]
    Any,
    /// One of these.
    OneOf(Vec<i64>),
}

impl ExpectedVersion {
    /// Refuses `current` if it is not what was demanded.
    pub fn check(&self, current: i64) -> Result<(), StoreError> {
        match self {
            Self::OneOf(versions) if !versions.contains(&current) => Err(StoreError::VersionMismatch { current }),
            _ => Ok(()),
        }
    }
}

/// What the store counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Commits that wrote something.
    pub commits: u64,
    /// Appends that were committed.
    pub appends: u64,
}

/// A durable chat store: what the server needs of an engine.
#[async_trait]
pub trait Store:
    SessionStore
    + MessageStore
    + IdempotencyStore
    + ApiKeyStore
    + ProjectStore
    + AuditStore
    + ArchiveStore
    + SearchStore
    + EmbeddingStore
{
    /// Whether the store can be read and written now; the reason if not.
    async fn check(&self) -> Result<(), StoreError>;

    /// The secret that signs cursors, made with the schema.
    async fn cursor_key(&self) -> Result<CursorKey, StoreError>;

    /// What was counted since the start.
    fn stats(&self) -> StoreStats;

    /// Finishes what is queued and closes the store; later calls fail.
    async fn close(&self);
}
