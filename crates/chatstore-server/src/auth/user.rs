//! The user whom a request names beside its key.

use axum::http::HeaderMap;
use chatstore_core::limits::USER_ID_BYTES_MAX;

use crate::error::{ApiError, Code};

/// Names the one user a request speaks for.
pub const USER_ID_HEADER: &str = "x-user-id";
/// The same under the name that Azure gave it on the Conversations wire; elsewhere it means nothing.
pub const USER_ISOLATION_HEADER: &str = "x-ms-user-isolation-key";

/// The user that the request names.
pub(super) fn named_user(headers: &HeaderMap, is_openai: bool) -> Result<Option<String>, ApiError> {
    let named = user_in(headers, USER_ID_HEADER)?;
    if !is_openai {
        return Ok(named);
    }
    match (named, user_in(headers, USER_ISOLATION_HEADER)?) {
        (Some(one), Some(other)) if one != other => Err(ApiError::new(
            Code::InvalidHeader,
            format!("`{USER_ID_HEADER}` and `{USER_ISOLATION_HEADER}` mean the same and must not differ."),
        )),
        (named, alias) => Ok(named.or(alias)),
    }
}

/// The user in a header.
fn user_in(headers: &HeaderMap, name: &str) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text =
        std::str::from_utf8(value.as_bytes()).ok().filter(|text| !text.is_empty() && text.len() <= USER_ID_BYTES_MAX);
    match (text, values.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(ApiError::new(
            Code::InvalidHeader,
            format!("`{name}` must stand once and hold 1 to {USER_ID_BYTES_MAX} bytes of UTF-8."),
        )),
    }
}
