//! Appending: places, rows and counters, in the writer's transaction. What an earlier request of the same claim has
//! appended is answered, and not appended again.

use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim, IdempotencyRecord, Places, Recognition, replay_messages};
use chatstore_core::ids::SessionId;
use chatstore_core::messages::{Message, NewMessage, plus_tokens};
use chatstore_core::sessions::{Session, SessionSort};
use chatstore_core::store::{Scope, StoreError};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::named::InSession;
use super::{SEQ_END, insert_message, message_columns, message_no, message_row, stored_bytes};
use crate::columns::{time_column, time_column_opt};
use crate::derived::{Brought, insert_derived};
use crate::embeddings::jobs::Job;
use crate::idempotency::{answer_retry, find_record, insert_record};
use crate::search::index::{Home, analysed};
use crate::writer::{Failure, Kind, WriteConnection};

const SELECT_SESSION_COUNTERS: &str = "select session_no, last_seq, message_count, token_count, updated_at,
        last_message_at, updated_hour, active_hour, deleted_at is not null
    from sessions
    where session_id = ?1 and project_id = ?2 and (?3 is null or user_id = ?3)";
const UPDATE_SESSION_APPENDED: &str = "update sessions
    set last_seq = ?2, message_count = ?3, token_count = ?4, updated_at = ?5, last_message_at = ?6,
        stored_bytes = stored_bytes + ?7
    where session_no = ?1";
const UPDATE_SESSION_HOURS: &str = "update sessions set updated_hour = ?2, active_hour = ?3 where session_no = ?1";
const SELECT_PARENT: &str = "select exists (select 1 from messages
    where message_id = ?1 and message_no >> 32 = ?2 and deleted_at is null)";
const SELECT_BY_PLACE: &str = concat!("select ", message_columns!(), " from messages m where m.message_no = ?1");

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[SELECT_SESSION_COUNTERS, UPDATE_SESSION_APPENDED, UPDATE_SESSION_HOURS, SELECT_PARENT, SELECT_BY_PLACE];

/// Messages on their way into a session, each with its lexemes.
pub(crate) struct Arriving {
    messages: Vec<NewMessage>,
    lexemes: Vec<String>,
    now: Timestamp,
}

impl Arriving {
    /// Has the messages analysed.
    pub(crate) async fn new(home: Home, messages: Vec<NewMessage>, now: Timestamp) -> Result<Self, StoreError> {
        let (messages, lexemes) = analysed(home, messages, |message| &message.content).await?;
        Ok(Self { messages, lexemes, now })
    }

    /// Roughly how many bytes they take.
    pub(crate) fn bytes(&self) -> usize {
        self.messages.iter().map(NewMessage::bytes).sum::<usize>() + self.lexemes.iter().map(String::len).sum::<usize>()
    }

    /// The messages.
    pub(crate) fn messages(&self) -> &[NewMessage] {
        &self.messages
    }
}

/// A session that messages are put into: its number, and the counters that this moves.
pub(crate) struct Counters {
    session_no: i64,
    last_seq: i64,
    message_count: i64,
    token_count: Option<i64>,
    updated_at: Timestamp,
    last_message_at: Option<Timestamp>,
    updated_hour: i64,
    active_hour: i64,
}

impl Counters {
    /// Those of a session that has just been stored.
    pub(crate) fn of(session_no: i64, session: &Session) -> Self {
        Self {
            session_no,
            last_seq: session.last_seq,
            message_count: session.message_count,
            token_count: session.token_count,
            updated_at: session.updated_at,
            last_message_at: session.last_message_at,
            updated_hour: session.updated_at.hour(),
            active_hour: session.sorted_by(SessionSort::LastMessageAt).hour(),
        }
    }

    /// Counts one more message, at the next place, if there may be one.
    fn make_room(&mut self, scope: &Scope) -> Result<(), StoreError> {
        self.last_seq += 1;
        self.message_count += 1;
        if self.last_seq >= SEQ_END {
            let detail = "exceeds the messages a session can hold".to_owned();
            return Err(StoreError::Invalid { pointer: String::new(), detail });
        }
        scope.quotas.check_messages(u64::try_from(self.message_count).unwrap_or_default())
    }
}

