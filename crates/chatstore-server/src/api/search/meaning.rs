//! The vector that a search looks near, or why there is none.

use chatstore_core::embeddings::VectorQuery;

use super::request::Search;
use crate::api::embeddings::check_dimensions;
use crate::app::App;
use crate::error::{ApiError, Code};

/// Why a search cannot look for meaning.
pub(super) struct Lack {
    /// What a search by words alone says of it.
    pub(super) sentence: &'static str,
    /// What a search by meaning alone answers.
    pub(super) error: ApiError,
}

impl Lack {
    fn no_source() -> Self {
        Self {
            sentence: "Only words were searched: there is no embedding source, and the request brings no `embedding`.",
            error: ApiError::invalid_field(
                "/embedding",
                "is required to search by meaning, because no embedding source is set (`EMBEDDINGS_URL`)",
            ),
        }
    }

    fn unavailable() -> Self {
        Self {
            sentence: "Only words were searched: the embedding source cannot be asked now.",
            error: ApiError::new(
                Code::EmbeddingsUnavailable,
                "The embedding source cannot be asked now; try again, or search with `mode` `text`.",
            ),
        }
    }

    /// The source makes vectors of another length than those of the model that are stored.
    pub(super) fn misfit() -> Self {
        Self {
            sentence: "Only words were searched: the embedding source makes vectors of another length than the stored.",
            ..Self::unavailable()
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

/// What a search looks near, if its query says anything.
///
/// # Errors
/// If the vector that it brings is at fault, or the store is; the inner error if there is no vector.
pub(super) async fn meaning(app: &App, search: &Search) -> Result<Result<Option<VectorQuery>, Lack>, ApiError> {
    let model = match &search.model {
        Some(model) => model.clone(),
        None => serving_model(app).await?,
    };
    let vector = match (&search.vector, &search.query, &app.embedder) {
        (Some(vector), ..) => {
            let mut errors = Vec::new();
            check_dimensions(app, "/embedding", (&model, vector), &mut errors);
            if !errors.is_empty() {
                return Err(ApiError::invalid(errors));
            }
            vector.clone()
        }
        (None, _, None) => return Ok(Err(Lack::no_source())),
        (None, Some(query), Some(embedder)) if !query.trim().is_empty() => {
            match embedder.embed_query(&model, query).await {
                Ok(vector) => vector,
                // The embedder has logged it.
                Err(_) => return Ok(Err(Lack::unavailable())),
            }
        }
        _ => return Ok(Ok(None)),
    };
    Ok(Ok(Some(VectorQuery { model, vector, metric: search.metric })))
}

/// The model that is searched if none is named: while another one's vectors are being made, it is the one before.
async fn serving_model(app: &App) -> Result<String, ApiError> {
    let source = match &app.embedder {
        Some(_) => app.store.get_embedding_source().await.map_err(super::search_error)?,
        None => None,
    };
    Ok(source.map_or_else(|| app.default_model.clone(), |source| source.serving))
}
