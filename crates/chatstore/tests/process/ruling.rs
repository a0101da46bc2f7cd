//! Ruling from the host and over HTTP: keys, projects, limits, user tokens and the audit log, beside a running server
//! on either engine.

use std::time::Duration;

use chatstore_postgres::testing::TestDatabase;
use serde_json::{Value, json};

use crate::first_start::shown_key;
use crate::support::{Finished, PATIENCE, Server, chatstore, eventually, run, serve};

/// How soon a change must be effective in every running server. It is a second, as other tests show; here a busy
/// machine may take longer.
const SOON: Duration = Duration::from_secs(5);

/// A folder to run in, and a database.
struct Host {
    folder: tempfile::TempDir,
    database: Option<TestDatabase>,
}

fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

impl Host {
    fn sqlite() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), database: None }
    }

    fn postgres() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), database: Some(now(TestDatabase::create())) }
    }

    fn database_url(&self) -> String {
        self.database.as_ref().map_or("sqlite:chatstore.db".to_owned(), TestDatabase::url)
    }

    fn tool(&self, words: &[&str]) -> Finished {
        let mut command = chatstore(self.folder.path());
        command.args(words).env("DATABASE_URL", self.database_url());
        run(command)
    }

    fn start(&self, variables: &[(&str, &str)]) -> Server {
        let mut command = serve(self.folder.path());
        command.env("API_KEY", crate::support::API_KEY).env("DATABASE_URL", self.database_url());
        command.envs(variables.iter().copied());
        Server::spawn(command)
    }

    /// What a command prints alone on standard output, shown once.
    #[track_caller]
    fn shown(&self, words: &[&str]) -> String {
        let made = self.tool(words).ok();
        let shown = made.out.strip_suffix('\n').unwrap().to_owned();
        assert!(!shown.contains(char::is_whitespace) && shown.len() >= 43, "{}", made.out);
        assert!(!made.err.contains(&shown), "{}", made.err);
        shown
    }

    /// Makes a key.
    fn key(&self, words: &[&str]) -> String {
        self.shown(&[&["keys", "create", "--name", "phone"], words].concat())
    }

    #[track_caller]
    fn assert_refused(&self, words: &[&str], part: &str) {
        let refusal = self.tool(words).refusal();
        assert!(refusal.contains(part), "{part} is not in {refusal}");
    }

    /// How many sessions are not deleted, of all projects.
    fn live_sessions(&self) -> i64 {
        const COUNT: &str = "select count(*) from sessions where deleted_at is null";
        match &self.database {
            None => {
                let file = rusqlite::Connection::open(self.folder.path().join("chatstore.db")).unwrap();
                file.query_row(COUNT, (), |row| row.get(0)).unwrap()
            }
            Some(database) => now(async {
                let (client, connection) =
                    tokio_postgres::connect(&database.owner_url(), tokio_postgres::NoTls).await.unwrap();
                let connection = tokio::spawn(connection);
                let count = client.query_one(COUNT, &[]).await.unwrap().get(0);
                drop(client);
                connection.await.unwrap().unwrap();
                count
            }),
        }
    }

    /// The audit log.
    fn audit(&self, words: &[&str]) -> Vec<Value> {
        let exported = self.tool(&[&["audit", "export"], words].concat()).ok();
        exported.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn id(key: &str) -> &str {
    key.split('_').nth(1).unwrap()
}

fn status(server: &Server, key: &str) -> u16 {
    server.client().with_key(key).get("/api/v1/sessions").status
}

/// Waits until the key is answered like that by the server.
#[track_caller]
fn soon(server: &Server, key: &str, expected: u16) {
    eventually(&format!("{expected} for the key"), SOON, || (status(server, key) == expected).then_some(()));
}

fn a_rotated_key_keeps_its_id_and_its_old_secret_for_a_while(host: &Host) {
    let mut server = host.start(&[]);
    let first = host.key(&[]);
    soon(&server, &first, 200);
    let second = host.shown(&["keys", "rotate", id(&first)]);
    assert!(id(&first) == id(&second) && first != second);
    soon(&server, &second, 200);
    assert_eq!(status(&server, &first), 200);
    assert!(host.tool(&["keys", "show", id(&first)]).ok().out.contains("secret before until"));

    // The next rotation ends the first secret, and this one the second, too.
    let third = host.shown(&["keys", "rotate", id(&first), "--grace", "0s"]);
    soon(&server, &first, 401);
    soon(&server, &second, 401);
    soon(&server, &third, 200);
    let fourth = host.shown(&["keys", "rotate", &third, "--grace", "1s"]);
    soon(&server, &fourth, 200);
    eventually("the grace ends", Duration::from_secs(3), || (status(&server, &third) == 401).then_some(()));
    assert_eq!(status(&server, &fourth), 200);

    host.assert_refused(&["keys", "rotate", id(&first), "--grace", "31d"], "30 days");
    host.assert_refused(&["keys", "rotate", id(&first), "--grace", "soon"], "`soon`");
    host.assert_refused(&["keys", "rotate", "nobody"], "`nobody`");
    host.tool(&["keys", "revoke", id(&first)]).ok();
    soon(&server, &fourth, 401);
    host.assert_refused(&["keys", "rotate", id(&first)], "is revoked");
    // A secret alone, or a mistyped key, is not repeated.
    for pasted in [fourth.split('_').nth(2).unwrap(), &format!("{fourth}x")] {
        let refusal = host.tool(&["keys", "rotate", pasted]).refusal();
        assert!(!refusal.contains(pasted), "{refusal}");
    }
    server.stop();
}

fn a_key_is_changed_beside_a_running_server(host: &Host) {
    let mut server = host.start(&[]);
    let key = host.key(&["--origin", "https://app.example", "--address", "127.0.0.1/8", "--limit-search", "7/hour"]);
    let update = |words: &[&str]| host.tool(&[&["keys", "update", id(&key)], words].concat()).ok();
    soon(&server, &key, 200);
    let shown = host.tool(&["keys", "show", id(&key)]).ok().out;
    for part in ["phone", "https://app.example", "127.0.0.0/8", "7/hour", "read,write,delete,search", "active"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let from = |origin: &str| {
        let mut client = server.client().with_key(&key).with_header("origin", origin);
        client.get("/api/v1/sessions")
    };
    from("https://app.example").expect(200);
    from("https://evil.example").expect_problem(403, "origin_not_allowed");
    update(&["--origin", "none"]);
    eventually("any origin", SOON, || (from("https://evil.example").status == 200).then_some(()));

    update(&["--address", "192.0.2.0/24", "--address", "2001:db8::1"]);
    soon(&server, &key, 403);
    update(&["--address", "none"]);
    soon(&server, &key, 200);

    let mut client = server.client().with_key(&key);
    let session = json!({"session_name": "n"});
    client.post("/api/v1/sessions", &session).expect(201);
    update(&["--scopes", "read", "--name", "reader"]);
    eventually("read only", SOON, || (client.post("/api/v1/sessions", &session).status == 403).then_some(()));

    update(&["--limit-reads", "2/day"]);
    soon(&server, &key, 429);
    update(&["--limit-reads", "none"]);
    soon(&server, &key, 200);

    update(&["--expires", "1s"]);
    eventually("it expires", Duration::from_secs(3), || (status(&server, &key) == 401).then_some(()));
    update(&["--expires", "none"]);
    soon(&server, &key, 200);

    let shown = host.tool(&["keys", "show", id(&key)]).ok().out;
    assert!(shown.contains("reader") && !shown.contains("192.0.2.0") && !shown.contains("2/day"), "{shown}");
    for (words, part) in [
        (&[][..], "say what is to be changed"),
        (&["--scopes", "fly"], "`fly`"),
        (&["--name", ""], "--name"),
        (&["--limit-writes", "often"], "--limit-writes"),
        (&["--origin", "https://app.example/path"], "--origin"),
        (&["--address", "localhost"], "--address"),
        (&["--expires", "0d"], "--expires"),
    ] {
        host.assert_refused(&[&["keys", "update", id(&key)], words].concat(), part);
    }
    server.stop();
    // It was noted when the server stopped, if not before.
    let shown = host.tool(&["keys", "show", id(&key)]).ok().out;
    assert!(shown.contains("last used"), "{shown}");
    let list = host.tool(&["keys", "list"]).ok().out;
    assert!(list.lines().next().unwrap().contains("LAST USED"), "{list}");
}

fn a_project_comes_and_goes_beside_a_running_server(host: &Host) {
    let mut server = host.start(&[]);
    server.client().new_session();
    host.tool(&["projects", "create", "acme", "--limit-search", "off", "--quota-sessions-per-user", "1"]).ok();
    host.assert_refused(&["projects", "create", "acme"], "already");
    host.assert_refused(&["projects", "create", "a\nb"], "control characters");
    host.assert_refused(&["projects", "create", "b", "--quota-project-bytes", "1MB"], "--quota-project-bytes");
    // A deleted project is called by its id.
    let id_of_acme = |shown: &str| shown.split_whitespace().nth(1).unwrap().to_owned();
    let uuid = id_of_acme(&host.tool(&["projects", "show", "acme"]).ok().out);
    host.assert_refused(&["projects", "create", &uuid], "id");
    host.assert_refused(&["projects", "update", "acme", "--name", &uuid.to_uppercase()], "id");
    host.assert_refused(&["keys", "create", "--name", "n", "--project", &uuid], "id");
    let key = host.key(&["--project", "acme", "--user", "ada"]);
    soon(&server, &key, 200);
    let mut client = server.client().with_key(&key);
    let session = json!({"session_name": "n"});
    let made = client.post("/api/v1/sessions", &session).expect(201);
    let messages = format!("/api/v1/sessions/{}/messages", made["session_id"].as_str().unwrap());
    client.append(&messages, "hello").expect(201);
    client.post("/api/v1/sessions", &session).expect_problem(403, "quota_exceeded");
    host.tool(&["projects", "update", "acme", "--quota-sessions-per-user", "none", "--name", "Acme Inc."]).ok();
    eventually("room", SOON, || (client.post("/api/v1/sessions", &session).status == 201).then_some(()));

    assert!(host.tool(&["projects", "list"]).ok().out.contains("Acme Inc."));
    let shown = host.tool(&["projects", "show", "Acme Inc."]).ok().out;
    let value = |name: &str| {
        let line = shown.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {shown}"));
        line.rsplit("  ").next().unwrap().to_owned()
    };
    assert_eq!([value("sessions  "), value("messages  "), value("bytes  ")], ["2", "1", "7"].map(str::to_owned));
    assert_eq!(value("limit of searches"), "off");
    let keys = host.tool(&["keys", "list", "--project", "Acme Inc."]).ok().out;
    assert!(keys.contains(id(&key)) && keys.lines().count() == 2, "{keys}");

    host.assert_refused(&["projects", "delete", "Acme Inc."], "2 sessions with 1 message");
    host.assert_refused(&["projects", "delete", "default", "--yes"], "cannot be deleted");
    host.assert_refused(&["projects", "update", "Acme Inc.", "--name", "default"], "already");
    soon(&server, &key, 200);
    let deleted = host.tool(&["projects", "delete", "Acme Inc.", "--yes"]).ok();
    assert!(deleted.err.contains("Its sessions are deleted"), "{}", deleted.err);
    assert_eq!(host.live_sessions(), 1, "of the others none is touched");
    soon(&server, &key, 401);
    host.assert_refused(&["projects", "show", "Acme Inc."], "`Acme Inc.`");
    host.assert_refused(&["keys", "show", id(&key)], id(&key));
    assert_eq!(server.client().get("/api/v1/sessions").expect(200).as_array().unwrap().len(), 1);
    server.stop();
}

fn a_project_deleted_over_http_is_erased_by_the_server(host: &Host) {
    let mut server = host.start(&[]);
    let mut root = server.client();
    let made = root.post("/api/v1/admin/projects", &json!({"name": "brief"})).expect(201);
    let key = host.key(&["--project", "brief"]);
    soon(&server, &key, 200);
    let mut client = server.client().with_key(&key);
    for _ in 0..3 {
        client.new_session();
    }
    assert_eq!(host.live_sessions(), 3);
    let target = format!("/api/v1/admin/projects/{}", made["project_id"].as_str().unwrap());
    root.try_send("DELETE", &target, None).unwrap().expect(200);
    soon(&server, &key, 401);
    eventually("its sessions are erased", PATIENCE, || (host.live_sessions() == 0).then_some(()));
    server.stop();
}

fn the_audit_log_shows_what_was_done_here_and_over_http(host: &Host) {
    let mut server = host.start(&[]);
    let mut root = server.client();
    let made = host.key(&["--project", "acme"]);
    host.assert_refused(&["keys", "revoke", "nobody"], "`nobody`");
    let session = root.new_session();
    root.try_send("DELETE", session.strip_suffix("/messages").unwrap(), None).unwrap().expect(200);
    root.post("/api/v1/admin/keys", &json!({"name": "by HTTP"})).expect(201);
    root.post("/api/v1/admin/keys/absentabsent/revoke", &json!({})).expect(404);
    host.tool(&["reindex", "--text"]).ok();

    let events = host.audit(&[]);
    let ids: Vec<&str> = events.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    assert!(ids.is_sorted_by(|one, other| one > other), "{ids:?}");
    let deeds: Vec<[&str; 3]> =
        events.iter().map(|event| ["actor", "action", "outcome"].map(|name| event[name].as_str().unwrap())).collect();
    let expected = [
        ["command", "reindex", "ok"],
        ["root_key", "revoke_api_key", "not_found"],
        ["root_key", "create_api_key", "ok"],
        ["root_key", "delete_session", "ok"],
        ["command", "keys revoke", "failed"],
        ["command", "keys create", "ok"],
        ["command", "projects create", "ok"],
    ];
    assert_eq!(deeds, expected);
    assert_eq!(events[4]["target_id"], "nobody");
    assert_eq!(events[5]["target_id"], id(&made));
    assert_eq!(events[5]["project_id"], events[6]["target_id"]);
    assert_eq!((&events[5]["address"], &events[5]["request_id"]), (&Value::Null, &Value::Null));
    assert_eq!(events[3]["address"], "127.0.0.1");
    assert!(events[3]["request_id"].is_string());

    // The API gives the same events.
    let listed = root.get("/api/v1/admin/audit?limit=100").expect(200);
    let own: Vec<&Value> = events.iter().filter(|event| event["project_id"] != events[6]["project_id"]).collect();
    let listed: Vec<&Value> =
        listed.as_array().unwrap().iter().filter(|event| event["project_id"] != events[6]["project_id"]).collect();
    assert_eq!(listed, own);

    assert_eq!(host.audit(&["--project", "acme"]), events[5..]);
    host.assert_refused(&["audit", "export", "--project", "nobody's"], "`nobody's`");
    let written = host.tool(&["audit", "export", "--output", "events.ndjson"]).ok();
    assert!(written.out.is_empty() && written.err.contains("7 events"), "{}", written.err);
    let file = std::fs::read_to_string(host.folder.path().join("events.ndjson")).unwrap();
    assert_eq!(file.lines().count(), 7);
    assert!(!file.contains(made.split('_').nth(2).unwrap()));
    host.assert_refused(&["audit", "export", "--output", "events.ndjson"], "events.ndjson");
    // A deleted project's events stay.
    host.tool(&["projects", "delete", "acme", "--yes"]).ok();
    let events = host.audit(&[]);
    assert_eq!(
        (events.len(), &events[0]["action"], &events[0]["outcome"]),
        (8, &json!("projects delete"), &json!("ok"))
    );
    server.stop();
}

fn limits_come_from_the_environment(host: &Host) {
    let key = host.key(&[]);
    let mut server = host.start(&[("RATE_LIMIT", "5/minute")]);
    let mut client = server.client().with_key(&key);
    for n in 1..=5 {
        let answer = client.get("/api/v1/sessions");
        answer.expect(200);
        assert!(answer.header("ratelimit").is_some_and(|text| text.contains(&format!("r={}", 5 - n))), "{n}");
        assert!(answer.header("ratelimit-policy").is_some());
    }
    let refused = client.get("/api/v1/sessions");
    refused.expect_problem(429, "rate_limited");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=12).contains(&wait), "{wait}");
    // Writes have their own budget, and whoever asks for health is never refused.
    client.new_session();
    for _ in 0..20 {
        client.get("/livez").expect(200);
        client.get("/readyz").expect(200);
    }
    client.get("/api/v1/sessions").expect_problem(429, "rate_limited");
    server.stop();
}

