//! Requests that come again: how one is known, and what it claims.

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim, ClaimId, Recognition};
use chatstore_core::ids::Bucket;
use chatstore_core::limits::{IDEMPOTENCY_KEY_CHARS_MAX, IDEMPOTENCY_SECONDS, SDK_RETRY_SECONDS};
use sha2::{Digest as _, Sha256};

use crate::app::App;
use crate::auth::{Caller, Credential};
use crate::error::{ApiError, Code};
use crate::extract::{JsonBody, read_json};
use crate::openapi::{Describe, DescribeOutput, Operation};
use crate::sdk_tries::Try;

/// Names a request, so that it is done once however often it is sent.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// How often the client's library has sent the request before, as OpenAI's SDKs count.
pub const RETRY_COUNT_HEADER: &str = "x-stainless-retry-count";
/// Marks an answer that repeats an earlier one.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// What makes a request known again.
#[derive(Clone, Debug)]
pub struct Repeatable {
    key: Option<String>,
    retry: Option<u32>,
    fingerprint: [u8; 32],
    /// Which try of a library it is.
    sdk_try: Option<Try>,
    /// Why nothing more is stored for this project; what it has stored already is answered all the same.
    refusal: Option<ApiError>,
}

/// What a request is to do, as far as it must be the same for two to be one.
#[derive(Clone, Copy, Debug)]
pub struct Doing<'a> {
    /// The operation's id.
    pub operation: &'static str,
    /// What it is done to, such as a session's id; empty for what is made in a project.
    pub target: &'a str,
    /// The user it is for.
    pub user_id: Option<&'a str>,
    /// Where its record lives: with the session it is done to. Without one it lives with the user's sessions, or where the
    /// claim itself says.
    pub bucket: Option<Bucket>,
    /// When it is done: the time that everything it makes is given.
    pub now: Timestamp,
}

impl Repeatable {
    /// Reads what makes a request with this body known again.
    ///
    /// # Errors
    /// 400 `invalid_header`.
    pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        let key = idempotency_key(headers)?;
        let mut hash = Sha256::new();
        // Whoever has the record but not the key learns nothing of the body by guessing.
        hash.update(key.as_deref().unwrap_or_default().as_bytes());
        hash.update([0]);
        hash.update(body);
        let fingerprint = hash.finalize().into();
        Ok(Self { key, retry: retry_count(headers), fingerprint, sdk_try: None, refusal: None })
    }

    /// The claim of a request, if it has a key.
    ///
    /// # Errors
    /// 403 `quota_exceeded` if the project is full, unless the request was done before.
    pub async fn claim(&self, app: &App, caller: &Caller, doing: Doing<'_>) -> Result<Option<Claim>, ApiError> {
        let claim = self.claim_by_key(caller, &doing);
        self.admit(app, claim.as_ref()).await?;
        Ok(claim)
    }

    /// The claim of a request that has a key, or that comes from a library that says which of its tries this is: then its
    /// body alone makes it known, unless that is switched off. It is yet to be admitted: when its turn has come.
    pub fn claim_by_key_or_body(&self, app: &App, caller: &Caller, doing: Doing<'_>) -> Option<Claim> {
        let by_body = || {
            let retry = self.retry.filter(|_| app.access.openai.sdk_retry_dedupe)?;
            let retry = if self.sdk_try.as_ref().is_some_and(Try::is_new) { 0 } else { retry };
            let claim_id = claim_id(b"body", caller, &doing, &self.fingerprint);
            Some(self.claim_of(claim_id, caller, &doing, Recognition::Body { retry, tried: None }, SDK_RETRY_SECONDS))
        };
        self.claim_by_key(caller, &doing).or_else(by_body)
    }

    /// Which try of a library it is, if the library says so.
    pub fn sdk_try(&self) -> Option<&Try> {
        self.sdk_try.as_ref()
    }

    fn claim_by_key(&self, caller: &Caller, doing: &Doing<'_>) -> Option<Claim> {
        let key = self.key.as_deref()?;
        let claim_id = claim_id(b"key", caller, doing, key.as_bytes());
        Some(self.claim_of(claim_id, caller, doing, Recognition::Key, IDEMPOTENCY_SECONDS))
    }

    /// Lets the request with this claim through if there is room for its body. What was done before needs none.
    ///
    /// # Errors
    /// 403 `quota_exceeded` if the project is full, unless the request was done before.
    pub async fn admit(&self, app: &App, claim: Option<&Claim>) -> Result<(), ApiError> {
        let Some(refusal) = &self.refusal else { return Ok(()) };
        let record = match claim {
            Some(claim) => app.store.get_idempotency_record(claim).await,
            None => Ok(None),
        };
        match record.map_err(|error| ApiError::from_store(error, "project"))? {
            Some(_) => Ok(()),
            None => Err(refusal.clone()),
        }
    }

    fn claim_of(
        &self,
        claim_id: ClaimId,
        caller: &Caller,
        doing: &Doing<'_>,
        recognition: Recognition,
        seconds: u64,
    ) -> Claim {
        let project_id = caller.scope.project_id;
        let of_user = || doing.user_id.map(|user_id| Bucket::of_user(project_id, user_id));
        Claim {
            project_id,
            claim_id,
            bucket: doing.bucket.or_else(of_user).unwrap_or_else(|| claim_id.bucket()),
            fingerprint: self.fingerprint,
            recognition,
            now: doing.now,
            expires_at: doing.now.plus_micros(seconds as i64 * 1_000_000),
        }
    }
}

