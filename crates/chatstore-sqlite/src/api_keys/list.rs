//! The statements of lists of keys.

use chatstore_core::ids::ProjectId;
use chatstore_core::page::{KeyPosition, PageRequest, PageStart};
use rusqlite::types::Value;

use super::api_key_columns;

const SELECT_LIST: &str = concat!(
    "select ",
    api_key_columns!(),
    ", p.name from api_keys k cross join projects p on p.project_id = k.project_id where p.deleted_at is null"
);
const OF_PROJECT: &str = " and k.project_id = ?";
const AFTER: &str = " and (k.created_at, k.key_id) > (?, ?)";
const ORDER: &str = " order by k.created_at, k.key_id limit ?";
const OFFSET: &str = " offset ?";

/// The statement of one list, from fixed pieces, and its values.
pub(super) fn list_statement(project_id: Option<ProjectId>, page: &PageRequest<KeyPosition>) -> (String, Vec<Value>) {
    let (mut sql, mut values) = (SELECT_LIST.to_owned(), Vec::new());
    if let Some(project_id) = project_id {
        sql.push_str(OF_PROJECT);
        values.push(project_id.as_bytes().to_vec().into());
    }
    if let PageStart::After(KeyPosition { created_at, key_id }) = &page.start {
        sql.push_str(AFTER);
        values.extend([created_at.as_micros().into(), key_id.clone().into()]);
    }
    sql.push_str(ORDER);
    values.push((i64::from(page.limit) + 1).into());
    if let PageStart::Offset(offset @ 1..) = page.start {
        sql.push_str(OFFSET);
        values.push(i64::try_from(offset).unwrap_or(i64::MAX).into());
    }
    (sql, values)
}

#[cfg(test)]
mod tests {
    use chatstore_core::clock::Timestamp;

    use super::*;
    use crate::tests::{migrated, plan};

    #[test]
    fn every_list_walks_an_index_in_its_order() {
        let connection = migrated();
        let after = KeyPosition { created_at: Timestamp::from_micros(0).unwrap(), key_id: String::new() };
        for project_id in [None, Some(ProjectId::DEFAULT)] {
            for start in [PageStart::Offset(0), PageStart::Offset(7), PageStart::After(after.clone())] {
                let (sql, values) = list_statement(project_id, &PageRequest { limit: 20, start });
                assert_eq!(connection.prepare(&sql).unwrap().parameter_count(), values.len());
                let plan = plan(&connection, &sql);
                let index = if project_id.is_some() { "api_keys_project" } else { "api_keys_created" };
                assert!(plan[0].contains(&format!("k USING INDEX {index}")), "{sql}: {plan:?}");
                assert!(plan.iter().all(|step| !step.contains("TEMP B-TREE")), "{sql}: {plan:?}");
            }
        }
    }
}
