//! Messages in SQLite.

pub(crate) mod append;
mod list;
mod named;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim};
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::limits::PAGE_BYTES_MAX;
use chatstore_core::messages::{
    Message, MessagePage, MessagePatch, MessageQuery, MessageStatus, MessageStore, NewMessage, plus_tokens,
};
use chatstore_core::page::{MessagePosition, Page, PageRequest};
use chatstore_core::store::{ExpectedVersion, Scope, StoreError};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use crate::SqliteStore;
use crate::columns::{id_column, json_column, json_column_opt, time_column, time_column_opt};
use crate::derived::{delete_derived, renew_derived};
use crate::embeddings::jobs::Job;
use crate::search::index::{Home, analysed};
use crate::sessions::note_hour;
use crate::writer::{Failure, Kind};

use append::{Arriving, append};
use named::InSession;

/// The columns of [`message_row`], in its order; `concat!` needs a literal, so it is a macro.
macro_rules! message_columns {
    () => {
        "m.message_no, m.message_id, m.parent_id, m.role, m.kind, m.status, m.content, m.payload, m.metadata, \
         m.context, m.external_id, m.token_count, m.version, m.created_at, m.updated_at, m.deleted_at"
    };
}
pub(crate) use message_columns;

pub(crate) const SELECT_SESSION_NO: &str = "select session_no from sessions
    where session_id = ?1 and project_id = ?2 and deleted_at is null and (?3 is null or user_id = ?3)";
const INSERT_MESSAGE: &str = "insert into messages
    (message_no, message_id, parent_id, role, kind, status, content, payload, metadata, context, external_id,
     token_count, version, created_at, updated_at, deleted_at)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
const SELECT_MESSAGE: &str = concat!(
    "select ",
    message_columns!(),
    ", s.session_id, s.project_id from messages m join sessions s on s.session_no = m.message_no >> 32
    where m.message_id = ?1 and s.project_id = ?2 and m.deleted_at is null and s.deleted_at is null
        and (?3 is null or s.user_id = ?3)"
);
const UPDATE_MESSAGE: &str = "update messages
    set role = ?2, status = ?3, content = ?4, payload = ?5, metadata = ?6, context = ?7, token_count = ?8, version = ?9,
        updated_at = ?10
    where message_no = ?1";
const DELETE_MESSAGE: &str = "update messages
    set content = '', payload = null, metadata = '{}', context = null, version = ?2, updated_at = ?3, deleted_at = ?3
    where message_no = ?1";
const SELECT_MESSAGE_NO: &str = "select message_no from messages where message_id = ?1";
const SELECT_SESSION_TOUCHED: &str =
    "select message_count, token_count, updated_at from sessions where session_no = ?1";
const UPDATE_SESSION_TOUCHED: &str =
    "update sessions set message_count = ?2, token_count = ?3, updated_at = ?4, stored_bytes = stored_bytes + ?5
    where session_no = ?1";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    SELECT_SESSION_NO,
    INSERT_MESSAGE,
    SELECT_MESSAGE,
    list::LIST_MESSAGES_ASC,
    list::LIST_MESSAGES_DESC,
    UPDATE_MESSAGE,
    DELETE_MESSAGE,
    SELECT_MESSAGE_NO,
    named::SELECT_BY_EXTERNAL_ID,
    named::SELECT_BY_ID,
    SELECT_SESSION_TOUCHED,
    UPDATE_SESSION_TOUCHED,
];

/// The least `message_no` of the next session: `seq` has 32 bits.
pub(crate) const SEQ_END: i64 = 1 << 32;

/// Where the message at `seq` of a session stands.
pub(crate) fn message_no(session_no: i64, seq: i64) -> i64 {
    (session_no << 32) + seq.clamp(0, SEQ_END - 1)
}

#[async_trait]
impl MessageStore for SqliteStore {
    async fn append_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        messages: Vec<NewMessage>,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<Vec<Message>>, StoreError> {
        let (scope, claim) = (scope.clone(), claim.cloned());
        let home = Home { project_id: scope.project_id, bucket: session_id.bucket() };
        let arriving = Arriving::new(home, messages, now).await?;
        self.writer
            .write_as(arriving.bytes(), move |connection| {
                append(connection, &scope, session_id, arriving, claim.as_ref())
            })
            .await
    }

    async fn find_message(
        &self,
        scope: &Scope,
        session_id: SessionId,
        name: &str,
    ) -> Result<Option<Message>, StoreError> {
        let (scope, name) = (scope.clone(), name.to_owned());
        self.readers
            .read(move |reader| {
                reader.snapshot(|| {
                    let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
                    let session_no = reader.query_row(SELECT_SESSION_NO, params, |row| row.get(0))?;
                    let session =
                        InSession { session_no: session_no.ok_or(StoreError::NotFound)?, session_id, scope: &scope };
                    Ok(session.find(|sql| reader.prepare(sql), &name)?)
                })
            })
            .await
    }

