//! Making derived data anew: a walk over all messages, a batch in each transaction, by whichever
//! replica comes first.

use std::collections::HashMap;

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{ProjectId, SessionId};
use chatstore_core::limits::REINDEX_MESSAGES_BATCH;
use chatstore_core::search::analyser::ANALYSER_VERSION;
use chatstore_core::search::{Derived, Reindexed};
use tokio_postgres::{Client, Error, Row};
use uuid::Uuid;

use super::texts::{delete_text, insert_texts, read_texts};
use crate::columns::time_column;
use crate::embeddings::find_source;
use crate::embeddings::jobs::{Queued, insert_job};
use crate::embeddings::vectors::model_id;
use crate::messages::derived::MessageKey;
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::sessions::is_live;

/// Before the first message.
const START_REINDEX: &str = "insert into reindexes (derived, bucket, session_id, seq)
    values ($1, -32768, '00000000-0000-0000-0000-000000000000', 0)
    on conflict (derived) do update set bucket = excluded.bucket, session_id = excluded.session_id, seq = excluded.seq";
/// A walk that another replica is at is passed over.
const LOCK_REINDEX: &str = "select bucket, session_id, seq from reindexes where derived = $1 for update skip locked";
const IS_REINDEXING: &str = "select exists (select from reindexes where derived = $1)";
const UPDATE_REINDEX: &str = "update reindexes set bucket = $2, session_id = $3, seq = $4 where derived = $1";
const DELETE_REINDEX: &str = "delete from reindexes where derived = $1";
const SELECT_STEP: &str = "select m.bucket, m.session_id, m.seq, m.message_id, octet_length(m.content)::bigint
    from messages m
    where (m.bucket, m.session_id, m.seq) > ($1, $2, $3) order by m.bucket, m.session_id, m.seq limit $4";
/// Whoever changes a message holds its session's row.
const LOCK_SESSIONS: &str = concat!(
    "select s.session_id, s.project_id from unnest($1::smallint[], $2::uuid[]) w(bucket, session_id) cross join lateral (
        select s.* from sessions s where s.bucket = w.bucket and s.session_id = w.session_id and ",
    is_live!(),
    " for no key update) s"
);
/// Of some messages, those that are not deleted.
const SELECT_TEXTS: &str = "select m.session_id, m.seq, m.message_id, m.created_at, m.content
    from unnest($1::smallint[], $2::uuid[]) k(bucket, message_id) cross join lateral (select m.* from messages m
        where m.bucket = k.bucket and m.message_id = k.message_id and m.deleted_at is null offset 0) m";
/// Of some messages, those with a text and without vectors of a model.
const SELECT_WITHOUT_VECTORS: &str = "select m.session_id, m.seq, m.message_id, m.created_at, m.version
    from unnest($1::smallint[], $2::uuid[], $3::uuid[]) k(bucket, message_id, model_id) cross join lateral (
        select m.* from messages m where m.bucket = k.bucket and m.message_id = k.message_id and m.deleted_at is null
            and m.content <> '' offset 0) m
    where not exists (select from message_embeddings e where e.bucket = m.bucket and e.session_id = m.session_id
        and e.seq = m.seq and e.model_id = k.model_id offset 0)";
const SELECT_ANALYSER: &str = "select analyser_version from text_index";
const IS_ANALYSER_OLDER: &str = "select analyser_version < $1 from text_index";
const UPDATE_ANALYSER: &str = "with moved as (
        update text_index set analyser_version = $1 where analyser_version < $1 returning 1)
    insert into reindexes (derived, bucket, session_id, seq)
        select 'text', -32768, '00000000-0000-0000-0000-000000000000', 0 from moved
    on conflict (derived) do update set bucket = excluded.bucket, session_id = excluded.session_id, seq = excluded.seq";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    START_REINDEX,
    LOCK_REINDEX,
    IS_REINDEXING,
    UPDATE_REINDEX,
    DELETE_REINDEX,
    SELECT_STEP,
    LOCK_SESSIONS,
    SELECT_TEXTS,
    SELECT_WITHOUT_VECTORS,
    SELECT_ANALYSER,
    IS_ANALYSER_OLDER,
    UPDATE_ANALYSER,
];

/// Bytes of text that are read in one transaction.
const REINDEX_BYTES_BATCH: i64 = 4 << 20;

/// Notes that something derived is to be made anew.
pub(crate) async fn start_reindex(db: &Db, derived: Derived) -> Result<(), Failure> {
    db.execute(START_REINDEX, params![derived.as_str()]).await?;
    Ok(())
}

pub(super) async fn is_reindexing(db: &Db, derived: Derived) -> Result<bool, Failure> {
    let row = db.query_opt(IS_REINDEXING, params![derived.as_str()]).await?;
    Ok(row.map_or(Ok(false), |row| row.try_get(0))?)
}

/// Notes the version of this binary's analyser; what an older one made of messages is made anew.
pub(crate) async fn note_analyser(client: &Client) -> Result<(), Error> {
    // Asked first, for a standby can be read.
    let is_older = client.query_typed(IS_ANALYSER_OLDER, params![ANALYSER_VERSION]).await?;
    if is_older.first().map_or(Ok(false), |row| row.try_get(0))? {
        client.execute_typed(UPDATE_ANALYSER, params![ANALYSER_VERSION]).await?;
    }
    Ok(())
}

