//! Projects: the tenants. Every row belongs to one.

use std::fmt;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::clock::{Ctx, Timestamp};
use crate::idempotency::{Answered, Claim};
use crate::ids::ProjectId;
use crate::page::{Page, PageRequest, ProjectPosition};
use crate::rates::{ClassRates, Rates};
use crate::store::{Quotas, StoreError};

/// Name of the project that `API_KEY` speaks for.
pub const DEFAULT_PROJECT: &str = "default";

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its id.
    pub project_id: ProjectId,
    /// Its name, unique in the installation.
    pub name: String,
    /// Its own limits, and whose user tokens it believes.
    pub settings: ProjectSettings,
    /// What its own user tokens are signed with (HS256), newest first: at most the one in use and the one before.
    pub token_secrets: Vec<TokenSecret>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What an operator, and the project itself, decided. Stored as JSON; what a newer version added is passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProjectSettings {
    /// Rates of its keys and users, instead of those of the installation.
    pub limits: ClassRates,
    /// One budget for all requests of its keys and users together, of whatever kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_limit: Option<Rates>,
    /// How much it may hold, instead of what the installation says.
    pub quotas: Quotas,
    /// Whose user tokens it believes.
    pub tokens: TokenSettings,
}

/// Which user tokens a project believes beside those that are signed with a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenSettings {
    /// Who signs them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub public_keys: Vec<TokenPublicKey>,
    /// What `aud` must name instead of `chatstore`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// What `iss` must be, if it must be anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
}

/// A key that verifies user tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPublicKey {
    /// The `kid` of tokens it verifies; without it, it is tried for every token of its algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The one algorithm it is for.
    pub algorithm: TokenAlgorithm,
    /// The key: PEM (SubjectPublicKeyInfo), or a JWK (RFC 7517) as JSON text.
    pub public_key: String,
}

/// Algorithms of public keys (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenAlgorithm {
    /// Ed25519.
    EdDSA,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, 2,048 to 8,192 bits.
    RS256,
}

/// A secret that a project signs its user tokens with. Its text form is the key: 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenSecret {
    /// The random bytes behind the text.
    pub bytes: [u8; 32],
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
}

impl TokenSecret {
    /// Makes a new one.
    pub fn generate(ctx: &Ctx) -> Self {
        Self { bytes: ctx.random(), expires_at: None }
    }

    /// The text that signs, to be shown once.
    pub fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.bytes)
    }

    /// Whether it may be used at `now`.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl ProjectSettings {
    /// The text that is stored.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }

    /// Reads what [`ProjectSettings::to_text`] wrote.
    ///
    /// # Errors
    /// `Internal` for any other text: settings that cannot be read must not count as none.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        serde_json::from_str(text).map_err(|error| StoreError::internal(format!("stored settings: {error}")))
    }
}

impl Project {
    /// A project with nothing of its own.
    pub fn new(project_id: ProjectId, name: impl Into<String>, now: Timestamp) -> Self {
        Self {
            project_id,
            name: name.into(),
            settings: ProjectSettings::default(),
            token_secrets: Vec::new(),
            created_at: now,
            updated_at: now,
        }
    }

    /// Why [`ProjectStore::delete_project`] leaves the default project.
    pub fn default_stays() -> StoreError {
        let detail = "cannot be deleted: it is the default project".to_owned();
        StoreError::Invalid { pointer: String::new(), detail }
    }

    /// Takes `secret` into use; the one before stays valid until `previous_expires_at`. `None` takes all away.
    pub fn rotate_token_secret(&mut self, secret: Option<TokenSecret>, previous_expires_at: Timestamp, now: Timestamp) {
        let previous = self.token_secrets.first().copied();
        self.token_secrets.clear();
        if let Some(secret) = secret {
            self.token_secrets.push(secret);
            let kept = previous.filter(|previous| previous.is_active(now) && now < previous_expires_at);
            self.token_secrets.extend(kept.map(|kept| TokenSecret { expires_at: Some(previous_expires_at), ..kept }));
        }
        self.updated_at = self.updated_at.max(now);
    }
}

/// A change of a project: what is `None` stays, what is given replaces the whole of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectPatch {
    /// Its name.
    pub name: Option<String>,
    /// Rates of its keys and users.
    pub limits: Option<ClassRates>,
    /// One budget for all its requests; `Some(None)` takes it away.
    pub total_limit: Option<Option<Rates>>,
    /// How much it may hold.
    pub quotas: Option<Quotas>,
    /// Whose user tokens it believes.
    pub tokens: Option<TokenSettings>,
}

impl ProjectPatch {
    /// Makes the change.
    pub fn apply(self, project: &mut Project, now: Timestamp) {
        project.name = self.name.unwrap_or_else(|| std::mem::take(&mut project.name));
        let settings = &mut project.settings;
        settings.limits = self.limits.unwrap_or_else(|| std::mem::take(&mut settings.limits));
        settings.total_limit = self.total_limit.unwrap_or_else(|| settings.total_limit.take());
        settings.quotas = self.quotas.unwrap_or(settings.quotas);
        settings.tokens = self.tokens.unwrap_or_else(|| std::mem::take(&mut settings.tokens));
        project.updated_at = project.updated_at.max(now);
    }
}

