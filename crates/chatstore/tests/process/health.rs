//! `chatstore health`: what the health check of a container sees.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{API_KEY, Server, chatstore, run, serve};

/// A proxy that does not answer.
const NO_PROXY: &str = "http://127.0.0.1:1";

/// `health` with these variables and nothing else said.
fn health(variables: &[(&str, &str)]) -> Command {
    let mut command = chatstore(std::path::Path::new("/"));
    command.arg("health").envs(variables.iter().copied());
    command
}

/// The one line with which it finds a server unfit.
#[track_caller]
fn unfit(command: Command) -> String {
    let finished = run(command);
    assert_eq!((finished.status.code(), finished.out.as_str()), (Some(1), ""), "{}", finished.err);
    let line = finished.refusal();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn a_ready_server_is_found_by_its_settings_and_by_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let port = server.url.rsplit(':').next().unwrap();
    for (variables, words) in [
        (&[("PORT", port)][..], &[][..]),
        (&[("PORT", port), ("HOST", "0.0.0.0")], &[]),
        (&[], &["--port", port]),
        (&[("PORT", "1")], &["--url", server.url.as_str()]),
        (&[("PORT", port), ("HTTP_PROXY", NO_PROXY), ("ALL_PROXY", NO_PROXY)], &[]),
    ] {
        let mut command = health(variables);
        command.args(words);
        let finished = run(command).ok();
        assert_eq!((finished.out, finished.err), (format!("{} is ready\n", server.url), String::new()));
    }
    // Nor is a proxy asked for an address that is none of loopback.
    let mut command = health(&[("HTTP_PROXY", NO_PROXY), ("ALL_PROXY", NO_PROXY)]);
    command.args(["--url", &format!("http://0.0.0.0:{port}")]);
    run(command).ok();
    let port = port.to_owned();
    server.stop();
    let line = unfit(health(&[("PORT", &port)]));
    assert!(line.contains(&server.url) && line.contains("does not answer"), "{line}");
    assert!(unfit(health(&[("PORT", "0")])).contains("--url"));
}

#[test]
fn a_server_on_a_unix_socket_is_asked_there() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("chatstore.sock");
    let mut command = serve(folder.path());
    command.env("UNIX_SOCKET", &socket).env("API_KEY", API_KEY);
    let mut server = Server::spawn(command);
    let variables = [("UNIX_SOCKET", socket.to_str().unwrap()), ("HTTP_PROXY", NO_PROXY)];
    assert_eq!(run(health(&variables)).ok().out, format!("unix:{} is ready\n", socket.display()));
    server.stop();
    assert!(unfit(health(&variables)).contains("does not answer"));
}

#[test]
fn an_import_on_this_host_asks_no_proxy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in.jsonl"), "{\"id\": \"a\", \"messages\": [{\"content\": \"Hi\"}]}\n").unwrap();
    let socket = folder.path().join("chatstore.sock");
    for name in ["tcp", "unix"] {
        let mut command = serve(folder.path());
        command.env("API_KEY", API_KEY).env("DATABASE_URL", format!("sqlite:{name}.db"));
        if name == "unix" {
            command.env("UNIX_SOCKET", &socket);
        }
        let mut server = Server::spawn(command);
        let mut command = chatstore(folder.path());
        command.args(["import", "in.jsonl", "--url", &server.url]);
        command.envs([("API_KEY", API_KEY), ("HTTP_PROXY", NO_PROXY), ("ALL_PROXY", NO_PROXY)]);
        let imported = run(command).ok();
        assert!(imported.err.contains("Imported 1 session and 1 message"), "{name}: {}", imported.err);
        server.stop();
    }
}

/// Answers one request with `answer`, or takes it and never says a word.
fn impostor(answer: Option<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = BufReader::new(stream.try_clone().unwrap()).lines();
        while head.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        match answer {
            Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
            None => std::thread::sleep(Duration::from_secs(30)),
        }
    });
    url
}

#[test]
fn a_server_that_is_not_ready_or_hangs_is_unfit() {
    let body = r#"{"code": "not_ready", "detail": "The store cannot be used."}"#;
    let answer = format!("HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut command = health(&[]);
    command.args(["--url", &impostor(Some(answer.leak()))]);
    let line = unfit(command);
    assert!(line.contains("is not ready: the server says 503: The store cannot be used"), "{line}");

    let mut command = health(&[]);
    command.args(["--url", &impostor(None)]);
    let asked = Instant::now();
    let line = unfit(command);
    assert!(line.contains("does not answer"), "{line}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());

    let mut command = health(&[]);
    command.args(["--url", "localhost"]);
    assert!(unfit(command).contains("http://127.0.0.1:8000"));
}
