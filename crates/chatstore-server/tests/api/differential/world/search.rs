//! Requests about search and vectors.

use axum::http::Method;

use super::{USERS, World};
use crate::differential::Operation;
use crate::differential::values::encoded;

const QUERIES: [&str; 16] = [
    "hello",
    "tea",
    "Lisbon",
    "lis*",
    "\"longer sentence\"",
    "sentence trams",
    "tea -no",
    "x role:user",
    "no in:tea",
    "用户",
    "户",
    "ss",
    "😀",
    "quoted back",
    "' or 1=1 --",
    "\"",
];

impl World {
    fn query(&self) -> String {
        if self.dice.percent(80) { self.dice.pick(&QUERIES).to_owned() } else { self.dice.text() }
    }

    pub(super) fn search_messages(&mut self) -> Operation {
        let dice = &self.dice;
        let session = self.session(|_| true);
        let session_id = || serde_json::to_string(session.map_or("none", |session| session.id.as_str())).unwrap();
        let likely = session.map(|session| session.persona);
        let mut request = self.request(Method::POST, "/api/v1/search".to_owned(), likely);
        request.body = Some(self.body(&[
            (97, "query", &|| serde_json::to_string(&self.query()).unwrap()),
            (40, "mode", &|| self.one_of(&["\"hybrid\"", "\"text\"", "\"vector\"", "null"])),
            (15, "user_id", &|| self.quoted(&USERS)),
            (20, "session_id", &session_id),
            (10, "role", &|| self.quoted(&["user", "assistant", "é"])),
            (5, "kind", &|| self.quoted(&["message", "reasoning"])),
            (10, "metadata", &|| dice.object()),
            (10, "created_after", &|| serde_json::to_string(&dice.time()).unwrap()),
            (10, "created_before", &|| serde_json::to_string(&dice.time()).unwrap()),
            (50, "limit", &|| self.one_of(&["1", "3", "20", "100", "1000"])),
            (15, "group_by_session", &|| self.one_of(&["true", "false", "null"])),
            (15, "context_before", &|| self.one_of(&["0", "1", "10", "11"])),
            (15, "context_after", &|| self.one_of(&["0", "2"])),
        ]));
        request
    }

    /// The parameters of the short forms.
    fn short_form(&self) -> String {
        let dice = &self.dice;
        // A longer one may not fit in a URI.
        let query: String = self.query().chars().take(4_200).collect();
        let mut pairs = vec![format!("q={}", encoded(&query))];
        let mut maybe = |chance, pair: &dyn Fn() -> String| {
            if dice.percent(chance) {
                pairs.push(pair());
            }
        };
        maybe(60, &|| format!("limit={}", encoded(&self.one_of(&["1", "2", "5", "20", "100"]))));
        maybe(30, &|| format!("mode={}", dice.pick(&["text", "hybrid", "vector"])));
        maybe(15, &|| format!("metric={}", dice.pick(&["cosine", "inner_product", "l2", "far"])));
        maybe(15, &|| format!("embedding_model={}", encoded(dice.pick(&["a", "b", "é", ""]))));
        maybe(15, &|| format!("user_id={}", encoded(dice.pick(&USERS))));
        maybe(10, &|| dice.filter());
        maybe(10, &|| format!("created_before={}", encoded(&dice.time())));
        maybe(10, &|| "group_by_session=1".to_owned());
        maybe(10, &|| "context_before=1&context_after=1".to_owned());
        pairs.join("&")
    }

    pub(super) fn search_messages_by_query(&mut self) -> Operation {
        self.request(Method::GET, format!("/api/v1/search?{}", self.short_form()), None)
    }

    pub(super) fn search_session(&mut self) -> Operation {
        let (path, persona, _) = self.session_path();
        self.request(Method::GET, format!("{path}/search?{}", self.short_form()), persona)
    }

    /// Whole numbers: how engines round is another matter.
    pub(super) fn set_embedding(&mut self) -> Operation {
        let dice = &self.dice;
        let (path, persona, _) = self.message_path();
        let mut request = self.request(Method::PUT, format!("{path}/embedding"), persona);
        request.body = Some(self.body(&[
            (98, "embedding", &|| self.one_of(&["[1,2,3]", "[0.5,-1,2]", "[3,4,5]", "[1,2]", "[0,0,0]", "[1e39,1,1]"])),
            (40, "model", &|| dice.pick(&["\"a\"", "\"b\"", "\"é\"", "null"]).to_owned()),
        ]));
        request
    }
}
