//! API keys in SQLite.

mod list;

use async_trait::async_trait;
use chatstore_core::api_keys::{
    ApiKey, ApiKeyPatch, ApiKeyStore, Authority, KeyDigest, KeyScopes, KeySettings, PreviousDigest,
};
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim, Places};
use chatstore_core::ids::ProjectId;
use chatstore_core::page::{KeyPosition, Page, PageRequest};
use chatstore_core::projects::Project;
use chatstore_core::store::StoreError;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};

use crate::SqliteStore;
use crate::columns::{id_column, settings_column, time_column, time_column_opt};
use crate::idempotency::{find_record, insert_record};
use crate::projects::{project_columns, project_row};
use crate::writer::{Failure, Kind, WriteConnection};

/// The columns of [`api_key_row`], in its order; `concat!` needs a literal, so it is a macro.
macro_rules! api_key_columns {
    () => {
        "k.key_id, k.project_id, k.name, k.digest, k.previous_digest, k.previous_expires_at, k.scopes, k.user_id, \
         k.settings, k.created_at, k.updated_at, k.expires_at, k.revoked_at, k.last_used_at"
    };
}
use api_key_columns;
/// How many they are.
const API_KEY_COLUMNS: usize = 14;

const INSERT_API_KEY: &str = "insert into api_keys
    (key_id, project_id, name, digest, previous_digest, previous_expires_at, scopes, user_id, settings, created_at,
     updated_at, expires_at, revoked_at, last_used_at)
    select ?1, p.project_id, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14
    from projects p where p.project_id = ?2 and p.deleted_at is null";
const ANY_API_KEY: &str = "select exists (select 1 from api_keys)";
const SELECT_API_KEY: &str = concat!(
    "select ",
    api_key_columns!(),
    ", ",
    project_columns!(),
    " from api_keys k cross join projects p on p.project_id = k.project_id
    where k.key_id = ?1 and p.deleted_at is null"
);
/// Deleting a project revokes its keys.
const LIST_CREDENTIAL_IDS: &str = "select key_id, null from api_keys where revoked_at is null
    union all select null, project_id from projects where deleted_at is null";
const UPDATE_API_KEY: &str = "update api_keys
    set name = ?2, scopes = ?3, expires_at = ?4, settings = ?5, updated_at = ?6 where key_id = ?1";
const ROTATE_API_KEY: &str = "update api_keys
    set digest = ?2, previous_digest = ?3, previous_expires_at = ?4, updated_at = ?5 where key_id = ?1";
const REVOKE_API_KEY: &str = "update api_keys set revoked_at = ?2, updated_at = ?3 where key_id = ?1";
const NOTE_API_KEY_USE: &str =
    "update api_keys set last_used_at = max(coalesce(last_used_at, ?2), ?2) where key_id = ?1";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[INSERT_API_KEY, SELECT_API_KEY, UPDATE_API_KEY, ROTATE_API_KEY, REVOKE_API_KEY, NOTE_API_KEY_USE];
/// The whole of the table is asked for, or any row of it.
#[cfg(test)]
pub(crate) const WALKING_STATEMENTS: &[&str] = &[ANY_API_KEY, LIST_CREDENTIAL_IDS];

#[async_trait]
impl ApiKeyStore for SqliteStore {
    async fn create_api_key(&self, key: ApiKey, claim: Option<&Claim>) -> Result<Answered<ApiKey>, StoreError> {
        let claim = claim.cloned();
        self.writer
            .write(Kind::Plain, bytes(&key), move |connection| {
                if let Some(record) = find_record(connection, claim.as_ref())? {
                    let earlier = select(connection, &record.target)?;
                    return Ok(Answered::replay(earlier.ok_or(StoreError::Gone)?));
                }
                insert(connection, &key)?;
                if let Some(claim) = claim {
                    insert_record(connection, &claim.record(key.key_id.as_str(), Places::default()))?;
                }
                Ok(Answered::first(key))
            })
            .await
    }