async fn analyser_version(db: &Db) -> Result<Option<i64>, Failure> {
    let row = db.query_opt(SELECT_ANALYSER, &[]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// Does the next batch of what was noted.
pub(super) async fn reindex_some(db: &Db, derived: Derived) -> Result<Reindexed, Failure> {
    let Some(row) = db.query_opt(LOCK_REINDEX, params![derived.as_str()]).await? else {
        return Ok(Reindexed { messages: 0, more: is_reindexing(db, derived).await? });
    };
    // An older binary's words are not those that are to be made; the newer ones make them.
    if derived == Derived::Text && analyser_version(db).await?.is_some_and(|version| version > ANALYSER_VERSION) {
        return Ok(Reindexed { messages: 0, more: true });
    }
    let after = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let step = Step::read(db, after).await?;
    let Some((bucket, session_id, seq)) = step.last() else {
        db.execute(DELETE_REINDEX, params![derived.as_str()]).await?;
        return Ok(Reindexed::default());
    };
    match derived {
        Derived::Text => step.renew_texts(db).await?,
        Derived::Embeddings => step.queue(db).await?,
    }
    db.execute(UPDATE_REINDEX, params![derived.as_str(), bucket, session_id, seq]).await?;
    Ok(Reindexed { messages: step.seqs.len() as u64, more: true })
}

/// Messages that are looked at together.
#[derive(Default)]
struct Step {
    buckets: Vec<i16>,
    session_ids: Vec<Uuid>,
    seqs: Vec<i64>,
    message_ids: Vec<Uuid>,
}

impl Step {
    async fn read(db: &Db, (bucket, session_id, seq): (i16, Uuid, i64)) -> Result<Self, Failure> {
        let params = params![bucket, session_id, seq, i64::from(REINDEX_MESSAGES_BATCH)];
        let (mut step, mut bytes) = (Self::default(), 0);
        for row in db.query(SELECT_STEP, params).await? {
            step.push((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
            bytes += row.try_get::<_, i64>(4)?;
            if bytes >= REINDEX_BYTES_BATCH {
                break;
            }
        }
        Ok(step)
    }

    fn push(&mut self, (bucket, session_id, seq, message_id): (i16, Uuid, i64, Uuid)) {
        self.buckets.push(bucket);
        self.session_ids.push(session_id);
        self.seqs.push(seq);
        self.message_ids.push(message_id);
    }

    fn last(&self) -> Option<(i16, Uuid, i64)> {
        Some((*self.buckets.last()?, *self.session_ids.last()?, *self.seqs.last()?))
    }

    /// Locks the live sessions of these messages; gives those of the messages that stand in them,
    /// and the sessions' projects.
    async fn lock(&self, db: &Db) -> Result<(Self, HashMap<Uuid, ProjectId>), Failure> {
        let (mut buckets, mut session_ids) = (Vec::new(), Vec::new());
        for (bucket, session_id) in self.buckets.iter().zip(&self.session_ids) {
            if session_ids.last() != Some(session_id) {
                buckets.push(*bucket);
                session_ids.push(*session_id);
            }
        }
        let rows = db.query(LOCK_SESSIONS, params![buckets, session_ids]).await?;
        let project = |row: &Row| Ok((row.try_get(0)?, row.try_get::<_, Uuid>(1)?.into()));
        let projects = rows.iter().map(project).collect::<Result<HashMap<Uuid, ProjectId>, Failure>>()?;
        let mut live = Self::default();
        for (n, session_id) in self.session_ids.iter().enumerate() {
            if projects.contains_key(session_id) {
                live.push((self.buckets[n], *session_id, self.seqs[n], self.message_ids[n]));
            }
        }
        Ok((live, projects))
    }

    async fn renew_texts(&self, db: &Db) -> Result<(), Failure> {
        let (live, projects) = self.lock(db).await?;
        let rows = db.query(SELECT_TEXTS, params![live.buckets, live.message_ids]).await?;
        let keys = rows.iter().map(|row| message_key(row, &projects)).collect::<Result<Vec<_>, _>>()?;
        let mut contents = Vec::with_capacity(rows.len());
        for (row, key) in rows.iter().zip(&keys) {
            contents.push((key.project_id, key.session_id.bucket(), row.try_get(4)?));
        }
        let texts = read_texts(contents).await?;
        for key in &keys {
            delete_text(db, *key).await?;
        }
        insert_texts(db, &keys, &texts).await
    }

    async fn queue(&self, db: &Db) -> Result<(), Failure> {
        let Some(source) = find_source(db).await? else { return Ok(()) };
        let (live, projects) = self.lock(db).await?;
        let model = |session_id| model_id(projects[session_id], &source.model);
        let models: Vec<Uuid> = live.session_ids.iter().map(model).collect();
        let params = params![live.buckets, live.message_ids, models];
        for row in db.query(SELECT_WITHOUT_VECTORS, params).await? {
            insert_job(db, message_key(&row, &projects)?, row.try_get(4)?, Queued::Backfill).await?;
        }
        Ok(())
    }
}

/// Reads the first four columns of a message of one of these sessions.
fn message_key(row: &Row, projects: &HashMap<Uuid, ProjectId>) -> Result<MessageKey, Failure> {
    let session_id: Uuid = row.try_get(0)?;
    let created_at: Timestamp = time_column(row, 3)?;
    Ok(MessageKey {
        project_id: projects[&session_id],
        session_id: SessionId::from(session_id),
        seq: row.try_get(1)?,
        message_id: row.try_get::<_, Uuid>(2)?.into(),
        created_at,
    })
}
