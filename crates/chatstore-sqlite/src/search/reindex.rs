//! Making derived data anew: a walk over all messages, a part at a time.

use std::time::{Duration, Instant};

use chatstore_core::limits::REINDEX_MESSAGES_BATCH;
use chatstore_core::search::{Derived, Reindexed};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::index::{Home, replace_text};
use crate::columns::id_column;
use crate::embeddings::jobs::queue_anew;
use crate::embeddings::source::source_model;
use crate::writer::{Failure, WriteConnection};

const START_REINDEX: &str = "insert into reindexes (derived, position) values (?1, 0)
    on conflict (derived) do update set position = 0";
pub(super) const SELECT_REINDEX: &str = "select position from reindexes where derived = ?1";
const MOVE_REINDEX: &str = "update reindexes set position = ?2 where derived = ?1";
const END_REINDEX: &str = "delete from reindexes where derived = ?1";
const NOTE_REINDEX: &str = "insert or ignore into reindexes (derived, position) values (?1, 0)";
/// Texts are read only where what they say matters; of a deleted project none is.
const LIST_REINDEXED: &str = "select m.message_no, m.created_at,
        case when ?3 and coalesce(m.deleted_at, s.deleted_at, p.deleted_at) is null then m.content else '' end,
        m.version, s.project_id, s.session_id,
        coalesce(m.deleted_at, s.deleted_at, p.deleted_at) is null and octet_length(m.content) > 0
    from messages m cross join sessions s on s.session_no = m.message_no >> 32
        cross join projects p on p.project_id = s.project_id
    where m.message_no > ?1 order by m.message_no limit ?2";

#[cfg(test)]
pub(super) const STATEMENTS: &[&str] =
    &[START_REINDEX, NOTE_REINDEX, SELECT_REINDEX, MOVE_REINDEX, END_REINDEX, LIST_REINDEXED];

/// How long one part may keep the writer, about: appends wait for it.
const PART_MAX: Duration = Duration::from_millis(40);

/// Bytes of lexemes that one part may leave to be taken out of the index: no more than are.
const DELETED_MAX: usize = 2 << 10;

/// A message as a walk meets it; what is deleted says nothing. `content` is read for the index alone.
pub(crate) struct Reindexing {
    pub(crate) message_no: i64,
    pub(crate) created_at: i64,
    pub(crate) content: String,
    pub(crate) has_text: bool,
    pub(crate) version: i64,
    pub(crate) home: Home,
}

/// Whether something is still to be made anew.
pub(crate) fn is_reindexing(connection: &Connection, derived: Derived) -> rusqlite::Result<bool> {
    connection.prepare_cached(SELECT_REINDEX)?.exists(params![derived.as_str()])
}

/// Notes that something is to be made anew, from the first message on.
pub(crate) fn start_reindex(connection: &Connection, derived: Derived) -> rusqlite::Result<()> {
    connection.prepare_cached(START_REINDEX)?.execute(params![derived.as_str()]).map(drop)
}

/// Notes that something is to be made anew; a walk that is under way goes on.
pub(crate) fn note_reindex(connection: &Connection, derived: Derived) -> rusqlite::Result<()> {
    connection.prepare_cached(NOTE_REINDEX)?.execute(params![derived.as_str()]).map(drop)
}

pub(super) fn reindex_some(connection: &WriteConnection, derived: Derived) -> Result<Reindexed, Failure> {
    let select = |row: &Row<'_>| row.get::<_, i64>(0);
    let position =
        connection.prepare_cached(SELECT_REINDEX)?.query_row(params![derived.as_str()], select).optional()?;
    let Some(mut position) = position else {
        return Ok(Reindexed::default());
    };
    let source = match derived {
        Derived::Text => None,
        Derived::Embeddings => source_model(connection)?,
    };
    let (begun, deleted, mut messages) = (Instant::now(), connection.deleted(), 0);
    let mut more = false;
    let mut statement = connection.prepare_cached(LIST_REINDEXED)?;
    let mut rows = statement.query(params![position, REINDEX_MESSAGES_BATCH, derived == Derived::Text])?;
    while let Some(row) = rows.next()? {
        let message = reindexing_row(row)?;
        match (derived, &source) {
            (Derived::Text, _) => reindex_text(connection, &message)?,
            (Derived::Embeddings, Some(model)) => queue_anew(connection, &message, model)?,
            (Derived::Embeddings, None) => break,
        }
        position = message.message_no;
        messages += 1;
        more = messages == u64::from(REINDEX_MESSAGES_BATCH)
            || begun.elapsed() > PART_MAX
            || connection.deleted() - deleted >= DELETED_MAX;
        if more {
            break;
        }
    }
    if more {
        connection.prepare_cached(MOVE_REINDEX)?.execute(params![derived.as_str(), position])?;
    } else {
        connection.prepare_cached(END_REINDEX)?.execute(params![derived.as_str()])?;
    }
    Ok(Reindexed { messages, more })
}

fn reindexing_row(row: &Row<'_>) -> rusqlite::Result<Reindexing> {
    let home = Home {
        project_id: id_column(row, 4)?.into(),
        bucket: chatstore_core::ids::SessionId::from(id_column(row, 5)?).bucket(),
    };
    Ok(Reindexing {
        message_no: row.get(0)?,
        created_at: row.get(1)?,
        content: row.get(2)?,
        has_text: row.get(6)?,
        version: row.get(3)?,
        home,
    })
}

/// What is deleted is left to those who erase it.
fn reindex_text(connection: &WriteConnection, message: &Reindexing) -> rusqlite::Result<()> {
    let lexemes = message.home.lexemes(&message.content);
    if lexemes.is_empty() {
        return Ok(());
    }
    replace_text(connection, message.message_no, message.created_at, || lexemes.clone(), &lexemes)
}
