//! A store that goes wrong on purpose: every call does what the test says, or else what the real
//! store does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use chatstore_core::api_keys::{ApiKey, ApiKeyPatch, ApiKeyStore, Authority, KeyDigest};
use chatstore_core::archive::{ArchiveStore, ArchivedSession, Imported};
use chatstore_core::audit::{AuditEvent, AuditQuery, AuditStore};
use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{
    Embedding, EmbeddingBacklog, EmbeddingJob, EmbeddingSource, EmbeddingStore, JobOutcome, NewEmbedding, VectorQuery,
};
use chatstore_core::idempotency::{Answered, Claim, IdempotencyRecord, IdempotencyStore};
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use chatstore_core::messages::{Message, MessagePage, MessagePatch, MessageQuery, MessageStore, NewMessage};
use chatstore_core::page::{
    AuditPosition, CursorKey, KeyPosition, MessagePosition, Page, PageRequest, ProjectPosition, SessionPosition,
};
use chatstore_core::projects::{Project, ProjectPatch, ProjectStore, ProjectUsage, TokenSecret};
use chatstore_core::search::{Derived, FoundMessage, RankedMessage, Reindexed, SearchFilter, SearchStore, TextQuery};
use chatstore_core::sessions::{NewSession, Session, SessionPage, SessionPatch, SessionQuery, SessionStore};
use chatstore_core::store::{ExpectedVersion, Scope, Store, StoreError, StoreStats};
use tokio_util::sync::CancellationToken;

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Error(StoreError),
    /// An error as long as this is set.
    While(Arc<AtomicBool>, StoreError),
    Hang,
    Panic,
    /// Nothing, but it is counted.
    Counted(Arc<AtomicUsize>),
    /// Nothing, but it is counted and waits for the test.
    Held(Arc<AtomicUsize>, CancellationToken),
}

/// A store with a fault in one method, or in each that touches data (`*`).
pub(crate) struct FaultyStore {
    inner: Arc<dyn Store>,
    method: &'static str,
    fault: Fault,
}

impl FaultyStore {
    pub(crate) fn wrap(inner: Arc<dyn Store>, method: &'static str, fault: Fault) -> Arc<dyn Store> {
        Arc::new(Self { inner, method, fault })
    }

    /// Counts the calls of a method.
    pub(crate) fn count(inner: Arc<dyn Store>, method: &'static str) -> (Arc<dyn Store>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        (Self::wrap(inner, method, Fault::Counted(count.clone())), count)
    }

    async fn trip(&self, method: &'static str) -> Result<(), StoreError> {
        let hit = self.method == method
            || (self.method == "*"
                && !matches!(
                    method,
                    "get_api_key" | "get_project" | "cursor_key" | "append_audit_events" | "note_api_key_uses"
                ));
        match &self.fault {
            _ if !hit => Ok(()),
            Fault::Error(error) => Err(error.clone()),
            Fault::While(is_set, error) if is_set.load(Ordering::Relaxed) => Err(error.clone()),
            Fault::While(..) => Ok(()),
            Fault::Hang => std::future::pending().await,
            Fault::Counted(count) => {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Fault::Held(count, release) => {
                count.fetch_add(1, Ordering::Relaxed);
                release.cancelled().await;
                Ok(())
            }
            Fault::Panic => panic!("select secret from /tmp/canary"),
        }
    }
}

#[async_trait]
impl SessionStore for FaultyStore {
    async fn create_session(
        &self,
        scope: &Scope,
        session: NewSession,
        messages: Vec<NewMessage>,
        claim: Option<&Claim>,
    ) -> Result<Answered<Session>, StoreError> {
        self.trip("create_session").await?;
        self.inner.create_session(scope, session, messages, claim).await
    }

    async fn get_session(&self, scope: &Scope, session_id: SessionId) -> Result<Option<Session>, StoreError> {
        self.trip("get_session").await?;
        self.inner.get_session(scope, session_id).await
    }

