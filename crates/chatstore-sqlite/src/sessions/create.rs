//! Creating: a session with its first messages, in the writer's transaction.

use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim, IdempotencyRecord, Places};
use chatstore_core::ids::SessionId;
use chatstore_core::sessions::{NewSession, Session, SessionSort};
use chatstore_core::store::{Quotas, Scope, StoreError};
use rusqlite::{Connection, params};

use super::{find_session, insert_metadata};
use crate::columns::count_column;
use crate::idempotency::{find_record, insert_record};
use crate::messages::append::{Arriving, Counters, fill};
use crate::writer::{Failure, WriteConnection};

/// Nothing is stored in a project that is deleted: nobody would erase it.
pub(super) const INSERT_SESSION: &str = "insert into sessions
    (session_id, project_id, user_id, session_name, is_favorite, metadata, external_id, last_seq, message_count,
     token_count, version, created_at, updated_at, last_message_at, updated_hour, active_hour, deleted_at, forked_from)
    select ?1, p.project_id, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18
    from projects p where p.project_id = ?2 and p.deleted_at is null";
pub(super) const COUNT_SESSIONS_OF_USER: &str = "select count(*) from (
    select 1 from sessions where project_id = ?1 and user_id = ?2 and deleted_at is null limit ?3)";

/// Stores a session and its first messages, unless an earlier request of this claim has.
pub(super) fn create(
    connection: &WriteConnection,
    scope: &Scope,
    new: NewSession,
    first: Arriving,
    claim: Option<&Claim>,
) -> Result<Answered<Session>, Failure> {
    if let Some(record) = find_record(connection, claim)? {
        let earlier =
            NewSession { session_id: live_target(connection, scope, &record)?, created_at: record.created_at, ..new };
        return Ok(Answered::replay(earlier.with_messages(scope.project_id, first.messages())));
    }
    let session = new.clone().with_messages(scope.project_id, first.messages());
    let empty = new.into_session(scope.project_id);
    let session_no = insert_session(connection, &scope.quotas, &empty)?;
    fill(connection, scope, session.session_id, Counters::of(session_no, &empty), first)?;
    if let Some(claim) = claim {
        insert_record(connection, &claim.record(session.session_id.to_string(), Places::default()))?;
    }
    Ok(Answered::first(session))
}

/// The session that a record names, if it is not deleted.
fn live_target(connection: &Connection, scope: &Scope, record: &IdempotencyRecord) -> Result<SessionId, Failure> {
    let session_id =
        SessionId::parse(&record.target).ok_or_else(|| StoreError::internal("a record names no session"))?;
    match find_session(connection, scope, session_id) {
        Err(Failure::Answer(StoreError::NotFound)) => Err(StoreError::Gone.into()),
        found => found.map(|_| session_id),
    }
}

/// Stores a session as it is and returns its number.
pub(crate) fn insert_session(connection: &Connection, quotas: &Quotas, session: &Session) -> Result<i64, Failure> {
    let inserted = connection.prepare_cached(INSERT_SESSION)?.execute(params![
        session.session_id.as_bytes(),
        session.project_id.as_bytes(),
        session.user_id,
        session.session_name,
        session.is_favorite,
        session.metadata.as_str(),
        session.external_id,
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
        session.forked_from.as_ref().map(SessionId::as_bytes),
    ])?;
    if inserted == 0 {
        return Err(StoreError::NotFound.into());
    }
    let session_no = connection.last_insert_rowid();
    if session.deleted_at.is_none() {
        check_quota(connection, quotas, session)?;
        insert_metadata(connection, session_no, session)?;
    }
    Ok(session_no)
}

/// Refuses a session, stored just now, that is one too many for its user.
fn check_quota(connection: &Connection, quotas: &Quotas, session: &Session) -> Result<(), Failure> {
    let (Some(max), Some(user_id)) = (quotas.sessions_per_user, &session.user_id) else {
        return Ok(());
    };
    // One too many is enough to be counted.
    let enough = i64::try_from(max.saturating_add(1)).unwrap_or(i64::MAX);
    let params = params![session.project_id.as_bytes(), user_id, enough];
    let count = connection.prepare_cached(COUNT_SESSIONS_OF_USER)?.query_row(params, |row| count_column(row, 0))?;
    Ok(quotas.check_sessions(count)?)
}
