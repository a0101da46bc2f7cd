//! What is done in the background: vectors are made for messages that wait, derived data is made anew, what deleted
//! projects left behind is erased, and so are the records of requests that nobody sends again.
//!
//! Any number of processes may work at the same time: what one of them has borrowed from the queue is another's again
//! when the lease is over. No connection to the database is held while the source is asked.

mod claim;
mod erase;
mod purge;
mod rebuild;

use std::sync::Arc;
use std::time::Duration;

use chatstore_core::search::Derived;
use chatstore_core::store::StoreError;
use futures_util::future::join_all;
use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::app::App;
use crate::embedder::{BreakerState, Embedder, EmbedderError};
use claim::Claim;
use erase::erase;
use purge::purge;
use rebuild::rebuild;

/// Shortest pause between two steps of erasing.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// How long the worker pauses.
#[derive(Clone, Copy, Debug)]
pub struct WorkerPace {
    /// Between two looks at an empty queue, at first; each further one doubles it.
    pub idle_first: Duration,
    /// At most.
    pub idle_longest: Duration,
    /// After a fault of the store.
    pub fault: Duration,
    /// Between two looks at what is to be made anew.
    pub rebuild_idle: Duration,
    /// Between two looks at what deleted projects left behind.
    pub erase_idle: Duration,
    /// Between two looks at records of requests that have expired.
    pub purge_idle: Duration,
    /// How long what was borrowed is out of others' reach, if that is more than the time for two requests.
    pub lease: Duration,
}

impl Default for WorkerPace {
    fn default() -> Self {
        Self {
            idle_first: Duration::from_secs(1),
            idle_longest: Duration::from_secs(5),
            fault: Duration::from_secs(2),
            rebuild_idle: Duration::from_secs(5),
            erase_idle: Duration::from_secs(5),
            purge_idle: Duration::from_secs(60),
            lease: Duration::from_secs(60),
        }
    }
}

/// Starts the worker. It ends soon after the application is told to stop, and gives back what it has borrowed.
pub fn start(app: App, pace: WorkerPace) -> JoinHandle<()> {
    tokio::spawn(async move {
        let text = watched(app.clone(), "text", move |app| rebuild(app, Derived::Text, pace));
        let erasing = watched(app.clone(), "erasing", move |app| erase(app, pace));
        let purging = watched(app.clone(), "purging", move |app| purge(app, pace));
        let vectors = async {
            if let Some(embedder) = app.embedder.clone() {
                embeddings(app.clone(), embedder, pace).await;
            }
        };
        tokio::join!(text, erasing, purging, vectors);
    })
}

async fn embeddings(app: App, embedder: Arc<Embedder>, pace: WorkerPace) {
    announce(&app, &embedder, pace).await;
    embedder.set_catching_up(true);
    let greeting = until_stopped(&app, embedder.greet());
    let anew = watched(app.clone(), "vectors", move |app| rebuild(app, Derived::Embeddings, pace));
    let alone = Arc::new(RwLock::new(()));
    let lanes = (0..embedder.settings().concurrency).map(|number| {
        let (embedder, place) = (embedder.clone(), Place { is_first: number == 0, alone: alone.clone() });
        watched(app.clone(), "embeddings", move |app| lane(app, embedder.clone(), place.clone(), pace))
    });
    tokio::join!(greeting, anew, join_all(lanes));
}

/// Runs a part of the worker, again if it panics: what it held is due again when the lease is over.
async fn watched<F>(app: App, part: &'static str, run: impl Fn(App) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while AbortOnDropHandle::new(tokio::spawn(run(app.clone()))).await.is_err() {
        tracing::error!(part, "the worker had to be started again");
        pause(&app, Duration::from_secs(1)).await;
    }
}

/// Notes the model that new vectors are made with.
async fn announce(app: &App, embedder: &Embedder, pace: WorkerPace) {
    while !app.shutdown.is_cancelled() {
        match app.store.set_embedding_source(embedder.model()).await {
            Ok(source) => {
                let (model, serving) = (source.model, source.serving);
                return tracing::info!(model, serving, "embeddings are made in the background");
            }
            Err(error) => fault(app, &error, pace).await,
        }
    }
}

