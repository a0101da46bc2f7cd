//! What is there at the end against what was sent: each request's texts once, in their place, in one order without gaps.

use std::collections::HashMap;
use std::fmt;

use serde_json::Value;

use crate::client::Done;
use crate::request::{Kind, Place, digits};
use crate::support::Client;

/// Connections that read at the same time.
const READERS: usize = 4;
/// How many sentences of a kind are shown.
const SHOWN_MAX: usize = 20;

/// What is wrong, a sentence each.
#[derive(Default)]
pub(crate) struct Audit {
    /// Requests or messages that are there more than once.
    pub(crate) duplicates: Vec<String>,
    /// Those that are not there.
    pub(crate) lost: Vec<String>,
    /// Whatever else should not be.
    pub(crate) faults: Vec<String>,
    /// Sessions and messages that are there.
    sessions: usize,
    messages: usize,
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.counts())?;
        for (kind, found) in [("duplicate", &self.duplicates), ("lost", &self.lost), ("fault", &self.faults)] {
            for sentence in found.iter().take(SHOWN_MAX) {
                write!(f, "\n{kind}: {sentence}")?;
            }
        }
        Ok(())
    }
}

/// A session with its messages.
struct Found {
    session: Value,
    messages: Vec<Value>,
}

impl Found {
    fn digits(&self) -> String {
        digits(self.session["session_id"].as_str().unwrap())
    }

    /// The request that made it, if it is not one of the places.
    fn maker(&self) -> Option<&str> {
        let made_by_v1 = self.session["metadata"]["request"].as_str();
        made_by_v1.or_else(|| self.session["session_name"].as_str())
    }
}

/// Everything that the server holds.
fn read_all(url: &str) -> Vec<Found> {
    let sessions = Client::connect(url).unwrap().all("/api/v1/sessions");
    let read = |sessions: &[Value]| -> Vec<Found> {
        let mut client = Client::connect(url).unwrap();
        let mut read_one = |session: &Value| {
            let messages = match session["last_seq"].as_i64() {
                Some(0) => Vec::new(),
                _ => client.all(&format!("/api/v1/sessions/{}/messages", session["session_id"].as_str().unwrap())),
            };
            Found { session: session.clone(), messages }
        };
        sessions.iter().map(&mut read_one).collect()
    };
    std::thread::scope(|scope| {
        let shares: Vec<_> = sessions.chunks(sessions.len().div_ceil(READERS)).collect();
        let readers: Vec<_> = shares.into_iter().map(|share| scope.spawn(move || read(share))).collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    })
}

/// Checks all that the server at `url` holds.
pub(crate) fn audit(url: &str, places: &[Place], done: &[Done]) -> Audit {
    let mut audit = Audit::default();
    let requests: HashMap<&str, &Done> = done.iter().map(|done| (done.id.as_str(), done)).collect();
    // Where each request's session was found, and each of its messages: the session and the position in it.
    let mut made: HashMap<&str, Vec<String>> = HashMap::new();
    let mut said: HashMap<&str, Vec<(String, usize, &Value)>> = HashMap::new();
    let all = read_all(url);
    for found in &all {
        audit.sessions += 1;
        audit.messages += found.messages.len();
        let session = found.digits();
        audit.check_order(&session, found);
        if !places.iter().any(|place| place.digits == session) {
            match found.maker().and_then(|maker| requests.get(maker)) {
                Some(done) => made.entry(&done.id).or_default().push(session.clone()),
                None => audit.faults.push(format!("session {session} was never sent: {}", found.session)),
            }
        }
        for (position, message) in found.messages.iter().enumerate() {
            let content = message["content"].as_str().unwrap();
            match content.split_once(' ').and_then(|(id, _)| requests.get(id)) {
                Some(done) => said.entry(&done.id).or_default().push((session.clone(), position, message)),
                None => audit.faults.push(format!("a message in {session} was never sent: {content}")),
            }
        }
    }
    for done in done {
        let none = Vec::new();
        let sessions = made.get(done.id.as_str()).unwrap_or(&none);
        audit.check_session(done, sessions);
        let home = match done.place {
            Some(place) => Some(&places[place].digits),
            None => sessions.first(),
        };
        audit.check_messages(done, home, said.get(done.id.as_str()).map_or(&[], Vec::as_slice));
    }
    audit
}

impl Audit {
    pub(crate) fn is_clean(&self) -> bool {
        self.duplicates.is_empty() && self.lost.is_empty() && self.faults.is_empty()
    }

    pub(crate) fn counts(&self) -> String {
        let Self { duplicates, lost, faults, sessions, messages } = self;
        let [duplicates, lost, faults] = [duplicates, lost, faults].map(Vec::len);
        format!(
            "{sessions} sessions and {messages} messages are there: {duplicates} duplicates, {lost} lost, {faults} other \
             faults"
        )
    }

    /// The places are 1, 2, 3 …, and the session counts them.
    fn check_order(&mut self, session: &str, Found { session: counted, messages }: &Found) {
        let seqs = messages.iter().map(|message| message["seq"].as_u64().unwrap());
        let count = messages.len() as u64;
        let counts = [&counted["last_seq"], &counted["message_count"]];
        if !seqs.eq(1..=count) || counts.iter().any(|counted| **counted != count) {
            self.faults.push(format!("session {session} has gaps or is miscounted: {counted}"));
        }
    }

    fn check_session(&mut self, done: &Done, sessions: &[String]) {
        let expected = usize::from(done.place.is_none());
        match sessions.len() {
            n if n > expected => self.duplicates.push(format!("{} {:?}: sessions {sessions:?}", done.id, done.kind)),
            n if n < expected => self.lost.push(format!("{} {:?}: no session", done.id, done.kind)),
            1 if done.made.first() != sessions.first() => {
                self.faults.push(format!("{} {:?}: answered {:?}, is {sessions:?}", done.id, done.kind, done.made));
            }
            _ => {}
        }
    }

    fn check_messages(&mut self, done: &Done, home: Option<&String>, found: &[(String, usize, &Value)]) {
        let Done { id, kind, texts, .. } = done;
        for text in texts {
            match found.iter().filter(|(_, _, message)| message["content"] == **text).count() {
                0 => self.lost.push(format!("{id} {kind:?}: {text}")),
                1 => {}
                n => self.duplicates.push(format!("{id} {kind:?}: {n} times: {text}")),
            }
        }
        if found.len() != texts.len() {
            return;
        }
        for (n, (session, position, message)) in found.iter().enumerate() {
            let is_in_order = message["content"] == *texts[n] && *position == found[0].1 + n;
            if !is_in_order || home != Some(session) {
                self.faults.push(format!("{id} {kind:?}: message {n} stands elsewhere: {session} {message}"));
            }
            let own = match kind {
                Kind::Session | Kind::Conversation => continue,
                Kind::NamedItems => message["external_id"].as_str().unwrap().to_owned(),
                _ => digits(message["message_id"].as_str().unwrap()),
            };
            if done.made.get(n) != Some(&own) {
                self.faults.push(format!("{id} {kind:?}: answered {:?}, message {n} is {own}", done.made));
            }
        }
    }
}
