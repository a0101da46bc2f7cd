//! Search on the wire.

mod answer;
mod meaning;
mod nearest;
mod page;
mod request;

use axum::extract::State;
use chatstore_core::clock::Timestamp;
use chatstore_core::limits::{SEARCH_FUSED_MAX, SEARCH_MATCHES_MAX};
use chatstore_core::page::{PageStart, SearchAfter, SearchPosition};
use chatstore_core::search::{Derived, FusedMessage, TextQuery, fuse};
use chatstore_core::store::StoreError;

pub use answer::{Found, SearchHit, SearchRanks, SearchResponse, SearchSnippet};
use meaning::{Lack, SearchedModel, is_partial, meaning, searched_model};
use nearest::nearest;
use request::Search;
pub use request::{SearchQuery, SearchRequest, SessionSearchQuery};

use super::OperationDoc;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Json, Query, SessionPath};
use crate::respond::Linked;

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
    let model = searched_model(app, search).await?;
    let binding = search.binding(caller, model.as_ref().map(|model| model.name.as_str()));
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
    let Ranked { mut list, by_vectors, degraded } = rank(app, caller, search, model.as_ref(), after.as_ref()).await?;
    let as_of = after.as_ref().map_or_else(|| behind_all(now, &list), |position| position.as_of);
    let session_hits = search.is_grouped.then(|| page::group(&mut list));
    let before = after.map(|position| position.after);
    if let Some(before) = &before {
        page::go_on(&mut list, before, search.is_grouped);
    }
    let page = page::Cut { limit: request.limit as usize, session_hits };
    let (hits, end) = page.hits(app, caller, search, &list).await?;
    let next = match end < list.len() {
        true => page::after(&list[..end], by_vectors, before, search.is_grouped),
        false => None,
    };
    let next = next.map(|after| SearchPosition { as_of, after });
    Ok(Found(Linked {
        next: next.as_ref().map(|next| search.paging.next_link(&app.cursor_key, &binding, next)),
        body: SearchResponse {
            hits,
            degraded,
            next_cursor: next.as_ref().map(|next| app.cursor_key.sign(next, &binding)),
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
async fn rank(
    app: &App,
    caller: &Caller,
    search: &Search,
    model: Option<&SearchedModel>,
    after: Option<&SearchPosition>,
) -> Result<Ranked, ApiError> {
    let mut filter = search.filter.clone();
    if let Some(position) = after {
        filter.created_before = Some(filter.created_before.map_or(position.as_of, |time| time.min(position.as_of)));
    }
    let query = search.query.as_deref().map(TextQuery::parse);
    let text = query.as_ref().filter(|_| search.mode != Mode::Vector);
    let mut degraded = Vec::new();
    // Only a first page can do without: on a later one the list would be another.
    let is_optional = search.mode == Mode::Hybrid && after.is_none();
    let meaning = match (model, after.map(|position| &position.after)) {
        (None, _) => None,
        (Some(_), Some(SearchAfter::Hit { .. })) => {
            degraded.push("Only words were searched, as on the page before.");
            None
        }
        (Some(model), _) => match meaning(app, search, model).await? {
            Ok(meaning) => Some(meaning),
            Err(lack) => lack.excuse(is_optional, &mut degraded)?,
        },
    };
    let limit = match (text.is_some(), meaning.is_some()) {
        (true, true) => SEARCH_FUSED_MAX,
        // The nearest need no others to be ranked: as many as this page and those before it.
        (false, true) if !search.is_grouped => {
            let shown = after.map_or(0, |position| position.after.shown());
            SEARCH_MATCHES_MAX.min(shown + search.paging.limit() as usize + 1)
        }
        _ => SEARCH_MATCHES_MAX,
    };
    let by_text = async {
        let Some(query) = text else { return Ok(None) };
        let is_partial = app.store.is_reindexing(Derived::Text).await?;
        let found = app.store.search_text(&caller.scope, query, &filter, limit).await?;
        Ok::<_, StoreError>(Some((found, is_partial)))
    };
    let by_vectors = async {
        match &meaning {
            Some(Some(vector)) => {
                let found = nearest(app, caller, (vector, query.as_ref()), &filter, limit).await?;
                Ok(Some((found, is_partial(app, &vector.model))))
            }
            Some(None) => Ok(Some((Vec::new(), false))),
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
    if by_vectors.as_ref().is_some_and(|(_, is_partial)| *is_partial) {
        degraded.push("Vectors are still being made, so that older messages may not be found by their meaning.");
    }
    Ok(Ranked {
        by_vectors: by_vectors.is_some(),
        list: fuse(by_text.map(|(found, _)| found), by_vectors.map(|(found, _)| found)),
        degraded: (!degraded.is_empty()).then(|| degraded.join(" ")),
    })
}

fn search_error(error: StoreError) -> ApiError {
    ApiError::from_store(error, "session")
}
