//! Projects in PostgreSQL.

mod erase;

use async_trait::async_trait;
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim, IdempotencyRecord};
use chatstore_core::ids::ProjectId;
use chatstore_core::page::{Page, PageRequest, PageStart, ProjectPosition};
use chatstore_core::projects::{Project, ProjectPatch, ProjectSettings, ProjectStore, ProjectUsage, TokenSecret};
use chatstore_core::store::StoreError;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::PostgresStore;
use crate::api_keys::revoke_keys_of_project;
use crate::columns::{time_column, time_column_opt};
use crate::idempotency::claim_first;
use crate::params::params;
use crate::pool::{Db, Failure};

/// The columns of [`project_row`], in its order; `concat!` needs a literal, so it is a macro.
macro_rules! project_columns {
    () => {
        "p.project_id, p.name, p.settings, p.token_secret, p.previous_token_secret, \
         p.previous_token_secret_expires_at, p.created_at, p.updated_at"
    };
}
pub(crate) use project_columns;

/// Whether a project that is named by its key is not deleted: as `is_live` of sessions, in a form that no partial
/// index fits.
macro_rules! is_live_project {
    () => {
        "num_nulls(p.deleted_at) = 1"
    };
}
pub(crate) use is_live_project;

const INSERT_PROJECT: &str = "insert into projects (project_id, name, settings, token_secret, previous_token_secret,
        previous_token_secret_expires_at, created_at, updated_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8)";
const SELECT_PROJECT: &str =
    concat!("select ", project_columns!(), " from projects p where p.project_id = $1 and ", is_live_project!());
const SELECT_PROJECT_BY_NAME: &str =
    concat!("select ", project_columns!(), " from projects p where p.name = $1 and ", is_live_project!());
pub(crate) const LIST_PROJECTS: &str = concat!(
    "select ",
    project_columns!(),
    " from projects p where p.deleted_at is null and (p.created_at, p.project_id) > ($1, $2)
    order by p.created_at, p.project_id limit $3 offset $4"
);
const LOCK_PROJECT: &str = concat!(
    "select ",
    project_columns!(),
    " from projects p where p.project_id = $1 and ",
    is_live_project!(),
    " for no key update"
);
/// Waits for whoever makes a key in it, and lets nobody begin.
const LOCK_PROJECT_TO_DELETE: &str = concat!(
    "select ",
    project_columns!(),
    " from projects p where p.project_id = $1 and ",
    is_live_project!(),
    " for update"
);
const KEEP_PROJECT: &str =
    concat!("select 1 from projects p where p.project_id = $1 and ", is_live_project!(), " for key share");
const UPDATE_PROJECT: &str = "update projects set name = $2, settings = $3, updated_at = $4 where project_id = $1";
const UPDATE_TOKEN_SECRETS: &str = "update projects
    set token_secret = $2, previous_token_secret = $3, previous_token_secret_expires_at = $4, updated_at = $5
    where project_id = $1";
/// Names are unique, also beside the rows of deleted projects: the id takes the name's place, behind a character that no
/// name has.
const DELETE_PROJECT: &str = "update projects
    set name = chr(1) || project_id::text, settings = '{}', token_secret = null, previous_token_secret = null,
        previous_token_secret_expires_at = null, updated_at = $2, deleted_at = $2
    where project_id = $1";
pub(crate) const SUM_SESSIONS: &str = concat!(
    "select count(*), coalesce(sum(message_count), 0)::bigint, coalesce(sum(stored_bytes), 0)::bigint
    from sessions where project_id = $1 and deleted_at is null
        and exists (select from projects p where p.project_id = $1 and ",
    is_live_project!(),
    ")"
);

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    INSERT_PROJECT,
    SELECT_PROJECT,
    SELECT_PROJECT_BY_NAME,
    LIST_PROJECTS,
    LOCK_PROJECT,
    LOCK_PROJECT_TO_DELETE,
    KEEP_PROJECT,
    UPDATE_PROJECT,
    UPDATE_TOKEN_SECRETS,
    DELETE_PROJECT,
    SUM_SESSIONS,
    erase::CLAIM_PROJECT,
    erase::LOCK_SESSIONS,
    erase::UPDATE_ERASED,
];

