//! API keys over HTTP: who makes, changes, rotates and revokes which.

use std::time::Duration;

use chatstore_core::ids::ProjectId;
use chatstore_core::rates::{ClassRates, Rates};
use chatstore_server::access::AccessSettings;
use serde_json::{Value, json};

use crate::app::{TestApp, access, api_tests};
use crate::client::{Client, text};

api_tests! {
    a_created_key_works_and_is_shown_once
    a_field_of_a_key_that_breaks_a_rule_is_named
    nobody_gives_a_scope_they_lack
    a_key_of_another_project_is_like_an_absent_one
    an_operator_rules_the_keys_of_every_project
    a_key_that_may_do_more_is_not_to_be_touched
    limits_stay_within_what_a_key_would_follow
    limits_that_an_operator_set_are_an_operators_to_change
    a_rotated_key_keeps_its_id_and_for_a_while_its_secret
    a_revoked_key_stays_listed_and_refused
    an_expired_key_says_so
    a_patched_key_changes_only_what_is_named
    keys_are_paged_by_cursor
    a_token_is_minted_for_no_more_than_the_minter_may
    who_speaks_for_one_user_rules_nothing
}

const KEYS: &str = "/api/v1/admin/keys";
const TOKENS: &str = "/api/v1/admin/tokens";
const SESSIONS: &str = "/api/v1/sessions";

async fn admin_of(app: &TestApp, project_id: ProjectId) -> Client {
    app.client(&app.key(project_id, "read,write,admin", None).await)
}

async fn create(client: &Client, body: Value) -> Value {
    client.post(KEYS, body).await.expect(201)
}

fn path(key: &Value) -> String {
    format!("{KEYS}/{}", text(&key["key_id"]))
}

fn revoke(key: &Value) -> String {
    format!("{}/revoke", path(key))
}

async fn a_created_key_works_and_is_shown_once(app: TestApp) {
    let body = json!({
        "name": "web", "scopes": ["search", "read"], "user_id": "ada", "expires_in_seconds": 3600,
        "allowed_origins": ["HTTPS://App.Example"], "allowed_addresses": ["203.0.113.77/24", "2001:DB8::1"],
        "limits": {"reads": "5 per second burst 9"}, "unknown": {},
    });
    let reply = app.admin().post(KEYS, body).await;
    let key = reply.expect(201);
    assert_eq!(reply.header("location"), Some(path(&key).as_str()));
    let expected = json!({
        "project_id": ProjectId::DEFAULT.to_string(), "project_name": "default", "name": "web",
        "scopes": ["read", "search"], "user_id": "ada", "status": "active", "last_used_at": null, "revoked_at": null,
        "previous_expires_at": null, "allowed_origins": ["https://app.example"],
        "allowed_addresses": ["203.0.113.0/24", "2001:db8::1/128"],
        "limits": {"reads": "5/second burst 9", "writes": null, "search": null},
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&key[name], value, "{name}");
    }
    let secret = text(&key["secret"]);
    assert!(secret.starts_with(&format!("cs_{}_", text(&key["key_id"]))));
    let plain = create(&app.admin(), json!({"name": "plain", "user_id": null, "scopes": null})).await;
    assert_eq!(plain["scopes"], json!(["read", "write", "delete", "search"]));
    app.client(&text(&plain["secret"])).get(SESSIONS).await.expect(200);
    for reply in [app.admin().get(&path(&key)).await, app.admin().get(KEYS).await] {
        assert_eq!(reply.status, 200);
        assert!(!reply.text().contains(&secret) && !reply.text().contains("secret"), "{}", reply.text());
    }
    let limited = app.client(&text(&create(&admin_of(&app, app.other).await, json!({"name": "k"})).await["secret"]));
    limited.get(SESSIONS).await.expect(200);
    limited.delete(&format!("{SESSIONS}/x")).await.expect_problem(403, "insufficient_scope");
}

