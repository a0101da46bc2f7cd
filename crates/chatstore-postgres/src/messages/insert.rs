//! Storing messages whose places are known, in both forms: rows from lists for one node, a
//! statement a row for a sharded database.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::Message;
use chatstore_core::store::StoreError;
use futures_util::future::try_join_all;
use uuid::Uuid;

use crate::AppendForm;
use crate::columns::bucket_value;
use crate::params::params;
use crate::pool::{Db, Failure};

const INSERT_MESSAGE: &str = "insert into messages
    (bucket, session_id, seq, message_id, parent_id, role, kind, status, content, payload, metadata, context,
     external_id, token_count, version, created_at, updated_at, deleted_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)";
const INSERT_MESSAGES: &str = "insert into messages
    (bucket, session_id, seq, message_id, parent_id, role, kind, status, content, payload, metadata, context,
     external_id, token_count, version, created_at, updated_at, deleted_at)
    select $1, $2, m.* from unnest($3::bigint[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[],
        $10::text[], $11::text[], $12::text[], $13::text[], $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[],
        $18::bigint[]) m";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[INSERT_MESSAGE, INSERT_MESSAGES];

/// Stores messages of one session as they are.
pub(crate) async fn insert_messages(
    db: &Db,
    form: AppendForm,
    session_id: SessionId,
    messages: &[Message],
) -> Result<(), Failure> {
    require_home(session_id, messages.iter().map(|message| message.message_id))?;
    match (form, messages) {
        (AppendForm::Batched, [_, _, ..]) => insert_lists(db, session_id, messages).await?,
        (_, [first, rest @ ..]) => {
            insert_row(db, session_id, first).await?;
            // Sent one behind the other, without waiting for each answer, now that the statement is prepared.
            try_join_all(rest.iter().map(|message| insert_row(db, session_id, message))).await?;
        }
        (_, []) => {}
    }
    Ok(())
}

/// A message outside its session's bucket could not be found by its id.
pub(crate) fn require_home(
    session_id: SessionId,
    mut message_ids: impl Iterator<Item = MessageId>,
) -> Result<(), StoreError> {
    match message_ids.all(|message_id| message_id.bucket() == session_id.bucket()) {
        true => Ok(()),
        false => Err(StoreError::internal("the id of a message is not in the bucket of its session")),
    }
}

async fn insert_row(db: &Db, session_id: SessionId, message: &Message) -> Result<(), Failure> {
    let params = params![
        bucket_value(session_id.bucket()),
        session_id.uuid(),
        message.seq,
        message.message_id.uuid(),
        message.parent_id.map(MessageId::uuid),
        message.role.as_str(),
        message.kind.as_str(),
        message.status.as_str(),
        message.content.as_str(),
        message.payload.as_ref().map(RawJson::as_str),
        message.metadata.as_str(),
        message.context.as_ref().map(RawJson::as_str),
        message.external_id.as_deref(),
        message.token_count,
        message.version,
        message.created_at.as_micros(),
        message.updated_at.as_micros(),
        message.deleted_at.map(Timestamp::as_micros),
    ];
    db.execute(INSERT_MESSAGE, params).await?;
    Ok(())
}

async fn insert_lists(db: &Db, session_id: SessionId, messages: &[Message]) -> Result<(), Failure> {
    fn list<'a, T>(messages: &'a [Message], of: impl Fn(&'a Message) -> T) -> Vec<T> {
        messages.iter().map(of).collect()
    }
    let params = params![
        bucket_value(session_id.bucket()),
        session_id.uuid(),
        list(messages, |m| m.seq),
        list::<Uuid>(messages, |m| m.message_id.uuid()),
        list(messages, |m| m.parent_id.map(MessageId::uuid)),
        list(messages, |m| m.role.as_str()),
        list(messages, |m| m.kind.as_str()),
        list(messages, |m| m.status.as_str()),
        list(messages, |m| m.content.as_str()),
        list(messages, |m| m.payload.as_ref().map(RawJson::as_str)),
        list(messages, |m| m.metadata.as_str()),
        list(messages, |m| m.context.as_ref().map(RawJson::as_str)),
        list(messages, |m| m.external_id.as_deref()),
        list(messages, |m| m.token_count),
        list(messages, |m| m.version),
        list(messages, |m| m.created_at.as_micros()),
        list(messages, |m| m.updated_at.as_micros()),
        list(messages, |m| m.deleted_at.map(Timestamp::as_micros)),
    ];
    db.execute(INSERT_MESSAGES, params).await?;
    Ok(())
}
