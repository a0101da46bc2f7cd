//! Embeddings over HTTP: vectors that come with messages, and what operators see of the rest.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Method;
use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::JobOutcome;
use chatstore_core::ids::ProjectId;
use chatstore_core::store::Scope;
use chatstore_server::app::App;
use chatstore_server::embedder::Embedder;
use chatstore_server::router;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::{ROOT_KEY, TestApp, access, api_tests, limits};
use crate::client::{Client, Reply, text};
use crate::provider::{Answer, DIMENSIONS, Provider, embedder, vector_of};

const BACKLOG: &str = "/api/v1/admin/embeddings";

api_tests! {
    a_message_brings_its_vector_and_shows_it_when_asked
    a_batch_brings_vectors_and_points_at_those_at_fault
    an_append_with_a_bad_vector_is_a_422_and_stores_nothing
    set_embedding_replaces_the_vector_of_its_model
    set_embedding_for_a_message_that_is_not_there_is_a_404
    an_unknown_include_is_a_422
    numbers_come_back_as_the_same_single_precision_numbers
    an_edit_of_the_text_removes_its_vectors
    the_default_model_has_the_length_of_the_settings
    what_has_no_vector_of_the_source_is_queued
    an_import_is_queued
    operators_see_source_backlog_and_models
    what_was_put_aside_can_be_tried_again
    another_try_asks_a_source_that_was_left_alone
    beside_a_source_a_vector_names_its_model
    a_page_ends_early_if_its_vectors_are_large
}

async fn put(client: &Client, message_id: &str, body: Value) -> Reply {
    let path = format!("/api/v1/messages/{message_id}/embedding");
    client.with("content-type", "application/json").send(Method::PUT, &path, Body::from(body.to_string())).await
}

async fn shown(client: &Client, message_id: &str) -> Value {
    let reply = client.get(&format!("/api/v1/messages/{message_id}?include=embedding")).await;
    reply.expect(200)["embeddings"].clone()
}

fn list(session_id: &str) -> String {
    format!("/api/v1/sessions/{session_id}/messages")
}

/// A client of the same store with other settings.
async fn with_embeddings(app: &TestApp, source: Option<Arc<Embedder>>, dimensions: Option<usize>) -> Client {
    let served = App::new(app.store.clone(), app.ctx.clone(), access(), limits(), CancellationToken::new()).await;
    let served = served.unwrap().with_embeddings(source, dimensions);
    Client::new(router::router(served)).with("x-api-key", ROOT_KEY)
}

async fn pending(client: &Client) -> Value {
    client.get(BACKLOG).await.expect(200)["pending"].clone()
}

async fn a_message_brings_its_vector_and_shows_it_when_asked(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    let body = json!({"content": "x", "embedding": [0.5, -1, 2.25]});
    let message = admin.post(&list(&id), body).await.expect(201);
    assert_eq!(message.get("embeddings"), None);
    let message_id = text(&message["message_id"]);
    let vectors = json!([{"model": "default", "vectors": [[0.5, -1.0, 2.25]]}]);
    assert_eq!(shown(&admin, &message_id).await, vectors);
    let plain = admin.get(&format!("/api/v1/messages/{message_id}")).await;
    assert_eq!(plain.expect(200), message);
    admin.new_message(&id, "no vector").await;
    let listed = admin.get(&format!("{}?include=embedding&order=asc", list(&id))).await;
    assert_eq!(listed.column("embeddings"), [vectors, json!([])]);
    assert!(admin.get(&list(&id)).await.items().iter().all(|message| message.get("embeddings").is_none()));
    let next = admin.get(&format!("{}?include=embedding&limit=1", list(&id))).await.next().unwrap();
    assert!(admin.get(&next).await.items()[0]["embeddings"].is_array(), "{next}");
}

