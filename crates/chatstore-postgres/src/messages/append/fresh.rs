//! Storing messages that are new, in a session whose row is held, and what comes with them.

use std::collections::HashSet;
use std::slice;

use chatstore_core::embeddings::NewEmbedding;
use chatstore_core::messages::{Message, NewMessage};
use chatstore_core::store::StoreError;
use uuid::Uuid;

use super::{Append, is_queued};
use crate::AppendForm;
use crate::columns::bucket_value;
use crate::embeddings::find_source;
use crate::embeddings::jobs::{Queued, insert_job};
use crate::embeddings::vectors::{Origin, insert_vectors, require_model};
use crate::messages::derived::MessageKey;
use crate::messages::insert::insert_messages;
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::search::texts::insert_texts;

/// `offset 0` keeps the planner from looking through the session's messages for these.
const SELECT_PARENTS: &str = "select m.message_id from unnest($3::uuid[]) p(message_id) cross join lateral (
        select m.* from messages m where m.bucket = $1 and m.message_id = p.message_id offset 0) m
    where m.session_id = $2 and m.deleted_at is null";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[SELECT_PARENTS];

/// Stores the messages of an append behind `last_seq` of a session of `user_id`. They stand at `ns` of the request, by
/// which faults name them.
pub(crate) async fn insert_fresh(
    db: &Db,
    form: AppendForm,
    append: &Append,
    ns: &[usize],
    last_seq: i64,
    user_id: Option<&str>,
) -> Result<Vec<Message>, Failure> {
    let messages = append.clone().into_stored(last_seq);
    let orphan = find_orphan(db, append).await?;
    // Of several faults the first is told: what stands before may have one of its own.
    let sound = &messages[..orphan.unwrap_or(messages.len())];
    insert_messages(db, form, append.session_id, sound).await?;
    insert_derived(db, append, ns, sound, user_id).await?;
    match orphan {
        None => Ok(messages),
        Some(n) => {
            let detail = "is no message of this session".to_owned();
            Err(StoreError::Invalid { pointer: format!("/{}/parent_id", ns[n]), detail }.into())
        }
    }
}

/// Stores what comes with messages: their words, their places in the queue and their vectors.
async fn insert_derived(
    db: &Db,
    append: &Append,
    ns: &[usize],
    messages: &[Message],
    user_id: Option<&str>,
) -> Result<(), Failure> {
    let keys: Vec<_> = messages.iter().map(MessageKey::from).collect();
    insert_texts(db, &keys, &append.words).await?;
    let source = if append.has_vectors() { find_source(db).await? } else { None };
    let of_source = |new: &NewMessage| matches!((&new.embedding, &source), (Some(a), Some(b)) if a.model == b.model);
    for ((n, key), new) in ns.iter().zip(keys).zip(&append.messages) {
        if is_queued(new) && !of_source(new) {
            insert_job(db, key, 1, Queued::New(append.now)).await?;
        }
        if let Some(NewEmbedding { model, vector }) = &new.embedding {
            let model_id = require_model(db, key.project_id, model, vector).await?;
            let model_id = model_id.map_err(|fault| fault.at(format!("/{n}/embedding")))?;
            insert_vectors(db, key, user_id, (model_id, Origin::Brought), slice::from_ref(vector)).await?;
        }
    }
    Ok(())
}

/// The first message whose parent does not stand in the session.
async fn find_orphan(db: &Db, append: &Append) -> Result<Option<usize>, Failure> {
    let wanted = append.foreign_parents();
    if wanted.is_empty() {
        return Ok(None);
    }
    let ids: Vec<Uuid> = wanted.iter().map(|(_, parent_id)| parent_id.uuid()).collect();
    let params = params![bucket_value(append.session_id.bucket()), append.session_id.uuid(), ids];
    let rows = db.query(SELECT_PARENTS, params).await?;
    let found = rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<Uuid>, _>>()?;
    Ok(wanted.into_iter().find(|(_, parent_id)| !found.contains(&parent_id.uuid())).map(|(n, _)| n))
}
