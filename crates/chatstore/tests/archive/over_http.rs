//! Imports through a running server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;

use serde_json::json;

use super::{conversations, counts, export, folder, import, said, write};
use crate::support::{API_KEY, Server, chatstore, run, tool};

#[test]
fn a_running_server_is_named_and_can_be_gone_through() {
    let folder = folder();
    let lines = conversations(50, 4);
    write(&folder, "chats.jsonl", &lines);
    let mut server = Server::start(folder.path());
    let refusal = tool(folder.path(), &["import", "chats.jsonl"]).refusal();
    let process = format!("`chatstore serve` (process {})", server.process.pid());
    assert!(refusal.contains(&process) && refusal.contains(&format!("--url {}", server.url)), "{refusal}");

    let mut command = chatstore(folder.path());
    command.args(["import", "chats.jsonl", "--url", &server.url]).env("API_KEY", API_KEY);
    assert_eq!(counts(&run(command).ok()), [50, 200, 0, 0]);
    assert_eq!(said(&export(&folder)), said(&lines));

    for (url, key, reason) in [
        (server.url.as_str(), "wrong-key-wrong-key", "does not accept the API key"),
        (&format!("{}/elsewhere", server.url), API_KEY, "there is no Chatstore at"),
        ("http://127.0.0.1:1", API_KEY, "cannot be reached"),
        ("127.0.0.1:1", API_KEY, "--url must be the address"),
    ] {
        let refusal = tool(folder.path(), &["import", "chats.jsonl", "--url", url, "--api-key", key]).refusal();
        assert!(refusal.contains(reason) && !refusal.contains(key), "{refusal}");
    }
    let refusal = tool(folder.path(), &["import", "chats.jsonl", "--url", &server.url]).refusal();
    assert!(refusal.contains("needs an API key"), "{refusal}");
    let reader = tool(folder.path(), &["keys", "create", "--name", "reader", "--scopes", "read"]).ok().out;
    let words = ["import", "chats.jsonl", "--url", &server.url, "--api-key", reader.trim()];
    let refusal = tool(folder.path(), &words).refusal();
    assert!(refusal.contains("scope `admin`") && !refusal.contains(reader.trim()), "{refusal}");
    server.stop();
}

#[test]
fn a_server_on_a_unix_socket_takes_an_import() {
    let folder = folder();
    write(&folder, "chats.jsonl", conversations(20, 2));
    let socket = folder.path().join("chatstore.sock");
    let mut server = Server::start_with(folder.path(), &[("UNIX_SOCKET", socket.to_str().unwrap())]);
    assert!(server.url.starts_with("unix:"));
    assert_eq!(import(&folder, &["chats.jsonl", "--url", &server.url, "--api-key", API_KEY]), [20, 40, 0, 0]);
    server.stop();
}

#[test]
fn a_long_conversation_is_sent_in_parts() {
    let folder = folder();
    let content = "x".repeat(1_000);
    let messages: Vec<_> = (0..12_000).map(|n| json!({"role": "user", "content": format!("{n} {content}")})).collect();
    let long = json!({"id": "long", "messages": messages}).to_string();
    assert!(long.len() > 2 * (4 << 20));
    let lines = format!("{}{long}\n", conversations(3, 2));
    write(&folder, "chats.jsonl", &lines);
    // The second server takes less than is usual.
    for limit in ["16777216", "300000"] {
        let served = self::folder();
        let mut server = Server::start_with(served.path(), &[("BODY_BYTES_MAX", limit), ("CONTENT_BYTES_MAX", "4096")]);
        let file = folder.path().join("chats.jsonl");
        let words = [file.to_str().unwrap(), "--url", &server.url, "--api-key", API_KEY];
        assert_eq!(import(&served, &words), [4, 12_006, 0, 0], "{limit}");
        assert_eq!(import(&served, &words), [0, 0, 4, 0], "{limit}");
        server.stop();
        assert_eq!(said(&export(&served)), said(&lines), "{limit}");
    }
}

/// A server that answers each request with the next of these.
fn scripted(answers: &'static [&'static str]) -> (String, std::thread::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = move || {
        for answer in answers {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let (mut line, mut length) = (String::new(), 0);
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).unwrap();
                let header = line.to_ascii_lowercase();
                length = header.strip_prefix("content-length: ").map_or(length, |n| n.trim().parse().unwrap());
            }
            stream.read_exact(&mut vec![0; length]).unwrap();
            write!(stream.get_mut(), "HTTP/1.1 {answer}").unwrap();
        }
        answers.len()
    };
    (url, std::thread::spawn(serve))
}

#[test]
fn a_busy_server_is_asked_again() {
    let folder = folder();
    write(&folder, "chats.jsonl", conversations(1, 2));
    let (url, server) = scripted(&[
        "503 Service Unavailable\r\nretry-after: 0\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "429 Too Many Requests\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        // The connection breaks: nobody knows whether it was stored.
        "",
        "200 OK\r\nconnection: close\r\ncontent-length: 40\r\n\r\n{\"sessions\":1,\"messages\":2,\"refused\":[]}",
    ]);
    assert_eq!(import(&folder, &["chats.jsonl", "--url", &url, "--api-key", API_KEY]), [1, 2, 0, 0]);
    assert_eq!(server.join().unwrap(), 4);
    let (url, server) =
        scripted(&["307 Moved\r\nlocation: http://other/\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"]);
    let refusal = tool(folder.path(), &["import", "chats.jsonl", "--url", &url, "--api-key", API_KEY]).refusal();
    assert!(refusal.contains("redirects to http://other/"), "{refusal}");
    assert_eq!(server.join().unwrap(), 1);
}
