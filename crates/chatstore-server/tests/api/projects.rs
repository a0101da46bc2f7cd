//! Projects over HTTP: tenants for operators, the own one for its admins.

use std::time::{Duration, Instant};

use chatstore_core::ids::ProjectId;
use chatstore_core::store::Scope;
use chatstore_server::access::AccessSettings;
use chatstore_server::app::App;
use chatstore_server::worker::{self, WorkerPace};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, access, api_tests, limits};
use crate::client::{Client, text};

api_tests! {
    a_created_project_is_found_and_listed
    a_taken_name_is_a_409
    a_field_that_breaks_a_rule_is_named
    a_patch_changes_only_what_it_names
    every_form_of_public_key_that_is_none_is_refused
    projects_are_paged_by_cursor
    a_deleted_project_is_gone_with_its_keys_and_its_text
    the_default_project_stays
    an_admin_sees_and_changes_the_own_project
    what_an_operator_decides_is_not_an_admins
    what_signs_tokens_is_set_by_who_may_do_all_that_tokens_may
    a_token_secret_is_shown_once_and_ends_at_once
    an_optional_body_may_be_left_out
    an_absent_project_is_a_404
}

const PROJECTS: &str = "/api/v1/admin/projects";
const OWN: &str = "/api/v1/admin/project";
const ABSENT: &str = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";
const SECRET: &str = "/api/v1/admin/project/token-secret";

async fn create(client: &Client, body: Value) -> Value {
    client.post(PROJECTS, body).await.expect(201)
}

async fn admin_of(app: &TestApp, project_id: ProjectId) -> Client {
    app.client(&app.key(project_id, "read,write,delete,search,admin", None).await)
}

async fn a_created_project_is_found_and_listed(app: TestApp) {
    let body = json!({
        "name": "travel",
        "limits": {"reads": "100/hour; 10 per second", "writes": "off", "search": null, "total": "50 per minute", "unknown": 1},
        "quotas": {"sessions_per_user": 7, "project_bytes": 9_007_199_254_740_992_i64},
        "tokens": {"audience": "app", "issuer": "https://idp.example"},
        "unknown": true,
    });
    let reply = app.admin().post(PROJECTS, body).await;
    let project = reply.expect(201);
    let path = format!("{PROJECTS}/{}", text(&project["project_id"]));
    assert_eq!(reply.header("location"), Some(path.as_str()));
    assert_eq!(
        project["limits"],
        json!({"reads": "100/hour;10/second", "writes": "off", "search": null, "total": "50/minute"})
    );
    assert_eq!(
        project["quotas"],
        json!({"sessions_per_user": 7, "messages_per_session": null, "project_bytes": 9_007_199_254_740_992_i64})
    );
    assert_eq!(project["tokens"], json!({"public_keys": [], "audience": "app", "issuer": "https://idp.example"}));
    assert_eq!((&project["has_token_secret"], &project["name"]), (&json!(false), &json!("travel")));
    let found = app.admin().get(&path).await.expect(200);
    assert_eq!(found["limits"], project["limits"]);
    assert_eq!(found["usage"], json!({"sessions": 0, "messages": 0, "bytes": 0}));
    let names = app.admin().get(PROJECTS).await.column("name");
    // The clock of the tests is behind the one by which the store made the first.
    assert_eq!(names, ["other", "travel", "default"]);
    assert_eq!(app.admin().get(PROJECTS).await.items()[1], project);
}

async fn a_taken_name_is_a_409(app: TestApp) {
    let problem = app.admin().post(PROJECTS, json!({"name": "other"})).await.expect_problem(409, "conflict");
    assert_eq!(problem["errors"][0]["pointer"], "/name");
    let path = format!("{PROJECTS}/{}", text(&create(&app.admin(), json!({"name": "new"})).await["project_id"]));
    app.admin().patch(&path, json!({"name": "other"})).await.expect_problem(409, "conflict");
    app.admin().patch(&path, json!({"name": "new"})).await.expect(200);
    assert_eq!(app.admin().get(&path).await.expect(200)["name"], "new");
}

