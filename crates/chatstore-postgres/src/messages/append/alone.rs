//! One append in a transaction of its own: what a batch left out or cannot do, and everything on a sharded database.
//!
//! The session first, then the record: two that contend for a record contend for its session before, and nobody waits for
//! a record while it holds a session.

use std::collections::HashMap;
use std::time::Duration;

use chatstore_core::idempotency::{Answered, Claim, IdempotencyRecord, Places, Recognition, replay_messages};
use chatstore_core::ids::SessionId;
use chatstore_core::messages::Message;
use chatstore_core::store::StoreError;
use uuid::Uuid;

use super::Append;
use super::fresh::insert_fresh;
use super::named::find_repeated;
use crate::AppendForm;
use crate::columns::{bucket_value, time_column_opt};
use crate::idempotency::{find_record, find_retried, in_flight, note_retry, put_record, wait_no_longer_than};
use crate::messages::{message_columns, message_row};
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::sessions::is_live;

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
const LOCK_SESSION_TO_APPEND: &str = concat!(
    "select 1 from sessions s where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4) for no key update"
);
const LOCK_SESSION: &str = "select 1 from sessions where bucket = $1 and session_id = $2 for no key update";
/// `offset 0` keeps the planner from looking through the session's messages for these.
const SELECT_STORED: &str = "select m.message_id, m.seq from unnest($3::uuid[]) p(message_id) cross join lateral (
        select m.* from messages m where m.bucket = $1 and m.message_id = p.message_id offset 0) m
    where m.session_id = $2";
/// One row even where nothing is there, so that it differs from no session. The order is that of the index that is meant.
const SELECT_PLACED: &str = concat!(
    "select ",
    message_columns!(),
    ", s.deleted_at from sessions s left join lateral (
        select m.* from unnest($5::bigint[]) p(seq) cross join lateral (
            select m.* from messages m where m.bucket = $1 and m.session_id = $2 and m.seq >= p.seq and m.seq <= p.seq
            order by m.seq offset 0) m) m on true
    where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ($4::text is null or s.user_id = $4)"
);

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[UPDATE_SESSION_APPENDED, LOCK_SESSION_TO_APPEND, LOCK_SESSION, SELECT_STORED, SELECT_PLACED];

/// An append that runs alone.
pub(crate) struct Alone<'a> {
    pub(crate) append: &'a Append,
    pub(crate) form: AppendForm,
    /// What may have been stored before; then it is not stored again.
    pub(crate) lost: Option<&'a Lost>,
    /// How long one that may be at work elsewhere waits for who holds its session.
    pub(crate) patience: Duration,
}

/// An attempt whose commit was not answered.
pub(crate) enum Lost {
    /// In a batch, which stores all messages of an append.
    Batched,
    /// Alone, with the answer that it made.
    Alone(Answered<Vec<Message>>),
}

