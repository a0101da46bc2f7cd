//! What the requests are about: the sessions, messages and pages that earlier answers have shown,
//! so that most requests meet something.

mod archive;
mod requests;
mod search;

use std::collections::{BTreeMap, HashMap};

use chatstore_core::ids::ProjectId;
use serde::Deserialize;

use super::values::Dice;
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

/// Makes a request of one kind.
type Generator = fn(&mut World) -> Operation;

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
        let operations: [(usize, Generator); 17] = [
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
            (5, Self::search_messages),
            (5, Self::search_messages_by_query),
            (3, Self::search_session),
            (4, Self::set_embedding),
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

    /// One of these sessions: mostly one that is not deleted, and mostly one of the latest.
    fn session(&self, wanted: impl Fn(&Session) -> bool) -> Option<&Session> {
        let also_deleted = self.dice.percent(5);
        let fits = |session: &&Session| wanted(session) && (also_deleted || !session.is_deleted);
        let fitting: Vec<_> = self.sessions.iter().filter(fits).collect();
        let from = if self.dice.percent(70) { fitting.len().saturating_sub(10) } else { 0 };
        fitting.get(from + self.dice.below(fitting.len() - from)).copied()
    }

    /// Takes in what the answers show; they are alike.
    pub(super) fn learn(&mut self, operation: &Operation, answers: [&Answer; 2]) {
        let path = operation.path.split('?').next().unwrap_or_default();
        let Some(name) = operation_of(&operation.method, path) else { return };
        let counts = self.tally.entry(name).or_default();
        let succeeded = (200..300).contains(&answers[0].status);
        *(if succeeded { &mut counts.succeeded } else { &mut counts.refused }) += 1;
        if succeeded && name.starts_with("search_") {
            self.see_page(operation, answers);
        }
        let shows_rows = !matches!(name, "import_sessions" | "set_embedding") && !name.starts_with("search_");
        if !succeeded || !shows_rows {
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
        self.see_page(operation, answers);
    }

    fn see_page(&mut self, operation: &Operation, answers: [&Answer; 2]) {
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
