//! What operators see of embeddings.

use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{EmbeddingBacklog, EmbeddingSource};
use chatstore_core::ids::MessageId;
use chatstore_core::search::Derived;
use chatstore_core::store::StoreError;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::openapi::{Example, id, optional_time};

/// How the embedding source and its queue are doing.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EmbeddingBacklogResponse {
    /// The source.
    source: EmbeddingSourceResponse,
    /// Messages of the project that wait for their vectors.
    pending: u64,
    /// Messages that were put aside because their vectors could not be made.
    parked: u64,
    /// Since when the longest waiting has been waiting.
    #[schemars(schema_with = "optional_time")]
    oldest_queued_at: Option<Timestamp>,
    /// Some of those put aside, the latest first.
    parked_examples: Vec<ParkedEmbeddingResponse>,
    /// The project's models, by name.
    models: Vec<EmbeddingModelResponse>,
    /// What is being made anew.
    reindexing: Reindexing,
}

/// The embedding source.
#[derive(Debug, Serialize, JsonSchema)]
struct EmbeddingSourceResponse {
    /// Whether the settings name one.
    configured: bool,
    /// The model that new vectors are made with.
    model: Option<String>,
    /// The model that is searched: another than `model` while vectors of a new one are being made.
    serving: Option<String>,
    /// Whether it is asked: `closed`, or `open` while it is left alone after a fault, or `half_open` when the next
    /// request decides.
    state: Option<&'static str>,
    /// Its last fault, since it last answered well.
    last_error: Option<String>,
    /// When it is asked again.
    #[schemars(schema_with = "optional_time")]
    retry_at: Option<Timestamp>,
}

/// A message that was put aside.
#[derive(Debug, Serialize, JsonSchema)]
struct ParkedEmbeddingResponse {
    /// The message.
    #[schemars(schema_with = "id")]
    message_id: MessageId,
    /// Why.
    reason: String,
}

/// A model of the project.
#[derive(Debug, Serialize, JsonSchema)]
struct EmbeddingModelResponse {
    /// Its name.
    model: String,
    /// Length of its vectors.
    dimensions: u32,
    /// Vectors stored, parts of long texts counted.
    vectors: u64,
}

/// What is being made anew.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Reindexing {
    /// The index of words; until it is done, older messages may not be found.
    text: bool,
    /// The queue of messages without vectors.
    embeddings: bool,
}

impl Reindexing {
    pub(super) async fn read(app: &App) -> Result<Self, StoreError> {
        Ok(Self {
            text: app.store.is_reindexing(Derived::Text).await?,
            embeddings: app.store.is_reindexing(Derived::Embeddings).await?,
        })
    }
}

impl EmbeddingBacklogResponse {
    pub(super) fn new(
        app: &App,
        source: Option<EmbeddingSource>,
        backlog: EmbeddingBacklog,
        reindexing: Reindexing,
    ) -> Self {
        let status = app.embedder.as_ref().map(|embedder| embedder.status());
        let (model, serving) = source.map(|source| (source.model, source.serving)).unzip();
        let own = app.embedder.as_ref().map(|embedder| embedder.model().to_owned());
        let source = EmbeddingSourceResponse {
            configured: app.embedder.is_some(),
            model: own.or(model),
            serving,
            state: status.as_ref().map(|status| status.state.as_str()),
            last_error: status.as_ref().and_then(|status| status.last_error.clone()),
            retry_at: status.and_then(|status| status.retry_at),
        };
        let parked = |(message_id, reason)| ParkedEmbeddingResponse { message_id, reason };
        let models = backlog.models.into_iter().map(|count| EmbeddingModelResponse {
            model: count.model,
            dimensions: count.dimensions,
            vectors: count.vectors,
        });
        Self {
            source,
            pending: backlog.pending,
            parked: backlog.parked,
            oldest_queued_at: backlog.oldest_queued_at,
            parked_examples: backlog.parked_examples.into_iter().map(parked).collect(),
            models: models.collect(),
            reindexing,
        }
    }
}

impl Example for EmbeddingBacklogResponse {
    fn example() -> Value {
        json!({
            "source": {
                "configured": true, "model": "nomic-embed-text", "serving": "nomic-embed-text", "state": "closed",
                "last_error": null, "retry_at": null,
            },
            "pending": 12,
            "parked": 1,
            "oldest_queued_at": "2026-01-31T12:00:04.250000Z",
            "parked_examples": [{
                "message_id": "019b0f3e-6be2-7c05-8a11-94d7e0c52b47",
                "reason": "the embedding source refuses the text (status 400)",
            }],
            "models": [{"model": "nomic-embed-text", "dimensions": 768, "vectors": 48210}],
            "reindexing": {"text": false, "embeddings": false},
        })
    }
}

/// What is tried again.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RetryParkedEmbeddingsResponse {
    /// Messages that were queued.
    pub(super) queued: u64,
}

impl Example for RetryParkedEmbeddingsResponse {
    fn example() -> Value {
        json!({"queued": 1})
    }
}