    async fn create_first_api_key(&self, key: ApiKey) -> Result<bool, StoreError> {
        self.writer
            .write(Kind::Plain, bytes(&key), move |connection| {
                let any: bool = connection.prepare_cached(ANY_API_KEY)?.query_row((), |row| row.get(0))?;
                if !any {
                    insert(connection, &key)?;
                }
                Ok(!any)
            })
            .await
    }

    async fn get_api_key(&self, key_id: &str) -> Result<Option<(ApiKey, Project)>, StoreError> {
        let key_id = key_id.to_owned();
        let map = |row: &Row<'_>| Ok((api_key_row(row)?, project_row(row, API_KEY_COLUMNS)?));
        self.readers.read(move |reader| reader.query_row(SELECT_API_KEY, params![key_id], map)).await
    }

    async fn list_api_keys(
        &self,
        project_id: Option<ProjectId>,
        page: &PageRequest<KeyPosition>,
    ) -> Result<Page<(ApiKey, String), KeyPosition>, StoreError> {
        let page = page.clone();
        self.readers
            .read(move |reader| {
                let (sql, values) = list::list_statement(project_id, &page);
                let map = |row: &Row<'_>| Ok((api_key_row(row)?, row.get(API_KEY_COLUMNS)?));
                let keys = reader.query(&sql, params_from_iter(&values), map, |(key, _)| bytes(key))?;
                let position = |(key, _): &(ApiKey, String)| KeyPosition {
                    created_at: key.created_at,
                    key_id: key.key_id.clone(),
                };
                Ok(Page::cut(keys, page.limit, position))
            })
            .await
    }

    async fn list_credential_ids(&self) -> Result<Vec<String>, StoreError> {
        let map = |row: &Row<'_>| match row.get(0)? {
            Some(key_id) => Ok(key_id),
            None => Ok(ProjectId::from(id_column(row, 1)?).to_string()),
        };
        self.readers.read(move |reader| reader.query(LIST_CREDENTIAL_IDS, (), map, String::len)).await
    }

    async fn update_api_key(
        &self,
        authority: &Authority,
        key_id: &str,
        patch: ApiKeyPatch,
        now: Timestamp,
    ) -> Result<ApiKey, StoreError> {
        let (authority, key_id) = (*authority, key_id.to_owned());
        self.writer
            .write(Kind::Plain, 0, move |connection| {
                let mut key = find_managed(connection, &authority, &key_id)?;
                patch.apply(&mut key, now);
                authority.check(&key)?;
                connection.prepare_cached(UPDATE_API_KEY)?.execute(params![
                    key_id,
                    key.name,
                    key.scopes.to_string(),
                    key.expires_at.map(Timestamp::as_micros),
                    key.settings.to_text(),
                    key.updated_at.as_micros(),
                ])?;
                Ok(key)
            })
            .await
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
        let (authority, key_id, claim) = (*authority, key_id.to_owned(), claim.cloned());
        self.writer
            .write(Kind::Plain, 0, move |connection| {
                let mut key = find_managed(connection, &authority, &key_id)?;
                if find_record(connection, claim.as_ref())?.is_some() {
                    return Ok(Answered::replay(key));
                }
                if key.revoked_at.is_some() {
                    return Err(StoreError::Conflict { field: "revoked_at" }.into());
                }
                key.rotate(digest, previous_expires_at, now);
                connection.prepare_cached(ROTATE_API_KEY)?.execute(params![
                    key_id,
                    key.digest.as_bytes(),
                    key.previous.as_ref().map(|previous| previous.digest.as_bytes()),
                    key.previous.map(|previous| previous.expires_at.as_micros()),
                    key.updated_at.as_micros(),
                ])?;
                if let Some(claim) = claim {
                    insert_record(connection, &claim.record(key_id, Places::default()))?;
                }
                Ok(Answered::first(key))
            })
            .await
    }

    async fn revoke_api_key(&self, authority: &Authority, key_id: &str, now: Timestamp) -> Result<ApiKey, StoreError> {
        let (authority, key_id) = (*authority, key_id.to_owned());
        self.writer
            .write(Kind::Plain, 0, move |connection| {
                let mut key = find_managed(connection, &authority, &key_id)?;
                if key.revoked_at.is_none() {
                    key.revoked_at = Some(now);
                    key.updated_at = key.updated_at.max(now);
                    let params = params![key_id, now.as_micros(), key.updated_at.as_micros()];
                    connection.prepare_cached(REVOKE_API_KEY)?.execute(params)?;
                }
                Ok(key)
            })
            .await
    }

    async fn note_api_key_uses(&self, uses: Vec<(String, Timestamp)>) -> Result<(), StoreError> {
        self.writer
            .write(Kind::Plain, 0, move |connection| {
                let mut statement = connection.prepare_cached(NOTE_API_KEY_USE)?;
                for (key_id, at) in uses {
                    statement.execute(params![key_id, at.as_micros()])?;
                }
                Ok(())
            })
            .await
    }
}

