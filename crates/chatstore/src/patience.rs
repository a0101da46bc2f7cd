//! Asking a store again that is busy or away for a moment.

use std::time::{Duration, Instant};

use chatstore_core::store::StoreError;

/// How long an operation is tried again after it first failed.
const TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The tries of one operation.
pub(crate) struct Patience {
    pause: Duration,
    failed_first: Option<Instant>,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { pause: PAUSE_MIN, failed_first: None }
    }

    /// Waits, longer each time, if the store was busy or away; gives any other error back, and that
    /// one too in the end. Whether an operation that failed so took effect is unknown.
    pub(crate) async fn after(&mut self, error: StoreError) -> Result<(), StoreError> {
        let since = *self.failed_first.get_or_insert_with(Instant::now);
        if !matches!(error, StoreError::Busy | StoreError::Unavailable { .. }) || since.elapsed() >= TIMEOUT {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

/// What `read` finds, asked as often as it takes.
pub(crate) async fn patiently<T, F>(mut read: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut patience = Patience::new();
    loop {
        match read().await {
            Ok(found) => return Ok(found),
            Err(error) => patience.after(error).await?,
        }
    }
}