    async fn list_sessions(
        &self,
        scope: &Scope,
        query: &SessionQuery,
        page: &PageRequest<SessionPosition>,
    ) -> Result<SessionPage, StoreError> {
        self.trip("list_sessions").await?;
        self.inner.list_sessions(scope, query, page).await
    }

    async fn update_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        patch: SessionPatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError> {
        self.trip("update_session").await?;
        self.inner.update_session(scope, session_id, patch, expected, now).await
    }

    async fn delete_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError> {
        self.trip("delete_session").await?;
        self.inner.delete_session(scope, session_id, expected, now).await
    }
}

#[async_trait]
impl MessageStore for FaultyStore {
    async fn append_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        messages: Vec<NewMessage>,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<Vec<Message>>, StoreError> {
        self.trip("append_messages").await?;
        self.inner.append_messages(scope, session_id, messages, now, claim).await
    }

    async fn find_message(
        &self,
        scope: &Scope,
        session_id: SessionId,
        name: &str,
    ) -> Result<Option<Message>, StoreError> {
        self.trip("find_message").await?;
        self.inner.find_message(scope, session_id, name).await
    }

    async fn get_message(&self, scope: &Scope, message_id: MessageId) -> Result<Option<Message>, StoreError> {
        self.trip("get_message").await?;
        self.inner.get_message(scope, message_id).await
    }

    async fn list_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        query: &MessageQuery,
        page: &PageRequest<MessagePosition>,
    ) -> Result<MessagePage, StoreError> {
        self.trip("list_messages").await?;
        self.inner.list_messages(scope, session_id, query, page).await
    }

    async fn update_message(
        &self,
        scope: &Scope,
        message_id: MessageId,
        patch: MessagePatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Message, StoreError> {
        self.trip("update_message").await?;
        self.inner.update_message(scope, message_id, patch, expected, now).await
    }

    async fn delete_message(
        &self,
        scope: &Scope,
        message_id: MessageId,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Message, StoreError> {
        self.trip("delete_message").await?;
        self.inner.delete_message(scope, message_id, expected, now).await
    }
}

#[async_trait]
impl ArchiveStore for FaultyStore {
    async fn import_session(&self, scope: &Scope, archived: ArchivedSession) -> Result<Imported, StoreError> {
        self.trip("import_session").await?;
        self.inner.import_session(scope, archived).await
    }

    async fn export_sessions(
        &self,
        scope: &Scope,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        self.inner.export_sessions(scope, after, limit).await
    }

    async fn export_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        after_seq: i64,
        last_seq: i64,
        limit: u32,
    ) -> Result<Vec<Message>, StoreError> {
        self.inner.export_messages(scope, session_id, after_seq, last_seq, limit).await
    }
}

#[async_trait]
impl IdempotencyStore for FaultyStore {
    async fn get_idempotency_record(&self, claim: &Claim) -> Result<Option<IdempotencyRecord>, StoreError> {
        self.trip("get_idempotency_record").await?;
        self.inner.get_idempotency_record(claim).await
    }

    async fn purge_idempotency_records(&self, now: Timestamp) -> Result<bool, StoreError> {
        self.trip("purge_idempotency_records").await?;
        self.inner.purge_idempotency_records(now).await
    }
}

#[async_trait]
impl ApiKeyStore for FaultyStore {
    async fn create_api_key(&self, key: ApiKey, claim: Option<&Claim>) -> Result<Answered<ApiKey>, StoreError> {
        self.trip("create_api_key").await?;
        self.inner.create_api_key(key, claim).await
    }

    async fn create_first_api_key(&self, key: ApiKey) -> Result<bool, StoreError> {
        self.trip("create_first_api_key").await?;
        self.inner.create_first_api_key(key).await
    }

    async fn get_api_key(&self, key_id: &str) -> Result<Option<(ApiKey, Project)>, StoreError> {
        self.trip("get_api_key").await?;
        self.inner.get_api_key(key_id).await
    }

