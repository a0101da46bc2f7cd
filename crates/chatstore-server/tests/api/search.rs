//! Search over HTTP: what it takes, what it finds, how it is shown.

mod meaning;
mod paging;
mod privacy;
mod queries;

use serde_json::{Value, json};

use crate::app::{TestApp, api_tests};
use crate::client::{Client, Reply, text};

const SEARCH: &str = "/api/v1/search";
const ABSENT: &str = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";

api_tests! {
    an_acknowledged_message_is_found_by_the_next_request
    a_hit_shows_message_session_score_ranks_and_snippets
    the_short_forms_answer_what_the_body_answers
    every_filter_narrows
    a_session_that_is_not_there_is_a_404
    another_user_is_a_403
    a_search_needs_the_scope_search
    parameters_that_break_a_rule_are_a_422_that_points_at_them
    a_limit_is_cut_and_context_too
    context_shows_what_stands_around_a_hit
    grouped_by_session_shows_the_best_of_each_and_counts
    the_order_is_that_of_score_then_time
    an_edit_is_found_by_its_new_words_alone
    what_is_deleted_is_not_found
    a_search_without_words_finds_nothing
    the_index_being_made_anew_is_said
}

/// The hits of an answer.
#[track_caller]
fn hits(reply: &Reply) -> Vec<Value> {
    reply.expect(200)["hits"].as_array().unwrap().clone()
}

/// What the hits say, in their order.
#[track_caller]
fn found(reply: &Reply) -> Vec<String> {
    hits(reply).iter().map(|hit| text(&hit["message"]["content"])).collect()
}

async fn search(client: &Client, body: Value) -> Reply {
    client.post(SEARCH, body).await
}

/// What a search by words finds.
async fn words(client: &Client, query: &str) -> Vec<String> {
    found(&search(client, json!({"query": query, "mode": "text"})).await)
}

/// A session of these messages.
async fn session_of(client: &Client, name: &str, messages: &[&str]) -> String {
    let id = client.new_session(name).await;
    for message in messages {
        client.new_message(&id, message).await;
    }
    id
}

async fn an_acknowledged_message_is_found_by_the_next_request(app: TestApp) {
    let id = app.admin().new_session("n").await;
    for n in 0..20 {
        app.admin().new_message(&id, &format!("number{n} of twenty")).await;
        assert_eq!(words(&app.admin(), &format!("number{n}")).await, [format!("number{n} of twenty")]);
    }
    let batch = json!([{"content": "batched kiwi"}, {"content": "batched mango"}]);
    app.admin().post(&format!("/api/v1/sessions/{id}/messages"), batch).await.expect(201);
    assert_eq!(words(&app.admin(), "mango").await, ["batched mango"]);
    let import = json!([{"id": "c", "messages": [{"content": "imported papaya"}]}]);
    app.admin().post("/api/v1/admin/import", import).await.expect(200);
    assert_eq!(words(&app.admin(), "papaya").await, ["imported papaya"]);
}

async fn a_hit_shows_message_session_score_ranks_and_snippets(app: TestApp) {
    let id = session_of(&app.admin(), "Trip to Lisbon", &["The tram climbs to Graça.", "And then?"]).await;
    let reply = search(&app.admin(), json!({"query": "graca", "mode": "text"})).await;
    let body = reply.expect(200);
    assert_eq!((body.get("degraded"), body.get("next_cursor")), (None, None));
    assert_eq!(reply.header("link"), None);
    let hit = &hits(&reply)[0];
    let message = app.admin().get(&format!("/api/v1/messages/{}", text(&hit["message"]["message_id"]))).await;
    assert_eq!(hit["message"], message.expect(200));
    assert_eq!((&hit["session_id"], &hit["session_name"]), (&json!(id), &json!("Trip to Lisbon")));
    assert_eq!(hit["ranks"], json!({"text": 1}));
    assert!(hit["score"].as_f64().is_some_and(|score| score > 0.0 && score.is_finite()));
    assert_eq!((&hit["context_before"], &hit["context_after"]), (&json!([]), &json!([])));
    assert_eq!(hit.get("session_hits"), None);
    let snippet = &hit["snippets"][0];
    let shown: Vec<char> = text(&snippet["text"]).chars().collect();
    let marked = |range: &Value| {
        let at = |n: usize| usize::try_from(range[n].as_u64().unwrap()).unwrap();
        shown[at(0)..at(1)].iter().collect::<String>()
    };
    let marked: Vec<String> = snippet["highlights"].as_array().unwrap().iter().map(marked).collect();
    assert_eq!(marked, ["Graça"]);
}

