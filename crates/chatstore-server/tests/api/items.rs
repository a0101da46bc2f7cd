//! Items on OpenAI's wire: each comes back as it was sent, whoever reads it; lists, and what is there already.

use axum::body::Body;
use axum::http::Method;
use chatstore_server::access::{AccessSettings, OpenAiSettings};
use serde_json::{Value, json};

use crate::app::{TestApp, access, api_tests};
use crate::client::{Client, text};

mod paging;
mod references;

api_tests! {
    items_come_back_byte_for_byte
    an_item_gets_what_every_item_has_and_nothing_else
    ids_have_the_prefix_of_their_type
    an_id_that_was_brought_names_the_item
    items_are_stored_all_or_none
    what_is_no_item_is_refused_with_its_place
    a_text_that_is_too_large_is_a_413
    include_is_checked_in_every_spelling
    delete_item_answers_with_the_conversation
    an_item_that_is_there_already_is_not_stored_again
    returned_items_may_be_fed_back
    a_strict_server_takes_no_id_twice
    an_item_has_no_name_but_its_own
    a_retry_of_an_sdk_is_the_same_request
    items_have_a_kind_a_text_and_a_payload_as_messages
    a_number_out_of_range_takes_no_text_away
    what_tools_put_out_is_found
    a_copy_has_the_id_that_its_original_shows
    messages_are_items
    what_is_changed_natively_shows_so
    concurrent_appends_lose_nothing
}

async fn conversation(client: &Client) -> String {
    text(&client.post("/v1/conversations", json!({})).await.expect(200)["id"])
}

/// Where the items of a new conversation stand.
async fn new_path(client: &Client) -> String {
    format!("/v1/conversations/{}/items", conversation(client).await)
}

/// Items of every type, in forms that only their bytes tell apart.
const RAW_ITEMS: [&str; 14] = [
    r#"{"id":"msg_1","type":"message","status":"completed","role":"assistant","phase":"commentary","content":[{"type":"output_text","text":"a\u00e9\/","annotations":[{"type":"x"}],"logprobs":[{"token":"a","logprob":-0.10000000000000000001}]}]}"#,
    r#"{"status":"in_progress", "id":"msg_2","type":"message","role":"user","content":[{"type":"input_text","text":"b","prompt_cache_breakpoint":{"mode":"explicit"}}]}"#,
    r#"{"type":"reasoning","id":"rs_1","encrypted_content":"gAAAA==","summary":[]}"#,
    r#"{"type":"function_call","id":"fc_1","call_id":"c1","name":"f","arguments":"{\"b\": 1, \"a\": 2.0}","namespace":"n","caller":{"type":"direct"}}"#,
    r#"{"type":"function_call_output","id":"fco_1","call_id":"c1","output":"{}"}"#,
    r#"{"type":"web_search_call","id":"ws_1","status":"searching","action":{"type":"search","query":"q"}}"#,
    r#"{"type":"file_search_call","id":"fs_1","status":"completed","queries":["q"],"results":null}"#,
    r#"{"type":"code_interpreter_call","id":"ci_1","code":"1","container_id":"c","outputs":[],"status":"completed"}"#,
    r#"{"type":"image_generation_call","id":"ig_1","status":"generating","result":null}"#,
    r#"{"type":"mcp_list_tools","id":"mcpl_1","server_label":"s","tools":[]}"#,
    r#"{"type":"compaction","id":"cmp_1","encrypted_content":"x"}"#,
    r#"{"type":"configuration_update","id":"cfg_1","reasoning":null}"#,
    r#"{"type":"future_type","id":"fut_1","n":1.00,"e":0.1e-7,"nested":{"z":1,"a":[1, 2]},"z":null}"#,
    "{\"id\":\"ws-2\",\n \"type\" : \"web_search_call\", \"status\":\"failed\"}",
];

fn raw_body(items: &[&str]) -> String {
    format!("{{\"items\":[{}]}}", items.join(","))
}

