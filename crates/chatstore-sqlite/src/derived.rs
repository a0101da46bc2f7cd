//! What is derived from a message and hangs on it: its words in the index, its vectors and its
//! place in the queue for them. Written in the transaction that changes the message.

use chatstore_core::embeddings::Vector;
use chatstore_core::messages::Message;
use rusqlite::Connection;

use crate::embeddings::jobs::{Job, delete_jobs, insert_job};
use crate::embeddings::source::source_model;
use crate::embeddings::vectors::{Origin, delete_vectors, replace_vectors};
use crate::search::index::{Home, delete_texts, insert_text, replace_text};
use crate::writer::{Failure, WriteConnection};

/// What comes with a message that is stored.
pub(crate) struct Brought<'a> {
    /// Its lexemes.
    pub(crate) lexemes: &'a str,
    /// Models and its vectors of each.
    pub(crate) vectors: Vec<(&'a str, &'a [Vector])>,
    /// How it is queued, if it is.
    pub(crate) job: Option<Job>,
}

/// Derives what hangs on a message that was just stored.
pub(crate) fn insert_derived(
    connection: &WriteConnection,
    message_no: i64,
    message: &Message,
    brought: Brought<'_>,
) -> Result<(), Failure> {
    insert_text(connection, message_no, message.created_at.as_micros(), brought.lexemes)?;
    for (model, vectors) in &brought.vectors {
        replace_vectors(connection, message.project_id, message_no, model, vectors, Origin::Brought)?;
    }
    match brought.job {
        Some(job) if !has_vector_of_source(connection, &brought.vectors)? => {
            Ok(insert_job(connection, message_no, message, job)?)
        }
        _ => Ok(()),
    }
}

fn has_vector_of_source(connection: &Connection, vectors: &[(&str, &[Vector])]) -> rusqlite::Result<bool> {
    if vectors.is_empty() {
        return Ok(false);
    }
    let source = source_model(connection)?;
    Ok(vectors.iter().any(|(model, _)| Some(*model) == source.as_deref()))
}

/// Derives everything anew after a message's text has changed from `content`; `lexemes` are its new
/// ones.
pub(crate) fn renew_derived(
    connection: &WriteConnection,
    message_no: i64,
    content: &str,
    message: &Message,
    lexemes: &str,
    job: Option<Job>,
) -> Result<(), Failure> {
    let old = || Home::of(message).lexemes(content);
    replace_text(connection, message_no, message.created_at.as_micros(), old, lexemes)?;
    delete_vectors(connection, message_no - 1, message_no)?;
    delete_jobs(connection, message_no - 1, message_no)?;
    if let Some(job) = job {
        insert_job(connection, message_no, message, job)?;
    }
    Ok(())
}

/// Drops what hangs on the messages of one session after `from` up to `to`, before what they say is
/// blanked.
pub(crate) fn delete_derived(connection: &WriteConnection, home: Home, from: i64, to: i64) -> rusqlite::Result<()> {
    delete_texts(connection, home, from, to)?;
    delete_vectors(connection, from, to)?;
    delete_jobs(connection, from, to)
}
