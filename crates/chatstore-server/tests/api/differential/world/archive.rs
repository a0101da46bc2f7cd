//! Imports: conversations as people write them, and as an export has them, in parts and again.

use axum::http::Method;
use chatstore_core::ids::{Bucket, ProjectId};

use super::{EXTERNAL_IDS, USERS, World};
use crate::differential::{Operation, Persona};

/// A session that came with its own id, and may come again.
pub(super) struct Archive {
    session_id: String,
    bucket: u16,
    user: Option<&'static str>,
    external_id: Option<&'static str>,
    next_seq: i64,
}

impl World {
    pub(super) fn import_sessions(&mut self) -> Operation {
        let likely = if self.dice.percent(70) { Persona::Operator } else { Persona::Project };
        let mut request = self.request(Method::POST, "/api/v1/admin/import".to_owned(), Some(likely));
        let conversations = match self.dice.percent(55) {
            true => vec![self.exported()],
            // At once, so each has another id, and its messages bring none: else it would be up to
            // chance which is stored first.
            false => {
                let from = self.dice.below(EXTERNAL_IDS.len());
                let ids = EXTERNAL_IDS.iter().cycle().skip(from).take(1 + self.dice.below(3));
                ids.map(|id| self.written(id)).collect()
            }
        };
        request.body = Some(format!("[{}]", conversations.join(",")));
        request
    }

    /// A conversation as people write one.
    fn written(&self, id: &str) -> String {
        let dice = &self.dice;
        let messages = || {
            let message = |_| {
                self.body(&[
                    (99, "content", &|| dice.string()),
                    (60, "role", &|| self.one_of(&["\"user\"", "\"assistant\"", "\"é\""])),
                    (30, "created_at", &|| format!("\"{}\"", dice.time())),
                    (30, "metadata", &|| dice.object()),
                    (15, "external_id", &|| self.quoted(&EXTERNAL_IDS)),
                    (20, "token_count", &|| self.one_of(&["3", "0"])),
                ])
            };
            format!("[{}]", (0..dice.below(6)).map(message).collect::<Vec<_>>().join(","))
        };
        self.body(&[
            (99, "id", &|| serde_json::to_string(id).unwrap()),
            (60, "title", &|| dice.string()),
            (50, "user_id", &|| self.quoted(&USERS)),
            (30, "is_favorite", &|| self.one_of(&["true", "false"])),
            (40, "metadata", &|| dice.object()),
            (50, "created_at", &|| format!("\"{}\"", dice.time())),
            (90, "messages", &messages),
        ])
    }

    /// A conversation as an export has it: a new one, the next part of one, or one again.
    fn exported(&mut self) -> String {
        let again = (!self.archives.is_empty() && self.dice.percent(60)).then(|| self.dice.below(self.archives.len()));
        // What erasing has reached by now differs from run to run.
        let again = again.filter(|at| {
            let place = self.places.get(&self.archives[*at].session_id);
            place.is_none_or(|place| !self.sessions[*place].is_deleted)
        });
        let at = again.unwrap_or_else(|| {
            let user = self.dice.percent(50).then(|| self.dice.pick(&USERS));
            let external_id = user.filter(|_| self.dice.percent(40)).map(|_| self.dice.pick(&EXTERNAL_IDS));
            let bucket = match user {
                Some(user) if self.dice.percent(80) => Bucket::of_user(self.project(), user).bits(),
                _ => u16::try_from(self.dice.below(65_536)).unwrap(),
            };
            let session_id = self.dice.uuid(bucket);
            self.archives.push(Archive { session_id, bucket, user, external_id, next_seq: 1 });
            self.archives.len() - 1
        });
        let Archive { session_id, bucket, user, external_id, next_seq } = &self.archives[at];
        let dice = &self.dice;
        // Seldom the next place: then it leaves a gap, or repeats what is there.
        let first_seq = match dice.below(10) {
            0 => next_seq + 1,
            1 | 2 => (next_seq - 2).max(1),
            _ => *next_seq,
        };
        let count = i64::try_from(dice.below(5)).unwrap();
        let is_tombstone = again.is_none() && dice.percent(10);
        let message = |seq: i64| {
            self.body(&[
                (95, "message_id", &|| format!("\"{}\"", dice.uuid(if dice.percent(97) { *bucket } else { 3 }))),
                (100, "seq", &|| seq.to_string()),
                (10, "parent_id", &|| format!("\"{}\"", dice.uuid(*bucket))),
                (80, "role", &|| self.one_of(&["\"user\"", "\"assistant\""])),
                (20, "kind", &|| self.one_of(&["\"message\"", "\"reasoning\""])),
                (40, "status", &|| self.one_of(&["\"completed\"", "\"in_progress\""])),
                (100, "content", &|| format!("\"message {seq}\"")),
                (20, "payload", &|| dice.document()),
                (30, "metadata", &|| dice.object()),
                (20, "context", &|| dice.document()),
                (15, "external_id", &|| self.quoted(&EXTERNAL_IDS)),
                (30, "token_count", &|| self.one_of(&["3", "0", "70"])),
                (50, "version", &|| self.one_of(&["1", "1", "4"])),
                (70, "created_at", &|| format!("\"{}\"", dice.time())),
                (40, "updated_at", &|| format!("\"{}\"", dice.time())),
                (8, "deleted_at", &|| format!("\"{}\"", dice.time())),
            ])
        };
        let messages = || format!("[{}]", (first_seq..first_seq + count).map(message).collect::<Vec<_>>().join(","));
        let body = self.body(&[
            (100, "session_id", &|| format!("\"{session_id}\"")),
            (if external_id.is_some() { 100 } else { 0 }, "external_id", &|| {
                serde_json::to_string(external_id).unwrap()
            }),
            (70, "title", &|| dice.string()),
            (if user.is_some() { 100 } else { 0 }, "user_id", &|| serde_json::to_string(user).unwrap()),
            (30, "is_favorite", &|| self.one_of(&["true", "false"])),
            (40, "metadata", &|| dice.object()),
            (60, "version", &|| self.one_of(&["1", "7", "1000000000000000"])),
            (80, "created_at", &|| format!("\"{}\"", dice.time())),
            (60, "updated_at", &|| format!("\"{}\"", dice.time())),
            (60, "last_message_at", &|| format!("\"{}\"", dice.time())),
            (if is_tombstone { 100 } else { 0 }, "deleted_at", &|| format!("\"{}\"", dice.time())),
            (10, "forked_from", &|| format!("\"{}\"", dice.uuid(*bucket))),
            (100, "messages", &messages),
        ]);
        let next_seq = first_seq + count;
        let archive = &mut self.archives[at];
        archive.next_seq = archive.next_seq.max(next_seq);
        body
    }

    /// The project whose users' buckets an import is made for.
    fn project(&self) -> ProjectId {
        if self.dice.percent(85) { ProjectId::DEFAULT } else { self.other }
    }
}