async fn the_short_forms_answer_what_the_body_answers(app: TestApp) {
    let id = session_of(&app.admin(), "a", &["red apple", "green apple", "pear"]).await;
    session_of(&app.admin(), "b", &["blue apple"]).await;
    let body = search(&app.admin(), json!({"query": "apple"})).await.expect(200);
    assert_eq!(body["hits"].as_array().map(Vec::len), Some(3));
    for path in ["?q=apple", "/?q=apple", "?q=pear&q=apple", "?q=apple&no_such=1&skip=5"] {
        assert_eq!(app.admin().get(&format!("{SEARCH}{path}")).await.expect(200), body, "{path}");
    }
    let within = search(&app.admin(), json!({"query": "apple", "session_id": id})).await.expect(200);
    assert_eq!(within["hits"].as_array().map(Vec::len), Some(2));
    for path in [format!("{SEARCH}?q=apple&session_id={id}"), format!("/api/v1/sessions/{id}/search?q=apple")] {
        assert_eq!(app.admin().get(&path).await.expect(200), within, "{path}");
    }
    // The path names the session, whatever stands in the query.
    let path = format!("/api/v1/sessions/{id}/search?q=apple&session_id={ABSENT}");
    assert_eq!(app.admin().get(&path).await.expect(200), within);
}

async fn every_filter_narrows(app: TestApp) {
    let ada = app.admin().with("x-user-id", "ada");
    let id = ada.new_session("n").await;
    let path = format!("/api/v1/sessions/{id}/messages");
    let first = r#"{"content": "tea one", "metadata": {"app": "x", "n": 1.50, "ok": true}}"#;
    let first = ada.post(&path, first).await;
    ada.post(&path, json!({"content": "tea two", "role": "assistant", "metadata": {"app": "x"}})).await.expect(201);
    ada.post(&path, json!({"content": "tea three", "kind": "reasoning"})).await.expect(201);
    app.admin().with("x-user-id", "eve").new_session("other").await;
    session_of(&app.admin().with("x-user-id", "eve"), "m", &["tea four"]).await;
    let at = text(&first.expect(201)["created_at"]);
    let cases = [
        (json!({}), String::new(), 4),
        (json!({"user_id": "ada"}), "user_id=ada".to_owned(), 3),
        (json!({"user_id": "nobody"}), "user_id=nobody".to_owned(), 0),
        (json!({"session_id": id}), format!("session_id={id}"), 3),
        (json!({"session_id": id, "user_id": "eve"}), format!("session_id={id}&user_id=eve"), 0),
        (json!({"role": "assistant"}), "role=assistant".to_owned(), 1),
        (json!({"kind": "reasoning"}), "kind=reasoning".to_owned(), 1),
        (json!({"metadata": {"app": "x"}}), "metadata[app]=x".to_owned(), 2),
        (json!({"metadata": {"app": "x", "ok": true}}), "metadata[app]=x&metadata[ok]=true".to_owned(), 1),
        (json!({"metadata": {"app": "y"}}), "metadata[app]=y".to_owned(), 0),
        (json!({"created_after": at}), format!("created_after={at}"), 4),
        (json!({"created_before": at}), format!("created_before={at}"), 0),
        (json!({"created_after": at, "created_before": at}), format!("created_after={at}&created_before={at}"), 0),
        (json!({"created_after": "9000-01-01T00:00:00Z"}), "created_after=9000-01-01T00:00:00Z".to_owned(), 0),
    ];
    for (filter, query, count) in cases {
        let mut body = json!({"query": "tea"});
        body.as_object_mut().unwrap().extend(filter.as_object().unwrap().clone());
        let by_body = search(&app.admin(), body).await;
        assert_eq!(hits(&by_body).len(), count, "{filter}");
        let by_query = app.admin().get(&format!("{SEARCH}?q=tea&{query}")).await;
        assert_eq!(by_query.expect(200), by_body.expect(200), "{query}");
    }
    // A number is compared as it was written.
    for (written, count) in [("1.50", 1), ("1.5", 0)] {
        let body = format!("{{\"query\": \"tea\", \"metadata\": {{\"n\": {written}}}}}");
        assert_eq!(hits(&app.admin().post(SEARCH, body).await).len(), count, "{written}");
    }
}

