//! Bringing a database to the newest schema: forward only, in one transaction, safe to repeat and
//! safe with many starters at once.

use std::time::{Duration, Instant};

use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::migrations::{self, AppliedMigration, Migration};
use chatstore_core::projects::DEFAULT_PROJECT;
use chatstore_core::search::analyser::ANALYSER_VERSION;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, IsolationLevel, Row, Transaction};

use crate::connect::Target;
use crate::connect::server::ServerReport;
use crate::error::{OpenError, open_error, open_error_at};
use crate::params::params;
use crate::sqlstate::described;

pub use chatstore_core::migrations::MigrationStatus;

/// A binary of schema 1 goes on after `search`: what it stores is found after the next reindex.
pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "base", sql: include_str!("../migrations/0001_base.sql"), serves_from: 1 },
    Migration { version: 2, name: "search", sql: include_str!("../migrations/0002_search.sql"), serves_from: 2 },
    Migration { version: 3, name: "access", sql: include_str!("../migrations/0003_access.sql"), serves_from: 3 },
    Migration {
        version: 4,
        name: "idempotency",
        sql: include_str!("../migrations/0004_idempotency.sql"),
        serves_from: 4,
    },
];

/// What the migrations create; another program's tables of these names are left alone.
const TABLES: [&str; 17] = [
    "api_keys",
    "audit_events",
    "embedding_jobs",
    "embedding_models",
    "embedding_source",
    "idempotency_records",
    "installation",
    "message_embeddings",
    "message_texts",
    "messages",
    "projects",
    "reindexes",
    "retired_embedding_models",
    "session_erasures",
    "session_metadata",
    "sessions",
    "text_index",
];
/// What the runner itself keeps.
const RUNNER_TABLES: [&str; 2] = ["migration_lock", "schema_migrations"];

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long another migrator is waited for.
const OTHER_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before another look.
const PAUSE: Duration = Duration::from_millis(200);
/// Runs that may fail because something was in the way.
const TRIES: u32 = 5;

/// A lock that is waited for makes others wait behind it, so the wait is short. A step may take
/// long on many rows. A migrator that fell silent gives up its locks.
const SET_LIMITS: &str = "set local lock_timeout = '5s'; set local statement_timeout = '1h'; \
     set local idle_in_transaction_session_timeout = '1min'";
const CREATE_RUNNER_TABLES: &str = "create table if not exists schema_migrations (
    version bigint primary key,
    name text not null,
    checksum text not null,
    serves_from bigint not null,
    applied_at bigint not null
);
create table if not exists migration_lock (
    only_row smallint primary key check (only_row = 1)
);
insert into migration_lock (only_row) values (1) on conflict do nothing";
/// A row that is locked is passed over: nobody stands in a queue, and a killed migrator's lock ends
/// with its transaction, behind a pooler as well.
const TAKE_LOCK: &str = "select only_row from migration_lock for update skip locked";
/// The schema that new tables go to, whether the table of migrations is one, and which names are
/// taken in that schema.
const SELECT_STATE: &str = "select current_schema()::text, \
     (select count(*) = 5 from pg_catalog.pg_attribute where attrelid = to_regclass('schema_migrations') \
         and not attisdropped and attname in ('version', 'name', 'checksum', 'serves_from', 'applied_at')), \
     array(select name from unnest($1) name \
         where to_regclass(quote_ident(current_schema()) || '.' || quote_ident(name)) is not null)";
const SELECT_MIGRATIONS: &str =
    "select version, name, checksum, serves_from, applied_at from schema_migrations order by version";
const SELECT_VECTOR: &str = "select exists (select from pg_catalog.pg_extension where extname = 'vector'), \
     exists (select from pg_catalog.pg_available_extensions where name = 'vector')";
const CREATE_VECTOR: &str = "create extension vector";
const INSERT_MIGRATION: &str =
    "insert into schema_migrations (version, name, checksum, serves_from, applied_at) values ($1, $2, $3, $4, $5)";
const INSERT_INSTALLATION: &str = "insert into installation (only_row, cursor_secret, created_at) values (1, $1, $2)";
const INSERT_DEFAULT_PROJECT: &str = "insert into projects (project_id, name, created_at) values ($1, $2, $3)";

const INSERT_TEXT_INDEX: &str = "insert into text_index (only_row, analyser_version) values (1, $1)";

