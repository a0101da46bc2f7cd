//! Idempotency records in PostgreSQL: written in the transaction of the request that they are of.
//!
//! Who makes something new writes its record first, while it holds nothing, and waits there for another that does the
//! same. Who appends holds the session of the record, so that it finds nobody to wait for.

use std::time::Duration;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Claim, IdempotencyRecord, IdempotencyStore, Places, Recognition};
use chatstore_core::limits::{IN_FLIGHT_WAIT_MS, PURGE_RECORDS_BATCH};
use chatstore_core::store::{Scope, StoreError};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, Row};

use crate::PostgresStore;
use crate::columns::{bucket_value, time_column};
use crate::messages::append::alone::find_standing;
use crate::params::params;
use crate::pool::{Db, Failure};

/// How long a request waits for what holds the row that it needs.
pub(crate) const IN_FLIGHT_WAIT: Duration = Duration::from_millis(IN_FLIGHT_WAIT_MS);

const SELECT_RECORD: &str = "select place, fingerprint, target, places, retry, created_at, expires_at
    from idempotency_records where bucket = $1 and project_id = $2 and claim_id = $3 and place = 0";
/// The requests that this retry, or one after it, has not been answered with, the newest first. `offset 0` keeps the
/// planner at those of the claim: it thinks that hardly any has not expired.
const SELECT_RECORDS_TO_RETRY: &str = "select place, fingerprint, target, places, retry, created_at, expires_at from (
        select r.* from idempotency_records r where r.bucket = $1 and r.project_id = $2 and r.claim_id = $3
        order by r.place desc offset 0) r
    where r.retry < $4 and r.expires_at > $5 order by r.place desc";
const UPDATE_RETRY: &str = "update idempotency_records set retry = $5
    where bucket = $1 and project_id = $2 and claim_id = $3 and place = $4";
/// Takes the place of one that has expired, and without effect beside one that counts. Those of requests that are known
/// by their bodies take the place of their like, which is met only where nothing new was stored.
const PUT_RECORD: &str = "insert into idempotency_records as r
    (bucket, project_id, claim_id, place, fingerprint, target, places, retry, created_at, expires_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    on conflict (bucket, project_id, claim_id, place) do update
    set fingerprint = excluded.fingerprint, target = excluded.target, places = excluded.places, retry = excluded.retry,
        created_at = excluded.created_at, expires_at = excluded.expires_at
    where r.expires_at <= excluded.created_at or r.place > 0";
/// Those that another purge has, or a request that takes their place, are passed over.
pub(crate) const DELETE_EXPIRED: &str = "delete from idempotency_records where ctid = any (array(
    select ctid from idempotency_records where expires_at <= $1 order by expires_at limit $2 for update skip locked))";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[SELECT_RECORD, SELECT_RECORDS_TO_RETRY, UPDATE_RETRY, PUT_RECORD, DELETE_EXPIRED];

#[async_trait]
impl IdempotencyStore for PostgresStore {
    async fn get_idempotency_record(&self, claim: &Claim) -> Result<Option<IdempotencyRecord>, StoreError> {
        self.pool
            .read(claim, async |db, claim| match claim.recognition {
                Recognition::Key => find_record(&db, &claim).await,
                // What is no retry is always meant.
                Recognition::Body { retry: 0, .. } => Ok(None),
                Recognition::Body { .. } => Ok(find_standing(&db, &claim).await?.map(|(record, _)| record)),
            })
            .await
    }

    async fn purge_idempotency_records(&self, now: Timestamp) -> Result<bool, StoreError> {
        self.pool
            .write(now, async |db, now| {
                let params = params![now.as_micros(), i64::from(PURGE_RECORDS_BATCH)];
                Ok(db.execute(DELETE_EXPIRED, params).await? >= u64::from(PURGE_RECORDS_BATCH))
            })
            .await
    }
}

/// Nobody is answered from what another project did.
pub(crate) fn require_claim_of(scope: &Scope, claim: Option<&Claim>) -> Result<(), StoreError> {
    match claim.is_none_or(|claim| claim.project_id == scope.project_id) {
        true => Ok(()),
        false => Err(StoreError::internal("the claim of a request is of another project")),
    }
}

/// Whether a statement failed because another request has stood in the way of a record.
pub(crate) fn is_recorded(error: &Error) -> bool {
    let constraint = error.as_db_error().and_then(|answer| answer.constraint());
    error.code() == Some(&SqlState::UNIQUE_VIOLATION) && constraint == Some("idempotency_records_pkey")
}

