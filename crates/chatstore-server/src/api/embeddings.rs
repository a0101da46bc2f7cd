//! Embeddings on the wire: vectors that callers bring and read, and what waits for the embedding source.

mod backlog;

use axum::extract::State;
use chatstore_core::embeddings::{Embedding, NewEmbedding, Vector};
use chatstore_core::ids::MessageId;
use chatstore_core::limits::EMBEDDING_MODEL_BYTES_MAX;
use chatstore_core::store::Scope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use backlog::{EmbeddingBacklogResponse, RetryParkedEmbeddingsResponse};

use super::messages::MessageResponse;
use super::{OperationDoc, check_id};
use crate::app::App;
use crate::auth::Caller;
use crate::body::{Body, Field};
use crate::error::{ApiError, FieldError};
use crate::extract::{FromQuery, MessagePath, ProjectCaller, Stored};
use crate::openapi::{Example, Operation, id, numbers};
use crate::query::Pairs;
use crate::quotas::AddsText;
use crate::respond::Ok200;

/// Bytes that a number of a vector takes in an answer, about.
const NUMBER_BYTES: usize = 12;

/// The vectors of a message under one model.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EmbeddingResponse {
    /// The model's name.
    model: String,
    /// One, or one for each part of a long text.
    vectors: Vec<Vec<f32>>,
}

impl From<Embedding> for EmbeddingResponse {
    fn from(embedding: Embedding) -> Self {
        let vectors = embedding.vectors.iter().map(|vector| vector.numbers().to_vec()).collect();
        Self { model: embedding.model, vectors }
    }
}

/// A vector for a message.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["embedding"]))]
pub struct SetEmbeddingRequest {
    /// The vector: 1 to 4,000 numbers that single precision can hold, not all zero.
    #[serde(default)]
    #[schemars(schema_with = "numbers")]
    embedding: Field<Vec<f32>>,
    /// The model that made it; required where there is an embedding source, else `default` if absent.
    #[serde(default)]
    model: Field<String>,
}

impl Body for SetEmbeddingRequest {}

impl AddsText for SetEmbeddingRequest {}

impl Example for SetEmbeddingRequest {
    fn example() -> Value {
        json!({"embedding": [0.12, -0.5, 0.33], "model": "my-model"})
    }
}

/// What was stored.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SetEmbeddingResponse {
    /// The message.
    #[schemars(schema_with = "id")]
    message_id: MessageId,
    /// The model under which the vector is found.
    model: String,
    /// Its length.
    dimensions: usize,
}

impl Example for SetEmbeddingResponse {
    fn example() -> Value {
        json!({"message_id": "019b0f3e-6be2-7c05-8a11-94d7e0c52b47", "model": "my-model", "dimensions": 3})
    }
}

/// See [`set_embedding`].
pub const SET_EMBEDDING: OperationDoc = OperationDoc {
    id: "set_embedding",
    summary: "Set a message's vector",
    description: "Replaces the vectors that the message has of the model by this one. All vectors of a model have one \
        length in a project. A change of the message's text removes its vectors.",
    tag: "embeddings",
};

/// Stores a vector that the caller brings.
pub async fn set_embedding(
    State(app): State<App>,
    caller: Caller,
    MessagePath(message_id): MessagePath,
    Stored(body): Stored<SetEmbeddingRequest>,
) -> Result<Ok200<SetEmbeddingResponse>, ApiError> {
    let mut errors = Vec::new();
    let Some(numbers) = body.embedding.required("/embedding", &mut errors) else {
        return Err(ApiError::invalid(errors));
    };
    let brought = Brought { numbers: Some(numbers), model: body.model.value() };
    let embedding = brought.check(&app, ("/embedding", "/model"), &mut errors);
    let Some(embedding) = embedding.filter(|_| errors.is_empty()) else {
        return Err(ApiError::invalid(errors));
    };
    let (model, dimensions) = (embedding.model.clone(), embedding.vector.dimensions());
    let set = app.store.set_embedding(&caller.scope, message_id, embedding, app.ctx.now()).await;
    set.map_err(|error| ApiError::from_store(error, "message"))?;
    Ok(Ok200(SetEmbeddingResponse { message_id, model, dimensions }))
}

/// What is said of a vector whose model is not named where there is an embedding source: it could be taken for one of
/// the source's.
pub(super) const MODEL_UNNAMED: &str = "is required beside a vector, because an embedding source makes vectors here, too: \
    name the model that made yours";

/// A vector as it came, and the name of its model.
pub(super) struct Brought {
    pub(super) numbers: Option<Vec<f32>>,
    pub(super) model: Option<String>,
}

