//! Vectors as rows: their models, whose they are, and how they come and go.

use chatstore_core::embeddings::Vector;
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::EMBEDDING_MODELS_MAX;
use chatstore_core::store::StoreError;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::writer::{Failure, WriteConnection};

pub(crate) const SELECT_MODEL: &str =
    "select model_no, dimensions from embedding_models where project_id = ?1 and model = ?2";
const COUNT_MODELS: &str = "select count(*) from embedding_models where project_id = ?1";
const INSERT_MODEL: &str = "insert into embedding_models (project_id, model, dimensions) values (?1, ?2, ?3)";
const SELECT_OWNER: &str = "select o.owner_no from sessions s
    join embedding_owners o on o.project_id = s.project_id and o.user_id = coalesce(s.user_id, '')
    where s.session_no = ?1";
const INSERT_OWNER: &str = "insert into embedding_owners (project_id, user_id, generation)
    select project_id, coalesce(user_id, ''), 0 from sessions where session_no = ?1";
const MOVE_GENERATION: &str = "update embedding_owners set generation = generation + 1 where owner_no = ?1";
const INSERT_VECTOR: &str = "insert into message_embeddings (owner_no, model_no, message_no, part, is_made, vector)
    values (?1, ?2, ?3, ?4, ?5, ?6)";
const DELETE_VECTORS_OF_MODEL: &str = "delete from message_embeddings where message_no = ?1 and model_no = ?2";
const DELETE_VECTORS: &str = "delete from message_embeddings where message_no > ?1 and message_no <= ?2";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    SELECT_MODEL,
    COUNT_MODELS,
    INSERT_MODEL,
    SELECT_OWNER,
    INSERT_OWNER,
    MOVE_GENERATION,
    INSERT_VECTOR,
    DELETE_VECTORS_OF_MODEL,
    DELETE_VECTORS,
];

/// Where vectors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A caller or an archive brought them: no change of the source's model removes them.
    Brought,
    /// The embedding source made them.
    Made,
}

/// Replaces a message's vectors of a model. `Invalid` at `/embedding`, before anything is written,
/// if they do not have the model's length.
pub(crate) fn replace_vectors(
    connection: &WriteConnection,
    project_id: ProjectId,
    message_no: i64,
    model: &str,
    vectors: &[Vector],
    origin: Origin,
) -> Result<(), Failure> {
    let Some(first) = vectors.first() else {
        return Ok(());
    };
    let known = connection.prepare_cached(SELECT_MODEL)?.query_row(params![project_id.as_bytes(), model], model_row);
    let known = known.optional()?;
    let dimensions = known.map_or(first.dimensions(), |(_, dimensions)| dimensions);
    if vectors.iter().any(|vector| vector.dimensions() != dimensions) {
        return Err(wrong_length(dimensions).into());
    }
    let model_no = match known {
        Some((model_no, _)) => model_no,
        None => insert_model(connection, project_id, model, dimensions)?,
    };
    let owner_no = owner_no(connection, message_no >> 32)?;
    if connection.prepare_cached(DELETE_VECTORS_OF_MODEL)?.execute(params![message_no, model_no])? > 0 {
        move_generation(connection, owner_no)?;
    }
    for (vector, part) in vectors.iter().zip(0_i64..) {
        let params = params![owner_no, model_no, message_no, part, origin == Origin::Made, to_blob(vector)];
        connection.prepare_cached(INSERT_VECTOR)?.execute(params)?;
    }
    Ok(())
}

/// Removes the vectors of the messages of one session after `from` up to `to`.
pub(crate) fn delete_vectors(connection: &WriteConnection, from: i64, to: i64) -> rusqlite::Result<()> {
    if connection.prepare_cached(DELETE_VECTORS)?.execute(params![from, to])? > 0 {
        move_generation(connection, owner_no(connection, to >> 32)?)?;
    }
    Ok(())
}

/// What a vector that does not fit its model is refused with.
pub(crate) fn wrong_length(wanted: usize) -> StoreError {
    let detail = format!("must have {wanted} numbers, as the model's other vectors have");
    StoreError::Invalid { pointer: "/embedding".to_owned(), detail }
}

/// A model's number and the length of its vectors.
pub(crate) fn model_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, usize)> {
    Ok((row.get(0)?, row.get::<_, u32>(1)? as usize))
}

fn insert_model(
    connection: &Connection,
    project_id: ProjectId,
    model: &str,
    dimensions: usize,
) -> Result<i64, Failure> {
    let params = params![project_id.as_bytes()];
    let models: i64 = connection.prepare_cached(COUNT_MODELS)?.query_row(params, |row| row.get(0))?;
    if models >= EMBEDDING_MODELS_MAX as i64 {
        let detail = format!("is of a new model, and the project has {EMBEDDING_MODELS_MAX}: use one of these");
        return Err(StoreError::Invalid { pointer: "/embedding".to_owned(), detail }.into());
    }
    connection.prepare_cached(INSERT_MODEL)?.execute(params![project_id.as_bytes(), model, dimensions as i64])?;
    Ok(connection.last_insert_rowid())
}

/// Whose vectors those of a session's messages are.
fn owner_no(connection: &Connection, session_no: i64) -> rusqlite::Result<i64> {
    let found = connection.prepare_cached(SELECT_OWNER)?.query_row(params![session_no], |row| row.get(0)).optional()?;
    if let Some(owner_no) = found {
        return Ok(owner_no);
    }
    connection.prepare_cached(INSERT_OWNER)?.execute(params![session_no])?;
    Ok(connection.last_insert_rowid())
}

/// Notes that a vector of the owner was taken away.
pub(super) fn move_generation(connection: &Connection, owner_no: i64) -> rusqlite::Result<()> {
    connection.prepare_cached(MOVE_GENERATION)?.execute(params![owner_no]).map(drop)
}

fn to_blob(vector: &Vector) -> Vec<u8> {
    vector.numbers().iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The numbers of a blob, into `numbers`.
pub(crate) fn read_blob(blob: &[u8], numbers: &mut Vec<f32>) {
    let (chunks, _) = blob.as_chunks::<4>();
    numbers.clear();
    numbers.extend(chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)));
}
