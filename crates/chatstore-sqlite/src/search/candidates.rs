//! What a search may find: where it looks, and each message it has come upon as it stands.

use std::collections::HashMap;
use std::rc::Rc;

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::SessionId;
use chatstore_core::json::RawJson;
use chatstore_core::search::{RankedMessage, SearchFilter};
use chatstore_core::store::Scope;
use rusqlite::{Row, params};

use crate::columns::{id_column, json_column, time_column};
use crate::messages::{SELECT_SESSION_NO, SEQ_END};
use crate::reader::Reader;
use crate::writer::Failure;

const SELECT_CANDIDATE_SESSION: &str = "select session_id, session_name from sessions
    where session_no = ?1 and project_id = ?2 and deleted_at is null and (?3 is null or user_id = ?3)";
/// Without what it says, where that does not matter.
const SELECT_CANDIDATE: &str = "select message_id, created_at, role, metadata, case when ?5 then content else '' end
    from messages
    where message_no = ?1 and deleted_at is null and (?2 is null or role = ?2) and (?3 is null or kind = ?3)
        and created_at >= ?4 and created_at < ?6";

#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[SELECT_CANDIDATE_SESSION, SELECT_CANDIDATE];

/// A session whose messages may be found.
pub(super) struct CandidateSession {
    session_id: SessionId,
    pub(super) name: String,
}

/// A message that a search has come upon: it is live, inside the scope, and passes the filter.
pub(super) struct Candidate {
    pub(super) message: RankedMessage,
    pub(super) session: Rc<CandidateSession>,
    pub(super) role: String,
    pub(super) content: String,
}

/// Looks messages up for one search.
pub(super) struct Candidates<'a> {
    reader: &'a Reader,
    scope: &'a Scope,
    filter: &'a SearchFilter,
    with_content: bool,
    /// Sessions met so far; `None` is one that may not be seen.
    sessions: HashMap<i64, Option<Rc<CandidateSession>>>,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(reader: &'a Reader, scope: &'a Scope, filter: &'a SearchFilter, with_content: bool) -> Self {
        Self { reader, scope, filter, with_content, sessions: HashMap::new() }
    }

    /// The message, with no score yet.
    pub(super) fn find(&mut self, message_no: i64) -> Result<Option<Candidate>, Failure> {
        let Some(session) = self.session(message_no >> 32)? else {
            return Ok(None);
        };
        let (created_after, created_before) = created_bounds(self.filter);
        let params =
            params![message_no, self.filter.role, self.filter.kind, created_after, self.with_content, created_before];
        let map = |row: &Row<'_>| candidate_row(row, message_no, session);
        let found = self.reader.query_row(SELECT_CANDIDATE, params, map)?;
        Ok(found.filter(|(_, metadata)| self.filter.admits(metadata)).map(|(candidate, _)| candidate))
    }

    fn session(&mut self, session_no: i64) -> Result<Option<Rc<CandidateSession>>, Failure> {
        if let Some(known) = self.sessions.get(&session_no) {
            return Ok(known.clone());
        }
        let params = params![session_no, self.scope.project_id.as_bytes(), self.filter.user(self.scope)];
        let map = |row: &Row<'_>| Ok(CandidateSession { session_id: id_column(row, 0)?.into(), name: row.get(1)? });
        let session = self.reader.query_row(SELECT_CANDIDATE_SESSION, params, map)?.map(Rc::new);
        self.sessions.insert(session_no, session.clone());
        Ok(session)
    }
}

fn candidate_row(
    row: &Row<'_>,
    message_no: i64,
    session: Rc<CandidateSession>,
) -> rusqlite::Result<(Candidate, RawJson)> {
    let message = RankedMessage {
        message_id: id_column(row, 0)?.into(),
        session_id: session.session_id,
        seq: message_no & (SEQ_END - 1),
        created_at: time_column(row, 1)?,
        score: 0.0,
    };
    let candidate = Candidate { message, session, role: row.get(2)?, content: row.get(4)? };
    Ok((candidate, json_column(row, 3)?))
}

/// The times between which messages are looked at: the first counts, the last does not.
pub(super) fn created_bounds(filter: &SearchFilter) -> (i64, i64) {
    let after = filter.created_after.map_or(i64::MIN, Timestamp::as_micros);
    (after, filter.created_before.map_or(i64::MAX, Timestamp::as_micros))
}

/// The live session that a filter names, if it is inside the scope.
pub(super) fn session_no(
    reader: &Reader,
    scope: &Scope,
    filter: &SearchFilter,
    session_id: SessionId,
) -> Result<Option<i64>, Failure> {
    let params = params![session_id.as_bytes(), scope.project_id.as_bytes(), filter.user(scope)];
    reader.query_row(SELECT_SESSION_NO, params, |row| row.get(0))
}
