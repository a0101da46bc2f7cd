//! API keys on the wire: an admin's are those of the own project, an operator's all.

mod wire;

use axum::extract::State;
use chatstore_core::api_keys::{ApiKey, KeyScopes, KeySettings, Permission, PresentedKey};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::page::KeyPosition;
use chatstore_core::projects::Project;
use chatstore_core::rates::{ClassRates, RequestClass};
use chatstore_core::store::StoreError;

pub use wire::{ApiKeyResponse, CreateApiKeyRequest, RotateApiKeyRequest, UpdateApiKeyRequest};

use super::limits::{SECOND_US, check_seconds};
use super::projects::GRACE_SECONDS;
use super::{OperationDoc, chosen_project, other_project, require_scopes};
use crate::app::App;
use crate::audit::{AuditTarget, Audited};
use crate::auth::Caller;
use crate::error::{ApiError, Code};
use crate::extract::{FromQuery, Json, KeyPath, OptionalJson, ProjectCaller, Query};
use crate::idempotency::{Doing, Once, ShownOnce, made_first};
use crate::openapi::Operation;
use crate::query::{Paging, Pairs, binding};
use crate::respond::{Created, Listed, Ok200};

/// Which keys to list.
#[derive(Debug)]
pub struct ListApiKeysQuery {
    project_id: Option<ProjectId>,
    paging: Paging,
}

impl FromQuery for ListApiKeysQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let project_id = pairs.read("project_id", "the id of a project", ProjectId::parse, &mut errors);
        let paging = pairs.cursor_paging(&mut errors);
        if errors.is_empty() { Ok(Self { project_id, paging }) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        operation.query_parameter(
            "project_id",
            "Only this project's; another than the own needs the scope `operator`.",
            serde_json::json!({"type": "string", "format": "uuid"}),
        );
        Paging::describe_cursor(operation);
    }
}

/// See [`create_api_key`].
pub const CREATE_API_KEY: OperationDoc = OperationDoc {
    id: "create_api_key",
    summary: "Create an API key",
    description: "The answer shows the whole key in `secret`, this once. Nobody gives a scope that they lack; keys with \
        the scope `operator` are made on the host, with `chatstore keys create`.",
    tag: "api_keys",
};

/// Makes a key.
pub async fn create_api_key(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    Once(Json(body), repeatable): Once<Json<CreateApiKeyRequest>>,
) -> Result<Audited<ShownOnce<Created<ApiKeyResponse>>>, ApiError> {
    let now = app.ctx.now();
    let new = body.check(now)?;
    let project_id = new.project_id.unwrap_or(caller.scope.project_id);
    if !caller.authority().covers(project_id) {
        return Err(other_project());
    }
    check_grant(&caller, new.scopes.unwrap_or_default())?;
    check_rates(&app, &caller, &new.settings.limits)?;
    let project = app.store.get_project(project_id).await.map_err(project_error)?;
    let project = project.ok_or_else(|| ApiError::invalid_field("/project_id", "names no project"))?;
    let scopes = new.scopes.unwrap_or_else(|| KeyScopes::of_users().and(caller.scopes));
    let presented = PresentedKey::generate(&app.ctx);
    let key = ApiKey::new(&presented, project_id, new.name, scopes, now);
    let limits_by_operator = are_by_operator(&caller, &new.settings.limits);
    let settings = KeySettings { limits_by_operator, ..new.settings };
    let key = ApiKey { user_id: new.user_id, expires_at: new.expires_at, settings, ..key };
    let doing = Doing { operation: CREATE_API_KEY.id, target: "", user_id: None, bucket: None, now };
    let claim = repeatable.claim(&app, &caller, doing).await?;
    let created = app.store.create_api_key(key, claim.as_ref()).await.map_err(project_error)?;
    let key = made_first(created, secret_already_shown)?;
    app.credentials.forget_key(&key.key_id);
    let body = ApiKeyResponse::new(key, project.name, now);
    let location = Some(format!("/api/v1/admin/keys/{}", presented.key_id()));
    let target = target(presented.key_id(), project_id);
    Ok(Audited(ShownOnce(Created { body: body.with_secret(presented.expose()), version: None, location }), target))
}

/// See [`list_api_keys`].
pub const LIST_API_KEYS: OperationDoc = OperationDoc {
    id: "list_api_keys",
    summary: "List API keys",
    description: "A bare array, oldest first, revoked and expired ones included. With the scope `operator` and without \
        `project_id` it shows the keys of every project, else those of the own. While there is more, the `Link` header \
        leads to the next page.",
    tag: "api_keys",
};

