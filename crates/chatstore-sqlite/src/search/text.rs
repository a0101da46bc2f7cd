//! Search by words: the index names candidates, newest first, and core decides.

use std::collections::HashSet;

use chatstore_core::ids::Bucket;
use chatstore_core::limits::{SEARCH_BYTES_MAX, SEARCH_MATCHES_MAX};
use chatstore_core::search::lexemes::{Lexeme, LexemeQuery};
use chatstore_core::search::query;
use chatstore_core::search::{Best, RankedMessage, SearchFilter, TextQuery};
use chatstore_core::store::Scope;
use rusqlite::params;

use super::candidates::{Candidates, created_bounds, session_no};
use crate::messages::message_no;
use crate::reader::Reader;
use crate::writer::Failure;

/// The join is crossed so that the index is asked first.
const LIST_CANDIDATES: &str = "select d.created_at, d.message_no
    from message_terms t cross join message_texts d on d.text_no = t.rowid
    where t.message_terms match ?1 and d.message_no > ?2 and d.message_no < ?3 and d.created_at >= ?4
        and d.created_at < ?5 and (d.created_at, d.message_no) < (?6, ?7)";
/// The latest texts, which the index does not hold yet: all are looked through.
const LIST_PENDING: &str = "select created_at, message_no, lexemes from pending_texts
    where message_no > ?1 and message_no < ?2 and created_at >= ?3 and created_at < ?4
        and (created_at, message_no) < (?5, ?6)";
const LIST_SESSIONS_OF_USER: &str =
    "select session_no from sessions where project_id = ?1 and user_id = ?2 and deleted_at is null";

#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[LIST_CANDIDATES, LIST_SESSIONS_OF_USER];
#[cfg(test)]
pub(crate) const PENDING_STATEMENTS: &[&str] = &[LIST_PENDING];

/// Candidates that are held at once; more take another walk over the index.
const WINDOW: usize = 16_384;
/// What going through a byte of text costs, in bytes that are merely read.
const ANALYSIS_COST: usize = 8;

/// A candidate's time and `message_no`: the larger, the newer.
type Position = (i64, i64);

pub(super) fn search(
    reader: &Reader,
    scope: &Scope,
    query: &TextQuery,
    filter: &SearchFilter,
    limit: usize,
) -> Result<Vec<RankedMessage>, Failure> {
    let Some(index) = Index::open(reader, scope, query, filter)? else {
        return Ok(Vec::new());
    };
    let mut candidates = Candidates::new(reader, scope, filter, true);
    let (mut best, mut matches, mut bytes) = (Best::new(limit), 0, 0);
    let mut before = (i64::MAX, i64::MAX);
    loop {
        let window = index.newest(before)?;
        for (_, message_no) in &window {
            let Some(mut found) = candidates.find(*message_no)? else { continue };
            reader.spend(ANALYSIS_COST * found.content.len())?;
            bytes += found.content.len();
            let candidate =
                query::Candidate { content: &found.content, role: &found.role, session_name: &found.session.name };
            if let Some(score) = query.score(&candidate) {
                found.message.score = score;
                best.push(found.message);
                matches += 1;
            }
            if matches == SEARCH_MATCHES_MAX || bytes >= SEARCH_BYTES_MAX {
                return Ok(best.into_sorted());
            }
        }
        match window.last() {
            Some(oldest) if window.len() == WINDOW => before = *oldest,
            _ => return Ok(best.into_sorted()),
        }
    }
}

/// The part of the index that a query is about.
struct Index<'a> {
    reader: &'a Reader,
    asked: LexemeQuery,
    /// Between which messages, these not included.
    bounds: (i64, i64),
    /// The user's sessions, where the index names those of others in between.
    sessions: Option<HashSet<i64>>,
    created: (i64, i64),
}

impl<'a> Index<'a> {
    /// `None` if nothing can be found.
    fn open(
        reader: &'a Reader,
        scope: &Scope,
        query: &TextQuery,
        filter: &SearchFilter,
    ) -> Result<Option<Self>, Failure> {
        let bucket = match (filter.session_id, filter.user(scope)) {
            (Some(session_id), _) => Some(session_id.bucket()),
            (None, Some(user_id)) => Some(Bucket::of_user(scope.project_id, user_id)),
            (None, None) => None,
        };
        let Some(asked) = query.lexemes(scope.project_id, bucket).filter(|_| !filter.contradicts(scope)) else {
            return Ok(None);
        };
        let bounds = match filter.session_id {
            None => (i64::MIN, i64::MAX),
            Some(session_id) => match session_no(reader, scope, filter, session_id)? {
                Some(session_no) => (message_no(session_no, 0), message_no(session_no + 1, 0)),
                None => return Ok(None),
            },
        };
        let is_prefix = |lexeme: &Lexeme| matches!(lexeme, Lexeme::Prefix(_));
        let sessions = match filter.user(scope) {
            Some(user_id) if filter.session_id.is_none() && asked.groups.iter().flatten().any(is_prefix) => {
                let params = params![scope.project_id.as_bytes(), user_id];
                let sessions = reader.query(LIST_SESSIONS_OF_USER, params, |row| row.get(0), |_| size_of::<i64>())?;
                Some(sessions.into_iter().collect())
            }
            _ => None,
        };
        Ok(Some(Self { reader, asked, bounds, sessions, created: created_bounds(filter) }))
    }

    /// The newest candidates before a position, newest first, at most [`WINDOW`]. The index knows no
    /// order of time, so all are looked at; few are held.
    fn newest(&self, before: Position) -> Result<Vec<Position>, Failure> {
        let mut newest: Vec<Position> = Vec::new();
        let ((from, to), (after, until)) = (self.bounds, self.created);
        let params = params![match_expression(&self.asked), from, to, after, until, before.0, before.1];
        self.reader.visit(LIST_CANDIDATES, params, |row| {
            let position: Position = (row.get(0)?, row.get(1)?);
            if self.sessions.as_ref().is_none_or(|sessions| sessions.contains(&(position.1 >> 32))) {
                newest.push(position);
            }
            if newest.len() == 2 * WINDOW {
                newest.select_nth_unstable_by(WINDOW, |a, b| b.cmp(a));
                newest.truncate(WINDOW);
            }
            Ok(())
        })?;
        let params = params![from, to, after, until, before.0, before.1];
        self.reader.visit(LIST_PENDING, params, |row| {
            let lexemes = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
            self.reader.spend(lexemes.len())?;
            if self.asked.groups.iter().all(|group| group.iter().any(|wanted| holds(lexemes, wanted))) {
                newest.push((row.get(0)?, row.get(1)?));
            }
            Ok(())
        })?;
        newest.sort_unstable_by(|a, b| b.cmp(a));
        newest.truncate(WINDOW);
        Ok(newest)
    }
}

fn holds(lexemes: &str, wanted: &Lexeme) -> bool {
    lexemes.split(' ').any(|lexeme| match wanted {
        Lexeme::Exact(text) => lexeme == text,
        Lexeme::Prefix(text) => lexeme.starts_with(text.as_str()),
    })
}

/// The query as FTS5 reads it: every lexeme a string, so that nothing in it is an operator.
fn match_expression(query: &LexemeQuery) -> String {
    let string = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let lexeme = |lexeme: &Lexeme| match lexeme {
        Lexeme::Exact(text) => string(text),
        Lexeme::Prefix(text) => format!("{} *", string(text)),
    };
    let group = |group: &Vec<Lexeme>| format!("({})", group.iter().map(lexeme).collect::<Vec<_>>().join(" OR "));
    query.groups.iter().map(group).collect::<Vec<_>>().join(" AND ")
}
