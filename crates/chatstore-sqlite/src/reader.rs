//! The connections that read. WAL readers never wait for the writer, so a quick read runs where
//! it is called; one that turns out long is stopped and run again on a thread made for waiting.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use chatstore_core::migrations::OpenError;
use chatstore_core::store::StoreError;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Params, Row, ffi};
use tokio::sync::Semaphore;

use crate::connection;
use crate::error::{open_error_at, store_error};
use crate::writer::Failure;

/// Instructions of SQLite's machine between two looks at the budget.
const STEPS_A_LOOK: i32 = 1_000;
/// What a read may cost where it is called: about a millisecond of instructions …
const QUICK_LOOKS_MAX: u64 = 50;
/// … and this much text.
const QUICK_BYTES_MAX: u64 = 1 << 20;
/// Milliseconds that any read may take.
const READ_DEADLINE_MS: u64 = 10_000;
/// Connections kept for quick reads; they run on the runtime's workers, so few are in use at once.
const QUICK_CONNECTIONS: usize = 4;

/// What a read has used, shared with the connection's progress handler.
struct Budget {
    opened: Instant,
    looks: AtomicU64,
    bytes: AtomicU64,
    /// Milliseconds after `opened` until which a long read may run; 0 for a quick one.
    deadline_ms: AtomicU64,
}

#[derive(Clone, Copy)]
enum Limits {
    Quick,
    Long,
}

impl Budget {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            looks: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            deadline_ms: AtomicU64::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn start(&self, limits: Limits) {
        self.looks.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        let deadline_ms = match limits {
            Limits::Quick => 0,
            Limits::Long => self.now_ms() + READ_DEADLINE_MS,
        };
        self.deadline_ms.store(deadline_ms, Ordering::Relaxed);
    }

    /// Counts `bytes` of text; tells whether they are too many for here.
    fn spends_all(&self, bytes: usize) -> bool {
        let spent = self.bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        spent > QUICK_BYTES_MAX && self.deadline_ms.load(Ordering::Relaxed) == 0
    }

    /// Whether a long read has had its time.
    fn is_late(&self) -> bool {
        let deadline_ms = self.deadline_ms.load(Ordering::Relaxed);
        deadline_ms > 0 && self.now_ms() > deadline_ms
    }

    /// Counts a look; tells whether the read has run for too long.
    fn is_over(&self) -> bool {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        match self.deadline_ms.load(Ordering::Relaxed) {
            0 => looks > QUICK_LOOKS_MAX,
            deadline_ms => self.now_ms() > deadline_ms,
        }
    }
}

/// A connection that reads, with the budget of the read that has it.
pub(crate) struct Reader {
    connection: Connection,
    budget: Arc<Budget>,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let mut connection = connection::open_reader(path)?;
        let budget = Arc::new(Budget::new());
        let watched = budget.clone();
        connection.progress_handler(STEPS_A_LOOK, Some(move || watched.is_over())).map_err(open_error_at(path))?;
        Ok(Self { connection, budget })
    }

    /// The row, if there is one.
    pub(crate) fn query_row<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, Failure> {
        Ok(self.prepare(sql)?.query_row(params, map).optional()?)
    }

    /// All rows; `bytes` tells how much text one holds.
    pub(crate) fn query<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
        bytes: impl Fn(&T) -> usize,
    ) -> Result<Vec<T>, Failure> {
        self.query_bounded(sql, params, map, bytes, usize::MAX).map(|(items, _)| items)
    }

    /// [`Reader::query`] that ends early, with `true`, when the rows hold `bytes_max`: however large
    /// the rows, a page takes bounded memory.
    pub(crate) fn query_bounded<T>(
        &self,
        sql: &str,
        params: impl Params,
        map: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
        bytes: impl Fn(&T) -> usize,
        bytes_max: usize,
    ) -> Result<(Vec<T>, bool), Failure> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(params)?;
        let (mut items, mut held) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            if held >= bytes_max {
                return Ok((items, true));
            }
            let item = map(row)?;
            held += bytes(&item);
            if self.budget.spends_all(bytes(&item)) {
                return Err(interrupted().into());
            }
            items.push(item);
        }
        Ok((items, false))
    }

    /// Shows every row to `visit`, which does its own counting with [`Reader::spend`].
    pub(crate) fn visit(
        &self,
        sql: &str,
        params: impl Params,
        mut visit: impl FnMut(&Row<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(params)?;
        while let Some(row) = rows.next()? {
            visit(row)?;
        }
        Ok(())
    }

    /// Counts `bytes` that are gone through outside of SQLite, which looks at the clock by itself.
    pub(crate) fn spend(&self, bytes: usize) -> Result<(), Failure> {
        match self.budget.spends_all(bytes) || self.budget.is_late() {
            true => Err(interrupted().into()),
            false => Ok(()),
        }
    }

    /// Ends a read here that may be long, before it has begun: it is run again on a thread.
    pub(crate) fn require_thread(&self) -> Result<(), Failure> {
        match self.budget.deadline_ms.load(Ordering::Relaxed) {
            0 => Err(interrupted().into()),
            _ => Ok(()),
        }
    }

    /// Runs `read` on one snapshot of the file.
    pub(crate) fn snapshot<T>(&self, read: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        self.prepare("begin")?.execute(())?;
        let result = read();
        if !self.connection.is_autocommit() {
            self.prepare("commit")?.execute(())?;
        }
        result
    }

    pub(crate) fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.connection.prepare_cached(sql)
    }
}

