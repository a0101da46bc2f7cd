//! What the service says of itself: health, the document, its pages.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::OperationDoc;
use crate::app::App;
use crate::docs;
use crate::error::{ApiError, Code};
use crate::openapi::{Describe, DescribeOutput, Example, Operation};
use crate::respond::Ok200;
use schemars::JsonSchema;
use serde::Serialize;

/// How it is.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StatusResponse {
    /// `ok`.
    status: &'static str,
}

impl Example for StatusResponse {
    fn example() -> Value {
        json!({"status": "ok"})
    }
}

const OK: StatusResponse = StatusResponse { status: "ok" };

/// See [`get_health`].
pub const GET_HEALTH: OperationDoc = OperationDoc {
    id: "get_health",
    summary: "Whether the service runs",
    description: "The simple status. Probes use `/livez` and `/readyz`.",
    tag: "service",
};

/// The simple status.
pub async fn get_health(State(_app): State<App>) -> Result<Ok200<StatusResponse>, ApiError> {
    Ok(Ok200(OK))
}

/// See [`get_liveness`].
pub const GET_LIVENESS: OperationDoc = OperationDoc {
    id: "get_liveness",
    summary: "Whether the process lives",
    description: "Asks nothing but the process itself.",
    tag: "service",
};

/// The liveness probe.
pub async fn get_liveness(State(_app): State<App>) -> Result<Ok200<StatusResponse>, ApiError> {
    Ok(Ok200(OK))
}

/// See [`get_readiness`].
pub const GET_READINESS: OperationDoc = OperationDoc {
    id: "get_readiness",
    summary: "Whether requests can be served",
    description: "200 when the store is reachable, migrated and writable and the process is not stopping; else 503.",
    tag: "service",
};

/// The readiness probe.
pub async fn get_readiness(State(app): State<App>) -> Result<Ready, ApiError> {
    if app.shutdown.is_cancelled() {
        return Err(ApiError::new(Code::NotReady, "The service is stopping."));
    }
    match app.store.check().await {
        Ok(()) => Ok(Ready),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            Err(ApiError::new(Code::NotReady, "The store cannot be used now."))
        }
    }
}

/// 200: requests can be served.
pub struct Ready;

impl IntoResponse for Ready {
    fn into_response(self) -> Response {
        Ok200(OK).into_response()
    }
}

impl DescribeOutput for Ready {
    fn describe(operation: &mut Operation) {
        operation.answers::<StatusResponse>(200, "Ready.", &[]);
        operation.fails(Code::NotReady);
    }
}

/// See [`get_index`].
pub const GET_INDEX: OperationDoc = OperationDoc {
    id: "get_index",
    summary: "What this is",
    description: "A page for browsers; JSON for everything else.",
    tag: "service",
};

/// The front page.
pub async fn get_index(State(app): State<App>, headers: HeaderMap) -> Result<Page, ApiError> {
    let ready = !app.shutdown.is_cancelled() && app.store.check().await.is_ok();
    let version = env!("CARGO_PKG_VERSION");
    Ok(Page(if docs::wants_html(&headers) {
        docs::landing_html(version, ready)
    } else {
        docs::landing_json(version, ready)
    }))
}

/// See [`get_docs`].
pub const GET_DOCS: OperationDoc = OperationDoc {
    id: "get_docs",
    summary: "Interactive documentation",
    description: "Swagger UI; works offline.",
    tag: "service",
};

/// The interactive documentation.
pub async fn get_docs(State(_app): State<App>) -> Result<Page, ApiError> {
    Ok(Page(docs::docs().await))
}

/// See [`get_docs_file`].
pub const GET_DOCS_FILE: OperationDoc = OperationDoc {
    id: "get_docs_file",
    summary: "A file of the documentation",
    description: "Scripts and styles of `/docs`.",
    tag: "service",
};

/// A file of the documentation.
pub async fn get_docs_file(
    State(_app): State<App>,
    DocsPath(name): DocsPath,
    headers: HeaderMap,
) -> Result<Page, ApiError> {
    docs::docs_asset_response(&name, &headers).map(Page).ok_or_else(|| ApiError::not_found("file"))
}

/// The file named in the path.
pub struct DocsPath(String);

impl axum::extract::FromRequestParts<App> for DocsPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, app: &App) -> Result<Self, ApiError> {
        let Path(name) =
            Path::<String>::from_request_parts(parts, app).await.map_err(|_| ApiError::not_found("file"))?;
        Ok(Self(name))
    }
}

impl Describe for DocsPath {
    fn describe(operation: &mut Operation) {
        operation.path_parameter("file", "Name of the file.", json!({"type": "string"}));
        operation.answers_nothing(304, "The caller has it: `If-None-Match` names its ETag.");
        operation.fails(Code::NotFound);
    }
}

/// See [`get_openapi`].
pub const GET_OPENAPI: OperationDoc = OperationDoc {
    id: "get_openapi",
    summary: "The OpenAPI document",
    description: "OpenAPI 3.1, for tools that read APIs.",
    tag: "service",
};

/// The OpenAPI document.
pub async fn get_openapi(State(app): State<App>) -> Result<OpenApiJson, ApiError> {
    Ok(OpenApiJson(app.openapi.clone()))
}

/// The document as it is.
pub struct OpenApiJson(bytes::Bytes);

impl IntoResponse for OpenApiJson {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], self.0).into_response()
    }
}

impl DescribeOutput for OpenApiJson {
    fn describe(operation: &mut Operation) {
        operation.answers_text("The document.", &["application/json"]);
    }
}

/// What [`Page`] may be.
const PAGE_TYPES: [&str; 6] =
    ["text/html", "application/json", "text/css", "text/javascript", "image/svg+xml", "text/plain"];

/// A page or file for browsers.
pub struct Page(Response);

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        self.0
    }
}

impl DescribeOutput for Page {
    fn describe(operation: &mut Operation) {
        operation.answers_text("The page.", &PAGE_TYPES);
    }
}

impl Describe for HeaderMap {
    fn describe(_operation: &mut Operation) {}
}
