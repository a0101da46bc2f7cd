//! What every engine does with sessions.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::clock::Timestamp;
use crate::conformance::{HOUR_US, ODD_JSON, ODD_TEXT, STEP_US, TestStore, join_all, json};
use crate::ids::SessionId;
use crate::json::RawJson;
use crate::messages::{MessagePatch, MessageQuery};
use crate::page::{Order, PageRequest, PageStart};
use crate::sessions::{NewSession, Session, SessionPatch, SessionQuery, SessionSort};
use crate::store::ExpectedVersion::{Any, OneOf};
use crate::store::{Quotas, Scope, StoreError};

const SORTS: [SessionSort; 3] = [SessionSort::CreatedAt, SessionSort::UpdatedAt, SessionSort::LastMessageAt];

fn rename(name: &str) -> SessionPatch {
    SessionPatch { session_name: Some(name.to_owned()), ..SessionPatch::default() }
}

fn ids(sessions: &[Session]) -> Vec<SessionId> {
    sessions.iter().map(|session| session.session_id).collect()
}

fn query(sort: SessionSort, order: Order) -> SessionQuery {
    SessionQuery { sort, order, ..SessionQuery::default() }
}

async fn update(t: &TestStore, session: &Session, patch: SessionPatch) -> Session {
    t.store.update_session(&t.project, session.session_id, patch, Any, t.ctx.now()).await.unwrap()
}

async fn delete(t: &TestStore, session: &Session) -> Session {
    t.store.delete_session(&t.project, session.session_id, Any, t.ctx.now()).await.unwrap()
}

/// Sessions with equal times, in different hours, with and without messages and owners; as stored.
async fn fleet(t: &TestStore) -> Vec<Session> {
    let start = t.ctx.now();
    let mut sessions = Vec::new();
    for n in 0..12i64 {
        let user = [None, Some("ada"), Some("bob")][usize::try_from(n % 3).unwrap()];
        // Three share a time; an hour lies between the threes.
        let created_at = start.plus_micros(n / 3 * HOUR_US);
        sessions.push(t.create(NewSession { created_at, ..t.new_session(user) }).await);
    }
    for (n, hours) in [(0, 30), (1, 5), (2, 5), (4, 5), (7, 2), (8, 30)] {
        let (session, now) = (&sessions[n], start.plus_micros(hours * HOUR_US));
        let new = vec![t.new_message(session, "hi")];
        t.store.append_messages(&t.project, session.session_id, new, now, None).await.unwrap();
    }
    for (n, hours) in [(1, 40), (5, 40), (6, 5), (9, 4)] {
        let now = start.plus_micros(hours * HOUR_US);
        t.store.update_session(&t.project, sessions[n].session_id, rename("new"), Any, now).await.unwrap();
    }
    let mut stored = Vec::new();
    for session in &sessions {
        stored.push(t.reload(session).await);
    }
    stored
}

fn sorted(mut sessions: Vec<Session>, sort: SessionSort, order: Order) -> Vec<SessionId> {
    sessions.sort_by_key(|session| (session.sorted_by(sort), session.session_id));
    if order == Order::Desc {
        sessions.reverse();
    }
    ids(&sessions)
}

/// Walks a whole list page by page, by position or by offset.
async fn walk(t: &TestStore, scope: &Scope, query: &SessionQuery, limit: u32, by_offset: bool) -> Vec<SessionId> {
    let mut walked = Vec::new();
    let mut start = PageStart::Offset(0);
    loop {
        let page = t.store.list_sessions(scope, query, &PageRequest { limit, start }).await.unwrap();
        assert!(page.items.len() <= limit as usize);
        walked.extend(ids(&page.items));
        assert!(walked.len() < 100, "{query:?} {limit} never ends");
        let Some(next) = page.next else {
            return walked;
        };
        assert_eq!(page.items.len(), limit as usize);
        assert_eq!(page.items.last().map(|session| session.position(query.sort)), Some(next));
        start = if by_offset { PageStart::Offset(walked.len() as u64) } else { PageStart::After(next) };
    }
}

