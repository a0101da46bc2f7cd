//! A checksum over rows that is the same whatever engine holds them.

use sha2::{Digest as _, Sha256};

use crate::api_keys::ApiKey;
use crate::clock::Timestamp;
use crate::embeddings::Embedding;
use crate::messages::Message;
use crate::projects::Project;
use crate::sessions::Session;

/// SHA-256 over rows in the order they are added. Every field of a row counts: integers and times
/// as 8 bytes, texts behind their length, what may be absent behind a byte that says whether it is
/// there.
#[derive(Clone, Default)]
pub struct Checksum(Sha256);

impl Checksum {
    /// Adds a project.
    pub fn add_project(&mut self, project: &Project) {
        let Project { project_id, name, created_at } = project;
        self.bytes(b"p");
        self.bytes(project_id.as_bytes());
        self.text(name);
        self.time(*created_at);
    }

    /// Adds an API key.
    pub fn add_api_key(&mut self, key: &ApiKey) {
        let ApiKey { key_id, project_id, name, digest, scopes, user_id, created_at, expires_at, revoked_at } = key;
        self.bytes(b"k");
        self.text(key_id);
        self.bytes(project_id.as_bytes());
        self.text(name);
        self.bytes(digest.as_bytes());
        self.text(&scopes.to_string());
        self.option(user_id.as_deref(), Self::text);
        self.time(*created_at);
        self.option(*expires_at, Self::time);
        self.option(*revoked_at, Self::time);
    }

    /// Adds a session.
    pub fn add_session(&mut self, session: &Session) {
        let Session {
            session_id,
            project_id,
            user_id,
            session_name,
            is_favorite,
            metadata,
            external_id,
            last_seq,
            message_count,
            token_count,
            version,
            created_at,
            updated_at,
            last_message_at,
            deleted_at,
            forked_from,
        } = session;
        self.bytes(b"s");
        self.bytes(session_id.as_bytes());
        self.bytes(project_id.as_bytes());
        self.option(user_id.as_deref(), Self::text);
        self.text(session_name);
        self.bytes(&[u8::from(*is_favorite)]);
        self.text(metadata.as_str());
        self.option(external_id.as_deref(), Self::text);
        self.integer(*last_seq);
        self.integer(*message_count);
        self.option(*token_count, Self::integer);
        self.integer(*version);
        self.time(*created_at);
        self.time(*updated_at);
        self.option(*last_message_at, Self::time);
        self.option(*deleted_at, Self::time);
        self.option(forked_from.as_ref(), |sum, id| sum.bytes(id.as_bytes()));
    }

    /// Adds a message.
    pub fn add_message(&mut self, message: &Message) {
        let Message {
            message_id,
            session_id,
            project_id,
            seq,
            parent_id,
            role,
            kind,
            status,
            content,
            payload,
            metadata,
            context,
            external_id,
            token_count,
            version,
            created_at,
            updated_at,
            deleted_at,
        } = message;
        self.bytes(b"m");
        self.bytes(message_id.as_bytes());
        self.bytes(session_id.as_bytes());
        self.bytes(project_id.as_bytes());
        self.integer(*seq);
        self.option(parent_id.as_ref(), |sum, id| sum.bytes(id.as_bytes()));
        self.text(role);
        self.text(kind);
        self.text(status.as_str());
        self.text(content);
        self.option(payload.as_ref(), |sum, json| sum.text(json.as_str()));
        self.text(metadata.as_str());
        self.option(context.as_ref(), |sum, json| sum.text(json.as_str()));
        self.option(external_id.as_deref(), Self::text);
        self.option(*token_count, Self::integer);
        self.integer(*version);
        self.time(*created_at);
        self.time(*updated_at);
        self.option(*deleted_at, Self::time);
    }

    /// Adds the vectors of a message.
    pub fn add_embedding(&mut self, embedding: &Embedding) {
        let Embedding { message_id, model, vectors } = embedding;
        self.bytes(b"e");
        self.bytes(message_id.as_bytes());
        self.text(model);
        for vector in vectors {
            self.bytes(&(vector.dimensions() as u64).to_be_bytes());
            vector.numbers().iter().for_each(|number| self.bytes(&number.to_bits().to_be_bytes()));
        }
    }

    /// Adds the checksum of rows that were added up apart.
    pub fn add_checksum(&mut self, other: Self) {
        self.bytes(b"c");
        self.bytes(&other.finish());
    }

