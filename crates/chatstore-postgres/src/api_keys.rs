//! API keys in PostgreSQL.

use std::collections::BTreeMap;

use async_trait::async_trait;
use chatstore_core::api_keys::{
    ApiKey, ApiKeyPatch, ApiKeyStore, Authority, KeyDigest, KeyScopes, KeySettings, PreviousDigest,
};
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim};
use chatstore_core::ids::ProjectId;
use chatstore_core::page::{KeyPosition, Page, PageRequest, PageStart};
use chatstore_core::projects::Project;
use chatstore_core::store::StoreError;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::columns::{time_column, time_column_opt};
use crate::idempotency::claim_first;
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::projects::{is_live_project, keep_project, project_columns, project_row};

/// The columns of [`api_key_row`], in its order; `concat!` needs a literal, so it is a macro.
macro_rules! api_key_columns {
    () => {
        "k.key_id, k.project_id, k.name, k.digest, k.previous_digest, k.previous_expires_at, k.scopes, k.user_id, \
         k.settings, k.created_at, k.updated_at, k.expires_at, k.revoked_at, k.last_used_at"
    };
}
/// How many they are.
const API_KEY_COLUMNS: usize = 14;
/// A key and its project, if that is not deleted. `offset 0` keeps the planner at the keys: it thinks that hardly any
/// project is not deleted.
macro_rules! from_api_keys {
    () => {
        concat!(
            " from api_keys k cross join lateral (
        select p.* from projects p where p.project_id = k.project_id and ",
            is_live_project!(),
            " offset 0) p"
        )
    };
}

const INSERT_API_KEY: &str = "insert into api_keys
    (key_id, project_id, name, digest, previous_digest, previous_expires_at, scopes, user_id, settings, created_at,
     updated_at, expires_at, revoked_at, last_used_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
/// Held by whoever asks whether there is any key, so that of several one finds none.
const LOCK_DEFAULT_PROJECT: &str = "select 1 from projects where project_id = $1 for no key update";
const ANY_API_KEY: &str = "select exists (select 1 from api_keys)";
const SELECT_API_KEY: &str =
    concat!("select ", api_key_columns!(), ", ", project_columns!(), from_api_keys!(), " where k.key_id = $1");
const LOCK_API_KEY: &str =
    concat!("select ", api_key_columns!(), from_api_keys!(), " where k.key_id = $1 for no key update of k");
macro_rules! list_api_keys {
    ($of_project:literal) => {
        concat!(
            "select ",
            api_key_columns!(),
            ", p.name",
            from_api_keys!(),
            "
    where (k.created_at, k.key_id) > ($1, $2)",
            $of_project,
            " order by k.created_at, k.key_id limit $3 offset $4"
        )
    };
}
pub(crate) const LIST_API_KEYS: &str = list_api_keys!("");
pub(crate) const LIST_API_KEYS_OF_PROJECT: &str = list_api_keys!(" and k.project_id = $5");
/// Keys of deleted projects are revoked.
const LIST_CREDENTIAL_IDS: &str = concat!(
    "select k.key_id from api_keys k where k.revoked_at is null
    union all select p.project_id::text from projects p where ",
    is_live_project!()
);
const UPDATE_API_KEY: &str = "update api_keys
    set name = $2, scopes = $3, expires_at = $4, settings = $5, updated_at = $6 where key_id = $1";
const ROTATE_API_KEY: &str = "update api_keys
    set digest = $2, previous_digest = $3, previous_expires_at = $4, updated_at = $5 where key_id = $1";
const REVOKE_API_KEY: &str = "update api_keys set revoked_at = $2, updated_at = $3 where key_id = $1";
/// The rows are taken in the order of their ids, so that replicas never wait for each other in a circle. Those that
/// were used later still are left alone.
const NOTE_API_KEY_USES: &str = "with used as (
        select k.key_id, u.used_at from unnest($1::text[], $2::bigint[]) u(key_id, used_at) cross join lateral (
            select k.key_id from api_keys k where k.key_id = u.key_id and coalesce(k.last_used_at < u.used_at, true)
            for no key update) k)
    update api_keys k set last_used_at = greatest(k.last_used_at, u.used_at) from used u where k.key_id = u.key_id";
const SELECT_LIVE_KEYS_OF_PROJECT: &str = "select key_id from api_keys where project_id = $1 and revoked_at is null";
/// In the order in which uses are noted.
const REVOKE_API_KEYS: &str = "with held as (
        select k.key_id from unnest($1::text[]) u(key_id) cross join lateral (
            select k.key_id from api_keys k where k.key_id = u.key_id for no key update) k)
    update api_keys k set revoked_at = coalesce(k.revoked_at, $2), updated_at = greatest(k.updated_at, $2)
    from held h where k.key_id = h.key_id";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    INSERT_API_KEY,
    LOCK_DEFAULT_PROJECT,
    ANY_API_KEY,
    SELECT_API_KEY,
    LOCK_API_KEY,
    LIST_API_KEYS,
    LIST_API_KEYS_OF_PROJECT,
    LIST_CREDENTIAL_IDS,
    UPDATE_API_KEY,
    ROTATE_API_KEY,
    REVOKE_API_KEY,
    NOTE_API_KEY_USES,
    SELECT_LIVE_KEYS_OF_PROJECT,
    REVOKE_API_KEYS,
];

