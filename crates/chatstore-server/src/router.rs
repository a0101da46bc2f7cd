//! Every route on one screen, and the layers around them.

use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use chatstore_core::api_keys::Permission;
use chatstore_core::rates::RequestClass;
use futures_util::FutureExt as _;

use crate::api::{OperationDoc, archive, embeddings, messages, search, service, sessions};
use crate::app::App;
use crate::audit::is_audited;
use crate::auth::Guarded;
use crate::error::{ApiError, Code};
use crate::openapi::{DescribedHandler, Operation};
use crate::request_log::RequestLine;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone, within the limits of an address.
    Open,
    /// Anyone, always: what probes ask.
    Health,
    /// Callers whose key has this scope.
    Needs(Permission),
}

/// One method of one path.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, without a trailing slash.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    /// What the document says of it.
    pub doc: &'static OperationDoc,
    /// Writes the handler's types into the document.
    pub describe: fn(&mut Operation),
    handler: MethodRouter<App>,
}

/// Every route there is. Those that need no key are all in the first block.
pub fn routes() -> Vec<Route> {
    use Access::{Health, Needs, Open};
    use Permission::{Admin, Delete, Read, Search, Write};
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    const PATCH: Method = Method::PATCH;
    const DELETE: Method = Method::DELETE;
    vec![
        route(GET, "/", Open, service::get_index, &service::GET_INDEX),
        route(GET, "/docs", Open, service::get_docs, &service::GET_DOCS),
        route(GET, "/docs/{file}", Open, service::get_docs_file, &service::GET_DOCS_FILE),
        route(GET, "/healthz", Health, service::get_health, &service::GET_HEALTH),
        route(GET, "/livez", Health, service::get_liveness, &service::GET_LIVENESS),
        route(GET, "/openapi.json", Open, service::get_openapi, &service::GET_OPENAPI),
        route(GET, "/readyz", Health, service::get_readiness, &service::GET_READINESS),
        route(
            GET,
            "/api/v1/admin/embeddings",
            Needs(Admin),
            embeddings::get_embedding_backlog,
            &embeddings::GET_EMBEDDING_BACKLOG,
        ),
        route(
            POST,
            "/api/v1/admin/embeddings/retry",
            Needs(Admin),
            embeddings::retry_parked_embeddings,
            &embeddings::RETRY_PARKED_EMBEDDINGS,
        ),
        route(POST, "/api/v1/admin/import", Needs(Admin), archive::import_sessions, &archive::IMPORT_SESSIONS),
        route(
            GET,
            "/api/v1/search",
            Needs(Search),
            search::search_messages_by_query,
            &search::SEARCH_MESSAGES_BY_QUERY,
        ),
        route(POST, "/api/v1/search", Needs(Search), search::search_messages, &search::SEARCH_MESSAGES),
        route(GET, "/api/v1/sessions", Needs(Read), sessions::list_sessions, &sessions::LIST_SESSIONS),
        route(POST, "/api/v1/sessions", Needs(Write), sessions::create_session, &sessions::CREATE_SESSION),
        route(GET, "/api/v1/sessions/{session_id}", Needs(Read), sessions::get_session, &sessions::GET_SESSION),
        route(
            PATCH,
            "/api/v1/sessions/{session_id}",
            Needs(Write),
            sessions::update_session,
            &sessions::UPDATE_SESSION,
        ),
        route(
            DELETE,
            "/api/v1/sessions/{session_id}",
            Needs(Delete),
            sessions::delete_session,
            &sessions::DELETE_SESSION,
        ),
        route(
            GET,
            "/api/v1/sessions/{session_id}/messages",
            Needs(Read),
            messages::list_messages,
            &messages::LIST_MESSAGES,
        ),
        route(
            POST,
            "/api/v1/sessions/{session_id}/messages",
            Needs(Write),
            messages::append_messages,
            &messages::APPEND_MESSAGES,
        ),
        route(
            GET,
            "/api/v1/sessions/{session_id}/search",
            Needs(Search),
            search::search_session,
            &search::SEARCH_SESSION,
        ),
        route(GET, "/api/v1/messages/{message_id}", Needs(Read), messages::get_message, &messages::GET_MESSAGE),
        route(
            PATCH,
            "/api/v1/messages/{message_id}",
            Needs(Write),
            messages::update_message,
            &messages::UPDATE_MESSAGE,
        ),
        route(
            DELETE,
            "/api/v1/messages/{message_id}",
            Needs(Delete),
            messages::delete_message,
            &messages::DELETE_MESSAGE,
        ),
        route(
            PUT,
            "/api/v1/messages/{message_id}/embedding",
            Needs(Write),
            embeddings::set_embedding,
            &embeddings::SET_EMBEDDING,
        ),
    ]
}