pub async fn create_session_stores_every_field_byte_for_byte(t: TestStore) {
    let rich = NewSession {
        session_name: ODD_TEXT.to_owned(),
        is_favorite: true,
        metadata: json(ODD_JSON),
        external_id: Some("conv_Ünï/%1".to_owned()),
        ..t.new_session(Some("ada\u{1F600}"))
    };
    let bare = NewSession { session_name: String::new(), ..t.new_session(None) };
    for new in [rich, bare] {
        let expected = new.clone().into_session(t.project.project_id);
        assert_eq!(t.store.create_session(&t.project, new, Vec::new(), None).await.unwrap().value, expected);
        assert_eq!(t.reload(&expected).await, expected);
        let scope = Scope { user_id: expected.user_id.clone(), ..t.project.clone() };
        let page = t.store.list_sessions(&scope, &SessionQuery::default(), &PageRequest::default()).await.unwrap();
        assert!(page.items.contains(&expected));
    }
}

pub async fn get_session_sees_nothing_outside_its_scope(t: TestStore) {
    let ada = t.session_of("ada").await;
    let nobody = t.session().await;
    let get = async |scope: &Scope, session: &Session| {
        t.store.get_session(scope, session.session_id).await.unwrap().map(|found| found.session_id)
    };
    assert_eq!(get(&t.user("ada"), &ada).await, Some(ada.session_id));
    assert_eq!(get(&t.project, &nobody).await, Some(nobody.session_id));
    for scope in [t.other.clone(), t.user("bob"), t.user(""), Scope::user(t.other.project_id, "ada")] {
        assert_eq!(get(&scope, &ada).await, None, "{scope:?}");
        assert_eq!(get(&scope, &nobody).await, None, "{scope:?}");
    }
    assert_eq!(get(&t.user("ada"), &nobody).await, None);
}

pub async fn list_sessions_shows_nothing_outside_its_scope(t: TestStore) {
    let (ada, bob, nobody) = (t.session_of("ada").await, t.session_of("bob").await, t.session().await);
    let all = SessionQuery::default();
    assert_eq!(t.sessions(&t.project, &all).await, ids(&[ada.clone(), bob.clone(), nobody]));
    assert_eq!(t.sessions(&t.user("ada"), &all).await, ids(std::slice::from_ref(&ada)));
    assert_eq!(t.sessions(&t.other, &all).await, []);
    assert_eq!(t.sessions(&Scope::user(t.other.project_id, "ada"), &all).await, []);
    // A filter narrows a scope and never widens it.
    let of_bob = SessionQuery { user_id: Some("bob".to_owned()), ..SessionQuery::default() };
    assert_eq!(t.sessions(&t.user("ada"), &of_bob).await, []);
    assert_eq!(t.sessions(&t.user("bob"), &of_bob).await, ids(&[bob]));
}

pub async fn update_session_and_delete_session_find_nothing_outside_their_scope(t: TestStore) {
    let ada = t.session_of("ada").await;
    let absent = t.new_session(None).session_id;
    let foreign = [t.other.clone(), t.user("bob"), Scope::user(t.other.project_id, "ada")];
    for (scope, id) in foreign.iter().map(|scope| (scope, ada.session_id)).chain([(&t.project, absent)]) {
        // Also a demanded version must not tell that it is there.
        for expected in [Any, OneOf(vec![99])] {
            let now = t.ctx.now();
            let updated = t.store.update_session(scope, id, rename("x"), expected.clone(), now).await;
            assert_eq!(updated, Err(StoreError::NotFound), "{scope:?}");
            let deleted = t.store.delete_session(scope, id, expected, now).await;
            assert_eq!(deleted, Err(StoreError::NotFound), "{scope:?}");
        }
    }
    assert_eq!(t.reload(&ada).await, ada);
    t.store.update_session(&t.user("ada"), ada.session_id, rename("mine"), Any, t.ctx.now()).await.unwrap();
    t.store.delete_session(&t.user("ada"), ada.session_id, Any, t.ctx.now()).await.unwrap();
}

fn with_external_id(t: &TestStore, user: Option<&str>, external_id: &str) -> NewSession {
    t.placed(&t.project, NewSession { external_id: Some(external_id.to_owned()), ..t.new_session(user) })
}

