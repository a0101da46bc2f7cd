//! Projects in PostgreSQL.

use async_trait::async_trait;
use chatstore_core::projects::{Project, ProjectStore};
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

    async fn get_project(&self, name: &str) -> Result<Option<Project>, StoreError> {
        self.pool
            .read(name, async |db, name| {
                db.query_opt(SELECT_PROJECT, params![*name]).await?.as_ref().map(project_row).transpose()
            })
            .await
    }

    async fn list_projects(&self) -> Result<Vec<Project>, StoreError> {
        self.pool.read((), async |db, _| db.query(LIST_PROJECTS, &[]).await?.iter().map(project_row).collect()).await
    }
}

fn project_row(row: &Row) -> Result<Project, Failure> {
    Ok(Project {
        project_id: row.try_get::<_, Uuid>(0)?.into(),
        name: row.try_get(1)?,
        created_at: time_column(row, 2)?,
    })
}
