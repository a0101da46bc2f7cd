//! The keys that verify a project's user tokens, read once, each pinned to one algorithm.

use chatstore_core::clock::Timestamp;
use chatstore_core::limits::TOKEN_KEY_BYTES_MAX;
use chatstore_core::projects::{Project, TokenAlgorithm, TokenPublicKey};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};

use crate::config::Secret;

/// Every key that may have signed a token of one project.
pub(crate) struct TokenKeys(Vec<TokenKey>);

struct TokenKey {
    algorithm: Algorithm,
    /// The `kid` of its tokens.
    key_id: Option<String>,
    /// From when on it is refused.
    expires_at: Option<Timestamp>,
    key: DecodingKey,
}

impl TokenKeys {
    /// The project's public keys and secrets, and the secret of the installation.
    pub(crate) fn of(project: &Project, installation: Option<&Secret>) -> Self {
        let public = project.settings.tokens.public_keys.iter().filter_map(|public| {
            // One that a newer version stored and this one cannot read verifies nothing.
            let key = read_public_key(public).ok()?;
            let (algorithm, key_id) = (algorithm(public.algorithm), public.key_id.clone());
            Some(TokenKey { algorithm, key_id, expires_at: None, key })
        });
        let secret = |text: &str, expires_at| TokenKey {
            algorithm: Algorithm::HS256,
            key_id: None,
            expires_at,
            key: DecodingKey::from_secret(text.as_bytes()),
        };
        let own = project.token_secrets.iter().map(|own| secret(&own.expose(), own.expires_at));
        let installation = installation.map(|installation| secret(installation.expose(), None));
        Self(public.chain(own).chain(installation).collect())
    }

    /// The keys to try for a token with this header: those its `kid` names, if it names any, and else those without a
    /// name. Without a `kid`, all. Only ever those of its algorithm.
    pub(super) fn candidates<'a>(
        &'a self,
        header_algorithm: Algorithm,
        kid: Option<&'a str>,
        now: Timestamp,
    ) -> impl Iterator<Item = &'a DecodingKey> {
        let is_named = kid.is_some() && self.0.iter().any(|key| key.key_id.as_deref() == kid);
        let fits = move |key: &&TokenKey| match kid {
            None => true,
            Some(_) if is_named => key.key_id.as_deref() == kid,
            Some(_) => key.key_id.is_none(),
        };
        let keys = self.0.iter().filter(fits).filter(move |key| key.algorithm == header_algorithm);
        keys.filter(move |key| key.expires_at.is_none_or(|at| now < at)).map(|key| &key.key)
    }
}

fn algorithm(algorithm: TokenAlgorithm) -> Algorithm {
    match algorithm {
        TokenAlgorithm::EdDSA => Algorithm::EdDSA,
        TokenAlgorithm::ES256 => Algorithm::ES256,
        TokenAlgorithm::RS256 => Algorithm::RS256,
    }
}

/// Whether a public key can verify tokens of its algorithm.
///
/// # Errors
/// What it must be, to end a sentence that begins with "must".
pub fn check_public_key(public: &TokenPublicKey) -> Result<(), String> {
    read_public_key(public).map(drop)
}

const FORM: &str = "be a public key in PEM (`-----BEGIN PUBLIC KEY-----`), or a JWK as JSON text, of the algorithm that stands beside it";

fn read_public_key(public: &TokenPublicKey) -> Result<DecodingKey, String> {
    let text = public.public_key.trim();
    if text.len() > TOKEN_KEY_BYTES_MAX {
        return Err(format!("have at most {TOKEN_KEY_BYTES_MAX} bytes"));
    }
    if text.contains("PRIVATE KEY") {
        return Err(NO_PRIVATE.to_owned());
    }
    let is_pem = text.starts_with("-----BEGIN PUBLIC KEY-----");
    let parts = if is_pem { parts_of_pem(text, public.algorithm) } else { parts_of_jwk(text, public.algorithm)? };
    match parts.ok_or(FORM)? {
        Parts::Ed25519(point) if point.len() == 32 => Ok(DecodingKey::from_ed_der(&point)),
        Parts::P256(point) if is_on_p256(&point) => Ok(DecodingKey::from_ec_der(&point)),
        Parts::Rsa { n, e } => read_rsa(strip_zeros(&n), strip_zeros(&e)),
        Parts::Ed25519(_) | Parts::P256(_) => Err(FORM.to_owned()),
    }
}

const NO_PRIVATE: &str = "hold the public part alone: this is a private key, which nobody but the signer may have";

/// A public key in the form in which it verifies.
enum Parts {
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
    Rsa { n: Vec<u8>, e: Vec<u8> },
}

