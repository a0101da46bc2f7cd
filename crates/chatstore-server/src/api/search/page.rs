//! A page of a list of what was found.

use std::collections::{HashMap, HashSet};

use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::limits::{PAGE_BYTES_MAX, SEARCH_MATCHES_MAX};
use chatstore_core::messages::{Message, MessageQuery};
use chatstore_core::page::{Order, PageRequest, PageStart, SearchAfter};
use chatstore_core::search::snippet::snippets;
use chatstore_core::search::{FoundMessage, FusedMessage, RankedMessage, TextQuery};
use chatstore_core::store::StoreError;

use super::answer::{SearchHit, SearchRanks, SearchSnippet};
use super::request::Search;
use super::search_error;
use crate::api::messages::MessageResponse;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;

/// Messages that are read at once: a page of large ones ends before all are in memory.
const READ_AT_ONCE: usize = 10;

/// Bytes of text after which others get their turn: marking what fits in it takes a while.
pub(super) const YIELD_BYTES: usize = 64 << 10;

/// How many of a list stand in each session.
pub(super) type SessionHits = HashMap<SessionId, u64>;

/// Leaves the best of each session in the list, and counts.
pub(super) fn group(list: &mut Vec<FusedMessage>) -> SessionHits {
    let mut hits = SessionHits::new();
    list.retain(|hit| {
        let count = hits.entry(hit.message.session_id).or_insert(0);
        *count += 1;
        *count == 1
    });
    hits
}

/// Leaves in the list what comes on the next pages.
pub(super) fn go_on(list: &mut Vec<FusedMessage>, after: &SearchAfter, is_grouped: bool) {
    match after {
        SearchAfter::Hit { score, created_at, message_id } => {
            // Also if the hit that stood there is gone.
            let is_behind = |message: &RankedMessage| {
                let gone =
                    RankedMessage { score: *score, created_at: *created_at, message_id: *message_id, ..*message };
                RankedMessage::order(message, &gone).is_gt()
            };
            let found = list.iter().position(|hit| hit.message.message_id == *message_id);
            list.drain(..found.map_or_else(|| list.partition_point(|hit| !is_behind(&hit.message)), |at| at + 1));
        }
        SearchAfter::Shown(marks) => {
            let shown: HashSet<u32> = marks.iter().copied().collect();
            list.retain(|hit| !shown.contains(&mark(hit, is_grouped)));
        }
    }
}

/// What the page behind these hits comes after, while there may be more.
pub(super) fn after(
    page: &[FusedMessage],
    by_vectors: bool,
    before: Option<SearchAfter>,
    is_grouped: bool,
) -> Option<SearchAfter> {
    if !by_vectors {
        let RankedMessage { score, created_at, message_id, .. } = page.last()?.message;
        return Some(SearchAfter::Hit { score, created_at, message_id });
    }
    let mut marks = match before {
        Some(SearchAfter::Shown(marks)) => marks,
        _ => Vec::new(),
    };
    marks.extend(page.iter().map(|hit| mark(hit, is_grouped)));
    (marks.len() < SEARCH_MATCHES_MAX).then_some(SearchAfter::Shown(marks))
}

fn mark(hit: &FusedMessage, is_grouped: bool) -> u32 {
    SearchAfter::mark(if is_grouped { hit.message.session_id.uuid() } else { hit.message.message_id.uuid() })
}

/// How a list is cut into a page.
pub(super) struct Cut {
    pub(super) limit: usize,
    pub(super) session_hits: Option<SessionHits>,
}

impl Cut {
    /// The hits of the page without those that are gone, and where in the list the page ends: early, if its texts are
    /// large.
    pub(super) async fn hits(
        &self,
        app: &App,
        caller: &Caller,
        search: &Search,
        list: &[FusedMessage],
    ) -> Result<(Vec<SearchHit>, usize), ApiError> {
        let query = search.query.as_deref().map(TextQuery::parse);
        let wanted = &list[..list.len().min(self.limit)];
        let (mut hits, mut end, mut bytes) = (Vec::new(), 0, 0);
        for part in wanted.chunks(READ_AT_ONCE) {
            let ids: Vec<MessageId> = part.iter().map(|hit| hit.message.message_id).collect();
            let found = app.store.get_found_messages(&caller.scope, &ids).await.map_err(search_error)?;
            let mut found = found.into_iter().peekable();
            for ranked in part {
                if bytes >= PAGE_BYTES_MAX {
                    return Ok((hits, end));
                }
                end += 1;
                let Some(found) = found.next_if(|found| found.message.message_id == ranked.message.message_id) else {
                    continue;
                };
                let Some((before, after)) = context(app, caller, search, &found.message).await? else { continue };
                bytes += [&before, &after].into_iter().flatten().map(Message::bytes).sum::<usize>();
                bytes += found.message.bytes();
                if found.message.content.len() > YIELD_BYTES {
                    tokio::task::yield_now().await;
                }
                hits.push(self.hit(query.as_ref(), ranked, found, (before, after)));
            }
        }
        Ok((hits, end))
    }

    fn hit(
        &self,
        query: Option<&TextQuery>,
        ranked: &FusedMessage,
        found: FoundMessage,
        (before, after): (Vec<Message>, Vec<Message>),
    ) -> SearchHit {
        let session_id = found.message.session_id;
        let shown = |messages: Vec<Message>| messages.into_iter().map(MessageResponse::from).collect();
        SearchHit {
            session_id,
            session_name: found.session_name,
            score: ranked.message.score,
            ranks: SearchRanks { text: ranked.text_rank, vector: ranked.vector_rank },
            snippets: snippets(query, &found.message.content).into_iter().map(SearchSnippet::from).collect(),
            message: found.message.into(),
            context_before: shown(before),
            context_after: shown(after),
            session_hits: self.session_hits.as_ref().and_then(|hits| hits.get(&session_id).copied()),
        }
    }
}

/// The messages around one, oldest first; `None` if its session has gone meanwhile.
async fn context(
    app: &App,
    caller: &Caller,
    search: &Search,
    message: &Message,
) -> Result<Option<(Vec<Message>, Vec<Message>)>, ApiError> {
    let list = async |query: MessageQuery, limit| {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let page = PageRequest { limit, start: PageStart::Offset(0) };
        let page = app.store.list_messages(&caller.scope, message.session_id, &query, &page).await;
        page.map(|page| page.items)
    };
    let seq = Some(message.seq);
    let before = MessageQuery { before_seq: seq, ..MessageQuery::default() };
    let after = MessageQuery { after_seq: seq, order: Order::Asc, ..MessageQuery::default() };
    let read = async {
        let mut earlier = list(before, search.context_before).await?;
        earlier.reverse();
        Ok((earlier, list(after, search.context_after).await?))
    };
    match read.await {
        Ok(context) => Ok(Some(context)),
        Err(StoreError::NotFound) => Ok(None),
        Err(error) => Err(search_error(error)),
    }
}
