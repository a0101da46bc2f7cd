//! The queue of messages that wait for their vectors.

use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{EmbeddingJob, JobOutcome, Vector};
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::limits::EMBEDDING_CLAIM_BYTES_MAX;
use tokio_postgres::Row;
use uuid::Uuid;

use super::source::find_source;
use super::vectors::{
    ModelFault, Origin, delete_vectors_of_model, dimensions_value, insert_vectors, model_id, require_model,
};
use crate::columns::{bucket_value, time_column};
use crate::messages::derived::MessageKey;
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::projects::is_live_project;
use crate::sessions::is_live;

/// What was put aside stays so: a walk begins at every start of a server.
const INSERT_JOB: &str = "insert into embedding_jobs
    (bucket, session_id, seq, message_id, project_id, version, attempts, due_at, queued_at, is_backfill)
    values ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9)
    on conflict (bucket, session_id, seq) do nothing";
const DELETE_JOB: &str = "delete from embedding_jobs where bucket = $1 and session_id = $2 and seq = $3";
/// What others are lending at this moment is passed over.
const LOCK_DUE: &str = "select bucket, session_id, seq, message_id, project_id, attempts from embedding_jobs
    where is_backfill = $1 and due_at <= $2 and parked_reason is null
    order by due_at limit $3 for update skip locked";
/// Of jobs, those whose messages are still there, and the projects of these: the version and the bytes of the text.
const SELECT_TEXTS_OF_JOBS: &str = concat!(
    "select k.n, m.version, octet_length(m.content)::bigint
    from unnest($1::smallint[], $2::uuid[]) with ordinality k(bucket, message_id, n)
        cross join lateral (select m.* from messages m
            where m.bucket = k.bucket and m.message_id = k.message_id and m.deleted_at is null offset 0) m
        cross join lateral (select s.* from sessions s
            where s.bucket = m.bucket and s.session_id = m.session_id and ",
    is_live!(),
    " offset 0) s
        cross join lateral (select 1 from projects p where p.project_id = s.project_id and ",
    is_live_project!(),
    " offset 0) p"
);
const UPDATE_LENT: &str = "update embedding_jobs set version = $4, attempts = attempts + 1, due_at = $5
    where bucket = $1 and session_id = $2 and seq = $3";
const SELECT_CONTENT: &str = "select content from messages where bucket = $1 and message_id = $2";
/// Waits for whoever changes the message, and finds nothing if that makes the loan void.
const LOCK_LOAN: &str = "select 1 from embedding_jobs
    where bucket = $1 and session_id = $2 and seq = $3 and version = $4 and attempts = $5 and parked_reason is null
    for update";
/// The message's time and user, and whether a caller brought a vector of the model meanwhile.
const SELECT_OWNER: &str = concat!(
    "select m.created_at, s.user_id, exists (
        select from message_embeddings e where e.bucket = m.bucket and e.session_id = m.session_id and e.seq = m.seq
            and e.model_id = $3 and not e.is_made)
    from messages m cross join lateral (
        select s.* from sessions s where s.bucket = m.bucket and s.session_id = m.session_id offset 0) s
    where m.bucket = $1 and m.message_id = $2 and m.deleted_at is null and ",
    is_live!()
);
const UPDATE_LATER: &str = "update embedding_jobs set due_at = $4, attempts = attempts - $5
    where bucket = $1 and session_id = $2 and seq = $3";
const UPDATE_PARKED: &str = "update embedding_jobs set parked_reason = $4, due_at = $5
    where bucket = $1 and session_id = $2 and seq = $3";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    INSERT_JOB,
    DELETE_JOB,
    LOCK_DUE,
    SELECT_TEXTS_OF_JOBS,
    UPDATE_LENT,
    SELECT_CONTENT,
    LOCK_LOAN,
    SELECT_OWNER,
    UPDATE_LATER,
    UPDATE_PARKED,
];

/// How a message came into the queue.
#[derive(Clone, Copy)]
pub(crate) enum Queued {
    /// At this time, with its text.
    New(Timestamp),
    /// With many others, which wait until no new one does.
    Backfill,
}

