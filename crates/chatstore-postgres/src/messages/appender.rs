//! Appends that share commits: what has queued while the last batches ran goes in the next one.
//!
//! A lane takes a batch, writes it and answers; it ends when nothing is left to take, so an idle
//! store has none, and the first append waits for nobody. A session is in one lane at a time, so
//! lanes never wait for each other, and a batch leaves out a session whose row somebody else holds.
//! What a batch did not store is written beside the lanes, session by session: first the session's
//! appends together, then each alone. One whose commit was not answered is first looked for by its
//! messages' ids.

mod batch;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::SessionId;
use chatstore_core::messages::{Message, NewMessage};
use chatstore_core::store::{Scope, StoreError, StoreStats};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::append::{Append, Group, Held, append_alone, append_batch};
use super::insert::require_home;
use crate::pool::{Attempt, Failure, Pool, Undone, too_slow, transact};
use crate::search::texts::read_texts;
use crate::sqlstate::is_lost;
use crate::{AppendForm, PostgresOptions};

use batch::{Batch, Job, Load, Place};

/// Bytes of appends that are not answered yet; more are refused as busy, so that memory stays bounded.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes of appends that may share one statement.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Batches in flight: while one commits, the next is made.
const LANES: usize = 2;

type Answer = Result<Vec<Message>, StoreError>;

