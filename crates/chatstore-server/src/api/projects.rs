//! Projects on the wire: all of them for operators, the own one for its admins.

mod wire;

use axum::extract::State;
use chatstore_core::api_keys::{KeyScopes, Permission};
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::ROTATION_GRACE_SECONDS_MAX;
use chatstore_core::projects::{Project, TokenSecret};
use chatstore_core::store::StoreError;

pub use wire::{
    CreateProjectRequest, ProjectResponse, PublicKeyRequest, PublicKeyResponse, QuotasRequest, QuotasResponse,
    RotateTokenSecretRequest, RotateTokenSecretResponse, TokensRequest, TokensResponse, UpdateProjectRequest,
    UsageResponse,
};

use super::limits::{SECOND_US, check_seconds};
use super::{OperationDoc, project_is_gone, require_scopes};
use crate::app::App;
use crate::audit::{AuditTarget, Audited};
use crate::auth::Caller;
use crate::error::{ApiError, Code};
use crate::extract::{FromQuery, Json, OptionalJson, ProjectCaller, ProjectPath, Query};
use crate::idempotency::{Doing, Once, Replayable, ShownOnce, made_first};
use crate::openapi::Operation;
use crate::query::{Paging, Pairs, binding};
use crate::respond::{Created, Listed, Ok200};

/// Seconds for which a secret that was replaced stays valid, unless the request says otherwise.
pub(super) const GRACE_SECONDS_DEFAULT: i64 = 86_400;
/// What such a request may say.
pub(super) const GRACE_SECONDS: (i64, i64, i64) = (0, ROTATION_GRACE_SECONDS_MAX as i64, GRACE_SECONDS_DEFAULT);

/// Which projects to list.
#[derive(Debug)]
pub struct ListProjectsQuery(Paging);

impl FromQuery for ListProjectsQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let paging = pairs.cursor_paging(&mut errors);
        if errors.is_empty() { Ok(Self(paging)) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        Paging::describe_cursor(operation);
    }
}

/// See [`create_project`].
pub const CREATE_PROJECT: OperationDoc = OperationDoc {
    id: "create_project",
    summary: "Create a project",
    description: "Makes a tenant: its keys, sessions and messages are invisible to every other. Its first key is made \
        with `POST /api/v1/admin/keys` and its `project_id`.",
    tag: "projects",
};

/// Stores a project.
pub async fn create_project(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    Once(Json(body), repeatable): Once<Json<CreateProjectRequest>>,
) -> Result<Audited<Replayable<Created<ProjectResponse>>>, ApiError> {
    if body.is_about_tokens() {
        check_signer(&caller)?;
    }
    let patch = body.check()?;
    let now = app.ctx.now();
    let mut project = Project::new(app.ctx.new_project_id(now), "", now);
    patch.apply(&mut project, now);
    let doing = Doing { operation: CREATE_PROJECT.id, target: "", user_id: None, bucket: None, now };
    let claim = repeatable.claim(&app, &caller, doing).await?;
    let created = app.store.create_project(project, claim.as_ref()).await.map_err(project_error)?;
    let project_id = created.value.project_id;
    app.credentials.forget_project(project_id);
    let answer = created.map(|project| Created {
        body: ProjectResponse::new(project, now),
        version: None,
        location: Some(format!("/api/v1/admin/projects/{project_id}")),
    });
    Ok(Audited(Replayable(answer), target(project_id)))
}

/// See [`list_projects`].
pub const LIST_PROJECTS: OperationDoc = OperationDoc {
    id: "list_projects",
    summary: "List projects",
    description: "A bare array, oldest first. While there is more, the `Link` header leads to the next page.",
    tag: "projects",
};

/// Lists projects.
pub async fn list_projects(
    State(app): State<App>,
    ProjectCaller(_): ProjectCaller,
    Query(ListProjectsQuery(paging)): Query<ListProjectsQuery>,
) -> Result<Listed<ProjectResponse>, ApiError> {
    let binding = binding(&"projects");
    let request = paging.request(&app.cursor_key, &binding)?;
    let page = app.store.list_projects(&request).await.map_err(project_error)?;
    let now = app.ctx.now();
    Ok(Listed {
        next: page.next.map(|next| paging.next_link(&app.cursor_key, &binding, &next)),
        items: page.items.into_iter().map(|project| ProjectResponse::new(project, now)).collect(),
    })
}

