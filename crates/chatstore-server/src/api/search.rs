//! Search on the wire.

mod answer;
mod meaning;
mod page;
mod request;

use std::collections::HashSet;

use axum::extract::State;
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::MessageId;
use chatstore_core::limits::{SEARCH_FUSED_MAX, SEARCH_MATCHES_MAX};
use chatstore_core::page::{PageStart, SearchPosition};
use chatstore_core::search::query::Candidate;
use chatstore_core::search::{Derived, FoundMessage, FusedMessage, RankedMessage, TextQuery, fuse};
use chatstore_core::store::StoreError;

pub use answer::{Found, SearchHit, SearchRanks, SearchResponse, SearchSnippet};
use meaning::{Lack, meaning};
use request::Search;
pub use request::{SearchQuery, SearchRequest, SessionSearchQuery};

use super::OperationDoc;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Query, SessionPath};
use crate::respond::Linked;

/// Messages that are read at once to be judged.
const READ_AT_ONCE: usize = 20;

/// How a search finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// By words and by meaning.
    Hybrid,
    /// By words.
    Text,
    /// By meaning.
    Vector,
}

impl Mode {
    /// All, in the order they are listed.
    const ALL: [Self; 3] = [Self::Hybrid, Self::Text, Self::Vector];

    /// Its name on the wire.
    fn as_str(self) -> &'static str {
        match self {
            Self::Hybrid => "hybrid",
            Self::Text => "text",
            Self::Vector => "vector",
        }
    }

    /// The mode of this name.
    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}

/// See [`search_messages`].
pub const SEARCH_MESSAGES: OperationDoc = OperationDoc {
    id: "search_messages",
    summary: "Search messages",
    description: "Finds messages by words (`query`), by meaning, or by both, which is the default: then the two ranked \
        lists are merged by reciprocal rank fusion. Only what the caller may read is looked at. An acknowledged message \
        is found by its words at once. Without an embedding source or `embedding`, words alone are searched, and \
        `degraded` says so.",
    tag: "search",
};

/// Searches messages.
pub async fn search_messages(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<SearchRequest>,
) -> Result<Found, ApiError> {
    let search = body.check(&caller)?;
    let Found(found) = find(&app, &caller, &search).await?;
    // No link can hold a body.
    Ok(Found(Linked { next: None, ..found }))
}

/// See [`search_messages_by_query`].
pub const SEARCH_MESSAGES_BY_QUERY: OperationDoc = OperationDoc {
    id: "search_messages_by_query",
    summary: "Search messages, in short",
    description: "The search of `POST /api/v1/search` in a query string. The `Link` header leads to the next page.",
    tag: "search",
};

/// Searches messages as a query string says.
pub async fn search_messages_by_query(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<SearchQuery>,
) -> Result<Found, ApiError> {
    let search = query.check(&caller, None)?;
    find(&app, &caller, &search).await
}

/// See [`search_session`].
pub const SEARCH_SESSION: OperationDoc = OperationDoc {
    id: "search_session",
    summary: "Search a session",
    description: "The same in one session.",
    tag: "search",
};

/// Searches the messages of a session.
pub async fn search_session(
    State(app): State<App>,
    caller: Caller,
    SessionPath(session_id): SessionPath,
    Query(SessionSearchQuery(query)): Query<SessionSearchQuery>,
) -> Result<Found, ApiError> {
    let search = query.check(&caller, Some(session_id))?;
    find(&app, &caller, &search).await
}

/// A list of what was found, and how it was made.
struct Ranked {
    list: Vec<FusedMessage>,
    by_vectors: bool,
    degraded: Option<String>,
}

async fn find(app: &App, caller: &Caller, search: &Search) -> Result<Found, ApiError> {
    let binding = search.binding(caller);
    let request = search.paging.request::<SearchPosition>(&app.cursor_key, &binding)?;
    let after = match request.start {
        PageStart::After(position) => Some(position),
        PageStart::Offset(_) => None,
    };
    let now = app.ctx.now();
    if let Some(session_id) = search.filter.session_id {
        let session = app.store.get_session(&caller.scope, session_id).await.map_err(search_error)?;
        session.ok_or_else(|| ApiError::not_found("session"))?;
    }
    let mut ranked = rank(app, caller, search, after.as_ref()).await?;
    let as_of = after.map_or_else(|| behind_all(now, &ranked.list), |position| position.as_of);
    let session_hits = search.is_grouped.then(|| page::group(&mut ranked.list));
    let start = after.map_or(0, |position| page::start(&ranked.list, &position));
    let page = page::Cut { start, limit: request.limit as usize, session_hits };
    let (hits, end) = page.hits(app, caller, search, &ranked.list).await?;
    let last = ranked.list.get(..end).and_then(<[_]>::last).filter(|_| end < ranked.list.len());
    let next = last.map(|last| SearchPosition {
        as_of,
        by_vectors: ranked.by_vectors,
        score: last.message.score,
        created_at: last.message.created_at,
        message_id: last.message.message_id,
    });
    Ok(Found(Linked {
        next: next.map(|next| search.paging.next_link(&app.cursor_key, &binding, &next)),
        body: SearchResponse {
            hits,
            degraded: ranked.degraded,
            next_cursor: next.map(|next| app.cursor_key.sign(&next, &binding)),
        },
    }))
}

