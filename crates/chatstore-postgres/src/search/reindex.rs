//! Making derived data anew: a walk over all messages, a batch in each transaction, by whichever
//! replica comes first.

use std::collections::HashSet;

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{ProjectId, SessionId};
use chatstore_core::limits::REINDEX_MESSAGES_BATCH;
use chatstore_core::search::analyser::ANALYSER_VERSION;
use chatstore_core::search::{Derived, Reindexed};
use chatstore_core::store::StoreError;
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
use crate::projects::is_live_project;
use crate::sessions::is_live;

macro_rules! delete_leftovers {
    ($table:literal) => {
        concat!(
            "delete from ",
            $table,
            " d using unnest($1::smallint[], $2::uuid[], $3::bigint[]) k(bucket, session_id, seq)
    where d.bucket = k.bucket and d.session_id = k.session_id and d.seq = k.seq"
        )
    };
}
/// Before the first message.
macro_rules! start_reindex {
    ($otherwise:literal) => {
        concat!(
            "insert into reindexes (derived, bucket, session_id, seq)
    values ($1, -32768, '00000000-0000-0000-0000-000000000000', 0) on conflict (derived) do ",
            $otherwise
        )
    };
}
const START_REINDEX: &str =
    start_reindex!("update set bucket = excluded.bucket, session_id = excluded.session_id, seq = excluded.seq");
