//! Messages in PostgreSQL.

pub(crate) mod append;
pub(crate) mod appender;
pub(crate) mod derived;
pub(crate) mod insert;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim};
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::limits::PAGE_BYTES_MAX;
use chatstore_core::messages::{
    Message, MessagePage, MessagePatch, MessageQuery, MessageStatus, MessageStore, NewMessage, plus_tokens,
};
use chatstore_core::page::{MessagePosition, Order, Page, PageRequest, PageStart};
use chatstore_core::sessions::SessionStore as _;
use chatstore_core::store::{ExpectedVersion, Scope, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::columns::{bucket_value, json_column, json_column_opt, time_column, time_column_opt};
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::search::texts::read_texts;
use crate::sessions::is_live;
use append::named::find_named;
use derived::{MessageKey, delete_derived, renew_derived};

/// The columns of [`message_row`], in its order; `concat!` needs a literal, so it is a macro.
macro_rules! message_columns {
    () => {
        "m.seq, m.message_id, m.parent_id, m.role, m.kind, m.status, m.content, m.payload, m.metadata, m.context, \
         m.external_id, m.token_count, m.version, m.created_at, m.updated_at, m.deleted_at"
    };
}
pub(crate) use message_columns;

const SELECT_MESSAGE: &str = concat!(
    "select ",
    message_columns!(),
    ", s.session_id, s.project_id from messages m cross join lateral (
        select s.* from sessions s where s.bucket = m.bucket and s.session_id = m.session_id offset 0) s
    where m.bucket = $1 and m.message_id = $2 and s.project_id = $3 and m.deleted_at is null
        and s.deleted_at is null and ($4::text is null or s.user_id = $4)"
);
/// One row even of a session without messages, so that it differs from no session. The inner
/// limit tells the planner that a page is short, which the outer one, a parameter, does not.
macro_rules! list_messages {
    ($direction:literal, $most:literal) => {
        concat!(
            "select ",
            message_columns!(),
            " from sessions s left join lateral (
        select p.* from (
            select m.* from messages m
            where m.bucket = $1 and m.session_id = $2 and m.seq > $5 and m.seq < $6 and m.deleted_at is null
                and ($7::text is null or m.role = $7)
            order by m.seq ",
            $direction,
            " limit ",
            $most,
            ") p limit $8 offset $9) m on true
    where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ",
            is_live!(),
            " and ($4::text is null or s.user_id = $4)"
        )
    };
}
const LIST_MESSAGES_ASC: &str = list_messages!("asc", "101");
const LIST_MESSAGES_DESC: &str = list_messages!("desc", "101");
const LIST_MESSAGES_ASC_DEEP: &str = list_messages!("asc", "10101");
const LIST_MESSAGES_DESC_DEEP: &str = list_messages!("desc", "10101");
/// The session first: whoever changes a message holds its session's row.
const LOCK_SESSION_OF_MESSAGE: &str = concat!(
    "select s.message_count, s.token_count, s.updated_at, s.user_id from sessions s
    where s.bucket = $1
        and s.session_id = (select m.session_id from messages m where m.bucket = $1 and m.message_id = $2)
        and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4)
    for no key update"
);
const UPDATE_MESSAGE: &str = "update messages
    set role = $3, status = $4, content = $5, payload = $6, metadata = $7, context = $8, token_count = $9, version = $10,
        updated_at = $11
    where bucket = $1 and message_id = $2";
const DELETE_MESSAGE: &str = "update messages
    set content = '', payload = null, metadata = '{}', context = null, version = $3, updated_at = $4, deleted_at = $4
    where bucket = $1 and message_id = $2";
const UPDATE_SESSION_TOUCHED: &str = "update sessions
    set message_count = $3, token_count = $4, updated_at = $5, updated_hour = $6, stored_bytes = stored_bytes + $7
    where bucket = $1 and session_id = $2";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    SELECT_MESSAGE,
    LIST_MESSAGES_ASC,
    LIST_MESSAGES_DESC,
    LIST_MESSAGES_ASC_DEEP,
    LIST_MESSAGES_DESC_DEEP,
    LOCK_SESSION_OF_MESSAGE,
    UPDATE_MESSAGE,
    DELETE_MESSAGE,
    UPDATE_SESSION_TOUCHED,
];

#[async_trait]
impl MessageStore for PostgresStore {
    async fn append_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        messages: Vec<NewMessage>,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<Vec<Message>>, StoreError> {
        if messages.is_empty() && claim.is_none() {
            let session = self.get_session(scope, session_id).await?;
            return session.map(|_| Answered::first(Vec::new())).ok_or(StoreError::NotFound);
        }
        self.appender.append(scope.clone(), session_id, messages, now, claim.cloned()).await
    }

    async fn find_message(
        &self,
        scope: &Scope,
        session_id: SessionId,
        name: &str,
    ) -> Result<Option<Message>, StoreError> {
        let named = (scope, session_id, name);
        self.pool.read(named, async |db, named| find_named(&db, named.0, named.1, named.2).await).await
    }