fn parts_of_pem(text: &str, algorithm: TokenAlgorithm) -> Option<Parts> {
    let pem = text.as_bytes();
    // What the crate keeps of a PEM is the content of its `subjectPublicKey`.
    match algorithm {
        TokenAlgorithm::EdDSA => {
            Some(Parts::Ed25519(DecodingKey::from_ed_pem(pem).ok()?.try_get_as_bytes().ok()?.to_vec()))
        }
        TokenAlgorithm::ES256 => {
            Some(Parts::P256(DecodingKey::from_ec_pem(pem).ok()?.try_get_as_bytes().ok()?.to_vec()))
        }
        TokenAlgorithm::RS256 => {
            let key = DecodingKey::from_rsa_pem(pem).ok()?;
            let (sequence, rest) = der(0x30, key.try_get_as_bytes().ok()?)?;
            let (n, after) = der(0x02, sequence)?;
            let (e, end) = der(0x02, after)?;
            (rest.is_empty() && end.is_empty()).then(|| Parts::Rsa { n: n.to_vec(), e: e.to_vec() })
        }
    }
}

fn parts_of_jwk(text: &str, algorithm: TokenAlgorithm) -> Result<Option<Parts>, String> {
    let Ok(members) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) else {
        return Ok(None);
    };
    if members.contains_key("d") || members.contains_key("k") {
        return Err(NO_PRIVATE.to_owned());
    }
    let Ok(jwk) = serde_json::from_str::<Jwk>(text) else {
        return Ok(None);
    };
    let is_for_signatures = jwk.common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
    let (named, parts) = match (algorithm, &jwk.algorithm) {
        (TokenAlgorithm::EdDSA, AlgorithmParameters::OctetKeyPair(okp)) if okp.curve == EllipticCurve::Ed25519 => {
            (KeyAlgorithm::EdDSA, base64(&okp.x).map(Parts::Ed25519))
        }
        (TokenAlgorithm::ES256, AlgorithmParameters::EllipticCurve(ec)) if ec.curve == EllipticCurve::P256 => {
            let point = base64(&ec.x).zip(base64(&ec.y)).filter(|(x, y)| x.len() == 32 && y.len() == 32);
            (KeyAlgorithm::ES256, point.map(|(x, y)| Parts::P256([vec![4], x, y].concat())))
        }
        (TokenAlgorithm::RS256, AlgorithmParameters::RSA(rsa)) => {
            (KeyAlgorithm::RS256, base64(&rsa.n).zip(base64(&rsa.e)).map(|(n, e)| Parts::Rsa { n, e }))
        }
        _ => return Ok(None),
    };
    let is_for_it = jwk.common.key_algorithm.is_none_or(|it| it == named);
    Ok(parts.filter(|_| is_for_signatures && is_for_it))
}

fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

fn strip_zeros(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    &number[start..]
}

fn read_rsa(n: &[u8], e: &[u8]) -> Result<DecodingKey, String> {
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    if !(2_048..=8_192).contains(&bits) {
        return Err("have 2,048 to 8,192 bits".to_owned());
    }
    // What ring takes: odd, from 3, of at most 33 bits.
    let exponent = e.iter().try_fold(0u64, |e, byte| (e < 1 << 25).then_some((e << 8) | u64::from(*byte)));
    if exponent.is_none_or(|e| e < 3 || e % 2 == 0) {
        return Err(FORM.to_owned());
    }
    Ok(DecodingKey::from_rsa_raw_components(n, e))
}

/// Whether these bytes are a point of P-256: nothing but an agreement with it makes ring look before there is a
/// signature.
fn is_on_p256(point: &[u8]) -> bool {
    use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
    let other = EphemeralPrivateKey::generate(&ECDH_P256, &ring::rand::SystemRandom::new());
    other.is_ok_and(|other| agree_ephemeral(other, &UnparsedPublicKey::new(&ECDH_P256, point), |_| ()).is_ok())
}

/// The content of the DER element at the start of `input`, if it has this tag, and what follows it.
fn der(tag: u8, input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = input.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81 | 0x82 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAVFbVle5JHYxDXPxbTccJvKVkPa55jCDOusQOZLY5Ewo=
-----END PUBLIC KEY-----";
    const ED25519_JWK: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"VFbVle5JHYxDXPxbTccJvKVkPa55jCDOusQOZLY5Ewo"}"#;
    const P256: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEtMuWaHeDoEHWJHL44wqb5yU2ON0X
deRUU/Gea1DzMU5Ewoh9RgNwopT//kZV1/hQV4qyvuSfh3wZLpmlmLG8Dw==
-----END PUBLIC KEY-----";
    const P256_JWK: &str = r#"{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"a",
        "x":"tMuWaHeDoEHWJHL44wqb5yU2ON0XdeRUU_Gea1DzMU4","y":"RMKIfUYDcKKU__5GVdf4UFeKsr7kn4d8GS6ZpZixvA8"}"#;
    const P384: &str = "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEf+Uden6vWTLsiPrC7nq3jZkcae8tDN4a
