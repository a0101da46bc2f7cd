//! The lists of keys, projects and audit events: each page is a stretch of an index.

use chatstore_core::ids::{AuditEventId, ProjectId};
use uuid::Uuid;

use super::explain::{Planner, Planning};
use super::fault_of_pages;
use super::rows::Rows;
use crate::params::{Param, params};
use crate::{api_keys, audit, projects};

/// What those lists have in common: they are checked with their values.
pub(super) const OF_ACCESS: [&str; 2] = ["limit $3 offset $4", "limit $2 offset $3"];

/// Pages of 20, at the beginning and in the middle. The index that is meant has `keys` in its condition.
pub(super) async fn check_access_lists(planner: &Planner, rows: &Rows, faults: &mut Vec<String>) {
    let (default, foreign) = (ProjectId::DEFAULT.uuid(), rows.sessions[17].project_id.uuid());
    for (after, id) in [(i64::MIN, Uuid::nil()), (1_000, Uuid::max())] {
        let (limit, offset) = (21_i64, 0_i64);
        let key_id = id.to_string();
        for project_id in [default, foreign] {
            let page = params![after, key_id, limit, offset, project_id];
            check(planner, api_keys::LIST_API_KEYS_OF_PROJECT, page, &["project_id", "created_at"], faults).await;
        }
        check(planner, api_keys::LIST_API_KEYS, params![after, key_id, limit, offset], &["created_at"], faults).await;
        check(planner, projects::LIST_PROJECTS, params![after, id, limit, offset], &["created_at"], faults).await;
    }
    let none = None::<&str>;
    let middle = AuditEventId::parse("00000000-0000-0000-0000-0000000061a8").expect("the id of one of them").uuid();
    for before in [Uuid::max(), middle] {
        let page = params![before, 21_i64, 0_i64];
        for (actor, action) in [("key1", "delete_session"), ("key7", "action 8"), ("nobody", "nothing")] {
            let lists: [(&str, &[Param<'_>], &[&str]); 8] = [
                (audit::LIST_ALL, &[], &[]),
                (audit::LIST_OF_ACTION, params![action], &["action"]),
                (audit::LIST_OF_ACTOR, params![actor, none], &["actor_id"]),
                (audit::LIST_OF_PROJECT, params![default], &["project_id"]),
                (audit::LIST_OF_PROJECT, params![foreign], &["project_id"]),
                (audit::LIST_OF_PROJECT_AND_ACTION, params![default, action], &["project_id", "action"]),
                (audit::LIST_OF_PROJECT_AND_ACTOR, params![default, actor, none], &["project_id", "actor_id"]),
                (audit::LIST_OF_PROJECT_AND_ACTOR, params![foreign, actor, none], &["project_id", "actor_id"]),
            ];
            for (sql, wanted, keys) in lists {
                check(planner, sql, &[page, wanted].concat(), &[keys, &["event_id"]].concat(), faults).await;
            }
        }
    }
}

async fn check(planner: &Planner, sql: &str, params: &[Param<'_>], keys: &[&str], faults: &mut Vec<String>) {
    let plan = planner.run(sql, params).await;
    let nodes = plan.nodes();
    // Behind a pooler a planner that thinks that few rows match may take them all and sort them.
    let sorts = planner.planning == Planning::Ours && nodes.iter().any(|node| node.kind().contains("Sort"));
    let lists = |node: &&_| ["api_keys", "projects", "audit_events"].contains(&super::Node::table(node));
    let first = nodes.iter().find(lists);
    let walks = first.is_some_and(|node| keys.iter().all(|key| node.walks_by(key)));
    if sorts || (!walks && planner.planning == Planning::Ours) || nodes.iter().any(|node| node.kind() == "Seq Scan") {
        faults.push(format!("{:?}: {sql}\n  is no stretch of its index: {}", planner.planning, plan.shown()));
    }
    faults.extend(fault_of_pages(planner, sql, &plan, 120));
}
