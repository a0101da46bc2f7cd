//! What a process knows of the tries of SDKs that stands in no record: which failed, and which are at work.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use chatstore_core::rates::{ClassRates, Rates};
use chatstore_core::store::StoreError;
use chatstore_server::access::AccessSettings;
use chatstore_server::app::RequestLimits;
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::sdk_retries::{CONVERSATIONS, RETRY, assert_done, conversation, count, said, send};
use super::{SESSIONS, assert_replay};
use crate::app::{TestApp, access, api_tests, limits};
use crate::faulty::{Fault, FaultyStore};

api_tests! {
    the_retry_of_a_try_past_its_limit_is_a_request_of_its_own
    the_retry_of_a_try_that_found_no_room_is_a_request_of_its_own
    the_retry_of_a_try_that_came_too_slowly_is_a_request_of_its_own
    a_refusal_says_nothing_of_a_try_that_was_let_in
    the_retry_of_a_try_that_the_store_failed_is_a_request_of_its_own
    what_broke_off_leaves_nothing_that_another_request_could_pass_for
    strangers_push_out_nothing_that_is_known
    a_retry_waits_for_the_try_that_is_at_work
    a_retry_waits_not_for_ever
}

async fn limited(app: &TestApp) -> TestApp {
    let rates = ClassRates { writes: Rates::parse("2/second"), ..ClassRates::default() };
    app.with_access(AccessSettings { rates, ..access() }).await
}

async fn the_retry_of_a_try_past_its_limit_is_a_request_of_its_own(app: TestApp) {
    let id = conversation(&app.alice()).await;
    let app = limited(&app).await;
    let alice = app.alice();
    let (one, two) = (send(&alice, &id, "yes", "0").await, send(&alice, &id, "yes", "0").await);
    assert_eq!((one.status, two.status), (200, 200));
    // Two more that are meant, both refused; the one of them twice.
    for retry in ["0", "0", "1"] {
        assert_eq!(send(&alice, &id, "yes", retry).await.status, 429);
    }
    app.ctx.advance(Duration::from_secs(1));
    let three = send(&alice, &id, "yes", "1").await;
    let four = send(&alice, &id, "yes", "2").await;
    assert_done(&three);
    assert_done(&four);
    assert_eq!(count(&alice, &id).await, 4);
    // What they stored is known again, if their answers are lost.
    app.ctx.advance(Duration::from_secs(1));
    assert_replay(&four, &send(&alice, &id, "yes", "3").await);
    assert_replay(&three, &send(&alice, &id, "yes", "3").await);
    assert_eq!(count(&alice, &id).await, 4);
}

async fn a_refusal_says_nothing_of_a_try_that_was_let_in(app: TestApp) {
    let (id, other) = (conversation(&app.alice()).await, conversation(&app.alice()).await);
    let app = limited(&app).await;
    let alice = app.alice();
    let first = send(&alice, &id, "yes", "0").await;
    assert_done(&send(&alice, &other, "yes", "0").await);
    // Its answer was lost, its first retry refused, and so was a request to another conversation.
    assert_eq!(send(&alice, &id, "yes", "1").await.status, 429);
    assert_eq!(send(&alice, &other, "yes", "1").await.status, 429);
    app.ctx.advance(Duration::from_secs(1));
    assert_replay(&first, &send(&alice, &id, "yes", "2").await);
    assert_eq!(count(&alice, &id).await, 1);
}

async fn the_retry_of_a_try_that_the_store_failed_is_a_request_of_its_own(app: TestApp) {
    let id = conversation(&app.alice()).await;
    for error in [
        StoreError::Unavailable { reason: "it cannot be reached".to_owned() },
        StoreError::Full,
        StoreError::internal("a fault"),
    ] {
        let fails = Arc::new(AtomicBool::new(false));
        let fault = Fault::While(fails.clone(), error);
        let app = app.rebuild(|store| FaultyStore::wrap(store, "append_messages", fault), limits()).await;
        let alice = app.alice();
        let before = count(&alice, &id).await;
        let first = send(&alice, &id, "yes", "0").await;
        assert_done(&first);
        fails.store(true, Ordering::Relaxed);
        for retry in ["0", "1"] {
            let failed = send(&alice, &id, "yes", retry).await;
            assert!(failed.status >= 500, "{}", failed.text());
        }
        fails.store(false, Ordering::Relaxed);
        let second = send(&alice, &id, "yes", "2").await;
        assert_done(&second);
        assert_replay(&second, &send(&alice, &id, "yes", "3").await);
        assert_eq!(count(&alice, &id).await, before + 2);
        app.ctx.advance(Duration::from_secs(31));
    }
}

async fn what_broke_off_leaves_nothing_that_another_request_could_pass_for(app: TestApp) {
    let id = conversation(&app.alice()).await;
    let alice = app.alice();
    let body = said("yes").to_string();
    let (mut stream, _stop) = app.connect().await;
    let head = format!(
        "POST {CONVERSATIONS}/{id}/items HTTP/1.1\r\nhost: t\r\nx-api-key: {}\r\n{RETRY}: 0\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        app.alice_key(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..20]).await.unwrap();
    // Its retry comes before the server has met the end of it.
    let same = alice.with("content-length", body.len().to_string());
    assert_done(&send(&same, &id, "yes", "1").await);
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("\"body_incomplete\""), "{answer}");
    // Another request of this length, whose answer is lost.
    let other = send(&same, &id, "no!", "0").await;
    assert_replay(&other, &send(&same, &id, "no!", "1").await);
    assert_eq!(count(&alice, &id).await, 2);
}

