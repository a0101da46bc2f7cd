//! The audit log over HTTP: what is noted, by whom it is read, and that nothing goes by unnoted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::TokenSecret;
use chatstore_core::store::StoreError;
use chatstore_server::access::AccessSettings;
use chatstore_server::app::{App, RequestLimits};
use chatstore_server::listener::Peer;
use chatstore_server::router;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::app::{ROOT_KEY, TestApp, access, api_tests, limits};
use crate::client::{Client, text};
use crate::faulty::{Fault, FaultyStore};
use crate::rate_limits::at;

api_tests! {
    what_is_ruled_or_destroyed_is_noted_with_its_outcome
    an_item_is_noted_by_its_messages_id
    what_only_reads_or_is_nobodys_is_not_noted
    an_event_tells_who_from_where_and_under_which_id
    an_address_that_proxies_disagree_on_is_not_noted
    a_refusal_for_lack_of_scope_is_noted_once_a_minute
    an_event_stands_in_the_log_of_the_project_it_concerns
    an_admin_reads_the_own_log_and_an_operator_all
    the_log_is_filtered_and_paged
    a_log_that_cannot_be_written_changes_no_answer
    a_request_that_nobody_waits_for_is_noted
    an_event_that_nobody_waits_for_is_waited_for_at_the_end
    a_request_that_panics_or_takes_too_long_is_noted
    an_event_never_holds_what_somebody_wrote
}

const AUDIT: &str = "/api/v1/admin/audit";
const KEYS: &str = "/api/v1/admin/keys";
const PROJECTS: &str = "/api/v1/admin/projects";
const ABSENT: &str = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";
/// What a request is given to begin, before it is given up: its caller is looked up first, and only then is it noted.
const TO_BEGIN: Duration = Duration::from_secs(3);

/// Action, target and outcome of the newest event.
async fn newest(app: &TestApp) -> (String, Option<String>, String) {
    let event = app.admin().get(&format!("{AUDIT}?limit=1")).await.items().remove(0);
    (text(&event["action"]), event["target_id"].as_str().map(ToOwned::to_owned), text(&event["outcome"]))
}

async fn what_is_ruled_or_destroyed_is_noted_with_its_outcome(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    let message = text(&admin.new_message(&id, "x").await["message_id"]);
    let noted = async |action: &str, target: Option<&str>, outcome: &str| {
        let expected = (action.to_owned(), target.map(ToOwned::to_owned), outcome.to_owned());
        assert_eq!(newest(&app).await, expected);
    };
    admin.delete(&format!("/api/v1/messages/{message}")).await.expect(200);
    noted("delete_message", Some(&message), "ok").await;
    admin.delete(&format!("/api/v1/sessions/{id}/")).await.expect(200);
    noted("delete_session", Some(&id), "ok").await;
    admin.delete(&format!("/api/v1/sessions/{}", id.to_uppercase())).await.expect(404);
    noted("delete_session", Some(&id), "not_found").await;
    admin.delete("/api/v1/sessions/my-diary").await.expect(404);
    noted("delete_session", None, "not_found").await;
    app.reader().delete(&format!("/api/v1/sessions/{ABSENT}")).await.expect(403);
    noted("delete_session", Some(ABSENT), "insufficient_scope").await;
    app.alice().get(KEYS).await.expect(403);
    app.alice().post(KEYS, json!({"name": "n"})).await.expect(403);
    noted("create_api_key", None, "insufficient_scope").await;
    let key = text(&admin.post(KEYS, json!({"name": "n"})).await.expect(201)["key_id"]);
    noted("create_api_key", Some(&key), "ok").await;
    admin.post(&format!("{KEYS}/{key}/rotate"), "").await.expect(200);
    noted("rotate_api_key", Some(&key), "ok").await;
    admin.patch(&format!("{KEYS}/{key}"), json!({"scopes": []})).await.expect(422);
    noted("update_api_key", Some(&key), "validation_failed").await;
    admin.post(&format!("{KEYS}/{key}/revoke"), "").await.expect(200);
    noted("revoke_api_key", Some(&key), "ok").await;
    let project = text(&admin.post(PROJECTS, json!({"name": "p"})).await.expect(201)["project_id"]);
    noted("create_project", Some(&project), "ok").await;
    admin.post(PROJECTS, json!({"name": "p"})).await.expect(409);
    noted("create_project", None, "conflict").await;
    admin.delete(&format!("{PROJECTS}/{project}")).await.expect(200);
    noted("delete_project", Some(&project), "ok").await;
    admin.post("/api/v1/admin/import", "[").await.expect(400);
    noted("import_sessions", None, "invalid_json").await;
    admin.post("/api/v1/admin/tokens", json!({"user_id": "ada"})).await.expect(409);
    noted("create_token", None, "conflict").await;
    admin.post("/api/v1/admin/project/token-secret", "").await.expect(201);
    noted("rotate_token_secret", None, "ok").await;
    admin.post("/api/v1/admin/tokens", json!({"user_id": "ada"})).await.expect(201);
    noted("create_token", Some("ada"), "ok").await;
    admin.post("/api/v1/admin/embeddings/retry", "").await.expect(200);
    noted("retry_parked_embeddings", None, "ok").await;
}

