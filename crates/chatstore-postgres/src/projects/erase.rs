//! Deleting the sessions of deleted projects: a batch in each transaction, by whichever replica comes first.

use chatstore_core::clock::Timestamp;
use chatstore_core::limits::ERASE_SESSIONS_BATCH;
use futures_util::future::try_join_all;
use uuid::Uuid;

use crate::params::params;
use crate::pool::{Db, Failure};
use crate::sessions::{bury_session, session_columns, session_row};

/// One that has sessions, or that needs no more looks. One that another replica is at is passed over.
pub(super) const CLAIM_PROJECT: &str = "select p.project_id, p.deleted_at from projects p
    left join lateral (
        select s.session_id from sessions s where s.project_id = p.project_id and s.deleted_at is null
        order by s.created_at, s.session_id limit 1) s on true
    where p.deleted_at is not null and p.erased_at is null and (p.deleted_at <= $1 or s.session_id is not null)
    order by p.project_id limit 1 for no key update of p skip locked";
pub(super) const LOCK_SESSIONS: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s where s.project_id = $1 and s.deleted_at is null
    order by s.created_at, s.session_id limit $2 for no key update"
);
pub(super) const UPDATE_ERASED: &str = "update projects set erased_at = greatest(deleted_at, $2) where project_id = $1";

/// How long after its deletion sessions may still come into a project: those of transactions that saw it before, which
/// hold no lock on it. No transaction takes longer than `POSTGRES_STATEMENT_TIMEOUT_MS` can be, an hour.
const LATE_US: i64 = 2 * 3_600 * 1_000_000;

/// Deletes a batch of sessions of a deleted project; tells whether more may wait.
pub(super) async fn erase_some(db: &Db, now: Timestamp) -> Result<bool, Failure> {
    let over = now.plus_micros(-LATE_US).as_micros();
    let Some(row) = db.query_opt(CLAIM_PROJECT, params![over]).await? else { return Ok(false) };
    let (project_id, deleted_at): (Uuid, i64) = (row.try_get(0)?, row.try_get(1)?);
    let limit = i64::from(ERASE_SESSIONS_BATCH);
    let rows = db.query(LOCK_SESSIONS, params![project_id, limit]).await?;
    let sessions: Vec<_> = rows.iter().map(session_row).collect::<Result<_, _>>()?;
    if let [first, rest @ ..] = sessions.as_slice() {
        bury_session(db, first, now).await?;
        // Sent one behind the other, without waiting for each answer, now that the statements are prepared.
        try_join_all(rest.iter().map(|session| bury_session(db, session, now))).await?;
    }
    if sessions.len() < ERASE_SESSIONS_BATCH as usize && deleted_at <= over {
        db.execute(UPDATE_ERASED, params![project_id, now.as_micros()]).await?;
    }
    Ok(true)
}
