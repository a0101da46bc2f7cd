//! Embeddings in PostgreSQL.

pub(crate) mod jobs;
pub(crate) mod source;
pub(crate) mod vectors;

use std::collections::HashMap;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{
    Embedding, EmbeddingBacklog, EmbeddingJob, EmbeddingSource, EmbeddingStore, JobOutcome, ModelCount, NewEmbedding,
    Vector,
};
use chatstore_core::ids::{MessageId, ProjectId};
use chatstore_core::store::{Scope, StoreError};
use uuid::Uuid;

use crate::PostgresStore;
use crate::columns::{bucket_value, time_column_opt};
use crate::messages::derived::MessageKey;
use crate::messages::lock_message;
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::sessions::is_live;

pub(crate) use source::find_source;
use vectors::Origin;

const LIST_EMBEDDINGS: &str = concat!(
    "select m.message_id, d.model, e.part, e.embedding::real[]
    from unnest($1::smallint[], $2::uuid[]) w(bucket, message_id)
        cross join lateral (select m.* from messages m where m.bucket = w.bucket and m.message_id = w.message_id
            and m.deleted_at is null offset 0) m
        cross join lateral (select s.* from sessions s
            where s.bucket = m.bucket and s.session_id = m.session_id and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4) offset 0) s
        cross join lateral (select e.* from message_embeddings e
            where e.bucket = m.bucket and e.session_id = m.session_id and e.seq = m.seq offset 0) e
        cross join lateral (select d.* from embedding_models d
            where d.project_id = s.project_id and d.model_id = e.model_id offset 0) d"
);
pub(crate) const COUNT_JOBS: &str = "select
    (select count(*) from embedding_jobs where project_id = $1 and parked_reason is null),
    (select count(*) from embedding_jobs where project_id = $1 and parked_reason is not null),
    (select min(queued_at) from embedding_jobs where project_id = $1 and parked_reason is null)";
const LIST_PARKED: &str = "select message_id, parked_reason from embedding_jobs
    where project_id = $1 and parked_reason is not null order by due_at desc limit 10";
const LIST_MODELS: &str = "select d.model, d.dimensions, (
        select count(*) from message_embeddings e where e.project_id = d.project_id and e.model_id = d.model_id)
    from embedding_models d where d.project_id = $1";
const UPDATE_UNPARKED: &str =
    "update embedding_jobs set parked_reason = null, attempts = 0, due_at = $2, queued_at = $2
    where project_id = $1 and parked_reason is not null";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[LIST_EMBEDDINGS, COUNT_JOBS, LIST_PARKED, LIST_MODELS, UPDATE_UNPARKED];

#[async_trait]
impl EmbeddingStore for PostgresStore {
    async fn set_embedding(
        &self,
        scope: &Scope,
        message_id: MessageId,
        embedding: NewEmbedding,
        _now: Timestamp,
    ) -> Result<(), StoreError> {
        self.pool
            .write((scope.clone(), message_id, embedding), async |db, input| {
                set_embedding(&db, &input.0, input.1, &input.2).await
            })
            .await
    }

    async fn list_embeddings(&self, scope: &Scope, message_ids: &[MessageId]) -> Result<Vec<Embedding>, StoreError> {
        self.pool.read((scope, message_ids), async |db, input| list_embeddings(&db, input.0, input.1).await).await
    }

    async fn get_embedding_source(&self) -> Result<Option<EmbeddingSource>, StoreError> {
        self.pool.read((), async |db, _| find_source(&db).await).await
    }

    async fn set_embedding_source(&self, model: &str) -> Result<EmbeddingSource, StoreError> {
        self.pool.write(model.to_owned(), async |db, model| source::set_source(&db, &model).await).await
    }

    async fn settle_embedding_source(&self) -> Result<bool, StoreError> {
        self.pool.write((), async |db, _| source::settle_source(&db).await).await
    }

    async fn claim_embedding_jobs(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
        limit: usize,
    ) -> Result<Vec<EmbeddingJob>, StoreError> {
        loop {
            let input = (now, lease_until, limit);
            let claim =
                self.pool.write(input, async |db, input| jobs::claim(&db, input.0, input.1, input.2).await).await?;
            if !claim.jobs.is_empty() || !claim.has_removed {
                return Ok(claim.jobs);
            }
        }
    }