/// Queues a message of this version, unless it waits already.
pub(crate) async fn insert_job(db: &Db, message: MessageKey, version: i64, queued: Queued) -> Result<(), Failure> {
    let queued_at = match queued {
        Queued::New(now) => Some(now.as_micros()),
        Queued::Backfill => None,
    };
    let params = params![
        message.bucket(),
        message.session_id.uuid(),
        message.seq,
        message.message_id.uuid(),
        message.project_id.uuid(),
        version,
        queued_at.unwrap_or(0),
        queued_at,
        queued_at.is_none(),
    ];
    db.execute(INSERT_JOB, params).await?;
    Ok(())
}

/// Takes a message out of the queue.
pub(crate) async fn delete_job(db: &Db, message: MessageKey) -> Result<(), Failure> {
    db.execute(DELETE_JOB, params![message.bucket(), message.session_id.uuid(), message.seq]).await?;
    Ok(())
}

/// Lends what is due, new messages first, but looks at no more jobs than are wanted.
pub(super) async fn claim(db: &Db, now: Timestamp, lease_until: Timestamp, limit: usize) -> Result<Claim, Failure> {
    let mut claim = Claim { lease_until, jobs: Vec::new(), bytes: 0, is_full: false, has_removed: false };
    for is_backfill in [false, true] {
        if !claim.is_full && claim.jobs.len() < limit {
            let room = i64::try_from(limit - claim.jobs.len()).unwrap_or(i64::MAX);
            let due = db.query(LOCK_DUE, params![is_backfill, now.as_micros(), room]).await?;
            claim.lend(db, &due).await?;
        }
    }
    Ok(claim)
}

/// What one transaction lends.
pub(super) struct Claim {
    lease_until: Timestamp,
    pub(super) jobs: Vec<EmbeddingJob>,
    bytes: usize,
    /// Whether the texts together are as large as they may be.
    is_full: bool,
    /// Whether it met jobs without a message, which it removed: others may stand behind them.
    pub(super) has_removed: bool,
}

impl Claim {
    /// Lends those of locked jobs that there is room for, and removes those without a message.
    async fn lend(&mut self, db: &Db, due: &[Row]) -> Result<(), Failure> {
        let (mut buckets, mut message_ids) = (Vec::new(), Vec::new());
        for row in due {
            buckets.push(row.try_get::<_, i16>(0)?);
            message_ids.push(row.try_get::<_, Uuid>(3)?);
        }
        let mut texts = vec![None; due.len()];
        for row in db.query(SELECT_TEXTS_OF_JOBS, params![buckets, message_ids]).await? {
            let place = usize::try_from(row.try_get::<_, i64>(0)? - 1).unwrap_or(usize::MAX);
            if let Some(text) = texts.get_mut(place) {
                *text = Some((row.try_get::<_, i64>(1)?, usize::try_from(row.try_get::<_, i64>(2)?).unwrap_or(0)));
            }
        }
        for (n, row) in due.iter().enumerate() {
            let key: (i16, Uuid, i64) = (buckets[n], row.try_get(1)?, row.try_get(2)?);
            let Some((version, bytes)) = texts[n] else {
                db.execute(DELETE_JOB, params![key.0, key.1, key.2]).await?;
                self.has_removed = true;
                continue;
            };
            self.bytes += bytes;
            if self.bytes > EMBEDDING_CLAIM_BYTES_MAX && !self.jobs.is_empty() {
                self.is_full = true;
                break;
            }
            let content = db.query_opt(SELECT_CONTENT, params![key.0, message_ids[n]]).await?;
            let lease_until = self.lease_until.as_micros();
            db.execute(UPDATE_LENT, params![key.0, key.1, key.2, version, lease_until]).await?;
            self.jobs.push(EmbeddingJob {
                project_id: row.try_get::<_, Uuid>(4)?.into(),
                session_id: SessionId::from(key.1),
                message_id: MessageId::from(message_ids[n]),
                seq: key.2,
                version,
                content: content.map_or(Ok(String::new()), |row| row.try_get(0))?,
                attempts: u32::try_from(row.try_get::<_, i32>(5)?).unwrap_or(0) + 1,
            });
        }
        Ok(())
    }
}

