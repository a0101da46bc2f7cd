//! Sessions in PostgreSQL.

mod columns;
mod create;
pub(crate) mod erase;
pub(crate) mod list;
pub(crate) mod metadata;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim};
use chatstore_core::ids::SessionId;
use chatstore_core::messages::NewMessage;
use chatstore_core::page::{Page, PageRequest, SessionPosition};
use chatstore_core::sessions::{
    NewSession, Session, SessionPage, SessionPatch, SessionQuery, SessionSort, SessionStore,
};
use chatstore_core::store::{ExpectedVersion, Quotas, Scope, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::columns::{bucket_value, json_column, time_column, time_column_opt};
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::projects::is_live_project;

pub(crate) use columns::{is_live, session_columns};
use create::Creation;
use metadata::{delete_metadata, insert_metadata};

/// Without effect in a project that is deleted.
macro_rules! insert_session {
    ($otherwise:literal) => {
        concat!(
            "insert into sessions
    (bucket, session_id, project_id, user_id, session_name, is_favorite, metadata, external_id, last_seq, message_count,
     token_count, version, created_at, updated_at, last_message_at, updated_hour, active_hour, deleted_at, forked_from,
     stored_bytes)
    select $1, $2, p.project_id, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20
    from projects p where p.project_id = $3 and ",
            is_live_project!(),
            $otherwise
        )
    };
}
const INSERT_SESSION: &str = insert_session!("");
/// The same, without effect also where another session stands in the way.
const INSERT_SESSION_IF_FREE: &str = insert_session!(" on conflict do nothing");
const SELECT_SESSION: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4)"
);
const LOCK_SESSION: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4)
    for no key update"
);
const UPDATE_SESSION: &str = "update sessions
    set session_name = $3, is_favorite = $4, metadata = $5, version = $6, updated_at = $7, updated_hour = $8
    where bucket = $1 and session_id = $2";
const DELETE_SESSION: &str = "update sessions
    set session_name = '', metadata = '{}', message_count = 0, token_count = token_count * 0, stored_bytes = 0,
        version = $3, updated_at = $4, deleted_at = $4
    where bucket = $1 and session_id = $2";
/// A stretch of the index that holds one user's sessions, as in their list; no more than matter are counted.
const COUNT_SESSIONS_OF_USER: &str = "select count(*) from (
    select 1 from sessions s
    where s.bucket = $1 and (s.project_id, s.user_id) >= ($2, $3) and (s.project_id, s.user_id) <= ($2, $3)
        and s.deleted_at is null
    limit $4) s";
const INSERT_ERASURE: &str = "insert into session_erasures (bucket, session_id, erased_seq) values ($1, $2, 0)";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    INSERT_SESSION,
    INSERT_SESSION_IF_FREE,
    SELECT_SESSION,
    LOCK_SESSION,
    UPDATE_SESSION,
    DELETE_SESSION,
    COUNT_SESSIONS_OF_USER,
    INSERT_ERASURE,
];

#[async_trait]
impl SessionStore for PostgresStore {
    async fn create_session(
        &self,
        scope: &Scope,
        new: NewSession,
        messages: Vec<NewMessage>,
        claim: Option<&Claim>,
    ) -> Result<Answered<Session>, StoreError> {
        let creation = Creation::new(scope, new, messages, claim, self.append_form).await?;
        self.pool.write(creation, async |db, creation| creation.run(&db).await).await
    }

    async fn get_session(&self, scope: &Scope, session_id: SessionId) -> Result<Option<Session>, StoreError> {
        self.pool
            .read((scope, session_id), async |db, input| find_session(&db, SELECT_SESSION, input.0, input.1).await)
            .await
    }

    async fn list_sessions(
        &self,
        scope: &Scope,
        query: &SessionQuery,
        page: &PageRequest<SessionPosition>,
    ) -> Result<SessionPage, StoreError> {
        let list = list::List { scope, query, page };
        let sessions = self.pool.read(list, async |db, list| list.read(&db).await).await?;
        Ok(Page::cut(sessions, page.limit, |session: &Session| session.position(query.sort)))
    }

    async fn update_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        patch: SessionPatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError> {
        self.pool
            .write((scope.clone(), session_id, patch, expected, now), async |db, input| {
                let (scope, session_id, patch, expected, now) = &*input;
                let mut session = lock_session(&db, scope, *session_id).await?;
                expected.check(session.version)?;
                let before = session.metadata.clone();
                if patch.clone().apply(&mut session, *now) {
                    let params = params![
                        bucket_value(session_id.bucket()),
                        session_id.uuid(),
                        session.session_name.as_str(),
                        session.is_favorite,
                        session.metadata.as_str(),
                        session.version,
                        session.updated_at.as_micros(),
                        session.updated_at.hour(),
                    ];
                    db.execute(UPDATE_SESSION, params).await?;
                    if session.metadata != before {
                        delete_metadata(&db, *session_id).await?;
                        insert_metadata(&db, &session).await?;
                    }
                }
                Ok(session)
            })
            .await
    }

    async fn delete_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError> {
        let (pool, eraser) = (self.pool.clone(), self.eraser.waker());
        let input = (scope.clone(), session_id, expected, now);
        // Woken after the commit, also when the caller has gone away.
        let deletion = async move {
            let deleted = pool.write(input, async |db, input| delete(&db, &input).await).await;
            eraser.notify_one();
            deleted
        };
        tokio::spawn(deletion).await.unwrap_or_else(|_| Err(StoreError::internal("a deletion panicked")))
    }
}

