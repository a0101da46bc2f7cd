//! Vectors and their models, as rows.

use chatstore_core::embeddings::Vector;
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::EMBEDDING_MODELS_MAX;
use chatstore_core::store::StoreError;
use futures_util::future::try_join_all;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::messages::derived::MessageKey;
use crate::params::params;
use crate::pool::{Db, Failure};

const SELECT_MODEL: &str = "select dimensions from embedding_models where project_id = $1 and model_id = $2";
/// The model stays until this transaction has stored its vectors.
const LOCK_MODEL: &str =
    "select dimensions from embedding_models where project_id = $1 and model_id = $2 for key share";
const COUNT_MODELS: &str = "select count(*) from embedding_models where project_id = $1";
const INSERT_MODEL: &str =
    "insert into embedding_models (project_id, model_id, model, dimensions) values ($1, $2, $3, $4)
    on conflict do nothing";
const INSERT_VECTOR: &str = "insert into message_embeddings
    (bucket, session_id, seq, model_id, part, project_id, user_id, message_id, created_at, dimensions,
        is_made, embedding)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::real[]::vector)";
const DELETE_VECTORS: &str = "delete from message_embeddings where bucket = $1 and session_id = $2 and seq = $3";
const DELETE_VECTORS_OF_MODEL: &str = "delete from message_embeddings
    where bucket = $1 and session_id = $2 and seq = $3 and model_id = $4";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[SELECT_MODEL, LOCK_MODEL, COUNT_MODELS, INSERT_MODEL, INSERT_VECTOR, DELETE_VECTORS, DELETE_VECTORS_OF_MODEL];

/// Why a project takes no vector of a model.
pub(crate) enum ModelFault {
    /// The model's vectors have this length.
    Length(i32),
    /// The project has as many models as it may.
    TooMany,
}

impl ModelFault {
    /// What is wrong with a vector, as the end of a sentence.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::Length(dimensions) => format!("must have {dimensions} numbers, as the model's other vectors have"),
            Self::TooMany => format!("is of a new model, and the project has {EMBEDDING_MODELS_MAX}: use one of these"),
        }
    }

    /// The contract's answer for a vector at `pointer`.
    pub(crate) fn at(&self, pointer: impl Into<String>) -> StoreError {
        StoreError::Invalid { pointer: pointer.into(), detail: self.detail() }
    }
}

/// The id of a model: the first half of SHA-256(project id, name), so that none has to be looked up.
pub(crate) fn model_id(project_id: ProjectId, model: &str) -> Uuid {
    let digest = Sha256::new().chain_update(project_id.as_bytes()).chain_update(model).finalize();
    Uuid::from_bytes(std::array::from_fn(|n| digest[n]))
}

/// The length of a model's vectors, if the project has the model.
pub(crate) async fn find_dimensions(db: &Db, project_id: ProjectId, model_id: Uuid) -> Result<Option<i32>, Failure> {
    select_dimensions(db, SELECT_MODEL, project_id, model_id).await
}

async fn select_dimensions(db: &Db, sql: &str, project_id: ProjectId, model_id: Uuid) -> Result<Option<i32>, Failure> {
    let row = db.query_opt(sql, params![project_id.uuid(), model_id]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// The id of a model that takes vectors of this length; the first of them makes it.
pub(crate) async fn require_model(
    db: &Db,
    project_id: ProjectId,
    model: &str,
    vector: &Vector,
) -> Result<Result<Uuid, ModelFault>, Failure> {
    let (id, dimensions) = (model_id(project_id, model), dimensions_value(vector));
    let mut found = select_dimensions(db, LOCK_MODEL, project_id, id).await?;
    if found.is_none() {
        let row = db.query_opt(COUNT_MODELS, params![project_id.uuid()]).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.try_get(0))?;
        if usize::try_from(count).is_ok_and(|count| count >= EMBEDDING_MODELS_MAX) {
            return Ok(Err(ModelFault::TooMany));
        }
        db.execute(INSERT_MODEL, params![project_id.uuid(), id, model, dimensions]).await?;
        found = select_dimensions(db, LOCK_MODEL, project_id, id).await?;
    }
    Ok(match found {
        Some(stored) if stored != dimensions => Err(ModelFault::Length(stored)),
        _ => Ok(id),
    })
}

pub(crate) fn dimensions_value(vector: &Vector) -> i32 {
    i32::try_from(vector.dimensions()).unwrap_or(i32::MAX)
}

/// Where vectors come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A caller brought them.
    Brought,
    /// The embedding source made them, and can make them again.
    Made,
}

/// Stores the vectors of a message, in the order of its parts, for the user whose session it is.
pub(crate) async fn insert_vectors(
    db: &Db,
    message: MessageKey,
    user_id: Option<&str>,
    (model_id, origin): (Uuid, Origin),
    vectors: &[Vector],
) -> Result<(), Failure> {
    let rows: Vec<_> = (0_i16..).zip(vectors).collect();
    if let [first, rest @ ..] = rows.as_slice() {
        insert_row(db, message, user_id, (model_id, origin), first).await?;
        try_join_all(rest.iter().map(|row| insert_row(db, message, user_id, (model_id, origin), row))).await?;
    }
    Ok(())
}

async fn insert_row(
    db: &Db,
    message: MessageKey,
    user_id: Option<&str>,
    (model_id, origin): (Uuid, Origin),
    (part, vector): &(i16, &Vector),
) -> Result<(), Failure> {
    let params = params![
        message.bucket(),
        message.session_id.uuid(),
        message.seq,
        model_id,
        *part,
        message.project_id.uuid(),
        user_id,
        message.message_id.uuid(),
        message.created_at.as_micros(),
        dimensions_value(vector),
        origin == Origin::Made,
        vector.numbers(),
    ];
    db.execute(INSERT_VECTOR, params).await?;
    Ok(())
}

/// Removes the vectors of a message, of all models.
pub(crate) async fn delete_vectors(db: &Db, message: MessageKey) -> Result<(), Failure> {
    db.execute(DELETE_VECTORS, params![message.bucket(), message.session_id.uuid(), message.seq]).await?;
    Ok(())
}

/// Removes the vectors of a message that are of one model.
pub(crate) async fn delete_vectors_of_model(db: &Db, message: MessageKey, model_id: Uuid) -> Result<(), Failure> {
    let params = params![message.bucket(), message.session_id.uuid(), message.seq, model_id];
    db.execute(DELETE_VECTORS_OF_MODEL, params).await?;
    Ok(())
}
