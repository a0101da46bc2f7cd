//! A batch of appends as the lists that its statement takes.

use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::Recognition;
use chatstore_core::ids::MessageId;
use chatstore_core::json::RawJson;
use chatstore_core::messages::{NewMessage, plus_tokens};
use uuid::Uuid;

use super::{Group, is_queued};
use crate::columns::bucket_value;

/// The sessions of a batch, each once.
#[derive(Default)]
pub(super) struct Wanted<'a> {
    pub(super) buckets: Vec<i16>,
    pub(super) session_ids: Vec<Uuid>,
    pub(super) project_ids: Vec<Uuid>,
    pub(super) user_ids: Vec<Option<&'a str>>,
    pub(super) messages: Vec<i64>,
    /// The quota of each session.
    pub(super) messages_max: Vec<Option<i64>>,
    pub(super) tokens: Vec<Option<i64>>,
    pub(super) bytes: Vec<i64>,
    pub(super) now_us: Vec<i64>,
    pub(super) now_hours: Vec<i64>,
}

impl<'a> Wanted<'a> {
    pub(super) fn of(groups: &[Group<'a>]) -> Self {
        let mut wanted = Self::default();
        for group in groups {
            let Some(first) = group.first() else { continue };
            let now = group.iter().map(|append| append.now).max().unwrap_or(first.now);
            wanted.buckets.push(bucket_value(first.session_id.bucket()));
            wanted.session_ids.push(first.session_id.uuid());
            wanted.project_ids.push(first.scope.project_id.uuid());
            wanted.user_ids.push(first.scope.user_id.as_deref());
            wanted.messages.push(group.iter().map(|append| append.count()).sum());
            let quota = first.scope.quotas.messages_per_session;
            wanted.messages_max.push(quota.map(|max| i64::try_from(max).unwrap_or(i64::MAX)));
            wanted.bytes.push(group.iter().map(|append| append.stored_bytes()).sum());
            wanted.tokens.push(group.iter().fold(None, |sum, append| plus_tokens(sum, append.tokens())));
            wanted.now_us.push(now.as_micros());
            wanted.now_hours.push(now.hour());
        }
        wanted
    }
}

/// The messages of a batch, column by column.
#[derive(Default)]
pub(super) struct Rows<'a> {
    pub(super) group_nos: Vec<i32>,
    pub(super) places: Vec<i64>,
    pub(super) message_ids: Vec<Uuid>,
    pub(super) parent_ids: Vec<Option<Uuid>>,
    pub(super) roles: Vec<&'a str>,
    pub(super) kinds: Vec<&'a str>,
    pub(super) statuses: Vec<&'a str>,
    pub(super) contents: Vec<&'a str>,
    pub(super) payloads: Vec<Option<&'a str>>,
    pub(super) metadata: Vec<&'a str>,
    pub(super) contexts: Vec<Option<&'a str>>,
    pub(super) external_ids: Vec<Option<&'a str>>,
    pub(super) token_counts: Vec<Option<i64>>,
    pub(super) now_us: Vec<i64>,
    /// The words of each message; empty for one without any.
    pub(super) lexemes: Vec<&'a str>,
    pub(super) queued: Vec<bool>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(groups: &[Group<'a>]) -> Self {
        let mut rows = Self::default();
        for (group, group_no) in groups.iter().zip(1..) {
            let messages = group
                .iter()
                .flat_map(|append| append.messages.iter().zip(append.words.iter()).map(|m| (m, append.now)));
            for (((message, words), now), place) in messages.zip(1..) {
                rows.push(group_no, place, message, now);
                rows.lexemes.push(words);
            }
        }
        rows
    }

    fn push(&mut self, group_no: i32, place: i64, message: &'a NewMessage, now: Timestamp) {
        self.group_nos.push(group_no);
        self.places.push(place);
        self.message_ids.push(message.message_id.uuid());
        self.parent_ids.push(message.parent_id.map(MessageId::uuid));
        self.roles.push(&message.role);
        self.kinds.push(&message.kind);
        self.statuses.push(message.status.as_str());
        self.contents.push(&message.content);
        self.payloads.push(message.payload.as_ref().map(RawJson::as_str));
        self.metadata.push(message.metadata.as_str());
        self.contexts.push(message.context.as_ref().map(RawJson::as_str));
        self.external_ids.push(message.external_id.as_deref());
        self.token_counts.push(message.token_count);
        self.now_us.push(now.as_micros());
        self.queued.push(is_queued(message));
    }
}

/// The ids that a batch brings and that must be free, or taken.
#[derive(Default)]
pub(super) struct Checks<'a> {
    pub(super) external_groups: Vec<i32>,
    pub(super) external_ids: Vec<&'a str>,
    pub(super) message_groups: Vec<i32>,
    pub(super) message_ids: Vec<Uuid>,
    /// Whether the message must be there, as a parent, or must not, as one that an external id spells.
    pub(super) are_parents: Vec<bool>,
}

impl<'a> Checks<'a> {
    pub(super) fn of(groups: &[Group<'a>]) -> Self {
        let mut checks = Self::default();
        for (group, group_no) in groups.iter().zip(1..) {
            for append in group {
                for external_id in append.external_ids() {
                    checks.external_groups.push(group_no);
                    checks.external_ids.push(external_id);
                    if let Some(message_id) = append.spelled(external_id) {
                        checks.push(group_no, message_id, false);
                    }
                }
                for (_, parent_id) in append.foreign_parents() {
                    checks.push(group_no, parent_id, true);
                }
            }
        }
        checks
    }

    fn push(&mut self, group_no: i32, message_id: MessageId, is_parent: bool) {
        self.message_groups.push(group_no);
        self.message_ids.push(message_id.uuid());
        self.are_parents.push(is_parent);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.external_groups.is_empty() && self.message_groups.is_empty()
    }
}

/// The claims of a batch, and the places of each one's messages in its group.
#[derive(Default)]
pub(super) struct Claims<'a> {
    pub(super) group_nos: Vec<i32>,
    pub(super) claim_ids: Vec<&'a [u8]>,
    pub(super) fingerprints: Vec<&'a [u8]>,
    pub(super) are_keyed: Vec<bool>,
    pub(super) firsts: Vec<i64>,
    pub(super) lasts: Vec<i64>,
    pub(super) now_us: Vec<i64>,
    pub(super) expires_us: Vec<i64>,
}

impl<'a> Claims<'a> {
    pub(super) fn of(groups: &[Group<'a>]) -> Self {
        let mut claims = Self::default();
        for (group, group_no) in groups.iter().zip(1..) {
            let mut last = 0;
            for append in group {
                let first = last + 1;
                last += append.count();
                let Some(claim) = &append.claim else { continue };
                claims.group_nos.push(group_no);
                claims.claim_ids.push(claim.claim_id.as_bytes());
                claims.fingerprints.push(&claim.fingerprint);
                claims.are_keyed.push(claim.recognition == Recognition::Key);
                claims.firsts.push(first);
                claims.lasts.push(last);
                claims.now_us.push(claim.now.as_micros());
                claims.expires_us.push(claim.expires_at.as_micros());
            }
        }
        claims
    }

    pub(super) fn is_empty(&self) -> bool {
        self.group_nos.is_empty()
    }
}