async fn items_come_back_byte_for_byte(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let data = format!("\"data\":[{}],", RAW_ITEMS.join(","));
    let created = app.admin().post(&path, raw_body(&RAW_ITEMS)).await;
    assert!(created.status == 200 && created.text().contains(&data), "{}", created.text());
    let ends = r#""first_id":"msg_1","last_id":"ws-2","has_more":false}"#;
    assert!(created.text().starts_with(r#"{"object":"list","data":["#) && created.text().ends_with(ends));
    let list = app.admin().get(&format!("{path}?order=asc")).await;
    assert_eq!(list.text(), created.text());
    for raw in RAW_ITEMS {
        let id = raw.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(app.admin().get(&format!("{path}/{id}")).await.text(), raw);
    }
}

/// The items that a request created.
async fn created(client: &Client, path: &str, items: Value) -> Vec<Value> {
    let body = client.post(path, json!({"items": items})).await.expect(200);
    assert_eq!((&body["object"], &body["has_more"]), (&json!("list"), &json!(false)));
    body["data"].as_array().unwrap().clone()
}

async fn an_item_gets_what_every_item_has_and_nothing_else(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let sent = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "phase": "final_answer"},
        {"role": "developer", "content": "", "type": null, "id": null, "status": null},
        {"type": "message", "role": "critic", "content": [{"type": "input_image", "file_id": "f"}], "status": "incomplete"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "message", "role": "user", "content": "c", "id": "__fake_id__"},
    ]);
    let shown = created(&app.admin(), &path, sent).await;
    let id = |n: usize| &shown[n]["id"];
    assert_eq!(
        json!(shown),
        json!([
            {"id": id(0), "type": "message", "status": "completed", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"id": id(1), "type": "message", "status": "completed", "role": "assistant", "phase": "final_answer",
             "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}]},
            {"id": id(2), "type": "message", "status": "completed", "role": "developer", "content": [{"type": "input_text", "text": ""}]},
            {"id": id(3), "type": "message", "status": "incomplete", "role": "critic", "content": [{"type": "input_image", "file_id": "f"}]},
            {"id": id(4), "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"id": id(5), "type": "message", "status": "completed", "role": "user", "content": [{"type": "input_text", "text": "c"}]},
        ])
    );
    assert_ne!(id(5), "__fake_id__");
    let sent = r#"{"items":[{"role" : "user","content":"a","n":1.0}]}"#;
    let exact = r#""type":"message","status":"completed","role" : "user","content":[{"type":"input_text","text":"a"}],"n":1.0}]"#;
    let shown = app.admin().post(&path, sent).await;
    assert!(shown.text().contains(exact), "{}", shown.text());
    // An id is put in front; every other byte stays.
    let bare = "{ \"type\" : \"x\",\n \"\\u0061\" :[1 , 2.0] }";
    let shown = app.admin().post(&path, raw_body(&[bare])).await;
    let id = text(&shown.json()["first_id"]);
    assert!(shown.text().contains(&format!("{{\"id\":\"{id}\",{}", &bare[1..])), "{}", shown.text());
}

async fn ids_have_the_prefix_of_their_type(app: TestApp) {
    let path = new_path(&app.admin()).await;
    for (kind, prefix) in [
        ("function_call", "fc_"),
        ("function_call_output", "fco_"),
        ("web_search_call", "ws_"),
        ("mcp_list_tools", "mcpl_"),
        ("compaction", "cmp_"),
        ("of_tomorrow", "item_"),
    ] {
        let shown = created(&app.admin(), &path, json!([{"type": kind}])).await;
        let id = text(&shown[0]["id"]);
        assert!(id.starts_with(prefix) && id.len() == prefix.len() + 32, "{kind} {id}");
        assert_eq!(app.admin().get(&format!("{path}/{id}")).await.expect(200), shown[0]);
    }
}

async fn an_id_that_was_brought_names_the_item(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let id = "A-z_09".repeat(10);
    created(&app.admin(), &path, json!([{"type": "x", "id": id}])).await;
    assert_eq!(app.admin().get(&format!("{path}/{id}")).await.expect(200)["id"], json!(id));
    let other = new_path(&app.admin()).await;
    app.admin().get(&format!("{other}/{id}")).await.expect_problem(404, "not_found");
    for name in
        ["msg_1", "msg_019b0f3e5c007a419d523f6a8c1e2b47", "%20", "a%2Fb", "%00", "a%00", "%FF", &"x".repeat(300)]
    {
        app.admin().get(&format!("{path}/{name}")).await.expect_problem(404, "not_found");
        app.admin().delete(&format!("{path}/{name}")).await.expect_problem(404, "not_found");
    }
}

async fn items_are_stored_all_or_none(app: TestApp) {
    let path = new_path(&app.admin()).await;
    assert_eq!(created(&app.admin(), &path, json!([])).await, Vec::<Value>::new());
    let bad = json!({"items": [{"type": "x", "id": "a"}, {"type": "x", "id": "b"}, {"type": "y", "id": "a"}]});
    app.admin().post(&path, bad).await.expect_refused("items", "item_already_in_conversation");
    let empty = json!({"object": "list", "data": [], "first_id": null, "last_id": null, "has_more": false});
    assert_eq!(app.admin().get(&path).await.expect(200), empty);
    let nowhere = "/v1/conversations/conv_019b0f3e5c007a419d523f6a8c1e2b47/items";
    for items in [json!([]), json!([{"type": "x"}])] {
        app.admin().post(nowhere, json!({"items": items})).await.expect_problem(404, "not_found");
    }
}

async fn what_is_no_item_is_refused_with_its_place(app: TestApp) {
    let path = new_path(&app.admin()).await;
    for (item, param) in [
        (json!("x"), "items[1]"),
        (json!({}), "items[1].id"),
        (json!({"content": "x"}), "items[1].type"),
        (json!({"type": 1}), "items[1].type"),
        (json!({"role": "narrator", "content": "x"}), "items[1].role"),
        (json!({"type": "message", "role": "user"}), "items[1].content"),
        (json!({"role": "user", "content": ["x"]}), "items[1].content"),
        (json!({"type": "x", "id": "a b"}), "items[1].id"),
        (json!({"type": "x", "id": "x".repeat(65)}), "items[1].id"),
        (json!({"type": "x", "id": 7}), "items[1].id"),
        (json!({"type": "x", "text": "\u{0}"}), "items[1].text"),
    ] {
        let reply = app.admin().post(&path, json!({"items": [{"type": "x"}, item]})).await;
        reply.expect_refused(param, "invalid_value");
    }
    let bare = json!({"items": [{"type": "reasoning", "summary": []}]});
    app.admin().post(&path, bare).await.expect_refused("item", "invalid_item");
    for body in [json!({}), json!({"items": null}), json!({"items": {}})] {
        app.admin().post(&path, body).await.expect_refused("items", "invalid_value");
    }
    let reply = app.admin().with("content-type", "text/plain").post(&path, "x").await;
    reply.expect_problem(415, "unsupported_media_type");
    app.admin().send(Method::POST, &path, Body::empty()).await.expect_problem(400, "invalid_json");
    assert_eq!(app.admin().get(&path).await.expect(200)["data"], json!([]));
}

async fn a_text_that_is_too_large_is_a_413(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let of = |bytes: usize| json!({"items": [{"role": "user", "content": "x".repeat(bytes)}]});
    let shown = app.admin().post(&path, of(1 << 20)).await.expect(200);
    assert_eq!(text(&shown["data"][0]["content"][0]["text"]).len(), 1 << 20);
    let refused = app.admin().post(&path, of((1 << 20) + 1)).await.expect_problem(413, "content_too_large");
    assert_eq!(refused["error"]["param"], "items[0]");
}

async fn include_is_checked_in_every_spelling(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let item =
        text(&created(&app.admin(), &path, json!([{"type": "reasoning", "encrypted_content": "x"}])).await[0]["id"]);
    let (a, b) = ("reasoning.encrypted_content", "file_search_call.results");
    let queries = [
        format!("include={a}"),
        format!("include={a}&include={b}"),
        format!("include={a},{b}"),
        format!("include[]={a}&include[]={b}"),
        format!("include%5B%5D={a}"),
        format!("include[0]={a}&include[1]={b}"),
    ];
    for query in queries {
        for bad in [false, true] {
            let query = if bad { query.replace("reasoning", "seasoning") } else { query.clone() };
            let replies = [
                app.admin().get(&format!("{path}?{query}")).await,
                app.admin().get(&format!("{path}/{item}?{query}")).await,
                app.admin().post(&format!("{path}?{query}"), json!({"items": []})).await,
            ];
            for reply in replies {
                match bad {
                    true => reply.expect_refused("include", "invalid_value"),
                    false => assert_eq!(reply.status, 200, "{reply:?}"),
                }
            }
        }
    }
    assert_eq!(app.admin().get(&format!("{path}/{item}")).await.expect(200)["encrypted_content"], "x", "all is shown");
}

async fn delete_item_answers_with_the_conversation(app: TestApp) {
    let body = json!({"metadata": {"a": "b"}, "items": [{"type": "x", "id": "x1"}, {"role": "user", "content": "y"}]});
    let conversation = app.admin().post("/v1/conversations", body).await.expect(200);
    let path = format!("/v1/conversations/{}/items", text(&conversation["id"]));
    let list = app.admin().get(&path).await.expect(200);
    app.writer().delete(&format!("{path}/x1")).await.expect_problem(403, "insufficient_scope");
    for id in [text(&list["first_id"]), "x1".to_owned()] {
        let item = format!("{path}/{id}");
        assert_eq!(app.admin().delete(&item).await.expect(200), conversation);
        app.admin().delete(&item).await.expect_problem(404, "not_found");
        app.admin().get(&item).await.expect_problem(404, "not_found");
    }
    assert_eq!(app.admin().get(&path).await.expect(200)["data"], json!([]));
}

async fn an_item_that_is_there_already_is_not_stored_again(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let first = app.admin().post(&path, raw_body(&RAW_ITEMS)).await;
    let again = app.admin().post(&path, raw_body(&RAW_ITEMS)).await;
    assert_eq!((again.status, again.text()), (200, first.text()));
    let mixed = json!([{"type": "x", "id": "new"}, {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}]);
    created(&app.admin(), &path, mixed).await;
    assert_eq!(app.admin().get(&format!("{path}?limit=100")).await.expect(200)["data"].as_array().unwrap().len(), 15);
    let other = json!({"items": [{"type": "x"}, {"type": "compaction", "id": "cmp_1", "encrypted_content": "y"}]});
    let refused = app.admin().post(&path, other).await;
    refused.expect_refused("items", "item_already_in_conversation");
    assert!(refused.text().contains("Item already in conversation") && refused.text().contains("items[1]"));
}

async fn returned_items_may_be_fed_back(app: TestApp) {
    let path = new_path(&app.admin()).await;
    created(
        &app.admin(),
        &path,
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "id": "msg_b"}]),
    )
    .await;
    let conversation = path.split('/').nth(3).unwrap();
    let session_id = chatstore_core::ids::SessionId::parse_conversation_id(conversation).unwrap();
    let native = format!("/api/v1/sessions/{session_id}/messages");
    let call = json!({"content": "f", "kind": "function_call", "payload": {"type": "function_call", "name": "f", "id": "other"}});
    app.admin().post(&native, json!([{"content": "c", "metadata": {"x": 1}}, call])).await.expect(201);
    app.admin().post(&path, raw_body(&RAW_ITEMS)).await.expect(200);
    let all = app.admin().get(&format!("{path}?order=asc")).await.expect(200)["data"].clone();
    assert_eq!(all.as_array().unwrap().len(), 18);
    // To the same conversation: they are there.
    assert_eq!(json!(created(&app.admin(), &path, all.clone()).await), all);
    assert_eq!(app.admin().get(&format!("{path}?order=asc")).await.expect(200)["data"], all);
    // To another: they are stored under their ids.
    let other = new_path(&app.admin()).await;
    assert_eq!(json!(created(&app.admin(), &other, all.clone()).await), all);
    assert_eq!(app.admin().get(&format!("{other}?order=asc")).await.expect(200)["data"], all);
    for item in all.as_array().unwrap() {
        assert_eq!(&app.admin().get(&format!("{other}/{}", text(&item["id"]))).await.expect(200), item);
    }
}

