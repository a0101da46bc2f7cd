//! Search by meaning: vectors that are brought, and those of an embedding source.

use std::collections::HashSet;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Method;
use chatstore_server::app::App;
use chatstore_server::embedder::Embedder;
use chatstore_server::router;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{SEARCH, found, hits, search, session_of};
use crate::app::{ROOT_KEY, TestApp, access, api_tests, limits};
use crate::client::{Client, text};
use crate::provider::{Answer, DIMENSIONS, Provider, embedder, vector_of};

api_tests! {
    the_nearest_come_first_under_each_metric
    a_vector_alone_searches_by_meaning
    words_and_vector_are_fused_by_rank
    exclusions_and_roles_hold_for_what_is_near
    a_vector_that_is_none_is_a_422
    a_vector_of_another_length_is_a_422
    models_are_never_mixed
    a_search_by_meaning_without_a_source_says_what_to_do
    the_source_embeds_the_query
    a_source_that_is_down_degrades_a_hybrid_search_and_refuses_one_by_meaning
    a_walk_keeps_the_lists_it_began_with
    the_model_that_serves_is_searched
    a_source_whose_vectors_do_not_fit_degrades
    pages_of_a_hybrid_search_show_every_hit_once
    pages_show_every_hit_once_while_vectors_arrive
    a_grouped_walk_shows_every_session_once_while_vectors_arrive
    a_walk_ends_with_the_last_of_those_that_are_ranked
    a_cursor_is_bound_to_the_model_that_serves
    conditions_are_looked_for_beyond_the_nearest
    the_source_is_asked_for_its_own_models_alone
    what_the_short_forms_lack_is_pointed_at_there
    the_short_forms_take_metric_and_model
    vectors_that_are_still_being_made_are_said
}

/// A session of messages with these vectors.
async fn vectors(client: &Client, messages: &[(&str, &[f64])]) -> String {
    let id = client.new_session("n").await;
    let batch: Vec<Value> =
        messages.iter().map(|(content, numbers)| json!({"content": content, "embedding": numbers})).collect();
    client.post(&format!("/api/v1/sessions/{id}/messages"), Value::from(batch)).await.expect(201);
    id
}

/// A client of the same store with an embedding source.
async fn with_source(app: &TestApp, source: Arc<Embedder>) -> Client {
    let served = App::new(app.store.clone(), app.ctx.clone(), access(), limits(), CancellationToken::new()).await;
    let served = served.unwrap().with_embeddings(Some(source), None);
    Client::new(router::router(served)).with("x-api-key", ROOT_KEY)
}

/// A session of messages with the vectors that the source gives for them.
async fn embedded(client: &Client, model: &str, messages: &[&str]) {
    let id = client.new_session("n").await;
    let body = |message: &&str| json!({"content": message, "embedding": vector_of(message, DIMENSIONS), "embedding_model": model});
    let batch: Vec<Value> = messages.iter().map(body).collect();
    client.post(&format!("/api/v1/sessions/{id}/messages"), Value::from(batch)).await.expect(201);
}

async fn the_nearest_come_first_under_each_metric(app: TestApp) {
    let admin = app.admin();
    vectors(&admin, &[("short", &[1.0, 0.0]), ("long", &[9.0, 1.0]), ("other", &[0.0, 1.0]), ("back", &[-1.0, 0.0])])
        .await;
    for (metric, order, best) in [
        ("cosine", ["short", "long", "other", "back"], 1.0),
        ("inner_product", ["long", "short", "other", "back"], 9.0),
        ("l2", ["short", "other", "back", "long"], 0.0),
    ] {
        let reply = search(&admin, json!({"embedding": [1.0, 0.0], "metric": metric})).await;
        assert_eq!(found(&reply), order, "{metric}");
        let score = hits(&reply)[0]["score"].as_f64().unwrap();
        assert!((score - best).abs() < 1e-6, "{metric}: {score}");
    }
}

