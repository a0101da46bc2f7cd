//! Keys: every route but the open ones wants one, and every wrong one gets the same answer.

use axum::body::Body;
use axum::http::Method;
use chatstore_core::api_keys::{Authority, Permission, PresentedKey};
use chatstore_core::ids::ProjectId;
use chatstore_server::router::{Access, Route, routes};
use serde_json::json;

use crate::app::{ROOT_KEY, TestApp, api_tests};
use crate::client::{Client, Reply};

api_tests! {
    the_open_routes_are_exactly_these
    a_request_without_a_key_is_a_401_on_every_other_route
    a_key_that_is_not_valid_is_a_401_on_every_other_route
    refused_keys_cannot_be_told_apart
    a_key_works_in_either_header
    a_key_anywhere_else_does_not_work
    a_key_that_lacks_exactly_the_scope_of_a_route_is_a_403
    a_key_with_exactly_the_scope_of_a_route_gets_in
    a_revoked_key_is_refused_from_then_on
    a_refused_request_changes_nothing
    a_route_that_is_not_there_does_not_ask_for_a_key
}

const ID: &str = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";

fn guarded() -> impl Iterator<Item = (Route, Permission)> {
    routes().into_iter().filter_map(|route| match route.access {
        Access::Open | Access::Health => None,
        Access::Needs(permission) => Some((route, permission)),
    })
}

fn path(route: &Route) -> String {
    route.path.replace("{session_id}", ID).replace("{message_id}", ID)
}

/// Sends to a route in both slash forms. Where there is a GET, a HEAD must fare alike.
async fn send(client: &Client, route: &Route) -> Vec<Reply> {
    let mut replies = Vec::new();
    for path in [path(route), format!("{}/", path(route)), format!("{}?limit=0&x=y", path(route))] {
        let reply = client.send(route.method.clone(), &path, Body::from("{")).await;
        if route.method == Method::GET {
            let head = client.send(Method::HEAD, &path, Body::empty()).await;
            assert_eq!((head.status, head.bytes.len()), (reply.status, 0), "HEAD {path}");
            assert_eq!(head.header("www-authenticate"), reply.header("www-authenticate"));
        }
        replies.push(reply);
    }
    replies
}

/// Clients whose keys are refused, each with what is wrong.
fn refused(app: &TestApp) -> Vec<(&'static str, Client)> {
    let good = app.alice_key();
    let unknown = PresentedKey::generate(&app.ctx).expose().to_owned();
    let at = good.len() / 2;
    let other = if &good[at..=at] == "x" { "y" } else { "x" };
    let typo = format!("{}{other}{}", &good[..at], &good[at + 1..]);
    let (anon, client) = (app.anon(), |key: &str| app.client(key));
    vec![
        ("empty", client("")),
        ("garbage", client("garbage")),
        ("not ascii", client("sch\u{FC}ssel")),
        ("not utf-8", anon.with("x-api-key", b"\xFF\xFE")),
        ("a typo", client(&typo)),
        ("unknown", client(&unknown)),
        ("revoked", client(app.revoked_key())),
        ("expired", client(app.expired_key())),
        ("truncated", client(&good[..good.len() - 1])),
        ("too long", client(&format!("{good}0"))),
        ("upper case", client(&good.to_uppercase())),
        ("quoted", client(&format!("\"{good}\""))),
        ("the root key, truncated", client(&ROOT_KEY[..ROOT_KEY.len() - 1])),
        ("the root key and more", client(&format!("{ROOT_KEY}x"))),
        ("its public part", client(PresentedKey::parse(good).unwrap().key_id())),
        ("twice", client(good).with("x-api-key", good)),
        ("two", client(good).with("x-api-key", ROOT_KEY)),
        ("a list", client(&format!("{good},{good}"))),
        ("two that differ in two headers", client(good).with("authorization", format!("Bearer {ROOT_KEY}"))),
        ("a good one beside a bad one", client("bad").with("authorization", format!("Bearer {good}"))),
        ("basic", anon.with("authorization", "Basic YWRtaW46YWRtaW4=")),
        ("no scheme", anon.with("authorization", good)),
        ("bearer of nothing", anon.with("authorization", "Bearer ")),
        (
            "bearer twice",
            anon.with("authorization", format!("Bearer {good}")).with("authorization", format!("Bearer {good}")),
        ),
        ("another scheme", anon.with("authorization", format!("Token {good}"))),
    ]
}

async fn the_open_routes_are_exactly_these(app: TestApp) {
    let open: Vec<_> = routes().into_iter().filter(|route| !matches!(route.access, Access::Needs(_))).collect();
    let paths: Vec<&str> = open.iter().map(|route| route.path).collect();
    assert_eq!(paths, ["/", "/docs", "/docs/{file}", "/healthz", "/livez", "/openapi.json", "/readyz"]);
    for route in open {
        assert_eq!(route.method, Method::GET);
        let path = route.path.replace("{file}", "init.js");
        for client in [app.anon(), app.client("garbage"), app.client(app.revoked_key())] {
            assert_eq!(client.get(&path).await.status, 200, "{path}");
        }
    }
    assert!(guarded().all(|(route, _)| route.path.starts_with("/api/v1/")));
}

async fn a_request_without_a_key_is_a_401_on_every_other_route(app: TestApp) {
    for (route, _) in guarded() {
        for reply in send(&app.anon(), &route).await {
            reply.expect_problem(401, "missing_api_key");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"chatstore\""));
        }
    }
}

