//! Projects in SQLite.

mod delete;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim, IdempotencyRecord, Places};
use chatstore_core::ids::ProjectId;
use chatstore_core::page::{Page, PageRequest, PageStart, ProjectPosition};
use chatstore_core::projects::{Project, ProjectPatch, ProjectSettings, ProjectStore, ProjectUsage, TokenSecret};
use chatstore_core::store::StoreError;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::SqliteStore;
use crate::columns::{count_column, id_column, settings_column, time_column, time_column_opt};
use crate::idempotency::{find_record, insert_record};
use crate::writer::{Failure, Kind};

/// The columns of [`project_row`], in its order; `concat!` needs a literal, so it is a macro.
macro_rules! project_columns {
    () => {
        "p.project_id, p.name, p.settings, p.token_secret, p.previous_token_secret, \
         p.previous_token_secret_expires_at, p.created_at, p.updated_at"
    };
}
pub(crate) use project_columns;

const INSERT_PROJECT: &str = "insert into projects (project_id, name, settings, token_secret, previous_token_secret,
        previous_token_secret_expires_at, created_at, updated_at)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const SELECT_PROJECT: &str =
    concat!("select ", project_columns!(), " from projects p where p.project_id = ?1 and p.deleted_at is null");
const SELECT_PROJECT_BY_NAME: &str =
    concat!("select ", project_columns!(), " from projects p where p.name = ?1 and p.deleted_at is null");
const LIST_PROJECTS: &str = concat!(
    "select ",
    project_columns!(),
    " from projects p where p.deleted_at is null order by p.created_at, p.project_id limit ?1 offset ?2"
);
const LIST_PROJECTS_AFTER: &str = concat!(
    "select ",
    project_columns!(),
    " from projects p where p.deleted_at is null and (p.created_at, p.project_id) > (?2, ?3)
    order by p.created_at, p.project_id limit ?1"
);
const UPDATE_PROJECT: &str = "update projects set name = ?2, settings = ?3, updated_at = ?4 where project_id = ?1";
const UPDATE_TOKEN_SECRETS: &str = "update projects
    set token_secret = ?2, previous_token_secret = ?3, previous_token_secret_expires_at = ?4, updated_at = ?5
    where project_id = ?1";
const SUM_USAGE: &str = "select count(*), coalesce(sum(s.message_count), 0), coalesce(sum(s.stored_bytes), 0)
    from projects p cross join sessions s on s.project_id = p.project_id and s.deleted_at is null
    where p.project_id = ?1 and p.deleted_at is null";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    INSERT_PROJECT,
    SELECT_PROJECT,
    SELECT_PROJECT_BY_NAME,
    LIST_PROJECTS_AFTER,
    UPDATE_PROJECT,
    UPDATE_TOKEN_SECRETS,
    SUM_USAGE,
    delete::REVOKE_API_KEYS,
    delete::DELETE_PROJECT,
    delete::LIST_ERASABLE,
    delete::MARK_ERASED,
];
/// These walk an index from its beginning.
#[cfg(test)]
pub(crate) const WALKING_STATEMENTS: &[&str] = &[LIST_PROJECTS, delete::HAS_ERASABLE, delete::SELECT_ERASABLE];

#[async_trait]
impl ProjectStore for SqliteStore {
    async fn create_project(&self, project: Project, claim: Option<&Claim>) -> Result<Answered<Project>, StoreError> {
        let claim = claim.cloned();
        self.writer
            .write(Kind::Plain, bytes(&project), move |connection| {
                if let Some(record) = find_record(connection, claim.as_ref())? {
                    return replay(connection, project, &record).map(Answered::replay);
                }
                let (secret, previous, previous_expires_at) = token_secret_values(&project);
                connection.prepare_cached(INSERT_PROJECT)?.execute(params![
                    project.project_id.as_bytes(),
                    project.name,
                    project.settings.to_text(),
                    secret,
                    previous,
                    previous_expires_at,
                    project.created_at.as_micros(),
                    project.updated_at.as_micros(),
                ])?;
                if let Some(claim) = claim {
                    insert_record(connection, &claim.record(project.project_id.to_string(), Places::default()))?;
                }
                Ok(Answered::first(project))
            })
            .await
    }

