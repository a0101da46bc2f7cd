//! User tokens on the wire: minted for a browser that talks to the service itself.

use axum::extract::State;
use chatstore_core::api_keys::{KeyScopes, Permission};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::SessionId;
use chatstore_core::limits::{TOKEN_SECONDS_MAX, TOKEN_SESSIONS_MAX, USER_ID_BYTES_MAX};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::limits::{SECOND_US, check_seconds};
use super::{OperationDoc, check_id, project_is_gone};
use crate::app::App;
use crate::audit::{AuditTarget, Audited};
use crate::auth::{Caller, NewToken, mint};
use crate::body::{Body, Field};
use crate::error::{ApiError, Code, FieldError};
use crate::extract::{Json, ProjectCaller};
use crate::openapi::{Example, time};
use crate::respond::Created;

/// Seconds for which a token is valid, unless the request says otherwise.
const SECONDS_DEFAULT: i64 = 3_600;
/// What the request may say.
const SECONDS: (i64, i64, i64) = (1, TOKEN_SECONDS_MAX as i64, SECONDS_DEFAULT);

/// A token to make.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["user_id"]))]
pub struct CreateTokenRequest {
    /// The user it speaks for.
    #[serde(default)]
    #[schemars(with = "String")]
    user_id: Field<String>,
    /// What it may do: some of `read`, `write`, `delete` and `search`; all that the caller may, if absent.
    #[serde(default)]
    #[schemars(schema_with = "user_scopes")]
    scopes: Field<Vec<String>>,
    /// The only sessions that exist for it: at most 100; all of the user's, if absent.
    #[serde(default)]
    #[schemars(schema_with = "optional_ids")]
    session_ids: Field<Vec<String>>,
    /// Seconds for which it is valid: 1 to a day, an hour if absent.
    #[serde(default)]
    expires_in_seconds: Field<i64>,
}

fn user_scopes(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names: Vec<&str> = KeyScopes::of_users().iter().map(Permission::as_str).collect();
    schemars::json_schema!({"type": ["array", "null"], "items": {"type": "string", "enum": names}})
}

fn optional_ids(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["array", "null"], "items": {"type": "string", "format": "uuid"}, "maxItems": TOKEN_SESSIONS_MAX,
    })
}

impl Body for CreateTokenRequest {}

impl Example for CreateTokenRequest {
    fn example() -> Value {
        json!({"user_id": "ada", "scopes": ["read", "write"], "expires_in_seconds": 900})
    }
}

/// A token.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CreateTokenResponse {
    /// The token (JWT, RFC 7519), for `Authorization: Bearer`. It is stored nowhere.
    token: String,
    /// From when on it is refused.
    #[schemars(schema_with = "time")]
    expires_at: Timestamp,
}

impl Example for CreateTokenResponse {
    fn example() -> Value {
        json!({"token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.…", "expires_at": "2026-01-31T12:15:00.000000Z"})
    }
}

impl CreateTokenRequest {
    fn check(self, caller: &Caller, now: Timestamp) -> Result<NewToken, ApiError> {
        let mut errors = Vec::new();
        let user_id = self.user_id.required("/user_id", &mut errors);
        check_id("/user_id", user_id.as_deref(), USER_ID_BYTES_MAX, &mut errors);
        let seconds = check_seconds("/expires_in_seconds", self.expires_in_seconds.value(), SECONDS, &mut errors);
        let named = self.scopes.value().map(|names| check_user_scopes(&names, &mut errors));
        let session_ids = self.session_ids.value().map(|ids| check_session_ids(&ids, &mut errors));
        let (Some(user_id), true) = (user_id, errors.is_empty()) else {
            return Err(ApiError::invalid(errors));
        };
        let own = KeyScopes::of_users().and(caller.scopes);
        let scopes = named.unwrap_or(own);
        if !own.contain(scopes) {
            let detail =
                format!("Your key may do no more than `{own}` of what tokens may: leave the rest out of `scopes`.");
            return Err(ApiError::new(Code::InsufficientScope, detail));
        }
        // A token counts in whole seconds.
        let expires_at = now.as_micros().div_euclid(SECOND_US) + seconds;
        let expires_at = Timestamp::from_micros(expires_at * SECOND_US).unwrap_or(now);
        Ok(NewToken { user_id, scopes, session_ids, expires_at })
    }
}

fn check_user_scopes(names: &[String], errors: &mut Vec<FieldError>) -> KeyScopes {
    let mut scopes = Vec::new();
    for (n, name) in names.iter().enumerate() {
        match KeyScopes::of_users().iter().find(|permission| permission.as_str() == name) {
            Some(permission) => scopes.push(permission),
            None => {
                errors.push(FieldError::new(format!("/scopes/{n}"), "must be `read`, `write`, `delete` or `search`"))
            }
        }
    }
    if names.is_empty() {
        errors.push(FieldError::new("/scopes", "must name at least one scope"));
    }
    scopes.into_iter().collect()
}

fn check_session_ids(ids: &[String], errors: &mut Vec<FieldError>) -> Vec<SessionId> {
    if ids.len() > TOKEN_SESSIONS_MAX {
        errors.push(FieldError::new("/session_ids", format!("must hold at most {TOKEN_SESSIONS_MAX} ids")));
        return Vec::new();
    }
    let mut parsed = Vec::new();
    for (n, id) in ids.iter().enumerate() {
        match SessionId::parse(id) {
            Some(id) => parsed.push(id),
            None => errors.push(FieldError::new(format!("/session_ids/{n}"), "must be the id of a session")),
        }
    }
    parsed
}

/// See [`create_token`].
pub const CREATE_TOKEN: OperationDoc = OperationDoc {
    id: "create_token",
    summary: "Create a user token",
    description: "Signs a token (JWT) with which an application of one user talks to the service itself, such as a page \
        in a browser. It speaks for that user alone, may at most read, write, delete and search, and is valid for a day \
        at most.",
    tag: "tokens",
};

/// Makes a user token.
pub async fn create_token(
    State(app): State<App>,
    ProjectCaller(caller): ProjectCaller,
    Json(body): Json<CreateTokenRequest>,
) -> Result<Audited<Created<CreateTokenResponse>>, ApiError> {
    let now = app.ctx.now();
    let new = body.check(&caller, now)?;
    // As it is now: a secret that another server has just taken away signs nothing.
    let project = app.store.get_project(caller.scope.project_id).await;
    let project = project.map_err(|error| ApiError::from_store(error, "project"))?;
    let project = project.ok_or_else(project_is_gone)?;
    let token = mint(&project, app.access.secret_key.as_ref(), &new, now).ok_or_else(|| {
        let detail = "There is no secret to sign with: the operator sets `SECRET_KEY`, or the project gets a secret of \
            its own with `POST /api/v1/admin/project/token-secret`.";
        ApiError::new(Code::Conflict, detail)
    })?;
    let body = CreateTokenResponse { token, expires_at: new.expires_at };
    let target = AuditTarget { target_id: new.user_id, project_id: project.project_id };
    Ok(Audited(Created { body, version: None, location: None }, target))
}
