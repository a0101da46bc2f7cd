//! What commands did, in the audit log; and `chatstore audit export`.

mod export;

use anyhow::Context as _;
use chatstore_core::api_keys::ApiKey;
use chatstore_core::audit::{Actor, AuditEvent};
use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::Project;
use chatstore_core::store::Store;

pub(crate) use export::{AuditAction, audit};

/// What a command does it to.
pub(crate) struct Deed {
    /// The project it concerns; the default one as long as no other is known.
    project_id: ProjectId,
    /// The id of what it is done to.
    target_id: Option<String>,
}

impl Deed {
    /// It is meant for what has this id, if there is such a thing.
    pub(crate) fn is_meant_for(&mut self, target_id: &str) {
        self.target_id = Some(target_id.to_owned());
    }

    /// It is done to a project.
    pub(crate) fn concerns(&mut self, project: &Project) {
        *self = Self { project_id: project.project_id, target_id: Some(project.project_id.to_string()) };
    }

    /// It is done to a key.
    pub(crate) fn concerns_key(&mut self, key: &ApiKey) {
        *self = Self { project_id: key.project_id, target_id: Some(key.key_id.clone()) };
    }
}

/// Does something that rules or destroys, and notes in the audit log what came of it. `work` says whom it concerns as
/// soon as it knows.
pub(crate) async fn audited<T>(
    store: &dyn Store,
    ctx: &Ctx,
    action: &str,
    work: impl AsyncFnOnce(&mut Deed) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut deed = Deed { project_id: ProjectId::DEFAULT, target_id: None };
    let result = work(&mut deed).await;
    let now = ctx.now();
    let event = AuditEvent {
        event_id: ctx.new_audit_event_id(now),
        project_id: deed.project_id,
        created_at: now,
        actor: Actor::Command,
        actor_id: None,
        user_id: None,
        action: action.to_owned(),
        target_id: deed.target_id,
        outcome: if result.is_ok() { "ok" } else { "failed" }.to_owned(),
        address: None,
        request_id: None,
    };
    let noted = store.append_audit_events(vec![event]).await;
    let done = result?;
    noted.with_context(|| format!("`{action}` is done, but it could not be noted in the audit log"))?;
    Ok(done)
}
