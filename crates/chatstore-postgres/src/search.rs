//! Search in PostgreSQL.

pub(crate) mod hnsw;
pub(crate) mod reindex;
pub(crate) mod text;
pub(crate) mod texts;
pub(crate) mod vectors;

use std::collections::HashMap;

use async_trait::async_trait;
use chatstore_core::embeddings::VectorQuery;
use chatstore_core::ids::MessageId;
use chatstore_core::search::{Derived, FoundMessage, RankedMessage, Reindexed, SearchFilter, SearchStore, TextQuery};
use chatstore_core::store::{Scope, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::columns::bucket_value;
use crate::messages::{message_columns, message_row};
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::sessions::is_live;
use text::TextSearch;
use vectors::VectorSearch;

/// Most rows that are received though nobody wants them, before the connection is given up.
const DRAINED_MAX: usize = 1_000;
/// How much more is asked for when what was asked for held too few that fit.
const GROWTH: usize = 16;

const SELECT_FOUND: &str = concat!(
    "select ",
    message_columns!(),
    ", s.session_id, s.session_name from unnest($1::smallint[], $2::uuid[]) w(bucket, message_id)
        cross join lateral (select m.* from messages m where m.bucket = w.bucket and m.message_id = w.message_id
            and m.deleted_at is null offset 0) m
        cross join lateral (select s.* from sessions s
            where s.bucket = m.bucket and s.session_id = m.session_id and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4) offset 0) s"
);

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[SELECT_FOUND];

#[async_trait]
impl SearchStore for PostgresStore {
    async fn search_text(
        &self,
        scope: &Scope,
        query: &TextQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError> {
        if filter.contradicts(scope) || limit == 0 {
            return Ok(Vec::new());
        }
        let search = TextSearch { scope, query, filter, limit };
        self.pool.read(search, async |db, search| search.read(&db).await).await
    }

    async fn search_vectors(
        &self,
        scope: &Scope,
        query: &VectorQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError> {
        if filter.contradicts(scope) {
            return Ok(Vec::new());
        }
        VectorSearch { scope, query, filter, limit }.run(&self.pool, &self.vector_indexes).await
    }

    async fn get_found_messages(
        &self,
        scope: &Scope,
        message_ids: &[MessageId],
    ) -> Result<Vec<FoundMessage>, StoreError> {
        self.pool.read((scope, message_ids), async |db, input| find_messages(&db, input.0, input.1).await).await
    }

    async fn start_reindex(&self, derived: Derived) -> Result<(), StoreError> {
        self.pool.write(derived, async |db, derived| reindex::start_reindex(&db, *derived).await).await
    }

    async fn reindex_some(&self, derived: Derived) -> Result<Reindexed, StoreError> {
        self.pool.write(derived, async |db, derived| reindex::reindex_some(&db, *derived).await).await
    }

    async fn is_reindexing(&self, derived: Derived) -> Result<bool, StoreError> {
        self.pool.read(derived, async |db, derived| reindex::is_reindexing(&db, *derived).await).await
    }
}

async fn find_messages(db: &Db, scope: &Scope, message_ids: &[MessageId]) -> Result<Vec<FoundMessage>, Failure> {
    let params = params![
        message_ids.iter().map(|id| bucket_value(id.bucket())).collect::<Vec<_>>(),
        message_ids.iter().map(|id| id.uuid()).collect::<Vec<_>>(),
        scope.project_id.uuid(),
        scope.user_id.as_deref(),
    ];
    let found = |row: &Row| {
        let message = message_row(row, row.try_get::<_, Uuid>(16)?.into(), scope.project_id)?;
        Ok((message.message_id, FoundMessage { message, session_name: row.try_get(17)? }))
    };
    let rows = db.query(SELECT_FOUND, params).await?;
    let found = rows.iter().map(found).collect::<Result<HashMap<_, _>, Failure>>()?;
    Ok(message_ids.iter().filter_map(|id| found.get(id).cloned()).collect())
}
