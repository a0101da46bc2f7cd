//! API keys in SQLite.

use async_trait::async_trait;
use chatstore_core::api_keys::{ApiKey, ApiKeyStore, KeyDigest, KeyScopes};
use chatstore_core::clock::Timestamp;
use chatstore_core::store::StoreError;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::SqliteStore;
use crate::columns::{id_column, time_column, time_column_opt};
use crate::writer::Kind;

const INSERT_API_KEY: &str = "insert into api_keys
    (key_id, project_id, name, digest, scopes, user_id, created_at, expires_at, revoked_at)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const ANY_API_KEY: &str = "select exists (select 1 from api_keys)";
const SELECT_API_KEY: &str =
    "select key_id, project_id, name, digest, scopes, user_id, created_at, expires_at, revoked_at
    from api_keys where key_id = ?1";
const LIST_API_KEYS: &str = "select k.key_id, k.project_id, k.name, k.digest, k.scopes, k.user_id, k.created_at,
        k.expires_at, k.revoked_at, p.name
    from api_keys k join projects p on p.project_id = k.project_id order by k.created_at, k.key_id";
const REVOKE_API_KEY: &str = "update api_keys set revoked_at = ?2 where key_id = ?1 and revoked_at is null";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[INSERT_API_KEY, ANY_API_KEY, SELECT_API_KEY, LIST_API_KEYS, REVOKE_API_KEY];

#[async_trait]
impl ApiKeyStore for SqliteStore {
    async fn create_api_key(&self, key: ApiKey) -> Result<(), StoreError> {
        self.writer.write(Kind::Plain, key.name.len(), move |connection| Ok(insert(connection, &key)?)).await
    }

    async fn create_first_api_key(&self, key: ApiKey) -> Result<bool, StoreError> {
        self.writer
            .write(Kind::Plain, key.name.len(), move |connection| {
                let any: bool = connection.prepare_cached(ANY_API_KEY)?.query_row((), |row| row.get(0))?;
                if !any {
                    insert(connection, &key)?;
                }
                Ok(!any)
            })
            .await
    }

    async fn get_api_key(&self, key_id: &str) -> Result<Option<ApiKey>, StoreError> {
        let key_id = key_id.to_owned();
        self.readers.read(move |reader| reader.query_row(SELECT_API_KEY, params![key_id], api_key_row)).await
    }

    async fn list_api_keys(&self) -> Result<Vec<(ApiKey, String)>, StoreError> {
        let named = |row: &Row<'_>| Ok((api_key_row(row)?, row.get(9)?));
        self.readers.read(move |reader| reader.query(LIST_API_KEYS, (), named, |_| 256)).await
    }

    async fn revoke_api_key(&self, key_id: &str, now: Timestamp) -> Result<ApiKey, StoreError> {
        let key_id = key_id.to_owned();
        self.writer
            .write(Kind::Plain, 64, move |connection| {
                connection.prepare_cached(REVOKE_API_KEY)?.execute(params![key_id, now.as_micros()])?;
                let key =
                    connection.prepare_cached(SELECT_API_KEY)?.query_row(params![key_id], api_key_row).optional()?;
                Ok(key.ok_or(StoreError::NotFound)?)
            })
            .await
    }
}

fn insert(connection: &Connection, key: &ApiKey) -> rusqlite::Result<()> {
    let inserted = connection.prepare_cached(INSERT_API_KEY)?.execute(params![
        key.key_id,
        key.project_id.as_bytes(),
        key.name,
        key.digest.as_bytes(),
        key.scopes.to_string(),
        key.user_id,
        key.created_at.as_micros(),
        key.expires_at.map(Timestamp::as_micros),
        key.revoked_at.map(Timestamp::as_micros),
    ]);
    inserted.map(drop)
}

fn api_key_row(row: &Row<'_>) -> rusqlite::Result<ApiKey> {
    Ok(ApiKey {
        key_id: row.get(0)?,
        project_id: id_column(row, 1)?.into(),
        name: row.get(2)?,
        digest: KeyDigest::from_bytes(row.get(3)?),
        scopes: KeyScopes::parse_known(row.get_ref(4)?.as_str()?),
        user_id: row.get(5)?,
        created_at: time_column(row, 6)?,
        expires_at: time_column_opt(row, 7)?,
        revoked_at: time_column_opt(row, 8)?,
    })
}
