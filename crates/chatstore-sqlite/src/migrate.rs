//! Bringing a file to the newest schema: forward only, in one transaction, safe to repeat.

use std::path::Path;

use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::migrations::{self, AppliedMigration, Migration, MigrationStatus, OpenError};
use chatstore_core::projects::DEFAULT_PROJECT;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::connection;
use crate::error::open_error_at;

const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "base", sql: include_str!("../migrations/0001_base.sql"), serves_from: 1 },
    // A binary before it would blank messages and leave their words in the index.
    Migration { version: 2, name: "search", sql: include_str!("../migrations/0002_search.sql"), serves_from: 2 },
    // A binary before it would serve deleted projects and forget the bytes that quotas count.
    Migration { version: 3, name: "access", sql: include_str!("../migrations/0003_access.sql"), serves_from: 3 },
    // A binary beside or after it that looks at no records would do again what was done.
    Migration {
        version: 4,
        name: "idempotency",
        sql: include_str!("../migrations/0004_idempotency.sql"),
        serves_from: 4,
    },
];

/// Marks a SQLite file as ours: `CHST`.
const APPLICATION_ID: i32 = 0x4348_5354;

const CREATE_SCHEMA_MIGRATIONS: &str = "create table if not exists schema_migrations (
    version integer primary key,
    name text not null,
    checksum text not null,
    serves_from integer not null,
    applied_at integer not null
) strict";
const SELECT_MIGRATIONS: &str =
    "select version, name, checksum, serves_from, applied_at from schema_migrations order by version";
/// One statement, so that a migration that commits meanwhile is seen whole or not at all.
const SELECT_OWNER: &str = "select application_id, (select count(*) from sqlite_schema) from pragma_application_id";
const INSERT_MIGRATION: &str =
    "insert into schema_migrations (version, name, checksum, serves_from, applied_at) values (?1, ?2, ?3, ?4, ?5)";
const INSERT_INSTALLATION: &str = "insert into installation (only_row, cursor_secret, created_at) values (1, ?1, ?2)";
const INSERT_DEFAULT_PROJECT: &str = "insert into projects (project_id, name, created_at) values (?1, ?2, ?3)";

/// Applies what is pending to the file at `path`, made if absent, and returns the names of the
/// steps applied.
///
/// # Errors
/// A sentence for the operator: the file is foreign, too new, changed, unwritable or damaged.
pub fn migrate(path: &Path, ctx: &Ctx) -> Result<Vec<&'static str>, OpenError> {
    connection::prepare_directory(path)?;
    let mut connection = connection::open_migrator(path)?;
    refuse_foreign(&connection, path)?;
    connection::set_up_writing(&connection, "full").map_err(open_error_at(path))?;
    let at = open_error_at(path);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&at)?;
    let applied = applied(&transaction, path)?;
    migrations::refuse_unfit(MIGRATIONS, &applied, path.display())?;
    let pending = migrations::pending(MIGRATIONS, &applied);
    for step in &pending {
        apply(&transaction, step, ctx).map_err(&at)?;
    }
    transaction.commit().map_err(&at)?;
    Ok(pending.into_iter().map(|step| step.name).collect())
}

/// The steps known to this binary and those in the file at `path`, oldest first. A file that does
/// not exist has none.
///
/// # Errors
/// A sentence for the operator if the file is foreign or unreadable.
pub fn migration_status(path: &Path) -> Result<Vec<MigrationStatus>, OpenError> {
    let applied = if path.exists() {
        let connection = connection::open_reader(path)?;
        refuse_foreign(&connection, path)?;
        applied(&connection, path)?
    } else {
        Vec::new()
    };
    Ok(migrations::status(MIGRATIONS, applied))
}

/// Refuses a file that this binary cannot serve as it is.
pub(crate) fn require_current(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    refuse_foreign(connection, path)?;
    let applied = applied(connection, path)?;
    migrations::refuse_unfit(MIGRATIONS, &applied, path.display())?;
    migrations::refuse_pending(MIGRATIONS, &applied, path.display())
}

