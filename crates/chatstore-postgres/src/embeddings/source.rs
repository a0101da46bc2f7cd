//! The models of the embedding source, and the change from one to the next.

use chatstore_core::embeddings::EmbeddingSource;
use chatstore_core::search::Derived;
use chatstore_core::store::StoreError;

use crate::params::params;
use crate::pool::{Db, Failure};
use crate::search::reindex::{note_reindex, start_reindex};

/// Another model may take what the one before refused.
const UNPARK_JOBS: &str = "update embedding_jobs
    set attempts = 0, due_at = 0, is_backfill = true, queued_at = null, parked_reason = null
    where parked_reason is not null";
const SELECT_SOURCE: &str = "select model, serving from embedding_source";
const LOCK_SOURCE: &str = "select model, serving from embedding_source for update";
const INSERT_SOURCE: &str = "insert into embedding_source (only_row, model, serving) values (1, $1, $1)
    on conflict do nothing";
const UPDATE_SOURCE: &str = "update embedding_source set model = $1, serving = $2 where only_row = 1";
const INSERT_RETIRED: &str = "insert into retired_embedding_models (model) values ($1) on conflict do nothing";
const DELETE_RETIRED: &str = "delete from retired_embedding_models where model = $1";
const SELECT_RETIRED: &str = "select model from retired_embedding_models order by model limit 1";
pub(crate) const HAS_VECTORS: &str = "select exists (select from embedding_models d cross join lateral (
        select from message_embeddings e where e.project_id = d.project_id and e.model_id = d.model_id limit 1) e
    where d.model = $1)";
/// What a change of models has queued and not yet done.
const IS_BACKFILLING: &str = "select exists (select from reindexes where derived = $1)
        or exists (select from embedding_jobs where is_backfill and parked_reason is null)";
pub(crate) const DELETE_VECTORS_OF_RETIRED: &str = "delete from message_embeddings where ctid = any (array(
        select e.ctid from embedding_models d cross join lateral (
            select e.ctid from message_embeddings e where e.project_id = d.project_id and e.model_id = d.model_id
                and e.is_made limit $2) e
        where d.model = $1 limit $2))";
/// Waits for whoever stores vectors of the model; what comes after it sees these.
const LOCK_MODELS: &str = "select 1 from embedding_models where model = $1 for update";
pub(crate) const DELETE_MODELS: &str = "delete from embedding_models d where d.model = $1 and not exists (
        select from message_embeddings e where e.project_id = d.project_id and e.model_id = d.model_id)";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    SELECT_SOURCE,
    LOCK_SOURCE,
    INSERT_SOURCE,
    UPDATE_SOURCE,
    UNPARK_JOBS,
    INSERT_RETIRED,
    DELETE_RETIRED,
    SELECT_RETIRED,
    HAS_VECTORS,
    IS_BACKFILLING,
    DELETE_VECTORS_OF_RETIRED,
    LOCK_MODELS,
    DELETE_MODELS,
];

/// Vectors of a retired model that are removed in one transaction.
const RETIRE_VECTORS_BATCH: i64 = 1_000;

pub(crate) async fn find_source(db: &Db) -> Result<Option<EmbeddingSource>, Failure> {
    select(db, SELECT_SOURCE).await
}

async fn select(db: &Db, sql: &str) -> Result<Option<EmbeddingSource>, Failure> {
    let row = db.query_opt(sql, &[]).await?;
    row.map(|row| Ok(EmbeddingSource { model: row.try_get(0)?, serving: row.try_get(1)? })).transpose()
}

pub(super) async fn set_source(db: &Db, model: &str) -> Result<EmbeddingSource, Failure> {
    db.execute(INSERT_SOURCE, params![model]).await?;
    let before = select(db, LOCK_SOURCE).await?;
    let before = before.ok_or_else(|| StoreError::internal("the embedding source is missing"))?;
    if before.model == model {
        // Messages may have been stored while no source was at work.
        note_reindex(db, Derived::Embeddings).await?;
        return Ok(before);
    }
    // What has served goes on, for a change that was not ended has not made all vectors.
    let serving = match has_vectors(db, &before.serving).await? {
        true => before.serving.clone(),
        false => model.to_owned(),
    };
    for old in [&before.model, &before.serving] {
        if *old != model && *old != serving {
            db.execute(INSERT_RETIRED, params![old.as_str()]).await?;
        }
    }
    for used in [model, serving.as_str()] {
        db.execute(DELETE_RETIRED, params![used]).await?;
    }
    db.execute(UPDATE_SOURCE, params![model, serving]).await?;
    db.execute(UNPARK_JOBS, &[]).await?;
    start_reindex(db, Derived::Embeddings).await?;
    Ok(EmbeddingSource { model: model.to_owned(), serving })
}

async fn has_vectors(db: &Db, model: &str) -> Result<bool, Failure> {
    let row = db.query_opt(HAS_VECTORS, params![model]).await?;
    Ok(row.is_some_and(|row| row.try_get(0).unwrap_or(false)))
}

/// Ends a change that is through, and removes some vectors of a retired model; tells whether more
/// are to be removed.
pub(super) async fn settle_source(db: &Db) -> Result<bool, Failure> {
    let Some(source) = select(db, LOCK_SOURCE).await? else { return Ok(false) };
    if source.serving != source.model {
        let row = db.query_opt(IS_BACKFILLING, params![Derived::Embeddings.as_str()]).await?;
        if row.is_some_and(|row| row.try_get(0).unwrap_or(true)) {
            return Ok(false);
        }
        db.execute(INSERT_RETIRED, params![source.serving.as_str()]).await?;
        db.execute(UPDATE_SOURCE, params![source.model.as_str(), source.model.as_str()]).await?;
    }
    let Some(row) = db.query_opt(SELECT_RETIRED, &[]).await? else { return Ok(false) };
    let retired: &str = row.try_get(0)?;
    let deleted = db.execute(DELETE_VECTORS_OF_RETIRED, params![retired, RETIRE_VECTORS_BATCH]).await?;
    if deleted == 0 {
        // Another length may come with the name, unless callers brought vectors of it.
        db.query(LOCK_MODELS, params![retired]).await?;
        db.execute(DELETE_MODELS, params![retired]).await?;
        db.execute(DELETE_RETIRED, params![retired]).await?;
    }
    Ok(deleted > 0 || db.query_opt(SELECT_RETIRED, &[]).await?.is_some())
}
