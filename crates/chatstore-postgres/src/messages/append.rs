//! Appending, in both forms: many appends in one statement, here, or one in a transaction of its own, in `alone`.

pub(crate) mod alone;
pub(crate) mod fresh;
mod lists;
pub(crate) mod named;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Claim, Recognition};
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::messages::{Message, NewMessage, plus_tokens};
use chatstore_core::store::{Scope, StoreError};

use super::stored_bytes;
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::sessions::is_live;
use lists::{Checks, Claims, Rows, Wanted};

/// Appends to many sessions. `locked` takes the sessions' rows in the order of their ids, so that
/// replicas never wait for each other in a circle, and reads `last_seq` as it is under the lock;
/// what it does not find, or what would be more than its quota, is answered with null, and nothing is written of it.
macro_rules! append_batch {
    ($taken:expr, $checks:expr, $locked:literal, $records:expr) => {
        concat!(
            "with wanted as (
        select * from unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::bigint[], $10::bigint[]) with ordinality
            as w(bucket, session_id, project_id, user_id, messages, messages_max, tokens, bytes, now_us, now_hour,
                group_no)
    ), ",
            $taken,
            "locked as (
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
    )",
            $records,
            "
    select before from seqs"
        )
    };
}
/// For appends that bring no ids to check and no claims. A session that somebody holds is left out, so that the
/// others do not wait for it.
pub(crate) const APPEND_BATCH: &str = append_batch!("", "", " skip locked", "");
/// A group with a taken external id, which may be the id of a message in the form of the wire, or an absent parent is
/// left out whole: each of its appends then runs alone and gets its own answer. To a planner that takes sessions for
/// short, their key looks as good as the index that is meant: the external ids ask for its order, and the others compare
/// their session by no equality.
macro_rules! checks {
    () => {
        " and not exists (
                select 1 from unnest($27::int[], $28::text[]) as x(group_no, external_id)
                where x.group_no = w.group_no and exists (select 1 from messages m where m.bucket = w.bucket
                    and m.session_id = w.session_id and m.external_id >= x.external_id
                    and m.external_id <= x.external_id and m.deleted_at is null order by m.external_id offset 0)
            ) and not exists (
                select 1 from unnest($29::int[], $30::uuid[], $31::bool[]) as x(group_no, message_id, is_parent)
                where x.group_no = w.group_no and x.is_parent <> exists (select 1 from messages m
                    where m.bucket = w.bucket and m.message_id = x.message_id
                    and m.session_id is not distinct from w.session_id and m.deleted_at is null offset 0)
            )"
    };
}
pub(crate) const APPEND_BATCH_CHECKED: &str = append_batch!("", checks!(), " skip locked", "");
/// The groups with an append that has been done before under its key, or at least may have been: each of theirs then
/// runs alone. One that another replica does at this moment fails the statement, for its record stands in the way.
macro_rules! taken {
    () => {
        "taken as materialized (
        select coalesce(array_agg(c.group_no), '{}') as groups
        from unnest($32::int[], $33::bytea[], $35::bool[]) as c(group_no, claim_id, is_keyed)
        where c.is_keyed and exists (select 1 from idempotency_records r
            where r.bucket = ($1::smallint[])[c.group_no] and r.project_id = ($3::uuid[])[c.group_no]
                and r.claim_id = c.claim_id and r.place = 0 offset 0)
    ), "
    };
}
macro_rules! checks_of_claims {
    () => {
        concat!(checks!(), " and w.group_no <> all ((select groups from taken)::bigint[])")
    };
}
/// The records of claims, with the places that their messages took.
macro_rules! records {
    () => {
        ", records as (
        insert into idempotency_records (bucket, project_id, claim_id, place, fingerprint, target, places, retry,
            created_at, expires_at)
        select ($1::smallint[])[c.group_no], ($3::uuid[])[c.group_no], c.claim_id,
            case when c.is_keyed then 0 else q.before[c.group_no] + c.last end, c.fingerprint,
            ($2::uuid[])[c.group_no]::text, concat_ws('-', q.before[c.group_no] + c.first,
                case when c.first < c.last then q.before[c.group_no] + c.last end), 0, c.now_us, c.expires_us
        from seqs q, unnest($32::int[], $33::bytea[], $34::bytea[], $35::bool[], $36::bigint[], $37::bigint[],
            $38::bigint[], $39::bigint[])
            as c(group_no, claim_id, fingerprint, is_keyed, first, last, now_us, expires_us)
        where q.before[c.group_no] is not null
    )"
    };
}
pub(crate) const APPEND_BATCH_CLAIMED: &str = append_batch!(taken!(), checks_of_claims!(), " skip locked", records!());
/// For what a batch left out: this one waits for the row.
const APPEND_GROUP: &str = append_batch!(taken!(), checks_of_claims!(), "", records!());

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[APPEND_BATCH, APPEND_BATCH_CHECKED, APPEND_BATCH_CLAIMED, APPEND_GROUP];

