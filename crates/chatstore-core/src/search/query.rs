//! The query language of people, and what of a message it matches.

use super::analyser::analyse;
use super::lexemes::{LexemeQuery, wanted};
use crate::ids::{Bucket, ProjectId};

/// A query, read; any text is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextQuery {
    words: Vec<String>,
}

/// What of a message a query is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its text.
    pub content: &'a str,
    /// Who speaks.
    pub role: &'a str,
    /// The name of its session.
    pub session_name: &'a str,
}

impl TextQuery {
    /// Reads a query. What is malformed counts as words.
    pub fn parse(text: &str) -> Self {
        Self { words: analyse(text).into_iter().map(|token| token.text).collect() }
    }

    /// Whether it asks for no word: then it matches nothing.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// What an index must be asked so that it finds at least every message that matches: within one
    /// bucket (of a user or a session), or in all of a project. `None` if nothing can match.
    pub fn lexemes(&self, project_id: ProjectId, bucket: Option<Bucket>) -> Option<LexemeQuery> {
        let groups: Vec<_> = self.words.iter().map(|word| vec![wanted(project_id, bucket, word)]).collect();
        (!groups.is_empty()).then_some(LexemeQuery { groups })
    }

    /// How well a message fits; `None` if the query does not match it. Depends on nothing but the
    /// two. Finite and positive.
    pub fn score(&self, candidate: &Candidate<'_>) -> Option<f64> {
        let tokens = analyse(candidate.content);
        let found = self.words.iter().all(|word| tokens.iter().any(|token| token.text == *word));
        (found && !self.words.is_empty()).then_some(1.0)
    }
}
