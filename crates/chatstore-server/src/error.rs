//! Errors on the wire: RFC 9457 problems.

mod code;

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chatstore_core::limits::FIELD_ERRORS_MAX;
use chatstore_core::store::StoreError;
use schemars::JsonSchema;
use serde::Serialize;

pub use code::Code;

/// Tells OpenAI's SDKs whether to send a request again, whatever they would do by its status.
pub const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A field or parameter at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FieldError {
    /// Where: a JSON Pointer (RFC 6901) into the body, or `?name` for a query parameter.
    pub pointer: String,
    /// What is wrong with it, as the end of a sentence.
    pub detail: String,
}

impl FieldError {
    /// The fault `detail` at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: shortened(pointer.into()), detail: shortened(detail.into()) }
    }
}

/// A text that repeats what a client sent, but not at any length.
fn shortened(mut text: String) -> String {
    const CHARS_MAX: usize = 300;
    if let Some((end, _)) = text.char_indices().nth(CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A problem document (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
pub struct Problem {
    /// A name for the kind of problem: `urn:chatstore:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in a few words.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What happened here, in a sentence.
    pub detail: String,
    /// The kind, for programs; stable.
    pub code: &'static str,
    /// The id under which the request stands in the log.
    pub request_id: String,
    /// The fields and parameters at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// Why a request failed. It becomes a [`Problem`] when it leaves, where the request's id is known.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The kind.
    pub code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    /// When to try again, if more is known than that it may be soon.
    retry_after: Option<Duration>,
    /// For the log, never for the client.
    pub(crate) reason: Option<String>,
    /// The name that the Conversations wire has for it alone.
    own_code: Option<&'static str>,
}

impl ApiError {
    /// An error of this kind; `detail` is a sentence for people.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after: None, reason: None, own_code: None }
    }

    /// The same, to be tried again after this time.
    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Self {
        Self { retry_after: Some(pause), ..self }
    }

    /// A defect of ours: the client learns nothing of it, the log has `reason` under the request's id.
    pub fn internal(reason: impl Into<String>) -> Self {
        let detail = "The operator finds the reason in the log under this request's id.";
        Self { reason: Some(reason.into()), ..Self::new(Code::InternalError, detail) }
    }

    /// Fields that break rules.
    pub fn invalid(mut errors: Vec<FieldError>) -> Self {
        let count = errors.len();
        errors.truncate(FIELD_ERRORS_MAX);
        let detail = match errors.as_slice() {
            [only] if only.pointer.is_empty() => format!("The body {}.", only.detail),
            [only] => format!("`{}` {}.", only.pointer, only.detail),
            several if several.len() < count => {
                format!("{count} fields or parameters are not acceptable; `errors` shows the first {}.", several.len())
            }
            _ => format!("{count} fields or parameters are not acceptable; see `errors`."),
        };
        Self { errors, ..Self::new(Code::ValidationFailed, detail) }
    }

    /// One field that breaks a rule.
    pub fn invalid_field(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(pointer, detail)])
    }

    /// What happened, in a sentence.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// A value that the Conversations wire has a name of its own for; `detail` is a sentence.
    pub(crate) fn on_conversations(own_code: &'static str, pointer: impl Into<String>, detail: String) -> Self {
        let errors = vec![FieldError::new(pointer, "is not acceptable")];
        Self { errors, own_code: Some(own_code), ..Self::new(Code::ValidationFailed, detail) }
    }

    /// The name that the Conversations wire has for it alone.
    pub(crate) fn own_code(&self) -> Option<&'static str> {
        self.own_code
    }

    /// The fields and parameters at fault.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// A message's content that is too large.
    pub fn content_too_large(pointer: String, bytes_max: usize) -> Self {
        let detail = format!("must have at most {bytes_max} bytes of UTF-8");
        let error = Self::new(Code::ContentTooLarge, format!("`{pointer}` {detail}."));
        Self { errors: vec![FieldError::new(pointer, detail)], ..error }
    }

    /// A message's external id that another one has.
    pub fn external_id_taken(pointer: String) -> Self {
        let detail = "Another message of the session has this `external_id`, and says something else.";
        Self { errors: vec![FieldError::new(pointer, "is taken")], ..Self::new(Code::Conflict, detail) }
    }

    /// There is no such `noun` for this caller: absent and foreign things answer alike.
    pub fn not_found(noun: &str) -> Self {
        Self::new(Code::NotFound, format!("There is no such {noun}."))
    }

    /// What a store's error means for a caller who asked for `noun`.
    pub fn from_store(error: StoreError, noun: &str) -> Self {
        match error {
            StoreError::NotFound => Self::not_found(noun),
            StoreError::Conflict { field } => Self {
                errors: vec![FieldError::new(format!("/{field}"), "is taken")],
                ..Self::new(Code::Conflict, format!("Another {noun} has this `{field}`."))
            },
            StoreError::ExternalIdTaken { n } => Self::external_id_taken(format!("/{n}/external_id")),
            StoreError::KeyReused => Self::new(
                Code::IdempotencyKeyReused,
                "The `Idempotency-Key` was sent before with another body: send that body again, or a new key.",
            ),
            StoreError::InFlight => Self::new(
                Code::RequestInFlight,
                "The same request came before and is not finished yet; send it again in a moment.",
            ),
            StoreError::Gone => {
                Self::new(Code::Gone, "What this request made when it was first sent has been deleted since.")
            }
            StoreError::VersionMismatch { current } => Self::new(
                Code::VersionMismatch,
                format!("The {noun} has version {current}: read it again and decide anew."),
            ),
            StoreError::Invalid { pointer, detail } => Self::invalid_field(pointer, detail),
            StoreError::Forbidden => Self::new(
                Code::InsufficientScope,
                format!("The {noun} may do more than you may, so it is not yours to rule."),
            ),
            StoreError::QuotaExceeded { quota, max } => {
                Self::new(Code::QuotaExceeded, format!("The quota `{quota}` allows {max}."))
            }
            StoreError::Busy => {
                Self::new(Code::Overloaded, "More is queued than can be handled; try again in a moment.")
            }
            StoreError::Full => {
                Self::new(Code::StorageFull, "The disk is full; nothing was stored. Free space and try again.")
            }
            StoreError::Unavailable { reason } => Self {
                reason: Some(reason),
                ..Self::new(Code::StoreUnavailable, "The store cannot be used now; the operator must look at it.")
            },
            StoreError::Internal { reason } => Self::internal(reason),
        }
    }

    /// The finished response.
    pub fn render(self, request_id: &str) -> Response {
        let (status, name, title) = self.code.row();
        let headers = self.headers();
        let problem = Problem {
            kind: format!("urn:chatstore:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: self.detail.into_owned(),
            code: name,
            request_id: request_id.to_owned(),
            errors: self.errors,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }

    /// The headers by which a client knows what to do next, whatever form the body has.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let status = self.code.status();
        if status == StatusCode::UNAUTHORIZED {
            // RFC 6750, section 3: only who showed a token is told that it is one.
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(match self.code {
                    Code::InvalidToken => "Bearer realm=\"chatstore\", error=\"invalid_token\"",
                    _ => "Bearer realm=\"chatstore\"",
                }),
            );
        }
        if self.code.is_transient() {
            let pause = self.retry_after.unwrap_or_default();
            let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if status == StatusCode::CONFLICT {
            // OpenAI's SDKs send every request that is answered so again, unless they are told.
            let again = if self.code == Code::RequestInFlight { "true" } else { "false" };
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(again));
        }
        if self.code == Code::BodyTimeout {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers
    }
}