#[async_trait]
impl ProjectStore for PostgresStore {
    async fn create_project(&self, project: Project, claim: Option<&Claim>) -> Result<Answered<Project>, StoreError> {
        self.pool
            .write((project, claim.cloned()), async |db, input| {
                let (project, claim) = &*input;
                if let Some(record) = claim_first(&db, claim.as_ref(), project.project_id.to_string()).await? {
                    let project_id = find_claimed(&db, &record).await?.project_id;
                    let (created_at, updated_at) = (record.created_at, record.created_at);
                    return Ok(Answered::replay(Project { project_id, created_at, updated_at, ..project.clone() }));
                }
                let (current, previous) = secrets(project);
                let params = params![
                    project.project_id.uuid(),
                    project.name.as_str(),
                    project.settings.to_text(),
                    current,
                    previous.map(|secret| secret.bytes.as_slice()),
                    previous.and_then(|secret| secret.expires_at).map(Timestamp::as_micros),
                    project.created_at.as_micros(),
                    project.updated_at.as_micros(),
                ];
                db.execute(INSERT_PROJECT, params).await?;
                Ok(Answered::first(project.clone()))
            })
            .await
    }

    async fn get_project(&self, project_id: ProjectId) -> Result<Option<Project>, StoreError> {
        self.pool.read(project_id, async |db, project_id| find(&db, SELECT_PROJECT, *project_id).await).await
    }

    async fn get_project_by_name(&self, name: &str) -> Result<Option<Project>, StoreError> {
        self.pool
            .read(name, async |db, name| {
                let row = db.query_opt(SELECT_PROJECT_BY_NAME, params![*name]).await?;
                row.map(|row| project_row(&row, 0)).transpose()
            })
            .await
    }

    async fn list_projects(
        &self,
        page: &PageRequest<ProjectPosition>,
    ) -> Result<Page<Project, ProjectPosition>, StoreError> {
        let projects = self.pool.read(page, async |db, page| list(&db, &page).await).await?;
        let position =
            |project: &Project| ProjectPosition { created_at: project.created_at, project_id: project.project_id };
        Ok(Page::cut(projects, page.limit, position))
    }