/// Lists keys.
pub async fn list_api_keys(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    Query(ListApiKeysQuery { project_id, paging }): Query<ListApiKeysQuery>,
) -> Result<Listed<ApiKeyResponse>, ApiError> {
    let project_id = chosen_project(&caller, project_id)?;
    let binding = binding(&("api_keys", project_id));
    let request = paging.request::<KeyPosition>(&app.cursor_key, &binding)?;
    let page = app.store.list_api_keys(project_id, &request).await.map_err(key_error)?;
    let now = app.ctx.now();
    Ok(Listed {
        next: page.next.map(|next| paging.next_link(&app.cursor_key, &binding, &next)),
        items: page.items.into_iter().map(|(key, project)| ApiKeyResponse::new(key, project, now)).collect(),
    })
}

/// See [`get_api_key`].
pub const GET_API_KEY: OperationDoc = OperationDoc {
    id: "get_api_key",
    summary: "Get an API key",
    description: "A key of another project answers like one that does not exist, unless the caller has the scope \
        `operator`.",
    tag: "api_keys",
};

/// Returns a key.
pub async fn get_api_key(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    KeyPath(key_id): KeyPath,
) -> Result<Ok200<ApiKeyResponse>, ApiError> {
    let (key, project) = find(&app, &caller, &key_id).await?;
    Ok(Ok200(ApiKeyResponse::new(key, project.name, app.ctx.now())))
}

/// See [`update_api_key`].
pub const UPDATE_API_KEY: OperationDoc = OperationDoc {
    id: "update_api_key",
    summary: "Change an API key",
    description: "Only the keys that are present change, each as a whole; its project, user and secret never change. \
        Nobody changes a key that may do more than they, or makes it such. Limits that an operator set are changed by \
        operators alone.",
    tag: "api_keys",
};

/// Changes a key.
pub async fn update_api_key(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    KeyPath(key_id): KeyPath,
    Json(body): Json<UpdateApiKeyRequest>,
) -> Result<Audited<Ok200<ApiKeyResponse>>, ApiError> {
    let mut patch = body.check()?;
    let (key, project) = find(&app, &caller, &key_id).await?;
    // What the key has already may be sent back as it is.
    if let Some(scopes) = patch.scopes.filter(|scopes| *scopes != key.scopes) {
        check_grant(&caller, scopes)?;
    }
    if let Some(limits) = &patch.limits {
        patch.limits_by_operator = check_limits_change(&app, &caller, &key.settings, limits)?;
    }
    let now = app.ctx.now();
    let updated = app.store.update_api_key(&caller.authority(), &key_id, patch, now).await.map_err(key_error)?;
    Ok(changed(&app, updated, project, now))
}

/// See [`rotate_api_key`].
pub const ROTATE_API_KEY: OperationDoc = OperationDoc {
    id: "rotate_api_key",
    summary: "Give an API key a new secret",
    description: "The key keeps its id. The answer shows the whole new key in `secret`, this once; the one before is \
        accepted for `grace_seconds`, and one that was replaced before that no longer.",
    tag: "api_keys",
};

/// Gives a key a new secret.
pub async fn rotate_api_key(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    KeyPath(key_id): KeyPath,
    Once(OptionalJson(body), repeatable): Once<OptionalJson<RotateApiKeyRequest>>,
) -> Result<Audited<ShownOnce<Ok200<ApiKeyResponse>>>, ApiError> {
    let mut errors = Vec::new();
    let grace = check_seconds("/grace_seconds", body.grace_seconds.value(), GRACE_SECONDS, &mut errors);
    if !errors.is_empty() {
        return Err(ApiError::invalid(errors));
    }
    let (_, project) = find(&app, &caller, &key_id).await?;
    let presented = PresentedKey::rotate(&app.ctx, &key_id).ok_or_else(|| ApiError::not_found("API key"))?;
    let now = app.ctx.now();
    let until = now.plus_micros(grace * SECOND_US);
    let doing = Doing { operation: ROTATE_API_KEY.id, target: &key_id, user_id: None, bucket: None, now };
    let claim = repeatable.claim(&app, &caller, doing).await?;
    let digest = presented.digest();
    let rotated = app.store.rotate_api_key(&caller.authority(), &key_id, digest, until, now, claim.as_ref()).await;
    let rotated = made_first(rotated.map_err(key_error)?, secret_already_shown)?;
    let Audited(Ok200(body), target) = changed(&app, rotated, project, now);
    Ok(Audited(ShownOnce(Ok200(body.with_secret(presented.expose()))), target))
}

/// What to do about a secret that went astray with the answer that showed it.
fn secret_already_shown(key: &ApiKey) -> String {
    let key_id = &key.key_id;
    format!(
        "The answer to this request showed the secret of the key `{key_id}`, this once. If it did not arrive, rotate the \
         key with a new `Idempotency-Key`: `POST /api/v1/admin/keys/{key_id}/rotate`."
    )
}

