//! The clusters and databases that other tests stand on do what they promise.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use chatstore_postgres::testing::{Cluster, Settings, Shutdown, TestDatabase, programs};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

/// Set in the process of a test that is started again, to be killed.
const VICTIM: &str = "CHATSTORE_TEST_VICTIM";

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn count(url: &str) -> i64 {
    connect(url).await.query_one("select count(*) from marks", &[]).await.unwrap().get(0)
}

async fn mark(client: &Client) {
    client.batch_execute("create table if not exists marks (n int); insert into marks values (1)").await.unwrap();
}

/// The processes that name `folder` on their command line or as what they work in.
fn processes_of(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let process = entry.unwrap().path();
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let works_in = std::fs::read_link(process.join("cwd")).unwrap_or_default();
        if line.contains(folder.to_str().unwrap()) || works_in.starts_with(folder) {
            found.push(format!("{}: {line}", process.display()));
        }
    }
    found
}

#[tokio::test]
async fn a_cluster_keeps_its_data_through_stop_and_kill() {
    let mut cluster = Cluster::start(&programs(), Settings::durable()).unwrap();
    let url = cluster.url("postgres");
    mark(&connect(&url).await).await;

    cluster.stop(Shutdown::Fast).unwrap();
    tokio_postgres::connect(&url, NoTls).await.err().expect("nobody listens");
    cluster.start_again().unwrap();
    assert_eq!(count(&url).await, 1);

    let client = connect(&url).await;
    mark(&client).await;
    cluster.kill().unwrap();
    client.batch_execute("select 1").await.unwrap_err();
    cluster.start_again().unwrap();
    assert_eq!(count(&url).await, 2);

    cluster.restart(Shutdown::Immediate).unwrap();
    assert_eq!(count(&url).await, 2);
}

#[tokio::test]
async fn a_paused_cluster_answers_nobody_until_it_is_resumed() {
    let cluster = Cluster::start(&programs(), Settings::fast()).unwrap();
    let client = connect(&cluster.url("postgres")).await;
    cluster.pause().unwrap();
    let answer = client.query_one("select 1", &[]);
    tokio::pin!(answer);
    timeout(Duration::from_millis(100), &mut answer).await.expect_err("the connection's own process is stopped");
    let url = cluster.url("postgres");
    let newcomer = tokio_postgres::connect(&url, NoTls);
    timeout(Duration::from_millis(100), newcomer).await.err().expect("the process that lets others in is stopped");
    cluster.resume().unwrap();
    timeout(Duration::from_secs(10), answer).await.expect("it goes on").unwrap();
}

#[tokio::test]
async fn a_cluster_is_killed_and_dropped_also_while_it_is_paused() {
    let mut cluster = Cluster::start(&programs(), Settings::fast()).unwrap();
    cluster.pause().unwrap();
    cluster.kill().unwrap();
    cluster.start_again().unwrap();
    cluster.pause().unwrap();
    let folder = cluster.folder().to_owned();
    drop(cluster);
    assert!(!folder.exists());
    assert_eq!(processes_of(&folder), Vec::<String>::new());
}

#[tokio::test]
async fn a_dropped_cluster_leaves_nothing_behind() {
    let cluster = Cluster::start(&programs(), Settings::fast()).unwrap();
    let folder = cluster.folder().to_owned();
    let client = connect(&cluster.url("postgres")).await;
    assert_ne!(processes_of(&folder), Vec::<String>::new());
    drop(cluster);
    assert!(!folder.exists());
    assert_eq!(processes_of(&folder), Vec::<String>::new());
    client.batch_execute("select 1").await.unwrap_err();
}

#[tokio::test]
async fn a_cluster_does_not_outlive_a_killed_process() {
    if std::env::var_os(VICTIM).is_some() {
        let cluster = Cluster::start(&programs(), Settings::fast()).unwrap();
        cluster.pause().unwrap();
        eprintln!("{VICTIM} {}", cluster.folder().display());
        std::future::pending::<()>().await;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "a_cluster_does_not_outlive_a_killed_process", "--nocapture"]).env(VICTIM, "1");
    let mut victim = victim.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(victim.stderr.take().unwrap()));
    let folder = lines.map_while(Result::ok).find_map(|line| Some(PathBuf::from(line.strip_prefix(VICTIM)?.trim())));
    let folder = folder.expect("the victim names its folder");
    assert!(folder.exists());
    victim.kill().unwrap();
    victim.wait().unwrap();
    let gone = async {
        while folder.exists() || !processes_of(&folder).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), gone).await.expect("somebody cleans up");
}

