//! Appends that share commits: what has queued while the last batches ran goes in the next one.
//!
//! A lane takes a batch, writes it and answers; it ends when nothing is left to take, so an idle
//! store has none, and the first append waits for nobody. A session is in one lane at a time, so
//! lanes never wait for each other, and a batch leaves out a session whose row somebody else holds.
//! What a batch did not store is written beside the lanes, session by session: first the session's
//! appends together, then each alone. One whose commit was not answered is first looked for by its
//! messages' ids.

mod batch;
mod write;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim};
use chatstore_core::ids::SessionId;
use chatstore_core::messages::{Message, NewMessage};
use chatstore_core::store::{Scope, StoreError, StoreStats};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::append::Append;
use super::insert::require_home;
use crate::idempotency::require_claim_of;
use crate::pool::{Pool, too_slow};
use crate::search::texts::read_texts;
use crate::{AppendForm, PostgresOptions};

use batch::{Batch, Job, Left, Load, Place};

/// Bytes of appends that are not answered yet; more are refused as busy, so that memory stays bounded.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes of appends that may share one statement.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Batches in flight: while one commits, the next is made.
const LANES: usize = 2;

type Answer = Result<Answered<Vec<Message>>, StoreError>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Sessions that are being written to.
    taken: HashSet<SessionId>,
    lanes: usize,
    is_closed: bool,
}

/// The queue and its lanes.
pub(crate) struct Appender {
    pool: Arc<Pool>,
    form: AppendForm,
    batch_max: usize,
    queue_max: usize,
    lanes_max: usize,
    queue: Mutex<Queue>,
    load: Arc<Load>,
    idle: Notify,
    commits: AtomicU64,
    appends: AtomicU64,
}

impl Appender {
    pub(crate) fn new(pool: Arc<Pool>, options: &PostgresOptions) -> Self {
        let (batch_max, lanes_max) = match options.append_form {
            AppendForm::Batched => (options.append_batch_max.max(1), LANES),
            AppendForm::PerSession => (1, (options.connections_max / 2).max(1)),
        };
        Self {
            pool,
            form: options.append_form,
            batch_max,
            queue_max: options.append_queue_max.max(1),
            lanes_max,
            queue: Mutex::default(),
            load: Arc::default(),
            idle: Notify::new(),
            commits: AtomicU64::new(0),
            appends: AtomicU64::new(0),
        }
    }

