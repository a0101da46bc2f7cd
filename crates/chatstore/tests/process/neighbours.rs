//! Commands beside a running server: those that must wait for it to stop, and those that need not.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::{API_KEY, Client, DATABASE, PATIENCE, Process, Server, eventually, integrity, serve, tool};

#[test]
fn a_second_server_or_migration_is_told_who_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    // On the same port too: that it is taken would say less.
    let port = server.url.rsplit(':').next().unwrap();
    let mut second = serve(folder.path());
    second.env("API_KEY", API_KEY).env("PORT", port);
    let mut second = Process::spawn(second);
    assert_eq!(second.wait(PATIENCE).code(), Some(1));
    let pid = format!("process {}", server.process.pid());
    let way = format!("--url {}", server.url);
    let refusals = [second.err.text(), tool(folder.path(), &["migrate", "up"]).refusal()];
    for refusal in refusals {
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
        for part in ["is in use by `chatstore serve`", &pid, &way, "chatstore.db"] {
            assert!(refusal.contains(part), "{part} is not in {refusal}");
        }
    }
    server.client().get("/readyz").expect(200);
    let status = tool(folder.path(), &["migrate", "status"]).ok().out;
    assert!(status.lines().count() > 0 && status.lines().all(|line| line.contains(" applied ")), "{status}");

    // A server that was killed leaves no lock behind.
    server.process.kill();
    let up = tool(folder.path(), &["migrate", "up"]).ok();
    assert!(up.err.contains("up to date"), "{}", up.err);
    Server::start(folder.path()).stop();
}

#[test]
fn a_fresh_folder_can_be_migrated_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let status = tool(folder.path(), &["migrate", "status"]).ok().out;
    assert!(status.lines().count() > 0 && status.lines().all(|line| line.ends_with(" pending")), "{status}");
    assert!(!folder.path().join(DATABASE).exists(), "looking makes nothing");
    tool(folder.path(), &["migrate", "up"]).ok();
    let status = tool(folder.path(), &["migrate", "status"]).ok().out;
    assert!(status.lines().all(|line| line.contains(" applied ")), "{status}");
    Server::start_with(folder.path(), &[("AUTO_MIGRATE", "false")]).stop();
}

#[test]
fn a_backup_under_load_holds_all_that_was_acknowledged_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let messages = server.client().new_session();
    let stop = AtomicBool::new(false);
    let journal = Mutex::new(Vec::<Value>::new());
    let (before, made) = std::thread::scope(|scope| {
        let (journal, stop, server, messages) = (&journal, &stop, &server, &messages);
        for writer in 0..4 {
            scope.spawn(move || {
                let mut client = server.client();
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let made = client.append(messages, &format!("{writer} {n}")).expect(201);
                    journal.lock().unwrap().push(made);
                }
            });
        }
        // Whatever happens, the writers end.
        let _end = Raise(stop);
        eventually("the load has begun", PATIENCE, || (journal.lock().unwrap().len() >= 200).then_some(()));
        let before = journal.lock().unwrap().clone();
        let made = tool(folder.path(), &["backup", "copy/chatstore.db"]);
        assert!(made.refusal().contains("copy"), "a folder that is not there is named");
        std::fs::create_dir_all(folder.path().join("restored/data")).unwrap();
        let made = tool(folder.path(), &["backup", "restored/data/chatstore.db"]).ok();
        (before, made)
    });
    assert!(made.err.contains("Wrote and checked restored/data/chatstore.db: 1 sessions, "), "{}", made.err);
    let again = tool(folder.path(), &["backup", "restored/data/chatstore.db"]).refusal();
    assert!(again.contains("restored/data/chatstore.db exists"), "{again}");
    server.stop();

    let restored = folder.path().join("restored");
    assert_eq!(integrity(&restored.join(DATABASE)), "ok");
    let mut server = Server::start(&restored);
    let found = server.client().all(&messages);
    for (message, seq) in found.iter().zip(1_i64..) {
        assert_eq!(message["seq"], seq);
    }
    let by_id: HashMap<_, _> = found.iter().map(|message| (message["message_id"].as_str(), message)).collect();
    for acknowledged in &before {
        assert_eq!(by_id.get(&acknowledged["message_id"].as_str()), Some(&acknowledged));
    }
    server.client().append(&messages, "and on it goes").expect(201);
    server.stop();
}

struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_unix_socket_serves_and_goes_with_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("chatstore.sock");
    let mut command = serve(folder.path());
    command.env("UNIX_SOCKET", &socket);
    let mut server = Server::spawn(command);
    assert_eq!(server.url, format!("unix:{}", socket.display()));
    let key = crate::first_start::shown_key(&server.process.err);
    let mut client = Client::connect(&server.url).unwrap().with_key(&key);
    let messages = client.new_session();
    client.append(&messages, "over a file").expect(201);
    if let Some(curl) = crate::first_start::run_curl_line(&server.process.err.text()) {
        assert!(curl.out.ends_with("\n201"), "{}", curl.out);
    }

    // A second one on the same socket, with other data, does not take it away.
    let other = tempfile::tempdir().unwrap();
    let mut command = serve(other.path());
    command.env("UNIX_SOCKET", &socket).env("API_KEY", API_KEY);
    let mut second = Process::spawn(command);
    assert_eq!(second.wait(PATIENCE).code(), Some(1));
    assert!(second.err.text().contains("chatstore.sock"), "{}", second.err.text());
    client.get("/readyz").expect(200);
    drop(client);
    server.stop();
    assert!(!socket.exists());

    // One that a killed server left is replaced.
    let mut server = Server::start_with(folder.path(), &[("UNIX_SOCKET", socket.to_str().unwrap())]);
    server.process.kill();
    assert!(socket.exists());
    let mut server = Server::start_with(folder.path(), &[("UNIX_SOCKET", socket.to_str().unwrap())]);
    server.client().get("/readyz").expect(200);
    server.stop();
}
