//! Conversations on OpenAI's wire: made, read, changed, deleted, listed; and the same as sessions.

use axum::body::Body;
use axum::http::Method;
use chatstore_server::access::{AccessSettings, OpenAiSettings};
use chatstore_server::config::Secret;
use serde_json::{Value, json};

use crate::app::{TestApp, access, api_tests};
use crate::client::{Client, text};

api_tests! {
    create_conversation_takes_a_body_or_none
    create_conversation_stores_its_first_items
    create_conversation_takes_as_many_items_as_is_set
    create_conversation_takes_an_idempotency_key_and_never_knows_a_body_again
    update_conversation_replaces_the_metadata
    metadata_that_breaks_a_rule_is_refused_with_its_name
    delete_conversation_leaves_a_marker_and_nothing_else
    an_id_that_is_none_is_a_400_and_one_that_is_unknown_a_404
    list_conversations_pages_in_both_directions
    list_conversations_goes_on_after_what_was_deleted
    list_conversations_filters_by_user_and_metadata
    the_user_comes_from_the_caller
    for_a_token_of_some_conversations_there_are_no_others
    a_session_is_a_conversation_and_a_conversation_is_a_session
}

const PATH: &str = "/v1/conversations";

/// A new conversation's id.
async fn conversation(client: &Client, body: Value) -> String {
    text(&client.post(PATH, body).await.expect(200)["id"])
}

fn ids(page: &Value) -> Vec<String> {
    page["data"].as_array().unwrap().iter().map(|item| text(&item["id"])).collect()
}

