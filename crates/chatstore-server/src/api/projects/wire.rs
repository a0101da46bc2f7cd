//! The forms of a project: as it comes, as it is changed, as it is shown.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::{NAME_BYTES_MAX, TOKEN_KEY_BYTES_MAX, TOKEN_KEYS_MAX};
use chatstore_core::projects::{
    Project, ProjectPatch, ProjectSettings, ProjectUsage, TokenAlgorithm, TokenPublicKey, TokenSettings,
};
use chatstore_core::rates::ClassRates;
use chatstore_core::store::Quotas;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::check_id;
use crate::api::limits::{ProjectLimitsRequest, ProjectLimitsResponse, check_name};
use crate::auth::check_public_key;
use crate::body::{Body, Field, Object};
use crate::error::{ApiError, FieldError};
use crate::openapi::{Example, id, time};

/// A tenant.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProjectResponse {
    /// Its id.
    #[schemars(schema_with = "id")]
    project_id: ProjectId,
    /// Its name, unique in the installation.
    name: String,
    /// Rates of each of its keys and users, and of all together.
    limits: ProjectLimitsResponse,
    /// How much it may hold; what is null follows the settings of the installation.
    quotas: QuotasResponse,
    /// Whose user tokens it believes, beside those that are signed with a secret.
    tokens: TokensResponse,
    /// Whether it has a secret of its own that signs user tokens.
    has_token_secret: bool,
    /// When it was made.
    #[schemars(schema_with = "time")]
    created_at: Timestamp,
    /// When it was last changed.
    #[schemars(schema_with = "time")]
    updated_at: Timestamp,
    /// What it holds, a moment ago; where one project is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "UsageResponse")]
    usage: Option<UsageResponse>,
}

/// How much a project may hold.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QuotasResponse {
    /// Sessions of one user.
    sessions_per_user: Option<u64>,
    /// Messages of one session.
    messages_per_session: Option<u64>,
    /// Bytes of text of the whole project.
    project_bytes: Option<u64>,
}

/// Whose user tokens a project believes.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TokensResponse {
    /// Who signs them.
    public_keys: Vec<PublicKeyResponse>,
    /// What `aud` must contain instead of `chatstore`.
    audience: Option<String>,
    /// What `iss` must be.
    issuer: Option<String>,
}

/// A key that verifies user tokens.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PublicKeyResponse {
    /// The `kid` of tokens it verifies.
    key_id: Option<String>,
    /// Its algorithm.
    #[schemars(schema_with = "algorithm")]
    algorithm: TokenAlgorithm,
    /// The key.
    public_key: String,
}

/// What a project holds.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UsageResponse {
    /// Sessions.
    sessions: u64,
    /// Messages in them.
    messages: u64,
    /// Bytes of their contents, payloads, metadata and contexts.
    bytes: u64,
}

fn algorithm(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "enum": ["EdDSA", "ES256", "RS256"]})
}

impl ProjectResponse {
    /// The project with what it holds.
    pub(super) fn with_usage(self, usage: ProjectUsage) -> Self {
        let ProjectUsage { sessions, messages, bytes } = usage;
        Self { usage: Some(UsageResponse { sessions, messages, bytes }), ..self }
    }

    /// The project, with its secrets as of `now`.
    pub(super) fn new(project: Project, now: Timestamp) -> Self {
        let ProjectSettings { limits, total_limit, quotas, tokens } = project.settings;
        let public_keys = tokens.public_keys.into_iter().map(|key| PublicKeyResponse {
            key_id: key.key_id,
            algorithm: key.algorithm,
            public_key: key.public_key,
        });
        Self {
            project_id: project.project_id,
            name: project.name,
            limits: ProjectLimitsResponse::new(limits, total_limit),
            quotas: QuotasResponse {
                sessions_per_user: quotas.sessions_per_user,
                messages_per_session: quotas.messages_per_session,
                project_bytes: quotas.project_bytes,
            },
            tokens: TokensResponse {
                public_keys: public_keys.collect(),
                audience: tokens.audience,
                issuer: tokens.issuer,
            },
            has_token_secret: project.token_secrets.iter().any(|secret| secret.is_active(now)),
            created_at: project.created_at,
            updated_at: project.updated_at,
            usage: None,
        }
    }
}

impl Example for ProjectResponse {
    fn example() -> Value {
        json!({
            "project_id": "019b0f3e-4a00-7d52-8e11-2c6b9a0f1d38",
            "name": "travel",
            "limits": {"reads": "600/minute", "writes": "60/minute burst 120", "search": null, "total": "5000/minute"},
            "quotas": {"sessions_per_user": 1000, "messages_per_session": null, "project_bytes": 1_000_000_000},
            "tokens": {"public_keys": [], "audience": null, "issuer": null},
            "has_token_secret": true,
            "created_at": "2026-01-31T12:00:00.000000Z",
            "updated_at": "2026-01-31T12:00:00.000000Z",
            "usage": {"sessions": 12, "messages": 340, "bytes": 51_234},
        })
    }
}

