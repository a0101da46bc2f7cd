//! What a client can do wrong, and what it is told.

use axum::body::Body;
use axum::http::Method;
use serde_json::json;

use crate::app::{TestApp, api_tests};
use crate::client::{Client, Reply, text};

const SESSIONS: &str = "/api/v1/sessions";

api_tests! {
    malformed_json_is_a_400_with_its_place
    an_empty_body_is_a_400
    text_that_is_not_utf_8_is_a_400
    a_content_type_that_is_not_json_is_a_415
    what_no_engine_can_hold_is_a_422_that_points_at_it
    what_no_engine_can_hold_in_a_query_is_a_422
    values_of_the_wrong_form_in_an_import_are_pointed_at
    an_array_is_no_object
    a_body_past_16_mebibytes_is_a_413
    a_body_of_too_many_pieces_is_a_413_before_it_is_read
    an_answer_lists_faults_up_to_a_bound
    a_text_that_an_error_repeats_is_cut
    what_a_payload_says_is_content_too
    a_problem_repeats_nothing_that_could_be_a_secret
}

/// The routes that take a body, with things that exist.
async fn bodies(app: &TestApp) -> Vec<(Method, String)> {
    let id = app.admin().new_session("n").await;
    let message = text(&app.admin().new_message(&id, "x").await["message_id"]);
    vec![
        (Method::POST, SESSIONS.to_owned()),
        (Method::PATCH, format!("{SESSIONS}/{id}")),
        (Method::POST, format!("{SESSIONS}/{id}/messages")),
        (Method::PATCH, format!("/api/v1/messages/{message}")),
        (Method::POST, "/api/v1/admin/import".to_owned()),
    ]
}

async fn send(client: &Client, (method, path): &(Method, String), body: impl Into<Body>) -> Reply {
    client.with("content-type", "application/json").send(method.clone(), path, body.into()).await
}

async fn malformed_json_is_a_400_with_its_place(app: TestApp) {
    for route in bodies(&app).await {
        for (body, place) in [
            ("{", "line 1, column 1"),
            ("{\"content\":\n  tru}", "line 2, column 6"),
            ("{\"content\": 'x'}", "line 1, column 13"),
            ("{\"content\": \"x\",}", "line 1, column 17"),
            ("{\"content\": \"x\"} {}", "line 1, column 18"),
            ("{\"content\": \"a\nb\"}", "line 1, column 14"),
            ("\u{FEFF}{}", "line 1, column 1"),
            ("{\"content\": NaN}", "line 1, column 13"),
            ("{\"content\": 01}", "line 1, column 14"),
            ("content=x", "line 1, column 1"),
            ("{\"content\": \"\\x\"}", "line 1, column 15"),
            ("[{\"content\": \"x\"}", "line 1, column 17"),
        ] {
            let problem = send(&app.admin(), &route, body).await.expect_problem(400, "invalid_json");
            assert!(text(&problem["detail"]).contains(place), "{body}: {}", problem["detail"]);
        }
        for depth in [200, 200_000] {
            let status = send(&app.admin(), &route, "[".repeat(depth)).await.status;
            assert!(matches!(status, 400 | 422), "{status}");
        }
    }
}

async fn an_empty_body_is_a_400(app: TestApp) {
    for route in bodies(&app).await {
        for body in ["", " ", "\r\n"] {
            let problem = send(&app.admin(), &route, body).await.expect_problem(400, "invalid_json");
            assert!(text(&problem["detail"]).contains("empty"));
        }
    }
}

async fn text_that_is_not_utf_8_is_a_400(app: TestApp) {
    for route in bodies(&app).await {
        for bytes in [&b"\xFF"[..], b"\xC0\xAF", b"\xED\xA0\x80", b"\xF5\x80\x80\x80", b"\xE2\x82"] {
            for field in ["content", "metadata", "unknown"] {
                let body = [b"{\"", field.as_bytes(), b"\":\"", bytes, b"\"}"].concat();
                send(&app.admin(), &route, body).await.expect_problem(400, "invalid_json");
            }
        }
    }
    let id = app.admin().new_session("n").await;
    let raw = [b"{\"content\":\"x\",\"context\":{\"a\":\"", &b"\xFF"[..], b"\"}}"].concat();
    app.admin().post(&format!("{SESSIONS}/{id}/messages"), raw).await.expect_problem(400, "invalid_json");
    assert_eq!(app.admin().get(&format!("{SESSIONS}/{id}/messages")).await.text(), "[]");
}

