//! Appending, in both forms: many appends in one statement, or one in a transaction of its own.

mod lists;

use std::collections::HashSet;
use std::slice;
use std::sync::Arc;

use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::NewEmbedding;
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::messages::{Message, NewMessage};
use chatstore_core::store::{Scope, StoreError};
use uuid::Uuid;

use super::derived::MessageKey;
use super::insert::insert_messages;
use super::{plus_tokens, stored_bytes};
use crate::AppendForm;
use crate::columns::bucket_value;
use crate::embeddings::find_source;
use crate::embeddings::jobs::{Queued, insert_job};
use crate::embeddings::vectors::{Origin, insert_vectors, require_model};
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::search::texts::insert_texts;
use crate::sessions::is_live;
use lists::{Checks, Rows, Wanted};

/// Appends to many sessions. `locked` takes the sessions' rows in the order of their ids, so that
/// replicas never wait for each other in a circle, and reads `last_seq` as it is under the lock;
/// what it does not find, or what would be more than its quota, is answered with null, and nothing is written of it.
macro_rules! append_batch {
    ($checks:expr, $locked:literal) => {
        concat!(
            "with wanted as (
        select * from unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::bigint[], $10::bigint[]) with ordinality
            as w(bucket, session_id, project_id, user_id, messages, messages_max, tokens, bytes, now_us, now_hour,
                group_no)
    ), locked as (
        select w.bucket, w.session_id, w.messages, w.tokens, w.bytes, w.now_us, w.now_hour, w.group_no, s.last_seq
        from wanted w left join lateral (
            select s.last_seq from sessions s
            where s.bucket = w.bucket and s.session_id = w.session_id and s.project_id = w.project_id
                and ",
            is_live!(),
            " and (w.user_id is null or s.user_id = w.user_id)
                and (w.messages_max is null or s.message_count + w.messages <= w.messages_max)",
            $checks,
            "
            for no key update",
            $locked,
            ") s on true
    ), seqs as (
        select array_agg(l.last_seq order by l.group_no) as before from locked l
    ), moved as (
        update sessions s
        set last_seq = s.last_seq + l.messages, message_count = s.message_count + l.messages,
            token_count = case when l.tokens is null then s.token_count
                else least(coalesce(s.token_count, 0)::numeric + l.tokens, 9223372036854775807)::bigint end,
            stored_bytes = s.stored_bytes + l.bytes,
            updated_at = greatest(s.updated_at, l.now_us), updated_hour = greatest(s.updated_hour, l.now_hour),
            last_message_at = greatest(s.last_message_at, l.now_us),
            active_hour = case when s.last_message_at is null then l.now_hour else greatest(s.active_hour, l.now_hour) end
        from locked l where s.bucket = l.bucket and s.session_id = l.session_id and l.last_seq is not null
    ), stored as (
        insert into messages (bucket, session_id, seq, message_id, parent_id, role, kind, status, content, payload,
            metadata, context, external_id, token_count, version, created_at, updated_at)
        select ($1::smallint[])[m.group_no], ($2::uuid[])[m.group_no], q.before[m.group_no] + m.place, m.message_id,
            m.parent_id, m.role, m.kind, m.status, m.content, m.payload, m.metadata, m.context, m.external_id,
            m.token_count, 1, m.now_us, m.now_us
        from seqs q, unnest($11::int[], $12::bigint[], $13::uuid[], $14::uuid[], $15::text[], $16::text[], $17::text[],
            $18::text[], $19::text[], $20::text[], $21::text[], $22::text[], $23::bigint[], $24::bigint[])
            as m(group_no, place, message_id, parent_id, role, kind, status, content, payload, metadata, context,
                external_id, token_count, now_us)
        where q.before[m.group_no] is not null
    ), texts as (
        insert into message_texts (bucket, session_id, seq, project_id, created_at, lexemes)
        select ($1::smallint[])[m.group_no], ($2::uuid[])[m.group_no], q.before[m.group_no] + m.place,
            ($3::uuid[])[m.group_no], m.now_us, array_to_tsvector(string_to_array(m.lexemes, ' '))
        from seqs q, unnest($11::int[], $12::bigint[], $24::bigint[], $25::text[])
            as m(group_no, place, now_us, lexemes)
        where q.before[m.group_no] is not null and m.lexemes <> ''
    ), jobs as (
        insert into embedding_jobs (bucket, session_id, seq, message_id, project_id, version, attempts, due_at,
            queued_at, is_backfill)
        select ($1::smallint[])[m.group_no], ($2::uuid[])[m.group_no], q.before[m.group_no] + m.place, m.message_id,
            ($3::uuid[])[m.group_no], 1, 0, m.now_us, m.now_us, false
        from seqs q, unnest($11::int[], $12::bigint[], $13::uuid[], $24::bigint[], $26::bool[])
            as m(group_no, place, message_id, now_us, is_queued)
        where q.before[m.group_no] is not null and m.is_queued
    )
    select before from seqs"
        )
    };
}
/// For appends that bring no ids to check. A session that somebody holds is left out, so that the
/// others do not wait for it.
pub(crate) const APPEND_BATCH: &str = append_batch!("", " skip locked");
/// A group with a taken external id or an absent parent is left out whole: each of its appends
/// then runs alone and gets its own answer. To a planner that takes sessions for short, their key
/// looks as good as the index that is meant: the external ids ask for its order, and the parents
/// compare their session by no equality.
macro_rules! checks {
    () => {
        " and not exists (
                select 1 from unnest($27::int[], $28::text[]) as x(group_no, external_id)
                where x.group_no = w.group_no and exists (select 1 from messages m where m.bucket = w.bucket
                    and m.session_id = w.session_id and m.external_id >= x.external_id
                    and m.external_id <= x.external_id and m.deleted_at is null order by m.external_id offset 0)
            ) and not exists (
                select 1 from unnest($29::int[], $30::uuid[]) as x(group_no, parent_id)
                where x.group_no = w.group_no and not exists (select 1 from messages m where m.bucket = w.bucket
                    and m.message_id = x.parent_id and m.session_id is not distinct from w.session_id
                    and m.deleted_at is null offset 0)
            )"
    };
}
pub(crate) const APPEND_BATCH_CHECKED: &str = append_batch!(checks!(), " skip locked");
/// For what a batch left out: this one waits for the row.
const APPEND_GROUP: &str = append_batch!(checks!(), "");
const UPDATE_SESSION_APPENDED: &str = concat!(
    "update sessions s
    set last_seq = s.last_seq + $5, message_count = s.message_count + $5,
        token_count = case when $6::bigint is null then s.token_count
            else least(coalesce(s.token_count, 0)::numeric + $6, 9223372036854775807)::bigint end,
        stored_bytes = s.stored_bytes + $9,
        updated_at = greatest(s.updated_at, $7), updated_hour = greatest(s.updated_hour, $8),
        last_message_at = greatest(s.last_message_at, $7),
        active_hour = case when s.last_message_at is null then $8 else greatest(s.active_hour, $8) end
    where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4)
    returning s.last_seq - $5, s.user_id, s.message_count"
);
/// `offset 0` keeps the planner from looking through the session's messages for these.
const SELECT_PARENTS: &str = "select m.message_id from unnest($3::uuid[]) p(message_id) cross join lateral (
        select m.* from messages m where m.bucket = $1 and m.message_id = p.message_id offset 0) m
    where m.session_id = $2 and m.deleted_at is null";