fn apply(transaction: &Connection, step: &Migration, ctx: &Ctx) -> Result<(), rusqlite::Error> {
    let now = ctx.now().as_micros();
    transaction.execute_batch(CREATE_SCHEMA_MIGRATIONS)?;
    transaction.execute_batch(step.sql)?;
    if step.version == 1 {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.execute(INSERT_INSTALLATION, params![ctx.random::<32>(), now])?;
        transaction.execute(INSERT_DEFAULT_PROJECT, params![ProjectId::DEFAULT.as_bytes(), DEFAULT_PROJECT, now])?;
    }
    transaction.execute(INSERT_MIGRATION, params![step.version, step.name, step.checksum(), step.serves_from, now])?;
    Ok(())
}

/// Refuses a file with tables that are not ours: nothing is ever written into it.
fn refuse_foreign(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let at = open_error_at(path);
    let map = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i32>(0)?, row.get::<_, i64>(1)?));
    let (id, tables) = connection.query_row(SELECT_OWNER, (), map).map_err(&at)?;
    if id != APPLICATION_ID && (id != 0 || tables > 0) {
        return Err(OpenError::new(format!(
            "{} is a database of another program; name another file in DATABASE_URL",
            path.display()
        )));
    }
    Ok(())
}

fn applied(connection: &Connection, path: &Path) -> Result<Vec<AppliedMigration>, OpenError> {
    let at = open_error_at(path);
    let table = connection
        .query_row("select 1 from sqlite_schema where name = 'schema_migrations'", (), |_| Ok(()))
        .optional()
        .map_err(&at)?;
    if table.is_none() {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare(SELECT_MIGRATIONS).map_err(&at)?;
    let rows = statement.query_map((), |row| {
        Ok(AppliedMigration {
            version: row.get(0)?,
            name: row.get(1)?,
            checksum: row.get(2)?,
            serves_from: row.get(3)?,
            applied_at: row.get(4)?,
        })
    });
    rows.and_then(Iterator::collect).map_err(&at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_fresh_file_is_made_and_a_second_run_does_nothing() {
        let folder = folder();
        let path = folder.path().join("a/b/chatstore.db");
        assert_eq!(migration_status(&path).unwrap()[0].applied_at, None);
        assert_eq!(migrate(&path, &Ctx::system()).unwrap(), ["base", "search", "access", "idempotency"]);
        assert_eq!(migrate(&path, &Ctx::system()).unwrap(), Vec::<&str>::new());
        assert!(migration_status(&path).unwrap()[0].applied_at.is_some());
    }

    #[test]
    fn many_starters_migrate_once() {
        let folder = folder();
        let path = folder.path().join("chatstore.db");
        let starters: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || migrate(&path, &Ctx::system()).unwrap().len())
            })
            .collect();
        assert_eq!(starters.into_iter().map(|starter| starter.join().unwrap()).sum::<usize>(), MIGRATIONS.len());
    }

    #[test]
    fn files_that_are_not_ours_are_left_alone() {
        let folder = folder();
        let text = folder.path().join("notes.txt");
        std::fs::write(&text, "these are my notes, not a database, and they are long enough".repeat(20)).unwrap();
        assert!(migrate(&text, &Ctx::system()).unwrap_err().to_string().contains("not a SQLite database"));
        let foreign = folder.path().join("foreign.db");
        Connection::open(&foreign).unwrap().execute_batch("create table mine (a)").unwrap();
        let before = std::fs::read(&foreign).unwrap();
        assert!(migrate(&foreign, &Ctx::system()).unwrap_err().to_string().contains("another program"));
        assert_eq!(std::fs::read(&foreign).unwrap(), before);
    }

    #[test]
    fn a_newer_schema_is_refused_unless_it_still_serves_this_binary() {
        let folder = folder();
        let path = folder.path().join("chatstore.db");
        migrate(&path, &Ctx::system()).unwrap();
        let connection = Connection::open(&path).unwrap();
        connection.execute(INSERT_MIGRATION, params![99, "expanded", "x", 3, 0]).unwrap();
        assert_eq!(migrate(&path, &Ctx::system()).unwrap(), Vec::<&str>::new());
        require_current(&connection, &path).unwrap();
        connection.execute(INSERT_MIGRATION, params![100, "contracted", "x", 99, 0]).unwrap();
        assert!(migrate(&path, &Ctx::system()).unwrap_err().to_string().contains("newer Chatstore"));
    }

    #[test]
    fn versions_rise_by_one() {
        for (n, step) in MIGRATIONS.iter().enumerate() {
            assert_eq!(step.version, i64::try_from(n).unwrap() + 1);
        }
    }
}