async fn a_vector_alone_searches_by_meaning(app: TestApp) {
    let admin = app.admin();
    let id = vectors(&admin, &[("east", &[1.0, 0.0]), ("north", &[0.0, 1.0])]).await;
    admin.new_message(&id, "east without a vector").await;
    for body in [json!({"embedding": [1, 0.1]}), json!({"embedding": [1, 0.1], "mode": "hybrid"})] {
        let reply = search(&admin, body).await;
        assert_eq!(found(&reply), ["east", "north"]);
        assert_eq!(reply.expect(200).get("degraded"), None);
        assert_eq!(hits(&reply)[1]["ranks"], json!({"vector": 2}));
        assert_eq!(hits(&reply)[0]["snippets"][0], json!({"text": "east", "highlights": []}));
    }
    let narrowed = json!({"embedding": [1, 0.1], "session_id": id, "limit": 1});
    assert_eq!(found(&search(&admin, narrowed).await), ["east"]);
    let elsewhere = json!({"embedding": [1, 0.1], "role": "assistant"});
    assert_eq!(found(&search(&admin, elsewhere).await), Vec::<String>::new());
}

async fn words_and_vector_are_fused_by_rank(app: TestApp) {
    let admin = app.admin();
    vectors(&admin, &[("apple", &[0.0, 1.0]), ("apple both", &[1.0, 0.2]), ("pear", &[1.0, 0.0])]).await;
    let reply = search(&admin, json!({"query": "apple", "embedding": [1.0, 0.2]})).await;
    assert_eq!(found(&reply)[0], "apple both");
    let all = hits(&reply);
    assert_eq!(all.len(), 3);
    for hit in &all {
        let rank = |list: &str| hit["ranks"][list].as_f64().map_or(0.0, |rank| 1.0 / (60.0 + rank));
        let expected = rank("text") + rank("vector");
        assert!((hit["score"].as_f64().unwrap() - expected).abs() < 1e-12, "{hit}");
    }
    assert_eq!(reply.expect(200).get("degraded"), None);
    let text_alone = search(&admin, json!({"query": "apple", "embedding": [1.0, 0.2], "mode": "text"})).await;
    assert_eq!(hits(&text_alone).len(), 2);
    let vector_alone = search(&admin, json!({"query": "apple", "embedding": [1.0, 0.2], "mode": "vector"})).await;
    assert_eq!(found(&vector_alone), ["apple both", "pear", "apple"]);
}

async fn exclusions_and_roles_hold_for_what_is_near(app: TestApp) {
    let admin = app.admin();
    vectors(&admin, &[("green tea", &[1.0, 0.0]), ("black tea", &[1.0, 0.1]), ("coffee", &[1.0, 0.2])]).await;
    for (query, expected) in [
        ("tea", vec!["green tea", "black tea", "coffee"]),
        ("tea -black", vec!["green tea", "coffee"]),
        ("tea role:assistant", vec![]),
        ("tea in:elsewhere", vec![]),
    ] {
        for mode in ["hybrid", "vector"] {
            let body = json!({"query": query, "embedding": [1.0, 0.0], "mode": mode});
            assert_eq!(found(&search(&admin, body).await), expected, "{query} {mode}");
        }
    }
}

async fn a_vector_that_is_none_is_a_422(app: TestApp) {
    let many = Value::from(vec![json!(1.0); 4_001]).to_string();
    for (numbers, pointer) in [
        ("[]", "/embedding"),
        (&many, "/embedding"),
        ("[0, 0.0, -0.0]", "/embedding"),
        ("[1e-30]", "/embedding"),
        ("[1e39]", "/embedding"),
        ("[-1e39, 1]", "/embedding"),
        ("[1e30, 1]", "/embedding"),
        ("[1, 1e400]", "/embedding/1"),
        ("[1, \"2\"]", "/embedding/1"),
        ("[1, null]", "/embedding/1"),
        ("[true]", "/embedding/0"),
        ("[[1]]", "/embedding/0"),
        ("\"AACAPw==\"", "/embedding"),
        ("{\"0\": 1}", "/embedding"),
        ("1", "/embedding"),
    ] {
        for more in ["", ", \"query\": \"x\"", ", \"mode\": \"vector\""] {
            let body = format!("{{\"embedding\": {numbers}{more}}}");
            app.admin().post(SEARCH, body).await.expect_invalid(&[pointer]);
        }
    }
    let most = Value::from(vec![json!(0.5); 4_000]);
    search(&app.admin(), json!({"embedding": most})).await.expect(200);
}

async fn a_vector_of_another_length_is_a_422(app: TestApp) {
    vectors(&app.admin(), &[("east", &[1.0, 0.0])]).await;
    for body in [json!({"embedding": [1, 2, 3]}), json!({"embedding": [1, 2, 3], "query": "east"})] {
        search(&app.admin(), body).await.expect_invalid(&["/embedding"]);
    }
    // The model of another project is another.
    search(&app.stranger(), json!({"embedding": [1, 2, 3]})).await.expect(200);
    // A model that nobody has used has nothing.
    let unknown = json!({"embedding": [1, 2, 3], "embedding_model": "unknown"});
    assert_eq!(found(&search(&app.admin(), unknown).await), Vec::<String>::new());
}