fn a_user_token_opens_what_it_says(host: &Host) {
    let mut server = host.start(&[("SECRET_KEY", "a-secret-of-these-tests-0123456789")]);
    let mut root = server.client();
    let minted = root.post("/api/v1/admin/tokens", &json!({"user_id": "ada", "scopes": ["read", "write"]})).expect(201);
    let token = minted["token"].as_str().unwrap();
    let mut ada = server.client().with_token(token);
    let made = ada.post("/api/v1/sessions", &json!({"session_name": "hers"})).expect(201);
    assert_eq!(made["user_id"], "ada");
    let path = format!("/api/v1/sessions/{}", made["session_id"].as_str().unwrap());
    ada.try_send("DELETE", &path, None).unwrap().expect_problem(403, "insufficient_scope");
    ada.get("/api/v1/admin/keys").expect_problem(403, "insufficient_scope");
    let (head, _) = token.rsplit_once('.').unwrap();
    let mut forged = server.client().with_token(&format!("{head}.{}", "A".repeat(43)));
    forged.get("/api/v1/sessions").expect_problem(401, "invalid_token");
    server.stop();

    // Without the key, it is believed no more; a project's own secret makes others.
    let mut server = host.start(&[]);
    server.client().with_token(token).get("/api/v1/sessions").expect(401);
    let ask = json!({"user_id": "ada"});
    assert!(server.client().post("/api/v1/admin/tokens", &ask).status >= 400);
    let secret = host.shown(&["projects", "token-secret", "default"]);
    assert_eq!(secret.len(), 43);
    let mut root = server.client();
    let minted = eventually("the secret signs", SOON, || {
        let answer = root.post("/api/v1/admin/tokens", &ask);
        (answer.status == 201).then(|| answer.json())
    });
    let token = minted["token"].as_str().unwrap();
    let status = |token: &str| server.client().with_token(token).get("/api/v1/sessions").status;
    assert_eq!(status(token), 200);
    host.shown(&["projects", "token-secret", "default", "--grace", "1h"]);
    assert_eq!(status(token), 200, "of the secret before");
    host.assert_refused(&["projects", "token-secret", "default", "--remove", "--grace", "1h"], "--remove");
    let removed = host.tool(&["projects", "token-secret", "default", "--remove"]).ok();
    assert_eq!(removed.out, "");
    eventually("refused", SOON, || (status(token) == 401).then_some(()));
    server.stop();
}

