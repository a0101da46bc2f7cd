//! API keys: who may call, for which project, with which scopes.

mod presented;

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::idempotency::{Answered, Claim};
use crate::ids::ProjectId;
use crate::page::{KeyPosition, Page, PageRequest};
use crate::projects::Project;
use crate::rates::{ClassRates, Rates, RequestClass};
use crate::store::StoreError;

pub use presented::{KeyDigest, PresentedKey};

/// One thing a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Permission {
    /// Read sessions and messages.
    Read = 1,
    /// Create and change them.
    Write = 2,
    /// Delete them.
    Delete = 4,
    /// Search them.
    Search = 8,
    /// Rule the key's own project.
    Admin = 16,
    /// Rule projects.
    Operator = 32,
}

impl Permission {
    /// All, in the order they are listed.
    pub const ALL: [Self; 6] = [Self::Read, Self::Write, Self::Delete, Self::Search, Self::Admin, Self::Operator];

    /// Its name on the wire and in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Search => "search",
            Self::Admin => "admin",
            Self::Operator => "operator",
        }
    }
}

/// The scopes of a key: a set of permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyScopes(u8);

impl KeyScopes {
    /// Everything, also ruling projects.
    pub fn all() -> Self {
        Permission::ALL.into_iter().collect()
    }

    /// Whether `permission` is among them.
    pub fn contains(self, permission: Permission) -> bool {
        self.0 & permission as u8 != 0
    }

    /// What the holder of a user token may have: everything but ruling.
    pub fn of_users() -> Self {
        [Permission::Read, Permission::Write, Permission::Delete, Permission::Search].into_iter().collect()
    }

    /// Whether every one of `others` is among them.
    pub fn contain(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    /// Those that are also among `others`.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// Each of them, in the order they are listed.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.into_iter().filter(move |permission| self.contains(*permission))
    }

    /// Reads names separated by commas or spaces; the error is the first name that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split([',', ' '])
            .filter(|name| !name.is_empty())
            .map(|name| Permission::ALL.into_iter().find(|p| p.as_str() == name).ok_or_else(|| name.to_owned()))
            .collect()
    }

    /// Reads stored names; what a newer version added is passed over, and so not granted.
    pub fn parse_known(text: &str) -> Self {
        Permission::ALL.into_iter().filter(|p| text.split(',').any(|name| name == p.as_str())).collect()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Permission> for KeyScopes {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().fold(0, |bits, permission| bits | permission as u8))
    }
}

impl fmt::Display for KeyScopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.iter().map(Permission::as_str);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

/// A stored key: never the secret, only its digest.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// The public part of the key.
    pub key_id: String,
    /// The project it speaks for.
    pub project_id: ProjectId,
    /// What its owner calls it.
    pub name: String,
    /// Digest of the key.
    pub digest: KeyDigest,
    /// The digest before the last rotation, while it may still be used.
    pub previous: Option<PreviousDigest>,
    /// What it may do.
    pub scopes: KeyScopes,
    /// The one user it may speak for.
    pub user_id: Option<String>,
    /// Its own limits, and where it may be used.
    pub settings: KeySettings,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed or rotated.
    pub updated_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to a minute or so.
    pub last_used_at: Option<Timestamp>,
}

/// The secret that a rotation replaced.
#[derive(Clone, Copy, Debug)]
pub struct PreviousDigest {
    /// Digest of the key with the old secret.
    pub digest: KeyDigest,
    /// From when on it is refused.
    pub expires_at: Timestamp,
}

/// What ties a key down. Stored as JSON; what a newer version added is passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeySettings {
    /// Its own rates; see [`KeySettings::rates`].
    pub limits: ClassRates,
    /// Whether an operator set these rates: then they count also where they are wider than what the key would follow,
    /// and nobody else changes them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub limits_by_operator: bool,
    /// Origins (RFC 6454) from which a browser may use it; empty allows all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_origins: Vec<String>,
    /// Addresses and ranges, such as `203.0.113.0/24`, from which it may be used; empty allows all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_addresses: Vec<String>,
}

