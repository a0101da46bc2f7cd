//! Canaries: one project's words and secrets stand in every field there is, and nobody else ever receives one of them.

use axum::body::Body;
use axum::http::Method;
use chatstore_core::ids::ProjectId;
use chatstore_server::access::AccessSettings;
use chatstore_server::config::Secret;
use chatstore_server::router::routes;
use serde_json::{Value, json};

use crate::app::{Engine, ROOT_KEY, TestApp, access, api_tests};
use crate::client::{Client, Reply, fill, text};

api_tests! {
    nothing_of_a_project_reaches_another
    no_secret_is_shown_twice
}

const CANARY: &str = "canary";
/// Stands in everybody's messages.
const COMMON: &str = "common";
const SECRET_KEY: &str = "the-secret-key-of-the-canaries-00000";

/// What one project has, and how it is named.
struct Victim {
    session_id: String,
    message_id: String,
    key_id: String,
    project_id: String,
    cursors: Vec<String>,
}

impl Victim {
    /// Its ids in every spelling.
    fn ids(&self) -> Vec<String> {
        let uuids = [&self.session_id, &self.message_id, &self.project_id];
        let hex = uuids.iter().map(|id| id.replace('-', ""));
        hex.chain(uuids.iter().map(ToString::to_string)).chain([self.key_id.clone()]).collect()
    }
}

/// Plants a canary in every field of the other project.
async fn plant(app: &TestApp) -> Victim {
    let (owner, project_id) = (app.stranger().with("x-request-id", "canary-request"), app.other.to_string());
    let session = json!({
        "session_name": CANARY, "user_id": "zed", "metadata": {"canary": "canary"}, "external_id": "canary-id",
    });
    let session_id = text(&owner.post("/api/v1/sessions", &session).await.expect(201)["session_id"]);
    owner.post("/api/v1/sessions", json!({"session_name": CANARY})).await.expect(201);
    let messages = format!("/api/v1/sessions/{session_id}/messages");
    let message = json!({
        "content": format!("canary {COMMON}"), "role": "canary-role", "kind": "canary-kind", "payload": {"canary": 1},
        "metadata": {"canary": "canary"}, "context": ["canary"], "external_id": "canary-message",
        "embedding": [1, 0], "embedding_model": "canary-model",
    });
    let message_id = text(&owner.post(&messages, &message).await.expect(201)["message_id"]);
    owner.post(&messages, json!({"content": format!("canary {COMMON}")})).await.expect(201);
    let key = json!({
        "name": "canary-key", "user_id": "zed", "scopes": ["read"], "limits": {"reads": "424242/day"},
        "allowed_origins": ["https://canary.example"], "allowed_addresses": ["198.51.100.42"],
    });
    let key_id = text(&owner.post("/api/v1/admin/keys", &key).await.expect(201)["key_id"]);
    let project = json!({
        "name": "canary-project", "limits": {"writes": "424242/day"},
        "tokens": {"audience": "canary-audience", "issuer": "https://canary.example"},
    });
    app.admin().patch(&format!("/api/v1/admin/projects/{project_id}"), &project).await.expect(200);
    owner.post("/api/v1/admin/project/token-secret", "").await.expect(201);
    let mut cursors = Vec::new();
    for list in ["/api/v1/sessions", messages.as_str(), "/api/v1/admin/keys", "/api/v1/admin/audit"] {
        let next = owner.get(&format!("{list}?limit=1")).await.next().unwrap();
        cursors.push(next.split_once("cursor=").unwrap().1.to_owned());
    }
    Victim { session_id, message_id, key_id, project_id, cursors }
}

/// All that a reply brings.
fn all_bytes(reply: &Reply) -> String {
    let headers: String = reply.headers.iter().map(|(name, value)| format!("{name}: {value:?}\n")).collect();
    format!("{headers}\n{}", String::from_utf8_lossy(&reply.bytes)).to_lowercase()
}