async fn a_session_that_is_not_there_is_a_404(app: TestApp) {
    let foreign = session_of(&app.stranger(), "n", &["apple"]).await;
    let bobs = session_of(&app.bob(), "n", &["apple"]).await;
    let deleted = session_of(&app.alice(), "n", &["apple"]).await;
    app.alice().delete(&format!("/api/v1/sessions/{deleted}")).await.expect(200);
    for id in [foreign.as_str(), &bobs, &deleted, ABSENT, "no-id", "%20"] {
        let replies = [
            search(&app.alice(), json!({"query": "apple", "session_id": id})).await,
            app.alice().get(&format!("{SEARCH}?q=apple&session_id={id}")).await,
            app.alice().get(&format!("/api/v1/sessions/{id}/search?q=apple")).await,
        ];
        for reply in replies {
            reply.expect_problem(404, "not_found");
        }
    }
}

async fn another_user_is_a_403(app: TestApp) {
    for client in [app.alice(), app.admin().with("x-user-id", "alice")] {
        search(&client, json!({"query": "x", "user_id": "bob"})).await.expect_problem(403, "user_mismatch");
        client.get(&format!("{SEARCH}?q=x&user_id=bob")).await.expect_problem(403, "user_mismatch");
        search(&client, json!({"query": "x", "user_id": "alice"})).await.expect(200);
    }
}

async fn a_search_needs_the_scope_search(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let key = app.key(chatstore_core::ids::ProjectId::DEFAULT, "search", None).await;
    for (client, status) in [(app.reader(), 403), (app.writer(), 403), (app.anon(), 401), (app.client(&key), 200)] {
        for reply in [
            search(&client, json!({"query": "x"})).await,
            client.get(&format!("{SEARCH}?q=x")).await,
            client.get(&format!("/api/v1/sessions/{id}/search?q=x")).await,
        ] {
            assert_eq!(reply.status, status, "{reply:?}");
        }
    }
}

async fn parameters_that_break_a_rule_are_a_422_that_points_at_them(app: TestApp) {
    let long = "x".repeat(5_000);
    let many: Value = (0..9).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into();
    for (body, pointers) in [
        (json!({}), vec!["/query"]),
        (json!({"query": null}), vec!["/query"]),
        (json!({"query": 5}), vec!["/query"]),
        (json!({"query": long}), vec!["/query"]),
        (json!({"mode": "text", "embedding": [1.0]}), vec!["/query"]),
        (json!({"query": "x", "mode": "fuzzy"}), vec!["/mode"]),
        (json!({"query": "x", "metric": "euclid"}), vec!["/metric"]),
        (json!({"query": "x", "limit": 0}), vec!["/limit"]),
        (json!({"query": "x", "limit": -1}), vec!["/limit"]),
        (json!({"query": "x", "limit": "5"}), vec!["/limit"]),
        (json!({"query": "x", "context_before": -1, "context_after": -7}), vec!["/context_before", "/context_after"]),
        (json!({"query": "x", "user_id": ""}), vec!["/user_id"]),
        (json!({"query": "x", "role": "r".repeat(257), "kind": "k".repeat(65)}), vec!["/role", "/kind"]),
        (json!({"query": "x", "metadata": []}), vec!["/metadata"]),
        (json!({"query": "x", "metadata": {"a": null}}), vec!["/metadata"]),
        (json!({"query": "x", "metadata": {"a": {"b": 1}}}), vec!["/metadata"]),
        (json!({"query": "x", "metadata": many}), vec!["/metadata"]),
        (json!({"query": "x", "created_after": "yesterday"}), vec!["/created_after"]),
        (json!({"query": "x", "embedding_model": ""}), vec!["/embedding_model"]),
        (json!({"query": "x", "embedding_model": "m".repeat(201)}), vec!["/embedding_model"]),
        (json!({"query": "x", "group_by_session": "yes"}), vec!["/group_by_session"]),
    ] {
        search(&app.admin(), body).await.expect_invalid(&pointers);
    }
    for (query, pointers) in [
        (String::new(), vec!["?q"]),
        (format!("q={long}"), vec!["?q"]),
        ("q=x&mode=fuzzy".to_owned(), vec!["?mode"]),
        ("q=x&limit=0".to_owned(), vec!["?limit"]),
        ("q=x&limit=-1".to_owned(), vec!["?limit"]),
        ("q=x&context_before=-1".to_owned(), vec!["?context_before"]),
        ("q=x&group_by_session=yes".to_owned(), vec!["?group_by_session"]),
        ("q=x&metadata=a".to_owned(), vec!["?metadata"]),
        ("q=x&created_before=never".to_owned(), vec!["?created_before"]),
        ("q=%00".to_owned(), vec!["?q"]),
        ("q=%FF".to_owned(), vec!["?q"]),
    ] {
        app.admin().get(&format!("{SEARCH}?{query}")).await.expect_invalid(&pointers);
    }
}

