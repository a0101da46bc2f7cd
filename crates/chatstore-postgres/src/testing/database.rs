//! A database for each test, made from a template that is migrated once.

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use chatstore_core::clock::Ctx;
use sha2::{Digest as _, Sha256};
use tokio_postgres::{Client, Error, NoTls};

use super::variable;
use crate::migrate::{MIGRATIONS, migrate};

/// The role of the server under test, which holds nothing but the grants of [`GRANTS`]. It has a
/// password for servers that ask for one.
const APP_ROLE: &str = "chatstore_test_app";
/// The rights of the server's role, as operators give them.
const GRANTS: &str = include_str!("../../grants.sql");

/// One at a time makes the template, of all processes that test on a server.
const LOCK: &str = "select pg_advisory_lock(hashtext('chatstore tests: template'))";
const SELECT_DATABASE: &str = "select from pg_database where datname = $1";
/// The owner becomes a member, for only members may end the connections of a database that is dropped.
const CREATE_APP_ROLE: &str = "do $$ begin
    if not exists (select from pg_roles where rolname = 'chatstore_test_app') then
        create role chatstore_test_app login password 'chatstore_test_app';
        grant chatstore_test_app to current_user;
    end if;
end $$";

const DROP_TIMEOUT: Duration = Duration::from_secs(30);

/// A database of one test, dropped with this value.
///
/// Everything panics with a sentence: a test without its database has failed.
#[derive(Debug)]
pub struct TestDatabase {
    server: String,
    name: String,
}

impl TestDatabase {
    /// A migrated database on the server of `TEST_POSTGRES_URL`.
    pub async fn create() -> Self {
        Self::create_on(&variable("TEST_POSTGRES_URL")).await
    }

    /// A database with nothing in it on the server of `TEST_POSTGRES_URL`.
    pub async fn create_empty() -> Self {
        let server = variable("TEST_POSTGRES_URL");
        // The role of [`Self::url`] comes with the template.
        let (client, _) = prepare(&server).await;
        Self::create_from("template1", server, &client).await
    }

    /// A migrated database on the server at `server`, the URL of a superuser.
    pub async fn create_on(server: &str) -> Self {
        let (client, template) = prepare(server).await;
        Self::create_from(&template, server.to_owned(), &client).await
    }

    async fn create_from(template: &str, server: String, client: &Client) -> Self {
        let name = format!("chatstore_test_{}", hexadecimal(&Ctx::system().random::<12>()));
        // Copying the files takes half as long as writing their pages to the log.
        run(client, &format!("create database {name} template {template} strategy file_copy")).await;
        Self { server, name }
    }

    /// The URL for a role that may do what the server may: nothing but read and write rows.
    pub fn url(&self) -> String {
        url_of(&self.server, Some(&format!("{APP_ROLE}:{APP_ROLE}")), &self.name)
    }

    /// The URL for the role that owns the database and may migrate it.
    pub fn owner_url(&self) -> String {
        url_of(&self.server, None, &self.name)
    }

    /// The name of the database.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let sql = format!("drop database if exists {} with (force)", self.name);
        let server = self.server.clone();
        let dropping = async move { open(&server).await?.batch_execute(&sql).await };
        // A thread, for the runtime of the test may be the one that drops this.
        let thread = thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            // A failure is nobody's: the server may have been stopped, which drops all.
            let _ = runtime.block_on(async { tokio::time::timeout(DROP_TIMEOUT, dropping).await });
            Ok::<_, std::io::Error>(())
        });
        let _ = thread.join();
    }
}

/// The name changes with all that makes the schema.
fn template_name() -> String {
    let mut digest = Sha256::new();
    for migration in MIGRATIONS {
        digest.update(migration.checksum());
    }
    digest.update(include_str!("../migrate.rs"));
    digest.update(GRANTS);
    format!("chatstore_template_{}", hexadecimal(&digest.finalize()[..8]))
}

/// A connection to a server that has the role and the template, and the template's name.
async fn prepare(server: &str) -> (Client, String) {
    let template = template_name();
    let client = connect(server).await;
    if !exists(&client, &template).await {
        make_template(server, &client, &template).await;
    }
    (client, template)
}

/// Makes the template, unless another process has done so in the meantime.
async fn make_template(server: &str, client: &Client, template: &str) {
    run(client, LOCK).await;
    if !exists(client, template).await {
        let unfinished = format!("{template}_unfinished");
        run(client, CREATE_APP_ROLE).await;
        run(client, &format!("drop database if exists {unfinished} with (force)")).await;
        run(client, &format!("create database {unfinished}")).await;
        let url = url_of(server, None, &unfinished);
        migrate(&url, &Ctx::system()).await.unwrap_or_else(|error| panic!("{error}"));
        run(&connect(&url).await, &GRANTS.replace(":\"role\"", APP_ROLE)).await;
        // The new name tells that it is complete.
        run(client, &format!("alter database {unfinished} rename to {template}")).await;
    }
    run(client, "select pg_advisory_unlock_all()").await;
}

async fn open(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn connect(url: &str) -> Client {
    open(url).await.unwrap_or_else(|error| panic!("the test's server cannot be reached: {error:?}"))
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

async fn exists(client: &Client, database: &str) -> bool {
    let found = client.query_opt(SELECT_DATABASE, &[&database]).await;
    found.unwrap_or_else(|error| panic!("{SELECT_DATABASE}: {error:?}")).is_some()
}

/// The URL of another database on the same server, and for another login `USER:PASSWORD` if one is given.
fn url_of(server: &str, login: Option<&str>, database: &str) -> String {
    let (place, options) = server.split_at(server.find('?').unwrap_or(server.len()));
    let (scheme, rest) = place.split_once("://").unwrap_or(("postgres", place));
    let authority = rest.split('/').next().unwrap_or(rest);
    let (own_login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    format!("{scheme}://{}@{hosts}/{database}{options}", login.unwrap_or(own_login))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_its_server_and_options() {
        let server = "postgres://me:secret@db.example:6543/postgres?sslmode=require";
        assert_eq!(url_of(server, None, "x"), "postgres://me:secret@db.example:6543/x?sslmode=require");
        assert_eq!(url_of(server, Some("a:b"), "x"), "postgres://a:b@db.example:6543/x?sslmode=require");
        assert_eq!(url_of("postgres://me@%2Ftmp%2Fpg:5432", Some("a:b"), "x"), "postgres://a:b@%2Ftmp%2Fpg:5432/x");
    }
}
