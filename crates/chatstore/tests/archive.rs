//! `import` and `export` as a person runs them: real processes on real files.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "archive/over_http.rs"]
mod over_http;
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{API_KEY, Finished, Process, Server, chatstore, run, tool};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(folder.path().join(name), bytes).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `count` conversations of `messages` messages each.
fn conversations(count: usize, messages: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        let messages: Vec<_> = (0..messages)
            .map(|m| json!({"role": (["user", "assistant"][m % 2]), "content": format!("message {m} of {n}")}))
            .collect();
        text.push_str(&json!({"id": format!("c-{n}"), "title": format!("Chat {n}"), "messages": messages}).to_string());
        text.push('\n');
    }
    text
}

fn export(folder: &TempDir) -> String {
    tool(folder.path(), &["export"]).ok().out
}

/// The counts of the summary, which is the last line: sessions, messages, already there, refused.
#[track_caller]
fn counts(finished: &Finished) -> [u64; 4] {
    let line = finished.err.lines().rev().find(|line| line.starts_with("Imported ")).unwrap_or_default();
    let number_before = |word: &str| -> u64 {
        let before = line.split(word).next().unwrap().trim_end();
        before.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{word} in {:?}", finished.err))
    };
    let sessions = number_before(" session");
    [sessions, number_before(" message"), number_before(" already there"), number_before(" line")]
}

#[track_caller]
fn import(folder: &TempDir, words: &[&str]) -> [u64; 4] {
    counts(&tool(folder.path(), &[&["import"], words].concat()).ok())
}

/// What was said in each conversation, by its id: roles and contents in order.
fn said(lines: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut all = BTreeMap::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let messages = line["messages"].as_array().unwrap().iter();
        let spoken = messages.map(|message| (text(&message["role"]), text(&message["content"]))).collect();
        assert_eq!(all.insert(text(&line["id"]), spoken), None, "a conversation twice");
    }
    all
}

#[test]
fn an_import_counts_what_it_stores_and_a_second_one_adds_nothing() {
    let folder = folder();
    let lines = conversations(300, 7);
    write(&folder, "chats.jsonl", &lines);
    assert_eq!(import(&folder, &["chats.jsonl"]), [300, 2_100, 0, 0]);
    let first = export(&folder);
    assert_eq!(said(&first), said(&lines));
    assert_eq!(import(&folder, &["chats.jsonl"]), [0, 0, 300, 0]);
    assert_eq!(export(&folder), first);
    // A conversation that has grown gets what is new of it.
    write(&folder, "chats.jsonl", conversations(1, 9));
    assert_eq!(import(&folder, &["chats.jsonl"]), [0, 2, 1, 0]);
}

