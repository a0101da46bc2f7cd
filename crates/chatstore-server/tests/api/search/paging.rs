//! Pages of a search, and their cursors.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{SEARCH, hits, search, session_of};
use crate::app::{TestApp, api_tests};
use crate::client::{Client, text};

api_tests! {
    a_walk_by_cursor_shows_every_hit_once_in_order
    a_walk_by_link_shows_the_same
    a_walk_shows_every_hit_once_while_messages_are_appended
    a_walk_goes_on_behind_a_hit_that_is_gone
    a_grouped_walk_shows_every_session_once
    a_cursor_fits_no_other_search_and_nobody_else
    a_page_of_large_messages_ends_early
}

/// The ids of all hits, page by page.
async fn walk(client: &Client, body: &Value, mut between: impl AsyncFnMut()) -> Vec<String> {
    let mut ids = Vec::new();
    let mut body = body.clone();
    loop {
        let reply = search(client, body.clone()).await;
        ids.extend(hits(&reply).iter().map(|hit| text(&hit["message"]["message_id"])));
        assert_eq!(reply.header("link"), None, "no link can hold a body");
        match reply.expect(200).get("next_cursor") {
            Some(cursor) => body["cursor"] = cursor.clone(),
            None => return ids,
        }
        between().await;
    }
}

/// 45 messages in 9 sessions that fit in three ways.
async fn fill(client: &Client) {
    for n in 0..9 {
        let messages: Vec<String> = (0..5).map(|m| format!("apple {}{n} {m}", "pie ".repeat(m % 3))).collect();
        let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
        session_of(client, "n", &messages).await;
    }
}

async fn whole(client: &Client) -> Vec<String> {
    let reply = search(client, json!({"query": "apple", "limit": 100})).await;
    hits(&reply).iter().map(|hit| text(&hit["message"]["message_id"])).collect()
}

async fn a_walk_by_cursor_shows_every_hit_once_in_order(app: TestApp) {
    fill(&app.admin()).await;
    let whole = whole(&app.admin()).await;
    assert_eq!(whole.len(), 45);
    for limit in [1, 7, 20, 44, 45] {
        let ids = walk(&app.admin(), &json!({"query": "apple", "limit": limit}), async || ()).await;
        assert_eq!(ids, whole, "{limit}");
    }
}

async fn a_walk_by_link_shows_the_same(app: TestApp) {
    fill(&app.admin()).await;
    let whole = whole(&app.admin()).await;
    let session = text(&app.admin().get("/api/v1/sessions").await.items()[0]["session_id"]);
    for (path, count) in [(SEARCH.to_owned(), 45), (format!("/api/v1/sessions/{session}/search"), 5)] {
        let mut ids: Vec<String> = Vec::new();
        let mut next = Some(format!("{path}?q=apple&limit=2&context_after=1"));
        while let Some(path) = next {
            let reply = app.admin().get(&path).await;
            ids.extend(hits(&reply).iter().map(|hit| text(&hit["message"]["message_id"])));
            next = reply.next();
            let cursor = reply.expect(200).get("next_cursor").map(text);
            assert_eq!(
                next.as_deref().map(|next| next.ends_with(&cursor.clone().unwrap())),
                cursor.as_ref().map(|_| true)
            );
        }
        assert_eq!(ids.len(), count);
        let kept: Vec<&String> = whole.iter().filter(|id| ids.contains(id)).collect();
        assert_eq!(ids.iter().collect::<Vec<_>>(), kept);
    }
}

async fn a_walk_shows_every_hit_once_while_messages_are_appended(app: TestApp) {
    fill(&app.admin()).await;
    let whole = whole(&app.admin()).await;
    let id = app.admin().new_session("later").await;
    let between = async || {
        // A better fit than any, and a worse one.
        app.admin().new_message(&id, "apple").await;
        app.admin().new_message(&id, &format!("apple {}", "crumble ".repeat(50))).await;
    };
    assert_eq!(walk(&app.admin(), &json!({"query": "apple", "limit": 4}), between).await, whole);
    assert_eq!(self::whole(&app.admin()).await.len(), 45 + 22);
}

