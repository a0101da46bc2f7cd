//! Limits on requests: what is told of them, what they refuse, and whose budget is whose.

use std::net::IpAddr;
use std::time::Duration;

use axum::Extension;
use chatstore_core::api_keys::{ApiKey, KeyScopes, KeySettings, PresentedKey};
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::ProjectPatch;
use chatstore_core::rates::{ClassRates, Rates};
use chatstore_server::access::AccessSettings;
use chatstore_server::config::Secret;
use chatstore_server::listener::Peer;
use serde_json::json;

use crate::app::{TestApp, access, api_tests};
use crate::client::{Client, Reply, text};

const SESSIONS: &str = "/api/v1/sessions";

api_tests! {
    a_limit_is_told_with_every_answer_and_held
    a_retry_after_the_pause_succeeds
    reads_writes_and_searches_have_budgets_of_their_own
    everything_the_address_the_key_and_the_user_are_counted_at_once
    what_one_limit_refuses_no_other_counts
    a_limit_of_several_rates_names_each
    a_key_and_a_project_may_have_rates_of_their_own
    rates_of_a_key_that_no_operator_set_never_outlive_those_they_had_to_lie_within
    a_project_has_one_budget_over_everything
    a_policy_is_a_burst_and_the_time_in_which_it_comes_back
    a_user_has_one_budget_over_all_keys
    without_limits_nothing_is_told
    health_is_never_limited_and_open_pages_are
    what_fails_is_counted_too
}

fn rates(text: &str) -> Rates {
    Rates::parse(text).unwrap()
}

fn reads(text: &str) -> ClassRates {
    ClassRates { reads: Some(rates(text)), ..ClassRates::default() }
}

async fn limited(app: &TestApp, reads_of_each: &str) -> TestApp {
    app.with_access(AccessSettings { rates: reads(reads_of_each), ..access() }).await
}

/// A client at this address.
pub(crate) fn at(app: &TestApp, address: &str, key: &str) -> Client {
    let address: IpAddr = address.parse().unwrap();
    Client::new(app.router.clone().layer(Extension(Peer(Some((address, 4711).into()))))).with("x-api-key", key)
}

fn refused(reply: &Reply) -> u64 {
    reply.expect_problem(429, "rate_limited");
    reply.header("retry-after").unwrap().parse().unwrap()
}

async fn a_limit_is_told_with_every_answer_and_held(app: TestApp) {
    let app = limited(&app, "3/hour").await;
    for (remaining, waits) in [(2, ["1200", "1200"]), (1, ["1199", "1200"]), (0, ["1199", "1200"])] {
        let reply = app.reader().get(SESSIONS).await;
        reply.expect(200);
        assert_eq!(reply.header("ratelimit-policy"), Some("\"key-reads\";q=3;w=3600"));
        let told = reply.header("ratelimit").unwrap();
        assert!(waits.iter().any(|wait| told == format!("\"key-reads\";r={remaining};t={wait}")), "{told}");
    }
    let reply = app.reader().get(SESSIONS).await;
    let pause = refused(&reply);
    assert!((1_199..=1_200).contains(&pause), "{pause}");
    assert_eq!(reply.header("ratelimit-policy"), Some("\"key-reads\";q=3;w=3600"));
    assert_eq!(reply.header("ratelimit"), Some(format!("\"key-reads\";r=0;t={pause}").as_str()));
    let detail = text(&reply.json()["detail"]);
    assert_eq!(
        detail,
        format!("The limit of 3/hour on reads with this API key is used up; it admits one more in {pause} seconds.")
    );
    // Others have budgets of their own.
    app.writer().get(SESSIONS).await.expect(200);
}

async fn a_retry_after_the_pause_succeeds(app: TestApp) {
    let app = limited(&app, "2/minute;5/hour").await;
    for _ in 0..8 {
        let mut reply = app.reader().get(SESSIONS).await;
        while reply.status == 200 {
            reply = app.reader().get(SESSIONS).await;
        }
        let pause = Duration::from_secs(refused(&reply));
        app.ctx.advance(pause - Duration::from_secs(2));
        refused(&app.reader().get(SESSIONS).await);
        app.ctx.advance(Duration::from_secs(2));
        app.reader().get(SESSIONS).await.expect(200);
    }
}

