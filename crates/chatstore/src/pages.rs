//! Lists of a store, read page by page to their end.

use chatstore_core::api_keys::ApiKey;
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::PAGE_ITEMS_MAX;
use chatstore_core::page::{Page, PageRequest, PageStart};
use chatstore_core::projects::Project;
use chatstore_core::store::{Store, StoreError};

/// The first page of a list, or the one after a position.
pub(crate) fn page_after<P>(position: Option<P>) -> PageRequest<P> {
    PageRequest { limit: PAGE_ITEMS_MAX, start: position.map_or(PageStart::Offset(0), PageStart::After) }
}

/// Everything in a list.
pub(crate) async fn all<T, P>(
    mut list: impl AsyncFnMut(PageRequest<P>) -> Result<Page<T, P>, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut found = Vec::new();
    let mut position = None;
    loop {
        let Page { items, next } = list(page_after(position)).await?;
        found.extend(items);
        if next.is_none() {
            return Ok(found);
        }
        position = next;
    }
}

/// Every project, oldest first.
pub(crate) async fn projects(store: &dyn Store) -> Result<Vec<Project>, StoreError> {
    all(async |page| store.list_projects(&page).await).await
}

/// Every key of a project, or of all, with the names of their projects, oldest first.
pub(crate) async fn api_keys(
    store: &dyn Store,
    project_id: Option<ProjectId>,
) -> Result<Vec<(ApiKey, String)>, StoreError> {
    all(async |page| store.list_api_keys(project_id, &page).await).await
}