/// What a batch did not store, by session, and whether it may have been stored all the same.
type Left = (Vec<Vec<Job>>, bool);

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
    ) -> Answer {
        require_home(session_id, messages.iter().map(|message| message.message_id))?;
        let deadline = self.pool.deadline();
        let (reply, answer) = oneshot::channel();
        let bytes = messages.iter().map(NewMessage::bytes).sum();
        let mut place = self.place(bytes)?;
        let texts = messages.iter().map(|message| (scope.project_id, session_id.bucket(), message.content.as_str()));
        let words = read_texts(texts.collect()).await?;
        place.grow(words.iter().map(String::len).sum());
        let append = Append { scope, session_id, messages, words: words.into(), now };
        self.enqueue(Job { append, deadline, reply, place })?;
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
            if let Some((groups, uncertain)) = ran {
                for group in groups {
                    sessions.remove(&group[0].append.session_id);
                    tokio::spawn(self.clone().run_alone(group, uncertain));
                }
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
    async fn run_alone(self: Arc<Self>, group: Vec<Job>, uncertain: bool) {
        let session_id = group[0].append.session_id;
        let appender = self.clone();
        survive(async move { appender.store_group(group, uncertain).await }).await;
        let mut queue = self.queue();
        queue.taken.remove(&session_id);
        self.start_lane(&mut queue);
        self.idle.notify_waiters();
    }

    /// Writes a batch and answers it, but for what has to run alone.
    async fn run_batch(&self, batch: Batch) -> Left {
        let mut groups: Vec<_> = batch.groups.into_values().collect();
        if self.form == AppendForm::PerSession {
            for group in groups {
                self.store_each(group, false).await;
            }
            return (Vec::new(), false);
        }
        groups.sort_by_key(|group| group[0].append.session_id);
        let (mut alone, plain): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| have_vectors(group));
        if plain.is_empty() {
            return (alone, false);
        }
        let (left, uncertain) = self.store(plain, Held::Skip).await;
        alone.extend(left);
        (alone, uncertain)
    }

    /// Writes what a batch did not, of one session: together if there are several, then each alone.
    async fn store_group(&self, group: Vec<Job>, uncertain: bool) {
        if uncertain || group.len() == 1 || have_vectors(&group) {
            return self.store_each(group, uncertain).await;
        }
        let (left, uncertain) = self.store(vec![group], Held::Wait).await;
        for group in left {
            self.store_each(group, uncertain).await;
        }
    }

    /// Writes the groups in one statement and answers those that it stored. Gives back those that
    /// must run alone; what cannot run now is refused.
    async fn store(&self, groups: Vec<Vec<Job>>, held: Held) -> Left {
        let latest = groups.iter().flatten().map(|job| job.deadline).max();
        let deadline = latest.unwrap_or_else(|| self.pool.deadline());
        // A batch that may wait for a row is one of the writes that may hold the pool up.
        let permit = match held {
            Held::Skip => Ok(None),
            Held::Wait => self.pool.write_permit(deadline).await.map(Some),
        };
        let lease = match permit {
            Ok(permit) => self.pool.lease(deadline).await.map(|lease| (lease, permit)),
            Err(error) => Err(error),
        };
        let (mut lease, _permit) = match lease {
            Ok(lent) => lent,
            Err(error) => return refuse(groups, &error),
        };
        let lists: Vec<Group<'_>> = groups.iter().map(|group| group.iter().map(|job| &job.append).collect()).collect();
        let db = lease.db();
        let stored = lease.in_time(deadline, append_batch(&db, &lists, held)).await;
        drop((db, lists));
        let stored = match stored {
            Ok(Ok(stored)) => {
                lease.rest();
                stored
            }
            Ok(Err(Failure::Postgres(error))) if !is_lost(&error) => {
                lease.rest();
                return (groups, false);
            }
            Ok(Err(_)) => {
                lease.close();
                return (groups, true);
            }
            Err(_) => return refuse(groups, &too_slow()),
        };
        drop(lease);
        // Counted before anybody is answered, so that who has an answer finds it in the counts.
        let done = groups.iter().zip(&stored).filter(|(_, last_seq)| last_seq.is_some());
        self.count(done.map(|(group, _)| group.len() as u64).sum());
        let mut alone = Vec::new();
        for (group, last_seq) in groups.into_iter().zip(stored) {
            match last_seq {
                Some(last_seq) => answer_group(group, last_seq),
                None => alone.push(group),
            }
        }
        (alone, false)
    }

    /// Writes appends one after the other, and answers each.
    async fn store_each(&self, jobs: Vec<Job>, uncertain: bool) {
        for job in jobs {
            let answer = self.store_alone(&job, uncertain).await;
            let _ = job.reply.send(answer);
        }
    }

    /// Writes one append in a transaction, again while that is safe and there is time: what was
    /// stored by a lost attempt is found by its ids.
    async fn store_alone(&self, job: &Job, mut uncertain: bool) -> Answer {
        let mut attempt = Attempt::new(job.deadline);
        loop {
            if Instant::now() >= job.deadline {
                return Err(too_slow());
            }
            let permit = self.pool.write_permit(job.deadline).await?;
            let mut lease = self.pool.lease(job.deadline).await?;
            let result = transact(&mut lease, job.deadline, async |db| {
                append_alone(&db, self.form, &job.append, uncertain).await
            })
            .await;
            drop((lease, permit));
            match result {
                Ok(messages) => {
                    self.count(1);
                    return Ok(messages);
                }
                Err(Undone::Surely(failure)) => attempt.again(failure).await?,
                Err(Undone::Perhaps(error)) => {
                    uncertain = true;
                    attempt.pause(error).await?;
                }
            }
        }
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

/// Whether some of a session's appends bring vectors.
fn have_vectors(group: &[Job]) -> bool {
    group.iter().any(|job| job.append.has_vectors())
}

/// Runs `work` in a task of its own: should it panic, its callers hear of it and ours goes on.
async fn survive<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let ran = tokio::spawn(work).await;
    ran.inspect_err(|_| tracing::error!("an append panicked")).ok()
}

/// Answers what cannot run now; nothing of it is left.
fn refuse(groups: Vec<Vec<Job>>, error: &StoreError) -> Left {
    for job in groups.into_iter().flatten() {
        let _ = job.reply.send(Err(error.clone()));
    }
    (Vec::new(), false)
}

/// Answers the appends of one session.
fn answer_group(group: Vec<Job>, mut last_seq: i64) {
    for job in group {
        let stored = job.append.into_stored(last_seq);
        last_seq = stored.last().map_or(last_seq, |message| message.seq);
        let _ = job.reply.send(Ok(stored));
    }
}
