//! API keys in SQLite.

use async_trait::async_trait;
use chatstore_core::api_keys::{ApiKey, ApiKeyPatch, ApiKeyStore, Authority, KeyDigest, KeyScopes, KeySettings};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::page::{KeyPosition, Page, PageRequest};
use chatstore_core::projects::Project;
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

    async fn get_api_key(&self, _key_id: &str) -> Result<Option<(ApiKey, Project)>, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn list_api_keys(
        &self,
        _project_id: Option<ProjectId>,
        _page: &PageRequest<KeyPosition>,
    ) -> Result<Page<(ApiKey, String), KeyPosition>, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn list_credential_ids(&self) -> Result<Vec<String>, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn update_api_key(
        &self,
        _authority: &Authority,
        _key_id: &str,
        _patch: ApiKeyPatch,
        _now: Timestamp,
    ) -> Result<ApiKey, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn rotate_api_key(
        &self,
        _authority: &Authority,
        _key_id: &str,
        _digest: KeyDigest,
        _previous_expires_at: Timestamp,
        _now: Timestamp,
    ) -> Result<ApiKey, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn revoke_api_key(
        &self,
        _authority: &Authority,
        _key_id: &str,
        _now: Timestamp,
    ) -> Result<ApiKey, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn note_api_key_uses(&self, _uses: Vec<(String, Timestamp)>) -> Result<(), StoreError> {
        Err(StoreError::internal("to be built"))
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
        previous: None,
        settings: KeySettings::default(),
        updated_at: time_column(row, 6)?,
        last_used_at: None,
    })
}