#[async_trait]
impl ApiKeyStore for PostgresStore {
    async fn create_api_key(&self, key: ApiKey, claim: Option<&Claim>) -> Result<Answered<ApiKey>, StoreError> {
        self.pool
            .write((key, claim.cloned()), async |db, input| {
                let (key, claim) = &*input;
                if let Some(record) = claim_first(&db, claim.as_ref(), key.key_id.as_str()).await? {
                    return Ok(Answered::replay(find(&db, &record.target).await?.ok_or(StoreError::Gone)?));
                }
                insert(&db, key).await?;
                Ok(Answered::first(key.clone()))
            })
            .await
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

    async fn get_api_key(&self, key_id: &str) -> Result<Option<(ApiKey, Project)>, StoreError> {
        self.pool
            .read(key_id, async |db, key_id| {
                let row = db.query_opt(SELECT_API_KEY, params![*key_id]).await?;
                row.map(|row| Ok((api_key_row(&row)?, project_row(&row, API_KEY_COLUMNS)?))).transpose()
            })
            .await
    }

    async fn list_api_keys(
        &self,
        project_id: Option<ProjectId>,
        page: &PageRequest<KeyPosition>,
    ) -> Result<Page<(ApiKey, String), KeyPosition>, StoreError> {
        let keys = self.pool.read((project_id, page), async |db, input| list(&db, input.0, input.1).await).await?;
        let position =
            |(key, _): &(ApiKey, String)| KeyPosition { created_at: key.created_at, key_id: key.key_id.clone() };
        Ok(Page::cut(keys, page.limit, position))
    }

    async fn list_credential_ids(&self) -> Result<Vec<String>, StoreError> {
        self.pool
            .read((), async |db, _| {
                let rows = db.query(LIST_CREDENTIAL_IDS, &[]).await?;
                Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn update_api_key(
        &self,
        authority: &Authority,
        key_id: &str,
        patch: ApiKeyPatch,
        now: Timestamp,
    ) -> Result<ApiKey, StoreError> {
        self.pool
            .write((*authority, key_id.to_owned(), patch, now), async |db, input| {
                let (authority, key_id, patch, now) = &*input;
                let mut key = lock(&db, authority, key_id).await?;
                patch.clone().apply(&mut key, *now);
                authority.check(&key)?;
                let params = params![
                    key_id.as_str(),
                    key.name.as_str(),
                    key.scopes.to_string(),
                    key.expires_at.map(Timestamp::as_micros),
                    key.settings.to_text(),
                    key.updated_at.as_micros(),
                ];
                db.execute(UPDATE_API_KEY, params).await?;
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
        let input = (*authority, key_id.to_owned(), digest, previous_expires_at, now, claim.cloned());
        self.pool
            .write(input, async |db, input| {
                let (authority, key_id, digest, previous_expires_at, now, claim) = &*input;
                if let Some(record) = claim_first(&db, claim.as_ref(), key_id.as_str()).await? {
                    let key = find(&db, &record.target).await?.ok_or(StoreError::NotFound)?;
                    authority.check(&key)?;
                    return Ok(Answered::replay(key));
                }
                let mut key = lock(&db, authority, key_id).await?;
                if key.revoked_at.is_some() {
                    return Err(StoreError::Conflict { field: "revoked_at" }.into());
                }
                key.rotate(*digest, *previous_expires_at, *now);
                let params = params![
                    key_id.as_str(),
                    key.digest.as_bytes().as_slice(),
                    key.previous.as_ref().map(|previous| previous.digest.as_bytes().as_slice()),
                    key.previous.map(|previous| previous.expires_at.as_micros()),
                    key.updated_at.as_micros(),
                ];
                db.execute(ROTATE_API_KEY, params).await?;
                Ok(Answered::first(key))
            })
            .await
    }

    async fn revoke_api_key(&self, authority: &Authority, key_id: &str, now: Timestamp) -> Result<ApiKey, StoreError> {
        self.pool
            .write((*authority, key_id.to_owned(), now), async |db, input| {
                let (authority, key_id, now) = &*input;
                let mut key = lock(&db, authority, key_id).await?;
                if key.revoked_at.is_none() {
                    key.revoked_at = Some(*now);
                    key.updated_at = key.updated_at.max(*now);
                    let params = params![key_id.as_str(), now.as_micros(), key.updated_at.as_micros()];
                    db.execute(REVOKE_API_KEY, params).await?;
                }
                Ok(key)
            })
            .await
    }

    async fn note_api_key_uses(&self, uses: Vec<(String, Timestamp)>) -> Result<(), StoreError> {
        let mut latest: BTreeMap<String, i64> = BTreeMap::new();
        for (key_id, used_at) in uses {
            let noted = latest.entry(key_id).or_insert(i64::MIN);
            *noted = used_at.as_micros().max(*noted);
        }
        if latest.is_empty() {
            return Ok(());
        }
        let uses: (Vec<String>, Vec<i64>) = latest.into_iter().unzip();
        self.pool
            .write(uses, async |db, uses| {
                db.execute(NOTE_API_KEY_USES, params![uses.0, uses.1]).await?;
                Ok(())
            })
            .await
    }
}

/// The key as it is now, unless its project is deleted.
async fn find(db: &Db, key_id: &str) -> Result<Option<ApiKey>, Failure> {
    let row = db.query_opt(SELECT_API_KEY, params![key_id]).await?;
    row.map(|row| api_key_row(&row)).transpose()
}

/// The key, held until the transaction ends, if the authority covers it.
async fn lock(db: &Db, authority: &Authority, key_id: &str) -> Result<ApiKey, Failure> {
    let row = db.query_opt(LOCK_API_KEY, params![key_id]).await?.ok_or(StoreError::NotFound)?;
    let key = api_key_row(&row)?;
    authority.check(&key)?;
    Ok(key)
}

async fn list(
    db: &Db,
    project_id: Option<ProjectId>,
    page: &PageRequest<KeyPosition>,
) -> Result<Vec<(ApiKey, String)>, Failure> {
    let (created_at, key_id, offset) = match &page.start {
        PageStart::Offset(offset) => (i64::MIN, "", i64::try_from(*offset).unwrap_or(i64::MAX)),
        PageStart::After(position) => (position.created_at.as_micros(), position.key_id.as_str(), 0),
    };
    let limit = i64::from(page.limit) + 1;
    let rows = match project_id {
        None => db.query(LIST_API_KEYS, params![created_at, key_id, limit, offset]).await?,
        Some(project_id) => {
            let params = params![created_at, key_id, limit, offset, project_id.uuid()];
            db.query(LIST_API_KEYS_OF_PROJECT, params).await?
        }
    };
    rows.iter().map(|row| Ok((api_key_row(row)?, row.try_get(API_KEY_COLUMNS)?))).collect()
}

async fn insert(db: &Db, key: &ApiKey) -> Result<(), Failure> {
    keep_project(db, key.project_id).await?;
    let params = params![
        key.key_id.as_str(),
        key.project_id.uuid(),
        key.name.as_str(),
        key.digest.as_bytes().as_slice(),
        key.previous.as_ref().map(|previous| previous.digest.as_bytes().as_slice()),
        key.previous.map(|previous| previous.expires_at.as_micros()),
        key.scopes.to_string(),
        key.user_id.as_deref(),
        key.settings.to_text(),
        key.created_at.as_micros(),
        key.updated_at.as_micros(),
        key.expires_at.map(Timestamp::as_micros),
        key.revoked_at.map(Timestamp::as_micros),
        key.last_used_at.map(Timestamp::as_micros),
    ];
    db.execute(INSERT_API_KEY, params).await?;
    Ok(())
}

/// Revokes every key of a project, whose row is held.
pub(crate) async fn revoke_keys_of_project(db: &Db, project_id: ProjectId, now: Timestamp) -> Result<(), Failure> {
    let rows = db.query(SELECT_LIVE_KEYS_OF_PROJECT, params![project_id.uuid()]).await?;
    let mut key_ids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    key_ids.sort_unstable();
    db.execute(REVOKE_API_KEYS, params![key_ids, now.as_micros()]).await?;
    Ok(())
}

/// Reads a row that begins with `api_key_columns!`.
fn api_key_row(row: &Row) -> Result<ApiKey, Failure> {
    let previous = match (row.try_get::<_, Option<&[u8]>>(4)?, time_column_opt(row, 5)?) {
        (Some(digest), Some(expires_at)) => Some(PreviousDigest { digest: read_digest(digest)?, expires_at }),
        _ => None,
    };
    Ok(ApiKey {
        key_id: row.try_get(0)?,
        project_id: row.try_get::<_, Uuid>(1)?.into(),
        name: row.try_get(2)?,
        digest: read_digest(row.try_get(3)?)?,
        previous,
        scopes: KeyScopes::parse_known(row.try_get(6)?),
        user_id: row.try_get(7)?,
        settings: KeySettings::parse(row.try_get(8)?)?,
        created_at: time_column(row, 9)?,
        updated_at: time_column(row, 10)?,
        expires_at: time_column_opt(row, 11)?,
        revoked_at: time_column_opt(row, 12)?,
        last_used_at: time_column_opt(row, 13)?,
    })
}

fn read_digest(bytes: &[u8]) -> Result<KeyDigest, StoreError> {
    let bytes = bytes.try_into().map_err(|_| StoreError::internal("a stored digest has not 32 bytes"))?;
    Ok(KeyDigest::from_bytes(bytes))
}
