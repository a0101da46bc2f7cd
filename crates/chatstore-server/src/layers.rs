//! What lies around every route: the request's id, its line in the log and the headers of every answer; CORS; the time
//! limit, caught panics and the rendering of errors.

use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;

use crate::app::App;
use crate::audit::RequestId;
use crate::cors;
use crate::error::{ApiError, Code};
use crate::openai;
use crate::request_log::RequestLine;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every answer carries unless it brings its own. Nothing here is a page, unless it says otherwise.
/// `Cross-Origin-Resource-Policy` keeps other sites from embedding answers; what CORS allows is not embedded.
static HEADERS: [(HeaderName, HeaderValue); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Puts the layers around all routes, and around what no route serves.
pub(crate) fn wrap(router: Router<App>, app: &App) -> Router<App> {
    let answered = router.layer(from_fn_with_state(app.clone(), answer));
    let shared = match cors::layer(&app.access.cors_origins) {
        Some(cors) => answered.layer(cors),
        None => answered,
    };
    shared.layer(from_fn_with_state(app.clone(), observe))
}

/// The code of an answer that is an error, left on it for the log line.
#[derive(Clone, Copy)]
struct FailedWith(&'static str);

/// The outermost layer: what holds for every answer, that to a preflight included.
async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let request_id = request_id(&app, &request);
    request.extensions_mut().insert(RequestId(request_id.clone()));
    let line = RequestLine::begin(&request);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID.clone(), value);
    }
    for (name, value) in &HEADERS {
        headers.entry(name).or_insert_with(|| value.clone());
    }
    let code = response.extensions().get::<FailedWith>().map(|FailedWith(code)| *code);
    line.end(&response, &request_id, code);
    response
}

/// The innermost layer: an answer in time and in due form, whatever the handler does.
async fn answer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let request_id = request.extensions().get::<RequestId>().map(|RequestId(id)| id.clone()).unwrap_or_default();
    let form = if openai::serves(request.uri().path()) { openai::error::render } else { ApiError::render };
    let sdk_try = app.sdk_tries.meet(&request);
    if let Some(sdk_try) = sdk_try.clone() {
        request.extensions_mut().insert(sdk_try);
    }
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = match tokio::time::timeout(app.limits.request_timeout, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => ApiError::internal("the handler panicked").into_response(),
        Err(_elapsed) => {
            let detail = "The request took too long; what it asked for may still happen.";
            ApiError::new(Code::RequestTimeout, detail).into_response()
        }
    };
    let error = response.extensions_mut().remove::<ApiError>();
    let Some(error) = error else { return response };
    if let Some(sdk_try) = sdk_try {
        app.sdk_tries.refuse(&sdk_try, error.code);
    }
    render(error, response, &request_id, form)
}

/// The finished form of an error, with the headers that were put on it on its way, such as `Allow` and `RateLimit`.
fn render(
    mut error: ApiError,
    unfinished: Response,
    request_id: &str,
    form: fn(ApiError, &str) -> Response,
) -> Response {
    let code = error.code.as_str();
    if let Some(reason) = error.reason.take() {
        tracing::error!(request_id, code, reason, "a request failed on our side");
    }
    let (mut parts, _) = unfinished.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    let mut response = form(error, request_id);
    response.headers_mut().extend(parts.headers);
    *response.extensions_mut() = parts.extensions;
    response.extensions_mut().insert(FailedWith(code));
    response
}

/// The caller's id if it is a plain word, else a new one.
fn request_id(app: &App, request: &Request) -> String {
    let sent = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain =
        |id: &&str| (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    sent.filter(plain).map_or_else(|| app.ctx.new_request_id(), ToOwned::to_owned)
}