    async fn get_project(&self, project_id: ProjectId) -> Result<Option<Project>, StoreError> {
        let map = |row: &Row<'_>| project_row(row, 0);
        self.readers.read(move |reader| reader.query_row(SELECT_PROJECT, params![project_id.as_bytes()], map)).await
    }

    async fn get_project_by_name(&self, name: &str) -> Result<Option<Project>, StoreError> {
        let name = name.to_owned();
        let map = |row: &Row<'_>| project_row(row, 0);
        self.readers.read(move |reader| reader.query_row(SELECT_PROJECT_BY_NAME, params![name], map)).await
    }

    async fn list_projects(
        &self,
        page: &PageRequest<ProjectPosition>,
    ) -> Result<Page<Project, ProjectPosition>, StoreError> {
        let page = page.clone();
        self.readers
            .read(move |reader| {
                let limit = page.limit + 1;
                let map = |row: &Row<'_>| project_row(row, 0);
                let projects = match &page.start {
                    PageStart::Offset(offset) => {
                        let offset = i64::try_from(*offset).unwrap_or(i64::MAX);
                        reader.query(LIST_PROJECTS, params![limit, offset], map, bytes)
                    }
                    PageStart::After(ProjectPosition { created_at, project_id }) => {
                        let params = params![limit, created_at.as_micros(), project_id.as_bytes()];
                        reader.query(LIST_PROJECTS_AFTER, params, map, bytes)
                    }
                };
                let position = |project: &Project| ProjectPosition {
                    created_at: project.created_at,
                    project_id: project.project_id,
                };
                Ok(Page::cut(projects?, page.limit, position))
            })
            .await
    }

    async fn update_project(
        &self,
        project_id: ProjectId,
        patch: ProjectPatch,
        now: Timestamp,
    ) -> Result<Project, StoreError> {
        self.writer
            .write(Kind::Plain, 0, move |connection| {
                let mut project = find_project(connection, project_id)?;
                patch.apply(&mut project, now);
                connection.prepare_cached(UPDATE_PROJECT)?.execute(params![
                    project_id.as_bytes(),
                    project.name,
                    project.settings.to_text(),
                    project.updated_at.as_micros(),
                ])?;
                Ok(project)
            })
            .await
    }

    async fn rotate_token_secret(
        &self,
        project_id: ProjectId,
        secret: Option<TokenSecret>,
        previous_expires_at: Timestamp,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<Project>, StoreError> {
        let claim = claim.cloned();
        self.writer
            .write(Kind::Plain, 0, move |connection| {
                let mut project = find_project(connection, project_id)?;
                if find_record(connection, claim.as_ref())?.is_some() {
                    return Ok(Answered::replay(project));
                }
                project.rotate_token_secret(secret, previous_expires_at, now);
                let (secret, previous, previous_expires_at) = token_secret_values(&project);
                connection.prepare_cached(UPDATE_TOKEN_SECRETS)?.execute(params![
                    project_id.as_bytes(),
                    secret,
                    previous,
                    previous_expires_at,
                    project.updated_at.as_micros(),
                ])?;
                if let Some(claim) = claim {
                    insert_record(connection, &claim.record(project.project_id.to_string(), Places::default()))?;
                }
                Ok(Answered::first(project))
            })
            .await
    }

    async fn delete_project(&self, project_id: ProjectId, now: Timestamp) -> Result<Project, StoreError> {
        self.writer.write(Kind::Plain, 0, move |connection| delete::delete(connection, project_id, now)).await
    }

    async fn erase_deleted_projects(&self, now: Timestamp) -> Result<bool, StoreError> {
        // The server asks again and again; a look is cheaper than a transaction.
        if !self.exists(delete::HAS_ERASABLE, None).await? {
            return Ok(false);
        }
        self.writer.write(Kind::Delete, 0, move |connection| delete::erase_some(connection, now)).await
    }

    async fn get_project_usage(&self, project_id: ProjectId) -> Result<ProjectUsage, StoreError> {
        let usage = |row: &Row<'_>| {
            Ok(ProjectUsage {
                sessions: count_column(row, 0)?,
                messages: count_column(row, 1)?,
                bytes: count_column(row, 2)?,
            })
        };
        let summed = self.readers.read(move |reader| reader.query_row(SUM_USAGE, [project_id.as_bytes()], usage)).await;
        Ok(summed?.unwrap_or_default())
    }
}

