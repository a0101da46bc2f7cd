//! PostgreSQL: the server under test on a database of its own, beside pgbench running the same statements.
//!
//! Server and pgbench use the same kind of unix socket, the same tables and the same sessions.

mod append;
mod conversations;
mod database;
mod pgbench;
mod reads;
mod size;
mod statement;

use anyhow::Result;

use super::{Bench, server_process::ServerProcess};

pub(super) use append::append;
pub(super) use database::{Database, DatabaseServer};
pub(super) use pgbench::Pgbench;
pub(super) use reads::reads;
pub(super) use size::size;

/// Starts a server under test; the first one on a database migrates it.
pub(super) fn start_chatstore(bench: &Bench, name: &str, database: &Database) -> Result<ServerProcess> {
    let folder = bench.workspace.folder(name)?;
    ServerProcess::start_on(&bench.binary, &folder, &database.url())
}
