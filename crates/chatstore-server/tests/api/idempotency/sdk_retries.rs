//! What SDKs retry by themselves, without a key: known by its body where only one conversation is concerned.

use std::time::Duration;

use chatstore_server::access::{AccessSettings, OpenAiSettings};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{KEY, assert_replay, is_replay, messages};
use crate::app::{TestApp, access, api_tests};
use crate::client::{Client, Reply, text};

api_tests! {
    each_retry_is_answered_by_one_request_that_came
    a_retry_is_known_within_30_seconds
    a_retry_repeats_nothing_that_is_deleted
    a_retry_of_another_caller_body_or_conversation_is_another_request
    a_key_counts_more_than_a_retry
    only_items_are_known_by_their_bodies
    retries_that_are_not_counted_are_requests
    the_operator_may_switch_it_off
    a_crowd_of_retries_is_answered_by_as_many_requests_as_came
}

pub(super) const RETRY: &str = "x-stainless-retry-count";
pub(super) const CONVERSATIONS: &str = "/v1/conversations";

pub(super) async fn conversation(client: &Client) -> String {
    text(&client.post(CONVERSATIONS, json!({})).await.expect(200)["id"])
}

pub(super) fn said(text: &str) -> Value {
    json!({"items": [{"type": "message", "role": "user", "content": text}]})
}

pub(super) async fn send(client: &Client, conversation: &str, text: &str, retry: &str) -> Reply {
    send_body(client, conversation, &said(text), retry).await
}

pub(super) async fn send_body(client: &Client, conversation: &str, body: &Value, retry: &str) -> Reply {
    client.with(RETRY, retry).post(&format!("{CONVERSATIONS}/{conversation}/items"), body).await
}

pub(super) async fn count(client: &Client, conversation: &str) -> usize {
    let listed = client.get(&format!("{CONVERSATIONS}/{conversation}/items?limit=100")).await.expect(200);
    listed["data"].as_array().map_or(0, Vec::len)
}

#[track_caller]
pub(super) fn assert_done(reply: &Reply) {
    assert!(reply.status == 200 && !is_replay(reply), "{}", reply.text());
}

async fn each_retry_is_answered_by_one_request_that_came(app: TestApp) {
    let alice = app.alice();
    let id = conversation(&alice).await;
    // Two that are meant, though alike.
    let (one, two) = (send(&alice, &id, "x", "0").await, send(&alice, &id, "x", "0").await);
    assert_done(&one);
    assert_done(&two);
    assert_ne!(one.json()["first_id"], two.json()["first_id"]);
    // The newest first: it is the one whose answer was lost.
    assert_replay(&two, &send(&alice, &id, "x", "1").await);
    assert_replay(&one, &send(&alice, &id, "x", "1").await);
    assert_replay(&two, &send(&alice, &id, "x", "2").await);
    assert_eq!(count(&alice, &id).await, 2);
    // The first try of this one was lost on its way.
    let three = send(&alice, &id, "y", "1").await;
    assert_done(&three);
    assert_replay(&three, &send(&alice, &id, "y", "2").await);
    assert_done(&send(&alice, &id, "y", "2").await);
    assert_eq!(count(&alice, &id).await, 4);
}

async fn a_retry_is_known_within_30_seconds(app: TestApp) {
    let alice = app.alice();
    let id = conversation(&alice).await;
    let first = send(&alice, &id, "x", "0").await;
    app.ctx.advance(Duration::from_secs(29));
    assert_replay(&first, &send(&alice, &id, "x", "1").await);
    app.ctx.advance(Duration::from_secs(2));
    assert_done(&send(&alice, &id, "x", "2").await);
}

async fn a_retry_repeats_nothing_that_is_deleted(app: TestApp) {
    let alice = app.alice();
    let id = conversation(&alice).await;
    let path = format!("{CONVERSATIONS}/{id}");
    let delete = async |reply: &Reply| alice.delete(&format!("{path}/items/{}", text(&reply.json()["first_id"]))).await;
    let (one, two) = (send(&alice, &id, "x", "0").await, send(&alice, &id, "x", "0").await);
    delete(&two).await.expect(200);
    assert_replay(&one, &send(&alice, &id, "x", "1").await);
    delete(&one).await.expect(200);
    // What was undone is said again, and the first try of that was lost.
    let three = send(&alice, &id, "x", "1").await;
    assert_done(&three);
    assert_replay(&three, &send(&alice, &id, "x", "2").await);
    assert_eq!(count(&alice, &id).await, 1);
    alice.delete(&path).await.expect(200);
    for retry in ["0", "1", "3"] {
        assert_eq!(send(&alice, &id, "x", retry).await.status, 404);
    }
}