impl Alone<'_> {
    /// Stores it, or answers it as an earlier one of its kind, inside a transaction.
    pub(crate) async fn run(&self, db: &Db) -> Result<Answered<Vec<Message>>, Failure> {
        if let Some(lost) = self.lost {
            if let Some(messages) = self.find_stored(db, lost).await? {
                return Ok(Answered::first(messages));
            }
            // It may have answered for an earlier one, or not: its next retry finds what the truth is.
            let is_retry = self.append.claim.as_ref().is_some_and(|claim| claim.retry() > 0);
            if is_retry && matches!(lost, Lost::Alone(answer) if answer.is_replay) {
                let reason = "the outcome of a commit is unknown: what it replayed may be noted or not".to_owned();
                return Err(StoreError::Unavailable { reason }.into());
            }
        }
        if let Some(claim) = self.append.keyed()
            && let Some(record) = find_record(db, claim).await?
        {
            return self.replay(db, &record).await;
        }
        let claim = self.append.claim.as_ref();
        if claim.is_none() && self.append.external_ids().next().is_none() {
            return Ok(Answered::first(self.store(db, vec![None; self.append.messages.len()]).await?));
        }
        self.lock_session(db).await?;
        if let Some(claim) = claim
            && let Some(answer) = self.repeat(db, claim).await?
        {
            return Ok(answer);
        }
        let (mut repeated, taken) = find_repeated(db, self.append).await?;
        if let Some(n) = taken {
            // What stands before it may have a fault of its own, and the first is told.
            repeated.truncate(n);
            self.store(db, repeated).await?;
            return Err(StoreError::ExternalIdTaken { n }.into());
        }
        let messages = self.store(db, repeated).await?;
        if let Some(claim) = claim {
            let record = claim.record(self.append.session_id.to_string(), Places::of(&messages));
            // One of nothing that is known by its body finds the record of its like, which says the same.
            if !put_record(db, &record).await.map_err(in_flight)? && self.append.keyed().is_some() {
                return Err(StoreError::InFlight.into());
            }
        }
        Ok(Answered::first(messages))
    }

    /// Takes the session's row; an append that may be at work elsewhere is refused if it has to wait long for it.
    async fn lock_session(&self, db: &Db) -> Result<(), Failure> {
        let Append { scope, session_id, .. } = self.append;
        let params = params![
            bucket_value(session_id.bucket()),
            session_id.uuid(),
            scope.project_id.uuid(),
            scope.user_id.as_deref(),
        ];
        let row = if self.append.may_be_at_work() {
            wait_no_longer_than(db, self.patience).await?;
            db.query_opt(LOCK_SESSION_TO_APPEND, params).await.map_err(|error| in_flight(error.into()))?
        } else {
            db.query_opt(LOCK_SESSION_TO_APPEND, params).await?
        };
        row.map(drop).ok_or_else(|| StoreError::NotFound.into())
    }

    /// Stores the messages that are not `repeated`; all that are listed, in the order of the request.
    async fn store(&self, db: &Db, repeated: Vec<Option<Message>>) -> Result<Vec<Message>, Failure> {
        let ns: Vec<usize> = (0..repeated.len()).filter(|n| repeated[*n].is_none()).collect();
        if ns.is_empty() {
            return Ok(repeated.into_iter().flatten().collect());
        }
        let fresh = self.append.only(&ns);
        let (session_id, scope) = (fresh.session_id, &fresh.scope);
        let params = params![
            bucket_value(session_id.bucket()),
            session_id.uuid(),
            scope.project_id.uuid(),
            scope.user_id.as_deref(),
            fresh.count(),
            fresh.tokens(),
            fresh.now.as_micros(),
            fresh.now.hour(),
            fresh.stored_bytes(),
        ];
        let row = db.query_opt(UPDATE_SESSION_APPENDED, params).await?.ok_or(StoreError::NotFound)?;
        scope.quotas.check_messages(row.try_get::<_, i64>(2)?.unsigned_abs())?;
        let stored = insert_fresh(db, self.form, &fresh, &ns, row.try_get(0)?, row.try_get(1)?).await?;
        Ok(merge(repeated, stored))
    }

    /// The answer to an append that comes again, if it does. The session is held.
    async fn repeat(&self, db: &Db, claim: &Claim) -> Result<Option<Answered<Vec<Message>>>, Failure> {
        match claim.recognition {
            Recognition::Key => match find_record(db, claim).await? {
                Some(record) => Ok(Some(self.replay(db, &record).await?)),
                None => Ok(None),
            },
            // What is no retry is always meant.
            Recognition::Body { retry: 0, .. } => Ok(None),
            Recognition::Body { .. } => match find_standing(db, claim).await? {
                Some((record, placed)) => {
                    note_retry(db, claim, &record).await?;
                    let messages = replay_messages(&record, self.append.messages.clone(), &placed)?;
                    Ok(Some(Answered::replay(messages)))
                }
                None => Ok(None),
            },
        }
    }

    /// The answer of the record of a key.
    async fn replay(&self, db: &Db, record: &IdempotencyRecord) -> Result<Answered<Vec<Message>>, Failure> {
        let Append { scope, session_id, messages, .. } = self.append;
        let placed = select_placed(db, record, *session_id, scope.user_id.as_deref()).await?;
        let placed = placed.ok_or(StoreError::NotFound)?;
        if placed.is_of_deleted {
            return Err(StoreError::Gone.into());
        }
        Ok(Answered::replay(replay_messages(record, messages.clone(), &placed.messages)?))
    }

    /// What a lost attempt has stored. Waits until it has ended.
    async fn find_stored(&self, db: &Db, lost: &Lost) -> Result<Option<Vec<Message>>, Failure> {
        let Append { session_id, messages, scope, now, .. } = self.append;
        let bucket = bucket_value(session_id.bucket());
        db.query(LOCK_SESSION, params![bucket, session_id.uuid()]).await?;
        let ids: Vec<Uuid> = messages.iter().map(|message| message.message_id.uuid()).collect();
        let rows = db.query(SELECT_STORED, params![bucket, session_id.uuid(), ids]).await?;
        let seqs = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let seqs = seqs.collect::<Result<HashMap<Uuid, i64>, Failure>>()?;
        match lost {
            _ if seqs.is_empty() => Ok(None),
            // What was there already may have changed since.
            Lost::Alone(answer) => Ok(Some(answer.value.clone())),
            Lost::Batched => {
                let placed = messages.iter().map(|new| {
                    let seq = *seqs.get(&new.message_id.uuid())?;
                    Some(new.clone().into_message(scope.project_id, *session_id, seq, *now))
                });
                let placed: Option<Vec<Message>> = placed.collect();
                Ok(Some(placed.ok_or_else(|| StoreError::internal("a part of an append is stored"))?))
            }
        }
    }
}

