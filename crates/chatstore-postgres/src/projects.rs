//! Projects in PostgreSQL.

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::page::{Page, PageRequest, ProjectPosition};
use chatstore_core::projects::{Project, ProjectPatch, ProjectStore, ProjectUsage, TokenSecret};
use chatstore_core::store::StoreError;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::columns::time_column;
use crate::params::params;
use crate::pool::Failure;

const INSERT_PROJECT: &str = "insert into projects (project_id, name, created_at) values ($1, $2, $3)";
const SELECT_PROJECT: &str = "select project_id, name, created_at from projects where name = $1";
const LIST_PROJECTS: &str = "select project_id, name, created_at from projects order by created_at, project_id";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[INSERT_PROJECT, SELECT_PROJECT, LIST_PROJECTS];

#[async_trait]
impl ProjectStore for PostgresStore {
    async fn create_project(&self, project: Project) -> Result<Project, StoreError> {
        self.pool
            .write(project, async |db, project| {
                let values = params![project.project_id.uuid(), project.name.as_str(), project.created_at.as_micros()];
                db.execute(INSERT_PROJECT, values).await?;
                Ok(Project::clone(&project))
            })
            .await
    }

    async fn get_project(&self, _project_id: ProjectId) -> Result<Option<Project>, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn get_project_by_name(&self, _name: &str) -> Result<Option<Project>, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn list_projects(
        &self,
        _page: &PageRequest<ProjectPosition>,
    ) -> Result<Page<Project, ProjectPosition>, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn update_project(
        &self,
        _project_id: ProjectId,
        _patch: ProjectPatch,
        _now: Timestamp,
    ) -> Result<Project, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn rotate_token_secret(
        &self,
        _project_id: ProjectId,
        _secret: Option<TokenSecret>,
        _previous_expires_at: Timestamp,
        _now: Timestamp,
    ) -> Result<Project, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn delete_project(&self, _project_id: ProjectId, _now: Timestamp) -> Result<Project, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn erase_deleted_projects(&self, _now: Timestamp) -> Result<bool, StoreError> {
        Err(StoreError::internal("to be built"))
    }

    async fn get_project_usage(&self, _project_id: ProjectId) -> Result<ProjectUsage, StoreError> {
        Err(StoreError::internal("to be built"))
    }
}

fn project_row(row: &Row) -> Result<Project, Failure> {
    Ok(Project::new(row.try_get::<_, Uuid>(0)?.into(), row.try_get::<_, String>(1)?, time_column(row, 2)?))
}
