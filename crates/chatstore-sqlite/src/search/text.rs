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
/// Those with a lexeme from ?1 on and before ?2, in a bucket if ?3 names one. FTS5 itself would gather
/// all of a prefix in one step, which nothing can stop.
const LIST_CANDIDATES_IN_RANGE: &str = "select d.created_at, d.message_no, t.doc
    from message_words t cross join message_texts d on d.text_no = t.doc
    where t.term >= ?1 and t.term < ?2 and (?3 is null or substr(t.term, -5) = ?3) and d.message_no > ?4
        and d.message_no < ?5 and d.created_at >= ?6 and d.created_at < ?7 and (d.created_at, d.message_no) < (?8, ?9)";
const LIST_ROWS_IN_RANGE: &str = "select doc from message_words
    where term >= ?1 and term < ?2 and (?3 is null or substr(term, -5) = ?3)";
/// The latest texts, which the index does not hold yet: all are looked through.
const LIST_PENDING: &str = "select created_at, message_no, lexemes from pending_texts
    where message_no > ?1 and message_no < ?2 and created_at >= ?3 and created_at < ?4
        and (created_at, message_no) < (?5, ?6)";

#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[LIST_CANDIDATES, LIST_CANDIDATES_IN_RANGE, LIST_ROWS_IN_RANGE];
#[cfg(test)]
pub(crate) const PENDING_STATEMENTS: &[&str] = &[LIST_PENDING];

/// Candidates that are held at once; more take another walk over the index.
const WINDOW: usize = 16_384;
/// Rows of a second word that are held at once, to leave out those that do not have it; more are not
/// worth it.
const ROWS_MAX: usize = 1 << 20;
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
    source: Source,
    /// What the lexemes end with that may count, if not all may.
    bucket_end: Option<String>,
    /// Between which messages, these not included.
    bounds: (i64, i64),
    created: (i64, i64),
}

/// Where candidates come from: more than match, for each is looked at.
enum Source {
    /// FTS5, asked this.
    Match(String),
    /// Words in these ranges; only the rows that are named, if any are.
    Ranges(Vec<Range>, Option<HashSet<i64>>),
}

/// Lexemes from the first to before the second.
type Range = (String, String);

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
        let bucket_end = bucket.map(|bucket| format!("·{:04x}", bucket.bits()));
        let is_exact = |lexeme: &Lexeme| matches!(lexeme, Lexeme::Exact(_));
        let exact: Vec<_> = asked.groups.iter().filter(|group| group.iter().all(is_exact)).collect();
        let source = match exact.is_empty() {
            false => Source::Match(match_expression(&exact)),
            true => ranges(reader, &asked, bucket_end.as_deref())?,
        };
        Ok(Some(Self { reader, asked, source, bucket_end, bounds, created: created_bounds(filter) }))
    }

    /// The newest candidates before a position, newest first, at most [`WINDOW`]. The index knows no
    /// order of time, so all are looked at; few are held.
    fn newest(&self, before: Position) -> Result<Vec<Position>, Failure> {
        let mut newest = Newest::default();
        let ((from, to), (after, until)) = (self.bounds, self.created);
        match &self.source {
            Source::Match(expression) => {
                let params = params![expression, from, to, after, until, before.0, before.1];
                self.reader.visit(LIST_CANDIDATES, params, |row| {
                    newest.push((row.get(0)?, row.get(1)?));
                    Ok(())
                })?;
            }
            Source::Ranges(ranges, rows) => {
                for (start, end) in ranges {
                    let params = params![start, end, self.bucket_end, from, to, after, until, before.0, before.1];
                    self.reader.visit(LIST_CANDIDATES_IN_RANGE, params, |row| {
                        let text_no = row.get(2)?;
                        if rows.as_ref().is_none_or(|rows| rows.contains(&text_no)) {
                            newest.push((row.get(0)?, row.get(1)?));
                        }
                        Ok(())
                    })?;
                }
            }
        }
        let params = params![from, to, after, until, before.0, before.1];
        self.reader.visit(LIST_PENDING, params, |row| {
            let lexemes = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
            self.reader.spend(lexemes.len())?;
            if self.asked.groups.iter().all(|group| group.iter().any(|wanted| holds(lexemes, wanted))) {
                newest.push((row.get(0)?, row.get(1)?));
            }
            Ok(())
        })?;
        Ok(newest.into_sorted())
    }
}

/// The newest candidates of those shown to it, each once.
#[derive(Default)]
struct Newest(Vec<Position>);

