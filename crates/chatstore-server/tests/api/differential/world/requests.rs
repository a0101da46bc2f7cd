//! Requests about sessions and messages.

use axum::http::Method;

use super::{EXTERNAL_IDS, USERS, World};
use crate::differential::values::encoded;
use crate::differential::{Operation, Persona};

impl World {
    /// A request of somebody, or of who is likely to see what it names.
    pub(super) fn request(&self, method: Method, path: String, likely: Option<Persona>) -> Operation {
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
        let persona = likely.filter(|_| self.dice.percent(92)).unwrap_or_else(|| self.dice.weighed(&anyone));
        let mut headers = Vec::new();
        if self.dice.percent(6) {
            let user = if persona == Alice && self.dice.percent(70) { "alice" } else { self.dice.pick(&USERS) };
            headers.push(("x-user-id", user.to_owned()));
        }
        if method == Method::POST || method == Method::PATCH || method == Method::PUT {
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

    /// An id as it stands in a path, at times spoilt.
    fn id(&self, id: Option<&str>) -> String {
        let absent = || self.dice.uuid(7);
        let id = id.map_or_else(absent, ToOwned::to_owned);
        match self.dice.below(100) {
            0 => absent(),
            1 => id.to_uppercase(),
            2 => id.replace('-', ""),
            3 => encoded(&format!("{{{id}}}")),
            4 => encoded(self.dice.pick(&["1", "é", "id\0", "' or 1=1 --", "../x"])),
            _ => id,
        }
    }

    /// A session's path, who is likely to see it, and its version.
    pub(super) fn session_path(&self) -> (String, Option<Persona>, i64) {
        let session = self.session(|_| true);
        let path = format!("/api/v1/sessions/{}", self.id(session.map(|session| session.id.as_str())));
        (path, session.map(|session| session.persona), session.map_or(1, |session| session.version))
    }

    /// The path of a session's messages, who is likely to see it, and the last of them.
    fn messages_path(&self) -> (String, Option<Persona>, Option<&str>) {
        let session = self.session(|_| true);
        let path = format!("/api/v1/sessions/{}/messages", self.id(session.map(|session| session.id.as_str())));
        let last = session.and_then(|session| session.messages.last());
        (path, session.map(|session| session.persona), last.map(|message| message.id.as_str()))
    }

    /// The same of a message.
    pub(super) fn message_path(&self) -> (String, Option<Persona>, i64) {
        let session = self.session(|session| !session.messages.is_empty());
        let message = session.and_then(|session| session.messages.get(self.dice.below(session.messages.len())));
        let path = format!("/api/v1/messages/{}", self.id(message.map(|message| message.id.as_str())));
        (path, session.map(|session| session.persona), message.map_or(1, |message| message.version))
    }

    /// An object with each of these members, as often as told of a hundred times.
    pub(super) fn body(&self, members: &[(usize, &str, &dyn Fn() -> String)]) -> String {
        let members = members.iter().filter(|(chance, ..)| self.dice.percent(*chance));
        let members: Vec<_> = members.map(|(_, name, value)| format!("\"{name}\":{}", value())).collect();
        format!("{{{}}}", members.join(","))
    }

    /// One of these, or seldom what is refused.
    pub(super) fn one_of(&self, values: &[&str]) -> String {
        let value = if self.dice.percent(99) { self.dice.pick(values) } else { self.dice.pick(&["\"\"", "-1", "1.5"]) };
        value.to_owned()
    }

    pub(super) fn quoted(&self, values: &[&str]) -> String {
        serde_json::to_string(self.dice.pick(values)).unwrap()
    }

    pub(super) fn create_session(&mut self) -> Operation {
        let dice = &self.dice;
        let mut request = self.request(Method::POST, "/api/v1/sessions".to_owned(), None);
        let bound = matches!(request.persona, Persona::Alice | Persona::Bob) || request.headers.len() > 1;
        request.body = Some(self.body(&[
            (97, "session_name", &|| dice.string()),
            (if bound { 5 } else { 40 }, "user_id", &|| self.quoted(&USERS)),
            (40, "is_favorite", &|| self.one_of(&["true", "false"])),
            (60, "metadata", &|| dice.object()),
            (15, "external_id", &|| self.quoted(&EXTERNAL_IDS)),
            (5, "colour", &|| dice.document()),
        ]));
        request
    }

    pub(super) fn get_session(&mut self) -> Operation {
        let (path, persona, _) = self.session_path();
        self.request(Method::GET, path, persona)
    }

    pub(super) fn update_session(&mut self) -> Operation {
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

    pub(super) fn delete_session(&mut self) -> Operation {
        let (path, persona, version) = self.session_path();
        let mut request = self.request(Method::DELETE, path, persona);
        self.if_match(&mut request, version);
        request
    }

    fn paging(&self, pairs: &mut Vec<String>) {
        let dice = &self.dice;
        if dice.percent(60) {
            pairs.push(format!("limit={}", encoded(&self.one_of(&["1", "2", "3", "7", "20", "100", "1000"]))));
        }
        if dice.percent(15) {
            pairs.push(format!(
                "{}={}",
                dice.pick(&["skip", "offset"]),
                dice.pick(&["0", "1", "2", "5", "60", "10000", "10001"])
            ));
        }
        if dice.percent(2) {
            pairs.push(format!("cursor={}", dice.pick(&["", "AAAA", "%00", "x".repeat(60).as_str()])));
        }
        if dice.percent(60) {
            pairs.push(format!("order={}", encoded(&self.one_of(&["asc", "desc"]))));
        }
    }

    pub(super) fn list_sessions(&mut self) -> Operation {
        let dice = &self.dice;
        let mut pairs = Vec::new();
        let mut maybe = |chance, pair: &dyn Fn() -> String| {
            if dice.percent(chance) {
                pairs.push(pair());
            }
        };
        maybe(30, &|| format!("user_id={}", encoded(dice.pick(&USERS))));
        maybe(15, &|| format!("is_favorite={}", encoded(&self.one_of(&["true", "false", "1"]))));
        maybe(25, &|| dice.filter());
        maybe(5, &|| dice.filter());
        maybe(12, &|| format!("created_after={}", encoded(&dice.time())));
        maybe(12, &|| format!("created_before={}", encoded(&dice.time())));
        maybe(65, &|| format!("sort={}", dice.pick(&["created_at", "updated_at", "last_message_at"])));
        self.paging(&mut pairs);
        self.request(Method::GET, format!("/api/v1/sessions?{}", pairs.join("&")), None)
    }

    /// A message for a session whose last one is `last`.
    fn message(&self, last: Option<&str>) -> String {
        let dice = &self.dice;
        let parent = || {
            let own = last.filter(|_| dice.percent(85)).map(ToOwned::to_owned);
            let other = || self.session(|_| true)?.messages.first().map(|message| message.id.clone());
            serde_json::to_string(&own.or_else(other).unwrap_or_else(|| dice.uuid(9))).unwrap()
        };
        self.body(&[
            (98, "content", &|| dice.string()),
            (60, "role", &|| self.one_of(&["\"user\"", "\"assistant\"", "\"tool\"", "\"é\"", "null"])),
            (20, "kind", &|| self.one_of(&["\"message\"", "\"function_call\"", "\"reasoning\"", "null"])),
            (25, "status", &|| self.one_of(&["\"in_progress\"", "\"completed\"", "\"incomplete\""])),
            (12, "parent_id", &parent),
            (25, "payload", &|| dice.document()),
            (30, "metadata", &|| dice.object()),
            (20, "context", &|| dice.document()),
            (8, "external_id", &|| self.quoted(&EXTERNAL_IDS)),
            (35, "token_count", &|| self.one_of(&["0", "5", "17", "1000000000000", "null"])),
        ])
    }

    pub(super) fn append_message(&mut self) -> Operation {
        let (path, persona, last) = self.messages_path();
        let mut request = self.request(Method::POST, path, persona);
        request.body = Some(self.message(last));
        request
    }

    pub(super) fn append_batch(&mut self) -> Operation {
        let (path, persona, last) = self.messages_path();
        let mut request = self.request(Method::POST, path, persona);
        let count = if self.dice.percent(95) { 1 + self.dice.below(8) } else { 60 * self.dice.below(2) };
        let messages: Vec<_> = (0..count).map(|_| self.message(last)).collect();
        request.body = Some(format!("[{}]", messages.join(",")));
        request
    }

    pub(super) fn list_messages(&mut self) -> Operation {
        let dice = &self.dice;
        let mut pairs = Vec::new();
        for (chance, name) in [(15, "after_seq"), (15, "before_seq")] {
            if dice.percent(chance) {
                pairs.push(format!("{name}={}", encoded(&self.one_of(&["0", "1", "3", "10", "9223372036854775807"]))));
            }
        }
        if dice.percent(20) {
            pairs.push(format!("role={}", encoded(dice.pick(&["user", "assistant", "é", "", "USER"]))));
        }
        if dice.percent(20) {
            pairs.push("include=embedding".to_owned());
        }
        self.paging(&mut pairs);
        let (path, persona, _) = self.messages_path();
        self.request(Method::GET, format!("{path}?{}", pairs.join("&")), persona)
    }

    pub(super) fn get_message(&mut self) -> Operation {
        let (path, persona, _) = self.message_path();
        let include = if self.dice.percent(30) { "?include=embedding" } else { "" };
        self.request(Method::GET, format!("{path}{include}"), persona)
    }

    pub(super) fn update_message(&mut self) -> Operation {
        let dice = &self.dice;
        let (path, persona, version) = self.message_path();
        let mut request = self.request(Method::PATCH, path, persona);
        self.if_match(&mut request, version);
        request.body = Some(self.body(&[
            (30, "role", &|| self.one_of(&["\"user\"", "\"assistant\"", "\"é\""])),
            (40, "content", &|| dice.string()),
            (10, "payload", &|| dice.document()),
            (30, "metadata", &|| dice.object()),
            (25, "context", &|| dice.document()),
            (10, "status", &|| self.one_of(&["\"completed\"", "\"incomplete\"", "\"in_progress\""])),
            (25, "token_count", &|| self.one_of(&["0", "8", "1000000000000"])),
        ]));
        request
    }

    pub(super) fn delete_message(&mut self) -> Operation {
        let (path, persona, version) = self.message_path();
        let mut request = self.request(Method::DELETE, path, persona);
        self.if_match(&mut request, version);
        request
    }

    /// The page behind one of the latest.
    pub(super) fn follow(&mut self) -> Operation {
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
}