/// The id of the claim that `caller` makes for `doing`, known by `name`. A key keeps its id when its secret is rotated; a
/// user token is another one after every renewal, so that its user alone stands for it.
fn claim_id(kind: &[u8], caller: &Caller, doing: &Doing<'_>, name: &[u8]) -> ClaimId {
    let credential = match &caller.credential {
        Credential::RootKey => "root",
        Credential::ApiKey(known) => &known.key.key_id,
        Credential::UserToken => "token",
    };
    let (user_kind, user_id): (&[u8], _) = doing.user_id.map_or((b"", ""), |user_id| (b"user", user_id));
    ClaimId::of(&[
        kind,
        caller.scope.project_id.as_bytes(),
        credential.as_bytes(),
        user_kind,
        user_id.as_bytes(),
        doing.operation.as_bytes(),
        doing.target.as_bytes(),
        name,
    ])
}

/// The key as sent: a string of RFC 8941, or visible characters without quotes.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let key = if text.starts_with('"') { quoted(text) } else { bare(text) };
    let key = key.filter(|key| (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()) && values.next().is_none());
    key.map(Some).ok_or_else(|| {
        let detail = format!(
            "`Idempotency-Key` must stand once and hold 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters, bare or \
             between double quotes, such as a new UUID for each new request."
        );
        ApiError::new(Code::InvalidHeader, detail)
    })
}

fn bare(text: &str) -> Option<String> {
    text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"').then(|| text.to_owned())
}

/// The content of a string of RFC 8941, section 3.3.3.
fn quoted(text: &str) -> Option<String> {
    let mut content = String::new();
    let mut rest = text.strip_prefix('"')?.strip_suffix('"')?.chars();
    while let Some(char) = rest.next() {
        content.push(match char {
            '\\' => rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?,
            ' '..='~' if char != '"' => char,
            _ => return None,
        });
    }
    Some(content)
}

/// Which try it is, if the library says so in a small number.
pub(crate) fn retry_count(headers: &HeaderMap) -> Option<u32> {
    const DIGITS_MAX: usize = 3;
    let mut values = headers.get_all(RETRY_COUNT_HEADER).iter();
    let text = values.next().filter(|_| values.next().is_none())?.to_str().ok()?;
    let is_small = (1..=DIGITS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_small)
}

/// A body, and what makes its request known again. Whoever takes it makes the claim, be it none, and has it admitted:
/// there it is refused if its project has no room for the body.
pub struct Once<B>(pub B, pub Repeatable);

impl<B: JsonBody> FromRequest<App> for Once<B> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let headers = request.headers().clone();
        let caller = request.extensions().get::<Caller>().cloned();
        let sdk_try = request.extensions().get::<Try>().cloned();
        let bytes = read_json(request, app).await?;
        let repeatable = Repeatable::read(&headers, &bytes)?;
        let body = B::read(&bytes)?;
        let refusal = body.admit(bytes.len(), caller.as_ref(), app).await.err();
        Ok(Self(body, Repeatable { sdk_try, refusal, ..repeatable }))
    }
}

