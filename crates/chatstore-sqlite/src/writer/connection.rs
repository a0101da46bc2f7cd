//! The connection that jobs write with, and what they change in the index of words.

use std::cell::Cell;
use std::ops::Deref;

use rusqlite::{Connection, Row, params};

const INSERT_PENDING: &str = "insert into pending_texts (message_no, created_at, lexemes) values (?1, ?2, ?3)";
const COUNT_PENDING: &str = "select count(*), coalesce(sum(octet_length(lexemes)), 0) from pending_texts";
const LIST_PENDING: &str = "select message_no, created_at, lexemes from pending_texts";
const EMPTY_PENDING: &str = "delete from pending_texts";
const INSERT_TEXT: &str = "insert into message_texts (message_no, created_at) values (?1, ?2)";
const INSERT_TERMS: &str = "insert into message_terms (rowid, lexemes) values (?1, ?2)";
const DELETE_TERMS: &str = "insert into message_terms (message_terms, rowid, lexemes) values ('delete', ?1, ?2)";
const INSERT_DELETED: &str = "insert into deleted_terms (text_no, lexemes) values (?1, ?2)";
const COUNT_DELETED: &str = "select coalesce(sum(octet_length(lexemes)), 0) from deleted_terms";
const LIST_DELETED: &str = "select deleted_no, text_no, lexemes from deleted_terms order by deleted_no";
const DELETE_DELETED: &str = "delete from deleted_terms where deleted_no <= ?1";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] =
    &[INSERT_PENDING, INSERT_TEXT, INSERT_TERMS, DELETE_TERMS, INSERT_DELETED, DELETE_DELETED];
/// These go through a small table, or read some rows of it from its beginning.
#[cfg(test)]
pub(crate) const PENDING_STATEMENTS: &[&str] =
    &[COUNT_PENDING, LIST_PENDING, EMPTY_PENDING, COUNT_DELETED, LIST_DELETED];

/// Texts that may wait to be indexed: as many as a search looks through in no time.
const PENDING_TEXTS_MAX: usize = 256;
/// And their lexemes' bytes.
const PENDING_BYTES_MAX: usize = 128 << 10;

/// Bytes of lexemes that one transaction takes out of the index: each is sought, for some tens of
/// milliseconds in all, and appends wait for no more.
const DELETED_BYTES_MAX: usize = 2 << 10;
/// Bytes of lexemes that may wait to leave the index before every transaction takes some out.
const DELETED_WAITING_MAX: usize = 1 << 20;

/// A connection inside a transaction. FTS5 is written at the end of the transaction alone: it would
/// write a segment at every savepoint.
pub(crate) struct WriteConnection {
    connection: Connection,
    /// How much waits to be indexed, about: rows and bytes. What was taken back is counted, too.
    pending: Cell<(usize, usize)>,
    /// Bytes of lexemes that wait to leave the index, as roughly.
    deleted: Cell<usize>,
}

impl Deref for WriteConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl WriteConnection {
    pub(super) fn new(connection: Connection) -> rusqlite::Result<Self> {
        let connection = Self { connection, pending: Cell::default(), deleted: Cell::default() };
        connection.count_waiting()?;
        Ok(connection)
    }

    /// Counts what waits, outside of a transaction.
    pub(super) fn count_waiting(&self) -> rusqlite::Result<()> {
        let pending = |row: &Row<'_>| Ok((row.get::<_, u32>(0)? as usize, row.get::<_, u32>(1)? as usize));
        self.pending.set(self.prepare_cached(COUNT_PENDING)?.query_row((), pending)?);
        let deleted = |row: &Row<'_>| Ok(row.get::<_, u32>(0)? as usize);
        self.deleted.set(self.prepare_cached(COUNT_DELETED)?.query_row((), deleted)?);
        Ok(())
    }

    /// Has a message's lexemes indexed, soon.
    pub(crate) fn insert_pending(&self, message_no: i64, created_at: i64, lexemes: &str) -> rusqlite::Result<()> {
        self.prepare_cached(INSERT_PENDING)?.execute(params![message_no, created_at, lexemes])?;
        let (texts, bytes) = self.pending.get();
        self.pending.set((texts + 1, bytes + lexemes.len()));
        Ok(())
    }

    /// Has a row taken out of the index, soon; `lexemes` are those it was indexed with.
    pub(crate) fn delete_terms(&self, text_no: i64, lexemes: &str) -> rusqlite::Result<()> {
        let mut rest = lexemes;
        while !rest.is_empty() {
            let (part, after) = split_lexemes(rest);
            self.prepare_cached(INSERT_DELETED)?.execute(params![text_no, part])?;
            rest = after;
        }
        self.deleted.set(self.deleted.get() + lexemes.len());
        Ok(())
    }

    /// Bytes of lexemes that wait to leave the index, about.
    pub(crate) fn deleted(&self) -> usize {
        self.deleted.get()
    }