async fn a_batch_brings_vectors_and_points_at_those_at_fault(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    let good = json!([
        {"content": "a", "embedding": [1, 2], "embedding_model": "m"}, {"content": "b"},
        {"content": "", "embedding": [3, 4], "embedding_model": "m"},
    ]);
    let stored = admin.post(&list(&id), good).await.expect(201);
    let of = async |n: usize| shown(&admin, &text(&stored[n]["message_id"])).await;
    assert_eq!(of(0).await, json!([{"model": "m", "vectors": [[1.0, 2.0]]}]));
    assert_eq!((of(1).await, of(2).await[0]["vectors"].clone()), (json!([]), json!([[3.0, 4.0]])));
    let bad = json!([{"content": "c"}, {"content": "d", "embedding": [0]}, {"content": "e", "embedding_model": "m"}]);
    admin.post(&list(&id), bad).await.expect_invalid(&["/1/embedding", "/2/embedding_model"]);
    let misfit = json!([{"content": "c"}, {"content": "d", "embedding": [1], "embedding_model": "m"}]);
    admin.post(&list(&id), misfit).await.expect_invalid(&["/1/embedding"]);
    let among_themselves = json!([
        {"content": "c", "embedding": [1], "embedding_model": "new"},
        {"content": "d", "embedding": [1, 2], "embedding_model": "new"},
    ]);
    admin.post(&list(&id), among_themselves).await.expect_invalid(&["/1/embedding"]);
    assert_eq!(admin.get(&list(&id)).await.items().len(), 3);
}

async fn an_append_with_a_bad_vector_is_a_422_and_stores_nothing(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    let other = text(&admin.new_message(&id, "x").await["message_id"]);
    for (numbers, at) in [
        ("[]", ""),
        ("[0]", ""),
        ("[1e39]", ""),
        ("[1e400]", "/0"),
        ("[1, \"1\"]", "/1"),
        ("[1, null]", "/1"),
        ("\"x\"", ""),
        ("[1, 2, 1e-46, 1e38]", ""),
    ] {
        let body = format!("{{\"content\": \"x\", \"embedding\": {numbers}}}");
        admin.post(&list(&id), body).await.expect_invalid(&[&format!("/embedding{at}")]);
        let body: String = format!("{{\"embedding\": {numbers}}}");
        let path = format!("/api/v1/messages/{other}/embedding");
        let client = admin.with("content-type", "application/json");
        client.send(Method::PUT, &path, Body::from(body)).await.expect_invalid(&[&format!("/embedding{at}")]);
    }
    let long = json!({"content": "x", "embedding": [1], "embedding_model": "m".repeat(201)});
    admin.post(&list(&id), long).await.expect_invalid(&["/embedding_model"]);
    let alone = json!({"content": "x", "embedding_model": "m"});
    admin.post(&list(&id), alone).await.expect_invalid(&["/embedding_model"]);
    put(&admin, &other, json!({"model": "m"})).await.expect_invalid(&["/embedding"]);
    put(&admin, &other, json!({"embedding": null})).await.expect_invalid(&["/embedding"]);
    put(&admin, &other, json!({"embedding": [1], "model": ""})).await.expect_invalid(&["/model"]);
    admin.post(&list(&id), json!({"content": "x", "embedding": null, "embedding_model": null})).await.expect(201);
    assert_eq!(admin.get(&list(&id)).await.items().len(), 2);
    assert_eq!(shown(&admin, &other).await, json!([]));
}

async fn set_embedding_replaces_the_vector_of_its_model(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    let message = admin.new_message(&id, "x").await;
    let message_id = text(&message["message_id"]);
    let set = put(&admin, &message_id, json!({"embedding": [1, 2]})).await.expect(200);
    assert_eq!(set, json!({"message_id": message_id, "model": "default", "dimensions": 2}));
    put(&admin, &message_id, json!({"embedding": [1, 2, 3], "model": "b"})).await.expect(200);
    put(&admin, &message_id, json!({"embedding": [3, 4], "model": "default"})).await.expect(200);
    let vectors = json!([{"model": "b", "vectors": [[1.0, 2.0, 3.0]]}, {"model": "default", "vectors": [[3.0, 4.0]]}]);
    assert_eq!(shown(&admin, &message_id).await, vectors);
    put(&admin, &message_id, json!({"embedding": [1]})).await.expect_invalid(&["/embedding"]);
    assert_eq!(shown(&admin, &message_id).await, vectors);
    assert_eq!(admin.get(&format!("/api/v1/messages/{message_id}")).await.expect(200), message, "it did not change");
}

async fn set_embedding_for_a_message_that_is_not_there_is_a_404(app: TestApp) {
    let alice = app.alice();
    let id = alice.new_session("n").await;
    let gone = text(&alice.new_message(&id, "x").await["message_id"]);
    alice.delete(&format!("/api/v1/messages/{gone}")).await.expect(200);
    let bobs = app.bob().new_session("n").await;
    let bobs = text(&app.bob().new_message(&bobs, "x").await["message_id"]);
    for id in [gone.as_str(), &bobs, "019b0f3e-6be2-7c05-8a11-94d7e0c52b47", "no-id"] {
        put(&alice, id, json!({"embedding": [1, 2]})).await.expect_problem(404, "not_found");
        let read = alice.get(&format!("/api/v1/messages/{id}?include=embedding")).await;
        read.expect_problem(404, "not_found");
    }
    put(&app.reader(), &bobs, json!({"embedding": [1, 2]})).await.expect_problem(403, "insufficient_scope");
    assert_eq!(shown(&app.bob(), &bobs).await, json!([]));
}

