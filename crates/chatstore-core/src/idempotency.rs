//! Requests that come again: what the first one did is recorded in its own transaction, and done once.
//!
//! A record holds places, not answers: whoever repeats a request sends its body again, and what the store added to it
//! the first time (ids, places, times) makes the same answer of it. So nothing that was said stands in a record, and
//! there is nothing to erase in it.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use crate::clock::Timestamp;
use crate::ids::{Bucket, ProjectId};
use crate::messages::{Message, NewMessage};
use crate::store::StoreError;

/// Names a creating request: who sent it, to do what, under which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId([u8; 32]);

impl ClaimId {
    /// The SHA-256 of all parts, each behind its length.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Where the record of a request lives that names no other place.
    pub fn bucket(&self) -> Bucket {
        Bucket::from(u16::from_be_bytes([self.0[0], self.0[1]]))
    }
}

/// How a request is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recognition {
    /// By the key that the client gave it: there is one such request.
    Key,
    /// By its body alone, because the client's library says that it retries: there may be several such requests, all
    /// meant. The `retry`th retry (from 1) answers for one of those that no `retry`th retry has answered for, the
    /// newest first, for that is the one whose answer was lost; the request itself (0) is always a new one.
    Body {
        /// How often the library says that it has tried before.
        retry: u32,
        /// When each of the tries before it would have been recorded, if that is known. What was recorded at another time
        /// is of another request.
        tried: Option<Arc<[Timestamp]>>,
    },
}

/// The claim of a request to be the first of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The tenant it belongs to.
    pub project_id: ProjectId,
    /// Names the request.
    pub claim_id: ClaimId,
    /// Where its record lives: in the bucket of its session, or in one that the request itself determines.
    pub bucket: Bucket,
    /// A digest of the body.
    pub fingerprint: [u8; 32],
    /// How it is known again.
    pub recognition: Recognition,
    /// When it is sent.
    pub now: Timestamp,
    /// Until when it counts.
    pub expires_at: Timestamp,
}

impl Claim {
    /// The retry it is; 0 for a request that is known by its key.
    pub fn retry(&self) -> u32 {
        match self.recognition {
            Recognition::Key => 0,
            Recognition::Body { retry, .. } => retry,
        }
    }

    /// Whether a record, found under the claim's id, may be of one of its tries.
    pub fn may_repeat(&self, record: &IdempotencyRecord) -> bool {
        match &self.recognition {
            Recognition::Body { tried: Some(tried), .. } => tried.contains(&record.created_at),
            Recognition::Body { tried: None, .. } | Recognition::Key => true,
        }
    }

    /// What is to be recorded of it, if it is the first: it made `target`, or put messages at `places` of it.
    pub fn record(&self, target: impl Into<String>, places: Places) -> IdempotencyRecord {
        let place = match self.recognition {
            Recognition::Key => 0,
            Recognition::Body { .. } => places.0.iter().copied().max().unwrap_or_default(),
        };
        IdempotencyRecord {
            project_id: self.project_id,
            claim_id: self.claim_id,
            bucket: self.bucket,
            place,
            fingerprint: self.fingerprint,
            target: target.into(),
            places,
            retry: self.retry(),
            created_at: self.now,
            expires_at: self.expires_at,
        }
    }

    /// Refuses `record`, found under the claim's id, if it is of another body.
    pub fn check(&self, record: &IdempotencyRecord) -> Result<(), StoreError> {
        if record.fingerprint == self.fingerprint { Ok(()) } else { Err(StoreError::KeyReused) }
    }
}

/// What the first request of its kind did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// The tenant it belongs to.
    pub project_id: ProjectId,
    /// Names the request.
    pub claim_id: ClaimId,
    /// Where it lives.
    pub bucket: Bucket,
    /// Tells requests apart that are known by their bodies: a place they took. 0 for those known by a key.
    pub place: i64,
    /// A digest of the body.
    pub fingerprint: [u8; 32],
    /// The id of what was made, or of the session that was appended to.
    pub target: String,
    /// The places of the messages in the answer, in its order; empty if it holds none.
    pub places: Places,
    /// The highest retry it has answered.
    pub retry: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it counts.
    pub expires_at: Timestamp,
}

/// Places (`seq`) in a session, in the order of an answer. As text they are ranges: `3,7-26`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(pub Vec<i64>);

impl Places {
    /// Those of messages.
    pub fn of(messages: &[Message]) -> Self {
        Self(messages.iter().map(|message| message.seq).collect())
    }

