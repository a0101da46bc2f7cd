//! Copying the write-ahead log into the file, on a thread of its own: it takes as long as the log
//! is large, and a passive checkpoint holds up neither the writer nor readers.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::Shared;

const CHECKPOINT: &str = "pragma wal_checkpoint(passive)";
/// Pages of the log above which a checkpoint that cannot end is worth a word: 128 MiB.
const LARGE_LOG_PAGES: i32 = 32_768;
/// How often the log may say so.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The thread, and the way to ask it.
pub(crate) struct Checkpointer {
    requests: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread on a connection of its own.
    pub(crate) fn start(connection: Connection, shared: Arc<Shared>) -> std::io::Result<Self> {
        let (requests, received) = sync_channel(1);
        let serve = move |received: Receiver<()>| {
            while received.recv().is_ok() {
                run(&connection, &shared);
            }
        };
        let thread = std::thread::Builder::new().name("sqlite-checkpoint".to_owned());
        let thread = thread.spawn(move || serve(received))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Asks for a checkpoint soon; one that is under way is followed by another.
    pub(super) fn ask(&self) {
        if let Some(requests) = &self.requests {
            let _ = requests.try_send(());
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.requests.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Copies what can be copied now.
pub(super) fn run(connection: &Connection, shared: &Shared) {
    let counts = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i32>(1)?, row.get::<_, i32>(2)?));
    match connection.query_row(CHECKPOINT, (), counts) {
        Ok((log, copied)) if copied < log && log > LARGE_LOG_PAGES && may_warn() => {
            tracing::warn!(
                log_pages = log,
                copied_pages = copied,
                "a long read keeps the write-ahead log from shrinking"
            );
        }
        Ok(_) => {}
        Err(error) => {
            if may_warn() {
                tracing::warn!(%error, "a checkpoint failed");
            }
            // A full disk passes; any other I/O error does not.
            shared.judge(error);
        }
    }
}

fn may_warn() -> bool {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let due = last.is_none_or(|at| at.elapsed() >= WARN_EVERY);
    if due {
        *last = Some(Instant::now());
    }
    due
}