/// Ties a handler to its place. `Args` are what the document reads off the handler's signature,
/// `Extractors` what axum does.
fn route<H, Args, Extractors>(
    method: Method,
    path: &'static str,
    access: Access,
    handler: H,
    doc: &'static OperationDoc,
) -> Route
where
    H: Handler<Extractors, App> + DescribedHandler<Args>,
    Extractors: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).expect("routes use methods that axum knows");
    Route { method, path, access, doc, describe: H::describe, handler: on(filter, handler) }
}

/// The budget that requests of a route draw on.
fn class(method: &Method, permission: Permission) -> RequestClass {
    match permission {
        Permission::Search => RequestClass::Search,
        _ if method == Method::GET => RequestClass::Reads,
        _ => RequestClass::Writes,
    }
}

/// The whole application.
pub fn router(app: App) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let app = app.clone();
        let handler = match route.access {
            Access::Health => route.handler,
            Access::Open => route.handler.route_layer(from_fn(move |request: Request, next: Next| {
                crate::auth::guard_open(app.clone(), request, next)
            })),
            Access::Needs(permission) => {
                let route_handler = route.handler;
                let route = Guarded {
                    action: route.doc.id,
                    permission,
                    class: class(&route.method, permission),
                    is_audited: is_audited(&route.method, permission),
                };
                route_handler.route_layer(from_fn(move |request: Request, next: Next| {
                    crate::auth::guard(app.clone(), route, request, next)
                }))
            }
        };
        if route.path.len() > 1 {
            router = router.route(&format!("{}/", route.path), handler.clone());
        }
        router = router.route(route.path, handler);
    }
    router
        .fallback(async || ApiError::new(Code::RouteNotFound, "Nothing is served at this path; `/docs` shows what is."))
        .method_not_allowed_fallback(async || {
            ApiError::new(Code::MethodNotAllowed, "The header `Allow` names the methods of this path.")
        })
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Around everything: the request's id and time limit, caught panics, the rendering of errors,
/// headers that every response carries, and one line in the log.
async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let request_id = request_id(&app, &request);
    let line = RequestLine::begin(&request);
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = match tokio::time::timeout(app.limits.request_timeout, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => ApiError::internal("the handler panicked").into_response(),
        Err(_elapsed) => {
            let detail = "The request took too long; what it asked for may still happen.";
            ApiError::new(Code::RequestTimeout, detail).into_response()
        }
    };
    let mut code = None;
    if let Some(mut error) = response.extensions_mut().remove::<ApiError>() {
        code = Some(error.code.as_str());
        if let Some(reason) = error.reason.take() {
            tracing::error!(request_id, code, reason, "a request failed on our side");
        }
        let allow = response.headers_mut().remove(header::ALLOW);
        let extensions = std::mem::take(response.extensions_mut());
        response = error.render(&request_id);
        *response.extensions_mut() = extensions;
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    finish_headers(&mut response, &request_id);
    line.end(&response, &request_id, code);
    response
}

/// The caller's id if it is a plain word, else a new one.
fn request_id(app: &App, request: &Request) -> String {
    let sent = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let plain =
        |id: &&str| (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    sent.filter(plain).map_or_else(|| app.ctx.new_request_id(), ToOwned::to_owned)
}

fn finish_headers(response: &mut Response, request_id: &str) {
    static NOSNIFF: LazyLock<HeaderValue> = LazyLock::new(|| HeaderValue::from_static("nosniff"));
    static NO_STORE: LazyLock<HeaderValue> = LazyLock::new(|| HeaderValue::from_static("no-store"));
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID.clone(), value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF.clone());
    headers.entry(header::CACHE_CONTROL).or_insert_with(|| NO_STORE.clone());
}
