//! What is derived from a message: written and removed in the transaction that changes the message.
//!
//! Whoever removes or renews it takes the job first: who holds that row may store vectors.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use chatstore_core::messages::Message;

use crate::columns::bucket_value;
use crate::embeddings::jobs::{Queued, delete_job, insert_job};
use crate::embeddings::vectors::delete_vectors;
use crate::pool::{Db, Failure};
use crate::search::texts::{delete_text, insert_texts};

/// A message as the rows that are derived from it name it.
#[derive(Clone, Copy)]
pub(crate) struct MessageKey {
    pub(crate) project_id: ProjectId,
    pub(crate) session_id: SessionId,
    pub(crate) seq: i64,
    pub(crate) message_id: MessageId,
    pub(crate) created_at: Timestamp,
}

impl From<&Message> for MessageKey {
    fn from(message: &Message) -> Self {
        Self {
            project_id: message.project_id,
            session_id: message.session_id,
            seq: message.seq,
            message_id: message.message_id,
            created_at: message.created_at,
        }
    }
}

impl MessageKey {
    pub(crate) fn bucket(&self) -> i16 {
        bucket_value(self.session_id.bucket())
    }
}

/// Puts what a new text gives in the place of what the old one gave; the vectors are to come, if
/// it is to be queued.
pub(crate) async fn renew_derived(
    db: &Db,
    message: &Message,
    words: &str,
    embed: bool,
    now: Timestamp,
) -> Result<(), Failure> {
    let key = MessageKey::from(message);
    delete_derived(db, key).await?;
    insert_texts(db, &[key], &[words.to_owned()]).await?;
    if embed && !message.content.is_empty() {
        insert_job(db, key, message.version, Queued::New(now)).await?;
    }
    Ok(())
}

/// Removes all that is derived from a message.
pub(crate) async fn delete_derived(db: &Db, message: MessageKey) -> Result<(), Failure> {
    delete_job(db, message).await?;
    delete_vectors(db, message).await?;
    delete_text(db, message).await
}