async fn create_conversation_takes_a_body_or_none(app: TestApp) {
    let admin = app.admin();
    let empty = admin.with("content-type", "application/json").send(Method::POST, PATH, Body::empty()).await;
    let mut made = vec![empty.expect(200), admin.send(Method::POST, PATH, Body::empty()).await.expect(200)];
    for body in [json!({}), json!({"items": []}), json!({"items": null, "metadata": null}), json!({"metadata": {}})] {
        made.push(admin.post(PATH, body).await.expect(200));
    }
    for shown in &made {
        let id = text(&shown["id"]);
        assert!(id.len() == 37 && id.starts_with("conv_"), "{id}");
        let created_at = shown["created_at"].as_i64().unwrap();
        assert_eq!(shown, &json!({"id": id, "object": "conversation", "created_at": created_at, "metadata": {}}));
        assert_eq!(created_at, 1_768_478_400, "seconds");
        assert_eq!(&admin.get(&format!("{PATH}/{id}")).await.expect(200), shown);
        assert_eq!(&admin.get(&format!("{PATH}/{id}/")).await.expect(200), shown);
    }
    let bytes = admin.post(PATH, r#"{"metadata":{"b":"1", "a" : "é"}}"#).await;
    assert!(bytes.text().ends_with(r#""metadata":{"b":"1", "a" : "é"}}"#), "{}", bytes.text());
    for (body, param) in [(json!({"items": {}}), "items"), (json!({"items": [1]}), "items[0]")] {
        admin.post(PATH, body).await.expect_refused(param, "invalid_value");
    }
    app.reader().post(PATH, json!({})).await.expect_problem(403, "insufficient_scope");
}

async fn create_conversation_stores_its_first_items(app: TestApp) {
    let items = json!([{"role": "user", "content": "a"}, {"type": "function_call", "id": "fc_1", "name": "f"}]);
    let id = conversation(&app.admin(), json!({"items": items})).await;
    let list = app.admin().get(&format!("{PATH}/{id}/items?order=asc")).await.expect(200);
    assert_eq!(list["data"][0]["content"], json!([{"type": "input_text", "text": "a"}]));
    assert_eq!(list["data"][1], items[1]);
    let twice = json!({"items": [{"type": "x", "id": "a"}, {"type": "y", "id": "a"}]});
    app.admin().post(PATH, twice).await.expect_refused("items", "item_already_in_conversation");
    let bad = json!({"items": [{"role": "user", "content": "a"}, {"role": "narrator", "content": "b"}]});
    app.admin().post(PATH, bad).await.expect_refused("items[1].role", "invalid_value");
    assert_eq!(ids(&app.admin().get(PATH).await.expect(200)), [id], "what is refused leaves nothing");
}

async fn with_openai(app: &TestApp, openai: OpenAiSettings) -> TestApp {
    app.with_access(AccessSettings { openai, ..access() }).await
}

async fn create_conversation_takes_as_many_items_as_is_set(app: TestApp) {
    let items = |count: usize| json!({"items": vec![json!({"role": "user", "content": "a"}); count]});
    let defaults = OpenAiSettings::default();
    for (openai, most) in [
        (defaults, 1_000),
        (OpenAiSettings { items_max: 3, ..defaults }, 3),
        (OpenAiSettings { is_strict: true, ..defaults }, 20),
        (OpenAiSettings { is_strict: true, items_max: 3, ..defaults }, 3),
    ] {
        let app = with_openai(&app, openai).await;
        let id = conversation(&app.admin(), items(most)).await;
        let path = format!("{PATH}/{id}/items");
        assert_eq!(ids(&app.admin().post(&path, items(most)).await.expect(200)).len(), most);
        for path in [PATH, &path] {
            let refused = app.admin().post(path, items(most + 1)).await;
            refused.expect_refused("items", "invalid_value");
            assert!(refused.text().contains(&format!("at most {most} items")), "{}", refused.text());
        }
    }
}

async fn create_conversation_takes_an_idempotency_key_and_never_knows_a_body_again(app: TestApp) {
    let keyed = app.admin().with("idempotency-key", "once");
    let body = json!({"metadata": {"a": "b"}, "items": [{"role": "user", "content": "a"}]});
    let first = keyed.post(PATH, &body).await;
    let again = keyed.post(PATH, &body).await;
    assert_eq!((first.expect(200), again.header("idempotent-replayed")), (again.expect(200), Some("true")));
    assert_eq!(ids(&app.admin().get(PATH).await.expect(200)).len(), 1);
    keyed.post(PATH, json!({})).await.expect_problem(422, "idempotency_key_reused");
    app.admin().delete(&format!("{PATH}/{}", text(&first.json()["id"]))).await.expect(200);
    keyed.post(PATH, &body).await.expect_problem(410, "gone");
    for retry in ["0", "1", "2"] {
        app.admin().with("x-stainless-retry-count", retry).post(PATH, json!({})).await.expect(200);
    }
    assert_eq!(ids(&app.admin().get(PATH).await.expect(200)).len(), 3, "two callers never share a conversation");
}

async fn update_conversation_replaces_the_metadata(app: TestApp) {
    let id = conversation(&app.admin(), json!({"metadata": {"a": "1", "b": "2"}})).await;
    let path = format!("{PATH}/{id}");
    for (sent, kept) in [(json!({"c": "3"}), json!({"c": "3"})), (json!(null), json!({})), (json!({}), json!({}))] {
        let shown = app.admin().post(&path, json!({"metadata": sent})).await.expect(200);
        assert_eq!(shown["metadata"], kept);
        assert_eq!(app.admin().get(&path).await.expect(200), shown);
    }
    app.admin().post(&path, json!({})).await.expect_refused("metadata", "invalid_value");
    app.admin().post(&path, "").await.expect_problem(400, "invalid_json");
    app.reader().post(&path, json!({"metadata": null})).await.expect_problem(403, "insufficient_scope");
    app.admin().patch(&path, json!({"metadata": null})).await.expect_problem(405, "method_not_allowed");
}

async fn metadata_that_breaks_a_rule_is_refused_with_its_name(app: TestApp) {
    let id = conversation(&app.admin(), json!({})).await;
    let pairs = |count: usize| (0..count).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    let (key, long_key) = ("k".repeat(64), "k".repeat(65));
    let cases = [
        (json!(pairs(17)), Some("metadata".to_owned())),
        (json!({&long_key: "v"}), Some(format!("metadata.{long_key}"))),
        (json!({"topic": "v".repeat(513)}), Some("metadata.topic".to_owned())),
        (json!({"topic": 7}), Some("metadata.topic".to_owned())),
        (json!({"topic": null}), Some("metadata.topic".to_owned())),
        (json!({"0": 1}), Some("metadata.0".to_owned())),
        (json!([]), Some("metadata".to_owned())),
        (json!("x"), Some("metadata".to_owned())),
        (json!(pairs(16)), None),
        (json!({&key: "é".repeat(512)}), None),
    ];
    for (metadata, param) in cases {
        for path in [PATH.to_owned(), format!("{PATH}/{id}")] {
            let reply = app.admin().post(&path, json!({"metadata": metadata})).await;
            match &param {
                Some(param) => reply.expect_refused(param, "invalid_value"),
                None => assert_eq!(reply.expect(200)["metadata"], metadata),
            }
        }
    }
    let twice = r#"{"metadata":{"a":"1","a":"2"}}"#;
    app.admin().post(PATH, twice).await.expect_refused("metadata.a", "invalid_value");
}

async fn delete_conversation_leaves_a_marker_and_nothing_else(app: TestApp) {
    let id = conversation(&app.admin(), json!({"items": [{"type": "x", "id": "a"}]})).await;
    let path = format!("{PATH}/{id}");
    app.writer().delete(&path).await.expect_problem(403, "insufficient_scope");
    let typed = app.admin().with("content-type", "application/json");
    let deleted = typed.delete(&path).await.expect(200);
    let noted = app.admin().get("/api/v1/admin/audit?action=delete_conversation").await.items();
    let target = text(&noted[0]["target_id"]).replace('-', "");
    assert_eq!((&noted[0]["outcome"], format!("conv_{target}")), (&json!("ok"), id.clone()));
    assert_eq!(deleted, json!({"id": id, "object": "conversation.deleted", "deleted": true}));
    for reply in [
        app.admin().delete(&path).await,
        app.admin().get(&path).await,
        app.admin().get(&format!("{path}/items")).await,
        app.admin().get(&format!("{path}/items/a")).await,
        app.admin().post(&path, json!({"metadata": null})).await,
        app.admin().post(&format!("{path}/items"), json!({"items": [{"type": "x"}]})).await,
    ] {
        let gone = json!({"error": {
            "message": "There is no such conversation.", "type": "invalid_request_error", "param": null, "code": null,
        }});
        assert_eq!(reply.expect(404), gone);
    }
}

async fn an_id_that_is_none_is_a_400_and_one_that_is_unknown_a_404(app: TestApp) {
    let foreign = conversation(&app.stranger(), json!({})).await;
    let bobs = conversation(&app.bob(), json!({})).await;
    for rest in ["", "/items", "/items/msg_1"] {
        let mut absent = Vec::new();
        for id in [&foreign, &bobs, "conv_019b0f3e5c007a419d523f6a8c1e2b47", "conv_x", "conv_6a391904a-B_9"] {
            let reply = app.alice().get(&format!("{PATH}/{id}{rest}")).await;
            reply.expect_problem(404, "not_found");
            absent.push(reply.anonymous());
        }
        assert!(absent.windows(2).all(|pair| pair[0] == pair[1]), "{absent:?}");
        for id in [
            "conv_",
            "thread_1",
            "1",
            "conv",
            "CONV_1",
            "conv_%20",
            "conv_a%2Fb",
            "conv_a.b",
            "conv_%C3%A9",
            "conv_%FF",
        ] {
            let reply = app.alice().get(&format!("{PATH}/{id}{rest}")).await;
            reply.expect_refused("conversation_id", "invalid_value");
        }
    }
}

/// The ids of a page, and whether there is more.
async fn page(client: &Client, query: &str) -> (Vec<String>, bool) {
    let body = client.get(&format!("{PATH}?{query}")).await.expect(200);
    let found = ids(&body);
    assert_eq!(body["object"], "list");
    let ends = (found.first().map(|id| json!(id)), found.last().map(|id| json!(id)));
    assert_eq!((&body["first_id"], &body["last_id"]), (&ends.0.unwrap_or_default(), &ends.1.unwrap_or_default()));
    (found, body["has_more"].as_bool().unwrap())
}

async fn list_conversations_pages_in_both_directions(app: TestApp) {
    assert_eq!(page(&app.admin(), "").await, (vec![], false));
    let mut made = Vec::new();
    for n in 0..22 {
        made.push(conversation(&app.admin(), json!({"metadata": {"n": n.to_string()}})).await);
    }
    let desc: Vec<String> = made.iter().rev().cloned().collect();
    assert_eq!(page(&app.admin(), "").await, (desc[..20].to_vec(), true));
    assert_eq!(page(&app.admin(), "limit=22").await, (desc.clone(), false));
    assert_eq!(page(&app.admin(), "order=asc&limit=21").await, (made[..21].to_vec(), true));
    for (order, all) in [("asc", &made), ("desc", &desc)] {
        let at = |query: &str| format!("order={order}&{query}");
        for (query, found, more) in [
            (format!("after={}", all[19]), &all[20..], false),
            (format!("after={}&limit=1", all[19]), &all[20..21], true),
            (format!("after={}", all[21]), &all[22..], false),
            (format!("before={}", all[0]), &all[..0], false),
            (format!("before={}", all[3]), &all[..3], false),
            (format!("before={}&limit=2", all[3]), &all[1..3], true),
            (format!("after={}&before={}", all[3], all[9]), &all[4..9], false),
            (format!("after={}&before={}&limit=5", all[3], all[9]), &all[4..9], false),
            (format!("after={}&before={}&limit=4", all[3], all[9]), &all[4..8], true),
            (format!("after={}&before={}", all[9], all[3]), &all[..0], false),
        ] {
            assert_eq!(page(&app.admin(), &at(&query)).await, (found.to_vec(), more), "{order} {query}");
        }
    }
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=%2B5", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("before=conv_x", "before"),
        ("user=", "user"),
        ("metadata=x", "metadata"),
    ] {
        app.admin().get(&format!("{PATH}?{query}")).await.expect_refused(param, "invalid_value");
    }
}

async fn list_conversations_goes_on_after_what_was_deleted(app: TestApp) {
    for _ in 0..5 {
        conversation(&app.admin(), json!({})).await;
    }
    for order in ["asc", "desc"] {
        let (first, more) = page(&app.admin(), &format!("order={order}&limit=1")).await;
        app.admin().delete(&format!("{PATH}/{}", first[0])).await.expect(200);
        let (rest, _) = page(&app.admin(), &format!("order={order}&after={}", first[0])).await;
        let (all, _) = page(&app.admin(), &format!("order={order}")).await;
        assert_eq!((more, rest), (true, all));
    }
}

async fn list_conversations_filters_by_user_and_metadata(app: TestApp) {
    let admin = app.admin();
    let of = |user: &'static str| admin.with("x-user-id", user);
    let ada = conversation(&of("ada"), json!({"metadata": {"topic": "a", "lang": "en"}})).await;
    let bob = conversation(&of("bob"), json!({"metadata": {"topic": "a"}})).await;
    for (client, query, found) in [
        (&admin, "user=ada", vec![&ada]),
        (&admin, "user=nobody", vec![]),
        (&admin, "metadata[topic]=a", vec![&bob, &ada]),
        (&admin, "metadata%5Btopic%5D=a&metadata[lang]=en", vec![&ada]),
        (&of("ada"), "", vec![&ada]),
        (&of("ada"), "user=ada", vec![&ada]),
    ] {
        let found: Vec<String> = found.into_iter().cloned().collect();
        assert_eq!(page(client, query).await, (found, false), "{query}");
    }
    of("ada").get(&format!("{PATH}?user=bob")).await.expect_problem(403, "user_mismatch");
}

async fn the_user_comes_from_the_caller(app: TestApp) {
    let (native, alias) = ("x-user-id", "x-ms-user-isolation-key");
    let admin = app.admin();
    let user = async |id: &str| {
        let session_id = chatstore_core::ids::SessionId::parse_conversation_id(id).unwrap();
        app.admin().get(&format!("/api/v1/sessions/{session_id}")).await.expect(200)["user_id"].clone()
    };
    for (client, expected) in [
        (admin.clone(), json!(null)),
        (admin.with(native, "ada"), json!("ada")),
        (admin.with(alias, "ada"), json!("ada")),
        (admin.with(alias, "ada").with(native, "ada"), json!("ada")),
        (app.alice(), json!("alice")),
        (app.alice().with(alias, "alice"), json!("alice")),
    ] {
        assert_eq!(user(&conversation(&client, json!({})).await).await, expected);
    }
    app.alice().with(alias, "bob").post(PATH, json!({})).await.expect_problem(403, "user_mismatch");
    for client in
        [admin.with(alias, "ada").with(native, "bob"), admin.with(alias, ""), admin.with(alias, "a").with(alias, "a")]
    {
        client.post(PATH, json!({})).await.expect_problem(400, "invalid_header");
    }
    let ours = conversation(&admin.with(alias, "ada"), json!({})).await;
    admin.with(alias, "bob").get(&format!("{PATH}/{ours}")).await.expect_problem(404, "not_found");
    // Elsewhere it is a header like any other.
    admin.with(alias, "ada").with(native, "bob").get("/api/v1/sessions").await.expect(200);
}

async fn for_a_token_of_some_conversations_there_are_no_others(app: TestApp) {
    let secret_key = Some(Secret::new("k".repeat(40)));
    let app = app.with_access(AccessSettings { secret_key, ..access() }).await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(conversation(&app.alice(), json!({"items": [{"role": "user", "content": "hers"}]})).await);
    }
    let item = app.alice().get(&format!("{PATH}/{}/items", made[2])).await.expect(200)["first_id"].clone();
    let session_ids: Vec<String> = made[..2]
        .iter()
        .map(|id| chatstore_core::ids::SessionId::parse_conversation_id(id).unwrap().to_string())
        .collect();
    let body = json!({"user_id": "alice", "session_ids": session_ids});
    let minted = app.admin().post("/api/v1/admin/tokens", body).await.expect(201);
    let client = app.anon().with("authorization", format!("Bearer {}", text(&minted["token"])));
    assert_eq!(page(&client, "").await, (vec![made[1].clone(), made[0].clone()], false));
    assert_eq!(page(&client, &format!("after={}", made[1])).await, (vec![made[0].clone()], false));
    client.get(&format!("{PATH}/{}", made[2])).await.expect_problem(404, "not_found");
    client.post(PATH, json!({})).await.expect_problem(403, "insufficient_scope");
    let path = format!("{PATH}/{}/items", made[0]);
    let reference = json!({"items": [{"type": "item_reference", "id": item}]});
    client.post(&path, &reference).await.expect_refused("items[0].id", "invalid_value");
    app.alice().post(&path, &reference).await.expect(200);
}

async fn a_session_is_a_conversation_and_a_conversation_is_a_session(app: TestApp) {
    let body = json!({"session_name": "n", "is_favorite": true, "metadata": {"deep": {"x": [1]}}});
    let session_id = text(&app.alice().post("/api/v1/sessions", body).await.expect(201)["session_id"]);
    let id = format!("conv_{}", session_id.replace('-', ""));
    let shown = app.alice().get(&format!("{PATH}/{id}")).await.expect(200);
    assert_eq!(shown["metadata"], json!({"deep": {"x": [1]}}));
    app.alice().post(&format!("{PATH}/{id}"), json!({"metadata": {"a": "b"}})).await.expect(200);
    let native = app.alice().get(&format!("/api/v1/sessions/{session_id}")).await.expect(200);
    assert_eq!((&native["session_name"], &native["is_favorite"]), (&json!("n"), &json!(true)));
    assert_eq!((&native["metadata"], &native["user_id"]), (&json!({"a": "b"}), &json!("alice")));
    let made = conversation(&app.alice(), json!({"metadata": {"c": "d"}})).await;
    let sessions = app.alice().get("/api/v1/sessions?metadata[c]=d").await;
    let spelled = |id: Value| format!("conv_{}", text(&id).replace('-', ""));
    assert_eq!(sessions.column("session_id").into_iter().map(spelled).collect::<Vec<_>>(), [made]);
    app.alice().delete(&format!("/api/v1/sessions/{session_id}")).await.expect(200);
    app.alice().get(&format!("{PATH}/{id}")).await.expect_problem(404, "not_found");
}
