//! Sessions in SQLite.

mod columns;
mod create;
mod list;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim};
use chatstore_core::ids::SessionId;
use chatstore_core::json::RawJson;
use chatstore_core::limits::ERASE_MESSAGES_BATCH;
use chatstore_core::messages::NewMessage;
use chatstore_core::page::{Page, PageRequest, SessionPosition};
use chatstore_core::sessions::{NewSession, Session, SessionPage, SessionPatch, SessionQuery, SessionStore};
use chatstore_core::store::{ExpectedVersion, Scope, StoreError};
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};
use uuid::Uuid;

use crate::SqliteStore;
use crate::columns::{id_column, json_column, time_column, time_column_opt};
use crate::derived::delete_derived;
use crate::embeddings::jobs::delete_jobs;
use crate::messages::append::Arriving;
use crate::messages::{SEQ_END, message_no};
use crate::search::index::Home;
use crate::writer::{Failure, Kind, WriteConnection};

const SELECT_SESSION: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s
    where s.session_id = ?1 and s.project_id = ?2 and s.deleted_at is null and (?3 is null or s.user_id = ?3)"
);
const UPDATE_SESSION: &str = "update sessions
    set session_name = ?2, is_favorite = ?3, metadata = ?4, version = ?5, updated_at = ?6 where session_no = ?1";
const UPDATE_UPDATED_HOUR: &str = "update sessions set updated_hour = ?2 where session_no = ?1 and updated_hour <> ?2";
const DELETE_SESSION: &str = "update sessions
    set session_name = '', metadata = '{}', message_count = 0, token_count = token_count * 0, stored_bytes = 0,
        version = ?2, updated_at = ?3, deleted_at = ?3
    where session_no = ?1";
const INSERT_METADATA: &str =
    "insert into session_metadata (project_id, key, value, session_no) values (?1, ?2, ?3, ?4)";
const DELETE_METADATA: &str =
    "delete from session_metadata where project_id = ?1 and key = ?2 and value = ?3 and session_no = ?4";
const INSERT_ERASURE: &str = "insert into session_erasures (session_no, erased_seq) values (?1, 0)";
const SELECT_ERASURE: &str = "select s.session_no, e.erased_seq, s.deleted_at, s.project_id, s.session_id
    from session_erasures e
    join sessions s on s.session_no = e.session_no limit 1";
const SELECT_ERASABLE: &str = "select message_no, octet_length(content) + coalesce(octet_length(payload), 0)
        + octet_length(metadata) + coalesce(octet_length(context), 0), octet_length(content)
    from messages where message_no > ?1 and message_no < ?2 order by message_no limit ?3";
const ERASE_MESSAGES: &str = "update messages
    set content = '', payload = null, metadata = '{}', context = null, deleted_at = ?3
    where message_no > ?1 and message_no <= ?2 and deleted_at is null";
const UPDATE_ERASURE: &str = "update session_erasures set erased_seq = ?2 where session_no = ?1";
const DELETE_ERASURE: &str = "delete from session_erasures where session_no = ?1";

/// Bytes of text that are erased in one transaction; appends wait for no more.
const ERASE_BYTES_BATCH: i64 = 4 << 20;
/// And of content: its words leave the index one by one.
const ERASE_CONTENT_BYTES_BATCH: i64 = 8 << 10;

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    create::INSERT_SESSION,
    create::COUNT_SESSIONS_OF_USER,
    SELECT_SESSION,
    UPDATE_SESSION,
    UPDATE_UPDATED_HOUR,
    DELETE_SESSION,
    INSERT_METADATA,
    DELETE_METADATA,
    INSERT_ERASURE,
    SELECT_ERASURE,
    SELECT_ERASABLE,
    ERASE_MESSAGES,
    UPDATE_ERASURE,
    DELETE_ERASURE,
    COUNT_MATCHES,
];

pub(crate) use columns::session_columns;
use create::create;
pub(crate) use create::insert_session;
use list::{COUNT_MATCHES, FEW_MATCHES_MAX, Path, list_statement, one_user};

/// A session with its private number.
pub(crate) struct SessionRow {
    pub(crate) session_no: i64,
    pub(crate) session: Session,
}

