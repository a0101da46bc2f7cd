//! The one thread that writes: it drains its queue into one transaction and answers after the commit.
//!
//! A batch is what has queued while the last commit ran, so an idle store adds no delay. Each job
//! runs in a savepoint: a job that fails takes nothing back from its neighbours. An error that ends
//! the whole transaction fails every job of the batch, and an I/O error makes the store refuse
//! writes until it is opened anew: after a failed fsync nobody knows what the disk holds.

mod job;

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use chatstore_core::store::{StoreError, StoreStats};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::error::{Severity, severity, store_error};
use crate::sessions::erase_some;

pub(crate) use job::Failure;
use job::{Job, WriteJob};

/// Bytes of jobs that may wait; more are refused as busy, so that memory stays bounded.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes of jobs that may share one transaction.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Pages of the write-ahead log at which it is copied into the file: 16 MiB.
const CHECKPOINT_PAGES: i32 = 4_096;
/// How long the thread waits for work before it tidies up.
const IDLE: Duration = Duration::from_secs(1);
/// While busy, erasing gets a turn every this many batches.
const ERASE_EVERY: u64 = 16;

const BEGIN: &str = "begin immediate";
const COMMIT: &str = "commit";
const SAVEPOINT: &str = "savepoint job";
const RELEASE: &str = "release job";
const ROLLBACK_TO: &str = "rollback to job";

/// What callers and the thread share.
#[derive(Default)]
struct Shared {
    failed: OnceLock<String>,
    queued_bytes: AtomicUsize,
    commits: AtomicU64,
    appends: AtomicU64,
    /// Deleted sessions may wait to be erased.
    erasures: AtomicBool,
    /// Pages in the write-ahead log that may not be in the file yet.
    log_pages: AtomicI32,
}

impl Shared {
    fn fail(&self, error: &rusqlite::Error) {
        let reason = error.to_string();
        if self.failed.set(reason.clone()).is_ok() {
            tracing::error!(reason, "the database failed: writes are refused until a restart");
        }
    }