/// The project that the request of `record` was answered, made of the same body.
fn replay(connection: &Connection, project: Project, record: &IdempotencyRecord) -> Result<Project, Failure> {
    let found = ProjectId::parse(&record.target).ok_or_else(|| StoreError::internal("a record names no project"))?;
    match find_project(connection, found) {
        Ok(Project { project_id, created_at, .. }) => {
            Ok(Project { project_id, created_at, updated_at: created_at, ..project })
        }
        Err(Failure::Answer(StoreError::NotFound)) => Err(StoreError::Gone.into()),
        Err(failure) => Err(failure),
    }
}

/// The project of this id, unless it is deleted.
fn find_project(connection: &Connection, project_id: ProjectId) -> Result<Project, Failure> {
    let mut statement = connection.prepare_cached(SELECT_PROJECT)?;
    let project = statement.query_row(params![project_id.as_bytes()], |row| project_row(row, 0)).optional()?;
    Ok(project.ok_or(StoreError::NotFound)?)
}

/// Roughly how many bytes it takes.
pub(crate) fn bytes(project: &Project) -> usize {
    let keys = &project.settings.tokens.public_keys;
    512 + project.name.len() + keys.iter().map(|key| key.public_key.len()).sum::<usize>()
}

/// What stands in the columns of the token secrets.
fn token_secret_values(project: &Project) -> (Option<[u8; 32]>, Option<[u8; 32]>, Option<i64>) {
    let previous = project.token_secrets.get(1);
    (
        project.token_secrets.first().map(|secret| secret.bytes),
        previous.map(|secret| secret.bytes),
        previous.and_then(|secret| secret.expires_at).map(Timestamp::as_micros),
    )
}

/// Reads `project_columns!`, of which the first is column `first`.
pub(crate) fn project_row(row: &Row<'_>, first: usize) -> rusqlite::Result<Project> {
    let secret = row.get::<_, Option<[u8; 32]>>(first + 3)?.map(|bytes| TokenSecret { bytes, expires_at: None });
    let expires_at = time_column_opt(row, first + 5)?;
    let previous = row.get::<_, Option<[u8; 32]>>(first + 4)?.map(|bytes| TokenSecret { bytes, expires_at });
    Ok(Project {
        project_id: id_column(row, first)?.into(),
        name: row.get(first + 1)?,
        settings: settings_column(row, first + 2, ProjectSettings::parse)?,
        token_secrets: secret.into_iter().chain(previous).collect(),
        created_at: time_column(row, first + 6)?,
        updated_at: time_column(row, first + 7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{migrated, plan};

    #[test]
    fn what_walks_projects_walks_only_those_it_wants() {
        let connection = migrated();
        for sql in WALKING_STATEMENTS {
            let plan = plan(&connection, sql);
            let index = if *sql == LIST_PROJECTS { "projects_created" } else { "projects_erasable" };
            assert!(plan.iter().any(|step| step.contains(index)), "{sql}: {plan:?}");
            assert!(plan.iter().all(|step| !step.contains("TEMP B-TREE")), "{sql}: {plan:?}");
        }
    }

    #[test]
    fn tombstones_cost_neither_erasing_nor_usage_anything() {
        let connection = migrated();
        for sql in [delete::LIST_ERASABLE, SUM_USAGE] {
            let plan = plan(&connection, sql);
            // The other indexes of projects hold live sessions alone.
            let live = |step: &String| step.starts_with("SEARCH s USING INDEX") && !step.contains("sessions_project ");
            assert!(plan.iter().any(live), "{sql}: {plan:?}");
        }
    }
}