async fn a_content_type_that_is_not_json_is_a_415(app: TestApp) {
    for (method, path) in bodies(&app).await {
        for content_type in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/xml",
            "json",
            "",
            "\u{E9}",
        ] {
            let client = app.admin().with("content-type", content_type);
            let reply = client.send(method.clone(), &path, Body::from("{}")).await;
            reply.expect_problem(415, "unsupported_media_type");
        }
    }
    for content_type in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"] {
        let client = app.admin().with("content-type", content_type);
        client.post(SESSIONS, json!({"session_name": "n"})).await.expect(201);
    }
    app.admin().send(Method::POST, SESSIONS, Body::from("{\"session_name\":\"n\"}")).await.expect(201);
}

async fn what_no_engine_can_hold_is_a_422_that_points_at_it(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = format!("{SESSIONS}/{id}/messages");
    let message = format!("/api/v1/messages/{}", text(&app.admin().new_message(&id, "x").await["message_id"]));
    let deep = format!("{}1{}", "[".repeat(64), "]".repeat(64));
    for bad in [
        "\"a\\u0000b\"",
        "\"\\ud800\"",
        "\"\\udc00x\"",
        "\"\\ud800\\ud800\"",
        "\"x\\ud83d\"",
        "\"\\udbffx\"",
        deep.as_str(),
    ] {
        let nested = if bad == deep { "/0".repeat(63) } else { String::new() };
        let post = async |path: &str, body: String, pointer: &str| {
            let pointer = format!("{pointer}{nested}");
            let reply = app.admin().post(path, body).await;
            assert_eq!(reply.status, 422, "{bad}: {}", reply.text());
            let found = text(&reply.json()["errors"][0]["pointer"]);
            assert!(pointer.starts_with(&found) && found.len() + 4 >= pointer.len(), "{found} for {pointer}");
        };
        for field in ["session_name", "user_id", "external_id", "unknown"] {
            post(SESSIONS, format!("{{\"session_name\":\"n\",\"{field}\":{bad}}}"), &format!("/{field}")).await;
        }
        post(
            SESSIONS,
            format!("{{\"session_name\":\"n\",\"metadata\":{{\"a\":{{\"b/c\":{bad}}}}}}}"),
            "/metadata/a/b~1c",
        )
        .await;
        for field in ["content", "role", "kind", "status", "parent_id", "external_id", "payload", "context"] {
            post(&messages, format!("{{\"content\":\"x\",\"{field}\":{bad}}}"), &format!("/{field}")).await;
            post(
                &messages,
                format!("[{{\"content\":\"x\"}},{{\"content\":\"x\",\"{field}\":{bad}}}]"),
                &format!("/1/{field}"),
            )
            .await;
        }
        post(&messages, format!("{{\"content\":\"x\",\"context\":[1,{{\"a\":{bad}}}]}}"), "/context/1/a").await;
        let patched = app.admin().patch(&message, format!("{{\"content\":{bad}}}")).await;
        assert_eq!(patched.status, 422, "{}", patched.text());
        let patched = app.admin().patch(&format!("{SESSIONS}/{id}"), format!("{{\"session_name\":{bad}}}")).await;
        assert_eq!(patched.status, 422, "{}", patched.text());
        if bad != deep {
            post(&messages, format!("{{\"content\":\"x\",\"metadata\":{{{bad}:1}}}}"), "/metadata").await;
            post(
                "/api/v1/admin/import",
                format!("[{{\"id\":\"c\",\"messages\":[{{\"content\":{bad}}}]}}]"),
                "/0/messages/0/content",
            )
            .await;
        }
    }
    assert_eq!(app.admin().get(&messages).await.column("content"), ["x"]);
    assert_eq!(app.admin().get(SESSIONS).await.items().len(), 1);
}

