//! Keys: every route but the open ones wants one, and every wrong one gets the same answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chatstore_core::api_keys::{ApiKey, Authority, KeyScopes, KeySettings, Permission, PresentedKey};
use chatstore_core::ids::ProjectId;
use chatstore_core::rates::Rates;
use chatstore_core::store::StoreError;
use chatstore_server::access::AccessSettings;
use chatstore_server::router::{Access, Route, routes};
use serde_json::json;

use crate::app::{ROOT_KEY, TestApp, access, api_tests, limits};
use crate::client::{Client, Reply, fill};
use crate::faulty::{Fault, FaultyStore};

api_tests! {
    the_open_routes_are_exactly_these
    a_request_without_a_key_is_a_401_on_every_other_route
    a_key_that_is_not_valid_is_a_401_on_every_other_route
    refused_keys_cannot_be_told_apart
    a_key_works_in_either_header
    a_key_anywhere_else_does_not_work
    a_key_that_lacks_exactly_the_scope_of_a_route_is_a_403
    a_key_with_exactly_the_scope_of_a_route_gets_in
    a_refused_request_changes_nothing
    a_route_that_is_not_there_does_not_ask_for_a_key
    a_key_that_is_tied_to_addresses_works_from_these_alone
    a_key_that_is_tied_to_origins_works_from_these_alone
    guesses_past_the_budget_of_an_address_are_refused_without_a_lookup
    guesses_at_the_secret_of_a_known_key_cost_few_lookups
    a_secret_made_elsewhere_is_let_in_whatever_else_fails_at_its_address
    ids_are_listed_once_at_a_time_whoever_waits
    a_listing_that_fails_is_not_tried_again_at_once
    changes_of_keys_make_no_listing
    a_valid_key_is_let_in_whatever_else_fails_at_its_address
    a_refused_guess_may_be_made_again_after_retry_after
    a_failure_is_what_shows_a_key_or_token_that_is_not_valid
    a_secret_that_is_out_of_date_is_no_guess
    addresses_have_budgets_of_their_own
}

const SESSIONS: &str = "/api/v1/sessions";
const ID: &str = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";

fn guarded() -> impl Iterator<Item = (Route, Permission)> {
    routes().into_iter().filter_map(|route| match route.access {
        Access::Open | Access::Health => None,
        Access::Needs(permission) => Some((route, permission)),
    })
}