/// Ed25519, of RFC 8032 (7.1, test 1).
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
";

fn a_project_is_told_whose_tokens_it_believes(host: &Host) {
    let mut server = host.start(&[]);
    let mut root = server.client();
    std::fs::write(host.folder.path().join("key.pem"), PUBLIC_KEY).unwrap();
    std::fs::write(host.folder.path().join("private.pem"), PUBLIC_KEY.replace("PUBLIC", "PRIVATE")).unwrap();
    let words = ["--public-key", "EdDSA=key.pem", "--token-audience", "acme", "--token-issuer", "https://id.example"];
    host.tool(&[&["projects", "create", "acme"], &words[..]].concat()).ok();
    let shown = || {
        let shown = host.tool(&["projects", "show", "acme"]).ok().out;
        ["token public keys", "token audience", "token issuer"]
            .map(|name| shown.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned())))
    };
    assert_eq!(shown(), ["1", "acme", "https://id.example"].map(|text| Some(text.to_owned())));
    let projects = root.get("/api/v1/admin/projects").expect(200);
    let acme = projects.as_array().unwrap().iter().find(|project| project["name"] == "acme").unwrap();
    let key = &acme["tokens"]["public_keys"][0];
    assert_eq!((&key["algorithm"], &key["public_key"]), (&json!("EdDSA"), &json!(PUBLIC_KEY.trim())));

    let update = |words: &[&str]| host.tool(&[&["projects", "update", "acme"], words].concat()).ok();
    let key = "EdDSA=key.pem";
    update(&["--public-key", key, "--public-key", key, "--token-issuer", "none"]);
    assert_eq!(shown(), [Some("2".to_owned()), Some("acme".to_owned()), None]);
    update(&["--no-public-keys", "--token-audience", "none"]);
    assert_eq!(shown(), [None, None, None]);
    for (words, part) in [
        (&["--public-key", "key.pem"][..], "EdDSA=FILE"),
        (&["--public-key", "HS256=key.pem"], "EdDSA=FILE"),
        (&["--public-key", "RS256=key.pem"], "key.pem must be a public key"),
        (&["--public-key", "EdDSA=private.pem"], "private.pem must hold the public part alone"),
        (&["--public-key", "EdDSA=absent.pem"], "cannot read absent.pem"),
        (&["--public-key", key, "--no-public-keys"], "--no-public-keys"),
        (&["--token-audience", ""], "--token-audience"),
        (&["--limit-total", "often"], "--limit-total"),
        (&[["--public-key", key]; 11].concat(), "at most 10 times"),
    ] {
        host.assert_refused(&[&["projects", "update", "acme"], words].concat(), part);
    }
    server.stop();
}