async fn reads_writes_and_searches_have_budgets_of_their_own(app: TestApp) {
    let each = |text| Some(rates(text));
    let rates = ClassRates { reads: each("1/day"), writes: each("2/day"), search: each("3/day") };
    let app = app.with_access(AccessSettings { rates, ..access() }).await;
    let client = app.admin();
    client.get(SESSIONS).await.expect(200);
    refused(&client.get(SESSIONS).await);
    let session_id = client.new_session("n").await;
    client.delete(&format!("{SESSIONS}/{session_id}")).await.expect(200);
    refused(&client.post(SESSIONS, json!({"session_name": "n"})).await);
    for _ in 0..2 {
        client.post("/api/v1/search", json!({"query": "x"})).await.expect(200);
    }
    let reply = client.get("/api/v1/search?q=x").await;
    reply.expect(200);
    assert!(reply.header("ratelimit").unwrap().starts_with("\"key-search\";r=0;"), "{reply:?}");
    refused(&client.get("/api/v1/search?q=x").await);
}

async fn everything_the_address_the_key_and_the_user_are_counted_at_once(app: TestApp) {
    let access = AccessSettings { rates: reads("10/day"), global_rates: rates("3/hour"), ..access() };
    let app = app.with_access(access).await;
    let reply = at(&app, "203.0.113.7", app.alice_key()).get(SESSIONS).await;
    reply.expect(200);
    let policy = "\"global\";q=3;w=3600, \"address-reads\";q=10;w=86400, \"key-reads\";q=10;w=86400, \
                  \"user-reads\";q=10;w=86400";
    assert_eq!(reply.header("ratelimit-policy"), Some(policy));
    let told =
        "\"global\";r=2;t=1200, \"address-reads\";r=9;t=8640, \"key-reads\";r=9;t=8640, \"user-reads\";r=9;t=8640";
    assert_eq!(reply.header("ratelimit"), Some(told));
    // One budget for everybody and everything they do.
    app.admin().new_session("n").await;
    app.bob().get(SESSIONS).await.expect(200);
    let reply = app.stranger().get(SESSIONS).await;
    let pause = refused(&reply);
    assert_eq!(reply.header("ratelimit"), Some(format!("\"global\";r=0;t={pause}").as_str()));
    assert!(
        text(&reply.json()["detail"]).starts_with("The limit of 3/hour on requests of everybody together is used up")
    );
}

async fn what_one_limit_refuses_no_other_counts(app: TestApp) {
    let access = AccessSettings { rates: reads("1/day"), global_rates: rates("3/day"), ..access() };
    let app = app.with_access(access).await;
    app.reader().get(SESSIONS).await.expect(200);
    for _ in 0..5 {
        refused(&app.reader().get(SESSIONS).await);
    }
    app.writer().get(SESSIONS).await.expect(200);
    app.stranger().get(SESSIONS).await.expect(200);
    refused(&app.admin().get(SESSIONS).await);
}

async fn a_limit_of_several_rates_names_each(app: TestApp) {
    let app = limited(&app, "5/hour;2/minute;7/hour burst 4").await;
    let reply = app.reader().get(SESSIONS).await;
    let policy = "\"key-reads-3600\";q=5;w=3600, \"key-reads-60\";q=2;w=60, \"key-reads-3600-2\";q=4;w=2058";
    assert_eq!(reply.header("ratelimit-policy"), Some(policy));
    app.reader().get(SESSIONS).await.expect(200);
    let reply = app.reader().get(SESSIONS).await;
    let pause = refused(&reply);
    assert_eq!(reply.header("ratelimit"), Some(format!("\"key-reads-60\";r=0;t={pause}").as_str()));
}

