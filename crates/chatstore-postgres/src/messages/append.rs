//! Appending, in both forms: many appends in one statement, or one in a transaction of its own.

use std::collections::HashSet;

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, NewMessage};
use chatstore_core::store::{Scope, StoreError};
use uuid::Uuid;

use super::insert::insert_messages;
use super::plus_tokens;
use crate::AppendForm;
use crate::columns::bucket_value;
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::sessions::is_live;

/// Appends to many sessions. `locked` takes the sessions' rows in the order of their ids, so that
/// replicas never wait for each other in a circle, and reads `last_seq` as it is under the lock;
/// what it does not find is answered with null, and nothing is written of it.
macro_rules! append_batch {
    ($checks:expr, $locked:literal) => {
        concat!(
            "with wanted as (
        select * from unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
            $8::bigint[]) with ordinality
            as w(bucket, session_id, project_id, user_id, messages, tokens, now_us, now_hour, group_no)
    ), locked as (
        select w.bucket, w.session_id, w.messages, w.tokens, w.now_us, w.now_hour, w.group_no, s.last_seq
        from wanted w left join lateral (
            select s.last_seq from sessions s
            where s.bucket = w.bucket and s.session_id = w.session_id and s.project_id = w.project_id
                and ",
            is_live!(),
            " and (w.user_id is null or s.user_id = w.user_id)",
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
        from seqs q, unnest($9::int[], $10::bigint[], $11::uuid[], $12::uuid[], $13::text[], $14::text[], $15::text[],
            $16::text[], $17::text[], $18::text[], $19::text[], $20::text[], $21::bigint[], $22::bigint[])
            as m(group_no, place, message_id, parent_id, role, kind, status, content, payload, metadata, context,
                external_id, token_count, now_us)
        where q.before[m.group_no] is not null
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
                select 1 from unnest($23::int[], $24::text[]) as x(group_no, external_id)
                where x.group_no = w.group_no and exists (select 1 from messages m where m.bucket = w.bucket
                    and m.session_id = w.session_id and m.external_id >= x.external_id
                    and m.external_id <= x.external_id and m.deleted_at is null order by m.external_id offset 0)
            ) and not exists (
                select 1 from unnest($25::int[], $26::uuid[]) as x(group_no, parent_id)
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
        updated_at = greatest(s.updated_at, $7), updated_hour = greatest(s.updated_hour, $8),
        last_message_at = greatest(s.last_message_at, $7),
        active_hour = case when s.last_message_at is null then $8 else greatest(s.active_hour, $8) end
    where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4)
    returning s.last_seq - $5"
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
    pub(crate) now: Timestamp,
}

impl Append {
    /// The messages as they stand behind `last_seq`.
    pub(crate) fn into_stored(self, last_seq: i64) -> Vec<Message> {
        let (project_id, session_id, now) = (self.scope.project_id, self.session_id, self.now);
        let placed = self.messages.into_iter().zip(last_seq + 1..);
        placed.map(|(new, seq)| new.into_message(project_id, session_id, seq, now)).collect()
    }

    pub(crate) fn count(&self) -> i64 {
        i64::try_from(self.messages.len()).unwrap_or(i64::MAX)
    }

    fn tokens(&self) -> Option<i64> {
        self.messages.iter().fold(None, |sum, message| plus_tokens(sum, message.token_count))
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
    let mut params = Vec::with_capacity(26);
    params.extend_from_slice(params![
        wanted.buckets,
        wanted.session_ids,
        wanted.project_ids,
        wanted.user_ids,
        wanted.messages,
        wanted.tokens,
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

/// The sessions of a batch, each once.
#[derive(Default)]
struct Wanted<'a> {
    buckets: Vec<i16>,
    session_ids: Vec<Uuid>,
    project_ids: Vec<Uuid>,
    user_ids: Vec<Option<&'a str>>,
    messages: Vec<i64>,
    tokens: Vec<Option<i64>>,
    now_us: Vec<i64>,
    now_hours: Vec<i64>,
}

impl<'a> Wanted<'a> {
    fn of(groups: &[Group<'a>]) -> Self {
        let mut wanted = Self::default();
        for group in groups {
            let Some(first) = group.first() else { continue };
            let now = group.iter().map(|append| append.now).max().unwrap_or(first.now);
            wanted.buckets.push(bucket_value(first.session_id.bucket()));
            wanted.session_ids.push(first.session_id.uuid());
            wanted.project_ids.push(first.scope.project_id.uuid());
            wanted.user_ids.push(first.scope.user_id.as_deref());
            wanted.messages.push(group.iter().map(|append| append.count()).sum());
            wanted.tokens.push(group.iter().fold(None, |sum, append| plus_tokens(sum, append.tokens())));
            wanted.now_us.push(now.as_micros());
            wanted.now_hours.push(now.hour());
        }
        wanted
    }
}

/// The messages of a batch, column by column.
#[derive(Default)]
struct Rows<'a> {
    group_nos: Vec<i32>,
    places: Vec<i64>,
    message_ids: Vec<Uuid>,
    parent_ids: Vec<Option<Uuid>>,
    roles: Vec<&'a str>,
    kinds: Vec<&'a str>,
    statuses: Vec<&'a str>,
    contents: Vec<&'a str>,
    payloads: Vec<Option<&'a str>>,
    metadata: Vec<&'a str>,
    contexts: Vec<Option<&'a str>>,
    external_ids: Vec<Option<&'a str>>,
    token_counts: Vec<Option<i64>>,
    now_us: Vec<i64>,
}

impl<'a> Rows<'a> {
    fn of(groups: &[Group<'a>]) -> Self {
        let mut rows = Self::default();
        for (group, group_no) in groups.iter().zip(1..) {
            let messages = group.iter().flat_map(|append| append.messages.iter().map(|message| (message, append.now)));
            for ((message, now), place) in messages.zip(1..) {
                rows.push(group_no, place, message, now);
            }
        }
        rows
    }

    fn push(&mut self, group_no: i32, place: i64, message: &'a NewMessage, now: Timestamp) {
        self.group_nos.push(group_no);
        self.places.push(place);
        self.message_ids.push(message.message_id.uuid());
        self.parent_ids.push(message.parent_id.map(MessageId::uuid));
        self.roles.push(&message.role);
        self.kinds.push(&message.kind);
        self.statuses.push(message.status.as_str());
        self.contents.push(&message.content);
        self.payloads.push(message.payload.as_ref().map(RawJson::as_str));
        self.metadata.push(message.metadata.as_str());
        self.contexts.push(message.context.as_ref().map(RawJson::as_str));
        self.external_ids.push(message.external_id.as_deref());
        self.token_counts.push(message.token_count);
        self.now_us.push(now.as_micros());
    }
}

/// The ids that a batch brings and that must be free, or taken.
#[derive(Default)]
struct Checks<'a> {
    external_groups: Vec<i32>,
    external_ids: Vec<&'a str>,
    parent_groups: Vec<i32>,
    parent_ids: Vec<Uuid>,
}

impl<'a> Checks<'a> {
    fn of(groups: &[Group<'a>]) -> Self {
        let mut checks = Self::default();
        for (group, group_no) in groups.iter().zip(1..) {
            for append in group {
                for external_id in append.external_ids() {
                    checks.external_groups.push(group_no);
                    checks.external_ids.push(external_id);
                }
                for (_, parent_id) in append.foreign_parents() {
                    checks.parent_groups.push(group_no);
                    checks.parent_ids.push(parent_id.uuid());
                }
            }
        }
        checks
    }

    fn is_empty(&self) -> bool {
        self.external_groups.is_empty() && self.parent_groups.is_empty()
    }
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
    ];
    if uncertain && let Some(first_seq) = find_stored(db, append).await? {
        return Ok(append.clone().into_stored(first_seq - 1));
    }
    let row = db.query_opt(UPDATE_SESSION_APPENDED, params).await?.ok_or(StoreError::NotFound)?;
    let last_seq: i64 = row.try_get(0)?;
    let messages = append.clone().into_stored(last_seq);
    let orphan = find_orphan(db, append).await?;
    // Of several faults the first is told: what stands before may have a taken id.
    insert_messages(db, form, session_id, &messages[..orphan.unwrap_or(messages.len())]).await?;
    match orphan {
        None => Ok(messages),
        Some(n) => {
            let detail = "is no message of this session".to_owned();
            Err(StoreError::Invalid { pointer: format!("/{n}/parent_id"), detail }.into())
        }
    }
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
