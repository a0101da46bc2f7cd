//! Every form of the list of sessions, and what its plan may be.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::page::{Order, PageRequest, PageStart};
use chatstore_core::sessions::{SessionQuery, SessionSort};
use chatstore_core::store::Scope;

use super::explain::{Explained, Planning};
use super::rows::{ADA, COMMON, RARE, Rows};
use crate::params::Param;
use crate::pool::Plan;
use crate::sessions::list::{List, Path, Value};

/// A list, its statement, and what its plan may be.
pub(super) struct Form {
    pub(super) name: String,
    pub(super) sql: String,
    values: Vec<Value>,
    /// Whether only one user's sessions are listed.
    of_ada: bool,
    /// Whether every row of the walk is one of the list.
    pub(super) is_unfiltered: bool,
    sorts: Sorts,
}

/// What may be sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sorts {
    /// Nothing: an index has the order.
    Nothing,
    /// Rows of one hour after the other.
    WithinHours,
    /// What was read: one user's sessions, or few that match.
    Few,
}

impl Form {
    pub(super) fn params(&self) -> Vec<Param<'_>> {
        self.values.iter().map(Value::param).collect()
    }

    /// Pages that a page of 20 sessions may touch, `None` if that depends on more than the list.
    pub(super) fn pages_max(&self, rows: &Rows) -> Option<u64> {
        match (self.is_unfiltered, self.sorts) {
            (false, _) => None,
            (true, Sorts::Few) => Some(60 + rows.sessions_of_ada() as u64),
            (true, _) => Some(60),
        }
    }

    /// What is wrong with a plan for it.
    pub(super) fn fault(&self, planning: Planning, plan: &Explained) -> Option<String> {
        let nodes = plan.nodes();
        let kinds = |kind: &str| nodes.iter().filter(|node| node.kind() == kind).count();
        let by = if self.of_ada { "bucket" } else { "project_id" };
        let starts = nodes.iter().find(|node| node.reads());
        let within_hours =
            nodes.iter().any(|node| node.kind() == "Incremental Sort" && node.presorted_by().contains("_hour"));
        let fault = if kinds("Seq Scan") > 0 {
            "reads a whole table"
        } else if starts.is_none_or(|node| !node.walks_by(by)) {
            "does not begin with the rows of its user or project"
        } else {
            match self.sorts {
                // A planner that thinks they are few sorts one user's sessions.
                Sorts::Nothing if planning == Planning::Pooled && self.of_ada => return None,
                Sorts::Nothing if kinds("Sort") + kinds("Incremental Sort") > 0 => "sorts",
                Sorts::WithinHours if kinds("Sort") > 0 || !within_hours => "does not sort within hours",
                _ => return None,
            }
        };
        Some(format!("{planning:?}: {}\n  {fault}: {}", self.name, plan.shown()))
    }
}

/// Every form of the list.
pub(super) fn every_form(rows: &Rows) -> Vec<Form> {
    let time = |text| Timestamp::parse(text).expect("a time");
    let mut forms = Vec::new();
    for bits in 0..64u32 {
        let on = |bit: u32| bits & (1 << bit) != 0;
        for sort in [SessionSort::CreatedAt, SessionSort::UpdatedAt, SessionSort::LastMessageAt] {
            for order in [Order::Asc, Order::Desc] {
                let ada = || ADA.to_owned();
                let of_ada = on(0) || on(5);
                for start in [PageStart::Offset(0), PageStart::Offset(7), PageStart::After(rows.middle(of_ada, sort))] {
                    let query = SessionQuery {
                        user_id: on(0).then(ada),
                        is_favorite: on(1).then_some(true),
                        metadata: Vec::new(),
                        created_after: on(3).then(|| time("2026-01-02T00:00:00Z")),
                        created_before: on(4).then(|| time("2026-01-20T00:00:00Z")),
                        sort,
                        order,
                    };
                    let scope = Scope { user_id: on(5).then(ada), ..Scope::project(ProjectId::DEFAULT) };
                    let page = PageRequest { limit: 20, start };
                    let mut add = |path, pairs: &[(&str, &str)]| {
                        let metadata = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
                        let query = SessionQuery { metadata: metadata.collect(), ..query.clone() };
                        forms.push(form(&List { scope: &scope, query: &query, page: &page }, path));
                    };
                    match on(2) {
                        false => add(Path::Order, &[]),
                        true => add(Path::Order, &[COMMON]),
                    }
                    if on(2) && !of_ada {
                        add(Path::Matches, &[RARE, COMMON]);
                    }
                }
            }
        }
    }
    forms
}

fn form(list: &List<'_>, path: Path) -> Form {
    let (sql, values) = list.statement(path);
    let query = list.query;
    let of_ada = list.scope.user_id.is_some() || query.user_id.is_some();
    let sorts = match (path, query.sort, of_ada) {
        (Path::Matches, ..) => Sorts::Few,
        (Path::Order, SessionSort::CreatedAt, _) => Sorts::Nothing,
        (Path::Order, _, true) => Sorts::Few,
        (Path::Order, _, false) => Sorts::WithinHours,
    };
    let is_unfiltered = list.plan() == Plan::Kept;
    let name = format!("{path:?} {:?} {query:?} {:?}", list.scope.user_id, list.page.start);
    Form { name, sql, values, of_ada, is_unfiltered, sorts }
}
