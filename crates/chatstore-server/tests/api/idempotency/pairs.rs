//! Two requests, one after the other: whether the second is the first again.

use chatstore_core::ids::ProjectId;
use serde_json::json;

use super::{KEY, assert_replay, is_replay, messages, stored};
use crate::app::{TestApp, api_tests};
use crate::client::{Client, Reply, text};

api_tests! {
    what_a_key_means
    keys_that_are_none_are_refused_and_nothing_is_done
    a_replay_is_the_first_answer_to_the_byte
}

/// What becomes of the second request.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// It is the first again.
    Replay,
    /// It is another.
    Done,
    /// It is refused.
    Refused(u16, &'static str),
}

/// Who sends.
#[derive(Clone, Copy, Debug)]
enum By {
    /// A key that is bound to the user `alice`.
    Alice,
    /// The same, which names the user as well.
    AliceNamed,
    /// Another key that is bound to her.
    AlicesOther,
    /// A key of the project.
    Writer,
    /// The same, for a user.
    WriterFor(&'static str),
    /// A key that may only read.
    Reader,
    /// `API_KEY`.
    Root,
    /// `API_KEY` for a user.
    RootFor(&'static str),
    /// A key of another project.
    Stranger,
}

/// To where.
#[derive(Clone, Copy, Debug)]
enum To {
    Sessions,
    /// One session of alice's.
    Messages,
    /// The same path in another spelling.
    MessagesSpelled,
    /// Another session of hers.
    OtherMessages,
    Projects,
    Keys,
    /// The secret of a key.
    Rotate,
    /// That of another.
    RotateOther,
    TokenSecret,
}

/// A request: who sends which header to where, with which body. In keys, `#` is the number of the case.
type Sent = (By, Option<&'static str>, To, &'static str);

/// The name of the case, the first request and the second, and what becomes of the second.
type Case = (&'static str, Sent, Sent, Then);

const X: &str = r#"{"content":"x"}"#;
const TWO: &str = r#"[{"content":"x"},{"content":"y","role":"assistant"}]"#;
const NAMED: &str = r#"{"session_name":"n"}"#;
const FOR_ALICE: &str = r#"{"session_name":"n","user_id":"alice"}"#;
const K: Option<&str> = Some("k#");
const REUSED: Then = Then::Refused(422, "idempotency_key_reused");
const SHOWN: Then = Then::Refused(409, "secret_already_shown");

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    use By::*;
    use Then::*;
    use To::*;
    vec![
        // Keys and bodies.
        ("the same key and body", (Alice, K, Messages, X), (Alice, K, Messages, X), Replay),
        ("another body", (Alice, K, Messages, X), (Alice, K, Messages, r#"{"content":"y"}"#), REUSED),
        ("the same body with a blank in it", (Alice, K, Messages, X), (Alice, K, Messages, r#"{"content": "x"}"#), REUSED),
        ("another key", (Alice, K, Messages, X), (Alice, Some("l#"), Messages, X), Done),
        ("a key in another case", (Alice, K, Messages, X), (Alice, Some("K#"), Messages, X), Done),
        ("a key and none", (Alice, K, Messages, X), (Alice, None, Messages, X), Done),
        ("no key at all", (Alice, None, Messages, X), (Alice, None, Messages, X), Done),
        ("a quoted key and a bare one", (Alice, Some("\"k#\""), Messages, X), (Alice, K, Messages, X), Replay),
        ("a bare key and a quoted one", (Alice, K, Messages, X), (Alice, Some("\"k#\""), Messages, X), Replay),
        ("a backslash, escaped and bare", (Alice, Some(r#""a\\#""#), Messages, X), (Alice, Some(r"a\#"), Messages, X), Replay),
        ("a quote in a key", (Alice, Some(r##""a\"#""##), Messages, X), (Alice, Some(r##""a\"#""##), Messages, X), Replay),
        ("a key with blanks in quotes", (Alice, Some("\" a # \""), Messages, X), (Alice, Some("\" a # \""), Messages, X), Replay),
        ("blanks in quotes count", (Alice, Some("\"a# \""), Messages, X), (Alice, Some("\"a#\""), Messages, X), Done),
        ("blanks around a key do not", (Alice, K, Messages, X), (Alice, Some("  k#\t"), Messages, X), Replay),
        // Who.
        ("another key of the same user", (Alice, K, Messages, X), (AlicesOther, K, Messages, X), Done),
        ("the bound user named", (Alice, K, Messages, X), (AliceNamed, K, Messages, X), Replay),
        ("for a user and for none", (WriterFor("alice"), K, Messages, X), (Writer, K, Messages, X), Done),
        ("another user", (WriterFor("alice"), K, Sessions, NAMED), (WriterFor("bob"), K, Sessions, NAMED), Done),
        ("the user in the body and in the header", (Writer, K, Sessions, FOR_ALICE), (WriterFor("alice"), K, Sessions, FOR_ALICE), Replay),
        ("the user in the body alone", (Writer, K, Sessions, NAMED), (Writer, K, Sessions, FOR_ALICE), Done),
        ("API_KEY and a key", (RootFor("alice"), K, Messages, X), (WriterFor("alice"), K, Messages, X), Done),
        ("API_KEY twice", (Root, K, Messages, X), (Root, K, Messages, X), Replay),
        ("another project", (Writer, K, Sessions, NAMED), (Stranger, K, Sessions, NAMED), Done),
        ("a caller who may only read", (Writer, K, Messages, X), (Reader, K, Messages, X), Refused(403, "insufficient_scope")),
        ("a session that is not the caller's", (Writer, K, Messages, X), (WriterFor("bob"), K, Messages, X), Refused(404, "not_found")),
        // What.
        ("another session", (Alice, K, Messages, X), (Alice, K, OtherMessages, X), Done),
        ("another operation", (Writer, K, Sessions, NAMED), (Writer, K, Messages, X), Done),
        ("another spelling of the path", (Alice, K, Messages, X), (Alice, K, MessagesSpelled, X), Replay),
        ("several messages", (Alice, K, Messages, TWO), (Alice, K, Messages, TWO), Replay),
        ("one message and an array of it", (Alice, K, Messages, X), (Alice, K, Messages, r#"[{"content":"x"}]"#), REUSED),
        ("a session", (Writer, K, Sessions, NAMED), (Writer, K, Sessions, NAMED), Replay),
        ("a session of a user", (Alice, K, Sessions, NAMED), (Alice, K, Sessions, NAMED), Replay),
        ("a session with an id of the client's", (Writer, K, Sessions, r#"{"session_name":"n","external_id":"e1"}"#), (Writer, K, Sessions, r#"{"session_name":"n","external_id":"e1"}"#), Replay),
        ("a session of another name", (Writer, K, Sessions, NAMED), (Writer, K, Sessions, r#"{"session_name":"m"}"#), REUSED),
        ("a session with another id", (Writer, K, Sessions, r#"{"session_name":"n","external_id":"e2"}"#), (Writer, K, Sessions, r#"{"session_name":"n","external_id":"e3"}"#), REUSED),
        ("a project", (Root, K, Projects, r#"{"name":"p1"}"#), (Root, K, Projects, r#"{"name":"p1"}"#), Replay),
        ("a project of another name", (Root, K, Projects, r#"{"name":"p2"}"#), (Root, K, Projects, r#"{"name":"p3"}"#), REUSED),
        ("a key", (Root, K, Keys, r#"{"name":"n"}"#), (Root, K, Keys, r#"{"name":"n"}"#), SHOWN),
        ("a key of another name", (Root, K, Keys, r#"{"name":"n"}"#), (Root, K, Keys, r#"{"name":"m"}"#), REUSED),
        ("a rotation", (Root, K, Rotate, "{}"), (Root, K, Rotate, "{}"), SHOWN),
        ("a rotation without a body", (Root, K, Rotate, ""), (Root, K, Rotate, ""), SHOWN),
        ("the rotation of another key", (Root, K, Rotate, "{}"), (Root, K, RotateOther, "{}"), Done),
        ("a token secret", (Root, K, TokenSecret, "{}"), (Root, K, TokenSecret, "{}"), SHOWN),
        ("another token secret", (Root, K, TokenSecret, "{}"), (Root, Some("l#"), TokenSecret, "{}"), Done),
    ]
}

/// What the cases are about; sessions and keys are new for each.
struct World {
    app: TestApp,
    alices_other: String,
    sessions: [String; 2],
    keys: [String; 2],
}

impl World {
    async fn renew(&mut self, to: To) {
        for session in &mut self.sessions {
            *session = self.app.alice().new_session("n").await;
        }
        for key in self.keys.iter_mut().filter(|_| matches!(to, To::Rotate)) {
            let made = self.app.admin().post("/api/v1/admin/keys", json!({"name": "k"})).await.expect(201);
            *key = text(&made["key_id"]);
        }
    }

    fn client(&self, by: By) -> Client {
        match by {
            By::Alice => self.app.alice(),
            By::AliceNamed => self.app.alice().with("x-user-id", "alice"),
            By::AlicesOther => self.app.client(&self.alices_other),
            By::Writer => self.app.writer(),
            By::WriterFor(user) => self.app.writer().with("x-user-id", user),
            By::Reader => self.app.reader(),
            By::Root => self.app.admin(),
            By::RootFor(user) => self.app.admin().with("x-user-id", user),
            By::Stranger => self.app.stranger(),
        }
    }

    fn path(&self, to: To) -> String {
        match to {
            To::Sessions => super::SESSIONS.to_owned(),
            To::Messages => messages(&self.sessions[0]),
            To::MessagesSpelled => format!("{}/?x=y", messages(&self.sessions[0].to_uppercase())),
            To::OtherMessages => messages(&self.sessions[1]),
            To::Projects => "/api/v1/admin/projects".to_owned(),
            To::Keys => "/api/v1/admin/keys".to_owned(),
            To::Rotate => format!("/api/v1/admin/keys/{}/rotate", self.keys[0]),
            To::RotateOther => format!("/api/v1/admin/keys/{}/rotate", self.keys[1]),
            To::TokenSecret => "/api/v1/admin/project/token-secret".to_owned(),
        }
    }

    async fn send(&self, (by, key, to, body): Sent, number: usize) -> Reply {
        let client = self.client(by);
        let client = match key {
            Some(key) => client.with(KEY, key.replace('#', &number.to_string())),
            None => client,
        };
        client.post(&self.path(to), body).await
    }
}

async fn what_a_key_means(app: TestApp) {
    let alices_other = app.key(ProjectId::DEFAULT, "read,write", Some("alice")).await;
    let mut world = World { app, alices_other, sessions: Default::default(), keys: Default::default() };
    for (number, (name, first, second, then)) in cases().into_iter().enumerate() {
        world.renew(first.2).await;
        let first = world.send(first, number).await;
        assert!(first.status < 300 && !is_replay(&first), "{name}: {}", first.text());
        let before = stored(&world.app).await;
        let second = world.send(second, number).await;
        match then {
            Then::Replay => {
                assert!(is_replay(&second), "{name}: {}", second.text());
                assert_replay(&first, &second);
            }
            Then::Done => {
                assert!(second.status < 300 && !is_replay(&second), "{name}: {}", second.text());
                assert_ne!(second.text(), first.text(), "{name}");
            }
            Then::Refused(status, code) => {
                assert_eq!((second.status, is_replay(&second)), (status, false), "{name}: {}", second.text());
                second.expect_problem(status, code);
            }
        }
        let is_done = matches!(then, Then::Done) && second.status == 201 && !second.what.contains("token-secret");
        assert_eq!(stored(&world.app).await != before, is_done, "{name}");
    }
}

async fn keys_that_are_none_are_refused_and_nothing_is_done(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let path = messages(&session);
    let long = "k".repeat(256);
    let long_quoted = format!("\"{long}\"");
    let malformed: [&[u8]; 18] = [
        b"",
        b"   ",
        b"\"\"",
        b"\"",
        b"\"a",
        b"a\"",
        b"a\"b",
        b"\"a\"b\"",
        b"\"a\\\"",
        b"\"a\\b\"",
        b"\"a\";p=1",
        b"\"a\", \"b\"",
        b"a b",
        b"a\tb",
        "clé".as_bytes(),
        b"\"\xff\"",
        long.as_bytes(),
        long_quoted.as_bytes(),
    ];
    let before = stored(&app).await;
    for key in malformed {
        for (path, body) in [(path.as_str(), json!({"content": "x"})), (super::SESSIONS, json!({"session_name": "n"}))]
        {
            let reply = app.alice().with(KEY, key).post(path, body).await;
            let problem = reply.expect_problem(400, "invalid_header");
            assert!(text(&problem["detail"]).contains("`Idempotency-Key` must stand once"), "{problem}");
        }
    }
    let twice = app.alice().with(KEY, "a").with(KEY, "a").post(&path, json!({"content": "x"})).await;
    twice.expect_problem(400, "invalid_header");
    assert_eq!(stored(&app).await, before);
    for (key, equal) in
        [("k".repeat(255), format!("\"{}\"", "k".repeat(255))), (r#""\"""#.to_owned(), r#""\"""#.to_owned())]
    {
        let first = app.alice().with(KEY, &key).post(&path, json!({"content": "x"})).await;
        assert!(!is_replay(&first));
        assert_replay(&first, &app.alice().with(KEY, equal).post(&path, json!({"content": "x"})).await);
    }
}

async fn a_replay_is_the_first_answer_to_the_byte(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let parent = app.alice().new_message(&session, "parent").await;
    let odd = r#"{ "b" : 1.0,"a":[1e400, -0 , 123456789012345678901234567890],"ü":"\u00fc\/","b":2 }"#;
    let whole = format!(
        r#"{{"content":"x","role":"tool","kind":"function_call_output","status":"in_progress","parent_id":{},"metadata":{odd},
        "context":[{odd}],"payload":{odd},"external_id":"e","token_count":3,"embedding":[1,2],"embedding_model":"m"}}"#,
        parent["message_id"]
    );
    let batch = format!("[{},{}]", whole.replace("\"e\"", "\"f\""), r#"{"content":""}"#);
    let named = format!(r#"{{"session_name":"","is_favorite":true,"metadata":{odd},"external_id":"s"}}"#);
    for (key, path, body) in [
        ("one", messages(&session), whole),
        ("many", messages(&session), batch),
        ("session", super::SESSIONS.to_owned(), named),
    ] {
        let send = async || app.alice().with(KEY, key).post(&path, body.as_str()).await;
        let first = send().await;
        assert!(first.status == 201 && first.text().contains(odd) && !is_replay(&first), "{key}: {}", first.text());
        assert_eq!(first.header("etag").is_some(), key != "many");
        for _ in 0..3 {
            assert_replay(&first, &send().await);
        }
    }
}