impl KeySettings {
    /// The rates that act for `class`, where the key would follow `followed`. Rates that no operator set only narrow:
    /// they must not outlive the limits they had to lie within.
    pub fn rates<'a>(&'a self, class: RequestClass, followed: Option<&'a Rates>) -> Option<&'a Rates> {
        match (self.limits.get(class), followed) {
            (Some(own), Some(followed)) if !self.limits_by_operator && !own.are_within(followed) => Some(followed),
            (own, followed) => own.or(followed),
        }
    }

    /// The text that is stored.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }

    /// Reads what [`KeySettings::to_text`] wrote.
    ///
    /// # Errors
    /// `Internal` for any other text: settings that cannot be read must not count as none.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        serde_json::from_str(text).map_err(|error| StoreError::internal(format!("stored settings: {error}")))
    }
}

impl ApiKey {
    /// A key with all that is usual: not tied to anything, for ever.
    pub fn new(
        presented: &PresentedKey,
        project_id: ProjectId,
        name: impl Into<String>,
        scopes: KeyScopes,
        now: Timestamp,
    ) -> Self {
        Self {
            key_id: presented.key_id().to_owned(),
            project_id,
            name: name.into(),
            digest: presented.digest(),
            previous: None,
            scopes,
            user_id: None,
            settings: KeySettings::default(),
            created_at: now,
            updated_at: now,
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
        }
    }

    /// Whether it may be used at `now`.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }

    /// Whether `digest` is of its secret, or of the one before while that is still valid at `now`. Both are compared
    /// always, so that the time taken tells nothing.
    pub fn accepts(&self, digest: &KeyDigest, now: Timestamp) -> bool {
        let previous = self.previous.unwrap_or(PreviousDigest { digest: self.digest, expires_at: now });
        let current = self.digest.matches(digest);
        current | (previous.digest.matches(digest) & (now < previous.expires_at))
    }

    /// Gives it a new secret; the one before stays valid until `previous_expires_at`.
    pub fn rotate(&mut self, digest: KeyDigest, previous_expires_at: Timestamp, now: Timestamp) {
        self.previous = (now < previous_expires_at)
            .then_some(PreviousDigest { digest: self.digest, expires_at: previous_expires_at });
        self.digest = digest;
        self.updated_at = self.updated_at.max(now);
    }
}

/// A change of a key: what is `None` stays. Its project, user and secret never change this way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiKeyPatch {
    /// What its owner calls it.
    pub name: Option<String>,
    /// What it may do.
    pub scopes: Option<KeyScopes>,
    /// From when on it is refused; `Some(None)` is never.
    pub expires_at: Option<Option<Timestamp>>,
    /// Its own rates, all of them.
    pub limits: Option<ClassRates>,
    /// Whether an operator set them.
    pub limits_by_operator: Option<bool>,
    /// Origins from which a browser may use it.
    pub allowed_origins: Option<Vec<String>>,
    /// Addresses from which it may be used.
    pub allowed_addresses: Option<Vec<String>>,
}

impl ApiKeyPatch {
    /// Makes the change.
    pub fn apply(self, key: &mut ApiKey, now: Timestamp) {
        key.name = self.name.unwrap_or_else(|| std::mem::take(&mut key.name));
        key.scopes = self.scopes.unwrap_or(key.scopes);
        key.expires_at = self.expires_at.unwrap_or(key.expires_at);
        let settings = &mut key.settings;
        settings.limits = self.limits.unwrap_or_else(|| std::mem::take(&mut settings.limits));
        settings.limits_by_operator = self.limits_by_operator.unwrap_or(settings.limits_by_operator);
        settings.allowed_origins =
            self.allowed_origins.unwrap_or_else(|| std::mem::take(&mut settings.allowed_origins));
        settings.allowed_addresses =
            self.allowed_addresses.unwrap_or_else(|| std::mem::take(&mut settings.allowed_addresses));
        key.updated_at = key.updated_at.max(now);
    }
}

/// Who manages keys: for which project, and which scopes they hold themselves.
///
/// Nobody makes, changes, rotates or revokes a key that may do more than they may: a new secret, or a wider scope,
/// would be theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Whose keys; `None` is those of every project.
    pub project_id: Option<ProjectId>,
    /// The scopes they hold.
    pub scopes: KeyScopes,
}

