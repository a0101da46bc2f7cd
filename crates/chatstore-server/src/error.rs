//! Errors on the wire: RFC 9457 problems, each status and code from this one table.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chatstore_core::limits::FIELD_ERRORS_MAX;
use chatstore_core::store::StoreError;
use schemars::JsonSchema;
use serde::Serialize;

/// What went wrong, for programs: stable names that a client may branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The body is no JSON.
    InvalidJson,
    /// A header has a form that is not accepted.
    InvalidHeader,
    /// The cursor was not made for this list.
    InvalidCursor,
    /// No API key was sent.
    MissingApiKey,
    /// The key sent is none, or was revoked, or has expired.
    InvalidApiKey,
    /// The user token is none, or not for here, or has expired.
    InvalidToken,
    /// The key lacks a scope.
    InsufficientScope,
    /// The request speaks for one user and names another.
    UserMismatch,
    /// The key may not be used from this origin.
    OriginNotAllowed,
    /// The key may not be used from this address.
    AddressNotAllowed,
    /// It would be more than a quota allows.
    QuotaExceeded,
    /// There is no such thing for this caller.
    NotFound,
    /// No route has this path.
    RouteNotFound,
    /// The path has other methods.
    MethodNotAllowed,
    /// The body came too slowly.
    BodyTimeout,
    /// A unique value is taken.
    Conflict,
    /// `If-Match` names another version.
    VersionMismatch,
    /// The body is too large.
    BodyTooLarge,
    /// A message's content is too large.
    ContentTooLarge,
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// A field or parameter breaks a rule.
    ValidationFailed,
    /// Too many requests came from one side.
    RateLimited,
    /// A defect of ours.
    InternalError,
    /// Too much is going on.
    Overloaded,
    /// The store cannot be used.
    StoreUnavailable,
    /// The embedding source cannot be asked.
    EmbeddingsUnavailable,
    /// The embedding source and the stored vectors do not fit.
    EmbeddingsMismatch,
    /// Not ready for requests.
    NotReady,
    /// The request took too long.
    RequestTimeout,
    /// The disk is full.
    StorageFull,
}

impl Code {
    /// Every code.
    pub const ALL: &[Self] = &[
        Self::InvalidJson,
        Self::InvalidHeader,
        Self::InvalidCursor,
        Self::MissingApiKey,
        Self::InvalidApiKey,
        Self::InvalidToken,
        Self::InsufficientScope,
        Self::UserMismatch,
        Self::OriginNotAllowed,
        Self::AddressNotAllowed,
        Self::QuotaExceeded,
        Self::NotFound,
        Self::RouteNotFound,
        Self::MethodNotAllowed,
        Self::BodyTimeout,
        Self::Conflict,
        Self::VersionMismatch,
        Self::BodyTooLarge,
        Self::ContentTooLarge,
        Self::UnsupportedMediaType,
        Self::ValidationFailed,
        Self::RateLimited,
        Self::InternalError,
        Self::Overloaded,
        Self::StoreUnavailable,
        Self::EmbeddingsUnavailable,
        Self::EmbeddingsMismatch,
        Self::NotReady,
        Self::RequestTimeout,
        Self::StorageFull,
    ];

    /// Status, name and title.
    fn row(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::InvalidJson => (S::BAD_REQUEST, "invalid_json", "The body is not well-formed JSON"),
            Self::InvalidHeader => (S::BAD_REQUEST, "invalid_header", "A header is not well-formed"),
            Self::InvalidCursor => (S::BAD_REQUEST, "invalid_cursor", "The cursor does not belong to this list"),
            Self::MissingApiKey => (S::UNAUTHORIZED, "missing_api_key", "An API key is needed"),
            Self::InvalidToken => (S::UNAUTHORIZED, "invalid_token", "The user token is not valid"),
            Self::InvalidApiKey => (S::UNAUTHORIZED, "invalid_api_key", "The API key is not valid"),
            Self::InsufficientScope => (S::FORBIDDEN, "insufficient_scope", "The API key lacks a scope"),
            Self::QuotaExceeded => (S::FORBIDDEN, "quota_exceeded", "A quota is used up"),
            Self::AddressNotAllowed => (S::FORBIDDEN, "address_not_allowed", "The key is not for this address"),
            Self::OriginNotAllowed => (S::FORBIDDEN, "origin_not_allowed", "The key is not for this origin"),
            Self::UserMismatch => (S::FORBIDDEN, "user_mismatch", "The request names another user than it speaks for"),
            Self::NotFound => (S::NOT_FOUND, "not_found", "Not found"),
            Self::RouteNotFound => (S::NOT_FOUND, "route_not_found", "Nothing is served at this path"),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "method_not_allowed", "This path has other methods"),
            Self::BodyTimeout => (S::REQUEST_TIMEOUT, "body_timeout", "The body came too slowly"),
            Self::Conflict => (S::CONFLICT, "conflict", "A unique value is taken"),
            Self::VersionMismatch => (S::PRECONDITION_FAILED, "version_mismatch", "It was changed meanwhile"),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large"),
            Self::ContentTooLarge => (S::PAYLOAD_TOO_LARGE, "content_too_large", "The content is too large"),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body must be declared as JSON")
            }
            Self::RateLimited => (S::TOO_MANY_REQUESTS, "rate_limited", "Too many requests"),
            Self::ValidationFailed => {
                (S::UNPROCESSABLE_ENTITY, "validation_failed", "A field or parameter is not acceptable")
            }
            Self::InternalError => (S::INTERNAL_SERVER_ERROR, "internal_error", "Something broke on our side"),
            Self::Overloaded => (S::SERVICE_UNAVAILABLE, "overloaded", "Too many requests at once"),
            Self::StoreUnavailable => (S::SERVICE_UNAVAILABLE, "store_unavailable", "The store cannot be used"),
            Self::EmbeddingsUnavailable => {
                (S::SERVICE_UNAVAILABLE, "embeddings_unavailable", "The embedding source cannot be asked")
            }
            Self::EmbeddingsMismatch => {
                (S::CONFLICT, "embeddings_mismatch", "The embedding source does not fit the stored vectors")
            }
            Self::NotReady => (S::SERVICE_UNAVAILABLE, "not_ready", "The service is not ready"),
            Self::RequestTimeout => (S::SERVICE_UNAVAILABLE, "request_timeout", "The request took too long"),
            Self::StorageFull => (S::INSUFFICIENT_STORAGE, "storage_full", "The disk is full"),
        }
    }

    /// Its status.
    pub fn status(self) -> StatusCode {
        self.row().0
    }

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// What it means, in a few words.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// Whether the same request may succeed in a moment. A write that took too long may have
    /// happened: it is not for machines to repeat.
    fn is_transient(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::Overloaded
                | Self::StoreUnavailable
                | Self::EmbeddingsUnavailable
                | Self::NotReady
        )
    }
}

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
}

impl ApiError {
    /// An error of this kind; `detail` is a sentence for people.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after: None, reason: None }
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
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
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
        if self.code == Code::BodyTimeout {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
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
