//! Who a request speaks for: keys bound to a user, and `X-User-Id`.

use serde_json::{Value, json};

use crate::app::{TestApp, api_tests};
use crate::client::text;

const SESSIONS: &str = "/api/v1/sessions";

api_tests! {
    what_a_bound_key_creates_is_its_users
    x_user_id_narrows_an_unbound_key_to_one_user
    another_user_in_the_body_or_the_query_is_a_403
    a_bound_key_speaks_for_no_other_user
    an_x_user_id_that_is_no_user_is_a_400
    a_key_without_a_user_sees_every_user_of_its_project
    a_project_sees_nothing_of_another
    what_a_body_claims_of_its_sender_is_not_believed
}

async fn what_a_bound_key_creates_is_its_users(app: TestApp) {
    for body in [
        json!({"session_name": "n"}),
        json!({"session_name": "n", "user_id": "alice"}),
        json!({"session_name": "n", "user_id": null}),
    ] {
        let session = app.alice().post(SESSIONS, body).await.expect(201);
        assert_eq!(session["user_id"], "alice");
    }
    app.bob().new_session("n").await;
    assert_eq!(app.alice().get(SESSIONS).await.column("user_id"), ["alice"; 3]);
    assert_eq!(app.bob().get(SESSIONS).await.column("user_id"), ["bob"]);
}

async fn x_user_id_narrows_an_unbound_key_to_one_user(app: TestApp) {
    let ada = app.admin().with("x-user-id", "ada");
    let eve = app.admin().with("x-user-id", "eve");
    let id = ada.new_session("n").await;
    let message = text(&ada.new_message(&id, "x").await["message_id"]);
    assert_eq!(ada.get(SESSIONS).await.column("user_id"), ["ada"]);
    assert_eq!(eve.get(SESSIONS).await.text(), "[]");
    for path in [format!("{SESSIONS}/{id}"), format!("{SESSIONS}/{id}/messages"), format!("/api/v1/messages/{message}")]
    {
        ada.get(&path).await.expect(200);
        app.admin().get(&path).await.expect(200);
        eve.get(&path).await.expect_problem(404, "not_found");
    }
    eve.post(&format!("{SESSIONS}/{id}/messages"), json!({"content": "x"})).await.expect_problem(404, "not_found");
    eve.delete(&format!("{SESSIONS}/{id}")).await.expect_problem(404, "not_found");
    let nobodys = app.admin().new_session("n").await;
    ada.get(&format!("{SESSIONS}/{nobodys}")).await.expect_problem(404, "not_found");
    let umlaut = app.admin().with("x-user-id", "Jürgen");
    let session = umlaut.post(SESSIONS, json!({"session_name": "n", "user_id": "Jürgen"})).await.expect(201);
    assert_eq!(session["user_id"], "Jürgen");
    assert_eq!(app.admin().get(&format!("{SESSIONS}?user_id=J%C3%BCrgen")).await.items().len(), 1);
    assert_eq!(app.admin().with("x-user-id", "ADA").get(SESSIONS).await.text(), "[]", "users are told apart by case");
}

async fn another_user_in_the_body_or_the_query_is_a_403(app: TestApp) {
    for client in [app.alice(), app.admin().with("x-user-id", "alice")] {
        client
            .post(SESSIONS, json!({"session_name": "n", "user_id": "bob"}))
            .await
            .expect_problem(403, "user_mismatch");
        client.get(&format!("{SESSIONS}?user_id=bob")).await.expect_problem(403, "user_mismatch");
        client.get(&format!("{SESSIONS}?user_id=alice&user_id=bob")).await.expect_problem(403, "user_mismatch");
        let import = json!([{"id": "c", "user_id": "bob", "messages": []}]);
        client.post("/api/v1/admin/import", import).await.expect_problem(403, "user_mismatch");
        assert_eq!(client.get(&format!("{SESSIONS}?user_id=alice")).await.text(), "[]");
    }
    assert_eq!(app.admin().get(SESSIONS).await.text(), "[]");
}