const NOTE_REINDEX: &str = start_reindex!("nothing");
/// A walk that another replica is at is passed over.
const LOCK_REINDEX: &str = "select bucket, session_id, seq from reindexes where derived = $1 for update skip locked";
const IS_REINDEXING: &str = "select exists (select from reindexes where derived = $1)";
const UPDATE_REINDEX: &str = "update reindexes set bucket = $2, session_id = $3, seq = $4 where derived = $1";
const DELETE_REINDEX: &str = "delete from reindexes where derived = $1";
/// Messages with the projects of their sessions; without one is what was deleted, be it with its project.
const SELECT_STEP: &str = concat!(
    "select m.bucket, m.session_id, m.seq, m.message_id, octet_length(m.content)::bigint, s.project_id
    from (
        select m.* from messages m
        where (m.bucket, m.session_id, m.seq) > ($1, $2, $3) order by m.bucket, m.session_id, m.seq limit $4) m
    left join lateral (select s.project_id from sessions s
            cross join lateral (select 1 from projects p where p.project_id = s.project_id and ",
    is_live_project!(),
    " offset 0) p
        where s.bucket = m.bucket and s.session_id = m.session_id and m.deleted_at is null and ",
    is_live!(),
    " offset 0) s on true
    order by m.bucket, m.session_id, m.seq"
);
/// Jobs first: who holds one may store vectors.
const DELETE_LEFTOVERS: [&str; 3] =
    [delete_leftovers!("embedding_jobs"), delete_leftovers!("message_embeddings"), delete_leftovers!("message_texts")];
/// Whoever changes a message holds its session's row.
const LOCK_SESSIONS: &str = concat!(
    "select s.session_id from unnest($1::smallint[], $2::uuid[]) w(bucket, session_id) cross join lateral (
        select s.* from sessions s where s.bucket = w.bucket and s.session_id = w.session_id and ",
    is_live!(),
    " for no key update) s"
);
/// Of some messages, those that are not deleted.
const SELECT_TEXTS: &str = "select k.n, m.created_at, m.version, m.content
    from unnest($1::smallint[], $2::uuid[]) with ordinality k(bucket, message_id, n) cross join lateral (
        select m.* from messages m where m.bucket = k.bucket and m.message_id = k.message_id and m.deleted_at is null
        offset 0) m";
/// Of some messages, those that are not deleted, and the texts of those that have another version by now.
const SELECT_CHANGED: &str = "select k.n, case when m.version <> k.version then m.content end
    from unnest($1::smallint[], $2::uuid[], $3::bigint[]) with ordinality k(bucket, message_id, version, n)
        cross join lateral (select m.* from messages m where m.bucket = k.bucket and m.message_id = k.message_id
            and m.deleted_at is null offset 0) m";
/// Of some messages, those with a text and without vectors of a model.
const SELECT_WITHOUT_VECTORS: &str = "select k.n, m.created_at, m.version
    from unnest($1::smallint[], $2::uuid[], $3::uuid[]) with ordinality k(bucket, message_id, model_id, n)
        cross join lateral (select m.* from messages m where m.bucket = k.bucket and m.message_id = k.message_id
            and m.deleted_at is null and m.content <> '' offset 0) m
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
    NOTE_REINDEX,
    LOCK_REINDEX,
    IS_REINDEXING,
    UPDATE_REINDEX,
    DELETE_REINDEX,
    SELECT_STEP,
    DELETE_LEFTOVERS[0],
    DELETE_LEFTOVERS[1],
    DELETE_LEFTOVERS[2],
    LOCK_SESSIONS,
    SELECT_TEXTS,
    SELECT_CHANGED,
    SELECT_WITHOUT_VECTORS,
    SELECT_ANALYSER,
    IS_ANALYSER_OLDER,
    UPDATE_ANALYSER,
];

/// Bytes of text that are read in one transaction.
const REINDEX_BYTES_BATCH: i64 = 1 << 20;

/// Notes that something derived is to be made anew, from the first message on.
pub(crate) async fn start_reindex(db: &Db, derived: Derived) -> Result<(), Failure> {
    db.execute(START_REINDEX, params![derived.as_str()]).await?;
    Ok(())
}

/// Notes the same, unless it is noted already.
pub(crate) async fn note_reindex(db: &Db, derived: Derived) -> Result<(), Failure> {
    db.execute(NOTE_REINDEX, params![derived.as_str()]).await?;
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
    let Some((bucket, session_id, seq)) = step.last else {
        db.execute(DELETE_REINDEX, params![derived.as_str()]).await?;
        return Ok(Reindexed::default());
    };
    match derived {
        Derived::Text => step.renew_texts(db).await?,
        Derived::Embeddings => step.queue(db).await?,
    }
    db.execute(UPDATE_REINDEX, params![derived.as_str(), bucket, session_id, seq]).await?;
    Ok(Reindexed { messages: step.messages, more: true })
}

/// Messages that are looked at together.
#[derive(Default)]
struct Step {
    messages: u64,
    /// Where the next step begins.
    last: Option<(i16, Uuid, i64)>,
    live: Vec<Place>,
    deleted: Vec<(i16, Uuid, i64)>,
}

/// Where a message stands that was not deleted when it was looked at.
#[derive(Clone, Copy)]
struct Place {
    bucket: i16,
    session_id: Uuid,
    seq: i64,
    message_id: Uuid,
    project_id: ProjectId,
}

impl Place {
    fn key(self, created_at: Timestamp) -> MessageKey {
        let Self { session_id, seq, message_id, project_id, .. } = self;
        let (session_id, message_id) = (SessionId::from(session_id), message_id.into());
        MessageKey { project_id, session_id, seq, message_id, created_at }
    }
}

/// The buckets and ids of messages, as a statement takes them.
fn ids(places: &[Place]) -> (Vec<i16>, Vec<Uuid>) {
    places.iter().map(|place| (place.bucket, place.message_id)).unzip()
}

/// Of places, that which a row names by its number.
fn named<'a, T>(row: &Row, places: &'a [T]) -> Result<&'a T, Failure> {
    let place = usize::try_from(row.try_get::<_, i64>(0)? - 1).ok().and_then(|n| places.get(n));
    Ok(place.ok_or_else(|| StoreError::internal("a row that was not asked for"))?)
}

impl Step {
    async fn read(db: &Db, (bucket, session_id, seq): (i16, Uuid, i64)) -> Result<Self, Failure> {
        let params = params![bucket, session_id, seq, i64::from(REINDEX_MESSAGES_BATCH)];
        let (mut step, mut bytes) = (Self::default(), 0);
        for row in db.query(SELECT_STEP, params).await? {
            let (bucket, session_id, seq) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            step.messages += 1;
            step.last = Some((bucket, session_id, seq));
            match row.try_get::<_, Option<Uuid>>(5)? {
                Some(project_id) => {
                    let (message_id, project_id) = (row.try_get(3)?, project_id.into());
                    step.live.push(Place { bucket, session_id, seq, message_id, project_id });
                }
                None => step.deleted.push((bucket, session_id, seq)),
            }
            bytes += row.try_get::<_, i64>(4)?;
            if bytes >= REINDEX_BYTES_BATCH {
                break;
            }
        }
        Ok(step)
    }