fn path(route: &Route) -> String {
    fill(route.path, ID, ID)
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
    assert!(guarded().all(|(route, _)| route.path.starts_with("/api/v1/") || route.path.starts_with("/v1/")));
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
            assert!(
                problem
                    .get("detail")
                    .unwrap_or(&problem["error"]["message"])
                    .as_str()
                    .unwrap()
                    .contains(permission.as_str())
            );
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

/// A key of the default project that is tied down.
async fn tied_key(app: &TestApp, settings: KeySettings) -> String {
    let presented = PresentedKey::generate(&app.ctx);
    let key = ApiKey::new(&presented, ProjectId::DEFAULT, "tied", KeyScopes::all(), app.ctx.now());
    app.store.create_api_key(ApiKey { settings, ..key }, None).await.unwrap();
    presented.expose().to_owned()
}

const FROM: &str = "x-forwarded-for";

async fn a_key_that_is_tied_to_addresses_works_from_these_alone(app: TestApp) {
    let app = app.with_access(AccessSettings { trusted_proxies: 1, ..access() }).await;
    let allowed_addresses = ["203.0.113.0/24", "2001:db8::1"].map(str::to_owned).to_vec();
    let key = tied_key(&app, KeySettings { allowed_addresses, ..KeySettings::default() }).await;
    for address in ["203.0.113.7", "::ffff:203.0.113.7", "2001:db8::1"] {
        app.client(&key).with(FROM, address).get(SESSIONS).await.expect(200);
    }
    for address in ["203.0.114.7", "2001:db8::2", "::1"] {
        let reply = app.client(&key).with(FROM, address).get(SESSIONS).await;
        reply.expect_problem(403, "address_not_allowed");
        assert!(!reply.text().contains("203.0.113") && !reply.text().contains("2001"), "{}", reply.text());
        app.alice().with(FROM, address).get(SESSIONS).await.expect(200);
    }
    app.client(&key).get(SESSIONS).await.expect_problem(403, "address_not_allowed");
    // Whoever has not the secret does not learn that the key is tied.
    let guess = PresentedKey::rotate(&app.ctx, PresentedKey::parse(&key).unwrap().key_id()).unwrap();
    app.client(guess.expose()).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
}

async fn a_key_that_is_tied_to_origins_works_from_these_alone(app: TestApp) {
    let allowed_origins = vec!["https://app.example".to_owned()];
    let key = tied_key(&app, KeySettings { allowed_origins, ..KeySettings::default() }).await;
    app.client(&key).with("origin", "https://app.example").get(SESSIONS).await.expect(200);
    // Only browsers say whose page they act for.
    app.client(&key).get(SESSIONS).await.expect(200);
    for origin in ["https://evil.example", "https://app.example.evil.example", "null", "http://app.example"] {
        let reply = app.client(&key).with("origin", origin).get(SESSIONS).await;
        reply.expect_problem(403, "origin_not_allowed");
        app.alice().with("origin", origin).get(SESSIONS).await.expect(200);
    }
}

/// The application with a budget of failures, and how often its store was asked for a key, for a project and for the
/// list of all ids.
async fn budgeted(app: &TestApp, rates: &str) -> (TestApp, [Arc<AtomicUsize>; 3]) {
    let failed_auth_rates = Rates::parse(rates).unwrap();
    let access = AccessSettings { failed_auth_rates, trusted_proxies: 1, ..access() };
    let (store, keys) = FaultyStore::count(app.store.clone(), "get_api_key");
    let (store, projects) = FaultyStore::count(store, "get_project");
    let (store, lists) = FaultyStore::count(store, "list_credential_ids");
    (app.rebuild_with(|_| store, access, limits()).await, [keys, projects, lists])
}

fn counts(counts: &[Arc<AtomicUsize>; 3]) -> [usize; 3] {
    counts.each_ref().map(|count| count.load(Ordering::Relaxed))
}

fn retry_after(reply: &Reply) -> u64 {
    reply.expect_problem(429, "rate_limited");
    reply.header("retry-after").unwrap().parse().unwrap()
}

async fn guesses_past_the_budget_of_an_address_are_refused_without_a_lookup(app: TestApp) {
    let (app, asked) = budgeted(&app, "5/hour").await;
    let unknown = || PresentedKey::generate(&app.ctx).expose().to_owned();
    for _ in 0..5 {
        app.client(&unknown()).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    }
    assert_eq!(counts(&asked), [5, 0, 0]);
    let claims = r#"{"sub":"a","aud":"chatstore","exp":1,"project_id":"019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47"}"#;
    let token = [r#"{"alg":"HS256"}"#, claims, "x"].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
    for _ in 0..20 {
        for guess in [&unknown(), "garbage", &token, "a.b.c", app.revoked_key()] {
            let wait = retry_after(&app.client(guess).get(SESSIONS).await);
            assert!((1..=720).contains(&wait), "{wait}");
        }
    }
    assert_eq!(counts(&asked), [5, 0, 1]);
}

async fn guesses_at_the_secret_of_a_known_key_cost_few_lookups(app: TestApp) {
    let (app, asked) = budgeted(&app, "1/hour").await;
    app.client("garbage").get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    let key_id = PresentedKey::parse(app.alice_key()).unwrap().key_id().to_owned();
    let began = app.ctx.elapsed();
    for _ in 0..100 {
        let guess = PresentedKey::rotate(&app.ctx, &key_id).unwrap();
        retry_after(&app.client(guess.expose()).get(SESSIONS).await);
    }
    let [lookups, projects, _] = counts(&asked);
    let moments = (app.ctx.elapsed() - began).as_millis() / 50;
    assert!((1..=moments + 1).contains(&(lookups as u128)) && lookups < 20, "{lookups} in {moments}");
    assert_eq!(projects, 0);
    app.alice().get(SESSIONS).await.expect(200);
}

async fn a_secret_made_elsewhere_is_let_in_whatever_else_fails_at_its_address(app: TestApp) {
    let (app, _) = budgeted(&app, "1/hour").await;
    app.client("garbage").get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    let key_id = PresentedKey::parse(app.alice_key()).unwrap().key_id().to_owned();
    app.alice().get(SESSIONS).await.expect(200);
    let new = rotate(&app, &key_id, 0).await;
    app.ctx.advance(Duration::from_millis(50));
    app.client(&new).get(SESSIONS).await.expect(200);
    retry_after(&app.alice().get(SESSIONS).await);
}

/// Gives a key a new secret, as another server does; the old one is valid for this many seconds.
async fn rotate(app: &TestApp, key_id: &str, grace: i64) -> String {
    let (rotated, now) = (PresentedKey::rotate(&app.ctx, key_id).unwrap(), app.ctx.now());
    let until = now.plus_micros(grace * 1_000_000);
    app.store.rotate_api_key(&Authority::host(), key_id, rotated.digest(), until, now, None).await.unwrap();
    rotated.expose().to_owned()
}

/// An application past the budget of failures whose listings of ids go wrong, and how many there were.
async fn without_listings(app: &TestApp, fault: Fault) -> (TestApp, Arc<AtomicUsize>) {
    let access = AccessSettings { failed_auth_rates: Rates::parse("1/hour").unwrap(), ..access() };
    let store = FaultyStore::wrap(app.store.clone(), "list_credential_ids", fault);
    let (store, lists) = FaultyStore::count(store, "list_credential_ids");
    let app = app.rebuild_with(|_| store, access, limits()).await;
    app.client("garbage").get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    (app, lists)
}

async fn ids_are_listed_once_at_a_time_whoever_waits(app: TestApp) {
    let (app, lists) = without_listings(&app, Fault::Hang).await;
    for _ in 0..3 {
        let client = app.client(PresentedKey::generate(&app.ctx).expose());
        // The request goes away, and its listing goes on.
        assert!(tokio::time::timeout(Duration::from_millis(300), client.get(SESSIONS)).await.is_err());
    }
    assert_eq!(lists.load(Ordering::Relaxed), 1);
}

async fn a_listing_that_fails_is_not_tried_again_at_once(app: TestApp) {
    let fault = Fault::Error(StoreError::Unavailable { reason: "gone".to_owned() });
    let (app, lists) = without_listings(&app, fault).await;
    for round in 1..=2 {
        for _ in 0..20 {
            let guess = PresentedKey::generate(&app.ctx);
            assert_eq!(app.client(guess.expose()).get(SESSIONS).await.status, 503);
        }
        assert_eq!(lists.load(Ordering::Relaxed), round);
        app.ctx.advance(Duration::from_millis(500));
    }
}

async fn changes_of_keys_make_no_listing(app: TestApp) {
    let (app, asked) = budgeted(&app, "1/hour").await;
    app.client("garbage").get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    let began = app.ctx.elapsed();
    for _ in 0..20 {
        retry_after(&app.client(PresentedKey::generate(&app.ctx).expose()).get(SESSIONS).await);
        let made = app.admin().post("/api/v1/admin/keys", json!({"name": "new"})).await.expect(201);
        app.client(made["secret"].as_str().unwrap()).get(SESSIONS).await.expect(200);
    }
    let moments = (app.ctx.elapsed() - began).as_millis() / 500;
    let lists = counts(&asked)[2];
    assert!((1..=moments + 1).contains(&(lists as u128)) && lists < 10, "{lists} in {moments}");
}

async fn a_valid_key_is_let_in_whatever_else_fails_at_its_address(app: TestApp) {
    let (app, asked) = budgeted(&app, "1/hour").await;
    let unused = app.key(ProjectId::DEFAULT, "read", None).await;
    for _ in 0..3 {
        app.client("garbage").get(SESSIONS).await;
    }
    for client in [app.alice(), app.admin(), app.client(&unused), app.stranger()] {
        client.get(SESSIONS).await.expect(200);
    }
    // One that was made elsewhere is known a moment later.
    let made_later = app.key(ProjectId::DEFAULT, "read", None).await;
    app.ctx.advance(Duration::from_millis(500));
    app.client(&made_later).get(SESSIONS).await.expect(200);
    assert_eq!(counts(&asked)[2], 2);
    // One that was made here is known at once.
    let made_here = app.admin().post("/api/v1/admin/keys", json!({"name": "new"})).await.expect(201);
    app.client(made_here["secret"].as_str().unwrap()).get(SESSIONS).await.expect(200);
    app.anon().get(SESSIONS).await.expect_problem(401, "missing_api_key");
    app.anon().get("/readyz").await.expect(200);
}

async fn a_refused_guess_may_be_made_again_after_retry_after(app: TestApp) {
    let (app, _) = budgeted(&app, "2/minute;4/hour").await;
    let guess = async || app.client(PresentedKey::generate(&app.ctx).expose()).get(SESSIONS).await;
    for _ in 0..2 {
        guess().await.expect_problem(401, "invalid_api_key");
    }
    for expected in [30, 30, 900, 900] {
        let wait = retry_after(&guess().await);
        assert!(wait <= expected, "{wait}");
        app.ctx.advance(Duration::from_secs(wait - 1));
        assert_eq!(retry_after(&guess().await), 1);
        app.ctx.advance(Duration::from_secs(1));
        guess().await.expect_problem(401, "invalid_api_key");
    }
}

async fn a_failure_is_what_shows_a_key_or_token_that_is_not_valid(app: TestApp) {
    let wrong = PresentedKey::rotate(&app.ctx, PresentedKey::parse(app.alice_key()).unwrap().key_id()).unwrap();
    let unknown = PresentedKey::generate(&app.ctx);
    let failures = ["", "garbage", "a.b.c", wrong.expose(), unknown.expose(), app.revoked_key()];
    for failure in failures {
        let (app, _) = budgeted(&app, "1/hour").await;
        assert_eq!(app.client(failure).get(SESSIONS).await.status, 401, "{failure}");
        assert_eq!(app.client("garbage").get(SESSIONS).await.status, 429, "{failure}");
    }
    let (app, _) = budgeted(&app, "1/hour").await;
    for (client, status) in [
        (app.anon(), 401),
        (app.reader().with("x-user-id", ""), 400),
        (app.alice().with("x-user-id", "bob"), 403),
        (app.reader(), 200),
    ] {
        assert_eq!(client.get(SESSIONS).await.status, status);
    }
    app.reader().post(SESSIONS, json!({"session_name": "n"})).await.expect_problem(403, "insufficient_scope");
    app.client("garbage").get(SESSIONS).await.expect_problem(401, "invalid_api_key");
}

async fn a_secret_that_is_out_of_date_is_no_guess(app: TestApp) {
    let (app, asked) = budgeted(&app, "1/hour").await;
    let rotated = app.key(ProjectId::DEFAULT, "read", None).await;
    rotate(&app, PresentedKey::parse(&rotated).unwrap().key_id(), 1).await;
    app.ctx.advance(Duration::from_secs(1));
    let show = async || {
        for _ in 0..20 {
            for key in [app.expired_key(), &rotated] {
                app.client(key).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
            }
        }
    };
    show().await;
    app.client("garbage").get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    // The same is told past the budget, where it costs few lookups.
    let (before, began) = (counts(&asked)[0], app.ctx.elapsed());
    show().await;
    let (lookups, moments) = (counts(&asked)[0] - before, (app.ctx.elapsed() - began).as_millis() / 50);
    assert!(lookups as u128 <= 2 * (moments + 1) && lookups < 20, "{lookups} in {moments}");
    assert_eq!(app.client("garbage").get(SESSIONS).await.status, 429);
}

async fn addresses_have_budgets_of_their_own(app: TestApp) {
    let (app, _) = budgeted(&app, "1/hour").await;
    let guess = async |address: &str| app.client("garbage").with(FROM, address).get(SESSIONS).await.status;
    for (address, status) in [
        ("203.0.113.1", 401),
        ("203.0.113.1", 429),
        ("::ffff:203.0.113.1", 429),
        ("203.0.113.2", 401),
        ("2001:db8::1", 401),
        ("2001:db8::ffff:1", 429),
        ("2001:db8:0:1::1", 401),
    ] {
        assert_eq!(guess(address).await, status, "{address}");
    }
    let off = app.with_access(access()).await;
    for _ in 0..50 {
        off.client("garbage").get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    }
}
