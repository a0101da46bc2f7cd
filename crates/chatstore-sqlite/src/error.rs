//! SQLite's errors as ours.

use std::path::{Path, PathBuf};

use chatstore_core::migrations::OpenError;
use chatstore_core::store::StoreError;
use rusqlite::{Error, ErrorCode, ffi};

/// Why the operating system keeps a file from being used.
pub(crate) fn file_error(path: &Path, error: &std::io::Error) -> OpenError {
    OpenError::new(format!("cannot use {}: {error}", path.display()))
}

/// Why SQLite cannot use the file, and what to do.
pub(crate) fn open_error(path: &Path, error: &Error) -> OpenError {
    let shown = path.display();
    OpenError::new(match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            format!("{shown} is not a SQLite database; name another file in DATABASE_URL")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            format!("{shown} or its folder cannot be written; check their owner and permissions")
        }
        Some(ErrorCode::CannotOpen) => format!(
            "{shown} cannot be opened; check that the file exists and that it and its folder can be read and written"
        ),
        Some(ErrorCode::DatabaseCorrupt) => format!("{shown} is damaged; restore a backup"),
        Some(ErrorCode::SystemIoFailure)
            if error.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_IOERR_SHMMAP) =>
        {
            format!("the file system of {shown} cannot hold a write-ahead log; use a local disk")
        }
        Some(ErrorCode::DiskFull) => format!("the disk of {shown} is full"),
        Some(ErrorCode::DatabaseBusy) => {
            format!("{shown} is locked by another process; try again when it has finished")
        }
        _ => format!("{shown} cannot be used: {error}"),
    })
}

/// Maps an error of SQLite on this file.
pub(crate) fn open_error_at(path: &Path) -> impl Fn(Error) -> OpenError {
    let path = PathBuf::from(path);
    move |error| open_error(&path, &error)
}

/// What an error of SQLite means for the store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The statement failed; the next may succeed.
    Statement,
    /// Nothing can be trusted any more: a failed fsync may have dropped what was acknowledged.
    Fatal,
}

pub(crate) fn severity(error: &Error) -> Severity {
    let Error::SqliteFailure(failure, _) = error else {
        return Severity::Statement;
    };
    match failure.code {
        ErrorCode::SystemIoFailure if !is_full(failure) => Severity::Fatal,
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::ReadOnly => Severity::Fatal,
        _ => Severity::Statement,
    }
}

/// A full disk also shows when the shared-memory index cannot grow.
fn is_full(failure: &ffi::Error) -> bool {
    failure.code == ErrorCode::DiskFull || failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE
}

/// The contract's name for an error of SQLite.
pub(crate) fn store_error(error: Error) -> StoreError {
    let Error::SqliteFailure(failure, message) = &error else {
        return StoreError::internal(error);
    };
    if is_full(failure) {
        return StoreError::Full;
    }
    match failure.code {
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::OperationInterrupted => StoreError::Busy,
        ErrorCode::ConstraintViolation => match conflict_field(message.as_deref().unwrap_or_default()) {
            Some(field) => StoreError::Conflict { field },
            None => StoreError::internal(error),
        },
        _ if severity(&error) == Severity::Fatal => StoreError::Unavailable { reason: error.to_string() },
        _ => StoreError::internal(error),
    }
}

/// The wire field that a unique index guards.
fn conflict_field(message: &str) -> Option<&'static str> {
    [
        ("sessions_external_id", "external_id"),
        ("messages_external_id", "external_id"),
        ("projects.name", "name"),
        ("sessions.session_id", "session_id"),
        ("messages.message_id", "message_id"),
    ]
    .into_iter()
    .find_map(|(index, field)| message.contains(index).then_some(field))
}
