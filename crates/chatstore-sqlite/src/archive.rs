//! Whole conversations into and out of SQLite.

use std::collections::HashMap;

use async_trait::async_trait;
use chatstore_core::archive::{ArchiveIdentity, ArchiveStore, ArchivedSession, Imported};
use chatstore_core::embeddings::{Embedding, Vector};
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::limits::PAGE_BYTES_MAX;
use chatstore_core::messages::{Message, plus_tokens};
use chatstore_core::sessions::Session;
use chatstore_core::store::{Scope, StoreError};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::SqliteStore;
use crate::derived::{Brought, insert_derived};
use crate::embeddings::jobs::Job;
use crate::messages::{SEQ_END, insert_message, message_columns, message_no, message_row, stored_bytes};
use crate::search::index::{Home, analysed};
use crate::sessions::{SessionRow, insert_session, session_columns, session_row};
use crate::writer::{Failure, Kind, WriteConnection};

const SELECT_BY_SESSION_ID: &str = concat!("select ", session_columns!(), " from sessions s where s.session_id = ?1");
const SELECT_BY_EXTERNAL_ID: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s
    where s.project_id = ?1 and s.external_id = ?2 and coalesce(s.user_id, '') = coalesce(?3, '') and s.deleted_at is null"
);
const UPDATE_SESSION_IMPORTED: &str = "update sessions
    set last_seq = ?2, message_count = ?3, token_count = ?4, updated_at = ?5, last_message_at = ?6, updated_hour = ?7,
        active_hour = ?8, stored_bytes = stored_bytes + ?9
    where session_no = ?1";
const SELECT_SEAM: &str = "select role, content, version, deleted_at from messages where message_no = ?1";
const EXPORT_SESSIONS: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s
    where s.project_id = ?1 and (?2 is null or s.user_id = ?2) and s.session_id > ?3 order by s.session_id limit ?4"
);
const EXPORT_MESSAGES: &str = concat!(
    "select ",
    message_columns!(),
    ", s.deleted_at from sessions s
    join messages m on m.message_no > (s.session_no << 32) + ?4 and m.message_no <= (s.session_no << 32) + ?5
    where s.session_id = ?1 and s.project_id = ?2 and (?3 is null or s.user_id = ?3)
    order by m.message_no limit ?6"
);

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    SELECT_BY_SESSION_ID,
    SELECT_BY_EXTERNAL_ID,
    SELECT_SEAM,
    UPDATE_SESSION_IMPORTED,
    EXPORT_SESSIONS,
    EXPORT_MESSAGES,
];

#[async_trait]
impl ArchiveStore for SqliteStore {
    async fn import_session(&self, scope: &Scope, mut archived: ArchivedSession) -> Result<Imported, StoreError> {
        let scope = scope.clone();
        let bytes = archived_bytes(&archived);
        let home = Home { project_id: scope.project_id, bucket: archived.session.session_id.bucket() };
        let messages = std::mem::take(&mut archived.messages);
        let (messages, lexemes) = analysed(home, messages, |message| live_content(message)).await?;
        archived.messages = messages;
        let bytes = bytes + lexemes.iter().map(String::len).sum::<usize>();
        self.writer.write(Kind::Plain, bytes, move |connection| import(connection, &scope, archived, lexemes)).await
    }

    async fn export_sessions(
        &self,
        scope: &Scope,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        let scope = scope.clone();
        let after = after.map_or(Vec::new(), |id| id.as_bytes().to_vec());
        self.readers
            .read(move |reader| {
                let params = params![scope.project_id.as_bytes(), scope.user_id, after, limit];
                let rows = reader.query(EXPORT_SESSIONS, params, session_row, |row| row.session.bytes())?;
                Ok(rows.into_iter().map(|row| row.session).collect())
            })
            .await
    }

    async fn export_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        after_seq: i64,
        last_seq: i64,
        limit: u32,
    ) -> Result<Vec<Message>, StoreError> {
        let scope = scope.clone();
        // Beyond these bounds stand the messages of other sessions.
        let (after_seq, last_seq) = (after_seq.clamp(0, SEQ_END - 1), last_seq.clamp(0, SEQ_END - 1));
        self.readers
            .read(move |reader| {
                let map = |row: &Row<'_>| exported_message_row(row, session_id, &scope);
                let params = params![
                    session_id.as_bytes(),
                    scope.project_id.as_bytes(),
                    scope.user_id,
                    after_seq,
                    last_seq,
                    limit
                ];
                let page = reader.query_bounded(EXPORT_MESSAGES, params, map, Message::bytes, PAGE_BYTES_MAX)?;
                Ok(page.0)
            })
            .await
    }
}

