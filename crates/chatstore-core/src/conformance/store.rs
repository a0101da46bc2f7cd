//! What every engine does as a whole.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::audit::AuditQuery;
use crate::conformance::TestStore;
use crate::page::{MessagePosition, PageRequest};
use crate::sessions::SessionQuery;
use crate::store::StoreError;

pub async fn check_answers_ok(t: TestStore) {
    t.store.check().await.unwrap();
    t.session().await;
    t.store.check().await.unwrap();
}

pub async fn cursor_key_stays_the_same(t: TestStore) {
    let position = MessagePosition { seq: 7 };
    let cursor = t.store.cursor_key().await.unwrap().sign(&position, b"binding");
    t.session().await;
    assert_eq!(t.store.cursor_key().await.unwrap().verify(&cursor, b"binding"), Some(position));
}

pub async fn stats_count_appends_that_succeeded(t: TestStore) {
    let before = t.store.stats();
    let session = t.session().await;
    t.say(&session, "one").await;
    t.append(&session, vec![t.new_message(&session, "two"), t.new_message(&session, "three")]).await.unwrap();
    let absent = t.new_session(None).into_session(t.project.project_id);
    assert_eq!(t.append(&absent, vec![t.new_message(&absent, "x")]).await, Err(StoreError::NotFound));
    let after = t.store.stats();
    assert_eq!(after.appends - before.appends, 2);
    assert!(after.commits > before.commits);
}

/// A caller that is dropped after its write began, as when a client hangs up.
pub async fn writes_run_to_their_end_when_the_caller_goes_away(t: TestStore) {
    let session = t.session().await;
    let mut append = Box::pin(t.append(&session, vec![t.new_message(&session, "a"), t.new_message(&session, "b")]));
    poll_fn(|context| {
        let _ = append.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
    drop(append);
    let deadline = Instant::now() + Duration::from_secs(10);
    while t.reload(&session).await.message_count == 0 {
        assert!(Instant::now() < deadline, "the append never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(t.messages(&session).await.len(), 2);
}

pub async fn calls_after_close_are_unavailable(t: TestStore) {
    let session = t.session().await;
    let message = t.say(&session, "hi").await;
    t.store.close().await;
    let store = &t.store;
    let errors = [
        ("check", store.check().await.err()),
        ("cursor_key", store.cursor_key().await.err()),
        ("get_session", store.get_session(&t.project, session.session_id).await.err()),
        (
            "list_sessions",
            store.list_sessions(&t.project, &SessionQuery::default(), &PageRequest::default()).await.err(),
        ),
        ("create_session", store.create_session(&t.project, t.new_session(None), Vec::new(), None).await.err()),
        ("append_messages", t.append(&session, vec![t.new_message(&session, "late")]).await.err()),
        ("get_message", store.get_message(&t.project, message.message_id).await.err()),
        ("list_api_keys", store.list_api_keys(None, &PageRequest::default()).await.err()),
        ("get_project", store.get_project(t.project.project_id).await.err()),
        ("list_audit_events", store.list_audit_events(&AuditQuery::default(), &PageRequest::default()).await.err()),
        ("export_sessions", store.export_sessions(&t.project, None, 10).await.err()),
    ];
    for (method, error) in errors {
        assert!(matches!(error, Some(StoreError::Unavailable { .. })), "{method}: {error:?}");
    }
    store.close().await;
}
