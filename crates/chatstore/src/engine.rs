//! Which engine stands behind a database URL: the one place that names engines.

mod postgres;
mod sqlite;

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use chatstore_core::clock::Ctx;
use chatstore_core::migrations::MigrationStatus;
use chatstore_core::store::Store;
use chatstore_server::config::{Config, DatabaseUrl};
use chatstore_sqlite::{Backup, LockFile};

/// A store opened for a command.
pub(crate) struct OpenStore {
    pub(crate) store: Arc<dyn Store>,
    /// Keeps other processes away as long as it is held; nothing where several may serve.
    pub(crate) lock: Option<LockFile>,
    /// The database as it is shown to people, without a password.
    pub(crate) shown: String,
}

/// What is done about a database that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It is made.
    Make,
    /// The command stops: it wants what is in it.
    Refuse,
}

/// Takes the lock of the one process that serves or imports, where the engine needs one.
pub(crate) fn lock(config: &Config, command: &'static str) -> anyhow::Result<Option<LockFile>> {
    lock_url(&config.database_url, command)
}

fn lock_url(url: &DatabaseUrl, command: &'static str) -> anyhow::Result<Option<LockFile>> {
    match url {
        DatabaseUrl::Sqlite(path) => sqlite::lock(path, command).map(Some),
        DatabaseUrl::Postgres(_) => Ok(None),
    }
}

/// Opens the store for the process that holds the lock; migrates it first if it may.
pub(crate) async fn open_exclusive(config: &Config, ctx: &Ctx, lock: Option<LockFile>) -> anyhow::Result<OpenStore> {
    match &config.database_url {
        DatabaseUrl::Sqlite(path) => sqlite::open_exclusive(path, config, ctx, lock),
        DatabaseUrl::Postgres(url) => postgres::open(url, postgres::migrator(config, url), config, ctx).await,
    }
}

/// The same for a server: it waits a while for a database that is only about to come up.
pub(crate) async fn open_patiently(config: &Config, ctx: &Ctx, lock: Option<LockFile>) -> anyhow::Result<OpenStore> {
    match &config.database_url {
        DatabaseUrl::Sqlite(path) => sqlite::open_exclusive(path, config, ctx, lock),
        DatabaseUrl::Postgres(url) => postgres::open_patiently(url, postgres::migrator(config, url), config, ctx).await,
    }
}

/// Opens the store beside servers that may be running, and migrates it first if it may.
pub(crate) async fn open_shared(config: &Config, ctx: &Ctx) -> anyhow::Result<OpenStore> {
    match &config.database_url {
        DatabaseUrl::Sqlite(path) => sqlite::open_shared(path, config, ctx),
        DatabaseUrl::Postgres(url) => postgres::open(url, postgres::migrator(config, url), config, ctx).await,
    }
}

/// Opens a store that must exist, beside servers that may be running.
pub(crate) async fn open_existing(config: &Config, ctx: &Ctx) -> anyhow::Result<OpenStore> {
    require_existing(&config.database_url).await?;
    open_shared(config, ctx).await
}

/// Opens the database at any URL for `command` as the only process that writes to it: with the
/// lock, where the engine has one, which names `command` to those it keeps away. It is migrated
/// first as `auto_migrate` says, by the role of `url` itself; everything else is as in the
/// settings.
///
/// # Errors
/// A sentence for the operator: the database is in use, cannot be reached, is absent though it
/// must not be, belongs to another program or is not fit for this binary.
pub(crate) async fn open_url(
    url: &DatabaseUrl,
    absent: Absent,
    command: &'static str,
    config: &Config,
    ctx: &Ctx,
) -> anyhow::Result<OpenStore> {
    if absent == Absent::Refuse && !exists(url).await? {
        bail!("there is no database of Chatstore at {}", shown(url));
    }
    let lock = lock_url(url, command)?;
    match url {
        DatabaseUrl::Sqlite(path) => sqlite::open_exclusive(path, config, ctx, lock),
        DatabaseUrl::Postgres(url) => postgres::open(url, url, &postgres::unhurried(config), ctx).await,
    }
}

