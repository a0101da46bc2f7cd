//! What the requests are about: the sessions, messages and pages that earlier answers have shown,
//! so that most requests meet something.

mod archive;

use std::collections::{BTreeMap, HashMap};

use axum::http::Method;
use chatstore_core::ids::ProjectId;
use serde::Deserialize;

use super::values::{Dice, encoded};
use super::{Answer, Operation, Persona};
use crate::client::operation_of;
use archive::Archive;

/// A message that was seen.
struct Message {
    id: String,
    version: i64,
}

/// A session that was seen.
struct Session {
    id: String,
    version: i64,
    /// Who has seen it.
    persona: Persona,
    is_deleted: bool,
    messages: Vec<Message>,
}

/// A page that follows another.
struct Page {
    persona: Persona,
    headers: Vec<(&'static str, String)>,
    path: String,
    cursors: [String; 2],
}

/// What answers tell of a session or message.
#[derive(Deserialize)]
struct Seen {
    session_id: String,
    message_id: Option<String>,
    version: i64,
}

/// How requests of one operation ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) succeeded: u64,
    pub(super) refused: u64,
}

/// All that is known.
pub(super) struct World {
    dice: Dice,
    sessions: Vec<Session>,
    places: HashMap<String, usize>,
    pages: Vec<Page>,
    archives: Vec<Archive>,
    tally: BTreeMap<&'static str, Counts>,
    other: ProjectId,
}

const USERS: [&str; 9] = ["alice", "bob", "zoë", "A", "a", " a", "用户", "😀", "%2F"];
const EXTERNAL_IDS: [&str; 8] = ["thread-1", "thread-2", "msg_1", "msg_2", "é", "E", "%", " "];

impl World {
    pub(super) fn new(dice: Dice, other: ProjectId) -> Self {
        Self {
            dice,
            sessions: Vec::new(),
            places: HashMap::new(),
            pages: Vec::new(),
            archives: Vec::new(),
            tally: BTreeMap::new(),
            other,
        }
    }

    /// What became of the requests, by operation.
    pub(super) fn tally(&self) -> Vec<(&'static str, Counts)> {
        self.tally.iter().map(|(operation, counts)| (*operation, *counts)).collect()
    }

    pub(super) fn next_operation(&mut self) -> Operation {
        let operations: [(usize, fn(&mut Self) -> Operation); 13] = [
            (9, Self::create_session),
            (5, Self::get_session),
            (13, Self::list_sessions),
            (9, Self::update_session),
            (2, Self::delete_session),
            (15, Self::append_message),
            (9, Self::append_batch),
            (12, Self::list_messages),
            (5, Self::get_message),
            (9, Self::update_message),
            (4, Self::delete_message),
            (7, Self::import_sessions),
            (9, Self::follow),
        ];
        let operation = self.dice.weighed(&operations);
        let mut request = operation(self);
        let (path, query) = request.path.split_once('?').map_or((request.path.as_str(), None), |(p, q)| (p, Some(q)));
        if self.dice.percent(3) {
            request.path = format!("{path}/{}", query.map(|query| format!("?{query}")).unwrap_or_default());
        }
        if let Some(body) = request.body.as_mut().filter(|_| self.dice.percent(2)) {
            // Cut in the middle of something.
            let end = self.dice.below(body.len());
            body.truncate((0..=end).rev().find(|end| body.is_char_boundary(*end)).unwrap_or(0));
        }
        request
    }

    /// A request of somebody, or of who is likely to see what it names.
    fn request(&self, method: Method, path: String, likely: Option<Persona>) -> Operation {
        use Persona::*;
        let anyone = [
            (30, Operator),
            (14, Project),
            (18, Alice),
            (10, Bob),
            (5, Reader),
            (6, Writer),
            (12, Stranger),
            (1, Revoked),
            (1, Expired),
            (1, Unknown),
            (1, Nobody),
        ];
        let persona = likely.filter(|_| self.dice.percent(85)).unwrap_or_else(|| self.dice.weighed(&anyone));
        let mut headers = Vec::new();
        if self.dice.percent(12) {
            let user = if persona == Alice && self.dice.percent(70) { "alice" } else { self.dice.pick(&USERS) };
            headers.push(("x-user-id", user.to_owned()));
        }
        if method == Method::POST || method == Method::PATCH {
            let json = if self.dice.percent(99) { "application/json" } else { "text/plain" };
            headers.push(("content-type", json.to_owned()));
        }
        Operation { persona, method, path, cursors: None, headers, body: None }
    }