#[test]
fn bad_lines_are_named_and_the_rest_is_stored() {
    let folder = folder();
    let deep = format!(r#"{{"id":"deep","messages":[],"metadata":{}1{}}}"#, "{\"a\":".repeat(70), "}".repeat(70));
    let large = format!(r#"{{"id":"large","messages":[{{"content":"{}"}}]}}"#, "x".repeat(1_048_577));
    let lines = [
        (r#"{"id":"one","messages":[{"content":"hello"}]}"#, ""),
        ("{\"id\":", "not well-formed JSON"),
        (r#"{"id":"nul","messages":[{"content":"a\u0000"}]}"#, "/messages/0/content contains the character U+0000"),
        (&deep, "nested deeper than 64 levels"),
        (r#"{"id":"half","messages":[{"content":"\ud800"}]}"#, "half of a surrogate pair"),
        (r#"{"id":"none","messages":[{"role":"user"}]}"#, "/messages/0/content is required"),
        (r#"{"id":"type","messages":[{"content":7}]}"#, "/messages/0/content is not acceptable"),
        (&large, "/messages/0/content must have at most 1048576 bytes"),
        (r#"{"id":"gap","messages":[{"content":"a","seq":1},{"content":"b","seq":3}]}"#, "leaves a gap"),
        (r#"{"messages":[]}"#, "/id is required"),
        ("[]", "expected an object"),
        (r#"{"id":"meta","metadata":[1],"messages":[]}"#, "/metadata must be an object"),
        (r#"{"id":"time","created_at":"yesterday","messages":[]}"#, "/created_at"),
        (r#"{"id":"gone","deleted_at":"2026-01-01T00:00:00Z","messages":[]}"#, "/deleted_at needs `session_id`"),
        (r#"{"id":"two","messages":[{"content":"bye"}]}"#, ""),
    ];
    write(&folder, "chats.jsonl", lines.map(|(line, _)| line).join("\n"));
    let server_folder = self::folder();
    write(&server_folder, "chats.jsonl", lines.map(|(line, _)| line).join("\n"));
    let server = Server::start(server_folder.path());
    let url = ["import", "chats.jsonl", "--url", &server.url, "--api-key", API_KEY];
    for (folder, words) in [(&folder, &["import", "chats.jsonl"][..]), (&server_folder, &url)] {
        let finished = tool(folder.path(), words);
        assert_eq!(finished.status.code(), Some(1));
        assert_eq!(counts(&finished), [2, 2, 0, 13]);
        for (n, (_, reason)) in lines.iter().enumerate() {
            let start = format!("line {}: ", n + 1);
            let said: Vec<_> = finished.err.lines().filter(|line| line.starts_with(&start)).collect();
            match *reason {
                "" => assert!(said.is_empty(), "{said:?}"),
                reason => assert!(said.len() == 1 && said[0].contains(reason), "line {}: {said:?}", n + 1),
            }
        }
        let stored = export(folder);
        assert_eq!(said(&stored).into_keys().collect::<Vec<_>>(), ["one", "two"]);
    }
}

#[test]
fn plain_and_gzip_files_and_standard_input_say_the_same() {
    let lines = conversations(40, 3);
    let half = lines.len() / 2;
    // Several members, as `cat a.gz b.gz` makes them, the cut within a line.
    let members = [gzip(&lines.as_bytes()[..half]), gzip(&lines.as_bytes()[half..])].concat();
    let marked = [b"\xef\xbb\xbf", lines.trim_end().replace('\n', "\r\n\r\n").as_bytes()].concat();
    for (name, bytes) in [("a.jsonl.gz", gzip(lines.as_bytes())), ("unnamed", members), ("windows.txt", marked)] {
        let folder = folder();
        write(&folder, name, &bytes);
        assert_eq!(import(&folder, &[name]), [40, 120, 0, 0], "{name}");
        let mut command = chatstore(folder.path());
        command.args(["import", "-"]).stdin(std::fs::File::open(folder.path().join(name)).unwrap());
        assert_eq!(counts(&run(command).ok()), [0, 0, 40, 0], "{name}");
        assert_eq!(said(&export(&folder)), said(&lines), "{name}");
    }
}

#[test]
fn what_stands_before_the_break_of_a_file_is_stored() {
    let folder = folder();
    let whole = gzip(conversations(2_000, 5).as_bytes());
    write(&folder, "cut.gz", &whole[..whole.len() / 2]);
    let finished = tool(folder.path(), &["import", "cut.gz"]);
    let [sessions, messages, _, refused] = counts(&finished);
    assert!(sessions > 100 && sessions < 2_000 && messages == 5 * sessions && refused == 0, "{}", finished.err);
    assert_eq!(said(&export(&folder)).len() as u64, sessions);
    let error = finished.refusal();
    assert!(error.contains("cut.gz ends within its gzip data, after line"), "{error}");
    write(&folder, "cut.gz", whole);
    assert_eq!(import(&folder, &["cut.gz"])[0], 2_000 - sessions);
}

#[test]
fn a_file_that_cannot_be_read_leaves_no_database_behind() {
    let folder = folder();
    for (words, reason) in [(["import", "absent.jsonl"], "cannot read absent.jsonl"), (["import", "."], "is a folder")]
    {
        let refusal = tool(folder.path(), &words).refusal();
        assert!(refusal.contains(reason), "{refusal}");
    }
    assert!(!folder.path().join("data").exists());
    assert_eq!(tool(folder.path(), &["import"]).status.code(), Some(2));
}

/// Sessions of every kind, made through a server: two users, marks, versions, odd JSON, tombstones.
fn rich_store() -> TempDir {
    let folder = folder();
    let items = r#"{"id":"items","user_id":"ada","created_at":"1999-12-31T23:59:59.9999999Z","messages":[
        {"kind":"function_call","content":"f","payload":{"type": "function_call",  "arguments":"{\n}"}},
        {"kind":"function_call_output","status":"incomplete","content":"","payload":[1.0, null],"token_count":0,
        "created_at":"2001-01-01T00:00:00+02:00"}]}"#;
    write(&folder, "items.jsonl", items.replace('\n', ""));
    assert_eq!(import(&folder, &["items.jsonl"]), [1, 2, 0, 0]);
    let mut server = Server::start(folder.path());
    let mut client = server.client();
    let mut send = |method: &str, target: &str, body: &str| {
        let answer = client.try_send(method, target, Some(body)).unwrap();
        assert!(answer.status < 300, "{method} {target} {body}: {}", String::from_utf8_lossy(&answer.body));
        if answer.body.is_empty() { Value::Null } else { answer.json() }
    };
    for (n, user) in [r#""ada""#, r#""ada""#, r#""grace""#, "null", "null"].iter().enumerate() {
        let metadata = "{ \"b\" :1.50,\n\t\"a\": [ 1e2 , \"\\u00e9 é\" ],\r\n \"b2\":{} }";
        let body =
            format!(r#"{{"session_name":"Nº {n}","user_id":{user},"external_id":"x-{n}","metadata":{metadata}}}"#);
        let session = send("POST", "/api/v1/sessions", &body);
        let path = format!("/api/v1/sessions/{}", session["session_id"].as_str().unwrap());
        let mut ids = Vec::new();
        for m in 0..6 {
            let extra = match m {
                0 => {
                    r#""content":"plain","context":{"found": [ 1,2 ,
                     3 ]}"#
                }
                1 => r#""content":"", "role":"system""#,
                2 => r#""content":"counted","token_count":17,"external_id":"msg-2","metadata":{"k" :  "v"}"#,
                3 => r#""content":"half a","status":"in_progress""#,
                4 => r#""role":"assistant","content":"to be deleted","token_count":5"#,
                _ => r#""role":"tool","content":"line\nbreak \u2028 😀 \"quoted\"","context":null"#,
            };
            let message = send("POST", &format!("{path}/messages"), &format!("{{{extra}}}"));
            ids.push(format!("/api/v1/messages/{}", message["message_id"].as_str().unwrap()));
        }
        send("PATCH", &ids[3], r#"{"content":"whole","status":"completed"}"#);
        send("PATCH", &ids[0], r#"{"content":"plain, changed"}"#);
        send("DELETE", &ids[4], "");
        send("PATCH", &path, r#"{"is_favorite":true}"#);
        if n % 2 == 1 {
            send("DELETE", &path, "");
        }
    }
    send("POST", "/api/v1/sessions", r#"{"session_name":"empty"}"#);
    server.stop();
    folder
}

#[test]
fn a_round_trip_changes_nothing() {
    let origin = rich_store();
    let exported = export(&origin);
    assert_eq!(exported.lines().count(), 7);
    for part in [
        "\"deleted_at\"",
        "\"is_favorite\":true",
        "1e2",
        "\"version\":2",
        "\"payload\":[1.0, null]",
        "metadata_text",
        "context_text",
    ] {
        assert!(exported.contains(part), "{part} in {exported}");
    }
    assert!(!exported.contains("to be deleted") && !exported.contains("project"));

    let copy = folder();
    write(&copy, "chats.jsonl", &exported);
    assert_eq!(import(&copy, &["chats.jsonl"]), [7, 32, 0, 0]);
    assert_eq!(export(&copy), exported);
    assert_eq!(import(&copy, &["chats.jsonl"]), [0, 0, 7, 0]);
    assert_eq!(export(&copy), exported);

    let served = folder();
    write(&served, "chats.jsonl", &exported);
    let mut server = Server::start(served.path());
    let words = ["chats.jsonl", "--url", &server.url, "--api-key", API_KEY];
    assert_eq!(import(&served, &words), [7, 32, 0, 0]);
    assert_eq!(import(&served, &words), [0, 0, 7, 0]);
    // The bytes a client sees are those it once sent.
    let id = serde_json::from_str::<Value>(exported.lines().last().unwrap()).unwrap()["session_id"].clone();
    server.client().get(&format!("/api/v1/sessions/{}", id.as_str().unwrap())).expect(200);
    assert_eq!(export(&served), exported);
    server.stop();
}

#[test]
fn another_project_takes_an_export_once() {
    let exported = export(&rich_store());
    let copy = folder();
    write(&copy, "chats.jsonl", &exported);
    for (sessions, messages, known) in [(7, 32, 0), (0, 0, 7)] {
        assert_eq!(import(&copy, &["chats.jsonl", "--project", "other"]), [sessions, messages, known, 0]);
    }
    let other = tool(copy.path(), &["export", "--project", "other"]).ok().out;
    assert_eq!(said(&other), said(&exported));
    assert_eq!(export(&copy), "");
    let refusal = tool(copy.path(), &["export", "--project", "third"]).refusal();
    assert!(refusal.contains("there is no project named `third`"), "{refusal}");
}

#[test]
fn a_killed_import_goes_on_when_it_is_run_again() {
    let folder = folder();
    let lines = conversations(4_000, 12);
    write(&folder, "chats.jsonl", &lines);
    let mut killed = 0;
    for delay in [60, 120, 250, 400] {
        let mut command = chatstore(folder.path());
        command.args(["import", "chats.jsonl"]);
        let mut process = Process::spawn(command);
        std::thread::sleep(Duration::from_millis(delay));
        if process.is_running() {
            process.signal(Signal::SIGKILL);
            killed += 1;
        }
        process.wait(Duration::from_secs(20));
    }
    assert!(killed > 0, "every import was faster than its kill");
    let [sessions, _, known, refused] = import(&folder, &["chats.jsonl"]);
    eprintln!("killed {killed} times; the last run stored {sessions} sessions and found {known}");
    assert_eq!((sessions + known, refused), (4_000, 0));
    assert_eq!(said(&export(&folder)), said(&lines));
    assert_eq!(support::integrity(&folder.path().join(support::DATABASE)), "ok");
}

#[test]
fn an_export_is_a_file_only_when_it_is_whole() {
    let folder = folder();
    write(&folder, "chats.jsonl", conversations(30, 3));
    let refusal = tool(folder.path(), &["export", "out.jsonl"]).refusal();
    assert!(refusal.contains("there is no database"), "{refusal}");
    import(&folder, &["chats.jsonl"]);
    let text = export(&folder);
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let finished = tool(folder.path(), &["export", "out.jsonl"]).ok();
    assert!(
        finished.out.is_empty() && finished.err.contains("Exported 30 sessions and 90 messages"),
        "{}",
        finished.err
    );
    assert_eq!(read("out.jsonl"), text.as_bytes());
    tool(folder.path(), &["export", "out.jsonl.gz"]).ok();
    let mut unpacked = String::new();
    GzDecoder::new(read("out.jsonl.gz").as_slice()).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, text);

    write(&folder, "out.jsonl", "precious");
    let refusal = tool(folder.path(), &["export", "out.jsonl"]).refusal();
    assert!(refusal.contains("out.jsonl exists") && refusal.contains("--force"), "{refusal}");
    assert_eq!(read("out.jsonl"), b"precious");
    tool(folder.path(), &["export", "--force", "out.jsonl"]).ok();
    assert_eq!(read("out.jsonl"), text.as_bytes());
    let refusal = tool(folder.path(), &["export", "absent/out.jsonl"]).refusal();
    assert!(refusal.contains("cannot write absent/out.jsonl"), "{refusal}");
    let partial =
        |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().to_string_lossy().ends_with("partial");
    assert!(!std::fs::read_dir(folder.path()).unwrap().any(partial));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let folder = folder();
    write(&folder, "chats.jsonl", conversations(3_000, 10));
    import(&folder, &["chats.jsonl"]);
    let mut child = chatstore(folder.path()).arg("export").stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.ends_with("]}\n"));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

fn real_data() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/topical-chat.jsonl.gz");
    path.canonicalize().ok()
}

#[test]
fn real_conversations_come_out_as_they_went_in() {
    let Some(file) = real_data() else {
        eprintln!("skipped: there is no shared/data/topical-chat.jsonl.gz beside the repository");
        return;
    };
    let folder = folder();
    let name = file.to_str().unwrap();
    assert_eq!(import(&folder, &[name]), [2_156, 46_903, 0, 0]);
    let exported = export(&folder);
    assert_eq!(import(&folder, &[name]), [0, 0, 2_156, 0]);
    assert_eq!(export(&folder), exported);
    let mut lines = String::new();
    GzDecoder::new(std::fs::File::open(&file).unwrap()).read_to_string(&mut lines).unwrap();
    assert_eq!(said(&exported), said(&lines));

    let copy = self::folder();
    write(&copy, "chats.jsonl", &exported);
    assert_eq!(import(&copy, &["chats.jsonl"]), [2_156, 46_903, 0, 0]);
    assert_eq!(export(&copy), exported);
}