/// One caller's append.
#[derive(Clone)]
pub(crate) struct Append {
    pub(crate) scope: Scope,
    pub(crate) session_id: SessionId,
    pub(crate) messages: Vec<NewMessage>,
    /// The words of each message, as lexemes.
    pub(crate) words: Arc<[String]>,
    pub(crate) now: Timestamp,
    pub(crate) claim: Option<Claim>,
}

impl Append {
    /// Those of its messages alone that stand at `ns` of it.
    pub(crate) fn only(&self, ns: &[usize]) -> Cow<'_, Self> {
        if ns.len() == self.messages.len() {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Self {
            scope: self.scope.clone(),
            session_id: self.session_id,
            messages: ns.iter().map(|n| self.messages[*n].clone()).collect(),
            words: ns.iter().map(|n| self.words[*n].clone()).collect(),
            now: self.now,
            claim: self.claim.clone(),
        })
    }

    /// The claim of one that is known by its key.
    pub(crate) fn keyed(&self) -> Option<&Claim> {
        self.claim.as_ref().filter(|claim| claim.recognition == Recognition::Key)
    }

    /// Whether it may be the same as one that is at work, and so is sent again rather than waits long for its session.
    pub(crate) fn may_be_at_work(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| !matches!(claim.recognition, Recognition::Body { retry: 0, .. }))
    }

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

    /// Whether it takes other than what a batch does: to store nothing but its record, to store vectors, to answer a retry
    /// with what it is of, or to say which of two messages came second under one id.
    pub(crate) fn runs_alone(&self) -> bool {
        let is_retry = self.claim.as_ref().is_some_and(|claim| claim.retry() > 0);
        self.messages.is_empty() || self.has_vectors() || is_retry || self.first_repeated_name().is_some()
    }

    /// The first message with the external id of one before it.
    pub(crate) fn first_repeated_name(&self) -> Option<usize> {
        let mut met = HashSet::new();
        let mut all = self.messages.iter().map(|message| message.external_id.as_deref());
        all.position(|name| name.is_some_and(|name| !met.insert(name)))
    }

    pub(crate) fn count(&self) -> i64 {
        i64::try_from(self.messages.len()).unwrap_or(i64::MAX)
    }

    fn tokens(&self) -> Option<i64> {
        self.messages.iter().fold(None, |sum, message| plus_tokens(sum, message.token_count))
    }

    /// Bytes of what its messages say.
    pub(crate) fn stored_bytes(&self) -> i64 {
        let bytes = |m: &NewMessage| stored_bytes(&m.content, m.payload.as_ref(), &m.metadata, m.context.as_ref());
        self.messages.iter().map(bytes).sum()
    }

    pub(crate) fn external_ids(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().filter_map(|message| message.external_id.as_deref())
    }

    /// The message of the session that an external id would be in the form of the Conversations wire.
    pub(crate) fn spelled(&self, external_id: &str) -> Option<MessageId> {
        MessageId::parse_item_id(external_id).filter(|message_id| message_id.bucket() == self.session_id.bucket())
    }

    /// Parents that must stand in the session already, with the place of the message that names them.
    pub(crate) fn foreign_parents(&self) -> Vec<(usize, MessageId)> {
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
    let claims = Claims::of(groups);
    let mut params = Vec::with_capacity(39);
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
        Held::Wait => APPEND_GROUP,
        Held::Skip if !claims.is_empty() => APPEND_BATCH_CLAIMED,
        Held::Skip if !checks.is_empty() => APPEND_BATCH_CHECKED,
        Held::Skip => APPEND_BATCH,
    };
    if sql != APPEND_BATCH {
        params.extend_from_slice(params![
            checks.external_groups,
            checks.external_ids,
            checks.message_groups,
            checks.message_ids,
            checks.are_parents,
        ]);
    }
    if [APPEND_BATCH_CLAIMED, APPEND_GROUP].contains(&sql) {
        params.extend_from_slice(params![
            claims.group_nos,
            claims.claim_ids,
            claims.fingerprints,
            claims.are_keyed,
            claims.firsts,
            claims.lasts,
            claims.now_us,
            claims.expires_us,
        ]);
    }
    let row = db.query_opt(sql, &params).await?;
    let row = row.ok_or_else(|| StoreError::internal("an append without an answer"))?;
    Ok(row.try_get(0)?)
}