    fn if_match(&self, request: &mut Operation, version: i64) {
        let tag = match self.dice.below(10) {
            0..3 => format!("\"{version}\""),
            3 => format!("\"{}\", \"{version}\"", version + 1),
            4 => format!("\"{}\"", version - 1),
            5 => self.dice.pick(&["*", "W/\"1\"", "1", "\"x\"", ""]).to_owned(),
            _ => return,
        };
        request.headers.push(("if-match", tag));
    }

    /// A session: mostly one that is there, and mostly one of the latest.
    fn session(&self) -> Option<&Session> {
        let count = self.sessions.len();
        let from = if self.dice.percent(70) { count.saturating_sub(12) } else { 0 };
        let chosen = self.sessions.get(from + self.dice.below(count - from))?;
        match chosen.is_deleted && self.dice.percent(80) {
            true => self.sessions.iter().rev().find(|session| !session.is_deleted).or(Some(chosen)),
            false => Some(chosen),
        }
    }

    /// An id as it stands in a path, at times spoilt.
    fn id(&self, id: Option<&str>) -> String {
        let absent = || self.dice.uuid(7);
        let id = id.map_or_else(absent, ToOwned::to_owned);
        match self.dice.below(60) {
            0 => absent(),
            1 => id.to_uppercase(),
            2 => id.replace('-', ""),
            3 => encoded(&format!("{{{id}}}")),
            4 => encoded(self.dice.pick(&["1", "é", "id\0", "' or 1=1 --", "../x"])),
            _ => id,
        }
    }

    /// A session's path, who is likely to see it, and its version.
    fn session_path(&self) -> (String, Option<Persona>, i64) {
        let session = self.session();
        let path = format!("/api/v1/sessions/{}", self.id(session.map(|session| session.id.as_str())));
        (path, session.map(|session| session.persona), session.map_or(1, |session| session.version))
    }

    /// The same of a message.
    fn message_path(&self) -> (String, Option<Persona>, i64) {
        let session = self.session();
        let message = session.and_then(|session| session.messages.get(self.dice.below(session.messages.len())));
        let path = format!("/api/v1/messages/{}", self.id(message.map(|message| message.id.as_str())));
        (path, session.map(|session| session.persona), message.map_or(1, |message| message.version))
    }

    /// An object with each of these members, as often as told of a hundred times.
    fn body(&self, members: &[(usize, &str, &dyn Fn() -> String)]) -> String {
        let members = members.iter().filter(|(chance, ..)| self.dice.percent(*chance));
        let members: Vec<_> = members.map(|(_, name, value)| format!("\"{name}\":{}", value())).collect();
        format!("{{{}}}", members.join(","))
    }

    fn one_of(&self, values: &[&str]) -> String {
        let value = if self.dice.percent(97) { self.dice.pick(values) } else { "\"\"" };
        value.to_owned()
    }

    fn quoted(&self, values: &[&str]) -> String {
        serde_json::to_string(self.dice.pick(values)).unwrap()
    }

    fn create_session(&mut self) -> Operation {
        let dice = &self.dice;
        let mut request = self.request(Method::POST, "/api/v1/sessions".to_owned(), None);
        request.body = Some(self.body(&[
            (97, "session_name", &|| dice.string()),
            (35, "user_id", &|| self.quoted(&USERS)),
            (40, "is_favorite", &|| self.one_of(&["true", "false", "false", "null"])),
            (60, "metadata", &|| dice.object()),
            (25, "external_id", &|| self.quoted(&EXTERNAL_IDS)),
            (5, "colour", &|| dice.document()),
        ]));
        request
    }

    fn get_session(&mut self) -> Operation {
        let (path, persona, _) = self.session_path();
        self.request(Method::GET, path, persona)
    }

    fn update_session(&mut self) -> Operation {
        let dice = &self.dice;
        let (path, persona, version) = self.session_path();
        let mut request = self.request(Method::PATCH, path, persona);
        self.if_match(&mut request, version);
        request.body = Some(self.body(&[
            (50, "session_name", &|| dice.string()),
            (40, "is_favorite", &|| self.one_of(&["true", "false"])),
            (45, "metadata", &|| dice.object()),
        ]));
        request
    }

