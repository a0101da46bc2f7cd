//! What stands above tenants: projects and API keys.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail};
use chatstore_core::api_keys::{ApiKey, ApiKeyPatch, Authority, KeyDigest};
use chatstore_core::archive::Checksum;
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::{Project, ProjectPatch, ProjectSettings};
use chatstore_core::store::{Store, StoreError};

use super::Ends;
use crate::pages;
use crate::patience::{Patience, patiently};

/// Conflicts that a refusal names.
const CONFLICTS_SHOWN: usize = 10;

/// What the target lacks.
#[derive(Default)]
pub(super) struct Missing {
    projects: Vec<Project>,
    keys: Vec<ApiKey>,
    /// What was changed at the source after it was copied: as it is here, and as it is there.
    changed_projects: Vec<(Project, Project)>,
    changed_keys: Vec<(ApiKey, ApiKey)>,
    uses: Vec<(String, Timestamp)>,
}

/// Compares both ends; refuses if the target gave a name or id to something else, or changed it.
pub(super) async fn missing(ends: &Ends) -> anyhow::Result<Missing> {
    let mut missing = Missing::default();
    let mut conflicts = Vec::new();
    let there = projects(ends.target.as_ref()).await?;
    let names: HashMap<&str, ProjectId> = there.values().map(|p| (p.name.as_str(), p.project_id)).collect();
    for project in projects(ends.source.as_ref()).await?.into_values() {
        let Project { project_id, name, .. } = &project;
        let holder = names.get(name.as_str()).filter(|holder| *holder != project_id);
        match (there.get(project_id), holder) {
            (_, Some(holder)) => conflicts
                .push(format!("project `{name}` has the id {project_id} at the source and {holder} at the target")),
            (None, None) => missing.projects.push(project),
            (Some(known), None) if comparable(known) == comparable(&project) => {}
            (Some(known), None) if can_become(known, &project) => {
                missing.changed_projects.push((project, known.clone()));
            }
            (Some(known), None) if known.name != *name => conflicts.push(format!(
                "project {project_id} is named `{name}` at the source and `{}` at the target",
                known.name
            )),
            (Some(_), None) => conflicts.push(format!("project `{name}` differs at the target")),
        }
    }
    let there = api_keys(ends.target.as_ref()).await?;
    for key in api_keys(ends.source.as_ref()).await?.into_values() {
        let Some(known) = there.get(&key.key_id) else {
            missing.keys.push(key);
            continue;
        };
        if key.last_used_at > known.last_used_at {
            missing.uses.extend(key.last_used_at.map(|at| (key.key_id.clone(), at)));
        }
        if is_same(&key, known) {
            continue;
        }
        match changes(known, &key) {
            Some(_) => missing.changed_keys.push((key, known.clone())),
            None => conflicts.push(format!("API key {} (`{}`) differs at the target", key.key_id, key.name)),
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
    /// Whether the target lacks nothing.
    pub(super) fn is_nothing(&self) -> bool {
        let Self { projects, keys, changed_projects, changed_keys, uses } = self;
        projects.is_empty()
            && keys.is_empty()
            && changed_projects.is_empty()
            && changed_keys.is_empty()
            && uses.is_empty()
    }

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
        let target = ends.target.as_ref();
        for (project, known) in self.changed_projects {
            store_project(target, project, &known).await?;
        }
        for project in self.projects {
            target.create_project(project, None).await?;
        }
        for key in self.keys {
            target.create_api_key(key, None).await?;
        }
        for (key, known) in self.changed_keys {
            for change in changes(&known, &key).unwrap_or_default() {
                change.store(target, &key.key_id).await?;
            }
        }
        target.note_api_key_uses(self.uses).await
    }
}

/// Whether the project was changed at the source alone. The default project is made with each schema, at its own time.
fn can_become(known: &Project, project: &Project) -> bool {
    let is_untouched = known.project_id == ProjectId::DEFAULT && known.updated_at == known.created_at;
    let is_own = known.project_id == ProjectId::DEFAULT || known.created_at == project.created_at;
    is_own && (is_untouched || known.updated_at < project.updated_at)
}

/// Makes the project at the target what it is at the source.
async fn store_project(target: &dyn Store, project: Project, known: &Project) -> Result<(), StoreError> {
    // The date that says it is done comes last.
    let (id, now) = (project.project_id, project.created_at);
    if project.token_secrets != known.token_secrets {
        target.rotate_token_secret(id, None, now, now, None).await?;
        // The oldest first, so that the newest stands in front of it.
        for secret in project.token_secrets.iter().rev() {
            let kept_until = project.token_secrets.last().and_then(|last| last.expires_at).unwrap_or(now);
            target.rotate_token_secret(id, Some(*secret), kept_until, now, None).await?;
        }
    }
    let ProjectSettings { limits, total_limit, quotas, tokens } = project.settings;
    let patch = ProjectPatch {
        name: Some(project.name),
        limits: Some(limits),
        total_limit: Some(total_limit),
        quotas: Some(quotas),
        tokens: Some(tokens),
    };
    target.update_project(id, patch, project.updated_at).await?;
    Ok(())
}

/// A step from a key as it was copied to the key as it is at the source.
enum Change {
    Rotate { digest: KeyDigest, previous_expires_at: Timestamp, now: Timestamp },
    Update { patch: ApiKeyPatch, now: Timestamp },
    Revoke { now: Timestamp },
}

impl Change {
    async fn store(self, target: &dyn Store, key_id: &str) -> Result<(), StoreError> {
        let host = Authority::host();
        match self {
            Self::Rotate { digest, previous_expires_at, now } => {
                target.rotate_api_key(&host, key_id, digest, previous_expires_at, now, None).await?.value
            }
            Self::Update { patch, now } => target.update_api_key(&host, key_id, patch, now).await?,
            Self::Revoke { now } => target.revoke_api_key(&host, key_id, now).await?,
        };
        Ok(())
    }
}

/// The steps from `known` to `key`; nothing if none lead there, for `known` was changed at the target or is another key.
fn changes(known: &ApiKey, key: &ApiKey) -> Option<Vec<Change>> {
    let is_revoked_alone = is_same(&ApiKey { revoked_at: key.revoked_at, ..known.clone() }, key);
    if known.updated_at >= key.updated_at && !is_revoked_alone {
        return None;
    }
    let mut changes = Vec::new();
    let mut after = known.clone();
    // The date that says it is done comes last.
    let now = key.created_at;
    let mut rotate = |digest: KeyDigest, previous_expires_at: Timestamp| {
        after.rotate(digest, previous_expires_at, now);
        changes.push(Change::Rotate { digest, previous_expires_at, now });
    };
    if !key.digest.matches(&known.digest) {
        match key.previous {
            Some(previous) => {
                // It may have been rotated more than once.
                if !previous.digest.matches(&known.digest) {
                    rotate(previous.digest, now);
                }
                rotate(key.digest, previous.expires_at);
            }
            None => rotate(key.digest, now),
        }
    }
    let settings = key.settings.clone();
    let patch = ApiKeyPatch {
        name: Some(key.name.clone()),
        scopes: Some(key.scopes),
        expires_at: Some(key.expires_at),
        limits: Some(settings.limits),
        limits_by_operator: Some(settings.limits_by_operator),
        allowed_origins: Some(settings.allowed_origins),
        allowed_addresses: Some(settings.allowed_addresses),
    };
    patch.clone().apply(&mut after, key.updated_at);
    changes.push(Change::Update { patch, now: key.updated_at });
    if let (None, Some(now)) = (known.revoked_at, key.revoked_at) {
        after.revoked_at = Some(now);
        after.updated_at = after.updated_at.max(now);
        changes.push(Change::Revoke { now });
    }
    is_same(&after, key).then_some(changes)
}

/// All projects by their ids.
pub(super) async fn projects(store: &dyn Store) -> anyhow::Result<BTreeMap<ProjectId, Project>> {
    let found = pages::all(async |page| patiently(|| store.list_projects(&page)).await).await;
    let found = found.context("the projects cannot be read")?;
    Ok(found.into_iter().map(|project| (project.project_id, project)).collect())
}

/// A project as it should be at both ends. The default project is made with each schema and keeps the dates of its own,
/// so they are left out.
pub(super) fn comparable(project: &Project) -> Project {
    let mut project = project.clone();
    if project.project_id == ProjectId::DEFAULT {
        project.created_at = Timestamp::from_micros(0).expect("1970 is in range");
        project.updated_at = project.created_at;
    }
    project
}

/// All keys by their ids.
pub(super) async fn api_keys(store: &dyn Store) -> anyhow::Result<BTreeMap<String, ApiKey>> {
    let found = pages::all(async |page| patiently(|| store.list_api_keys(None, &page)).await).await;
    let found = found.context("the API keys cannot be read")?;
    Ok(found.into_iter().map(|(key, _)| (key.key_id.clone(), key)).collect())
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