impl Newest {
    fn push(&mut self, position: Position) {
        self.0.push(position);
        if self.0.len() == 2 * WINDOW {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.0.sort_unstable_by(|a, b| b.cmp(a));
        self.0.dedup();
        self.0.truncate(WINDOW);
    }

    fn into_sorted(mut self) -> Vec<Position> {
        self.cut();
        self.0
    }
}

/// Candidates by the longest word, which is likely the rarest, and the second longest.
fn ranges(reader: &Reader, asked: &LexemeQuery, bucket_end: Option<&str>) -> Result<Source, Failure> {
    // How many messages have such a word nobody knows.
    reader.require_thread()?;
    let mut groups: Vec<_> = asked.groups.iter().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(word_length(group)));
    let ranges_of = |group: &[Lexeme]| group.iter().map(range).collect::<Vec<_>>();
    let first = groups.first().map_or(Vec::new(), |group| ranges_of(group));
    let mut rows = HashSet::new();
    let Some(second) = groups.get(1) else {
        return Ok(Source::Ranges(first, None));
    };
    for (start, end) in ranges_of(second) {
        let mut statement = reader.prepare(LIST_ROWS_IN_RANGE)?;
        let mut found = statement.query(params![start, end, bucket_end])?;
        while let Some(row) = found.next()? {
            rows.insert(row.get(0)?);
            if rows.len() > ROWS_MAX {
                return Ok(Source::Ranges(first, None));
            }
        }
    }
    Ok(Source::Ranges(first, Some(rows)))
}

/// Bytes of the shortest word of a group, and of the project's code before it; the empty one, which
/// is in every group, aside.
fn word_length(group: &[Lexeme]) -> usize {
    let length = |lexeme: &Lexeme| text(lexeme).find('·').unwrap_or(text(lexeme).len());
    let mut lengths: Vec<usize> = group.iter().map(length).collect();
    lengths.sort_unstable();
    lengths.get(1).or(lengths.first()).copied().unwrap_or_default()
}

/// Between which lexemes those stand that are meant.
fn range(lexeme: &Lexeme) -> Range {
    let end = match lexeme {
        Lexeme::Exact(text) => format!("{text}\0"),
        Lexeme::Prefix(text) => format!("{text}{}", char::MAX),
    };
    (text(lexeme).to_owned(), end)
}

fn text(lexeme: &Lexeme) -> &str {
    match lexeme {
        Lexeme::Exact(text) | Lexeme::Prefix(text) => text,
    }
}

fn holds(lexemes: &str, wanted: &Lexeme) -> bool {
    lexemes.split(' ').any(|lexeme| match wanted {
        Lexeme::Exact(text) => lexeme == text,
        Lexeme::Prefix(text) => lexeme.starts_with(text.as_str()),
    })
}

/// Exact lexemes as FTS5 reads them: every one a string, so that nothing in it is an operator.
fn match_expression(groups: &[&Vec<Lexeme>]) -> String {
    let string = |lexeme: &Lexeme| format!("\"{}\"", text(lexeme).replace('"', "\"\""));
    let group = |group: &&Vec<Lexeme>| format!("({})", group.iter().map(string).collect::<Vec<_>>().join(" OR "));
    groups.iter().map(group).collect::<Vec<_>>().join(" AND ")
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, ErrorCode, params};

    use super::*;
    use crate::tests::migrated;

    #[test]
    fn a_walk_over_a_prefix_can_be_stopped() {
        let mut connection = migrated();
        connection
            .execute_batch(
                "with recursive n (n) as (select 1 union all select n + 1 from n where n < 2000)
                insert into message_terms (rowid, lexemes) select n, format('codeword%d·%04x', n % 3, n) from n",
            )
            .unwrap();
        let count = |connection: &Connection, (start, end): &Range, bucket_end: Option<&str>| {
            let mut statement = connection.prepare(LIST_ROWS_IN_RANGE).unwrap();
            let rows = statement.query_map(params![start, end, bucket_end], |row| row.get::<_, i64>(0)).unwrap();
            rows.collect::<rusqlite::Result<Vec<_>>>().map(|rows| rows.len())
        };
        let all = range(&Lexeme::Prefix("codeword".to_owned()));
        assert_eq!(count(&connection, &all, None), Ok(2_000));
        assert_eq!(count(&connection, &all, Some("·0007")), Ok(1));
        let one = range(&Lexeme::Exact("codeword1·0001".to_owned()));
        assert_eq!(count(&connection, &one, None), Ok(1));
        connection.progress_handler(1_000, Some(|| true)).unwrap();
        let stopped = count(&connection, &all, None).unwrap_err();
        assert_eq!(stopped.sqlite_error_code(), Some(ErrorCode::OperationInterrupted));
    }
}
