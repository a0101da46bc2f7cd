//! The statements of session lists: which index each walks, and what it sorts.

use chatstore_core::ids::Bucket;
use chatstore_core::page::{Order, PageRequest, PageStart, SessionPosition};
use chatstore_core::sessions::{Session, SessionQuery, SessionSort};
use chatstore_core::store::Scope;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::columns::session_columns;
use super::metadata::pair_digest;
use super::session_row;
use crate::columns::bucket_value;
use crate::params::{Param, SqlType, params};
use crate::pool::{Db, Failure, Plan};

const SELECT_LIST: &str = concat!("select ", session_columns!(), " from sessions s where s.deleted_at is null");
/// From the matches to their sessions: `offset 0` keeps the planner from beginning with the sessions,
/// for it does not know that the matches are few.
const SELECT_BY_METADATA: &str = concat!(
    "select ",
    session_columns!(),
    " from session_metadata f cross join lateral (
        select s.* from sessions s where s.bucket = f.bucket and s.session_id = f.session_id offset 0) s
    where s.deleted_at is null and f.project_id = $1"
);
/// In the order of an index, so that not the table is read for a value that most sessions have.
const COUNT_MATCHES: &str = "select count(*) from (
    select 1 from session_metadata where project_id = $1 and pair_digest = $2 order by session_id limit $3) f";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[COUNT_MATCHES];

/// Sessions with a metadata value that are few enough to be fetched and sorted; among more, a walk
/// in the list's order soon meets a page of them.
const FEW_MATCHES_MAX: i64 = 1_000;

/// From where a list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// In its order; what does not match is passed over.
    Order,
    /// From the sessions that match the first metadata filter.
    Matches,
}

/// A page that is wanted.
pub(crate) struct List<'a> {
    pub(crate) scope: &'a Scope,
    pub(crate) query: &'a SessionQuery,
    pub(crate) page: &'a PageRequest<SessionPosition>,
}

