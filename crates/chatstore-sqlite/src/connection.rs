//! Opening connections with the pragmas the contract rests on.

use std::path::Path;
use std::time::{Duration, Instant};

use chatstore_core::migrations::OpenError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use crate::error::{file_error, open_error, open_error_at};

/// The first SQLite without the defect that can damage a WAL database written by several
/// connections (sqlite.org/wal.html, "WAL-reset bug").
const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// How long a connection waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements a connection keeps prepared; lists have a few dozen forms.
const STATEMENTS_MAX: usize = 128;

/// When a commit counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    /// When it is on the disk (fsync): nothing acknowledged is lost, even if the power fails.
    Full,
    /// When the system has it: a power failure may lose the last commits, a crash of the process none.
    Normal,
}

/// The version of the SQLite that is built in, such as `3.54.1`.
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

/// Makes the folder of a database file that is to be made, for its owner alone.
pub(crate) fn prepare_directory(path: &Path) -> Result<(), OpenError> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    if folder.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|error| file_error(folder, &error))
}

/// Makes an empty file for its owner alone; SQLite gives the files beside it the same mode.
pub(crate) fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// Opens the connection that writes; the file must exist.
pub(crate) fn open_writer(path: &Path, synchronous: Synchronous) -> Result<Connection, OpenError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let level = match synchronous {
        Synchronous::Full => "full",
        Synchronous::Normal => "normal",
    };
    set_up_writing(&connection, level).map_err(open_error_at(path))?;
    Ok(connection)
}

/// Opens the connection that migrates; makes the file if it is absent.
pub(crate) fn open_migrator(path: &Path) -> Result<Connection, OpenError> {
    if !path.exists() {
        match create_private(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(file_error(path, &error)),
            _ => {}
        }
    }
    open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)
}

/// Puts a writing connection into the modes the contract rests on.
pub(crate) fn set_up_writing(connection: &Connection, synchronous: &str) -> Result<(), rusqlite::Error> {
    let mode = set_log_mode(connection)?;
    if mode != "wal" {
        // Its file system has no shared memory, such as one over the network.
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_SHMMAP), None));
    }
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Checkpoints have a thread of their own; a commit never waits for one.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "secure_delete", "fast", |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -8_192)
}

/// Has the file written through a log, and tells its mode then. While another connection does the same to a new file,
/// SQLite is busy at once, whatever its timeout.
fn set_log_mode(connection: &Connection) -> Result<String, rusqlite::Error> {
    let until = Instant::now() + BUSY_TIMEOUT;
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            mode => return mode,
        }
    }
}

/// Opens a connection that only reads; the file must exist.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.pragma_update(None, "query_only", true).map_err(open_error_at(path))?;
    Ok(connection)
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(OpenError::new(format!("SQLite {} is too old; 3.51.3 is the least", rusqlite::version())));
    }
    let connection =
        Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(open_error_at(path))?;
    // SQLite falls back to reading alone; the operator is to know now, not at the first write.
    let may_only_read = connection.is_readonly("main").map_err(open_error_at(path))?;
    if may_only_read && flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
        let read_only = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_READONLY), None);
        return Err(open_error(path, &read_only));
    }
    // Plans depend on the schema alone. Without it, a bound LIMIT is planned anew on every run.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(open_error_at(path))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(open_error_at(path))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.pragma_update(None, "temp_store", "memory").map_err(open_error_at(path))?;
    connection
        .pragma_update_and_check(None, "mmap_size", 0, |_| Ok(()))
        .or_else(no_rows)
        .map_err(open_error_at(path))?;
    Ok(connection)
}

/// A pragma that answers nothing has still been set.
fn no_rows(error: rusqlite::Error) -> Result<(), rusqlite::Error> {
    match error {
        rusqlite::Error::QueryReturnedNoRows => Ok(()),
        error => Err(error),
    }
}