    async fn get_message(&self, scope: &Scope, message_id: MessageId) -> Result<Option<Message>, StoreError> {
        self.pool.read((scope, message_id), async |db, input| find_message(&db, input.0, input.1).await).await
    }

    async fn list_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        query: &MessageQuery,
        page: &PageRequest<MessagePosition>,
    ) -> Result<MessagePage, StoreError> {
        let list = List { scope, session_id, query, page };
        self.pool.read(list, async |db, list| list.read(&db).await).await?.ok_or(StoreError::NotFound)
    }

    async fn update_message(
        &self,
        scope: &Scope,
        message_id: MessageId,
        patch: MessagePatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Message, StoreError> {
        self.pool
            .write((scope.clone(), message_id, patch, expected, now), async |db, input| {
                let (scope, message_id, patch, expected, now) = &*input;
                let (counters, mut message) = lock_message(&db, scope, *message_id).await?;
                expected.check(message.version)?;
                let (before, text) = (Weight::of(&message), message.content.clone());
                if patch.clone().apply(&mut message, *now)? {
                    let params = params![
                        bucket_value(message_id.bucket()),
                        message_id.uuid(),
                        message.role.as_str(),
                        message.status.as_str(),
                        message.content.as_str(),
                        message.payload.as_ref().map(RawJson::as_str),
                        message.metadata.as_str(),
                        message.context.as_ref().map(RawJson::as_str),
                        message.token_count,
                        message.version,
                        message.updated_at.as_micros(),
                    ];
                    db.execute(UPDATE_MESSAGE, params).await?;
                    if message.content != text {
                        let content = (message.project_id, message.session_id.bucket(), message.content.as_str());
                        let words = read_texts(vec![content]).await?.remove(0);
                        renew_derived(&db, &message, &words, patch.embed, *now).await?;
                    }
                    let change = (before, Weight::of(&message));
                    counters.touch(&db, message.session_id, 0, change, *now).await?;
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
        self.pool
            .write((scope.clone(), message_id, expected, now), async |db, input| {
                let (scope, message_id, expected, now) = &*input;
                let (counters, message) = lock_message(&db, scope, *message_id).await?;
                expected.check(message.version)?;
                let params = params![
                    bucket_value(message_id.bucket()),
                    message_id.uuid(),
                    message.version.saturating_add(1),
                    message.updated_at.max(*now).as_micros(),
                ];
                db.execute(DELETE_MESSAGE, params).await?;
                delete_derived(&db, MessageKey::from(&message)).await?;
                let change = (Weight::of(&message), Weight::default());
                counters.touch(&db, message.session_id, -1, change, *now).await?;
                Ok(message)
            })
            .await
    }
}

/// A page that is wanted.
struct List<'a> {
    scope: &'a Scope,
    session_id: SessionId,
    query: &'a MessageQuery,
    page: &'a PageRequest<MessagePosition>,
}

impl List<'_> {
    /// The page; `None` if there is no such session.
    async fn read(&self, db: &Db) -> Result<Option<MessagePage>, Failure> {
        let (sql, after, before, offset) = list_bounds(self.query, self.page);
        let params = params![
            bucket_value(self.session_id.bucket()),
            self.session_id.uuid(),
            self.scope.project_id.uuid(),
            self.scope.user_id.as_deref(),
            after,
            before,
            self.query.role.as_deref(),
            i64::from(self.page.limit) + 1,
            offset,
        ];
        let map = |row: &Row| match row.try_get::<_, Option<i64>>(0)? {
            Some(_) => message_row(row, self.session_id, self.scope.project_id).map(Some),
            None => Ok(None),
        };
        let mut held = 0;
        let enough = |message: &Option<Message>| {
            held += message.as_ref().map_or(0, Message::bytes);
            held >= PAGE_BYTES_MAX
        };
        let (rows, cut) = db.query_until(sql, params, map, enough).await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let messages: Vec<_> = rows.into_iter().flatten().collect();
        let position = |message: &Message| MessagePosition { seq: message.seq };
        if cut && messages.len() <= self.page.limit as usize {
            return Ok(Some(Page { next: messages.last().map(position), items: messages }));
        }
        Ok(Some(Page::cut(messages, self.page.limit, position)))
    }
}

/// The statement of a list and its bounds: after which and before which `seq`, and the offset.
fn list_bounds(query: &MessageQuery, page: &PageRequest<MessagePosition>) -> (&'static str, i64, i64, i64) {
    let mut after = query.after_seq.unwrap_or(0).max(0);
    let mut before = query.before_seq.unwrap_or(i64::MAX);
    let mut offset = 0;
    match (&page.start, query.order) {
        (PageStart::Offset(n), _) => offset = i64::try_from(*n).unwrap_or(i64::MAX),
        (PageStart::After(position), Order::Asc) => after = after.max(position.seq),
        (PageStart::After(position), Order::Desc) => before = before.min(position.seq),
    }
    let sql = match (query.order, offset) {
        (Order::Asc, 0) => LIST_MESSAGES_ASC,
        (Order::Desc, 0) => LIST_MESSAGES_DESC,
        (Order::Asc, _) => LIST_MESSAGES_ASC_DEEP,
        (Order::Desc, _) => LIST_MESSAGES_DESC_DEEP,
    };
    (sql, after, before, offset)
}

async fn find_message(db: &Db, scope: &Scope, message_id: MessageId) -> Result<Option<Message>, Failure> {
    let params = params![
        bucket_value(message_id.bucket()),
        message_id.uuid(),
        scope.project_id.uuid(),
        scope.user_id.as_deref()
    ];
    let row = db.query_opt(SELECT_MESSAGE, params).await?;
    row.map(|row| message_row(&row, row.try_get::<_, Uuid>(16)?.into(), row.try_get::<_, Uuid>(17)?.into())).transpose()
}

/// The counters of a session that a change of a message moves, and its user.
pub(crate) struct Counters {
    message_count: i64,
    token_count: Option<i64>,
    updated_at: Timestamp,
    pub(crate) user_id: Option<String>,
}

impl Counters {
    async fn touch(
        &self,
        db: &Db,
        session_id: SessionId,
        messages: i64,
        (before, after): (Weight, Weight),
        now: Timestamp,
    ) -> Result<(), Failure> {
        let tokens = plus_tokens(self.token_count, before.tokens.map(|tokens| -tokens));
        let updated_at = now.max(self.updated_at);
        let params = params![
            bucket_value(session_id.bucket()),
            session_id.uuid(),
            self.message_count + messages,
            plus_tokens(tokens, after.tokens),
            updated_at.as_micros(),
            updated_at.hour(),
            after.bytes - before.bytes,
        ];
        db.execute(UPDATE_SESSION_TOUCHED, params).await?;
        Ok(())
    }
}

/// What a message adds to the counters of its session.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weight {
    tokens: Option<i64>,
    pub(crate) bytes: i64,
}

