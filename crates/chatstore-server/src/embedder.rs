//! The embedding source: an OpenAI-compatible service that makes vectors of texts.
//!
//! Its address is the operator's alone. What it answers is checked before anything is made of it, and nothing of what
//! it says of a fault is passed on: it may quote a key or a text.

mod answer;
mod breaker;
mod client;
mod error;
mod parts;

use std::sync::OnceLock;
use std::time::Duration;

use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::embeddings::Vector;
use tokio::sync::{Mutex, Notify};

use crate::config::{EmbeddingsUrl, Secret};

use breaker::Breaker;
pub use breaker::{BreakerState, Pace};
use client::{Call, Client};
pub use error::EmbedderError;
pub(crate) use parts::parts;

/// How long a search waits for the vector of its query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// What every embedding model can embed: tells whether the source or a text is at fault.
const PROBE: &str = "hello";

/// What is known of the source before it was asked.
#[derive(Clone, Debug)]
pub struct EmbedderSettings {
    /// Where it is asked.
    pub url: EmbeddingsUrl,
    /// The model's name, as the source knows it.
    pub model: String,
    /// Presented to the source.
    pub api_key: Option<Secret>,
    /// The length that is asked of the source, for models that can shorten their vectors.
    pub dimensions: Option<u16>,
    /// The length that vectors must have; without it, the first answer decides.
    pub expected_dimensions: Option<u16>,
    /// Texts of one request.
    pub batch_max: usize,
    /// How long the source may take to answer.
    pub timeout: Duration,
    /// Requests at once.
    pub concurrency: usize,
    /// Bytes of one text; a longer one is cut into parts.
    pub input_bytes_max: usize,
}

/// How the source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedderStatus {
    /// Whether it is asked.
    pub state: BreakerState,
    /// The last fault since it last answered well, in a sentence without a secret and without a text.
    pub last_error: Option<String>,
    /// When it is asked again.
    pub retry_at: Option<Timestamp>,
}

/// The client of the source, with a breaker in front.
pub struct Embedder {
    settings: EmbedderSettings,
    model: String,
    ctx: Ctx,
    client: Client,
    dimensions: OnceLock<usize>,
    texts: Breaker,
    queries: Breaker,
    older_queries: Breaker,
    trying: Mutex<()>,
    queued: Notify,
}

impl Embedder {
    /// A client of the source that is described.
    ///
    /// # Errors
    /// A sentence, if the system's certificate authorities are needed and cannot be read.
    pub fn new(settings: EmbedderSettings, ctx: Ctx) -> Result<Self, String> {
        Self::with_pace(settings, ctx, Pace::default())
    }

    /// The same with other pauses.
    ///
    /// # Errors
    /// As [`Embedder::new`].
    pub fn with_pace(settings: EmbedderSettings, ctx: Ctx, pace: Pace) -> Result<Self, String> {
        let model = match settings.dimensions {
            Some(dimensions) => format!("{}@{dimensions}", settings.model),
            None => settings.model.clone(),
        };
        let dimensions = OnceLock::new();
        if let Some(expected) = settings.expected_dimensions.or(settings.dimensions) {
            dimensions.get_or_init(|| usize::from(expected));
        }
        let client = Client::new(&settings, ctx.clone())?;
        let breaker = |name, failures_max| Breaker::new(name, failures_max, pace);
        Ok(Self {
            texts: breaker("texts", 1),
            queries: breaker("queries", 3),
            older_queries: breaker("queries of an older model", 3),
            trying: Mutex::default(),
            queued: Notify::new(),
            settings,
            model,
            ctx,
            client,
            dimensions,
        })
    }

    /// The name under which its vectors are stored.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What it was made of.
    pub fn settings(&self) -> &EmbedderSettings {
        &self.settings
    }