async fn a_key_that_is_not_valid_is_a_401_on_every_other_route(app: TestApp) {
    for (route, _) in guarded() {
        for (what, client) in refused(&app) {
            for reply in send(&client, &route).await {
                assert_eq!(reply.status, 401, "{what}: {} {}", route.method, route.path);
                reply.expect_problem(401, "invalid_api_key");
            }
        }
    }
}

async fn refused_keys_cannot_be_told_apart(app: TestApp) {
    for (route, _) in guarded() {
        let mut first: Option<String> = None;
        for (what, client) in refused(&app) {
            for reply in send(&client.with("x-user-id", "bob"), &route).await {
                let answer = reply.anonymous();
                assert_eq!(first.get_or_insert_with(|| answer.clone()), &answer, "{what}: {}", route.path);
            }
        }
    }
}

async fn a_key_works_in_either_header(app: TestApp) {
    for key in [ROOT_KEY, app.alice_key()] {
        for client in [
            app.client(key),
            app.anon().with("authorization", format!("Bearer {key}")),
            app.anon().with("authorization", format!("bearer {key}")),
            app.anon().with("authorization", format!("BEARER   {key}")),
            app.client(key).with("authorization", format!("Bearer {key}")),
        ] {
            client.get("/api/v1/sessions").await.expect(200);
        }
    }
}

async fn a_key_anywhere_else_does_not_work(app: TestApp) {
    let key = app.alice_key();
    for client in [
        app.anon().with("cookie", format!("x-api-key={key}; api_key={key}")),
        app.anon().with("api-key", key),
        app.anon().with("x-auth-token", key),
        app.anon().with("proxy-authorization", format!("Bearer {key}")),
    ] {
        client.get("/api/v1/sessions").await.expect_problem(401, "missing_api_key");
    }
    for name in ["api_key", "x-api-key", "X-API-Key", "key", "token", "access_token"] {
        let reply = app.anon().get(&format!("/api/v1/sessions?{name}={key}")).await;
        reply.expect_problem(401, "missing_api_key");
        assert!(!reply.anonymous().contains(key));
    }
    let body = json!({"session_name": "n", "api_key": key});
    app.anon().post("/api/v1/sessions", body).await.expect_problem(401, "missing_api_key");
}

async fn a_key_that_lacks_exactly_the_scope_of_a_route_is_a_403(app: TestApp) {
    for (route, permission) in guarded() {
        let others = Permission::ALL.into_iter().filter(|other| *other != permission).map(Permission::as_str);
        let key = app.key(ProjectId::DEFAULT, &others.collect::<Vec<_>>().join(","), None).await;
        for reply in send(&app.client(&key), &route).await {
            let problem = reply.expect_problem(403, "insufficient_scope");
            assert!(problem["detail"].as_str().unwrap().contains(permission.as_str()));
        }
    }
    for (client, method, status) in [
        (app.reader(), Method::GET, 404),
        (app.reader(), Method::PATCH, 403),
        (app.reader(), Method::DELETE, 403),
        (app.writer(), Method::DELETE, 403),
    ] {
        let client = client.with("content-type", "application/json");
        let reply = client.send(method, &format!("/api/v1/sessions/{ID}"), Body::from("{}")).await;
        assert_eq!(reply.status, status, "{}", reply.text());
    }
}

async fn a_key_with_exactly_the_scope_of_a_route_gets_in(app: TestApp) {
    for (route, permission) in guarded() {
        let key = app.key(ProjectId::DEFAULT, permission.as_str(), None).await;
        for reply in send(&app.client(&key), &route).await {
            assert!(!matches!(reply.status, 401 | 403), "{} answered {}", route.path, reply.status);
        }
        let none = app.key(ProjectId::DEFAULT, "", None).await;
        for reply in send(&app.client(&none), &route).await {
            reply.expect_problem(403, "insufficient_scope");
        }
    }
}

async fn a_revoked_key_is_refused_from_then_on(app: TestApp) {
    let key = app.key(ProjectId::DEFAULT, "read", None).await;
    app.client(&key).get("/api/v1/sessions").await.expect(200);
    app.store
        .revoke_api_key(&Authority::host(), PresentedKey::parse(&key).unwrap().key_id(), app.ctx.now())
        .await
        .unwrap();
    app.client(&key).get("/api/v1/sessions").await.expect_problem(401, "invalid_api_key");
}

async fn a_refused_request_changes_nothing(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let before = app.admin().get(&format!("/api/v1/sessions/{id}")).await.expect(200);
    for client in [app.anon(), app.client("garbage"), app.client(app.revoked_key()), app.reader()] {
        for reply in [
            client.post("/api/v1/sessions", json!({"session_name": "new"})).await,
            client.patch(&format!("/api/v1/sessions/{id}"), json!({"session_name": "new"})).await,
            client.post(&format!("/api/v1/sessions/{id}/messages"), json!({"content": "new"})).await,
            client.delete(&format!("/api/v1/sessions/{id}")).await,
            client.post("/api/v1/admin/import", json!([{"id": "c", "messages": []}])).await,
        ] {
            assert!(matches!(reply.status, 401 | 403), "{}", reply.text());
        }
    }
    assert_eq!(app.admin().get("/api/v1/sessions").await.items(), [before]);
}

async fn a_route_that_is_not_there_does_not_ask_for_a_key(app: TestApp) {
    for path in ["/api/v1/nothing", "/api/v1/keys", "/admin", "/metrics"] {
        let (anon, admin) = (app.anon().get(path).await, app.admin().get(path).await);
        assert_eq!(anon.anonymous(), admin.anonymous());
        anon.expect_problem(404, "route_not_found");
    }
}