impl Weight {
    pub(crate) fn of(message: &Message) -> Self {
        let (payload, context) = (message.payload.as_ref(), message.context.as_ref());
        Self { tokens: message.token_count, bytes: stored_bytes(&message.content, payload, &message.metadata, context) }
    }
}

/// Bytes of what a message says: what counts for the quota of its project.
fn stored_bytes(content: &str, payload: Option<&RawJson>, metadata: &RawJson, context: Option<&RawJson>) -> i64 {
    let json = [payload, Some(metadata), context].into_iter().flatten().map(|json| json.as_str().len());
    i64::try_from(content.len() + json.sum::<usize>()).unwrap_or(i64::MAX)
}

/// Locks the session of a message, then reads the message as nobody changes it any more.
pub(crate) async fn lock_message(
    db: &Db,
    scope: &Scope,
    message_id: MessageId,
) -> Result<(Counters, Message), Failure> {
    let params = params![
        bucket_value(message_id.bucket()),
        message_id.uuid(),
        scope.project_id.uuid(),
        scope.user_id.as_deref()
    ];
    let row = db.query_opt(LOCK_SESSION_OF_MESSAGE, params).await?.ok_or(StoreError::NotFound)?;
    let counters = Counters {
        message_count: row.try_get(0)?,
        token_count: row.try_get(1)?,
        updated_at: time_column(&row, 2)?,
        user_id: row.try_get(3)?,
    };
    let message = find_message(db, scope, message_id).await?.ok_or(StoreError::NotFound)?;
    Ok((counters, message))
}

/// Reads a row of `message_columns!` of a known session.
pub(crate) fn message_row(row: &Row, session_id: SessionId, project_id: ProjectId) -> Result<Message, Failure> {
    // A status that a newer version added says at least that the message is not whole.
    let status = MessageStatus::parse(row.try_get(5)?).unwrap_or(MessageStatus::Incomplete);
    Ok(Message {
        message_id: row.try_get::<_, Uuid>(1)?.into(),
        session_id,
        project_id,
        seq: row.try_get(0)?,
        parent_id: row.try_get::<_, Option<Uuid>>(2)?.map(MessageId::from),
        role: row.try_get(3)?,
        kind: row.try_get(4)?,
        status,
        content: row.try_get(6)?,
        payload: json_column_opt(row, 7)?,
        metadata: json_column(row, 8)?,
        context: json_column_opt(row, 9)?,
        external_id: row.try_get(10)?,
        token_count: row.try_get(11)?,
        version: row.try_get(12)?,
        created_at: time_column(row, 13)?,
        updated_at: time_column(row, 14)?,
        deleted_at: time_column_opt(row, 15)?,
    })
}
