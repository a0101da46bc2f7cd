//! Which engine stands behind a database URL: the one place that names engines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use chatstore_core::clock::Ctx;
use chatstore_core::store::Store;
use chatstore_server::config::{Config, DatabaseUrl, SqliteSynchronous};
use chatstore_sqlite::{LockFile, SqliteOptions, SqliteStore, Synchronous};

/// A store opened for a command, and the lock that keeps others away, if the command needs it.
pub(crate) struct OpenStore {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) lock: Option<LockFile>,
    pub(crate) path: PathBuf,
}

/// Takes the lock of the one process that serves or imports.
pub(crate) fn lock(config: &Config, command: &'static str) -> anyhow::Result<LockFile> {
    let path = database_path(config)?;
    chatstore_sqlite::prepare_directory(path)?;
    Ok(LockFile::acquire(path, command)?)
}

/// The database file.
pub(crate) fn database_path(config: &Config) -> anyhow::Result<&Path> {
    match &config.database_url {
        DatabaseUrl::Sqlite(path) => Ok(path),
        DatabaseUrl::Postgres(_) => {
            bail!("DATABASE_URL names PostgreSQL, which this version does not serve yet; use sqlite:PATH")
        }
    }
}

/// Opens the store for the process that holds the lock; migrates it first if it may.
pub(crate) fn open_exclusive(config: &Config, ctx: &Ctx, lock: LockFile) -> anyhow::Result<OpenStore> {
    let path = database_path(config)?;
    if config.auto_migrate || !path.exists() {
        chatstore_sqlite::migrate(path, ctx)?;
    }
    let store = SqliteStore::open(&options(config, path, true))?;
    Ok(OpenStore { store: Arc::new(store), lock: Some(lock), path: path.to_owned() })
}

/// Opens the store beside a server that may be running. An absent or old file is first made or
/// migrated, for which no server may be running.
pub(crate) fn open_shared(config: &Config, ctx: &Ctx) -> anyhow::Result<OpenStore> {
    let path = database_path(config)?;
    let pending = chatstore_sqlite::migration_status(path)?.iter().any(|step| step.applied_at.is_none());
    if pending && (config.auto_migrate || !path.exists()) {
        chatstore_sqlite::prepare_directory(path)?;
        let _lock = LockFile::acquire(path, "migrate")?;
        chatstore_sqlite::migrate(path, ctx)?;
    }
    let store = SqliteStore::open(&options(config, path, false))?;
    Ok(OpenStore { store: Arc::new(store), lock: None, path: path.to_owned() })
}

/// Opens a store that must exist, beside a server that may be running.
pub(crate) fn open_existing(config: &Config, ctx: &Ctx) -> anyhow::Result<OpenStore> {
    let path = database_path(config)?;
    if !path.exists() {
        bail!("there is no database at {}; set DATABASE_URL to the one you mean", path.display());
    }
    open_shared(config, ctx)
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
