//! What a client presents and what is stored of it.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::clock::Ctx;

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
        Self::with_id(ctx, random_base62(ctx, KEY_ID_CHARS))
    }

    /// Makes a new secret for a key that keeps its id; `None` if `key_id` cannot be one.
    pub fn rotate(ctx: &Ctx, key_id: &str) -> Option<Self> {
        is_base62(key_id, KEY_ID_CHARS).then(|| Self::with_id(ctx, key_id.to_owned()))
    }

    fn with_id(ctx: &Ctx, key_id: String) -> Self {
        let body = format!("cs_{key_id}_{}", random_base62(ctx, SECRET_CHARS));
        let text = format!("{body}_{}", checksum(&body));
        Self { key_id, text }
    }

    /// Reads a key; `None` for a text that cannot be one, which costs no lookup.
    pub fn parse(text: &str) -> Option<Self> {
        let (body, crc) = text.rsplit_once('_')?;
        let (key_id, secret) = body.strip_prefix("cs_")?.split_once('_')?;
        let well_formed =
            is_base62(key_id, KEY_ID_CHARS) && is_base62(secret, SECRET_CHARS) && is_base62(crc, CRC_CHARS);
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

fn is_base62(text: &str, chars: usize) -> bool {
    text.len() == chars && text.bytes().all(|b| b.is_ascii_alphanumeric())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
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