/// A body that an operation takes; none of it is a canary.
fn body_of(operation: &str, number: usize) -> Value {
    match operation {
        "create_session" => json!({"session_name": "n", "external_id": format!("n{number}")}),
        "append_messages" => json!({"content": COMMON}),
        "create_items" => json!({"items": [{"role": "user", "content": COMMON}]}),
        "update_conversation" => json!({"metadata": {}}),
        "search_messages" => json!({"query": COMMON, "context_before": 3, "context_after": 3}),
        "set_embedding" => json!({"embedding": [1, 0]}),
        "create_api_key" | "create_project" => json!({"name": format!("n{number}")}),
        "create_token" => json!({"user_id": "ada"}),
        "import_sessions" => json!([{"id": format!("i{number}"), "messages": [{"content": COMMON}]}]),
        _ => json!({}),
    }
}

/// Runs every operation against ids of the victim, with and without its cursors.
async fn attack(client: &Client, victim: &Victim) -> Vec<Reply> {
    let mut replies = Vec::new();
    for route in routes() {
        let path = fill(route.path, &victim.session_id, &victim.message_id)
            .replace("{key_id}", &victim.key_id)
            .replace("{project_id}", &victim.project_id)
            .replace("{file}", "init.js");
        let mut queries = vec![String::new()];
        if route.method == Method::GET {
            queries = vec![
                format!("?q={COMMON}&limit=100&context_before=5"),
                format!("?q={COMMON}&session_id={}", victim.session_id),
                format!("?q={COMMON}&project_id={}", victim.project_id),
                "?q=can*&mode=text".to_owned(),
                "?metadata[a]=b&q=x&actor_id=x".to_owned(),
            ];
            queries.extend(victim.cursors.iter().map(|cursor| format!("?q={COMMON}&limit=1&cursor={cursor}")));
        }
        for query in queries {
            let body = body_of(route.doc.id, replies.len());
            let body = if route.method == Method::GET { Body::empty() } else { Body::from(body.to_string()) };
            let client = client.with("content-type", "application/json");
            replies.push(client.send(route.method.clone(), &format!("{path}{query}"), body).await);
        }
    }
    for body in [
        json!({"query": COMMON, "session_id": victim.session_id}),
        json!({"query": COMMON, "cursor": victim.cursors[0]}),
        json!({"embedding": [1, 0], "mode": "vector"}),
    ] {
        replies.push(client.post("/api/v1/search", body).await);
    }
    replies.push(client.post("/api/v1/admin/keys", json!({"name": "n", "project_id": victim.project_id})).await);
    let taken =
        json!([{"session_id": victim.session_id, "messages": [{"message_id": victim.message_id, "content": "x"}]}]);
    replies.push(client.post("/api/v1/admin/import", taken).await);
    replies
}

async fn nothing_of_a_project_reaches_another(app: TestApp) {
    let app = app.with_access(AccessSettings { secret_key: Some(Secret::new(SECRET_KEY)), ..access() }).await;
    let victim = plant(&app).await;
    let seen: String = attack(&app.stranger(), &victim).await.iter().map(all_bytes).collect();
    assert!(seen.matches(CANARY).count() > 50, "the owner sees what was planted");
    // The owner deletes, too: it is planted again.
    let app = TestApp::start(app.engine).await;
    let app = app.with_access(AccessSettings { secret_key: Some(Secret::new(SECRET_KEY)), ..access() }).await;
    let victim = plant(&app).await;
    let admin = app.client(&app.key(ProjectId::DEFAULT, "read,write,delete,search,admin", None).await);
    let minted = app.admin().post("/api/v1/admin/tokens", json!({"user_id": "ada"})).await.expect(201);
    let token = app.anon().with("authorization", format!("Bearer {}", text(&minted["token"])));
    admin.new_message(&admin.new_session("own").await, COMMON).await;
    let attackers = [app.anon(), app.client("garbage"), admin.with("x-user-id", "zed"), token, app.alice(), admin];
    for client in attackers {
        for reply in attack(&client, &victim).await {
            let bytes = all_bytes(&reply);
            assert!(!bytes.contains(CANARY), "{reply:?}");
            assert!(!bytes.contains("424242") && !bytes.contains("198.51.100.42"), "{reply:?}");
            let ids: Vec<String> = victim.ids().iter().map(|id| id.to_lowercase()).collect();
            // The own log says what the sender tried to touch.
            let is_own_log = reply.what.contains("/admin/audit");
            assert!(is_own_log || !ids.iter().any(|id| bytes.contains(id.as_str())), "{reply:?}");
        }
    }
    let owner = app.stranger();
    owner.get(&format!("/api/v1/messages/{}", victim.message_id)).await.expect(200);
    assert_eq!(owner.get("/api/v1/sessions").await.items().len(), 2, "nothing was added or taken away");
    assert_eq!(owner.get(&format!("/api/v1/admin/keys/{}", victim.key_id)).await.expect(200)["status"], "active");
}