async fn a_field_that_breaks_a_rule_is_named(app: TestApp) {
    let admin = app.admin();
    let long = "é".repeat(101);
    for (body, pointers) in [
        (json!({}), &["/name"][..]),
        (json!({"name": null}), &["/name"]),
        (json!({"name": ""}), &["/name"]),
        (json!({"name": long}), &["/name"]),
        (json!({"name": "a\nb"}), &["/name"]),
        (json!({"name": 5}), &["/name"]),
        (json!({"name": "n", "limits": {"reads": "soon"}}), &["/limits/reads"]),
        (json!({"name": "n", "limits": {"reads": "", "search": "1 per week"}}), &["/limits/reads", "/limits/search"]),
        (json!({"name": "n", "limits": {"reads": 5}}), &["/limits/reads"]),
        (json!({"name": "n", "limits": {"total": "much"}}), &["/limits/total"]),
        (json!({"name": ABSENT}), &["/name"]),
        (json!({"name": ABSENT.to_uppercase()}), &["/name"]),
        (json!({"name": "n", "limits": []}), &["/limits"]),
        (json!({"name": "n", "quotas": {"project_bytes": 0}}), &["/quotas/project_bytes"]),
        (json!({"name": "n", "quotas": {"sessions_per_user": -1}}), &["/quotas/sessions_per_user"]),
        (json!({"name": "n", "quotas": {"messages_per_session": 1.5}}), &["/quotas/messages_per_session"]),
        (json!({"name": "n", "quotas": {"project_bytes": 9_007_199_254_740_993_i64}}), &["/quotas/project_bytes"]),
        (json!({"name": "n", "tokens": {"audience": ""}}), &["/tokens/audience"]),
        (json!({"name": "n", "tokens": {"issuer": "x".repeat(201)}}), &["/tokens/issuer"]),
        (json!({"name": "n", "tokens": {"public_keys": {}}}), &["/tokens/public_keys"]),
    ] {
        let reply = admin.post(PROJECTS, &body).await;
        assert_eq!(reply.status, 422, "{body}: {}", reply.text());
        reply.expect_invalid(pointers);
    }
    let said = text(&admin.post(PROJECTS, json!({"name": "n", "limits": {"reads": "x"}})).await.expect(422)["detail"]);
    assert!(said.contains("30/minute") && said.contains("off"), "{said}");
    assert_eq!(admin.get(PROJECTS).await.items().len(), 2, "nothing was stored");
}

async fn a_patch_changes_only_what_it_names(app: TestApp) {
    let created = create(&app.admin(), json!({"name": "n", "limits": {"reads": "5/minute"}})).await;
    let path = format!("{PROJECTS}/{}", text(&created["project_id"]));
    let patch = async |body: Value| app.admin().patch(&path, body).await.expect(200);
    let same = patch(json!({})).await;
    assert_eq!((&same["name"], &same["limits"]), (&created["name"], &created["limits"]));
    let quotas = patch(json!({"quotas": {"sessions_per_user": 1}})).await;
    assert_eq!((&quotas["limits"]["reads"], &quotas["quotas"]["sessions_per_user"]), (&json!("5/minute"), &json!(1)));
    let limits = patch(json!({"limits": {"writes": "7/minute", "total": "9/minute"}})).await;
    let whole = json!({"reads": null, "writes": "7/minute", "search": null, "total": "9/minute"});
    assert_eq!(limits["limits"], whole, "replaced as a whole");
    let renamed = patch(json!({"name": "m"})).await;
    assert_eq!(renamed["limits"], whole);
    let without = patch(json!({"limits": {"writes": "7/minute"}})).await;
    assert_eq!(without["limits"]["total"], Value::Null, "replaced as a whole");
    patch(json!({"limits": {"total": "9/minute"}})).await;
    let cleared = patch(json!({"limits": null, "quotas": null, "tokens": null})).await;
    assert_eq!(cleared["limits"], json!({"reads": null, "writes": null, "search": null, "total": null}));
    assert_eq!(cleared["quotas"]["sessions_per_user"], Value::Null);
    for name in [json!(null), json!(ABSENT)] {
        app.admin().patch(&path, json!({"name": name})).await.expect_invalid(&["/name"]);
    }
    let found = app.admin().get(&path).await.expect(200);
    assert!(text(&found["updated_at"]) > text(&created["updated_at"]));
}

