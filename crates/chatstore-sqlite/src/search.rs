//! Search in SQLite.

use async_trait::async_trait;
use chatstore_core::embeddings::VectorQuery;
use chatstore_core::ids::MessageId;
use chatstore_core::search::{Derived, FoundMessage, RankedMessage, Reindexed, SearchFilter, SearchStore, TextQuery};
use chatstore_core::store::{Scope, StoreError};

use crate::SqliteStore;

#[async_trait]
impl SearchStore for SqliteStore {
    async fn search_text(
        &self,
        scope: &Scope,
        query: &TextQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError> {
        let _ = (scope, query, filter, limit);
        Err(StoreError::internal("not yet"))
    }

    async fn search_vectors(
        &self,
        scope: &Scope,
        query: &VectorQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError> {
        let _ = (scope, query, filter, limit);
        Err(StoreError::internal("not yet"))
    }

    async fn get_found_messages(
        &self,
        scope: &Scope,
        message_ids: &[MessageId],
    ) -> Result<Vec<FoundMessage>, StoreError> {
        let _ = (scope, message_ids);
        Err(StoreError::internal("not yet"))
    }

    async fn start_reindex(&self, derived: Derived) -> Result<(), StoreError> {
        let _ = (derived);
        Err(StoreError::internal("not yet"))
    }

    async fn reindex_some(&self, derived: Derived) -> Result<Reindexed, StoreError> {
        let _ = (derived);
        Err(StoreError::internal("not yet"))
    }

    async fn is_reindexing(&self, derived: Derived) -> Result<bool, StoreError> {
        let _ = (derived);
        Err(StoreError::internal("not yet"))
    }
}
