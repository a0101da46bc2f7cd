//! Derived data is made anew in small steps, with pauses in which requests have the store for themselves.

use std::time::{Duration, Instant};

use chatstore_core::search::Derived;
use chatstore_core::store::StoreError;

use super::{WorkerPace, fault, pause};
use crate::app::App;

/// Shortest pause between two steps.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// Looks for what is to be made anew, and does it step by step; each step is followed by a pause of twice its length.
pub(super) async fn rebuild(app: App, derived: Derived, pace: WorkerPace) {
    // What a process left behind that ended in the midst of removing is only found by a try.
    let mut is_settled = false;
    while !app.shutdown.is_cancelled() {
        let began = Instant::now();
        match step(&app, derived, &mut is_settled).await {
            Ok(true) => pause(&app, (began.elapsed() * 2).max(PAUSE_MIN)).await,
            Ok(false) => pause(&app, pace.rebuild_idle).await,
            Err(error) => fault(&app, &error, pace).await,
        }
    }
}

/// Does a part; tells whether there is more to do.
async fn step(app: &App, derived: Derived, is_settled: &mut bool) -> Result<bool, StoreError> {
    if app.store.is_reindexing(derived).await? {
        let more = app.store.reindex_some(derived).await?.more;
        if !more {
            tracing::info!(derived = derived.as_str(), "derived data is made anew");
        }
        return Ok(more);
    }
    if derived == Derived::Text {
        return Ok(false);
    }
    let source = app.store.get_embedding_source().await?;
    if *is_settled && source.is_none_or(|source| source.model == source.serving) {
        return Ok(false);
    }
    let more = app.store.settle_embedding_source().await?;
    *is_settled = !more;
    Ok(more)
}
