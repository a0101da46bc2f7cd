//! How much a project holds, looked up now and then, and the quota on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::ProjectUsage;
use chatstore_core::store::{Scope, Store, StoreError};
use tokio::sync::OwnedMutexGuard;

use crate::error::ApiError;

/// How long a look counts.
const LOOK_AGE_MAX: Duration = Duration::from_secs(10);

/// A body that may bring text to store.
pub trait AddsText {
    /// Whether it does.
    fn adds_text(&self) -> bool {
        true
    }
}

impl<T> AddsText for Vec<T> {}

/// What projects hold, each looked up at most once in ten seconds.
pub struct ProjectUsages {
    store: Arc<dyn Store>,
    ctx: Ctx,
    /// Only projects that were asked about: those with the quota, and those that an operator looked at.
    entries: Mutex<HashMap<ProjectId, Arc<Entry>>>,
}

#[derive(Default)]
struct Entry {
    /// Held by the one who looks.
    looking: Arc<tokio::sync::Mutex<()>>,
    known: Mutex<Known>,
}

#[derive(Clone, Copy, Default)]
struct Known {
    look: Option<Look>,
    /// Bytes of bodies that were let in here since the look began.
    added: u64,
}

#[derive(Clone, Copy)]
struct Look {
    usage: ProjectUsage,
    at: Duration,
}

impl Entry {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, if it is recent.
    fn recent(&self, now: Duration) -> Option<Look> {
        self.known().look.filter(|look| now.saturating_sub(look.at) < LOOK_AGE_MAX)
    }
}

impl ProjectUsages {
    /// Knows nothing yet.
    pub fn new(store: Arc<dyn Store>, ctx: Ctx) -> Self {
        Self { store, ctx, entries: Mutex::default() }
    }

    /// What a project holds, as of ten seconds ago or later.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn get(&self, project_id: ProjectId) -> Result<ProjectUsage, StoreError> {
        let entry = self.entry(project_id);
        if let Some(look) = entry.recent(self.ctx.elapsed()) {
            return Ok(look.usage);
        }
        let turn = entry.looking.clone().lock_owned().await;
        match entry.recent(self.ctx.elapsed()) {
            Some(look) => Ok(look.usage),
            None => look(turn, self.store.clone(), self.ctx.clone(), entry, project_id).await,
        }
    }

    /// Lets a body of `bytes` in, unless its project holds more than its quota.
    ///
    /// # Errors
    /// 403 `quota_exceeded`, or those of the store.
    pub async fn admit(&self, scope: &Scope, bytes: usize) -> Result<(), ApiError> {
        if scope.quotas.project_bytes.is_none() {
            return Ok(());
        }
        let failed = |error| ApiError::from_store(error, "project");
        let entry = self.entry(scope.project_id);
        let held = entry.known().look;
        let held = match held {
            // Nobody waits for more than the first look.
            Some(look) => {
                self.refresh(entry.clone(), scope.project_id);
                look.usage
            }
            None => self.get(scope.project_id).await.map_err(failed)?,
        };
        let mut known = entry.known();
        scope.quotas.check_bytes(held.bytes.saturating_add(known.added)).map_err(failed)?;
        known.added = known.added.saturating_add(bytes as u64);
        Ok(())
    }

    /// Forgets a project that is gone.
    pub fn forget(&self, project_id: ProjectId) {
        self.entries().remove(&project_id);
    }

    /// Looks again in the background, if it is time and nobody does.
    fn refresh(&self, entry: Arc<Entry>, project_id: ProjectId) {
        if entry.recent(self.ctx.elapsed()).is_some() {
            return;
        }
        if let Ok(turn) = entry.looking.clone().try_lock_owned() {
            let (store, ctx) = (self.store.clone(), self.ctx.clone());
            tokio::spawn(async move {
                if let Err(error) = look(turn, store, ctx, entry, project_id).await {
                    tracing::warn!(%error, %project_id, "what a project holds could not be looked up");
                }
            });
        }
    }

    fn entry(&self, project_id: ProjectId) -> Arc<Entry> {
        self.entries().entry(project_id).or_default().clone()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ProjectId, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks, and notes what it sees. What is let in meanwhile may count twice, until the next look.
async fn look(
    _turn: OwnedMutexGuard<()>,
    store: Arc<dyn Store>,
    ctx: Ctx,
    entry: Arc<Entry>,
    project_id: ProjectId,
) -> Result<ProjectUsage, StoreError> {
    let at = ctx.elapsed();
    let before = entry.known().added;
    let usage = store.get_project_usage(project_id).await?;
    let mut known = entry.known();
    known.added = known.added.saturating_sub(before);
    known.look = Some(Look { usage, at });
    Ok(usage)
}