#[async_trait]
impl SessionStore for SqliteStore {
    async fn create_session(
        &self,
        scope: &Scope,
        new: NewSession,
        messages: Vec<NewMessage>,
        claim: Option<&Claim>,
    ) -> Result<Answered<Session>, StoreError> {
        if scope.user_id.is_some() && new.user_id != scope.user_id {
            let detail = "is another than the caller speaks for".to_owned();
            return Err(StoreError::Invalid { pointer: "/user_id".to_owned(), detail });
        }
        let (scope, claim) = (scope.clone(), claim.cloned());
        let home = Home { project_id: scope.project_id, bucket: new.session_id.bucket() };
        let first = Arriving::new(home, messages, new.created_at).await?;
        let bytes = new.metadata.bytes() + first.bytes();
        self.writer
            .write(Kind::Plain, bytes, move |connection| create(connection, &scope, new, first, claim.as_ref()))
            .await
    }

    async fn get_session(&self, scope: &Scope, session_id: SessionId) -> Result<Option<Session>, StoreError> {
        let scope = scope.clone();
        self.readers
            .read(move |reader| {
                let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
                Ok(reader.query_row(SELECT_SESSION, params, session_row)?.map(|row| row.session))
            })
            .await
    }

    async fn list_sessions(
        &self,
        scope: &Scope,
        query: &SessionQuery,
        page: &PageRequest<SessionPosition>,
    ) -> Result<SessionPage, StoreError> {
        let (scope, query, page) = (scope.clone(), query.clone(), page.clone());
        self.readers
            .read(move |reader| {
                let path = match query.metadata.first() {
                    Some((key, value)) if one_user(&scope, &query).is_none() => {
                        let params = params![scope.project_id.as_bytes(), key, value, FEW_MATCHES_MAX];
                        let matches = reader.query_row(COUNT_MATCHES, params, |row| row.get::<_, i64>(0))?;
                        if matches < Some(FEW_MATCHES_MAX) { Path::Matches } else { Path::Order }
                    }
                    _ => Path::Order,
                };
                let (sql, values) = list_statement(&scope, &query, &page, path);
                let (sort, limit) = (query.sort, page.limit);
                let bytes = |row: &SessionRow| row.session.bytes();
                let rows = reader.query(&sql, params_from_iter(&values), session_row, bytes)?;
                let sessions = rows.into_iter().map(|row| row.session).collect();
                Ok(Page::cut(sessions, limit, |session: &Session| session.position(sort)))
            })
            .await
    }

    async fn update_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        patch: SessionPatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError> {
        let scope = scope.clone();
        let bytes = patch.metadata.as_ref().map_or(0, RawJson::bytes);
        self.writer
            .write(Kind::Plain, bytes, move |connection| {
                let SessionRow { session_no, mut session } = find_session(connection, &scope, session_id)?;
                expected.check(session.version)?;
                let before = session.metadata.clone();
                if patch.apply(&mut session, now) {
                    connection.prepare_cached(UPDATE_SESSION)?.execute(params![
                        session_no,
                        session.session_name,
                        session.is_favorite,
                        session.metadata.as_str(),
                        session.version,
                        session.updated_at.as_micros(),
                    ])?;
                    note_hour(connection, session_no, session.updated_at)?;
                    if session.metadata != before {
                        drop_metadata(connection, session_no, &session, &before)?;
                        insert_metadata(connection, session_no, &session)?;
                    }
                }
                Ok(session)
            })
            .await
    }

    async fn delete_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError> {
        let scope = scope.clone();
        self.writer
            .write(Kind::Delete, 0, move |connection| {
                let row = find_session(connection, &scope, session_id)?;
                expected.check(row.session.version)?;
                delete(connection, &row, now)?;
                Ok(row.session)
            })
            .await
    }
}

/// The live session of this id inside the scope.
pub(crate) fn find_session(
    connection: &Connection,
    scope: &Scope,
    session_id: SessionId,
) -> Result<SessionRow, Failure> {
    let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
    let row = connection.prepare_cached(SELECT_SESSION)?.query_row(params, session_row).optional()?;
    Ok(row.ok_or(StoreError::NotFound)?)
}

/// Leaves a tombstone of a live session, and its messages to be erased.
pub(crate) fn delete(connection: &WriteConnection, row: &SessionRow, now: Timestamp) -> rusqlite::Result<()> {
    let SessionRow { session_no, session } = row;
    let at = now.max(session.updated_at).as_micros();
    let params = params![session_no, session.version.saturating_add(1), at];
    connection.prepare_cached(DELETE_SESSION)?.execute(params)?;
    drop_metadata(connection, *session_no, session, &session.metadata)?;
    delete_jobs(connection, message_no(*session_no, 0), message_no(*session_no, SEQ_END))?;
    connection.prepare_cached(INSERT_ERASURE)?.execute(params![session_no]).map(drop)
}