async fn an_unknown_include_is_a_422(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = text(&app.admin().new_message(&id, "x").await["message_id"]);
    for include in ["", "vectors", "embedding,context", "EMBEDDING"] {
        for path in [format!("/api/v1/messages/{message}"), list(&id)] {
            app.admin().get(&format!("{path}?include={include}")).await.expect_invalid(&["?include"]);
        }
    }
}

async fn numbers_come_back_as_the_same_single_precision_numbers(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    // A fixed walk through the patterns of bits.
    let bits = (0..4_000_u32).map(|n| (n.wrapping_mul(0x9E37_79B1) % 0x5000_0000) | ((n & 1) << 31));
    let numbers: Vec<f32> = bits.map(f32::from_bits).collect();
    let edges = [0.1, 1.0 / 3.0, 16_777_216.0, f32::EPSILON, f32::MIN_POSITIVE, 1.0e-45, -0.0, 1.844e19];
    for numbers in [numbers, edges.to_vec()] {
        let model = format!("m{}", numbers.len());
        let body = json!({"content": "x", "embedding": numbers, "embedding_model": model});
        let message = admin.post(&list(&id), body).await.expect(201);
        let path = format!("/api/v1/messages/{}?include=embedding", text(&message["message_id"]));
        let reply = admin.get(&path).await;
        let read: Vec<f32> = serde_json::from_value(reply.expect(200)["embeddings"][0]["vectors"][0].clone()).unwrap();
        let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read), bits(&numbers));
    }
}

async fn an_edit_of_the_text_removes_its_vectors(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    let message = admin.post(&list(&id), json!({"content": "x", "embedding": [1, 2]})).await.expect(201);
    let message_id = text(&message["message_id"]);
    let path = format!("/api/v1/messages/{message_id}");
    admin.patch(&path, json!({"metadata": {"a": 1}, "content": "x"})).await.expect(200);
    assert_ne!(shown(&admin, &message_id).await, json!([]), "the text is the same");
    admin.patch(&path, json!({"content": "y"})).await.expect(200);
    assert_eq!(shown(&admin, &message_id).await, json!([]));
    let search = admin.post("/api/v1/search", json!({"embedding": [1, 2]})).await.expect(200);
    assert_eq!(search["hits"], json!([]));
}

async fn the_default_model_has_the_length_of_the_settings(app: TestApp) {
    let client = with_embeddings(&app, None, Some(3)).await;
    let id = client.new_session("n").await;
    let message = text(&client.new_message(&id, "x").await["message_id"]);
    for reply in [
        client.post(&list(&id), json!({"content": "x", "embedding": [1, 2]})).await,
        client.post(&list(&id), json!({"content": "x", "embedding": [1, 2], "embedding_model": "default"})).await,
        put(&client, &message, json!({"embedding": [1, 2]})).await,
        client.post("/api/v1/search", json!({"embedding": [1, 2]})).await,
    ] {
        reply.expect_invalid(&["/embedding"]);
        assert!(reply.text().contains('3') && reply.text().contains('2'), "{}", reply.text());
    }
    client.post(&list(&id), json!({"content": "x", "embedding": [1, 2, 3]})).await.expect(201);
    let other = json!({"content": "x", "embedding": [1, 2], "embedding_model": "other"});
    client.post(&list(&id), other).await.expect(201);
    put(&client, &message, json!({"embedding": [1, 2, 3]})).await.expect(200);
}