    fn delete_session(&mut self) -> Operation {
        let (path, persona, version) = self.session_path();
        let mut request = self.request(Method::DELETE, path, persona);
        self.if_match(&mut request, version);
        request
    }

    fn paging(&self, pairs: &mut Vec<String>) {
        let dice = &self.dice;
        if dice.percent(60) {
            pairs.push(format!("limit={}", dice.pick(&["1", "2", "3", "7", "20", "100", "1000", "0", "x"])));
        }
        if dice.percent(15) {
            pairs.push(format!("{}={}", dice.pick(&["skip", "offset"]), dice.pick(&["0", "1", "5", "60", "10001"])));
        }
        if dice.percent(2) {
            pairs.push(format!("cursor={}", dice.pick(&["", "AAAA", "%00", "x".repeat(60).as_str()])));
        }
        if dice.percent(60) {
            pairs.push(format!("order={}", dice.pick(&["asc", "desc", "desc", "up"])));
        }
    }

    fn list_sessions(&mut self) -> Operation {
        let dice = &self.dice;
        let mut pairs = Vec::new();
        let mut maybe = |chance, pair: &dyn Fn() -> String| {
            if dice.percent(chance) {
                pairs.push(pair());
            }
        };
        maybe(30, &|| format!("user_id={}", encoded(dice.pick(&USERS))));
        maybe(15, &|| format!("is_favorite={}", dice.pick(&["true", "false", "1", "maybe"])));
        maybe(25, &|| dice.filter());
        maybe(5, &|| dice.filter());
        maybe(12, &|| format!("created_after={}", encoded(&dice.time())));
        maybe(12, &|| format!("created_before={}", encoded(&dice.time())));
        maybe(65, &|| format!("sort={}", dice.pick(&["created_at", "updated_at", "last_message_at"])));
        self.paging(&mut pairs);
        self.request(Method::GET, format!("/api/v1/sessions?{}", pairs.join("&")), None)
    }

    fn message(&self) -> String {
        let dice = &self.dice;
        let parent = || {
            let known = self.session().and_then(|session| session.messages.last());
            serde_json::to_string(&known.map_or_else(|| dice.uuid(9), |message| message.id.clone())).unwrap()
        };
        self.body(&[
            (98, "content", &|| dice.string()),
            (60, "role", &|| self.one_of(&["\"user\"", "\"assistant\"", "\"tool\"", "\"é\"", "null"])),
            (20, "kind", &|| self.one_of(&["\"message\"", "\"function_call\"", "\"reasoning\"", "null"])),
            (25, "status", &|| self.one_of(&["\"in_progress\"", "\"completed\"", "\"incomplete\"", "\"odd\""])),
            (12, "parent_id", &parent),
            (25, "payload", &|| dice.document()),
            (30, "metadata", &|| dice.object()),
            (20, "context", &|| dice.document()),
            (20, "external_id", &|| self.quoted(&EXTERNAL_IDS)),
            (35, "token_count", &|| self.one_of(&["0", "5", "17", "1000000000000", "null", "-1", "1.5"])),
        ])
    }

    fn append_message(&mut self) -> Operation {
        let (path, persona, _) = self.session_path();
        let mut request = self.request(Method::POST, format!("{path}/messages"), persona);
        request.body = Some(self.message());
        request
    }

    fn append_batch(&mut self) -> Operation {
        let (path, persona, _) = self.session_path();
        let mut request = self.request(Method::POST, format!("{path}/messages"), persona);
        let count = if self.dice.percent(95) { self.dice.below(9) } else { 60 };
        let messages: Vec<_> = (0..count).map(|_| self.message()).collect();
        request.body = Some(format!("[{}]", messages.join(",")));
        request
    }

    fn list_messages(&mut self) -> Operation {
        let dice = &self.dice;
        let mut pairs = Vec::new();
        for (chance, name) in [(15, "after_seq"), (15, "before_seq")] {
            if dice.percent(chance) {
                pairs.push(format!("{name}={}", dice.pick(&["0", "1", "3", "10", "9223372036854775807", "-1", "x"])));
            }
        }
        if dice.percent(20) {
            pairs.push(format!("role={}", encoded(dice.pick(&["user", "assistant", "é", "", "USER"]))));
        }
        self.paging(&mut pairs);
        let (path, persona, _) = self.session_path();
        self.request(Method::GET, format!("{path}/messages?{}", pairs.join("&")), persona)
    }

