//! Every route on one screen, and the guard in front of each.

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{Next, from_fn};
use axum::routing::{MethodFilter, MethodRouter, on};
use chatstore_core::api_keys::Permission;
use chatstore_core::rates::RequestClass;

use crate::admission::Priority;
use crate::api::{
    OperationDoc, api_keys, archive, audit, embeddings, messages, projects, search, service, sessions, tokens,
};
use crate::app::App;
use crate::audit::is_audited;
use crate::auth::Guarded;
use crate::error::{ApiError, Code};
use crate::layers;
use crate::openai::{conversations, items};
use crate::openapi::{DescribedHandler, Operation};

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone, within the limits of an address and while there is room.
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
    use Permission::{Admin, Delete, Operator, Read, Search, Write};
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
        route(GET, "/api/v1/admin/audit", Needs(Admin), audit::list_audit_events, &audit::LIST_AUDIT_EVENTS),
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
        route(GET, "/api/v1/admin/keys", Needs(Admin), api_keys::list_api_keys, &api_keys::LIST_API_KEYS),
        route(POST, "/api/v1/admin/keys", Needs(Admin), api_keys::create_api_key, &api_keys::CREATE_API_KEY),
        route(GET, "/api/v1/admin/keys/{key_id}", Needs(Admin), api_keys::get_api_key, &api_keys::GET_API_KEY),
        route(PATCH, "/api/v1/admin/keys/{key_id}", Needs(Admin), api_keys::update_api_key, &api_keys::UPDATE_API_KEY),
        route(
            POST,
            "/api/v1/admin/keys/{key_id}/revoke",
            Needs(Admin),
            api_keys::revoke_api_key,
            &api_keys::REVOKE_API_KEY,
        ),
        route(
            POST,
            "/api/v1/admin/keys/{key_id}/rotate",
            Needs(Admin),
            api_keys::rotate_api_key,
            &api_keys::ROTATE_API_KEY,
        ),
        route(GET, "/api/v1/admin/project", Needs(Admin), projects::get_own_project, &projects::GET_OWN_PROJECT),
        route(
            PATCH,
            "/api/v1/admin/project",
            Needs(Admin),
            projects::update_own_project,
            &projects::UPDATE_OWN_PROJECT,
        ),
        route(
            POST,
            "/api/v1/admin/project/token-secret",
            Needs(Admin),
            projects::rotate_token_secret,
            &projects::ROTATE_TOKEN_SECRET,
        ),
        route(
            DELETE,
            "/api/v1/admin/project/token-secret",
            Needs(Admin),
            projects::delete_token_secret,
            &projects::DELETE_TOKEN_SECRET,
        ),
        route(GET, "/api/v1/admin/projects", Needs(Operator), projects::list_projects, &projects::LIST_PROJECTS),
        route(POST, "/api/v1/admin/projects", Needs(Operator), projects::create_project, &projects::CREATE_PROJECT),
        route(
            GET,
            "/api/v1/admin/projects/{project_id}",
            Needs(Operator),
            projects::get_project,
            &projects::GET_PROJECT,
        ),
        route(
            PATCH,
            "/api/v1/admin/projects/{project_id}",
            Needs(Operator),
            projects::update_project,
            &projects::UPDATE_PROJECT,
        ),
        route(
            DELETE,
            "/api/v1/admin/projects/{project_id}",
            Needs(Operator),
            projects::delete_project,
            &projects::DELETE_PROJECT,
        ),
        route(POST, "/api/v1/admin/tokens", Needs(Admin), tokens::create_token, &tokens::CREATE_TOKEN),
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
        route(
            POST,
            "/v1/conversations",
            Needs(Write),
            conversations::create_conversation,
            &conversations::CREATE_CONVERSATION,
        ),
        route(
            GET,
            "/v1/conversations",
            Needs(Read),
            conversations::list_conversations,
            &conversations::LIST_CONVERSATIONS,
        ),
        route(
            GET,
            "/v1/conversations/{conversation_id}",
            Needs(Read),
            conversations::get_conversation,
            &conversations::GET_CONVERSATION,
        ),
        route(
            POST,
            "/v1/conversations/{conversation_id}",
            Needs(Write),
            conversations::update_conversation,
            &conversations::UPDATE_CONVERSATION,
        ),
        route(
            DELETE,
            "/v1/conversations/{conversation_id}",
            Needs(Delete),
            conversations::delete_conversation,
            &conversations::DELETE_CONVERSATION,
        ),
        route(
            POST,
            "/v1/conversations/{conversation_id}/items",
            Needs(Write),
            items::create_items,
            &items::CREATE_ITEMS,
        ),
        route(GET, "/v1/conversations/{conversation_id}/items", Needs(Read), items::list_items, &items::LIST_ITEMS),
        route(
            GET,
            "/v1/conversations/{conversation_id}/items/{item_id}",
            Needs(Read),
            items::get_item,
            &items::GET_ITEM,
        ),
        route(
            DELETE,
            "/v1/conversations/{conversation_id}/items/{item_id}",
            Needs(Delete),
            items::delete_item,
            &items::DELETE_ITEM,
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

/// What frees space or rules helps when there is too much. An import is administration that only adds to it.
fn priority(route: &Guarded) -> Priority {
    let is_import = route.action == archive::IMPORT_SESSIONS.id;
    if route.is_audited && !is_import { Priority::High } else { Priority::Usual }
}

/// Puts admission in front of a guarded handler.
fn admitted(guarded: MethodRouter<App>, app: App, priority: Priority) -> MethodRouter<App> {
    guarded.route_layer(from_fn(move |request: Request, next: Next| {
        crate::admission::admit(app.clone(), priority, request, next)
    }))
}

/// The whole application.
pub fn router(app: App) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let app = app.clone();
        let handler = match route.access {
            Access::Health => route.handler,
            Access::Open => {
                let guarded = app.clone();
                let guard = from_fn(move |request: Request, next: Next| {
                    crate::auth::guard_open(guarded.clone(), request, next)
                });
                admitted(route.handler.route_layer(guard), app, Priority::Usual)
            }
            Access::Needs(permission) => {
                let route_handler = route.handler;
                let route = Guarded {
                    action: route.doc.id,
                    permission,
                    class: class(&route.method, permission),
                    is_audited: is_audited(&route.method, permission),
                };
                let guarded = app.clone();
                let guard = from_fn(move |request: Request, next: Next| {
                    crate::auth::guard(guarded.clone(), route, request, next)
                });
                admitted(route_handler.route_layer(guard), app, priority(&route))
            }
        };
        if route.path.len() > 1 {
            router = router.route(&format!("{}/", route.path), handler.clone());
        }
        router = router.route(route.path, handler);
    }
    let router = router
        .fallback(async || ApiError::new(Code::RouteNotFound, "Nothing is served at this path; `/docs` shows what is."))
        .method_not_allowed_fallback(async || {
            ApiError::new(Code::MethodNotAllowed, "The header `Allow` names the methods of this path.")
        });
    layers::wrap(router, &app).with_state(app)
}