async fn what_has_no_vector_of_the_source_is_queued(app: TestApp) {
    let plain = app.admin();
    let id = plain.new_session("n").await;
    plain.new_message(&id, "before there was a source").await;
    assert_eq!(pending(&plain).await, 0);
    app.store.set_embedding_source("m").await.unwrap();
    let provider = Provider::start().await;
    let client = with_embeddings(&app, Some(embedder(provider.settings("m"), &app.ctx)), None).await;
    let own = vector_of("x", DIMENSIONS);
    let mut count = 0;
    for (body, queued) in [
        (json!({"content": "one"}), 1),
        (json!({"content": ""}), 0),
        (json!({"content": "two", "embedding": own, "embedding_model": "m"}), 0),
        (json!({"content": "three", "embedding": own, "embedding_model": "m"}), 0),
        (json!({"content": "four", "embedding": [1, 2], "embedding_model": "other"}), 1),
        (json!([{"content": "five"}, {"content": "six"}, {"content": ""}]), 2),
    ] {
        client.post(&list(&id), &body).await.expect(201);
        count += queued;
        assert_eq!(pending(&client).await, count, "{body}");
    }
    let three = client.get(&format!("{}?limit=1&skip=4", list(&id))).await.items()[0].clone();
    assert_eq!(three["content"], "three");
    let path = format!("/api/v1/messages/{}", text(&three["message_id"]));
    client.patch(&path, json!({"metadata": {"a": 1}})).await.expect(200);
    assert_eq!(pending(&client).await, count);
    client.patch(&path, json!({"content": "three again"})).await.expect(200);
    assert_eq!(pending(&client).await, count + 1);
    put(&client, &text(&three["message_id"]), json!({"embedding": own, "model": "m"})).await.expect(200);
    assert_eq!(pending(&client).await, count, "what brings its vector waits no longer");
    client.delete(&format!("/api/v1/sessions/{id}")).await.expect(200);
    assert!(provider.asked().is_empty(), "no request waits for the source");
}

async fn an_import_is_queued(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_embeddings(&app, Some(embedder(provider.settings("m"), &app.ctx)), None).await;
    let import = json!([{"id": "c", "messages": [{"content": "one"}, {"content": ""}, {"content": "two"}]}]);
    client.post("/api/v1/admin/import", &import).await.expect(200);
    assert_eq!(pending(&client).await, 2);
    client.post("/api/v1/admin/import", &import).await.expect(200);
    assert_eq!(pending(&client).await, 2);
    let other = json!([{"id": "d", "messages": [{"content": "three"}]}]);
    app.admin().post("/api/v1/admin/import", other).await.expect(200);
    assert_eq!(pending(&client).await, 2, "without a source nothing is queued");
}

async fn operators_see_source_backlog_and_models(app: TestApp) {
    let none = app.admin().get(BACKLOG).await.expect(200);
    assert_eq!(
        none,
        json!({
            "source": {
                "configured": false, "model": null, "serving": null, "state": null, "last_error": null, "retry_at": null,
            },
            "pending": 0, "parked": 0, "oldest_queued_at": null, "parked_examples": [], "models": [],
            "reindexing": {"text": false, "embeddings": false},
        })
    );
    let provider = Provider::start().await;
    let client = with_embeddings(&app, Some(embedder(provider.settings("m"), &app.ctx)), None).await;
    app.store.set_embedding_source("m").await.unwrap();
    while app.store.reindex_some(chatstore_core::search::Derived::Embeddings).await.unwrap().more {}
    let id = client.new_session("n").await;
    client.new_message(&id, "waits").await;
    client.post(&list(&id), json!({"content": "x", "embedding": [1, 2], "embedding_model": "own"})).await.expect(201);
    let seen = client.get(BACKLOG).await.expect(200);
    assert_eq!(seen["source"]["configured"], true);
    assert_eq!((&seen["source"]["model"], &seen["source"]["serving"]), (&json!("m"), &json!("m")));
    assert_eq!((&seen["source"]["state"], &seen["source"]["last_error"]), (&json!("closed"), &json!(null)));
    assert_eq!((&seen["pending"], &seen["parked"]), (&json!(2), &json!(0)));
    assert!(Timestamp::parse(&text(&seen["oldest_queued_at"])).is_some());
    assert_eq!(seen["models"], json!([{"model": "own", "dimensions": 2, "vectors": 1}]));
    let other = app.stranger().get(BACKLOG).await.expect(200);
    assert_eq!((&other["pending"], &other["models"]), (&json!(0), &json!([])));
    for client in [app.reader(), app.writer()] {
        client.get(BACKLOG).await.expect_problem(403, "insufficient_scope");
        client.post(&format!("{BACKLOG}/retry"), json!({})).await.expect_problem(403, "insufficient_scope");
    }
}