async fn a_field_of_a_key_that_breaks_a_rule_is_named(app: TestApp) {
    let admin = app.admin();
    for (body, pointers) in [
        (json!({}), &["/name"][..]),
        (json!({"name": ""}), &["/name"]),
        (json!({"name": "x".repeat(201)}), &["/name"]),
        (json!({"name": "tab\there"}), &["/name"]),
        (json!({"name": "n", "scopes": []}), &["/scopes"]),
        (json!({"name": "n", "scopes": ["read", "root"]}), &["/scopes/1"]),
        (json!({"name": "n", "scopes": "read"}), &["/scopes"]),
        (json!({"name": "n", "user_id": ""}), &["/user_id"]),
        (json!({"name": "n", "user_id": "x".repeat(257)}), &["/user_id"]),
        (json!({"name": "n", "expires_at": "2020-01-01T00:00:00Z"}), &["/expires_at"]),
        (json!({"name": "n", "expires_at": "tomorrow"}), &["/expires_at"]),
        (json!({"name": "n", "expires_in_seconds": 0}), &["/expires_in_seconds"]),
        (json!({"name": "n", "expires_in_seconds": i64::MAX}), &["/expires_in_seconds"]),
        (json!({"name": "n", "expires_in_seconds": 1, "expires_at": "2099-01-01T00:00:00Z"}), &["/expires_in_seconds"]),
        (json!({"name": "n", "limits": {"writes": "5/fortnight"}}), &["/limits/writes"]),
        (json!({"name": "n", "allowed_origins": ["app.example"]}), &["/allowed_origins/0"]),
        (
            json!({"name": "n", "allowed_origins": ["https://a.example/path", "*"]}),
            &["/allowed_origins/0", "/allowed_origins/1"],
        ),
        (json!({"name": "n", "allowed_addresses": ["10.0.0.0/8", "10.0.0.0/33"]}), &["/allowed_addresses/1"]),
        (json!({"name": "n", "allowed_addresses": ["host.example"]}), &["/allowed_addresses/0"]),
        (json!({"name": "n", "allowed_addresses": vec!["10.0.0.1"; 51]}), &["/allowed_addresses"]),
        (json!({"name": "n", "project_id": "none"}), &["/project_id"]),
    ] {
        let reply = admin.post(KEYS, &body).await;
        assert_eq!(reply.status, 422, "{body}: {}", reply.text());
        reply.expect_invalid(pointers);
    }
    let far = create(&admin, json!({"name": "n", "expires_in_seconds": 3_155_760_000_i64})).await;
    assert!(text(&far["expires_at"]).starts_with("2126-"));
}

async fn nobody_gives_a_scope_they_lack(app: TestApp) {
    let admin = admin_of(&app, ProjectId::DEFAULT).await;
    let scopes = create(&admin, json!({"name": "n"})).await["scopes"].clone();
    assert_eq!(scopes, json!(["read", "write"]), "as far as the maker has them");
    let key = create(&admin, json!({"name": "n", "scopes": ["admin", "read"]})).await;
    for scopes in [json!(["delete"]), json!(["read", "search"]), json!(["operator"])] {
        for reply in [
            admin.post(KEYS, json!({"name": "n", "scopes": scopes})).await,
            admin.patch(&path(&key), json!({"scopes": scopes})).await,
        ] {
            let problem = reply.expect_problem(403, "insufficient_scope");
            assert!(text(&problem["detail"]).contains('`'), "{problem}");
        }
    }
    assert_eq!(admin.get(&path(&key)).await.expect(200)["scopes"], json!(["read", "admin"]));
    let problem = app.admin().post(KEYS, json!({"name": "n", "scopes": ["operator"]})).await;
    let problem = problem.expect_problem(403, "insufficient_scope");
    assert!(text(&problem["detail"]).contains("chatstore keys create"));
}

