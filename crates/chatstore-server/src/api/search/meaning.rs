//! The model and the vector that a search looks near, or why there is none.

use chatstore_core::embeddings::VectorQuery;

use super::Mode;
use super::request::{Form, Search};
use crate::api::embeddings::{MODEL_UNNAMED, check_dimensions};
use crate::app::App;
use crate::embedder::EmbedderError;
use crate::error::{ApiError, Code};

/// Why a search cannot look for meaning.
pub(super) struct Lack {
    /// What a search by words alone says of it.
    pub(super) sentence: &'static str,
    /// What a search by meaning alone answers.
    pub(super) error: ApiError,
}

impl Lack {
    fn no_source(form: Form) -> Self {
        let (pointer, detail) = match form {
            Form::Body => (
                "/embedding",
                "is required to search by meaning, because no embedding source is set (`EMBEDDINGS_URL`)",
            ),
            Form::Query => (
                "?mode",
                "must be `text`, because no embedding source is set (`EMBEDDINGS_URL`); \
                 `POST /api/v1/search` takes an `embedding`",
            ),
        };
        Self {
            sentence: "Only words were searched: there is no embedding source, and the request brings no `embedding`.",
            error: ApiError::invalid_field(pointer, detail),
        }
    }

    /// The model is one whose vectors callers bring.
    fn not_made(form: Form) -> Self {
        let (pointer, detail) = match form {
            Form::Body => ("/embedding", "is required: the embedding source does not make vectors of this model"),
            Form::Query => (
                "?embedding_model",
                "is none that the embedding source makes vectors of; `POST /api/v1/search` takes an `embedding`",
            ),
        };
        Self {
            sentence: "Only words were searched: the embedding source does not make vectors of this model, and the \
                request brings no `embedding`.",
            error: ApiError::invalid_field(pointer, detail),
        }
    }

    fn unavailable(error: &EmbedderError) -> Self {
        let unavailable = ApiError::new(
            Code::EmbeddingsUnavailable,
            "The embedding source cannot be asked now; try again, or search with `mode` `text`.",
        );
        Self {
            sentence: "Only words were searched: the embedding source cannot be asked now.",
            error: match error.retry_after() {
                Some(pause) => unavailable.retry_after(pause),
                None => unavailable,
            },
        }
    }

    /// The source makes vectors of another length than those of the model that are stored.
    pub(super) fn misfit() -> Self {
        Self {
            sentence: "Only words were searched: the embedding source makes vectors of another length than the stored.",
            error: ApiError::new(
                Code::EmbeddingsMismatch,
                "The embedding source makes vectors of another length than the stored ones of this model: search with \
                 `mode` `text`; the operator must give the model another name or make the vectors anew.",
            ),
        }
    }

    /// Goes on without, if that is allowed, and says so.
    pub(super) fn excuse<T>(self, is_optional: bool, degraded: &mut Vec<&str>) -> Result<Option<T>, ApiError> {
        if !is_optional {
            return Err(self.error);
        }
        degraded.push(self.sentence);
        Ok(None)
    }
}

/// The model whose vectors a search looks at.
pub(super) struct SearchedModel {
    /// Its name.
    pub(super) name: String,
    /// Whether the embedding source makes its vectors: it is the source's own, or the one before it that still serves.
    is_made: bool,
}

/// The model that a search by meaning looks at. If none is named, it is the source's: while another one's vectors are
/// being made, the one before.
///
/// # Errors
/// If the search brings a vector of a model that it must name, or the store is at fault.
pub(super) async fn searched_model(app: &App, search: &Search) -> Result<Option<SearchedModel>, ApiError> {
    if search.mode == Mode::Text {
        return Ok(None);
    }
    let named = search.model.clone();
    let Some(embedder) = &app.embedder else {
        let name = named.unwrap_or_else(|| app.default_model.clone());
        return Ok(Some(SearchedModel { name, is_made: false }));
    };
    if search.vector.is_some() && named.is_none() {
        return Err(ApiError::invalid_field("/embedding_model", MODEL_UNNAMED));
    }
    let source = app.store.get_embedding_source().await.map_err(super::search_error)?;
    let serving = source.map_or_else(|| embedder.model().to_owned(), |source| source.serving);
    let name = named.unwrap_or_else(|| serving.clone());
    Ok(Some(SearchedModel { is_made: name == embedder.model() || name == serving, name }))
}

/// Whether messages may still wait for their vectors of this model, made by the embedding source.
pub(super) fn is_partial(app: &App, model: &str) -> bool {
    app.embedder.as_ref().is_some_and(|embedder| embedder.model() == model && embedder.is_catching_up())
}

/// What a search looks near, if its query says anything.
///
/// # Errors
/// If the vector that it brings is at fault; the inner error if there is no vector.
pub(super) async fn meaning(
    app: &App,
    search: &Search,
    model: &SearchedModel,
) -> Result<Result<Option<VectorQuery>, Lack>, ApiError> {
    let vector = match (&search.vector, &search.query, &app.embedder) {
        (Some(vector), ..) => {
            let mut errors = Vec::new();
            check_dimensions(app, "/embedding", (&model.name, vector), &mut errors);
            if !errors.is_empty() {
                return Err(ApiError::invalid(errors));
            }
            vector.clone()
        }
        (None, _, None) => return Ok(Err(Lack::no_source(search.form))),
        (None, ..) if !model.is_made => return Ok(Err(Lack::not_made(search.form))),
        (None, Some(query), Some(embedder)) if !query.trim().is_empty() => {
            match embedder.embed_query(&model.name, query).await {
                Ok(vector) => vector,
                // The embedder has logged it.
                Err(error) => return Ok(Err(Lack::unavailable(&error))),
            }
        }
        _ => return Ok(Ok(None)),
    };
    Ok(Ok(Some(VectorQuery { model: model.name.clone(), vector, metric: search.metric })))
}
