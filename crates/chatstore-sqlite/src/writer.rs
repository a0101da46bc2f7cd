//! The one thread that writes: it drains its queue into one transaction and answers after the commit.
//!
//! A batch is what has queued while the last commit ran, so an idle store adds no delay. Each job
//! runs in a savepoint: a job that fails takes nothing back from its neighbours. An error that ends
//! the whole transaction fails every job of the batch, and an I/O error makes the store refuse
//! writes until it is opened anew: after a failed fsync nobody knows what the disk holds.

pub(crate) mod checkpoint;
pub(crate) mod connection;
mod job;

use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chatstore_core::store::{StoreError, StoreStats};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::error::{Severity, severity, store_error};
use crate::sessions::erase_some;

use checkpoint::Checkpointer;
pub(crate) use connection::WriteConnection;
pub(crate) use job::{Failure, Kind};
use job::{Job, WriteJob};

/// Bytes of jobs that may wait; more are refused as busy, so that memory stays bounded.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes of jobs that may share one transaction.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Pages of the write-ahead log at which it is copied into the file: 16 MiB.
const CHECKPOINT_PAGES: i32 = 4_096;
/// Pages at which the writer itself copies the rest, so that the log can begin anew.
const OWN_CHECKPOINT_PAGES: i32 = 4 * CHECKPOINT_PAGES;
/// How long the thread waits for work before it tidies up.
const IDLE: Duration = Duration::from_secs(1);
/// While busy, erasing gets a turn every this many batches.
const ERASE_EVERY: u64 = 16;

/// How long erasing rests after a failure.
const ERASE_PAUSE: Duration = Duration::from_secs(5);
/// How long the last checkpoint waits for readers.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

const BEGIN: &str = "begin immediate";
const COMMIT: &str = "commit";
const SAVEPOINT: &str = "savepoint job";
const RELEASE: &str = "release job";
const ROLLBACK_TO: &str = "rollback to job";

/// What callers and the threads share.
#[derive(Default)]
pub(crate) struct Shared {
    failed: OnceLock<String>,
    queued_bytes: AtomicUsize,
    commits: AtomicU64,
    appends: AtomicU64,
    /// Pages in the write-ahead log.
    log_pages: AtomicI32,
}

impl Shared {
    /// Ends trust in the file if the error does, and names it for the callers.
    pub(crate) fn judge(&self, error: rusqlite::Error) -> StoreError {
        if severity(&error) == Severity::Fatal {
            self.fail(error.to_string());
        }
        store_error(error)
    }

    fn fail(&self, reason: String) {
        if self.failed.set(reason.clone()).is_ok() {
            tracing::error!(reason, "the database failed: writes are refused until a restart");
        }
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match self.failed.get() {
            Some(reason) => Err(StoreError::Unavailable { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

/// The queue's end that callers hold.
pub(crate) struct Writer {
    queue: Mutex<Option<SyncSender<Box<dyn Job>>>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread. Only the process that holds the lock file brings a `checkpointer`: it
    /// erases what was deleted, checkpoints, and empties the log at the end.
    pub(crate) fn start(
        mut connection: Connection,
        checkpointer: Option<Checkpointer>,
        queue_max: usize,
        batch_max: usize,
        shared: Arc<Shared>,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(queue_max.max(1));
        let seen = shared.clone();
        connection
            .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
                seen.log_pages.store(pages, Ordering::Relaxed);
                Ok(())
            }))
            .map_err(std::io::Error::other)?;
        let worker = Worker {
            connection: WriteConnection::new(connection).map_err(std::io::Error::other)?,
            jobs,
            shared: shared.clone(),
            batch_max: batch_max.max(1),
            batches: 0,
            erases_from: checkpointer.is_some().then(Instant::now),
            checkpointer,
            asked_pages: 0,
        };
        let thread = std::thread::Builder::new().name("sqlite-writer".to_owned()).spawn(move || worker.run())?;
        Ok(Self { queue: Mutex::new(Some(queue)), shared, thread: Mutex::new(Some(thread)) })
    }

    /// Runs `job` in the next batch and waits for the commit. `bytes` is roughly what it holds.
    pub(crate) async fn write<F, T>(&self, kind: Kind, bytes: usize, job: F) -> Result<T, StoreError>
    where
        F: FnOnce(&WriteConnection) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        self.write_as(bytes, move |connection| Ok((kind, job(connection)?))).await
    }

    /// The same with a job of which only itself can tell what it was for.
    pub(crate) async fn write_as<F, T>(&self, bytes: usize, job: F) -> Result<T, StoreError>
    where
        F: FnOnce(&WriteConnection) -> Result<(Kind, T), Failure> + Send + 'static,
        T: Send + 'static,
    {
        self.enqueue(bytes, job)?.await.unwrap_or_else(|_| Err(closed()))
    }

    fn enqueue<F, T>(&self, bytes: usize, job: F) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError>
    where
        F: FnOnce(&WriteConnection) -> Result<(Kind, T), Failure> + Send + 'static,
        T: Send + 'static,
    {
        self.shared.check()?;
        let waiting = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let job = Box::new(WriteJob { run: Some(job), result: None, reply, bytes });
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = match &*queue {
            None => Err(closed()),
            Some(_) if waiting > 0 && waiting + bytes > QUEUE_BYTES_MAX => Err(StoreError::Busy),
            Some(queue) => queue.try_send(job).map_err(|error| match error {
                TrySendError::Full(_) => StoreError::Busy,
                TrySendError::Disconnected(_) => closed(),
            }),
        };
        if let Err(error) = sent {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(error);
        }
        Ok(answer)
    }

    /// Whether writes are accepted.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.shared.check()
    }