/// A key of a user in the other project.
async fn key_with(app: &TestApp, settings: KeySettings) -> String {
    let presented = PresentedKey::generate(&app.ctx);
    let key = ApiKey::new(&presented, app.other, "a key", KeyScopes::parse("read").unwrap(), app.ctx.now());
    app.store.create_api_key(ApiKey { settings, user_id: Some("u".to_owned()), ..key }, None).await.unwrap();
    presented.expose().to_owned()
}

async fn change_other(app: &TestApp, patch: ProjectPatch) {
    app.store.update_project(app.other, patch, app.ctx.now()).await.unwrap();
}

async fn policy(client: Client) -> String {
    client.get(SESSIONS).await.header("ratelimit-policy").unwrap().to_owned()
}

async fn a_key_and_a_project_may_have_rates_of_their_own(app: TestApp) {
    let key =
        key_with(&app, KeySettings { limits: reads("4/day"), limits_by_operator: true, ..KeySettings::default() })
            .await;
    change_other(&app, ProjectPatch { limits: Some(reads("3/day")), ..ProjectPatch::default() }).await;
    let app = limited(&app, "2/day").await;
    assert_eq!(policy(app.reader()).await, "\"key-reads\";q=2;w=86400");
    assert_eq!(policy(app.stranger()).await, "\"key-reads\";q=3;w=86400");
    let own = policy(app.client(&key)).await;
    assert_eq!(own, "\"key-reads\";q=4;w=86400, \"user-reads\";q=3;w=86400");
    let at_address = at(&app, "203.0.113.7", &key);
    assert!(policy(at_address).await.starts_with("\"address-reads\";q=2;w=86400, "));
}

async fn rates_of_a_key_that_no_operator_set_never_outlive_those_they_had_to_lie_within(app: TestApp) {
    let narrow = key_with(&app, KeySettings { limits: reads("1/day"), ..KeySettings::default() }).await;
    let wide = key_with(&app, KeySettings { limits: reads("off"), ..KeySettings::default() }).await;
    let key_policy =
        async |app: &TestApp, key: &str| policy(app.client(key)).await.split(", ").next().unwrap().to_owned();
    let later = limited(&app, "2/day").await;
    assert_eq!(key_policy(&later, &narrow).await, "\"key-reads\";q=1;w=86400");
    assert_eq!(key_policy(&later, &wide).await, "\"key-reads\";q=2;w=86400");
    change_other(&app, ProjectPatch { limits: Some(reads("3/day")), ..ProjectPatch::default() }).await;
    let later = limited(&app, "2/day").await;
    assert_eq!(key_policy(&later, &narrow).await, "\"key-reads\";q=1;w=86400");
    assert_eq!(key_policy(&later, &wide).await, "\"key-reads\";q=3;w=86400");
}

async fn a_project_has_one_budget_over_everything(app: TestApp) {
    let total_limit = Some(Some(rates("5/day")));
    change_other(&app, ProjectPatch { total_limit, ..ProjectPatch::default() }).await;
    let secret_key = Some(Secret::new("secret-key-of-the-tests"));
    let access = AccessSettings { rates: reads("9/day"), global_rates: rates("99/day"), secret_key, ..access() };
    let app = app.with_access(access).await;
    let key = app.key(app.other, "read", Some("u")).await;
    let reply = at(&app, "203.0.113.7", &key).get(SESSIONS).await;
    let told: Vec<String> = reply
        .header("ratelimit")
        .unwrap()
        .split(", ")
        .map(|item| item.split(";t=").next().unwrap().to_owned())
        .collect();
    let all =
        ["\"global\";r=98", "\"address-reads\";r=8", "\"project\";r=4", "\"key-reads\";r=8", "\"user-reads\";r=8"];
    assert_eq!(told, all);
    app.stranger().new_session("n").await;
    app.stranger().get("/api/v1/search?q=n").await.expect(200);
    let minted = app.stranger().post("/api/v1/admin/tokens", json!({"user_id": "alice"})).await.expect(201);
    let bearer = format!("Bearer {}", text(&minted["token"]));
    let token = app.anon().with("authorization", bearer);
    let reply = token.get(SESSIONS).await;
    reply.expect(200);
    assert!(reply.header("ratelimit-policy").unwrap().contains("\"project\";q=5;w=86400, \"user-reads\""), "{reply:?}");
    for client in [&token, &app.stranger()] {
        let reply = client.get(SESSIONS).await;
        let pause = refused(&reply);
        assert_eq!(reply.header("ratelimit"), Some(format!("\"project\";r=0;t={pause}").as_str()));
        let detail = text(&reply.json()["detail"]);
        assert!(detail.starts_with("The limit of 5/day on requests of this project together is used up"), "{detail}");
    }
    // Another project has its own, or none.
    assert!(!policy(app.admin()).await.contains("project"));
}

