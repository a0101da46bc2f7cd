//! Sessions in SQLite.

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::SessionId;
use chatstore_core::json::RawJson;
use chatstore_core::limits::ERASE_MESSAGES_BATCH;
use chatstore_core::page::{Order, Page, PageRequest, PageStart, SessionPosition};
use chatstore_core::sessions::{
    NewSession, Session, SessionPage, SessionPatch, SessionQuery, SessionSort, SessionStore,
};
use chatstore_core::store::{ExpectedVersion, Scope, StoreError};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};
use uuid::Uuid;

use crate::SqliteStore;
use crate::columns::{id_column, json_column, time_column, time_column_opt};
use crate::messages::message_no;
use crate::writer::{Failure, Kind};

/// The columns of [`session_row`], in its order. `concat!` needs a literal, so it is a macro.
macro_rules! session_columns {
    () => {
        "s.session_no, s.session_id, s.project_id, s.user_id, s.session_name, s.is_favorite, s.metadata, \
         s.external_id, s.last_seq, s.message_count, s.token_count, s.version, s.created_at, s.updated_at, \
         s.last_message_at, s.deleted_at, s.forked_from"
    };
}

const INSERT_SESSION: &str = "insert into sessions
    (session_id, project_id, user_id, session_name, is_favorite, metadata, external_id, last_seq, message_count,
     token_count, version, created_at, updated_at, last_message_at, updated_hour, active_hour, deleted_at, forked_from)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)";
const SELECT_SESSION: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s
    where s.session_id = ?1 and s.project_id = ?2 and s.deleted_at is null and (?3 is null or s.user_id = ?3)"
);
const UPDATE_SESSION: &str = "update sessions
    set session_name = ?2, is_favorite = ?3, metadata = ?4, version = ?5, updated_at = ?6 where session_no = ?1";
const UPDATE_UPDATED_HOUR: &str = "update sessions set updated_hour = ?2 where session_no = ?1 and updated_hour <> ?2";
const DELETE_SESSION: &str = "update sessions
    set session_name = '', metadata = '{}', message_count = 0, token_count = token_count * 0, version = ?2,
        updated_at = ?3, deleted_at = ?3
    where session_no = ?1";
const INSERT_METADATA: &str =
    "insert into session_metadata (project_id, key, value, session_no) values (?1, ?2, ?3, ?4)";
const DELETE_METADATA: &str =
    "delete from session_metadata where project_id = ?1 and key = ?2 and value = ?3 and session_no = ?4";
const INSERT_ERASURE: &str = "insert into session_erasures (session_no, erased_seq) values (?1, 0)";
const SELECT_ERASURE: &str = "select s.session_no, e.erased_seq, s.deleted_at from session_erasures e
    join sessions s on s.session_no = e.session_no limit 1";
const SELECT_ERASABLE: &str = "select message_no, octet_length(content) + coalesce(octet_length(payload), 0)
        + octet_length(metadata) + coalesce(octet_length(context), 0)
    from messages where message_no > ?1 and message_no < ?2 order by message_no limit ?3";
const ERASE_MESSAGES: &str = "update messages
    set content = '', payload = null, metadata = '{}', context = null, deleted_at = ?3
    where message_no > ?1 and message_no <= ?2 and deleted_at is null";
const UPDATE_ERASURE: &str = "update session_erasures set erased_seq = ?2 where session_no = ?1";
const DELETE_ERASURE: &str = "delete from session_erasures where session_no = ?1";

/// Bytes of text that are erased in one transaction; appends wait for no more.
const ERASE_BYTES_BATCH: i64 = 4 << 20;

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    INSERT_SESSION,
    SELECT_SESSION,
    UPDATE_SESSION,
    UPDATE_UPDATED_HOUR,
    DELETE_SESSION,
    INSERT_METADATA,
    DELETE_METADATA,
    INSERT_ERASURE,
    SELECT_ERASURE,
    SELECT_ERASABLE,
    ERASE_MESSAGES,
    UPDATE_ERASURE,
    DELETE_ERASURE,
    COUNT_MATCHES,
];

/// A session with its private number.
pub(crate) struct SessionRow {
    pub(crate) session_no: i64,
    pub(crate) session: Session,
}

#[async_trait]
impl SessionStore for SqliteStore {
    async fn create_session(&self, scope: &Scope, new: NewSession) -> Result<Session, StoreError> {
        let session = new.into_session(scope.project_id);
        if scope.user_id.is_some() && session.user_id != scope.user_id {
            let detail = "is another than the caller speaks for".to_owned();
            return Err(StoreError::Invalid { pointer: "/user_id".to_owned(), detail });
        }
        self.writer
            .write(Kind::Plain, session.bytes(), move |connection| {
                insert_session(connection, &session)?;
                Ok(session)
            })
            .await
    }

