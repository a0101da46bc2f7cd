//! Who signs user tokens in these tests, each with a key of its own.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

/// A TEST KEY, made for these tests and used nowhere else: RSA, 2,048 bits, PKCS #8.
const RSA_TEST_KEY: &str = "
-----BEGIN PRIVATE KEY-----
MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQCmX9VNBeTzgq9C
6v4hO/968Ya0FQ0xox4paiZvcvbwUv6zJ+oNCWTspC+L4hmN6CF+ws71ZXSmhNCa
YCnKEd1SuPwteT34kvH8IaTZuWbOkg7Tm/fvK5ZgLrNHBDJbefKkVNZ04Xug3XRi
x/9qEat38YZcCnHHegxpg5QycgYuWkyVmWF2RlkVYWptlo1yUyDBEXJMuHoZMuTo
ey1wn163Dt9izvs5KhYaKqxr4U+m+yWDctC2OZnzDnrR9SuPrEfdpmnuvQQmZDik
uEQy3ruQj3g3MOPnUUHHiHS75AJvv//thCOIZoCPGkJQ9zGbmC6qYS9Iv1nTGwXN
r5yp4ZcnAgMBAAECggEAD+aV1LQtAwbo6CzcV+HLk3z04k4mwik0T0H5ZWpn5mUQ
OaAlctSEhEdW0fgseA8I8Hv+2p41LVsBMtfg9pKJhAfw9gmh3hlxLicrAbIB/Nkh
uKCt6/pO92dPNAjXJT387i67hlUsgx3XKz+xDfqdWCvJqw9Ge4mTGRx9s+qI47IO
4OxurC00Xsdoch6n1AKc4Cf0J2UQCNRdD5Ez27LH6JwmvFmXB9sxm50tuDv5avAd
oCHUaYNzz1eCSiDnV/R4sRtpK1xrg5AhZk0GoGK1h2JK5O3IAlHaVXaK2LACJgHU
o3VWs4U9diJeF4CVCVhUeseqstouqh+YT7cM0f8msQKBgQDp2nCqJrVVHa56o8BE
JVlrc1crnVzXBraKYgtg0GUf2vs70tDPyDTsvrDrUTnvzFubwqv0b6QmudElEYMd
11rrAJJv82J5aP6/m3qbLNIF1h/cbjtrpu4qk6vs9ujp9jfzyuvQj/aXFiHmmezI
kmhKrnCHRvdkMacKyMlCv30rlwKBgQC2IW2FCL2lP3/MBkg9InNojlUV4+457yLJ
qH4WR+Crudgdlb4ROWdhCE91eX0bW0k25VvbQqUsJ/VQSizhHUISGyM12QnI2Fhq
cpx3FP62/dH+7kR/a51TmRsSZZzU6cQaOVyK7fn0+6oZoXlF81N/OxnwBas0nzcF
5haUEvqi8QKBgGPIbWJs+drDu3tg+90YAruyj3NwxfiKSMFrbGd3BG8/RQwVvDus
tch+5YbDNfF4RW6E9lJqgKR1jSRAAK5vAcBckh9qvo4HmwuvD/W+fi83Woj4ECqz
I9TPBgEqqd+Ky/0ejNiFVTbKntSCwWIj9pRHMoTGZzE9boVPf3EXvBUpAoGAY2/q
wJheGkuJ9ZV0eVRG2E3lbHcuSJkkUB9a/8Ush/WGZdislfDWXWbRIx06TeZQGdWt
ig9f6LTEPZrR1/JGcWY5mhuuOObNlwiOHoHq83Ou5FWoNj1F/y93VVr+/kvHEl5B
BWUadEO2whmkAanw62UUKzSdHbTTsLfHmf6msrECgYAklKtM2ZL881L6c7wNCxrc
h4i9g+wd7udGU6mybUsUn4/q6PglNmvIUSrEF7WBP7CZPByHJc2TJXI5IpeTUyCj
s5MHv+BOjBK7OYJWa5pEo4a/5igGeHIJyhKNwiVXvMqVDl8cuTJK87hanMWSn7A9
JVdz4QrzVUIM2h0CavLbQA==
-----END PRIVATE KEY-----
";
/// Its public part.
pub(crate) const RSA_TEST_PUBLIC_KEY: &str = "
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEApl/VTQXk84KvQur+ITv/
evGGtBUNMaMeKWomb3L28FL+syfqDQlk7KQvi+IZjeghfsLO9WV0poTQmmApyhHd
Urj8LXk9+JLx/CGk2blmzpIO05v37yuWYC6zRwQyW3nypFTWdOF7oN10Ysf/ahGr
d/GGXApxx3oMaYOUMnIGLlpMlZlhdkZZFWFqbZaNclMgwRFyTLh6GTLk6HstcJ9e
tw7fYs77OSoWGiqsa+FPpvslg3LQtjmZ8w560fUrj6xH3aZp7r0EJmQ4pLhEMt67
kI94NzDj51FBx4h0u+QCb7//7YQjiGaAjxpCUPcxm5guqmEvSL9Z0xsFza+cqeGX
JwIDAQAB
-----END PUBLIC KEY-----
";

pub(crate) enum Signer {
    Hs256(Vec<u8>),
    EdDsa(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
    Rs256(RsaKeyPair),
}

impl Signer {
    pub(crate) fn hs256(secret: impl AsRef<[u8]>) -> Self {
        Self::Hs256(secret.as_ref().to_vec())
    }

    pub(crate) fn ed_dsa() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::EdDsa(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    pub(crate) fn es256() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::Es256(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap())
    }

    /// Always the same one: making such a key takes long.
    pub(crate) fn rs256() -> Self {
        let lines = RSA_TEST_KEY.lines().filter(|line| !line.starts_with("-----"));
        let pkcs8 = BASE64_STANDARD.decode(lines.collect::<String>()).unwrap();
        Self::Rs256(RsaKeyPair::from_pkcs8(&pkcs8).unwrap())
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::EdDsa(_) => "EdDSA",
            Self::Es256(_) => "ES256",
            Self::Rs256(_) => "RS256",
        }
    }

    /// The public key as a JWK.
    pub(crate) fn jwk(&self) -> String {
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Hs256(_) => panic!("a secret has no public part"),
            Self::EdDsa(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref())}),
            Self::Es256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": text(x), "y": text(y)})
            }
            Self::Rs256(pair) => {
                let public: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
                json!({"kty": "RSA", "n": text(&public.n), "e": text(&public.e)})
            }
        }
        .to_string()
    }

    /// The public key in PEM.
    pub(crate) fn pem(&self) -> String {
        let (prefix, point) = match self {
            Self::Hs256(_) => panic!("a secret has no public part"),
            Self::EdDsa(pair) => ("MCowBQYDK2VwAyEA", pair.public_key().as_ref()),
            // The prefix ends with the 4 of an uncompressed point.
            Self::Es256(pair) => ("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE", &pair.public_key().as_ref()[1..]),
            Self::Rs256(_) => return RSA_TEST_PUBLIC_KEY.to_owned(),
        };
        let der = [&BASE64_STANDARD.decode(prefix).unwrap(), point].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(der))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Hs256(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
            Self::EdDsa(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Es256(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Rs256(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// A token with these claims, as it should be.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"typ": "JWT", "alg": self.algorithm()}), claims)
    }

    /// A token with this header.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_of(&header.to_string(), &claims.to_string())
    }

    /// A token of these texts, whatever they are.
    pub(crate) fn token_of(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(payload));
        let signature = self.sign(signed.as_bytes());
        format!("{signed}.{}", encode(signature))
    }
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
