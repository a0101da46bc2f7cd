//! The audit log in SQLite.

use async_trait::async_trait;
use chatstore_core::audit::{Actor, AuditEvent, AuditQuery, AuditStore};
use chatstore_core::page::{AuditPosition, Page, PageRequest, PageStart};
use chatstore_core::store::StoreError;
use rusqlite::types::{Type, Value};
use rusqlite::{Row, params, params_from_iter};

use crate::SqliteStore;
use crate::columns::{id_column, time_column};
use crate::writer::Kind;

const INSERT_AUDIT_EVENT: &str = "insert into audit_events
    (event_id, project_id, created_at, actor, actor_id, user_id, action, target_id, outcome, address, request_id)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
    on conflict (event_id) do nothing";
const LIST_AUDIT_EVENTS: &str = "select event_id, project_id, created_at, actor, actor_id, user_id, action, target_id,
        outcome, address, request_id
    from audit_events where true";
const OF_PROJECT: &str = " and project_id = ?";
const OF_ACTION: &str = " and action = ?";
const OF_ACTOR: &str = " and actor_id = ?";
const AFTER: &str = " and event_id < ?";
const ORDER: &str = " order by event_id desc limit ?";
const OFFSET: &str = " offset ?";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[INSERT_AUDIT_EVENT];

#[async_trait]
impl AuditStore for SqliteStore {
    async fn append_audit_events(&self, events: Vec<AuditEvent>) -> Result<(), StoreError> {
        let held = events.iter().map(bytes).sum();
        self.writer
            .write(Kind::Plain, held, move |connection| {
                let mut statement = connection.prepare_cached(INSERT_AUDIT_EVENT)?;
                for event in events {
                    statement.execute(params![
                        event.event_id.as_bytes(),
                        event.project_id.as_bytes(),
                        event.created_at.as_micros(),
                        event.actor.as_str(),
                        event.actor_id,
                        event.user_id,
                        event.action,
                        event.target_id,
                        event.outcome,
                        event.address,
                        event.request_id,
                    ])?;
                }
                Ok(())
            })
            .await
    }

    async fn list_audit_events(
        &self,
        query: &AuditQuery,
        page: &PageRequest<AuditPosition>,
    ) -> Result<Page<AuditEvent, AuditPosition>, StoreError> {
        let (query, page) = (query.clone(), page.clone());
        self.readers
            .read(move |reader| {
                let (sql, values) = list_statement(&query, &page);
                let events = reader.query(&sql, params_from_iter(&values), audit_event_row, bytes)?;
                Ok(Page::cut(events, page.limit, |event| AuditPosition { event_id: event.event_id }))
            })
            .await
    }
}

/// The statement of one list, from fixed pieces, and its values.
fn list_statement(query: &AuditQuery, page: &PageRequest<AuditPosition>) -> (String, Vec<Value>) {
    let (mut sql, mut values) = (LIST_AUDIT_EVENTS.to_owned(), Vec::new());
    let mut add = |clause: &str, value: Option<Value>| {
        if let Some(value) = value {
            sql.push_str(clause);
            values.push(value);
        }
    };
    add(OF_PROJECT, query.project_id.map(|id| id.as_bytes().to_vec().into()));
    add(OF_ACTION, query.action.clone().map(Value::from));
    add(OF_ACTOR, query.actor_id.clone().map(Value::from));
    let (after, offset) = match page.start {
        PageStart::After(AuditPosition { event_id }) => (Some(event_id.as_bytes().to_vec().into()), None),
        PageStart::Offset(offset) => (None, Some(i64::try_from(offset).unwrap_or(i64::MAX).into())),
    };
    add(AFTER, after);
    add(ORDER, Some((i64::from(page.limit) + 1).into()));
    add(OFFSET, offset);
    (sql, values)
}

/// Roughly how many bytes it takes.
fn bytes(event: &AuditEvent) -> usize {
    let AuditEvent { actor_id, user_id, target_id, address, request_id, .. } = event;
    let texts = [actor_id, user_id, target_id, address, request_id];
    256 + event.action.len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

fn audit_event_row(row: &Row<'_>) -> rusqlite::Result<AuditEvent> {
    let actor = row.get_ref(3)?.as_str()?;
    let unknown = || format!("the actor {actor}");
    Ok(AuditEvent {
        event_id: id_column(row, 0)?.into(),
        project_id: id_column(row, 1)?.into(),
        created_at: time_column(row, 2)?,
        actor: Actor::parse(actor)
            .ok_or_else(|| rusqlite::Error::FromSqlConversionFailure(3, Type::Text, unknown().into()))?,
        actor_id: row.get(4)?,
        user_id: row.get(5)?,
        action: row.get(6)?,
        target_id: row.get(7)?,
        outcome: row.get(8)?,
        address: row.get(9)?,
        request_id: row.get(10)?,
    })
}

#[cfg(test)]
mod tests {
    use chatstore_core::ids::ProjectId;
    use uuid::Uuid;

    use super::*;
    use crate::tests::{migrated, plan};

    #[test]
    fn every_list_walks_an_index_in_its_order() {
        let connection = migrated();
        let after = AuditPosition { event_id: Uuid::nil().into() };
        for bits in 0..8 {
            let on = |bit: u32| bits & (1 << bit) != 0;
            let query = AuditQuery {
                project_id: on(0).then_some(ProjectId::DEFAULT),
                action: on(1).then(|| "a".to_owned()),
                actor_id: on(2).then(|| "k".to_owned()),
            };
            for start in [PageStart::Offset(0), PageStart::After(after)] {
                let (sql, values) = list_statement(&query, &PageRequest { limit: 20, start: start.clone() });
                assert_eq!(connection.prepare(&sql).unwrap().parameter_count(), values.len());
                let plan = plan(&connection, &sql);
                // Without a filter it is the table itself, from its newest end.
                let whole = query == AuditQuery::default() && start == PageStart::Offset(0);
                let walks = if whole { "SCAN audit_events" } else { "SEARCH audit_events USING" };
                assert!(plan.len() == 1 && plan[0].starts_with(walks), "{sql}: {plan:?}");
                let by = |column: &str| plan[0].contains(&format!("{column}=?"));
                let narrow = match (on(1), on(2)) {
                    (false, false) => by("project_id") == on(0),
                    (true, false) => by("action"),
                    (false, true) => by("actor_id"),
                    (true, true) => by("action") || by("actor_id"),
                };
                assert!(narrow, "{sql}: {plan:?}");
            }
        }
    }
}