/// A project to create.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["name"]))]
pub struct CreateProjectRequest {
    /// Its name, unique in the installation: 1 to 200 bytes, and no UUID.
    #[serde(default)]
    #[schemars(with = "String")]
    name: Field<String>,
    /// Rates of each of its keys and users, and of all together.
    #[serde(default)]
    #[schemars(with = "Option<ProjectLimitsRequest>")]
    limits: Field<Object<ProjectLimitsRequest>>,
    /// How much it may hold.
    #[serde(default)]
    #[schemars(with = "Option<QuotasRequest>")]
    quotas: Field<Object<QuotasRequest>>,
    /// Whose user tokens it believes, beside those that are signed with a secret.
    #[serde(default)]
    #[schemars(with = "Option<TokensRequest>")]
    tokens: Field<Object<TokensRequest>>,
}

/// Changes to a project: only the keys that are present change, each as a whole; null takes all of it away.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct UpdateProjectRequest {
    /// Its name, unique in the installation: 1 to 200 bytes, and no UUID.
    #[serde(default)]
    #[schemars(with = "String")]
    name: Field<String>,
    /// Rates of each of its keys and users, and of all together.
    #[serde(default)]
    #[schemars(with = "Option<ProjectLimitsRequest>")]
    limits: Field<Object<ProjectLimitsRequest>>,
    /// How much it may hold.
    #[serde(default)]
    #[schemars(with = "Option<QuotasRequest>")]
    quotas: Field<Object<QuotasRequest>>,
    /// Whose user tokens it believes, beside those that are signed with a secret.
    #[serde(default)]
    #[schemars(with = "Option<TokensRequest>")]
    tokens: Field<Object<TokensRequest>>,
}

/// How much a project may hold; what is absent or null follows the settings of the installation.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QuotasRequest {
    /// Sessions of one user.
    sessions_per_user: Option<i64>,
    /// Messages of one session.
    messages_per_session: Option<i64>,
    /// Bytes of text of the whole project.
    project_bytes: Option<i64>,
}

/// Whose user tokens a project believes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokensRequest {
    /// Who signs them: at most 10.
    #[schemars(with = "Vec<PublicKeyRequest>")]
    public_keys: Vec<Object<PublicKeyRequest>>,
    /// What `aud` must contain instead of `chatstore`.
    audience: Option<String>,
    /// What `iss` must be.
    issuer: Option<String>,
}

/// A key that verifies user tokens.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct PublicKeyRequest {
    /// The `kid` of tokens it verifies; without it, it is tried for every token of its algorithm.
    #[serde(default)]
    key_id: Option<String>,
    /// Its algorithm.
    #[schemars(schema_with = "algorithm")]
    algorithm: TokenAlgorithm,
    /// The key: PEM (`-----BEGIN PUBLIC KEY-----`), or a JWK (RFC 7517) as JSON text. It is never fetched from a URL.
    public_key: String,
}

impl Body for CreateProjectRequest {}

impl Body for UpdateProjectRequest {}

impl Example for CreateProjectRequest {
    fn example() -> Value {
        json!({"name": "travel", "limits": {"writes": "60/minute burst 120"}, "quotas": {"sessions_per_user": 1000}})
    }
}

impl Example for UpdateProjectRequest {
    fn example() -> Value {
        json!({"quotas": {"sessions_per_user": 1000, "project_bytes": 1_000_000_000}})
    }
}

impl CreateProjectRequest {
    /// Whether it says who signs tokens.
    pub(super) fn is_about_tokens(&self) -> bool {
        is_given(&self.tokens)
    }

    /// The settings of the new project, and its name.
    pub(super) fn check(self) -> Result<ProjectPatch, ApiError> {
        let mut errors = Vec::new();
        if matches!(self.name, Field::Absent) {
            errors.push(FieldError::new("/name", "is required"));
        }
        let Self { name, limits, quotas, tokens } = self;
        UpdateProjectRequest { name, limits, quotas, tokens }.check(errors)
    }
}

impl UpdateProjectRequest {
    /// Whether it says who signs tokens.
    pub(super) fn is_about_tokens(&self) -> bool {
        is_given(&self.tokens)
    }

    /// Whether it changes what only an operator decides.
    pub(super) fn is_for_operators(&self) -> bool {
        self.name != Field::Absent || is_given(&self.limits) || is_given(&self.quotas)
    }

