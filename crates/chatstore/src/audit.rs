//! What commands did, in the audit log; and `chatstore audit export`.

mod export;

use anyhow::Context as _;
use chatstore_core::api_keys::ApiKey;
use chatstore_core::audit::{Actor, AuditEvent};
use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::Project;
use chatstore_core::store::{Store, StoreError};

pub(crate) use export::{AuditAction, audit};

use crate::patience::patiently;

/// The action of `chatstore copy`.
pub(crate) const COPY: &str = "copy";

/// What a command does, and to what.
pub(crate) struct Deed {
    /// The project it concerns; the default one as long as no other is known.
    project_id: ProjectId,
    /// The id of what it is done to.
    target_id: Option<String>,
    stage: Stage,
}

/// How far a deed has come.
#[derive(Clone, Copy)]
enum Stage {
    /// Nothing is done but by the one step that its error tells of.
    Ahead,
    /// Some of many steps may be done.
    Begun,
    /// It is done, whatever fails now.
    Done,
}

impl Deed {
    pub(crate) fn new() -> Self {
        Self { project_id: ProjectId::DEFAULT, target_id: None, stage: Stage::Ahead }
    }

    /// It is meant for what has this id, if there is such a thing.
    pub(crate) fn is_meant_for(&mut self, target_id: &str) {
        self.target_id = Some(target_id.to_owned());
    }

    /// It is done to a project.
    pub(crate) fn concerns(&mut self, project: &Project) {
        self.project_id = project.project_id;
        self.target_id = Some(project.project_id.to_string());
    }

    /// It is done to a key.
    pub(crate) fn concerns_key(&mut self, key: &ApiKey) {
        self.project_id = key.project_id;
        self.target_id = Some(key.key_id.clone());
    }

    /// From now on a part of it may be done.
    pub(crate) fn has_begun(&mut self) {
        self.stage = Stage::Begun;
    }

    /// It is done: what is left is to tell it.
    pub(crate) fn is_done(&mut self) {
        self.stage = Stage::Done;
    }

    /// `failed` only where nothing can have happened.
    fn outcome<T>(&self, result: &anyhow::Result<T>) -> &'static str {
        match (self.stage, result) {
            (_, Ok(_)) | (Stage::Done, _) => "ok",
            (Stage::Begun, Err(_)) => "unknown",
            (Stage::Ahead, Err(error)) => match error.downcast_ref() {
                Some(StoreError::Busy | StoreError::Unavailable { .. } | StoreError::Internal { .. }) => "unknown",
                _ => "failed",
            },
        }
    }
}

/// Does something that rules or destroys, and notes in the audit log what came of it. `work` says whom it concerns as
/// soon as it knows, and shows a secret itself: a note that fails must not keep it back.
pub(crate) async fn audited<T>(
    store: &dyn Store,
    ctx: &Ctx,
    action: &str,
    work: impl AsyncFnOnce(&mut Deed) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut deed = Deed::new();
    let result = work(&mut deed).await;
    note(store, ctx, action, deed, result).await
}

/// Notes what came of `action`; gives `result` back, or that it could not be noted.
pub(crate) async fn note<T>(
    store: &dyn Store,
    ctx: &Ctx,
    action: &str,
    deed: Deed,
    result: anyhow::Result<T>,
) -> anyhow::Result<T> {
    let now = ctx.now();
    let outcome = deed.outcome(&result);
    let event = AuditEvent {
        event_id: ctx.new_audit_event_id(now),
        project_id: deed.project_id,
        created_at: now,
        actor: Actor::Command,
        actor_id: None,
        user_id: None,
        action: action.to_owned(),
        target_id: deed.target_id,
        outcome: outcome.to_owned(),
        address: None,
        request_id: None,
    };
    let noted = patiently(|| store.append_audit_events(vec![event.clone()])).await;
    let done = result?;
    noted.with_context(|| format!("`{action}` is done, but it could not be noted in the audit log"))?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn only_what_cannot_have_happened_has_failed() {
        let away = || StoreError::Unavailable { reason: "gone".to_owned() };
        let outcome = |stage, error: anyhow::Error| Deed { stage, ..Deed::new() }.outcome(&Err::<(), _>(error));
        assert_eq!(Deed::new().outcome(&Ok(())), "ok");
        assert_eq!(outcome(Stage::Done, anyhow!("standard output is full")), "ok");
        assert_eq!(outcome(Stage::Ahead, anyhow!("there is no such key")), "failed");
        assert_eq!(outcome(Stage::Ahead, StoreError::Full.into()), "failed");
        assert_eq!(outcome(Stage::Ahead, away().into()), "unknown");
        assert_eq!(outcome(Stage::Ahead, anyhow!(away()).context("the key was not stored")), "unknown");
        assert_eq!(outcome(Stage::Begun, StoreError::Full.into()), "unknown");
    }
}
