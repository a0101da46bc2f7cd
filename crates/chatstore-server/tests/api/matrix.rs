//! Every operation × every id it takes × whose id it is: what belongs to another is neither seen,
//! nor changed, nor told apart from what is not there.

mod personas;

use axum::body::Body;
use axum::http::Method;
use chatstore_core::ids::ProjectId;
use chatstore_core::store::Scope;
use chatstore_server::router::{Access, Route, routes};
use serde_json::{Value, json};

use crate::app::{TestApp, api_tests};
use crate::client::{Client, Reply, fill, text};

api_tests! {
    the_matrix_for_a_key_bound_to_a_user
    the_matrix_for_a_request_narrowed_to_a_user
    the_matrix_for_a_key_of_a_project
    what_is_about_a_project_is_not_for_who_speaks_for_a_user
    an_import_cannot_tell_a_foreign_session_from_an_absent_one
    an_import_cannot_tell_a_foreign_message_from_an_absent_one
}

/// Stands in every field of what is foreign.
const CANARY: &str = "canary";
const ABSENT: &str = "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47";

/// Where an id stands in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    PathSession,
    PathMessage,
    PathConversation,
    PathItem,
    BodyReference,
    QueryItem,
    BodyUser,
    BodyParent,
    BodyExternal,
    BodySession,
    BodyCursor,
    QueryUser,
    QuerySession,
    HeaderUser,
    Cursor,
    ImportSession,
    ImportMessage,
    ImportParent,
    ImportUser,
}

/// Whose id it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Own,
    OtherUser,
    OtherProject,
    Deleted,
    Absent,
    Malformed,
}

/// Every place of an id in an operation.
fn places(operation: &str) -> &'static [Place] {
    use Place::*;
    match operation {
        "list_sessions" => &[HeaderUser, QueryUser, Cursor],
        "create_session" => &[HeaderUser, BodyUser, BodyExternal],
        "get_session" | "update_session" | "delete_session" => &[HeaderUser, PathSession],
        "list_messages" => &[HeaderUser, PathSession, Cursor],
        "append_messages" => &[HeaderUser, PathSession, BodyParent, BodyExternal],
        "get_message" | "update_message" | "delete_message" => &[HeaderUser, PathMessage],
        "search_messages" => &[HeaderUser, BodyUser, BodySession, BodyCursor],
        "search_messages_by_query" => &[HeaderUser, QueryUser, QuerySession, Cursor],
        "search_session" => &[HeaderUser, PathSession, QueryUser, Cursor],
        "set_embedding" => &[HeaderUser, PathMessage],
        "list_conversations" => &[HeaderUser, QueryUser],
        "create_conversation" => &[HeaderUser, BodyReference],
        "get_conversation" | "update_conversation" | "delete_conversation" => &[HeaderUser, PathConversation],
        "create_items" => &[HeaderUser, PathConversation, BodyReference],
        "list_items" => &[HeaderUser, PathConversation, QueryItem],
        "get_item" | "delete_item" => &[HeaderUser, PathConversation, PathItem],
        // They take none, and are refused to who speaks for one user.
        "get_embedding_backlog" | "retry_parked_embeddings" => &[],
        // About whole projects, and refused to who speaks for one user: `personas`, `api_keys`, `projects`, `audit`.
        "list_api_keys" | "create_api_key" | "get_api_key" | "update_api_key" | "revoke_api_key" | "rotate_api_key" => {
            &[]
        }
        "list_projects" | "create_project" | "get_project" | "update_project" | "delete_project" => &[],
        "get_own_project" | "update_own_project" | "rotate_token_secret" | "delete_token_secret" => &[],
        "create_token" | "list_audit_events" => &[],
        "import_sessions" => &[HeaderUser, ImportUser, ImportSession, ImportMessage, ImportParent],
        operation => panic!("`{operation}` is new: say here which ids it takes, and where"),
    }
}

/// A session with a message, and cursors of its owner's lists.
#[derive(Clone, Debug)]
struct Things {
    session_id: String,
    message_id: String,
    user: &'static str,
    sessions_cursor: String,
    messages_cursor: String,
    search_cursor: String,
    session_search_cursor: String,
}

/// A message's id as an item's.
fn item_id(message_id: &str) -> String {
    fill("{item_id}", "", message_id)
}

/// Stands in every message.
const COMMON: &str = "common";
const GHOST: &str = "cursor";