/// A message of a deleted session counts as deleted, also before it is erased.
fn exported_message_row(row: &Row<'_>, session_id: SessionId, scope: &Scope) -> rusqlite::Result<Message> {
    let mut message = message_row(row, session_id, scope.project_id)?;
    let session_deleted_at = crate::columns::time_column_opt(row, 16)?;
    if message.deleted_at.is_none() {
        message.deleted_at = session_deleted_at;
    }
    blank_if_deleted(&mut message);
    Ok(message)
}

/// A tombstone says nothing.
fn blank_if_deleted(message: &mut Message) {
    if message.deleted_at.is_some() {
        message.content = String::new();
        message.payload = None;
        message.metadata = RawJson::empty_object();
        message.context = None;
    }
}

fn archived_bytes(archived: &ArchivedSession) -> usize {
    let numbers = |embedding: &Embedding| embedding.vectors.iter().map(Vector::dimensions).sum::<usize>();
    archived.session.bytes()
        + archived.messages.iter().map(Message::bytes).sum::<usize>()
        + size_of::<f32>() * archived.embeddings.iter().map(numbers).sum::<usize>()
}

fn live_content(message: &Message) -> &str {
    if message.deleted_at.is_none() { &message.content } else { "" }
}

/// Stores what is new; `lexemes` are those of each message.
fn import(
    connection: &WriteConnection,
    scope: &Scope,
    archived: ArchivedSession,
    lexemes: Vec<String>,
) -> Result<Imported, Failure> {
    let ArchivedSession { identity, session, messages, embeddings, embed } = archived;
    if scope.user_id.is_some() && session.user_id != scope.user_id {
        let detail = "is another than the caller speaks for".to_owned();
        return Err(StoreError::Invalid { pointer: "/user_id".to_owned(), detail }.into());
    }
    let found = find(connection, scope, identity, &session)?;
    let is_new = found.is_none();
    let SessionRow { session_no, session: mut stored } = match found {
        Some(row) => row,
        None => {
            let mut fresh = session.clone();
            fresh.project_id = scope.project_id;
            if fresh.deleted_at.is_some() {
                fresh.session_name = String::new();
                fresh.metadata = RawJson::empty_object();
            }
            (fresh.last_seq, fresh.message_count, fresh.token_count) = (0, 0, None);
            SessionRow { session_no: insert_session(connection, &scope.quotas, &fresh)?, session: fresh }
        }
    };
    let continues = messages.iter().any(|message| message.seq > stored.last_seq);
    if let Some(seam) = messages.iter().find(|message| message.seq == stored.last_seq)
        && continues
    {
        require_same(connection, session_no, seam)?;
    }
    // A later part of the same archive says of the session what its first part said.
    let times = |session: &Session| (session.updated_at, session.last_message_at);
    let keeps_times = is_new || times(&stored) == times(&session);
    let mut fresh = Vec::new();
    for (mut message, mut lexemes) in messages.into_iter().zip(lexemes) {
        if message.seq <= stored.last_seq {
            continue;
        }
        if message.seq != stored.last_seq + 1 {
            let detail = format!("leaves a gap: the next message of this session has seq {}", stored.last_seq + 1);
            return Err(StoreError::Invalid { pointer: "/messages".to_owned(), detail }.into());
        }
        (message.project_id, message.session_id) = (stored.project_id, stored.session_id);
        // Nothing comes back into a deleted session: its erasing is over.
        message.deleted_at = message.deleted_at.or(stored.deleted_at);
        blank_if_deleted(&mut message);
        count(&mut stored, &message, keeps_times);
        if stored.session_id.bucket() != session.session_id.bucket() {
            // It was recognised by another id than the lexemes were made for.
            lexemes = Home::of(&message).lexemes(&message.content);
        }
        fresh.push((message, lexemes));
    }
    let live = || fresh.iter().map(|(message, _)| message).filter(|message| message.deleted_at.is_none());
    if live().next().is_some() {
        scope.quotas.check_messages(u64::try_from(stored.message_count).unwrap_or_default())?;
    }
    insert_messages(connection, session_no, &fresh, &embeddings, embed)?;
    if !fresh.is_empty() {
        save_counters(connection, session_no, &stored, live().map(stored_bytes).sum())?;
    }
    Ok(Imported { session: is_new, messages: fresh.len() as u64 })
}

