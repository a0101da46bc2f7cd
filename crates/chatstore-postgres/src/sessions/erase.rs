//! Erasing what deleted sessions said: in small transactions, by whichever replica comes first.

use std::sync::Arc;
use std::time::Duration;

use chatstore_core::limits::ERASE_MESSAGES_BATCH;
use chatstore_core::store::StoreError;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::params::params;
use crate::pool::{Db, Failure, Pool};

const CLAIM_ERASURE: &str = "select e.bucket, e.session_id, e.erased_seq, s.deleted_at from (
        select bucket, session_id, erased_seq from session_erasures
        order by bucket, session_id limit 1 for update skip locked) e
    join sessions s on s.bucket = e.bucket and s.session_id = e.session_id";
const SELECT_ERASABLE: &str = "select seq, octet_length(content)::bigint + coalesce(octet_length(payload), 0)
        + octet_length(metadata) + coalesce(octet_length(context), 0)
    from messages where bucket = $1 and session_id = $2 and seq > $3 order by seq limit $4";
pub(crate) const ERASE_MESSAGES: &str = "update messages
    set content = '', payload = null, metadata = '{}', context = null, deleted_at = $5
    where bucket = $1 and session_id = $2 and seq > $3 and seq <= $4 and deleted_at is null";
/// Jobs first: who holds one may store vectors.
const ERASE_DERIVED: [&str; 3] = [
    "delete from embedding_jobs where bucket = $1 and session_id = $2 and seq > $3 and seq <= $4",
    "delete from message_embeddings where bucket = $1 and session_id = $2 and seq > $3 and seq <= $4",
    "delete from message_texts where bucket = $1 and session_id = $2 and seq > $3 and seq <= $4",
];
const UPDATE_ERASURE: &str = "update session_erasures set erased_seq = $3 where bucket = $1 and session_id = $2";
const DELETE_ERASURE: &str = "delete from session_erasures where bucket = $1 and session_id = $2";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    CLAIM_ERASURE,
    SELECT_ERASABLE,
    ERASE_MESSAGES,
    ERASE_DERIVED[0],
    ERASE_DERIVED[1],
    ERASE_DERIVED[2],
    UPDATE_ERASURE,
    DELETE_ERASURE,
];

/// Bytes of text that are erased in one transaction.
const ERASE_BYTES_BATCH: i64 = 4 << 20;
/// How often a replica looks for what others have left: one that died, or a lost wake-up.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Between two transactions, so that appends come first.
const PAUSE: Duration = Duration::from_millis(5);
/// How long erasing rests after a failure.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// The task that erases.
pub(crate) struct Eraser {
    wake: Arc<Notify>,
    task: AbortHandle,
}

impl Eraser {
    pub(crate) fn start(pool: Arc<Pool>) -> Self {
        let wake = Arc::new(Notify::new());
        let task = tokio::spawn(run(pool, wake.clone())).abort_handle();
        Self { wake, task }
    }

    /// Notified when there is something to erase.
    pub(crate) fn waker(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Ends the task; what is left is erased after the next start.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Eraser {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn run(pool: Arc<Pool>, wake: Arc<Notify>) {
    loop {
        match pool.write((), async |db, _| erase_some(&db).await).await {
            Ok(true) => sleep(PAUSE).await,
            Ok(false) => drop(timeout(LOOK_EVERY, wake.notified()).await),
            Err(StoreError::Unavailable { .. }) if pool.is_closed() => return,
            Err(error) => {
                tracing::warn!(%error, "erasing deleted messages failed; it is tried again later");
                sleep(FAILURE_PAUSE).await;
            }
        }
    }
}

/// Blanks a batch of messages of a deleted session; tells whether more may wait.
async fn erase_some(db: &Db) -> Result<bool, Failure> {
    let Some(row) = db.query_opt(CLAIM_ERASURE, &[]).await? else { return Ok(false) };
    let (bucket, session_id): (i16, Uuid) = (row.try_get(0)?, row.try_get(1)?);
    let (from, deleted_at): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
    let rows = db.query(SELECT_ERASABLE, params![bucket, session_id, from, i64::from(ERASE_MESSAGES_BATCH)]).await?;
    match last_of_batch(&rows)? {
        Some(to) => {
            for sql in ERASE_DERIVED {
                db.execute(sql, params![bucket, session_id, from, to]).await?;
            }
            db.execute(ERASE_MESSAGES, params![bucket, session_id, from, to, deleted_at]).await?;
            db.execute(UPDATE_ERASURE, params![bucket, session_id, to]).await?;
        }
        None => {
            db.execute(DELETE_ERASURE, params![bucket, session_id]).await?;
        }
    }
    Ok(true)
}

/// The last message of the batch, bounded by bytes.
fn last_of_batch(rows: &[Row]) -> Result<Option<i64>, Failure> {
    let (mut last, mut bytes) = (None, 0);
    for row in rows {
        if bytes >= ERASE_BYTES_BATCH {
            break;
        }
        last = Some(row.try_get(0)?);
        bytes += row.try_get::<_, i64>(1)?;
    }
    Ok(last)
}
