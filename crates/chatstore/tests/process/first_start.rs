//! The first start on a fresh folder makes one key, shows it once and keeps only its digest.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use crate::support::{Captured, Finished, PATIENCE, Process, Server, run, serve, tool};

/// The keys in a text.
pub(crate) fn keys_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("cs_") && word.len() > 40).map(ToOwned::to_owned).collect()
}

/// The key that a first start shows.
pub(crate) fn shown_key(err: &Captured) -> String {
    let text = err.wait_for(|text| text.contains("/api/v1/sessions").then(|| text.to_owned())).unwrap();
    keys_in(&text).swap_remove(0)
}

/// Runs the curl line of a greeting as it stands; `None` if there is no curl here.
pub(crate) fn run_curl_line(greeting: &str) -> Option<Finished> {
    let line = greeting.lines().map(str::trim).find(|line| line.starts_with("curl ")).unwrap();
    let shell = sh(&format!("{line} --silent --max-time 20 --write-out '\\n%{{http_code}}'"));
    if !sh("command -v curl").output().unwrap().status.success() {
        eprintln!("SKIPPED: there is no curl here to run: {line}");
        return None;
    }
    Some(run(shell).ok())
}

pub(crate) fn sh(line: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// Looks for a secret in every file below a folder.
fn files_with(folder: &Path, secret: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, secret));
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            if bytes.windows(secret.len()).any(|window| window == secret.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[test]
fn the_first_start_shows_a_key_that_works_and_the_second_shows_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::spawn(serve(folder.path()));
    let key = shown_key(&server.process.err);
    let greeting = server.process.err.text();
    let times_shown = keys_in(&greeting);
    assert!(times_shown.iter().all(|shown| *shown == key), "{greeting}");
    assert_eq!(greeting.lines().filter(|line| line.contains("curl ")).count(), 1, "{greeting}");
    for part in [format!("{}/docs", server.url), "./data/chatstore.db".to_owned()] {
        assert!(greeting.contains(&part), "{part} is not in {greeting}");
    }
    if let Some(curl) = run_curl_line(&greeting) {
        let (body, status) = curl.out.rsplit_once('\n').unwrap();
        assert_eq!(status, "201", "{}", curl.out);
        let made: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(made["session_name"], "Hello");
    }
    let mut client = server.client().with_key(&key);
    client.get("/api/v1/sessions").expect(200);
    let mistyped = key.replacen("cs_", "cs_x", 1);
    server.client().with_key(&mistyped).get("/api/v1/sessions").expect_problem(401, "invalid_api_key");

    // Neither the files, with the log of the database still beside them, nor the log know it.
    let secret = key.split('_').nth(2).unwrap();
    assert_eq!(secret.len(), 32);
    assert_eq!(files_with(folder.path(), secret), Vec::<String>::new());
    let key_id = key.split('_').nth(1).unwrap();
    assert!(!files_with(folder.path(), key_id).is_empty(), "the search finds what is there");
    server.stop();
    assert_eq!(files_with(folder.path(), secret), Vec::<String>::new());
    assert!(!server.process.out.text().contains(secret));

    let mut again = Server::spawn(serve(folder.path()));
    again.client().with_key(&key).get("/api/v1/sessions").expect(200);
    again.stop();
    assert_eq!(again.process.err.text(), "");
    assert!(keys_in(&again.process.out.text()).is_empty());
}

#[test]
fn a_key_of_ones_own_means_that_none_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().get("/api/v1/sessions").expect(200);
    server.stop();
    assert_eq!(server.process.err.text(), "");
    let list = tool(folder.path(), &["keys", "list"]).ok().out;
    assert_eq!(list.lines().count(), 1, "only the heading: {list}");
}

#[test]
fn of_two_first_starts_at_once_one_serves_and_makes_one_key() {
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let mut starters = [Process::spawn(serve(folder.path())), Process::spawn(serve(folder.path()))];
        let deadline = Instant::now() + PATIENCE;
        let loser = loop {
            if let Some(ended) = starters.iter_mut().position(|starter| !starter.is_running()) {
                break ended;
            }
            assert!(Instant::now() < deadline, "both run");
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let status = starters[loser].wait(PATIENCE);
        let refusal = starters[loser].err.text();
        assert_eq!(status.code(), Some(1), "{refusal}");
        assert!(refusal.contains("is in use by"), "{refusal}");
        assert!(keys_in(&refusal).is_empty(), "{refusal}");

        let winner = &mut starters[1 - loser];
        let key = shown_key(&winner.err);
        assert!(winner.is_running(), "{}", winner.err.text());
        let line = winner.out.wait_for(|text| text.lines().next().map(ToOwned::to_owned)).unwrap();
        let url = serde_json::from_str::<serde_json::Value>(&line).unwrap()["url"].as_str().unwrap().to_owned();
        let mut client = crate::support::Client::connect(&url).unwrap().with_key(&key);
        client.post("/api/v1/sessions", &json!({"session_name": "mine"})).expect(201);
        let list = tool(folder.path(), &["keys", "list"]).ok().out;
        assert_eq!(list.lines().count(), 2, "a heading and one key: {list}");
    }
}

/// Printed for people who compare builds; the bench asserts it on a release build.
#[test]
fn start_time_and_idle_memory_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().get("/readyz").expect(200);
    let memory = fs::read_to_string(format!("/proc/{}/status", server.process.pid())).unwrap_or_default();
    let resident = memory.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS: unknown");
    eprintln!("first start after {:?}, idle {resident}", server.start_time);
    server.stop();
}
