//! A real PostgreSQL for tests: clusters started from its programs, and a database for each test.
//!
//! `cargo xtask test` fetches the programs, starts a cluster and names both to the tests:
//! `TEST_POSTGRES_URL` is the server that holds the databases of all tests, `TEST_POSTGRES_PROGRAMS`
//! the folder of the programs, for tests that start a cluster of their own to break it.

mod cluster;
mod database;
mod processes;

pub use cluster::{Cluster, Settings, Shutdown};
pub use database::TestDatabase;
pub use processes::server_can_enter;
