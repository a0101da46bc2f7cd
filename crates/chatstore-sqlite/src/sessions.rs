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
use crate::writer::Failure;

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
const INSERT_ERASURE: &str = "insert into session_erasures (session_no) values (?1)";
const SELECT_ERASURE: &str = "select s.session_no, s.deleted_at from session_erasures e
    join sessions s on s.session_no = e.session_no limit 1";
const ERASE_MESSAGES: &str = "update messages
    set content = '', payload = null, metadata = '{}', context = null, deleted_at = ?3
    where message_no in (
        select message_no from messages
        where message_no > ?1 << 32 and message_no < (?1 + 1) << 32 and deleted_at is null limit ?2)";
const DELETE_ERASURE: &str = "delete from session_erasures where session_no = ?1";

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
    ERASE_MESSAGES,
    DELETE_ERASURE,
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
            .write(session.metadata.as_str().len() + session.session_name.len(), move |connection| {
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
        let (sql, values) = list_statement(scope, query, page);
        let sort = query.sort;
        let limit = page.limit;
        self.readers
            .read(move |reader| {
                let bytes = |row: &SessionRow| row.session.metadata.as_str().len() + 256;
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
        let bytes = patch.metadata.as_ref().map_or(0, |metadata| metadata.as_str().len());
        self.writer
            .write(bytes, move |connection| {
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
        let deleted = self
            .writer
            .write(0, move |connection| {
                let SessionRow { session_no, session } = find_session(connection, &scope, session_id)?;
                expected.check(session.version)?;
                let at = now.max(session.updated_at).as_micros();
                connection.prepare_cached(DELETE_SESSION)?.execute(params![session_no, session.version + 1, at])?;
                drop_metadata(connection, session_no, &session, &session.metadata)?;
                connection.prepare_cached(INSERT_ERASURE)?.execute(params![session_no])?;
                Ok(session)
            })
            .await?;
        self.writer.expect_erasures();
        Ok(deleted)
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
        .query_row((), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    let Some((session_no, deleted_at)) = next else {
        return Ok(false);
    };
    let erased =
        connection.prepare_cached(ERASE_MESSAGES)?.execute(params![session_no, ERASE_MESSAGES_BATCH, deleted_at])?;
    if erased < ERASE_MESSAGES_BATCH as usize {
        connection.prepare_cached(DELETE_ERASURE)?.execute(params![session_no])?;
    }
    Ok(true)
}

/// The statement of one list, from fixed pieces: only `?` stands for what a client sent.
fn list_statement(scope: &Scope, query: &SessionQuery, page: &PageRequest<SessionPosition>) -> (String, Vec<Value>) {
    let one_user = scope.user_id.is_some() || query.user_id.is_some();
    // One user's sessions are sorted by activity: the keys alone, and then the page is fetched whole.
    let sorts_keys = one_user && query.sort != SessionSort::CreatedAt;
    let mut sql = if sorts_keys { SELECT_BY_KEYS } else { SELECT_LIST }.to_owned();
    let mut values: Vec<Value> = vec![scope.project_id.as_bytes().to_vec().into()];
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
    for (key, value) in &query.metadata {
        let project = Value::from(scope.project_id.as_bytes().to_vec());
        let mut bound = [project, key.clone().into(), value.clone().into()].into_iter();
        add(if one_user { METADATA_OF_USER } else { METADATA_OF_PROJECT }, &mut bound);
    }
    let hours = if one_user { None } else { hour_column(query.sort) };
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

/// Within a user, that user's sessions are walked and each is asked …
const METADATA_OF_USER: &str = " and exists (select 1 from session_metadata m
    where m.project_id = ? and m.key = ? and m.value = ? and m.session_no = s.session_no)";
/// … within a project, the sessions that match are looked up.
const METADATA_OF_PROJECT: &str = " and s.session_no in (select m.session_no from session_metadata m
    where m.project_id = ? and m.key = ? and m.value = ?)";

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
                        lists.push((name, list_statement(&scope, &query, &PageRequest { limit: 20, start }).0));
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
            let by_metadata = !one_user && sql.contains("session_metadata");
            let whole_sort = plan.contains("TEMP B-TREE FOR ORDER BY");
            let walks_created = sql.contains("order by s.created_at") && !by_metadata;
            assert!(!(walks_created && plan.contains("TEMP B-TREE")), "{name}: {plan}");
            assert!(one_user || by_metadata || !whole_sort, "{name}: {plan}");
        }
    }
}
