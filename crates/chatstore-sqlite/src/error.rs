//! SQLite's errors as ours.

use std::path::{Path, PathBuf};

use chatstore_core::store::StoreError;
use rusqlite::{Error, ErrorCode, ffi};

/// Why a file cannot be opened as a store: a sentence for the operator.
#[derive(Debug)]
pub struct OpenError {
    message: String,
}

impl OpenError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::new(format!("cannot use {}: {error}", path.display()))
    }

    pub(crate) fn sqlite(path: &Path, error: &Error) -> Self {
        let shown = path.display();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                Self::new(format!("{shown} is not a SQLite database; name another file in DATABASE_URL"))
            }
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                Self::new(format!("{shown} or its folder cannot be written; check their owner and permissions"))
            }
            Some(ErrorCode::CannotOpen) => Self::new(format!(
                "{shown} cannot be opened; check that the file exists and that it and its folder can be read and written"
            )),
            Some(ErrorCode::DatabaseCorrupt) => Self::new(format!("{shown} is damaged; restore a backup")),
            Some(ErrorCode::SystemIoFailure)
                if error.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_IOERR_SHMMAP) =>
            {
                Self::new(format!("the file system of {shown} cannot hold a write-ahead log; use a local disk"))
            }
            Some(ErrorCode::DiskFull) => Self::new(format!("the disk of {shown} is full")),
            Some(ErrorCode::DatabaseBusy) => {
                Self::new(format!("{shown} is locked by another process; try again when it has finished"))
            }
            _ => Self::new(format!("{shown} cannot be used: {error}")),
        }
    }

    /// Maps an error of SQLite on this file.
    pub(crate) fn at(path: &Path) -> impl Fn(Error) -> Self {
        let path = PathBuf::from(path);
        move |error| Self::sqlite(&path, &error)
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpenError {}

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
