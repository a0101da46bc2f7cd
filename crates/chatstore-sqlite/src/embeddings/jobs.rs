//! The queue of messages that wait for vectors.

use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{EmbeddingJob, JobOutcome};
use chatstore_core::ids::MessageId;
use chatstore_core::limits::EMBEDDING_CLAIM_BYTES_MAX;
use chatstore_core::messages::Message;
use chatstore_core::store::StoreError;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::source::source_model;
use super::vectors::{Origin, replace_vectors};
use crate::columns::id_column;
use crate::messages::SEQ_END;
use crate::search::reindex::Reindexing;
use crate::writer::{Failure, WriteConnection};

const INSERT_JOB: &str = "insert into embedding_jobs
    (message_no, project_id, version, attempts, due_at, is_backfill, queued_at)
    values (?1, ?2, ?3, 0, ?4, ?5, ?6)";
/// What was put aside stays so: a walk begins at every start of a server.
const QUEUE_ANEW: &str = "insert into embedding_jobs
    (message_no, project_id, version, attempts, due_at, is_backfill)
    select ?1, ?2, ?3, 0, 0, 1
    where not exists (select 1 from embedding_models k
        join message_embeddings e on e.message_no = ?1 and e.model_no = k.model_no
        where k.project_id = ?2 and k.model = ?4)
    on conflict (message_no) do nothing";
const DELETE_JOBS: &str = "delete from embedding_jobs where message_no > ?1 and message_no <= ?2";
pub(super) const HAS_DUE: &str = "select exists (select 1 from embedding_jobs
        where is_backfill = 0 and due_at <= ?1 and parked_reason is null)
    or exists (select 1 from embedding_jobs where is_backfill = 1 and due_at <= ?1 and parked_reason is null)";
const LIST_DUE: &str = "select message_no, attempts from embedding_jobs
    where is_backfill = ?1 and due_at <= ?2 and parked_reason is null order by due_at limit ?3";
const SELECT_LENT: &str = "select m.message_no, s.project_id, s.session_id, m.message_id, m.version, m.content
    from messages m join sessions s on s.session_no = m.message_no >> 32 join projects p on p.project_id = s.project_id
    where m.message_no = ?1 and m.content <> '' and m.deleted_at is null and s.deleted_at is null
        and p.deleted_at is null";
const LEND_JOB: &str =
    "update embedding_jobs set version = ?2, attempts = attempts + 1, due_at = ?3 where message_no = ?1";
const SELECT_LENT_NO: &str = "select j.message_no from messages m join embedding_jobs j on j.message_no = m.message_no
    where m.message_id = ?1 and j.version = ?2 and j.attempts = ?3 and j.parked_reason is null";
const HAS_BROUGHT: &str = "select exists (select 1 from embedding_models k
    join message_embeddings e on e.message_no = ?1 and e.model_no = k.model_no
    where k.project_id = ?2 and k.model = ?3 and e.is_made = 0)";
const DEFER_JOB: &str = "update embedding_jobs set attempts = attempts - ?3, due_at = ?2 where message_no = ?1";
const PARK_JOB: &str = "update embedding_jobs set due_at = ?2, parked_reason = ?3 where message_no = ?1";
const RETRY_PARKED: &str = "update embedding_jobs
    set attempts = 0, due_at = ?2, queued_at = ?2, parked_reason = null
    where project_id = ?1 and parked_reason is not null";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    INSERT_JOB,
    QUEUE_ANEW,
    DELETE_JOBS,
    HAS_DUE,
    LIST_DUE,
    SELECT_LENT,
    LEND_JOB,
    SELECT_LENT_NO,
    HAS_BROUGHT,
    DEFER_JOB,
    PARK_JOB,
    RETRY_PARKED,
];

/// How a message is queued.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    due_at: i64,
    is_backfill: bool,
    queued_at: Option<i64>,
}

impl Job {
    /// A new text: it goes first.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { due_at: now.as_micros(), is_backfill: false, queued_at: Some(now.as_micros()) }
    }

    /// One that came with many: it waits for those that somebody has just written.
    pub(crate) fn backfill() -> Self {
        Self { due_at: 0, is_backfill: true, queued_at: None }
    }
}

/// Queues a message, unless it has no text.
pub(crate) fn insert_job(
    connection: &Connection,
    message_no: i64,
    message: &Message,
    job: Job,
) -> rusqlite::Result<()> {
    if message.content.is_empty() {
        return Ok(());
    }
    let inserted = connection.prepare_cached(INSERT_JOB)?.execute(params![
        message_no,
        message.project_id.as_bytes(),
        message.version,
        job.due_at,
        job.is_backfill,
        job.queued_at,
    ]);
    inserted.map(drop)
}

/// Queues a message that has a text, no vector of `model`, and is not waiting.
pub(crate) fn queue_anew(connection: &Connection, message: &Reindexing, model: &str) -> rusqlite::Result<()> {
    if !message.has_text {
        return Ok(());
    }
    let params = params![message.message_no, message.home.project_id.as_bytes(), message.version, model];
    connection.prepare_cached(QUEUE_ANEW)?.execute(params).map(drop)
}

/// Takes the messages after `from` up to `to` out of the queue.
pub(crate) fn delete_jobs(connection: &Connection, from: i64, to: i64) -> rusqlite::Result<()> {
    connection.prepare_cached(DELETE_JOBS)?.execute(params![from, to]).map(drop)
}