    pub(super) fn check(self, mut errors: Vec<FieldError>) -> Result<ProjectPatch, ApiError> {
        let name = self.name.not_null("/name", &mut errors);
        check_name(name.as_deref(), &mut errors);
        // The id of a deleted project takes the place of its name.
        if name.as_deref().and_then(ProjectId::parse).is_some() {
            errors.push(FieldError::new("/name", "must not be a UUID: those are ids of projects"));
        }
        let limits = self.limits.change().map(|limits| match limits {
            Some(Object(limits)) => limits.check(&mut errors),
            None => (ClassRates::default(), None),
        });
        let (limits, total_limit) = limits.unzip();
        let patch = ProjectPatch {
            name,
            limits,
            total_limit,
            quotas: self.quotas.change().map(|quotas| check_quotas(quotas, &mut errors)),
            tokens: self.tokens.change().map(|tokens| check_tokens(tokens, &mut errors)),
        };
        if errors.is_empty() { Ok(patch) } else { Err(ApiError::invalid(errors)) }
    }
}

fn is_given<T>(field: &Field<T>) -> bool {
    !matches!(field, Field::Absent)
}

/// The largest whole number that every reader of JSON holds exactly.
const QUOTA_MAX: i64 = 1 << 53;

fn check_quotas(quotas: Option<Object<QuotasRequest>>, errors: &mut Vec<FieldError>) -> Quotas {
    let Some(Object(quotas)) = quotas else {
        return Quotas::default();
    };
    let mut quota = |name: &str, number: Option<i64>| {
        let number = number?;
        if !(1..=QUOTA_MAX).contains(&number) {
            let detail = format!("must be a whole number from 1 to {QUOTA_MAX}, or null for none");
            errors.push(FieldError::new(format!("/quotas/{name}"), detail));
        }
        u64::try_from(number).ok()
    };
    Quotas {
        sessions_per_user: quota("sessions_per_user", quotas.sessions_per_user),
        messages_per_session: quota("messages_per_session", quotas.messages_per_session),
        project_bytes: quota("project_bytes", quotas.project_bytes),
    }
}

fn check_tokens(tokens: Option<Object<TokensRequest>>, errors: &mut Vec<FieldError>) -> TokenSettings {
    let Some(Object(tokens)) = tokens else {
        return TokenSettings::default();
    };
    for (name, text) in [("audience", &tokens.audience), ("issuer", &tokens.issuer)] {
        check_id(&format!("/tokens/{name}"), text.as_deref(), NAME_BYTES_MAX, errors);
    }
    if tokens.public_keys.len() > TOKEN_KEYS_MAX {
        errors.push(FieldError::new("/tokens/public_keys", format!("must hold at most {TOKEN_KEYS_MAX} keys")));
    }
    let mut public_keys = Vec::new();
    for (n, Object(key)) in tokens.public_keys.into_iter().take(TOKEN_KEYS_MAX).enumerate() {
        let at = format!("/tokens/public_keys/{n}");
        check_id(&format!("{at}/key_id"), key.key_id.as_deref(), NAME_BYTES_MAX, errors);
        let key = TokenPublicKey { key_id: key.key_id, algorithm: key.algorithm, public_key: key.public_key };
        let fault = match key.public_key.len() {
            0..=TOKEN_KEY_BYTES_MAX => check_public_key(&key).err(),
            _ => Some(format!("have at most {TOKEN_KEY_BYTES_MAX} bytes")),
        };
        errors.extend(fault.map(|fault| FieldError::new(format!("{at}/public_key"), format!("must {fault}"))));
        public_keys.push(key);
    }
    TokenSettings { public_keys, audience: tokens.audience, issuer: tokens.issuer }
}

/// How long the secret before stays valid.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct RotateTokenSecretRequest {
    /// Seconds for which tokens of the secret before are still believed: 0 to 30 days, a day if absent.
    #[serde(default)]
    pub(super) grace_seconds: Field<i64>,
}

impl Body for RotateTokenSecretRequest {}

impl Example for RotateTokenSecretRequest {
    fn example() -> Value {
        json!({"grace_seconds": 3600})
    }
}

/// A new secret of a project.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RotateTokenSecretResponse {
    /// The secret, shown this once: tokens are signed with its characters (HS256).
    pub(super) secret: String,
    /// Until when the one before is believed, if there is one.
    #[schemars(schema_with = "crate::openapi::optional_time")]
    pub(super) previous_expires_at: Option<Timestamp>,
}

impl Example for RotateTokenSecretResponse {
    fn example() -> Value {
        json!({"secret": "…", "previous_expires_at": "2026-02-01T12:00:00.000000Z"})
    }
}