async fn a_key_of_another_project_is_like_an_absent_one(app: TestApp) {
    let admin = admin_of(&app, ProjectId::DEFAULT).await;
    let foreign = create(&app.admin(), json!({"name": "n", "project_id": app.other.to_string()})).await;
    let mut first: Option<Vec<String>> = None;
    for id in [text(&foreign["key_id"]).as_str(), "0000000000aZ", "short", "0000000000-Z"] {
        let path = format!("{KEYS}/{id}");
        let replies = [
            admin.get(&path).await,
            admin.patch(&path, json!({"name": "mine"})).await,
            admin.patch(&path, json!({"limits": {"reads": "1/minute"}})).await,
            admin.post(&format!("{path}/rotate"), json!({})).await,
            admin.post(&format!("{path}/revoke"), "").await,
        ];
        let answers: Vec<String> = replies.iter().map(|reply| reply.anonymous()).collect();
        replies.iter().for_each(|reply| drop(reply.expect_problem(404, "not_found")));
        assert_eq!(first.get_or_insert(answers.clone()), &answers, "{id}");
    }
    let other = app.other.to_string();
    for reply in [
        admin.post(KEYS, json!({"name": "n", "project_id": other})).await,
        admin.get(&format!("{KEYS}?project_id={other}")).await,
        admin.get(&format!("{KEYS}?project_id=019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47")).await,
    ] {
        let problem = reply.expect_problem(403, "insufficient_scope");
        assert!(text(&problem["detail"]).contains("operator"));
    }
    let seen = admin.get(KEYS).await;
    assert!(seen.column("project_name").iter().all(|name| name == "default"));
    app.client(&text(&foreign["secret"])).get(SESSIONS).await.expect(200);
}

async fn an_operator_rules_the_keys_of_every_project(app: TestApp) {
    let other = app.other.to_string();
    let key = create(&app.admin(), json!({"name": "theirs", "project_id": other})).await;
    assert_eq!((text(&key["project_id"]), text(&key["project_name"])), (other.clone(), "other".to_owned()));
    let listed = app.admin().get(&format!("{KEYS}?project_id={other}")).await.column("project_name");
    assert!(listed.len() >= 2 && listed.iter().all(|name| name == "other"), "{listed:?}");
    let all = app.admin().get(&format!("{KEYS}?limit=100")).await.column("project_name");
    assert!(all.contains(&json!("default")) && all.contains(&json!("other")));
    let renamed = app.admin().patch(&path(&key), json!({"name": "renamed"})).await.expect(200);
    assert_eq!((text(&renamed["name"]), text(&renamed["project_name"])), ("renamed".to_owned(), "other".to_owned()));
    let absent = json!({"name": "n", "project_id": "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47"});
    app.admin().post(KEYS, absent).await.expect_invalid(&["/project_id"]);
}

async fn a_key_that_may_do_more_is_not_to_be_touched(app: TestApp) {
    let admin = admin_of(&app, ProjectId::DEFAULT).await;
    let stronger = create(&app.admin(), json!({"name": "n", "scopes": ["read", "delete"]})).await;
    for reply in [
        admin.patch(&path(&stronger), json!({"name": "mine"})).await,
        admin.patch(&path(&stronger), json!({"scopes": ["read"]})).await,
        admin.post(&format!("{}/rotate", path(&stronger)), json!({})).await,
        admin.post(&revoke(&stronger), "").await,
    ] {
        let problem = reply.expect_problem(403, "insufficient_scope");
        assert!(!problem.to_string().contains("cs_"), "{problem}");
    }
    admin.get(&path(&stronger)).await.expect(200);
    app.client(&text(&stronger["secret"])).get(SESSIONS).await.expect(200);
}