/// What one transaction lends.
pub(super) struct Claim {
    pub(super) jobs: Vec<EmbeddingJob>,
    /// Whether it met jobs without a message, which it removed: others may stand behind them.
    pub(super) has_removed: bool,
}

/// Lends what is due, but looks at no more jobs than are wanted.
pub(super) fn claim(
    connection: &Connection,
    now: Timestamp,
    lease_until: Timestamp,
    limit: usize,
) -> rusqlite::Result<Claim> {
    let (mut claim, mut bytes) = (Claim { jobs: Vec::new(), has_removed: false }, 0);
    for is_backfill in [false, true] {
        let limit = i64::try_from(limit.saturating_sub(claim.jobs.len())).unwrap_or(i64::MAX);
        let map = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?));
        let mut statement = connection.prepare_cached(LIST_DUE)?;
        let due = statement.query_map(params![is_backfill, now.as_micros(), limit], map)?;
        for (message_no, attempts) in due.collect::<rusqlite::Result<Vec<_>>>()? {
            let map = |row: &Row<'_>| lent_row(row, attempts + 1);
            let job = connection.prepare_cached(SELECT_LENT)?.query_row(params![message_no], map).optional()?;
            let Some(job) = job else {
                // It would be met again and again.
                delete_job(connection, message_no)?;
                claim.has_removed = true;
                continue;
            };
            bytes += job.content.len();
            if bytes > EMBEDDING_CLAIM_BYTES_MAX && !claim.jobs.is_empty() {
                return Ok(claim);
            }
            let params = params![message_no, job.version, lease_until.as_micros()];
            connection.prepare_cached(LEND_JOB)?.execute(params)?;
            claim.jobs.push(job);
        }
    }
    Ok(claim)
}

fn lent_row(row: &Row<'_>, attempts: u32) -> rusqlite::Result<EmbeddingJob> {
    Ok(EmbeddingJob {
        project_id: id_column(row, 1)?.into(),
        session_id: id_column(row, 2)?.into(),
        message_id: id_column(row, 3)?.into(),
        seq: row.get::<_, i64>(0)? & (SEQ_END - 1),
        version: row.get(4)?,
        content: row.get(5)?,
        attempts,
    })
}

/// Notes what became of a job, unless it was lent again or is about another text by now.
pub(super) fn complete(
    connection: &WriteConnection,
    job: &EmbeddingJob,
    outcome: JobOutcome,
    now: Timestamp,
) -> Result<(), Failure> {
    let params = params![job.message_id.as_bytes(), job.version, job.attempts];
    let found = connection.prepare_cached(SELECT_LENT_NO)?.query_row(params, |row| row.get(0)).optional()?;
    let Some(message_no) = found else {
        return Ok(());
    };
    match outcome {
        // The source has changed meanwhile: the text waits for vectors of the new model.
        JobOutcome::Embedded { model, .. } if source_model(connection)?.is_some_and(|source| source != model) => {
            defer(connection, message_no, now, true)?;
        }
        // Nothing replaces what somebody brought.
        JobOutcome::Embedded { model, .. } if has_brought(connection, job, message_no, &model)? => {
            delete_job(connection, message_no)?;
        }
        JobOutcome::Embedded { model, vectors } => {
            match replace_vectors(connection, job.project_id, message_no, &model, &vectors, Origin::Made) {
                Ok(()) => delete_job(connection, message_no)?,
                Err(Failure::Answer(StoreError::Invalid { detail, .. })) => {
                    park(connection, message_no, now, &format!("its vector {detail}"))?;
                }
                Err(failure) => return Err(failure),
            }
        }
        JobOutcome::Later { due_at, counts } => defer(connection, message_no, due_at, !counts)?,
        JobOutcome::Parked { reason } => park(connection, message_no, now, &reason)?,
    }
    Ok(())
}

fn has_brought(connection: &Connection, job: &EmbeddingJob, message_no: i64, model: &str) -> rusqlite::Result<bool> {
    let params = params![message_no, job.project_id.as_bytes(), model];
    connection.prepare_cached(HAS_BROUGHT)?.query_row(params, |row| row.get(0))
}

fn defer(connection: &Connection, message_no: i64, due_at: Timestamp, forgets: bool) -> rusqlite::Result<()> {
    connection.prepare_cached(DEFER_JOB)?.execute(params![message_no, due_at.as_micros(), forgets]).map(drop)
}

fn park(connection: &Connection, message_no: i64, now: Timestamp, reason: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(PARK_JOB)?.execute(params![message_no, now.as_micros(), reason]).map(drop)
}

/// Queues what a project has put aside.
pub(super) fn retry_parked(connection: &Connection, project_id: &[u8; 16], now: Timestamp) -> rusqlite::Result<u64> {
    let retried = connection.prepare_cached(RETRY_PARKED)?.execute(params![project_id, now.as_micros()])?;
    Ok(retried as u64)
}

/// Takes a message out of the queue.
pub(super) fn delete_job(connection: &Connection, message_no: i64) -> rusqlite::Result<()> {
    delete_jobs(connection, message_no - 1, message_no)
}

/// A message that was put aside, and why.
pub(super) fn parked_row(row: &Row<'_>) -> rusqlite::Result<(MessageId, String)> {
    Ok((id_column(row, 0)?.into(), row.get(1)?))
}