    fn get_message(&mut self) -> Operation {
        let (path, persona, _) = self.message_path();
        self.request(Method::GET, path, persona)
    }

    fn update_message(&mut self) -> Operation {
        let dice = &self.dice;
        let (path, persona, version) = self.message_path();
        let mut request = self.request(Method::PATCH, path, persona);
        self.if_match(&mut request, version);
        request.body = Some(self.body(&[
            (30, "role", &|| self.one_of(&["\"user\"", "\"assistant\"", "\"é\""])),
            (40, "content", &|| dice.string()),
            (15, "payload", &|| dice.document()),
            (30, "metadata", &|| dice.object()),
            (25, "context", &|| dice.document()),
            (20, "status", &|| self.one_of(&["\"completed\"", "\"incomplete\"", "\"in_progress\""])),
            (25, "token_count", &|| self.one_of(&["0", "8", "1000000000000"])),
        ]));
        request
    }

    fn delete_message(&mut self) -> Operation {
        let (path, persona, version) = self.message_path();
        let mut request = self.request(Method::DELETE, path, persona);
        self.if_match(&mut request, version);
        request
    }

    /// The page behind one of the latest.
    fn follow(&mut self) -> Operation {
        let from = self.pages.len().saturating_sub(5);
        let Some(page) = self.pages.get(from + self.dice.below(self.pages.len() - from)) else {
            return self.list_sessions();
        };
        let mut request = self.request(Method::GET, page.path.clone(), Some(page.persona));
        // Else a cursor is rarely valid: it is bound to the user that a request speaks for.
        if request.persona == page.persona && self.dice.percent(90) {
            request.headers = page.headers.clone();
        }
        request.cursors = Some(page.cursors.clone());
        request
    }

    /// Takes in what the answers show; they are alike.
    pub(super) fn learn(&mut self, operation: &Operation, answers: [&Answer; 2]) {
        let path = operation.path.split('?').next().unwrap_or_default();
        let Some(name) = operation_of(&operation.method, path) else { return };
        let counts = self.tally.entry(name).or_default();
        let succeeded = (200..300).contains(&answers[0].status);
        *(if succeeded { &mut counts.succeeded } else { &mut counts.refused }) += 1;
        if !succeeded || name == "import_sessions" {
            return;
        }
        let body = &answers[0].body;
        let seen: Vec<Seen> = match body.starts_with('[') {
            true => serde_json::from_str(body).unwrap(),
            false => vec![serde_json::from_str(body).unwrap()],
        };
        for seen in seen {
            match seen.message_id {
                // A deleted message stays known: it must answer as an absent one.
                Some(id) => self.see_message(&seen.session_id, Message { id, version: seen.version }),
                None => self.see_session(operation.persona, &seen, name == "delete_session"),
            }
        }
        if let (Some((path, left)), Some((_, right))) = (answers[0].next(), answers[1].next()) {
            let cursors = [left, right].map(ToOwned::to_owned);
            let (persona, headers) = (operation.persona, operation.headers.clone());
            self.pages.push(Page { persona, headers, path: path.to_owned(), cursors });
        }
    }

    fn see_session(&mut self, persona: Persona, seen: &Seen, is_deleted: bool) {
        let (id, version) = (seen.session_id.clone(), seen.version);
        let at = *self.places.entry(id.clone()).or_insert(self.sessions.len());
        if at == self.sessions.len() {
            self.sessions.push(Session { id, version, persona, is_deleted, messages: Vec::new() });
        }
        let session = &mut self.sessions[at];
        (session.version, session.is_deleted) = (version, is_deleted);
    }

    fn see_message(&mut self, session_id: &str, seen: Message) {
        let Some(at) = self.places.get(session_id) else { return };
        let messages = &mut self.sessions[*at].messages;
        match messages.iter_mut().find(|message| message.id == seen.id) {
            Some(message) => *message = seen,
            None => messages.push(seen),
        }
    }
}
