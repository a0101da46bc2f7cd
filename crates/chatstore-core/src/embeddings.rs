//! Embeddings: vectors of messages, and the queue of messages that wait for theirs.

use async_trait::async_trait;
use thiserror::Error;

use crate::clock::Timestamp;
use crate::ids::{MessageId, ProjectId, SessionId};
use crate::limits::VECTOR_DIMENSIONS_MAX;
use crate::store::{Scope, StoreError};

/// A vector that can be stored and compared: 1 to 4,000 finite numbers whose squares have a sum
/// that single precision can hold and divide by.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector(Vec<f32>);

/// Why numbers are no vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VectorError {
    /// None, or too many.
    #[error("must have 1 to {VECTOR_DIMENSIONS_MAX} numbers")]
    Length,
    /// NaN or infinite, in single precision.
    #[error("must hold finite numbers of single precision")]
    NotFinite,
    /// All are zero, or so small or large that the length cannot be told.
    #[error("must have a length that single precision can tell from zero and infinity")]
    NoLength,
}

impl Vector {
    /// Takes numbers.
    ///
    /// # Errors
    /// If they are no vector.
    pub fn new(numbers: Vec<f32>) -> Result<Self, VectorError> {
        if !(1..=VECTOR_DIMENSIONS_MAX).contains(&numbers.len()) {
            return Err(VectorError::Length);
        }
        if !numbers.iter().all(|number| number.is_finite()) {
            return Err(VectorError::NotFinite);
        }
        let squares: f32 = numbers.iter().map(|number| number * number).sum();
        if squares.is_normal() { Ok(Self(numbers)) } else { Err(VectorError::NoLength) }
    }

    /// The numbers.
    pub fn numbers(&self) -> &[f32] {
        &self.0
    }

    /// How many numbers it has.
    pub fn dimensions(&self) -> usize {
        self.0.len()
    }
}

/// How nearness is measured. In each the larger value is the nearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The cosine of the angle between the two, -1 to 1.
    #[default]
    Cosine,
    /// The inner product.
    InnerProduct,
    /// The Euclidean distance, negated.
    L2,
}

impl Metric {
    /// All, in the order they are listed.
    pub const ALL: [Self; 3] = [Self::Cosine, Self::InnerProduct, Self::L2];

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::InnerProduct => "inner_product",
            Self::L2 => "l2",
        }
    }

    /// The metric of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.as_str() == text)
    }
}

/// A vector and the model that made it. A model is a name within a project; its first vector fixes
/// the length of all.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEmbedding {
    /// The model's name.
    pub model: String,
    /// The vector.
    pub vector: Vector,
}

/// The vectors of a message under one model: one, or one for each part of a long text.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The message.
    pub message_id: MessageId,
    /// The model's name.
    pub model: String,
    /// In the order of the parts.
    pub vectors: Vec<Vector>,
}

/// What a search by meaning asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorQuery {
    /// Only vectors of this model.
    pub model: String,
    /// What they are compared with.
    pub vector: Vector,
    /// How.
    pub metric: Metric,
}

/// A message that waits for its vectors, on loan to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingJob {
    /// The tenant.
    pub project_id: ProjectId,
    /// The message's session.
    pub session_id: SessionId,
    /// The message.
    pub message_id: MessageId,
    /// Its place.
    pub seq: i64,
    /// The message's version when it was lent: what is answered for an older text is dropped.
    pub version: i64,
    /// The text.
    pub content: String,
    /// How often it was lent, this time included.
    pub attempts: u32,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum JobOutcome {
    /// Its vectors, in the order of the text's parts; they replace those the message has of the
    /// model.
    Embedded {
        /// The model's name.
        model: String,
        /// One, or one for each part.
        vectors: Vec<Vector>,
    },
    /// It is to be tried again.
    Later {
        /// Not before this time.
        due_at: Timestamp,
        /// Whether the attempt counts against it: it does not when the source was at fault.
        counts: bool,
    },
    /// It is put aside until somebody asks for another try.
    Parked {
        /// Why, for the operator: never the text.
        reason: String,
    },
}

/// How many messages of a project wait for vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbeddingBacklog {
    /// Waiting or on loan.
    pub pending: u64,
    /// Put aside.
    pub parked: u64,
    /// The time since when the longest waiting has been waiting.
    pub oldest_queued_at: Option<Timestamp>,
    /// Some of those put aside, the latest first, at most ten: message and reason.
    pub parked_examples: Vec<(MessageId, String)>,
    /// Models with their length and their number of vectors, by name.
    pub models: Vec<ModelCount>,
}

/// What a project has of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCount {
    /// Its name.
    pub model: String,
    /// Length of its vectors.
    pub dimensions: u32,
    /// Vectors stored, parts counted.
    pub vectors: u64,
}

/// The models of the installation's embedding source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingSource {
    /// The model that new vectors are made with.
    pub model: String,
    /// The model that is searched while the vectors of a new one are being made.
    pub serving: String,
}

/// What a store does with embeddings. The queue is the installation's: its methods have no scope,
/// for one worker serves all projects.
#[async_trait]
pub trait EmbeddingStore: Send + Sync {
    /// Replaces a message's vectors of a model by one that the caller brings, and takes the message
    /// out of the queue if it is of the source's model. `NotFound` if there is no such message in the scope,
    /// `Invalid` at `/embedding` if the model's vectors have another length.
    async fn set_embedding(
        &self,
        scope: &Scope,
        message_id: MessageId,
        embedding: NewEmbedding,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// All vectors of those of the messages that are in the scope, by message in the order asked for,
    /// then by the model's name.
    async fn list_embeddings(&self, scope: &Scope, message_ids: &[MessageId]) -> Result<Vec<Embedding>, StoreError>;

    /// The source's models, if one was ever set.
    async fn get_embedding_source(&self) -> Result<Option<EmbeddingSource>, StoreError>;

    /// Notes the model that new vectors are to be made with, and that messages without one are to be
    /// queued ([`crate::search::Derived::Embeddings`]), for some may have been stored while no source
    /// was at work. If it is another model than before, that one goes on serving, as long as it has
    /// vectors.
    async fn set_embedding_source(&self, model: &str) -> Result<EmbeddingSource, StoreError>;

    /// Ends a change of models when nothing queued by it waits any more: the new model serves, and
    /// the vectors that were made with the old one are removed, some in each call; those that callers
    /// brought stay. Tells whether there is more to remove.
    async fn settle_embedding_source(&self) -> Result<bool, StoreError>;

    /// Lends up to `limit` messages that are due at `now`, new ones before those queued by a
    /// reindex; their texts together have some megabytes at most. They are due again at `lease_until`, and
    /// the attempt counts from now on, so that one that takes the worker down is put aside some day.
    async fn claim_embedding_jobs(
        &self,
        now: Timestamp,
        lease_until: Timestamp,
        limit: usize,
    ) -> Result<Vec<EmbeddingJob>, StoreError>;

    /// Notes what became of jobs. What was lent again meanwhile, or is about a text that was
    /// changed or deleted, is ignored. A vector whose length is not the model's puts its job aside.
    async fn complete_embedding_jobs(
        &self,
        jobs: Vec<(EmbeddingJob, JobOutcome)>,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// How many messages of the scope's project wait.
    async fn get_embedding_backlog(&self, scope: &Scope) -> Result<EmbeddingBacklog, StoreError>;

    /// Queues the project's messages that were put aside again; tells how many.
    async fn retry_parked_embeddings(&self, scope: &Scope, now: Timestamp) -> Result<u64, StoreError>;
}
