//! What every engine does with the audit log.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::audit::{Actor, AuditEvent, AuditQuery};
use crate::conformance::{ODD_TEXT, TestStore, join_all};
use crate::page::{AuditPosition, PageRequest, PageStart};

fn event(t: &TestStore) -> AuditEvent {
    let created_at = t.ctx.now();
    AuditEvent {
        event_id: t.ctx.new_audit_event_id(created_at),
        project_id: t.project.project_id,
        created_at,
        actor: Actor::Command,
        actor_id: None,
        user_id: None,
        action: "delete_session".to_owned(),
        target_id: None,
        outcome: "ok".to_owned(),
        address: None,
        request_id: None,
    }
}

async fn listed(t: &TestStore, query: &AuditQuery) -> Vec<AuditEvent> {
    let page = PageRequest { limit: 100, start: PageStart::Offset(0) };
    t.store.list_audit_events(query, &page).await.unwrap().items
}

pub async fn append_audit_events_stores_every_field(t: TestStore) {
    let mut events = vec![event(&t)];
    for actor in Actor::ALL {
        events.push(AuditEvent {
            project_id: t.other.project_id,
            actor,
            actor_id: Some("0aZ".to_owned()),
            user_id: Some(ODD_TEXT.to_owned()),
            action: "keys create".to_owned(),
            target_id: Some("t".to_owned()),
            outcome: "not_found".to_owned(),
            address: Some("2001:db8::1".to_owned()),
            request_id: Some("r".to_owned()),
            ..event(&t)
        });
    }
    t.store.append_audit_events(events.clone()).await.unwrap();
    events.reverse();
    assert_eq!(listed(&t, &AuditQuery::default()).await, events);
}

pub async fn append_audit_events_leaves_what_is_there(t: TestStore) {
    let (first, second) = (event(&t), event(&t));
    t.store.append_audit_events(vec![first.clone()]).await.unwrap();
    let changed = AuditEvent { outcome: "changed".to_owned(), ..first.clone() };
    t.store.append_audit_events(vec![changed, second.clone()]).await.unwrap();
    t.store.append_audit_events(Vec::new()).await.unwrap();
    assert_eq!(listed(&t, &AuditQuery::default()).await, [second, first]);
}

pub async fn list_audit_events_filters(t: TestStore) {
    let foreign = AuditEvent { project_id: t.other.project_id, ..event(&t) };
    let action = AuditEvent { action: "create_api_key".to_owned(), ..event(&t) };
    let actor = AuditEvent { actor: Actor::ApiKey, actor_id: Some("k".to_owned()), ..event(&t) };
    let plain = event(&t);
    let events = [foreign.clone(), action.clone(), actor.clone(), plain.clone()];
    t.store.append_audit_events(events.to_vec()).await.unwrap();
    let own = AuditQuery { project_id: Some(t.project.project_id), ..AuditQuery::default() };
    assert_eq!(listed(&t, &own).await, [plain.clone(), actor.clone(), action.clone()]);
    let by_action = AuditQuery { action: Some("create_api_key".to_owned()), ..AuditQuery::default() };
    assert_eq!(listed(&t, &by_action).await, [action]);
    let by_actor = AuditQuery { actor_id: Some("k".to_owned()), ..own.clone() };
    assert_eq!(listed(&t, &by_actor).await, [actor]);
    let deletions = AuditQuery { action: Some("delete_session".to_owned()), actor_id: None, project_id: None };
    assert_eq!(listed(&t, &deletions).await.len(), 3);
    let none = AuditQuery { actor_id: Some("K".to_owned()), ..own };
    assert!(listed(&t, &none).await.is_empty());
}

pub async fn list_audit_events_pages_newest_first(t: TestStore) {
    let mut events: Vec<AuditEvent> = (0..7).map(|_| event(&t)).collect();
    t.store.append_audit_events(events.clone()).await.unwrap();
    events.reverse();
    let query = AuditQuery { project_id: Some(t.project.project_id), ..AuditQuery::default() };
    let (mut paged, mut start) = (Vec::new(), PageStart::Offset(0));
    loop {
        let page = t.store.list_audit_events(&query, &PageRequest { limit: 3, start }).await.unwrap();
        paged.extend(page.items);
        // What comes meanwhile stands before the first page.
        t.store.append_audit_events(vec![event(&t)]).await.unwrap();
        let Some(next) = page.next else { break };
        assert_eq!(next, AuditPosition { event_id: paged.last().unwrap().event_id });
        start = PageStart::After(next);
    }
    assert_eq!(paged, events);
    let skipped = t.store.list_audit_events(&query, &PageRequest { limit: 3, start: PageStart::Offset(3) }).await;
    assert_eq!(skipped.unwrap().items, events[..3]);
}

pub async fn concurrent_append_audit_events_are_all_stored(t: TestStore) {
    let events: Vec<AuditEvent> = (0..40).map(|_| event(&t)).collect();
    let appended = join_all(events.iter().map(|event| t.store.append_audit_events(vec![event.clone()]))).await;
    assert!(appended.into_iter().all(|appended| appended.is_ok()));
    let mut expected = events;
    expected.reverse();
    assert_eq!(listed(&t, &AuditQuery::default()).await, expected);
}

pub async fn the_audit_log_outlives_its_project(t: TestStore) {
    let event = AuditEvent { project_id: t.other.project_id, ..event(&t) };
    t.store.append_audit_events(vec![event.clone()]).await.unwrap();
    t.store.delete_project(t.other.project_id, t.ctx.now()).await.unwrap();
    while t.store.erase_deleted_projects(t.ctx.now()).await.unwrap() {}
    let query = AuditQuery { project_id: Some(t.other.project_id), ..AuditQuery::default() };
    assert_eq!(listed(&t, &query).await, [event]);
}
