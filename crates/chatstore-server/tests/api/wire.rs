//! What holds on every path: slashes, methods, headers, times, request ids, open pages.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::http::Method;
use chatstore_server::access::AccessSettings;
use chatstore_server::config::Secret;
use chatstore_server::router::{Access, routes};
use serde_json::{Value, json};

use crate::app::{TestApp, access, api_tests};
use crate::client::{self, text};

api_tests! {
    every_path_works_with_and_without_a_trailing_slash
    a_method_that_a_path_has_not_is_a_405_that_names_the_others
    a_path_that_no_route_has_is_a_404
    times_are_rfc_3339_with_six_digits_and_z
    a_plain_request_id_is_echoed_and_any_other_replaced
    answers_of_the_api_are_never_stored_and_never_a_304
    health_and_readiness_tell_how_it_is
    the_index_is_a_page_for_browsers_and_json_for_programs
    the_docs_work_without_a_network
}

/// The path of a route with the ids of things that exist.
fn fill(path: &str, session_id: &str, message_id: &str) -> String {
    client::fill(path, session_id, message_id).replace("{file}", "init.js")
}

async fn every_path_works_with_and_without_a_trailing_slash(app: TestApp) {
    let secret_key = Some(Secret::new("k".repeat(40)));
    let app = app.with_access(AccessSettings { secret_key, ..access() }).await;
    for route in routes().iter().filter(|route| route.path != "/") {
        let mut answers = Vec::new();
        for slash in ["", "/"] {
            let session_id = app.admin().new_session("n").await;
            let message_id = text(&app.admin().new_message(&session_id, "x").await["message_id"]);
            let name = format!("{} {}{slash}", route.method, route.path);
            let key = app.admin().post("/api/v1/admin/keys", json!({"name": name})).await.expect(201);
            let project = app.admin().post("/api/v1/admin/projects", json!({"name": name})).await.expect(201);
            let path = fill(route.path, &session_id, &message_id).replace("{key_id}", &text(&key["key_id"]));
            let mut path = format!("{}{slash}", path.replace("{project_id}", &text(&project["project_id"])));
            if route.method == Method::GET && route.path.ends_with("/search") {
                path.push_str("?q=x");
            }
            let body = match route.doc.id {
                "import_sessions" => json!([]),
                "create_session" => json!({"session_name": "n"}),
                "append_messages" => json!({"content": "x"}),
                "create_items" => json!({"items": [{"role": "user", "content": "x"}]}),
                "update_conversation" => json!({"metadata": {}}),
                "search_messages" => json!({"query": "x"}),
                "set_embedding" => json!({"embedding": [1, 2]}),
                "create_api_key" | "create_project" => json!({"name": format!("a{slash}")}),
                "create_token" => json!({"user_id": "ada"}),
                _ => json!({}),
            };
            let client = app.admin().with("content-type", "application/json");
            let reply = client.send(route.method.clone(), &path, Body::from(body.to_string())).await;
            let mut headers: Vec<String> = reply.headers.keys().map(ToString::to_string).collect();
            headers.sort();
            answers.push((reply.status, headers));
        }
        assert!(matches!(answers[0].0, 200 | 201), "{} answered {}", route.path, answers[0].0);
        assert_eq!(answers[0], answers[1], "{} {}", route.method, route.path);
    }
}

async fn a_method_that_a_path_has_not_is_a_405_that_names_the_others(app: TestApp) {
    let mut methods: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for route in routes() {
        let of_path = methods.entry(route.path).or_default();
        of_path.insert(route.method.to_string());
        if route.method == Method::GET {
            of_path.insert("HEAD".to_owned());
        }
    }
    let id = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";
    for (path, allowed) in &methods {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            if allowed.contains(method) {
                continue;
            }
            for path in [fill(path, id, id), format!("{}/", fill(path, id, id)).replace("//", "/")] {
                for client in [app.anon(), app.admin()] {
                    let reply = client.send(method.parse().unwrap(), &path, Body::empty()).await;
                    reply.expect_problem(405, "method_not_allowed");
                    let named = reply.header("allow").unwrap_or_default();
                    let named: BTreeSet<String> = named.split(',').map(|method| method.trim().to_owned()).collect();
                    assert_eq!(&named, allowed, "{method} {path}");
                }
            }
        }
    }
}

async fn a_path_that_no_route_has_is_a_404(app: TestApp) {
    let paths = [
        "/nothing",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v2/sessions",
        "/api/v1/Sessions",
        "/api/v1//sessions",
        "/api/v1/sessions/a/b/c",
        "/api/v1/sessions/../sessions",
        "/api/v1%2Fsessions",
        "/api/v1/sessions;x=1",
        "/docs/a/b",
        "/.env",
        "/v1",
        "/v1/",
        "/v1/chat/completions",
        "/v1/conversations/conv_1/items/msg_1/x",
        "/v10/conversations",
    ];
    for client in [app.anon(), app.admin()] {
        for path in paths {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                client.send(method, path, Body::empty()).await.expect_problem(404, "route_not_found");
            }
        }
    }
}

