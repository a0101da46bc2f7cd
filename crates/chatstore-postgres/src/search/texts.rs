//! The words of messages, as rows: made before a message is stored, written and removed in its
//! transaction.

use chatstore_core::ids::{Bucket, ProjectId};
use chatstore_core::search::lexemes::{Lexeme, LexemeQuery, lexemes};
use chatstore_core::store::StoreError;
use futures_util::future::try_join_all;

use crate::messages::derived::MessageKey;
use crate::params::params;
use crate::pool::{Db, Failure};

const INSERT_TEXT: &str = "insert into message_texts (bucket, session_id, seq, project_id, created_at, lexemes)
    values ($1, $2, $3, $4, $5, array_to_tsvector(string_to_array($6, ' ')))";
const DELETE_TEXT: &str = "delete from message_texts where bucket = $1 and session_id = $2 and seq = $3";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[INSERT_TEXT, DELETE_TEXT];

/// Bytes of texts that are read on the thread that asks for it.
const READ_HERE_MAX: usize = 32 << 10;

/// The lexemes of each of some texts, that of a project and a bucket: a list with spaces, empty for
/// a text without words, which has no row.
pub(crate) async fn read_texts(texts: Vec<(ProjectId, Bucket, &str)>) -> Result<Vec<String>, StoreError> {
    if texts.iter().map(|(_, _, text)| text.len()).sum::<usize>() <= READ_HERE_MAX {
        return Ok(texts.into_iter().map(|(project_id, bucket, text)| lexemes(project_id, bucket, text)).collect());
    }
    let own = |(project_id, bucket, text): (ProjectId, Bucket, &str)| (project_id, bucket, text.to_owned());
    let texts: Vec<_> = texts.into_iter().map(own).collect();
    let read = move || texts.iter().map(|(project_id, bucket, text)| lexemes(*project_id, *bucket, text)).collect();
    tokio::task::spawn_blocking(read).await.map_err(|_| StoreError::internal("reading the words of a text panicked"))
}

/// What rows are asked for, in the words of `tsquery`.
pub(crate) fn tsquery(query: &LexemeQuery) -> String {
    let group = |lexemes: &Vec<Lexeme>| {
        let quoted: Vec<String> = lexemes.iter().map(quoted).collect();
        format!("({})", quoted.join(" | "))
    };
    let groups: Vec<String> = query.groups.iter().map(group).collect();
    groups.join(" & ")
}

fn quoted(lexeme: &Lexeme) -> String {
    let (text, end) = match lexeme {
        Lexeme::Exact(text) => (text, ""),
        Lexeme::Prefix(text) => (text, ":*"),
    };
    format!("'{}'{end}", text.replace('\\', r"\\").replace('\'', "''"))
}

/// Stores the words of messages.
pub(crate) async fn insert_texts(db: &Db, messages: &[MessageKey], words: &[String]) -> Result<(), Failure> {
    let rows: Vec<_> = messages.iter().zip(words).filter(|(_, lexemes)| !lexemes.is_empty()).collect();
    // The others are sent one behind the other, without waiting for each answer, now that the statement is prepared.
    if let [first, rest @ ..] = rows.as_slice() {
        insert_row(db, first).await?;
        try_join_all(rest.iter().map(|row| insert_row(db, row))).await?;
    }
    Ok(())
}

async fn insert_row(db: &Db, (message, lexemes): &(&MessageKey, &String)) -> Result<(), Failure> {
    let params = params![
        message.bucket(),
        message.session_id.uuid(),
        message.seq,
        message.project_id.uuid(),
        message.created_at.as_micros(),
        lexemes.as_str(),
    ];
    db.execute(INSERT_TEXT, params).await?;
    Ok(())
}

/// Removes the words of a message.
pub(crate) async fn delete_text(db: &Db, message: MessageKey) -> Result<(), Failure> {
    db.execute(DELETE_TEXT, params![message.bucket(), message.session_id.uuid(), message.seq]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_quoted() {
        let query = |groups| tsquery(&LexemeQuery { groups });
        assert_eq!(query(vec![vec![Lexeme::Exact("it's".into())]]), "('it''s')");
        assert_eq!(query(vec![vec![Lexeme::Prefix(r"a\b".into()), Lexeme::Exact("c".into())]]), r"('a\\b':* | 'c')");
        let two = query(vec![vec![Lexeme::Exact("a".into())], vec![Lexeme::Exact("b".into())]]);
        assert_eq!(two, "('a') & ('b')");
    }
}
