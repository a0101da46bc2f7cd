//! Embeddings in SQLite.

pub(crate) mod jobs;
pub(crate) mod source;
pub(crate) mod vectors;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{
    Embedding, EmbeddingBacklog, EmbeddingJob, EmbeddingSource, EmbeddingStore, JobOutcome, ModelCount, NewEmbedding,
    Vector,
};
use chatstore_core::ids::MessageId;
use chatstore_core::store::{Scope, StoreError};
use rusqlite::{Row, params, params_from_iter};

use crate::SqliteStore;
use crate::columns::{count_column, time_column_opt};
use crate::messages::{find_message, row_number};
use crate::reader::Reader;
use crate::writer::{Failure, Kind};
use vectors::Origin;

const LIST_EMBEDDINGS: &str = "select k.model, e.vector from messages m
    join sessions s on s.session_no = m.message_no >> 32
    join message_embeddings e on e.message_no = m.message_no
    join embedding_models k on k.model_no = e.model_no
    where m.message_id = ?1 and s.project_id = ?2 and (?3 is null or s.user_id = ?3) and m.deleted_at is null
        and s.deleted_at is null
    order by k.model, e.part";
const COUNT_WAITING: &str =
    "select count(*), min(queued_at) from embedding_jobs where project_id = ?1 and parked_reason is null";
const COUNT_PARKED: &str = "select count(*) from embedding_jobs where project_id = ?1 and parked_reason is not null";
const LIST_PARKED: &str = "select m.message_id, j.parked_reason from embedding_jobs j
    join messages m on m.message_no = j.message_no
    where j.project_id = ?1 and j.parked_reason is not null order by j.due_at desc limit 10";
const LIST_MODELS: &str = "select k.model, k.dimensions,
        (select count(*) from message_embeddings e where e.model_no = k.model_no)
    from embedding_models k where k.project_id = ?1 order by k.model";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[COUNT_WAITING, COUNT_PARKED, LIST_PARKED, LIST_MODELS];
/// The few vectors of one message are sorted.
#[cfg(test)]
pub(crate) const SORTING_STATEMENTS: &[&str] = &[LIST_EMBEDDINGS];

#[async_trait]
impl EmbeddingStore for SqliteStore {
    async fn set_embedding(
        &self,
        scope: &Scope,
        message_id: MessageId,
        embedding: NewEmbedding,
        _now: Timestamp,
    ) -> Result<(), StoreError> {
        let scope = scope.clone();
        let bytes = size_of::<f32>() * embedding.vector.dimensions();
        self.writer
            .write(Kind::Plain, bytes, move |connection| {
                find_message(connection, &scope, message_id)?;
                let message_no = row_number(connection, message_id)?;
                let NewEmbedding { model, vector } = &embedding;
                let vectors = std::slice::from_ref(vector);
                let project_id = scope.project_id;
                vectors::replace_vectors(connection, project_id, message_no, model, vectors, Origin::Brought)?;
                if source::source_model(connection)?.as_ref() == Some(model) {
                    jobs::delete_job(connection, message_no)?;
                }
                Ok(())
            })
            .await
    }

    async fn list_embeddings(&self, scope: &Scope, message_ids: &[MessageId]) -> Result<Vec<Embedding>, StoreError> {
        let (scope, message_ids) = (scope.clone(), message_ids.to_vec());
        self.readers
            .read(move |reader| {
                reader.snapshot(|| {
                    let mut embeddings = Vec::new();
                    for message_id in &message_ids {
                        list_embeddings(reader, &scope, *message_id, &mut embeddings)?;
                    }
                    Ok(embeddings)
                })
            })
            .await
    }

    async fn get_embedding_source(&self) -> Result<Option<EmbeddingSource>, StoreError> {
        self.readers.read(|reader| reader.query_row(source::SELECT_SOURCE, (), source::source_row)).await
    }

    async fn set_embedding_source(&self, model: &str) -> Result<EmbeddingSource, StoreError> {
        let model = model.to_owned();
        self.writer.write(Kind::Plain, model.len(), move |connection| Ok(source::set_source(connection, &model)?)).await
    }

    async fn settle_embedding_source(&self) -> Result<bool, StoreError> {
        // Workers ask again and again; a look is cheaper than a transaction.
        if !self.exists(source::IS_UNSETTLED, None).await? {
            return Ok(false);
        }
        self.writer.write(Kind::Plain, 0, |connection| Ok(source::settle_source(connection)?)).await
    }

