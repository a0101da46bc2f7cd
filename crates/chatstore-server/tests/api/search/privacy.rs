//! What a caller may not see stands in no byte of any answer, and changes none.

use serde_json::{Value, json};

use super::{SEARCH, search, session_of};
use crate::app::{TestApp, api_tests};
use crate::client::{Client, Reply, text};

/// Stands in all that is foreign or gone, and nowhere else.
const CANARY: &str = "xyzzycanary";
/// Stands nowhere.
const NOWHERE: &str = "qwertynowhere";
/// Stands in what alice has and in what she may not see.
const COMMON: &str = "lantern";

api_tests! {
    no_answer_holds_what_is_foreign_or_gone
    a_word_that_only_others_have_answers_like_one_that_nobody_has
    what_others_store_changes_no_byte_of_an_answer
    vectors_of_others_are_not_found
}

/// The canary with the common word: in another project, with another user, in a deleted message and session, and in a
/// text that was edited away. `client` is who has lost the last three.
async fn hide(app: &TestApp, client: &Client) {
    let said = format!("{CANARY} {COMMON}");
    for other in [app.stranger(), app.bob(), app.admin().with("x-user-id", "zoe")] {
        let id = session_of(&other, &said, &[&said, &said]).await;
        let body = json!({"content": said, "embedding": [1.0, 0.0, 0.0], "metadata": {"a": "b"}});
        other.post(&format!("/api/v1/sessions/{id}/messages"), body).await.expect(201);
    }
    let deleted = session_of(client, &said, &[&said, &said]).await;
    client.delete(&format!("/api/v1/sessions/{deleted}")).await.expect(200);
    let id = client.new_session("kept").await;
    let gone = text(&client.new_message(&id, &said).await["message_id"]);
    client.delete(&format!("/api/v1/messages/{gone}")).await.expect(200);
    let edited = text(&client.new_message(&id, &said).await["message_id"]);
    client.patch(&format!("/api/v1/messages/{edited}"), json!({"content": "nothing to see"})).await.expect(200);
    let renamed = session_of(client, &said, &["in a session of another name"]).await;
    client.patch(&format!("/api/v1/sessions/{renamed}"), json!({"session_name": "plain"})).await.expect(200);
}

async fn own(client: &Client) -> String {
    session_of(client, "own", &["a lantern of mine", "another lantern", "no light at all"]).await
}

/// Every kind of search for a query.
async fn searches(client: &Client, session_id: &str, query: &str) -> Vec<Reply> {
    let mut replies = Vec::new();
    for more in [
        json!({}),
        json!({"mode": "text"}),
        json!({"group_by_session": true}),
        json!({"context_before": 10, "context_after": 10}),
        json!({"limit": 1}),
        json!({"session_id": session_id}),
        json!({"embedding": [1.0, 0.0, 0.0]}),
        json!({"embedding": [1.0, 0.0, 0.0], "mode": "vector"}),
        json!({"embedding": [1.0, 0.0, 0.0], "mode": "vector", "metric": "l2", "context_before": 10}),
    ] {
        let mut body = json!({"query": query});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        replies.push(search(client, body).await);
    }
    replies.push(client.get(&format!("{SEARCH}?q={query}&limit=1")).await);
    replies.push(client.get(&format!("/api/v1/sessions/{session_id}/search?q={query}&context_after=10")).await);
    replies
}

/// Signatures and times of cursors are not what is compared here.
fn without_cursor(reply: &Reply) -> String {
    let mut body: Value = reply.json();
    if body["next_cursor"].is_string() {
        body["next_cursor"] = json!("there is more");
    }
    format!("{} {body}", reply.status)
}

async fn no_answer_holds_what_is_foreign_or_gone(app: TestApp) {
    let alice = app.alice();
    let id = own(&alice).await;
    hide(&app, &alice).await;
    for client in [alice, app.admin().with("x-user-id", "alice")] {
        for query in [COMMON, "light", "see", "name", "in%3Aown", &format!("-{NOWHERE}%20{COMMON}"), "x*", "lant*"] {
            for reply in searches(&client, &id, query).await {
                assert_eq!(reply.status, 200, "{reply:?}");
                assert!(!reply.anonymous().contains(CANARY), "{reply:?}");
            }
        }
    }
    // A key of the project sees all its users, and nothing of another project or of what is gone.
    let before = app.admin().get(&format!("{SEARCH}?q={CANARY}&limit=100")).await.expect(200);
    assert_eq!(before["hits"].as_array().map(Vec::len), Some(6), "bob's and zoe's three each");
}

async fn a_word_that_only_others_have_answers_like_one_that_nobody_has(app: TestApp) {
    let alice = app.alice();
    let id = own(&alice).await;
    hide(&app, &alice).await;
    for (seen, unseen) in [
        (CANARY.to_owned(), NOWHERE.to_owned()),
        (format!("{CANARY}%20{COMMON}"), format!("{NOWHERE}%20{COMMON}")),
        (format!("%22{CANARY}%20{COMMON}%22"), format!("%22{NOWHERE}%20{COMMON}%22")),
        ("xyzzycan*".to_owned(), "qwertynow*".to_owned()),
        (format!("{COMMON}%20-{CANARY}"), format!("{COMMON}%20-{NOWHERE}")),
        (format!("{COMMON}%20in:{CANARY}"), format!("{COMMON}%20in:{NOWHERE}")),
    ] {
        for path in [
            format!("{SEARCH}?q={seen}"),
            format!("{SEARCH}?mode=text&group_by_session=1&context_before=3&q={seen}"),
            format!("/api/v1/sessions/{id}/search?q={seen}"),
        ] {
            let with = alice.get(&path).await;
            let without = alice.get(&path.replace(&seen, &unseen)).await;
            assert_eq!(with.anonymous(), without.anonymous(), "{path}");
        }
    }
}

async fn what_others_store_changes_no_byte_of_an_answer(app: TestApp) {
    let alice = app.alice();
    let id = own(&alice).await;
    let before: Vec<String> = searches(&alice, &id, COMMON).await.iter().map(without_cursor).collect();
    hide(&app, &app.bob()).await;
    for _ in 0..20 {
        session_of(&app.stranger(), COMMON, &[COMMON, COMMON]).await;
    }
    let after: Vec<String> = searches(&alice, &id, COMMON).await.iter().map(without_cursor).collect();
    assert_eq!(before, after);
}

async fn vectors_of_others_are_not_found(app: TestApp) {
    let alice = app.alice();
    let id = own(&alice).await;
    hide(&app, &alice).await;
    let near = json!({"embedding": [1.0, 0.0, 0.0]});
    assert_eq!(search(&alice, near.clone()).await.expect(200)["hits"], json!([]));
    let body = json!({"content": "far", "embedding": [0.0, 1.0, 0.0]});
    alice.post(&format!("/api/v1/sessions/{id}/messages"), body).await.expect(201);
    let reply = search(&alice, near).await;
    let hits = super::found(&reply);
    assert_eq!(hits, ["far"]);
    assert_eq!(reply.expect(200)["hits"][0]["ranks"], json!({"vector": 1}));
}