async fn a_policy_is_a_burst_and_the_time_in_which_it_comes_back(app: TestApp) {
    for (rate, told) in [
        ("30/minute", "q=30;w=60"),
        ("10/second burst 50", "q=50;w=5"),
        ("100/hour burst 1", "q=1;w=36"),
        ("7/day", "q=7;w=86400"),
        ("3/second burst 1", "q=1;w=1"),
    ] {
        assert_eq!(policy(limited(&app, rate).await.reader()).await, format!("\"key-reads\";{told}"));
    }
}

async fn a_user_has_one_budget_over_all_keys(app: TestApp) {
    let app = limited(&app, "2/day").await;
    app.alice().get(SESSIONS).await.expect(200);
    app.admin().with("x-user-id", "alice").get(SESSIONS).await.expect(200);
    let reply = app.reader().with("x-user-id", "alice").get(SESSIONS).await;
    let pause = refused(&reply);
    assert_eq!(reply.header("ratelimit"), Some(format!("\"user-reads\";r=0;t={pause}").as_str()));
    // A user of this name in another project is somebody else.
    app.stranger().with("x-user-id", "alice").get(SESSIONS).await.expect(200);
    let other = app.key(ProjectId::DEFAULT, "read", Some("carol")).await;
    app.client(&other).get(SESSIONS).await.expect(200);
}

async fn without_limits_nothing_is_told(app: TestApp) {
    let reply = at(&app, "203.0.113.7", app.alice_key()).get(SESSIONS).await;
    reply.expect(200);
    assert_eq!((reply.header("ratelimit"), reply.header("ratelimit-policy")), (None, None));
    let app = app.with_access(AccessSettings { rates: reads("off"), ..access() }).await;
    assert_eq!(app.reader().get(SESSIONS).await.header("ratelimit"), None);
}

async fn health_is_never_limited_and_open_pages_are(app: TestApp) {
    let app = limited(&app, "1/day").await;
    let client = at(&app, "203.0.113.7", "no-key");
    for path in ["/healthz", "/livez", "/readyz", "/healthz"] {
        let reply = client.get(path).await;
        reply.expect(200);
        assert_eq!(reply.header("ratelimit"), None);
    }
    let reply = client.get("/").await;
    reply.expect(200);
    assert_eq!(reply.header("ratelimit"), Some("\"address-reads\";r=0;t=86400"));
    for path in ["/", "/docs", "/openapi.json"] {
        refused(&client.get(path).await);
    }
    at(&app, "203.0.113.8", "no-key").get("/").await.expect(200);
    client.get("/readyz").await.expect(200);
}

async fn what_fails_is_counted_too(app: TestApp) {
    let app = limited(&app, "3/day").await;
    app.reader().get(&format!("{SESSIONS}/none")).await.expect_problem(404, "not_found");
    app.reader().get("/api/v1/admin/embeddings").await.expect_problem(403, "insufficient_scope");
    app.reader().get(&format!("{SESSIONS}?limit=x")).await.expect_problem(422, "validation_failed");
    refused(&app.reader().get(SESSIONS).await);
}
