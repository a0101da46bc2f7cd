//! Migrating a real database: once, whole or not at all, and never another program's.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chatstore_core::clock::Ctx;
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{PostgresOptions, PostgresStore, migrate, migration_status};
use tokio_postgres::{Client, NoTls};

/// The role of [`TestDatabase::url`], which may read and write rows.
const ROLE: &str = "chatstore_test_app";
/// As a fresh database is, but that the role is there and pgvector is not.
const EMPTY: &str = "drop schema public cascade; create schema public; grant usage on schema public to public";
/// As a database is in which a migrator has made its own tables and nothing more.
const FORGET: &str = "delete from schema_migrations; drop table api_keys, audit_events, installation, messages, projects, \
    session_erasures, session_metadata, sessions, embedding_jobs, embedding_models, embedding_source, \
    message_embeddings, message_texts, reindexes, retired_embedding_models, text_index, idempotency_records";
/// All steps, oldest first.
const STEPS: [&str; 4] = ["base", "search", "access", "idempotency"];

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn execute(database: &TestDatabase, sql: &str) {
    connect(&database.owner_url()).await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn count(database: &TestDatabase, sql: &str) -> i64 {
    connect(&database.owner_url()).await.query_one(sql, &[]).await.unwrap().get(0)
}

/// A database without tables and without pgvector, and with the role.
async fn emptied() -> TestDatabase {
    let database = TestDatabase::create().await;
    execute(&database, EMPTY).await;
    database
}

/// The tables of the schema `public`.
async fn tables(database: &TestDatabase) -> Vec<String> {
    let sql = "select array(select relname::text from pg_class where relkind = 'r' \
        and relnamespace = 'public'::regnamespace order by 1)";
    connect(&database.owner_url()).await.query_one(sql, &[]).await.unwrap().get(0)
}

/// The transactions of migrators that wait for a lock, by when they began.
async fn waits_of_migrators(database: &TestDatabase) -> Vec<String> {
    let sql = "select xact_start::text from pg_stat_activity where datname = current_database() \
        and application_name = 'chatstore' and wait_event_type = 'Lock'";
    let rows = connect(&database.owner_url()).await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The sentence with which migrating is refused, after a check of its form.
/// Asks until it is so.
async fn within(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it takes too long");
    }
}

async fn refusal(url: &str) -> String {
    let sentence = migrate(url, &Ctx::system()).await.expect_err("migrating is refused").to_string();
    assert!(sentence.starts_with("postgres://") && sentence.lines().count() == 1, "{sentence}");
    sentence
}

fn has_all(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
    }
}

fn with_option(url: &str, option: &str) -> String {
    format!("{url}{}{option}", if url.contains('?') { '&' } else { '?' })
}

async fn applied_steps(url: &str) -> Vec<&'static str> {
    migrate(url, &Ctx::system()).await.unwrap()
}