    async fn list_api_keys(
        &self,
        project_id: Option<ProjectId>,
        page: &PageRequest<KeyPosition>,
    ) -> Result<Page<(ApiKey, String), KeyPosition>, StoreError> {
        self.trip("list_api_keys").await?;
        self.inner.list_api_keys(project_id, page).await
    }

    async fn list_credential_ids(&self) -> Result<Vec<String>, StoreError> {
        self.trip("list_credential_ids").await?;
        self.inner.list_credential_ids().await
    }

    async fn update_api_key(
        &self,
        authority: &Authority,
        key_id: &str,
        patch: ApiKeyPatch,
        now: Timestamp,
    ) -> Result<ApiKey, StoreError> {
        self.trip("update_api_key").await?;
        self.inner.update_api_key(authority, key_id, patch, now).await
    }

    async fn rotate_api_key(
        &self,
        authority: &Authority,
        key_id: &str,
        digest: KeyDigest,
        previous_expires_at: Timestamp,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<ApiKey>, StoreError> {
        self.trip("rotate_api_key").await?;
        self.inner.rotate_api_key(authority, key_id, digest, previous_expires_at, now, claim).await
    }

    async fn revoke_api_key(&self, authority: &Authority, key_id: &str, now: Timestamp) -> Result<ApiKey, StoreError> {
        self.trip("revoke_api_key").await?;
        self.inner.revoke_api_key(authority, key_id, now).await
    }

    async fn note_api_key_uses(&self, uses: Vec<(String, Timestamp)>) -> Result<(), StoreError> {
        self.trip("note_api_key_uses").await?;
        self.inner.note_api_key_uses(uses).await
    }
}

#[async_trait]
impl ProjectStore for FaultyStore {
    async fn create_project(&self, project: Project, claim: Option<&Claim>) -> Result<Answered<Project>, StoreError> {
        self.trip("create_project").await?;
        self.inner.create_project(project, claim).await
    }

    async fn get_project(&self, project_id: ProjectId) -> Result<Option<Project>, StoreError> {
        self.trip("get_project").await?;
        self.inner.get_project(project_id).await
    }

    async fn get_project_by_name(&self, name: &str) -> Result<Option<Project>, StoreError> {
        self.trip("get_project_by_name").await?;
        self.inner.get_project_by_name(name).await
    }

    async fn list_projects(
        &self,
        page: &PageRequest<ProjectPosition>,
    ) -> Result<Page<Project, ProjectPosition>, StoreError> {
        self.trip("list_projects").await?;
        self.inner.list_projects(page).await
    }

    async fn update_project(
        &self,
        project_id: ProjectId,
        patch: ProjectPatch,
        now: Timestamp,
    ) -> Result<Project, StoreError> {
        self.trip("update_project").await?;
        self.inner.update_project(project_id, patch, now).await
    }

    async fn rotate_token_secret(
        &self,
        project_id: ProjectId,
        secret: Option<TokenSecret>,
        previous_expires_at: Timestamp,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<Project>, StoreError> {
        self.trip("rotate_token_secret").await?;
        self.inner.rotate_token_secret(project_id, secret, previous_expires_at, now, claim).await
    }

    async fn delete_project(&self, project_id: ProjectId, now: Timestamp) -> Result<Project, StoreError> {
        self.trip("delete_project").await?;
        self.inner.delete_project(project_id, now).await
    }

    async fn erase_deleted_projects(&self, now: Timestamp) -> Result<bool, StoreError> {
        self.trip("erase_deleted_projects").await?;
        self.inner.erase_deleted_projects(now).await
    }

    async fn get_project_usage(&self, project_id: ProjectId) -> Result<ProjectUsage, StoreError> {
        self.trip("get_project_usage").await?;
        self.inner.get_project_usage(project_id).await
    }
}

#[async_trait]
impl AuditStore for FaultyStore {
    async fn append_audit_events(&self, events: Vec<AuditEvent>) -> Result<(), StoreError> {
        self.trip("append_audit_events").await?;
        self.inner.append_audit_events(events).await
    }

