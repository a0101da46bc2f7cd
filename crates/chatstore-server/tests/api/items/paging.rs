//! Pages of items: in both orders, from both sides, of every length.

use chatstore_core::limits::PAGE_BYTES_MAX;
use serde_json::json;

use super::new_path;
use crate::app::{TestApp, api_tests};
use crate::client::{Client, text};

api_tests! {
    list_items_walks_lists_of_every_length
    list_items_looks_both_ways
    list_items_begins_at_what_was_deleted
    list_items_ends_a_page_early_and_says_so
    list_items_refuses_what_it_does_not_know
}

/// The ids of a page, and whether there is more.
async fn page(client: &Client, path: &str) -> (Vec<String>, bool) {
    let body = client.get(path).await.expect(200);
    let ids: Vec<String> = body["data"].as_array().unwrap().iter().map(|item| text(&item["id"])).collect();
    assert_eq!(
        (body["first_id"].as_str(), body["last_id"].as_str()),
        (ids.first().map(String::as_str), ids.last().map(String::as_str))
    );
    (ids, body["has_more"].as_bool().unwrap())
}

/// Appends items, and gives their ids.
async fn append(client: &Client, path: &str, count: usize) -> Vec<String> {
    let items: Vec<_> = (0..count).map(|n| json!({"role": "user", "content": n.to_string()})).collect();
    let body = client.post(path, json!({"items": items})).await.expect(200);
    body["data"].as_array().unwrap().iter().map(|item| text(&item["id"])).collect()
}

async fn list_items_walks_lists_of_every_length(app: TestApp) {
    for count in [0, 1, 20, 21, 100, 101] {
        let path = new_path(&app.admin()).await;
        let made = append(&app.admin(), &path, count).await;
        for order in ["asc", "desc"] {
            let mut expected = made.clone();
            if order == "desc" {
                expected.reverse();
            }
            for limit in [1, 20, 100] {
                if limit == 1 && count > 21 {
                    continue;
                }
                let (mut found, mut pages, mut after) = (Vec::new(), 0, String::new());
                loop {
                    let (ids, more) = page(&app.admin(), &format!("{path}?order={order}&limit={limit}{after}")).await;
                    after = format!("&after={}", ids.last().cloned().unwrap_or_default());
                    pages += 1;
                    found.extend(ids);
                    if !more {
                        break;
                    }
                }
                assert_eq!((&found, pages), (&expected, count.div_ceil(limit).max(1)), "{count} {order} {limit}");
            }
        }
        let (first, more) = page(&app.admin(), &path).await;
        let newest: Vec<String> = made.iter().rev().take(20).cloned().collect();
        assert_eq!((first, more), (newest, count > 20), "the default is the newest 20");
    }
}

async fn list_items_looks_both_ways(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let made = append(&app.admin(), &path, 30).await;
    let desc: Vec<String> = made.iter().rev().cloned().collect();
    for (order, all) in [("asc", &made), ("desc", &desc)] {
        for (query, found, more) in [
            (format!("after={}", all[27]), &all[28..], false),
            (format!("after={}&limit=2", all[27]), &all[28..], false),
            (format!("after={}&limit=1", all[27]), &all[28..29], true),
            (format!("after={}", all[29]), &all[30..], false),
            (format!("before={}", all[0]), &all[..0], false),
            (format!("before={}", all[20]), &all[..20], false),
            (format!("before={}", all[21]), &all[1..21], true),
            (format!("before={}&limit=2", all[2]), &all[..2], false),
            (format!("after={}&before={}", all[3], all[9]), &all[4..9], false),
            (format!("after={}&before={}&limit=5", all[3], all[9]), &all[4..9], false),
            (format!("after={}&before={}&limit=4", all[3], all[9]), &all[4..8], true),
            (format!("after={}&before={}", all[9], all[3]), &all[..0], false),
            (format!("after={}&before={}", all[3], all[4]), &all[..0], false),
        ] {
            let found = (found.to_vec(), more);
            assert_eq!(page(&app.admin(), &format!("{path}?order={order}&{query}")).await, found, "{order} {query}");
        }
    }
}

async fn list_items_begins_at_what_was_deleted(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let made = append(&app.admin(), &path, 5).await;
    app.admin().delete(&format!("{path}/{}", made[2])).await.expect(200);
    for (query, found) in [
        (format!("after={}", made[2]), vec![&made[1], &made[0]]),
        (format!("after={}&order=asc", made[2]), vec![&made[3], &made[4]]),
        (format!("before={}", made[2]), vec![&made[4], &made[3]]),
    ] {
        let found: Vec<String> = found.into_iter().cloned().collect();
        assert_eq!(page(&app.admin(), &format!("{path}?{query}")).await, (found, false), "{query}");
    }
}

async fn list_items_ends_a_page_early_and_says_so(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let large = "x".repeat(1 << 20);
    let mut made = Vec::new();
    for _ in 0..10 {
        let body = app.admin().post(&path, json!({"items": [{"role": "user", "content": large}]})).await.expect(200);
        made.push(text(&body["last_id"]));
    }
    // A message holds the text twice: in its bytes, and as what is searched.
    let at_once = (PAGE_BYTES_MAX / (2 << 20)).max(1);
    let (first, more) = page(&app.admin(), &format!("{path}?order=asc&limit=100")).await;
    assert!(more && first == made[..first.len()] && first.len().abs_diff(at_once) <= 1, "{}", first.len());
    let rest = page(&app.admin(), &format!("{path}?order=asc&limit=100&after={}", first.last().unwrap())).await;
    assert_eq!(rest, (made[first.len()..].to_vec(), false));
}

async fn list_items_refuses_what_it_does_not_know(app: TestApp) {
    let path = new_path(&app.admin()).await;
    let elsewhere = append(&app.admin(), &new_path(&app.admin()).await, 1).await;
    for (query, param) in [
        ("limit=0".to_owned(), "limit"),
        ("limit=101".to_owned(), "limit"),
        ("limit=-1".to_owned(), "limit"),
        ("limit=1.5".to_owned(), "limit"),
        ("limit=%2B5".to_owned(), "limit"),
        ("limit=".to_owned(), "limit"),
        ("limit=ten".to_owned(), "limit"),
        ("order=newest".to_owned(), "order"),
        ("after=nothing".to_owned(), "after"),
        ("after=".to_owned(), "after"),
        ("before=nothing".to_owned(), "before"),
        (format!("after={}", elsewhere[0]), "after"),
        (format!("before={}", elsewhere[0]), "before"),
    ] {
        app.admin().get(&format!("{path}?{query}")).await.expect_refused(param, "invalid_value");
    }
    app.admin().get(&format!("{path}?item_type=message&x=y")).await.expect(200);
}