/// See [`revoke_api_key`].
pub const REVOKE_API_KEY: OperationDoc = OperationDoc {
    id: "revoke_api_key",
    summary: "Revoke an API key",
    description: "It is refused from then on, for good, within a second by every server. Answers with the key, which \
        stays listed.",
    tag: "api_keys",
};

/// Revokes a key.
pub async fn revoke_api_key(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    KeyPath(key_id): KeyPath,
) -> Result<Audited<Ok200<ApiKeyResponse>>, ApiError> {
    let (_, project) = find(&app, &caller, &key_id).await?;
    let now = app.ctx.now();
    let revoked = app.store.revoke_api_key(&caller.authority(), &key_id, now).await.map_err(key_error)?;
    Ok(changed(&app, revoked, project, now))
}

/// A key that is the caller's to see, and its project.
async fn find(app: &App, caller: &Caller, key_id: &str) -> Result<(ApiKey, Project), ApiError> {
    let found = app.store.get_api_key(key_id).await.map_err(key_error)?;
    let seen = found.filter(|(key, _)| caller.authority().covers(key.project_id));
    seen.ok_or_else(|| ApiError::not_found("API key"))
}

/// The answer to a change.
fn changed(app: &App, key: ApiKey, project: Project, now: Timestamp) -> Audited<Ok200<ApiKeyResponse>> {
    app.credentials.forget_key(&key.key_id);
    let target = target(&key.key_id, key.project_id);
    Audited(Ok200(ApiKeyResponse::new(key, project.name, now)), target)
}

/// Refuses scopes that the caller cannot give.
fn check_grant(caller: &Caller, scopes: KeyScopes) -> Result<(), ApiError> {
    if scopes.contains(Permission::Operator) {
        let detail = "The scope `operator` is given on the host alone, with `chatstore keys create`.";
        return Err(ApiError::new(Code::InsufficientScope, detail));
    }
    require_scopes(caller, scopes, ", so it cannot give that: leave it out of `scopes`.")
}

/// Whether limits that this caller sets are an operator's.
fn are_by_operator(caller: &Caller, limits: &ClassRates) -> bool {
    caller.scopes.contains(Permission::Operator) && *limits != ClassRates::default()
}

/// Refuses new limits of a key that are not the caller's to set; tells whose they are then, if that changes.
fn check_limits_change(
    app: &App,
    caller: &Caller,
    settings: &KeySettings,
    limits: &ClassRates,
) -> Result<Option<bool>, ApiError> {
    if !caller.scopes.contains(Permission::Operator) {
        // What the key has already may be sent back as it is.
        if *limits == settings.limits {
            return Ok(None);
        }
        if settings.limits_by_operator {
            let detail = "An operator set the limits of this key: changing them needs a key with the scope `operator`.";
            return Err(ApiError::new(Code::InsufficientScope, detail));
        }
    }
    check_rates(app, caller, limits)?;
    Ok(Some(are_by_operator(caller, limits)))
}

/// Refuses rates beyond those that a key would follow without its own, unless the caller is an operator.
fn check_rates(app: &App, caller: &Caller, limits: &ClassRates) -> Result<(), ApiError> {
    if caller.scopes.contains(Permission::Operator) {
        return Ok(());
    }
    for class in [RequestClass::Reads, RequestClass::Writes, RequestClass::Search] {
        let followed = caller.project.settings.limits.get(class).or_else(|| app.access.rates.get(class));
        let Some(followed) = followed else { continue };
        if limits.get(class).is_some_and(|own| !own.are_within(followed)) {
            let class = class.as_str();
            let detail = format!(
                "`limits.{class}` must stay within `{followed}`, which the key follows without limits of its own; more \
                 needs a key with the scope `operator`."
            );
            return Err(ApiError::new(Code::InsufficientScope, detail));
        }
    }
    Ok(())
}

fn target(key_id: &str, project_id: ProjectId) -> AuditTarget {
    AuditTarget { target_id: key_id.to_owned(), project_id }
}

fn project_error(error: StoreError) -> ApiError {
    ApiError::from_store(error, "project")
}

fn key_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Conflict { field: "revoked_at" } => {
            ApiError::new(Code::Conflict, "The key is revoked for good: create another one.")
        }
        StoreError::Forbidden => {
            let detail = "The key may do more than yours: it takes a key with all its scopes, or `chatstore keys` on \
                the host.";
            ApiError::new(Code::InsufficientScope, detail)
        }
        error => ApiError::from_store(error, "API key"),
    }
}
