//! Messages over HTTP.

use serde_json::{Value, json};

use crate::app::{TestApp, api_tests};
use crate::client::text;

api_tests! {
    append_messages_answers_201_with_the_whole_object
    append_messages_takes_a_message_of_content_alone
    append_messages_ignores_unknown_keys_and_the_session_id_in_the_body
    append_messages_stores_an_array_in_its_order
    append_messages_stores_an_array_whole_or_not_at_all
    append_messages_takes_1_to_1000_messages
    append_messages_refuses_values_of_the_wrong_form
    content_may_have_a_mebibyte
    seq_has_no_gaps_and_is_never_given_again
    a_parent_stands_in_the_same_session
    list_messages_is_newest_first
    list_messages_filters
    update_message_changes_only_the_keys_that_are_present
    update_message_keeps_content_and_payload_in_step
    update_message_moves_a_status_forward_only
    null_is_refused_where_a_message_must_have_a_value
    delete_message_answers_with_the_message_and_then_it_is_gone
    a_session_counts_its_messages_and_tokens
    a_message_to_a_missing_session_is_a_404
}

fn list(session_id: &str) -> String {
    format!("/api/v1/sessions/{session_id}/messages")
}

fn one(message: &Value) -> String {
    format!("/api/v1/messages/{}", text(&message["message_id"]))
}

async fn append_messages_answers_201_with_the_whole_object(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let first = app.admin().new_message(&id, "first").await;
    let body = json!({
        "role": "assistant", "content": "Hello", "kind": "function_call", "status": "in_progress",
        "parent_id": first["message_id"], "payload": {"type": "function_call"}, "metadata": {"a": 1},
        "context": ["doc-1"], "external_id": "m1", "token_count": 3,
    });
    let reply = app.admin().post(&list(&id), body).await;
    let message = reply.expect(201);
    let at = message["created_at"].clone();
    let whole = json!({
        "message_id": message["message_id"], "session_id": id, "seq": 2, "parent_id": first["message_id"],
        "role": "assistant", "kind": "function_call", "status": "in_progress", "content": "Hello",
        "payload": {"type": "function_call"}, "metadata": {"a": 1}, "context": ["doc-1"], "external_id": "m1",
        "token_count": 3, "version": 1, "created_at": at, "updated_at": at,
    });
    assert_eq!(message, whole);
    assert_eq!(reply.header("etag"), Some("\"1\""));
    assert_eq!(reply.header("location"), Some(one(&message).as_str()));
    assert_eq!(text(&message["message_id"])[32..], id[32..], "an id says where its row lives");
    let read = app.admin().get(&one(&message)).await;
    assert_eq!(read.expect(200), whole);
    assert_eq!(read.header("etag"), Some("\"1\""));
    assert_eq!(app.admin().get(&list(&id)).await.items(), [whole, first]);
}

async fn append_messages_takes_a_message_of_content_alone(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = app.admin().post(&list(&id), json!({"content": ""})).await.expect(201);
    assert_eq!(
        (&message["content"], &message["role"], &message["kind"]),
        (&json!(""), &json!("user"), &json!("message"))
    );
    assert_eq!((&message["status"], &message["metadata"]), (&json!("completed"), &json!({})));
    for field in ["parent_id", "payload", "context", "external_id", "token_count"] {
        assert_eq!(message[field], Value::Null, "{field}");
    }
    let free = app.admin().post(&list(&id), json!({"content": "x", "role": "Erzähler 2"})).await.expect(201);
    assert_eq!(free["role"], "Erzähler 2");
    app.admin().post(&list(&id), json!({"role": "user"})).await.expect_invalid(&["/content"]);
}

