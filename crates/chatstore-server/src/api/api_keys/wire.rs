//! The forms of an API key: as it comes, as it is changed, as it is shown.

use chatstore_core::api_keys::{ApiKey, ApiKeyPatch, KeyScopes, KeySettings, Permission};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::{KEY_RANGES_MAX, USER_ID_BYTES_MAX};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::check_id;
use crate::api::limits::{LimitsRequest, LimitsResponse, SECOND_US, check_limits, check_name, check_seconds};
use crate::auth::parse_address_range;
use crate::body::{Body, Field, Object};
use crate::config::parse_origin;
use crate::error::{ApiError, FieldError};
use crate::openapi::{Example, id, optional_id, optional_time, time};

/// A key: never its secret.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ApiKeyResponse {
    /// Its public part; survives rotation.
    key_id: String,
    /// The project it speaks for.
    #[schemars(schema_with = "id")]
    project_id: ProjectId,
    /// The name of the project.
    project_name: String,
    /// What people call it.
    name: String,
    /// What it may do.
    #[schemars(schema_with = "scopes")]
    scopes: Vec<&'static str>,
    /// The one user it speaks for.
    user_id: Option<String>,
    /// Its own rates; what is null follows its project.
    limits: LimitsResponse,
    /// Origins from which a browser may use it; empty allows all.
    allowed_origins: Vec<String>,
    /// Addresses and ranges from which it may be used; empty allows all.
    allowed_addresses: Vec<String>,
    /// When it was made.
    #[schemars(schema_with = "time")]
    created_at: Timestamp,
    /// When it was last changed or rotated.
    #[schemars(schema_with = "time")]
    updated_at: Timestamp,
    /// From when on it is refused.
    #[schemars(schema_with = "optional_time")]
    expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[schemars(schema_with = "optional_time")]
    revoked_at: Option<Timestamp>,
    /// When it was last used, to a minute or so.
    #[schemars(schema_with = "optional_time")]
    last_used_at: Option<Timestamp>,
    /// Until when the secret before the last rotation is accepted, while it is.
    #[schemars(schema_with = "optional_time")]
    previous_expires_at: Option<Timestamp>,
    /// `active`, `expired` or `revoked`.
    #[schemars(schema_with = "key_status")]
    status: &'static str,
    /// The whole key, in the one answer that shows it: to its creation, or its rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    secret: Option<String>,
}

fn scopes(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names = Permission::ALL.map(Permission::as_str);
    schemars::json_schema!({"type": "array", "items": {"type": "string", "enum": names}})
}

fn optional_scopes(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names = Permission::ALL.map(Permission::as_str);
    schemars::json_schema!({"type": ["array", "null"], "items": {"type": "string", "enum": names}})
}

fn key_status(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "enum": ["active", "expired", "revoked"]})
}

impl ApiKeyResponse {
    /// A key as it is at `now`.
    pub(super) fn new(key: ApiKey, project_name: String, now: Timestamp) -> Self {
        let status = match key.revoked_at {
            Some(_) => "revoked",
            None if key.is_active(now) => "active",
            None => "expired",
        };
        let previous = key.previous.map(|previous| previous.expires_at).filter(|expires_at| now < *expires_at);
        Self {
            key_id: key.key_id,
            project_id: key.project_id,
            project_name,
            name: key.name,
            scopes: key.scopes.iter().map(Permission::as_str).collect(),
            user_id: key.user_id,
            limits: key.settings.limits.into(),
            allowed_origins: key.settings.allowed_origins,
            allowed_addresses: key.settings.allowed_addresses,
            created_at: key.created_at,
            updated_at: key.updated_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            last_used_at: key.last_used_at,
            previous_expires_at: previous,
            status,
            secret: None,
        }
    }

    /// The same with the whole key.
    pub(super) fn with_secret(self, secret: &str) -> Self {
        Self { secret: Some(secret.to_owned()), ..self }
    }
}

impl Example for ApiKeyResponse {
    fn example() -> Value {
        json!({
            "key_id": "4fXb0GmZ2kQa",
            "project_id": "00000000-0000-0000-0000-000000000000",
            "project_name": "default",
            "name": "the web application",
            "scopes": ["read", "write", "search"],
            "user_id": null,
            "limits": {"reads": null, "writes": "60/minute", "search": null},
            "allowed_origins": [],
            "allowed_addresses": ["203.0.113.0/24"],
            "created_at": "2026-01-31T12:00:00.000000Z",
            "updated_at": "2026-01-31T12:00:00.000000Z",
            "expires_at": null,
            "revoked_at": null,
            "last_used_at": "2026-02-01T08:15:00.000000Z",
            "previous_expires_at": null,
            "status": "active",
        })
    }
}