    /// Takes some lexemes out of the index, before the commit; tells whether there were any.
    pub(super) fn take_deleted(&self) -> rusqlite::Result<bool> {
        let (mut taken, mut last, mut bytes) = (Vec::<(i64, String, bool)>::new(), 0, 0);
        {
            let mut statement = self.prepare_cached(LIST_DELETED)?;
            let mut rows = statement.query(())?;
            while let Some(row) = rows.next()? {
                let (text_no, lexemes): (i64, String) = (row.get(1)?, row.get(2)?);
                if let Some((before, _, has_more)) = taken.last_mut() {
                    *has_more = *before == text_no;
                }
                bytes += lexemes.len();
                if bytes > DELETED_BYTES_MAX && !taken.is_empty() {
                    break;
                }
                last = row.get(0)?;
                taken.push((text_no, lexemes, false));
            }
        }
        if taken.is_empty() {
            self.deleted.set(0);
            return Ok(false);
        }
        self.prepare_cached(DELETE_DELETED)?.execute(params![last])?;
        // In rising order FTS5 writes them in one piece.
        taken.sort_by_key(|(text_no, ..)| *text_no);
        for (text_no, lexemes, has_more) in taken {
            self.deleted.set(self.deleted.get().saturating_sub(lexemes.len()));
            self.prepare_cached(DELETE_TERMS)?.execute(params![text_no, lexemes])?;
            if has_more {
                // FTS5 counts a row less with every part; the row is there until its last.
                self.prepare_cached(INSERT_TERMS)?.execute(params![text_no, ""])?;
            }
        }
        Ok(true)
    }

    /// Writes the index, before the commit.
    pub(super) fn write_terms(&self) -> rusqlite::Result<()> {
        if self.deleted.get() > DELETED_WAITING_MAX {
            self.take_deleted()?;
        }
        let (texts, bytes) = self.pending.get();
        if texts >= PENDING_TEXTS_MAX || bytes >= PENDING_BYTES_MAX {
            self.index_pending()?;
        }
        Ok(())
    }

    fn index_pending(&self) -> rusqlite::Result<()> {
        let mut statement = self.prepare_cached(LIST_PENDING)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            self.prepare_cached(INSERT_TEXT)?.execute(params![row.get::<_, i64>(0)?, row.get::<_, i64>(1)?])?;
            let params = params![self.last_insert_rowid(), row.get_ref(2)?.as_str()?];
            self.prepare_cached(INSERT_TERMS)?.execute(params)?;
        }
        self.prepare_cached(EMPTY_PENDING)?.execute(())?;
        self.pending.set((0, 0));
        Ok(())
    }
}

/// As many lexemes as one transaction takes out of the index, and the rest.
fn split_lexemes(lexemes: &str) -> (&str, &str) {
    if lexemes.len() <= DELETED_BYTES_MAX {
        return (lexemes, "");
    }
    let start = lexemes.floor_char_boundary(DELETED_BYTES_MAX);
    let space = lexemes[..start].rfind(' ').or_else(|| lexemes.find(' '));
    space.map_or((lexemes, ""), |space| (&lexemes[..space], &lexemes[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::migrated;

    #[test]
    fn what_a_rollback_takes_back_still_waits() {
        let connection = WriteConnection::new(migrated()).unwrap();
        connection.execute_batch("begin immediate").unwrap();
        for n in 1..=3 {
            connection.insert_pending(n, n, "codetea·0001").unwrap();
        }
        connection.execute_batch("commit; begin immediate").unwrap();
        connection.pending.set((PENDING_TEXTS_MAX, 0));
        connection.write_terms().unwrap();
        connection.delete_terms(1, "codetea·0001").unwrap();
        assert_eq!((connection.pending.get(), connection.deleted()), ((0, 0), 13));
        connection.execute_batch("rollback").unwrap();
        connection.count_waiting().unwrap();
        assert_eq!((connection.pending.get(), connection.deleted()), ((3, 39), 0));
    }

    #[test]
    fn the_only_text_leaves_the_index_in_parts() {
        let connection = WriteConnection::new(migrated()).unwrap();
        let lexemes = (0..400).map(|n| format!("codeword{n}·0001")).collect::<Vec<_>>().join(" ");
        connection.execute(INSERT_TERMS, params![7, lexemes]).unwrap();
        connection.delete_terms(7, &lexemes).unwrap();
        let words = || connection.query_row("select count(*) from message_words", (), |row| row.get::<_, i64>(0));
        let mut before = words().unwrap();
        while connection.take_deleted().unwrap() {
            let left = words().unwrap();
            assert!(left < before && before - left < 200, "{before} to {left}");
            before = left;
        }
        assert_eq!((before, connection.deleted()), (0, 0));
    }

    #[test]
    fn lexemes_are_split_between_two_of_them() {
        let lexemes = (0..400).map(|n| format!("codewörd{n}·0001")).collect::<Vec<_>>().join(" ");
        let (mut rest, mut parts) = (lexemes.as_str(), Vec::new());
        while !rest.is_empty() {
            let (part, after) = split_lexemes(rest);
            assert!(part.len() <= DELETED_BYTES_MAX);
            parts.push(part);
            rest = after;
        }
        assert_eq!((parts.join(" "), parts.len()), (lexemes, 4));
        let long = "x".repeat(DELETED_BYTES_MAX + 1);
        assert_eq!(split_lexemes(&long), (long.as_str(), ""));
    }
}