async fn every_form_of_public_key_that_is_none_is_refused(app: TestApp) {
    let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let with = |key: Value| json!({"tokens": {"public_keys": [key]}});
    let good = json!({"key_id": "k1", "algorithm": "EdDSA", "public_key": jwk});
    let changed = app.admin().patch(OWN, with(good.clone())).await.expect(200);
    assert_eq!(changed["tokens"]["public_keys"], json!([good]));
    let private = r#"{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    for key in [
        "",
        "x",
        "https://keys.example/jwks.json",
        "{}",
        private,
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
    ] {
        let body = with(json!({"algorithm": "EdDSA", "public_key": key}));
        app.admin().patch(OWN, body).await.expect_invalid(&["/tokens/public_keys/0/public_key"]);
    }
    for (key, pointer) in [
        (json!({"algorithm": "ES256", "public_key": jwk}), "/tokens/public_keys/0/public_key"),
        (json!({"algorithm": "EdDSA", "public_key": "x".repeat(5_000)}), "/tokens/public_keys/0/public_key"),
        (json!({"algorithm": "HS256", "public_key": jwk}), "/tokens/public_keys/0/algorithm"),
        (json!({"algorithm": "EdDSA", "public_key": jwk, "key_id": ""}), "/tokens/public_keys/0/key_id"),
        (json!({"algorithm": "EdDSA"}), "/tokens/public_keys/0"),
        (json!(["k", "EdDSA", jwk]), "/tokens/public_keys/0"),
    ] {
        app.admin().patch(OWN, with(key)).await.expect_invalid(&[pointer]);
    }
    let many = json!({"tokens": {"public_keys": vec![good; 11]}});
    app.admin().patch(OWN, many).await.expect_invalid(&["/tokens/public_keys"]);
}

async fn projects_are_paged_by_cursor(app: TestApp) {
    for n in 0..3 {
        create(&app.admin(), json!({"name": format!("p{n}")})).await;
    }
    let mut names = Vec::new();
    let mut next = Some(format!("{PROJECTS}?limit=2"));
    while let Some(path) = next {
        let page = app.admin().get(&path).await;
        assert!(page.items().len() <= 2);
        names.extend(page.column("name"));
        next = page.next();
    }
    assert_eq!(names, ["other", "p0", "p1", "p2", "default"]);
    app.admin().get(&format!("{PROJECTS}?cursor=x")).await.expect_problem(400, "invalid_cursor");
    app.admin().get(&format!("{PROJECTS}?limit=0")).await.expect_invalid(&["?limit"]);
}

/// A worker that looks often.
async fn erase_what_is_left(app: &TestApp) {
    let stop = CancellationToken::new();
    let same = App::new(app.store.clone(), app.ctx.clone(), access(), limits(), stop.clone()).await.unwrap();
    let began = Instant::now();
    let left = async || {
        let sessions = app.store.export_sessions(&Scope::project(app.other), None, 10).await.unwrap();
        sessions.iter().filter(|session| session.deleted_at.is_none() || !session.session_name.is_empty()).count()
    };
    assert!(left().await > 0);
    let worker = worker::start(same, WorkerPace { erase_idle: Duration::from_millis(10), ..WorkerPace::default() });
    while left().await > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "the worker erases nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    worker.await.unwrap();
}