async fn models_are_never_mixed(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    for (content, model) in [("one", "a"), ("two", "b")] {
        let body = json!({"content": content, "embedding": [1.0, 0.0], "embedding_model": model});
        admin.post(&format!("/api/v1/sessions/{id}/messages"), body).await.expect(201);
    }
    for (content, model) in [("one", "a"), ("two", "b")] {
        let body = json!({"embedding": [1.0, 0.0], "embedding_model": model});
        assert_eq!(found(&search(&admin, body).await), [content]);
    }
    assert_eq!(found(&search(&admin, json!({"embedding": [1.0, 0.0]})).await), Vec::<String>::new());
}

async fn a_search_by_meaning_without_a_source_says_what_to_do(app: TestApp) {
    session_of(&app.admin(), "n", &["apple"]).await;
    let refused = search(&app.admin(), json!({"query": "apple", "mode": "vector"})).await;
    refused.expect_invalid(&["/embedding"]);
    assert!(refused.text().contains("EMBEDDINGS_URL"), "{}", refused.text());
    app.admin().get(&format!("{SEARCH}?q=apple&mode=vector")).await.expect_invalid(&["?mode"]);
    for mode in [json!(null), json!("hybrid")] {
        let reply = search(&app.admin(), json!({"query": "apple", "mode": mode})).await;
        assert_eq!(found(&reply), ["apple"]);
        assert!(text(&reply.expect(200)["degraded"]).contains("no embedding source"));
        assert_eq!(hits(&reply)[0]["ranks"], json!({"text": 1}));
    }
    let text_alone = search(&app.admin(), json!({"query": "apple", "mode": "text"})).await;
    assert_eq!(text_alone.expect(200).get("degraded"), None);
}

async fn the_source_embeds_the_query(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("m"), &app.ctx)).await;
    embedded(&client, "m", &["a red boat", "the blue tram", "green apples"]).await;
    let reply = search(&client, json!({"query": "tram blue", "mode": "vector"})).await;
    assert_eq!(found(&reply)[0], "the blue tram");
    assert_eq!(hits(&reply).len(), 3);
    let hybrid = client.get(&format!("{SEARCH}?q=tram+blue")).await;
    assert_eq!(found(&hybrid)[0], "the blue tram");
    assert_eq!(hits(&hybrid)[0]["ranks"], json!({"text": 1, "vector": 1}));
    assert_eq!(hybrid.expect(200).get("degraded"), None);
    assert_eq!(provider.times("tram blue"), 2);
    // Nobody is asked for nothing, for words alone, or beside a vector that is brought.
    let asked = provider.asked().len();
    search(&client, json!({"query": " ", "mode": "vector"})).await.expect(200);
    search(&client, json!({"query": "tram", "mode": "text"})).await.expect(200);
    let brought = json!({"query": "tram", "embedding": vector_of("tram", DIMENSIONS), "embedding_model": "m"});
    search(&client, brought).await.expect(200);
    assert_eq!(provider.asked().len(), asked);
}

async fn a_source_that_is_down_degrades_a_hybrid_search_and_refuses_one_by_meaning(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("m"), &app.ctx)).await;
    embedded(&client, "m", &["a red boat"]).await;
    provider.always(Answer::Status(500, None));
    for _ in 0..8 {
        let reply = search(&client, json!({"query": "red"})).await;
        assert_eq!(found(&reply), ["a red boat"]);
        let said = text(&reply.expect(200)["degraded"]);
        assert!(said.contains("embedding source") && !said.contains("hush"), "{said}");
        let refused = search(&client, json!({"query": "red", "mode": "vector"})).await;
        refused.expect_problem(503, "embeddings_unavailable");
        assert!(refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
    }
    search(&client, json!({"query": "red", "mode": "text"})).await.expect(200);
}