    pub(crate) fn stats(&self) -> StoreStats {
        StoreStats {
            commits: self.shared.commits.load(Ordering::Relaxed),
            appends: self.shared.appends.load(Ordering::Relaxed),
        }
    }

    /// Lets the thread finish its queue and closes the connection.
    pub(crate) async fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the writer thread ended badly");
            }
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable { reason: "the store is closed".to_owned() }
}

/// The thread's own state.
struct Worker {
    connection: WriteConnection,
    jobs: Receiver<Box<dyn Job>>,
    shared: Arc<Shared>,
    batch_max: usize,
    batches: u64,
    /// From when on what was deleted may be erased; `None` while nothing waits.
    erases_from: Option<Instant>,
    checkpointer: Option<Checkpointer>,
    /// Pages of the log when the checkpointer was last asked.
    asked_pages: i32,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail("the writer thread has ended".to_owned());
        }
    }
}

impl Worker {
    fn run(mut self) {
        loop {
            let erasing = self.checkpointer.is_some()
                && self.shared.check().is_ok()
                && self.erases_from.is_some_and(|from| from <= Instant::now());
            let wait = if erasing { Duration::ZERO } else { IDLE };
            match self.jobs.recv_timeout(wait) {
                Ok(job) => {
                    self.run_batch(job);
                    if self.batches.is_multiple_of(ERASE_EVERY) && erasing {
                        self.erase();
                    }
                    self.checkpoint(CHECKPOINT_PAGES);
                }
                Err(RecvTimeoutError::Timeout) if erasing => {
                    self.erase();
                    self.checkpoint(CHECKPOINT_PAGES);
                }
                Err(RecvTimeoutError::Timeout) => self.checkpoint(1),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // A process beside a server leaves the log to it.
        if let Some(checkpointer) = self.checkpointer.take()
            && self.shared.check().is_ok()
        {
            drop(checkpointer);
            self.empty_log();
        }
    }

    fn empty_log(&self) {
        let emptied = self
            .connection
            .busy_timeout(CLOSE_TIMEOUT)
            .and_then(|()| self.connection.query_row("pragma wal_checkpoint(truncate)", (), |_| Ok(())));
        if let Err(error) = emptied {
            tracing::warn!(%error, "the last checkpoint failed; the next start makes up for it");
        }
    }

    /// Runs the first job and what has queued behind it in one transaction.
    fn run_batch(&mut self, first: Box<dyn Job>) {
        self.batches += 1;
        let mut batch = Vec::with_capacity(self.batch_max.min(64));
        let outcome = self.shared.check().and_then(|()| self.execute(BEGIN).map_err(|error| self.shared.judge(error)));
        let outcome = match outcome {
            Ok(()) => self.fill(first, &mut batch).and_then(|()| self.commit()),
            Err(error) => {
                batch.push(first);
                // What queued meanwhile would meet the same fate, each after its own wait.
                while let Ok(job) = self.jobs.try_recv() {
                    batch.push(job);
                }
                Err(error)
            }
        };
        if outcome.is_ok() {
            self.count(&batch);
        } else {
            self.roll_back();
        }
        for job in batch {
            self.shared.queued_bytes.fetch_sub(job.bytes(), Ordering::Relaxed);
            job.answer(outcome.clone());
        }
    }

    fn count(&mut self, batch: &[Box<dyn Job>]) {
        let kept = || batch.iter().filter_map(|job| job.kept());
        let appends = kept().filter(|kind| *kind == Kind::Append).count();
        self.shared.commits.fetch_add(u64::from(kept().next().is_some()), Ordering::Relaxed);
        self.shared.appends.fetch_add(appends as u64, Ordering::Relaxed);
        // Noted here and not by the caller, who may have gone away.
        if kept().any(|kind| kind == Kind::Delete) || self.erases_from.is_none() && self.connection.deleted() > 0 {
            self.erases_from = Some(Instant::now());
        }
    }

    fn fill(&self, first: Box<dyn Job>, batch: &mut Vec<Box<dyn Job>>) -> Result<(), StoreError> {
        let mut next = Some(first);
        let mut bytes = 0;
        while let Some(mut job) = next.take() {
            bytes += job.bytes();
            let ran = self.run_job(&mut *job);
            batch.push(job);
            ran?;
            if batch.len() >= self.batch_max || bytes >= BATCH_BYTES_MAX {
                break;
            }
            next = self.jobs.try_recv().ok();
        }
        Ok(())
    }

    /// Runs one job in its savepoint. An error means that the whole transaction is lost.
    fn run_job(&self, job: &mut dyn Job) -> Result<(), StoreError> {
        self.execute(SAVEPOINT).map_err(|error| self.shared.judge(error))?;
        let error = match job.run(&self.connection) {
            Ok(()) => return self.execute(RELEASE).map_err(|error| self.shared.judge(error)),
            Err(error) => error,
        };
        if let Some(error) = error
            && (severity(&error) == Severity::Fatal || self.connection.is_autocommit())
        {
            return Err(self.shared.judge(error));
        }
        self.execute(ROLLBACK_TO).and_then(|()| self.execute(RELEASE)).map_err(|error| self.shared.judge(error))
    }

    fn commit(&self) -> Result<(), StoreError> {
        let committed = self.connection.write_terms().and_then(|()| self.execute(COMMIT));
        committed.map_err(|error| self.shared.judge(error))
    }

    fn roll_back(&self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("rollback");
        }
        // What was noted as written is not.
        if let Err(error) = self.connection.count_waiting() {
            tracing::warn!(%error, "what waits to be indexed could not be counted");
        }
    }

    fn execute(&self, sql: &str) -> Result<(), rusqlite::Error> {
        self.connection.prepare_cached(sql)?.execute(()).map(drop)
    }

    /// Takes some words of what was deleted out of the index, or blanks some messages of deleted
    /// sessions, in a transaction of its own.
    fn erase(&mut self) {
        let erased = self.execute(BEGIN).and_then(|()| {
            let more = self.connection.take_deleted()? || erase_some(&self.connection)?;
            self.execute(COMMIT)?;
            Ok(more)
        });
        self.erases_from = match erased {
            Ok(more) => more.then(Instant::now),
            Err(error) => {
                self.roll_back();
                tracing::warn!(%error, "erasing deleted messages failed; it is tried again later");
                self.shared.judge(error);
                Some(Instant::now() + ERASE_PAUSE)
            }
        };
    }

    /// Has the log copied into the file once it has grown by `pages_min` pages.
    fn checkpoint(&mut self, pages_min: i32) {
        let Some(checkpointer) = &self.checkpointer else { return };
        let pages = self.shared.log_pages.load(Ordering::Relaxed);
        if pages < self.asked_pages {
            // It was whole in the file, and has begun anew.
            self.asked_pages = 0;
        }
        if self.shared.check().is_err() || pages - self.asked_pages < pages_min {
            return;
        }
        self.asked_pages = pages;
        checkpointer.ask();
        // Beside a writer that never rests the checkpointer never gets to the very end of the log,
        // from where it begins anew. What it has left is little.
        if pages >= OWN_CHECKPOINT_PAGES {
            checkpoint::run(&self.connection, &self.shared);
        }
    }
}