/// See [`get_project`].
pub const GET_PROJECT: OperationDoc = OperationDoc {
    id: "get_project",
    summary: "Get a project",
    description: "With what it holds, as of ten seconds ago or later.",
    tag: "projects",
};

/// Returns a project.
pub async fn get_project(
    State(app): State<App>,
    ProjectCaller(_): ProjectCaller,
    ProjectPath(project_id): ProjectPath,
) -> Result<Ok200<ProjectResponse>, ApiError> {
    read_project(&app, project_id).await?.ok_or_else(|| ApiError::not_found("project"))
}

/// See [`update_project`].
pub const UPDATE_PROJECT: OperationDoc = OperationDoc {
    id: "update_project",
    summary: "Change a project",
    description: "Only the keys that are present change, each as a whole; `{}` changes nothing.",
    tag: "projects",
};

/// Changes a project.
pub async fn update_project(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    ProjectPath(project_id): ProjectPath,
    Json(body): Json<UpdateProjectRequest>,
) -> Result<Audited<Ok200<ProjectResponse>>, ApiError> {
    change_project(&app, &caller, project_id, body, project_error).await
}

/// See [`delete_project`].
pub const DELETE_PROJECT: OperationDoc = OperationDoc {
    id: "delete_project",
    summary: "Delete a project",
    description: "The project and its keys are gone at once; its sessions and messages are erased in the background. \
        Answers with the project as it was. The project `default` stays.",
    tag: "projects",
};

/// Deletes a project.
pub async fn delete_project(
    State(app): State<App>,
    ProjectCaller(_): ProjectCaller,
    ProjectPath(project_id): ProjectPath,
) -> Result<Audited<Ok200<ProjectResponse>>, ApiError> {
    if project_id == ProjectId::DEFAULT {
        let detail = "The project `default` cannot be deleted: `API_KEY` speaks for it.";
        return Err(ApiError::new(Code::Conflict, detail));
    }
    let now = app.ctx.now();
    let deleted = app.store.delete_project(project_id, now).await.map_err(project_error)?;
    app.credentials.forget_project(project_id);
    app.usages.forget(project_id);
    Ok(Audited(Ok200(ProjectResponse::new(deleted, now)), target(project_id)))
}

/// See [`get_own_project`].
pub const GET_OWN_PROJECT: OperationDoc = OperationDoc {
    id: "get_own_project",
    summary: "Get the own project",
    description: "The project of the caller, with what it holds, as of ten seconds ago or later.",
    tag: "projects",
};

/// Returns the project of the caller.
pub async fn get_own_project(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
) -> Result<Ok200<ProjectResponse>, ApiError> {
    read_project(&app, caller.scope.project_id).await?.ok_or_else(project_is_gone)
}

/// See [`update_own_project`].
pub const UPDATE_OWN_PROJECT: OperationDoc = OperationDoc {
    id: "update_own_project",
    summary: "Change the own project",
    description: "`tokens` says whose user tokens the project believes; it takes a key that may do all that these may: \
        `read`, `write`, `delete` and `search`. The project's name, limits and quotas are the operator's: changing them \
        needs the scope `operator`.",
    tag: "projects",
};

/// Changes the project of the caller.
pub async fn update_own_project(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    Json(body): Json<UpdateProjectRequest>,
) -> Result<Audited<Ok200<ProjectResponse>>, ApiError> {
    if body.is_for_operators() && !caller.scopes.contains(Permission::Operator) {
        let detail = "A project's name, limits and quotas need a key with the scope `operator`; send `tokens` alone.";
        return Err(ApiError::new(Code::InsufficientScope, detail));
    }
    change_project(&app, &caller, caller.scope.project_id, body, own_project_error).await
}

/// See [`rotate_token_secret`].
pub const ROTATE_TOKEN_SECRET: OperationDoc = OperationDoc {
    id: "rotate_token_secret",
    summary: "Give the own project a new token secret",
    description: "Makes a secret that user tokens of the project are signed with (HS256), and shows it this once. The \
        one before stays valid for `grace_seconds`. It takes a key that may do all that such tokens may: `read`, \
        `write`, `delete` and `search`.",
    tag: "projects",
};