async fn a_limit_is_cut_and_context_too(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let batch: Vec<Value> = (0..130).map(|n| json!({"content": format!("word {n}")})).collect();
    app.admin().post(&format!("/api/v1/sessions/{id}/messages"), Value::from(batch)).await.expect(201);
    assert_eq!(hits(&search(&app.admin(), json!({"query": "word"})).await).len(), 20);
    for limit in [100, 101, 5_000_000_000_u64] {
        let reply = search(&app.admin(), json!({"query": "word", "limit": limit})).await;
        assert_eq!(hits(&reply).len(), 100, "{limit}");
    }
    let body = json!({"query": "\"word 60\"", "context_before": 5_000, "context_after": 11});
    let hit = &hits(&search(&app.admin(), body).await)[0];
    let around = [&hit["context_before"], &hit["context_after"]].map(|messages| messages.as_array().unwrap().len());
    assert_eq!(around, [10, 10]);
}

async fn context_shows_what_stands_around_a_hit(app: TestApp) {
    let id = session_of(&app.admin(), "n", &["one", "two", "three", "needle", "five", "six"]).await;
    let list = app.admin().get(&format!("/api/v1/sessions/{id}/messages?order=asc")).await;
    let two = text(&list.items()[1]["message_id"]);
    app.admin().delete(&format!("/api/v1/messages/{two}")).await.expect(200);
    let body = json!({"query": "needle", "context_before": 2, "context_after": 1});
    let hit = &hits(&search(&app.admin(), body).await)[0];
    let contents = |field: &str| -> Vec<String> {
        hit[field].as_array().unwrap().iter().map(|message| text(&message["content"])).collect()
    };
    assert_eq!(
        (contents("context_before"), contents("context_after")),
        (vec!["one".into(), "three".into()], vec!["five".into()])
    );
    assert_eq!(hit["context_before"][0], list.items()[0]);
}

async fn grouped_by_session_shows_the_best_of_each_and_counts(app: TestApp) {
    let first = session_of(&app.admin(), "a", &["apple apple apple", "an apple", "pear"]).await;
    let second = session_of(&app.admin(), "b", &["some apple and much else beside it in a long sentence"]).await;
    let all = search(&app.admin(), json!({"query": "apple"})).await;
    assert_eq!(hits(&all).len(), 3);
    let grouped = search(&app.admin(), json!({"query": "apple", "group_by_session": true})).await;
    let grouped = hits(&grouped);
    let counts: Vec<(String, u64)> =
        grouped.iter().map(|hit| (text(&hit["session_id"]), hit["session_hits"].as_u64().unwrap())).collect();
    assert_eq!(counts.len(), 2);
    assert!(counts.contains(&(first.clone(), 2)) && counts.contains(&(second, 1)), "{counts:?}");
    let best = |hits: &[Value]| hits.iter().find(|hit| hit["session_id"] == first).unwrap()["message"].clone();
    assert_eq!(best(&grouped), best(&hits(&all)));
}

