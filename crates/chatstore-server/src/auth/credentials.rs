//! Keys and projects as they were a moment ago, and as they are.

use std::sync::Arc;

use chatstore_core::api_keys::{ApiKey, PresentedKey};
use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::Project;
use chatstore_core::store::{Store, StoreError};

/// A key with its project.
#[derive(Debug)]
pub struct KnownKey {
    /// The key.
    pub key: ApiKey,
    /// Its project.
    pub project: Arc<Project>,
}

/// Looks keys and projects up.
pub struct Credentials {
    store: Arc<dyn Store>,
    ctx: Ctx,
}

impl Credentials {
    /// Knows nothing yet.
    pub fn new(store: Arc<dyn Store>, ctx: Ctx) -> Self {
        Self { store, ctx }
    }

    /// The stored key that `presented` is now, if it is one.
    pub async fn key(&self, presented: &PresentedKey) -> Result<Option<Arc<KnownKey>>, StoreError> {
        let now = self.ctx.now();
        let found = self.store.get_api_key(presented.key_id()).await?;
        let valid = found.filter(|(key, _)| key.accepts(&presented.digest(), now) && key.is_active(now));
        Ok(valid.map(|(key, project)| Arc::new(KnownKey { key, project: Arc::new(project) })))
    }

    /// The project of this id.
    pub async fn project(&self, project_id: ProjectId) -> Result<Option<Arc<Project>>, StoreError> {
        Ok(self.store.get_project(project_id).await?.map(Arc::new))
    }

    /// Forgets a key that was changed here.
    pub fn forget_key(&self, _key_id: &str) {}

    /// Forgets a project that was changed here, and its keys.
    pub fn forget_project(&self, _project_id: ProjectId) {}
}