/// Why a run applied nothing.
enum Failure {
    Postgres(Error),
    Refusal(OpenError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<OpenError> for Failure {
    fn from(refusal: OpenError) -> Self {
        Self::Refusal(refusal)
    }
}

/// Applies what is pending to the database at `url` and returns the names of the steps applied.
/// With nothing pending it only reads, for which a role without rights on tables' shape will do.
///
/// # Errors
/// A sentence for the operator: the database cannot be reached or is foreign, too new, changed or
/// in use, the role lacks rights, or the server is too old or lacks pgvector.
pub async fn migrate(url: &str, ctx: &Ctx) -> Result<Vec<&'static str>, OpenError> {
    let target = Target::parse(url)?;
    let mut client = target.connect(CONNECT_TIMEOUT).await?;
    let shown = target.shown();
    let server = ServerReport::read(&client, shown).await?;
    let until = Instant::now() + OTHER_TIMEOUT;
    let mut tries = TRIES;
    loop {
        let state = State::read(&client, shown).await?;
        let pending = state.pending(shown)?;
        if pending.is_empty() {
            return Ok(Vec::new());
        }
        match run(&mut client, &state, &server, ctx, shown).await {
            Ok(Some(names)) => return Ok(names),
            Ok(None) if Instant::now() < until => {}
            Ok(None) => {
                return Err(OpenError::new(format!(
                    "{shown} has been under migration by another process for {} s; look for it in pg_stat_activity and try \
                     again when it has ended",
                    OTHER_TIMEOUT.as_secs()
                )));
            }
            Err(Failure::Postgres(error)) if tries > 1 && is_in_the_way(&error) => tries -= 1,
            Err(Failure::Postgres(error)) => return Err(refusal(&error, pending.len(), &state, shown)),
            Err(Failure::Refusal(refusal)) => return Err(refusal),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The steps known to this binary and those in the database at `url`, oldest first.
///
/// # Errors
/// A sentence for the operator if the database cannot be reached or is foreign.
pub async fn migration_status(url: &str) -> Result<Vec<MigrationStatus>, OpenError> {
    let target = Target::parse(url)?;
    let client = target.connect(CONNECT_TIMEOUT).await?;
    ServerReport::read(&client, target.shown()).await?;
    let state = State::read(&client, target.shown()).await?;
    Ok(migrations::status(MIGRATIONS, state.applied))
}

/// Refuses a database that this binary cannot serve as it is.
pub(crate) async fn require_current(client: &Client, shown: &str) -> Result<(), OpenError> {
    let state = State::read(client, shown).await?;
    migrations::refuse_unfit(MIGRATIONS, &state.applied, shown)?;
    migrations::refuse_pending(MIGRATIONS, &state.applied, shown)
}

/// How far a database is.
struct State {
    schema: String,
    /// Whether the runner's tables are there.
    ready: bool,
    applied: Vec<AppliedMigration>,
}

impl State {
    /// Looks, and refuses a database with tables that are not ours: nothing is ever written into
    /// it.
    async fn read(client: &Client, shown: &str) -> Result<Self, OpenError> {
        let (mut schema, mut ready, mut taken) = select_state(client).await.map_err(open_error_at(shown))?;
        if !ready && !taken.is_empty() {
            // The names are looked up as of now and the columns as of a moment ago: another starter's
            // tables may have come in between.
            (schema, ready, taken) = select_state(client).await.map_err(open_error_at(shown))?;
        }
        let Some(schema) = schema else {
            return Err(OpenError::new(format!(
                "{shown} has no schema in this role's search_path that it may use; create one or grant usage of it"
            )));
        };
        let applied = match ready {
            true => select_applied(client).await.map_err(open_error_at(shown))?,
            false => Vec::new(),
        };
        let foreign = taken.iter().find(|name| !ready || !RUNNER_TABLES.contains(&name.as_str()));
        match foreign.filter(|_| applied.is_empty()) {
            Some(name) => Err(OpenError::new(format!(
                "{shown} holds a table `{name}` of another program in schema `{schema}`; name another database in its \
                 URL"
            ))),
            None => Ok(Self { schema, ready, applied }),
        }
    }

    fn pending(&self, shown: &str) -> Result<Vec<&'static Migration>, OpenError> {
        migrations::refuse_unfit(MIGRATIONS, &self.applied, shown)?;
        Ok(migrations::pending(MIGRATIONS, &self.applied))
    }
}

async fn select_state(client: &Client) -> Result<(Option<String>, bool, Vec<String>), Error> {
    let names: Vec<&str> = TABLES.into_iter().chain(RUNNER_TABLES).collect();
    let row = client.query_typed_one(SELECT_STATE, params![names]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

async fn select_applied(client: &Client) -> Result<Vec<AppliedMigration>, Error> {
    let step = |row: &Row| {
        Ok(AppliedMigration {
            version: row.try_get(0)?,
            name: row.try_get(1)?,
            checksum: row.try_get(2)?,
            serves_from: row.try_get(3)?,
            applied_at: row.try_get(4)?,
        })
    };
    client.query_typed(SELECT_MIGRATIONS, &[]).await?.iter().map(step).collect()
}

/// Applies what is pending in one transaction, under the lock; `None` if another holds it.
async fn run(
    client: &mut Client,
    state: &State,
    server: &ServerReport,
    ctx: &Ctx,
    shown: &str,
) -> Result<Option<Vec<&'static str>>, Failure> {
    if !state.ready {
        let transaction = begin(client).await?;
        transaction.batch_execute(CREATE_RUNNER_TABLES).await?;
        transaction.commit().await?;
    }
    let transaction = begin(client).await?;
    if transaction.query_typed(TAKE_LOCK, &[]).await?.is_empty() {
        transaction.rollback().await?;
        return Ok(None);
    }
    let pending = State::read(transaction.client(), shown).await?.pending(shown)?;
    if !pending.is_empty() {
        create_vector(&transaction, server, shown).await?;
    }
    for step in &pending {
        apply(&transaction, step, ctx).await?;
    }
    transaction.commit().await?;
    Ok(Some(pending.into_iter().map(|step| step.name).collect()))
}

/// Begins a transaction that sees what others commit, whatever the role's settings are.
async fn begin(client: &mut Client) -> Result<Transaction<'_>, Error> {
    let transaction = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    transaction.batch_execute(SET_LIMITS).await?;
    Ok(transaction)
}

async fn create_vector(transaction: &Transaction<'_>, server: &ServerReport, shown: &str) -> Result<(), Failure> {
    let row = transaction.query_typed_one(SELECT_VECTOR, &[]).await?;
    let (installed, available): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if installed {
        return Ok(());
    }
    if !available {
        return Err(Failure::Refusal(OpenError::new(format!(
            "{shown} runs on a server without pgvector; install the package postgresql-{major}-pgvector there or use \
             the image pgvector/pgvector:pg{major}",
            major = server.major
        ))));
    }
    match transaction.batch_execute(CREATE_VECTOR).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            Err(Failure::Refusal(OpenError::new(format!(
                "{shown} lacks pgvector, which this role may not create; let a superuser run \
                 `create extension vector;` once in this database"
            ))))
        }
        created => Ok(created?),
    }
}

async fn apply(transaction: &Transaction<'_>, step: &Migration, ctx: &Ctx) -> Result<(), Error> {
    let now = ctx.now().as_micros();
    transaction.batch_execute(step.sql).await?;
    if step.version == 1 {
        let secret = ctx.random::<32>();
        transaction.execute_typed(INSERT_INSTALLATION, params![&secret[..], now]).await?;
        transaction
            .execute_typed(INSERT_DEFAULT_PROJECT, params![ProjectId::DEFAULT.uuid(), DEFAULT_PROJECT, now])
            .await?;
    }
    if step.version == 2 {
        transaction.execute_typed(INSERT_TEXT_INDEX, params![ANALYSER_VERSION]).await?;
    }
    transaction
        .execute_typed(INSERT_MIGRATION, params![step.version, step.name, step.checksum(), step.serves_from, now])
        .await?;
    Ok(())
}

/// Whether another run may succeed: a table was in use, or another starter made the runner's
/// tables at the same moment.
fn is_in_the_way(error: &Error) -> bool {
    let passing = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::UNIQUE_VIOLATION,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
    ];
    error.code().is_some_and(|code| passing.contains(code))
}