async fn strangers_push_out_nothing_that_is_known(app: TestApp) {
    let id = conversation(&app.alice()).await;
    let rates = ClassRates { writes: Rates::parse("2/second"), ..ClassRates::default() };
    let failed_auth_rates = Rates::parse("60/minute").unwrap();
    let app = app.with_access(AccessSettings { rates, failed_auth_rates, ..access() }).await;
    let alice = app.alice();
    for status in [200, 200, 429] {
        assert_eq!(send(&alice, &id, "yes", "0").await.status, status);
    }
    let (stranger, mut statuses) = (app.anon().with("x-api-key", "guessed"), HashMap::new());
    for _ in 0..10_500 {
        *statuses.entry(send(&stranger, &id, "yes", "0").await.status).or_insert(0) += 1;
    }
    assert!(statuses[&429] > 10_000, "{statuses:?}");
    app.ctx.advance(Duration::from_secs(1));
    assert_done(&send(&alice, &id, "yes", "1").await);
}

async fn the_retry_of_a_try_that_found_no_room_is_a_request_of_its_own(app: TestApp) {
    let id = conversation(&app.alice()).await;
    let hang = |store| FaultyStore::wrap(store, "list_sessions", Fault::Hang);
    let app = app.rebuild_with(hang, AccessSettings { requests_max: 1, ..access() }, limits()).await;
    let alice = app.alice();
    assert_done(&send(&alice, &id, "yes", "0").await);
    // One that hangs, and eight that wait for it.
    let mut requests = JoinSet::new();
    for _ in 0..1 + 8 + 1 {
        let client = app.admin();
        requests.spawn(async move { client.get(SESSIONS).await });
    }
    requests.join_next().await.unwrap().unwrap().expect_problem(503, "overloaded");
    assert_eq!(send(&alice, &id, "yes", "0").await.status, 503);
    requests.shutdown().await;
    assert_done(&send(&alice, &id, "yes", "1").await);
    assert_eq!(count(&alice, &id).await, 2);
}

async fn the_retry_of_a_try_that_came_too_slowly_is_a_request_of_its_own(app: TestApp) {
    let id = conversation(&app.alice()).await;
    let short = RequestLimits { body_read_timeout: Duration::from_millis(200), ..limits() };
    let app = app.rebuild(|store| store, short).await;
    let alice = app.alice();
    assert_done(&send(&alice, &id, "yes", "0").await);
    let begun = futures_util::stream::iter([Ok::<_, std::io::Error>("{\"items\":")]);
    let slow = Body::from_stream(begun.chain(futures_util::stream::pending()));
    let path = format!("{CONVERSATIONS}/{id}/items");
    assert_eq!(alice.with(RETRY, "0").send(Method::POST, &path, slow).await.status, 408);
    assert_done(&send(&alice, &id, "yes", "1").await);
    assert_eq!(count(&alice, &id).await, 2);
}

async fn a_retry_waits_for_the_try_that_is_at_work(app: TestApp) {
    let id = conversation(&app.alice()).await;
    let (calls, release) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let held = Fault::Held(calls.clone(), release.clone());
    let app = app.rebuild(|store| FaultyStore::wrap(store, "append_messages", held), limits()).await;
    let alice = app.alice();
    let mut first = Box::pin(send(&alice, &id, "yes", "0"));
    while calls.load(Ordering::Relaxed) == 0 {
        assert!(timeout(Duration::from_millis(1), &mut first).await.is_err());
    }
    // The client goes away and tries again; what it sent first is on its way all the same.
    drop(first);
    let mut retry = Box::pin(send(&alice, &id, "yes", "1"));
    assert!(timeout(Duration::from_millis(300), &mut retry).await.is_err());
    assert_eq!(calls.load(Ordering::Relaxed), 1, "it is not in the store yet");
    release.cancel();
    let answer = retry.await;
    assert_eq!(answer.header("idempotent-replayed"), Some("true"), "{}", answer.text());
    assert_eq!(count(&alice, &id).await, 1);
}

async fn a_retry_waits_not_for_ever(app: TestApp) {
    let id = conversation(&app.alice()).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let held = Fault::Held(calls.clone(), CancellationToken::new());
    let app = app.rebuild(|store| FaultyStore::wrap(store, "append_messages", held), limits()).await;
    let alice = app.alice();
    let mut first = Box::pin(send(&alice, &id, "yes", "0"));
    while calls.load(Ordering::Relaxed) == 0 {
        assert!(timeout(Duration::from_millis(1), &mut first).await.is_err());
    }
    let refused = send(&alice, &id, "yes", "1").await;
    assert_eq!((refused.status, refused.header("x-should-retry")), (409, Some("true")), "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "request_in_flight");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}
