//! The index of words: which row stands for which message, and how messages come in and go.

use chatstore_core::ids::{Bucket, ProjectId};
use chatstore_core::messages::Message;
use chatstore_core::search::Derived;
use chatstore_core::search::analyser::ANALYSER_VERSION;
use chatstore_core::search::lexemes::lexemes;
use chatstore_core::store::StoreError;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::reindex::start_reindex;
use crate::writer::WriteConnection;

const SELECT_TEXT: &str = "select text_no from message_texts where message_no = ?1";
const LIST_TEXTS: &str = "select d.text_no, m.content from message_texts d
    join messages m on m.message_no = d.message_no
    where d.message_no > ?1 and d.message_no <= ?2";
const DELETE_TEXTS: &str = "delete from message_texts where message_no > ?1 and message_no <= ?2";
const DELETE_PENDING: &str = "delete from pending_texts where message_no > ?1 and message_no <= ?2";
const SELECT_ANALYSER_VERSION: &str = "select analyser_version from text_index";
const EMPTY_TERMS: &str = "insert into message_terms (message_terms) values ('delete-all')";
const EMPTY_TEXTS: &str = "delete from message_texts";
const EMPTY_PENDING: &str = "delete from pending_texts";
const EMPTY_DELETED: &str = "delete from deleted_terms";
const SAVE_ANALYSER_VERSION: &str = "insert into text_index (only_row, analyser_version) values (1, ?1)
    on conflict (only_row) do update set analyser_version = ?1";
const SELECT_ANY_MESSAGE: &str = "select exists (select 1 from messages)";

#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[SELECT_TEXT, LIST_TEXTS, DELETE_TEXTS, DELETE_PENDING];
/// Run once, when a store is opened.
#[cfg(test)]
pub(crate) const OPENING_STATEMENTS: &[&str] = &[
    SELECT_ANALYSER_VERSION,
    EMPTY_TERMS,
    EMPTY_TEXTS,
    EMPTY_PENDING,
    EMPTY_DELETED,
    SAVE_ANALYSER_VERSION,
    SELECT_ANY_MESSAGE,
];

/// Bytes of text that are analysed where the caller is; more takes a thread made for waiting.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// What a message's lexemes carry beside its words.
#[derive(Clone, Copy)]
pub(crate) struct Home {
    pub(crate) project_id: ProjectId,
    pub(crate) bucket: Bucket,
}

impl Home {
    pub(crate) fn of(message: &Message) -> Self {
        Self { project_id: message.project_id, bucket: message.session_id.bucket() }
    }

    pub(crate) fn lexemes(self, content: &str) -> String {
        lexemes(self.project_id, self.bucket, content)
    }
}

/// The items and the lexemes of each, made before the writer is asked: it has more to do.
pub(crate) async fn analysed<T: Send + 'static>(
    home: Home,
    items: Vec<T>,
    content: fn(&T) -> &str,
) -> Result<(Vec<T>, Vec<String>), StoreError> {
    let bytes: usize = items.iter().map(|item| content(item).len()).sum();
    let analyse = move || {
        let lexemes = items.iter().map(|item| home.lexemes(content(item))).collect();
        (items, lexemes)
    };
    if bytes <= INLINE_BYTES_MAX {
        return Ok(analyse());
    }
    tokio::task::spawn_blocking(analyse).await.map_err(|_| StoreError::internal("an analysis panicked"))
}

/// Makes a message findable by its words, if it has any.
pub(crate) fn insert_text(
    connection: &WriteConnection,
    message_no: i64,
    created_at: i64,
    lexemes: &str,
) -> rusqlite::Result<()> {
    if lexemes.is_empty() { Ok(()) } else { connection.insert_pending(message_no, created_at, lexemes) }
}

/// Replaces a message's words, `old` being those it had; either may be none.
pub(crate) fn replace_text(
    connection: &WriteConnection,
    message_no: i64,
    created_at: i64,
    old: impl FnOnce() -> String,
    new: &str,
) -> rusqlite::Result<()> {
    let range = params![message_no - 1, message_no];
    connection.prepare_cached(DELETE_PENDING)?.execute(range)?;
    let found = connection.prepare_cached(SELECT_TEXT)?.query_row(params![message_no], |row| row.get(0)).optional()?;
    if let Some(text_no) = found {
        connection.delete_terms(text_no, &old())?;
        connection.prepare_cached(DELETE_TEXTS)?.execute(range)?;
    }
    insert_text(connection, message_no, created_at, new)
}

/// Makes the messages after `from` up to `to` unfindable, and has their words leave the index soon;
/// what they say must still be there.
pub(crate) fn delete_texts(connection: &WriteConnection, home: Home, from: i64, to: i64) -> rusqlite::Result<()> {
    connection.prepare_cached(DELETE_PENDING)?.execute(params![from, to])?;
    let mut statement = connection.prepare_cached(LIST_TEXTS)?;
    let mut rows = statement.query(params![from, to])?;
    while let Some(row) = rows.next()? {
        connection.delete_terms(row.get(0)?, &home.lexemes(row.get_ref(1)?.as_str()?))?;
    }
    connection.prepare_cached(DELETE_TEXTS)?.execute(params![from, to]).map(drop)
}

/// Empties an index that an older analyser made, or none, and has it made anew. For the one process
/// that serves the file: others, which may be older or newer, come and go beside it.
pub(crate) fn require_analyser(connection: &mut Connection) -> rusqlite::Result<()> {
    if analyser_version(connection)? >= Some(ANALYSER_VERSION) {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first.
    if analyser_version(&transaction)? < Some(ANALYSER_VERSION) {
        transaction.execute(EMPTY_TERMS, ())?;
        transaction.execute(EMPTY_TEXTS, ())?;
        transaction.execute(EMPTY_PENDING, ())?;
        transaction.execute(EMPTY_DELETED, ())?;
        transaction.execute(SAVE_ANALYSER_VERSION, params![ANALYSER_VERSION])?;
        if transaction.query_row(SELECT_ANY_MESSAGE, (), |row| row.get(0))? {
            start_reindex(&transaction, Derived::Text)?;
        }
    }
    transaction.commit()
}

fn analyser_version(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection.query_row(SELECT_ANALYSER_VERSION, (), |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use crate::tests::migrated;

    #[test]
    fn whatever_stands_between_spaces_is_one_term() {
        let connection = migrated();
        let punctuation = (0x21_u8..0x7f).map(char::from).filter(|c| !c.is_ascii_alphanumeric());
        let words: Vec<String> = punctuation.map(|c| format!("a{c}b·00ff")).chain(["日本·00ff".to_owned()]).collect();
        let insert = "insert into message_terms (rowid, lexemes) values (1, ?1)";
        connection.execute(insert, [words.join(" ")]).unwrap();
        let matches = |expression: String| {
            let select = "select count(*) from message_terms where message_terms match ?1";
            connection.query_row(select, [expression], |row| row.get::<_, i64>(0)).unwrap()
        };
        for word in words {
            let quoted = word.replace('"', "\"\"");
            assert_eq!(matches(format!("\"{quoted}\"")), 1, "{word}");
            assert_eq!(matches(format!("\"{}\" *", quoted.trim_end_matches("0ff"))), 1, "{word}");
        }
        assert_eq!(matches("\"a\"".to_owned()) + matches("\"00ff\"".to_owned()), 0);
    }
}