fn refusal(error: &Error, lacking: usize, state: &State, shown: &str) -> OpenError {
    let code = error.code();
    if code == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return OpenError::new(format!(
            "{shown} lacks {lacking} migration(s), which this role may not apply: {}; name the owner of schema `{}` in \
             MIGRATE_DATABASE_URL",
            described(error),
            state.schema
        ));
    }
    if code == Some(&SqlState::LOCK_NOT_AVAILABLE) {
        return OpenError::new(format!(
            "{shown} has tables in use that a migration waited for in vain; end the transactions that hold them \
             (pg_stat_activity) and try again"
        ));
    }
    open_error(shown, error)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn files(folder: &str) -> Vec<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_step_is_a_file_and_has_the_name_it_has_in_the_other_engine() {
        let steps: Vec<_> = MIGRATIONS.iter().map(|step| format!("{:04}_{}.sql", step.version, step.name)).collect();
        assert_eq!(files("migrations"), steps);
        assert_eq!(files("../chatstore-sqlite/migrations"), steps);
        for (n, step) in MIGRATIONS.iter().enumerate() {
            assert_eq!(step.version, i64::try_from(n).unwrap() + 1);
        }
    }

    #[test]
    fn the_list_of_tables_is_whole() {
        let mut tables: Vec<_> = MIGRATIONS
            .iter()
            .flat_map(|step| step.sql.lines())
            .filter_map(|line| line.strip_prefix("create table ")?.split([' ', '(']).next())
            .collect();
        tables.sort_unstable();
        assert_eq!(tables, TABLES);
    }
}
