//! Embeddings in PostgreSQL.

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{
    Embedding, EmbeddingBacklog, EmbeddingJob, EmbeddingSource, EmbeddingStore, JobOutcome, NewEmbedding,
};
use chatstore_core::ids::MessageId;
use chatstore_core::store::{Scope, StoreError};

use crate::PostgresStore;

#[async_trait]
impl EmbeddingStore for PostgresStore {
    async fn set_embedding(
        &self,
        scope: &Scope,
        message_id: MessageId,
        embedding: NewEmbedding,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let _ = (scope, message_id, embedding, now);
        Err(StoreError::internal("not yet"))
    }

    async fn list_embeddings(&self, scope: &Scope, message_ids: &[MessageId]) -> Result<Vec<Embedding>, StoreError> {
        let _ = (scope, message_ids);
        Err(StoreError::internal("not yet"))
    }

    async fn get_embedding_source(&self) -> Result<Option<EmbeddingSource>, StoreError> {
        Err(StoreError::internal("not yet"))
    }

    async fn set_embedding_source(&self, model: &str) -> Result<EmbeddingSource, StoreError> {
        let _ = (model);
        Err(StoreError::internal("not yet"))
    }

    async fn settle_embedding_source(&self) -> Result<bool, StoreError> {
        Err(StoreError::internal("not yet"))
    }

    async fn claim_embedding_jobs(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
        limit: usize,
    ) -> Result<Vec<EmbeddingJob>, StoreError> {
        let _ = (now, lease_until, limit);
        Err(StoreError::internal("not yet"))
    }

    async fn complete_embedding_jobs(
        &self,
        jobs: Vec<(EmbeddingJob, JobOutcome)>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let _ = (jobs, now);
        Err(StoreError::internal("not yet"))
    }

    async fn get_embedding_backlog(&self, scope: &Scope) -> Result<EmbeddingBacklog, StoreError> {
        let _ = (scope);
        Err(StoreError::internal("not yet"))
    }

    async fn retry_parked_embeddings(&self, scope: &Scope, now: Timestamp) -> Result<u64, StoreError> {
        let _ = (scope, now);
        Err(StoreError::internal("not yet"))
    }
}
