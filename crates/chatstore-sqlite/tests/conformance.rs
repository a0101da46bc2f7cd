//! The contract suite on SQLite.

use std::sync::Arc;

use chatstore_core::clock::Ctx;
use chatstore_core::conformance_tests;
use chatstore_core::store::Store;
use chatstore_sqlite::{SqliteOptions, SqliteStore, migrate};
use tempfile::TempDir;

async fn open() -> (Arc<dyn Store>, TempDir) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("chatstore.db");
    migrate(&path, &Ctx::system()).expect("a fresh file can be migrated");
    let store = SqliteStore::open(&SqliteOptions::new(path)).expect("the file can be opened");
    (Arc::new(store), folder)
}

conformance_tests!(open);
