//! A checksum over rows that is the same whatever engine holds them.

use sha2::{Digest as _, Sha256};

use crate::api_keys::{ApiKey, PreviousDigest};
use crate::audit::AuditEvent;
use crate::clock::Timestamp;
use crate::embeddings::Embedding;
use crate::messages::Message;
use crate::projects::{Project, TokenSecret};
use crate::sessions::Session;

/// SHA-256 over rows in the order they are added. Every field of a row counts: integers and times
/// as 8 bytes, texts behind their length, what may be absent behind a byte that says whether it is
/// there.
#[derive(Clone, Default)]
pub struct Checksum(Sha256);

impl Checksum {
    /// Adds a project.
    pub fn add_project(&mut self, project: &Project) {
        let Project { project_id, name, settings, token_secrets, created_at, updated_at } = project;
        self.bytes(b"p");
        self.bytes(project_id.as_bytes());
        self.text(name);
        self.text(&settings.to_text());
        self.time(*created_at);
        self.time(*updated_at);
        for TokenSecret { bytes, expires_at } in token_secrets {
            self.bytes(bytes);
            self.option(*expires_at, Self::time);
        }
    }

    /// Adds an API key: all but when it was last used, which a server notes at any moment.
    pub fn add_api_key(&mut self, key: &ApiKey) {
        let ApiKey {
            key_id,
            project_id,
            name,
            digest,
            previous,
            scopes,
            user_id,
            settings,
            created_at,
            updated_at,
            expires_at,
            revoked_at,
            last_used_at: _,
        } = key;
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
        self.option(*previous, |sum, PreviousDigest { digest, expires_at }| {
            sum.bytes(digest.as_bytes());
            sum.time(expires_at);
        });
        self.text(&settings.to_text());
        self.time(*updated_at);
    }

    /// Adds an event of the audit log.
    pub fn add_audit_event(&mut self, event: &AuditEvent) {
        let AuditEvent {
            event_id,
            project_id,
            created_at,
            actor,
            actor_id,
            user_id,
            action,
            target_id,
            outcome,
            address,
            request_id,
        } = event;
        self.bytes(b"a");
        self.bytes(event_id.as_bytes());
        self.bytes(project_id.as_bytes());
        self.time(*created_at);
        self.text(actor.as_str());
        self.text(action);
        self.text(outcome);
        for text in [actor_id, user_id, target_id, address, request_id] {
            self.option(text.as_deref(), Self::text);
        }
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
        use crate::api_keys::{KeyDigest, KeyScopes, PresentedKey};
        let created_at = ctx().now();
        let presented = PresentedKey::generate(&ctx());
        assert_all_count(
            &ApiKey::new(&presented, ProjectId::DEFAULT, "name", KeyScopes::all(), created_at),
            Checksum::add_api_key,
            &[
                |k| k.key_id = "name".to_owned(),
                |k| k.project_id = ctx().new_project_id(k.created_at),
                |k| k.name = "id".to_owned(),
                |k| k.digest = KeyDigest::of("another"),
                |k| k.previous = Some(PreviousDigest { digest: k.digest, expires_at: k.created_at }),
                |k| k.scopes = KeyScopes::default(),
                |k| k.user_id = Some("name".to_owned()),
                |k| k.settings.allowed_addresses = vec!["::1".to_owned()],
                |k| k.created_at = k.created_at.plus_micros(1),
                |k| k.updated_at = k.updated_at.plus_micros(1),
                |k| k.expires_at = Some(k.created_at),
                |k| k.revoked_at = Some(k.created_at),
            ],
        );
        assert_all_count(
            &Project::new(ProjectId::DEFAULT, "name", created_at),
            Checksum::add_project,
            &[
                |p| p.project_id = ctx().new_project_id(p.created_at),
                |p| p.name = "id".to_owned(),
                |p| p.settings.quotas.project_bytes = Some(1),
                |p| p.token_secrets = vec![TokenSecret { bytes: [1; 32], expires_at: None }],
                |p| p.token_secrets = vec![TokenSecret { bytes: [1; 32], expires_at: Some(p.created_at) }],
                |p| p.created_at = p.created_at.plus_micros(1),
                |p| p.updated_at = p.updated_at.plus_micros(1),
            ],
        );
    }

    #[test]
    fn every_field_of_an_audit_event_counts() {
        use crate::audit::Actor;
        let created_at = ctx().now();
        let event = AuditEvent {
            event_id: ctx().new_audit_event_id(created_at),
            project_id: ProjectId::DEFAULT,
            created_at,
            actor: Actor::ApiKey,
            actor_id: None,
            user_id: None,
            action: "a".to_owned(),
            target_id: None,
            outcome: "o".to_owned(),
            address: None,
            request_id: None,
        };
        assert_all_count(
            &event,
            Checksum::add_audit_event,
            &[
                |e| e.event_id = ctx().new_audit_event_id(e.created_at.plus_micros(5_000)),
                |e| e.project_id = ctx().new_project_id(e.created_at),
                |e| e.created_at = e.created_at.plus_micros(1),
                |e| e.actor = Actor::Command,
                |e| e.actor_id = Some("x".to_owned()),
                |e| e.user_id = Some("x".to_owned()),
                |e| e.action = "o".to_owned(),
                |e| e.target_id = Some("x".to_owned()),
                |e| e.outcome = "a".to_owned(),
                |e| e.address = Some("x".to_owned()),
                |e| e.request_id = Some("x".to_owned()),
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
