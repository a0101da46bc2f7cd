//! The program on PostgreSQL: chosen by its URL alone, several beside each other, as a role with few rights.

use std::process::Command;
use std::time::Duration;

use chatstore_postgres::testing::{Cluster, Settings, Shutdown, TestDatabase, programs};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::first_start::{keys_in, shown_key};
use crate::support::{API_KEY, PATIENCE, Process, Server, chatstore, eventually, run, serve};

/// How soon a change must be effective in every running server.
const A_SECOND: Duration = Duration::from_secs(1);
/// Stands in the passwords of these tests.
const CANARY: &str = "canary5b21e8";

fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A folder to run in, and what its programs are told about their database.
struct Place {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Place {
    fn new(database_url: impl Into<String>) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), variables: vec![("DATABASE_URL", database_url.into())] }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    fn tool(&self, words: &[&str]) -> Command {
        let mut command = chatstore(self.folder.path());
        command.args(words).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// `serve` without a key.
    fn serve(&self) -> Command {
        let mut command = serve(self.folder.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A server that takes [`API_KEY`].
    fn start(&self) -> Server {
        let mut command = self.serve();
        command.env("API_KEY", API_KEY);
        Server::spawn(command)
    }

    /// The one sentence with which `serve` refuses.
    #[track_caller]
    fn refusal(&self) -> String {
        let mut command = self.serve();
        command.env("API_KEY", API_KEY);
        let sentence = run(command).refusal();
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert!(sentence.starts_with("chatstore: "), "{sentence}");
        sentence
    }
}

/// Makes a key and gives back its id and itself.
fn create_key(place: &Place, name: &str) -> (String, String) {
    let made = run(place.tool(&["keys", "create", "--name", name])).ok();
    let key = made.out.trim_end().to_owned();
    (key.split('_').nth(1).unwrap().to_owned(), key)
}

fn status(server: &Server, key: &str) -> u16 {
    server.client().with_key(key).get("/api/v1/sessions").status
}

/// The same URL with a password that nothing may show; a cluster of one's own takes any.
fn with_canary(url: &str) -> String {
    let rest = url.strip_prefix("postgres://").unwrap();
    let (login, place) = rest.split_once('@').unwrap();
    let user = login.split(':').next().unwrap();
    format!("postgres://{user}:{CANARY}@{place}")
}

#[test]
fn the_first_start_makes_the_schema_and_a_key_and_others_serve_beside_it() {
    let database = now(TestDatabase::create_empty());
    let place = Place::new(database.owner_url());
    let mut one = Server::spawn(place.serve());
    let key = shown_key(&one.process.err);
    let greeting = one.process.err.text();
    assert!(greeting.contains("Data  postgres://") && greeting.contains(database.name()), "{greeting}");
    let line = |message: &str| one.log().into_iter().find(|line| line["message"] == message).unwrap();
    let connected = line("connected to PostgreSQL");
    assert!(connected["version"].as_str().unwrap().starts_with(|c: char| c.is_ascii_digit()), "{connected}");
    assert!(connected["pgvector"].as_str().unwrap().starts_with("0."), "{connected}");
    assert!(line("listening")["database"].as_str().unwrap().ends_with(database.name()));
    assert!(one.log().iter().any(|line| line["level"] == "WARN" && line.to_string().contains("superuser")));

    let mut two = Server::spawn(place.serve());
    assert_eq!(two.process.err.text(), "", "the second makes no key");
    let messages = one.client().with_key(&key).new_session();
    for (n, server) in [&one, &two, &one, &two].into_iter().enumerate() {
        let made = server.client().with_key(&key).append(&messages, "from either").expect(201);
        assert_eq!(made["seq"], n + 1);
    }
    assert_eq!(two.client().with_key(&key).all(&messages).len(), 4);
    for server in [&one, &two] {
        server.client().get("/readyz").expect(200);
    }
    one.stop();
    two.client().with_key(&key).append(&messages, "on it goes").expect(201);
    two.stop();
    assert!(!place.folder.path().join("data").exists(), "there is no file");
}

#[test]
fn of_first_starts_at_once_all_serve_and_one_key_is_made() {
    let database = now(TestDatabase::create_empty());
    let place = Place::new(database.owner_url());
    let starting: Vec<_> = (0..3).map(|_| Process::spawn(place.serve())).collect();
    for server in &starting {
        server.out.wait_for(|text| text.contains(r#""message":"listening""#).then_some(())).unwrap();
    }
    // What is shown, is shown before the line after it is asked for.
    let list = run(place.tool(&["keys", "list"])).ok().out;
    assert_eq!(list.lines().count(), 2, "a heading and one key: {list}");
    let shown = || starting.iter().flat_map(|server| keys_in(&server.err.text())).collect::<Vec<_>>();
    let keys = eventually("the key is shown", PATIENCE, || Some(shown()).filter(|keys| !keys.is_empty()));
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[test]
fn a_revoked_key_is_refused_by_every_server_within_a_second() {
    let database = now(TestDatabase::create());
    let place = Place::new(database.url());
    let mut servers = [place.start(), place.start()];
    let (id, key) = create_key(&place, "phone");
    for server in &servers {
        eventually("the new key works", A_SECOND, || (status(server, &key) == 200).then_some(()));
    }
    let list = run(place.tool(&["keys", "list"])).ok().out;
    assert!(list.lines().any(|line| line.contains(&id) && line.contains("active")), "{list}");
    run(place.tool(&["keys", "revoke", &id])).ok();
    for server in &servers {
        eventually("the revoked key is refused", A_SECOND, || (status(server, &key) == 401).then_some(()));
    }
    for server in &mut servers {
        server.stop();
    }
}

#[test]
fn import_and_export_work_beside_a_running_server() {
    let database = now(TestDatabase::create());
    let place = Place::new(database.url());
    let mut server = place.start();
    let line = json!({"id": "thread-17", "title": "Lisbon", "messages": [{"content": "Hi"}, {"content": "Hello."}]});
    std::fs::write(place.folder.path().join("in.jsonl"), format!("{line}\n")).unwrap();
    let imported = run(place.tool(&["import", "in.jsonl"])).ok();
    assert!(imported.err.contains("Imported 1 session and 2 messages"), "{}", imported.err);
    let again = run(place.tool(&["import", "in.jsonl"])).ok();
    assert!(again.err.contains("Imported 0 sessions and 0 messages"), "{}", again.err);
    let listed = server.client().get("/api/v1/sessions").expect(200);
    assert_eq!(listed[0]["external_id"], "thread-17");
    let exported = run(place.tool(&["export"])).ok().out;
    let exported: Value = serde_json::from_str(&exported).unwrap();
    assert_eq!((&exported["session_id"], &exported["last_seq"]), (&listed[0]["session_id"], &json!(2)));
    let backup = run(place.tool(&["backup", "copy.db"])).refusal();
    assert!(backup.contains("pg_dump"), "{backup}");
    server.stop();
}

#[test]
fn the_owner_migrates_and_the_server_needs_no_more_than_rows() {
    // Also makes the role that may do no more.
    let migrated = now(TestDatabase::create());
    let mut server = Place::new(migrated.url()).start();
    server.client().new_session();
    assert!(!server.process.out.text().contains("superuser"), "{}", server.process.out.text());
    server.stop();

    let database = now(TestDatabase::create_empty());
    let refused = Place::new(database.url()).refusal();
    assert!(refused.contains("MIGRATE_DATABASE_URL"), "{refused}");
    now(async {
        let (owner, connection) = tokio_postgres::connect(&database.owner_url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let rows = "alter default privileges in schema public
            grant select, insert, update, delete on tables to chatstore_test_app";
        owner.batch_execute(rows).await.unwrap();
    });
    let place = Place::new(database.url()).with("MIGRATE_DATABASE_URL", database.owner_url());
    let mut server = place.start();
    let messages = server.client().new_session();
    server.client().append(&messages, "as a role with few rights").expect(201);
    server.stop();
    let up = run(place.tool(&["migrate", "up"])).ok();
    assert!(up.err.contains("is up to date") && up.err.contains(database.name()), "{}", up.err);
    let mut server = Place::new(database.url()).start();
    assert_eq!(server.client().all(&messages).len(), 1);
    server.stop();
}

#[test]
fn a_migrator_of_another_database_is_refused_before_it_migrates() {
    let (served, other) = (now(TestDatabase::create()), now(TestDatabase::create_empty()));
    let place = Place::new(served.url()).with("MIGRATE_DATABASE_URL", other.owner_url());
    let mut command = place.tool(&["migrate", "up"]);
    command.env("LOG_LEVEL", "error");
    for refused in [place.refusal(), run(command).refusal()] {
        assert!(refused.contains("name the same in both"), "{refused}");
        assert!(refused.contains(served.name()) && refused.contains(other.name()), "{refused}");
    }
    let status = run(Place::new(other.owner_url()).tool(&["migrate", "status"])).ok().out;
    assert!(status.lines().all(|line| line.ends_with(" pending")), "{status}");
}

#[test]
fn without_auto_migrate_an_empty_database_is_refused_until_it_is_migrated() {
    let database = now(TestDatabase::create_empty());
    let place = Place::new(database.owner_url()).with("AUTO_MIGRATE", "false");
    let status = run(place.tool(&["migrate", "status"])).ok().out;
    assert!(status.lines().count() > 0 && status.lines().all(|line| line.ends_with(" pending")), "{status}");
    let refused = place.refusal();
    for part in [database.name(), "chatstore migrate up", "AUTO_MIGRATE=true"] {
        assert!(refused.contains(part), "{part} is not in {refused}");
    }
    let absent = run(place.tool(&["keys", "list"])).refusal();
    assert!(
        absent.contains("there is no database of Chatstore at postgres://") && absent.contains("DATABASE_URL"),
        "{absent}"
    );
    let up = run(place.tool(&["migrate", "up"])).ok();
    assert!(up.err.starts_with("Applied to postgres://") && up.err.contains("base"), "{}", up.err);
    let status = run(place.tool(&["migrate", "status"])).ok().out;
    assert!(status.lines().all(|line| line.contains(" applied ")), "{status}");
    place.start().stop();
}

#[test]
fn a_server_waits_for_its_database_to_come_up() {
    let mut cluster = Cluster::start(&programs(), Settings::fast()).unwrap();
    let place = Place::new(cluster.url("postgres"));
    cluster.stop(Shutdown::Fast).unwrap();
    let waiting = |process: &Process| {
        process.out.wait_for(|text| text.contains("trying again").then_some(())).expect("it says that it waits");
    };
    // A command for people does not.
    assert!(run(place.tool(&["keys", "list"])).refusal().contains("PostgreSQL runs"));

    let mut stopped = Process::spawn(place.serve());
    waiting(&stopped);
    stopped.signal(Signal::SIGTERM);
    assert_eq!(stopped.wait(PATIENCE).code(), Some(0), "{}", stopped.err.text());

    let mut starting = Process::spawn(place.serve());
    waiting(&starting);
    cluster.start_again().unwrap();
    starting.out.wait_for(|text| text.contains(r#""message":"listening""#).then_some(())).expect("it starts");
    starting.signal(Signal::SIGTERM);
    assert_eq!(starting.wait(PATIENCE).code(), Some(0));
}

#[test]
fn what_waiting_does_not_mend_is_refused_at_once() {
    let database = now(TestDatabase::create_empty());
    let absent = database.owner_url().replace(database.name(), "no_such_database");
    let refused = Place::new(absent).refusal();
    assert!(refused.contains("no_such_database") && refused.contains("does not exist"), "{refused}");
    for url in [database.url().replace("postgres://", "postgres://no_such_user_"), "postgres://h:x/y".to_owned()] {
        let place = Place::new(url);
        let refused = place.refusal();
        assert!(!refused.contains("trying again"), "{refused}");
    }
}

#[test]
fn the_password_is_never_shown() {
    let mut cluster = Cluster::start(&programs(), Settings::fast()).unwrap();
    let database = now(TestDatabase::create_on(&cluster.url("postgres")));
    let place = Place::new(with_canary(&database.url()))
        .with("MIGRATE_DATABASE_URL", with_canary(&database.owner_url()))
        .with("LOG_LEVEL", "trace");
    let mut server = Server::spawn(place.serve());
    shown_key(&server.process.err);
    server.client().get("/livez").expect(200);
    create_key(&place, "one");
    let mut said = vec![];
    let tools: [&[&str]; 7] = [
        &["config"],
        &["migrate", "status"],
        &["migrate", "up"],
        &["keys", "list"],
        &["export"],
        &["backup", "copy.db"],
        &["keys", "revoke", "nobody"],
    ];
    for words in tools {
        let finished = run(place.tool(words));
        said.extend([finished.out, finished.err]);
    }
    assert!(said[0].contains(":***@"), "{}", said[0]);

    for url in [
        format!("postgres://me:{CANARY}@127.0.0.1:1/db"),
        format!("postgres://me:{CANARY}@127.0.0.1:x/db"),
        format!("postgres://me:{CANARY}@/db"),
        format!("postgres://me:{CANARY}/@127.0.0.1/db"),
        format!("postgres://me:{CANARY}@127.0.0.1:1/db?sslpassword={CANARY}"),
        format!("postgres://me@127.0.0.1:1/db?password={CANARY}"),
        format!("postgres://me:{CANARY} {CANARY}@127.0.0.1/db"),
        format!("postgres:me:{CANARY}"),
    ] {
        let to_migrate = Place::new(database.url()).with("MIGRATE_DATABASE_URL", &url);
        for (place, words) in [(Place::new(&url), ["keys", "list"]), (to_migrate, ["migrate", "up"])] {
            said.push(run(place.tool(&words)).refusal());
            let shown = run(place.tool(&["config"]));
            said.extend([shown.out, shown.err]);
        }
    }

    cluster.stop(Shutdown::Immediate).unwrap();
    server.client().get("/readyz").expect_problem(503, "not_ready");
    server.stop();
    let log = server.process.out.text();
    assert!(log.contains(r#""level":"TRACE""#) || log.contains(r#""level":"DEBUG""#), "this was no trace");
    said.extend([log, server.process.err.text()]);
    for line in said.iter().flat_map(|text| text.lines()) {
        assert!(!line.contains(CANARY), "{line}");
    }
}
