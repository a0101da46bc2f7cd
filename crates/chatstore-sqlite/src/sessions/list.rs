//! The statements of session lists: which index each walks, and what it sorts.

use chatstore_core::page::{Order, PageRequest, PageStart, SessionPosition};
use chatstore_core::sessions::{SessionQuery, SessionSort};
use chatstore_core::store::Scope;
use rusqlite::types::Value;

use super::columns::session_columns;

/// The statement of one list, from fixed pieces: only `?` stands for what a client sent.
pub(super) fn list_statement(
    scope: &Scope,
    query: &SessionQuery,
    page: &PageRequest<SessionPosition>,
    path: Path,
) -> (String, Vec<Value>) {
    let one_user = one_user(scope, query).is_some();
    // One user's sessions are sorted by activity: the keys alone, and then the page is fetched whole.
    let sorts_keys = one_user && query.sort != SessionSort::CreatedAt;
    let project = || Value::from(scope.project_id.as_bytes().to_vec());
    let (select, mut values) = match (path, query.metadata.first()) {
        (Path::Matches, Some((key, value))) => {
            (SELECT_BY_METADATA, vec![project(), key.clone().into(), value.clone().into(), project()])
        }
        _ if sorts_keys => (SELECT_BY_KEYS, vec![project()]),
        _ => (SELECT_LIST, vec![project()]),
    };
    let mut sql = select.to_owned();
    let mut add = |clause: &str, bound: &mut dyn Iterator<Item = Value>| {
        sql.push_str(clause);
        values.extend(bound);
    };
    // Both, if both are given: a scope narrows, and never widens, what a query asks for.
    for user_id in [&scope.user_id, &query.user_id].into_iter().flatten() {
        add(" and s.user_id = ?", &mut std::iter::once(user_id.clone().into()));
    }
    if let Some(is_favorite) = query.is_favorite {
        add(" and s.is_favorite = ?", &mut std::iter::once(i64::from(is_favorite).into()));
    }
    for (key, value) in query.metadata.iter().skip(usize::from(path == Path::Matches)) {
        add(HAS_METADATA, &mut [project(), key.clone().into(), value.clone().into()].into_iter());
    }
    let hours = if one_user || path == Path::Matches { None } else { hour_column(query.sort) };
    // A `+` keeps the planner from leaving the hours for the index of creation.
    let created_at = if hours.is_some() { "+s.created_at" } else { "s.created_at" };
    if let Some(after) = query.created_after {
        add(&format!(" and {created_at} > ?"), &mut std::iter::once(after.as_micros().into()));
    }
    if let Some(before) = query.created_before {
        add(&format!(" and {created_at} < ?"), &mut std::iter::once(before.as_micros().into()));
    }
    let key = sort_key(query.sort);
    let (compare, reach, direction) = match query.order {
        Order::Asc => (">", ">=", "asc"),
        Order::Desc => ("<", "<=", "desc"),
    };
    if let PageStart::After(position) = &page.start {
        if let Some(hours) = hours {
            add(&format!(" and {hours} {reach} ?"), &mut std::iter::once(position.sorted_by.hour().into()));
        }
        let bound = [position.sorted_by.as_micros().into(), position.session_id.as_bytes().to_vec().into()];
        add(&format!(" and ({key}, s.session_id) {compare} (?, ?)"), &mut bound.into_iter());
    }
    let hours = hours.map(|hours| format!("{hours} {direction}, ")).unwrap_or_default();
    add(
        &format!(" order by {hours}{key} {direction}, s.session_id {direction} limit ?"),
        &mut std::iter::once((i64::from(page.limit) + 1).into()),
    );
    if let PageStart::Offset(offset @ 1..) = page.start {
        add(" offset ?", &mut std::iter::once(i64::try_from(offset).unwrap_or(i64::MAX).into()));
    }
    if sorts_keys {
        sql.push_str(&format!(") order by {key} {direction}, s.session_id {direction}"));
    }
    (sql, values)
}

const SELECT_LIST: &str =
    concat!("select ", session_columns!(), " from sessions s where s.deleted_at is null and s.project_id = ?");
const SELECT_BY_KEYS: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s where s.session_no in (
    select s.session_no from sessions s where s.deleted_at is null and s.project_id = ?"
);

const SELECT_BY_METADATA: &str = concat!(
    "select ",
    session_columns!(),
    " from session_metadata f cross join sessions s on s.session_no = f.session_no
    where f.project_id = ? and f.key = ? and f.value = ? and s.deleted_at is null and s.project_id = ?"
);
const HAS_METADATA: &str = " and exists (select 1 from session_metadata m
    where m.project_id = ? and m.key = ? and m.value = ? and m.session_no = s.session_no)";
