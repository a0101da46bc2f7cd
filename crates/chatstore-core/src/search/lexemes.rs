//! What an index holds of a message, and what it must be asked.
//!
//! A lexeme is a project's code, a word, `·` and the session's bucket. One equal lexeme finds a word
//! within a user; all that begin alike find it within a project; no lookup ever touches what
//! another project wrote. An index may find too much (codes and buckets are short, long words are
//! cut), never too little: [`super::TextQuery::score`] decides.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use super::analyser::analyse;
use crate::ids::{Bucket, ProjectId};

/// Between a word and a bucket; no word holds it.
const SEPARATOR: char = '·';
/// Characters of a project's code.
const PROJECT_CHARS: usize = 4;

/// What an index is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lexeme {
    /// Exactly this one.
    Exact(String),
    /// Every one that begins so.
    Prefix(String),
}

/// A condition on a message's lexemes: of each group it must have at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LexemeQuery {
    /// The groups; none of them is empty, and there is at least one.
    pub groups: Vec<Vec<Lexeme>>,
}

/// The distinct lexemes of a text in `bucket`, sorted, with a space between; none holds a space.
/// Empty for a text without words.
pub fn lexemes(project_id: ProjectId, bucket: Bucket, text: &str) -> String {
    let words: BTreeSet<String> = analyse(text).into_iter().map(|token| token.text).collect();
    let code = project_code(project_id);
    let lexemes: Vec<String> = words.iter().map(|word| lexeme(&code, word, bucket)).collect();
    lexemes.join(" ")
}

fn lexeme(code: &str, word: &str, bucket: Bucket) -> String {
    format!("{code}{word}{SEPARATOR}{:04x}", bucket.bits())
}

/// The lexeme of a word within a bucket, or within all of a project.
pub(super) fn wanted(project_id: ProjectId, bucket: Option<Bucket>, word: &str) -> Lexeme {
    let code = project_code(project_id);
    match bucket {
        Some(bucket) => Lexeme::Exact(lexeme(&code, word, bucket)),
        None => Lexeme::Prefix(format!("{code}{word}{SEPARATOR}")),
    }
}

fn project_code(project_id: ProjectId) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(project_id.as_bytes());
    digest.iter().take(PROJECT_CHARS).map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect()
}