/// A lane among the others.
#[derive(Clone)]
struct Place {
    /// Whether it works what may take the worker down.
    is_first: bool,
    /// Written while it does so, and read by others that borrow: what they hold would be blamed, too.
    alone: Arc<RwLock<()>>,
}

/// Borrows, asks and stores, one batch after the other.
async fn lane(app: App, embedder: Arc<Embedder>, place: Place, pace: WorkerPace) {
    let mut idle = pace.idle_first;
    while !app.shutdown.is_cancelled() {
        if !is_ready(&app, &embedder).await {
            continue;
        }
        let others = if place.is_first { None } else { Some(place.alone.read().await) };
        let borrowed = borrow(&app, &embedder, place.is_first, pace).await;
        drop(others);
        match borrowed {
            Ok(Some(claim)) => {
                idle = pace.idle_first;
                let _alone = if claim.is_suspect() { Some(place.alone.write().await) } else { None };
                claim.work().await;
            }
            Ok(None) => {
                tokio::select! {
                    () = embedder.woken() => idle = pace.idle_first,
                    () = tokio::time::sleep(idle) => idle = (idle * 2).min(pace.idle_longest),
                    () = app.shutdown.cancelled() => {}
                }
            }
            Err(error) => fault(&app, &error, pace).await,
        }
    }
}

/// Whether the source may be asked; waits a while if not.
async fn is_ready(app: &App, embedder: &Embedder) -> bool {
    match embedder.breaker().state() {
        BreakerState::Closed => true,
        BreakerState::Open => {
            until_stopped(app, embedder.rested()).await;
            false
        }
        BreakerState::HalfOpen => {
            until_stopped(app, embedder.try_again()).await;
            false
        }
    }
}

async fn borrow(
    app: &App,
    embedder: &Arc<Embedder>,
    is_first: bool,
    pace: WorkerPace,
) -> Result<Option<Claim>, StoreError> {
    // During an update, a process with the former settings must not answer what is asked of the new model.
    let source = app.store.get_embedding_source().await?;
    if source.is_none_or(|source| source.model != embedder.model()) {
        return Ok(None);
    }
    let lease = pace.lease.max(embedder.settings().timeout * 2);
    let limit = embedder.settings().batch_max;
    let now = app.ctx.now();
    let jobs = app.store.claim_embedding_jobs(now, claim::after(now, lease), limit).await?;
    let is_full = jobs.len() == limit;
    if is_full || jobs.is_empty() {
        embedder.set_catching_up(is_full);
    }
    let (jobs, others) = claim::choose(jobs, is_first);
    let is_shared = is_first && !others.is_empty();
    claim::give_back(app, others).await;
    if is_full || is_shared {
        // There may be more: another lane should look.
        embedder.wake();
    }
    Ok((!jobs.is_empty()).then(|| Claim::new(app.clone(), embedder.clone(), lease, jobs)))
}

async fn fault(app: &App, error: &StoreError, pace: WorkerPace) {
    match error {
        StoreError::Busy => {}
        error => tracing::warn!(%error, "the worker cannot use the store"),
    }
    pause(app, pace.fault).await;
}

async fn pause(app: &App, length: Duration) {
    until_stopped(app, tokio::time::sleep(length)).await;
}

/// Does something, unless the application stops before its end.
async fn until_stopped(app: &App, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = app.shutdown.cancelled() => {}
    }
}

/// Whether a fault is one of the source as a whole, whatever the text.
fn is_of_the_source(error: &EmbedderError) -> bool {
    match error {
        EmbedderError::Resting { .. }
        | EmbedderError::Busy { .. }
        | EmbedderError::Unauthorised { .. }
        | EmbedderError::Dimensions { .. } => true,
        EmbedderError::Down { .. } | EmbedderError::Garbage { .. } | EmbedderError::Refused { .. } => false,
    }
}