    fn check(&self) -> Result<(), StoreError> {
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
    pub(crate) fn start(mut connection: Connection, queue_max: usize, batch_max: usize) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(queue_max.max(1));
        let shared = Arc::new(Shared::default());
        shared.erasures.store(true, Ordering::Relaxed);
        let seen = shared.clone();
        connection
            .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
                seen.log_pages.store(pages, Ordering::Relaxed);
                Ok(())
            }))
            .map_err(std::io::Error::other)?;
        let worker = Worker { connection, jobs, shared: shared.clone(), batch_max: batch_max.max(1), batches: 0 };
        let thread = std::thread::Builder::new().name("sqlite-writer".to_owned()).spawn(move || worker.run())?;
        Ok(Self { queue: Mutex::new(Some(queue)), shared, thread: Mutex::new(Some(thread)) })
    }

    /// Runs `job` in the next batch and waits for the commit. `bytes` is roughly what it holds.
    pub(crate) async fn write<F, T>(&self, bytes: usize, job: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        self.enqueue(bytes, 0, job)?.await.unwrap_or_else(|_| Err(closed()))
    }

    /// [`Writer::write`] for an append, which is counted.
    pub(crate) async fn append<F, T>(&self, bytes: usize, job: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        self.enqueue(bytes, 1, job)?.await.unwrap_or_else(|_| Err(closed()))
    }

    fn enqueue<F, T>(
        &self,
        bytes: usize,
        appends: u64,
        job: F,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError>
    where
        F: FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        self.shared.check()?;
        let waiting = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let job = Box::new(WriteJob { run: Some(job), result: None, reply, bytes, appends });
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

    /// Tells the thread that a deleted session waits to be erased.
    pub(crate) fn expect_erasures(&self) {
        self.shared.erasures.store(true, Ordering::Relaxed);
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
    connection: Connection,
    jobs: Receiver<Box<dyn Job>>,
    shared: Arc<Shared>,
    batch_max: usize,
    batches: u64,
}

impl Worker {
    fn run(mut self) {
        loop {
            let erasing = self.shared.erasures.load(Ordering::Relaxed) && self.shared.failed.get().is_none();
            let wait = if erasing { Duration::ZERO } else { IDLE };
            match self.jobs.recv_timeout(wait) {
                Ok(job) => {
                    self.run_batch(job);
                    if self.batches.is_multiple_of(ERASE_EVERY) && erasing {
                        self.erase();
                    }
                    self.checkpoint(CHECKPOINT_PAGES);
                }
                Err(RecvTimeoutError::Timeout) if erasing => self.erase(),
                Err(RecvTimeoutError::Timeout) => self.checkpoint(1),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if self.shared.failed.get().is_none() {
            let truncated = self.connection.query_row("pragma wal_checkpoint(truncate)", (), |_| Ok(()));
            if let Err(error) = truncated {
                tracing::warn!(%error, "the last checkpoint failed; the next start makes up for it");
            }
        }
    }

    /// Runs the first job and what has queued behind it in one transaction.
    fn run_batch(&mut self, first: Box<dyn Job>) {
        self.batches += 1;
        let mut batch = Vec::with_capacity(self.batch_max.min(64));
        let outcome = self.shared.check().and_then(|()| self.execute(BEGIN).map_err(|error| self.judge(error)));
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
            self.shared.commits.fetch_add(u64::from(batch.iter().any(|job| job.is_kept())), Ordering::Relaxed);
            let appends = batch.iter().map(|job| job.appends()).sum();
            self.shared.appends.fetch_add(appends, Ordering::Relaxed);
        } else if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("rollback");
        }
        for job in batch {
            self.shared.queued_bytes.fetch_sub(job.bytes(), Ordering::Relaxed);
            job.answer(outcome.clone());
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
        self.execute(SAVEPOINT).map_err(|error| self.judge(error))?;
        let error = match job.run(&self.connection) {
            Ok(()) => return self.execute(RELEASE).map_err(|error| self.judge(error)),
            Err(error) => error,
        };
        if let Some(error) = error
            && (severity(&error) == Severity::Fatal || self.connection.is_autocommit())
        {
            return Err(self.judge(error));
        }
        self.execute(ROLLBACK_TO).and_then(|()| self.execute(RELEASE)).map_err(|error| self.judge(error))
    }

    fn commit(&self) -> Result<(), StoreError> {
        self.execute(COMMIT).map_err(|error| self.judge(error))
    }

    fn execute(&self, sql: &str) -> Result<(), rusqlite::Error> {
        self.connection.prepare_cached(sql)?.execute(()).map(drop)
    }

    /// Remembers an error that ends trust in the file, and names it for the callers.
    fn judge(&self, error: rusqlite::Error) -> StoreError {
        if severity(&error) == Severity::Fatal {
            self.shared.fail(&error);
        }
        store_error(error)
    }

    /// Blanks some messages of deleted sessions, in a transaction of its own.
    fn erase(&self) {
        let erased = self.execute(BEGIN).and_then(|()| {
            let more = erase_some(&self.connection)?;
            self.execute(COMMIT)?;
            Ok(more)
        });
        match erased {
            Ok(more) => self.shared.erasures.store(more, Ordering::Relaxed),
            Err(error) => {
                if !self.connection.is_autocommit() {
                    let _ = self.connection.execute_batch("rollback");
                }
                tracing::warn!(%error, "erasing deleted messages failed; it is tried again later");
                self.judge(error);
                std::thread::sleep(IDLE);
            }
        }
    }

    /// Copies the log into the file once it has `pages_min` pages.
    fn checkpoint(&self, pages_min: i32) {
        if self.shared.failed.get().is_some() || self.shared.log_pages.load(Ordering::Relaxed) < pages_min {
            return;
        }
        let result = self
            .connection
            .query_row("pragma wal_checkpoint(passive)", (), |row| Ok((row.get::<_, i32>(1)?, row.get::<_, i32>(2)?)));
        match result {
            Ok((log, copied)) => {
                if copied < log && log > 8 * CHECKPOINT_PAGES {
                    tracing::warn!(
                        log_pages = log,
                        copied_pages = copied,
                        "a long read keeps the write-ahead log from shrinking"
                    );
                }
                // What a reader held back is tried again when as much has come anew.
                self.shared.log_pages.store(0, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(%error, "a checkpoint failed");
                // A full disk passes; any other I/O error does not.
                self.judge(error);
            }
        }
    }
}