impl Authority {
    /// Whoever has a shell on the host.
    pub fn host() -> Self {
        Self { project_id: None, scopes: KeyScopes::all() }
    }

    /// Whether keys of this project are theirs to manage.
    pub fn covers(&self, project_id: ProjectId) -> bool {
        self.project_id.is_none_or(|own| own == project_id)
    }

    /// Lets a change of `key` pass.
    ///
    /// # Errors
    /// `NotFound` for a key of another project; `Forbidden` for one that may do more.
    pub fn check(&self, key: &ApiKey) -> Result<(), StoreError> {
        if !self.covers(key.project_id) {
            return Err(StoreError::NotFound);
        }
        if self.scopes.contain(key.scopes) { Ok(()) } else { Err(StoreError::Forbidden) }
    }
}

/// What a store does with keys. These calls stand above tenants: they decide who a caller is.
///
/// A key of a deleted project is absent for every one of them.
#[async_trait]
pub trait ApiKeyStore: Send + Sync {
    /// Stores a key. `NotFound` if there is no such project. The claim's record names the key; a replay gives it as it is
    /// now.
    async fn create_api_key(&self, key: ApiKey, claim: Option<&Claim>) -> Result<Answered<ApiKey>, StoreError>;

    /// Stores a key if there has never been one; tells whether it did. Of several callers at
    /// once, one succeeds.
    async fn create_first_api_key(&self, key: ApiKey) -> Result<bool, StoreError>;

    /// The key of this id, also when it is revoked or expired, and its project, as they are now.
    async fn get_api_key(&self, key_id: &str) -> Result<Option<(ApiKey, Project)>, StoreError>;

    /// The keys of a project, or of all, with the names of their projects: oldest first, those made at one moment by
    /// their ids.
    async fn list_api_keys(
        &self,
        project_id: Option<ProjectId>,
        page: &PageRequest<KeyPosition>,
    ) -> Result<Page<(ApiKey, String), KeyPosition>, StoreError>;

    /// The ids of all keys that are not revoked, and of all projects as their text form, in no order: what tells a
    /// guess from a key without asking for each.
    async fn list_credential_ids(&self) -> Result<Vec<String>, StoreError>;

    /// Changes a key. The authority must cover it before and after the change.
    async fn update_api_key(
        &self,
        authority: &Authority,
        key_id: &str,
        patch: ApiKeyPatch,
        now: Timestamp,
    ) -> Result<ApiKey, StoreError>;

    /// Gives a key a new secret; the one before stays valid until `previous_expires_at`. A secret that was rotated
    /// away before is no longer valid. `Conflict` on `revoked_at` if the key is revoked.
    /// The claim's record names the key; a replay gives it as it is now.
    async fn rotate_api_key(
        &self,
        authority: &Authority,
        key_id: &str,
        digest: KeyDigest,
        previous_expires_at: Timestamp,
        now: Timestamp,
        claim: Option<&Claim>,
    ) -> Result<Answered<ApiKey>, StoreError>;

    /// Revokes a key; a key already revoked stays as it is.
    async fn revoke_api_key(&self, authority: &Authority, key_id: &str, now: Timestamp) -> Result<ApiKey, StoreError>;

    /// Notes when keys were last used; an earlier time than the noted one changes nothing, and neither does a key that
    /// is gone.
    async fn note_api_key_uses(&self, uses: Vec<(String, Timestamp)>) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Ctx;

    fn key(seed: u64) -> PresentedKey {
        PresentedKey::generate(&Ctx::fixed(Timestamp::from_micros(0).unwrap(), 1, seed))
    }

    #[test]
    fn scopes_read_and_write_their_names() {
        let scopes = KeyScopes::parse("write, read").unwrap();
        assert_eq!(scopes.to_string(), "read,write");
        assert!(!scopes.contains(Permission::Delete));
        assert_eq!(KeyScopes::parse("read,rule"), Err("rule".to_owned()));
        assert_eq!(KeyScopes::parse(&KeyScopes::all().to_string()), Ok(KeyScopes::all()));
    }