fn limits_that_the_host_sets_count(host: &Host) {
    let mut server = host.start(&[]);
    let own = host.key(&["--project", "acme", "--limit-reads", "off"]);
    let follower = host.key(&["--project", "acme"]);
    host.tool(&["projects", "update", "acme", "--limit-reads", "1/day"]).ok();
    soon(&server, &follower, 429);
    assert_eq!(status(&server, &own), 200, "the host may give more than the project has");
    let update = |words: &[&str]| host.tool(&[&["keys", "update"], words].concat()).ok();
    update(&[id(&own), "--limit-reads", "none"]);
    update(&[id(&follower), "--limit-reads", "off"]);
    soon(&server, &follower, 200);
    soon(&server, &own, 429);

    // One budget for all of them together, whatever their own limits are.
    let shown = || host.tool(&["projects", "show", "acme"]).ok().out;
    host.tool(&["projects", "update", "acme", "--limit-total", "1/day"]).ok();
    assert!(shown().lines().any(|line| line.starts_with("limit in total") && line.ends_with("1/day")), "{}", shown());
    soon(&server, &follower, 429);
    host.tool(&["projects", "update", "acme", "--limit-total", "none"]).ok();
    soon(&server, &follower, 200);
    assert!(!shown().contains("limit in total"));
    server.stop();
}