const LOCK_SESSION: &str = "select 1 from sessions where bucket = $1 and session_id = $2 for no key update";
const SELECT_STORED: &str = "select min(m.seq) from unnest($3::uuid[]) p(message_id) cross join lateral (
        select m.* from messages m where m.bucket = $1 and m.message_id = p.message_id offset 0) m
    where m.session_id = $2";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    APPEND_BATCH,
    APPEND_BATCH_CHECKED,
    APPEND_GROUP,
    UPDATE_SESSION_APPENDED,
    SELECT_PARENTS,
    LOCK_SESSION,
    SELECT_STORED,
];

/// One caller's append.
#[derive(Clone)]
pub(crate) struct Append {
    pub(crate) scope: Scope,
    pub(crate) session_id: SessionId,
    pub(crate) messages: Vec<NewMessage>,
    /// The words of each message, as lexemes.
    pub(crate) words: Arc<[String]>,
    pub(crate) now: Timestamp,
}

impl Append {
    /// The messages as they stand behind `last_seq`.
    pub(crate) fn into_stored(self, last_seq: i64) -> Vec<Message> {
        let (project_id, session_id, now) = (self.scope.project_id, self.session_id, self.now);
        let placed = self.messages.into_iter().zip(last_seq + 1..);
        placed.map(|(new, seq)| new.into_message(project_id, session_id, seq, now)).collect()
    }

