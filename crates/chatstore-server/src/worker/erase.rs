//! The sessions of deleted projects are deleted in small steps, by whichever servers run.

use std::time::Instant;

use super::{PAUSE_MIN, WorkerPace, fault, pause};
use crate::app::App;

/// Looks for what deleted projects left behind, and deletes it step by step; each step is followed by a pause of twice
/// its length.
pub(super) async fn erase(app: App, pace: WorkerPace) {
    while !app.shutdown.is_cancelled() {
        let began = Instant::now();
        match app.store.erase_deleted_projects(app.ctx.now()).await {
            Ok(true) => pause(&app, (began.elapsed() * 2).max(PAUSE_MIN)).await,
            Ok(false) => pause(&app, pace.erase_idle).await,
            Err(error) => fault(&app, &error, pace).await,
        }
    }
}
