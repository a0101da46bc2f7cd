//! What can go wrong between us and the source, by who is at fault.

use std::time::Duration;

use thiserror::Error;

/// Why the source gave no vectors. No sentence here holds a secret, a text, or words of the source.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EmbedderError {
    /// It failed lately and is not asked now.
    #[error("the embedding source rests after a fault: {reason}")]
    Resting {
        /// The fault.
        reason: String,
        /// How long it is left alone.
        remaining: Duration,
    },
    /// It asks for a pause.
    #[error("the embedding source is too busy ({reason})")]
    Busy {
        /// How it said so.
        reason: String,
        /// The pause it asks for.
        retry_after: Option<Duration>,
    },
    /// It cannot be reached, or fails.
    #[error("the embedding source {reason}")]
    Down {
        /// What it does, as the end of a sentence.
        reason: String,
    },
    /// It answers, but with something else than vectors.
    #[error("the embedding source answers wrongly: {reason}")]
    Garbage {
        /// What is wrong.
        reason: String,
    },
    /// It does not take this text.
    #[error("the embedding source refuses the text ({reason})")]
    Refused {
        /// How it said so.
        reason: String,
    },
    /// It does not know us, the model or the address.
    #[error(
        "the embedding source refuses us ({reason}); check EMBEDDINGS_URL, EMBEDDINGS_MODEL and EMBEDDINGS_API_KEY"
    )]
    Unauthorised {
        /// How it said so.
        reason: String,
    },
    /// Its vectors have another length than they must have.
    #[error("the embedding source gives vectors of {found} numbers where {expected} are expected; check {setting}")]
    Dimensions {
        /// What it gives.
        found: usize,
        /// What it should give.
        expected: usize,
        /// What the operator should look at.
        setting: &'static str,
    },
}

impl EmbedderError {
    /// How long the source wants to be left alone, or is; nothing if it was just asked and said nothing of it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Resting { remaining, .. } => Some(*remaining),
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn too_slow(timeout: Duration) -> Self {
        Self::down(format!("has not answered within {} ms", timeout.as_millis()))
    }

    pub(super) fn down(reason: impl Into<String>) -> Self {
        Self::Down { reason: reason.into() }
    }

    pub(super) fn garbage(reason: impl Into<String>) -> Self {
        Self::Garbage { reason: reason.into() }
    }

    pub(super) fn no_answer() -> Self {
        Self::garbage("there is no vector in it")
    }

    pub(super) fn dimensions(found: usize, expected: usize) -> Self {
        Self::Dimensions { found, expected, setting: "EMBEDDINGS_MODEL, EMBEDDINGS_DIMENSIONS and PGVECTOR_DIMENSION" }
    }
}