impl List<'_> {
    /// The page's sessions and one more, if there is one.
    pub(super) async fn read(&self, db: &Db) -> Result<Vec<Session>, Failure> {
        let path = match self.query.metadata.first() {
            Some((key, value)) if self.one_user().is_none() => {
                let digest = pair_digest(key, value);
                let params = params![self.scope.project_id.uuid(), digest.as_slice(), FEW_MATCHES_MAX];
                let row = db.query_opt(COUNT_MATCHES, params).await?;
                let matches: Option<i64> = row.map(|row| row.try_get(0)).transpose()?;
                if matches < Some(FEW_MATCHES_MAX) { Path::Matches } else { Path::Order }
            }
            _ => Path::Order,
        };
        let (sql, values) = self.statement(path);
        let params: Vec<Param<'_>> = values.iter().map(Value::param).collect();
        let rows = db.query_planned(self.plan(), &sql, &params).await?;
        rows.iter().map(session_row).collect()
    }

    /// The user whose sessions alone are listed.
    fn one_user(&self) -> Option<&String> {
        self.scope.user_id.as_ref().or(self.query.user_id.as_ref())
    }

    /// Filters make more statements than a connection should keep.
    pub(crate) fn plan(&self) -> Plan {
        let query = self.query;
        let filters = query.is_favorite.is_some()
            || !query.metadata.is_empty()
            || query.created_after.is_some()
            || query.created_before.is_some();
        if filters { Plan::Once } else { Plan::Kept }
    }

    /// The statement, from fixed pieces: what a client sent stands in parameters alone.
    pub(crate) fn statement(&self, path: Path) -> (String, Vec<Value>) {
        let (scope, query) = (self.scope, self.query);
        let mut sql = Text::new(if path == Path::Matches { SELECT_BY_METADATA } else { SELECT_LIST });
        sql.values.push(Value::Id(scope.project_id.uuid()));
        match self.one_user() {
            Some(user_id) => self.one_stretch(&mut sql, user_id),
            None => sql.push(" and s.project_id = $1"),
        }
        // Both, if both are given: a scope narrows, and never widens, what a query asks for.
        if let (Some(_), Some(user_id)) = (&scope.user_id, &query.user_id) {
            sql.filter("s.user_id =", Value::Text(user_id.clone()));
        }
        if let Some(is_favorite) = query.is_favorite {
            sql.filter("s.is_favorite =", Value::Flag(is_favorite));
        }
        for (n, (key, value)) in query.metadata.iter().enumerate() {
            let digest = Value::Digest(pair_digest(key, value).to_vec());
            if n == 0 && path == Path::Matches {
                sql.bind(" and f.pair_digest = ", digest);
                continue;
            }
            sql.push(" and exists (select 1 from session_metadata m where m.bucket = s.bucket");
            sql.bind(" and m.session_id = s.session_id and m.pair_digest = ", digest);
            // Keeps it a question to each session of the walk; else all that match would be sorted.
            sql.push(" offset 0)");
        }
        let hours = if self.one_user().is_some() || path == Path::Matches { None } else { hour_column(query.sort) };
        for (condition, bound) in [("s.created_at >", query.created_after), ("s.created_at <", query.created_before)] {
            match bound.map(|bound| Value::Number(bound.as_micros())) {
                // The hours are not left for the index of creation.
                Some(bound) if hours.is_some() => sql.filter(condition, bound),
                Some(bound) => sql.bind(&format!(" and {condition} "), bound),
                None => {}
            }
        }
        self.order(&mut sql, hours);
        (sql.text, sql.values)
    }

    /// One user's sessions: a stretch of the index that holds them in the order of creation.
    ///
    /// Its ends are rows, not equalities, so that no index of the whole project looks as good to a
    /// planner that does not know the tables yet.
    fn one_stretch(&self, sql: &mut Text, user_id: &str) {
        let bucket = Bucket::of_user(self.scope.project_id, user_id);
        sql.bind(" and s.bucket = ", Value::Bucket(bucket_value(bucket)));
        for end in [">", "<"] {
            match self.page.start {
                PageStart::After(position) if self.query.sort == SessionSort::CreatedAt && end == self.compare() => {
                    sql.bind(
                        &format!(" and (s.project_id, s.user_id, s.created_at, s.session_id) {end} ($1, "),
                        Value::Text(user_id.to_owned()),
                    );
                    sql.bind(", ", Value::Number(position.sorted_by.as_micros()));
                    sql.bind(", ", Value::Id(position.session_id.uuid()));
                }
                _ => sql.bind(&format!(" and (s.project_id, s.user_id) {end}= ($1, "), Value::Text(user_id.to_owned())),
            }
            sql.push(")");
        }
    }

    /// How what follows a position compares with it.
    fn compare(&self) -> &'static str {
        match self.query.order {
            Order::Asc => ">",
            Order::Desc => "<",
        }
    }

    fn order(&self, sql: &mut Text, hours: Option<&str>) {
        let (key, compare) = (sort_key(self.query.sort), self.compare());
        let walks_stretch = self.one_user().is_some() && self.query.sort == SessionSort::CreatedAt;
        if let PageStart::After(position) = &self.page.start
            && !walks_stretch
        {
            if let Some(hours) = hours {
                sql.bind(&format!(" and {hours} {compare}= "), Value::Number(position.sorted_by.hour()));
            }
            sql.bind(&format!(" and ({key}, s.session_id) {compare} ("), Value::Number(position.sorted_by.as_micros()));
            sql.bind(", ", Value::Id(position.session_id.uuid()));
            sql.push(")");
        }
        let direction = match self.query.order {
            Order::Asc => "asc",
            Order::Desc => "desc",
        };
        sql.push(" order by ");
        let before: &[&str] = if walks_stretch { &["s.project_id", "s.user_id"] } else { hours.as_slice() };
        for column in before {
            sql.push(&format!("{column} {direction}, "));
        }
        sql.bind(
            &format!("{key} {direction}, s.session_id {direction} limit "),
            Value::Number(i64::from(self.page.limit) + 1),
        );
        if let PageStart::Offset(offset @ 1..) = self.page.start {
            sql.bind(" offset ", Value::Number(i64::try_from(offset).unwrap_or(i64::MAX)));
        }
    }
}

/// A statement in the making.
struct Text {
    text: String,
    values: Vec<Value>,
}

impl Text {
    fn new(head: &str) -> Self {
        Self { text: head.to_owned(), values: Vec::new() }
    }

    fn push(&mut self, piece: &str) {
        self.text.push_str(piece);
    }

    /// Adds a condition for which no index is wanted. The case keeps the planner from guessing how
    /// few rows meet it, for it would fetch and sort them.
    fn filter(&mut self, condition: &str, value: Value) {
        self.bind(&format!(" and case when {condition} "), value);
        self.push(" then true end");
    }

    /// Adds `piece` and, behind it, a parameter.
    fn bind(&mut self, piece: &str, value: Value) {
        self.values.push(value);
        self.text.push_str(&format!("{piece}${}", self.values.len()));
    }
}

/// A parameter of a list.
pub(crate) enum Value {
    Bucket(i16),
    Id(Uuid),
    Text(String),
    Flag(bool),
    Number(i64),
    Digest(Vec<u8>),
}

impl Value {
    pub(crate) fn param(&self) -> Param<'_> {
        match self {
            Self::Bucket(value) => (value, i16::TYPE),
            Self::Id(value) => (value, Uuid::TYPE),
            Self::Text(value) => (value, String::TYPE),
            Self::Flag(value) => (value, bool::TYPE),
            Self::Number(value) => (value, i64::TYPE),
            Self::Digest(value) => (value, Type::BYTEA),
        }
    }
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
