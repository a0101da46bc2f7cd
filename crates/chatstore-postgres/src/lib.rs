//! The contract on PostgreSQL with pgvector: a pool of connections, appends that share commits.
//!
//! `connect` reads the URL and opens connections (`tls` secures them), `pool` lends them under a
//! deadline, `sqlstate` reads the server's errors; every noun's file holds its SQL and its half of the contract, the same names as in
//! the SQLite engine; `migrate` brings a database to the newest schema.

mod api_keys;
mod archive;
mod audit;
mod columns;
mod connect;
mod embeddings;
mod error;
mod idempotency;
mod messages;
mod migrate;
mod params;
mod pool;
mod projects;
mod search;
mod sessions;
mod sqlstate;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chatstore_core::page::CursorKey;
use chatstore_core::store::{Store, StoreError, StoreStats};

pub use connect::server::{ServerReport, identity};
pub use error::OpenError;
pub use migrate::{MigrationStatus, migrate, migration_status};
pub use search::hnsw::build_vector_indexes;

use connect::Target;
use error::open_error_at;
use messages::appender::Appender;
use pool::Pool;
use search::hnsw::Indexes;
use sessions::erase::Eraser;

/// How a store is opened.
#[derive(Clone)]
pub struct PostgresOptions {
    /// The database: `postgres://USER:PASSWORD@HOST:PORT/NAME?sslmode=…`.
    pub url: String,
    /// Connections open at once, at least 2.
    pub connections_max: usize,
    /// How long an operation may wait for a connection.
    pub acquire_timeout: Duration,
    /// How long an operation may take, waiting included.
    pub statement_timeout: Duration,
    /// Whether statements are prepared once a connection; not behind a pooler in transaction mode.
    pub prepared_statements: bool,
    /// How appends are written.
    pub append_form: AppendForm,
    /// Appends that may share one commit.
    pub append_batch_max: usize,
    /// Appends that may wait before more are refused as busy.
    pub append_queue_max: usize,
}

/// How appends are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendForm {
    /// Appends to any sessions share one statement and one commit: for one node.
    Batched,
    /// One transaction for each append, an update and then an insert, all in one bucket: for a
    /// sharded database.
    PerSession,
}

impl PostgresOptions {
    /// The usual options for the database at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connections_max: 16,
            acquire_timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_secs(5),
            prepared_statements: true,
            append_form: AppendForm::Batched,
            append_batch_max: 256,
            append_queue_max: 4_096,
        }
    }
}

/// The URL may hold a password, so it is not shown.
impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("connections_max", &self.connections_max)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("prepared_statements", &self.prepared_statements)
            .field("append_form", &self.append_form)
            .field("append_batch_max", &self.append_batch_max)
            .field("append_queue_max", &self.append_queue_max)
            .finish_non_exhaustive()
    }
}

/// A chat store in a PostgreSQL database.
pub struct PostgresStore {
    pool: Arc<Pool>,
    appender: Arc<Appender>,
    eraser: Eraser,
    vector_indexes: Indexes,
    append_form: AppendForm,
    server: ServerReport,
}

impl PostgresStore {
    /// Opens a database that [`migrate`] has brought to this binary's schema.
    ///
    /// # Errors
    /// A sentence for the operator: the database cannot be reached, is too new or too old, or a
    /// commit there does not wait for the disk.
    pub async fn open(options: &PostgresOptions) -> Result<Self, OpenError> {
        let target = Target::parse(&options.url)?;
        let client = target.connect(options.statement_timeout).await?;
        migrate::require_current(&client, target.shown()).await?;
        let server = ServerReport::read(&client, target.shown()).await?;
        if server.synchronous_commit == "off" && !options.prepared_statements {
            // What a pooler shares cannot be set for one connection.
            return Err(OpenError::new(format!(
                "{} has synchronous_commit off: a commit would be answered before it is on the disk; \
                 run `alter role … set synchronous_commit = on`",
                target.shown()
            )));
        }
        search::reindex::note_analyser(&client).await.map_err(open_error_at(target.shown()))?;
        let pool = Arc::new(Pool::new(&target, options)?);
        Ok(Self {
            appender: Arc::new(Appender::new(pool.clone(), options)),
            eraser: Eraser::start(pool.clone()),
            vector_indexes: Indexes::default(),
            append_form: options.append_form,
            server,
            pool,
        })
    }

    /// What is known of the server.
    pub fn server(&self) -> &ServerReport {
        &self.server
    }
}

/// The database that `url` names, without user and password: for logs.
pub fn shown(url: &str) -> String {
    Target::parse(url).map_or_else(|_| "postgres://…".to_owned(), |target| target.shown().to_owned())
}

/// The secret made with the schema.
const SELECT_CURSOR_SECRET: &str = "select cursor_secret from installation";
/// A standby answers, but takes no writes; nor does a database that was made read-only.
const SELECT_IS_READ_ONLY: &str = "select pg_is_in_recovery() or current_setting('transaction_read_only')::bool";

#[cfg(test)]
const STATEMENTS: &[&str] = &[SELECT_CURSOR_SECRET, SELECT_IS_READ_ONLY];

#[async_trait]
impl Store for PostgresStore {
    async fn check(&self) -> Result<(), StoreError> {
        let row = self.pool.read((), async |db, _| Ok(db.query_opt(SELECT_IS_READ_ONLY, &[]).await?)).await?;
        match row.map(|row| row.try_get(0)) {
            Some(Ok(false)) => Ok(()),
            _ => Err(StoreError::Unavailable {
                reason: "the database takes no writes: it is a standby, or read-only".to_owned(),
            }),
        }
    }

    async fn cursor_key(&self) -> Result<CursorKey, StoreError> {
        let row = self.pool.read((), async |db, _| Ok(db.query_opt(SELECT_CURSOR_SECRET, &[]).await?)).await?;
        let secret = row.and_then(|row| <[u8; 32]>::try_from(row.try_get::<_, &[u8]>(0).ok()?).ok());
        secret.map(CursorKey::new).ok_or_else(|| StoreError::internal("the installation row is missing"))
    }

    fn stats(&self) -> StoreStats {
        self.appender.stats()
    }

    async fn close(&self) {
        self.eraser.stop();
        self.appender.close().await;
        self.pool.close();
    }
}

#[cfg(test)]
mod plans;
