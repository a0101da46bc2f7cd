//! The messages that are nearest by meaning and pass what the query demands beside its words.

use std::collections::HashMap;

use chatstore_core::embeddings::VectorQuery;
use chatstore_core::ids::MessageId;
use chatstore_core::limits::{SEARCH_BYTES_MAX, SEARCH_JUDGED_MAX};
use chatstore_core::search::query::Candidate;
use chatstore_core::search::{RankedMessage, SearchFilter, TextQuery};
use chatstore_core::store::StoreError;

use super::page::YIELD_BYTES;
use crate::app::App;
use crate::auth::Caller;

/// How much more is asked for when what was asked for held too few that pass.
const GROWTH: usize = 5;
/// Messages that are read at once to be judged.
const READ_AT_ONCE: usize = 10;

/// The nearest `limit` that pass, nearest first.
pub(super) async fn nearest(
    app: &App,
    caller: &Caller,
    (vector, query): (&VectorQuery, Option<&TextQuery>),
    filter: &SearchFilter,
    limit: usize,
) -> Result<Vec<RankedMessage>, StoreError> {
    let mut near = app.store.search_vectors(&caller.scope, vector, filter, limit).await?;
    let Some(query) = query.filter(|query| query.has_conditions()) else { return Ok(near) };
    let mut judge = Judge { app, caller, query, passed: HashMap::new(), bytes: 0, bytes_unyielded: 0 };
    let mut asked = limit;
    loop {
        let passed = judge.passing(&near, limit).await?;
        let is_over = near.len() < asked || asked >= SEARCH_JUDGED_MAX || judge.bytes >= SEARCH_BYTES_MAX;
        if passed.len() == limit || is_over {
            return Ok(passed);
        }
        asked = (asked * GROWTH).min(SEARCH_JUDGED_MAX);
        near = app.store.search_vectors(&caller.scope, vector, filter, asked).await?;
    }
}

/// Reads messages to see whether they pass, each once.
struct Judge<'a> {
    app: &'a App,
    caller: &'a Caller,
    query: &'a TextQuery,
    passed: HashMap<MessageId, bool>,
    bytes: usize,
    bytes_unyielded: usize,
}

impl Judge<'_> {
    /// The first `limit` that pass; fewer once too much was read.
    async fn passing(&mut self, near: &[RankedMessage], limit: usize) -> Result<Vec<RankedMessage>, StoreError> {
        let mut passing = Vec::new();
        for part in near.chunks(READ_AT_ONCE) {
            let ids: Vec<MessageId> = part.iter().map(|message| message.message_id).collect();
            self.judge(ids).await?;
            let passes = |message: &&RankedMessage| self.passed.get(&message.message_id) == Some(&true);
            passing.extend(part.iter().filter(passes).cloned());
            if passing.len() >= limit {
                break;
            }
        }
        passing.truncate(limit);
        Ok(passing)
    }

    async fn judge(&mut self, mut ids: Vec<MessageId>) -> Result<(), StoreError> {
        ids.retain(|id| !self.passed.contains_key(id));
        if ids.is_empty() || self.bytes >= SEARCH_BYTES_MAX {
            return Ok(());
        }
        for found in self.app.store.get_found_messages(&self.caller.scope, &ids).await? {
            let (content, role) = (&found.message.content, &found.message.role);
            let passes = self.query.admits(&Candidate { content, role, session_name: &found.session_name });
            self.passed.insert(found.message.message_id, passes);
            self.bytes += found.message.bytes();
            self.bytes_unyielded += content.len();
            if self.bytes_unyielded > YIELD_BYTES {
                self.bytes_unyielded = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}