async fn times_are_rfc_3339_with_six_digits_and_z(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = app.admin().new_message(&id, "x").await;
    let session = app.admin().get(&format!("/api/v1/sessions/{id}")).await.expect(200);
    let times = [&session["created_at"], &session["updated_at"], &session["last_message_at"], &message["created_at"]];
    for time in times.into_iter().chain([&message["updated_at"]]) {
        let shape: String = text(time).chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{time}");
    }
    assert_eq!(message["created_at"], session["last_message_at"]);
}

async fn a_plain_request_id_is_echoed_and_any_other_replaced(app: TestApp) {
    let long = "x".repeat(64);
    for path in ["/healthz", "/api/v1/sessions", "/nothing"] {
        for id in ["a", "Order-66_b", "0", "-", &long] {
            let reply = app.admin().with("x-request-id", id).get(path).await;
            assert_eq!(reply.header("x-request-id"), Some(id), "{path}");
        }
        let too_long = "x".repeat(65);
        for id in ["", "a b", "a.b", "a\tb", "ä", "<b>", "a,b", "\"a\"", "%0d%0a", "\u{FF}", &too_long] {
            let reply = app.anon().with("x-request-id", id).get(path).await;
            let made = reply.header("x-request-id").unwrap();
            assert_ne!(made, id);
            assert_eq!(made.len(), 32, "{made} for {id:?}");
        }
    }
    let ids = [app.anon().get("/healthz").await, app.anon().get("/healthz").await]
        .map(|reply| reply.headers["x-request-id"].clone());
    assert_ne!(ids[0], ids[1]);
}

async fn answers_of_the_api_are_never_stored_and_never_a_304(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = text(&app.admin().new_message(&id, "x").await["message_id"]);
    for path in [
        "/api/v1/sessions".to_owned(),
        format!("/api/v1/sessions/{id}"),
        format!("/api/v1/sessions/{id}/messages"),
        format!("/api/v1/messages/{message}"),
        "/api/v1/sessions/absent".to_owned(),
    ] {
        let client = app.admin().with("if-none-match", "\"1\"").with("if-none-match", "*");
        let reply = client.with("if-modified-since", "Fri, 31 Dec 2100 23:59:59 GMT").get(&path).await;
        assert!(matches!(reply.status, 200 | 404) && !reply.bytes.is_empty(), "{reply:?}");
        assert_eq!(reply.header("cache-control"), Some("no-store"), "{reply:?}");
        assert_eq!(reply.header("last-modified"), None);
    }
    assert_eq!(app.anon().get("/api/v1/sessions").await.header("cache-control"), Some("no-store"));
}

async fn health_and_readiness_tell_how_it_is(app: TestApp) {
    let ok = json!({"status": "ok"});
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(app.anon().get(path).await.expect(200), ok, "{path}");
    }
    app.shutdown.cancel();
    let reply = app.anon().get("/readyz").await;
    reply.expect_problem(503, "not_ready");
    assert!(reply.header("retry-after").is_some());
    assert_eq!(app.anon().get("/livez").await.expect(200), ok);
}

async fn the_index_is_a_page_for_browsers_and_json_for_programs(app: TestApp) {
    let browser = app.anon().with("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");
    let page = browser.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.text().contains("href=\"/docs\"") && page.text().contains(env!("CARGO_PKG_VERSION")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
    for client in [app.anon(), app.anon().with("accept", "*/*"), app.anon().with("accept", "application/json")] {
        let facts = client.get("/").await.expect(200);
        assert_eq!((&facts["name"], &facts["status"]), (&json!("chatstore"), &json!("ready")));
        for link in facts["links"].as_object().unwrap().iter().filter(|(name, _)| *name != "api").map(|(_, link)| link)
        {
            assert_eq!(app.anon().get(&text(link)).await.status, 200, "{link}");
        }
    }
}

async fn the_docs_work_without_a_network(app: TestApp) {
    for path in ["/docs", "/docs/"] {
        let page = app.anon().get(path).await;
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert!(
            !page.text().contains("//unpkg") && !page.text().contains("//cdn") && !page.text().contains("https://")
        );
        let policy = page.header("content-security-policy").unwrap();
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        let quoted = page.text().split('"').filter(|text| text.starts_with("/docs/") || text.starts_with("docs/"));
        let files: Vec<String> = quoted.map(|file| format!("/{}", file.trim_start_matches('/'))).collect();
        assert!(files.len() >= 3, "{files:?}");
        for file in files {
            let reply = app.anon().get(&file).await;
            assert!(reply.status == 200 && !reply.bytes.is_empty(), "{file} answered {}", reply.status);
        }
    }
    app.anon().get("/docs/nothing.js").await.expect_problem(404, "not_found");
    app.anon().get("/docs/..%2FCargo.toml").await.expect_problem(404, "not_found");
    let open: Vec<Value> = routes()
        .iter()
        .filter(|route| !matches!(route.access, Access::Needs(_)))
        .map(|route| json!(route.path))
        .collect();
    assert_eq!(open, ["/", "/docs", "/docs/{file}", "/healthz", "/livez", "/openapi.json", "/readyz"]);
}
