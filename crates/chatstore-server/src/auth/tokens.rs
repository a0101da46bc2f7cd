//! User tokens: JWTs (RFC 7519) that speak for one user of a project for a while, verified as RFC 8725 asks. The
//! algorithm is that of the key, never that of the header alone, and nothing is fetched from where a token points.

mod crypto;
mod keys;

use std::sync::Arc;

use chatstore_core::api_keys::{KeyScopes, Permission};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::{ProjectId, SessionId};
use chatstore_core::limits::{
    TOKEN_BYTES_MAX, TOKEN_SECONDS_MAX, TOKEN_SESSIONS_MAX, TOKEN_SKEW_SECONDS, USER_ID_BYTES_MAX,
};
use chatstore_core::projects::Project;
use jsonwebtoken::{EncodingKey, Header, TokenData};
use serde::{Deserialize, Deserializer, Serialize};

use super::Refused;
use super::credentials::KnownProject;
use crate::app::App;
use crate::client_address::ClientAddress;
use crate::config::Secret;
use crate::error::{ApiError, Code};

pub(super) use keys::TokenKeys;
pub use keys::check_public_key;

/// What `aud` must name unless a project says otherwise.
pub const AUDIENCE: &str = "chatstore";

/// Whether a text has the form of a token: three parts with dots between them.
pub(super) fn is_token(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// Whom a verified token speaks for.
pub(super) struct VerifiedToken {
    pub(super) project: Arc<Project>,
    pub(super) user_id: String,
    pub(super) scopes: KeyScopes,
    pub(super) sessions: Option<Arc<[SessionId]>>,
}

/// Verifies a token by the keys of the project it names.
pub(super) async fn verify(app: &App, address: ClientAddress, text: &str) -> Result<VerifiedToken, Refused> {
    let token = Presented::parse(text).ok_or(Fault::Invalid)?;
    let now = app.ctx.now();
    let project_id = token.project_id;
    let remembered = app.credentials.remembered_project(project_id);
    if let Some(known) = &remembered {
        match token.check(known, now) {
            // A secret may have been made a moment ago: only what is looked up anew refuses.
            Err(Fault::Invalid) => {}
            Err(fault) => return Err(fault.into()),
            Ok(()) => return Ok(token.verified(known)),
        }
    }
    let asked = remembered.as_ref().map(|known| &known.asked);
    super::allow_lookup(app, address, &project_id.to_string(), asked).await?;
    let known = app.credentials.look_up_project(project_id).await;
    let known = known.map_err(super::lookup_failed)?.ok_or(Fault::Invalid)?;
    token.check(&known, now)?;
    Ok(token.verified(&known))
}

/// What is wrong with a token. Nobody who sends one learns more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Invalid,
    /// It was good until a while ago.
    Expired,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        let error = |detail| ApiError::new(Code::InvalidToken, detail);
        match fault {
            Fault::Invalid => error(
                "The user token is not well-formed, not signed by whom the project believes, or not for here and now.",
            )
            .into(),
            Fault::Expired => Self::out_of_date(error("The user token has expired.")),
        }
    }
}

/// What a token says; a claim that is not named here changes nothing. A `null` is no claim, and so refused.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(deserialize_with = "seconds")]
    exp: i64,
    #[serde(default, deserialize_with = "optional_seconds")]
    nbf: Option<i64>,
    #[serde(default, deserialize_with = "optional_seconds")]
    iat: Option<i64>,
    aud: Audience,
    #[serde(default, deserialize_with = "present")]
    iss: Option<String>,
    #[serde(default, deserialize_with = "present")]
    project_id: Option<String>,
    #[serde(default, deserialize_with = "present")]
    scope: Option<String>,
    #[serde(default, deserialize_with = "present")]
    session_ids: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn names(&self, wanted: &str) -> bool {
        match self {
            Self::One(audience) => audience == wanted,
            Self::Several(audiences) => audiences.iter().any(|audience| audience == wanted),
        }
    }
}

/// A number of seconds since the epoch (RFC 7519, section 2), which may have a fraction.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = f64::deserialize(deserializer)?;
    let is_date = number.abs() < 1e12;
    is_date.then_some(number as i64).ok_or_else(|| serde::de::Error::custom("must be seconds since 1970"))
}

fn optional_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    seconds(deserializer).map(Some)
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A well-formed token, of which nothing is believed yet.
struct Presented<'a> {
    signed: &'a str,
    signature: &'a str,
    header: Header,
    claims: Claims,
    project_id: ProjectId,
    sessions: Option<Arc<[SessionId]>>,
}

