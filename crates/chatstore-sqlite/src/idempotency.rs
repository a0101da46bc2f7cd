//! Idempotency records in SQLite. The writer does one thing after the other: whoever finds no record is the first, and
//! nobody waits for another.

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Claim, IdempotencyRecord, IdempotencyStore, Places, Recognition};
use chatstore_core::ids::SessionId;
use chatstore_core::limits::PURGE_RECORDS_BATCH;
use chatstore_core::store::StoreError;
use rusqlite::types::Type;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row, params};

use crate::SqliteStore;
use crate::columns::time_column;
use crate::messages::message_no;
use crate::writer::{Failure, Kind};

/// The newest that counts, answers for less than this retry, is older than that place and of that time.
const SELECT_RECORD: &str = "select place, fingerprint, target, places, retry, created_at, expires_at
    from idempotency_records
    where project_id = ?1 and claim_id = ?2 and expires_at > ?3 and retry < ?4 and place < ?5
    order by place desc limit 1";
const SELECT_LIVE_SESSION: &str = "select session_no from sessions where session_id = ?1 and deleted_at is null";
const HAS_LIVE_MESSAGE: &str = "select exists (select 1 from messages where message_no = ?1 and deleted_at is null)";
const UPDATE_RETRY: &str =
    "update idempotency_records set retry = ?4 where project_id = ?1 and claim_id = ?2 and place = ?3";
/// One that has expired is replaced.
const INSERT_RECORD: &str = "insert or replace into idempotency_records
    (project_id, claim_id, place, fingerprint, target, places, retry, created_at, expires_at)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const HAS_EXPIRED: &str = "select exists (select 1 from idempotency_records where expires_at <= ?1)";
const DELETE_EXPIRED: &str = "delete from idempotency_records where record_no in (
    select record_no from idempotency_records where expires_at <= ?1 order by expires_at limit ?2)";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[SELECT_RECORD, SELECT_LIVE_SESSION, HAS_LIVE_MESSAGE, UPDATE_RETRY, INSERT_RECORD, HAS_EXPIRED, DELETE_EXPIRED];

#[async_trait]
impl IdempotencyStore for SqliteStore {
    async fn get_idempotency_record(&self, claim: &Claim) -> Result<Option<IdempotencyRecord>, StoreError> {
        let claim = claim.clone();
        self.readers.read(move |reader| find_standing(|sql| reader.prepare(sql), &claim)).await
    }

    async fn purge_idempotency_records(&self, now: Timestamp) -> Result<bool, StoreError> {
        // The server asks again and again; a look is cheaper than a transaction.
        if !self.exists(HAS_EXPIRED, Some(now.as_micros())).await? {
            return Ok(false);
        }
        self.writer
            .write(Kind::Plain, 0, move |connection| {
                let params = params![now.as_micros(), PURGE_RECORDS_BATCH];
                let deleted = connection.prepare_cached(DELETE_EXPIRED)?.execute(params)?;
                Ok(deleted >= PURGE_RECORDS_BATCH as usize)
            })
            .await
    }
}

/// The record of the request that this one repeats; `None` if it is the first. [`StoreError::KeyReused`] if that request
/// had another body.
pub(crate) fn find_record(
    connection: &Connection,
    claim: Option<&Claim>,
) -> Result<Option<IdempotencyRecord>, Failure> {
    claim.map_or(Ok(None), |claim| find_standing(|sql| connection.prepare_cached(sql), claim))
}

/// The same. Known by its body alone it is the newest of its tries that may answer and of whose messages none is deleted.
fn find_standing<'c>(
    prepare: impl Fn(&'static str) -> rusqlite::Result<CachedStatement<'c>>,
    claim: &Claim,
) -> Result<Option<IdempotencyRecord>, Failure> {
    let mut before = i64::MAX;
    while let Some(record) = find_before(&prepare, claim, before)? {
        if claim.recognition == Recognition::Key || claim.may_repeat(&record) && is_standing(&prepare, &record)? {
            return Ok(Some(record));
        }
        before = record.place;
    }
    Ok(None)
}