pub async fn create_session_with_a_taken_external_id_is_a_conflict(t: TestStore) {
    let conflict = StoreError::Conflict { field: "external_id" };
    for user in [None, Some("ada"), Some("bob")] {
        t.create(with_external_id(&t, user, "conv_1")).await;
        let second = t.store.create_session(&t.project, with_external_id(&t, user, "conv_1"), Vec::new(), None).await;
        assert_eq!(second, Err(conflict.clone()), "{user:?}");
        t.create(with_external_id(&t, user, "CONV_1")).await;
    }
    let new = t.placed(&t.other, with_external_id(&t, Some("ada"), "conv_1"));
    t.store.create_session(&t.other, new, Vec::new(), None).await.unwrap();
    assert_eq!(t.sessions(&t.project, &SessionQuery::default()).await.len(), 6);
    // Of several at once one wins.
    let results = join_all(
        (0..8).map(|_| t.store.create_session(&t.project, with_external_id(&t, None, "new"), Vec::new(), None)),
    )
    .await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.into_iter().filter_map(Result::err).all(|error| error == conflict));
}

pub async fn an_external_id_is_free_again_after_delete_session(t: TestStore) {
    for _ in 0..3 {
        let session = t.create(with_external_id(&t, Some("ada"), "conv_1")).await;
        delete(&t, &session).await;
    }
}

pub async fn create_session_with_a_taken_session_id_is_a_conflict(t: TestStore) {
    let session = t.session().await;
    let again = NewSession { session_id: session.session_id, ..t.new_session(None) };
    let conflict = Err(StoreError::Conflict { field: "session_id" });
    assert_eq!(t.store.create_session(&t.project, again.clone(), Vec::new(), None).await, conflict);
    assert_eq!(t.store.create_session(&t.other, again.clone(), Vec::new(), None).await, conflict);
    delete(&t, &session).await;
    assert_eq!(t.store.create_session(&t.project, again, Vec::new(), None).await, conflict);
}

pub async fn list_sessions_is_by_creation_oldest_first(t: TestStore) {
    let sessions = fleet(&t).await;
    let expected = sorted(sessions.clone(), SessionSort::CreatedAt, Order::Asc);
    assert_eq!(t.sessions(&t.project, &SessionQuery::default()).await, expected);
    // Ids are minted elsewhere: the time counts, not the id.
    let created_at = sessions[0].created_at.plus_micros(-1);
    let oldest = t.create(NewSession { created_at, ..t.new_session(None) }).await;
    assert_eq!(t.sessions(&t.project, &SessionQuery::default()).await[0], oldest.session_id);
}

pub async fn list_sessions_sorts_by_activity_across_hours(t: TestStore) {
    let (first, second, third) = (t.session().await, t.session().await, t.session().await);
    let say = async |session: &Session, hours: i64| {
        let now = third.created_at.plus_micros(hours * HOUR_US);
        let new = vec![t.new_message(session, "hi")];
        t.store.append_messages(&t.project, session.session_id, new, now, None).await.unwrap();
    };
    let newest = async |sort| t.sessions(&t.project, &query(sort, Order::Desc)).await;
    let last = SessionSort::LastMessageAt;
    // Without messages a session counts as of its creation.
    assert_eq!(newest(last).await, ids(&[third.clone(), second.clone(), first.clone()]));
    say(&first, 2).await;
    assert_eq!(newest(last).await, ids(&[first.clone(), third.clone(), second.clone()]));
    say(&second, 5).await;
    assert_eq!(newest(last).await, ids(&[second.clone(), first.clone(), third.clone()]));
    assert_eq!(newest(SessionSort::UpdatedAt).await, newest(last).await);
    // A change of a message moves `updated_at` alone.
    let message = t.messages(&first).await.remove(0);
    let (patch, now) = (MessagePatch { role: Some("system".to_owned()), ..MessagePatch::default() }, 9 * HOUR_US);
    let now = third.created_at.plus_micros(now);
    t.store.update_message(&t.project, message.message_id, patch, Any, now).await.unwrap();
    assert_eq!(newest(last).await, ids(&[second.clone(), first.clone(), third.clone()]));
    assert_eq!(newest(SessionSort::UpdatedAt).await, ids(&[first.clone(), second.clone(), third.clone()]));
    let now = now.plus_micros(3 * HOUR_US);
    t.store.update_session(&t.project, third.session_id, rename("new"), Any, now).await.unwrap();
    assert_eq!(newest(SessionSort::UpdatedAt).await, ids(&[third, first, second]));
}