impl Brought {
    /// The vector and its model, if both are good; `pointers` lead to the two.
    pub(super) fn check(self, app: &App, pointers: (&str, &str), errors: &mut Vec<FieldError>) -> Option<NewEmbedding> {
        check_id(pointers.1, self.model.as_deref(), EMBEDDING_MODEL_BYTES_MAX, errors);
        if self.model.is_some() && self.numbers.is_none() {
            errors.push(FieldError::new(pointers.1, "needs a vector"));
        }
        if self.model.is_none() && self.numbers.is_some() && app.embedder.is_some() {
            errors.push(FieldError::new(pointers.1, MODEL_UNNAMED));
        }
        let model = self.model.unwrap_or_else(|| app.default_model.clone());
        let vector = check_vector(pointers.0, self.numbers?, errors)?;
        check_dimensions(app, pointers.0, (&model, &vector), errors);
        Some(NewEmbedding { model, vector })
    }
}

/// Whether the embedding source makes the vector of a message that comes with this one.
pub(crate) fn is_wanted(app: &App, brought: Option<&NewEmbedding>) -> bool {
    let has_own = |model: &str| brought.is_some_and(|embedding| embedding.model == model);
    app.embedder.as_ref().is_some_and(|embedder| !has_own(embedder.model()))
}

/// Shows the vectors of a message beside it; tells roughly how many bytes they take in an answer.
pub(super) async fn include_embeddings(
    app: &App,
    scope: &Scope,
    message: &mut MessageResponse,
) -> Result<usize, ApiError> {
    let found = app.store.list_embeddings(scope, &[message.message_id]).await;
    let found = found.map_err(|error| ApiError::from_store(error, "message"))?;
    let numbers: usize = found.iter().flat_map(|embedding| &embedding.vectors).map(Vector::dimensions).sum();
    message.embeddings = Some(found.into_iter().map(EmbeddingResponse::from).collect());
    Ok(numbers * NUMBER_BYTES)
}

/// What an answer shows beside a message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Include {
    /// Its vectors.
    pub(super) embeddings: bool,
}

impl FromQuery for Include {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let include = Self::read(pairs, &mut errors);
        if errors.is_empty() { Ok(include) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        let schema = json!({"type": "string", "enum": ["embedding"]});
        operation.query_parameter("include", "What to show beside the message: its vectors.", schema);
    }
}

impl Include {
    pub(super) fn read(pairs: &Pairs, errors: &mut Vec<FieldError>) -> Self {
        let embedding = |text: &str| (text == "embedding").then_some(true);
        Self { embeddings: pairs.read("include", "`embedding`", embedding, errors).unwrap_or(false) }
    }
}

/// Numbers that are a vector.
pub(super) fn check_vector(pointer: &str, numbers: Vec<f32>, errors: &mut Vec<FieldError>) -> Option<Vector> {
    let vector = Vector::new(numbers).map_err(|error| FieldError::new(pointer, error.to_string()));
    vector.map_err(|error| errors.push(error)).ok()
}

/// Refuses a vector of the default model that has not the length of the settings.
pub(super) fn check_dimensions(
    app: &App,
    pointer: &str,
    (model, vector): (&str, &Vector),
    errors: &mut Vec<FieldError>,
) {
    let found = vector.dimensions();
    if let Some(expected) = app.default_dimensions.filter(|expected| model == app.default_model && *expected != found) {
        let detail = format!("must have {expected} numbers, as the model `{model}` has here, not {found}");
        errors.push(FieldError::new(pointer, detail));
    }
}

/// See [`get_embedding_backlog`].
pub const GET_EMBEDDING_BACKLOG: OperationDoc = OperationDoc {
    id: "get_embedding_backlog",
    summary: "See how embeddings are doing",
    description: "The embedding source, the messages of the project that wait for their vectors or were put aside, and \
        the project's models.",
    tag: "embeddings",
};

/// Tells how the source and its queue are doing.
pub async fn get_embedding_backlog(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
) -> Result<Ok200<EmbeddingBacklogResponse>, ApiError> {
    let failed = |error| ApiError::from_store(error, "project");
    let backlog = app.store.get_embedding_backlog(&caller.scope).await.map_err(failed)?;
    let source = app.store.get_embedding_source().await.map_err(failed)?;
    let reindexing = backlog::Reindexing::read(&app).await.map_err(failed)?;
    Ok(Ok200(EmbeddingBacklogResponse::new(&app, source, backlog, reindexing)))
}

/// See [`retry_parked_embeddings`].
pub const RETRY_PARKED_EMBEDDINGS: OperationDoc = OperationDoc {
    id: "retry_parked_embeddings",
    summary: "Try again what was put aside",
    description: "Queues the project's messages whose vectors could not be made, and asks the embedding source at once, \
        however long it was to be left alone.",
    tag: "embeddings",
};

/// Queues what was put aside.
pub async fn retry_parked_embeddings(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
) -> Result<Ok200<RetryParkedEmbeddingsResponse>, ApiError> {
    let queued = app.store.retry_parked_embeddings(&caller.scope, app.ctx.now()).await;
    let queued = queued.map_err(|error| ApiError::from_store(error, "project"))?;
    if let Some(embedder) = &app.embedder {
        embedder.reset();
    }
    app.embedding_queued();
    Ok(Ok200(RetryParkedEmbeddingsResponse { queued }))
}