async fn what_was_put_aside_can_be_tried_again(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_embeddings(&app, Some(embedder(provider.settings("m"), &app.ctx)), None).await;
    let id = client.new_session("n").await;
    let message = client.new_message(&id, "cannot be embedded").await;
    let now = app.ctx.now();
    let jobs = app.store.claim_embedding_jobs(now, now.plus_micros(60_000_000), 10).await.unwrap();
    assert_eq!(jobs.len(), 1);
    let parked = JobOutcome::Parked { reason: "the source refuses it".to_owned() };
    app.store.complete_embedding_jobs(jobs.into_iter().map(|job| (job, parked.clone())).collect(), now).await.unwrap();
    let seen = client.get(BACKLOG).await.expect(200);
    assert_eq!((&seen["pending"], &seen["parked"]), (&json!(0), &json!(1)));
    let example = json!({"message_id": message["message_id"], "reason": "the source refuses it"});
    assert_eq!(seen["parked_examples"], json!([example]));
    let retry = format!("{BACKLOG}/retry");
    assert_eq!(app.stranger().post(&retry, json!({})).await.expect(200), json!({"queued": 0}));
    assert_eq!(client.post(&retry, json!({})).await.expect(200), json!({"queued": 1}));
    assert_eq!(client.post(&retry, json!({})).await.expect(200), json!({"queued": 0}));
    let backlog = app.store.get_embedding_backlog(&Scope::project(ProjectId::DEFAULT)).await.unwrap();
    assert_eq!((backlog.pending, backlog.parked), (1, 0));
}

async fn another_try_asks_a_source_that_was_left_alone(app: TestApp) {
    let provider = Provider::start().await;
    provider.always(Answer::Status(503, Some("3000")));
    let client = with_embeddings(&app, Some(embedder(provider.settings("m"), &app.ctx)), None).await;
    let by_meaning = json!({"query": "tea", "mode": "vector"});
    let refused = client.post("/api/v1/search", &by_meaning).await;
    refused.expect_problem(503, "embeddings_unavailable");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((2_990..=3_000).contains(&seconds), "{seconds}");
    provider.always(Answer::Vectors);
    client.post("/api/v1/search", &by_meaning).await.expect_problem(503, "embeddings_unavailable");
    client.post(&format!("{BACKLOG}/retry"), json!({})).await.expect(200);
    client.post("/api/v1/search", &by_meaning).await.expect(200);
}

async fn beside_a_source_a_vector_names_its_model(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_embeddings(&app, Some(embedder(provider.settings("m"), &app.ctx)), None).await;
    let id = client.new_session("n").await;
    let message = text(&client.new_message(&id, "x").await["message_id"]);
    let unnamed = json!([{"content": "a"}, {"content": "b", "embedding": [1, 2]}]);
    client.post(&list(&id), unnamed).await.expect_invalid(&["/1/embedding_model"]);
    client.post(&list(&id), json!({"content": "b", "embedding": [1, 2]})).await.expect_invalid(&["/embedding_model"]);
    put(&client, &message, json!({"embedding": [1, 2]})).await.expect_invalid(&["/model"]);
    for body in [json!({"embedding": [1, 2]}), json!({"embedding": [1, 2], "query": "x"})] {
        client.post("/api/v1/search", body).await.expect_invalid(&["/embedding_model"]);
    }
    let beside_words = json!({"embedding": [1, 2], "query": "x", "mode": "text"});
    client.post("/api/v1/search", beside_words).await.expect(200);
    for model in ["m", "mine"] {
        put(&client, &message, json!({"embedding": [1, 2], "model": model})).await.expect(200);
        let named = json!({"content": "b", "embedding": [1, 2], "embedding_model": model});
        client.post(&list(&id), named).await.expect(201);
        client.post("/api/v1/search", json!({"embedding": [1, 2], "embedding_model": model})).await.expect(200);
    }
}

async fn a_page_ends_early_if_its_vectors_are_large(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    let numbers = vec![0.5; 4_000];
    let models = |count: usize| (0..count).map(|n| format!("m{n}"));
    // 48 kB on the wire for each model: 90 models are 4.3 MB a message.
    for n in 0..6 {
        let message = text(&admin.new_message(&id, &format!("number {n}")).await["message_id"]);
        for model in models(90) {
            put(&admin, &message, json!({"embedding": numbers, "model": model})).await.expect(200);
        }
    }
    assert_eq!(admin.get(&list(&id)).await.items().len(), 6);
    let (mut next, mut pages, mut seen) =
        (Some(format!("{}?include=embedding&order=asc", list(&id))), Vec::new(), Vec::new());
    while let Some(path) = next {
        let page = admin.get(&path).await;
        pages.push(page.items().len());
        seen.extend(page.column("seq"));
        assert!(page.items().iter().all(|message| message["embeddings"].as_array().map(Vec::len) == Some(90)));
        next = page.next();
    }
    assert_eq!((pages, seen), (vec![4, 2], (1..=6).map(Value::from).collect::<Vec<_>>()));
}
