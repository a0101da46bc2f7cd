//! PostgreSQL's errors as ours, by their SQLSTATE (PostgreSQL manual, appendix A).

use std::error::Error as _;

use chatstore_core::store::StoreError;
use tokio_postgres::Error;
use tokio_postgres::error::{Severity, SqlState};

/// Whether the connection is of no use after this error.
pub(crate) fn is_lost(error: &Error) -> bool {
    match error.as_db_error() {
        Some(answer) => {
            // A server that has become a standby stays one.
            is_ended(error) || *answer.code() == SqlState::READ_ONLY_SQL_TRANSACTION
        }
        // What could not be converted is our matter; everything else is the line.
        None => error.is_closed() || io_source(error).is_some(),
    }
}

/// Whether the server ends the connection with this error.
fn is_ended(error: &Error) -> bool {
    let severity = error.as_db_error().and_then(|answer| answer.parsed_severity());
    matches!(severity, Some(Severity::Fatal | Severity::Panic))
}

/// Whether the same may succeed in a moment, on another connection.
pub(crate) fn is_passing(error: &Error) -> bool {
    let Some(code) = error.code() else { return is_lost(error) };
    let passing = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    // A connection that the server ends for its own reasons is followed by one that may do.
    let ended = is_ended(error) && !["28", "3D", "42"].iter().any(|class| code.code().starts_with(class));
    passing.contains(code) || code.code().starts_with("08") || ended
}

/// The contract's name for an error.
pub(crate) fn store_error(error: &Error) -> StoreError {
    let Some(answer) = error.as_db_error() else {
        return match is_lost(error) {
            true => StoreError::Unavailable { reason: described(error) },
            false => StoreError::internal(described(error)),
        };
    };
    if *answer.code() == SqlState::UNIQUE_VIOLATION
        && let Some(field) = answer.constraint().and_then(conflict_field)
    {
        return StoreError::Conflict { field };
    }
    let reason = || described(error);
    // A name for a statement that the connection does not know, or knows already: a pooler hands out another each time.
    if [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT].contains(answer.code()) {
        let advice = "behind a pooler in transaction mode set POSTGRES_PREPARED_STATEMENTS=false";
        return StoreError::Unavailable { reason: format!("{}; {advice}", reason()) };
    }
    match answer.code().code() {
        "53100" => StoreError::Full,
        "40001" | "40P01" | "55P03" => StoreError::Busy,
        // Rights and tables are the operator's; the rest passes or is the machine's.
        "42501" | "42P01" | "3F000" | "25006" | "57014" => StoreError::Unavailable { reason: reason() },
        code if ["08", "28", "53", "57", "58", "XX"].iter().any(|class| code.starts_with(class)) => {
            StoreError::Unavailable { reason: reason() }
        }
        _ => StoreError::internal(reason()),
    }
}

/// The error for the log. What PostgreSQL adds as detail may quote a row, and stays out.
pub(crate) fn described(error: &Error) -> String {
    match (error.as_db_error(), io_source(error)) {
        (Some(answer), _) => format!("{} ({})", answer.message(), answer.code().code()),
        (None, Some(io)) => format!("{error}: {io}"),
        (None, None) => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

fn io_source(error: &Error) -> Option<&std::io::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

/// The wire field that a unique index guards.
fn conflict_field(constraint: &str) -> Option<&'static str> {
    [
        ("sessions_external_id", "external_id"),
        ("messages_external_id", "external_id"),
        ("projects_name_key", "name"),
        ("sessions_pkey", "session_id"),
        ("messages_message_id", "message_id"),
    ]
    .into_iter()
    .find_map(|(index, field)| (constraint == index).then_some(field))
}