    #[test]
    fn a_rotated_key_keeps_its_id_and_its_old_secret_for_a_while() {
        let ctx = Ctx::fixed(Timestamp::from_micros(0).unwrap(), 1, 3);
        let first = PresentedKey::generate(&ctx);
        let second = PresentedKey::rotate(&ctx, first.key_id()).unwrap();
        assert_eq!(first.key_id(), second.key_id());
        assert_ne!(first.expose(), second.expose());
        assert!(PresentedKey::rotate(&ctx, "no id").is_none());
        let at = |us| Timestamp::from_micros(us).unwrap();
        let mut key = ApiKey::new(&first, ProjectId::DEFAULT, "a key", KeyScopes::all(), at(0));
        key.rotate(second.digest(), at(10), at(1));
        assert!(key.accepts(&first.digest(), at(9)) && key.accepts(&second.digest(), at(9)));
        assert!(!key.accepts(&first.digest(), at(10)) && key.accepts(&second.digest(), at(10)));
        // Without a time of grace the old one ends at once, and so does the one before it at the next rotation.
        let third = PresentedKey::rotate(&ctx, first.key_id()).unwrap();
        key.rotate(third.digest(), at(2), at(2));
        assert!(!key.accepts(&first.digest(), at(2)) && !key.accepts(&second.digest(), at(2)));
    }

    #[test]
    fn an_authority_covers_no_more_than_it_holds() {
        let project_id = ProjectId::DEFAULT;
        let scopes = |text| KeyScopes::parse(text).unwrap();
        let mut managed =
            ApiKey::new(&key(1), project_id, "a key", scopes("read,admin"), Timestamp::from_micros(0).unwrap());
        let authority = Authority { project_id: Some(project_id), scopes: scopes("read,write,admin") };
        assert_eq!(authority.check(&managed), Ok(()));
        managed.scopes = scopes("operator");
        assert_eq!(authority.check(&managed), Err(StoreError::Forbidden));
        assert_eq!(Authority::host().check(&managed), Ok(()));
        managed.project_id = ProjectId::from(uuid::Uuid::nil());
        assert_eq!(authority.check(&managed), Err(StoreError::NotFound));
    }

    #[test]
    fn rates_that_no_operator_set_only_narrow() {
        let rates = |text| Rates::parse(text).unwrap();
        let (narrow, wide, off) = (rates("1/minute"), rates("9/minute"), Rates::OFF);
        let limits = |own: &Rates| ClassRates { reads: Some(own.clone()), ..ClassRates::default() };
        let key = |own: &Rates, limits_by_operator| KeySettings {
            limits: limits(own),
            limits_by_operator,
            ..KeySettings::default()
        };
        let acts = |settings: &KeySettings, followed: Option<&Rates>| {
            settings.rates(RequestClass::Reads, followed).map(ToString::to_string)
        };
        for (own, by_operator, followed, expected) in [
            (&narrow, false, Some(&wide), "1/minute"),
            (&wide, false, Some(&narrow), "1/minute"),
            (&off, false, Some(&narrow), "1/minute"),
            (&wide, true, Some(&narrow), "9/minute"),
            (&off, true, Some(&narrow), "off"),
            (&wide, false, None, "9/minute"),
        ] {
            assert_eq!(acts(&key(own, by_operator), followed).as_deref(), Some(expected));
        }
        assert_eq!(acts(&KeySettings::default(), Some(&wide)).as_deref(), Some("9/minute"));
        assert_eq!(acts(&KeySettings::default(), None), None);
    }

    #[test]
    fn settings_survive_their_text_and_ignore_what_is_new() {
        let text = r#"{"limits":{"writes":"10/second"},"allowed_origins":["https://a.example"],"newer":1}"#;
        let settings = KeySettings::parse(text).unwrap();
        assert_eq!(settings.limits.writes.as_ref().unwrap().to_string(), "10/second");
        assert_eq!(KeySettings::parse(&settings.to_text()).unwrap(), settings);
        assert_eq!(KeySettings::parse("{}").unwrap(), KeySettings::default());
        assert!(KeySettings::parse(r#"{"limits":{"reads":"often"}}"#).is_err());
    }
}
