//! `chatstore keys` beside a running server.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::first_start::keys_in;
use crate::support::{Server, eventually, tool};

/// How soon a change must be effective in a running server.
const A_SECOND: Duration = Duration::from_secs(1);

/// Makes a key and gives back what stood on standard output, which must be the key alone.
fn create(folder: &Path, words: &[&str]) -> String {
    let made = tool(folder, &[&["keys", "create"], words].concat()).ok();
    let key = made.out.strip_suffix('\n').unwrap().to_owned();
    assert_eq!(keys_in(&key), [key.as_str()], "{}", made.out);
    assert!(keys_in(&made.err).is_empty(), "{}", made.err);
    assert!(made.err.contains(key.split('_').nth(1).unwrap()), "{}", made.err);
    key
}

fn status(server: &Server, key: &str) -> u16 {
    server.client().with_key(key).get("/api/v1/sessions").status
}

#[test]
fn keys_are_made_listed_and_revoked_beside_a_running_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().new_session();

    let key = create(folder.path(), &["--name", "phone app"]);
    eventually("the new key works", A_SECOND, || (status(&server, &key) == 200).then_some(()));
    let id = key.split('_').nth(1).unwrap();
    let list = tool(folder.path(), &["keys", "list"]).ok().out;
    let row = list.lines().find(|line| line.contains(id)).unwrap();
    for part in ["phone app", "default", "read,write,delete,search", "active"] {
        assert!(row.contains(part), "{part} is not in {row}");
    }
    assert!(!list.contains(key.split('_').nth(2).unwrap()));

    let revoked = tool(folder.path(), &["keys", "revoke", id]).ok();
    assert!(revoked.err.contains(id), "{}", revoked.err);
    eventually("the revoked key is refused", A_SECOND, || (status(&server, &key) == 401).then_some(()));
    let list = tool(folder.path(), &["keys", "list"]).ok().out;
    assert!(list.lines().any(|line| line.contains(id) && line.contains("revoked ")), "{list}");
    assert!(tool(folder.path(), &["keys", "revoke", "nobody"]).refusal().contains("`nobody`"));

    // The server notices on connections it has had for long, too.
    let key = create(folder.path(), &["--name", "kept alive"]);
    let mut client = server.client().with_key(&key);
    client.get("/api/v1/sessions").expect(200);
    tool(folder.path(), &["keys", "revoke", key.split('_').nth(1).unwrap()]).ok();
    eventually("refused", A_SECOND, || (client.get("/api/v1/sessions").status == 401).then_some(()));
    server.stop();
}

#[test]
fn a_key_speaks_for_its_project_its_user_its_scopes_and_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.client().new_session();

    let other = create(folder.path(), &["--name", "other", "--project", "other"]);
    let mut client = server.client().with_key(&other);
    assert_eq!(client.get("/api/v1/sessions").expect(200), json!([]), "another project sees nothing of ours");

    let reader = create(folder.path(), &["--name", "reader", "--scopes", "read"]);
    let mut client = server.client().with_key(&reader);
    assert_eq!(client.get("/api/v1/sessions").expect(200).as_array().unwrap().len(), 1);
    client.post("/api/v1/sessions", &json!({"session_name": "no"})).expect_problem(403, "insufficient_scope");

    let ada = create(folder.path(), &["--name", "ada's", "--user", "ada"]);
    let mut client = server.client().with_key(&ada);
    let made = client.post("/api/v1/sessions", &json!({"session_name": "mine"})).expect(201);
    assert_eq!(made["user_id"], "ada");
    let named = json!({"session_name": "no", "user_id": "bob"});
    client.post("/api/v1/sessions", &named).expect_problem(403, "user_mismatch");

    let brief = create(folder.path(), &["--name", "brief", "--expires", "1s"]);
    eventually("it expires", Duration::from_secs(3), || (status(&server, &brief) == 401).then_some(()));
    let list = tool(folder.path(), &["keys", "list"]).ok().out;
    assert!(list.lines().any(|line| line.contains("brief") && line.contains("expired ")), "{list}");
    server.stop();
}

#[test]
fn keys_may_be_made_before_the_first_start() {
    let folder = tempfile::tempdir().unwrap();
    let key = create(folder.path(), &["--name", "early"]);
    let mut server = Server::spawn(crate::support::serve(folder.path()));
    assert_eq!(status(&server, &key), 200);
    server.stop();
    assert_eq!(server.process.err.text(), "", "there is a key, so none is made");
}

#[test]
fn wrong_words_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (words, named) in [
        (&["keys", "create", "--name", ""][..], "--name"),
        (&["keys", "create", "--name", "n", "--scopes", "read,fly"], "`fly`"),
        (&["keys", "create", "--name", "n", "--scopes", ""], "--scopes"),
        (&["keys", "create", "--name", "n", "--expires", "soon"], "`soon`"),
        (&["keys", "create", "--name", "n", "--project", "a\nb"], "--project"),
        (&["keys", "create"], "--name"),
        (&["keys", "list", "--database-url", "sqlite:nowhere.db"], "nowhere.db"),
    ] {
        let refused = tool(folder.path(), words);
        assert_eq!(refused.out, "");
        let sentence = refused.refusal();
        assert!(sentence.contains(named), "{named} is not in {sentence}");
    }
    assert!(!folder.path().join("nowhere.db").exists());
}

#[test]
fn a_stored_key_in_the_environment_keeps_its_own_rights() {
    let folder = tempfile::tempdir().unwrap();
    Server::start(folder.path()).stop();
    let key = create(folder.path(), &["--name", "n", "--scopes", "read"]);
    let mut server = Server::start_with(folder.path(), &[("API_KEY", &key)]);
    let mut client = server.client().with_key(&key);
    client.get("/api/v1/sessions").expect(200);
    client.post("/api/v1/sessions", &json!({"session_name": "n"})).expect(403);
    // The whole key names it too, and is not repeated.
    let revoked = tool(folder.path(), &["keys", "revoke", &key]).ok();
    assert!(!revoked.err.contains(&key), "{}", revoked.err);
    eventually("refused", A_SECOND, || (client.get("/api/v1/sessions").status == 401).then_some(()));
    assert!(server.log().iter().any(|line| line["level"] == "WARN" && line.to_string().contains("API_KEY")));
    server.stop();
}

#[test]
fn a_mistyped_whole_key_is_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    Server::start(folder.path()).stop();
    let mut key = create(folder.path(), &["--name", "n"]);
    key.push('x');
    let refusal = tool(folder.path(), &["keys", "revoke", &key]).refusal();
    assert!(!refusal.contains(&key) && refusal.contains("keys list"), "{refusal}");
}

#[test]
fn a_large_body_that_is_refused_unread_still_gets_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let large = format!("{{\"session_name\":\"{}\"}}", "x".repeat(6 << 20));
    for _ in 0..5 {
        let answer = server.client().with_key("a-key-that-is-none").try_send("POST", "/api/v1/sessions", Some(&large));
        assert_eq!(answer.unwrap().status, 401);
        let larger = format!("{large}{}", " ".repeat(12 << 20));
        let answer = server.client().try_send("POST", "/api/v1/sessions", Some(&larger));
        assert_eq!(answer.unwrap().status, 413);
    }
    server.stop();
}
