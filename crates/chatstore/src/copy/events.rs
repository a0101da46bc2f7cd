//! The audit log: all of it, also of projects that are deleted by now.

use anyhow::Context as _;
use chatstore_core::audit::{Actor, AuditEvent, AuditQuery};
use chatstore_core::page::AuditPosition;
use chatstore_core::store::Store;

use super::Ends;
use crate::audit::COPY;
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

/// Whether it tells of a copy: that one end has them alone is right.
pub(super) fn is_of_copy(event: &AuditEvent) -> bool {
    event.actor == Actor::Command && event.action == COPY
}

/// Copies what the target lacks; tells how many events that were.
pub(super) async fn copy(ends: &Ends) -> anyhow::Result<usize> {
    let (mut source, mut target) = (Events::of(ends.source.as_ref()), Events::of(ends.target.as_ref()));
    let mut there = target.next().await?;
    let mut copied = 0;
    loop {
        let page = source.next_page().await?;
        if page.is_empty() {
            return Ok(copied);
        }
        let mut missing = Vec::new();
        for event in page {
            while there.as_ref().is_some_and(|there| there.event_id > event.event_id) {
                there = target.next().await?;
            }
            if there.as_ref().is_none_or(|there| there.event_id != event.event_id) {
                missing.push(event);
            }
        }
        copied += missing.len();
        let stored = patiently(|| ends.target.append_audit_events(missing.clone())).await;
        stored.context("the audit log could not be stored")?;
    }
}
