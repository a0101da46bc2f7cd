//! What a start does not accept, each refused in one sentence that names it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rusqlite::Connection;

use crate::support::{API_KEY, DATABASE, Server, chatstore, run, serve, tool};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Runs `serve` and checks that it stops with one sentence that has all of these parts.
#[track_caller]
fn refused(command: Command, parts: &[&str]) {
    let finished = run(command);
    assert!(!finished.out.contains("listening"), "{}", finished.out);
    let sentence = finished.refusal();
    assert_eq!(sentence.lines().count(), 1, "one line: {sentence}");
    assert!(sentence.starts_with("chatstore: "), "{sentence}");
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
    }
}

fn serve_with_key(folder: &Path) -> Command {
    let mut command = serve(folder);
    command.env("API_KEY", API_KEY);
    command
}

#[test]
fn files_that_are_not_ours_are_refused_and_left_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let database = folder.path().join(DATABASE);

    fs::write(&database, "Dear diary, this is no database but a long text.\n".repeat(200)).unwrap();
    let before = fs::read(&database).unwrap();
    refused(serve_with_key(folder.path()), &["chatstore.db", "is not a SQLite database", "DATABASE_URL"]);
    for words in [&["migrate", "up"][..], &["migrate", "status"], &["keys", "list"], &["backup", "b.db"]] {
        assert!(tool(folder.path(), words).refusal().contains("is not a SQLite database"));
    }
    assert_eq!(fs::read(&database).unwrap(), before);

    fs::remove_file(&database).unwrap();
    Connection::open(&database).unwrap().execute_batch("create table recipes (name, cake)").unwrap();
    let before = fs::read(&database).unwrap();
    refused(serve_with_key(folder.path()), &["chatstore.db", "another program", "DATABASE_URL"]);
    for words in [&["migrate", "up"][..], &["keys", "create", "--name", "n"], &["backup", "b.db"]] {
        assert!(tool(folder.path(), words).refusal().contains("another program"));
    }
    assert_eq!(fs::read(&database).unwrap(), before);
    let beside: Vec<_> =
        fs::read_dir(folder.path().join("data")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(beside.iter().all(|name| !name.to_string_lossy().ends_with("-wal")), "{beside:?}");
}

#[test]
fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    Server::start(folder.path()).stop();
    let newer =
        "insert into schema_migrations (version, name, checksum, serves_from, applied_at) values (99, 'x', 'x', 99, 0)";
    Connection::open(folder.path().join(DATABASE)).unwrap().execute(newer, ()).unwrap();
    let parts = ["chatstore.db", "schema 99", "newer Chatstore", "upgrade"];
    refused(serve_with_key(folder.path()), &parts);
    for words in [&["migrate", "up"][..], &["keys", "create", "--name", "n"], &["keys", "list"], &["backup", "b.db"]] {
        let sentence = tool(folder.path(), words).refusal();
        assert!(parts.iter().all(|part| sentence.contains(part)), "{words:?}: {sentence}");
    }
    assert!(!folder.path().join("b.db").exists());
}

#[test]
fn a_damaged_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().new_session();
    server.stop();
    // The header stays, the schema does not.
    let database = folder.path().join(DATABASE);
    let mut bytes = fs::read(&database).unwrap();
    bytes[100..4096].fill(0xa5);
    fs::write(&database, &bytes).unwrap();
    refused(serve_with_key(folder.path()), &["chatstore.db", "damaged"]);
}