U44k2JWb8M72Hh/+7F/zCa9G/oIehR0gYCVf4RUkc8UimRss/C5IBDmM92xkAaFn
FZG7jZg5E5ACyxI5jzeAQ0RgY0BZn+yR
-----END PUBLIC KEY-----";
    const SECP256K1: &str = "-----BEGIN PUBLIC KEY-----
MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEbhxmSrmODiNfXegV3H85Ae7/NNM0Ntsq
NOOcr0WsS+BC5F2gmkmEijPXEKYmeUjQcY/S0E+GJBjlQg2Sawvc3w==
-----END PUBLIC KEY-----";
    const RSA_2048: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEApl/VTQXk84KvQur+ITv/
evGGtBUNMaMeKWomb3L28FL+syfqDQlk7KQvi+IZjeghfsLO9WV0poTQmmApyhHd
Urj8LXk9+JLx/CGk2blmzpIO05v37yuWYC6zRwQyW3nypFTWdOF7oN10Ysf/ahGr
d/GGXApxx3oMaYOUMnIGLlpMlZlhdkZZFWFqbZaNclMgwRFyTLh6GTLk6HstcJ9e
tw7fYs77OSoWGiqsa+FPpvslg3LQtjmZ8w560fUrj6xH3aZp7r0EJmQ4pLhEMt67
kI94NzDj51FBx4h0u+QCb7//7YQjiGaAjxpCUPcxm5guqmEvSL9Z0xsFza+cqeGX
JwIDAQAB
-----END PUBLIC KEY-----";
    const RSA_2048_N: &str = "pl_VTQXk84KvQur-ITv_evGGtBUNMaMeKWomb3L28FL-syfqDQlk7KQvi-IZjeghfsLO9WV0poTQmmApyhHdUrj8LXk9-JLx_CGk2blmzpIO05v37yuWYC6zRwQyW3nypFTWdOF7oN10Ysf_ahGrd_GGXApxx3oMaYOUMnIGLlpMlZlhdkZZFWFqbZaNclMgwRFyTLh6GTLk6HstcJ9etw7fYs77OSoWGiqsa-FPpvslg3LQtjmZ8w560fUrj6xH3aZp7r0EJmQ4pLhEMt67kI94NzDj51FBx4h0u-QCb7__7YQjiGaAjxpCUPcxm5guqmEvSL9Z0xsFza-cqeGXJw";
    const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDDF5fzJ3CY252efdBs1vSxhDZI