async fn an_item_is_noted_by_its_messages_id(app: TestApp) {
    let admin = app.admin();
    let session = admin.new_session("n").await;
    let conversation = format!("/v1/conversations/conv_{}", session.replace('-', ""));
    let item = |id: Option<&str>| json!({"items": [{"role": "user", "content": "x", "id": id}]});
    let event = |target: &str, outcome: &str| ("delete_item".to_owned(), Some(target.to_owned()), outcome.to_owned());
    for own_id in [None, Some("msg_mine")] {
        let made = admin.post(&format!("{conversation}/items"), item(own_id)).await.expect(200);
        let messages = admin.get(&format!("/api/v1/sessions/{session}/messages")).await.items();
        let path = format!("{conversation}/items/{}", text(&made["first_id"]));
        admin.delete(&path).await.expect(200);
        assert_eq!(newest(&app).await, event(&text(&messages[0]["message_id"]), "ok"));
    }
    // What names nothing says at least where it was looked for.
    admin.delete(&format!("{conversation}/items/msg_mine")).await;
    assert_eq!(newest(&app).await, event(&session, "not_found"));
    admin.delete(&conversation).await.expect(200);
    assert_eq!(newest(&app).await, ("delete_conversation".to_owned(), Some(session), "ok".to_owned()));
}

async fn what_only_reads_or_is_nobodys_is_not_noted(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    admin.new_message(&id, "x").await;
    admin.patch(&format!("/api/v1/sessions/{id}"), json!({"is_favorite": true})).await.expect(200);
    for path in [AUDIT, KEYS, PROJECTS, "/api/v1/admin/project", "/api/v1/search?q=x"] {
        admin.get(path).await.expect(200);
    }
    for client in [app.anon(), app.client("garbage"), app.client(app.revoked_key()), app.client(app.expired_key())] {
        client.delete(&format!("/api/v1/sessions/{id}")).await.expect(401);
        client.post(KEYS, json!({"name": "n"})).await.expect(401);
    }
    assert_eq!(admin.get(AUDIT).await.text(), "[]");
}

/// Sends a request as it would come over a connection from an address.
async fn from(app: &TestApp, peer: &str, request: axum::http::request::Builder, body: Body) -> u16 {
    let mut request = request.body(body).unwrap();
    request.extensions_mut().insert(Peer(Some(peer.parse::<SocketAddr>().unwrap())));
    let Ok(response) = app.router.clone().call(request).await;
    response.status().as_u16()
}