/// Records what a request is about to make, named `target`, before it does anything else; `None` if it may go on. The
/// record of an earlier one of the same body, if there is one. Waits for one that is not finished.
pub(crate) async fn claim_first(
    db: &Db,
    claim: Option<&Claim>,
    target: impl Into<String>,
) -> Result<Option<IdempotencyRecord>, Failure> {
    let Some(claim) = claim else { return Ok(None) };
    wait_no_longer_than(db, IN_FLIGHT_WAIT).await?;
    let record = claim.record(target, Places::default());
    if put_record(db, &record).await.map_err(in_flight)? {
        return Ok(None);
    }
    // Nobody takes it away meanwhile: the attempt to take its place holds it.
    let record =
        find_record(db, claim).await?.ok_or_else(|| StoreError::internal("a record is taken and not there"))?;
    Ok(Some(record))
}

/// From now on the transaction waits no longer than this for what others hold.
pub(crate) async fn wait_no_longer_than(db: &Db, wait: Duration) -> Result<(), Failure> {
    // Zero would be for ever.
    db.run(&format!("set local lock_timeout = {}", wait.as_millis().max(1))).await?;
    Ok(())
}

/// A failure to get a row in time says that who has it is not finished.
pub(crate) fn in_flight(failure: Failure) -> Failure {
    match failure {
        Failure::Postgres(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => StoreError::InFlight.into(),
        failure => failure,
    }
}

/// The record of a request that has been done under this key, refused if its body was another.
pub(crate) async fn find_record(db: &Db, claim: &Claim) -> Result<Option<IdempotencyRecord>, Failure> {
    let claim_id = claim.claim_id.as_bytes().as_slice();
    let params = params![bucket_value(claim.bucket), claim.project_id.uuid(), claim_id];
    let Some(row) = db.query_opt(SELECT_RECORD, params).await? else { return Ok(None) };
    let record = read_record(&row, claim)?;
    if record.expires_at <= claim.now {
        return Ok(None);
    }
    claim.check(&record)?;
    Ok(Some(record))
}

/// The records of requests that the claim's retry may be of, the likeliest first.
pub(crate) async fn find_retried(db: &Db, claim: &Claim) -> Result<Vec<IdempotencyRecord>, Failure> {
    let claim_id = claim.claim_id.as_bytes().as_slice();
    let (project_id, retry) = (claim.project_id.uuid(), retry_value(claim.retry()));
    let params = params![bucket_value(claim.bucket), project_id, claim_id, retry, claim.now.as_micros()];
    let rows = db.query(SELECT_RECORDS_TO_RETRY, params).await?;
    let records = rows.iter().map(|row| {
        let record = read_record(row, claim)?;
        claim.check(&record)?;
        Ok(record)
    });
    records.collect()
}

/// Notes that a record has answered for the claim's retry. The session that it is of is held, so that each retry finds
/// another.
pub(crate) async fn note_retry(db: &Db, claim: &Claim, record: &IdempotencyRecord) -> Result<(), Failure> {
    let (bucket, claim_id) = (bucket_value(claim.bucket), claim.claim_id.as_bytes().as_slice());
    let params = params![bucket, claim.project_id.uuid(), claim_id, record.place, retry_value(claim.retry())];
    db.execute(UPDATE_RETRY, params).await?;
    Ok(())
}

/// Stores a record, unless one that counts is there already; tells whether it did.
pub(crate) async fn put_record(db: &Db, record: &IdempotencyRecord) -> Result<bool, Failure> {
    let params = params![
        bucket_value(record.bucket),
        record.project_id.uuid(),
        record.claim_id.as_bytes().as_slice(),
        record.place,
        record.fingerprint.as_slice(),
        record.target.as_str(),
        record.places.to_text(),
        retry_value(record.retry),
        record.created_at.as_micros(),
        record.expires_at.as_micros(),
    ];
    Ok(db.execute(PUT_RECORD, params).await? > 0)
}

fn retry_value(retry: u32) -> i32 {
    i32::try_from(retry).unwrap_or(i32::MAX)
}

/// Reads a row that was found under the claim's id.
fn read_record(row: &Row, claim: &Claim) -> Result<IdempotencyRecord, Failure> {
    let damaged = || StoreError::internal("a record cannot be read");
    Ok(IdempotencyRecord {
        project_id: claim.project_id,
        claim_id: claim.claim_id,
        bucket: claim.bucket,
        place: row.try_get(0)?,
        fingerprint: row.try_get::<_, &[u8]>(1)?.try_into().map_err(|_| damaged())?,
        target: row.try_get(2)?,
        places: Places::parse(row.try_get(3)?).ok_or_else(damaged)?,
        retry: u32::try_from(row.try_get::<_, i32>(4)?).map_err(|_| damaged())?,
        created_at: time_column(row, 5)?,
        expires_at: time_column(row, 6)?,
    })
}