    async fn get_session(&self, scope: &Scope, session_id: SessionId) -> Result<Option<Session>, StoreError> {
        let scope = scope.clone();
        self.readers
            .read(move |reader| {
                let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
                Ok(reader.query_row(SELECT_SESSION, params, session_row)?.map(|row| row.session))
            })
            .await
    }

    async fn list_sessions(
        &self,
        scope: &Scope,
        query: &SessionQuery,
        page: &PageRequest<SessionPosition>,
    ) -> Result<SessionPage, StoreError> {
        let (scope, query, page) = (scope.clone(), query.clone(), page.clone());
        self.readers
            .read(move |reader| {
                let path = match query.metadata.first() {
                    Some((key, value)) if one_user(&scope, &query).is_none() => {
                        let params = params![scope.project_id.as_bytes(), key, value, FEW_MATCHES_MAX];
                        let matches = reader.query_row(COUNT_MATCHES, params, |row| row.get::<_, i64>(0))?;
                        if matches < Some(FEW_MATCHES_MAX) { Path::Matches } else { Path::Order }
                    }
                    _ => Path::Order,
                };
                let (sql, values) = list_statement(&scope, &query, &page, path);
                let (sort, limit) = (query.sort, page.limit);
                let bytes = |row: &SessionRow| row.session.bytes();
                let rows = reader.query(&sql, params_from_iter(&values), session_row, bytes)?;
                let sessions = rows.into_iter().map(|row| row.session).collect();
                Ok(Page::cut(sessions, limit, |session: &Session| session.position(sort)))
            })
            .await
    }

    async fn update_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        patch: SessionPatch,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError> {
        let scope = scope.clone();
        let bytes = patch.metadata.as_ref().map_or(0, RawJson::bytes);
        self.writer
            .write(Kind::Plain, bytes, move |connection| {
                let SessionRow { session_no, mut session } = find_session(connection, &scope, session_id)?;
                expected.check(session.version)?;
                let before = session.metadata.clone();
                if patch.apply(&mut session, now) {
                    connection.prepare_cached(UPDATE_SESSION)?.execute(params![
                        session_no,
                        session.session_name,
                        session.is_favorite,
                        session.metadata.as_str(),
                        session.version,
                        session.updated_at.as_micros(),
                    ])?;
                    note_hour(connection, session_no, session.updated_at)?;
                    if session.metadata != before {
                        drop_metadata(connection, session_no, &session, &before)?;
                        insert_metadata(connection, session_no, &session)?;
                    }
                }
                Ok(session)
            })
            .await
    }

    async fn delete_session(
        &self,
        scope: &Scope,
        session_id: SessionId,
        expected: ExpectedVersion,
        now: Timestamp,
    ) -> Result<Session, StoreError> {
        let scope = scope.clone();
        self.writer
            .write(Kind::Delete, 0, move |connection| {
                let SessionRow { session_no, session } = find_session(connection, &scope, session_id)?;
                expected.check(session.version)?;
                let at = now.max(session.updated_at).as_micros();
                connection.prepare_cached(DELETE_SESSION)?.execute(params![
                    session_no,
                    session.version.saturating_add(1),
                    at
                ])?;
                drop_metadata(connection, session_no, &session, &session.metadata)?;
                connection.prepare_cached(INSERT_ERASURE)?.execute(params![session_no])?;
                Ok(session)
            })
            .await
    }
}

/// The live session of this id inside the scope.
pub(crate) fn find_session(
    connection: &Connection,
    scope: &Scope,
    session_id: SessionId,
) -> Result<SessionRow, Failure> {
    let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), scope.user_id];
    let row = connection.prepare_cached(SELECT_SESSION)?.query_row(params, session_row).optional()?;
    Ok(row.ok_or(StoreError::NotFound)?)
}

/// Stores a session as it is and returns its number.
pub(crate) fn insert_session(connection: &Connection, session: &Session) -> Result<i64, Failure> {
    connection.prepare_cached(INSERT_SESSION)?.execute(params![
        session.session_id.as_bytes(),
        session.project_id.as_bytes(),
        session.user_id,
        session.session_name,
        session.is_favorite,
        session.metadata.as_str(),
        session.external_id,
        session.last_seq,
        session.message_count,
        session.token_count,
        session.version,
        session.created_at.as_micros(),
        session.updated_at.as_micros(),
        session.last_message_at.map(Timestamp::as_micros),
        session.updated_at.hour(),
        session.sorted_by(SessionSort::LastMessageAt).hour(),
        session.deleted_at.map(Timestamp::as_micros),
        session.forked_from.as_ref().map(SessionId::as_bytes),
    ])?;
    let session_no = connection.last_insert_rowid();
    if session.deleted_at.is_none() {
        insert_metadata(connection, session_no, session)?;
    }
    Ok(session_no)
}

