//! What every engine does with projects.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::conformance::TestStore;
use crate::ids::ProjectId;
use crate::projects::{DEFAULT_PROJECT, Project};
use crate::store::StoreError;

pub async fn the_default_project_is_there(t: TestStore) {
    let project = t.store.get_project(DEFAULT_PROJECT).await.unwrap().unwrap();
    assert_eq!((project.project_id, project.name.as_str()), (ProjectId::DEFAULT, DEFAULT_PROJECT));
}

pub async fn create_project_stores_it_and_get_project_finds_it(t: TestStore) {
    let created_at = t.ctx.now();
    let project = Project { project_id: t.ctx.new_project_id(created_at), name: "Pröjekt 2".to_owned(), created_at };
    assert_eq!(t.store.create_project(project.clone()).await.unwrap(), project);
    assert_eq!(t.store.get_project("Pröjekt 2").await.unwrap(), Some(project));
    for absent in ["", "pröjekt 2", "Pröjekt"] {
        assert_eq!(t.store.get_project(absent).await.unwrap(), None, "{absent}");
    }
}

pub async fn create_project_with_a_taken_name_is_a_conflict(t: TestStore) {
    let created_at = t.ctx.now();
    let project = Project { project_id: t.ctx.new_project_id(created_at), name: "other".to_owned(), created_at };
    assert_eq!(t.store.create_project(project).await, Err(StoreError::Conflict { field: "name" }));
    assert_eq!(t.store.get_project("other").await.unwrap().unwrap().project_id, t.other.project_id);
}
