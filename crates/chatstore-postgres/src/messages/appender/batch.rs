//! Appends on their way: with their callers, as a share of the load, and together in a batch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chatstore_core::ids::SessionId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Answer;
use crate::messages::append::Append;

/// An append and its caller.
pub(super) struct Job {
    pub(super) append: Append,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Answer>,
    pub(super) place: Place,
}

/// What is not answered yet.
#[derive(Default)]
pub(super) struct Load {
    pub(super) appends: AtomicUsize,
    pub(super) bytes: AtomicUsize,
}

/// An append's share of the load, until it is answered.
pub(super) struct Place {
    load: Arc<Load>,
    pub(super) bytes: usize,
}

impl Place {
    pub(super) fn new(load: &Arc<Load>, bytes: usize) -> Self {
        load.appends.fetch_add(1, Ordering::Relaxed);
        load.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { load: load.clone(), bytes }
    }

    /// Counts more bytes of the same append.
    pub(super) fn grow(&mut self, bytes: usize) {
        self.load.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.appends.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Appends that share a statement, by session.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) groups: HashMap<SessionId, Vec<Job>>,
    pub(super) count: usize,
}

impl Batch {
    /// Whether `append` can join the group of its session.
    pub(super) fn fits(&self, append: &Append) -> bool {
        let Some(group) = self.groups.get(&append.session_id) else { return true };
        let same_scope = group.iter().all(|job| job.append.scope == append.scope);
        same_scope && append.external_ids().all(|id| group.iter().all(|job| job.append.external_ids().all(|i| i != id)))
    }

    pub(super) fn push(&mut self, job: Job) {
        self.count += 1;
        self.groups.entry(job.append.session_id).or_default().push(job);
    }

    pub(super) fn sessions(&self) -> HashSet<SessionId> {
        self.groups.keys().copied().collect()
    }
}