async fn things(client: &Client, user: &'static str, word: &str, external_id: &str) -> Things {
    let body = json!({
        "session_name": word, "user_id": user, "metadata": {word: word}, "external_id": external_id,
    });
    let session_id = text(&client.post("/api/v1/sessions", &body).await.expect(201)["session_id"]);
    client.post("/api/v1/sessions", json!({"session_name": word, "user_id": user})).await.expect(201);
    let messages = format!("/api/v1/sessions/{session_id}/messages");
    let message = json!({
        "content": format!("{word} {COMMON}"), "role": word, "payload": [word], "metadata": {word: word}, "context": word,
        "external_id": external_id, "kind": word,
    });
    let message_id = text(&client.post(&messages, &message).await.expect(201)["message_id"]);
    client.post(&messages, json!({"content": format!("{word} {COMMON}")})).await.expect(201);
    let cursor = async |list: &str| {
        let and = if list.contains('?') { '&' } else { '?' };
        let next = client.get(&format!("{list}{and}limit=1")).await.next();
        next.and_then(|next| Some(next.split_once("cursor=")?.1.to_owned())).unwrap_or_default()
    };
    let (sessions_cursor, messages_cursor) = (cursor("/api/v1/sessions").await, cursor(&messages).await);
    let search_cursor = cursor(&format!("/api/v1/search?q={COMMON}")).await;
    let session_search_cursor = cursor(&format!("/api/v1/sessions/{session_id}/search?q={COMMON}")).await;
    Things { session_id, message_id, user, sessions_cursor, messages_cursor, search_cursor, session_search_cursor }
}

struct World {
    app: TestApp,
    /// Who sends the requests.
    client: Client,
    user: &'static str,
    other_user: Things,
    other_project: Things,
    deleted: Things,
    made: std::cell::Cell<u32>,
}

impl World {
    /// `bobs` stands in the fields of the other user, whom a key of the project may see.
    async fn new(app: TestApp, client: Client, user: &'static str, bobs: &str) -> Self {
        let other_user = things(&app.bob(), "bob", bobs, "external-bob").await;
        let other_project = things(&app.stranger(), "zoe", CANARY, "external-zoe").await;
        let deleted = things(&client, user, "deleted", "external-deleted").await;
        client.delete(&format!("/api/v1/sessions/{}", deleted.session_id)).await.expect(200);
        let deleted = Things { user: "ghost", ..deleted };
        Self { app, client, user, other_user, other_project, deleted, made: std::cell::Cell::new(0) }
    }

    fn number(&self) -> u32 {
        self.made.set(self.made.get() + 1);
        self.made.get()
    }

    async fn own(&self) -> Things {
        things(&self.client, self.user, "own", &format!("external-own-{}", self.number())).await
    }