fn interrupted() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None)
}

fn is_interrupted(failure: &Failure) -> bool {
    matches!(failure, Failure::Sqlite(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted))
}

/// The pool.
pub(crate) struct Readers {
    quick: Mutex<Vec<Reader>>,
    long: Mutex<Vec<Reader>>,
    long_places: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn open(path: &Path, long: usize) -> Result<Self, OpenError> {
        let long = long.max(1);
        let open = |n| (0..n).map(|_| Reader::open(path)).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            quick: Mutex::new(open(QUICK_CONNECTIONS)?),
            long: Mutex::new(open(long)?),
            long_places: Arc::new(Semaphore::new(long)),
        })
    }

    /// Runs `read`, which may run twice: here first, then on a thread of its own if it is long.
    pub(crate) async fn read<T, F>(self: &Arc<Self>, read: F) -> Result<T, StoreError>
    where
        F: Fn(&Reader) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        match self.read_quick(&read) {
            Some(result) => result.map_err(answer),
            None => self.read_long(read).await,
        }
    }

    /// Drops the connections; reads that come later fail.
    pub(crate) fn close(&self) {
        self.long_places.close();
        for pool in [&self.quick, &self.long] {
            pool.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// `None` if no connection is free or the read is too long for here.
    fn read_quick<T>(&self, read: impl Fn(&Reader) -> Result<T, Failure>) -> Option<Result<T, Failure>> {
        let lease = self.lease(&self.quick)?;
        match lease.run(Limits::Quick, read) {
            Err(failure) if is_interrupted(&failure) => None,
            result => Some(result),
        }
    }

    async fn read_long<T, F>(self: &Arc<Self>, read: F) -> Result<T, StoreError>
    where
        F: Fn(&Reader) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        let closed = || StoreError::Unavailable { reason: "the store is closed".to_owned() };
        // The place is kept by the thread, not by the caller, who may go away.
        let place = self.long_places.clone().acquire_owned().await.map_err(|_| closed())?;
        let readers = self.clone();
        let run = move || {
            let _place = place;
            let lease = readers.lease(&readers.long)?;
            Some(lease.run(Limits::Long, read))
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(Some(result)) => result.map_err(answer),
            Ok(None) => Err(closed()),
            Err(_) => Err(StoreError::internal("a read panicked")),
        }
    }

    fn lease<'a>(&'a self, pool: &'a Mutex<Vec<Reader>>) -> Option<Lease<'a>> {
        let reader = pool.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Lease { readers: self, pool, reader: Some(reader) })
    }
}

/// A connection out of its pool, which gets it back however the read ends.
struct Lease<'a> {
    readers: &'a Readers,
    pool: &'a Mutex<Vec<Reader>>,
    reader: Option<Reader>,
}

impl Lease<'_> {
    fn run<T>(&self, limits: Limits, read: impl Fn(&Reader) -> Result<T, Failure>) -> Result<T, Failure> {
        let reader = self.reader.as_ref().ok_or_else(|| StoreError::internal("a lease without a connection"))?;
        reader.budget.start(limits);
        read(reader)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        // A read that panicked or was stopped may have left its snapshot open.
        reader.budget.start(Limits::Long);
        let clean = reader.connection.is_autocommit() || reader.connection.execute_batch("rollback").is_ok();
        if clean && !self.readers.long_places.is_closed() {
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        }
    }
}

fn answer(failure: Failure) -> StoreError {
    match failure {
        Failure::Answer(error) => error,
        Failure::Sqlite(error) => store_error(error),
    }
}

#[cfg(test)]
mod tests {
    use chatstore_core::clock::Ctx;

    use super::*;

    #[tokio::test]
    async fn what_may_be_long_runs_on_a_thread_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chatstore.db");
        crate::migrate(&path, &Ctx::system()).unwrap();
        let readers = Arc::new(Readers::open(&path, 1).unwrap());
        let thread = || std::thread::current().id();
        assert_eq!(readers.read(move |_| Ok(thread())).await, Ok(thread()));
        let long = move |reader: &Reader| reader.require_thread().map(|()| thread());
        assert_ne!(readers.read(long).await, Ok(thread()));
    }
}