async fn a_walk_keeps_the_lists_it_began_with(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("m"), &app.ctx)).await;
    embedded(&client, "m", &["a red boat", "a red tram", "a red car"]).await;
    let mut body = json!({"query": "red", "limit": 1});
    body["cursor"] = search(&client, body.clone()).await.expect(200)["next_cursor"].clone();
    provider.always(Answer::Status(500, None));
    // With words alone the list would be another.
    search(&client, body).await.expect_problem(503, "embeddings_unavailable");
    let mut body = json!({"query": "red", "limit": 1});
    let mut seen = Vec::new();
    loop {
        let reply = search(&client, body.clone()).await;
        seen.extend(found(&reply));
        let answer = reply.expect(200);
        assert!(answer["degraded"].is_string());
        let Some(cursor) = answer.get("next_cursor").cloned() else { break };
        body["cursor"] = cursor;
        provider.always(Answer::Vectors);
    }
    seen.sort();
    assert_eq!(seen, ["a red boat", "a red car", "a red tram"]);
}

async fn the_model_that_serves_is_searched(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("old"), &app.ctx)).await;
    app.store.set_embedding_source("old").await.unwrap();
    embedded(&client, "old", &["a red boat"]).await;
    // The new one has no vector yet.
    let source = app.store.set_embedding_source("new").await.unwrap();
    assert_eq!((source.model.as_str(), source.serving.as_str()), ("new", "old"));
    let client = with_source(&app, embedder(provider.settings("new"), &app.ctx)).await;
    assert_eq!(found(&search(&client, json!({"query": "red", "mode": "vector"})).await), ["a red boat"]);
    assert_eq!(provider.asked().last().unwrap().model(), "old");
    let named = json!({"query": "red", "mode": "vector", "embedding_model": "new"});
    assert_eq!(found(&search(&client, named).await), Vec::<String>::new());
    assert_eq!(provider.asked().last().unwrap().model(), "new");
}

async fn a_source_whose_vectors_do_not_fit_degrades(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("m"), &app.ctx)).await;
    let id = client.new_session("n").await;
    let body = json!({"content": "a red boat", "embedding": [1, 2, 3], "embedding_model": "m"});
    client.post(&format!("/api/v1/sessions/{id}/messages"), body).await.expect(201);
    let reply = search(&client, json!({"query": "red"})).await;
    assert_eq!(found(&reply), ["a red boat"]);
    assert!(text(&reply.expect(200)["degraded"]).contains("another length"));
    let refused = search(&client, json!({"query": "red", "mode": "vector"})).await;
    refused.expect_problem(409, "embeddings_mismatch");
    assert_eq!(refused.header("retry-after"), None, "another try is of no use");
}

async fn pages_of_a_hybrid_search_show_every_hit_once(app: TestApp) {
    let admin = app.admin();
    let contents: Vec<String> = (0..25).map(|n| format!("{} {n}", ["apple", "pear", "apple pie"][n % 3])).collect();
    let numbers: Vec<[f64; 2]> = (0..25).map(|n| [1.0, f64::from(n) / 10.0]).collect();
    let messages: Vec<(&str, &[f64])> =
        contents.iter().zip(&numbers).map(|(content, numbers)| (content.as_str(), &numbers[..])).collect();
    vectors(&admin, &messages).await;
    let body = json!({"query": "apple", "embedding": [1.0, 0.3], "limit": 100});
    let whole = found(&search(&admin, body.clone()).await);
    assert_eq!(whole.len(), 25);
    let (mut body, mut seen) = (body, Vec::new());
    body["limit"] = json!(4);
    loop {
        let reply = search(&admin, body.clone()).await;
        seen.extend(found(&reply));
        let Some(cursor) = reply.expect(200).get("next_cursor").cloned() else { break };
        body["cursor"] = cursor;
        vectors(&admin, &[("apple later", &[1.0, 0.3])]).await;
    }
    assert_eq!(seen, whole);
}

/// Gives a message a vector.
async fn put_vector(client: &Client, message_id: &str, numbers: &[f64]) {
    let path = format!("/api/v1/messages/{message_id}/embedding");
    let body = Body::from(json!({"embedding": numbers}).to_string());
    client.with("content-type", "application/json").send(Method::PUT, &path, body).await.expect(200);
}