async fn a_retry_of_another_caller_body_or_conversation_is_another_request(app: TestApp) {
    let (writer, alice) = (app.writer(), app.alice());
    let (id, other) = (conversation(&alice).await, conversation(&alice).await);
    send(&writer, &id, "x", "0").await.expect(200);
    assert_done(&send(&writer, &other, "x", "1").await);
    assert_done(&send(&writer, &id, "y", "1").await);
    assert_done(&send(&writer.with("x-user-id", "alice"), &id, "x", "1").await);
    assert_done(&send(&alice, &id, "x", "1").await);
    assert_done(&send(&app.admin(), &id, "x", "1").await);
    assert!(is_replay(&send(&writer, &id, "x", "1").await));
    assert_eq!((count(&alice, &id).await, count(&alice, &other).await), (5, 1));
}

async fn a_key_counts_more_than_a_retry(app: TestApp) {
    let alice = app.alice();
    let id = conversation(&alice).await;
    send(&alice, &id, "x", "0").await.expect(200);
    let first = send(&alice.with(KEY, "k"), &id, "x", "1").await;
    assert_done(&first);
    assert_replay(&first, &send(&alice.with(KEY, "k"), &id, "x", "0").await);
    assert_eq!(count(&alice, &id).await, 2);
}

async fn only_items_are_known_by_their_bodies(app: TestApp) {
    let retried = app.alice().with(RETRY, "1");
    let (one, two) = (conversation(&retried).await, conversation(&retried).await);
    assert_ne!(one, two, "two callers never share a conversation");
    let session = app.alice().new_session("n").await;
    for _ in 0..2 {
        let appended = retried.post(&messages(&session), json!({"content": "x"})).await;
        assert!(appended.status == 201 && !is_replay(&appended));
    }
    assert_eq!(app.alice().get(&messages(&session)).await.column("seq"), [2, 1]);
}

async fn retries_that_are_not_counted_are_requests(app: TestApp) {
    let alice = app.alice();
    let id = conversation(&alice).await;
    send(&alice, &id, "x", "0").await.expect(200);
    for retry in ["", "-1", "one", "1.0", "1000"] {
        assert_done(&send(&alice, &id, "x", retry).await);
    }
    assert_done(&send(&alice.with(RETRY, "1"), &id, "x", "1").await);
    assert_eq!(count(&alice, &id).await, 7);
}

async fn the_operator_may_switch_it_off(app: TestApp) {
    let openai = OpenAiSettings { sdk_retry_dedupe: false, ..OpenAiSettings::default() };
    let app = app.with_access(AccessSettings { openai, ..access() }).await;
    let id = conversation(&app.alice()).await;
    for retry in ["0", "1", "2"] {
        assert_done(&send(&app.alice(), &id, "x", retry).await);
    }
    // A key counts all the same.
    let keyed = app.alice().with(KEY, "k");
    let first = send(&keyed, &id, "x", "0").await;
    assert_replay(&first, &send(&keyed, &id, "x", "1").await);
}

async fn a_crowd_of_retries_is_answered_by_as_many_requests_as_came(app: TestApp) {
    let (alice, id) = (&app.alice(), &conversation(&app.alice()).await);
    join_all((0..4).map(|_| send(alice, id, "x", "0"))).await;
    let retries = join_all((0..6).map(|_| send(alice, id, "x", "1"))).await;
    assert_eq!(retries.iter().filter(|reply| is_replay(reply)).count(), 4);
    let ids: std::collections::HashSet<Value> =
        retries.iter().map(|reply| text(&reply.json()["first_id"]).into()).collect();
    assert_eq!(ids.len(), 6, "none answers for two");
    assert_eq!(count(alice, id).await, 6);
}