pub async fn list_sessions_filters_by_user_and_favorite(t: TestStore) {
    let ada = t.session_of("ada").await;
    let marked = t.create(NewSession { is_favorite: true, ..t.new_session(Some("ada")) }).await;
    let bob = t.create(NewSession { is_favorite: true, ..t.new_session(Some("bob")) }).await;
    let list = async |user: Option<&str>, is_favorite| {
        let query = SessionQuery { user_id: user.map(str::to_owned), is_favorite, ..SessionQuery::default() };
        t.sessions(&t.project, &query).await
    };
    assert_eq!(list(Some("ada"), None).await, ids(&[ada.clone(), marked.clone()]));
    assert_eq!(list(Some("ada"), Some(true)).await, ids(std::slice::from_ref(&marked)));
    assert_eq!(list(None, Some(true)).await, ids(&[marked, bob.clone()]));
    assert_eq!(list(None, Some(false)).await, ids(std::slice::from_ref(&ada)));
    assert_eq!(list(Some("ADA"), None).await, []);
    let patch = SessionPatch { is_favorite: Some(false), ..SessionPatch::default() };
    update(&t, &bob, patch).await;
    assert_eq!(list(None, Some(false)).await, ids(&[ada, bob]));
}

/// The sessions a metadata filter finds, which must not depend on scope, sort or order.
async fn with_metadata(t: &TestStore, filters: &[(&str, &str)]) -> Vec<SessionId> {
    let metadata: Vec<_> = filters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let found = t.sessions(&t.project, &SessionQuery { metadata: metadata.clone(), ..SessionQuery::default() }).await;
    for sort in SORTS {
        let mut again = t
            .sessions(&t.user("ada"), &SessionQuery { metadata: metadata.clone(), sort, ..query(sort, Order::Desc) })
            .await;
        again.sort();
        let mut expected = found.clone();
        expected.sort();
        assert_eq!(again, expected, "{filters:?} {sort:?}");
    }
    found
}