#[test]
fn a_folder_that_is_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data"), "").unwrap();
    refused(serve_with_key(folder.path()), &["data"]);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    for path in [folder.path(), &data] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o555)).unwrap();
    }
    // Root writes everywhere, so for root somebody else must try.
    let is_root = fs::write(data.join("probe"), "").is_ok();
    let _ = fs::remove_file(data.join("probe"));
    let tried = |words: &[&str]| {
        let mut command = serve_with_key(folder.path());
        command.args(words);
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    if let Err(error) = tried(&["--help"]).output() {
        eprintln!("SKIPPED: no other user than root can start the program here: {error}");
        return;
    }
    refused(tried(&[]), &["data/chatstore.db", "ermission"]);
    refused(tried(&["--database-url", "sqlite:new/chatstore.db"]), &["new", "ermission"]);

    // A database of somebody else in a folder that is open to all.
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    Server::start(folder.path()).stop();
    for name in ["chatstore.db", "chatstore.db.lock"] {
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o444)).unwrap();
    }
    refused(tried(&[]), &["data/chatstore.db", "ermission"]);
    fs::remove_file(data.join("chatstore.db.lock")).unwrap();
    refused(tried(&[]), &["data/chatstore.db", "cannot be written"]);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn wrong_and_unknown_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value, parts) in [
        ("PORT", "banana", &["port", "environment PORT", "banana"][..]),
        ("LOG_LEVEL", "loud", &["log_level", "environment LOG_LEVEL", "loud"]),
        ("SQLITE_SYNCHRONOUS", "off", &["sqlite_synchronous", "full, normal"]),
        ("DATABASE_URL", "mysql://there", &["environment DATABASE_URL", "sqlite:"]),
        ("DATABASE_URL", "postgres://there", &["database URL", "names no user"]),
        ("MIGRATE_DATABASE_URL", "sqlite:a.db", &["environment MIGRATE_DATABASE_URL", "postgres://"]),
        ("POSTGRES_CONNECTIONS_MAX", "1", &["postgres_connections_max", "from 2 to 10000"]),
        ("POSTGRES_APPEND", "together", &["postgres_append", "batched, per_session"]),
        ("API_KEY", "short", &["api_key", "environment API_KEY"]),
        ("API_KEY_FILE", "absent", &["API_KEY_FILE"]),
        ("RATE_LIMIT_STORE", "rediss://u:hush@h", &["rate_limit_store", "environment RATE_LIMIT_STORE", "redis://"]),
        ("RATE_LIMIT_SEARCH", "5/second burst", &["rate_limit_search", "burst"]),
        ("CORS_ORIGINS", "app.example", &["cors_origins", "https://app.example"]),
        ("RATE_LIMT", "30", &["RATE_LIMT (in the environment)", "RATE_LIMIT"]),
    ] {
        let mut command = serve(folder.path());
        command.env(name, value);
        refused(command, parts);
    }
    let mut command = serve_with_key(folder.path());
    command.args(["--port", "70000"]);
    refused(command, &["port", "flag --port", "70000"]);

    let flag = tool(folder.path(), &["serve", "--prot", "8000"]).refusal();
    assert!(flag.contains("--prot") && flag.contains("--port"), "{flag}");
    let word = tool(folder.path(), &["server"]).refusal();
    assert!(word.contains("server") && word.contains("serve"), "{word}");
    assert!(!folder.path().join("data").exists(), "nothing was made");
}

#[test]
fn files_of_settings_are_read_and_their_mistakes_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("chatstore.toml"), "log_format = 'json'\nprot = 1\n").unwrap();
    refused(serve_with_key(folder.path()), &["\"prot\"", "chatstore.toml", "port"]);
    fs::write(folder.path().join("chatstore.toml"), "log_format = 'json\n").unwrap();
    refused(serve_with_key(folder.path()), &["chatstore.toml", "line 1"]);
    fs::remove_file(folder.path().join("chatstore.toml")).unwrap();

    fs::write(folder.path().join(".env"), "# mine\nRATE_LIMT=30\n").unwrap();
    refused(serve_with_key(folder.path()), &["RATE_LIMT", ".env", "RATE_LIMIT"]);
    fs::write(folder.path().join(".env"), "\nCONNECTIONS_MAX=many\n").unwrap();
    refused(serve_with_key(folder.path()), &["connections_max", ".env line 2", "many"]);

    fs::write(folder.path().join(".env"), "DATABASE_URL=sqlite:elsewhere/mine.db\nAPI_KEY='key-of-the-file'\n")
        .unwrap();
    let mut server = Server::spawn(serve(folder.path()));
    server.client().with_key("key-of-the-file").get("/api/v1/sessions").expect(200);
    assert!(folder.path().join("elsewhere/mine.db").exists());
    assert_eq!(server.log()[0]["database"], "elsewhere/mine.db");
    server.stop();
}

#[test]
fn a_port_that_is_taken_is_refused_before_anything_is_made() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Server::start(one.path());
    let port = server.url.rsplit(':').next().unwrap();
    let mut command = chatstore(two.path());
    command.args(["serve", "--port", port]);
    refused(command, &[port, "PORT", "in use"]);
    assert!(!two.path().join(DATABASE).exists());
    server.stop();
}
