//! Search in SQLite.

mod cache;
mod candidates;
pub(crate) mod index;
mod nearness;
pub(crate) mod reindex;
pub(crate) mod text;
mod vectors;

use async_trait::async_trait;
use chatstore_core::embeddings::VectorQuery;
use chatstore_core::ids::MessageId;
use chatstore_core::search::{Derived, FoundMessage, RankedMessage, Reindexed, SearchFilter, SearchStore, TextQuery};
use chatstore_core::store::{Scope, StoreError};
use rusqlite::{Row, params};

use crate::SqliteStore;
use crate::messages::{message_columns, owned_message_row};
use crate::reader::Reader;
use crate::writer::{Failure, Kind};

pub(crate) use cache::VectorCache;

const SELECT_FOUND: &str = concat!(
    "select ",
    message_columns!(),
    ", s.session_id, s.project_id, s.session_name from messages m join sessions s on s.session_no = m.message_no >> 32
    where m.message_id = ?1 and s.project_id = ?2 and m.deleted_at is null and s.deleted_at is null
        and (?3 is null or s.user_id = ?3)"
);

#[cfg(test)]
pub(crate) fn statements() -> Vec<&'static str> {
    [
        &[SELECT_FOUND],
        candidates::STATEMENTS,
        index::STATEMENTS,
        reindex::STATEMENTS,
        text::STATEMENTS,
        vectors::STATEMENTS,
    ]
    .concat()
}

#[async_trait]
impl SearchStore for SqliteStore {
    async fn search_text(
        &self,
        scope: &Scope,
        query: &TextQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError> {
        let (scope, query, filter) = (scope.clone(), query.clone(), filter.clone());
        self.readers.read(move |reader| reader.snapshot(|| text::search(reader, &scope, &query, &filter, limit))).await
    }

    async fn search_vectors(
        &self,
        scope: &Scope,
        query: &VectorQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError> {
        let (scope, query, filter, cache) = (scope.clone(), query.clone(), filter.clone(), self.vectors.clone());
        self.readers
            .read(move |reader| reader.snapshot(|| vectors::search(reader, &cache, &scope, &query, &filter, limit)))
            .await
    }

    async fn get_found_messages(
        &self,
        scope: &Scope,
        message_ids: &[MessageId],
    ) -> Result<Vec<FoundMessage>, StoreError> {
        let (scope, message_ids) = (scope.clone(), message_ids.to_vec());
        self.readers.read(move |reader| reader.snapshot(|| get_found(reader, &scope, &message_ids))).await
    }

    async fn start_reindex(&self, derived: Derived) -> Result<(), StoreError> {
        self.writer.write(Kind::Plain, 0, move |connection| Ok(reindex::start_reindex(connection, derived)?)).await
    }

    async fn reindex_some(&self, derived: Derived) -> Result<Reindexed, StoreError> {
        // Asked every so often, it is mostly not there to be done: that costs no transaction.
        if !self.is_reindexing(derived).await? {
            return Ok(Reindexed::default());
        }
        self.writer.write(Kind::Plain, 0, move |connection| reindex::reindex_some(connection, derived)).await
    }

    async fn is_reindexing(&self, derived: Derived) -> Result<bool, StoreError> {
        self.readers
            .read(move |reader| {
                let position = |row: &Row<'_>| row.get::<_, i64>(0);
                let position = reader.query_row(reindex::SELECT_REINDEX, params![derived.as_str()], position)?;
                Ok(position.is_some())
            })
            .await
    }
}

fn get_found(reader: &Reader, scope: &Scope, message_ids: &[MessageId]) -> Result<Vec<FoundMessage>, Failure> {
    let mut found = Vec::with_capacity(message_ids.len());
    for message_id in message_ids {
        let params = params![message_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
        let map = |row: &Row<'_>| Ok(FoundMessage { message: owned_message_row(row)?, session_name: row.get(18)? });
        if let Some(message) = reader.query_row(SELECT_FOUND, params, map)? {
            reader.spend(message.message.bytes())?;
            found.push(message);
        }
    }
    Ok(found)
}
