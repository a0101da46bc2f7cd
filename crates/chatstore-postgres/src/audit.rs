//! The audit log in PostgreSQL.

use async_trait::async_trait;
use chatstore_core::audit::{AuditEvent, AuditQuery, AuditStore};
use chatstore_core::page::{AuditPosition, Page, PageRequest};
use chatstore_core::store::StoreError;

use crate::PostgresStore;

#[async_trait]
impl AuditStore for PostgresStore {
    async fn append_audit_events(&self, _events: Vec<AuditEvent>) -> Result<(), StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn list_audit_events(
        &self,
        _query: &AuditQuery,
        _page: &PageRequest<AuditPosition>,
    ) -> Result<Page<AuditEvent, AuditPosition>, StoreError> {
        Err(StoreError::internal("to be built"))
    }
}
