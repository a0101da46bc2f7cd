//! Metadata, context and payload come back byte for byte; text comes back character for character.

use serde_json::json;

use crate::app::{TestApp, api_tests};
use crate::client::text;

api_tests! {
    json_comes_back_byte_for_byte
    json_of_every_kind_may_be_context_and_payload
    text_comes_back_character_for_character
    nesting_may_be_64_deep
    a_large_payload_comes_back_whole
}

/// JSON that no parser would write again.
const ODD_OBJECT: &str = "{ \"b\" :1.50 ,\n\t\"a\":1e400,\"a\" : [ ] ,\"big\":1000000000000000000000000000000,\"n\":-0,\
    \"z\":0.10,\"e\":1E+2,\"long\":123456789012345678901234567890.123456789,\"esc\":\"\\u00e9\\ud83d\\ude00 \\/ é😀\",\
    \"\\u0061\":null , \"deep\":{\"y\" : {  } , \"x\":[1 ,2, 3]}\r\n}";

async fn json_comes_back_byte_for_byte(app: TestApp) {
    let body = format!("{{\"session_name\":\"n\" , \"metadata\" :  {ODD_OBJECT}  }}");
    let reply = app.admin().post("/api/v1/sessions", body).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let kept = format!("\"metadata\":{ODD_OBJECT}");
    assert!(reply.text().contains(&kept), "{}", reply.text());
    let id = reply.header("location").unwrap().to_owned();
    assert!(app.admin().get(&id).await.text().contains(&kept));
    assert!(app.admin().get("/api/v1/sessions").await.text().contains(&kept));
    assert!(app.admin().patch(&id, "{\"is_favorite\":true}").await.text().contains(&kept));
    let other = ODD_OBJECT.replace("1.50", "1.500");
    let patched = app.admin().patch(&id, format!("{{\"metadata\":{other}}}")).await;
    assert!(patched.text().contains(&format!("\"metadata\":{other}")), "a change of spelling is a change");

    let messages = format!("{id}/messages");
    let fields = format!("\"metadata\":{ODD_OBJECT},\"context\":{ODD_OBJECT},\"payload\":[{ODD_OBJECT} ]");
    let reply = app.admin().post(&messages, format!("{{\"content\":\"x\",{fields}}}")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let message = reply.header("location").unwrap().to_owned();
    let patch = app.admin().patch(&message, "{\"role\":\"tool\"}").await;
    let listed = app.admin().get(&messages).await;
    let deleted = app.admin().delete(&message).await;
    for reply in [&reply, &patch, &listed, &deleted] {
        for field in fields.split(",\"context\"").take(1).chain(["\"context\":", "\"payload\":["]) {
            assert!(reply.text().contains(field));
        }
        assert_eq!(reply.text().matches(ODD_OBJECT).count(), 3, "{}", reply.text());
    }
}

async fn json_of_every_kind_may_be_context_and_payload(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = format!("/api/v1/sessions/{id}/messages");
    for value in ["1e400", "\"a\\u002fb\"", "true", "[ ]", "{ }", "-0.0", "[1,[2,[3 ]]]", "\"\"", "false", "0"] {
        let reply =
            app.admin().post(&messages, format!("{{\"content\":\"\",\"context\":{value},\"payload\":{value}}}")).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        for field in ["context", "payload"] {
            assert!(reply.text().contains(&format!("\"{field}\":{value},")), "{value}: {}", reply.text());
        }
        let read = app.admin().get(reply.header("location").unwrap()).await;
        assert_eq!(read.text(), reply.text());
    }
}

async fn text_comes_back_character_for_character(app: TestApp) {
    let texts = [
        "  Grüße \u{1F600}\u{200D} \u{FEFF}e\u{301}\r\n\t",
        "'; drop table messages; -- % _ \\ \" ` $1 :a @b ?",
        "\u{1}\u{8}\u{b}\u{1f}\u{7f}\u{85}\u{2028}\u{2029}\u{202e}\u{fffe}\u{ffff}\u{10ffff}\u{fffd}",
        "é\u{65}\u{301}ﬁ \u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467}",
        "\u{feff}BOM",
        "null",
        " ",
    ];
    let id = app.admin().new_session("n").await;
    for text_sent in texts {
        let session = json!({"session_name": text_sent, "user_id": text_sent, "metadata": {text_sent: text_sent}, "external_id": text_sent});
        let session = app.admin().post("/api/v1/sessions", session).await.expect(201);
        for field in ["session_name", "user_id", "external_id"] {
            assert_eq!(session[field], text_sent, "{field}");
        }
        assert_eq!(session["metadata"], json!({text_sent: text_sent}));
        let read = app.admin().get(&format!("/api/v1/sessions/{}", text(&session["session_id"]))).await.expect(200);
        assert_eq!(read, session);
        let message = json!({"content": text_sent, "role": text_sent, "kind": text_sent, "external_id": text_sent});
        let message = app.admin().post(&format!("/api/v1/sessions/{id}/messages"), message).await.expect(201);
        for field in ["content", "role", "kind", "external_id"] {
            assert_eq!(message[field], text_sent, "{field}");
        }
        let read = app.admin().get(&format!("/api/v1/messages/{}", text(&message["message_id"]))).await.expect(200);
        assert_eq!(read, message);
    }
}

async fn nesting_may_be_64_deep(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = format!("/api/v1/sessions/{id}/messages");
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    // The body itself is the first level.
    let reply = app.admin().post(&messages, format!("{{\"content\":\"\",\"context\":{}}}", nested(63))).await;
    assert_eq!(reply.status, 201);
    assert!(app.admin().get(&messages).await.text().contains(&nested(63)));
    let pointer = format!("/context{}", "/0".repeat(63));
    let reply = app.admin().post(&messages, format!("{{\"content\":\"\",\"context\":{}}}", nested(64))).await;
    assert_eq!(reply.status, 422, "{}", reply.text());
    let found = text(&reply.json()["errors"][0]["pointer"]);
    assert!(pointer.starts_with(&found) && found.starts_with("/context/0"), "{found}");
}

async fn a_large_payload_comes_back_whole(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = format!("/api/v1/sessions/{id}/messages");
    let payload = format!("[{}]", vec!["\"0123456789abcdef\""; 1 << 18].join(" , "));
    let reply = app.admin().post(&messages, format!("{{\"content\":\"\",\"payload\":{payload}}}")).await;
    assert_eq!(reply.status, 201);
    let read = app.admin().get(reply.header("location").unwrap()).await;
    assert!(read.text().contains(&payload));
}