async fn what_no_engine_can_hold_in_a_query_is_a_422(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = format!("{SESSIONS}/{id}/messages");
    for bad in ["%00", "a%00b", "%FF", "%C0%AF", "%ED%A0%80"] {
        app.admin().get(&format!("{SESSIONS}?user_id={bad}")).await.expect_invalid(&["?user_id"]);
        app.admin().get(&format!("{SESSIONS}?metadata[a]={bad}")).await.expect_invalid(&["?metadata[a]"]);
        app.admin().get(&format!("{SESSIONS}?metadata[{bad}]=a")).await.expect_problem(422, "validation_failed");
        app.admin().get(&format!("{messages}?role={bad}")).await.expect_invalid(&["?role"]);
        app.admin().get(&format!("{SESSIONS}/{bad}")).await.expect_problem(404, "not_found");
    }
    for odd in ["%", "%2", "%zz", "&&=&=", "a=b=c", "?", "metadata[]=", "metadata[a]]=x", "=", "+"] {
        app.admin().get(&format!("{SESSIONS}?{odd}")).await.expect(200);
    }
    // A filter that is not understood must not show everything.
    for unclear in ["metadata[", "metadata=x", "metadata[a=x"] {
        app.admin().get(&format!("{SESSIONS}?{unclear}")).await.expect_invalid(&["?metadata"]);
    }
}

async fn values_of_the_wrong_form_in_an_import_are_pointed_at(app: TestApp) {
    let import = async |body: serde_json::Value| app.admin().post("/api/v1/admin/import", body).await;
    import(json!({})).await.expect_invalid(&[""]);
    import(json!("x")).await.expect_invalid(&[""]);
    import(json!([1])).await.expect_invalid(&["/0"]);
    import(json!([{"id": 5}])).await.expect_invalid(&["/0/id"]);
    import(json!([{"id": "a", "messages": [{"content": 5}]}])).await.expect_invalid(&["/0/messages/0/content"]);
    import(json!([{"id": "a", "created_at": "soon"}])).await.expect_invalid(&["/0/created_at"]);
    import(json!(vec![json!({"id": "a"}); 1_001])).await.expect_invalid(&[""]);
    let mixed = json!([
        {"id": "a", "messages": [{"content": "x"}]}, {"messages": []}, {"id": "b", "messages": [{"role": "user"}]},
        {"id": "c", "messages": [{"content": "x", "seq": 5}]}, {"id": "d", "messages": []},
    ]);
    let outcome = import(mixed.clone()).await.expect(200);
    assert_eq!((&outcome["sessions"], &outcome["messages"]), (&json!(2), &json!(1)));
    let refused: Vec<_> =
        outcome["refused"].as_array().unwrap().iter().map(|refused| refused["index"].clone()).collect();
    assert_eq!(refused, [1, 2, 3]);
    let again = import(mixed).await.expect(200);
    assert_eq!((&again["sessions"], &again["messages"]), (&json!(0), &json!(0)), "a second import adds nothing");
    assert_eq!(app.admin().get(SESSIONS).await.column("external_id"), ["a", "d"]);
}

async fn an_array_is_no_object(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = text(&app.admin().new_message(&id, "x").await["message_id"]);
    for body in [json!([]), json!(["n"]), json!(["n", "alice", true])] {
        app.admin().post(SESSIONS, &body).await.expect_invalid(&[""]);
        app.admin().patch(&format!("{SESSIONS}/{id}"), &body).await.expect_invalid(&[""]);
        app.admin().patch(&format!("/api/v1/messages/{message}"), &body).await.expect_invalid(&[""]);
        app.admin().post(&format!("{SESSIONS}/{id}/messages"), json!([body])).await.expect_invalid(&["/0"]);
        app.admin().post("/api/v1/admin/import", json!([body])).await.expect_invalid(&["/0"]);
        let nested = json!([{"id": "a", "messages": [body]}]);
        app.admin().post("/api/v1/admin/import", nested).await.expect_invalid(&["/0/messages/0"]);
    }
    assert_eq!(app.admin().get(SESSIONS).await.items().len(), 1);
}

async fn a_body_past_16_mebibytes_is_a_413(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = format!("{SESSIONS}/{id}/messages");
    let body = |bytes: usize| {
        let frame = "{\"content\":\"x\",\"payload\":\"\"}";
        format!("{{\"content\":\"x\",\"payload\":\"{}\"}}", "a".repeat(bytes - frame.len()))
    };
    assert_eq!(app.admin().post(&messages, body(16 << 20)).await.status, 201);
    app.admin().post(&messages, body((16 << 20) + 1)).await.expect_problem(413, "body_too_large");
    let chunks = body((16 << 20) + 1).into_bytes();
    let chunks: Vec<_> = chunks.chunks(64 << 10).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
    let chunked = Body::from_stream(futures_util::stream::iter(chunks));
    send(&app.admin(), &(Method::POST, messages.clone()), chunked).await.expect_problem(413, "body_too_large");
    let declared = app.admin().with("content-length", "99999999999").with("content-type", "application/json");
    declared.send(Method::POST, &messages, Body::from("{}")).await.expect_problem(413, "body_too_large");
    assert_eq!(app.admin().get(&messages).await.items().len(), 1);
}