impl<'a> Presented<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if text.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        // Which keys may have signed it stands in the token: it is read first, and believed after `check` alone.
        let TokenData { header, claims } = jsonwebtoken::dangerous::insecure_decode::<Claims>(text).ok()?;
        let is_plain = header.crit.is_none() && header.enc.is_none() && header.zip.is_none();
        let is_user = (1..=USER_ID_BYTES_MAX).contains(&claims.sub.len()) && !claims.sub.contains('\0');
        let project_id = claims.project_id.as_deref().map_or(Some(ProjectId::DEFAULT), ProjectId::parse)?;
        let sessions = match &claims.session_ids {
            Some(ids) if ids.len() > TOKEN_SESSIONS_MAX => return None,
            Some(ids) => Some(ids.iter().map(|id| SessionId::parse(id)).collect::<Option<_>>()?),
            None => None,
        };
        (is_plain && is_user).then_some(Self { signed, signature, header, claims, project_id, sessions })
    }

    /// Whether the project believes it now.
    fn check(&self, known: &KnownProject, now: Timestamp) -> Result<(), Fault> {
        crypto::install();
        let mut candidates = known.token_keys().candidates(self.header.alg, self.header.kid.as_deref(), now);
        let is_signed = candidates.any(|key| {
            let verdict = jsonwebtoken::crypto::verify(self.signature, self.signed.as_bytes(), key, self.header.alg);
            verdict.unwrap_or(false)
        });
        let (claims, tokens) = (&self.claims, &known.project.settings.tokens);
        let is_for_here = claims.aud.names(tokens.audience.as_deref().unwrap_or(AUDIENCE))
            && (tokens.issuer.is_none() || tokens.issuer == claims.iss);
        let now = now.as_micros().div_euclid(1_000_000);
        let (skew, life) = (TOKEN_SKEW_SECONDS.cast_signed(), TOKEN_SECONDS_MAX.cast_signed());
        let is_short = claims.exp <= now + life + skew;
        let has_begun = claims.nbf.max(claims.iat).is_none_or(|begin| begin <= now + skew);
        if !(is_signed && is_for_here && is_short && has_begun) {
            return Err(Fault::Invalid);
        }
        if claims.exp + skew <= now { Err(Fault::Expired) } else { Ok(()) }
    }

    fn verified(self, known: &KnownProject) -> VerifiedToken {
        let scopes = self.claims.scope.map_or(KeyScopes::of_users(), |scope| {
            // What else a signer calls a scope is nothing here, and ruling is for nobody's token.
            let is_named = |permission: &Permission| scope.split(' ').any(|name| name == permission.as_str());
            Permission::ALL.into_iter().filter(is_named).collect::<KeyScopes>().and(KeyScopes::of_users())
        });
        VerifiedToken { project: known.project.clone(), user_id: self.claims.sub, scopes, sessions: self.sessions }
    }
}

/// A token to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Whom it speaks for.
    pub user_id: String,
    /// What it may do, of what users may.
    pub scopes: KeyScopes,
    /// The only sessions it is for.
    pub session_ids: Option<Vec<SessionId>>,
    /// From when on it is refused: whole seconds count.
    pub expires_at: Timestamp,
}

#[derive(Serialize)]
struct NewClaims<'a> {
    sub: &'a str,
    aud: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    iat: i64,
    exp: i64,
    project_id: ProjectId,
    scope: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_ids: Option<&'a [SessionId]>,
}

/// Makes a token that the project believes: signed with its own secret, or else with `SECRET_KEY`; `None` if there is
/// neither.
pub fn mint(project: &Project, secret_key: Option<&Secret>, token: &NewToken, now: Timestamp) -> Option<String> {
    crypto::install();
    let own = project.token_secrets.iter().find(|secret| secret.is_active(now)).map(|secret| secret.expose());
    let key = match (&own, secret_key) {
        (Some(own), _) => EncodingKey::from_secret(own.as_bytes()),
        (None, Some(secret_key)) => EncodingKey::from_secret(secret_key.expose().as_bytes()),
        (None, None) => return None,
    };
    let tokens = &project.settings.tokens;
    let names: Vec<&str> = token.scopes.and(KeyScopes::of_users()).iter().map(Permission::as_str).collect();
    let claims = NewClaims {
        sub: &token.user_id,
        aud: tokens.audience.as_deref().unwrap_or(AUDIENCE),
        iss: tokens.issuer.as_deref(),
        iat: now.as_micros().div_euclid(1_000_000),
        exp: token.expires_at.as_micros().div_euclid(1_000_000),
        project_id: project.project_id,
        scope: names.join(" "),
        session_ids: token.session_ids.as_deref(),
    };
    Some(jsonwebtoken::encode(&Header::default(), &claims, &key).expect("texts and numbers are JSON, which HMAC signs"))
}
