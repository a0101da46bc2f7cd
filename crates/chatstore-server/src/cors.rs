//! Which web pages may read answers (CORS, as the Fetch standard has it).

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::config::CorsOrigins;
use crate::error::SHOULD_RETRY;
use crate::idempotency::REPLAYED;

/// How long a browser need not ask again. Most cut it to two hours.
const MAX_AGE: Duration = Duration::from_secs(7_200);

const METHODS: [Method; 6] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// What a page may read beside the few headers that are always open to it.
const EXPOSED: [HeaderName; 11] = [
    header::LINK,
    header::ETAG,
    header::RETRY_AFTER,
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("x-request-id"),
    REPLAYED,
    SHOULD_RETRY,
    header::LOCATION,
    header::ALLOW,
    header::WWW_AUTHENTICATE,
];

/// The layer that answers preflights and marks answers; none where no origin is admitted. Credentials of the browser's
/// own, such as cookies, are never asked for: the key or token that a page sends is its own.
pub(crate) fn layer(origins: &CorsOrigins) -> Option<CorsLayer> {
    let origin = match origins {
        CorsOrigins::None => return None,
        CorsOrigins::Any => AllowOrigin::any(),
        CorsOrigins::List(origins) => {
            AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
        }
    };
    let layer = CorsLayer::new().allow_origin(origin).allow_methods(METHODS).max_age(MAX_AGE);
    Some(layer.allow_headers(AllowHeaders::mirror_request()).expose_headers(EXPOSED))
}
