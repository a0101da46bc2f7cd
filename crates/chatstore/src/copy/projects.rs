//! What stands above tenants: projects and API keys.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail};
use chatstore_core::api_keys::ApiKey;
use chatstore_core::archive::Checksum;
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::Project;
use chatstore_core::store::{Store, StoreError};

use super::Ends;
use super::patience::{Patience, patiently};

/// Conflicts that a refusal names.
const CONFLICTS_SHOWN: usize = 10;

/// What the target lacks.
#[derive(Default)]
pub(super) struct Missing {
    projects: Vec<Project>,
    keys: Vec<ApiKey>,
    /// Keys that were revoked at the source after they were copied.
    revocations: Vec<(String, Timestamp)>,
}

/// Compares both ends; refuses if the target gave a name or id to something else.
pub(super) async fn missing(ends: &Ends) -> anyhow::Result<Missing> {
    let mut missing = Missing::default();
    let mut conflicts = Vec::new();
    let there = projects(ends.target.as_ref()).await?;
    let names: HashMap<&str, ProjectId> = there.values().map(|p| (p.name.as_str(), p.project_id)).collect();
    for project in projects(ends.source.as_ref()).await?.into_values() {
        let Project { project_id, name, .. } = &project;
        match (there.get(project_id), names.get(name.as_str())) {
            (Some(known), _) if *known == project => {}
            (Some(known), _) if known.name == *name => {
                conflicts.push(format!("project `{name}` has another date at the target"));
            }
            (Some(known), _) => conflicts.push(format!(
                "project {project_id} is named `{name}` at the source and `{}` at the target",
                known.name
            )),
            (None, Some(holder)) => conflicts
                .push(format!("project `{name}` has the id {project_id} at the source and {holder} at the target")),
            (None, None) => missing.projects.push(project),
        }
    }
    let there = api_keys(ends.target.as_ref()).await?;
    for key in api_keys(ends.source.as_ref()).await?.into_values() {
        match there.get(&key.key_id) {
            None => missing.keys.push(key),
            Some(known) if is_same(&key, known) => {}
            Some(known) => {
                let revoked = ApiKey { revoked_at: key.revoked_at, ..known.clone() };
                match key.revoked_at {
                    Some(at) if known.revoked_at.is_none() && is_same(&key, &revoked) => {
                        missing.revocations.push((key.key_id, at));
                    }
                    _ => conflicts.push(format!("API key {} (`{}`) differs at the target", key.key_id, key.name)),
                }
            }
        }
    }
    if conflicts.is_empty() {
        return Ok(missing);
    }
    let more = match conflicts.split_off(CONFLICTS_SHOWN.min(conflicts.len())).len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let conflicts = conflicts.join("; ");
    bail!(
        "the target holds something else in the same place: {conflicts}{more}; nothing was copied, name an empty database in --to"
    )
}

impl Missing {
    /// Stores it, the oldest first.
    pub(super) async fn create(mut self, ends: &Ends) -> anyhow::Result<()> {
        let mut patience = Patience::new();
        while let Err(error) = self.store(ends).await {
            patience.after(error).await.context("the projects and API keys could not be stored")?;
            // A part of it may be there now, and would be refused.
            self = missing(ends).await?;
        }
        Ok(())
    }

    async fn store(self, ends: &Ends) -> Result<(), StoreError> {
        for project in self.projects {
            ends.target.create_project(project).await?;
        }
        for key in self.keys {
            ends.target.create_api_key(key).await?;
        }
        for (key_id, at) in self.revocations {
            ends.target.revoke_api_key(&key_id, at).await?;
        }
        Ok(())
    }
}

/// All projects by their ids. The default project is made with each schema and keeps the date of
/// its own, so that date is left out.
pub(super) async fn projects(store: &dyn Store) -> anyhow::Result<BTreeMap<ProjectId, Project>> {
    let projects = patiently(|| store.list_projects()).await.context("the projects cannot be read")?;
    let projects = projects.into_iter().map(|mut project| {
        if project.project_id == ProjectId::DEFAULT {
            project.created_at = Timestamp::from_micros(0).expect("1970 is in range");
        }
        (project.project_id, project)
    });
    Ok(projects.collect())
}

/// All keys by their ids.
pub(super) async fn api_keys(store: &dyn Store) -> anyhow::Result<BTreeMap<String, ApiKey>> {
    let keys = patiently(|| store.list_api_keys()).await.context("the API keys cannot be read")?;
    let keys = keys.into_iter().map(|(key, _)| (key.key_id.clone(), key));
    Ok(keys.collect())
}

/// Whether both are equal in every field.
pub(super) fn is_same(one: &ApiKey, other: &ApiKey) -> bool {
    let sum = |key: &ApiKey| {
        let mut checksum = Checksum::default();
        checksum.add_api_key(key);
        checksum.finish()
    };
    sum(one) == sum(other)
}