async fn a_deleted_project_is_gone_with_its_keys_and_its_text(app: TestApp) {
    let stranger = app.stranger();
    let session = stranger.new_session("soon gone").await;
    stranger.new_message(&session, "words of the deleted").await;
    let kept = app.admin().new_session("kept").await;
    let path = format!("{PROJECTS}/{}", app.other);
    let deleted = app.admin().delete(&path).await.expect(200);
    assert_eq!((text(&deleted["project_id"]), text(&deleted["name"])), (app.other.to_string(), "other".to_owned()));
    stranger.get("/api/v1/sessions").await.expect_problem(401, "invalid_api_key");
    for reply in
        [app.admin().get(&path).await, app.admin().patch(&path, json!({})).await, app.admin().delete(&path).await]
    {
        reply.expect_problem(404, "not_found");
    }
    let key = json!({"name": "k", "project_id": app.other.to_string()});
    app.admin().post("/api/v1/admin/keys", key).await.expect_invalid(&["/project_id"]);
    assert_eq!(app.admin().get(PROJECTS).await.column("name"), ["default"]);
    create(&app.admin(), json!({"name": "other"})).await;
    erase_what_is_left(&app).await;
    app.admin().get(&format!("/api/v1/sessions/{kept}")).await.expect(200);
}

async fn the_default_project_stays(app: TestApp) {
    let path = format!("{PROJECTS}/{}", ProjectId::DEFAULT);
    let problem = app.admin().delete(&path).await.expect_problem(409, "conflict");
    assert!(text(&problem["detail"]).contains("API_KEY"));
    app.admin().get(&path).await.expect(200);
}

async fn an_admin_sees_and_changes_the_own_project(app: TestApp) {
    let admin = admin_of(&app, app.other).await;
    let session = admin.new_session("n").await;
    admin.new_message(&session, "four").await;
    let own = admin.get(OWN).await.expect(200);
    assert_eq!((text(&own["project_id"]), text(&own["name"])), (app.other.to_string(), "other".to_owned()));
    assert_eq!((&own["usage"]["sessions"], &own["usage"]["messages"]), (&json!(1), &json!(1)));
    assert!(own["usage"]["bytes"].as_u64().unwrap() >= 4);
    let changed = admin.patch(OWN, json!({"tokens": {"audience": "app"}})).await.expect(200);
    assert_eq!(changed["tokens"]["audience"], "app");
    assert_eq!(app.admin().get(OWN).await.expect(200)["tokens"]["audience"], Value::Null, "nobody else's");
    for reply in [
        admin.get(PROJECTS).await,
        admin.post(PROJECTS, json!({"name": "n"})).await,
        admin.get(&format!("{PROJECTS}/{}", app.other)).await,
        admin.patch(&format!("{PROJECTS}/{}", app.other), json!({})).await,
        admin.delete(&format!("{PROJECTS}/{}", app.other)).await,
    ] {
        let problem = reply.expect_problem(403, "insufficient_scope");
        assert!(text(&problem["detail"]).contains("operator"));
    }
}

async fn what_an_operator_decides_is_not_an_admins(app: TestApp) {
    let admin = admin_of(&app, ProjectId::DEFAULT).await;
    for body in
        [json!({"name": "n"}), json!({"limits": null}), json!({"quotas": {}}), json!({"name": null, "tokens": {}})]
    {
        let problem = admin.patch(OWN, &body).await.expect_problem(403, "insufficient_scope");
        assert!(text(&problem["detail"]).contains("tokens"), "{body}");
    }
    let changed = app.admin().patch(OWN, json!({"limits": {"reads": "9/minute"}})).await.expect(200);
    assert_eq!(changed["limits"]["reads"], "9/minute");
}

