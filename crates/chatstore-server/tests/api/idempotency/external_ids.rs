//! Messages that bring an id: the same is stored once, also without a key.

use serde_json::{Value, json};

use super::{KEY, assert_first, assert_replay, is_replay, messages};
use crate::app::{TestApp, api_tests};
use crate::client::{Client, Reply, text};

api_tests! {
    a_message_that_comes_again_is_the_one_that_is_there
    another_message_with_the_same_id_is_refused
    a_batch_of_which_some_are_there_stores_the_others
    a_replay_shows_what_was_there_before_as_it_stands
    the_id_of_a_deleted_message_is_free
    a_message_is_known_by_its_item_id
}

fn named(id: &str, content: &str) -> Value {
    json!({"content": content, "external_id": id})
}

async fn post(client: &Client, session: &str, body: Value) -> Reply {
    client.post(&messages(session), body).await
}

fn seqs(reply: &Reply) -> Vec<i64> {
    reply.expect(201).as_array().unwrap().iter().map(|message| message["seq"].as_i64().unwrap()).collect()
}

#[track_caller]
fn assert_taken(reply: &Reply, pointer: &str) {
    let problem = reply.expect_problem(409, "conflict");
    assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert_eq!(reply.header("retry-after"), None);
}

async fn a_message_that_comes_again_is_the_one_that_is_there(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let first = post(&app.alice(), &session, named("e", "a")).await;
    let before = app.alice().get(&format!("/api/v1/sessions/{session}")).await.expect(200);
    // Whoever sends it, and however its JSON is written.
    for (client, body) in [
        (app.alice(), r#"{"content":"a","external_id":"e"}"#),
        (app.writer(), r#"{"external_id":"e","metadata":{ },"content":"a","role":"user","kind":"message"}"#),
    ] {
        let again = client.post(&messages(&session), body).await;
        assert_eq!(again.expect(201), first.json());
        assert_eq!((again.header("etag"), again.header("location")), (first.header("etag"), first.header("location")));
        assert!(!is_replay(&again), "no key says that it is the same request");
    }
    assert_eq!(app.alice().get(&format!("/api/v1/sessions/{session}")).await.expect(200), before);
    // In another session it is another one.
    let other = app.alice().new_session("n").await;
    assert_ne!(post(&app.alice(), &other, named("e", "a")).await.expect(201)["message_id"], first.json()["message_id"]);
    // It is given back as it stands.
    let path = text(&Value::from(first.header("location").unwrap()));
    let changed = app.alice().patch(&path, json!({"token_count": 5})).await.expect(200);
    let known = json!({"content": "a", "external_id": "e", "token_count": 5});
    let again = post(&app.alice(), &session, known).await;
    assert_eq!((again.expect(201), again.header("etag")), (changed, Some("\"2\"")));
}

async fn another_message_with_the_same_id_is_refused(app: TestApp) {
    let session = app.alice().new_session("n").await;
    post(&app.alice(), &session, named("e", "a")).await.expect(201);
    assert_taken(&post(&app.alice(), &session, named("e", "b")).await, "/external_id");
    assert_taken(&post(&app.alice(), &session, json!([named("f", "x"), named("e", "b")])).await, "/1/external_id");
    assert_taken(&post(&app.alice(), &session, json!([named("f", "x"), named("f", "x")])).await, "/1/external_id");
    for (field, value) in [
        ("role", json!("assistant")),
        ("kind", json!("note")),
        ("status", json!("incomplete")),
        ("metadata", json!({"a": 1})),
        ("context", json!([])),
        ("payload", json!({})),
        ("token_count", json!(0)),
    ] {
        let mut other = named("e", "a");
        other[field] = value;
        assert_taken(&post(&app.alice(), &session, other).await, "/external_id");
    }
    assert_eq!(app.alice().get(&messages(&session)).await.column("seq"), [1]);
}

async fn a_batch_of_which_some_are_there_stores_the_others(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let alice = app.alice();
    assert_eq!(seqs(&post(&alice, &session, json!([named("a", "a"), named("b", "b")])).await), [1, 2]);
    let body = json!([named("c", "c"), named("b", "b"), {"content": "d"}, named("a", "a")]);
    let keyed = alice.with(KEY, "k");
    let first = post(&keyed, &session, body.clone()).await;
    assert_eq!(seqs(&first), [3, 2, 4, 1]);
    assert!(!is_replay(&first));
    assert_replay(&first, &post(&keyed, &session, body.clone()).await);
    // Under another key what has ids is there already, and what has none is new.
    assert_eq!(seqs(&post(&alice.with(KEY, "l"), &session, body).await), [3, 2, 5, 1]);
    assert_eq!(alice.get(&messages(&session)).await.column("seq"), [5, 4, 3, 2, 1]);
}

async fn a_replay_shows_what_was_there_before_as_it_stands(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let first = assert_first(&post(&app.alice(), &session, named("e", "a")).await);
    let keyed = app.alice().with(KEY, "k");
    // Written otherwise than it is stored: the answer is what is stored.
    let again = json!([{"metadata": {}, "external_id": "e", "content": "a"}, {"content": "b"}]);
    let both = post(&keyed, &session, again.clone()).await;
    assert_eq!(both.expect(201)[0], first);
    assert_replay(&both, &post(&keyed, &session, again.clone()).await);
    let path = format!("/api/v1/messages/{}", text(&first["message_id"]));
    let changed = app.alice().patch(&path, json!({"content": "c"})).await.expect(200);
    let later = post(&keyed, &session, again.clone()).await;
    assert!(is_replay(&later));
    // A version and what it says stay together, so that `If-Match` protects what was changed since.
    assert_eq!(later.expect(201), json!([changed, both.json()[1]]));
    app.alice().delete(&path).await.expect(200);
    post(&keyed, &session, again).await.expect_problem(410, "gone");
}

async fn the_id_of_a_deleted_message_is_free(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let first = assert_first(&post(&app.alice(), &session, named("e", "a")).await);
    app.alice().delete(&format!("/api/v1/messages/{}", text(&first["message_id"]))).await.expect(200);
    let again = assert_first(&post(&app.alice(), &session, named("e", "a")).await);
    assert_eq!((&first["seq"], &again["seq"]), (&json!(1), &json!(2)));
}

async fn a_message_is_known_by_its_item_id(app: TestApp) {
    let session = app.alice().new_session("n").await;
    let first = assert_first(&post(&app.alice(), &session, json!({"content": "a"})).await);
    let item_id = format!("msg_{}", text(&first["message_id"]).replace('-', ""));
    assert_eq!(post(&app.alice(), &session, named(&item_id, "a")).await.expect(201), first);
    assert_taken(&post(&app.alice(), &session, named(&item_id, "b")).await, "/external_id");
}
