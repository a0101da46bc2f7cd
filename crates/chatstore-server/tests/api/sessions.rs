//! Sessions over HTTP.

use chatstore_core::clock::Timestamp;
use serde_json::{Value, json};

use crate::app::{TestApp, api_tests};
use crate::client::text;

const SESSIONS: &str = "/api/v1/sessions";

api_tests! {
    create_session_answers_201_with_the_whole_object
    create_session_needs_a_name_which_may_be_empty
    create_session_ignores_unknown_keys_and_those_that_are_not_the_callers
    create_session_refuses_values_of_the_wrong_form
    create_session_refuses_an_external_id_that_is_taken
    null_is_refused_where_a_session_must_have_a_value
    update_session_changes_only_the_keys_that_are_present
    update_session_with_nothing_to_do_is_a_200
    delete_session_answers_with_the_session_and_then_it_is_gone
    list_sessions_is_a_bare_array_oldest_first
    list_sessions_cuts_the_limit_to_100
    list_sessions_sorts_and_orders
    list_sessions_filters
    the_sidebar_shows_the_session_that_changed_last
    what_no_session_is_called_answers_404
}

fn path(session_id: &str) -> String {
    format!("{SESSIONS}/{session_id}")
}

fn time(value: &Value) -> Timestamp {
    Timestamp::parse(&text(value)).unwrap()
}

async fn create_session_answers_201_with_the_whole_object(app: TestApp) {
    let body = json!({
        "session_name": "Trip", "user_id": "ada", "is_favorite": true, "metadata": {"app": "travel"}, "external_id": "e1",
    });
    let reply = app.admin().post(SESSIONS, body).await;
    let session = reply.expect(201);
    let id = text(&session["session_id"]);
    let at = text(&session["created_at"]);
    let whole = json!({
        "session_id": id, "user_id": "ada", "session_name": "Trip", "is_favorite": true,
        "metadata": {"app": "travel"}, "external_id": "e1", "last_seq": 0, "message_count": 0, "token_count": null,
        "version": 1, "created_at": at, "updated_at": at, "last_message_at": null, "forked_from": null,
    });
    assert_eq!(session, whole);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("etag"), Some("\"1\""));
    assert_eq!(reply.header("location"), Some(path(&id).as_str()));
    let read = app.admin().get(&path(&id)).await;
    assert_eq!(read.expect(200), whole);
    assert_eq!(read.header("etag"), Some("\"1\""));
}

async fn create_session_needs_a_name_which_may_be_empty(app: TestApp) {
    app.admin().post(SESSIONS, json!({})).await.expect_invalid(&["/session_name"]);
    let session = app.admin().post(SESSIONS, json!({"session_name": ""})).await.expect(201);
    assert_eq!(session["session_name"], "");
    assert_eq!((&session["user_id"], &session["is_favorite"]), (&Value::Null, &json!(false)));
    assert_eq!((&session["metadata"], &session["external_id"]), (&json!({}), &Value::Null));
}

async fn create_session_ignores_unknown_keys_and_those_that_are_not_the_callers(app: TestApp) {
    let foreign = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";
    let body = json!({
        "session_name": "n", "session_id": foreign, "project_id": app.other.to_string(), "tenant_id": "x", "version": 9,
        "last_seq": 7, "message_count": 7, "token_count": 7, "created_at": "2001-01-01T00:00:00Z", "deleted_at": "2001-01-01T00:00:00Z",
        "forked_from": foreign, "scopes": "admin", "no_such_key": {"a": [1]},
    });
    let session = app.admin().post(SESSIONS, body).await.expect(201);
    assert_ne!(session["session_id"], foreign);
    assert!(text(&session["created_at"]).starts_with("2026-01-15T12:00:0"));
    assert_eq!(
        (&session["version"], &session["last_seq"], &session["message_count"]),
        (&json!(1), &json!(0), &json!(0))
    );
    assert_eq!((&session["forked_from"], &session["token_count"]), (&Value::Null, &Value::Null));
    assert_eq!(app.stranger().get(SESSIONS).await.items().len(), 0, "the project is the key's");
}

