//! Projects as commands name them.

use anyhow::{Context as _, bail};
use chatstore_core::clock::Ctx;
use chatstore_core::limits::NAME_BYTES_MAX;
use chatstore_core::projects::Project;
use chatstore_core::store::{Store, StoreError};

/// The project of this name, made if there is none.
pub(crate) async fn find_or_create(store: &dyn Store, ctx: &Ctx, name: &str) -> anyhow::Result<Project> {
    check_name("--project", name, NAME_BYTES_MAX)?;
    if let Some(project) = store.get_project(name).await? {
        return Ok(project);
    }
    let created_at = ctx.now();
    let project = Project { project_id: ctx.new_project_id(created_at), name: name.to_owned(), created_at };
    match store.create_project(project).await {
        Ok(project) => {
            eprintln!("Made the project {name}.");
            Ok(project)
        }
        // Another process was faster.
        Err(StoreError::Conflict { .. }) => store.get_project(name).await?.context("the project has vanished"),
        Err(error) => Err(error.into()),
    }
}

/// Refuses a name that a list could not show.
pub(crate) fn check_name(flag: &str, text: &str, bytes_max: usize) -> anyhow::Result<()> {
    if text.is_empty() || text.len() > bytes_max || text.contains(char::is_control) {
        bail!("{flag} must have 1 to {bytes_max} bytes and no control characters");
    }
    Ok(())
}
