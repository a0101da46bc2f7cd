//! Projects: the tenants. Every row belongs to one.

use async_trait::async_trait;

use crate::clock::Timestamp;
use crate::ids::ProjectId;
use crate::store::StoreError;

/// Name of the project that `API_KEY` speaks for.
pub const DEFAULT_PROJECT: &str = "default";

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its id.
    pub project_id: ProjectId,
    /// Its name, unique in the installation.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a store does with projects. These calls stand above tenants and are for operators.
#[async_trait]
pub trait ProjectStore: Send + Sync {
    /// Stores a project; [`StoreError::Conflict`] if the name is taken.
    async fn create_project(&self, project: Project) -> Result<Project, StoreError>;

    /// The project of this name.
    async fn get_project(&self, name: &str) -> Result<Option<Project>, StoreError>;

    /// All projects, oldest first; those made at one moment by their ids.
    async fn list_projects(&self) -> Result<Vec<Project>, StoreError>;
}