async fn create_session_refuses_values_of_the_wrong_form(app: TestApp) {
    let long = |bytes: usize| "x".repeat(bytes);
    let cases = [
        (json!({"session_name": 1}), "/session_name"),
        (json!({"session_name": {"a": 1}}), "/session_name"),
        (json!({"session_name": long(4_097)}), "/session_name"),
        (json!({"session_name": "n", "user_id": 7}), "/user_id"),
        (json!({"session_name": "n", "user_id": ""}), "/user_id"),
        (json!({"session_name": "n", "user_id": long(257)}), "/user_id"),
        (json!({"session_name": "n", "is_favorite": "yes"}), "/is_favorite"),
        (json!({"session_name": "n", "is_favorite": 1}), "/is_favorite"),
        (json!({"session_name": "n", "metadata": []}), "/metadata"),
        (json!({"session_name": "n", "metadata": "{}"}), "/metadata"),
        (json!({"session_name": "n", "metadata": {"a": long(16 * 1_024)}}), "/metadata"),
        (json!({"session_name": "n", "external_id": 3}), "/external_id"),
        (json!({"session_name": "n", "external_id": ""}), "/external_id"),
        (json!({"session_name": "n", "external_id": long(257)}), "/external_id"),
    ];
    for (body, pointer) in cases {
        app.admin().post(SESSIONS, body).await.expect_invalid(&[pointer]);
    }
    for body in [json!("n"), json!(1), json!(null), json!(true)] {
        app.admin().post(SESSIONS, body).await.expect_invalid(&[""]);
    }
    let several = json!({"user_id": "", "metadata": 1, "is_favorite": null});
    let pointers = ["/session_name", "/is_favorite", "/user_id", "/metadata"];
    app.admin().post(SESSIONS, several).await.expect_invalid(&pointers);
    let fits = json!({"session_name": long(4_096), "user_id": long(256), "external_id": long(256)});
    app.admin().post(SESSIONS, fits).await.expect(201);
    let metadata = json!({"session_name": "", "metadata": {"a": long(16 * 1_024 - 8)}});
    app.admin().post(SESSIONS, metadata).await.expect(201);
    assert_eq!(app.admin().get(SESSIONS).await.items().len(), 2);
}

async fn create_session_refuses_an_external_id_that_is_taken(app: TestApp) {
    let body = |user: Value| json!({"session_name": "n", "external_id": "e", "user_id": user});
    let first = app.admin().post(SESSIONS, body(json!("ada"))).await.expect(201);
    let problem = app.admin().post(SESSIONS, body(json!("ada"))).await.expect_problem(409, "conflict");
    assert_eq!(problem["errors"][0]["pointer"], "/external_id");
    app.admin().post(SESSIONS, body(json!("eve"))).await.expect(201);
    app.admin().post(SESSIONS, body(Value::Null)).await.expect(201);
    app.admin().post(SESSIONS, body(Value::Null)).await.expect_problem(409, "conflict");
    app.stranger().post(SESSIONS, body(json!("ada"))).await.expect(201);
    app.admin().delete(&path(&text(&first["session_id"]))).await.expect(200);
    app.admin().post(SESSIONS, body(json!("ada"))).await.expect(201);
}

async fn null_is_refused_where_a_session_must_have_a_value(app: TestApp) {
    let id = app.admin().new_session("n").await;
    for field in ["session_name", "is_favorite"] {
        let mut body = json!({"session_name": "n"});
        body[field] = Value::Null;
        let pointer = format!("/{field}");
        app.admin().post(SESSIONS, &body).await.expect_invalid(&[&pointer]);
        app.admin().patch(&path(&id), json!({ field: null })).await.expect_invalid(&[&pointer]);
    }
    let nulls = json!({"session_name": "n", "user_id": null, "metadata": null, "external_id": null});
    let session = app.admin().post(SESSIONS, nulls).await.expect(201);
    assert_eq!(session["metadata"], json!({}));
    assert_eq!(app.admin().get(&path(&id)).await.expect(200)["version"], 1);
}

async fn update_session_changes_only_the_keys_that_are_present(app: TestApp) {
    let body = json!({"session_name": "old", "user_id": "ada", "metadata": {"a": 1}, "external_id": "e"});
    let before = app.admin().post(SESSIONS, body).await.expect(201);
    let id = text(&before["session_id"]);
    let reply =
        app.admin().patch(&path(&id), json!({"session_name": "new", "user_id": "eve", "external_id": "f"})).await;
    let after = reply.expect(200);
    let mut expected = before.clone();
    (expected["session_name"], expected["version"]) = (json!("new"), json!(2));
    expected["updated_at"] = after["updated_at"].clone();
    assert_eq!(after, expected, "user and external id never change");
    assert_eq!(reply.header("etag"), Some("\"2\""));
    assert!(time(&after["updated_at"]) > time(&before["updated_at"]));
    let patch = json!({"is_favorite": true, "metadata": null});
    let cleared = app.admin().patch(&path(&id), patch).await.expect(200);
    assert_eq!(
        (&cleared["is_favorite"], &cleared["metadata"], &cleared["version"]),
        (&json!(true), &json!({}), &json!(3))
    );
    assert_eq!(cleared["session_name"], "new");
    app.admin().patch(&path(&id), json!({"session_name": 5})).await.expect_invalid(&["/session_name"]);
    app.admin().patch(&path(&id), json!({"metadata": 5})).await.expect_invalid(&["/metadata"]);
    app.admin().patch(&path(&id), json!("n")).await.expect_invalid(&[""]);
    assert_eq!(app.admin().get(&path(&id)).await.expect(200), cleared);
}

