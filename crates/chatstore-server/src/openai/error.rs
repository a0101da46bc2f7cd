//! Errors as OpenAI's SDKs read them.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{ApiError, Code};

/// Why a request failed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorResponse {
    /// All of it.
    pub error: ErrorDetailResponse,
}

/// What is said of an error.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorDetailResponse {
    /// What happened, in a sentence.
    message: String,
    /// The kind, roughly.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field or parameter at fault.
    param: Option<String>,
    /// The kind, for programs.
    code: Option<&'static str>,
}

/// The status an error of this kind has here.
pub fn status(code: Code) -> StatusCode {
    if code == Code::ValidationFailed { StatusCode::BAD_REQUEST } else { code.status() }
}

/// `type` and `code` of an error of this kind.
fn names(code: Code) -> (&'static str, Option<&'static str>) {
    let kind = match status(code) {
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    let name = match code {
        Code::NotFound | Code::RouteNotFound => None,
        Code::MissingApiKey | Code::InvalidApiKey | Code::InvalidToken => Some("invalid_api_key"),
        Code::InsufficientScope => Some("missing_scope"),
        Code::RateLimited => Some("rate_limit_exceeded"),
        Code::ValidationFailed => Some("invalid_value"),
        other => Some(other.as_str()),
    };
    (kind, name)
}

/// An error in its finished form.
pub(crate) fn render(error: ApiError, _request_id: &str) -> Response {
    let (kind, name) = names(error.code);
    let fault = error.errors().first();
    let param = fault.map(|fault| param(&fault.pointer)).filter(|param| !param.is_empty());
    let message = match (fault, &param) {
        (Some(fault), Some(param)) if error.own_code().is_none() => format!("`{param}` {}.", fault.detail),
        _ => error.detail().to_owned(),
    };
    let body = ErrorResponse { error: ErrorDetailResponse { message, kind, param, code: error.own_code().or(name) } };
    let mut response = Response::new(Body::from(serde_json::to_vec(&body).unwrap_or_default()));
    *response.status_mut() = status(error.code);
    *response.headers_mut() = error.headers();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// How errors of this kind look in the document, and what they are called there.
pub(crate) fn example(code: Code) -> (&'static str, Value) {
    let (kind, name) = names(code);
    let error = json!({"error": {"message": format!("{}.", code.title()), "type": kind, "param": null, "code": name}});
    (name.unwrap_or(code.as_str()), error)
}

/// The same of what only items can be refused for.
pub(crate) fn examples_of_items() -> [(&'static str, Value); 2] {
    [
        (INVALID_ITEM, "item", NOT_TO_BE_SHOWN),
        (ALREADY_IN_CONVERSATION, "items", "Item already in conversation: `items[0]` has the id of another item."),
    ]
    .map(|(name, param, message)| {
        let kind = "invalid_request_error";
        (name, json!({"error": {"message": message, "type": kind, "param": param, "code": name}}))
    })
}

/// The code of an item that could not be sent to a model again.
pub(super) const INVALID_ITEM: &str = "invalid_item";
/// What is said of it.
pub(super) const NOT_TO_BE_SHOWN: &str = "Invalid item: reasoning needs its `id` or `encrypted_content`.";
/// The code of an item whose id another one has.
pub(super) const ALREADY_IN_CONVERSATION: &str = "item_already_in_conversation";

/// A pointer as this wire writes it: `items[3].role` for `/items/3/role`, `limit` for `?limit`.
fn param(pointer: &str) -> String {
    if let Some(name) = pointer.strip_prefix('?') {
        return name.to_owned();
    }
    // Its keys are the client's, and may be digits.
    let has_no_list = pointer.starts_with("/metadata");
    let mut param = String::new();
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        if !param.is_empty() && !has_no_list && step.bytes().all(|byte| byte.is_ascii_digit()) {
            param.push_str(&format!("[{step}]"));
        } else {
            if !param.is_empty() {
                param.push('.');
            }
            param.push_str(&step);
        }
    }
    param
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_written_as_on_this_wire() {
        for (pointer, written) in [
            ("/items/3/role", "items[3].role"),
            ("/metadata/topic", "metadata.topic"),
            ("/metadata/a~1b", "metadata.a/b"),
            ("/metadata/0", "metadata.0"),
            ("/items/0/content/1", "items[0].content[1]"),
            ("?limit", "limit"),
            ("/items", "items"),
            ("", ""),
        ] {
            assert_eq!(param(pointer), written);
        }
    }

    #[test]
    fn a_kind_of_error_has_a_type() {
        for (code, kind, name) in [
            (Code::NotFound, "invalid_request_error", None),
            (Code::InvalidToken, "invalid_request_error", Some("invalid_api_key")),
            (Code::InsufficientScope, "permission_error", Some("missing_scope")),
            (Code::RateLimited, "rate_limit_error", Some("rate_limit_exceeded")),
            (Code::Overloaded, "server_error", Some("overloaded")),
            (Code::BodyTooLarge, "invalid_request_error", Some("body_too_large")),
        ] {
            assert_eq!(names(code), (kind, name), "{code:?}");
        }
    }
}
