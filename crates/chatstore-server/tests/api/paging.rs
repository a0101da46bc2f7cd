//! Pages: limits, offsets, and the signed cursors that lead from one page to the next.

use serde_json::{Value, json};

use crate::app::{TestApp, api_tests};
use crate::client::{Client, text};

api_tests! {
    paging_that_is_no_natural_number_is_a_422
    an_offset_past_10000_is_a_422_that_names_cursor
    the_link_leads_through_the_whole_list_and_ends
    the_link_keeps_filters_order_and_slash
    a_page_that_fills_the_list_has_no_link
    pages_stay_whole_while_the_list_grows
    a_cursor_that_was_tampered_with_is_a_400
    a_cursor_fits_no_other_list
    a_cursor_and_an_offset_are_a_422
}

const SESSIONS: &str = "/api/v1/sessions";

/// A session with this many messages.
async fn session(client: &Client, messages: usize) -> String {
    let id = client.new_session("n").await;
    let path = format!("{SESSIONS}/{id}/messages");
    client.post(&path, Value::Array(vec![json!({"content": "x"}); messages])).await.expect(201);
    id
}

/// Every item from `path` on, and how many pages that took.
async fn walk(client: &Client, path: &str, field: &str) -> (Vec<Value>, usize) {
    let mut items = Vec::new();
    let mut next = Some(path.to_owned());
    for page in 0.. {
        let Some(path) = next else { return (items, page) };
        assert!(page < 50, "the list does not end");
        let reply = client.get(&path).await;
        items.extend(reply.column(field));
        next = reply.next();
    }
    unreachable!()
}

/// The cursor in the link of a list's first page.
async fn cursor(client: &Client, path: &str) -> String {
    let next = client.get(path).await.next().unwrap();
    next.split_once("cursor=").unwrap().1.to_owned()
}

async fn paging_that_is_no_natural_number_is_a_422(app: TestApp) {
    let id = app.admin().new_session("n").await;
    let lists = [SESSIONS.to_owned(), format!("{SESSIONS}/{id}/messages")];
    for list in &lists {
        for (query, pointer) in [
            ("limit=0", "?limit"),
            ("limit=-1", "?limit"),
            ("limit=ten", "?limit"),
            ("limit=", "?limit"),
            ("limit=1.5", "?limit"),
            ("limit=%2B1", "?limit"),
            ("limit=0x10", "?limit"),
            ("limit=%D9%A1", "?limit"),
            ("skip=-1", "?skip"),
            ("skip=x", "?skip"),
            ("offset=-1", "?offset"),
            ("offset=", "?offset"),
        ] {
            app.admin().get(&format!("{list}?{query}")).await.expect_invalid(&[pointer]);
        }
        app.admin()
            .get(&format!("{list}?limit=0&skip=-1&order=x"))
            .await
            .expect_invalid(&["?order", "?limit", "?skip"]);
        assert_eq!(app.admin().get(&format!("{list}?limit=1&skip=0")).await.status, 200);
    }
}

async fn an_offset_past_10000_is_a_422_that_names_cursor(app: TestApp) {
    let id = app.admin().new_session("n").await;
    for list in [SESSIONS.to_owned(), format!("{SESSIONS}/{id}/messages")] {
        for name in ["skip", "offset"] {
            assert_eq!(app.admin().get(&format!("{list}?{name}=10000")).await.text(), "[]");
            for depth in ["10001", "99999999999999999999999"] {
                let reply = app.admin().get(&format!("{list}?{name}={depth}")).await;
                reply.expect_invalid(&[&format!("?{name}")]);
                assert!(text(&reply.json()["errors"][0]["detail"]).contains("cursor"));
            }
        }
    }
}