/// Gives the project of the caller a new token secret.
pub async fn rotate_token_secret(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    Once(OptionalJson(body), repeatable): Once<OptionalJson<RotateTokenSecretRequest>>,
) -> Result<ShownOnce<Created<RotateTokenSecretResponse>>, ApiError> {
    check_signer(&caller)?;
    let mut errors = Vec::new();
    let grace = check_seconds("/grace_seconds", body.grace_seconds.value(), GRACE_SECONDS, &mut errors);
    if !errors.is_empty() {
        return Err(ApiError::invalid(errors));
    }
    let (project_id, now) = (caller.scope.project_id, app.ctx.now());
    let secret = TokenSecret::generate(&app.ctx);
    let until = now.plus_micros(grace * SECOND_US);
    let doing = Doing { operation: ROTATE_TOKEN_SECRET.id, target: "", user_id: None, bucket: None, now };
    let claim = repeatable.claim(&app, &caller, doing).await?;
    let rotated = app.store.rotate_token_secret(project_id, Some(secret), until, now, claim.as_ref()).await;
    let rotated = made_first(rotated.map_err(own_project_error)?, |_| {
        "The answer to this request showed the secret, this once. If it did not arrive, send the request with a new \
         `Idempotency-Key`: it makes another secret."
            .to_owned()
    })?;
    app.credentials.forget_project(project_id);
    let previous = rotated.token_secrets.get(1).and_then(|previous| previous.expires_at);
    let body = RotateTokenSecretResponse { secret: secret.expose(), previous_expires_at: previous };
    Ok(ShownOnce(Created { body, version: None, location: None }))
}

/// See [`delete_token_secret`].
pub const DELETE_TOKEN_SECRET: OperationDoc = OperationDoc {
    id: "delete_token_secret",
    summary: "Take the own project's token secrets away",
    description: "Every token that is signed with one of them is refused from then on. Answers with the project.",
    tag: "projects",
};

/// Takes the token secrets of the caller's project away.
pub async fn delete_token_secret(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
) -> Result<Ok200<ProjectResponse>, ApiError> {
    let (project_id, now) = (caller.scope.project_id, app.ctx.now());
    let without =
        app.store.rotate_token_secret(project_id, None, now, now, None).await.map_err(own_project_error)?.value;
    app.credentials.forget_project(project_id);
    Ok(Ok200(ProjectResponse::new(without, now)))
}

async fn read_project(app: &App, project_id: ProjectId) -> Result<Option<Ok200<ProjectResponse>>, ApiError> {
    let Some(project) = app.store.get_project(project_id).await.map_err(project_error)? else {
        return Ok(None);
    };
    let usage = app.usages.get(project_id).await.map_err(project_error)?;
    Ok(Some(Ok200(ProjectResponse::new(project, app.ctx.now()).with_usage(usage))))
}

async fn change_project(
    app: &App,
    caller: &Caller,
    project_id: ProjectId,
    body: UpdateProjectRequest,
    failed: fn(StoreError) -> ApiError,
) -> Result<Audited<Ok200<ProjectResponse>>, ApiError> {
    if body.is_about_tokens() {
        check_signer(caller)?;
    }
    let patch = body.check(Vec::new())?;
    let now = app.ctx.now();
    let updated = app.store.update_project(project_id, patch, now).await.map_err(failed)?;
    app.credentials.forget_project(project_id);
    Ok(Audited(Ok200(ProjectResponse::new(updated, now)), target(project_id)))
}

/// Refuses who may do less than user tokens: whoever decides what signs them can sign any.
fn check_signer(caller: &Caller) -> Result<(), ApiError> {
    let needed = ": what signs user tokens is set by who may do all that these may.";
    require_scopes(caller, KeyScopes::of_users(), needed)
}

fn target(project_id: ProjectId) -> AuditTarget {
    AuditTarget { target_id: project_id.to_string(), project_id }
}

fn project_error(error: StoreError) -> ApiError {
    ApiError::from_store(error, "project")
}

fn own_project_error(error: StoreError) -> ApiError {
    match error {
        StoreError::NotFound => project_is_gone(),
        error => project_error(error),
    }
}