    /// The vector of a search's query under the model of this stored name: the source's own, or the one before it that
    /// still serves. Answers or fails within two seconds.
    ///
    /// # Errors
    /// If the source cannot give it now.
    pub async fn embed_query(&self, model: &str, text: &str) -> Result<Vector, EmbedderError> {
        self.texts.check()?;
        let is_own = model == self.model;
        let breaker = if is_own { &self.queries } else { &self.older_queries };
        breaker.check()?;
        // A query is not longer than a part of a text: more of it would be ignored by the model.
        let text = parts(text, self.settings.input_bytes_max).into_iter().next().unwrap_or(text);
        let call = if is_own { self.call(QUERY_TIMEOUT) } else { older_call(model) };
        let answer = self.client.embed(&call, &[text]).await;
        let answer = if is_own { answer.and_then(|vectors| self.of_one_length(vectors)) } else { answer };
        match answer {
            Ok(mut vectors) => {
                breaker.succeed();
                vectors.pop().ok_or_else(EmbedderError::no_answer)
            }
            Err(error) => {
                // A text that is refused says nothing of the source.
                if !matches!(error, EmbedderError::Refused { .. }) {
                    breaker.fail(&error, &self.ctx);
                }
                Err(error)
            }
        }
    }

    /// How the source is doing.
    pub fn status(&self) -> EmbedderStatus {
        self.texts.status(self.ctx.now())
    }

    /// Tells the worker that a message waits.
    pub fn wake(&self) {
        self.queued.notify_one();
    }

    /// Waits until a message waits.
    pub(crate) async fn woken(&self) {
        self.queued.notified().await;
    }

    /// The vectors of texts, in their order; no breaker is asked.
    pub(crate) async fn embed(&self, texts: &[&str]) -> Result<Vec<Vector>, EmbedderError> {
        let vectors = self.client.embed(&self.call(self.settings.timeout), texts).await?;
        self.of_one_length(vectors)
    }

    /// Whether the source embeds a plain word.
    pub(crate) async fn probe(&self) -> Result<(), EmbedderError> {
        match self.embed(&[PROBE]).await {
            Ok(_) => Ok(()),
            // No text is at fault if even this one is.
            Err(EmbedderError::Refused { reason }) => Err(EmbedderError::Unauthorised { reason }),
            Err(error) => Err(error),
        }
    }

    /// Finds out whether a source that has rested works again. Of several who want to know, one asks.
    pub(crate) async fn try_again(&self) {
        let _one = self.trying.lock().await;
        if self.texts.state() != BreakerState::HalfOpen {
            return;
        }
        match self.probe().await {
            Ok(()) => self.texts.succeed(),
            Err(error) => self.rest(&error),
        }
    }

    /// What keeps the worker from asking a source that fails.
    pub(crate) fn breaker(&self) -> &Breaker {
        &self.texts
    }

    /// Notes a fault of the source; it is left alone for a while.
    pub(crate) fn rest(&self, error: &EmbedderError) {
        self.texts.fail(error, &self.ctx);
    }

    fn call(&self, timeout: Duration) -> Call<'_> {
        Call { model: &self.settings.model, dimensions: self.settings.dimensions, timeout }
    }

    /// Refuses vectors of another length than all others have.
    fn of_one_length(&self, vectors: Vec<Vector>) -> Result<Vec<Vector>, EmbedderError> {
        let Some(found) = vectors.first().map(Vector::dimensions) else { return Ok(vectors) };
        let expected = *self.dimensions.get_or_init(|| found);
        if found == expected { Ok(vectors) } else { Err(EmbedderError::dimensions(found, expected)) }
    }
}

/// How a stored name is asked for: `MODEL@512` is the model shortened to 512 numbers.
fn older_call(stored: &str) -> Call<'_> {
    let shortened = stored.rsplit_once('@').and_then(|(model, length)| {
        let is_length = length.bytes().all(|byte| byte.is_ascii_digit()) && !length.starts_with('0');
        Some((model, length.parse::<u16>().ok().filter(|_| is_length)?))
    });
    match shortened {
        Some((model, length)) => Call { model, dimensions: Some(length), timeout: QUERY_TIMEOUT },
        None => Call { model: stored, dimensions: None, timeout: QUERY_TIMEOUT },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_name_tells_how_the_model_is_asked() {
        for (stored, model, dimensions) in [
            ("nomic-embed-text", "nomic-embed-text", None),
            ("text-embedding-3-large@1024", "text-embedding-3-large", Some(1024)),
            ("text-embedding@001", "text-embedding@001", None),
            ("a@b@256", "a@b", Some(256)),
            ("a@", "a@", None),
        ] {
            let call = older_call(stored);
            assert_eq!((call.model, call.dimensions), (model, dimensions), "{stored}");
        }
    }
}