    /// Makes words anew, and removes what others have left of deleted messages. Texts are read
    /// before their sessions are locked, but for those that are changed meanwhile.
    async fn renew_texts(&self, db: &Db) -> Result<(), Failure> {
        self.delete_leftovers(db).await?;
        let (buckets, message_ids) = ids(&self.live);
        let rows = db.query(SELECT_TEXTS, params![buckets, message_ids]).await?;
        let (mut places, mut versions, mut keys, mut contents) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            let place = *named(row, &self.live)?;
            let key = place.key(time_column(row, 1)?);
            contents.push((key.project_id, key.session_id.bucket(), row.try_get(3)?));
            versions.push(row.try_get::<_, i64>(2)?);
            places.push(place);
            keys.push(key);
        }
        let words = read_texts(contents).await?;
        let texts: Vec<_> = places.iter().copied().zip(keys).zip(words).collect();
        let sessions = lock_sessions(db, &places).await?;
        let (buckets, message_ids) = ids(&places);
        let (mut keys, mut words) = (Vec::new(), Vec::new());
        for row in db.query(SELECT_CHANGED, params![buckets, message_ids, versions]).await? {
            let ((place, key), lexemes) = named(&row, &texts)?;
            if sessions.contains(&place.session_id) {
                words.push(match row.try_get::<_, Option<&str>>(1)? {
                    None => lexemes.clone(),
                    Some(text) => read_texts(vec![(key.project_id, key.session_id.bucket(), text)]).await?.concat(),
                });
                delete_text(db, *key).await?;
                keys.push(*key);
            }
        }
        insert_texts(db, &keys, &words).await
    }

    async fn delete_leftovers(&self, db: &Db) -> Result<(), Failure> {
        if self.deleted.is_empty() {
            return Ok(());
        }
        let buckets: Vec<_> = self.deleted.iter().map(|(bucket, _, _)| *bucket).collect();
        let session_ids: Vec<_> = self.deleted.iter().map(|(_, session_id, _)| *session_id).collect();
        let seqs: Vec<_> = self.deleted.iter().map(|(_, _, seq)| *seq).collect();
        for sql in DELETE_LEFTOVERS {
            db.execute(sql, params![buckets, session_ids, seqs]).await?;
        }
        Ok(())
    }

    /// Queues what has no vectors of the source's model. Most have them as a rule: only the sessions of
    /// the others are locked.
    async fn queue(&self, db: &Db) -> Result<(), Failure> {
        let Some(source) = find_source(db).await? else { return Ok(()) };
        let rows = select_without_vectors(db, &self.live, &source.model).await?;
        let places = rows.iter().map(|row| named(row, &self.live).copied()).collect::<Result<Vec<_>, _>>()?;
        let sessions = lock_sessions(db, &places).await?;
        for row in select_without_vectors(db, &places, &source.model).await? {
            let place = named(&row, &places)?;
            if sessions.contains(&place.session_id) {
                insert_job(db, place.key(time_column(&row, 1)?), row.try_get(2)?, Queued::Backfill).await?;
            }
        }
        Ok(())
    }
}

async fn select_without_vectors(db: &Db, places: &[Place], model: &str) -> Result<Vec<Row>, Failure> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let (buckets, message_ids) = ids(places);
    let model_ids: Vec<_> = places.iter().map(|place| model_id(place.project_id, model)).collect();
    Ok(db.query(SELECT_WITHOUT_VECTORS, params![buckets, message_ids, model_ids]).await?)
}

/// Locks the sessions of messages, which come in the order of their keys; tells which are live.
async fn lock_sessions(db: &Db, places: &[Place]) -> Result<HashSet<Uuid>, Failure> {
    if places.is_empty() {
        return Ok(HashSet::new());
    }
    let (mut buckets, mut session_ids) = (Vec::new(), Vec::new());
    for place in places {
        if session_ids.last() != Some(&place.session_id) {
            buckets.push(place.bucket);
            session_ids.push(place.session_id);
        }
    }
    let rows = db.query(LOCK_SESSIONS, params![buckets, session_ids]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}
