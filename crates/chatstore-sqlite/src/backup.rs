//! A copy of a database file, checked before it is called a backup.

use std::fs::File;
use std::path::{Path, PathBuf};

use chatstore_core::migrations::OpenError;
use rusqlite::{Connection, ErrorCode, params};

use crate::connection;
use crate::error::{file_error, open_error, open_error_at};
use crate::migrate::require_current;

const VACUUM_INTO: &str = "vacuum into ?1";
const INTEGRITY_CHECK: &str = "pragma integrity_check(1)";
const COUNT_SESSIONS: &str = "select count(*) from sessions";
const COUNT_MESSAGES: &str = "select count(*) from messages";

/// What a verified backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Sessions, tombstones included.
    pub sessions: i64,
    /// Messages, tombstones included.
    pub messages: i64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Writes a consistent copy of `database` to `target` while it may be in use, opens the copy and
/// checks it. `target` appears only when the check has passed.
///
/// # Errors
/// A sentence for the operator: `target` exists, the disk is full, or the copy is damaged.
pub fn backup(database: &Path, target: &Path) -> Result<Backup, OpenError> {
    if target.exists() {
        return Err(OpenError::new(format!("{} exists; a backup never overwrites", target.display())));
    }
    let partial = partial_path(target);
    connection::create_private(&partial).map_err(|error| {
        OpenError::new(format!("cannot write {}: {error}; check that its folder exists", target.display()))
    })?;
    let copied = copy(database, &partial).and_then(|()| verify(&partial));
    let moved = copied.and_then(|backup| {
        publish(&partial, target).map_err(|error| file_error(target, &error))?;
        sync_folder(target).map_err(|error| file_error(target, &error))?;
        Ok(backup)
    });
    let _ = std::fs::remove_file(&partial);
    moved
}

/// A name of this process, so that two backups at once do not meet.
fn partial_path(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    PathBuf::from(name)
}

/// Gives the copy its name without replacing a file that has appeared meanwhile. Where the file
/// system has no hard links, that is not quite certain.
fn publish(partial: &Path, target: &Path) -> std::io::Result<()> {
    match std::fs::hard_link(partial, target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists && !target.exists() => {
            std::fs::rename(partial, target)
        }
        result => result,
    }
}

fn copy(database: &Path, partial: &Path) -> Result<(), OpenError> {
    let source = connection::open_reader(database)?;
    require_current(&source, database)?;
    // Nothing of ours is written: `vacuum into` counts as a write to the copy alone.
    source.pragma_update(None, "query_only", false).map_err(open_error_at(database))?;
    let name = partial.to_str().ok_or_else(|| OpenError::new("the name of a backup must be UTF-8"))?;
    source.execute(VACUUM_INTO, params![name]).map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => open_error(partial, &error),
        _ => open_error(database, &error),
    })?;
    File::open(partial).and_then(|file| file.sync_all()).map_err(|error| file_error(partial, &error))
}

fn verify(partial: &Path) -> Result<Backup, OpenError> {
    let copy = connection::open_reader(partial)?;
    let at = open_error_at(partial);
    require_current(&copy, partial)?;
    let verdict: String = copy.query_row(INTEGRITY_CHECK, (), |row| row.get(0)).map_err(&at)?;
    if verdict != "ok" {
        return Err(OpenError::new(format!("the copy is damaged and was dropped: {verdict}")));
    }
    let count = |copy: &Connection, sql| copy.query_row(sql, (), |row| row.get(0)).map_err(&at);
    let bytes = std::fs::metadata(partial).map_err(|error| file_error(partial, &error))?.len();
    Ok(Backup { sessions: count(&copy, COUNT_SESSIONS)?, messages: count(&copy, COUNT_MESSAGES)?, bytes })
}

fn sync_folder(target: &Path) -> std::io::Result<()> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
