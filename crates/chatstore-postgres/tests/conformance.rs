//! The contract suite on PostgreSQL, by a role that may only read and write rows: with statements
//! prepared, with unnamed ones as behind a pooler, and with one transaction for each append.

use std::sync::Arc;
use std::time::Duration;

use chatstore_core::conformance_tests;
use chatstore_core::store::Store;
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{AppendForm, PostgresOptions, PostgresStore};

async fn open(change: impl FnOnce(&mut PostgresOptions)) -> (Arc<dyn Store>, TestDatabase) {
    let database = TestDatabase::create().await;
    let mut options = PostgresOptions::new(database.url());
    options.connections_max = 4;
    // Writes that come at once wait for each other.
    options.acquire_timeout = Duration::from_secs(30);
    change(&mut options);
    let store = PostgresStore::open(&options).await.expect("a fresh database can be opened");
    (Arc::new(store), database)
}

mod prepared {
    use super::*;

    async fn open() -> (Arc<dyn Store>, TestDatabase) {
        super::open(|_| {}).await
    }

    conformance_tests!(open);
}

mod unnamed {
    use super::*;

    async fn open() -> (Arc<dyn Store>, TestDatabase) {
        super::open(|options| options.prepared_statements = false).await
    }

    conformance_tests!(open);
}

mod per_session {
    use super::*;

    async fn open() -> (Arc<dyn Store>, TestDatabase) {
        super::open(|options| options.append_form = AppendForm::PerSession).await
    }

    conformance_tests!(open);
}