async fn an_event_tells_who_from_where_and_under_which_id(app: TestApp) {
    let key = app.admin().post(KEYS, json!({"name": "n", "scopes": ["delete", "read"]})).await.expect(201);
    let delete = |credential: String| {
        let request = Request::delete(format!("/api/v1/sessions/{ABSENT}")).header("x-request-id", "my-request-1");
        request.header("authorization", format!("Bearer {credential}"))
    };
    app.admin().post("/api/v1/admin/project/token-secret", "").await.expect(201);
    let token = text(&app.admin().post("/api/v1/admin/tokens", json!({"user_id": "ada"})).await.expect(201)["token"]);
    let event = async || app.admin().get(&format!("{AUDIT}?limit=1")).await.items().remove(0);
    let by_key = delete(text(&key["secret"])).header("x-user-id", "eve");
    assert_eq!(from(&app, "203.0.113.7:4711", by_key, Body::empty()).await, 404);
    let expected = json!({
        "actor": "api_key", "actor_id": key["key_id"], "user_id": "eve", "address": "203.0.113.7",
        "request_id": "my-request-1", "project_id": ProjectId::DEFAULT.to_string(), "outcome": "not_found",
    });
    let holds = |event: &Value, expected: Value| {
        expected.as_object().unwrap().iter().for_each(|(name, value)| assert_eq!(&event[name], value, "{name}"));
    };
    holds(&event().await, expected);
    assert_eq!(from(&app, "[2001:db8::7]:80", delete(ROOT_KEY.to_owned()), Body::empty()).await, 404);
    let expected = json!({"actor": "root_key", "actor_id": null, "user_id": null, "address": "2001:db8::7"});
    holds(&event().await, expected);
    assert_eq!(from(&app, "203.0.113.7:1", delete(token), Body::empty()).await, 404);
    holds(&event().await, json!({"actor": "user_token", "actor_id": "ada", "user_id": "ada"}));
    let reply = app.admin().delete(&format!("/api/v1/sessions/{ABSENT}")).await;
    let noted = event().await;
    assert_eq!((noted["request_id"].as_str(), &noted["address"]), (reply.header("x-request-id"), &Value::Null));
}

async fn an_address_that_proxies_disagree_on_is_not_noted(app: TestApp) {
    let app = app.with_access(AccessSettings { trusted_proxies: 1, ..access() }).await;
    let proxied = at(&app, "10.0.0.1", ROOT_KEY).with("x-forwarded-for", "203.0.113.7");
    let address = async |client: Client| {
        client.delete(&format!("/api/v1/sessions/{ABSENT}")).await.expect(404);
        app.admin().get(&format!("{AUDIT}?limit=1")).await.items().remove(0)["address"].clone()
    };
    assert_eq!(address(proxied.clone()).await, "203.0.113.7");
    assert_eq!(address(proxied.with("forwarded", "for=6.6.6.6")).await, Value::Null);
}

async fn a_refusal_for_lack_of_scope_is_noted_once_a_minute(app: TestApp) {
    let secret = TokenSecret::generate(&app.ctx);
    let now = app.ctx.now();
    app.store.rotate_token_secret(ProjectId::DEFAULT, Some(secret), now, now, None).await.unwrap();
    let mut clients = vec![app.reader(), app.reader().with("x-user-id", "eve"), app.writer()];
    for user_id in ["ada", "bob"] {
        let token = json!({"user_id": user_id, "scopes": ["read"], "expires_in_seconds": 3_600});
        let made = app.admin().post("/api/v1/admin/tokens", token).await.expect(201);
        clients.push(app.client(&text(&made["token"])));
    }
    let noted = async |action: &str| app.admin().get(&format!("{AUDIT}?action={action}")).await.items().len();
    for round in 1..=2 {
        for client in clients.iter().cycle().take(15) {
            client.delete(&format!("/api/v1/sessions/{ABSENT}")).await.expect_problem(403, "insufficient_scope");
        }
        assert_eq!(noted("delete_session").await, 4 * round, "two keys and two users");
        app.reader().post(KEYS, json!({"name": "n"})).await.expect(403);
        assert_eq!(noted("create_api_key").await, round);
        app.ctx.advance(Duration::from_secs(60));
    }
    // What fails otherwise is noted each time.
    for _ in 0..3 {
        app.admin().delete(&format!("/api/v1/messages/{ABSENT}")).await.expect(404);
    }
    assert_eq!(noted("delete_message").await, 3);
}