async fn pages_show_every_hit_once_while_vectors_arrive(app: TestApp) {
    let admin = app.admin();
    let mut ids = Vec::new();
    let session = admin.new_session("n").await;
    for n in 0..24 {
        ids.push(text(&admin.new_message(&session, &format!("{} {n}", ["apple", "pear"][n % 2])).await["message_id"]));
    }
    for (n, id) in ids.iter().enumerate().take(12) {
        put_vector(&admin, id, &[1.0, f64::from(u8::try_from(n).unwrap()) / 10.0]).await;
    }
    for mode in ["hybrid", "vector"] {
        let mut body = json!({"query": "apple", "embedding": [1.0, 0.0], "limit": 3, "mode": mode});
        let mut all = body.clone();
        all["limit"] = json!(100);
        let at_first = found(&search(&admin, all).await);
        let (mut seen, mut late) = (Vec::new(), ids.iter().skip(12));
        loop {
            let reply = search(&admin, body.clone()).await;
            seen.extend(found(&reply));
            let Some(cursor) = reply.expect(200).get("next_cursor").cloned() else { break };
            body["cursor"] = cursor;
            // Nearer than any: the ranks of all others move.
            for id in late.by_ref().take(3) {
                put_vector(&admin, id, &[1.0, 0.0]).await;
            }
        }
        let once: HashSet<&String> = seen.iter().collect();
        assert_eq!(once.len(), seen.len(), "{mode}: {seen:?}");
        for hit in &at_first {
            assert!(once.contains(hit), "{mode}: {hit} is missing in {seen:?}");
        }
        assert_eq!(seen.len(), 24, "{mode}: what has its vector meanwhile is shown, too: {seen:?}");
    }
}

async fn a_grouped_walk_shows_every_session_once_while_vectors_arrive(app: TestApp) {
    let admin = app.admin();
    let mut late = Vec::new();
    for n in 0..8 {
        let session = vectors(&admin, &[("apple", &[1.0, f64::from(n)])]).await;
        late.push(text(&admin.new_message(&session, "pear").await["message_id"]));
    }
    let mut body =
        json!({"query": "apple", "embedding": [1.0, 0.0], "limit": 2, "group_by_session": true, "mode": "vector"});
    let mut seen = Vec::new();
    loop {
        let reply = search(&admin, body.clone()).await;
        seen.extend(hits(&reply).iter().map(|hit| text(&hit["session_id"])));
        let Some(cursor) = reply.expect(200).get("next_cursor").cloned() else { break };
        body["cursor"] = cursor;
        for id in late.drain(..late.len().min(2)) {
            put_vector(&admin, &id, &[1.0, 0.0]).await;
        }
    }
    assert_eq!((seen.len(), seen.iter().collect::<HashSet<_>>().len()), (8, 8));
}

async fn a_cursor_is_bound_to_the_model_that_serves(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("m"), &app.ctx)).await;
    embedded(&client, "m", &["a red boat", "a red tram"]).await;
    let mut body = json!({"query": "red", "limit": 1});
    body["cursor"] = search(&client, body.clone()).await.expect(200)["next_cursor"].clone();
    search(&client, body.clone()).await.expect(200);
    let client = with_source(&app, embedder(provider.settings("other"), &app.ctx)).await;
    search(&client, body).await.expect_problem(400, "invalid_cursor");
}

async fn conditions_are_looked_for_beyond_the_nearest(app: TestApp) {
    let admin = app.admin();
    let id = admin.new_session("n").await;
    let path = format!("/api/v1/sessions/{id}/messages");
    for part in 0..2 {
        let message = |n: u32| json!({"content": "black tea", "embedding": [1.0, f64::from(n) / 10_000.0]});
        let batch: Vec<Value> = (part * 600..(part + 1) * 600).map(message).collect();
        admin.post(&path, Value::from(batch)).await.expect(201);
    }
    let far = json!([
        {"content": "coffee", "embedding": [0.0, 1.0]},
        {"content": "black coffee", "embedding": [0.0, 1.0], "role": "assistant"},
    ]);
    admin.post(&path, far).await.expect(201);
    session_of(&admin, "elsewhere", &[]).await;
    for (query, expected) in [
        ("drink -tea -black", vec!["coffee"]),
        ("drink -tea", vec!["black coffee", "coffee"]),
        ("drink role:assistant", vec!["black coffee"]),
        ("drink in:elsewhere", vec![]),
    ] {
        for mode in ["hybrid", "vector"] {
            let body = json!({"query": query, "embedding": [1.0, 0.0], "mode": mode});
            let mut found = found(&search(&admin, body).await);
            found.sort();
            assert_eq!(found, expected, "{query} {mode}");
        }
    }
}