async fn a_strict_server_takes_no_id_twice(app: TestApp) {
    let openai = OpenAiSettings { is_strict: true, ..OpenAiSettings::default() };
    let app = app.with_access(AccessSettings { openai, ..access() }).await;
    let path = new_path(&app.admin()).await;
    let body = json!({"items": [{"type": "x", "id": "a"}, {"role": "user", "content": "b"}]});
    let keyed = app.admin().with("idempotency-key", "once");
    let first = keyed.post(&path, &body).await;
    let again = keyed.post(&path, &body).await;
    assert_eq!((first.text(), again.header("idempotent-replayed")), (again.text(), Some("true")));
    for client in
        [app.admin(), app.admin().with("idempotency-key", "other"), app.admin().with("x-stainless-retry-count", "0")]
    {
        client.post(&path, &body).await.expect_refused("items", "item_already_in_conversation");
        let minted = json!({"items": [first.json()["data"][1]]});
        client.post(&path, minted).await.expect_refused("items", "item_already_in_conversation");
        let reference = json!({"items": [{"type": "item_reference", "id": "a"}]});
        client.post(&path, reference).await.expect_refused("items", "item_already_in_conversation");
    }
    assert_eq!(app.admin().get(&path).await.expect(200)["data"].as_array().unwrap().len(), 2);
}