async fn an_event_stands_in_the_log_of_the_project_it_concerns(app: TestApp) {
    let (admin, other) = (app.admin(), app.other.to_string());
    let key = admin.post(KEYS, json!({"name": "n", "project_id": other})).await.expect(201);
    admin.patch(&format!("{KEYS}/{}", text(&key["key_id"])), json!({"name": "m"})).await.expect(200);
    admin.patch(&format!("{PROJECTS}/{other}"), json!({})).await.expect(200);
    admin.patch(&format!("{PROJECTS}/{other}"), json!({"name": ""})).await.expect(422);
    let local = app.client(&app.key(ProjectId::DEFAULT, "admin", None).await);
    local.delete(&format!("{PROJECTS}/{other}")).await.expect(403);
    let theirs = admin.get(&format!("{AUDIT}?project_id={other}")).await.column("action");
    assert_eq!(theirs, ["update_project", "update_project", "update_api_key", "create_api_key"]);
    let own = admin.get(&format!("{AUDIT}?project_id={}", ProjectId::DEFAULT)).await.column("action");
    assert_eq!(own, ["delete_project"], "who may not rule a project leaves nothing in its log");
    admin.delete(&format!("{PROJECTS}/{other}")).await.expect(200);
    let after = admin.get(&format!("{AUDIT}?project_id={other}")).await.column("action");
    assert_eq!(after[0], "delete_project");
}

async fn an_admin_reads_the_own_log_and_an_operator_all(app: TestApp) {
    for client in [app.admin(), app.stranger()] {
        client.post(KEYS, json!({"name": "n", "scopes": ["read"]})).await.expect(201);
    }
    let admin = app.client(&app.key(app.other, "admin", None).await);
    let (own, other) = (app.other.to_string(), ProjectId::DEFAULT.to_string());
    assert_eq!(admin.get(AUDIT).await.column("project_id"), [own.as_str()]);
    assert_eq!(admin.get(&format!("{AUDIT}?project_id={own}")).await.items().len(), 1);
    for foreign in [other.as_str(), ABSENT] {
        let problem = admin.get(&format!("{AUDIT}?project_id={foreign}")).await;
        problem.expect_problem(403, "insufficient_scope");
    }
    assert_eq!(app.admin().get(AUDIT).await.column("project_id"), [own.as_str(), other.as_str()]);
    assert_eq!(app.admin().get(&format!("{AUDIT}?project_id={ABSENT}")).await.text(), "[]");
    app.reader().get(AUDIT).await.expect_problem(403, "insufficient_scope");
}

async fn the_log_is_filtered_and_paged(app: TestApp) {
    let admin = app.admin();
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(admin.post(KEYS, json!({"name": "n", "scopes": ["admin", "read"]})).await.expect(201));
    }
    let by_key = app.client(&text(&made[0]["secret"]));
    by_key.post(&format!("{KEYS}/{}/revoke", text(&made[1]["key_id"])), "").await.expect(200);
    assert_eq!(admin.get(&format!("{AUDIT}?action=revoke_api_key")).await.items().len(), 1);
    let actor = text(&made[0]["key_id"]);
    assert_eq!(admin.get(&format!("{AUDIT}?actor_id={actor}")).await.column("action"), ["revoke_api_key"]);
    let both = admin.get(&format!("{AUDIT}?actor_id={actor}&action=revoke_api_key")).await;
    both.expect_invalid(&["?actor_id"]);
    assert!(both.text().contains("use one"), "{}", both.text());
    let (mut targets, mut next) = (Vec::new(), Some(format!("{AUDIT}?limit=1&action=create_api_key")));
    while let Some(path) = next {
        let page = admin.get(&path).await;
        targets.extend(page.column("target_id"));
        next = page.next();
    }
    let newest_first: Vec<Value> = made.iter().rev().map(|key| key["key_id"].clone()).collect();
    assert_eq!(targets, newest_first);
    let next = admin.get(&format!("{AUDIT}?limit=1")).await.next().unwrap();
    by_key.get(&next).await.expect_problem(400, "invalid_cursor");
    admin.get(&format!("{AUDIT}?project_id=x&limit=0")).await.expect_invalid(&["?project_id", "?limit"]);
}

async fn a_log_that_cannot_be_written_changes_no_answer(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let fault = Fault::Error(StoreError::Unavailable { reason: "gone".to_owned() });
    let faulty = app.rebuild(|store| FaultyStore::wrap(store, "append_audit_events", fault), limits()).await;
    faulty.admin().delete(&format!("/api/v1/sessions/{id}")).await.expect(200);
    let panics = app.rebuild(|store| FaultyStore::wrap(store, "append_audit_events", Fault::Panic), limits()).await;
    panics.admin().delete(&format!("/api/v1/sessions/{id}")).await.expect_problem(404, "not_found");
    let id = app.admin().new_session("n").await;
    let hangs = app.rebuild(|store| FaultyStore::wrap(store, "append_audit_events", Fault::Hang), limits()).await;
    hangs.admin().delete(&format!("/api/v1/sessions/{id}")).await.expect(200);
}