async fn the_source_is_asked_for_its_own_models_alone(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("m"), &app.ctx)).await;
    embedded(&client, "mine", &["a red boat"]).await;
    for model in ["mine", "m@64", "gpt-image-1"] {
        let by_meaning = json!({"query": "red", "mode": "vector", "embedding_model": model});
        search(&client, by_meaning).await.expect_invalid(&["/embedding"]);
        let both = search(&client, json!({"query": "red", "embedding_model": model})).await;
        assert_eq!(found(&both), ["a red boat"]);
        assert!(text(&both.expect(200)["degraded"]).contains("does not make vectors of this model"));
    }
    assert!(provider.asked().is_empty());
    let own = json!({"query": "red", "embedding": vector_of("red", DIMENSIONS), "embedding_model": "mine"});
    assert_eq!(hits(&search(&client, own).await)[0]["ranks"], json!({"text": 1, "vector": 1}));
}

async fn what_the_short_forms_lack_is_pointed_at_there(app: TestApp) {
    let session = session_of(&app.admin(), "n", &["apple"]).await;
    let paths = [SEARCH.to_owned(), format!("/api/v1/sessions/{session}/search")];
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("m"), &app.ctx)).await;
    for path in paths {
        app.admin().get(&format!("{path}?q=apple&mode=vector")).await.expect_invalid(&["?mode"]);
        let other = client.get(&format!("{path}?q=apple&mode=vector&embedding_model=mine")).await;
        other.expect_invalid(&["?embedding_model"]);
        client.get(&format!("{path}?q=apple&metric=far")).await.expect_invalid(&["?metric"]);
        client.get(&format!("{path}?q=apple&embedding_model=")).await.expect_invalid(&["?embedding_model"]);
    }
}

async fn the_short_forms_take_metric_and_model(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("old"), &app.ctx)).await;
    app.store.set_embedding_source("old").await.unwrap();
    embedded(&client, "old", &["red red red boat", "red"]).await;
    app.store.set_embedding_source("new").await.unwrap();
    let client = with_source(&app, embedder(provider.settings("new"), &app.ctx)).await;
    for (query, body) in [
        ("metric=inner_product", json!({"metric": "inner_product"})),
        ("metric=l2", json!({"metric": "l2"})),
        ("embedding_model=old", json!({"embedding_model": "old"})),
        ("embedding_model=new", json!({"embedding_model": "new"})),
    ] {
        let mut body = body;
        body["query"] = json!("red");
        body["mode"] = json!("vector");
        let by_query = client.get(&format!("{SEARCH}?q=red&mode=vector&{query}")).await;
        assert_eq!(by_query.expect(200), search(&client, body).await.expect(200), "{query}");
    }
    let first = async |metric: &str| {
        let reply = client.get(&format!("{SEARCH}?q=red&mode=vector&metric={metric}")).await;
        found(&reply)[0].clone()
    };
    assert_eq!((first("inner_product").await, first("cosine").await), ("red red red boat".into(), "red".into()));
}

async fn vectors_that_are_still_being_made_are_said(app: TestApp) {
    session_of(&app.admin(), "n", &["apple"]).await;
    let provider = Provider::start().await;
    let source = embedder(provider.settings("m"), &app.ctx);
    let client = with_source(&app, source.clone()).await;
    app.store.set_embedding_source("m").await.unwrap();
    let degraded = async |mode: &str| {
        let answer = search(&client, json!({"query": "apple", "mode": mode})).await.expect(200);
        answer["degraded"].as_str().map(ToOwned::to_owned)
    };
    source.set_catching_up(true);
    for mode in ["hybrid", "vector"] {
        assert!(degraded(mode).await.is_some_and(|said| said.contains("Vectors are still being made")), "{mode}");
    }
    assert_eq!(degraded("text").await, None);
    source.set_catching_up(false);
    assert_eq!(degraded("hybrid").await, None);
}

async fn a_walk_ends_with_the_last_of_those_that_are_ranked(app: TestApp) {
    let provider = Provider::start().await;
    let client = with_source(&app, embedder(provider.settings("m"), &app.ctx)).await;
    let contents: Vec<String> = (0..1_100).map(|n| format!("number {n}")).collect();
    let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
    for part in contents.chunks(550) {
        embedded(&client, "m", part).await;
    }
    let mut next = Some(format!("{SEARCH}?q=number&mode=vector&limit=100"));
    let mut seen = Vec::new();
    while let Some(path) = next {
        let reply = client.get(&path).await;
        seen.extend(found(&reply));
        next = reply.next();
        assert_eq!(next.is_some(), seen.len() < 1_000);
    }
    assert_eq!((seen.len(), seen.iter().collect::<HashSet<_>>().len()), (1_000, 1_000));
}
