//! Search: what is asked, what is found, and how lists of findings become one.

pub mod analyser;
mod folding;
pub mod lexemes;
mod phrase;
pub mod query;
pub mod snippet;
mod syntax;
#[cfg(test)]
mod texts;

use std::cmp::Ordering;
use std::collections::HashMap;

use async_trait::async_trait;

use crate::clock::Timestamp;
use crate::embeddings::VectorQuery;
use crate::ids::{MessageId, SessionId};
use crate::json::RawJson;
use crate::messages::Message;
use crate::store::{Scope, StoreError};
pub use query::TextQuery;

/// The constant of reciprocal rank fusion (Cormack, Clarke, Büttcher 2009): how little the first
/// ranks stand out.
const FUSION_K: f64 = 60.0;

/// Which messages a search looks at. What a caller may not see is kept away by the scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SearchFilter {
    /// Only this user's sessions.
    pub user_id: Option<String>,
    /// Only this session.
    pub session_id: Option<SessionId>,
    /// Only this role's.
    pub role: Option<String>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only messages whose metadata has each of these top-level scalars, as [`RawJson::scalars`]
    /// writes them.
    pub metadata: Vec<(String, String)>,
    /// Only those stored at this time or later.
    pub created_after: Option<Timestamp>,
    /// Only those stored before this time.
    pub created_before: Option<Timestamp>,
}

impl SearchFilter {
    /// Whether metadata fits.
    pub fn admits(&self, metadata: &RawJson) -> bool {
        if self.metadata.is_empty() {
            return true;
        }
        let scalars = metadata.scalars();
        self.metadata.iter().all(|wanted| scalars.contains(wanted))
    }

    /// The one user whose messages are looked at, if it is one.
    pub fn user<'a>(&'a self, scope: &'a Scope) -> Option<&'a str> {
        scope.user_id.as_deref().or(self.user_id.as_deref())
    }

    /// Whether the scope and the filter name two users: then nothing can be found.
    pub fn contradicts(&self, scope: &Scope) -> bool {
        matches!((&scope.user_id, &self.user_id), (Some(own), Some(named)) if own != named)
    }
}

/// A message that was found, and how well it fits.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedMessage {
    /// The message.
    pub message_id: MessageId,
    /// Its session.
    pub session_id: SessionId,
    /// Its place in the session.
    pub seq: i64,
    /// When it was stored.
    pub created_at: Timestamp,
    /// The larger, the better it fits; comparable within one list only. Finite.
    pub score: f64,
}

impl RankedMessage {
    /// Best first; among equals the newest, then by id: a total order.
    pub fn order(a: &Self, b: &Self) -> Ordering {
        let by_score = b.score.total_cmp(&a.score);
        by_score.then(b.created_at.cmp(&a.created_at)).then(a.message_id.uuid().cmp(&b.message_id.uuid()))
    }
}

/// The best of what is shown to it, in the order of [`RankedMessage::order`].
#[derive(Debug)]
pub struct Best {
    limit: usize,
    found: Vec<RankedMessage>,
}

impl Best {
    /// Keeps the best `limit`.
    pub fn new(limit: usize) -> Self {
        Self { limit, found: Vec::new() }
    }

    /// Takes one that fits.
    pub fn push(&mut self, message: RankedMessage) {
        self.found.push(message);
        if self.found.len() >= self.limit.max(1).saturating_mul(2).max(64) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.found.sort_unstable_by(RankedMessage::order);
        self.found.truncate(self.limit);
    }

    /// The best, best first.
    pub fn into_sorted(mut self) -> Vec<RankedMessage> {
        self.cut();
        self.found
    }
}

/// A message in one list made of two, with its rank in each: 1 is the best.
#[derive(Clone, Debug, PartialEq)]
pub struct FusedMessage {
    /// The message; its score is that of the fusion.
    pub message: RankedMessage,
    /// Its place among what was found by words.
    pub text_rank: Option<u32>,
    /// Its place among what was found by meaning.
    pub vector_rank: Option<u32>,
}

/// Merges two ranked lists: each message gets the sum of 1 / (60 + rank) over the lists it is in.
/// A list that is alone keeps its own scores.
pub fn fuse(text: Option<Vec<RankedMessage>>, vectors: Option<Vec<RankedMessage>>) -> Vec<FusedMessage> {
    let alone = text.is_none() || vectors.is_none();
    let mut places: HashMap<MessageId, usize> = HashMap::new();
    let mut fused: Vec<FusedMessage> = Vec::new();
    let lists = [(true, text.unwrap_or_default()), (false, vectors.unwrap_or_default())];
    for (is_text, list) in lists {
        for (message, rank) in list.into_iter().zip(1_u32..) {
            let score = if alone { message.score } else { 1.0 / (FUSION_K + f64::from(rank)) };
            let place = *places.entry(message.message_id).or_insert(fused.len());
            if place == fused.len() {
                let message = RankedMessage { score: 0.0, ..message };
                fused.push(FusedMessage { message, text_rank: None, vector_rank: None });
            }
            let entry = &mut fused[place];
            entry.message.score += score;
            if is_text {
                entry.text_rank = Some(rank);
            } else {
                entry.vector_rank = Some(rank);
            }
        }
    }
    fused.sort_by(|a, b| RankedMessage::order(&a.message, &b.message));
    fused
}