    /// Appends and waits for the commit; it goes on when the caller goes away.
    pub(crate) async fn append(
        self: &Arc<Self>,
        scope: Scope,
        session_id: SessionId,
        messages: Vec<NewMessage>,
        now: Timestamp,
        claim: Option<Claim>,
    ) -> Answer {
        require_home(session_id, messages.iter().map(|message| message.message_id))?;
        require_claim_of(&scope, claim.as_ref())?;
        if claim.as_ref().is_some_and(|claim| claim.bucket != session_id.bucket()) {
            return Err(StoreError::internal("the record of an append is not in the bucket of its session"));
        }
        let arrived = Instant::now();
        let deadline = self.pool.deadline();
        let (reply, answer) = oneshot::channel();
        let bytes = messages.iter().map(NewMessage::bytes).sum();
        let mut place = self.place(bytes)?;
        let texts = messages.iter().map(|message| (scope.project_id, session_id.bucket(), message.content.as_str()));
        let words = read_texts(texts.collect()).await?;
        place.grow(words.iter().map(String::len).sum());
        let append = Append { scope, session_id, messages, words: words.into(), now, claim };
        self.enqueue(Job { append, arrived, has_waited: false, deadline, reply, place })?;
        match timeout_at(deadline, answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(StoreError::internal("an append panicked"))),
            Err(_) => Err(too_slow()),
        }
    }

    /// A place among what is not answered yet.
    fn place(&self, bytes: usize) -> Result<Place, StoreError> {
        let place = Place::new(&self.load, bytes);
        let held = self.load.bytes.load(Ordering::Relaxed);
        let too_much = held > bytes && held > QUEUE_BYTES_MAX;
        match too_much || self.load.appends.load(Ordering::Relaxed) > self.queue_max {
            true => Err(StoreError::Busy),
            false => Ok(place),
        }
    }

    fn enqueue(self: &Arc<Self>, job: Job) -> Result<(), StoreError> {
        let mut queue = self.queue();
        if queue.is_closed {
            return Err(StoreError::Unavailable { reason: "the store is closed".to_owned() });
        }
        queue.jobs.push_back(job);
        self.start_lane(&mut queue);
        Ok(())
    }

    /// Starts a lane if one more may run and has something to take.
    fn start_lane(self: &Arc<Self>, queue: &mut Queue) {
        if queue.lanes < self.lanes_max
            && let Some(batch) = self.take(queue)
        {
            queue.lanes += 1;
            tokio::spawn(self.clone().run_lane(batch));
        }
    }

    async fn run_lane(self: Arc<Self>, first: Batch) {
        let mut next = Some(first);
        while let Some(batch) = next {
            let mut sessions = batch.sessions();
            let appender = self.clone();
            let ran = survive(async move { appender.run_batch(batch).await }).await;
            for left in ran.into_iter().flatten() {
                sessions.remove(&left.session_id());
                tokio::spawn(self.clone().run_alone(left));
            }
            let mut queue = self.queue();
            for session_id in sessions {
                queue.taken.remove(&session_id);
            }
            next = self.take(&mut queue);
            match next {
                Some(_) => self.start_lane(&mut queue),
                // Under the same lock, so that no append comes between and finds a lane that ends.
                None => {
                    queue.lanes -= 1;
                    self.idle.notify_waiters();
                }
            }
        }
    }

    /// Takes what can share a statement, in order: a session that another lane has waits, and so
    /// does an append that another scope or a repeated id keeps out of its session's group. What
    /// nobody waits for any more is not written.
    fn take(&self, queue: &mut Queue) -> Option<Batch> {
        let mut batch = Batch::default();
        let mut passed = VecDeque::new();
        let mut waiting = HashSet::new();
        let (mut bytes, now) = (0, Instant::now());
        while batch.count < self.batch_max && bytes < BATCH_BYTES_MAX {
            let Some(job) = queue.jobs.pop_front() else { break };
            if job.deadline <= now {
                let _ = job.reply.send(Err(too_slow()));
                continue;
            }
            let session_id = job.append.session_id;
            let waits = queue.taken.contains(&session_id) || waiting.contains(&session_id);
            if waits || !batch.fits(&job.append) {
                waiting.insert(session_id);
                passed.push_back(job);
                continue;
            }
            bytes += job.place.bytes;
            batch.push(job);
        }
        passed.append(&mut queue.jobs);
        queue.jobs = passed;
        queue.taken.extend(batch.groups.keys());
        (batch.count > 0).then_some(batch)
    }

    /// Writes to one session what a batch did not.
    async fn run_alone(self: Arc<Self>, left: Left) {
        let session_id = left.session_id();
        let appender = self.clone();
        survive(async move { appender.store_left(left).await }).await;
        let mut queue = self.queue();
        queue.taken.remove(&session_id);
        self.start_lane(&mut queue);
        self.idle.notify_waiters();
    }

    fn count(&self, appends: u64) {
        self.commits.fetch_add(u64::from(appends > 0), Ordering::Relaxed);
        self.appends.fetch_add(appends, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> StoreStats {
        StoreStats { commits: self.commits.load(Ordering::Relaxed), appends: self.appends.load(Ordering::Relaxed) }
    }

    /// Refuses further appends and waits until what is queued is answered.
    pub(crate) async fn close(&self) {
        self.queue().is_closed = true;
        loop {
            let idle = self.idle.notified();
            let at_rest = {
                let queue = self.queue();
                queue.lanes == 0 && queue.taken.is_empty()
            };
            if at_rest {
                return;
            }
            idle.await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` in a task of its own: should it panic, its callers hear of it and ours goes on.
async fn survive<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let ran = tokio::spawn(work).await;
    ran.inspect_err(|_| tracing::error!("an append panicked")).ok()
}