    async fn get_message(&self, scope: &Scope, message_id: MessageId) -> Result<Option<Message>, StoreError> {
        let scope = scope.clone();
        self.readers
            .read(move |reader| {
                let params = params![message_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
                reader.query_row(SELECT_MESSAGE, params, owned_message_row)
            })
            .await
    }

    async fn list_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        query: &MessageQuery,
        page: &PageRequest<MessagePosition>,
    ) -> Result<MessagePage, StoreError> {
        let (scope, query, page) = (scope.clone(), query.clone(), page.clone());
        self.readers
            .read(move |reader| {
                // One snapshot: a session deleted in between must not show blanked messages.
                reader.snapshot(|| {
                    let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
                    let session_no: Option<i64> = reader.query_row(SELECT_SESSION_NO, params, |row| row.get(0))?;
                    let session_no = session_no.ok_or(StoreError::NotFound)?;
                    let (sql, after, before, offset) = list::list_bounds(&query, &page);
                    let after = message_no(session_no, after);
                    let before = (session_no << 32) + before;
                    let params = params![after, before, query.role, page.limit + 1, offset];
                    let map = |row: &Row<'_>| message_row(row, session_id, scope.project_id);
                    let (messages, cut) = reader.query_bounded(sql, params, map, Message::bytes, PAGE_BYTES_MAX)?;
                    let position = |message: &Message| MessagePosition { seq: message.seq };
                    if cut && messages.len() <= page.limit as usize {
                        return Ok(Page { next: messages.last().map(position), items: messages });
                    }
                    Ok(Page::cut(messages, page.limit, position))
                })
            })
            .await
    }

