//! The audit log in PostgreSQL: rows are added and read, nothing else.

use async_trait::async_trait;
use chatstore_core::audit::{Actor, AuditEvent, AuditQuery, AuditStore};
use chatstore_core::page::{AuditPosition, Page, PageRequest, PageStart};
use chatstore_core::store::StoreError;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::columns::time_column;
use crate::params::{Param, params};
use crate::pool::{Db, Failure};

/// An event that is there already is left as it is.
const INSERT_AUDIT_EVENTS: &str = "insert into audit_events
    (event_id, project_id, created_at, actor, actor_id, user_id, action, target_id, outcome, address, request_id)
    select e.* from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::text[], $10::text[], $11::text[]) e
    on conflict do nothing";
/// A list for each index. What an event is looked for by is compared together with its id, and sorted by, so that no
/// other index has the order, whatever a planner thinks of the values.
macro_rules! list_audit_events {
    ($stretch:literal, $order:literal) => {
        concat!(
            "select e.event_id, e.project_id, e.created_at, e.actor, e.actor_id, e.user_id, e.action, e.target_id, \
             e.outcome, e.address, e.request_id
    from audit_events e where ",
            $stretch,
            " order by ",
            $order,
            "e.event_id desc limit $2 offset $3"
        )
    };
}
pub(crate) const LIST_ALL: &str = list_audit_events!("e.event_id < $1", "");
pub(crate) const LIST_OF_ACTION: &str =
    list_audit_events!("(e.action, e.event_id) < ($4, $1) and e.action >= $4", "e.action desc, ");
/// Those among what one key did that are of an action need no index.
pub(crate) const LIST_OF_ACTOR: &str = list_audit_events!(
    "(e.actor_id, e.event_id) < ($4, $1) and e.actor_id >= $4
        and case when $5::text is null then true else e.action = $5 end",
    "e.actor_id desc, "
);
pub(crate) const LIST_OF_PROJECT: &str =
    list_audit_events!("(e.project_id, e.event_id) < ($4, $1) and e.project_id >= $4", "e.project_id desc, ");
pub(crate) const LIST_OF_PROJECT_AND_ACTION: &str =
    list_audit_events!("e.project_id = $4 and (e.action, e.event_id) < ($5, $1) and e.action >= $5", "e.action desc, ");
pub(crate) const LIST_OF_PROJECT_AND_ACTOR: &str = list_audit_events!(
    "e.project_id = $4 and (e.actor_id, e.event_id) < ($5, $1) and e.actor_id >= $5
        and case when $6::text is null then true else e.action = $6 end",
    "e.actor_id desc, "
);

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    INSERT_AUDIT_EVENTS,
    LIST_ALL,
    LIST_OF_ACTION,
    LIST_OF_ACTOR,
    LIST_OF_PROJECT,
    LIST_OF_PROJECT_AND_ACTION,
    LIST_OF_PROJECT_AND_ACTOR,
];

#[async_trait]
impl AuditStore for PostgresStore {
    async fn append_audit_events(&self, events: Vec<AuditEvent>) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        self.pool.write(events, async |db, events| insert(&db, &events).await).await
    }

    async fn list_audit_events(
        &self,
        query: &AuditQuery,
        page: &PageRequest<AuditPosition>,
    ) -> Result<Page<AuditEvent, AuditPosition>, StoreError> {
        let events = self.pool.read((query, page), async |db, input| list(&db, input.0, input.1).await).await?;
        Ok(Page::cut(events, page.limit, |event| AuditPosition { event_id: event.event_id }))
    }
}

async fn insert(db: &Db, events: &[AuditEvent]) -> Result<(), Failure> {
    fn list<'a, T>(events: &'a [AuditEvent], of: impl Fn(&'a AuditEvent) -> T) -> Vec<T> {
        events.iter().map(of).collect()
    }
    let params = params![
        list::<Uuid>(events, |e| e.event_id.uuid()),
        list::<Uuid>(events, |e| e.project_id.uuid()),
        list(events, |e| e.created_at.as_micros()),
        list(events, |e| e.actor.as_str()),
        list(events, |e| e.actor_id.as_deref()),
        list(events, |e| e.user_id.as_deref()),
        list(events, |e| e.action.as_str()),
        list(events, |e| e.target_id.as_deref()),
        list(events, |e| e.outcome.as_str()),
        list(events, |e| e.address.as_deref()),
        list(events, |e| e.request_id.as_deref()),
    ];
    db.execute(INSERT_AUDIT_EVENTS, params).await?;
    Ok(())
}

async fn list(db: &Db, query: &AuditQuery, page: &PageRequest<AuditPosition>) -> Result<Vec<AuditEvent>, Failure> {
    let (before, offset) = match page.start {
        PageStart::Offset(offset) => (Uuid::max(), i64::try_from(offset).unwrap_or(i64::MAX)),
        PageStart::After(position) => (position.event_id.uuid(), 0),
    };
    let limit = i64::from(page.limit) + 1;
    let project_id = query.project_id.map(|project_id| project_id.uuid());
    let (sql, wanted): (_, &[Param<'_>]) = match (&project_id, &query.actor_id, &query.action) {
        (None, None, None) => (LIST_ALL, &[]),
        (None, None, Some(action)) => (LIST_OF_ACTION, params![*action]),
        (None, Some(actor_id), action) => (LIST_OF_ACTOR, params![*actor_id, *action]),
        (Some(project_id), None, None) => (LIST_OF_PROJECT, params![*project_id]),
        (Some(project_id), None, Some(action)) => (LIST_OF_PROJECT_AND_ACTION, params![*project_id, *action]),
        (Some(project_id), Some(actor_id), action) => {
            (LIST_OF_PROJECT_AND_ACTOR, params![*project_id, *actor_id, *action])
        }
    };
    let params = [params![before, limit, offset], wanted].concat();
    db.query(sql, &params).await?.iter().map(event_row).collect()
}

fn event_row(row: &Row) -> Result<AuditEvent, Failure> {
    let actor = Actor::parse(row.try_get(3)?);
    Ok(AuditEvent {
        event_id: row.try_get::<_, Uuid>(0)?.into(),
        project_id: row.try_get::<_, Uuid>(1)?.into(),
        created_at: time_column(row, 2)?,
        actor: actor.ok_or_else(|| StoreError::internal("an event in the audit log has an unknown actor"))?,
        actor_id: row.try_get(4)?,
        user_id: row.try_get(5)?,
        action: row.try_get(6)?,
        target_id: row.try_get(7)?,
        outcome: row.try_get(8)?,
        address: row.try_get(9)?,
        request_id: row.try_get(10)?,
    })
}