async fn the_link_leads_through_the_whole_list_and_ends(app: TestApp) {
    for n in 0..7 {
        app.admin().new_session(&n.to_string()).await;
    }
    let names = |order: &[i32]| order.iter().map(|n| json!(n.to_string())).collect::<Vec<_>>();
    for sort in ["created_at", "updated_at", "last_message_at"] {
        for limit in 1..=7 {
            let path = format!("{SESSIONS}?sort={sort}&limit={limit}");
            assert_eq!(
                walk(&app.admin(), &path, "session_name").await,
                (names(&[0, 1, 2, 3, 4, 5, 6]), 7_usize.div_ceil(limit))
            );
        }
        let path = format!("{SESSIONS}?sort={sort}&order=desc&limit=3");
        assert_eq!(walk(&app.admin(), &path, "session_name").await, (names(&[6, 5, 4, 3, 2, 1, 0]), 3));
    }
    let id = session(&app.admin(), 45).await;
    let seqs: Vec<Value> = (1..=45).map(|seq| json!(seq)).collect();
    let path = format!("{SESSIONS}/{id}/messages");
    let (down, pages) = walk(&app.admin(), &path, "seq").await;
    assert_eq!((down.into_iter().rev().collect::<Vec<_>>(), pages), (seqs.clone(), 3));
    assert_eq!(walk(&app.admin(), &format!("{path}?order=asc&skip=5&limit=20"), "seq").await, (seqs[5..].to_vec(), 2));
}

async fn the_link_keeps_filters_order_and_slash(app: TestApp) {
    for n in 0..5 {
        let body = json!({"session_name": n.to_string(), "user_id": "a&b=c d", "metadata": {"k é": "v+%"}});
        app.admin().post(SESSIONS, body).await.expect(201);
        app.admin().new_session("other").await;
    }
    let query = "user_id=a%26b%3Dc%20d&metadata[k%20%C3%A9]=v%2B%25&order=desc&sort=updated_at&limit=2&unknown=1";
    for path in [SESSIONS.to_owned(), format!("{SESSIONS}/")] {
        let names: Vec<Value> = ["4", "3", "2", "1", "0"].map(|name| json!(name)).to_vec();
        assert_eq!(walk(&app.admin(), &format!("{path}?{query}"), "session_name").await, (names, 3));
        let next = app.admin().get(&format!("{path}?{query}")).await.next().unwrap();
        assert!(next.starts_with(&format!("{path}?")), "{next}");
        for kept in ["user_id=a%26b%3Dc%20d", "order=desc", "sort=updated_at", "limit=2", "cursor="] {
            assert!(next.contains(kept), "{kept} in {next}");
        }
        assert!(!next.contains("skip="), "{next}");
        let after_skip = app.admin().get(&format!("{path}?limit=2&skip=1&offset=1")).await.next().unwrap();
        assert!(!after_skip.contains("skip") && !after_skip.contains("offset"), "{after_skip}");
    }
    let id = session(&app.admin(), 6).await;
    let path = format!("{SESSIONS}/{id}/messages/?after_seq=1&before_seq=6&role=user&limit=2");
    assert_eq!(walk(&app.admin(), &path, "seq").await, (vec![json!(5), json!(4), json!(3), json!(2)], 2));
    let next = app.admin().get(&path).await.next().unwrap();
    assert!(next.starts_with(&format!("{SESSIONS}/{id}/messages/?after_seq=1&before_seq=6&role=user&limit=2&cursor=")));
}

async fn a_page_that_fills_the_list_has_no_link(app: TestApp) {
    let id = session(&app.admin(), 20).await;
    let path = format!("{SESSIONS}/{id}/messages");
    assert_eq!(app.admin().get(&path).await.next(), None);
    assert_eq!(app.admin().get(&format!("{path}?limit=20&order=asc")).await.next(), None);
    assert_eq!(app.admin().get(&format!("{SESSIONS}?limit=1")).await.next(), None);
    assert_eq!(app.admin().get(&format!("{SESSIONS}?skip=5")).await.next(), None);
}

async fn pages_stay_whole_while_the_list_grows(app: TestApp) {
    let id = session(&app.admin(), 6).await;
    let path = format!("{SESSIONS}/{id}/messages?limit=3");
    let first = app.admin().get(&path).await;
    app.admin().new_message(&id, "late").await;
    let second = app.admin().get(&first.next().unwrap()).await;
    assert_eq!([first.column("seq"), second.column("seq")].concat(), [6, 5, 4, 3, 2, 1]);
    let last = text(&first.items()[2]["message_id"]);
    app.admin().delete(&format!("/api/v1/messages/{last}")).await.expect(200);
    assert_eq!(
        app.admin().get(&first.next().unwrap()).await.column("seq"),
        [3, 2, 1],
        "the place stays when its item goes"
    );
}

