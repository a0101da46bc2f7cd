//! Reading a store in pages, so that neither many sessions nor a long one fill the memory.

use anyhow::{Context as _, bail};
use chatstore_core::embeddings::Embedding;
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::messages::Message;
use chatstore_core::sessions::Session;
use chatstore_core::store::{Scope, Store};

use crate::patience::patiently;

const SESSIONS_A_PAGE: u32 = 200;
/// Their bytes have a bound too, which is the store's.
const MESSAGES_A_PAGE: u32 = 500;

/// The sessions of a project in the order of their ids, tombstones included.
pub(super) struct Sessions<'a> {
    store: &'a dyn Store,
    scope: &'a Scope,
    page: std::vec::IntoIter<Session>,
    after: Option<SessionId>,
    ended: bool,
}

impl<'a> Sessions<'a> {
    pub(super) fn of(store: &'a dyn Store, scope: &'a Scope) -> Self {
        Self { store, scope, page: Vec::new().into_iter(), after: None, ended: false }
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Session>> {
        if self.page.as_slice().is_empty() && !self.ended {
            let (store, scope, after) = (self.store, self.scope, self.after);
            let page = patiently(|| store.export_sessions(scope, after, SESSIONS_A_PAGE)).await;
            let page = page.context("the sessions cannot be read")?;
            self.ended = page.len() < SESSIONS_A_PAGE as usize;
            self.page = page.into_iter();
        }
        let next = self.page.next();
        self.after = next.as_ref().map(|session| session.session_id).or(self.after);
        Ok(next)
    }
}

/// The messages of a session after the place `after`, tombstones included; empty only at its end.
pub(super) async fn messages(
    store: &dyn Store,
    scope: &Scope,
    session: &Session,
    after: i64,
) -> anyhow::Result<Vec<Message>> {
    let (id, last) = (session.session_id, session.last_seq);
    if after >= last {
        return Ok(Vec::new());
    }
    let page = patiently(|| store.export_messages(scope, id, after, last, MESSAGES_A_PAGE)).await;
    let page = page.with_context(|| format!("session {id} cannot be read"))?;
    if page.is_empty() {
        bail!("session {id} has {last} messages, but only {after} can be read; the database is damaged");
    }
    Ok(page)
}

/// The vectors of those messages, in their order.
pub(super) async fn embeddings(
    store: &dyn Store,
    scope: &Scope,
    messages: &[Message],
) -> anyhow::Result<Vec<Embedding>> {
    let live = messages.iter().filter(|message| message.deleted_at.is_none());
    let ids: Vec<MessageId> = live.map(|message| message.message_id).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    patiently(|| store.list_embeddings(scope, &ids)).await.context("the embeddings cannot be read")
}