pub(super) const COUNT_MATCHES: &str = "select count(*) from (
    select 1 from session_metadata where project_id = ?1 and key = ?2 and value = ?3 limit ?4)";

/// Sessions with a metadata value that are few enough to be fetched and sorted; among more, a walk
/// in the list's order soon meets a page of them.
pub(super) const FEW_MATCHES_MAX: i64 = 1_000;

/// From where a list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// In its order; what does not match is passed over.
    Order,
    /// From the sessions that match the first metadata filter.
    Matches,
}

/// The user whose sessions alone are listed.
pub(super) fn one_user<'a>(scope: &'a Scope, query: &'a SessionQuery) -> Option<&'a String> {
    scope.user_id.as_ref().or(query.user_id.as_ref())
}

fn sort_key(sort: SessionSort) -> &'static str {
    match sort {
        SessionSort::CreatedAt => "s.created_at",
        SessionSort::UpdatedAt => "s.updated_at",
        SessionSort::LastMessageAt => "coalesce(s.last_message_at, s.created_at)",
    }
}

/// The indexed hours by which a project-wide list walks before it sorts within each.
fn hour_column(sort: SessionSort) -> Option<&'static str> {
    match sort {
        SessionSort::CreatedAt => None,
        SessionSort::UpdatedAt => Some("s.updated_hour"),
        SessionSort::LastMessageAt => Some("s.active_hour"),
    }
}

#[cfg(test)]
mod tests {
    use chatstore_core::clock::Timestamp;
    use chatstore_core::ids::ProjectId;
    use rusqlite::params_from_iter;
    use uuid::Uuid;

    use super::*;

    /// Every form of the list, with the name of what it is.
    fn every_list() -> Vec<(String, String)> {
        let mut lists = Vec::new();
        let position =
            SessionPosition { sorted_by: Timestamp::from_micros(0).unwrap(), session_id: Uuid::nil().into() };
        for bits in 0..64u32 {
            let on = |bit: u32| bits & (1 << bit) != 0;
            for sort in [SessionSort::CreatedAt, SessionSort::UpdatedAt, SessionSort::LastMessageAt] {
                for order in [Order::Asc, Order::Desc] {
                    for start in [PageStart::Offset(0), PageStart::Offset(7), PageStart::After(position)] {
                        let query = SessionQuery {
                            user_id: on(0).then(|| "ada".to_owned()),
                            is_favorite: on(1).then_some(true),
                            metadata: if on(2) { vec![("k".to_owned(), "v".to_owned())] } else { Vec::new() },
                            created_after: on(3).then_some(position.sorted_by),
                            created_before: on(4).then_some(position.sorted_by),
                            sort,
                            order,
                        };
                        let user_id = on(5).then(|| "ada".to_owned());
                        let scope = Scope { user_id, ..Scope::project(ProjectId::DEFAULT) };
                        let name = format!("{scope:?} {query:?} {start:?}");
                        let page = PageRequest { limit: 20, start };
                        lists.push((name.clone(), list_statement(&scope, &query, &page, Path::Order).0));
                        if on(2) && !on(0) && !on(5) {
                            lists.push((name, list_statement(&scope, &query, &page, Path::Matches).0));
                        }
                    }
                }
            }
        }
        lists
    }

    #[test]
    fn every_list_walks_an_index_and_sorts_only_where_it_may() {
        let connection = crate::tests::migrated();
        for (name, sql) in every_list() {
            let mut statement = connection.prepare(&format!("explain query plan {sql}")).unwrap();
            let count = statement.parameter_count();
            let plan: Vec<String> = statement
                .query_map(params_from_iter(vec![Value::Null; count]), |row| row.get::<_, String>(3))
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            let plan = plan.join("; ");
            assert!(!plan.contains("SCAN"), "{name}: {plan}");
            let one_user = sql.contains("user_id = ?");
            let by_metadata = sql.contains("cross join");
            assert_eq!(plan.starts_with("SEARCH f USING"), by_metadata, "{name}: {plan}");
            let whole_sort = plan.contains("TEMP B-TREE FOR ORDER BY");
            let walks_created = sql.contains("order by s.created_at") && !by_metadata;
            assert!(!(walks_created && plan.contains("TEMP B-TREE")), "{name}: {plan}");
            assert!(one_user || by_metadata || !whole_sort, "{name}: {plan}");
        }
    }
}