/// Waits until the newest event is this.
async fn eventually(app: &TestApp, action: &str, outcome: &str) {
    let began = Instant::now();
    loop {
        let events = app.admin().get(&format!("{AUDIT}?limit=1")).await.items();
        if events.first().is_some_and(|event| event["action"] == action && event["outcome"] == outcome) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{action} is not noted as {outcome}: {events:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn a_request_that_nobody_waits_for_is_noted(app: TestApp) {
    let hangs = app.rebuild(|store| FaultyStore::wrap(store, "delete_session", Fault::Hang), limits()).await;
    let request = Request::delete(format!("/api/v1/sessions/{ABSENT}")).header("x-api-key", ROOT_KEY);
    let mut router = hangs.router.clone();
    let call = router.call(request.body(Body::empty()).unwrap());
    assert!(tokio::time::timeout(TO_BEGIN, call).await.is_err());
    eventually(&app, "delete_session", "unknown").await;
}

async fn an_event_that_nobody_waits_for_is_waited_for_at_the_end(app: TestApp) {
    let store = FaultyStore::wrap(app.store.clone(), "delete_session", Fault::Hang);
    let state = App::new(store, app.ctx.clone(), access(), limits(), CancellationToken::new()).await.unwrap();
    let request = Request::delete(format!("/api/v1/sessions/{ABSENT}")).header("x-api-key", ROOT_KEY);
    let mut router = router::router(state.clone());
    let call = router.call(request.body(Body::empty()).unwrap());
    assert!(tokio::time::timeout(TO_BEGIN, call).await.is_err());
    state.audit.finish().await;
    assert_eq!(newest(&app).await, ("delete_session".to_owned(), Some(ABSENT.to_owned()), "unknown".to_owned()));
}

async fn a_request_that_panics_or_takes_too_long_is_noted(app: TestApp) {
    let panics = app.rebuild(|store| FaultyStore::wrap(store, "delete_session", Fault::Panic), limits()).await;
    panics.admin().delete(&format!("/api/v1/sessions/{ABSENT}")).await.expect_problem(500, "internal_error");
    eventually(&app, "delete_session", "unknown").await;
    let short = RequestLimits { request_timeout: TO_BEGIN, ..limits() };
    let hangs = app.rebuild(|store| FaultyStore::wrap(store, "delete_message", Fault::Hang), short).await;
    hangs.admin().delete(&format!("/api/v1/messages/{ABSENT}")).await.expect_problem(503, "request_timeout");
    eventually(&app, "delete_message", "unknown").await;
}

async fn an_event_never_holds_what_somebody_wrote(app: TestApp) {
    const WORD: &str = "marzipan";
    let admin = app.admin();
    let word = json!({"name": WORD, "session_name": WORD, "content": WORD, "metadata": {WORD: WORD}});
    let id = text(&admin.post("/api/v1/sessions", &word).await.expect(201)["session_id"]);
    let message = admin.post(&format!("/api/v1/sessions/{id}/messages"), &word).await.expect(201);
    admin.delete(&format!("/api/v1/messages/{}", text(&message["message_id"]))).await.expect(200);
    admin.delete(&format!("/api/v1/sessions/{id}")).await.expect(200);
    admin.delete(&format!("/api/v1/sessions/{WORD}")).await.expect(404);
    admin.post(&format!("{KEYS}/{WORD}/revoke"), "").await.expect(404);
    let key = text(&admin.post(KEYS, &word).await.expect(201)["key_id"]);
    admin.patch(&format!("{KEYS}/{key}"), &word).await.expect(200);
    let project = text(&admin.post(PROJECTS, &word).await.expect(201)["project_id"]);
    admin.delete(&format!("{PROJECTS}/{project}")).await.expect(200);
    admin.post("/api/v1/admin/import", json!([{"id": WORD, "messages": [{"content": WORD}]}])).await.expect(200);
    let log = log_of(&admin).await;
    assert!(log.matches("event_id").count() >= 9 && !log.contains(WORD), "{log}");
}

async fn log_of(client: &Client) -> String {
    client.get(&format!("{AUDIT}?limit=100")).await.text().to_owned()
}