#[tokio::test]
async fn a_cluster_comes_back_on_its_tcp_port() {
    let mut cluster = Cluster::start(&programs(), Settings::fast().tcp().set("max_connections", "20")).unwrap();
    let other = Cluster::start(&programs(), Settings::fast().tcp()).unwrap();
    assert_ne!(cluster.port(), other.port());
    let url = cluster.tcp_url("postgres");
    mark(&connect(&url).await).await;
    cluster.kill().unwrap();
    cluster.start_again().unwrap();
    assert_eq!(count(&url).await, 1);
    let row = connect(&url).await.query_one("show max_connections", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "20");
}

#[test]
fn a_cluster_that_cannot_start_says_why() {
    let error = Cluster::start(&programs(), Settings::fast().set("shared_buffers", "much")).err().unwrap().to_string();
    assert!(error.contains("shared_buffers"), "{error}");
    let error = Cluster::start(Path::new("/nowhere"), Settings::fast()).err().unwrap().to_string();
    assert!(error.contains("/nowhere"), "{error}");
}

#[tokio::test]
async fn the_servers_role_reads_and_writes_rows_and_nothing_else() {
    let database = TestDatabase::create().await;
    let owner = connect(&database.owner_url()).await;
    let app = connect(&database.url()).await;
    let role = app
        .query_one(
            "select rolsuper or rolcreatedb or rolcreaterole, current_user <> $1 from pg_roles
        where rolname = current_user",
            &[&"postgres"],
        )
        .await
        .unwrap();
    assert_eq!((role.get(0), role.get(1)), (false, true));

    let tables = owner
        .query(
            "select tablename::text from pg_tables where schemaname = 'public' and tablename <> 'migration_lock'",
            &[],
        )
        .await
        .unwrap();
    assert!(tables.len() >= 8, "{tables:?}");
    for table in tables.iter().map(|row| row.get::<_, &str>(0)) {
        app.query(&format!("select * from {table} limit 1"), &[]).await.expect("every table is in grants.sql");
        for statement in
            [format!("drop table {table}"), format!("truncate {table}"), format!("alter table {table} add x int")]
        {
            let error = app.batch_execute(&statement).await.unwrap_err();
            assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
        }
    }
    for statement in [
        "create table more (n int)",
        "create schema more",
        "delete from schema_migrations",
        "delete from installation",
        "update audit_events set outcome = 'ok'",
        "delete from audit_events",
    ] {
        let error = app.batch_execute(statement).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
    }
    app.batch_execute("update projects set name = name; delete from session_erasures").await.unwrap();
}

#[tokio::test]
async fn every_test_has_a_database_of_its_own_and_it_is_dropped() {
    let (one, other) = tokio::join!(TestDatabase::create(), TestDatabase::create());
    let client = connect(&one.owner_url()).await;
    client.batch_execute("drop table messages").await.unwrap();
    connect(&other.url()).await.batch_execute("select from messages").await.unwrap();

    let watcher = connect(&other.owner_url()).await;
    let exists = "select count(*) from pg_database where datname = $1";
    assert_eq!(watcher.query_one(exists, &[&one.name()]).await.unwrap().get::<_, i64>(0), 1);
    let name = one.name().to_owned();
    drop(one);
    assert_eq!(watcher.query_one(exists, &[&name]).await.unwrap().get::<_, i64>(0), 0);
    client.batch_execute("select 1").await.unwrap_err();
}

#[tokio::test]
async fn an_empty_database_has_no_tables() {
    let database = TestDatabase::create_empty().await;
    let client = connect(&database.owner_url()).await;
    let row = client.query_one("select count(*) from pg_tables where schemaname = 'public'", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn many_at_once_make_one_template() {
    let cluster = Cluster::start(&programs(), Settings::fast()).unwrap();
    let url = cluster.url("postgres");
    let makers: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { TestDatabase::create_on(&url).await })
        })
        .collect();
    for maker in makers {
        let database = maker.await.unwrap();
        connect(&database.url()).await.batch_execute("select from sessions").await.unwrap();
    }
    let sql = "select count(*) from pg_database where datname like 'chatstore\\_template\\_%'";
    let row = connect(&url).await.query_one(sql, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}
