//! API keys: who may call, for which project, with which scopes.

use std::fmt;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::clock::{Ctx, Timestamp};
use crate::ids::ProjectId;
use crate::store::StoreError;

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
        let names = Permission::ALL.into_iter().filter(|p| self.contains(*p)).map(Permission::as_str);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

/// A secret as a client presents it: `cs_<id>_<secret>_<crc>`.
///
/// `id` has 12 and `secret` 32 characters of `0-9A-Za-z` (190 bits); `crc` is the CRC-32 of all
/// before it, in 6 such characters, so that a typo is seen without a lookup and scanners recognise
/// a leaked key. `Debug` shows the id alone.
#[derive(Clone)]
pub struct PresentedKey {
    key_id: String,
    text: String,
}

/// Digits of the key's alphabet.
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const KEY_ID_CHARS: usize = 12;
const SECRET_CHARS: usize = 32;
const CRC_CHARS: usize = 6;

impl PresentedKey {
    /// Makes a new key.
    pub fn generate(ctx: &Ctx) -> Self {
        let key_id = random_base62(ctx, KEY_ID_CHARS);
        let body = format!("cs_{key_id}_{}", random_base62(ctx, SECRET_CHARS));
        let text = format!("{body}_{}", checksum(&body));
        Self { key_id, text }
    }

    /// Reads a key; `None` for a text that cannot be one, which costs no lookup.
    pub fn parse(text: &str) -> Option<Self> {
        let (body, crc) = text.rsplit_once('_')?;
        let (key_id, secret) = body.strip_prefix("cs_")?.split_once('_')?;
        let base62 = |part: &str, chars| part.len() == chars && part.bytes().all(|b| b.is_ascii_alphanumeric());
        let well_formed = base62(key_id, KEY_ID_CHARS) && base62(secret, SECRET_CHARS) && base62(crc, CRC_CHARS);
        (well_formed && checksum(body) == crc).then(|| Self { key_id: key_id.to_owned(), text: text.to_owned() })
    }

    /// Its public part.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The whole key, to be shown once.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What is stored of it.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest::of(&self.text)
    }
}

impl fmt::Debug for PresentedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cs_{}_***", self.key_id)
    }
}

/// SHA-256 of a key. A plain digest is enough: the secret has 190 random bits (OWASP ASVS 6.5.2).
#[derive(Clone, Copy)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// The digest of a key's text.
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// The digest with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes as stored.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether both are of the same key, in time that does not depend on where they differ.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn random_base62(ctx: &Ctx, chars: usize) -> String {
    let mut text = String::with_capacity(chars);
    while text.len() < chars {
        // Bytes past the last multiple of 62 are dropped, so that every digit is equally likely.
        let digits = ctx.random::<64>().into_iter().filter(|byte| *byte < 248);
        let digits = digits.map(|byte| char::from(BASE62[usize::from(byte % 62)]));
        text.extend(digits.take(chars - text.len()));
    }
    text
}

fn checksum(body: &str) -> String {
    let mut rest = crc32fast::hash(body.as_bytes()) as usize;
    let mut digits = [b'0'; CRC_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[rest % 62];
        rest /= 62;
    }
    digits.into_iter().map(char::from).collect()
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
    /// What it may do.
    pub scopes: KeyScopes,
    /// The one user it may speak for.
    pub user_id: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    /// Whether it may be used at `now`.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

/// What a store does with keys. These calls stand above tenants: they decide who a caller is.
#[async_trait]
pub trait ApiKeyStore: Send + Sync {
    /// Stores a key.
    async fn create_api_key(&self, key: ApiKey) -> Result<(), StoreError>;

    /// Stores a key if there has never been one; tells whether it did. Of several callers at
    /// once, one succeeds.
    async fn create_first_api_key(&self, key: ApiKey) -> Result<bool, StoreError>;

    /// The key of this id, also when it is revoked or expired. A change made elsewhere is seen
    /// within a second.
    async fn get_api_key(&self, key_id: &str) -> Result<Option<ApiKey>, StoreError>;

    /// All keys with the names of their projects, oldest first.
    async fn list_api_keys(&self) -> Result<Vec<(ApiKey, String)>, StoreError>;

    /// Revokes a key; a key already revoked stays as it is. `NotFound` if there is none.
    async fn revoke_api_key(&self, key_id: &str, now: Timestamp) -> Result<ApiKey, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(seed: u64) -> PresentedKey {
        PresentedKey::generate(&Ctx::fixed(Timestamp::from_micros(0).unwrap(), 1, seed))
    }

    #[test]
    fn a_key_has_the_documented_form() {
        let key = key(1);
        let parts: Vec<&str> = key.expose().split('_').collect();
        assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), [2, 12, 32, 6]);
        assert_eq!(parts[0], "cs");
        assert_eq!(parts[1], key.key_id());
    }

    #[test]
    fn debug_hides_secrets() {
        let key = key(2);
        let secret = key.expose().split('_').nth(2).unwrap();
        assert!(!format!("{key:?} {:?}", key.digest()).contains(secret));
    }

    #[test]
    fn scopes_read_and_write_their_names() {
        let scopes = KeyScopes::parse("write, read").unwrap();
        assert_eq!(scopes.to_string(), "read,write");
        assert!(!scopes.contains(Permission::Delete));
        assert_eq!(KeyScopes::parse("read,rule"), Err("rule".to_owned()));
        assert_eq!(KeyScopes::parse(&KeyScopes::all().to_string()), Ok(KeyScopes::all()));
    }

    proptest! {
        #[test]
        fn a_typo_is_no_key(seed in any::<u64>(), at in 0usize..53, digit in 0usize..62) {
            let key = key(seed);
            let parsed = PresentedKey::parse(key.expose()).unwrap();
            prop_assert!(parsed.digest().matches(&key.digest()));
            let mut typo = key.expose().as_bytes().to_vec();
            let at = at % typo.len();
            prop_assume!(typo[at] != BASE62[digit]);
            typo[at] = BASE62[digit];
            prop_assert!(PresentedKey::parse(std::str::from_utf8(&typo).unwrap()).is_none());
        }

        #[test]
        fn no_text_makes_it_panic(text in "cs_.{0,80}") {
            prop_assert!(PresentedKey::parse(&text).is_none());
        }
    }
}