/// Secrets of every kind, and the answers of every operation to who may do everything but see them again.
async fn secrets_and_answers(app: &TestApp) -> (Vec<String>, Vec<Reply>) {
    let admin = app.admin();
    let mut secrets = vec![ROOT_KEY.to_owned(), SECRET_KEY.to_owned(), app.alice_key().to_owned()];
    let key = admin.post("/api/v1/admin/keys", json!({"name": "n"})).await.expect(201);
    let key_path = format!("/api/v1/admin/keys/{}", text(&key["key_id"]));
    let rotated = admin.post(&format!("{key_path}/rotate"), "").await.expect(200);
    secrets.extend([text(&key["secret"]), text(&rotated["secret"])]);
    for _ in 0..2 {
        secrets.push(text(&admin.post("/api/v1/admin/project/token-secret", "").await.expect(201)["secret"]));
    }
    let minted = admin.post("/api/v1/admin/tokens", json!({"user_id": "ada"})).await.expect(201);
    secrets.push(text(&minted["token"]));
    for presented in &secrets {
        app.client(presented).get("/api/v1/sessions").await;
        app.client(&format!("{presented}x")).get("/api/v1/sessions").await;
    }
    let mut replies = vec![admin.get(&key_path).await, admin.patch(&key_path, json!({"name": "m"})).await];
    for secret in &secrets {
        replies.push(app.client(&format!("{secret}x")).get("/api/v1/sessions").await);
    }
    for route in routes().iter().filter(|route| route.method == Method::GET) {
        let path = route.path.replace("{key_id}", &text(&key["key_id"])).replace("{file}", "init.js");
        let path = path.replace("{project_id}", &ProjectId::DEFAULT.to_string());
        replies.push(admin.get(&format!("{path}?q=x&limit=100")).await);
    }
    replies.push(admin.post(&format!("{key_path}/revoke"), "").await);
    replies.push(admin.delete("/api/v1/admin/project/token-secret").await);
    (secrets, replies)
}

/// The part of a secret that alone makes it one.
fn core_of(secret: &str) -> &str {
    let parts: Vec<&str> = secret.split('_').collect();
    if secret.starts_with("cs_") && parts.len() == 4 { parts[2] } else { secret }
}

async fn no_secret_is_shown_twice(app: TestApp) {
    let app = app.with_access(AccessSettings { secret_key: Some(Secret::new(SECRET_KEY)), ..access() }).await;
    let (secrets, replies) = secrets_and_answers(&app).await;
    assert!(secrets.len() == 8 && replies.len() > 20);
    for reply in replies {
        let bytes = format!("{:?}\n{}", reply.headers, String::from_utf8_lossy(&reply.bytes));
        for secret in &secrets {
            assert!(!bytes.contains(core_of(secret)), "{reply:?}");
        }
    }
}

#[tokio::test]
async fn no_secret_stands_in_the_database() {
    let app = TestApp::start(Engine::Sqlite).await;
    let app = app.with_access(AccessSettings { secret_key: Some(Secret::new(SECRET_KEY)), ..access() }).await;
    let (secrets, _) = secrets_and_answers(&app).await;
    app.admin().new_session("something that is there").await;
    let bytes = app.file_bytes();
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("something that is there"));
    for secret in &secrets {
        assert!(!holds(core_of(secret)), "{}…", &secret[..4]);
    }
}
