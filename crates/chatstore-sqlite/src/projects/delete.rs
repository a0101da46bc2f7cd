//! Deleting a project: at once for everybody, and then its sessions, some at a time.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::ERASE_SESSIONS_BATCH;
use chatstore_core::projects::Project;
use rusqlite::{OptionalExtension as _, params};

use super::find_project;
use crate::sessions::{self, SessionRow, session_columns, session_row};
use crate::writer::{Failure, WriteConnection};

/// Names are unique, also beside the rows of deleted projects: the id takes the name's place, behind a character that no
/// name has.
pub(super) const DELETE_PROJECT: &str = "update projects
    set name = char(1) || ?2, settings = '{}', token_secret = null, previous_token_secret = null,
        previous_token_secret_expires_at = null, updated_at = ?3, deleted_at = ?3
    where project_id = ?1";
pub(super) const REVOKE_API_KEYS: &str = "update api_keys set revoked_at = ?2, updated_at = max(updated_at, ?2)
    where project_id = ?1 and revoked_at is null";
pub(super) const HAS_ERASABLE: &str =
    "select exists (select 1 from projects where deleted_at is not null and erased_at is null)";
pub(super) const SELECT_ERASABLE: &str =
    "select project_id from projects where deleted_at is not null and erased_at is null limit 1";
pub(super) const LIST_ERASABLE: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s where s.project_id = ?1 and s.deleted_at is null limit ?2"
);
pub(super) const MARK_ERASED: &str = "update projects set erased_at = ?2 where project_id = ?1";

/// Deletes the project, and gives it as it was.
pub(super) fn delete(connection: &WriteConnection, project_id: ProjectId, now: Timestamp) -> Result<Project, Failure> {
    if project_id == ProjectId::DEFAULT {
        return Err(Project::default_stays().into());
    }
    let project = find_project(connection, project_id)?;
    let at = now.max(project.updated_at).as_micros();
    let params = params![project_id.as_bytes(), project_id.to_string(), at];
    connection.prepare_cached(DELETE_PROJECT)?.execute(params)?;
    connection.prepare_cached(REVOKE_API_KEYS)?.execute(params![project_id.as_bytes(), now.as_micros()])?;
    Ok(project)
}

/// Deletes some sessions of one deleted project; tells whether there was a project to look at.
pub(super) fn erase_some(connection: &WriteConnection, now: Timestamp) -> Result<bool, Failure> {
    let project_id = connection.prepare_cached(SELECT_ERASABLE)?.query_row((), |row| row.get::<_, [u8; 16]>(0));
    let Some(project_id) = project_id.optional()? else {
        return Ok(false);
    };
    let mut statement = connection.prepare_cached(LIST_ERASABLE)?;
    let rows = statement.query_map(params![project_id, ERASE_SESSIONS_BATCH], session_row)?;
    let rows = rows.collect::<rusqlite::Result<Vec<SessionRow>>>()?;
    for row in &rows {
        sessions::delete(connection, row, now)?;
    }
    if rows.len() < ERASE_SESSIONS_BATCH as usize {
        connection.prepare_cached(MARK_ERASED)?.execute(params![project_id, now.as_micros()])?;
    }
    Ok(true)
}
