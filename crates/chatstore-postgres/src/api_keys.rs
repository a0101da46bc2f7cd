//! API keys in PostgreSQL.

mod cache;

use async_trait::async_trait;
use chatstore_core::api_keys::{ApiKey, ApiKeyPatch, ApiKeyStore, Authority, KeyDigest, KeyScopes, KeySettings};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::page::{KeyPosition, Page, PageRequest};
use chatstore_core::projects::Project;
use chatstore_core::store::StoreError;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::columns::{time_column, time_column_opt};
use crate::params::params;
use crate::pool::{Db, Failure};

pub(crate) use cache::KeyCache;

const INSERT_API_KEY: &str = "insert into api_keys
    (key_id, project_id, name, digest, scopes, user_id, created_at, expires_at, revoked_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
/// Held by whoever asks whether there is any key, so that of several one finds none.
const LOCK_DEFAULT_PROJECT: &str = "select 1 from projects where project_id = $1 for no key update";
const ANY_API_KEY: &str = "select exists (select 1 from api_keys)";
const SELECT_API_KEY: &str =
    "select key_id, project_id, name, digest, scopes, user_id, created_at, expires_at, revoked_at
    from api_keys where key_id = $1";
const LIST_API_KEYS: &str = "select k.key_id, k.project_id, k.name, k.digest, k.scopes, k.user_id, k.created_at,
        k.expires_at, k.revoked_at, p.name
    from api_keys k join projects p on p.project_id = k.project_id order by k.created_at, k.key_id";
const REVOKE_API_KEY: &str = "update api_keys set revoked_at = $2 where key_id = $1 and revoked_at is null";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[INSERT_API_KEY, LOCK_DEFAULT_PROJECT, ANY_API_KEY, SELECT_API_KEY, LIST_API_KEYS, REVOKE_API_KEY];

#[async_trait]
impl ApiKeyStore for PostgresStore {
    async fn create_api_key(&self, key: ApiKey) -> Result<(), StoreError> {
        self.pool.write(key, async |db, key| insert(&db, &key).await).await
    }

    async fn create_first_api_key(&self, key: ApiKey) -> Result<bool, StoreError> {
        self.pool
            .write(key, async |db, key| {
                db.query(LOCK_DEFAULT_PROJECT, params![ProjectId::DEFAULT.uuid()]).await?;
                let row = db.query_opt(ANY_API_KEY, &[]).await?;
                let any = row.map(|row| row.try_get(0)).transpose()?.unwrap_or(true);
                if !any {
                    insert(&db, &key).await?;
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

async fn insert(db: &Db, key: &ApiKey) -> Result<(), Failure> {
    let params = params![
        key.key_id.as_str(),
        key.project_id.uuid(),
        key.name.as_str(),
        key.digest.as_bytes().as_slice(),
        key.scopes.to_string(),
        key.user_id.as_deref(),
        key.created_at.as_micros(),
        key.expires_at.map(Timestamp::as_micros),
        key.revoked_at.map(Timestamp::as_micros),
    ];
    db.execute(INSERT_API_KEY, params).await?;
    Ok(())
}

async fn find(db: &Db, key_id: &str) -> Result<Option<ApiKey>, Failure> {
    db.query_opt(SELECT_API_KEY, params![key_id]).await?.as_ref().map(api_key_row).transpose()
}

fn api_key_row(row: &Row) -> Result<ApiKey, Failure> {
    let digest = <[u8; 32]>::try_from(row.try_get::<_, &[u8]>(3)?);
    Ok(ApiKey {
        key_id: row.try_get(0)?,
        project_id: row.try_get::<_, Uuid>(1)?.into(),
        name: row.try_get(2)?,
        digest: KeyDigest::from_bytes(digest.map_err(|_| StoreError::internal("a stored digest has not 32 bytes"))?),
        scopes: KeyScopes::parse_known(row.try_get(4)?),
        user_id: row.try_get(5)?,
        created_at: time_column(row, 6)?,
        expires_at: time_column_opt(row, 7)?,
        revoked_at: time_column_opt(row, 8)?,
        previous: None,
        settings: KeySettings::default(),
        updated_at: time_column(row, 6)?,
        last_used_at: None,
    })
}