/// Stores messages with their lexemes, and what is derived of those that are live.
fn insert_messages(
    connection: &WriteConnection,
    session_no: i64,
    fresh: &[(Message, String)],
    embeddings: &[Embedding],
    embed: bool,
) -> Result<(), Failure> {
    let mut vectors: HashMap<MessageId, Vec<(&str, &[Vector])>> = HashMap::new();
    for Embedding { message_id, model, vectors: parts } in embeddings {
        vectors.entry(*message_id).or_default().push((model, parts));
    }
    for (message, lexemes) in fresh {
        insert_message(connection, session_no, message)?;
        if message.deleted_at.is_none() {
            let vectors = vectors.remove(&message.message_id).unwrap_or_default();
            let brought = Brought { lexemes, vectors, job: embed.then(Job::backfill) };
            insert_derived(connection, message_no(session_no, message.seq), message, brought)?;
        }
    }
    Ok(())
}

/// Refuses to continue a session whose last message is not the one that stands there in the
/// archive: it was continued here, and what follows in the archive would be lost or misplaced.
fn require_same(connection: &Connection, session_no: i64, seam: &Message) -> Result<(), Failure> {
    let map = |row: &Row<'_>| {
        let untouched = row.get::<_, i64>(2)? == 1 && row.get::<_, Option<i64>>(3)?.is_none();
        let same = row.get_ref(0)?.as_str()? == seam.role && row.get_ref(1)?.as_str()? == seam.content;
        Ok(same || !untouched)
    };
    let params = params![message_no(session_no, seam.seq)];
    if connection.prepare_cached(SELECT_SEAM)?.query_row(params, map)? {
        return Ok(());
    }
    let detail = format!("go on from another message {} than the one that stands here", seam.seq);
    Err(StoreError::Invalid { pointer: "/messages".to_owned(), detail }.into())
}

/// Moves the counters, and the times unless the session keeps those it came with.
fn count(session: &mut Session, message: &Message, keeps_times: bool) {
    session.last_seq = message.seq;
    if message.deleted_at.is_none() {
        session.message_count += 1;
        session.token_count = plus_tokens(session.token_count, message.token_count);
    } else {
        // As after a deletion: a count was given, and nothing of it is left.
        session.token_count = plus_tokens(session.token_count, message.token_count.map(|_| 0));
    }
    if !keeps_times {
        session.updated_at = session.updated_at.max(message.updated_at);
        session.last_message_at = session.last_message_at.max(Some(message.created_at));
    }
}

fn save_counters(connection: &Connection, session_no: i64, session: &Session, bytes: i64) -> rusqlite::Result<()> {
    use chatstore_core::sessions::SessionSort::LastMessageAt;
    let saved = connection.prepare_cached(UPDATE_SESSION_IMPORTED)?.execute(params![
        session_no,
        session.last_seq,
        session.message_count,
        session.token_count,
        session.updated_at.as_micros(),
        session.last_message_at.map(|at| at.as_micros()),
        session.updated_at.hour(),
        session.sorted_by(LastMessageAt).hour(),
        bytes,
    ]);
    saved.map(drop)
}

fn find(
    connection: &Connection,
    scope: &Scope,
    identity: ArchiveIdentity,
    session: &Session,
) -> Result<Option<SessionRow>, Failure> {
    let by_id = |connection: &Connection| {
        let params = params![session.session_id.as_bytes()];
        connection.prepare_cached(SELECT_BY_SESSION_ID)?.query_row(params, session_row).optional()
    };
    // Its own id first: it also finds the tombstone of a session that was deleted since.
    let row = match (by_id(connection)?, identity) {
        (None, ArchiveIdentity::ExternalId) => {
            let params = params![scope.project_id.as_bytes(), session.external_id, session.user_id];
            connection.prepare_cached(SELECT_BY_EXTERNAL_ID)?.query_row(params, session_row).optional()?
        }
        (row, _) => row,
    };
    match row {
        Some(row) if row.session.project_id != scope.project_id || row.session.user_id != session.user_id => {
            Err(StoreError::Conflict { field: "session_id" }.into())
        }
        row => Ok(row),
    }
}