IE8ger3Nb6tKglN01h4Sd0bhm2mdZY3hQSPlVZVPDMV6QEGOBcqDxphC4LeEA5PY
fkKm/75s1JLF7Zq+h7esovcjIC6Ut70/SpDCWL7sbEBa/8cxcvikobmFMavIzaSU
E9kN1So6bhiJ9QAPCQIDAQAB
-----END PUBLIC KEY-----";

    fn read(algorithm: TokenAlgorithm, text: &str) -> Result<(), String> {
        check_public_key(&TokenPublicKey { key_id: None, algorithm, public_key: text.to_owned() })
    }

    #[test]
    fn pem_and_jwk_are_read_for_their_own_algorithm_alone() {
        use TokenAlgorithm::{ES256, EdDSA, RS256};
        let rsa_jwk = format!(r#"{{"kty":"RSA","n":"{RSA_2048_N}","e":"AQAB"}}"#);
        for (fits, text) in [
            (EdDSA, ED25519),
            (EdDSA, ED25519_JWK),
            (ES256, P256),
            (ES256, P256_JWK),
            (RS256, RSA_2048),
            (RS256, &rsa_jwk),
        ] {
            for algorithm in [EdDSA, ES256, RS256] {
                assert_eq!(read(algorithm, text).is_ok(), algorithm == fits, "{algorithm:?}: {text}");
            }
            assert_eq!(read(fits, &format!("\n  {text}\n")), Ok(()));
        }
    }

    #[test]
    fn pem_and_jwk_of_a_key_are_the_same_key() {
        let rsa = |text: &str| {
            let public_key = text.to_owned();
            let public = TokenPublicKey { key_id: None, algorithm: TokenAlgorithm::RS256, public_key };
            match read_public_key(&public).unwrap().kind() {
                jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, e } => (n.clone(), e.clone()),
                jsonwebtoken::DecodingKeyKind::SecretOrDer(_) => panic!("not in parts"),
            }
        };
        assert_eq!(rsa(RSA_2048), rsa(&format!(r#"{{"kty":"RSA","n":"{RSA_2048_N}","e":"AQAB"}}"#)));
        assert_eq!(rsa(RSA_2048).1, [1, 0, 1]);
    }

    #[test]
    fn what_cannot_verify_is_refused() {
        use TokenAlgorithm::{ES256, EdDSA, RS256};
        let rsa = |n: &str, e: &str| format!(r#"{{"kty":"RSA","n":"{n}","e":"{e}"}}"#);
        let off_the_curve = P256_JWK.replace("\"y\":\"RMKI", "\"y\":\"AAAA");
        let cases = [
            (EdDSA, String::new()),
            (EdDSA, "{}".to_owned()),
            (EdDSA, "-----BEGIN PUBLIC KEY-----".to_owned()),
            (EdDSA, ED25519.replace("PUBLIC KEY", "CERTIFICATE")),
            (EdDSA, ED25519.replace('V', "")),
            (EdDSA, ED25519_JWK.replace("Ed25519", "X25519")),
            (EdDSA, ED25519_JWK.replace("\"x\":\"", "\"x\":\"AAAA")),
            (EdDSA, ED25519_JWK.replace("\"kty\"", "\"use\":\"enc\",\"kty\"")),
            (EdDSA, ED25519_JWK.replace("\"kty\"", "\"alg\":\"ES256\",\"kty\"")),
            (ES256, P384.to_owned()),
            (ES256, SECP256K1.to_owned()),
            (ES256, off_the_curve),
            (RS256, rsa("AQAB", "AQAB")),
            (RS256, rsa(RSA_2048_N, "AQ")),
            (RS256, rsa(RSA_2048_N, "Ag")),
            (RS256, rsa(RSA_2048_N, "AwAAAAAB")),
            (RS256, rsa(RSA_2048_N, "")),
        ];
        for (algorithm, text) in cases {
            assert!(read(algorithm, &text).is_err(), "{algorithm:?}: {text}");
        }
        assert_eq!(read(RS256, RSA_1024), Err("have 2,048 to 8,192 bits".to_owned()));
        assert!(read(RS256, &"x".repeat(TOKEN_KEY_BYTES_MAX + 1)).unwrap_err().starts_with("have at most"));
    }

    #[test]
    fn a_private_key_is_refused_and_not_repeated() {
        let jwk = ED25519_JWK.replace("\"kty\"", "\"d\":\"hush\",\"kty\"");
        let secret = r#"{"kty":"oct","k":"hush"}"#;
        let pem = "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----";
        for text in [&jwk, secret, pem] {
            assert_eq!(read(TokenAlgorithm::EdDSA, text), Err(NO_PRIVATE.to_owned()));
        }
    }

    #[test]
    fn keys_are_tried_by_algorithm_and_kid_and_not_past_their_time() {
        use chatstore_core::clock::Ctx;
        use chatstore_core::ids::ProjectId;
        use chatstore_core::projects::TokenSecret;
        let at = |us| Timestamp::from_micros(us).unwrap();
        let mut project = Project::new(ProjectId::DEFAULT, "default", at(0));
        let key = |key_id: Option<&str>, algorithm, text: &str| TokenPublicKey {
            key_id: key_id.map(str::to_owned),
            algorithm,
            public_key: text.to_owned(),
        };
        project.settings.tokens.public_keys = vec![
            key(Some("a"), TokenAlgorithm::EdDSA, ED25519),
            key(Some("b"), TokenAlgorithm::ES256, P256),
            key(None, TokenAlgorithm::ES256, P256_JWK),
            key(None, TokenAlgorithm::EdDSA, "nothing that can be read"),
        ];
        let ctx = Ctx::fixed(at(0), 1, 1);
        let old = TokenSecret { expires_at: Some(at(10)), ..TokenSecret::generate(&ctx) };
        project.token_secrets = vec![TokenSecret::generate(&ctx), old];
        let keys = TokenKeys::of(&project, Some(&Secret::new("of the installation")));
        let count = |algorithm, kid, now| keys.candidates(algorithm, kid, at(now)).count();
        for (algorithm, kid, now, expected) in [
            (Algorithm::EdDSA, None, 0, 1),
            (Algorithm::EdDSA, Some("a"), 0, 1),
            (Algorithm::EdDSA, Some("b"), 0, 0),
            (Algorithm::EdDSA, Some("c"), 0, 0),
            (Algorithm::ES256, None, 0, 2),
            (Algorithm::ES256, Some("b"), 0, 1),
            (Algorithm::ES256, Some("c"), 0, 1),
            (Algorithm::RS256, None, 0, 0),
            (Algorithm::HS256, None, 9, 3),
            (Algorithm::HS256, Some("c"), 10, 2),
            (Algorithm::HS256, Some("a"), 0, 0),
            (Algorithm::HS512, None, 0, 0),
        ] {
            assert_eq!(count(algorithm, kid, now), expected, "{algorithm:?} {kid:?} at {now}");
        }
        project.token_secrets.clear();
        assert_eq!(TokenKeys::of(&project, None).candidates(Algorithm::HS256, None, at(0)).count(), 0);
    }
}
