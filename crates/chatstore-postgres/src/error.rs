//! Why a database cannot be opened, as sentences for the operator.

use std::error::Error as _;
use std::io;

use rustls::CertificateError;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::sqlstate::{described, is_passing};

pub use chatstore_core::migrations::OpenError;

/// What the standard library says of a name that does not resolve.
const LOOKUP_FAILED: &str = "lookup address";

/// Why the database cannot be opened, and what to do.
pub(crate) fn open_error(shown: &str, error: &Error) -> OpenError {
    let sentence = sentence(shown, error);
    let passing = match error.as_db_error() {
        Some(_) => is_passing(error),
        None => is_not_reached(error),
    };
    if passing { sentence.passing() } else { sentence }
}

/// Whether no server answered at all; one that answers wrongly goes on to do so.
fn is_not_reached(error: &Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound, TimedOut};
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    io.is_some_and(|io| [ConnectionRefused, ConnectionReset, NotFound, TimedOut].contains(&io.kind()))
        || error.source().is_some_and(|source| source.to_string().contains(LOOKUP_FAILED))
}

fn sentence(shown: &str, error: &Error) -> OpenError {
    let Some(db) = error.as_db_error() else {
        return OpenError::new(unreachable_sentence(shown, error));
    };
    let message = db.message();
    let code = db.code();
    OpenError::new(if message.ends_with("no encryption") {
        format!("{shown} refuses this connection without TLS: {message}; set sslmode=require in its URL")
    } else if [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION].contains(code) {
        format!("{shown} refuses the user or the password of its URL: {message}; correct the URL or pg_hba.conf")
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        format!("{shown} does not exist; create the database or correct its URL")
    } else if *code == SqlState::TOO_MANY_CONNECTIONS {
        format!("{shown} has no connection left: {message}; raise max_connections or use fewer")
    } else if *code == SqlState::CANNOT_CONNECT_NOW {
        format!("{shown} accepts no connections now: {message}; try again in a moment")
    } else if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        format!("{shown} cannot be written, as a standby: {message}; name the primary server in its URL")
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        format!("{shown} does not give this role the rights it needs: {message}; grant them")
    } else if *code == SqlState::DISK_FULL {
        format!("the disk of {shown} is full")
    } else {
        format!("{shown} cannot be used: {}", described(error))
    })
}

/// Maps an error on this database.
pub(crate) fn open_error_at(shown: &str) -> impl Fn(Error) -> OpenError {
    move |error| open_error(shown, &error)
}

/// The sentence for an error that is no answer of the server.
fn unreachable_sentence(shown: &str, error: &Error) -> String {
    let source = error.source().map(ToString::to_string).unwrap_or_default();
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    if let Some(tls) = io.and_then(|io| io.get_ref()).and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return tls_sentence(shown, tls);
    }
    if source == "server does not support TLS" {
        return format!(
            "{shown} does not offer TLS, which its URL demands; turn `ssl` on there or set sslmode=disable"
        );
    }
    if source == "password missing" {
        return format!("{shown} asks for a password and its URL has none; write postgres://USER:PASSWORD@HOST/NAME");
    }
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            format!("{shown} refuses connections; check host and port in its URL and that PostgreSQL runs there")
        }
        Some(io::ErrorKind::NotFound) => {
            format!("{shown} has no socket there; check folder and port in its URL and that PostgreSQL runs")
        }
        Some(io::ErrorKind::TimedOut) => not_in_time(shown),
        _ if source.contains(LOOKUP_FAILED) => {
            format!("{shown} has a host whose name leads nowhere ({source}); correct its URL")
        }
        _ => format!("{shown} cannot be reached: {}", described(error)),
    }
}

/// The sentence for a server that says nothing.
pub(crate) fn not_in_time(shown: &str) -> String {
    format!("{shown} does not answer; check host and port in its URL, the firewall and that PostgreSQL runs there")
}

fn tls_sentence(shown: &str, error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(fault) = error else {
        return format!("{shown} cannot be reached by TLS: {error}");
    };
    match fault {
        CertificateError::UnknownIssuer | CertificateError::BadSignature | CertificateError::Other(_) => format!(
            "{shown} shows a certificate of an unknown authority ({error}); name the authority's file in its URL with \
             sslrootcert="
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "{shown} shows a certificate for another host ({error}); use a name that it holds or sslmode=verify-ca"
        ),
        _ => format!("{shown} shows a certificate that cannot be trusted: {error}"),
    }
}