async fn limits_stay_within_what_a_key_would_follow(app: TestApp) {
    let rates = |text: &str| Some(Rates::parse(text).unwrap());
    let installation = ClassRates { reads: rates("100000/minute"), ..ClassRates::default() };
    let app = app.with_access(AccessSettings { rates: installation, ..access() }).await;
    let admin = admin_of(&app, app.other).await;
    let own = format!("/api/v1/admin/projects/{}", app.other);
    app.admin().patch(&own, json!({"limits": {"writes": "5000/minute"}})).await.expect(200);
    let with = |limits: Value| json!({"name": "n", "limits": limits});
    for good in [
        json!({"reads": "100000/minute", "writes": "5000/minute", "search": "off"}),
        json!({"reads": "1/hour", "writes": "10/minute;1/second"}),
        json!({}),
    ] {
        create(&admin, with(good)).await;
    }
    let key = create(&admin, with(json!({"reads": "10/minute"}))).await;
    for (bad, followed) in [
        (json!({"reads": "off"}), "100000/minute"),
        (json!({"reads": "100001/minute"}), "100000/minute"),
        (json!({"writes": "off"}), "5000/minute"),
        (json!({"writes": "5000/minute burst 5001"}), "5000/minute"),
    ] {
        for reply in
            [admin.post(KEYS, with(bad.clone())).await, admin.patch(&path(&key), json!({"limits": bad.clone()})).await]
        {
            let problem = reply.expect_problem(403, "insufficient_scope");
            assert!(text(&problem["detail"]).contains(followed), "{problem}");
        }
    }
    let wide = json!({"limits": {"reads": "off"}});
    app.admin().patch(&path(&key), &wide).await.expect(200);
    let same = admin.patch(&path(&key), &wide).await.expect(200);
    assert_eq!(same["limits"]["reads"], "off", "what an operator gave may be sent back");
}

async fn limits_that_an_operator_set_are_an_operators_to_change(app: TestApp) {
    let admin = admin_of(&app, ProjectId::DEFAULT).await;
    let patch = async |client: &Client, key: &Value, body: Value| client.patch(&path(key), body).await;
    let is_operators = async |key: &Value| {
        app.store.get_api_key(&text(&key["key_id"])).await.unwrap().unwrap().0.settings.limits_by_operator
    };
    let throttle = json!({"limits": {"reads": "1000/hour"}});
    let body = json!({"name": "n", "scopes": ["read"], "limits": {"reads": "1000/hour"}});
    let key = create(&app.admin(), body).await;
    let other = create(&admin, json!({"name": "n"})).await;
    patch(&app.admin(), &other, throttle.clone()).await.expect(200);
    for key in [&key, &other] {
        assert!(is_operators(key).await);
        for limits in [json!(null), json!({}), json!({"reads": "off"}), json!({"reads": "1/hour"})] {
            let refused = patch(&admin, key, json!({"name": "m", "limits": limits})).await;
            let problem = refused.expect_problem(403, "insufficient_scope");
            assert!(text(&problem["detail"]).contains("operator"), "{problem}");
        }
        let same = patch(&admin, key, json!({"name": "m", "limits": {"reads": "1000/hour"}})).await.expect(200);
        assert_eq!((&same["name"], &same["limits"]["reads"]), (&json!("m"), &json!("1000/hour")));
        assert!(is_operators(key).await, "who sends them back does not take them over");
        patch(&app.admin(), key, json!({"limits": null})).await.expect(200);
        assert!(!is_operators(key).await);
        patch(&admin, key, throttle.clone()).await.expect(200);
        assert!(!is_operators(key).await);
        patch(&admin, key, json!({"limits": null})).await.expect(200);
    }
}