async fn a_bound_key_speaks_for_no_other_user(app: TestApp) {
    let id = app.bob().new_session("n").await;
    for path in [SESSIONS.to_owned(), format!("{SESSIONS}/{id}"), "/api/v1/messages/none".to_owned()] {
        for other in ["bob", "nobody", "ALICE", "alice "] {
            app.alice().with("x-user-id", other).get(&path).await.expect_problem(403, "user_mismatch");
        }
    }
    assert_eq!(app.alice().with("x-user-id", "alice").get(SESSIONS).await.text(), "[]");
    let post = app.alice().with("x-user-id", "bob").post(SESSIONS, json!({"session_name": "n"})).await;
    post.expect_problem(403, "user_mismatch");
    assert_eq!(app.bob().get(SESSIONS).await.items().len(), 1);
}

async fn an_x_user_id_that_is_no_user_is_a_400(app: TestApp) {
    let long = "x".repeat(257);
    for value in [&b""[..], b"\xFF\xFE", long.as_bytes()] {
        for client in [app.admin(), app.alice()] {
            client.with("x-user-id", value).get(SESSIONS).await.expect_problem(400, "invalid_header");
        }
    }
    let twice = app.admin().with("x-user-id", "ada").with("x-user-id", "ada");
    twice.get(SESSIONS).await.expect_problem(400, "invalid_header");
    app.admin().with("x-user-id", "x".repeat(256)).get(SESSIONS).await.expect(200);
    app.anon().with("x-user-id", "").get(SESSIONS).await.expect_problem(401, "missing_api_key");
}

async fn a_key_without_a_user_sees_every_user_of_its_project(app: TestApp) {
    let (a, b) = (app.alice().new_session("a").await, app.bob().new_session("b").await);
    app.admin().new_session("c").await;
    for client in [app.admin(), app.reader(), app.writer()] {
        assert_eq!(client.get(SESSIONS).await.column("session_name"), ["a", "b", "c"]);
        assert_eq!(client.get(&format!("{SESSIONS}?user_id=bob")).await.column("session_id"), [b.as_str()]);
    }
    app.writer().patch(&format!("{SESSIONS}/{a}"), json!({"session_name": "a2"})).await.expect(200);
    assert_eq!(app.alice().get(SESSIONS).await.column("session_name"), ["a2"]);
}

async fn a_project_sees_nothing_of_another(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = text(&app.admin().new_message(&id, "x").await["message_id"]);
    assert_eq!(app.stranger().get(SESSIONS).await.text(), "[]");
    for path in [format!("{SESSIONS}/{id}"), format!("{SESSIONS}/{id}/messages"), format!("/api/v1/messages/{message}")]
    {
        app.stranger().get(&path).await.expect_problem(404, "not_found");
    }
    let own = app.stranger().new_session("own").await;
    assert_eq!(app.stranger().get(SESSIONS).await.column("session_id"), [own.as_str()]);
    assert_eq!(app.admin().get(SESSIONS).await.column("session_id"), [id.as_str()]);
}

async fn what_a_body_claims_of_its_sender_is_not_believed(app: TestApp) {
    let claims = json!({
        "session_name": "n", "content": "x", "project_id": app.other.to_string(), "scopes": ["admin"], "role": "admin",
        "key_hash": "x", "seq": 5, "version": 5, "deleted_at": null, "created_at": "2001-01-01T00:00:00Z",
    });
    let session = app.alice().post(SESSIONS, &claims).await.expect(201);
    let id = text(&session["session_id"]);
    let message = app.alice().post(&format!("{SESSIONS}/{id}/messages"), &claims).await.expect(201);
    assert_eq!((&message["seq"], &message["version"]), (&json!(1), &json!(1)));
    let patched = app.alice().patch(&format!("{SESSIONS}/{id}"), &claims).await.expect(200);
    assert_eq!((&patched["created_at"], &patched["version"]), (&session["created_at"], &json!(1)));
    assert_eq!(app.stranger().get(SESSIONS).await.items(), Vec::<Value>::new());
    for reply in [&session, &message, &patched] {
        let keys: Vec<&String> = reply.as_object().unwrap().keys().collect();
        assert!(!keys.iter().any(|key| ["project_id", "digest", "session_no", "deleted_at"].contains(&key.as_str())));
    }
}