    /// As they are stored.
    pub fn to_text(&self) -> String {
        let ranges = self.0.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        let texts: Vec<String> = ranges
            .map(|range| match range {
                [only] => only.to_string(),
                [first, .., last] => format!("{first}-{last}"),
                [] => String::new(),
            })
            .collect();
        texts.join(",")
    }

    /// What [`Places::to_text`] wrote; `None` for another text.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let mut places = Vec::new();
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (i64, i64) = (first.parse().ok()?, last.parse().ok()?);
            if first < 1 || last < first || last - first >= PLACES_MAX {
                return None;
            }
            places.extend(first..=last);
        }
        Some(Self(places))
    }
}

/// Places in one range; more than any answer holds.
const PLACES_MAX: i64 = 1 << 20;

/// What a store gives back for a creating request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered<T> {
    /// What was made.
    pub value: T,
    /// Whether it was made by an earlier request, of which this is a repetition.
    pub is_replay: bool,
}

impl<T> Answered<T> {
    /// What this request made.
    pub fn first(value: T) -> Self {
        Self { value, is_replay: false }
    }

    /// What an earlier request made.
    pub fn replay(value: T) -> Self {
        Self { value, is_replay: true }
    }

    /// The same of another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answered<U> {
        Answered { value: change(self.value), is_replay: self.is_replay }
    }
}

/// The answer to an append that comes again: `messages` as sent, with what `record` says and what is `stored` at its
/// places (in any order, deleted ones too). What the request stored shows as it was then, whatever became of it; what
/// stood there before it shows as it stands now. [`StoreError::Gone`] if one of them is deleted.
pub fn replay_messages(
    record: &IdempotencyRecord,
    messages: Vec<NewMessage>,
    stored: &[Message],
) -> Result<Vec<Message>, StoreError> {
    let lost = || StoreError::internal("a record does not fit what it is of");
    if record.places.0.len() != messages.len() {
        return Err(lost());
    }
    let stored: HashMap<i64, &Message> = stored.iter().map(|message| (message.seq, message)).collect();
    let placed = record.places.0.iter().zip(messages).map(|(seq, new)| {
        let stored = *stored.get(seq).ok_or_else(lost)?;
        if stored.deleted_at.is_some() {
            return Err(StoreError::Gone);
        }
        Ok(match stored.created_at == record.created_at {
            true => {
                let new = NewMessage { message_id: stored.message_id, ..new };
                new.into_message(record.project_id, stored.session_id, *seq, stored.created_at)
            }
            false => stored.clone(),
        })
    });
    placed.collect()
}

/// What a store does with records beside writing them with what they are of.
#[async_trait]
pub trait IdempotencyStore: Send + Sync {
    /// The record that a request with this claim would be answered from now, and not changed by asking;
    /// [`StoreError::KeyReused`] if it is of another body.
    async fn get_idempotency_record(&self, claim: &Claim) -> Result<Option<IdempotencyRecord>, StoreError>;

    /// Deletes up to [`crate::limits::PURGE_RECORDS_BATCH`] records that have expired at `now`; tells whether there may
    /// be more. Several may call it at once.
    async fn purge_idempotency_records(&self, now: Timestamp) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_are_told_apart() {
        assert_ne!(ClaimId::of(&[b"ab", b"c"]), ClaimId::of(&[b"a", b"bc"]));
        assert_ne!(ClaimId::of(&[b"a"]), ClaimId::of(&[b"a", b""]));
        assert_eq!(ClaimId::of(&[b"a", b"b"]), ClaimId::of(&[b"a", b"b"]));
    }

    #[test]
    fn places_are_ranges() {
        for (places, text) in
            [(vec![], ""), (vec![5], "5"), (vec![5, 6, 7], "5-7"), (vec![3, 7, 8, 2], "3,7-8,2"), (vec![2, 1], "2,1")]
        {
            assert_eq!(Places(places.clone()).to_text(), text);
            assert_eq!(Places::parse(text), Some(Places(places)));
        }
        for text in ["x", "1-", "-1", "3-2", "0", "1,,2", "1-9999999999"] {
            assert_eq!(Places::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn places_come_back(places in proptest::collection::vec(1_i64..50, 0..40)) {
            let places = Places(places);
            prop_assert_eq!(Places::parse(&places.to_text()), Some(places));
        }
    }
}