/// Roughly how many bytes it takes.
fn bytes(key: &ApiKey) -> usize {
    let KeySettings { allowed_origins, allowed_addresses, .. } = &key.settings;
    512 + key.name.len() + allowed_origins.iter().chain(allowed_addresses).map(String::len).sum::<usize>()
}

fn insert(connection: &Connection, key: &ApiKey) -> Result<(), Failure> {
    let inserted = connection.prepare_cached(INSERT_API_KEY)?.execute(params![
        key.key_id,
        key.project_id.as_bytes(),
        key.name,
        key.digest.as_bytes(),
        key.previous.as_ref().map(|previous| previous.digest.as_bytes()),
        key.previous.map(|previous| previous.expires_at.as_micros()),
        key.scopes.to_string(),
        key.user_id,
        key.settings.to_text(),
        key.created_at.as_micros(),
        key.updated_at.as_micros(),
        key.expires_at.map(Timestamp::as_micros),
        key.revoked_at.map(Timestamp::as_micros),
        key.last_used_at.map(Timestamp::as_micros),
    ])?;
    if inserted == 0 { Err(StoreError::NotFound.into()) } else { Ok(()) }
}

fn select(connection: &WriteConnection, key_id: &str) -> rusqlite::Result<Option<ApiKey>> {
    connection.prepare_cached(SELECT_API_KEY)?.query_row(params![key_id], api_key_row).optional()
}

/// The key of this id, if `authority` may change it.
fn find_managed(connection: &WriteConnection, authority: &Authority, key_id: &str) -> Result<ApiKey, Failure> {
    let key = select(connection, key_id)?.ok_or(StoreError::NotFound)?;
    authority.check(&key)?;
    Ok(key)
}

/// Reads a row of `api_key_columns!`.
fn api_key_row(row: &Row<'_>) -> rusqlite::Result<ApiKey> {
    let previous = row.get::<_, Option<[u8; 32]>>(4)?.zip(time_column_opt(row, 5)?);
    Ok(ApiKey {
        key_id: row.get(0)?,
        project_id: id_column(row, 1)?.into(),
        name: row.get(2)?,
        digest: KeyDigest::from_bytes(row.get(3)?),
        previous: previous
            .map(|(digest, expires_at)| PreviousDigest { digest: KeyDigest::from_bytes(digest), expires_at }),
        scopes: KeyScopes::parse_known(row.get_ref(6)?.as_str()?),
        user_id: row.get(7)?,
        settings: settings_column(row, 8, KeySettings::parse)?,
        created_at: time_column(row, 9)?,
        updated_at: time_column(row, 10)?,
        expires_at: time_column_opt(row, 11)?,
        revoked_at: time_column_opt(row, 12)?,
        last_used_at: time_column_opt(row, 13)?,
    })
}