    async fn update_project(
        &self,
        project_id: ProjectId,
        patch: ProjectPatch,
        now: Timestamp,
    ) -> Result<Project, StoreError> {
        self.pool
            .write((project_id, patch, now), async |db, input| {
                let (project_id, patch, now) = &*input;
                let mut project = find(&db, LOCK_PROJECT, *project_id).await?.ok_or(StoreError::NotFound)?;
                patch.clone().apply(&mut project, *now);
                let params = params![
                    project_id.uuid(),
                    project.name.as_str(),
                    project.settings.to_text(),
                    project.updated_at.as_micros(),
                ];
                db.execute(UPDATE_PROJECT, params).await?;
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
        self.pool
            .write((project_id, secret, previous_expires_at, now, claim.cloned()), async |db, input| {
                let (project_id, secret, previous_expires_at, now, claim) = &*input;
                let (project_id, previous_expires_at, now) = (*project_id, *previous_expires_at, *now);
                if claim_first(&db, claim.as_ref(), project_id.to_string()).await?.is_some() {
                    let project = find(&db, SELECT_PROJECT, project_id).await?;
                    return Ok(Answered::replay(project.ok_or(StoreError::NotFound)?));
                }
                let mut project = find(&db, LOCK_PROJECT, project_id).await?.ok_or(StoreError::NotFound)?;
                project.rotate_token_secret(*secret, previous_expires_at, now);
                let (current, previous) = secrets(&project);
                let params = params![
                    project_id.uuid(),
                    current,
                    previous.map(|secret| secret.bytes.as_slice()),
                    previous.and_then(|secret| secret.expires_at).map(Timestamp::as_micros),
                    project.updated_at.as_micros(),
                ];
                db.execute(UPDATE_TOKEN_SECRETS, params).await?;
                Ok(Answered::first(project))
            })
            .await
    }

    async fn delete_project(&self, project_id: ProjectId, now: Timestamp) -> Result<Project, StoreError> {
        if project_id == ProjectId::DEFAULT {
            return Err(Project::default_stays());
        }
        self.pool
            .write((project_id, now), async |db, input| {
                let (project_id, now) = *input;
                let project = find(&db, LOCK_PROJECT_TO_DELETE, project_id).await?.ok_or(StoreError::NotFound)?;
                let at = project.updated_at.max(now);
                revoke_keys_of_project(&db, project_id, at).await?;
                db.execute(DELETE_PROJECT, params![project_id.uuid(), at.as_micros()]).await?;
                Ok(project)
            })
            .await
    }

    async fn erase_deleted_projects(&self, now: Timestamp) -> Result<bool, StoreError> {
        let more = self.pool.write(now, async |db, now| erase::erase_some(&db, *now).await).await;
        self.eraser.waker().notify_one();
        more
    }

    async fn get_project_usage(&self, project_id: ProjectId) -> Result<ProjectUsage, StoreError> {
        self.pool
            .read(project_id, async |db, project_id| {
                let row = db.query_opt(SUM_SESSIONS, params![project_id.uuid()]).await?;
                let row = row.ok_or_else(|| StoreError::internal("a sum without an answer"))?;
                let number = |column| Ok::<_, Failure>(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or(0));
                Ok(ProjectUsage { sessions: number(0)?, messages: number(1)?, bytes: number(2)? })
            })
            .await
    }
}

/// Holds a project until the transaction ends, so that no key is made in one that is deleted at the same moment: who
/// deletes it waits, and then finds what was made. `NotFound` if there is no such project.
pub(crate) async fn keep_project(db: &Db, project_id: ProjectId) -> Result<(), Failure> {
    let row = db.query_opt(KEEP_PROJECT, params![project_id.uuid()]).await?;
    row.map(drop).ok_or_else(|| StoreError::NotFound.into())
}

/// The project of a request that comes again, as it is now.
async fn find_claimed(db: &Db, record: &IdempotencyRecord) -> Result<Project, Failure> {
    let damaged = || StoreError::internal("a record cannot be read");
    let project_id = ProjectId::parse(&record.target).ok_or_else(damaged)?;
    Ok(find(db, SELECT_PROJECT, project_id).await?.ok_or(StoreError::Gone)?)
}

async fn find(db: &Db, sql: &str, project_id: ProjectId) -> Result<Option<Project>, Failure> {
    let row = db.query_opt(sql, params![project_id.uuid()]).await?;
    row.map(|row| project_row(&row, 0)).transpose()
}

async fn list(db: &Db, page: &PageRequest<ProjectPosition>) -> Result<Vec<Project>, Failure> {
    let (created_at, project_id, offset) = match page.start {
        PageStart::Offset(offset) => (i64::MIN, Uuid::nil(), i64::try_from(offset).unwrap_or(i64::MAX)),
        PageStart::After(position) => (position.created_at.as_micros(), position.project_id.uuid(), 0),
    };
    let params = params![created_at, project_id, i64::from(page.limit) + 1, offset];
    db.query(LIST_PROJECTS, params).await?.iter().map(|row| project_row(row, 0)).collect()
}

/// The secret in use, and the one before.
fn secrets(project: &Project) -> (Option<&[u8]>, Option<&TokenSecret>) {
    (project.token_secrets.first().map(|secret| secret.bytes.as_slice()), project.token_secrets.get(1))
}

/// Reads a row that holds `project_columns!` from column `first` on.
pub(crate) fn project_row(row: &Row, first: usize) -> Result<Project, Failure> {
    let mut token_secrets = Vec::new();
    for (column, expires_at) in [(first + 3, None), (first + 4, time_column_opt(row, first + 5)?)] {
        if let Some(bytes) = row.try_get::<_, Option<&[u8]>>(column)? {
            let bytes = bytes.try_into().map_err(|_| StoreError::internal("a stored secret has not 32 bytes"))?;
            token_secrets.push(TokenSecret { bytes, expires_at });
        }
    }
    Ok(Project {
        project_id: row.try_get::<_, Uuid>(first)?.into(),
        name: row.try_get(first + 1)?,
        settings: ProjectSettings::parse(row.try_get(first + 2)?)?,
        token_secrets,
        created_at: time_column(row, first + 6)?,
        updated_at: time_column(row, first + 7)?,
    })
}
