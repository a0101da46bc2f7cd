//! Asking a busy store again.

use std::time::Duration;

use chatstore_core::store::StoreError;

/// How long a busy store is asked again.
const TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The tries of one operation.
pub(super) struct Patience {
    pause: Duration,
    waited: Duration,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { pause: PAUSE_MIN, waited: Duration::ZERO }
    }

    /// Waits, longer each time, if the store was busy; gives any other error back, and that one too
    /// in the end.
    pub(super) async fn after(&mut self, error: StoreError) -> Result<(), StoreError> {
        if error != StoreError::Busy || self.waited >= TIMEOUT {
            return Err(error);
        }
        tokio::time::sleep(self.pause).await;
        self.waited += self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