/// What stands at the places of a record.
struct Placed {
    /// Deleted ones too.
    messages: Vec<Message>,
    /// Whether their session is deleted, and they with it.
    is_of_deleted: bool,
}

/// What stands in a session, deleted or not, at the places of a record; `None` if there is no such session.
async fn select_placed(
    db: &Db,
    record: &IdempotencyRecord,
    session_id: SessionId,
    user_id: Option<&str>,
) -> Result<Option<Placed>, Failure> {
    let bucket = bucket_value(session_id.bucket());
    let places = record.places.0.clone();
    let params = params![bucket, session_id.uuid(), record.project_id.uuid(), user_id, places];
    let rows = db.query(SELECT_PLACED, params).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let is_of_deleted = time_column_opt(first, 16)?.is_some();
    let there = rows.iter().filter(|row| !matches!(row.try_get::<_, Option<i64>>(0), Ok(None)));
    let messages = there.map(|row| message_row(row, session_id, record.project_id)).collect::<Result<_, _>>()?;
    Ok(Some(Placed { messages, is_of_deleted }))
}

/// The newest record of a request that the claim's retry may be of, of which nothing is deleted, with what it made.
pub(crate) async fn find_standing(
    db: &Db,
    claim: &Claim,
) -> Result<Option<(IdempotencyRecord, Vec<Message>)>, Failure> {
    for record in find_retried(db, claim).await?.into_iter().filter(|record| claim.may_repeat(record)) {
        let session_id =
            SessionId::parse(&record.target).ok_or_else(|| StoreError::internal("a record cannot be read"))?;
        if let Some(placed) = select_placed(db, &record, session_id, None).await?
            && !placed.is_of_deleted
            && placed.messages.iter().all(|message| message.deleted_at.is_none())
        {
            return Ok(Some((record, placed.messages)));
        }
    }
    Ok(None)
}

/// The messages that are there, and the others in the gaps between them.
fn merge(there: Vec<Option<Message>>, others: Vec<Message>) -> Vec<Message> {
    let mut others = others.into_iter();
    there.into_iter().filter_map(|message| message.or_else(|| others.next())).collect()
}
