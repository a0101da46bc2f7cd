//! The connection that jobs write with, and what they change in the index of words.

use std::cell::{Cell, RefCell};
use std::ops::Deref;

use rusqlite::{Connection, params};

const INSERT_PENDING: &str = "insert into pending_texts (message_no, created_at, lexemes) values (?1, ?2, ?3)";
const COUNT_PENDING: &str = "select count(*), coalesce(sum(octet_length(lexemes)), 0) from pending_texts";
const LIST_PENDING: &str = "select message_no, created_at, lexemes from pending_texts";
const EMPTY_PENDING: &str = "delete from pending_texts";
const INSERT_TEXT: &str = "insert into message_texts (message_no, created_at) values (?1, ?2)";
const INSERT_TERMS: &str = "insert into message_terms (rowid, lexemes) values (?1, ?2)";
const DELETE_TERMS: &str = "insert into message_terms (message_terms, rowid, lexemes) values ('delete', ?1, ?2)";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[INSERT_PENDING, INSERT_TEXT, INSERT_TERMS, DELETE_TERMS];
/// These go through all of a small table.
#[cfg(test)]
pub(crate) const PENDING_STATEMENTS: &[&str] = &[COUNT_PENDING, LIST_PENDING, EMPTY_PENDING];

/// Texts that may wait to be indexed: as many as a search looks through in no time.
const PENDING_TEXTS_MAX: usize = 256;
/// And their lexemes' bytes.
const PENDING_BYTES_MAX: usize = 128 << 10;

/// Bytes of lexemes that one transaction takes out of the index: they are sought one by one, for
/// some tens of milliseconds in all.
const DELETED_BYTES_MAX: usize = 16 << 10;

/// A connection inside a transaction. FTS5 is written at the end of the transaction alone: it would
/// write a segment at every savepoint.
pub(crate) struct WriteConnection {
    connection: Connection,
    /// Rows that are to leave the index, with their lexemes.
    deleted: RefCell<Vec<(i64, String)>>,
    /// How much waits to be indexed, about: rows and bytes. What was taken back is counted, too.
    pending: Cell<(usize, usize)>,
}

impl Deref for WriteConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl WriteConnection {
    pub(super) fn new(connection: Connection) -> rusqlite::Result<Self> {
        let count = |row: &rusqlite::Row<'_>| Ok((row.get::<_, u32>(0)? as usize, row.get::<_, u32>(1)? as usize));
        let pending = connection.query_row(COUNT_PENDING, (), count)?;
        Ok(Self { connection, deleted: RefCell::new(Vec::new()), pending: Cell::new(pending) })
    }

    /// Has a message's lexemes indexed, soon.
    pub(crate) fn insert_pending(&self, message_no: i64, created_at: i64, lexemes: &str) -> rusqlite::Result<()> {
        self.prepare_cached(INSERT_PENDING)?.execute(params![message_no, created_at, lexemes])?;
        let (texts, bytes) = self.pending.get();
        self.pending.set((texts + 1, bytes + lexemes.len()));
        Ok(())
    }

    /// Takes a row out of the index; `lexemes` are those it was indexed with.
    pub(crate) fn delete_terms(&self, text_no: i64, lexemes: String) {
        self.deleted.borrow_mut().push((text_no, lexemes));
    }

    /// Whether as much is to leave the index as one transaction should take out.
    pub(crate) fn deletes_enough(&self) -> bool {
        self.deleted.borrow().iter().map(|(_, lexemes)| lexemes.len()).sum::<usize>() >= DELETED_BYTES_MAX
    }

    /// How many rows are to leave the index, for [`WriteConnection::forget_deleted`].
    pub(super) fn deleted(&self) -> usize {
        self.deleted.borrow().len()
    }

    /// Keeps the rows after the first `kept`: the job that wanted them gone was taken back.
    pub(super) fn forget_deleted(&self, kept: usize) {
        self.deleted.borrow_mut().truncate(kept);
    }

    /// Writes the index, before the commit.
    pub(super) fn write_terms(&self) -> rusqlite::Result<()> {
        // In rising order FTS5 writes them in one piece.
        let mut deleted = self.deleted.take();
        deleted.sort_unstable_by_key(|(text_no, _)| *text_no);
        for (text_no, lexemes) in deleted {
            self.prepare_cached(DELETE_TERMS)?.execute(params![text_no, lexemes])?;
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