    fn named(&self, whose: Whose, own: &Things) -> Things {
        let none = |id: &str, user: &'static str| Things {
            session_id: id.to_owned(),
            message_id: id.to_owned(),
            user,
            sessions_cursor: GHOST.to_owned(),
            messages_cursor: GHOST.to_owned(),
            search_cursor: GHOST.to_owned(),
            session_search_cursor: GHOST.to_owned(),
        };
        match whose {
            Whose::Own => own.clone(),
            Whose::OtherUser => self.other_user.clone(),
            Whose::OtherProject => self.other_project.clone(),
            // A cursor of a list of sessions, or of a search, outlives each of them.
            Whose::Deleted => {
                let ghost = GHOST.to_owned();
                Things { sessions_cursor: ghost.clone(), search_cursor: ghost, ..self.deleted.clone() }
            }
            Whose::Absent => none(ABSENT, "nobody"),
            Whose::Malformed => none("no-id", ""),
        }
    }

    /// One cell: a request that is good but for the id in `place`.
    async fn send(&self, route: &Route, place: Place, whose: Whose) -> Reply {
        let own = self.own().await;
        let named = self.named(whose, &own);
        let external = match whose {
            Whose::Own => format!("external-own-{}", self.made.get()),
            Whose::OtherUser => "external-bob".to_owned(),
            Whose::OtherProject => "external-zoe".to_owned(),
            Whose::Deleted => "external-deleted".to_owned(),
            _ => format!("external-new-{}", self.number()),
        };
        let in_path = |places: [Place; 2], named: &str, own: &str| {
            if places.contains(&place) { named.to_owned() } else { own.to_owned() }
        };
        let session_id = in_path([Place::PathSession, Place::PathConversation], &named.session_id, &own.session_id);
        let message_id = in_path([Place::PathMessage, Place::PathItem], &named.message_id, &own.message_id);
        let mut path = fill(route.path, &session_id, &message_id);
        let mut body = match route.doc.id {
            "create_session" => json!({"session_name": "own", "user_id": self.user}),
            "append_messages" => json!({"content": "own"}),
            "create_items" => json!({"items": [{"role": "user", "content": "own"}]}),
            "update_conversation" => json!({"metadata": {"own": "own"}}),
            "search_messages" => json!({"query": COMMON, "limit": 1}),
            "set_embedding" => json!({"embedding": [1, 2]}),
            "import_sessions" => json!([{
                "session_id": own.session_id, "external_id": format!("imported-{}", self.number()),
                "messages": [{"content": "own", "seq": 3}],
            }]),
            _ => json!({}),
        };
        if let "search_messages_by_query" | "search_session" = route.doc.id {
            path = format!("{path}?q={COMMON}&limit=1");
        }
        let and = if path.contains('?') { '&' } else { '?' };
        let mut client = self.client.with("content-type", "application/json");
        match place {
            Place::PathSession | Place::PathMessage | Place::PathConversation | Place::PathItem => {}
            Place::BodyReference => {
                body["items"] = json!([{"type": "item_reference", "id": item_id(&named.message_id)}])
            }
            Place::QueryItem => path = format!("{path}{and}after={}", item_id(&named.message_id)),
            Place::QueryUser if route.doc.id == "list_conversations" => path = format!("{path}?user={}", named.user),
            Place::BodyUser => body["user_id"] = json!(named.user),
            Place::BodyParent => body["parent_id"] = json!(named.message_id),
            Place::BodyExternal => body["external_id"] = json!(external),
            Place::BodySession => body["session_id"] = json!(named.session_id),
            Place::BodyCursor => body["cursor"] = json!(named.search_cursor),
            Place::QueryUser => path = format!("{path}{and}user_id={}", named.user),
            Place::QuerySession => path = format!("{path}{and}session_id={}", named.session_id),
            Place::HeaderUser => client = client.with("x-user-id", named.user),
            Place::Cursor => {
                let cursor = match route.doc.id {
                    "list_sessions" => &named.sessions_cursor,
                    "search_messages_by_query" => &named.search_cursor,
                    "search_session" => &named.session_search_cursor,
                    _ => &named.messages_cursor,
                };
                path = format!("{path}{and}limit=1&cursor={cursor}");
            }
            Place::ImportSession => body[0]["session_id"] = json!(named.session_id),
            Place::ImportMessage => body[0]["messages"][0]["message_id"] = json!(named.message_id),
            Place::ImportParent => body[0]["messages"][0]["parent_id"] = json!(named.message_id),
            Place::ImportUser => body[0]["user_id"] = json!(named.user),
        }
        if place == Place::ImportSession && whose != Whose::Own {
            body[0]["messages"] = json!([{"content": "own"}]);
        }
        let body = if route.method == Method::GET { Body::empty() } else { Body::from(body.to_string()) };
        let reply = client.send(route.method.clone(), &path, body).await;
        assert!(!reply.anonymous().contains(CANARY), "{:?} {place:?} {whose:?}: {reply:?}", route.doc.id);
        reply
    }

    /// All cells of one operation and place; `foreign` are those that must answer alike.
    async fn row(&self, route: &Route, place: Place, foreign: &[Whose]) {
        use Place::*;
        let what = format!("{} by {place:?}", route.doc.id);
        let own = self.send(route, place, Whose::Own).await;
        let taken = place == BodyExternal;
        assert_eq!(own.status, if taken { 409 } else { success(route) }, "{what}: {}", own.text());
        let status = match place {
            PathSession | PathMessage | BodySession | QuerySession | PathConversation | PathItem => 404,
            BodyParent => 422,
            Cursor | BodyCursor | BodyReference | QueryItem => 400,
            BodyUser | QueryUser | HeaderUser | ImportUser => 403,
            BodyExternal | ImportSession | ImportMessage | ImportParent => success(route),
        };
        let mut first: Option<String> = None;
        for whose in foreign {
            let reply = self.send(route, place, *whose).await;
            assert_eq!(reply.status, status, "{what}, {whose:?}: {}", reply.text());
            let answer = reply.anonymous();
            if !taken {
                assert_eq!(first.get_or_insert_with(|| answer.clone()), &answer, "{what}, {whose:?}");
            }
        }
        if matches!(place, PathSession | PathMessage | BodyParent | BodySession | BodyCursor | QuerySession | Cursor) {
            let malformed = self.send(route, place, Whose::Malformed).await;
            assert_eq!(first, Some(malformed.anonymous()), "{what}, malformed");
        } else {
            self.send(route, place, Whose::Malformed).await;
        }
    }

    /// Everything that is not the caller's.
    async fn foreign_rows(&self) -> String {
        let mut dump = String::new();
        let scopes = [Scope::project(self.app.other), Scope::user(ProjectId::DEFAULT, "bob")];
        for scope in scopes {
            let sessions = self.app.store.export_sessions(&scope, None, 1_000).await.unwrap();
            for session in sessions {
                dump.push_str(&format!("{session:?}\n"));
                let id = session.session_id;
                let messages = self.app.store.export_messages(&scope, id, 0, i64::MAX, 1_000).await.unwrap();
                messages.iter().for_each(|message| dump.push_str(&format!("{message:?}\n")));
            }
        }
        dump
    }
}