async fn an_item_has_no_name_but_its_own(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let sent =
        json!([{"role": "user", "content": "a"}, {"type": "function_call"}, {"type": "function_call", "id": "mine"}]);
    let shown = created(&app.admin(), &path, sent).await;
    let digits = |item: &Value| text(&item["id"]).split('_').next_back().unwrap().to_owned();
    let (said, call) = (digits(&shown[0]), digits(&shown[1]));
    for (name, item) in [(format!("msg_{said}"), 0), (format!("fc_{call}"), 1), (format!("msg_{call}"), 1)] {
        assert_eq!(app.admin().get(&format!("{path}/{name}")).await.expect(200), shown[item], "{name}");
        app.admin().get(&format!("{path}?after={name}")).await.expect(200);
    }
    for name in [format!("rs_{said}"), format!("zz_zz_{said}"), format!("rs_{call}"), "fc_mine".to_owned()] {
        app.admin().get(&format!("{path}/{name}")).await.expect_problem(404, "not_found");
        app.admin().delete(&format!("{path}/{name}")).await.expect_problem(404, "not_found");
        app.admin().get(&format!("{path}?after={name}")).await.expect_refused("after", "invalid_value");
    }
    // It is free for another item.
    let other = json!([{"type": "reasoning", "id": format!("rs_{said}"), "summary": []}]);
    assert_eq!(created(&app.admin(), &path, other.clone()).await, *other.as_array().unwrap());
    assert_eq!(app.admin().get(&path).await.expect(200)["data"].as_array().unwrap().len(), 4);
}