async fn update_session_with_nothing_to_do_is_a_200(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let before = app.admin().get(&path(&id)).await.expect(200);
    for body in [json!({}), json!({"unknown": 1}), json!({"session_name": "n"}), json!({"is_favorite": false})] {
        let reply = app.admin().patch(&path(&id), body).await;
        assert_eq!(reply.expect(200), before);
        assert_eq!(reply.header("etag"), Some("\"1\""));
    }
}

async fn delete_session_answers_with_the_session_and_then_it_is_gone(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = text(&app.admin().new_message(&id, "hello").await["message_id"]);
    let before = app.admin().get(&path(&id)).await.expect(200);
    assert_eq!(app.admin().delete(&path(&id)).await.expect(200), before);
    let admin = app.admin();
    let messages = format!("{}/messages", path(&id));
    let one = format!("/api/v1/messages/{message}");
    admin.get(&path(&id)).await.expect_problem(404, "not_found");
    admin.delete(&path(&id)).await.expect_problem(404, "not_found");
    admin.patch(&path(&id), json!({})).await.expect_problem(404, "not_found");
    admin.get(&messages).await.expect_problem(404, "not_found");
    admin.post(&messages, json!({"content": "late"})).await.expect_problem(404, "not_found");
    admin.get(&one).await.expect_problem(404, "not_found");
    admin.patch(&one, json!({"content": "late"})).await.expect_problem(404, "not_found");
    admin.delete(&one).await.expect_problem(404, "not_found");
    assert_eq!(admin.get(SESSIONS).await.items(), Vec::<Value>::new());
}

async fn list_sessions_is_a_bare_array_oldest_first(app: TestApp) {
    assert_eq!(app.admin().get(SESSIONS).await.text(), "[]");
    for n in 0..25 {
        app.admin().new_session(&n.to_string()).await;
    }
    let names = |range: std::ops::Range<i32>| range.map(|n| json!(n.to_string())).collect::<Vec<_>>();
    assert_eq!(app.admin().get(SESSIONS).await.column("session_name"), names(0..20));
    let page = |query: &str| format!("{SESSIONS}?{query}");
    assert_eq!(app.admin().get(&page("skip=20")).await.column("session_name"), names(20..25));
    assert_eq!(app.admin().get(&page("offset=24")).await.column("session_name"), names(24..25));
    assert_eq!(app.admin().get(&page("limit=3&skip=2")).await.column("session_name"), names(2..5));
    assert_eq!(app.admin().get(&page("skip=25")).await.text(), "[]");
    let item = app.admin().get(&page("limit=1")).await.items().remove(0);
    assert_eq!(app.admin().get(&path(&text(&item["session_id"]))).await.expect(200), item, "an item is whole");
}

async fn list_sessions_cuts_the_limit_to_100(app: TestApp) {
    for _ in 0..101 {
        app.admin().new_session("n").await;
    }
    for limit in ["100", "101", "1000", "99999999999999999999999"] {
        assert_eq!(app.admin().get(&format!("{SESSIONS}?limit={limit}")).await.items().len(), 100, "{limit}");
    }
}

async fn list_sessions_sorts_and_orders(app: TestApp) {
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(app.admin().new_session(name).await);
    }
    app.admin().new_message(&ids[0], "m").await;
    app.admin().patch(&path(&ids[1]), json!({"is_favorite": true})).await.expect(200);
    let cases = [
        ("sort=created_at", "abc"),
        ("order=asc", "abc"),
        ("order=desc", "cba"),
        ("sort=created_at&order=desc", "cba"),
        ("sort=updated_at", "cab"),
        ("sort=updated_at&order=desc", "bac"),
        ("sort=last_message_at", "bca"),
        ("sort=last_message_at&order=desc", "acb"),
    ];
    for (query, names) in cases {
        let names: Vec<Value> = names.chars().map(|name| json!(name.to_string())).collect();
        assert_eq!(app.admin().get(&format!("{SESSIONS}?{query}")).await.column("session_name"), names, "{query}");
    }
    for (query, pointer) in [
        ("sort=name", "?sort"),
        ("sort=", "?sort"),
        ("order=up", "?order"),
        ("order=DESC", "?order"),
        ("sort=session_id%3B--", "?sort"),
    ] {
        app.admin().get(&format!("{SESSIONS}?{query}")).await.expect_invalid(&[pointer]);
    }
}

