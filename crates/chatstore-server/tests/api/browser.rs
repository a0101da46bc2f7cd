//! What a browser is told: CORS, and the headers that every answer carries.

use axum::body::Body;
use axum::http::Method;
use chatstore_core::rates::{ClassRates, Rates};
use chatstore_server::access::AccessSettings;
use chatstore_server::config::CorsOrigins;
use serde_json::json;

use crate::app::{TestApp, access, api_tests};
use crate::client::{Client, Reply};
use crate::faulty::{Fault, FaultyStore};

const SESSIONS: &str = "/api/v1/sessions";
const ORIGIN: &str = "https://app.example";
const EXPOSED: &str = "link,etag,retry-after,ratelimit,ratelimit-policy,x-request-id,idempotent-replayed,\
                       x-should-retry,location,allow,www-authenticate";

api_tests! {
    a_preflight_is_answered_before_keys_and_limits
    a_preflight_admits_what_openais_sdk_sends
    pages_of_listed_origins_may_read_every_answer
    origins_that_only_look_like_a_listed_one_are_refused
    every_origin_may_read_where_all_are_allowed_but_without_credentials
    without_origins_there_is_no_cors
    every_answer_carries_the_same_headers
}

async fn shared(app: &TestApp, origins: CorsOrigins) -> TestApp {
    app.with_access(AccessSettings { cors_origins: origins, ..access() }).await
}

fn listed() -> CorsOrigins {
    CorsOrigins::List(vec!["https://other.example".to_owned(), ORIGIN.to_owned()])
}

async fn preflight(app: &TestApp, origin: &str, path: &str) -> Reply {
    let client = app.anon().with("origin", origin).with("access-control-request-method", "PATCH");
    client.with("access-control-request-headers", "x-api-key,if-match").send(Method::OPTIONS, path, Body::empty()).await
}

async fn a_preflight_is_answered_before_keys_and_limits(app: TestApp) {
    let rates = ClassRates { reads: Rates::parse("1/day"), ..ClassRates::default() };
    let global_rates = Rates::parse("1/day").unwrap();
    let app = app.with_access(AccessSettings { rates, global_rates, cors_origins: listed(), ..access() }).await;
    for path in [SESSIONS, "/api/v1/messages/x", "/openapi.json", "/", "/nothing/here", SESSIONS] {
        let reply = preflight(&app, ORIGIN, path).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("access-control-allow-origin"), Some(ORIGIN));
        assert_eq!(reply.header("access-control-allow-methods"), Some("GET,HEAD,POST,PUT,PATCH,DELETE"));
        assert_eq!(reply.header("access-control-allow-headers"), Some("x-api-key,if-match"));
        assert_eq!(reply.header("access-control-max-age"), Some("7200"));
        assert_eq!(reply.header("access-control-allow-credentials"), None);
        assert_eq!(reply.header("ratelimit"), None);
        assert_eq!(reply.header("x-frame-options"), Some("DENY"));
        assert!(reply.header("x-request-id").is_some() && reply.bytes.is_empty());
    }
}

async fn a_preflight_admits_what_openais_sdk_sends(app: TestApp) {
    // As a browser lists them: in lower case, sorted, without those that are always allowed.
    const SENT: &str = "authorization,content-type,idempotency-key,openai-organization,openai-project,x-stainless-arch,\
                        x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count,\
                        x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout,x-user-id";
    let app = shared(&app, listed()).await;
    for path in [SESSIONS, "/v1/conversations", "/v1/conversations/conv_x/items"] {
        let client = app.anon().with("origin", ORIGIN).with("access-control-request-method", "POST");
        let client = client.with("access-control-request-headers", SENT);
        let reply = client.send(Method::OPTIONS, path, Body::empty()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("access-control-allow-origin"), Some(ORIGIN));
        assert_eq!(reply.header("access-control-allow-headers"), Some(SENT));
    }
}

fn assert_readable(reply: &Reply, origin: &str) {
    assert_eq!(reply.header("access-control-allow-origin"), Some(origin), "{reply:?}");
    assert_eq!(reply.header("access-control-expose-headers"), Some(EXPOSED), "{reply:?}");
    assert_eq!(reply.header("access-control-allow-credentials"), None, "{reply:?}");
}

async fn pages_of_listed_origins_may_read_every_answer(app: TestApp) {
    let app = shared(&app, listed()).await;
    let page = |client: Client| client.with("origin", ORIGIN);
    let good = page(app.admin()).get(SESSIONS).await;
    good.expect(200);
    assert_readable(&good, ORIGIN);
    let session = json!({"session_name": "n"});
    let mut replies = vec![
        (page(app.admin()).post(SESSIONS, &session).await, 201),
        (page(app.anon()).get(SESSIONS).await, 401),
        (page(app.reader()).post(SESSIONS, &session).await, 403),
        (page(app.admin()).get("/api/v1/messages/none").await, 404),
        (page(app.anon()).get("/nothing").await, 404),
        (page(app.anon()).send(Method::PUT, SESSIONS, Body::empty()).await, 405),
        (page(app.anon()).get("/").await, 200),
    ];
    let panicking = app.rebuild_with(
        |store| FaultyStore::wrap(store, "list_sessions", Fault::Panic),
        AccessSettings { cors_origins: listed(), ..access() },
        crate::app::limits(),
    );
    replies.push((page(panicking.await.admin()).get(SESSIONS).await, 500));
    let rates = ClassRates { reads: Rates::parse("1/day"), ..ClassRates::default() };
    let limited = app.with_access(AccessSettings { rates, cors_origins: listed(), ..access() }).await;
    replies.push((page(limited.admin()).get(SESSIONS).await, 200));
    replies.push((page(limited.admin()).get(SESSIONS).await, 429));
    for (reply, status) in replies {
        assert_eq!(reply.status, status, "{reply:?}");
        assert_readable(&reply, ORIGIN);
        let varies: Vec<&str> = reply.headers.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
        assert!(varies.join(", ").contains("origin"), "{varies:?}");
    }
}

