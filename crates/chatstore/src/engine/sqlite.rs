//! SQLite as a command opens it: one file, and a lock for the process that serves it.

use std::path::Path;
use std::sync::Arc;

use chatstore_core::clock::Ctx;
use chatstore_server::config::{Config, SqliteSynchronous};
use chatstore_sqlite::{LockFile, SqliteOptions, SqliteStore, Synchronous};

use super::OpenStore;

pub(super) fn lock(path: &Path, command: &'static str) -> anyhow::Result<LockFile> {
    chatstore_sqlite::prepare_directory(path)?;
    Ok(LockFile::acquire(path, command)?)
}

/// Opens the file for the process that holds its lock. An absent file is made in any case.
pub(super) fn open_exclusive(
    path: &Path,
    config: &Config,
    ctx: &Ctx,
    lock: Option<LockFile>,
) -> anyhow::Result<OpenStore> {
    if config.auto_migrate || !path.exists() {
        chatstore_sqlite::migrate(path, ctx)?;
    }
    let store = SqliteStore::open(&options(config, path, true))?;
    Ok(OpenStore { store: Arc::new(store), lock, shown: path.display().to_string() })
}

/// Opens the file beside a server that may be running. An absent or old file is first made or
/// migrated, for which no server may be running.
pub(super) fn open_shared(path: &Path, config: &Config, ctx: &Ctx) -> anyhow::Result<OpenStore> {
    let pending = chatstore_sqlite::migration_status(path)?.iter().any(|step| step.applied_at.is_none());
    if pending && (config.auto_migrate || !path.exists()) {
        let _lock = lock(path, "migrate")?;
        chatstore_sqlite::migrate(path, ctx)?;
    }
    let store = SqliteStore::open(&options(config, path, false))?;
    Ok(OpenStore { store: Arc::new(store), lock: None, shown: path.display().to_string() })
}

fn options(config: &Config, path: &Path, exclusive: bool) -> SqliteOptions {
    let mut options = SqliteOptions::new(path);
    options.exclusive = exclusive;
    options.synchronous = match config.sqlite_synchronous {
        SqliteSynchronous::Full => Synchronous::Full,
        SqliteSynchronous::Normal => Synchronous::Normal,
    };
    options.write_queue_max = config.sqlite_write_queue_max;
    options.batch_max = config.sqlite_batch_max;
    options.readers = match config.sqlite_readers {
        0 => std::thread::available_parallelism().map_or(4, |cores| cores.get().max(4)),
        readers => readers,
    };
    options
}
