//! Admission control: how many requests are handled at once, and which are turned away at once instead of waiting.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::error::{ApiError, Code};

/// Lets requests in.
pub struct Admission {
    places: Arc<Semaphore>,
}

/// A request's place. Clones are of the same place, which is free again when the last is dropped.
#[derive(Clone)]
pub struct Place {
    _permit: Arc<tokio::sync::OwnedSemaphorePermit>,
}

impl Admission {
    /// Lets `requests_max` in at once.
    pub fn new(requests_max: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(requests_max)) }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// 503 `overloaded` at once if a place would come too late.
    pub async fn enter(&self) -> Result<Place, ApiError> {
        let permit = self.places.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::new(Code::Overloaded, "Too much is going on."))?;
        Ok(Place { _permit: Arc::new(permit) })
    }
}