fn insert_metadata(connection: &Connection, session_no: i64, session: &Session) -> rusqlite::Result<()> {
    for (key, value) in session.metadata.scalars() {
        let params = params![session.project_id.as_bytes(), key, value, session_no];
        connection.prepare_cached(INSERT_METADATA)?.execute(params)?;
    }
    Ok(())
}

fn drop_metadata(
    connection: &Connection,
    session_no: i64,
    session: &Session,
    metadata: &RawJson,
) -> rusqlite::Result<()> {
    for (key, value) in metadata.scalars() {
        let params = params![session.project_id.as_bytes(), key, value, session_no];
        connection.prepare_cached(DELETE_METADATA)?.execute(params)?;
    }
    Ok(())
}

/// Moves the indexed hour of a changed session, which is rarely needed.
pub(crate) fn note_hour(connection: &Connection, session_no: i64, updated_at: Timestamp) -> rusqlite::Result<()> {
    connection.prepare_cached(UPDATE_UPDATED_HOUR)?.execute(params![session_no, updated_at.hour()]).map(drop)
}

/// Blanks a batch of messages of deleted sessions; tells whether more may wait.
pub(crate) fn erase_some(connection: &Connection) -> rusqlite::Result<bool> {
    let next = connection
        .prepare_cached(SELECT_ERASURE)?
        .query_row((), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))
        .optional()?;
    let Some((session_no, erased_seq, deleted_at)) = next else {
        return Ok(false);
    };
    let from = message_no(session_no, erased_seq);
    match last_erasable(connection, session_no, from)? {
        Some(to) => {
            connection.prepare_cached(ERASE_MESSAGES)?.execute(params![from, to, deleted_at])?;
            let erased_seq = to - message_no(session_no, 0);
            connection.prepare_cached(UPDATE_ERASURE)?.execute(params![session_no, erased_seq])?;
        }
        None => {
            connection.prepare_cached(DELETE_ERASURE)?.execute(params![session_no])?;
        }
    }
    Ok(true)
}

/// The last message of the next batch, bounded by number and by bytes.
fn last_erasable(connection: &Connection, session_no: i64, from: i64) -> rusqlite::Result<Option<i64>> {
    let mut statement = connection.prepare_cached(SELECT_ERASABLE)?;
    let mut rows = statement.query(params![from, message_no(session_no + 1, 0), ERASE_MESSAGES_BATCH])?;
    let (mut last, mut bytes) = (None, 0);
    while let Some(row) = rows.next()?
        && bytes < ERASE_BYTES_BATCH
    {
        last = Some(row.get(0)?);
        bytes += row.get::<_, i64>(1)?;
    }
    Ok(last)
}

/// The statement of one list, from fixed pieces: only `?` stands for what a client sent.
fn list_statement(
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
const COUNT_MATCHES: &str = "select count(*) from (
    select 1 from session_metadata where project_id = ?1 and key = ?2 and value = ?3 limit ?4)";

/// Sessions with a metadata value that are few enough to be fetched and sorted; among more, a walk
/// in the list's order soon meets a page of them.
const FEW_MATCHES_MAX: i64 = 1_000;

/// From where a list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// In its order; what does not match is passed over.
    Order,
    /// From the sessions that match the first metadata filter.
    Matches,
}

/// The user whose sessions alone are listed.
fn one_user<'a>(scope: &'a Scope, query: &'a SessionQuery) -> Option<&'a String> {
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

/// Reads a row of `session_columns!`.
pub(crate) fn session_row(row: &Row<'_>) -> rusqlite::Result<SessionRow> {
    let session = Session {
        session_id: id_column(row, 1)?.into(),
        project_id: id_column(row, 2)?.into(),
        user_id: row.get(3)?,
        session_name: row.get(4)?,
        is_favorite: row.get(5)?,
        metadata: json_column(row, 6)?,
        external_id: row.get(7)?,
        last_seq: row.get(8)?,
        message_count: row.get(9)?,
        token_count: row.get(10)?,
        version: row.get(11)?,
        created_at: time_column(row, 12)?,
        updated_at: time_column(row, 13)?,
        last_message_at: time_column_opt(row, 14)?,
        deleted_at: time_column_opt(row, 15)?,
        forked_from: row.get::<_, Option<[u8; 16]>>(16)?.map(|id| Uuid::from_bytes(id).into()),
    };
    Ok(SessionRow { session_no: row.get(0)?, session })
}

pub(crate) use session_columns;

#[cfg(test)]
mod tests {
    use super::*;
    use chatstore_core::ids::ProjectId;

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
                        let scope = Scope { project_id: ProjectId::DEFAULT, user_id: on(5).then(|| "ada".to_owned()) };
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
