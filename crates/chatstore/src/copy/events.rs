//! The audit log: all of it, also of projects that are deleted by now.

use anyhow::Context as _;
use chatstore_core::audit::{AuditEvent, AuditQuery};
use chatstore_core::page::AuditPosition;
use chatstore_core::store::Store;

use super::Ends;
use crate::pages::page_after;
use crate::patience::patiently;

/// The events of a store, the newest first.
pub(super) struct Events<'a> {
    store: &'a dyn Store,
    page: std::vec::IntoIter<AuditEvent>,
    after: Option<AuditPosition>,
    ended: bool,
}

impl<'a> Events<'a> {
    pub(super) fn of(store: &'a dyn Store) -> Self {
        Self { store, page: Vec::new().into_iter(), after: None, ended: false }
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Option<AuditEvent>> {
        if self.page.as_slice().is_empty() && !self.ended {
            self.page = self.next_page().await?.into_iter();
        }
        Ok(self.page.next())
    }

    /// Some more of them; none at the end.
    async fn next_page(&mut self) -> anyhow::Result<Vec<AuditEvent>> {
        if self.ended {
            return Ok(Vec::new());
        }
        let (query, request) = (AuditQuery::default(), page_after(self.after));
        let page = patiently(|| self.store.list_audit_events(&query, &request)).await;
        let page = page.context("the audit log cannot be read")?;
        self.after = page.next;
        self.ended = page.next.is_none();
        Ok(page.items)
    }
}

/// Copies every event; one that is there already stays as it is.
pub(super) async fn copy(ends: &Ends) -> anyhow::Result<()> {
    let mut source = Events::of(ends.source.as_ref());
    loop {
        let page = source.next_page().await?;
        if page.is_empty() {
            return Ok(());
        }
        let stored = patiently(|| ends.target.append_audit_events(page.clone())).await;
        stored.context("the audit log could not be stored")?;
    }
}