impl<B: Describe> Describe for Once<B> {
    fn describe(operation: &mut Operation) {
        B::describe(operation);
        operation.header_parameter(
            "Idempotency-Key",
            "Names the request: sent again with the same key and body within 24 hours, it is done once and answered as \
             the first time. 1 to 255 visible ASCII characters, bare or between double quotes.",
        );
        for code in [Code::InvalidHeader, Code::RequestInFlight, Code::Gone, Code::IdempotencyKeyReused] {
            operation.fails(code);
        }
    }
}

/// An answer that may repeat an earlier one; then it says so.
pub struct Replayable<T>(pub Answered<T>);

impl<T: IntoResponse> IntoResponse for Replayable<T> {
    fn into_response(self) -> Response {
        let mut response = self.0.value.into_response();
        if self.0.is_replay {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl<T: DescribeOutput> DescribeOutput for Replayable<T> {
    fn describe(operation: &mut Operation) {
        T::describe(operation);
        operation.answer_header("Idempotent-Replayed", "`true` if the answer repeats that to an earlier request.");
    }
}

/// An answer that shows a secret: it cannot be repeated, for the secret is stored nowhere.
pub struct ShownOnce<T>(pub T);

/// What a request made whose answer shows a secret, unless an earlier one made it; `detail` says then what to do.
///
/// # Errors
/// 409 `secret_already_shown`.
pub fn made_first<T>(answered: Answered<T>, detail: impl FnOnce(&T) -> String) -> Result<T, ApiError> {
    match answered.is_replay {
        false => Ok(answered.value),
        true => Err(ApiError::new(Code::SecretAlreadyShown, detail(&answered.value))),
    }
}

impl<T: IntoResponse> IntoResponse for ShownOnce<T> {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl<T: DescribeOutput> DescribeOutput for ShownOnce<T> {
    fn describe(operation: &mut Operation) {
        T::describe(operation);
        operation.fails(Code::SecretAlreadyShown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        values.collect()
    }

    #[test]
    fn a_key_is_a_structured_string_or_a_bare_word() {
        let key = |value: &str| idempotency_key(&headers(IDEMPOTENCY_KEY_HEADER, &[value])).ok().flatten();
        let most = "k".repeat(IDEMPOTENCY_KEY_CHARS_MAX);
        for (sent, meant) in [
            ("k", "k"),
            ("\"k\"", "k"),
            (" \"k\"\t", "k"),
            (r#""a\"b\\c d""#, r#"a"b\c d"#),
            (r"a\b", r"a\b"),
            ("a,b;c='d'", "a,b;c='d'"),
            (&most, &most),
            (&format!("\"\\\"{}\"", &most[1..]), &format!("\"{}", &most[1..])),
        ] {
            assert_eq!(key(sent).as_deref(), Some(meant), "{sent}");
        }
        let more = format!("{most}k");
        for sent in
            ["", "\"", "\"\"", "\"a", "a\"", "a\"b", r#""a\""#, r#""a\b""#, r#""a";p"#, "a b", "é", "\"é\"", &more]
        {
            assert_eq!(key(sent), None, "{sent}");
        }
        assert!(matches!(idempotency_key(&HeaderMap::new()), Ok(None)));
        assert!(idempotency_key(&headers(IDEMPOTENCY_KEY_HEADER, &["a", "a"])).is_err());
    }

    #[test]
    fn a_retry_count_is_a_small_number() {
        let count = |values: &[&str]| retry_count(&headers(RETRY_COUNT_HEADER, values));
        for (sent, meant) in [("0", 0), ("1", 1), ("02", 2), ("999", 999)] {
            assert_eq!(count(&[sent]), Some(meant));
        }
        for sent in ["", "-1", "+1", "1.0", " 1 x", "1000", "one", "é"] {
            assert_eq!(count(&[sent]), None, "{sent}");
        }
        assert_eq!((count(&[]), count(&["1", "1"])), (None, None));
    }

    #[test]
    fn a_fingerprint_is_of_key_and_body() {
        let of = |key: &str, body: &[u8]| {
            Repeatable::read(&headers(IDEMPOTENCY_KEY_HEADER, &[key]), body).unwrap().fingerprint
        };
        assert_eq!(of("k", b"a"), of("\"k\"", b"a"));
        assert_ne!(of("k", b"a"), of("k", b"b"));
        assert_ne!(of("k", b"a"), of("ka", b""));
    }
}