/// A key to make.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["name"]))]
pub struct CreateApiKeyRequest {
    /// What people call it: 1 to 200 bytes.
    #[serde(default)]
    #[schemars(with = "String")]
    name: Field<String>,
    /// What it may do, at most what the caller may; `read`, `write`, `delete` and `search` if absent, as far as the
    /// caller has them.
    #[serde(default)]
    #[schemars(schema_with = "optional_scopes")]
    scopes: Field<Vec<String>>,
    /// The one user it may speak for.
    #[serde(default)]
    user_id: Field<String>,
    /// From when on it is refused; never, if absent.
    #[serde(default)]
    #[schemars(schema_with = "optional_time")]
    expires_at: Field<Timestamp>,
    /// The same as seconds from now.
    #[serde(default)]
    expires_in_seconds: Field<i64>,
    /// Its own rates, within those that it would follow; an operator sets any, and then nobody else changes them.
    #[serde(default)]
    #[schemars(with = "Option<LimitsRequest>")]
    limits: Field<Object<LimitsRequest>>,
    /// Origins from which a browser may use it, such as `https://app.example`: at most 50.
    #[serde(default)]
    allowed_origins: Field<Vec<String>>,
    /// Addresses and ranges from which it may be used, such as `203.0.113.0/24`: at most 50.
    #[serde(default)]
    allowed_addresses: Field<Vec<String>>,
    /// The project it speaks for: the caller's, if absent; any other needs the scope `operator`.
    #[serde(default)]
    #[schemars(schema_with = "optional_id")]
    project_id: Field<String>,
}

/// Changes to a key: only the keys that are present change, each as a whole.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct UpdateApiKeyRequest {
    /// What people call it: 1 to 200 bytes.
    #[serde(default)]
    #[schemars(with = "String")]
    name: Field<String>,
    /// What it may do, at most what the caller may.
    #[serde(default)]
    #[schemars(schema_with = "scopes")]
    scopes: Field<Vec<String>>,
    /// From when on it is refused; null is never.
    #[serde(default)]
    #[schemars(schema_with = "optional_time")]
    expires_at: Field<Timestamp>,
    /// Its own rates, within those that it would follow; an operator sets any, and then nobody else changes them. Null
    /// takes them away.
    #[serde(default)]
    #[schemars(with = "Option<LimitsRequest>")]
    limits: Field<Object<LimitsRequest>>,
    /// Origins from which a browser may use it; empty or null allows all.
    #[serde(default)]
    allowed_origins: Field<Vec<String>>,
    /// Addresses and ranges from which it may be used; empty or null allows all.
    #[serde(default)]
    allowed_addresses: Field<Vec<String>>,
}

impl Body for CreateApiKeyRequest {}

impl Body for UpdateApiKeyRequest {}

impl Example for CreateApiKeyRequest {
    fn example() -> Value {
        json!({"name": "the web application", "scopes": ["read", "write", "search"], "limits": {"writes": "60/minute"}})
    }
}

impl Example for UpdateApiKeyRequest {
    fn example() -> Value {
        json!({"name": "the old web application", "expires_at": "2026-03-01T00:00:00Z"})
    }
}

/// A key to make that is well-formed.
pub(super) struct NewApiKey {
    pub(super) name: String,
    pub(super) scopes: Option<KeyScopes>,
    pub(super) user_id: Option<String>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) settings: KeySettings,
    pub(super) project_id: Option<ProjectId>,
}

impl CreateApiKeyRequest {
    pub(super) fn check(self, now: Timestamp) -> Result<NewApiKey, ApiError> {
        let mut errors = Vec::new();
        let name = self.name.required("/name", &mut errors);
        check_name(name.as_deref(), &mut errors);
        let user_id = self.user_id.value();
        check_id("/user_id", user_id.as_deref(), USER_ID_BYTES_MAX, &mut errors);
        let expires_at = check_expiry(self.expires_at.value(), self.expires_in_seconds.value(), now, &mut errors);
        let project_id = self.project_id.value().and_then(|text| {
            let project_id = ProjectId::parse(&text);
            if project_id.is_none() {
                errors.push(FieldError::new("/project_id", "must be the id of a project"));
            }
            project_id
        });
        let new = NewApiKey {
            name: name.unwrap_or_default(),
            scopes: self.scopes.value().map(|names| check_scopes(&names, &mut errors)),
            user_id,
            expires_at,
            settings: KeySettings {
                limits: check_limits(self.limits, &mut errors).unwrap_or_default(),
                // The handler knows who sets them.
                limits_by_operator: false,
                allowed_origins: check_origins(self.allowed_origins, &mut errors).unwrap_or_default(),
                allowed_addresses: check_addresses(self.allowed_addresses, &mut errors).unwrap_or_default(),
            },
            project_id,
        };
        if errors.is_empty() { Ok(new) } else { Err(ApiError::invalid(errors)) }
    }
}