fn insert_metadata(connection: &Connection, session_no: i64, session: &Session) -> rusqlite::Result<()> {
    for (key, value) in session.metadata.scalars() {
        let params = params![session.project_id.as_bytes(), key, value, session_no];
        connection.prepare_cached(INSERT_METADATA)?.execute(params)?;
    }
    Ok(())
}

fn drop_metadata(
    connection: &Connection,
    session_no: i64,
    session: &Session,
    metadata: &RawJson,
) -> rusqlite::Result<()> {
    for (key, value) in metadata.scalars() {
        let params = params![session.project_id.as_bytes(), key, value, session_no];
        connection.prepare_cached(DELETE_METADATA)?.execute(params)?;
    }
    Ok(())
}

/// Moves the indexed hour of a changed session, which is rarely needed.
pub(crate) fn note_hour(connection: &Connection, session_no: i64, updated_at: Timestamp) -> rusqlite::Result<()> {
    connection.prepare_cached(UPDATE_UPDATED_HOUR)?.execute(params![session_no, updated_at.hour()]).map(drop)
}

/// A deleted session whose messages are still to be blanked.
struct Erasure {
    session_no: i64,
    erased_seq: i64,
    deleted_at: i64,
    home: Home,
}

fn erasure_row(row: &Row<'_>) -> rusqlite::Result<Erasure> {
    let session_id = SessionId::from(id_column(row, 4)?);
    Ok(Erasure {
        session_no: row.get(0)?,
        erased_seq: row.get(1)?,
        deleted_at: row.get(2)?,
        home: Home { project_id: id_column(row, 3)?.into(), bucket: session_id.bucket() },
    })
}

/// Blanks a batch of messages of deleted sessions; tells whether more may wait.
pub(crate) fn erase_some(connection: &WriteConnection) -> rusqlite::Result<bool> {
    let next = connection.prepare_cached(SELECT_ERASURE)?.query_row((), erasure_row).optional()?;
    let Some(Erasure { session_no, erased_seq, deleted_at, home }) = next else {
        return Ok(false);
    };
    let from = message_no(session_no, erased_seq);
    match last_erasable(connection, session_no, from)? {
        Some(to) => {
            delete_derived(connection, home, from, to)?;
            connection.prepare_cached(ERASE_MESSAGES)?.execute(params![from, to, deleted_at])?;
            let erased_seq = to - message_no(session_no, 0);
            connection.prepare_cached(UPDATE_ERASURE)?.execute(params![session_no, erased_seq])?;
        }
        None => {
            connection.prepare_cached(DELETE_ERASURE)?.execute(params![session_no])?;
        }
    }
    Ok(true)
}

/// The last message of the next batch, bounded by number and by bytes.
fn last_erasable(connection: &Connection, session_no: i64, from: i64) -> rusqlite::Result<Option<i64>> {
    let mut statement = connection.prepare_cached(SELECT_ERASABLE)?;
    let mut rows = statement.query(params![from, message_no(session_no + 1, 0), ERASE_MESSAGES_BATCH])?;
    let (mut last, mut bytes, mut content_bytes) = (None, 0, 0);
    while let Some(row) = rows.next()?
        && bytes < ERASE_BYTES_BATCH
        && content_bytes < ERASE_CONTENT_BYTES_BATCH
    {
        last = Some(row.get(0)?);
        bytes += row.get::<_, i64>(1)?;
        content_bytes += row.get::<_, i64>(2)?;
    }
    Ok(last)
}

/// Reads a row of `session_columns!`.
pub(crate) fn session_row(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let session = Session {
        session_id: id_column(row, 1)?.into(),
        project_id: id_column(row, 2)?.into(),
        user_id: row.get(3)?,
        session_name: row.get(4)?,
        is_favorite: row.get(5)?,
        metadata: json_column(row, 6)?,
        external_id: row.get(7)?,
        last_seq: row.get(8)?,
        message_count: row.get(9)?,
        token_count: row.get(10)?,
        version: row.get(11)?,
        created_at: time_column(row, 12)?,
        updated_at: time_column(row, 13)?,
        last_message_at: time_column_opt(row, 14)?,
        deleted_at: time_column_opt(row, 15)?,
        forked_from: row.get::<_, Option<[u8; 16]>>(16)?.map(|id| Uuid::from_bytes(id).into()),
    };
    Ok(SessionRow { session_no: row.get(0)?, session })
}