    async fn claim_embedding_jobs(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
        limit: usize,
    ) -> Result<Vec<EmbeddingJob>, StoreError> {
        while self.exists(jobs::HAS_DUE, Some(now.as_micros())).await? {
            let claim = self
                .writer
                .write(Kind::Plain, 0, move |connection| Ok(jobs::claim(connection, now, lease_until, limit)?));
            let claim = claim.await?;
            if !claim.jobs.is_empty() || !claim.has_removed {
                return Ok(claim.jobs);
            }
        }
        Ok(Vec::new())
    }

    async fn complete_embedding_jobs(
        &self,
        jobs: Vec<(EmbeddingJob, JobOutcome)>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let bytes = jobs.iter().map(|(_, outcome)| outcome_bytes(outcome)).sum();
        self.writer
            .write(Kind::Plain, bytes, move |connection| {
                for (job, outcome) in jobs {
                    jobs::complete(connection, &job, outcome, now)?;
                }
                Ok(())
            })
            .await
    }

    async fn get_embedding_backlog(&self, scope: &Scope) -> Result<EmbeddingBacklog, StoreError> {
        let project_id = scope.project_id;
        self.readers.read(move |reader| reader.snapshot(|| get_backlog(reader, project_id.as_bytes()))).await
    }

    async fn retry_parked_embeddings(&self, scope: &Scope, now: Timestamp) -> Result<u64, StoreError> {
        let project_id = scope.project_id;
        self.writer
            .write(Kind::Plain, 0, move |connection| Ok(jobs::retry_parked(connection, project_id.as_bytes(), now)?))
            .await
    }
}

impl SqliteStore {
    /// The answer of a statement that tells whether there is something.
    pub(crate) async fn exists(&self, sql: &'static str, param: Option<i64>) -> Result<bool, StoreError> {
        let exists = |row: &Row<'_>| row.get(0);
        let found = self.readers.read(move |reader| reader.query_row(sql, params_from_iter(param), exists)).await?;
        Ok(found.unwrap_or_default())
    }
}

fn outcome_bytes(outcome: &JobOutcome) -> usize {
    match outcome {
        JobOutcome::Embedded { vectors, .. } => {
            vectors.iter().map(|vector| size_of::<f32>() * vector.dimensions()).sum()
        }
        JobOutcome::Later { .. } => 0,
        JobOutcome::Parked { reason } => reason.len(),
    }
}

fn list_embeddings(
    reader: &Reader,
    scope: &Scope,
    message_id: MessageId,
    embeddings: &mut Vec<Embedding>,
) -> Result<(), Failure> {
    let params = params![message_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
    reader.visit(LIST_EMBEDDINGS, params, |row| {
        let blob = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        reader.spend(blob.len())?;
        let mut numbers = Vec::with_capacity(blob.len() / size_of::<f32>());
        vectors::read_blob(blob, &mut numbers);
        let vector = Vector::new(numbers).map_err(StoreError::internal)?;
        let model: String = row.get(0)?;
        match embeddings.last_mut() {
            Some(last) if last.message_id == message_id && last.model == model => last.vectors.push(vector),
            _ => embeddings.push(Embedding { message_id, model, vectors: vec![vector] }),
        }
        Ok(())
    })
}

fn get_backlog(reader: &Reader, project_id: &[u8; 16]) -> Result<EmbeddingBacklog, Failure> {
    let waiting = |row: &Row<'_>| Ok((count_column(row, 0)?, time_column_opt(row, 1)?));
    let (pending, oldest_queued_at) =
        reader.query_row(COUNT_WAITING, params![project_id], waiting)?.unwrap_or_default();
    let parked = reader.query_row(COUNT_PARKED, params![project_id], |row| count_column(row, 0))?.unwrap_or_default();
    let parked_bytes = |(_, reason): &(MessageId, String)| reason.len();
    let parked_examples = reader.query(LIST_PARKED, params![project_id], jobs::parked_row, parked_bytes)?;
    let count =
        |row: &Row<'_>| Ok(ModelCount { model: row.get(0)?, dimensions: row.get(1)?, vectors: count_column(row, 2)? });
    let models = reader.query(LIST_MODELS, params![project_id], count, |count| count.model.len())?;
    Ok(EmbeddingBacklog { pending, parked, oldest_queued_at, parked_examples, models })
}