    /// Whether it brings vectors, which a batch does not store.
    pub(crate) fn has_vectors(&self) -> bool {
        self.messages.iter().any(|message| message.embedding.is_some())
    }

    pub(crate) fn count(&self) -> i64 {
        i64::try_from(self.messages.len()).unwrap_or(i64::MAX)
    }

    fn tokens(&self) -> Option<i64> {
        self.messages.iter().fold(None, |sum, message| plus_tokens(sum, message.token_count))
    }

    /// Bytes of what its messages say.
    fn stored_bytes(&self) -> i64 {
        let bytes = |m: &NewMessage| stored_bytes(&m.content, m.payload.as_ref(), &m.metadata, m.context.as_ref());
        self.messages.iter().map(bytes).sum()
    }

    pub(crate) fn external_ids(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().filter_map(|message| message.external_id.as_deref())
    }

    /// Parents that must stand in the session already, with the place of the message that names them.
    fn foreign_parents(&self) -> Vec<(usize, MessageId)> {
        let mut own = HashSet::new();
        let mut foreign = Vec::new();
        for (n, message) in self.messages.iter().enumerate() {
            foreign.extend(message.parent_id.filter(|parent_id| !own.contains(parent_id)).map(|id| (n, id)));
            own.insert(message.message_id);
        }
        foreign
    }
}

/// Appends to one session by callers of one scope, in their order.
pub(crate) type Group<'a> = Vec<&'a Append>;

/// Whether a message waits for its vectors from the start.
fn is_queued(message: &NewMessage) -> bool {
    message.embed && !message.content.is_empty()
}

/// What a batch does about a session whose row somebody holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// It is left out.
    Skip,
    /// It is waited for.
    Wait,
}