async fn append_messages_ignores_unknown_keys_and_the_session_id_in_the_body(app: TestApp) {
    let (id, other) = (app.admin().new_session("a").await, app.admin().new_session("b").await);
    for foreign in [json!(other), json!("no id"), json!(7), Value::Null] {
        let body = json!({
            "content": "x", "session_id": foreign, "message_id": other, "seq": 99, "version": 9, "project_id": "p",
            "created_at": "2001-01-01T00:00:00Z", "deleted_at": "2001-01-01T00:00:00Z", "user_id": 5, "no_such_key": [],
        });
        let message = app.admin().post(&list(&id), body).await.expect(201);
        assert_eq!((message["session_id"].as_str(), &message["version"]), (Some(id.as_str()), &json!(1)));
        assert_ne!(message["message_id"], other);
        assert!(text(&message["created_at"]).starts_with("2026-01-15T12:00:0"));
    }
    assert_eq!(app.admin().get(&list(&id)).await.column("seq"), [4, 3, 2, 1]);
    assert_eq!(app.admin().get(&list(&other)).await.text(), "[]");
}

async fn append_messages_stores_an_array_in_its_order(app: TestApp) {
    let id = app.admin().new_session("n").await;
    app.admin().new_message(&id, "before").await;
    let reply = app
        .admin()
        .post(&list(&id), json!([{"content": "a"}, {"content": "b", "role": "tool"}, {"content": "c"}]))
        .await;
    let stored = reply.expect(201);
    let column = |field: &str| stored.as_array().unwrap().iter().map(|m| m[field].clone()).collect::<Vec<_>>();
    assert_eq!(column("content"), ["a", "b", "c"]);
    assert_eq!(column("role"), ["user", "tool", "user"]);
    assert_eq!(column("seq"), [2, 3, 4]);
    assert_eq!((reply.header("etag"), reply.header("location")), (None, None));
    let single = app.admin().post(&list(&id), json!([{"content": "d"}])).await.expect(201);
    assert_eq!(single.as_array().map(Vec::len), Some(1), "an array is answered with an array");
    assert_eq!(app.admin().get(&format!("{}?order=asc", list(&id))).await.column("seq"), [1, 2, 3, 4, 5]);
}

async fn append_messages_stores_an_array_whole_or_not_at_all(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let taken = app.admin().post(&list(&id), json!({"content": "x", "external_id": "e"})).await.expect(201);
    let before = app.admin().get(&format!("/api/v1/sessions/{id}")).await.expect(200);
    let post = async |body: Value| app.admin().post(&list(&id), body).await;
    let good = json!({"content": "good"});
    post(json!([good, {"role": "user"}, good, {"content": null}])).await.expect_invalid(&["/1/content", "/3/content"]);
    post(json!([good, {"content": 5}])).await.expect_invalid(&["/1/content"]);
    post(json!([good, 7])).await.expect_invalid(&["/1"]);
    post(json!([good, "x"])).await.expect_invalid(&["/1"]);
    let absent = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";
    post(json!([good, good, {"content": "x", "parent_id": absent}])).await.expect_invalid(&["/2/parent_id"]);
    for (batch, pointer) in [
        (json!([good, {"content": "y", "external_id": "e"}]), "/1/external_id"),
        (json!([{"content": "x", "external_id": "f"}, {"content": "x", "external_id": "f"}]), "/1/external_id"),
    ] {
        assert_eq!(post(batch).await.expect_problem(409, "conflict")["errors"][0]["pointer"], pointer);
    }
    let large = "x".repeat((1 << 20) + 1);
    post(json!([good, {"content": large}])).await.expect_problem(413, "content_too_large");
    assert_eq!(app.admin().get(&list(&id)).await.items(), [taken]);
    assert_eq!(app.admin().get(&format!("/api/v1/sessions/{id}")).await.expect(200), before);
    assert_eq!(app.admin().new_message(&id, "next").await["seq"], 2, "a refused array uses up no place");
}

