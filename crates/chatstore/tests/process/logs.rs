//! What stands in the log: a line for each request, and never a key or what people wrote.

use std::fs;

use serde_json::{Value, json};

use crate::first_start::sh;
use crate::support::{API_KEY, Client, PATIENCE, Process, Server, eventually, run, serve};

/// Stands in every text and secret that must not be logged.
const CANARY: &str = "canary7f3a9";

fn request_lines(server: &Server) -> Vec<Value> {
    server.log().into_iter().filter(|line| line["message"] == "request").collect()
}

#[test]
fn each_request_leaves_one_line_with_its_route() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let mut client = server.client();
    let messages = client.new_session();
    let message = client.append(&messages, "hello").expect(201);
    let message_path = format!("/api/v1/messages/{}", message["message_id"].as_str().unwrap());
    let session_path = messages.strip_suffix("/messages").unwrap().to_owned();
    let mut expected =
        vec![("POST", "/api/v1/sessions", 201_u64), ("POST", "/api/v1/sessions/{session_id}/messages", 201)];
    for (method, target, body, route, status) in [
        ("GET", &session_path, None, "/api/v1/sessions/{session_id}", 200),
        ("GET", &format!("{session_path}/"), None, "/api/v1/sessions/{session_id}", 200),
        ("GET", &format!("{messages}?limit=5"), None, "/api/v1/sessions/{session_id}/messages", 200),
        ("PATCH", &message_path, Some("{\"content\": \"new\"}"), "/api/v1/messages/{message_id}", 200),
        ("DELETE", &message_path, None, "/api/v1/messages/{message_id}", 200),
        ("GET", &message_path, None, "/api/v1/messages/{message_id}", 404),
        ("POST", &messages, Some("{"), "/api/v1/sessions/{session_id}/messages", 400),
        ("GET", &"/nowhere/at/all".to_owned(), None, "", 404),
    ] {
        let answer = client.try_send(method, target, body).unwrap();
        assert_eq!(answer.status, status, "{method} {target}");
        let id = answer.header("x-request-id").unwrap().to_owned();
        let line = eventually("the line is there", PATIENCE, || {
            request_lines(&server).into_iter().find(|line| line["request_id"] == *id)
        });
        assert_eq!((&line["method"], &line["route"], &line["status"]), (&json!(method), &json!(route), &json!(status)));
        assert!(line["duration_us"].as_u64().is_some_and(|us| us > 0), "{line}");
        expected.push((method, route, u64::from(status)));
        if route.is_empty() {
            continue;
        }
        assert!(line["project"].as_str().is_some_and(|project| !project.is_empty()), "{line}");
    }
    // Probes, which repeat all day, leave none.
    client.get("/readyz").expect(200);
    server.stop();
    let lines = request_lines(&server);
    let found: Vec<_> = lines
        .iter()
        .map(|line| {
            (line["method"].as_str().unwrap(), line["route"].as_str().unwrap(), line["status"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(found, expected);
    for line in &lines {
        let text = line.to_string();
        for id in [&messages[17..53], &message_path[17..]] {
            assert!(!text.contains(id), "{id} is in {text}");
        }
    }
}

#[test]
fn no_key_and_no_text_is_logged_even_at_trace() {
    let folder = tempfile::tempdir().unwrap();
    let root = format!("{CANARY}-root-key");
    let mut command = serve(folder.path());
    command.env("API_KEY", &root).env("LOG_LEVEL", "trace").env("SECRET_KEY", CANARY.repeat(4));
    // Nobody listens there: each request is counted without it.
    command.env("RATE_LIMIT", "10000/second").env("RATE_LIMIT_STORE", format!("redis://u:{CANARY}@127.0.0.1:1/0"));
    let mut server = Server::spawn(command);
    let mut client = server.client().with_key(&root);
    let secrets = rule(&server, &mut client);
    let session = json!({"session_name": CANARY, "user_id": CANARY, "metadata": {CANARY: CANARY}});
    let made = client.post("/api/v1/sessions", &session).expect(201);
    let session_path = format!("/api/v1/sessions/{}", made["session_id"].as_str().unwrap());
    let messages = format!("{session_path}/messages");
    let body =
        json!({"content": CANARY, "role": CANARY, "context": [CANARY], "payload": CANARY, "external_id": CANARY});
    client.post(&messages, &body).expect(201);
    client.post(&messages, &json!({"content": CANARY.repeat(2), "external_id": CANARY})).expect(409);
    let mut repeating = server.client().with_key(&root).with_header("idempotency-key", CANARY);
    for (content, status) in [(CANARY.to_owned(), 201), (CANARY.to_owned(), 201), (CANARY.repeat(2), 422)] {
        repeating.post(&messages, &json!({"content": content})).expect(status);
    }
    let items = json!([{"type": CANARY, "id": CANARY, CANARY: CANARY}, {"role": "user", "content": CANARY}]);
    client.post("/v1/conversations", &json!({"metadata": {CANARY: CANARY}, "items": items})).expect(200);
    client.post(&messages, &json!([{"content": CANARY}, {"content": CANARY}])).expect(201);
    client.get(&messages).expect(200);
    for (method, target, body, status) in [
        ("POST", &messages, Some(format!("{{\"content\": \"{CANARY}")), 400),
        ("POST", &messages, Some(format!("{{\"content\": 1, \"{CANARY}\": 2}}")), 422),
        ("POST", &messages, Some(format!("{{\"content\": \"{CANARY}\\u0000\"}}")), 422),
        ("GET", &format!("/api/v1/sessions?user_id={CANARY}&metadata[{CANARY}]={CANARY}"), None, 200),
        ("GET", &format!("/api/v1/sessions?cursor={CANARY}"), None, 400),
        ("GET", &format!("/api/v1/sessions/{CANARY}"), None, 404),
        ("GET", &format!("/{CANARY}"), None, 404),
        ("GET", &format!("/api/v1/sessions?limit={CANARY}"), None, 422),
        ("PATCH", &session_path, Some(format!("{{\"session_name\": \"{CANARY} two\"}}")), 200),
        ("DELETE", &session_path, None, 200),
    ] {
        let answer = client.try_send(method, target, body.as_deref()).unwrap();
        assert_eq!(answer.status, status, "{method} {target}: {}", String::from_utf8_lossy(&answer.body));
    }
    let mut stranger = server.client().with_key(&format!("cs_{CANARY}"));
    stranger.get("/api/v1/sessions").expect(401);
    // What is no HTTP at all.
    let mut broken = server.client();
    broken.write(format!("{CANARY} {CANARY}\r\n{CANARY}\r\n\r\n").as_bytes()).unwrap();
    let _ = broken.read();
    let http2 = sh(&format!(
        "curl --silent --http2-prior-knowledge -H 'X-API-Key: {root}' -H 'X-Request-Id: by-http2' \
         --json '{{\"session_name\": \"{CANARY}\"}}' '{}/api/v1/sessions?user_id={CANARY}'",
        server.url
    ));
    if sh("curl --version | grep -q HTTP2").output().unwrap().status.success() {
        let made = run(http2).ok().out;
        assert!(made.contains("session_id"), "{made}");
        let seen = |text: &str| text.contains("by-http2").then_some(());
        server.process.out.wait_for(seen).expect("the request over HTTP/2 is logged");
    } else {
        eprintln!("SKIPPED: there is no curl with HTTP/2 here");
    }
    server.stop();
    let (out, err) = (server.process.out.text(), server.process.err.text());
    assert!(request_lines(&server).len() >= 15);
    assert!(out.contains(r#""level":"TRACE""#) || out.contains(r#""level":"DEBUG""#), "this was no trace");
    for line in out.lines().chain(err.lines()) {
        assert!(!line.contains(CANARY), "{line}");
        assert!(!secrets.iter().any(|secret| line.contains(secret)), "{line}");
    }
}

/// Makes keys, user tokens and a project's secret over HTTP, uses them, and gives back every secret that was shown.
fn rule(server: &Server, root: &mut Client) -> Vec<String> {
    let mut secrets = Vec::new();
    // A key has its id in front, a token its header; what comes then is secret.
    let mut shown = |answer: &Value, name: &str, separator: char, public: usize| {
        let text = answer[name].as_str().unwrap().to_owned();
        secrets.push(text.splitn(public + 1, separator).last().unwrap().to_owned());
        text
    };
    let made = root.post("/api/v1/admin/keys", &json!({"name": CANARY, "allowed_origins": ["https://a.example"]}));
    let made = made.expect(201);
    let (key_id, key) = (made["key_id"].as_str().unwrap(), shown(&made, "secret", '_', 2));
    let rotated = root.post(&format!("/api/v1/admin/keys/{key_id}/rotate"), &json!({})).expect(200);
    for key in [key, shown(&rotated, "secret", '_', 2)] {
        server.client().with_key(&key).get("/api/v1/sessions").expect(200);
        server.client().with_key(&format!("{key}x")).get("/api/v1/sessions").expect(401);
    }
    let ask = json!({"user_id": CANARY});
    let mut tokens = vec![shown(&root.post("/api/v1/admin/tokens", &ask).expect(201), "token", '.', 1)];
    shown(&root.post("/api/v1/admin/project/token-secret", &json!({})).expect(201), "secret", ' ', 0);
    tokens.push(shown(&root.post("/api/v1/admin/tokens", &ask).expect(201), "token", '.', 1));
    for token in tokens {
        server.client().with_token(&token).get("/api/v1/sessions").expect(200);
        server.client().with_token(&format!("{token}{CANARY}")).get("/api/v1/sessions").expect(401);
    }
    assert_eq!(secrets.len(), 5, "two keys, two tokens and a secret");
    secrets
}

#[test]
fn the_form_and_level_of_the_log_are_settings() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    for (format, level, said) in [("human", "INFO", true), ("JSON", "Warning", false), ("auto", "off", false)] {
        let mut command = serve(folder.path());
        command.env("API_KEY", API_KEY).env("UNIX_SOCKET", &socket).env("LOG_FORMAT", format).env("LOG_LEVEL", level);
        let mut process = Process::spawn(command);
        let url = format!("unix:{}", socket.display());
        let mut client = eventually("it listens", PATIENCE, || Client::connect(&url).ok());
        client.new_session();
        drop(client);
        process.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(process.wait(PATIENCE).code(), Some(0));
        let out = process.out.text();
        assert_eq!(out.contains("listening") && out.contains("route=\"/api/v1/sessions\""), said, "{format}: {out}");
        assert!(said || out.is_empty(), "{format} {level}: {out}");
        assert!(!out.contains('{') && !out.contains('\x1b'), "{format}: {out}");
        let _ = fs::remove_file(&socket);
    }
}