/// What two URLs have in common if they name the same database.
pub(crate) async fn identity(url: &DatabaseUrl) -> anyhow::Result<String> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => {
            format!("sqlite:{}", path.canonicalize().unwrap_or_else(|_| path.clone()).display())
        }
        DatabaseUrl::Postgres(url) => chatstore_postgres::identity(url.expose()).await?,
    })
}

async fn exists(url: &DatabaseUrl) -> anyhow::Result<bool> {
    match url {
        DatabaseUrl::Sqlite(path) => Ok(path.exists()),
        DatabaseUrl::Postgres(url) => postgres::exists(url).await,
    }
}

/// The database as it is shown to people.
fn shown(url: &DatabaseUrl) -> String {
    match url {
        DatabaseUrl::Sqlite(path) => path.display().to_string(),
        DatabaseUrl::Postgres(url) => chatstore_postgres::shown(url.expose()),
    }
}

/// Refuses a database that is not there, so that none is made by mistake.
async fn require_existing(url: &DatabaseUrl) -> anyhow::Result<()> {
    if !exists(url).await? {
        bail!("there is no database of Chatstore at {}; set DATABASE_URL to the one you mean", shown(url));
    }
    Ok(())
}

/// Every step of the schema, oldest first.
pub(crate) async fn migration_status(config: &Config) -> anyhow::Result<Vec<MigrationStatus>> {
    Ok(match &config.database_url {
        DatabaseUrl::Sqlite(path) => chatstore_sqlite::migration_status(path)?,
        DatabaseUrl::Postgres(url) => {
            chatstore_postgres::migration_status(postgres::migrator(config, url).expose()).await?
        }
    })
}

/// Applies what is pending; gives back the names of the steps and the database as it is shown.
pub(crate) async fn migrate(config: &Config, ctx: &Ctx) -> anyhow::Result<(Vec<&'static str>, String)> {
    match &config.database_url {
        DatabaseUrl::Sqlite(path) => {
            let _lock = sqlite::lock(path, "migrate")?;
            Ok((chatstore_sqlite::migrate(path, ctx)?, path.display().to_string()))
        }
        DatabaseUrl::Postgres(url) => {
            let migrator = postgres::migrator(config, url);
            Ok((postgres::migrate(url, migrator, ctx).await?, chatstore_postgres::shown(migrator.expose())))
        }
    }
}

/// Writes a checked copy of the database to `file`.
pub(crate) async fn backup(config: &Config, file: &Path) -> anyhow::Result<Backup> {
    match &config.database_url {
        DatabaseUrl::Sqlite(path) => {
            require_existing(&config.database_url).await?;
            Ok(chatstore_sqlite::backup(path, file)?)
        }
        DatabaseUrl::Postgres(_) => bail!(
            "PostgreSQL has its own tool for backups: pg_dump --format=custom --file={} --dbname=URL",
            file.display()
        ),
    }
}

/// Builds the indexes of vectors that make searches over whole projects fast, where the engine has such; tells `report`
/// what it does, a sentence each.
pub(crate) async fn build_vector_indexes(config: &Config, report: impl FnMut(&str)) -> anyhow::Result<()> {
    match &config.database_url {
        // It compares vectors one by one, in memory.
        DatabaseUrl::Sqlite(_) => Ok(()),
        DatabaseUrl::Postgres(url) => {
            let owner = postgres::migrator(config, url);
            chatstore_postgres::build_vector_indexes(owner.expose(), report).await?;
            Ok(())
        }
    }
}

/// The engines in this binary.
pub(crate) fn compiled_in() -> String {
    format!("SQLite {}, PostgreSQL 16 and newer", chatstore_sqlite::sqlite_version())
}