async fn delete(
    db: &Db,
    (scope, session_id, expected, now): &(Scope, SessionId, ExpectedVersion, Timestamp),
) -> Result<Session, Failure> {
    let session = lock_session(db, scope, *session_id).await?;
    expected.check(session.version)?;
    bury_session(db, &session, *now).await?;
    Ok(session)
}

/// Deletes a session whose row is held: it is a tombstone from now on, and its messages wait to be erased.
pub(crate) async fn bury_session(db: &Db, session: &Session, now: Timestamp) -> Result<(), Failure> {
    let (bucket, id) = (bucket_value(session.session_id.bucket()), session.session_id.uuid());
    let at = session.updated_at.max(now).as_micros();
    db.execute(DELETE_SESSION, params![bucket, id, session.version.saturating_add(1), at]).await?;
    delete_metadata(db, session.session_id).await?;
    db.execute(INSERT_ERASURE, params![bucket, id]).await?;
    Ok(())
}

/// Refuses a new session of a user who has as many as allowed. Two that come at the same moment do not see each other.
pub(crate) async fn check_session_quota(db: &Db, quotas: &Quotas, session: &Session) -> Result<(), Failure> {
    let (Some(max), Some(user_id)) = (quotas.sessions_per_user, session.user_id.as_deref()) else { return Ok(()) };
    let params = params![
        bucket_value(session.session_id.bucket()),
        session.project_id.uuid(),
        user_id,
        i64::try_from(max).unwrap_or(i64::MAX),
    ];
    let row = db.query_opt(COUNT_SESSIONS_OF_USER, params).await?;
    let count: i64 = row.map_or(Ok(0), |row| row.try_get(0))?;
    Ok(quotas.check_sessions(count.unsigned_abs().saturating_add(1))?)
}

async fn find_session(db: &Db, sql: &str, scope: &Scope, session_id: SessionId) -> Result<Option<Session>, Failure> {
    let params = params![
        bucket_value(session_id.bucket()),
        session_id.uuid(),
        scope.project_id.uuid(),
        scope.user_id.as_deref()
    ];
    db.query_opt(sql, params).await?.as_ref().map(session_row).transpose()
}

/// The live session of this id inside the scope, locked until the transaction ends.
async fn lock_session(db: &Db, scope: &Scope, session_id: SessionId) -> Result<Session, Failure> {
    Ok(find_session(db, LOCK_SESSION, scope, session_id).await?.ok_or(StoreError::NotFound)?)
}

/// Stores a session as it is, whose messages hold `stored_bytes`.
async fn insert_session(db: &Db, session: &Session, stored_bytes: i64) -> Result<(), Failure> {
    match insert_row(db, INSERT_SESSION, session, stored_bytes).await? {
        true => Ok(()),
        false => Err(StoreError::NotFound.into()),
    }
}

/// Stores a session without messages as it is, unless its id or external id is taken or its project is deleted; tells whether it did.
pub(crate) async fn insert_session_if_free(db: &Db, session: &Session) -> Result<bool, Failure> {
    insert_row(db, INSERT_SESSION_IF_FREE, session, 0).await
}

async fn insert_row(db: &Db, sql: &str, session: &Session, stored_bytes: i64) -> Result<bool, Failure> {
    require_home(session)?;
    let params = params![
        bucket_value(session.session_id.bucket()),
        session.session_id.uuid(),
        session.project_id.uuid(),
        session.user_id.as_deref(),
        session.session_name.as_str(),
        session.is_favorite,
        session.metadata.as_str(),
        session.external_id.as_deref(),
        session.last_seq,
        session.message_count,
        session.token_count,
        session.version,
        session.created_at.as_micros(),
        session.updated_at.as_micros(),
        session.last_message_at.map(Timestamp::as_micros),
        session.updated_at.hour(),
        session.sorted_by(SessionSort::LastMessageAt).hour(),
        session.deleted_at.map(Timestamp::as_micros),
        session.forked_from.map(SessionId::uuid),
        stored_bytes,
    ];
    if db.execute(sql, params).await? == 0 {
        return Ok(false);
    }
    if session.deleted_at.is_none() {
        insert_metadata(db, session).await?;
    }
    Ok(true)
}

/// A session outside its owner's bucket would be missing from the owner's lists, and one outside
/// that of its external id would not keep another from taking it.
fn require_home(session: &Session) -> Result<(), StoreError> {
    let own = session.session_id.bucket();
    let (user_id, external_id) = (session.user_id.as_deref(), session.external_id.as_deref());
    let home = Scope::project(session.project_id).bucket(user_id, external_id, own.bits().to_be_bytes());
    match home == own {
        true => Ok(()),
        false => Err(StoreError::internal("the id of a session is not in the bucket of its owner")),
    }
}

/// Reads a row of `session_columns!`.
pub(crate) fn session_row(row: &Row) -> Result<Session, Failure> {
    Ok(Session {
        session_id: row.try_get::<_, Uuid>(0)?.into(),
        project_id: row.try_get::<_, Uuid>(1)?.into(),
        user_id: row.try_get(2)?,
        session_name: row.try_get(3)?,
        is_favorite: row.try_get(4)?,
        metadata: json_column(row, 5)?,
        external_id: row.try_get(6)?,
        last_seq: row.try_get(7)?,
        message_count: row.try_get(8)?,
        token_count: row.try_get(9)?,
        version: row.try_get(10)?,
        created_at: time_column(row, 11)?,
        updated_at: time_column(row, 12)?,
        last_message_at: time_column_opt(row, 13)?,
        deleted_at: time_column_opt(row, 14)?,
        forked_from: row.try_get::<_, Option<Uuid>>(15)?.map(SessionId::from),
    })
}