    /// The 32 bytes.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(&(text.len() as u64).to_be_bytes());
        self.bytes(text.as_bytes());
    }

    fn integer(&mut self, value: i64) {
        self.bytes(&value.to_be_bytes());
    }

    fn time(&mut self, time: Timestamp) {
        self.integer(time.as_micros());
    }

    fn option<T>(&mut self, value: Option<T>, add: impl FnOnce(&mut Self, T)) {
        self.bytes(&[u8::from(value.is_some())]);
        if let Some(value) = value {
            add(self, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Ctx;
    use crate::ids::ProjectId;
    use crate::json::RawJson;
    use crate::messages::{MessageStatus, NewMessage};
    use crate::sessions::NewSession;

    fn sum(add: impl FnOnce(&mut Checksum)) -> [u8; 32] {
        let mut checksum = Checksum::default();
        add(&mut checksum);
        checksum.finish()
    }

    /// The checksums of `row` and of what each of `changes` makes of it are all different.
    fn assert_all_count<T: Clone>(row: &T, add: fn(&mut Checksum, &T), changes: &[fn(&mut T)]) {
        let mut sums = vec![sum(|checksum| add(checksum, row))];
        for change in changes {
            let mut changed = row.clone();
            change(&mut changed);
            sums.push(sum(|checksum| add(checksum, &changed)));
        }
        for (n, one) in sums.iter().enumerate() {
            let twin = sums.iter().position(|other| other == one);
            assert_eq!(twin, Some(n), "change {n} says the same as another");
        }
    }

    fn ctx() -> Ctx {
        Ctx::fixed(Timestamp::from_micros(1_000_000).unwrap(), 1, 3)
    }

    fn json() -> RawJson {
        RawJson::parse("{ }".to_owned()).unwrap()
    }

    fn session(ctx: &Ctx) -> Session {
        let new = NewSession {
            session_id: ctx.new_session_id(ctx.now(), 7.into()),
            user_id: None,
            session_name: "name".to_owned(),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at: ctx.now(),
        };
        new.into_session(ProjectId::DEFAULT)
    }

    #[test]
    fn every_field_of_a_session_counts() {
        let session = session(&ctx());
        assert_all_count(
            &session,
            Checksum::add_session,
            &[
                |s| s.session_id = ctx().new_session_id(s.created_at, 9.into()),
                |s| s.project_id = ctx().new_project_id(s.created_at),
                |s| s.user_id = Some("name".to_owned()),
                |s| s.session_name = "nome".to_owned(),
                |s| s.is_favorite = true,
                |s| s.metadata = json(),
                |s| s.external_id = Some("name".to_owned()),
                |s| s.last_seq = 1,
                |s| s.message_count = 1,
                |s| s.token_count = Some(0),
                |s| s.version = 0,
                |s| s.created_at = s.created_at.plus_micros(1),
                |s| s.updated_at = s.updated_at.plus_micros(1),
                |s| s.last_message_at = Some(s.created_at),
                |s| s.deleted_at = Some(s.created_at),
                |s| s.forked_from = Some(s.session_id),
            ],
        );
    }

    #[test]
    fn every_field_of_a_message_counts() {
        let ctx = ctx();
        let session = session(&ctx);
        let new = NewMessage::text(ctx.new_message_id(ctx.now(), session.session_id), "user", "text");
        let message = new.into_message(session.project_id, session.session_id, 1, ctx.now());
        assert_all_count(
            &message,
            Checksum::add_message,
            &[
                |m| m.message_id = self::ctx().new_message_id(m.created_at, m.session_id),
                |m| m.session_id = self::ctx().new_session_id(m.created_at, 9.into()),
                |m| m.project_id = self::ctx().new_project_id(m.created_at),
                |m| m.seq = 2,
                |m| m.parent_id = Some(m.message_id),
                |m| m.role = "text".to_owned(),
                |m| m.kind = "text".to_owned(),
                |m| m.status = MessageStatus::Incomplete,
                |m| m.content = String::new(),
                |m| m.payload = Some(json()),
                |m| m.metadata = json(),
                |m| m.context = Some(json()),
                |m| m.external_id = Some("text".to_owned()),
                |m| m.token_count = Some(0),
                |m| m.version = 2,
                |m| m.created_at = m.created_at.plus_micros(1),
                |m| m.updated_at = m.updated_at.plus_micros(1),
                |m| m.deleted_at = Some(m.created_at),
            ],
        );
    }

    #[test]
    fn every_field_of_a_key_and_a_project_counts() {
        use crate::api_keys::{KeyDigest, KeyScopes};
        let created_at = ctx().now();
        let key = ApiKey {
            key_id: "id".to_owned(),
            project_id: ProjectId::DEFAULT,
            name: "name".to_owned(),
            digest: KeyDigest::of("secret"),
            scopes: KeyScopes::all(),
            user_id: None,
            created_at,
            expires_at: None,
            revoked_at: None,
        };
        assert_all_count(
            &key,
            Checksum::add_api_key,
            &[
                |k| k.key_id = "name".to_owned(),
                |k| k.project_id = ctx().new_project_id(k.created_at),
                |k| k.name = "id".to_owned(),
                |k| k.digest = KeyDigest::of("another"),
                |k| k.scopes = KeyScopes::default(),
                |k| k.user_id = Some("name".to_owned()),
                |k| k.created_at = k.created_at.plus_micros(1),
                |k| k.expires_at = Some(k.created_at),
                |k| k.revoked_at = Some(k.created_at),
            ],
        );
        let project = Project { project_id: ProjectId::DEFAULT, name: "name".to_owned(), created_at };
        assert_all_count(
            &project,
            Checksum::add_project,
            &[
                |p| p.project_id = ctx().new_project_id(p.created_at),
                |p| p.name = "id".to_owned(),
                |p| p.created_at = p.created_at.plus_micros(1),
            ],
        );
    }

    #[test]
    fn what_stands_apart_is_not_what_stands_together() {
        let session = session(&ctx());
        let apart = || {
            let mut checksum = Checksum::default();
            checksum.add_session(&session);
            checksum
        };
        let together = sum(|checksum| checksum.add_session(&session));
        assert_eq!(apart().finish(), together);
        assert_ne!(sum(|checksum| checksum.add_checksum(apart())), together);
    }
}