/// What a project holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectUsage {
    /// Sessions.
    pub sessions: u64,
    /// Messages in them.
    pub messages: u64,
    /// Bytes of UTF-8 in their contents, payloads, metadata and contexts.
    pub bytes: u64,
}

/// What a store does with projects. These calls stand above tenants and are for operators.
#[async_trait]
pub trait ProjectStore: Send + Sync {
    /// Stores a project; [`StoreError::Conflict`] if the name is taken. The claim's record names it.
    async fn create_project(&self, project: Project, claim: Option<&Claim>) -> Result<Answered<Project>, StoreError>;

    /// The project of this id, as it is now.
    async fn get_project(&self, project_id: ProjectId) -> Result<Option<Project>, StoreError>;

    /// The project of this name.
    async fn get_project_by_name(&self, name: &str) -> Result<Option<Project>, StoreError>;

    /// Projects, oldest first; those made at one moment by their ids.
    async fn list_projects(
        &self,
        page: &PageRequest<ProjectPosition>,
    ) -> Result<Page<Project, ProjectPosition>, StoreError>;

    /// Changes a project; [`StoreError::Conflict`] if the name is taken.
    async fn update_project(
        &self,
        project_id: ProjectId,
        patch: ProjectPatch,
        now: Timestamp,
    ) -> Result<Project, StoreError>;

    /// [`Project::rotate_token_secret`]. The claim's record names the project; a replay gives it as it is now.
    async fn rotate_token_secret(
        &self,
        project_id: ProjectId,
        secret: Option<TokenSecret>,
        previous_expires_at: Timestamp,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<Project>, StoreError>;

    /// Deletes a project and gives it as it was: it and its keys are absent from now on, its name is free, its settings
    /// and secrets are gone. Its sessions are deleted by [`ProjectStore::erase_deleted_projects`]. The default project
    /// is `Invalid`.
    async fn delete_project(&self, project_id: ProjectId, now: Timestamp) -> Result<Project, StoreError>;

    /// Deletes up to [`crate::limits::ERASE_SESSIONS_BATCH`] sessions of deleted projects, as `delete_session` does;
    /// tells whether there may be more. Several may call it at once.
    async fn erase_deleted_projects(&self, now: Timestamp) -> Result<bool, StoreError>;

    /// What a project holds, nothing if it is deleted: sums over all its sessions, so nothing for the path of a request.
    async fn get_project_usage(&self, project_id: ProjectId) -> Result<ProjectUsage, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: i64) -> Timestamp {
        Timestamp::from_micros(us).unwrap()
    }

    #[test]
    fn a_rotated_secret_leaves_at_most_one_behind() {
        let ctx = Ctx::fixed(at(0), 1, 1);
        let mut project = Project::new(ProjectId::DEFAULT, "a", at(0));
        let secrets = [(); 3].map(|()| TokenSecret::generate(&ctx));
        project.rotate_token_secret(Some(secrets[0]), at(100), at(1));
        assert_eq!(project.token_secrets, [secrets[0]]);
        project.rotate_token_secret(Some(secrets[1]), at(100), at(2));
        assert_eq!(project.token_secrets, [secrets[1], TokenSecret { expires_at: Some(at(100)), ..secrets[0] }]);
        assert!(project.token_secrets[1].is_active(at(99)) && !project.token_secrets[1].is_active(at(100)));
        project.rotate_token_secret(Some(secrets[2]), at(3), at(3));
        assert_eq!(project.token_secrets, [secrets[2]]);
        project.rotate_token_secret(None, at(100), at(4));
        assert_eq!((project.token_secrets.len(), project.updated_at), (0, at(4)));
    }

    #[test]
    fn a_secret_has_43_characters_and_hides() {
        let secret = TokenSecret::generate(&Ctx::fixed(at(0), 1, 1));
        assert_eq!(secret.expose().len(), 43);
        assert_eq!(format!("{secret:?}"), "***");
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let mut project = Project::new(ProjectId::DEFAULT, "a", at(5));
        let limits = ClassRates { reads: Rates::parse("1/second"), ..ClassRates::default() };
        ProjectPatch { limits: Some(limits.clone()), ..ProjectPatch::default() }.apply(&mut project, at(1));
        assert_eq!((project.name.as_str(), &project.settings.limits, project.updated_at), ("a", &limits, at(5)));
        ProjectPatch { name: Some("b".to_owned()), ..ProjectPatch::default() }.apply(&mut project, at(6));
        assert_eq!((project.name.as_str(), &project.settings.limits, project.updated_at), ("b", &limits, at(6)));
    }
}