    async fn complete_embedding_jobs(
        &self,
        jobs: Vec<(EmbeddingJob, JobOutcome)>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.pool.write((jobs, now), async |db, input| jobs::complete(&db, &input.0, input.1).await).await
    }

    async fn get_embedding_backlog(&self, scope: &Scope) -> Result<EmbeddingBacklog, StoreError> {
        self.pool.read(scope.project_id, async |db, project_id| read_backlog(&db, *project_id).await).await
    }

    async fn retry_parked_embeddings(&self, scope: &Scope, now: Timestamp) -> Result<u64, StoreError> {
        self.pool
            .write((scope.project_id, now), async |db, input| {
                let (project_id, now) = *input;
                Ok(db.execute(UPDATE_UNPARKED, params![project_id.uuid(), now.as_micros()]).await?)
            })
            .await
    }
}

async fn set_embedding(db: &Db, scope: &Scope, message_id: MessageId, embedding: &NewEmbedding) -> Result<(), Failure> {
    let (counters, message) = lock_message(db, scope, message_id).await?;
    let key = MessageKey::from(&message);
    // First of all, for who holds the job may store vectors.
    if find_source(db).await?.is_some_and(|source| source.model == embedding.model) {
        jobs::delete_job(db, key).await?;
    }
    let NewEmbedding { model, vector } = embedding;
    let model_id = vectors::require_model(db, scope.project_id, model, vector).await?;
    let model_id = model_id.map_err(|fault| fault.at("/embedding"))?;
    vectors::delete_vectors_of_model(db, key, model_id).await?;
    let (user_id, of) = (counters.user_id.as_deref(), (model_id, Origin::Brought));
    vectors::insert_vectors(db, key, user_id, of, std::slice::from_ref(vector)).await
}

async fn list_embeddings(db: &Db, scope: &Scope, message_ids: &[MessageId]) -> Result<Vec<Embedding>, Failure> {
    let params = params![
        message_ids.iter().map(|id| bucket_value(id.bucket())).collect::<Vec<_>>(),
        message_ids.iter().map(|id| id.uuid()).collect::<Vec<_>>(),
        scope.project_id.uuid(),
        scope.user_id.as_deref(),
    ];
    let mut parts: HashMap<MessageId, Vec<(String, i16, Vector)>> = HashMap::new();
    for row in db.query(LIST_EMBEDDINGS, params).await? {
        let vector = Vector::new(row.try_get(3)?);
        let vector = vector.map_err(|error| StoreError::internal(format!("a stored vector {error}")))?;
        let message_id = row.try_get::<_, Uuid>(0)?.into();
        parts.entry(message_id).or_default().push((row.try_get(1)?, row.try_get(2)?, vector));
    }
    let mut embeddings: Vec<Embedding> = Vec::new();
    for message_id in message_ids {
        let mut parts = parts.remove(message_id).unwrap_or_default();
        parts.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        for (model, _, vector) in parts {
            match embeddings.last_mut().filter(|last| last.message_id == *message_id && last.model == model) {
                Some(last) => last.vectors.push(vector),
                None => embeddings.push(Embedding { message_id: *message_id, model, vectors: vec![vector] }),
            }
        }
    }
    Ok(embeddings)
}

async fn read_backlog(db: &Db, project_id: ProjectId) -> Result<EmbeddingBacklog, Failure> {
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let mut backlog = EmbeddingBacklog::default();
    if let Some(row) = db.query_opt(COUNT_JOBS, params![project_id.uuid()]).await? {
        backlog.pending = count(row.try_get(0)?);
        backlog.parked = count(row.try_get(1)?);
        backlog.oldest_queued_at = time_column_opt(&row, 2)?;
    }
    for row in db.query(LIST_PARKED, params![project_id.uuid()]).await? {
        backlog.parked_examples.push((row.try_get::<_, Uuid>(0)?.into(), row.try_get(1)?));
    }
    for row in db.query(LIST_MODELS, params![project_id.uuid()]).await? {
        let dimensions = u32::try_from(row.try_get::<_, i32>(1)?).unwrap_or(0);
        backlog.models.push(ModelCount { model: row.try_get(0)?, dimensions, vectors: count(row.try_get(2)?) });
    }
    backlog.models.sort_by(|a, b| a.model.cmp(&b.model));
    Ok(backlog)
}