/// The error travels as an extension to the outermost layer, which knows the request's id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.code.status();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_errors() {
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| code.status().is_client_error() || code.status().is_server_error()));
    }

    #[test]
    fn a_pause_is_told_in_whole_seconds() {
        for (pause, seconds) in
            [(None, "1"), (Some(0), "1"), (Some(900), "1"), (Some(2_001), "3"), (Some(60_000), "60")]
        {
            let error = ApiError::new(Code::EmbeddingsUnavailable, "Wait.");
            let error = pause.map_or(error.clone(), |pause| error.retry_after(Duration::from_millis(pause)));
            assert_eq!(error.render("id").headers()[header::RETRY_AFTER], seconds, "{pause:?}");
        }
        let for_ever = ApiError::new(Code::EmbeddingsMismatch, "No.").render("id");
        assert_eq!((for_ever.status(), for_ever.headers().get(header::RETRY_AFTER)), (StatusCode::CONFLICT, None));
    }

    #[test]
    fn what_the_operator_must_know_never_reaches_a_client() {
        let secret = "/var/lib/chatstore.db: select * from sessions";
        for error in [StoreError::Internal { reason: secret.into() }, StoreError::Unavailable { reason: secret.into() }]
        {
            let shown = ApiError::from_store(error, "session");
            assert!(!shown.detail.contains("select"), "{}", shown.detail);
        }
    }
}
