//! Every code with its status and title: one table.

use axum::http::StatusCode;

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
    /// The body broke off before its end.
    BodyIncomplete,
    /// The body came too slowly.
    BodyTimeout,
    /// A unique value is taken.
    Conflict,
    /// An earlier request of this kind is not finished.
    RequestInFlight,
    /// The secret that the request would show was shown once.
    SecretAlreadyShown,
    /// What the request made the first time is deleted.
    Gone,
    /// The idempotency key was used with another body.
    IdempotencyKeyReused,
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
        Self::BodyIncomplete,
        Self::BodyTimeout,
        Self::Conflict,
        Self::RequestInFlight,
        Self::SecretAlreadyShown,
        Self::Gone,
        Self::IdempotencyKeyReused,
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
    pub(super) fn row(self) -> (StatusCode, &'static str, &'static str) {
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
            Self::BodyIncomplete => (S::BAD_REQUEST, "body_incomplete", "The body broke off"),
            Self::BodyTimeout => (S::REQUEST_TIMEOUT, "body_timeout", "The body came too slowly"),
            Self::Conflict => (S::CONFLICT, "conflict", "A unique value is taken"),
            Self::RequestInFlight => (S::CONFLICT, "request_in_flight", "An earlier request is not finished"),
            Self::SecretAlreadyShown => (S::CONFLICT, "secret_already_shown", "The secret was shown once"),
            Self::Gone => (S::GONE, "gone", "What was made is deleted"),
            Self::IdempotencyKeyReused => {
                (S::UNPROCESSABLE_ENTITY, "idempotency_key_reused", "The idempotency key is of another request")
            }
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
    pub(super) fn is_transient(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::RequestInFlight
                | Self::Overloaded
                | Self::StoreUnavailable
                | Self::EmbeddingsUnavailable
                | Self::NotReady
        )
    }
}
