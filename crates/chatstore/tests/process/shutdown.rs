//! A stop lets what runs finish, takes nothing new, and ends in time.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{API_KEY, Client, PATIENCE, Server, eventually, integrity};

/// How long a stop may take at most.
const STOP_LIMIT: Duration = Duration::from_secs(10);
const BODY: &str = "{\"content\": \"halfway when the signal came\"}";

/// A client whose request has reached its handler, with half of its body still to be sent.
fn halfway(server: &Server, messages: &str) -> Client {
    let mut client = server.client();
    let head = format!(
        "POST {messages} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {API_KEY}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nexpect: 100-continue\r\n\r\n",
        BODY.len()
    );
    client.write(head.as_bytes()).unwrap();
    // The handler asks for the body, so it is at work.
    assert_eq!(client.read_interim().unwrap(), 100);
    client.write(&BODY.as_bytes()[..20]).unwrap();
    client
}

fn a_signal_drains(signal: Signal, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let messages = server.client().new_session();
    let mut idle = server.client();
    idle.get("/readyz").expect(200);
    let mut running = halfway(&server, &messages);

    let asked = Instant::now();
    server.process.signal(signal);
    eventually("new connections are refused", Duration::from_secs(2), || match Client::connect(&server.url) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
        _ => None,
    });
    assert!(server.process.is_running(), "it waits for the request");
    assert!(idle.read().is_err(), "an idle connection is closed");
    running.write(&BODY.as_bytes()[20..]).unwrap();
    assert_eq!(running.read().unwrap().expect(201)["content"], "halfway when the signal came");
    let status = server.process.wait(STOP_LIMIT.saturating_sub(asked.elapsed()));
    assert_eq!(status.code(), Some(0));
    eprintln!("{name}: stopped after {:?}", asked.elapsed());

    let log = server.log();
    assert!(log.iter().any(|line| line["signal"] == name), "{log:?}");
    assert_eq!(log.last().unwrap()["message"], "store closed");
    // The store was closed in order: all is in the one file.
    let log_size = std::fs::metadata(folder.path().join("data/chatstore.db-wal")).map_or(0, |file| file.len());
    assert_eq!(log_size, 0);
    assert_eq!(integrity(&folder.path().join("data/chatstore.db")), "ok");
    let mut server = Server::start(folder.path());
    assert_eq!(server.client().all(&messages).len(), 1);
    server.stop();
}

#[test]
fn sigterm_drains() {
    a_signal_drains(Signal::SIGTERM, "SIGTERM");
}

#[test]
fn ctrl_c_drains() {
    a_signal_drains(Signal::SIGINT, "Ctrl-C");
}

#[test]
fn a_request_that_never_ends_does_not_hold_up_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start_with(folder.path(), &[("DRAIN_TIMEOUT_MS", "300")]);
    let messages = server.client().new_session();
    let mut running = halfway(&server, &messages);
    let asked = Instant::now();
    server.process.signal(Signal::SIGTERM);
    assert_eq!(server.process.wait(STOP_LIMIT).code(), Some(0));
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert!(running.read().is_err());
    let mut server = Server::start(folder.path());
    assert!(server.client().all(&messages).is_empty());
    server.stop();
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let messages = server.client().new_session();
    let _running = halfway(&server, &messages);
    server.process.signal(Signal::SIGINT);
    server.process.out.wait_for(|text| text.contains("stopping").then_some(())).unwrap();
    let asked = Instant::now();
    server.process.signal(Signal::SIGINT);
    let status = server.process.wait(PATIENCE);
    assert!(!status.success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}