async fn list_sessions_filters(app: TestApp) {
    let bodies = [
        json!({"session_name": "a", "user_id": "ada", "is_favorite": true, "metadata": {"app": "x", "n": 1}}),
        json!({"session_name": "b", "user_id": "ada", "metadata": {"app": "y", "n": true}}),
        json!({"session_name": "c", "user_id": "eve", "is_favorite": true, "metadata": {"app": "x", "odd &=[]": "é +%"}}),
        json!({"session_name": "d", "metadata": {"deep": {"app": "x"}, "list": ["x"], "none": null}}),
    ];
    let mut times = Vec::new();
    for body in bodies {
        times.push(text(&app.admin().post(SESSIONS, body).await.expect(201)["created_at"]));
    }
    let cases = [
        ("user_id=ada", "ab"),
        ("user_id=nobody", ""),
        ("is_favorite=true", "ac"),
        ("is_favorite=false", "bd"),
        ("user_id=ada&is_favorite=true", "a"),
        ("metadata[app]=x", "ac"),
        ("metadata%5Bapp%5D=x", "ac"),
        ("metadata[app]=x&metadata[n]=1", "a"),
        ("metadata[n]=true", "b"),
        ("metadata[app]=x&metadata[app]=y", ""),
        ("metadata[app]=X", ""),
        ("metadata[none]=null", ""),
        ("metadata[odd%20%26%3D%5B%5D]=%C3%A9%20%2B%25", "c"),
        ("metadata[app]=x'%20or%20'1'%3D'1", ""),
        ("unknown=1", "abcd"),
    ];
    for (query, names) in cases {
        let names: Vec<Value> = names.chars().map(|name| json!(name.to_string())).collect();
        assert_eq!(app.admin().get(&format!("{SESSIONS}?{query}")).await.column("session_name"), names, "{query}");
    }
    let window = format!("{SESSIONS}?created_after={}&created_before={}", times[0], times[3]);
    assert_eq!(app.admin().get(&window).await.column("session_name"), [json!("b"), json!("c")]);
    let offset = times[1].replace('Z', "+00:00");
    let reply = app.admin().get(&format!("{SESSIONS}?created_after={offset}")).await;
    assert_eq!(reply.column("session_name"), [json!("c"), json!("d")], "a `+` may stand unescaped");
    let many = (0..9).map(|n| format!("metadata[k{n}]=v")).collect::<Vec<_>>().join("&");
    for (query, pointer) in [
        ("is_favorite=maybe", "?is_favorite"),
        ("created_after=yesterday", "?created_after"),
        ("created_before=", "?created_before"),
        ("user_id=", "?user_id"),
        (many.as_str(), "?metadata"),
    ] {
        app.admin().get(&format!("{SESSIONS}?{query}")).await.expect_invalid(&[pointer]);
    }
}

async fn the_sidebar_shows_the_session_that_changed_last(app: TestApp) {
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(app.alice().new_session(name).await);
    }
    let sidebar = format!("{SESSIONS}?user_id=alice&sort=updated_at&order=desc");
    let message = text(&app.alice().new_message(&ids[1], "m").await["message_id"]);
    assert_eq!(app.alice().get(&sidebar).await.column("session_name"), ["b", "c", "a"]);
    app.alice().new_message(&ids[0], "m").await;
    assert_eq!(app.alice().get(&sidebar).await.column("session_name"), ["a", "b", "c"]);
    app.alice().patch(&format!("/api/v1/messages/{message}"), json!({"content": "edited"})).await.expect(200);
    assert_eq!(app.alice().get(&sidebar).await.column("session_name"), ["b", "a", "c"]);
    app.alice().delete(&format!("/api/v1/messages/{message}")).await.expect(200);
    let first = app.alice().get(&sidebar).await.items().remove(0);
    assert_eq!((&first["session_name"], &first["message_count"]), (&json!("b"), &json!(0)));
    assert_eq!(first["version"], 1, "messages do not move a session's version");
}

async fn what_no_session_is_called_answers_404(app: TestApp) {
    let id = app.admin().new_session("n").await;
    app.admin().get(&path(&id.to_uppercase())).await.expect(200);
    let spellings = [
        id.replace('-', ""),
        format!("{{{id}}}").replace('{', "%7B").replace('}', "%7D"),
        format!("{id}0"),
        id[..35].to_owned(),
        "1".to_owned(),
        "null".to_owned(),
        "..%2F..%2Fetc".to_owned(),
        "%00".to_owned(),
        "%FF".to_owned(),
        "'%20or%201=1--".to_owned(),
        "*".to_owned(),
        "00000000-0000-0000-0000-000000000000".to_owned(),
    ];
    let first = app.admin().get(&path(&spellings[0])).await;
    first.expect_problem(404, "not_found");
    for spelling in spellings {
        assert_eq!(app.admin().get(&path(&spelling)).await.anonymous(), first.anonymous(), "{spelling}");
    }
}