async fn what_signs_tokens_is_set_by_who_may_do_all_that_tokens_may(app: TestApp) {
    let of = async |scopes: &str| app.client(&app.key(ProjectId::DEFAULT, scopes, None).await);
    let (admin, operator) = (of("read,write,delete,admin").await, of("operator,admin").await);
    let foreign = format!("{PROJECTS}/{}", app.other);
    for tokens in [json!({"audience": "app"}), json!({}), json!(null)] {
        let body = json!({"tokens": tokens});
        for (reply, lacking) in [
            (admin.patch(OWN, &body).await, "lacks `search`:"),
            (admin.post(SECRET, "").await, "lacks `search`:"),
            (operator.patch(OWN, &body).await, "`read`, `write`, `delete`, `search`"),
            (operator.patch(&foreign, &body).await, "`read`, `write`, `delete`, `search`"),
            (operator.post(PROJECTS, json!({"name": "n", "tokens": tokens})).await, "`read`"),
            (operator.post(SECRET, "{}").await, "`read`"),
        ] {
            let problem = reply.expect_problem(403, "insufficient_scope");
            assert!(text(&problem["detail"]).contains(lacking), "{problem}");
        }
    }
    let own = app.admin().get(OWN).await.expect(200);
    assert_eq!((&own["has_token_secret"], &own["tokens"]["audience"]), (&json!(false), &Value::Null));
    operator.post(PROJECTS, json!({"name": "n"})).await.expect(201);
    operator.patch(&foreign, json!({"quotas": null})).await.expect(200);
    app.admin().post(SECRET, "").await.expect(201);
    assert_eq!(admin.delete(SECRET).await.expect(200)["has_token_secret"], false, "who takes away gains nothing");
    of("read,write,delete,search,admin").await.patch(OWN, json!({"tokens": {"audience": "app"}})).await.expect(200);
}

async fn a_token_secret_is_shown_once_and_ends_at_once(app: TestApp) {
    let admin = admin_of(&app, app.other).await;
    let mint = async || admin.post("/api/v1/admin/tokens", json!({"user_id": "ada"})).await;
    let problem = mint().await.expect_problem(409, "conflict");
    assert!(text(&problem["detail"]).contains("SECRET_KEY"));
    let first = admin.post(SECRET, json!({})).await.expect(201);
    assert_eq!((text(&first["secret"]).len(), &first["previous_expires_at"]), (43, &Value::Null));
    assert_eq!(admin.get(OWN).await.expect(200)["has_token_secret"], true);
    let token = text(&mint().await.expect(201)["token"]);
    let user = || app.anon().with("authorization", format!("Bearer {token}"));
    user().get("/api/v1/sessions").await.expect(200);
    let second = admin.post(SECRET, json!({"grace_seconds": 60})).await.expect(201);
    assert_ne!(second["secret"], first["secret"]);
    assert!(second["previous_expires_at"].is_string());
    user().get("/api/v1/sessions").await.expect(200);
    let without = admin.delete(SECRET).await.expect(200);
    assert_eq!(without["has_token_secret"], false);
    assert!(!without.to_string().contains(&text(&second["secret"])));
    user().get("/api/v1/sessions").await.expect_problem(401, "invalid_token");
    mint().await.expect_problem(409, "conflict");
    for seconds in [-1, 2_592_001] {
        admin.post(SECRET, json!({"grace_seconds": seconds})).await.expect_invalid(&["/grace_seconds"]);
    }
    let with = access();
    let with = AccessSettings { secret_key: Some(chatstore_server::config::Secret::new("s".repeat(32))), ..with };
    let app = app.with_access(with).await;
    app.admin().post("/api/v1/admin/tokens", json!({"user_id": "ada"})).await.expect(201);
}

async fn an_optional_body_may_be_left_out(app: TestApp) {
    for body in ["", "{}", "{\"grace_seconds\":null}", "{\"other\":1}"] {
        app.admin().post(SECRET, body).await.expect(201);
    }
    let reply = app.admin().send(axum::http::Method::POST, SECRET, axum::body::Body::empty()).await;
    reply.expect(201);
    for body in ["x", "[]", "null", "{\"grace_seconds\":\"1\"}"] {
        let reply = app.admin().post(SECRET, body).await;
        assert!(matches!(reply.status, 400 | 422), "{body}: {}", reply.text());
    }
}

async fn an_absent_project_is_a_404(app: TestApp) {
    let absent = app.ctx.new_project_id(app.ctx.now()).to_string();
    for id in [absent.as_str(), "no-id", "019b0f3e"] {
        let path = format!("{PROJECTS}/{id}");
        for reply in [
            app.admin().get(&path).await,
            app.admin().patch(&path, json!({"name": "n"})).await,
            app.admin().delete(&path).await,
        ] {
            reply.expect_problem(404, "not_found");
        }
    }
}