impl UpdateApiKeyRequest {
    pub(super) fn check(self) -> Result<ApiKeyPatch, ApiError> {
        let mut errors = Vec::new();
        let name = self.name.not_null("/name", &mut errors);
        check_name(name.as_deref(), &mut errors);
        let scopes = self.scopes.not_null("/scopes", &mut errors);
        let patch = ApiKeyPatch {
            name,
            scopes: scopes.map(|names| check_scopes(&names, &mut errors)),
            expires_at: self.expires_at.change(),
            limits: check_limits(self.limits, &mut errors),
            limits_by_operator: None,
            allowed_origins: check_origins(self.allowed_origins, &mut errors),
            allowed_addresses: check_addresses(self.allowed_addresses, &mut errors),
        };
        if errors.is_empty() { Ok(patch) } else { Err(ApiError::invalid(errors)) }
    }
}

/// The scopes of these names.
fn check_scopes(names: &[String], errors: &mut Vec<FieldError>) -> KeyScopes {
    let mut scopes = Vec::new();
    for (n, name) in names.iter().enumerate() {
        match Permission::ALL.into_iter().find(|permission| permission.as_str() == name) {
            Some(permission) => scopes.push(permission),
            None => errors.push(FieldError::new(
                format!("/scopes/{n}"),
                "must be `read`, `write`, `delete`, `search`, `admin` or `operator`",
            )),
        }
    }
    if names.is_empty() {
        errors.push(FieldError::new("/scopes", "must name at least one scope"));
    }
    scopes.into_iter().collect()
}

/// For how long a key may be made that has an end: up to a century.
const LIFE_SECONDS: (i64, i64, i64) = (1, 3_155_760_000, 3_155_760_000);

fn check_expiry(
    at: Option<Timestamp>,
    seconds: Option<i64>,
    now: Timestamp,
    errors: &mut Vec<FieldError>,
) -> Option<Timestamp> {
    if at.is_some() && seconds.is_some() {
        errors.push(FieldError::new("/expires_in_seconds", "cannot be joined with `expires_at`"));
    }
    if at.is_some_and(|at| at <= now) {
        errors.push(FieldError::new("/expires_at", "must be in the future"));
    }
    let seconds = seconds.map(|seconds| check_seconds("/expires_in_seconds", Some(seconds), LIFE_SECONDS, errors));
    at.or_else(|| seconds.map(|seconds| now.plus_micros(seconds.saturating_mul(SECOND_US))))
}

/// A list of which each item is kept in the form that `normal` gives it; null is an empty one.
fn check_list(
    (pointer, form): (&str, &str),
    field: Field<Vec<String>>,
    normal: impl Fn(&str) -> Option<String>,
    errors: &mut Vec<FieldError>,
) -> Option<Vec<String>> {
    let items = field.change()?.unwrap_or_default();
    if items.len() > KEY_RANGES_MAX {
        errors.push(FieldError::new(pointer, format!("must hold at most {KEY_RANGES_MAX} items")));
        return None;
    }
    let mut kept = Vec::new();
    for (n, item) in items.iter().enumerate() {
        match normal(item) {
            Some(item) => kept.push(item),
            None => errors.push(FieldError::new(format!("{pointer}/{n}"), format!("must be {form}"))),
        }
    }
    Some(kept)
}

fn check_origins(field: Field<Vec<String>>, errors: &mut Vec<FieldError>) -> Option<Vec<String>> {
    let form = "an origin such as https://app.example, without a path";
    check_list(("/allowed_origins", form), field, parse_origin, errors)
}

fn check_addresses(field: Field<Vec<String>>, errors: &mut Vec<FieldError>) -> Option<Vec<String>> {
    let form = "an address or a range of addresses, such as 203.0.113.7 or 2001:db8::/32";
    check_list(("/allowed_addresses", form), field, |text| Some(parse_address_range(text)?.trunc().to_string()), errors)
}

/// How long the secret before stays valid.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct RotateApiKeyRequest {
    /// Seconds for which the secret before is still accepted: 0 to 30 days, a day if absent.
    #[serde(default)]
    pub(super) grace_seconds: Field<i64>,
}

impl Body for RotateApiKeyRequest {}

impl Example for RotateApiKeyRequest {
    fn example() -> Value {
        json!({"grace_seconds": 3600})
    }
}
