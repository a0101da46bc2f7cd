//! A real PostgreSQL for tests: clusters started from its programs, and a database for each test.
//!
//! `cargo xtask test` fetches the programs, starts a cluster and names both to the tests:
//! `TEST_POSTGRES_URL` is the server that holds the databases of all tests, `TEST_POSTGRES_PROGRAMS`
//! the folder of the programs, for tests that start a cluster of their own to break it.

mod cluster;
mod database;
mod processes;

use std::path::PathBuf;

pub use cluster::{Cluster, Settings, Shutdown};
pub use database::TestDatabase;
pub use processes::server_can_enter;

/// The folder of PostgreSQL's programs, for tests that start a cluster of their own or run one of them.
pub fn programs() -> PathBuf {
    variable("TEST_POSTGRES_PROGRAMS").into()
}

/// A variable that names the server of the tests; without it a test has failed.
fn variable(name: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| {
        panic!(
            "{name} is not set: run `cargo xtask test`, or start a server with `cargo xtask postgres` and set what it \
             prints"
        )
    })
}