async fn a_cursor_that_was_tampered_with_is_a_400(app: TestApp) {
    let id = session(&app.admin(), 3).await;
    app.admin().new_session("second").await;
    for list in [SESSIONS.to_owned(), format!("{SESSIONS}/{id}/messages")] {
        let good = cursor(&app.admin(), &format!("{list}?limit=1")).await;
        let send = async |cursor: &str| app.admin().get(&format!("{list}?limit=1&cursor={cursor}")).await;
        assert_eq!(send(&good).await.status, 200);
        let mut forged: Vec<String> =
            ["", "x", "AAAA", "%00", "%FF", "null", "0", "-1"].map(ToOwned::to_owned).to_vec();
        forged.extend([
            good[1..].to_owned(),
            good[..good.len() - 1].to_owned(),
            format!("{good}A"),
            format!("{good}%3D"),
        ]);
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'Q' } else { b'A' };
            forged.push(String::from_utf8(bytes).unwrap());
        }
        for forged in forged.iter().filter(|forged| !matches!(forged.as_str(), "%00" | "%FF")) {
            send(forged).await.expect_problem(400, "invalid_cursor");
        }
        for undecodable in ["%00", "%FF"] {
            send(undecodable).await.expect_invalid(&["?cursor"]);
        }
    }
}

async fn a_cursor_fits_no_other_list(app: TestApp) {
    let (id, other) = (session(&app.alice(), 3).await, session(&app.alice(), 3).await);
    session(&app.bob(), 3).await;
    session(&app.bob(), 3).await;
    let foreign = session(&app.stranger(), 3).await;
    session(&app.stranger(), 3).await;
    let messages = |id: &str| format!("{SESSIONS}/{id}/messages");
    let made = [
        (app.alice(), SESSIONS.to_owned(), "limit=1"),
        (app.alice(), SESSIONS.to_owned(), "limit=1&order=desc"),
        (app.alice(), SESSIONS.to_owned(), "limit=1&sort=updated_at"),
        (app.alice(), SESSIONS.to_owned(), "limit=1&is_favorite=false"),
        (app.alice(), SESSIONS.to_owned(), "limit=1&user_id=alice"),
        (app.alice(), SESSIONS.to_owned(), "limit=1&created_after=2001-01-01T00:00:00Z"),
        (app.bob(), SESSIONS.to_owned(), "limit=1"),
        (app.stranger(), SESSIONS.to_owned(), "limit=1"),
        (app.admin(), SESSIONS.to_owned(), "limit=1"),
        (app.alice(), messages(&id), "limit=1"),
        (app.alice(), messages(&id), "limit=1&order=asc"),
        (app.alice(), messages(&id), "limit=1&role=user"),
        (app.alice(), messages(&id), "limit=1&after_seq=1"),
        (app.alice(), messages(&other), "limit=1"),
        (app.admin(), messages(&id), "limit=1"),
        (app.stranger(), messages(&foreign), "limit=1"),
    ];
    for (n, (maker, list, query)) in made.iter().enumerate() {
        let cursor = cursor(maker, &format!("{list}?{query}")).await;
        for (m, (user, list, query)) in made.iter().enumerate() {
            let reply = user.get(&format!("{list}?{query}&cursor={cursor}")).await;
            if n == m {
                reply.expect(200);
            } else {
                reply.expect_problem(400, "invalid_cursor");
            }
        }
    }
}

async fn a_cursor_and_an_offset_are_a_422(app: TestApp) {
    let id = session(&app.admin(), 3).await;
    let list = format!("{SESSIONS}/{id}/messages");
    let cursor = cursor(&app.admin(), &format!("{list}?limit=1")).await;
    app.admin().get(&format!("{list}?limit=1&cursor={cursor}&skip=1")).await.expect_invalid(&["?cursor"]);
    let sized = app.admin().get(&format!("{list}?limit=2&cursor={cursor}")).await;
    assert_eq!(sized.column("seq"), [2, 1], "the size of a page may change on the way");
}
