//! Records of requests that have expired are deleted in small steps, by whichever servers run.

use std::time::Instant;

use super::{PAUSE_MIN, WorkerPace, fault, pause};
use crate::app::App;

/// Looks for records that have expired, and deletes them step by step; each step is followed by a pause of twice its
/// length.
pub(super) async fn purge(app: App, pace: WorkerPace) {
    while !app.shutdown.is_cancelled() {
        let began = Instant::now();
        match app.store.purge_idempotency_records(app.ctx.now()).await {
            Ok(true) => pause(&app, (began.elapsed() * 2).max(PAUSE_MIN)).await,
            Ok(false) => pause(&app, pace.purge_idle).await,
            Err(error) => fault(&app, &error, pace).await,
        }
    }
}
