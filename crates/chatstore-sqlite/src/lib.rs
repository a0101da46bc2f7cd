//! The contract on SQLite: one file, one writer thread with group commit, a few read-only
//! connections.
//!
//! `writer` and `reader` own the connections; every noun's file holds its SQL and its half of the
//! contract; `migrate` brings a file to the newest schema and `lock` keeps a second server away.

mod api_keys;
mod archive;
mod audit;
mod backup;
mod columns;
mod connection;
mod derived;
mod embeddings;
mod error;
mod idempotency;
mod lock;
mod messages;
mod migrate;
mod projects;
mod reader;
mod search;
mod sessions;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use chatstore_core::page::CursorKey;
use chatstore_core::store::{Store, StoreError, StoreStats};

pub use backup::{Backup, backup};
pub use chatstore_core::migrations::{MigrationStatus, OpenError};
pub use connection::{Synchronous, sqlite_version};
pub use lock::{LockFile, lock_path};
pub use migrate::{migrate, migration_status};

use error::file_error;
use reader::Readers;
use search::VectorCache;
use writer::Writer;
use writer::checkpoint::Checkpointer;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The database file.
    pub path: PathBuf,
    /// When a commit counts as durable.
    pub synchronous: Synchronous,
    /// Writes that may wait for the writer before more are refused as busy.
    pub write_queue_max: usize,
    /// Writes that may share one commit.
    pub batch_max: usize,
    /// Reads that may run at once on threads of their own, beside the quick ones.
    pub readers: usize,
    /// Whether this process holds the [`LockFile`]: it then erases what was deleted, empties an
    /// index of words that an older version made, and copies and empties the write-ahead log. Any
    /// other leaves that to the holder.
    pub exclusive: bool,
    /// Bytes of vectors that are kept in memory for searches.
    pub vector_cache_bytes: usize,
}

impl SqliteOptions {
    /// The usual options for the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            synchronous: Synchronous::Full,
            write_queue_max: 4_096,
            batch_max: 256,
            readers: 4,
            exclusive: true,
            vector_cache_bytes: 128 << 20,
        }
    }
}

/// A chat store in one SQLite file.
pub struct SqliteStore {
    writer: Writer,
    readers: Arc<Readers>,
    vectors: Arc<VectorCache>,
}

impl SqliteStore {
    /// Opens a file that [`migrate`] has brought to this binary's schema.
    ///
    /// # Errors
    /// A sentence for the operator: the file is missing, foreign, too new or too old, unreadable
    /// or damaged.
    pub fn open(options: &SqliteOptions) -> Result<Self, OpenError> {
        let mut connection = connection::open_writer(&options.path, options.synchronous)?;
        migrate::require_current(&connection, &options.path)?;
        if options.exclusive {
            search::index::require_analyser(&mut connection).map_err(error::open_error_at(&options.path))?;
        }
        let readers = Readers::open(&options.path, options.readers)?;
        let shared = Arc::new(writer::Shared::default());
        let io = |error| file_error(&options.path, &error);
        let checkpointer = match options.exclusive {
            true => {
                let connection = connection::open_writer(&options.path, options.synchronous)?;
                Some(Checkpointer::start(connection, shared.clone()).map_err(io)?)
            }
            false => None,
        };
        let writer = Writer::start(connection, checkpointer, options.write_queue_max, options.batch_max, shared);
        let writer = writer.map_err(io)?;
        Ok(Self { writer, readers: Arc::new(readers), vectors: Arc::new(VectorCache::new(options.vector_cache_bytes)) })
    }
}

/// Makes the folder in which the database at `path` is to stand, if it is absent.
///
/// # Errors
/// If the directory cannot be made.
pub fn prepare_directory(path: &Path) -> Result<(), OpenError> {
    connection::prepare_directory(path)
}

/// The secret made with the schema.
const SELECT_CURSOR_SECRET: &str = "select cursor_secret from installation";

#[async_trait]
impl Store for SqliteStore {
    async fn check(&self) -> Result<(), StoreError> {
        self.writer.check()?;
        self.cursor_key().await.map(drop)
    }

    async fn cursor_key(&self) -> Result<CursorKey, StoreError> {
        let secret = self
            .readers
            .read(|reader| reader.query_row(SELECT_CURSOR_SECRET, (), |row| row.get::<_, [u8; 32]>(0)))
            .await?;
        secret.map(CursorKey::new).ok_or_else(|| StoreError::internal("the installation row is missing"))
    }

    fn stats(&self) -> StoreStats {
        self.writer.stats()
    }

    async fn close(&self) {
        // The writer goes last: it can empty and remove the log when nobody reads any more.
        self.readers.close();
        self.writer.close().await;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use chatstore_core::clock::Ctx;

    use super::*;

    /// A connection to a fresh, migrated file that is already unlinked.
    pub(crate) fn migrated() -> rusqlite::Connection {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chatstore.db");
        migrate(&path, &Ctx::system()).unwrap();
        connection::open_writer(&path, Synchronous::Full).unwrap()
    }

    /// How SQLite runs a statement, step by step.
    pub(crate) fn plan(connection: &rusqlite::Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(&format!("explain query plan {sql}")).unwrap();
        let nulls = vec![rusqlite::types::Value::Null; statement.parameter_count()];
        let steps = statement.query_map(rusqlite::params_from_iter(nulls), |row| row.get(3)).unwrap();
        steps.collect::<Result<_, _>>().unwrap()
    }

    fn derived_statements() -> Vec<&'static str> {
        let embeddings = [
            embeddings::STATEMENTS,
            embeddings::jobs::STATEMENTS,
            embeddings::source::STATEMENTS,
            embeddings::vectors::STATEMENTS,
        ];
        [search::statements(), embeddings.concat(), writer::connection::STATEMENTS.to_vec()].concat()
    }

    #[test]
    fn every_statement_fits_the_schema() {
        let connection = migrated();
        let statements = [
            sessions::STATEMENTS,
            messages::STATEMENTS,
            messages::append::STATEMENTS,
            api_keys::STATEMENTS,
            api_keys::WALKING_STATEMENTS,
            projects::STATEMENTS,
            projects::WALKING_STATEMENTS,
            audit::STATEMENTS,
            archive::STATEMENTS,
            idempotency::STATEMENTS,
            embeddings::SORTING_STATEMENTS,
            embeddings::source::SMALL_STATEMENTS,
            search::index::OPENING_STATEMENTS,
            search::text::PENDING_STATEMENTS,
            writer::connection::PENDING_STATEMENTS,
            &[SELECT_CURSOR_SECRET],
            &derived_statements(),
        ];
        for sql in statements.concat() {
            connection.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }

    #[test]
    fn reads_by_id_and_pages_of_messages_use_keys() {
        let connection = migrated();
        for sql in [
            messages::STATEMENTS,
            messages::append::STATEMENTS,
            api_keys::STATEMENTS,
            projects::STATEMENTS,
            audit::STATEMENTS,
            archive::STATEMENTS,
            idempotency::STATEMENTS,
            sessions::STATEMENTS,
            &derived_statements(),
        ]
        .concat()
        {
            if sql.contains("session_erasures e") {
                continue;
            }
            for step in plan(&connection, sql) {
                let scans = step.contains("SCAN")
                    && step != "SCAN CONSTANT ROW"
                    && !step.starts_with("SCAN (subquery")
                    && !step.contains("VIRTUAL TABLE INDEX");
                assert!(!scans && !step.contains("TEMP B-TREE"), "{sql}: {step}");
            }
        }
    }
}