/// The database without room for audit events.
fn refuse_events(host: &Host) {
    let file = rusqlite::Connection::open(host.folder.path().join("chatstore.db")).unwrap();
    file.execute_batch("create trigger t before insert on audit_events begin select raise(abort, 'no'); end").unwrap();
}

#[test]
fn a_secret_is_shown_also_where_it_cannot_be_noted() {
    let host = Host::sqlite();
    let old = host.key(&[]);
    refuse_events(&host);
    let shown = |words: &[&str]| {
        let made = host.tool(words);
        assert_eq!(made.status.code(), Some(1), "{}", made.err);
        assert!(made.err.lines().last().unwrap().contains("could not be noted in the audit log"), "{}", made.err);
        made.out.trim().to_owned()
    };
    let made = shown(&["keys", "create", "--name", "n"]);
    let rotated = shown(&["keys", "rotate", id(&old), "--grace", "0s"]);
    assert_eq!(shown(&["projects", "token-secret", "default"]).len(), 43);
    let mut server = host.start(&[]);
    assert_eq!([&made, &rotated, &old].map(|key| status(&server, key)), [200, 200, 401]);
    server.stop();
}

#[test]
fn the_first_key_is_shown_also_where_it_cannot_be_noted() {
    let host = Host::sqlite();
    host.tool(&["migrate", "up"]).ok();
    refuse_events(&host);
    let mut command = serve(host.folder.path());
    command.env("DATABASE_URL", host.database_url());
    let mut server = Server::spawn(command);
    assert_eq!(status(&server, &shown_key(&server.process.err)), 200);
    server.stop();
    assert!(server.log().iter().any(|line| line["level"] == "ERROR" && line.to_string().contains("first key")));
}

/// Each of these as a test on either engine.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[test] fn $name() { super::$name(&super::Host::sqlite()); })*
        }
        mod on_postgres {
            $(#[test] fn $name() { super::$name(&super::Host::postgres()); })*
        }
    };
}

on_both_engines! {
    a_rotated_key_keeps_its_id_and_its_old_secret_for_a_while,
    a_key_is_changed_beside_a_running_server,
    a_project_comes_and_goes_beside_a_running_server,
    a_project_deleted_over_http_is_erased_by_the_server,
    the_audit_log_shows_what_was_done_here_and_over_http,
    limits_come_from_the_environment,
    a_user_token_opens_what_it_says,
    a_project_is_told_whose_tokens_it_believes,
    limits_that_the_host_sets_count,
}