    async fn list_audit_events(
        &self,
        query: &AuditQuery,
        page: &PageRequest<AuditPosition>,
    ) -> Result<Page<AuditEvent, AuditPosition>, StoreError> {
        self.trip("list_audit_events").await?;
        self.inner.list_audit_events(query, page).await
    }
}

#[async_trait]
impl SearchStore for FaultyStore {
    async fn search_text(
        &self,
        scope: &Scope,
        query: &TextQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError> {
        self.trip("search_text").await?;
        self.inner.search_text(scope, query, filter, limit).await
    }

    async fn search_vectors(
        &self,
        scope: &Scope,
        query: &VectorQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError> {
        self.trip("search_vectors").await?;
        self.inner.search_vectors(scope, query, filter, limit).await
    }

    async fn get_found_messages(
        &self,
        scope: &Scope,
        message_ids: &[MessageId],
    ) -> Result<Vec<FoundMessage>, StoreError> {
        self.trip("get_found_messages").await?;
        self.inner.get_found_messages(scope, message_ids).await
    }

    async fn start_reindex(&self, derived: Derived) -> Result<(), StoreError> {
        self.trip("start_reindex").await?;
        self.inner.start_reindex(derived).await
    }

    async fn reindex_some(&self, derived: Derived) -> Result<Reindexed, StoreError> {
        self.trip("reindex_some").await?;
        self.inner.reindex_some(derived).await
    }

    async fn is_reindexing(&self, derived: Derived) -> Result<bool, StoreError> {
        self.trip("is_reindexing").await?;
        self.inner.is_reindexing(derived).await
    }
}

#[async_trait]
impl EmbeddingStore for FaultyStore {
    async fn set_embedding(
        &self,
        scope: &Scope,
        message_id: MessageId,
        embedding: NewEmbedding,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.trip("set_embedding").await?;
        self.inner.set_embedding(scope, message_id, embedding, now).await
    }

    async fn list_embeddings(&self, scope: &Scope, message_ids: &[MessageId]) -> Result<Vec<Embedding>, StoreError> {
        self.trip("list_embeddings").await?;
        self.inner.list_embeddings(scope, message_ids).await
    }

    async fn get_embedding_source(&self) -> Result<Option<EmbeddingSource>, StoreError> {
        self.trip("get_embedding_source").await?;
        self.inner.get_embedding_source().await
    }

    async fn set_embedding_source(&self, model: &str) -> Result<EmbeddingSource, StoreError> {
        self.trip("set_embedding_source").await?;
        self.inner.set_embedding_source(model).await
    }

    async fn settle_embedding_source(&self) -> Result<bool, StoreError> {
        self.trip("settle_embedding_source").await?;
        self.inner.settle_embedding_source().await
    }

    async fn claim_embedding_jobs(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
        limit: usize,
    ) -> Result<Vec<EmbeddingJob>, StoreError> {
        self.trip("claim_embedding_jobs").await?;
        self.inner.claim_embedding_jobs(now, lease_until, limit).await
    }

    async fn complete_embedding_jobs(
        &self,
        jobs: Vec<(EmbeddingJob, JobOutcome)>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.trip("complete_embedding_jobs").await?;
        self.inner.complete_embedding_jobs(jobs, now).await
    }

    async fn get_embedding_backlog(&self, scope: &Scope) -> Result<EmbeddingBacklog, StoreError> {
        self.trip("get_embedding_backlog").await?;
        self.inner.get_embedding_backlog(scope).await
    }

    async fn retry_parked_embeddings(&self, scope: &Scope, now: Timestamp) -> Result<u64, StoreError> {
        self.trip("retry_parked_embeddings").await?;
        self.inner.retry_parked_embeddings(scope, now).await
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn check(&self) -> Result<(), StoreError> {
        self.trip("check").await?;
        self.inner.check().await
    }

    async fn cursor_key(&self) -> Result<CursorKey, StoreError> {
        self.inner.cursor_key().await
    }

    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
