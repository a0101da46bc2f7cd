//! What handlers give back: JSON with a status, an ETag or a link to the next page. Every kind
//! describes itself for the OpenAPI document.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::{ApiError, Code};
use crate::openapi::{DescribeOutput, Example, Operation};

/// 200 with a JSON body.
pub struct Ok200<T>(pub T);

/// 200 with a JSON body and its version as ETag.
pub struct Versioned<T>(pub T, pub i64);

/// 201 with a JSON body, its version as ETag and where it is found.
pub struct Created<T> {
    /// The thing created.
    pub body: T,
    /// Its version, if it is one thing.
    pub version: Option<i64>,
    /// Its path, if it is one thing.
    pub location: Option<String>,
}

/// 200 with a bare JSON array, and a link to the next page if there is one.
pub struct Listed<T> {
    /// The page.
    pub items: Vec<T>,
    /// Path and query of the next page.
    pub next: Option<String>,
}

/// 200 with a JSON body, and a link to the next page if there is one.
pub struct Linked<T> {
    /// The page.
    pub body: T,
    /// Path and query of the next page.
    pub next: Option<String>,
}

/// Bytes an item of a list is expected to take; one that takes more costs a copy.
const ITEM_BYTES: usize = 1_024;

fn json(status: StatusCode, body: &impl Serialize, items: usize) -> Response {
    let mut bytes = Vec::with_capacity(items.max(1) * ITEM_BYTES);
    match serde_json::to_writer(&mut bytes, body) {
        Ok(()) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => ApiError::internal(format!("a response cannot be written as JSON: {error}")).into_response(),
    }
}

fn insert(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

impl<T: Serialize> IntoResponse for Ok200<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0, 1)
    }
}

impl<T: Serialize> IntoResponse for Versioned<T> {
    fn into_response(self) -> Response {
        let mut response = json(StatusCode::OK, &self.0, 1);
        insert(&mut response, header::ETAG, &format!("\"{}\"", self.1));
        response
    }
}

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        let mut response = json(StatusCode::CREATED, &self.body, 1);
        if let Some(version) = self.version {
            insert(&mut response, header::ETAG, &format!("\"{version}\""));
        }
        if let Some(location) = &self.location {
            insert(&mut response, header::LOCATION, location);
        }
        response
    }
}

impl<T: Serialize> IntoResponse for Listed<T> {
    fn into_response(self) -> Response {
        linked(json(StatusCode::OK, &self.items, self.items.len()), self.next.as_deref())
    }
}

impl<T: Serialize> IntoResponse for Linked<T> {
    fn into_response(self) -> Response {
        linked(json(StatusCode::OK, &self.body, 1), self.next.as_deref())
    }
}

fn linked(mut response: Response, next: Option<&str>) -> Response {
    if let Some(next) = next {
        insert(&mut response, header::LINK, &format!("<{next}>; rel=\"next\""));
    }
    response
}

impl<T: JsonSchema + Example> DescribeOutput for Ok200<T> {
    fn describe(operation: &mut Operation) {
        operation.answers::<T>(200, "Done.", &[]);
    }
}

impl<T: JsonSchema + Example> DescribeOutput for Versioned<T> {
    fn describe(operation: &mut Operation) {
        operation.answers::<T>(200, "Done.", &[("ETag", "The version, for `If-Match`.")]);
    }
}

impl<T: JsonSchema + Example> DescribeOutput for Created<T> {
    fn describe(operation: &mut Operation) {
        let headers = [("ETag", "The version, for `If-Match`."), ("Location", "The path of what was created.")];
        operation.answers::<T>(201, "Created.", &headers);
        operation.fails(Code::Conflict);
    }
}

impl<T: JsonSchema + Example> DescribeOutput for Listed<T> {
    fn describe(operation: &mut Operation) {
        operation.answers::<Vec<T>>(200, "A page.", &LINK);
    }
}

impl<T: JsonSchema + Example> DescribeOutput for Linked<T> {
    fn describe(operation: &mut Operation) {
        operation.answers::<T>(200, "A page.", &LINK);
    }
}

const LINK: [(&str, &str); 1] = [("Link", "The next page (RFC 8288, `rel=\"next\"`), while there is one.")];
