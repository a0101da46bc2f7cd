//! The embedding source: an OpenAI-compatible service that makes vectors of texts.
//!
//! Its address is the operator's alone. What it answers is checked before anything is made of it, and nothing of what
//! it says of a fault is passed on: it may quote a key or a text.

mod answer;
mod breaker;
mod client;
mod error;
mod parts;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::embeddings::Vector;
use tokio::sync::{Mutex, Notify};

use crate::config::{EmbeddingsUrl, Secret};

use breaker::{Breaker, Pass};
pub use breaker::{BreakerState, Pace};
use client::{Call, Client};
pub use error::EmbedderError;
pub(crate) use parts::parts;

/// How long a search waits for the vector of its query. The request goes on after it, so that a source that loads its
/// model for it is ready for the next one.
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
    /// What the model wants before a query.
    pub query_prefix: String,
    /// What the model wants before a text that is to be found.
    pub document_prefix: String,
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
    cleared: Notify,
    is_catching_up: AtomicBool,
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
            cleared: Notify::new(),
            is_catching_up: AtomicBool::new(false),
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

    /// The vector of a search's query under the model of this stored name. The caller makes sure that it is the
    /// source's own, or the one before it that still serves: no client may choose what the source is asked. Answers or
    /// fails within two seconds.
    ///
    /// # Errors
    /// If the source cannot give it now; [`EmbedderError::retry_after`] tells when it might.
    pub async fn embed_query(self: &Arc<Self>, model: &str, text: &str) -> Result<Vector, EmbedderError> {
        self.texts.check_fault()?;
        let breaker = self.breaker_of(model);
        let pass = breaker.pass(QUERY_TIMEOUT)?;
        let (embedder, model, text) = (self.clone(), model.to_owned(), text.to_owned());
        let asking = tokio::spawn(async move { embedder.ask(&model, &text).await });
        let answer = match tokio::time::timeout(QUERY_TIMEOUT, asking).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(EmbedderError::no_answer())),
            Err(_) => Err(EmbedderError::too_slow(QUERY_TIMEOUT)),
        };
        match &answer {
            // It was noted where it came.
            Ok(_) => {}
            // A text that is refused says nothing of the source.
            Err(EmbedderError::Refused { .. }) => breaker.release(pass),
            Err(error) => breaker.fail(error, pass, &self.ctx),
        }
        answer
    }

    /// Asks for the vector of a query. An answer for which nobody waits any more still tells that the source works.
    async fn ask(&self, model: &str, text: &str) -> Result<Vector, EmbedderError> {
        // A query is not longer than a part of a text: more of it would be ignored by the model.
        let text = parts(text, self.settings.input_bytes_max).into_iter().next().unwrap_or(text);
        let timeout = self.settings.timeout.max(QUERY_TIMEOUT);
        let mut vectors = if model == self.model {
            let text = format!("{}{text}", self.settings.query_prefix);
            self.of_one_length(self.client.embed(&self.call(timeout), &[&text]).await?)?
        } else {
            self.client.embed(&older_call(model, timeout), &[text]).await?
        };
        self.breaker_of(model).succeed();
        vectors.pop().ok_or_else(EmbedderError::no_answer)
    }

    fn breaker_of(&self, model: &str) -> &Breaker {
        if model == self.model { &self.queries } else { &self.older_queries }
    }

    /// How the source is doing, by what rests longest: texts, queries, or queries of the model before.
    pub fn status(&self) -> EmbedderStatus {
        let (texts, queries) = (&self.texts, &self.queries);
        let worst = if queries.rest() > texts.rest() { queries } else { texts };
        // Nobody may ever ask for the model before again: its pause alone counts.
        let older = self.older_queries.rest().filter(|rest| !rest.is_zero());
        let worst = if older > worst.rest() { &self.older_queries } else { worst };
        worst.status(self.ctx.now())
    }

    /// Forgets all faults: searches and the worker ask the source again at once.
    pub fn reset(&self) {
        for breaker in [&self.texts, &self.queries, &self.older_queries] {
            breaker.reset();
        }
        self.cleared.notify_waiters();
        self.wake();
    }

    /// Whether messages that were there before the model may still wait for their vectors.
    pub fn is_catching_up(&self) -> bool {
        self.is_catching_up.load(Ordering::Relaxed)
    }

    /// Notes whether it has.
    pub fn set_catching_up(&self, is_catching_up: bool) {
        self.is_catching_up.store(is_catching_up, Ordering::Relaxed);
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
        let texts: Vec<String> = texts.iter().map(|text| format!("{}{text}", self.settings.document_prefix)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let vectors = self.client.embed(&self.call(self.settings.timeout), &texts).await?;
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
            // It may still fail with what it is sent: its faults are forgotten with the first texts that it embeds.
            Ok(()) => self.texts.close(),
            Err(error) => self.texts.fail(&error, Pass::Trial, &self.ctx),
        }
    }

    /// Asks the source for the first time, so that what only the operator can mend is logged before a message waits.
    pub(crate) async fn greet(&self) {
        if let Err(error) = self.probe().await {
            self.fail(&error);
        }
    }

    /// Waits until the source may be asked for texts, or somebody says that it is mended.
    pub(crate) async fn rested(&self) {
        // Made before it is looked, so that nothing is missed in between.
        let cleared = self.cleared.notified();
        let rest = self.texts.rest().unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = cleared => {}
        }
    }

    /// What keeps the worker from asking a source that fails.
    pub(crate) fn breaker(&self) -> &Breaker {
        &self.texts
    }

    /// Notes a fault of the source; it is left alone for a while.
    pub(crate) fn fail(&self, error: &EmbedderError) {
        self.texts.fail(error, Pass::Ordinary, &self.ctx);
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
fn older_call(stored: &str, timeout: Duration) -> Call<'_> {
    let shortened = stored.rsplit_once('@').and_then(|(model, length)| {
        let is_length = length.bytes().all(|byte| byte.is_ascii_digit()) && !length.starts_with('0');
        Some((model, length.parse::<u16>().ok().filter(|_| is_length)?))
    });
    match shortened {
        Some((model, length)) => Call { model, dimensions: Some(length), timeout },
        None => Call { model: stored, dimensions: None, timeout },
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
            let call = older_call(stored, QUERY_TIMEOUT);
            assert_eq!((call.model, call.dimensions), (model, dimensions), "{stored}");
        }
    }
}
