//! PostgreSQL as a command opens it: beside any number of other processes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use chatstore_core::clock::Ctx;
use chatstore_postgres::{AppendForm, OpenError, PostgresOptions, PostgresStore};
use chatstore_server::config::{Config, DatabaseUrl, PostgresAppend, Secret};

use super::OpenStore;

/// How long a server waits for its database to come up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// The URL whose role migrates the database at `url`.
pub(super) fn migrator<'a>(config: &'a Config, url: &'a Secret) -> &'a Secret {
    match &config.migrate_database_url {
        Some(DatabaseUrl::Postgres(owner)) => owner,
        _ => url,
    }
}

/// Applies what is pending to the database at `url`, as the role of `migrator`, which must lead to the same.
pub(super) async fn migrate(url: &Secret, migrator: &Secret, ctx: &Ctx) -> anyhow::Result<Vec<&'static str>> {
    let (served, migrated) = (url.expose(), migrator.expose());
    if served != migrated
        && chatstore_postgres::identity(served).await? != chatstore_postgres::identity(migrated).await?
    {
        bail!(
            "MIGRATE_DATABASE_URL leads to {} and DATABASE_URL to {}, which is another database; name the same in both",
            chatstore_postgres::shown(migrated),
            chatstore_postgres::shown(served)
        );
    }
    Ok(chatstore_postgres::migrate(migrated, ctx).await?)
}

/// Opens the database; before that, its migrator brings it up to date if it may.
pub(super) async fn open(url: &Secret, migrator: &Secret, config: &Config, ctx: &Ctx) -> anyhow::Result<OpenStore> {
    if config.auto_migrate {
        let applied = migrate(url, migrator, ctx).await?;
        if !applied.is_empty() {
            tracing::info!(migrations = applied.join(", "), "migrated");
        }
    }
    let store = PostgresStore::open(&options(config, url)).await?;
    let server = store.server();
    let pgvector = server.pgvector.as_deref().unwrap_or("absent");
    tracing::info!(version = server.version, pgvector, "connected to PostgreSQL");
    for warning in server.warnings() {
        tracing::warn!("{warning}");
    }
    Ok(OpenStore { store: Arc::new(store), lock: None, shown: chatstore_postgres::shown(url.expose()) })
}

/// The same for a server that may be started at the same time as its database: what passes by
/// itself is waited for.
pub(super) async fn open_patiently(
    url: &Secret,
    migrator: &Secret,
    config: &Config,
    ctx: &Ctx,
) -> anyhow::Result<OpenStore> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(500);
    loop {
        let error = match open(url, migrator, config, ctx).await {
            Err(error) if is_passing(&error) => error,
            result => return result,
        };
        let left = PATIENCE.saturating_sub(began.elapsed());
        if left < pause {
            return Err(error);
        }
        tracing::warn!("{error:#}; trying again for {} s", left.as_secs());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn is_passing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<OpenError>().is_some_and(|error| error.is_passing)
}

/// Whether there is a schema of ours.
pub(super) async fn exists(url: &Secret) -> anyhow::Result<bool> {
    let steps = chatstore_postgres::migration_status(url.expose()).await?;
    Ok(steps.iter().any(|step| step.applied_at.is_some()))
}

/// The settings for a command without a client that waits: it rather takes longer than fails.
pub(super) fn unhurried(config: &Config) -> Config {
    let mut config = config.clone();
    config.postgres_acquire_timeout = config.postgres_acquire_timeout.max(Duration::from_secs(30));
    config.postgres_statement_timeout = config.postgres_statement_timeout.max(Duration::from_secs(60));
    config
}

fn options(config: &Config, url: &Secret) -> PostgresOptions {
    PostgresOptions {
        url: url.expose().to_owned(),
        connections_max: config.postgres_connections_max,
        acquire_timeout: config.postgres_acquire_timeout,
        statement_timeout: config.postgres_statement_timeout,
        prepared_statements: config.postgres_prepared_statements,
        append_form: match config.postgres_append {
            PostgresAppend::Batched => AppendForm::Batched,
            PostgresAppend::PerSession => AppendForm::PerSession,
        },
        append_batch_max: config.postgres_append_batch_max,
        append_queue_max: config.postgres_append_queue_max,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// What a server says that refuses with this SQLSTATE.
    async fn refused_with(code: &'static str) -> anyhow::Error {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 1_024]).unwrap() > 0);
            let fields = format!("SFATAL\0VFATAL\0C{code}\0Mnot now\0\0");
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            stream.write_all(&[b"E".as_slice(), &length, fields.as_bytes()].concat()).unwrap();
        });
        exists(&Secret::new(format!("postgres://me@127.0.0.1:{port}/db?sslmode=disable"))).await.unwrap_err()
    }

    #[tokio::test]
    async fn only_what_passes_by_itself_is_waited_for() {
        for code in ["57P03", "53300"] {
            let error = refused_with(code).await;
            assert!(is_passing(&error), "{code}: {error}");
        }
        for code in ["28P01", "28000", "3D000", "42501"] {
            let error = refused_with(code).await;
            assert!(!is_passing(&error), "{code}: {error}");
        }
        let url = |place: &str| Secret::new(format!("postgres://me@{place}/db"));
        for place in ["127.0.0.1:1", "%2Fnowhere", "nowhere.invalid"] {
            let error = exists(&url(place)).await.unwrap_err();
            assert!(is_passing(&error), "{place}: {error}");
        }
        let error = exists(&url("")).await.unwrap_err();
        assert!(!is_passing(&error), "{error}");
    }
}
