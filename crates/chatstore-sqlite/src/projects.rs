//! Projects in SQLite.

use async_trait::async_trait;
use chatstore_core::projects::{Project, ProjectStore};
use chatstore_core::store::StoreError;
use rusqlite::{Row, params};

use crate::SqliteStore;
use crate::columns::{id_column, time_column};
use crate::writer::Kind;

const INSERT_PROJECT: &str = "insert into projects (project_id, name, created_at) values (?1, ?2, ?3)";
const SELECT_PROJECT: &str = "select project_id, name, created_at from projects where name = ?1";
const LIST_PROJECTS: &str = "select project_id, name, created_at from projects order by created_at, project_id";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[INSERT_PROJECT, SELECT_PROJECT, LIST_PROJECTS];

#[async_trait]
impl ProjectStore for SqliteStore {
    async fn create_project(&self, project: Project) -> Result<Project, StoreError> {
        self.writer
            .write(Kind::Plain, project.name.len(), move |connection| {
                connection.prepare_cached(INSERT_PROJECT)?.execute(params![
                    project.project_id.as_bytes(),
                    project.name,
                    project.created_at.as_micros()
                ])?;
                Ok(project)
            })
            .await
    }

    async fn get_project(&self, name: &str) -> Result<Option<Project>, StoreError> {
        let name = name.to_owned();
        self.readers.read(move |reader| reader.query_row(SELECT_PROJECT, params![name], project_row)).await
    }

    async fn list_projects(&self) -> Result<Vec<Project>, StoreError> {
        let bytes = |project: &Project| project.name.len();
        self.readers.read(move |reader| reader.query(LIST_PROJECTS, (), project_row, bytes)).await
    }
}

fn project_row(row: &Row<'_>) -> rusqlite::Result<Project> {
    Ok(Project { project_id: id_column(row, 0)?.into(), name: row.get(1)?, created_at: time_column(row, 2)? })
}