/// A message that was found, as it stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundMessage {
    /// The message.
    pub message: Message,
    /// The name of its session.
    pub session_name: String,
}

/// What is derived from messages and can be made anew from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// The index of words.
    Text,
    /// The vectors that the embedding source makes: messages without one are queued.
    Embeddings,
}

impl Derived {
    /// Its name, in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Embeddings => "embeddings",
        }
    }
}

/// How far making something anew has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reindexed {
    /// Messages looked at in this step.
    pub messages: u64,
    /// Whether there is more to do.
    pub more: bool,
}

/// What a store does to be searched.
#[async_trait]
pub trait SearchStore: Send + Sync {
    /// The messages that a query matches, best first, at most `limit`. If more than
    /// [`crate::limits::SEARCH_MATCHES_MAX`] match, the newest that many are ranked. Nothing of a
    /// deleted message or session, or of one outside the scope, is found.
    async fn search_text(
        &self,
        scope: &Scope,
        query: &TextQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError>;

    /// The messages nearest to a vector, nearest first: `limit`, or as many as there are that have
    /// a vector of the query's model. Exact within a user or a session. A message of several
    /// vectors counts with its nearest. Nothing if the project has no such model; `Invalid` at
    /// `/embedding` if the model's vectors have another length.
    async fn search_vectors(
        &self,
        scope: &Scope,
        query: &VectorQuery,
        filter: &SearchFilter,
        limit: usize,
    ) -> Result<Vec<RankedMessage>, StoreError>;

    /// These messages as they are now, in the order asked for, without those that are deleted or
    /// outside the scope.
    async fn get_found_messages(
        &self,
        scope: &Scope,
        message_ids: &[MessageId],
    ) -> Result<Vec<FoundMessage>, StoreError>;

    /// Notes that something derived is to be made anew, from the first message on.
    async fn start_reindex(&self, derived: Derived) -> Result<(), StoreError>;

    /// Does a part of what was noted, in one short transaction; several processes may do this at
    /// once. A part that another process is doing counts as more to do.
    async fn reindex_some(&self, derived: Derived) -> Result<Reindexed, StoreError>;

    /// Whether something noted is still to be done.
    async fn is_reindexing(&self, derived: Derived) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn ranked(id: u128, score: f64) -> RankedMessage {
        RankedMessage {
            message_id: Uuid::from_bytes(id.to_be_bytes()).into(),
            session_id: Uuid::from_bytes([1; 16]).into(),
            seq: 1,
            created_at: Timestamp::from_micros(0).unwrap(),
            score,
        }
    }

    #[test]
    fn what_stands_in_both_lists_comes_first() {
        let fused = fuse(Some(vec![ranked(1, 9.0), ranked(2, 8.0)]), Some(vec![ranked(3, 0.9), ranked(2, 0.8)]));
        let ids: Vec<u128> = fused.iter().map(|hit| hit.message.message_id.uuid().as_u128()).collect();
        assert_eq!(ids, [2, 1, 3]);
        assert_eq!((fused[0].text_rank, fused[0].vector_rank), (Some(2), Some(2)));
        assert!((fused[0].message.score - 2.0 / 62.0).abs() < 1e-12);
    }

    #[test]
    fn a_list_alone_keeps_its_scores() {
        let fused = fuse(None, Some(vec![ranked(1, 0.9), ranked(2, -0.5)]));
        assert_eq!(fused.iter().map(|hit| hit.message.score).collect::<Vec<_>>(), [0.9, -0.5]);
        assert_eq!((fused[1].text_rank, fused[1].vector_rank), (None, Some(2)));
    }

    #[test]
    fn the_best_are_kept_whatever_the_order_they_come_in() {
        let mut best = Best::new(3);
        for n in 0..1_000_u32 {
            best.push(ranked(u128::from(n), f64::from(n * 7 % 1_000)));
        }
        let scores: Vec<f64> = best.into_sorted().iter().map(|message| message.score).collect();
        assert_eq!(scores, [999.0, 998.0, 997.0]);
    }
}
