//! References to items: which items they mean, how much they bring in, and what they mean when a request comes again.

use chatstore_core::store::Quotas;
use chatstore_server::access::AccessSettings;
use chatstore_server::app::RequestLimits;
use serde_json::json;

use super::{created, new_path};
use crate::app::{TestApp, access, api_tests, limits};
use crate::client::{Reply, text};

api_tests! {
    a_reference_means_an_item_that_may_be_read
    an_item_is_referenced_once_and_by_its_own_name
    references_bring_in_no_more_than_a_body_may_hold
    what_references_bring_in_counts_against_the_quota
    a_request_that_comes_again_means_the_same_items
}

async fn a_reference_means_an_item_that_may_be_read(app: TestApp) {
    let path = new_path(&app.alice()).await;
    let stored =
        created(&app.alice(), &path, json!([{"role": "user", "content": "a"}, {"type": "x", "id": "x1", "n": 1.50}]))
            .await;
    let of = |id: &str| json!([{"type": "item_reference", "id": id}]);
    let minted = text(&stored[0]["id"]);
    for (id, item) in [(minted.as_str(), &stored[0]), ("x1", &stored[1])] {
        assert_eq!(&created(&app.alice(), &path, of(id)).await[0], item);
    }
    assert_eq!(app.alice().get(&path).await.expect(200)["data"].as_array().unwrap().len(), 2);
    let other = new_path(&app.alice()).await;
    assert_eq!(created(&app.alice(), &other, of(&minted)).await[0], stored[0]);
    assert_eq!(app.alice().get(&other).await.expect(200)["data"], json!([stored[0]]));
    // An id of the client's own means something in its conversation alone.
    app.alice().post(&other, json!({"items": of("x1")})).await.expect_refused("items[0].id", "invalid_value");
    let mut refused: Vec<Reply> = Vec::new();
    for client in [app.bob(), app.stranger()] {
        let theirs = new_path(&client).await;
        for id in [minted.as_str(), "msg_019b0f3e5c007a419d523f6a8c1e2b47", "nothing"] {
            refused.push(client.post(&theirs, json!({"items": of(id)})).await);
        }
    }
    refused.push(app.bob().post("/v1/conversations", json!({"items": of(&minted)})).await);
    for reply in &refused {
        reply.expect_refused("items[0].id", "invalid_value");
        assert_eq!(reply.anonymous(), refused[0].anonymous());
    }
}

async fn an_item_is_referenced_once_and_by_its_own_name(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let id = text(&created(&app.admin(), &path, json!([{"type": "function_call", "name": "f"}])).await[0]["id"]);
    let digits = id.strip_prefix("fc_").unwrap();
    let named = |prefixes: &[&str]| {
        let items: Vec<_> = prefixes.iter().map(|prefix| json!({"id": format!("{prefix}_{digits}")})).collect();
        json!({"items": items})
    };
    for path in [&path, &new_path(&app.admin()).await] {
        for prefixes in [["fc", "fc"], ["fc", "msg"]] {
            let refused = app.admin().post(path, named(&prefixes)).await;
            refused.expect_refused("items", "item_already_in_conversation");
            assert!(refused.text().contains("items[1]"), "{}", refused.text());
        }
        for prefix in ["rs", "aa", "fc_fc"] {
            app.admin().post(path, named(&[prefix])).await.expect_refused("items[0].id", "invalid_value");
        }
    }
    assert_eq!(app.admin().get(&path).await.expect(200)["data"].as_array().unwrap().len(), 1);
}

async fn references_bring_in_no_more_than_a_body_may_hold(app: TestApp) {
    let app = app.rebuild(|store| store, RequestLimits { body_bytes_max: 10_000, ..limits() }).await;
    let path = new_path(&app.admin()).await;
    let mut names = Vec::new();
    for n in 0..4 {
        let item = json!([{"type": "reasoning", "encrypted_content": n.to_string().repeat(3_000)}]);
        names.push(json!({"id": created(&app.admin(), &path, item).await[0]["id"]}));
    }
    for path in ["/v1/conversations", &path, &new_path(&app.admin()).await] {
        let too_many = app.admin().post(path, json!({"items": names})).await;
        too_many.expect_problem(413, "body_too_large");
        assert!(too_many.text().contains("10000 bytes"), "{}", too_many.text());
        app.admin().post(path, json!({"items": &names[..3]})).await.expect(200);
    }
}

async fn what_references_bring_in_counts_against_the_quota(app: TestApp) {
    let quotas = Quotas { project_bytes: Some(30_000), ..Quotas::default() };
    let app = app.with_access(AccessSettings { quotas, ..access() }).await;
    let path = new_path(&app.admin()).await;
    let large = json!([{"type": "reasoning", "encrypted_content": "x".repeat(4_000)}]);
    let body = json!({"items": [{"id": created(&app.admin(), &path, large).await[0]["id"]}]});
    // In its own conversation it is there already.
    for _ in 0..10 {
        app.admin().post(&path, &body).await.expect(200);
    }
    let mut replies = Vec::new();
    for _ in 0..10 {
        replies.push(app.admin().post("/v1/conversations", &body).await);
        if replies.last().is_some_and(|reply| reply.status != 200) {
            break;
        }
    }
    replies.last().unwrap().expect_problem(403, "quota_exceeded");
    assert!((4..=8).contains(&replies.len()), "{}", replies.len());
}

async fn a_request_that_comes_again_means_the_same_items(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let ids: Vec<String> = created(&app.admin(), &path, json!([{"role": "user", "content": "a"}, {"type": "x"}]))
        .await
        .iter()
        .map(|item| text(&item["id"]))
        .collect();
    let other = new_path(&app.admin()).await;
    let body = json!({"items": [{"id": ids[0]}, {"role": "user", "content": "new"}]});
    let keyed = app.admin().with("idempotency-key", "once");
    let paths = ["/v1/conversations", &path, &other];
    let mut first = Vec::new();
    for path in paths {
        first.push(keyed.post(path, &body).await);
        assert_eq!((first.last().unwrap().status, first.last().unwrap().header("idempotent-replayed")), (200, None));
    }
    let is_first = async |n: usize| {
        let again = keyed.post(paths[n], &body).await;
        assert_eq!((again.text(), again.header("idempotent-replayed")), (first[n].text(), Some("true")));
    };
    for n in 0..3 {
        is_first(n).await;
    }
    keyed.post(&other, json!({"items": [{"id": ids[1]}]})).await.expect_problem(422, "idempotency_key_reused");
    app.admin().delete(&format!("{path}/{}", ids[0])).await.expect(200);
    // Their copies stand; the item itself does not.
    is_first(0).await;
    is_first(2).await;
    keyed.post(&path, &body).await.expect_problem(410, "gone");
    app.admin().post(&other, json!({"items": [{"id": ids[0]}]})).await.expect(200);
    app.admin().post(&path, &body).await.expect_refused("items[0].id", "invalid_value");
    app.admin().delete(&format!("{other}/{}", ids[0])).await.expect(200);
    keyed.post(&other, &body).await.expect_problem(410, "gone");
    app.admin().delete(&format!("/v1/conversations/{}", text(&first[0].json()["id"]))).await.expect(200);
    keyed.post("/v1/conversations", &body).await.expect_problem(410, "gone");
}
