//! The models of the embedding source, and the change from one to the next.

use std::collections::BTreeSet;

use chatstore_core::embeddings::EmbeddingSource;
use chatstore_core::search::Derived;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::vectors::move_generation;
use crate::search::reindex::{is_reindexing, note_reindex, start_reindex};

pub(super) const SELECT_SOURCE: &str = "select model, serving from embedding_source";
/// Whether a change of models is under way.
pub(super) const IS_UNSETTLED: &str = "select exists (select 1 from embedding_source where serving <> model)
    or exists (select 1 from retired_embedding_models)";
const SAVE_SOURCE: &str = "insert into embedding_source (only_row, model, serving) values (1, ?1, ?2)
    on conflict (only_row) do update set model = ?1, serving = ?2";
const HAS_VECTORS: &str = "select exists (select 1 from embedding_models k
    join message_embeddings e on e.model_no = k.model_no where k.model = ?1)";
const HAS_BACKFILL: &str =
    "select exists (select 1 from embedding_jobs where is_backfill = 1 and parked_reason is null)";
const RETIRE_MODEL: &str = "insert or ignore into retired_embedding_models (model) values (?1)";
const UNRETIRE_MODEL: &str = "delete from retired_embedding_models where model = ?1";
/// Another model may take what the one before refused.
const UNPARK_JOBS: &str = "update embedding_jobs
    set attempts = 0, due_at = 0, is_backfill = 1, queued_at = null, parked_reason = null where parked_reason is not null";
const SELECT_RETIRED: &str = "select model from retired_embedding_models limit 1";
const LIST_RETIRED_VECTORS: &str = "select e.embedding_no, e.owner_no from embedding_models k
    join message_embeddings e on e.model_no = k.model_no and e.is_made = 1 where k.model = ?1 limit ?2";
const DELETE_VECTOR: &str = "delete from message_embeddings where embedding_no = ?1";
const DELETE_MODELS: &str = "delete from embedding_models where model = ?1
    and not exists (select 1 from message_embeddings e where e.model_no = embedding_models.model_no)";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[HAS_VECTORS, HAS_BACKFILL, RETIRE_MODEL, UNRETIRE_MODEL, LIST_RETIRED_VECTORS, DELETE_VECTOR, DELETE_MODELS];
/// Reads of tables that have a row or a few.
#[cfg(test)]
pub(crate) const SMALL_STATEMENTS: &[&str] = &[SELECT_SOURCE, IS_UNSETTLED, SAVE_SOURCE, SELECT_RETIRED, UNPARK_JOBS];

/// Vectors that are removed in one transaction. Those that somebody brought stay.
const RETIRED_BATCH: u32 = 500;

pub(super) fn source_row(row: &Row<'_>) -> rusqlite::Result<EmbeddingSource> {
    Ok(EmbeddingSource { model: row.get(0)?, serving: row.get(1)? })
}

fn get_source(connection: &Connection) -> rusqlite::Result<Option<EmbeddingSource>> {
    connection.prepare_cached(SELECT_SOURCE)?.query_row((), source_row).optional()
}

/// The model that new vectors are made with.
pub(crate) fn source_model(connection: &Connection) -> rusqlite::Result<Option<String>> {
    Ok(get_source(connection)?.map(|source| source.model))
}

pub(super) fn set_source(connection: &Connection, model: &str) -> rusqlite::Result<EmbeddingSource> {
    let before = get_source(connection)?;
    if let Some(source) = &before
        && source.model == model
    {
        // Messages may have been stored where nobody queued them: by a server without a source.
        note_reindex(connection, Derived::Embeddings)?;
        return Ok(source.clone());
    }
    let serving = match &before {
        Some(source) if has_vectors(connection, &source.serving)? => source.serving.clone(),
        _ => model.to_owned(),
    };
    let source = EmbeddingSource { model: model.to_owned(), serving };
    save_source(connection, &source)?;
    if let Some(before) = before {
        for old in [&before.model, &before.serving] {
            if *old != source.model && *old != source.serving {
                connection.prepare_cached(RETIRE_MODEL)?.execute(params![old])?;
            }
        }
    }
    connection.prepare_cached(UNRETIRE_MODEL)?.execute(params![model])?;
    connection.prepare_cached(UNPARK_JOBS)?.execute(())?;
    start_reindex(connection, Derived::Embeddings)?;
    Ok(source)
}

fn save_source(connection: &Connection, source: &EmbeddingSource) -> rusqlite::Result<()> {
    connection.prepare_cached(SAVE_SOURCE)?.execute(params![source.model, source.serving]).map(drop)
}

fn has_vectors(connection: &Connection, model: &str) -> rusqlite::Result<bool> {
    connection.prepare_cached(HAS_VECTORS)?.query_row(params![model], |row| row.get(0))
}

/// Lets the new model serve when nothing waits for it, and removes some of the vectors that the
/// source made with those before; tells whether more of these are left.
pub(super) fn settle_source(connection: &Connection) -> rusqlite::Result<bool> {
    let Some(source) = get_source(connection)? else {
        return Ok(false);
    };
    if source.serving != source.model && !is_changing(connection)? {
        connection.prepare_cached(RETIRE_MODEL)?.execute(params![source.serving])?;
        save_source(connection, &EmbeddingSource { serving: source.model.clone(), model: source.model })?;
    }
    let retired = connection.prepare_cached(SELECT_RETIRED)?.query_row((), |row| row.get::<_, String>(0)).optional()?;
    match retired {
        Some(model) => delete_retired(connection, &model).map(|()| true),
        None => Ok(false),
    }
}

fn is_changing(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(is_reindexing(connection, Derived::Embeddings)?
        || connection.prepare_cached(HAS_BACKFILL)?.query_row((), |row| row.get(0))?)
}

fn delete_retired(connection: &Connection, model: &str) -> rusqlite::Result<()> {
    let map = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let mut statement = connection.prepare_cached(LIST_RETIRED_VECTORS)?;
    let rows = statement.query_map(params![model, RETIRED_BATCH], map)?;
    let vectors = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    for (embedding_no, _) in &vectors {
        connection.prepare_cached(DELETE_VECTOR)?.execute(params![embedding_no])?;
    }
    for owner_no in vectors.iter().map(|(_, owner_no)| *owner_no).collect::<BTreeSet<_>>() {
        move_generation(connection, owner_no)?;
    }
    if vectors.is_empty() {
        connection.prepare_cached(DELETE_MODELS)?.execute(params![model])?;
        connection.prepare_cached(UNRETIRE_MODEL)?.execute(params![model])?;
    }
    Ok(())
}