async fn a_rotated_key_keeps_its_id_and_for_a_while_its_secret(app: TestApp) {
    let key = create(&app.admin(), json!({"name": "n"})).await;
    let rotate = async |body: &str| app.admin().post(&format!("{}/rotate", path(&key)), body).await;
    let rotated = rotate("").await.expect(200);
    assert_eq!(rotated["key_id"], key["key_id"]);
    let (old, new) = (text(&key["secret"]), text(&rotated["secret"]));
    assert_ne!(old, new);
    assert!(rotated["previous_expires_at"].is_string());
    for secret in [&old, &new] {
        app.client(secret).get(SESSIONS).await.expect(200);
    }
    let newest = text(&rotate("{\"grace_seconds\": 0}").await.expect(200)["secret"]);
    for secret in [&old, &new] {
        app.client(secret).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    }
    app.client(&newest).get(SESSIONS).await.expect(200);
    let latest = text(&rotate("{\"grace_seconds\": 60}").await.expect(200)["secret"]);
    app.ctx.advance(Duration::from_secs(61));
    app.client(&newest).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    app.client(&latest).get(SESSIONS).await.expect(200);
    assert_eq!(app.admin().get(&path(&key)).await.expect(200)["previous_expires_at"], Value::Null);
    for seconds in ["-1", "2592001", "\"1\"", "1.5"] {
        rotate(&format!("{{\"grace_seconds\": {seconds}}}")).await.expect_invalid(&["/grace_seconds"]);
    }
    app.admin().post(&revoke(&key), "").await.expect(200);
    let problem = rotate("{}").await.expect_problem(409, "conflict");
    assert!(text(&problem["detail"]).contains("revoked"));
}

async fn a_revoked_key_stays_listed_and_refused(app: TestApp) {
    let key = create(&app.admin(), json!({"name": "n"})).await;
    let client = app.client(&text(&key["secret"]));
    client.get(SESSIONS).await.expect(200);
    let revoked = app.admin().post(&revoke(&key), "").await.expect(200);
    assert_eq!((text(&revoked["status"]), revoked["revoked_at"].is_string()), ("revoked".to_owned(), true));
    client.get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    let again = app.admin().post(&revoke(&key), "{}").await.expect(200);
    assert_eq!(again["revoked_at"], revoked["revoked_at"]);
    assert_eq!(app.admin().get(&path(&key)).await.expect(200), again);
    app.admin().delete(&path(&key)).await.expect_problem(405, "method_not_allowed");
    assert!(app.admin().get(&format!("{KEYS}?limit=100")).await.column("key_id").contains(&key["key_id"]));
}

async fn an_expired_key_says_so(app: TestApp) {
    let key = create(&app.admin(), json!({"name": "n"})).await;
    let now = app.ctx.now().to_string();
    let expired = app.admin().patch(&path(&key), json!({"expires_at": now})).await.expect(200);
    assert_eq!(expired["status"], "expired");
    app.client(&text(&key["secret"])).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    let back = app.admin().patch(&path(&key), json!({"expires_at": null})).await.expect(200);
    assert_eq!((text(&back["status"]), &back["expires_at"]), ("active".to_owned(), &Value::Null));
    app.client(&text(&key["secret"])).get(SESSIONS).await.expect(200);
}

async fn a_patched_key_changes_only_what_is_named(app: TestApp) {
    let body = json!({"name": "n", "scopes": ["read"], "allowed_origins": ["https://a.example"], "limits": {"reads": "9/minute"}});
    let key = create(&app.admin(), body).await;
    let patch = async |body: Value| app.admin().patch(&path(&key), body).await.expect(200);
    let names = ["name", "scopes", "limits", "allowed_origins", "allowed_addresses", "expires_at", "user_id"];
    let same = patch(json!({"user_id": "eve", "project_id": app.other.to_string(), "secret": "x"})).await;
    names.iter().for_each(|name| assert_eq!(same[name], key[name], "{name}"));
    assert_eq!(same["project_id"], key["project_id"]);
    let changed = patch(json!({"name": "m", "allowed_addresses": ["10.1.2.3"]})).await;
    assert_eq!((text(&changed["name"]), &changed["limits"]), ("m".to_owned(), &key["limits"]));
    assert_eq!(changed["allowed_addresses"], json!(["10.1.2.3/32"]));
    let cleared = patch(json!({"limits": null, "allowed_origins": null, "allowed_addresses": []})).await;
    assert_eq!((&cleared["limits"]["reads"], &cleared["allowed_origins"]), (&Value::Null, &json!([])));
    app.client(&text(&key["secret"])).get(SESSIONS).await.expect(200);
    for (body, pointer) in [
        (json!({"name": null}), "/name"),
        (json!({"scopes": null}), "/scopes"),
        (json!({"scopes": []}), "/scopes"),
        (json!({"limits": {"search": "x"}}), "/limits/search"),
        (json!({"allowed_addresses": ["x"]}), "/allowed_addresses/0"),
    ] {
        app.admin().patch(&path(&key), body).await.expect_invalid(&[pointer]);
    }
}