/// Appends messages, unless an earlier request of this claim has; tells what was done.
pub(super) fn append(
    connection: &WriteConnection,
    scope: &Scope,
    session_id: SessionId,
    arriving: Arriving,
    claim: Option<&Claim>,
) -> Result<(Kind, Answered<Vec<Message>>), Failure> {
    let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
    let map = |row: &Row<'_>| Ok((counters_row(row)?, row.get(8)?));
    let found = connection.prepare_cached(SELECT_SESSION_COUNTERS)?.query_row(params, map).optional()?;
    let (counters, is_deleted): (_, bool) = found.ok_or(StoreError::NotFound)?;
    let last_seq = counters.last_seq;
    let session = InSession { session_no: counters.session_no, session_id, scope };
    let earlier = find_earlier(connection, session, claim)?;
    if is_deleted {
        // Whoever knows the key of a request that was done here knows of the session.
        let was_here = earlier.is_some() && claim.is_some_and(|claim| claim.recognition == Recognition::Key);
        return Err(if was_here { StoreError::Gone } else { StoreError::NotFound }.into());
    }
    if let Some((record, stored)) = earlier {
        return Ok((Kind::Plain, Answered::replay(replay_messages(&record, arriving.messages, &stored)?)));
    }
    let messages = fill(connection, scope, session_id, counters, arriving)?;
    if let Some(claim) = claim {
        insert_record(connection, &claim.record(session_id.to_string(), Places::of(&messages)))?;
    }
    let is_stored = messages.iter().any(|message| message.seq > last_seq);
    Ok((if is_stored { Kind::Append } else { Kind::Plain }, Answered::first(messages)))
}

/// The record of the request that this one repeats, and what stands at its places. It now has answered for this retry.
fn find_earlier(
    connection: &Connection,
    session: InSession<'_>,
    claim: Option<&Claim>,
) -> Result<Option<(IdempotencyRecord, Vec<Message>)>, Failure> {
    let Some(record) = find_record(connection, claim)? else { return Ok(None) };
    if let Some(Recognition::Body { retry, .. }) = claim.map(|claim| &claim.recognition) {
        answer_retry(connection, &record, *retry)?;
    }
    let stored = list_places(connection, session, &record.places)?;
    Ok(Some((record, stored)))
}

/// What stands at places of a session, deleted or not.
fn list_places(connection: &Connection, session: InSession<'_>, places: &Places) -> rusqlite::Result<Vec<Message>> {
    let mut statement = connection.prepare_cached(SELECT_BY_PLACE)?;
    let map = |row: &Row<'_>| message_row(row, session.session_id, session.scope.project_id);
    places.0.iter().map(|seq| statement.query_row(params![message_no(session.session_no, *seq)], map)).collect()
}

/// Puts messages into a session, and moves its counters; gives those of them that are there already as they stand.
pub(crate) fn fill(
    connection: &WriteConnection,
    scope: &Scope,
    session_id: SessionId,
    mut counters: Counters,
    arriving: Arriving,
) -> Result<Vec<Message>, Failure> {
    let Arriving { messages, lexemes, now } = arriving;
    let session = InSession { session_no: counters.session_no, session_id, scope };
    let (last_seq, mut bytes) = (counters.last_seq, 0);
    let mut answered = Vec::with_capacity(messages.len());
    for (n, (new, lexemes)) in messages.into_iter().zip(lexemes).enumerate() {
        let message = match find_repeated(connection, session, &new)? {
            // One of this very request, or two that repeat the same, would be one message twice.
            Some(known) if !new.says_what(&known) || answered.iter().any(|other: &Message| other.seq == known.seq) => {
                return Err(StoreError::ExternalIdTaken { n }.into());
            }
            Some(known) => known,
            None => {
                require_parent(connection, session, &new, n)?;
                counters.make_room(scope)?;
                let stored = store(connection, session, &mut counters, new, &lexemes, now).map_err(|f| at(f, n))?;
                bytes += stored_bytes(&stored);
                stored
            }
        };
        answered.push(message);
    }
    if counters.last_seq > last_seq {
        move_counters(connection, &counters, bytes, now)?;
    }
    Ok(answered)
}