async fn origins_that_only_look_like_a_listed_one_are_refused(app: TestApp) {
    let app = shared(&app, listed()).await;
    for origin in [
        "null",
        "https://app.example.evil.example",
        "https://evil-app.example",
        "https://evil.app.example",
        "http://app.example",
        "https://app.example:8443",
        "https://app.exampl",
        "https://app.example/",
        "app.example",
        "*",
        "",
    ] {
        let reply = app.admin().with("origin", origin).get(SESSIONS).await;
        reply.expect(200);
        assert_eq!(reply.header("access-control-allow-origin"), None, "{origin}");
        assert_eq!(preflight(&app, origin, SESSIONS).await.header("access-control-allow-origin"), None, "{origin}");
    }
}

async fn every_origin_may_read_where_all_are_allowed_but_without_credentials(app: TestApp) {
    let app = shared(&app, CorsOrigins::Any).await;
    for origin in [ORIGIN, "null", "https://anything.example"] {
        assert_readable(&app.anon().with("origin", origin).get(SESSIONS).await, "*");
        assert_eq!(preflight(&app, origin, SESSIONS).await.header("access-control-allow-origin"), Some("*"));
    }
}

async fn without_origins_there_is_no_cors(app: TestApp) {
    let reply = preflight(&app, ORIGIN, SESSIONS).await;
    reply.expect_problem(405, "method_not_allowed");
    assert!(reply.header("allow").is_some());
    let other = app.admin().with("origin", ORIGIN).get(SESSIONS).await;
    for reply in [reply, other] {
        assert!(!reply.headers.keys().any(|name| name.as_str().starts_with("access-control")), "{reply:?}");
    }
}

/// Every header of an answer but the id of the request, a line each.
fn headers_of(reply: &Reply) -> String {
    let mut lines: Vec<String> = reply
        .headers
        .iter()
        .filter(|(name, _)| *name != "x-request-id")
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines.join("\n")
}

async fn every_answer_carries_the_same_headers(app: TestApp) {
    const COMMON: &str = "cross-origin-resource-policy: same-origin\n";
    const FRAMES: &str = "content-security-policy: default-src 'none'; frame-ancestors 'none'\n";
    const REST: &str = "referrer-policy: no-referrer\n";
    const LAST: &str = "x-content-type-options: nosniff\nx-frame-options: DENY";
    let rates = ClassRates { reads: Rates::parse("1/day"), ..ClassRates::default() };
    let limited = app.with_access(AccessSettings { rates, ..access() }).await;
    limited.reader().get(SESSIONS).await.expect(200);
    let problem = "content-type: application/problem+json\n";
    for (reply, expected) in [
        (
            app.anon().with("accept", "text/html").get("/").await,
            format!(
                "cache-control: no-store\ncontent-security-policy: default-src 'none'; style-src 'self'; img-src 'self'; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'\ncontent-type: text/html; charset=utf-8\n\
                 {COMMON}{REST}vary: Accept\n{LAST}"
            ),
        ),
        (
            app.admin().get(SESSIONS).await,
            format!("cache-control: no-store\n{FRAMES}content-type: application/json\n{COMMON}{REST}{LAST}"),
        ),
        (
            app.anon().get(SESSIONS).await,
            format!(
                "cache-control: no-store\n{FRAMES}{problem}{COMMON}{REST}www-authenticate: Bearer \
                 realm=\"chatstore\"\n{LAST}"
            ),
        ),
        (
            app.admin().get("/api/v1/messages/none").await,
            format!("cache-control: no-store\n{FRAMES}{problem}{COMMON}{REST}{LAST}"),
        ),
        (app.anon().get("/nothing").await, format!("cache-control: no-store\n{FRAMES}{problem}{COMMON}{REST}{LAST}")),
    ] {
        let found = headers_of(&reply);
        let found: Vec<&str> = found.lines().filter(|line| !line.starts_with("content-length: ")).collect();
        assert_eq!(found.join("\n"), expected, "{}", reply.what);
    }
    let refused = limited.reader().get(SESSIONS).await;
    let pause = refused.header("retry-after").unwrap();
    let expected = format!(
        "cache-control: no-store\n{FRAMES}{problem}{COMMON}ratelimit-policy: \"key-reads\";q=1;w=86400\n\
         ratelimit: \"key-reads\";r=0;t={pause}\n{REST}retry-after: {pause}\n{LAST}"
    );
    let found = headers_of(&refused);
    let found: Vec<&str> = found.lines().filter(|line| !line.starts_with("content-length: ")).collect();
    assert_eq!(found.join("\n"), expected);
    // Pages draw themselves without a script or style that stands in them.
    for path in ["/", "/docs"] {
        let page = app.anon().with("accept", "text/html").get(path).await;
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        assert!(!page.text().contains("<style") && !page.text().contains(" style="), "{path}");
        let scripts: Vec<&str> = page.text().split("<script").skip(1).collect();
        assert!(scripts.iter().all(|script| script.starts_with(" src=\"/docs/")), "{path}");
    }
}