/// A time behind all that a first page was made from: later pages leave out what came after it.
fn behind_all(now: Timestamp, list: &[FusedMessage]) -> Timestamp {
    // A replica whose clock is ahead may have stored some.
    let latest = list.iter().map(|hit| hit.message.created_at).max().unwrap_or(now);
    latest.max(now).plus_micros(1)
}

/// The list of what is found; a later page remakes that of the first.
async fn rank(app: &App, caller: &Caller, search: &Search, after: Option<&SearchPosition>) -> Result<Ranked, ApiError> {
    let mut filter = search.filter.clone();
    if let Some(position) = after {
        filter.created_before = Some(filter.created_before.map_or(position.as_of, |time| time.min(position.as_of)));
    }
    let query = search.query.as_deref().map(TextQuery::parse);
    let text = query.as_ref().filter(|_| search.mode != Mode::Vector);
    let mut degraded = Vec::new();
    // Only a first page can do without: on a later one the list would be another.
    let is_optional = search.mode == Mode::Hybrid && after.is_none();
    let meaning = match after {
        _ if search.mode == Mode::Text => None,
        Some(position) if !position.by_vectors => {
            degraded.push("Only words were searched, as on the page before.");
            None
        }
        _ => match meaning(app, search).await? {
            Ok(meaning) => Some(meaning),
            Err(lack) => lack.excuse(is_optional, &mut degraded)?,
        },
    };
    let limit = if text.is_some() && meaning.is_some() { SEARCH_FUSED_MAX } else { SEARCH_MATCHES_MAX };
    let by_text = async {
        let Some(query) = text else { return Ok(None) };
        let is_partial = app.store.is_reindexing(Derived::Text).await?;
        let found = app.store.search_text(&caller.scope, query, &filter, limit).await?;
        Ok::<_, StoreError>(Some((found, is_partial)))
    };
    let by_vectors = async {
        match &meaning {
            Some(Some(vector)) => {
                let near = app.store.search_vectors(&caller.scope, vector, &filter, limit).await?;
                admitted(app, caller, query.as_ref(), near).await.map(Some)
            }
            Some(None) => Ok(Some(Vec::new())),
            None => Ok(None),
        }
    };
    let (by_text, by_vectors) = futures_util::future::join(by_text, by_vectors).await;
    let by_text = by_text.map_err(search_error)?;
    let by_vectors = match by_vectors {
        Err(StoreError::Invalid { .. }) if search.vector.is_none() => {
            Lack::misfit().excuse(is_optional, &mut degraded)?
        }
        found => found.map_err(search_error)?,
    };
    if by_text.as_ref().is_some_and(|(_, is_partial)| *is_partial) {
        degraded.push("The index of words is being made anew, so that older messages may be missing.");
    }
    Ok(Ranked {
        by_vectors: by_vectors.is_some(),
        list: fuse(by_text.map(|(found, _)| found), by_vectors),
        degraded: (!degraded.is_empty()).then(|| degraded.join(" ")),
    })
}

/// Those of the nearest that pass what the query demands beside its words.
async fn admitted(
    app: &App,
    caller: &Caller,
    query: Option<&TextQuery>,
    near: Vec<RankedMessage>,
) -> Result<Vec<RankedMessage>, StoreError> {
    let Some(query) = query.filter(|query| query.has_conditions()) else { return Ok(near) };
    let mut passed = HashSet::new();
    for part in near.chunks(READ_AT_ONCE) {
        let ids: Vec<MessageId> = part.iter().map(|message| message.message_id).collect();
        let found = app.store.get_found_messages(&caller.scope, &ids).await?;
        let admits = |found: &&FoundMessage| {
            let (content, role) = (&found.message.content, &found.message.role);
            query.admits(&Candidate { content, role, session_name: &found.session_name })
        };
        passed.extend(found.iter().filter(admits).map(|found| found.message.message_id));
    }
    Ok(near.into_iter().filter(|message| passed.contains(&message.message_id)).collect())
}

fn search_error(error: StoreError) -> ApiError {
    ApiError::from_store(error, "session")
}