async fn a_walk_goes_on_behind_a_hit_that_is_gone(app: TestApp) {
    fill(&app.admin()).await;
    let whole = whole(&app.admin()).await;
    let mut seen: Vec<String> = Vec::new();
    let mut body = json!({"query": "apple", "limit": 5});
    loop {
        let reply = search(&app.admin(), body.clone()).await;
        seen.extend(hits(&reply).iter().map(|hit| text(&hit["message"]["message_id"])));
        let Some(cursor) = reply.expect(200).get("next_cursor").cloned() else { break };
        body["cursor"] = cursor;
        // The very hit that the cursor stands at.
        app.admin().delete(&format!("/api/v1/messages/{}", seen.last().unwrap())).await.expect(200);
    }
    assert_eq!(seen, whole);
}

async fn a_grouped_walk_shows_every_session_once(app: TestApp) {
    fill(&app.admin()).await;
    let body = json!({"query": "apple", "limit": 2, "group_by_session": true});
    let ids = walk(&app.admin(), &body, async || ()).await;
    assert_eq!(ids.len(), 9);
    let mut body = body;
    let mut sessions = HashSet::new();
    loop {
        let reply = search(&app.admin(), body.clone()).await;
        for hit in hits(&reply) {
            assert!(sessions.insert(text(&hit["session_id"])));
            assert_eq!(hit["session_hits"], 5);
        }
        let Some(cursor) = reply.expect(200).get("next_cursor").cloned() else { break };
        body["cursor"] = cursor;
    }
    assert_eq!(sessions.len(), 9);
}

async fn a_cursor_fits_no_other_search_and_nobody_else(app: TestApp) {
    let alice = app.alice();
    session_of(&alice, "n", &["apple one", "apple two", "apple three"]).await;
    session_of(&app.bob(), "n", &["apple one", "apple two", "apple three"]).await;
    let body = json!({"query": "apple", "limit": 1});
    let cursor = text(&search(&alice, body.clone()).await.expect(200)["next_cursor"]);
    let with = |more: Value| {
        let mut body = body.clone();
        body["cursor"] = json!(cursor);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for same in [json!({}), json!({"limit": 2}), json!({"mode": "hybrid"}), json!({"user_id": null})] {
        search(&alice, with(same)).await.expect(200);
    }
    for other in [
        json!({"query": "apples"}),
        json!({"mode": "text"}),
        json!({"metric": "l2"}),
        json!({"role": "user"}),
        json!({"kind": "message"}),
        json!({"metadata": {"a": "b"}}),
        json!({"created_after": "2020-01-01T00:00:00Z"}),
        json!({"created_before": "2030-01-01T00:00:00Z"}),
        json!({"group_by_session": true}),
        json!({"context_before": 1}),
        json!({"embedding": [1.0]}),
        json!({"embedding_model": "m"}),
        json!({"user_id": "alice"}),
    ] {
        search(&alice, with(other)).await.expect_problem(400, "invalid_cursor");
    }
    for client in [app.bob(), app.admin(), app.stranger()] {
        search(&client, with(json!({}))).await.expect_problem(400, "invalid_cursor");
    }
    let list = app.alice().get("/api/v1/sessions?limit=1").await;
    assert_eq!(list.next(), None);
    let mut spoilt = cursor.clone().into_bytes();
    for at in 0..spoilt.len() {
        let kept = spoilt[at];
        spoilt[at] = if kept == b'A' { b'B' } else { b'A' };
        let text = String::from_utf8(spoilt.clone()).unwrap();
        // The last character may hold bits that no byte is made of.
        if at + 1 < spoilt.len() {
            search(&alice, with(json!({"cursor": text}))).await.expect_problem(400, "invalid_cursor");
        }
        spoilt[at] = kept;
    }
    for none in ["", "A", "no cursor"] {
        search(&alice, with(json!({"cursor": none}))).await.expect_problem(400, "invalid_cursor");
    }
}

async fn a_page_of_large_messages_ends_early(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let large = format!("apple {}", "x".repeat((1 << 20) - 10));
    for _ in 0..20 {
        app.admin().new_message(&id, &large).await;
    }
    let first = search(&app.admin(), json!({"query": "apple", "limit": 100})).await;
    assert_eq!(hits(&first).len(), 16);
    let ids = walk(&app.admin(), &json!({"query": "apple", "limit": 100}), async || ()).await;
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (20, 20));
}