async fn a_problem_repeats_nothing_that_could_be_a_secret(app: TestApp) {
    let secret = "cs_secret-canary";
    let client =
        app.anon().with("x-api-key", secret).with("cookie", secret).with("authorization", format!("Bearer {secret}"));
    for reply in [
        client.get("/api/v1/sessions").await,
        client.get(&format!("/{secret}")).await,
        app.admin().post(SESSIONS, format!("{{\"session_name\": \"{secret}\", }}")).await,
        app.admin().post(SESSIONS, json!({"session_name": [secret]})).await,
        app.admin().get(&format!("{SESSIONS}?cursor={secret}")).await,
        app.admin().get(&format!("{SESSIONS}/{secret}")).await,
    ] {
        assert!(reply.status >= 400 && !reply.anonymous().contains(secret), "{reply:?}");
    }
}

async fn a_body_of_too_many_pieces_is_a_413_before_it_is_read(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = (Method::POST, format!("{SESSIONS}/{id}/messages"));
    let import = (Method::POST, "/api/v1/admin/import".to_owned());
    let many = |n: usize, piece: &str| format!("[{}]", vec![piece; n].join(","));
    let refused = send(&app.admin(), &messages, many(60_000, "{}")).await;
    refused.expect_problem(413, "body_too_large");
    let conversation = format!(r#"[{{"id":"c","messages":{}}}]"#, many(60_000, "{}"));
    send(&app.admin(), &import, conversation).await.expect_problem(413, "body_too_large");
    let conversation = format!(r#"[{{"id":"c","messages":{}}}]"#, many(10_001, r#"{"content":"x"}"#));
    send(&app.admin(), &import, conversation).await.expect_problem(413, "body_too_large");
    assert_eq!(app.admin().get(&format!("{SESSIONS}/{id}/messages")).await.text(), "[]");
    // Pieces that are kept as text are not counted, however many.
    let context = format!(r#"{{"content":"x","context":{{"a":{{"b":{{"c":{}}}}}}}}}"#, many(60_000, "{}"));
    send(&app.admin(), &messages, context).await.expect(201);
}

async fn an_answer_lists_faults_up_to_a_bound(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let messages = (Method::POST, format!("{SESSIONS}/{id}/messages"));
    let problem = send(&app.admin(), &messages, format!("[{}]", vec!["{}"; 1_000].join(","))).await;
    let problem = problem.expect_problem(422, "validation_failed");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 100);
    assert!(text(&problem["detail"]).contains("1000"), "{}", problem["detail"]);
}

async fn a_text_that_an_error_repeats_is_cut(app: TestApp) {
    let long = "x".repeat(100_000);
    let route = (Method::POST, SESSIONS.to_owned());
    for body in [json!({"session_name": "n", "is_favorite": long}), json!({"session_name": "n", &long: "\u{0}"})] {
        let reply = send(&app.admin(), &route, body.to_string()).await;
        reply.expect_problem(422, "validation_failed");
        assert!(reply.bytes.len() < 3_000, "{} bytes", reply.bytes.len());
    }
}

async fn what_a_payload_says_is_content_too(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = text(&app.admin().new_message(&id, "x").await["message_id"]);
    let long = "x".repeat((1 << 20) + 1);
    let path = format!("/api/v1/messages/{message}");
    let reply = app.admin().patch(&path, json!({"payload": {"content": long}})).await;
    let problem = reply.expect_problem(413, "content_too_large");
    assert_eq!(problem["errors"][0]["pointer"], "/payload");
    assert_eq!(app.admin().get(&path).await.expect(200)["content"], "x");
    let batch = json!([{"content": "ok"}, {"content": long}]);
    let reply = app.admin().post(&format!("{SESSIONS}/{id}/messages"), batch).await;
    assert_eq!(reply.expect_problem(413, "content_too_large")["errors"][0]["pointer"], "/1/content");
}