fn success(route: &Route) -> u16 {
    if matches!(route.doc.id, "create_session" | "append_messages") { 201 } else { 200 }
}

fn guarded() -> impl Iterator<Item = Route> {
    routes().into_iter().filter(|route| matches!(route.access, Access::Needs(_)))
}

async fn check_matrix(world: World, skipped: &[Place], foreign: &[Whose]) {
    let before = world.foreign_rows().await;
    assert!(before.matches(CANARY).count() > 8, "{before}");
    for route in guarded() {
        for place in places(route.doc.id).iter().filter(|place| !skipped.contains(place)) {
            // Nothing comes back to life, and that may be told to whom it belonged.
            let own_tombstone = matches!(place, Place::ImportSession | Place::ImportMessage);
            let foreign: Vec<Whose> =
                foreign.iter().copied().filter(|whose| !(own_tombstone && *whose == Whose::Deleted)).collect();
            world.row(&route, *place, &foreign).await;
        }
    }
    assert_eq!(world.foreign_rows().await, before, "nothing foreign was changed");
}

const ALL: [Whose; 4] = [Whose::OtherUser, Whose::OtherProject, Whose::Deleted, Whose::Absent];

async fn the_matrix_for_a_key_bound_to_a_user(app: TestApp) {
    let client = app.alice();
    check_matrix(World::new(app, client, "alice", CANARY).await, &[], &ALL).await;
}

async fn the_matrix_for_a_request_narrowed_to_a_user(app: TestApp) {
    let client = app.admin().with("x-user-id", "alice");
    check_matrix(World::new(app, client, "alice", CANARY).await, &[Place::HeaderUser], &ALL).await;
}

async fn the_matrix_for_a_key_of_a_project(app: TestApp) {
    use Place::*;
    let client = app.admin();
    let skipped = [HeaderUser, BodyUser, QueryUser, ImportUser, ImportSession, ImportMessage];
    let foreign = [Whose::OtherProject, Whose::Deleted, Whose::Absent];
    check_matrix(World::new(app, client, "ada", "bobs").await, &skipped, &foreign).await;
}

async fn what_is_about_a_project_is_not_for_who_speaks_for_a_user(app: TestApp) {
    for client in [app.alice(), app.admin().with("x-user-id", "alice")] {
        let refused = [
            client.get("/api/v1/admin/embeddings").await,
            client.post("/api/v1/admin/embeddings/retry", json!({})).await,
        ];
        for reply in refused {
            reply.expect_problem(403, "insufficient_scope");
        }
    }
}

/// What an import of one conversation is answered, but for its place.
async fn import(client: &Client, conversation: Value) -> String {
    client.post("/api/v1/admin/import", json!([conversation])).await.anonymous()
}

async fn an_import_cannot_tell_a_foreign_session_from_an_absent_one(app: TestApp) {
    let foreign = things(&app.stranger(), "zoe", CANARY, "external-zoe").await;
    let of = |id: &str, external_id: &str| json!({"session_id": id, "external_id": external_id, "messages": []});
    let absent = import(&app.admin(), of(ABSENT, "a")).await;
    assert_eq!(import(&app.admin(), of(&foreign.session_id, "b")).await, absent);
}

async fn an_import_cannot_tell_a_foreign_message_from_an_absent_one(app: TestApp) {
    let foreign = things(&app.stranger(), "zoe", CANARY, "external-zoe").await;
    // An absent session whose bucket the foreign message fits.
    let session = |first: &str| format!("{first}{}", &foreign.message_id[8..]);
    let of = |session_id: String, message_id: &str| json!({"session_id": session_id, "messages": [{"message_id": message_id, "content": "x"}]});
    let unused = format!("019b0f3f{}", &foreign.message_id[8..]);
    let absent = import(&app.admin(), of(session("019b0f3d"), &unused)).await;
    assert_eq!(import(&app.admin(), of(session("019b0f3c"), &foreign.message_id)).await, absent);
}
