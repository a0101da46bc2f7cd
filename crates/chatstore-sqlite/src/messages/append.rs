//! Appending: places, rows and counters, in the writer's transaction.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::messages::{Message, NewMessage};
use chatstore_core::store::{Scope, StoreError};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{SEQ_END, insert_message, message_no, plus_tokens, stored_bytes};
use crate::columns::{time_column, time_column_opt};
use crate::derived::{Brought, insert_derived};
use crate::embeddings::jobs::Job;
use crate::writer::{Failure, WriteConnection};

const SELECT_SESSION_COUNTERS: &str = "select session_no, last_seq, message_count, token_count, updated_at,
        last_message_at, updated_hour, active_hour
    from sessions
    where session_id = ?1 and project_id = ?2 and deleted_at is null and (?3 is null or user_id = ?3)";
const UPDATE_SESSION_APPENDED: &str = "update sessions
    set last_seq = ?2, message_count = ?3, token_count = ?4, updated_at = ?5, last_message_at = ?6,
        stored_bytes = stored_bytes + ?7
    where session_no = ?1";
const UPDATE_SESSION_HOURS: &str = "update sessions set updated_hour = ?2, active_hour = ?3 where session_no = ?1";
const SELECT_PARENT: &str = "select exists (select 1 from messages
    where message_id = ?1 and message_no >> 32 = ?2 and deleted_at is null)";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[SELECT_SESSION_COUNTERS, UPDATE_SESSION_APPENDED, UPDATE_SESSION_HOURS, SELECT_PARENT];

/// The counters an append moves.
struct Counters {
    session_no: i64,
    last_seq: i64,
    message_count: i64,
    token_count: Option<i64>,
    updated_at: Timestamp,
    last_message_at: Option<Timestamp>,
    updated_hour: i64,
    active_hour: i64,
}

/// Appends messages; `lexemes` are those of each.
pub(super) fn append(
    connection: &WriteConnection,
    scope: &Scope,
    session_id: SessionId,
    messages: Vec<NewMessage>,
    lexemes: Vec<String>,
    now: Timestamp,
) -> Result<Vec<Message>, Failure> {
    let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
    let counters = connection.prepare_cached(SELECT_SESSION_COUNTERS)?.query_row(params, counters_row).optional()?;
    let mut counters = counters.ok_or(StoreError::NotFound)?;
    let session_no = counters.session_no;
    counters.message_count += i64::try_from(messages.len()).unwrap_or(i64::MAX);
    if !messages.is_empty() {
        scope.quotas.check_messages(u64::try_from(counters.message_count).unwrap_or_default())?;
    }
    let mut stored = Vec::with_capacity(messages.len());
    for (n, (mut new, lexemes)) in messages.into_iter().zip(lexemes).enumerate() {
        if let Some(parent_id) = new.parent_id {
            require_parent(connection, session_no, parent_id, n)?;
        }
        counters.last_seq += 1;
        if counters.last_seq >= SEQ_END {
            return Err(StoreError::Invalid {
                pointer: String::new(),
                detail: "exceeds the messages a session can hold".to_owned(),
            }
            .into());
        }
        let (embedding, job) = (new.embedding.take(), new.embed.then(|| Job::new(now)));
        let message = new.into_message(scope.project_id, session_id, counters.last_seq, now);
        insert_message(connection, session_no, &message)?;
        let vectors = embedding.iter().map(|new| (new.model.as_str(), std::slice::from_ref(&new.vector))).collect();
        let brought = Brought { lexemes: &lexemes, vectors, job };
        insert_derived(connection, message_no(session_no, message.seq), &message, brought).map_err(|f| at(f, n))?;
        counters.token_count = plus_tokens(counters.token_count, message.token_count);
        stored.push(message);
    }
    if stored.is_empty() {
        return Ok(stored);
    }
    let bytes = stored.iter().map(stored_bytes).sum();
    move_counters(connection, &counters, bytes, now)?;
    Ok(stored)
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

fn require_parent(connection: &Connection, session_no: i64, parent_id: MessageId, n: usize) -> Result<(), Failure> {
    let params = params![parent_id.as_bytes(), session_no];
    let exists: bool = connection.prepare_cached(SELECT_PARENT)?.query_row(params, |row| row.get(0))?;
    if exists {
        return Ok(());
    }
    Err(StoreError::Invalid { pointer: format!("/{n}/parent_id"), detail: "is no message of this session".to_owned() }
        .into())
}