async fn a_retry_of_an_sdk_is_the_same_request(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let tried = |times: &'static str| app.admin().with("x-stainless-retry-count", times);
    let body = json!({"items": [{"role": "user", "content": "a"}, {"type": "x"}]});
    let first = tried("0").post(&path, &body).await;
    let second = tried("0").post(&path, &body).await;
    assert_ne!(first.text(), second.text(), "both are meant");
    // Only the newest is still waited for, in each try of it; then the one before it.
    for (try_of, answer) in [("1", &second), ("2", &second), ("1", &first), ("2", &first)] {
        let retried = tried(try_of).post(&path, &body).await;
        assert_eq!((retried.status, retried.text()), (200, answer.text()));
        assert_eq!(retried.header("idempotent-replayed"), Some("true"));
    }
    assert_eq!(app.admin().get(&path).await.expect(200)["data"].as_array().unwrap().len(), 4);
}

async fn items_have_a_kind_a_text_and_a_payload_as_messages(app: TestApp) {
    let conversation = conversation(&app.admin()).await;
    let session_id = chatstore_core::ids::SessionId::parse_conversation_id(&conversation).unwrap();
    let path = format!("/v1/conversations/{conversation}/items");
    let items = [
        (
            r#"{"role":"user","content":[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]}"#,
            "message",
            "user",
            "a\nb",
        ),
        (
            r#"{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"why"}]}"#,
            "reasoning",
            "assistant",
            "why",
        ),
        (
            r#"{"type":"function_call","name":"f","arguments":"{\"x\": 1}"}"#,
            "function_call",
            "assistant",
            "f\n{\"x\": 1}",
        ),
        (r#"{"type":"function_call_output","output":"42"}"#, "function_call_output", "tool", "42"),
        (r#"{"type":"of_tomorrow","n":1.0}"#, "of_tomorrow", "assistant", ""),
    ];
    let raw: Vec<&str> = items.iter().map(|(raw, ..)| *raw).collect();
    app.admin().post(&path, raw_body(&raw)).await.expect(200);
    let native = app.admin().get(&format!("/api/v1/sessions/{session_id}/messages?order=asc")).await;
    for (message, (raw, kind, role, content)) in native.items().iter().zip(items) {
        assert_eq!(
            (&message["kind"], &message["role"], &message["content"]),
            (&json!(kind), &json!(role), &json!(content))
        );
        assert!(native.text().contains(&format!("\"payload\":{raw},")), "{}", native.text());
    }
    assert_eq!(native.items()[1]["external_id"], "rs_1");
    assert!(native.items().iter().all(|message| message["status"] == "completed"));
    let session = app.admin().get(&format!("/api/v1/sessions/{session_id}")).await.expect(200);
    assert_eq!((&session["message_count"], &session["last_seq"]), (&json!(5), &json!(5)));
    let found = app.admin().get("/api/v1/search?q=why&mode=text").await.expect(200).to_string();
    assert!(found.contains("why"), "{found}");
}

async fn a_number_out_of_range_takes_no_text_away(app: TestApp) {
    let conversation = conversation(&app.admin()).await;
    let path = format!("/v1/conversations/{conversation}/items");
    let raw = r#"{"id":"a1","type":"x","content":[{"text":"needle in hay","n":-1e400}],"x":1e400}"#;
    let shown = app.admin().post(&path, raw_body(&[raw])).await;
    assert!(shown.status == 200 && shown.text().contains(raw), "{}", shown.text());
    let session_id = chatstore_core::ids::SessionId::parse_conversation_id(&conversation).unwrap();
    // As text, for serde_json does not read such a number.
    for path in ["/api/v1/search?q=needle&mode=text", &format!("/api/v1/sessions/{session_id}/messages")] {
        let found = app.admin().get(path).await;
        assert!(found.text().contains(r#""content":"needle in hay","#), "{}", found.text());
    }
    let large = |bytes: usize| format!(r#"{{"role":"user","content":"{}","x":1e400}}"#, "x".repeat(bytes));
    assert_eq!(app.admin().post(&path, raw_body(&[&large(1 << 20)])).await.status, 200);
    let refused = app.admin().post(&path, raw_body(&[&large((1 << 20) + 1)])).await;
    assert_eq!(refused.expect_problem(413, "content_too_large")["error"]["param"], "items[0]");
}

async fn what_tools_put_out_is_found(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let items = json!([
        {"type": "program_output", "call_id": "c", "result": "quokka", "status": "completed"},
        {"type": "apply_patch_call", "call_id": "c", "operation": {"type": "create_file", "path": "p", "diff": "+wombat"}},
        {"type": "mcp_approval_response", "approval_request_id": "r", "approve": false, "reason": "numbat"},
        {"type": "file_search_call", "queries": ["q"], "results": [{"file_id": "f", "text": "bilby"}]},
        {"type": "image_generation_call", "result": "dingo"},
    ]);
    created(&app.admin(), &path, items).await;
    for (word, hits) in [("quokka", 1), ("wombat", 1), ("numbat", 1), ("bilby", 1), ("dingo", 0)] {
        let found = app.admin().get(&format!("/api/v1/search?q={word}&mode=text")).await.expect(200);
        assert_eq!(found["hits"].as_array().unwrap().len(), hits, "{word} {found}");
    }
}

async fn a_copy_has_the_id_that_its_original_shows(app: TestApp) {
    let (path, other) = (new_path(&app.admin()).await, new_path(&app.admin()).await);
    let call = created(&app.admin(), &path, json!([{"type": "function_call", "name": "f"}])).await.remove(0);
    let id = text(&call["id"]);
    let named = id.replace("fc_", "msg_");
    let body = json!({"items": [{"type": "item_reference", "id": named}]});
    let keyed = app.admin().with("idempotency-key", "once");
    let tried = |times: &'static str| app.admin().with("x-stainless-retry-count", times);
    assert_eq!(json!(created(&app.admin(), &path, body["items"].clone()).await), json!([call]), "it is there");
    let (first, made) = (keyed.post(&other, &body).await, keyed.post("/v1/conversations", &body).await);
    assert_eq!(first.json()["data"], json!([call]));
    let made_in = format!("/v1/conversations/{}/items", text(&made.expect(200)["id"]));
    let by_sdk = tried("0").post(&other, &body).await;
    for path in [&path, &other, &made_in] {
        assert_eq!(app.admin().get(path).await.expect(200)["data"], json!([call]), "once, and under its id");
        assert_eq!(json!(created(&app.admin(), path, body["items"].clone()).await), json!([call]));
        let twice = json!({"items": [{"id": named}, {"id": id}]});
        app.admin().post(path, twice).await.expect_refused("items", "item_already_in_conversation");
    }
    let replays = async || {
        for (again, first) in
            [(keyed.post(&other, &body).await, &first), (keyed.post("/v1/conversations", &body).await, &made)]
        {
            assert_eq!((again.status, again.text()), (200, first.text()));
            assert_eq!(again.header("idempotent-replayed"), Some("true"));
        }
    };
    replays().await;
    assert_eq!(tried("1").post(&other, &body).await.text(), by_sdk.text());
    app.admin().get(&format!("{other}/{named}")).await.expect_problem(404, "not_found");
    // The copies stand without it.
    app.admin().delete(&format!("{path}/{id}")).await.expect(200);
    replays().await;
    app.admin().delete(&format!("{other}/{id}")).await.expect(200);
    keyed.post(&other, &body).await.expect_problem(410, "gone");
    // What is shown as a message is copied as one, and what has a name of its own keeps it.
    let session_id = app.admin().new_session("n").await;
    let native = format!("/api/v1/sessions/{session_id}/messages");
    let payload = json!({"type": "function_call", "name": "f"});
    for (message, prefix, shown) in [
        (json!({"content": "a", "kind": "function_call", "payload": {"any": 1}}), "fc_", None),
        (json!({"content": "b", "kind": "other", "payload": payload}), "item_", None),
        (json!({"content": "c", "external_id": "own"}), "msg_", Some("own")),
    ] {
        let digits = text(&app.admin().post(&native, &message).await.expect(201)["message_id"]).replace('-', "");
        let body = json!({"items": [{"id": format!("{prefix}{digits}")}]});
        let item = app.admin().post(&other, &body).await.expect(200)["data"][0].clone();
        let expected = shown.map_or_else(|| format!("msg_{digits}"), ToOwned::to_owned);
        assert_eq!((&item["id"], &item["type"]), (&json!(expected), &json!("message")), "{message}");
        assert_eq!(app.admin().get(&format!("{other}/{expected}")).await.expect(200), item);
    }
}

async fn messages_are_items(app: TestApp) {
    let session_id = app.admin().new_session("n").await;
    let path = format!("/v1/conversations/conv_{}/items", session_id.replace('-', ""));
    let input = |text: &str| json!([{"type": "input_text", "text": text}]);
    let output = |text: &str| json!([{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]);
    let message = |role: &str, content: Value| json!({"type": "message", "status": "completed", "role": role, "content": content});
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
    let cases = [
        (json!({"content": "a"}), message("user", input("a")), "msg_"),
        (json!({"content": "b", "role": "assistant"}), message("assistant", output("b")), "msg_"),
        (json!({"content": "c", "role": "narrator"}), message("unknown", input("c")), "msg_"),
        (json!({"content": "d", "role": "system", "external_id": "msg_own"}), message("system", input("d")), "msg_own"),
        (json!({"content": "e", "external_id": "own"}), message("user", input("e")), "own"),
        (json!({"content": "f", "external_id": "msg_a/b"}), message("user", input("f")), "msg_0"),
        (json!({"content": "g", "payload": {"any": 1}}), message("user", input("g")), "msg_"),
        (json!({"content": "h", "kind": "note", "payload": ["x"]}), message("user", input("h")), "msg_"),
        (json!({"content": "f\n{}", "kind": "function_call", "payload": call}), call.clone(), "fc_"),
        (json!({"content": "i", "kind": "other", "payload": call}), message("user", input("i")), "msg_"),
        (
            json!({"content": "j", "role": "assistant", "payload": {"role": "user", "content": "j"}}),
            message("assistant", output("j")),
            "msg_",
        ),
        (
            json!({"content": "k", "status": "in_progress"}),
            json!({"type": "message", "status": "in_progress", "role": "user", "content": input("k")}),
            "msg_",
        ),
    ];
    for (native, item, prefix) in cases {
        let stored = app.admin().post(&format!("/api/v1/sessions/{session_id}/messages"), &native).await.expect(201);
        let mut shown = app.admin().get(&format!("{path}?limit=1")).await.expect(200)["data"][0].clone();
        let id = text(&shown["id"]);
        assert!(id.starts_with(prefix), "{id} {native}");
        assert_eq!(app.admin().get(&format!("{path}/{id}")).await.expect(200), shown);
        shown.as_object_mut().unwrap().remove("id");
        assert_eq!(shown, item, "{native}");
        let minted =
            format!("{}{}", if prefix == "fc_" { "fc_" } else { "msg_" }, text(&stored["message_id"]).replace('-', ""));
        app.admin().get(&format!("{path}/{minted}")).await.expect(200);
    }
    // An item that was in progress ends when its message does.
    let sent = json!([{"type": "function_call", "id": "fc_x", "status": "in_progress"}]);
    created(&app.admin(), &path, sent).await;
    let last = app.admin().get(&format!("/api/v1/sessions/{session_id}/messages?limit=1")).await.items()[0].clone();
    assert_eq!((&last["status"], &last["external_id"]), (&json!("in_progress"), &json!("fc_x")));
    let message = format!("/api/v1/messages/{}", text(&last["message_id"]));
    app.admin().patch(&message, json!({"status": "incomplete"})).await.expect(200);
    assert_eq!(app.admin().get(&format!("{path}/fc_x")).await.expect(200)["status"], "incomplete");
}

async fn what_is_changed_natively_shows_so(app: TestApp) {
    let conversation = conversation(&app.admin()).await;
    let session_id = chatstore_core::ids::SessionId::parse_conversation_id(&conversation).unwrap();
    let path = format!("/v1/conversations/{conversation}/items");
    let part = |kind: &str, text: &str| json!([{"type": kind, "text": text}]);
    let spoken = json!([{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]);
    let call = json!({"type": "function_call", "id": "fc_1", "name": "f"});
    let tools = json!({"type": "additional_tools", "id": "at_1", "role": "developer"});
    let own = |more: Value| {
        let mut item = json!({"id": "item-1", "type": "message", "status": "completed"});
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        item
    };
    let user = json!({"id": "item-1", "role": "user", "content": "a"});
    for (item, patch, expected) in [
        (user.clone(), json!({"content": "b"}), own(json!({"role": "user", "content": part("input_text", "b")}))),
        (user.clone(), json!({"role": "assistant"}), own(json!({"role": "assistant", "content": spoken}))),
        (user, json!({"role": "narrator"}), own(json!({"role": "user", "content": part("input_text", "a")}))),
        (call.clone(), json!({"role": "user"}), call.clone()),
        (
            call,
            json!({"payload": {"arguments": "b"}}),
            json!({"id": "fc_1", "type": "message", "status": "completed", "role": "assistant", "content": spoken}),
        ),
        (tools, json!({"role": "user"}), json!({"type": "additional_tools", "id": "at_1", "role": "user"})),
    ] {
        let id = text(&item["id"]);
        created(&app.admin(), &path, json!([item])).await;
        let newest = format!("/api/v1/sessions/{session_id}/messages?limit=1");
        let message = format!("/api/v1/messages/{}", text(&app.admin().get(&newest).await.items()[0]["message_id"]));
        app.admin().patch(&message, &patch).await.expect(200);
        let shown = app.admin().get(&format!("{path}/{id}")).await.expect(200);
        let mut expected = expected;
        if patch["payload"].is_object() {
            expected["content"][0]["text"] = json!("b");
        }
        assert_eq!(shown, expected, "{patch}");
        assert_eq!(app.admin().get(&path).await.expect(200)["data"], json!([shown]));
        assert_eq!(created(&app.admin(), &path, json!([shown])).await, [shown], "it may be fed back");
        app.admin().delete(&format!("{path}/{id}")).await.expect(200);
    }
    let odd = r#"{"type":"x","id":"x1","role":""}"#;
    app.admin().post(&path, raw_body(&[odd])).await.expect(200);
    assert_eq!(app.admin().get(&format!("{path}/x1")).await.text(), odd);
}

async fn concurrent_appends_lose_nothing(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let writers = (0..8).map(|writer| {
        let (client, path) = (app.admin(), path.clone());
        tokio::spawn(async move {
            for n in 0..5 {
                let pair = json!([{"role": "user", "content": format!("{writer} {n}")}, {"role": "assistant", "content": format!("{writer} {n}")}]);
                client.post(&path, json!({"items": pair})).await.expect(200);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let list = app.admin().get(&format!("{path}?order=asc&limit=100")).await.expect(200);
    let said: Vec<String> =
        list["data"].as_array().unwrap().iter().map(|item| text(&item["content"][0]["text"])).collect();
    assert_eq!(said.len(), 80);
    assert!(said.chunks(2).all(|pair| pair[0] == pair[1]), "a request's items stand together");
    for writer in 0..8 {
        let own = said.iter().step_by(2).filter(|text| text.starts_with(&format!("{writer} ")));
        assert_eq!(
            own.collect::<Vec<_>>(),
            (0..5).map(|n| format!("{writer} {n}")).collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
    }
}