/// The message of the session that a new one's external id names.
fn find_repeated(
    connection: &Connection,
    session: InSession<'_>,
    new: &NewMessage,
) -> rusqlite::Result<Option<Message>> {
    let Some(name) = new.external_id.as_deref() else {
        return Ok(None);
    };
    let found = session.find(|sql| connection.prepare_cached(sql), name)?;
    Ok(found.filter(|message| message.deleted_at.is_none()))
}

/// Stores a message at the next place, with what is derived of it.
fn store(
    connection: &WriteConnection,
    session: InSession<'_>,
    counters: &mut Counters,
    mut new: NewMessage,
    lexemes: &str,
    now: Timestamp,
) -> Result<Message, Failure> {
    let (embedding, job) = (new.embedding.take(), new.embed.then(|| Job::new(now)));
    let message = new.into_message(session.scope.project_id, session.session_id, counters.last_seq, now);
    insert_message(connection, session.session_no, &message)?;
    let vectors = embedding.iter().map(|new| (new.model.as_str(), std::slice::from_ref(&new.vector))).collect();
    let brought = Brought { lexemes, vectors, job };
    insert_derived(connection, message_no(session.session_no, message.seq), &message, brought)?;
    counters.token_count = plus_tokens(counters.token_count, message.token_count);
    Ok(message)
}

/// A refused vector is the one of the message at `n`.
fn at(failure: Failure, n: usize) -> Failure {
    match failure {
        Failure::Answer(StoreError::Invalid { pointer, detail }) => {
            StoreError::Invalid { pointer: format!("/{n}{pointer}"), detail }.into()
        }
        failure => failure,
    }
}

fn counters_row(row: &Row<'_>) -> rusqlite::Result<Counters> {
    Ok(Counters {
        session_no: row.get(0)?,
        last_seq: row.get(1)?,
        message_count: row.get(2)?,
        token_count: row.get(3)?,
        updated_at: time_column(row, 4)?,
        last_message_at: time_column_opt(row, 5)?,
        updated_hour: row.get(6)?,
        active_hour: row.get(7)?,
    })
}

fn move_counters(connection: &Connection, counters: &Counters, bytes: i64, now: Timestamp) -> rusqlite::Result<()> {
    let updated_at = now.max(counters.updated_at);
    let last_message_at = counters.last_message_at.map_or(now, |at| at.max(now));
    connection.prepare_cached(UPDATE_SESSION_APPENDED)?.execute(params![
        counters.session_no,
        counters.last_seq,
        counters.message_count,
        counters.token_count,
        updated_at.as_micros(),
        last_message_at.as_micros(),
        bytes,
    ])?;
    let hours = (updated_at.hour(), last_message_at.hour());
    if hours != (counters.updated_hour, counters.active_hour) {
        connection.prepare_cached(UPDATE_SESSION_HOURS)?.execute(params![counters.session_no, hours.0, hours.1])?;
    }
    Ok(())
}

/// Refuses the message at `n` if it answers one that is not of its session.
fn require_parent(connection: &Connection, session: InSession<'_>, new: &NewMessage, n: usize) -> Result<(), Failure> {
    let Some(parent_id) = new.parent_id else {
        return Ok(());
    };
    let params = params![parent_id.as_bytes(), session.session_no];
    if connection.prepare_cached(SELECT_PARENT)?.query_row(params, |row| row.get(0))? {
        return Ok(());
    }
    let detail = "is no message of this session".to_owned();
    Err(StoreError::Invalid { pointer: format!("/{n}/parent_id"), detail }.into())
}