#[tokio::test]
async fn a_fresh_database_is_migrated_and_a_second_run_does_nothing() {
    let database = emptied().await;
    let url = database.owner_url();
    assert_eq!(migration_status(&url).await.unwrap()[0].applied_at, None);
    assert_eq!(tables(&database).await, Vec::<String>::new(), "a look at the status writes nothing");
    assert_eq!(applied_steps(&url).await, STEPS);
    assert_eq!(applied_steps(&url).await, Vec::<&str>::new());
    let status = migration_status(&url).await.unwrap();
    assert_eq!(status.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), STEPS);
    assert!(status[0].applied_at.is_some());
    assert_eq!(count(&database, "select count(*) from installation where octet_length(cursor_secret) = 32").await, 1);
    assert_eq!(count(&database, "select count(*) from projects where name = 'default'").await, 1);
    assert_eq!(count(&database, "select count(*) from pg_extension where extname = 'vector'").await, 1);
    PostgresStore::open(&PostgresOptions::new(url)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_starters_migrate_once() {
    let database = emptied().await;
    let starters: Vec<_> = (0..8)
        .map(|_| {
            let url = database.owner_url();
            tokio::spawn(async move { migrate(&url, &Ctx::system()).await.unwrap().len() })
        })
        .collect();
    let mut steps = 0;
    for starter in starters {
        steps += starter.await.unwrap();
    }
    assert_eq!(steps, migration_status(&database.owner_url()).await.unwrap().len());
}

#[tokio::test]
async fn a_newer_schema_is_refused_unless_it_still_serves_this_binary() {
    let database = TestDatabase::create().await;
    let options = PostgresOptions::new(database.owner_url());
    let insert = "insert into schema_migrations (version, name, checksum, serves_from, applied_at) values";
    execute(&database, &format!("{insert} (99, 'expanded', 'x', 1, 0)")).await;
    assert_eq!(applied_steps(&database.owner_url()).await, Vec::<&str>::new());
    PostgresStore::open(&options).await.unwrap();
    execute(&database, &format!("{insert} (100, 'contracted', 'x', 99, 0)")).await;
    has_all(&refusal(&database.owner_url()).await, &[database.name(), "schema 100", "newer Chatstore", "upgrade"]);
    let refused = PostgresStore::open(&options).await.err().expect("the schema is too new").to_string();
    has_all(&refused, &["newer Chatstore"]);
}

#[tokio::test]
async fn a_changed_step_is_refused() {
    let database = TestDatabase::create().await;
    execute(&database, "update schema_migrations set checksum = 'another' where version = 1").await;
    has_all(&refusal(&database.owner_url()).await, &["another build", "migration 1 `base`"]);
}

#[tokio::test]
async fn a_store_is_not_opened_before_its_steps_are_applied() {
    let database = emptied().await;
    let opened = PostgresStore::open(&PostgresOptions::new(database.owner_url())).await;
    has_all(&opened.err().expect("there are no tables").to_string(), &["lacks 4 migration", "chatstore migrate up"]);
}

#[tokio::test]
async fn a_role_without_rights_on_the_schema_starts_when_nothing_is_pending() {
    let database = TestDatabase::create().await;
    assert_eq!(applied_steps(&database.url()).await, Vec::<&str>::new());
    // With steps pending it is told who could apply them, before and after another has begun.
    execute(&database, EMPTY).await;
    let parts = ["lacks 4 migration", "permission denied", "owner of schema `public`", "MIGRATE_DATABASE_URL"];
    has_all(&refusal(&database.url()).await, &parts);
    assert_eq!(tables(&database).await, Vec::<String>::new());
    assert_eq!(applied_steps(&database.owner_url()).await, STEPS);
    execute(&database, FORGET).await;
    execute(&database, &format!("grant select on schema_migrations to {ROLE}")).await;
    has_all(&refusal(&database.url()).await, &parts);
}

#[tokio::test]
async fn a_migrator_that_goes_away_leaves_nothing_and_a_repeat_works() {
    let database = emptied().await;
    // Nobody sees the table, but a migration that would make another of its name must wait.
    let other = connect(&database.owner_url()).await;
    other.batch_execute("begin; create table sessions (a int)").await.unwrap();
    let url = database.owner_url();
    let migrator = tokio::spawn(async move { migrate(&url, &Ctx::system()).await });
    while waits_of_migrators(&database).await.is_empty() {
        assert!(!migrator.is_finished(), "{:?}", migrator.await);
    }
    migrator.abort();
    migrator.await.unwrap_err();
    other.batch_execute("rollback").await.unwrap();
    let there = "select count(*) from pg_stat_activity where datname = current_database() \
        and application_name = 'chatstore'";
    within(async || count(&database, there).await == 0).await;
    assert_eq!(tables(&database).await, ["migration_lock", "schema_migrations"]);
    assert_eq!(count(&database, "select count(*) from schema_migrations").await, 0);
    assert_eq!(count(&database, "select count(*) from pg_extension where extname = 'vector'").await, 0);
    assert_eq!(applied_steps(&database.owner_url()).await, STEPS);
}

#[tokio::test]
async fn a_migrator_waits_while_another_is_at_work() {
    let database = TestDatabase::create().await;
    execute(&database, FORGET).await;
    let other = connect(&database.owner_url()).await;
    other.batch_execute("begin; select from migration_lock for update").await.unwrap();
    let url = database.owner_url();
    let migrator = tokio::spawn(async move { migrate(&url, &Ctx::system()).await });
    let sql = "select query_start::text from pg_stat_activity where datname = current_database() \
        and application_name = 'chatstore' and state = 'idle' and query = 'ROLLBACK'";
    let mut looks = BTreeSet::new();
    while looks.len() < 2 {
        assert!(!migrator.is_finished(), "{:?}", migrator.await);
        let rows = other.query(sql, &[]).await.unwrap();
        looks.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        other.batch_execute("select pg_stat_clear_snapshot()").await.unwrap();
    }
    assert_eq!(tables(&database).await, ["migration_lock", "schema_migrations"]);
    other.batch_execute("rollback").await.unwrap();
    assert_eq!(migrator.await.unwrap().unwrap(), STEPS);
}

#[tokio::test]
async fn a_lock_that_is_held_for_a_while_is_waited_for_again() {
    let database = emptied().await;
    let other = connect(&database.owner_url()).await;
    other.batch_execute("begin; create table projects (a int)").await.unwrap();
    let url = database.owner_url();
    let migrator = tokio::spawn(async move { migrate(&url, &Ctx::system()).await });
    let mut waits = BTreeSet::new();
    within(async || {
        waits.extend(waits_of_migrators(&database).await);
        waits.len() >= 2
    })
    .await;
    other.batch_execute("rollback").await.unwrap();
    assert_eq!(migrator.await.unwrap().unwrap(), STEPS);
}

#[tokio::test]
async fn pgvector_that_the_role_may_not_create_is_asked_for() {
    let database = emptied().await;
    execute(&database, &format!("grant create on schema public to {ROLE}")).await;
    has_all(&refusal(&database.url()).await, &["pgvector", "superuser", "`create extension vector;`"]);
    execute(&database, "create extension vector").await;
    assert_eq!(applied_steps(&database.url()).await, STEPS);
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    for (sql, table) in [
        ("create table sessions (id text)", "sessions"),
        ("create table schema_migrations (version text primary key)", "schema_migrations"),
    ] {
        let database = emptied().await;
        execute(&database, sql).await;
        let parts = [&*format!("table `{table}` of another program"), "schema `public`", "another database"];
        has_all(&refusal(&database.owner_url()).await, &parts);
        assert_eq!(tables(&database).await, [table]);
        let opened = PostgresStore::open(&PostgresOptions::new(database.owner_url())).await;
        has_all(&opened.err().expect("the table is not ours").to_string(), &["another program"]);
    }
}

#[tokio::test]
async fn the_first_schema_of_the_search_path_is_used() {
    let database = emptied().await;
    execute(&database, "create schema chat; create table sessions (id text)").await;
    let url = with_option(&database.owner_url(), "options=-csearch_path%3Dchat");
    assert_eq!(applied_steps(&url).await, STEPS);
    assert_eq!(applied_steps(&url).await, Vec::<&str>::new());
    assert_eq!(tables(&database).await, ["sessions"]);
    PostgresStore::open(&PostgresOptions::new(url)).await.unwrap();
    let nowhere = with_option(&database.owner_url(), "options=-csearch_path%3Dnowhere");
    has_all(&refusal(&nowhere).await, &["no schema", "search_path"]);
}

#[tokio::test]
async fn an_encoding_that_cannot_hold_every_text_is_refused() {
    let neighbour = TestDatabase::create().await;
    let name = format!("{}_ascii", neighbour.name());
    let create = format!("create database {name} template template0 encoding 'SQL_ASCII' locale 'C'");
    execute(&neighbour, &create).await;
    let refused = migrate(&neighbour.owner_url().replace(neighbour.name(), &name), &Ctx::system()).await;
    execute(&neighbour, &format!("drop database {name} with (force)")).await;
    has_all(&refused.unwrap_err().to_string(), &["SQL_ASCII", "encoding 'UTF8'"]);
}