/// Stores every group in one statement, and so in one commit. The answer holds the `last_seq` from
/// which each group goes on; `None` for a group that was not stored.
pub(crate) async fn append_batch(db: &Db, groups: &[Group<'_>], held: Held) -> Result<Vec<Option<i64>>, Failure> {
    let wanted = Wanted::of(groups);
    let rows = Rows::of(groups);
    let checks = Checks::of(groups);
    let mut params = Vec::with_capacity(30);
    params.extend_from_slice(params![
        wanted.buckets,
        wanted.session_ids,
        wanted.project_ids,
        wanted.user_ids,
        wanted.messages,
        wanted.messages_max,
        wanted.tokens,
        wanted.bytes,
        wanted.now_us,
        wanted.now_hours,
        rows.group_nos,
        rows.places,
        rows.message_ids,
        rows.parent_ids,
        rows.roles,
        rows.kinds,
        rows.statuses,
        rows.contents,
        rows.payloads,
        rows.metadata,
        rows.contexts,
        rows.external_ids,
        rows.token_counts,
        rows.now_us,
        rows.lexemes,
        rows.queued,
    ]);
    let sql = match held {
        Held::Skip if checks.is_empty() => APPEND_BATCH,
        Held::Skip => APPEND_BATCH_CHECKED,
        Held::Wait => APPEND_GROUP,
    };
    if sql != APPEND_BATCH {
        let ids = params![checks.external_groups, checks.external_ids, checks.parent_groups, checks.parent_ids];
        params.extend_from_slice(ids);
    }
    let row = db.query_opt(sql, &params).await?;
    let row = row.ok_or_else(|| StoreError::internal("an append without an answer"))?;
    Ok(row.try_get(0)?)
}

/// Stores one append, inside a transaction: update, then insert. `uncertain` says that it may have
/// been stored before, by a commit whose answer was lost; then it is not stored again.
pub(crate) async fn append_alone(
    db: &Db,
    form: AppendForm,
    append: &Append,
    uncertain: bool,
) -> Result<Vec<Message>, Failure> {
    let (session_id, scope) = (append.session_id, &append.scope);
    let bucket = bucket_value(session_id.bucket());
    let params = params![
        bucket,
        session_id.uuid(),
        scope.project_id.uuid(),
        scope.user_id.as_deref(),
        append.count(),
        append.tokens(),
        append.now.as_micros(),
        append.now.hour(),
        append.stored_bytes(),
    ];
    if uncertain && let Some(first_seq) = find_stored(db, append).await? {
        return Ok(append.clone().into_stored(first_seq - 1));
    }
    let row = db.query_opt(UPDATE_SESSION_APPENDED, params).await?.ok_or(StoreError::NotFound)?;
    scope.quotas.check_messages(row.try_get::<_, i64>(2)?.unsigned_abs())?;
    let last_seq: i64 = row.try_get(0)?;
    let messages = append.clone().into_stored(last_seq);
    let orphan = find_orphan(db, append).await?;
    // Of several faults the first is told: what stands before may have a taken id.
    let sound = &messages[..orphan.unwrap_or(messages.len())];
    insert_messages(db, form, session_id, sound).await?;
    insert_derived(db, append, sound, row.try_get(1)?).await?;
    match orphan {
        None => Ok(messages),
        Some(n) => {
            let detail = "is no message of this session".to_owned();
            Err(StoreError::Invalid { pointer: format!("/{n}/parent_id"), detail }.into())
        }
    }
}

/// Stores what comes with messages: their words, their places in the queue and their vectors.
async fn insert_derived(db: &Db, append: &Append, messages: &[Message], user_id: Option<&str>) -> Result<(), Failure> {
    let keys: Vec<_> = messages.iter().map(MessageKey::from).collect();
    insert_texts(db, &keys, &append.words).await?;
    let source = if append.has_vectors() { find_source(db).await? } else { None };
    let of_source = |new: &NewMessage| matches!((&new.embedding, &source), (Some(a), Some(b)) if a.model == b.model);
    for (n, (key, new)) in keys.into_iter().zip(&append.messages).enumerate() {
        if is_queued(new) && !of_source(new) {
            insert_job(db, key, 1, Queued::New(append.now)).await?;
        }
        if let Some(NewEmbedding { model, vector }) = &new.embedding {
            let model_id = require_model(db, key.project_id, model, vector).await?;
            let model_id = model_id.map_err(|fault| fault.at(format!("/{n}/embedding")))?;
            insert_vectors(db, key, user_id, (model_id, Origin::Brought), slice::from_ref(vector)).await?;
        }
    }
    Ok(())
}

/// The first place that a lost attempt has taken, if it was stored. Waits until it has ended.
async fn find_stored(db: &Db, append: &Append) -> Result<Option<i64>, Failure> {
    let (bucket, session_id) = (bucket_value(append.session_id.bucket()), append.session_id.uuid());
    db.query(LOCK_SESSION, params![bucket, session_id]).await?;
    let ids: Vec<Uuid> = append.messages.iter().map(|message| message.message_id.uuid()).collect();
    let row = db.query_opt(SELECT_STORED, params![bucket, session_id, ids]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
}

/// The first message whose parent does not stand in the session.
async fn find_orphan(db: &Db, append: &Append) -> Result<Option<usize>, Failure> {
    let wanted = append.foreign_parents();
    if wanted.is_empty() {
        return Ok(None);
    }
    let ids: Vec<Uuid> = wanted.iter().map(|(_, parent_id)| parent_id.uuid()).collect();
    let params = params![bucket_value(append.session_id.bucket()), append.session_id.uuid(), ids];
    let rows = db.query(SELECT_PARENTS, params).await?;
    let found = rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<Uuid>, _>>()?;
    Ok(wanted.into_iter().find(|(_, parent_id)| !found.contains(&parent_id.uuid())).map(|(n, _)| n))
}