async fn keys_are_paged_by_cursor(app: TestApp) {
    let admin = admin_of(&app, app.other).await;
    for n in 0..3 {
        create(&admin, json!({"name": format!("k{n}")})).await;
    }
    let (mut names, mut next) = (Vec::new(), Some(format!("{KEYS}?limit=2")));
    while let Some(path) = next {
        let page = admin.get(&path).await;
        names.extend(page.column("name"));
        next = page.next();
    }
    assert_eq!(names, ["a key", "a key", "k0", "k1", "k2"]);
    let foreign = admin.get(&format!("{KEYS}?limit=1")).await.next().unwrap();
    app.admin().get(&foreign).await.expect_problem(400, "invalid_cursor");
    admin_of(&app, ProjectId::DEFAULT).await.get(&foreign).await.expect_problem(400, "invalid_cursor");
}

async fn a_token_is_minted_for_no_more_than_the_minter_may(app: TestApp) {
    let admin = admin_of(&app, app.other).await;
    app.stranger().post("/api/v1/admin/project/token-secret", "").await.expect(201);
    let minted = admin.post(TOKENS, json!({"user_id": "ada", "expires_in_seconds": 60})).await.expect(201);
    assert!(minted["expires_at"].is_string());
    let user = app.anon().with("authorization", format!("Bearer {}", text(&minted["token"])));
    let id = user.new_session("n").await;
    user.delete(&format!("{SESSIONS}/{id}")).await.expect_problem(403, "insufficient_scope");
    assert_eq!(admin.get(&format!("{SESSIONS}/{id}")).await.expect(200)["user_id"], "ada");
    app.ctx.advance(Duration::from_secs(120));
    user.get(SESSIONS).await.expect_problem(401, "invalid_token");
    let mint = async |body: Value| admin.post(TOKENS, body).await;
    mint(json!({"user_id": "a", "scopes": ["delete"]})).await.expect_problem(403, "insufficient_scope");
    for (body, pointer) in [
        (json!({}), "/user_id"),
        (json!({"user_id": ""}), "/user_id"),
        (json!({"user_id": "x".repeat(257)}), "/user_id"),
        (json!({"user_id": "a", "scopes": ["admin"]}), "/scopes/0"),
        (json!({"user_id": "a", "scopes": []}), "/scopes"),
        (json!({"user_id": "a", "session_ids": ["x"]}), "/session_ids/0"),
        (json!({"user_id": "a", "session_ids": vec![&id; 101]}), "/session_ids"),
        (json!({"user_id": "a", "expires_in_seconds": 0}), "/expires_in_seconds"),
        (json!({"user_id": "a", "expires_in_seconds": 86_401}), "/expires_in_seconds"),
    ] {
        mint(body).await.expect_invalid(&[pointer]);
    }
}

async fn who_speaks_for_one_user_rules_nothing(app: TestApp) {
    app.admin().post("/api/v1/admin/project/token-secret", "").await.expect(201);
    for client in [app.alice(), app.admin().with("x-user-id", "alice")] {
        for reply in [
            client.get(KEYS).await,
            client.post(KEYS, json!({"name": "n"})).await,
            client.get("/api/v1/admin/project").await,
            client.get("/api/v1/admin/projects").await,
            client.get("/api/v1/admin/audit").await,
            client.post(TOKENS, json!({"user_id": "bob"})).await,
        ] {
            let problem = reply.expect_problem(403, "insufficient_scope");
            assert!(text(&problem["detail"]).contains("X-User-Id"));
        }
    }
}