/// Notes what became of jobs, in the order of their keys, so that two that do this never wait for
/// each other in a circle.
pub(super) async fn complete(db: &Db, jobs: &[(EmbeddingJob, JobOutcome)], now: Timestamp) -> Result<(), Failure> {
    let mut jobs: Vec<_> = jobs.iter().collect();
    jobs.sort_by_key(|(job, _)| (bucket_value(job.session_id.bucket()), job.session_id, job.seq));
    let source = find_source(db).await?;
    for (job, outcome) in jobs {
        let loan = Loan { db, job, bucket: bucket_value(job.session_id.bucket()) };
        if !loan.lock().await? {
            continue;
        }
        match outcome {
            JobOutcome::Embedded { model, .. } if source.as_ref().is_some_and(|source| source.model != *model) => {
                // The model was changed meanwhile: the message still waits for vectors of the new one.
                loan.put_back(now, false).await?;
            }
            JobOutcome::Embedded { model, vectors } => loan.store(model, vectors, now).await?,
            JobOutcome::Later { due_at, counts } => loan.put_back(*due_at, *counts).await?,
            JobOutcome::Parked { reason } => loan.park(reason, now).await?,
        }
    }
    Ok(())
}

struct Loan<'a> {
    db: &'a Db,
    job: &'a EmbeddingJob,
    bucket: i16,
}

impl Loan<'_> {
    /// Whether this is still the last loan of the job, which nobody changes from now on.
    async fn lock(&self) -> Result<bool, Failure> {
        let attempts = i32::try_from(self.job.attempts).unwrap_or(i32::MAX);
        let params = params![self.bucket, self.job.session_id.uuid(), self.job.seq, self.job.version, attempts];
        Ok(self.db.query_opt(LOCK_LOAN, params).await?.is_some())
    }

    async fn store(&self, model: &str, vectors: &[Vector], now: Timestamp) -> Result<(), Failure> {
        let (db, job) = (self.db, self.job);
        let mut key = MessageKey {
            project_id: job.project_id,
            session_id: job.session_id,
            seq: job.seq,
            message_id: job.message_id,
            created_at: now,
        };
        let params = params![self.bucket, job.message_id.uuid(), model_id(job.project_id, model)];
        let row = db.query_opt(SELECT_OWNER, params).await?;
        let is_brought = row.as_ref().map_or(Ok(false), |row| row.try_get(2))?;
        if let (Some(row), Some(first), false) = (row, vectors.first(), is_brought) {
            let model_id = match require_model(db, job.project_id, model, first).await? {
                Ok(model_id) => model_id,
                Err(fault) => return self.park(&sentence(&fault), now).await,
            };
            if vectors.iter().any(|vector| vector.dimensions() != first.dimensions()) {
                return self.park(&sentence(&ModelFault::Length(dimensions_value(first))), now).await;
            }
            key.created_at = time_column(&row, 0)?;
            delete_vectors_of_model(db, key, model_id).await?;
            insert_vectors(db, key, row.try_get(1)?, (model_id, Origin::Made), vectors).await?;
        }
        delete_job(db, key).await
    }

    async fn put_back(&self, due_at: Timestamp, counts: bool) -> Result<(), Failure> {
        let (session_id, due_at) = (self.job.session_id.uuid(), due_at.as_micros());
        let params = params![self.bucket, session_id, self.job.seq, due_at, i32::from(!counts)];
        self.db.execute(UPDATE_LATER, params).await?;
        Ok(())
    }

    async fn park(&self, reason: &str, now: Timestamp) -> Result<(), Failure> {
        let params = params![self.bucket, self.job.session_id.uuid(), self.job.seq, reason, now.as_micros()];
        self.db.execute(UPDATE_PARKED, params).await?;
        Ok(())
    }
}

fn sentence(fault: &ModelFault) -> String {
    format!("the vector {}", fault.detail())
}
