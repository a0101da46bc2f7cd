//! The list of sessions for a caller for whom only some exist: they are few, and fetched one by one.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::SessionId;
use chatstore_core::page::{Order, Page, PageRequest, PageStart, SessionPosition};
use chatstore_core::sessions::{Session, SessionPage, SessionQuery};
use chatstore_core::store::StoreError;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::app::App;
use crate::auth::Caller;

/// Sessions that are fetched at once.
const FETCHED_AT_ONCE: usize = 4;

/// A page of those of `sessions` that match, as a store lists them.
pub(super) async fn list_some(
    app: &App,
    caller: &Caller,
    sessions: &[SessionId],
    query: &SessionQuery,
    page: &PageRequest<SessionPosition>,
) -> Result<SessionPage, StoreError> {
    let mut ids = sessions.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let found = ids.into_iter().map(|session_id| app.store.get_session(&caller.scope, session_id));
    let found: Vec<_> = stream::iter(found).buffered(FETCHED_AT_ONCE).try_collect().await?;
    let mut items: Vec<Session> = found.into_iter().flatten().filter(|session| matches(query, session)).collect();
    items.sort_by_key(|session| place(query, session));
    if query.order == Order::Desc {
        items.reverse();
    }
    match &page.start {
        PageStart::Offset(offset) => {
            let passed = usize::try_from(*offset).unwrap_or(usize::MAX).min(items.len());
            items.drain(..passed);
        }
        PageStart::After(position) => {
            let last = (position.sorted_by, position.session_id);
            items.retain(|session| match query.order {
                Order::Asc => place(query, session) > last,
                Order::Desc => place(query, session) < last,
            });
        }
    }
    Ok(Page::cut(items, page.limit, |session| session.position(query.sort)))
}

fn place(query: &SessionQuery, session: &Session) -> (Timestamp, SessionId) {
    (session.sorted_by(query.sort), session.session_id)
}

/// Whether a session is one that the query asks for.
fn matches(query: &SessionQuery, session: &Session) -> bool {
    let scalars = if query.metadata.is_empty() { Vec::new() } else { session.metadata.scalars() };
    query.user_id.as_ref().is_none_or(|user_id| session.user_id.as_ref() == Some(user_id))
        && query.is_favorite.is_none_or(|is_favorite| session.is_favorite == is_favorite)
        && query.created_after.is_none_or(|after| session.created_at > after)
        && query.created_before.is_none_or(|before| session.created_at < before)
        && query.metadata.iter().all(|wanted| scalars.contains(wanted))
}
