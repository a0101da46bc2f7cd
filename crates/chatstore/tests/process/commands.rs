//! The commands that only tell something.

use std::fs;

use serde_json::Value;

use crate::first_start::sh;
use crate::support::{Server, chatstore, run, tool};

#[test]
fn the_settings_are_listed_with_their_origins_and_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".env"), "SECRET_KEY='hush-hush-hush-hush-hush-hush-hush'\nIDLE_TIMEOUT_MS=1234\n")
        .unwrap();
    fs::write(folder.path().join("chatstore.toml"), "connections_max = 77\n").unwrap();
    fs::write(folder.path().join("key"), "hush-from-a-file\n").unwrap();
    let mut command = chatstore(folder.path());
    command.args(["config", "--port", "8123"]).env("LOG_LEVEL", "WARN").env("API_KEY_FILE", "key");
    command.env("RATE_LIMIT_STORE", "redis://u:hush@cache.example/1").env("RATE_LIMIT", "10/second burst 50");
    let listing = run(command).ok().out;
    assert!(!listing.contains("hush"), "{listing}");
    let row = |name: &str| {
        let found = listing.lines().find(|line| line.split_whitespace().next() == Some(name));
        found.unwrap_or_else(|| panic!("{name} is not in {listing}")).to_owned()
    };
    for (name, value, origin) in [
        ("port", "8123", "flag --port"),
        ("log_level", "WARN", "environment LOG_LEVEL"),
        ("idle_timeout_ms", "1234", ".env line 2"),
        ("connections_max", "77", "chatstore.toml"),
        ("api_key", "***", "environment API_KEY_FILE"),
        ("secret_key", "***", ".env line 1"),
        ("rate_limit_store", "redis://***", "environment RATE_LIMIT_STORE"),
        ("host", "127.0.0.1", "default"),
        ("database_url", "sqlite:./data/chatstore.db", "default"),
        ("unix_socket", "-", "not set"),
    ] {
        let row = row(name);
        let shown = row.split_whitespace().nth(1).unwrap();
        assert!(shown.eq_ignore_ascii_case(value) && row.ends_with(&format!("({origin})")), "{row}");
    }
    for setting in chatstore_server::config::SETTINGS {
        row(setting.name);
    }
    assert!(!folder.path().join("data").exists(), "looking makes nothing");
}

#[test]
fn the_document_is_the_one_that_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let printed = tool(folder.path(), &["openapi"]).ok().out;
    let mut server = Server::start(folder.path());
    let served = server.client().get("/openapi.json");
    assert_eq!(served.status, 200);
    assert_eq!(String::from_utf8_lossy(&served.body), printed);
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    server.stop();
}

#[test]
fn version_help_and_completions_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let version = tool(folder.path(), &["version"]).ok().out;
    assert!(version.starts_with(&format!("chatstore {} (SQLite 3.", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(version.lines().count() == 1 && version.contains("PostgreSQL"), "{version}");
    assert!(tool(folder.path(), &["--version"]).ok().out.contains(env!("CARGO_PKG_VERSION")));
    let help = tool(folder.path(), &["--help"]).ok().out;
    for command in [
        "serve",
        "migrate",
        "keys",
        "projects",
        "audit",
        "config",
        "import",
        "export",
        "backup",
        "reindex",
        "health",
        "openapi",
        "version",
        "completions",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} is not in {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = tool(folder.path(), &["completions", shell]).ok().out;
        assert!(script.contains("chatstore") && script.contains("sqlite-synchronous"), "{shell}");
        fs::write(folder.path().join(shell), script).unwrap();
    }
    let mut check = sh("if command -v bash >/dev/null; then bash -n bash; else echo 'SKIPPED: no bash here' >&2; fi");
    check.current_dir(folder.path());
    run(check).ok();
    assert!(tool(folder.path(), &["completions", "tea"]).refusal().contains("tea"));
    // A reader that has seen enough is no error.
    let mut piped = sh(&format!("'{}' openapi | head -c 1", env!("CARGO_BIN_EXE_chatstore")));
    piped.current_dir(folder.path());
    assert_eq!(run(piped).ok().err, "");
}