    async fn update_message(
        &self,
        scope: &Scope,
        message_id: MessageId,
        patch: MessagePatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Message, StoreError> {
        let scope = scope.clone();
        let home = Home { project_id: scope.project_id, bucket: message_id.bucket() };
        let content: fn(&MessagePatch) -> &str = |patch| patch.content.as_deref().unwrap_or_default();
        let (mut patches, mut lexemes) = analysed(home, vec![patch], content).await?;
        let (Some(patch), Some(mut lexemes)) = (patches.pop(), lexemes.pop()) else {
            return Err(StoreError::internal("an analysis lost what it was given"));
        };
        let bytes = patch.bytes() + lexemes.len();
        // Then the text is derived when the patch is applied.
        let has_payload = patch.payload.is_some();
        self.writer
            .write(Kind::Plain, bytes, move |connection| {
                let mut message = find_message(connection, &scope, message_id)?;
                expected.check(message.version)?;
                let mut moved = Moved::before(&message);
                let (content, embed) = (message.content.clone(), patch.embed);
                if patch.apply(&mut message, now)? {
                    let row = row_number(connection, message_id)?;
                    connection.prepare_cached(UPDATE_MESSAGE)?.execute(params![
                        row,
                        message.role,
                        message.status.as_str(),
                        message.content,
                        message.payload.as_ref().map(RawJson::as_str),
                        message.metadata.as_str(),
                        message.context.as_ref().map(RawJson::as_str),
                        message.token_count,
                        message.version,
                        message.updated_at.as_micros(),
                    ])?;
                    moved.after(&message);
                    touch_session(connection, row >> 32, moved, now)?;
                    if message.content != content {
                        if has_payload || Home::of(&message).bucket != home.bucket {
                            lexemes = Home::of(&message).lexemes(&message.content);
                        }
                        let job = embed.then(|| Job::new(now));
                        renew_derived(connection, row, &content, &message, &lexemes, job)?;
                    }
                }
                Ok(message)
            })
            .await
    }

    async fn delete_message(
        &self,
        scope: &Scope,
        message_id: MessageId,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Message, StoreError> {
        let scope = scope.clone();
        self.writer
            .write(Kind::Plain, 0, move |connection| {
                let message = find_message(connection, &scope, message_id)?;
                expected.check(message.version)?;
                let row = row_number(connection, message_id)?;
                delete_derived(connection, Home::of(&message), row - 1, row)?;
                let at = now.max(message.updated_at).as_micros();
                connection.prepare_cached(DELETE_MESSAGE)?.execute(params![
                    row,
                    message.version.saturating_add(1),
                    at
                ])?;
                touch_session(connection, row >> 32, Moved::before(&message), now)?;
                Ok(message)
            })
            .await
    }
}

pub(crate) fn row_number(connection: &Connection, message_id: MessageId) -> rusqlite::Result<i64> {
    connection.prepare_cached(SELECT_MESSAGE_NO)?.query_row(params![message_id.as_bytes()], |row| row.get(0))
}

/// Stores a message as it is.
pub(crate) fn insert_message(connection: &Connection, session_no: i64, message: &Message) -> rusqlite::Result<()> {
    let inserted = connection.prepare_cached(INSERT_MESSAGE)?.execute(params![
        message_no(session_no, message.seq),
        message.message_id.as_bytes(),
        message.parent_id.as_ref().map(MessageId::as_bytes),
        message.role,
        message.kind,
        message.status.as_str(),
        message.content,
        message.payload.as_ref().map(RawJson::as_str),
        message.metadata.as_str(),
        message.context.as_ref().map(RawJson::as_str),
        message.external_id,
        message.token_count,
        message.version,
        message.created_at.as_micros(),
        message.updated_at.as_micros(),
        message.deleted_at.map(Timestamp::as_micros),
    ]);
    inserted.map(drop)
}

pub(crate) fn find_message(connection: &Connection, scope: &Scope, message_id: MessageId) -> Result<Message, Failure> {
    let params = params![message_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
    let message = connection.prepare_cached(SELECT_MESSAGE)?.query_row(params, owned_message_row).optional()?;
    Ok(message.ok_or(StoreError::NotFound)?)
}

/// Bytes of a message that its session counts.
pub(crate) fn stored_bytes(message: &Message) -> i64 {
    let json = [Some(&message.metadata), message.payload.as_ref(), message.context.as_ref()];
    let bytes = message.content.len() + json.into_iter().flatten().map(RawJson::bytes).sum::<usize>();
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What a change of a message takes from its session's counters, and what it adds.
struct Moved {
    messages: i64,
    bytes: i64,
    tokens_before: Option<i64>,
    tokens_after: Option<i64>,
}

impl Moved {
    /// Takes away what the message was; without more, it is deleted.
    fn before(message: &Message) -> Self {
        Self { messages: -1, bytes: -stored_bytes(message), tokens_before: message.token_count, tokens_after: None }
    }

    /// Adds what it is now.
    fn after(&mut self, message: &Message) {
        self.messages += 1;
        self.bytes += stored_bytes(message);
        self.tokens_after = message.token_count;
    }
}

/// Moves a session's counters after a message of it was changed or deleted.
fn touch_session(connection: &Connection, session_no: i64, moved: Moved, now: Timestamp) -> rusqlite::Result<()> {
    let map = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?, time_column(row, 2)?));
    let (count, tokens, updated_at) =
        connection.prepare_cached(SELECT_SESSION_TOUCHED)?.query_row(params![session_no], map)?;
    let tokens = plus_tokens(tokens, moved.tokens_before.map(|tokens| -tokens));
    let tokens = plus_tokens(tokens, moved.tokens_after);
    let updated_at = now.max(updated_at);
    connection.prepare_cached(UPDATE_SESSION_TOUCHED)?.execute(params![
        session_no,
        count + moved.messages,
        tokens,
        updated_at.as_micros(),
        moved.bytes,
    ])?;
    note_hour(connection, session_no, updated_at)
}

/// Reads a row of `message_columns!` of a known session.
pub(crate) fn message_row(row: &Row<'_>, session_id: SessionId, project_id: ProjectId) -> rusqlite::Result<Message> {
    // A status that a newer version added says at least that the message is not whole.
    let status = MessageStatus::parse(row.get_ref(5)?.as_str()?).unwrap_or(MessageStatus::Incomplete);
    Ok(Message {
        message_id: id_column(row, 1)?.into(),
        session_id,
        project_id,
        seq: row.get::<_, i64>(0)? & (SEQ_END - 1),
        parent_id: row.get::<_, Option<[u8; 16]>>(2)?.map(|id| Uuid::from_bytes(id).into()),
        role: row.get(3)?,
        kind: row.get(4)?,
        status,
        content: row.get(6)?,
        payload: json_column_opt(row, 7)?,
        metadata: json_column(row, 8)?,
        context: json_column_opt(row, 9)?,
        external_id: row.get(10)?,
        token_count: row.get(11)?,
        version: row.get(12)?,
        created_at: time_column(row, 13)?,
        updated_at: time_column(row, 14)?,
        deleted_at: time_column_opt(row, 15)?,
    })
}

/// Reads a row that also names its session and project.
pub(crate) fn owned_message_row(row: &Row<'_>) -> rusqlite::Result<Message> {
    message_row(row, id_column(row, 16)?.into(), id_column(row, 17)?.into())
}