pub async fn list_sessions_filters_by_metadata(t: TestStore) {
    let create =
        async |text: &str| t.create(NewSession { metadata: json(text), ..t.new_session(Some("ada")) }).await.session_id;
    let one = create(r#"{"topic":"tea","n":1,"done":true,"nested":{"topic":"milk"},"list":["tea"]}"#).await;
    let two = create(r#"{"topic":"tea","n":1.50,"done":false,"Ünï \"x\"":"ja, ' und %"}"#).await;
    let foreign = NewSession { metadata: json(r#"{"topic":"tea"}"#), ..t.new_session(Some("ada")) };
    t.store.create_session(&t.other, t.placed(&t.other, foreign), Vec::new(), None).await.unwrap();
    for (filters, expected) in [
        (&[("topic", "tea")][..], &[one, two][..]),
        (&[("n", "1")], &[one]),
        (&[("n", "1.50")], &[two]),
        (&[("done", "true")], &[one]),
        (&[("topic", "tea"), ("done", "false")], &[two]),
        (&[("topic", "tea"), ("done", "false"), ("n", "1")], &[]),
        (&[("Ünï \"x\"", "ja, ' und %")], &[two]),
        (&[("topic", "milk")], &[]),
        (&[("list", "tea")], &[]),
        (&[("topic", "TEA")], &[]),
        (&[("topic", "te%")], &[]),
        (&[("", "")], &[]),
    ] {
        assert_eq!(with_metadata(&t, filters).await, expected, "{filters:?}");
    }
}

pub async fn list_sessions_filters_by_creation(t: TestStore) {
    let sessions = [t.session_of("ada").await, t.session_of("ada").await, t.session_of("ada").await];
    let list = async |scope: &Scope, after: Option<Timestamp>, before: Option<Timestamp>, sort| {
        let base = query(sort, Order::Asc);
        t.sessions(scope, &SessionQuery { created_after: after, created_before: before, ..base }).await
    };
    let [first, second, third] = sessions.each_ref().map(|session| session.created_at);
    for scope in [&t.project, &t.user("ada")] {
        for sort in SORTS {
            assert_eq!(list(scope, Some(first), None, sort).await, ids(&sessions[1..]));
            assert_eq!(list(scope, None, Some(third), sort).await, ids(&sessions[..2]));
            assert_eq!(list(scope, Some(first), Some(third), sort).await, ids(&sessions[1..2]));
            assert_eq!(list(scope, Some(second), Some(second), sort).await, []);
            assert_eq!(list(scope, Some(first.plus_micros(-1)), None, sort).await, ids(&sessions));
        }
    }
}

pub async fn list_sessions_pages_hold_every_session_once(t: TestStore) {
    let sessions = fleet(&t).await;
    let of_ada: Vec<_> = sessions.iter().filter(|session| session.user_id.as_deref() == Some("ada")).cloned().collect();
    for sort in SORTS {
        for order in [Order::Asc, Order::Desc] {
            let all = query(sort, order);
            let filtered = SessionQuery { user_id: Some("ada".to_owned()), ..all.clone() };
            for limit in [1, 2, 7] {
                for by_offset in [false, true] {
                    let name = format!("{sort:?} {order:?} {limit} {by_offset}");
                    let expected = sorted(sessions.clone(), sort, order);
                    assert_eq!(walk(&t, &t.project, &all, limit, by_offset).await, expected, "{name}");
                    let expected = sorted(of_ada.clone(), sort, order);
                    assert_eq!(walk(&t, &t.user("ada"), &all, limit, by_offset).await, expected, "{name}");
                    assert_eq!(walk(&t, &t.project, &filtered, limit, by_offset).await, expected, "{name}");
                }
            }
        }
    }
}

pub async fn list_sessions_pages_stay_whole_while_sessions_are_created(t: TestStore) {
    let before = ids(&fleet(&t).await);
    for order in [Order::Asc, Order::Desc] {
        let query = query(SessionSort::CreatedAt, order);
        let mut walked = Vec::new();
        let mut start = PageStart::Offset(0);
        loop {
            let page = t.store.list_sessions(&t.project, &query, &PageRequest { limit: 2, start }).await.unwrap();
            walked.extend(ids(&page.items));
            let (Some(next), true) = (page.next, walked.len() < 100) else { break };
            start = PageStart::After(next);
            // One before, one behind; the position itself may go as well.
            let created_at = next.sorted_by.plus_micros(-1);
            t.create(NewSession { created_at, ..t.new_session(Some("eve")) }).await;
            let created_at = next.sorted_by.plus_micros(100 * HOUR_US);
            let late = t.create(NewSession { created_at, ..t.new_session(Some("eve")) }).await;
            delete(&t, &late).await;
        }
        let known: Vec<_> = walked.iter().filter(|id| before.contains(id)).collect();
        assert_eq!(known.len(), before.len(), "{order:?}");
        let mut unique = walked.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), walked.len(), "{order:?}");
    }
}

pub async fn a_full_last_page_of_list_sessions_has_no_next(t: TestStore) {
    let list = async |limit, start| {
        t.store.list_sessions(&t.project, &SessionQuery::default(), &PageRequest { limit, start }).await.unwrap()
    };
    assert_eq!(list(1, PageStart::Offset(0)).await.items, []);
    let (first, second) = (t.session().await, t.session().await);
    let page = list(2, PageStart::Offset(0)).await;
    assert_eq!((ids(&page.items), page.next), (ids(&[first.clone(), second.clone()]), None));
    assert_eq!(list(1, PageStart::Offset(1)).await.items, std::slice::from_ref(&second));
    assert_eq!(list(1, PageStart::Offset(10_000)).await.items, []);
    // A position stays good when its session is gone.
    let after = PageStart::After(first.position(SessionSort::CreatedAt));
    delete(&t, &first).await;
    assert_eq!(list(1, after).await.items, [second]);
}

pub async fn update_session_changes_only_what_is_present(t: TestStore) {
    let mut expected =
        t.create(NewSession { metadata: json(ODD_JSON), ..with_external_id(&t, Some("ada"), "x") }).await;
    t.say(&expected, "hi").await;
    expected = t.reload(&expected).await;
    let neighbour = t.session().await;
    for patch in [
        rename(ODD_TEXT),
        rename(""),
        SessionPatch { is_favorite: Some(true), ..SessionPatch::default() },
        SessionPatch { metadata: Some(json("{ \"k\" : \"v\" }")), ..SessionPatch::default() },
        SessionPatch { is_favorite: Some(false), metadata: Some(json(ODD_JSON)), ..rename("three") },
    ] {
        let now = t.ctx.now();
        assert!(patch.clone().apply(&mut expected, now));
        let version = expected.version;
        let updated = t.store.update_session(&t.project, expected.session_id, patch, Any, now).await.unwrap();
        assert_eq!((&updated, updated.version, updated.updated_at), (&expected, version, now));
        assert_eq!(t.reload(&expected).await, expected);
    }
    assert_eq!(expected.version, 6);
    assert_eq!(t.reload(&neighbour).await, neighbour);
}

pub async fn update_session_that_says_nothing_new_changes_nothing(t: TestStore) {
    let session = t.create(NewSession { metadata: json(ODD_JSON), ..t.new_session(None) }).await;
    let same = SessionPatch {
        session_name: Some(session.session_name.clone()),
        is_favorite: Some(session.is_favorite),
        metadata: Some(session.metadata.clone()),
    };
    for patch in [SessionPatch::default(), same] {
        assert_eq!(update(&t, &session, patch).await, session);
        assert_eq!(t.reload(&session).await, session);
    }
}

pub async fn update_session_moves_the_metadata_filter(t: TestStore) {
    let session = t.create(NewSession { metadata: json(r#"{"a":"1","b":"2"}"#), ..t.new_session(Some("ada")) }).await;
    let found = ids(std::slice::from_ref(&session));
    let set = |text: &str| SessionPatch { metadata: Some(json(text)), ..SessionPatch::default() };
    update(&t, &session, set(r#"{"b":"2","c":3}"#)).await;
    assert_eq!(with_metadata(&t, &[("a", "1")]).await, []);
    assert_eq!(with_metadata(&t, &[("b", "2"), ("c", "3")]).await, found);
    update(&t, &session, rename("other")).await;
    assert_eq!(with_metadata(&t, &[("b", "2")]).await, found);
    update(&t, &session, SessionPatch { metadata: Some(RawJson::empty_object()), ..SessionPatch::default() }).await;
    assert_eq!(with_metadata(&t, &[("b", "2")]).await, []);
    update(&t, &session, set(r#"{"a":"1"}"#)).await;
    assert_eq!(with_metadata(&t, &[("a", "1")]).await, found);
    delete(&t, &session).await;
    assert_eq!(with_metadata(&t, &[("a", "1")]).await, []);
}

pub async fn update_session_checks_the_expected_version(t: TestStore) {
    let session = t.session().await;
    let update = async |name: &str, expected| {
        t.store.update_session(&t.project, session.session_id, rename(name), expected, t.ctx.now()).await
    };
    for versions in [vec![2], vec![0, 99], vec![]] {
        assert_eq!(update("x", OneOf(versions)).await, Err(StoreError::VersionMismatch { current: 1 }));
    }
    assert_eq!(t.reload(&session).await, session);
    assert_eq!(update("x", OneOf(vec![7, 1])).await.unwrap().version, 2);
    // Also a patch that would change nothing is held to it.
    assert_eq!(update("x", OneOf(vec![1])).await, Err(StoreError::VersionMismatch { current: 2 }));
}

pub async fn concurrent_update_session_with_one_version_lets_one_win(t: TestStore) {
    let session = t.session().await;
    let names: Vec<String> = (0..16).map(|n| format!("name {n}")).collect();
    let update = |name: &String, expected| {
        let (patch, now) = (rename(name), t.ctx.now());
        let (t, id) = (&t, session.session_id);
        async move { t.store.update_session(&t.project, id, patch, expected, now).await }
    };
    let raced = join_all(names.iter().map(|name| update(name, OneOf(vec![1])))).await;
    assert_eq!(raced.iter().filter(|result| result.is_ok()).count(), 1);
    let lost = Err(StoreError::VersionMismatch { current: 2 });
    assert_eq!(raced.iter().filter(|result| **result == lost).count(), 15);
    // Without a demand all are applied, one after the other.
    let mut versions: Vec<i64> = join_all(names.iter().map(|name| update(&format!("{name}!"), Any)))
        .await
        .into_iter()
        .map(|s| s.unwrap().version)
        .collect();
    versions.sort_unstable();
    assert_eq!(versions, (3..19).collect::<Vec<_>>());
}

pub async fn update_session_with_a_late_clock_keeps_the_time(t: TestStore) {
    let session = t.session().await;
    let past = session.updated_at.plus_micros(-STEP_US);
    let updated = t.store.update_session(&t.project, session.session_id, rename("x"), Any, past).await.unwrap();
    assert_eq!((updated.version, updated.updated_at), (2, session.updated_at));
}

pub async fn delete_session_returns_it_as_it_was_and_removes_it(t: TestStore) {
    let new = NewSession { metadata: json(ODD_JSON), is_favorite: true, ..with_external_id(&t, Some("ada"), "x") };
    let session = t.create(new).await;
    t.say(&session, "hi").await;
    let (session, neighbour) = (t.reload(&session).await, t.session_of("ada").await);
    assert_eq!(delete(&t, &session).await, session);
    let id = session.session_id;
    for scope in [&t.project, &t.user("ada")] {
        assert_eq!(t.store.get_session(scope, id).await.unwrap(), None);
        for sort in SORTS {
            assert_eq!(t.sessions(scope, &query(sort, Order::Asc)).await, [neighbour.session_id]);
        }
    }
    let gone = StoreError::NotFound;
    let now = t.ctx.now();
    assert_eq!(t.store.update_session(&t.project, id, rename("x"), Any, now).await, Err(gone.clone()));
    assert_eq!(t.store.delete_session(&t.project, id, Any, now).await, Err(gone.clone()));
    assert_eq!(t.append(&session, vec![t.new_message(&session, "late")]).await, Err(gone));
    assert_eq!(t.reload(&neighbour).await, neighbour);
}

pub async fn delete_session_checks_the_expected_version(t: TestStore) {
    let session = t.session().await;
    let delete = async |expected| t.store.delete_session(&t.project, session.session_id, expected, t.ctx.now()).await;
    assert_eq!(delete(OneOf(vec![2])).await, Err(StoreError::VersionMismatch { current: 1 }));
    assert_eq!(t.reload(&session).await, session);
    assert_eq!(delete(OneOf(vec![1])).await, Ok(session));
}

pub async fn delete_session_takes_its_messages_away_at_once(t: TestStore) {
    let session = t.session_of("ada").await;
    let message = t.say(&session, "secret").await;
    delete(&t, &session).await;
    let (id, now) = (message.message_id, t.ctx.now());
    for scope in [&t.project, &t.user("ada")] {
        assert_eq!(t.store.get_message(scope, id).await.unwrap(), None);
        let patch = MessagePatch { content: Some("x".to_owned()), ..MessagePatch::default() };
        assert_eq!(t.store.update_message(scope, id, patch, Any, now).await, Err(StoreError::NotFound));
        assert_eq!(t.store.delete_message(scope, id, Any, now).await, Err(StoreError::NotFound));
    }
    assert_eq!(t.list(&session, &MessageQuery::default()).await, Err(StoreError::NotFound));
}

pub async fn create_session_keeps_to_the_quota_of_its_user(t: TestStore) {
    let quotas = Quotas { sessions_per_user: Some(2), ..Quotas::default() };
    let scope = Scope { quotas, ..t.project.clone() };
    let create = async |scope: &Scope, user_id: Option<&str>| {
        let created = t.store.create_session(scope, t.new_session(user_id), Vec::new(), None).await;
        created.map(|created| created.value)
    };
    let first = create(&scope, Some("ada")).await.unwrap();
    create(&scope, Some("ada")).await.unwrap();
    let full = Err(StoreError::QuotaExceeded { quota: "sessions_per_user", max: 2 });
    assert_eq!(create(&scope, Some("ada")).await, full);
    let bound = Scope { user_id: Some("ada".to_owned()), ..scope.clone() };
    assert_eq!(create(&bound, Some("ada")).await, full);
    assert_eq!(t.sessions(&t.project, &SessionQuery::default()).await.len(), 2, "nothing was stored");
    // Other users, sessions of nobody and callers without the quota are not held up by it.
    for user_id in [Some("bob"), None, None, None] {
        create(&scope, user_id).await.unwrap();
    }
    create(&t.project, Some("ada")).await.unwrap();
    assert_eq!(create(&scope, Some("ada")).await, full);
    // What is deleted does not count.
    t.store.delete_session(&t.project, first.session_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(create(&scope, Some("ada")).await, full, "two are left");
    let wider = Scope { quotas: Quotas { sessions_per_user: Some(3), ..quotas }, ..scope };
    create(&wider, Some("ada")).await.unwrap();
}