/// The newest record that may answer this claim, of those that are older than `place`.
fn find_before<'c>(
    prepare: impl Fn(&'static str) -> rusqlite::Result<CachedStatement<'c>>,
    claim: &Claim,
    place: i64,
) -> Result<Option<IdempotencyRecord>, Failure> {
    let retry = match claim.recognition {
        // However often it comes.
        Recognition::Key => u32::MAX,
        // The request itself repeats nothing.
        Recognition::Body { retry: 0, .. } => return Ok(None),
        Recognition::Body { retry, .. } => retry,
    };
    let Claim { project_id, claim_id, now, .. } = claim;
    let params = params![project_id.as_bytes(), claim_id.as_bytes(), now.as_micros(), retry, place];
    let record = prepare(SELECT_RECORD)?.query_row(params, |row| record_row(row, claim)).optional()?;
    if let Some(record) = &record {
        claim.check(record)?;
    }
    Ok(record)
}

/// Whether nothing at the record's places is deleted.
fn is_standing<'c>(
    prepare: impl Fn(&'static str) -> rusqlite::Result<CachedStatement<'c>>,
    record: &IdempotencyRecord,
) -> Result<bool, Failure> {
    let session_id = SessionId::parse(&record.target).ok_or_else(|| StoreError::internal("a record cannot be read"))?;
    let session_no = prepare(SELECT_LIVE_SESSION)?.query_row([session_id.as_bytes()], |row| row.get(0)).optional()?;
    let Some(session_no) = session_no else { return Ok(false) };
    let mut has_message = prepare(HAS_LIVE_MESSAGE)?;
    for seq in &record.places.0 {
        if !has_message.query_row([message_no(session_no, *seq)], |row| row.get(0))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Notes that the `retry`th retry is answered by this record, and no other one that says so.
pub(crate) fn answer_retry(connection: &Connection, record: &IdempotencyRecord, retry: u32) -> rusqlite::Result<()> {
    let params = params![record.project_id.as_bytes(), record.claim_id.as_bytes(), record.place, retry];
    connection.prepare_cached(UPDATE_RETRY)?.execute(params).map(drop)
}

/// Records what a request did, in its transaction.
pub(crate) fn insert_record(connection: &Connection, record: &IdempotencyRecord) -> rusqlite::Result<()> {
    let inserted = connection.prepare_cached(INSERT_RECORD)?.execute(params![
        record.project_id.as_bytes(),
        record.claim_id.as_bytes(),
        record.place,
        record.fingerprint,
        record.target,
        record.places.to_text(),
        record.retry,
        record.created_at.as_micros(),
        record.expires_at.as_micros(),
    ]);
    inserted.map(drop)
}

fn record_row(row: &Row<'_>, claim: &Claim) -> rusqlite::Result<IdempotencyRecord> {
    let places = row.get_ref(3)?.as_str()?;
    let places = Places::parse(places).ok_or_else(|| {
        let error = StoreError::internal(format!("`{places}` are no places"));
        rusqlite::Error::FromSqlConversionFailure(3, Type::Text, error.into())
    })?;
    Ok(IdempotencyRecord {
        project_id: claim.project_id,
        claim_id: claim.claim_id,
        bucket: claim.bucket,
        place: row.get(0)?,
        fingerprint: row.get(1)?,
        target: row.get(2)?,
        places,
        retry: row.get(4)?,
        created_at: time_column(row, 5)?,
        expires_at: time_column(row, 6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{migrated, plan};

    #[test]
    fn purging_walks_only_what_has_expired() {
        let connection = migrated();
        for sql in [HAS_EXPIRED, DELETE_EXPIRED] {
            let plan = plan(&connection, sql);
            let walks = |step: &String| step.contains("idempotency_records_expires (expires_at<?)");
            assert!(plan.iter().any(walks), "{sql}: {plan:?}");
        }
        let found = plan(&connection, DELETE_EXPIRED);
        assert!(found.iter().any(|step| step.contains("INTEGER PRIMARY KEY (rowid=?)")), "{found:?}");
    }
}