async fn the_order_is_that_of_score_then_time(app: TestApp) {
    let id = app.admin().new_session("n").await;
    for n in 0..30 {
        app.admin().new_message(&id, &format!("apple {}", "filler ".repeat(n % 3))).await;
    }
    let reply = search(&app.admin(), json!({"query": "apple", "limit": 100})).await;
    let hits = hits(&reply);
    assert_eq!(hits.len(), 30);
    let key = |hit: &Value| (hit["score"].as_f64().unwrap(), text(&hit["message"]["created_at"]));
    for pair in hits.windows(2) {
        let (a, b) = (key(&pair[0]), key(&pair[1]));
        assert!(a.0 > b.0 || (a.0 == b.0 && a.1 > b.1), "{a:?} before {b:?}");
    }
    let ranks: Vec<u64> = hits.iter().map(|hit| hit["ranks"]["text"].as_u64().unwrap()).collect();
    assert_eq!(ranks, (1..=30).collect::<Vec<_>>());
    for _ in 0..3 {
        assert_eq!(search(&app.admin(), json!({"query": "apple", "limit": 100})).await.expect(200), reply.expect(200));
    }
}

async fn an_edit_is_found_by_its_new_words_alone(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let message = text(&app.admin().new_message(&id, "the old wombat").await["message_id"]);
    let path = format!("/api/v1/messages/{message}");
    app.admin().patch(&path, json!({"content": "the new quokka"})).await.expect(200);
    assert_eq!(words(&app.admin(), "wombat").await, Vec::<String>::new());
    assert_eq!(words(&app.admin(), "quokka").await, ["the new quokka"]);
    app.admin().patch(&path, json!({"payload": {"content": "numbat"}})).await.expect(200);
    assert_eq!(words(&app.admin(), "quokka").await, Vec::<String>::new());
    app.admin().patch(&path, json!({"metadata": {"a": 1}, "role": "assistant"})).await.expect(200);
    assert_eq!(hits(&search(&app.admin(), json!({"query": "numbat", "role": "assistant"})).await).len(), 1);
}

async fn what_is_deleted_is_not_found(app: TestApp) {
    let id = session_of(&app.admin(), "n", &["wombat one", "wombat two"]).await;
    let other = session_of(&app.admin(), "n", &["wombat three"]).await;
    let message = text(&hits(&search(&app.admin(), json!({"query": "two"})).await)[0]["message"]["message_id"]);
    app.admin().delete(&format!("/api/v1/messages/{message}")).await.expect(200);
    let mut left = words(&app.admin(), "wombat").await;
    left.sort();
    assert_eq!(left, ["wombat one", "wombat three"]);
    app.admin().delete(&format!("/api/v1/sessions/{id}")).await.expect(200);
    assert_eq!(words(&app.admin(), "wombat").await, ["wombat three"]);
    app.admin().delete(&format!("/api/v1/sessions/{other}")).await.expect(200);
    assert_eq!(words(&app.admin(), "wombat").await, Vec::<String>::new());
}

async fn a_search_without_words_finds_nothing(app: TestApp) {
    session_of(&app.admin(), "n", &["apple", "", "..."]).await;
    for query in ["", " ", "\t\n", "...", "\"\"", "-", "*"] {
        assert_eq!(words(&app.admin(), query).await, Vec::<String>::new(), "{query:?}");
    }
    assert_eq!(found(&app.admin().get(&format!("{SEARCH}?q=")).await), Vec::<String>::new());
}

async fn the_index_being_made_anew_is_said(app: TestApp) {
    use chatstore_core::search::Derived;

    session_of(&app.admin(), "n", &["apple"]).await;
    let degraded = async |mode: &str| {
        let answer = search(&app.admin(), json!({"query": "apple", "mode": mode})).await.expect(200);
        answer["degraded"].as_str().map(ToOwned::to_owned)
    };
    assert_eq!(degraded("text").await, None);
    app.store.start_reindex(Derived::Text).await.unwrap();
    assert!(degraded("text").await.is_some_and(|said| said.contains("index of words")));
    assert!(degraded("hybrid").await.is_some_and(|said| said.contains("index of words")));
    while app.store.reindex_some(Derived::Text).await.unwrap().more {}
    assert_eq!(degraded("text").await, None);
    assert_eq!(words(&app.admin(), "apple").await, ["apple"]);
}
