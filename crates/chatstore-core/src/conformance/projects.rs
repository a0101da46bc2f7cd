//! What every engine does with projects.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::clock::Timestamp;
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

pub async fn list_projects_is_oldest_first(t: TestStore) {
    let before = t.store.list_projects().await.unwrap();
    let mut names: Vec<&str> = before.iter().map(|project| project.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [DEFAULT_PROJECT, "other"]);
    // Two of one moment, both older than the two that are there.
    let created_at = Timestamp::from_micros(1).unwrap();
    let mut made = ["b", "a", "B"].map(|name| Project {
        project_id: t.ctx.new_project_id(created_at),
        name: name.to_owned(),
        created_at,
    });
    made[2].created_at = created_at.plus_micros(-1);
    for project in &made {
        t.store.create_project(project.clone()).await.unwrap();
    }
    let expected = [made.to_vec(), before].concat();
    let mut sorted = expected.clone();
    sorted.sort_by_key(|project| (project.created_at, project.project_id));
    assert_ne!(sorted, expected);
    assert_eq!(t.store.list_projects().await.unwrap(), sorted);
}
