//! Appends on their way: with their callers, as a share of the load, and together in a batch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chatstore_core::ids::SessionId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Answer;
use crate::idempotency::IN_FLIGHT_WAIT;
use crate::messages::append::Append;

/// How long at least an append waits for its session if it is the first to find that held.
const PATIENCE_MIN: Duration = Duration::from_millis(500);

/// An append and its caller.
pub(super) struct Job {
    pub(super) append: Append,
    pub(super) arrived: Instant,
    /// Whether its session was held by others for long while it stood behind another append.
    pub(super) has_waited: bool,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Answer>,
    pub(super) place: Place,
}

impl Job {
    /// How long it may still wait for who holds its session. Time in the queue counts, but for a little: what is behind
    /// many is no reason to refuse it.
    pub(super) fn patience(&self) -> Duration {
        let least = if self.has_waited { Duration::ZERO } else { PATIENCE_MIN };
        IN_FLIGHT_WAIT.saturating_sub(self.arrived.elapsed()).max(least)
    }
}

/// What a batch did not store, of one session.
pub(super) struct Left {
    pub(super) jobs: Vec<Job>,
    /// Whether it may have been stored all the same.
    pub(super) is_uncertain: bool,
}

impl Left {
    /// Surely nothing of these was stored.
    pub(super) fn surely(jobs: Vec<Job>) -> Self {
        Self { jobs, is_uncertain: false }
    }

    /// Whether some of them take more than a batch can do.
    pub(super) fn runs_alone(&self) -> bool {
        self.is_uncertain || self.jobs.len() == 1 || must_run_alone(&self.jobs)
    }

    pub(super) fn session_id(&self) -> SessionId {
        self.jobs[0].append.session_id
    }
}

/// Whether some of a session's appends take more than a batch can do.
pub(super) fn must_run_alone(group: &[Job]) -> bool {
    group.iter().any(|job| job.append.runs_alone())
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
        let claim = append.keyed().map(|claim| claim.claim_id);
        let claims = || group.iter().filter_map(|job| job.append.keyed()).map(|claim| claim.claim_id);
        same_scope
            && (claim.is_none() || claims().all(|other| Some(other) != claim))
            && append.external_ids().all(|id| group.iter().all(|job| job.append.external_ids().all(|i| i != id)))
    }

    pub(super) fn push(&mut self, job: Job) {
        self.count += 1;
        self.groups.entry(job.append.session_id).or_default().push(job);
    }

    pub(super) fn sessions(&self) -> HashSet<SessionId> {
        self.groups.keys().copied().collect()
    }
}
