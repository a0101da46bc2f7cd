//! Every route × everybody who may call it: what each is answered follows from the route's `Access` alone.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use chatstore_core::api_keys::{KeyScopes, Permission};
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::TokenSecret;
use chatstore_server::access::AccessSettings;
use chatstore_server::auth::{NewToken, mint};
use chatstore_server::config::Secret;
use chatstore_server::router::{Access, Route, routes};
use serde_json::{Value, json};

use super::ABSENT;
use crate::app::{TestApp, access, api_tests};
use crate::client::{Client, Reply, fill, text};

api_tests! {
    every_persona_fares_on_every_route_as_its_access_says
    for_a_token_of_one_session_there_is_no_other
    a_token_of_several_sessions_lists_and_searches_those
}

const SESSIONS: &str = "/api/v1/sessions";
const ALL: &str = "read,write,delete,search,admin,operator";

/// Who calls, and what is known of them.
struct Persona {
    name: &'static str,
    client: Client,
    standing: Standing,
}

enum Standing {
    /// Nobody gets further than this.
    Refused(u16, &'static str),
    /// A valid credential.
    Known { scopes: KeyScopes, speaks_for_user: bool, is_for_sessions: bool },
}

fn known(scopes: &str) -> Standing {
    Standing::Known { scopes: KeyScopes::parse(scopes).unwrap(), speaks_for_user: false, is_for_sessions: false }
}

fn user(scopes: &str, is_for_sessions: bool) -> Standing {
    Standing::Known { scopes: KeyScopes::parse(scopes).unwrap(), speaks_for_user: true, is_for_sessions }
}

/// The same application with a secret that signs tokens.
async fn with_tokens(app: TestApp) -> TestApp {
    app.with_access(AccessSettings { secret_key: Some(Secret::new("k".repeat(40))), ..access() }).await
}

async fn token(app: &TestApp, body: Value) -> Client {
    let minted = app.admin().post("/api/v1/admin/tokens", body).await.expect(201);
    app.anon().with("authorization", format!("Bearer {}", text(&minted["token"])))
}

async fn tied_key(app: &TestApp, ties: Value) -> Client {
    let mut body = json!({"name": "tied", "scopes": ["read", "write", "delete", "search", "admin"]});
    ties.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    app.client(&text(&app.admin().post("/api/v1/admin/keys", body).await.expect(201)["secret"]))
}

/// A token that another project signed with a secret of its own, in the name of the default project.
async fn forged_token(app: &TestApp) -> Client {
    let mut project = app.store.get_project(app.other).await.unwrap().unwrap();
    project.rotate_token_secret(Some(TokenSecret::generate(&app.ctx)), app.ctx.now(), app.ctx.now());
    let secret = project.token_secrets[0];
    app.store.rotate_token_secret(app.other, Some(secret), app.ctx.now(), app.ctx.now(), None).await.unwrap();
    project.project_id = ProjectId::DEFAULT;
    let now = app.ctx.now();
    let expires_at = now.plus_micros(60_000_000);
    let token = NewToken { user_id: "alice".to_owned(), scopes: KeyScopes::of_users(), session_ids: None, expires_at };
    app.anon().with("authorization", format!("Bearer {}", mint(&project, None, &token, now).unwrap()))
}

async fn personas(app: &TestApp) -> Vec<Persona> {
    let expired = token(app, json!({"user_id": "alice", "expires_in_seconds": 60})).await;
    app.ctx.advance(Duration::from_secs(120));
    let theirs = app.stranger().post("/api/v1/admin/tokens", json!({"user_id": "alice"})).await.expect(201);
    let theirs = app.anon().with("authorization", format!("Bearer {}", text(&theirs["token"])));
    let of = async |project_id, scopes: &str| app.client(&app.key(project_id, scopes, None).await);
    let session = app.alice().new_session("n").await;
    let elsewhere = tied_key(app, json!({"allowed_addresses": ["203.0.113.0/24"]})).await;
    let paged = tied_key(app, json!({"allowed_origins": ["https://app.example"]})).await;
    let refused = Standing::Refused;
    let persona = |name, client, standing| Persona { name, client, standing };
    vec![
        persona("nobody", app.anon(), refused(401, "missing_api_key")),
        persona("a malformed key", app.client("cs_x_y_z"), refused(401, "invalid_api_key")),
        persona("an expired key", app.client(app.expired_key()), refused(401, "invalid_api_key")),
        persona("a revoked key", app.client(app.revoked_key()), refused(401, "invalid_api_key")),
        persona("a malformed token", app.anon().with("authorization", "Bearer a.b.c"), refused(401, "invalid_token")),
        persona("an expired token", expired, refused(401, "invalid_token")),
        persona("a token that another project forged", forged_token(app).await, refused(401, "invalid_token")),
        persona("a key of another address", elsewhere, refused(403, "address_not_allowed")),
        persona(
            "a key on a foreign page",
            paged.with("origin", "https://evil.example"),
            refused(403, "origin_not_allowed"),
        ),
        persona(
            "a key on its page",
            paged.with("origin", "https://app.example"),
            known("read,write,delete,search,admin"),
        ),
        persona("a key that may do nothing", of(ProjectId::DEFAULT, "").await, known("")),
        persona("a key that reads", of(ProjectId::DEFAULT, "read").await, known("read")),
        persona("a key that writes", of(ProjectId::DEFAULT, "read,write").await, known("read,write")),
        persona("a key that searches", of(ProjectId::DEFAULT, "search").await, known("search")),
        persona("an admin", of(ProjectId::DEFAULT, "admin").await, known("admin")),
        persona("an operator alone", of(ProjectId::DEFAULT, "operator").await, known("operator")),
        persona("another project's admin", of(app.other, "read,admin").await, known("read,admin")),
        persona("all of another project", app.stranger(), known(ALL)),
        persona("the root key", app.admin(), known(ALL)),
        persona("a bound key", app.alice(), user(ALL, false)),
        persona("a narrowed request", app.admin().with("x-user-id", "ada"), user(ALL, false)),
        persona("a token of another project", theirs, user("read,write,delete,search", false)),
        persona("a token", token(app, json!({"user_id": "alice"})).await, user("read,write,delete,search", false)),
        persona(
            "a token that reads",
            token(app, json!({"user_id": "alice", "scopes": ["read"]})).await,
            user("read", false),
        ),
        persona(
            "a token of a session",
            token(app, json!({"user_id": "alice", "session_ids": [session]})).await,
            user("read,write,delete,search", true),
        ),
    ]
}

/// The refusal that a persona meets on a route, if it meets one.
fn refusal(persona: &Persona, route: &Route) -> Option<(u16, &'static str)> {
    let insufficient = Some((403, "insufficient_scope"));
    let Access::Needs(permission) = route.access else { return None };
    match persona.standing {
        Standing::Refused(status, code) => Some((status, code)),
        Standing::Known { scopes, .. } if !scopes.contains(permission) => insufficient,
        // An import may be a user's own.
        Standing::Known { speaks_for_user: true, .. }
            if matches!(permission, Permission::Admin | Permission::Operator) && route.doc.id != "import_sessions" =>
        {
            insufficient
        }
        // Whoever decides what signs tokens can sign any.
        Standing::Known { scopes, .. }
            if route.doc.id == "rotate_token_secret" && !scopes.contain(KeyScopes::of_users()) =>
        {
            insufficient
        }
        Standing::Known { is_for_sessions: true, .. }
            if matches!(route.doc.id, "create_session" | "create_conversation") =>
        {
            insufficient
        }
        Standing::Known { .. } => None,
    }
}

/// A request to a route about things that are not there.
async fn send(client: &Client, route: &Route) -> Reply {
    let path = fill(route.path, ABSENT, ABSENT).replace("{project_id}", ABSENT).replace("{file}", "init.js");
    let path = path.replace("{key_id}", "0000000000aZ");
    let body = match route.doc.id {
        "create_session" => json!({"session_name": "n"}),
        "create_project" => json!({}),
        "append_messages" => json!({"content": "x"}),
        _ => json!({}),
    };
    let body = if route.method == Method::GET { Body::empty() } else { Body::from(body.to_string()) };
    client.with("content-type", "application/json").send(route.method.clone(), &path, body).await
}

async fn every_persona_fares_on_every_route_as_its_access_says(app: TestApp) {
    let app = with_tokens(app).await;
    let (mut refused, mut passed) = (0, 0);
    for persona in personas(&app).await {
        for route in routes() {
            let reply = send(&persona.client, &route).await;
            let what = format!("{} at {}", persona.name, route.doc.id);
            match refusal(&persona, &route) {
                Some((status, code)) => {
                    assert_eq!(reply.status, status, "{what}");
                    reply.expect_problem(status, code);
                    refused += 1;
                }
                None => {
                    assert!(!matches!(reply.status, 401 | 403 | 429 | 500..), "{what}: {}", reply.text());
                    passed += 1;
                }
            }
        }
    }
    assert!(refused > 300 && passed > 200, "{refused} {passed}");
}

/// A session of alice's with a message.
async fn session(app: &TestApp, name: &str) -> (String, String) {
    let body = json!({"session_name": name, "metadata": {"k": name}});
    let id = text(&app.alice().post(SESSIONS, body).await.expect(201)["session_id"]);
    let message = app.alice().new_message(&id, &format!("{name} common")).await;
    (id, text(&message["message_id"]))
}

async fn for_a_token_of_one_session_there_is_no_other(app: TestApp) {
    let app = with_tokens(app).await;
    let ((own, message), (other, other_message)) = (session(&app, "own").await, session(&app, "other").await);
    let (foreign, foreign_message) = {
        let id = app.bob().new_session("bobs").await;
        let message = text(&app.bob().new_message(&id, "common").await["message_id"]);
        (id, message)
    };
    let client = token(&app, json!({"user_id": "alice", "session_ids": [own, foreign]})).await;
    assert_eq!(client.get(SESSIONS).await.column("session_id"), [own.as_str()], "a token widens nothing");
    let client = token(&app, json!({"user_id": "alice", "session_ids": [own]})).await;
    let before = app.alice().get(&format!("{SESSIONS}/{other}")).await.expect(200);
    let ids = ["{session_id}", "{message_id}", "{conversation_id}"];
    for route in routes().iter().filter(|route| ids.iter().any(|id| route.path.contains(id))) {
        let send = async |session_id: &str, message_id: &str| {
            let path = fill(route.path, session_id, message_id);
            let path = if path.ends_with("/search") { format!("{path}?q=common") } else { path };
            let body = match route.doc.id {
                "append_messages" => json!({"content": "x"}),
                "set_embedding" => json!({"embedding": [1, 2]}),
                "create_items" => json!({"items": []}),
                "update_conversation" => json!({"metadata": null}),
                _ => json!({}),
            };
            let body = if route.method == Method::GET { Body::empty() } else { Body::from(body.to_string()) };
            client.with("content-type", "application/json").send(route.method.clone(), &path, body).await
        };
        let absent = send(ABSENT, ABSENT).await;
        absent.expect_problem(404, "not_found");
        for (session_id, message_id) in [(&other, &other_message), (&foreign, &foreign_message)] {
            let reply = send(session_id, message_id).await;
            assert_eq!(reply.anonymous(), absent.anonymous(), "{}", route.doc.id);
        }
        if route.method != Method::DELETE {
            let status = send(&own, &message).await.status;
            assert!(matches!(status, 200 | 201), "{} answered {status}", route.doc.id);
        }
    }
    assert_eq!(app.alice().get(&format!("{SESSIONS}/{other}")).await.expect(200), before);
    assert_eq!(client.get(SESSIONS).await.column("session_id"), [own.as_str()]);
    let found = client.get("/api/v1/search?q=common").await.expect(200).to_string();
    assert!(found.contains(&own) && !found.contains(&other), "{found}");
    for id in [other.as_str(), foreign.as_str(), ABSENT, "x"] {
        client.get(&format!("/api/v1/search?q=common&session_id={id}")).await.expect_problem(404, "not_found");
        let body = json!({"query": "common", "session_id": id});
        client.post("/api/v1/search", body).await.expect_problem(404, "not_found");
    }
    let parent = json!({"content": "x", "parent_id": other_message});
    client.post(&format!("{SESSIONS}/{own}/messages"), parent).await.expect_invalid(&["/parent_id"]);
    client.post(SESSIONS, json!({"session_name": "n"})).await.expect_problem(403, "insufficient_scope");
    client.delete(&format!("/api/v1/messages/{message}")).await.expect(200);
    client.delete(&format!("{SESSIONS}/{own}")).await.expect(200);
    assert_eq!(client.get(SESSIONS).await.text(), "[]");
}

async fn a_token_of_several_sessions_lists_and_searches_those(app: TestApp) {
    let app = with_tokens(app).await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        ids.push(session(&app, name).await.0);
    }
    let hidden = ids.pop().unwrap();
    app.alice().patch(&format!("{SESSIONS}/{}", ids[0]), json!({"is_favorite": true})).await.expect(200);
    let mut named = ids.clone();
    named.reverse();
    named.push(named[0].clone());
    let client = token(&app, json!({"user_id": "alice", "session_ids": named})).await;
    for (query, names) in [
        ("", vec!["a", "b", "c"]),
        ("order=desc", vec!["c", "b", "a"]),
        ("sort=updated_at&order=desc", vec!["a", "c", "b"]),
        ("sort=last_message_at", vec!["a", "b", "c"]),
        ("is_favorite=true", vec!["a"]),
        ("is_favorite=false", vec!["b", "c"]),
        ("metadata[k]=b", vec!["b"]),
        ("metadata[k]=d", vec![]),
        ("skip=1", vec!["b", "c"]),
        ("user_id=alice&limit=1", vec!["a"]),
        ("created_before=2000-01-01T00:00:00Z", vec![]),
    ] {
        assert_eq!(client.get(&format!("{SESSIONS}?{query}")).await.column("session_name"), names, "{query}");
    }
    client.get(&format!("{SESSIONS}?user_id=bob")).await.expect_problem(403, "user_mismatch");
    for order in ["asc", "desc"] {
        let (mut names, mut next) = (Vec::new(), Some(format!("{SESSIONS}?limit=1&sort=updated_at&order={order}")));
        while let Some(path) = next {
            let page = client.get(&path).await;
            names.extend(page.column("session_name").iter().map(text));
            next = page.next();
        }
        let mut expected = vec!["b", "c", "a"];
        if order == "desc" {
            expected.reverse();
        }
        assert_eq!(names, expected);
    }
    let cursor = client.get(&format!("{SESSIONS}?limit=1")).await.next().unwrap();
    app.alice().get(&cursor).await.expect_problem(400, "invalid_cursor");
    client.get("/api/v1/search?q=common").await.expect_invalid(&["?session_id"]);
    client.post("/api/v1/search", json!({"query": "common"})).await.expect_invalid(&["/session_id"]);
    client.get(&format!("/api/v1/search?q=common&session_id={}", ids[1])).await.expect(200);
    client.get(&format!("/api/v1/search?q=common&session_id={hidden}")).await.expect_problem(404, "not_found");
    let none = token(&app, json!({"user_id": "alice", "session_ids": []})).await;
    assert_eq!(none.get(SESSIONS).await.text(), "[]");
    none.get("/api/v1/search?q=common").await.expect_invalid(&["?session_id"]);
}