async fn append_messages_takes_1_to_1000_messages(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let batch = |n: usize| Value::Array(vec![json!({"content": "x"}); n]);
    for n in [0, 1_001] {
        app.admin().post(&list(&id), batch(n)).await.expect_invalid(&[""]);
    }
    assert_eq!(app.admin().get(&list(&id)).await.text(), "[]");
    let stored = app.admin().post(&list(&id), batch(1_000)).await.expect(201);
    let seqs: Vec<i64> = stored.as_array().unwrap().iter().map(|message| message["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, (1..=1_000).collect::<Vec<_>>());
}

async fn append_messages_refuses_values_of_the_wrong_form(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let long = |bytes: usize| "x".repeat(bytes);
    let cases = [
        ("content", json!(1)),
        ("content", json!(["a"])),
        ("role", json!(1)),
        ("role", json!(long(257))),
        ("kind", json!("")),
        ("kind", json!(long(65))),
        ("status", json!("done")),
        ("status", json!(1)),
        ("parent_id", json!("no id")),
        ("parent_id", json!(1)),
        ("metadata", json!([])),
        ("metadata", json!({"a": long(16 * 1_024)})),
        ("external_id", json!("")),
        ("external_id", json!(long(257))),
        ("token_count", json!(-1)),
        ("token_count", json!(1.5)),
        ("token_count", json!("1")),
        ("token_count", json!(1_000_000_000_001_i64)),
    ];
    for (field, value) in cases {
        let mut body = json!({"content": "x"});
        body[field] = value;
        app.admin().post(&list(&id), &body).await.expect_invalid(&[&format!("/{field}")]);
        app.admin().post(&list(&id), json!([{"content": "x"}, body])).await.expect_invalid(&[&format!("/1/{field}")]);
    }
    for body in [json!("x"), json!(1), json!(null), json!(true)] {
        app.admin().post(&list(&id), body).await.expect_invalid(&[""]);
    }
    assert_eq!(app.admin().get(&list(&id)).await.text(), "[]");
}

async fn content_may_have_a_mebibyte(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let fits = "ä".repeat(1 << 19);
    let message = app.admin().post(&list(&id), json!({"content": fits})).await.expect(201);
    assert_eq!(app.admin().get(&one(&message)).await.expect(200)["content"], json!(fits));
    let large = format!("{fits}x");
    app.admin().post(&list(&id), json!({"content": large})).await.expect_problem(413, "content_too_large");
    app.admin().patch(&one(&message), json!({"content": large})).await.expect_problem(413, "content_too_large");
    assert_eq!(app.admin().get(&list(&id)).await.items().len(), 1);
}

async fn seq_has_no_gaps_and_is_never_given_again(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let mut last = Value::Null;
    for n in 1..=3 {
        last = app.admin().new_message(&id, "x").await;
        assert_eq!(last["seq"], n);
    }
    app.admin().delete(&one(&last)).await.expect(200);
    app.admin().post(&list(&id), json!({"content": 1})).await.expect_invalid(&["/content"]);
    assert_eq!(app.admin().new_message(&id, "x").await["seq"], 4);
    assert_eq!(app.admin().get(&list(&id)).await.column("seq"), [4, 2, 1]);
    let other = app.admin().new_session("n").await;
    assert_eq!(app.admin().new_message(&other, "x").await["seq"], 1, "each session counts for itself");
}

async fn a_parent_stands_in_the_same_session(app: TestApp) {
    let (id, other) = (app.admin().new_session("a").await, app.admin().new_session("b").await);
    let parent = app.admin().new_message(&id, "x").await["message_id"].clone();
    let reply = app.admin().post(&list(&id), json!({"content": "y", "parent_id": parent})).await;
    assert_eq!(reply.expect(201)["parent_id"], parent);
    app.admin().post(&list(&other), json!({"content": "y", "parent_id": parent})).await.expect_invalid(&["/parent_id"]);
    app.admin().delete(&format!("/api/v1/messages/{}", text(&parent))).await.expect(200);
    app.admin().post(&list(&id), json!({"content": "y", "parent_id": parent})).await.expect_invalid(&["/parent_id"]);
}

async fn list_messages_is_newest_first(app: TestApp) {
    let id = app.admin().new_session("n").await;
    assert_eq!(app.admin().get(&list(&id)).await.text(), "[]");
    app.admin().post(&list(&id), Value::Array(vec![json!({"content": "x"}); 130])).await.expect(201);
    let seqs = |range: std::ops::RangeInclusive<i64>| range.map(|n| json!(n)).collect::<Vec<_>>();
    let down = |range| seqs(range).into_iter().rev().collect::<Vec<_>>();
    let page = async |query: &str| app.admin().get(&format!("{}{query}", list(&id))).await.column("seq");
    assert_eq!(page("").await, down(111..=130));
    assert_eq!(page("?order=desc&limit=2").await, down(129..=130));
    assert_eq!(page("?order=asc").await, seqs(1..=20));
    assert_eq!(page("?limit=500").await, down(31..=130));
    assert_eq!(page("?offset=128").await, down(1..=2));
    assert_eq!(page("?skip=128&order=asc").await, seqs(129..=130));
    app.admin().get(&format!("{}?order=up", list(&id))).await.expect_invalid(&["?order"]);
}

async fn list_messages_filters(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let roles = ["user", "assistant", "user", "Erzähler", "user"];
    let batch = roles.map(|role| json!({"content": "x", "role": role}));
    app.admin().post(&list(&id), json!(batch)).await.expect(201);
    let cases: [(&str, &[i64]); 11] = [
        ("role=user", &[5, 3, 1]),
        ("role=Erz%C3%A4hler", &[4]),
        ("role=USER", &[]),
        ("role=", &[]),
        ("after_seq=3", &[5, 4]),
        ("before_seq=3", &[2, 1]),
        ("after_seq=1&before_seq=5", &[4, 3, 2]),
        ("after_seq=1&before_seq=5&role=user&order=asc", &[3]),
        ("after_seq=5", &[]),
        ("before_seq=0", &[]),
        ("after_seq=9223372036854775807", &[]),
    ];
    for (query, seqs) in cases {
        assert_eq!(app.admin().get(&format!("{}?{query}", list(&id))).await.column("seq"), seqs, "{query}");
    }
    for (query, pointer) in [
        ("after_seq=-1", "?after_seq"),
        ("before_seq=x", "?before_seq"),
        ("after_seq=", "?after_seq"),
        ("before_seq=9223372036854775808", "?before_seq"),
    ] {
        app.admin().get(&format!("{}?{query}", list(&id))).await.expect_invalid(&[pointer]);
    }
}

async fn update_message_changes_only_the_keys_that_are_present(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let body = json!({"content": "old", "metadata": {"a": 1}, "context": {"d": 1}, "token_count": 5});
    let before = app.admin().post(&list(&id), body).await.expect(201);
    let session = app.admin().get(&format!("/api/v1/sessions/{id}")).await.expect(200);
    for body in [json!({}), json!({"content": "old"}), json!({"unknown": 1, "seq": 9, "session_id": "x"})] {
        let reply = app.admin().patch(&one(&before), body).await;
        assert_eq!(reply.expect(200), before);
        assert_eq!(reply.header("etag"), Some("\"1\""));
    }
    let reply = app.admin().patch(&one(&before), json!({"content": "new", "metadata": {"b": 2}})).await;
    let after = reply.expect(200);
    let mut expected = before.clone();
    (expected["content"], expected["metadata"], expected["version"]) = (json!("new"), json!({"b": 2}), json!(2));
    expected["updated_at"] = after["updated_at"].clone();
    assert_eq!(after, expected);
    assert_eq!(reply.header("etag"), Some("\"2\""));
    assert!(text(&after["updated_at"]) > text(&before["updated_at"]));
    let cleared = app.admin().patch(&one(&before), json!({"metadata": null, "context": null})).await.expect(200);
    assert_eq!((&cleared["metadata"], &cleared["context"]), (&json!({}), &Value::Null));
    assert_eq!(app.admin().get(&one(&before)).await.expect(200), cleared);
    let moved = app.admin().get(&format!("/api/v1/sessions/{id}")).await.expect(200);
    assert_eq!(moved["updated_at"], cleared["updated_at"], "a changed message moves its session's time");
    assert_eq!(moved["last_message_at"], session["last_message_at"]);
}

async fn update_message_keeps_content_and_payload_in_step(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let payload = json!({"type": "message", "content": [{"type": "input_text", "text": "from payload"}]});
    let message = app.admin().post(&list(&id), json!({"content": "a", "payload": payload})).await.expect(201);
    assert_eq!(message["content"], "a", "what is sent is kept");
    let edited = app.admin().patch(&one(&message), json!({"content": "b"})).await.expect(200);
    assert_eq!((&edited["content"], &edited["payload"]), (&json!("b"), &Value::Null));
    let derived = app.admin().patch(&one(&message), json!({"payload": payload})).await.expect(200);
    assert_eq!((&derived["content"], &derived["payload"]), (&json!("from payload"), &payload));
    let both = json!({"content": "c", "payload": {}});
    app.admin().patch(&one(&message), both).await.expect_invalid(&["/payload"]);
    let call = app.admin().post(&list(&id), json!({"content": "", "kind": "function_call"})).await.expect(201);
    app.admin().patch(&one(&call), json!({"content": "c"})).await.expect_invalid(&["/content"]);
}

async fn update_message_moves_a_status_forward_only(app: TestApp) {
    let id = app.admin().new_session("n").await;
    for end in ["completed", "incomplete"] {
        let message = app.admin().post(&list(&id), json!({"content": "", "status": "in_progress"})).await.expect(201);
        let ended = app.admin().patch(&one(&message), json!({"status": end})).await.expect(200);
        assert_eq!(ended["status"], end);
        app.admin().patch(&one(&message), json!({"status": end})).await.expect(200);
        app.admin().patch(&one(&message), json!({"status": "in_progress"})).await.expect_invalid(&["/status"]);
        app.admin().patch(&one(&message), json!({"status": "done"})).await.expect_invalid(&["/status"]);
        assert_eq!(app.admin().get(&one(&message)).await.expect(200), ended);
    }
}

async fn null_is_refused_where_a_message_must_have_a_value(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = app.admin().new_message(&id, "x").await;
    for field in ["role", "content"] {
        let mut body = json!({"content": "x"});
        body[field] = Value::Null;
        let pointer = format!("/{field}");
        app.admin().post(&list(&id), &body).await.expect_invalid(&[&pointer]);
        app.admin().patch(&one(&message), json!({ field: null })).await.expect_invalid(&[&pointer]);
    }
    for field in ["payload", "status"] {
        app.admin().patch(&one(&message), json!({ field: null })).await.expect_invalid(&[&format!("/{field}")]);
    }
    for body in [json!("x"), json!(1), json!(null)] {
        app.admin().patch(&one(&message), body).await.expect_invalid(&[""]);
    }
    assert_eq!(app.admin().get(&list(&id)).await.items(), [message]);
}

async fn delete_message_answers_with_the_message_and_then_it_is_gone(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let (kept, gone) = (app.admin().new_message(&id, "kept").await, app.admin().new_message(&id, "gone").await);
    assert_eq!(app.admin().delete(&one(&gone)).await.expect(200), gone);
    app.admin().get(&one(&gone)).await.expect_problem(404, "not_found");
    app.admin().patch(&one(&gone), json!({"content": "x"})).await.expect_problem(404, "not_found");
    app.admin().delete(&one(&gone)).await.expect_problem(404, "not_found");
    assert_eq!(app.admin().get(&list(&id)).await.items(), [kept]);
}

async fn a_session_counts_its_messages_and_tokens(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let counts = async || {
        let session = app.admin().get(&format!("/api/v1/sessions/{id}")).await.expect(200);
        ["message_count", "last_seq", "token_count"].map(|field| session[field].clone())
    };
    let first = app.admin().new_message(&id, "x").await;
    assert_eq!(counts().await, [json!(1), json!(1), Value::Null]);
    let batch = json!([{"content": "x", "token_count": 5}, {"content": "x", "token_count": 7}]);
    let batch = app.admin().post(&list(&id), batch).await.expect(201);
    assert_eq!(counts().await, [json!(3), json!(3), json!(12)]);
    app.admin().patch(&one(&first), json!({"token_count": 1})).await.expect(200);
    app.admin().delete(&one(&batch[1])).await.expect(200);
    assert_eq!(counts().await, [json!(2), json!(3), json!(6)]);
}

async fn a_message_to_a_missing_session_is_a_404(app: TestApp) {
    let absent = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";
    for id in [absent, "no-id"] {
        app.admin().post(&list(id), json!({"content": "x"})).await.expect_problem(404, "not_found");
        app.admin().post(&list(id), json!([{"content": "x"}])).await.expect_problem(404, "not_found");
        app.admin().get(&list(id)).await.expect_problem(404, "not_found");
    }
}
