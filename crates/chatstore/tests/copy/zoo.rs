//! A store with something of every state a store can be in, made through the contract.

use std::sync::Arc;

use chatstore_core::api_keys::{ApiKey, KeyDigest, KeyScopes, KeySettings, Permission, PresentedKey, PreviousDigest};
use chatstore_core::archive::{ArchiveIdentity, ArchivedSession};
use chatstore_core::audit::{Actor, AuditEvent};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::embeddings::{NewEmbedding, Vector};
use chatstore_core::ids::{AuditEventId, MessageId, ProjectId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessagePatch, MessageStatus, NewMessage};
use chatstore_core::projects::{Project, ProjectPatch, TokenAlgorithm, TokenPublicKey, TokenSecret, TokenSettings};
use chatstore_core::rates::{ClassRates, Rates};
use chatstore_core::sessions::{NewSession, Session, SessionPatch};
use chatstore_core::store::ExpectedVersion::Any;
use chatstore_core::store::{Quotas, Scope, Store};

/// More messages than a page holds, twice.
pub(crate) const LONG: usize = 1_203;
/// Two of them fill a page.
const LARGE_BYTES: usize = 9 << 20;
/// Events of each project that has some.
pub(crate) const EVENTS_EACH: usize = 70;
/// Stands in every text that a deletion erases.
pub(crate) const ERASED: &str = "erased-words";
const ODD_JSON: &str = "{ \"b\" :1.50 ,\n\t\"a\":1e400,\"a\" : [ ] , \"é\":\"\\u00e9\\ud83d\\ude00 😀\",\"n\":null }";
const ODD_TEXT: &str = "  Grüße \u{1F600}\u{200D} \u{FEFF}e\u{301}\r\n\t\"'; drop table messages; -- % _ \\ ";

/// Fills stores.
pub(crate) struct Keeper {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) ctx: Ctx,
}

fn json(text: &str) -> RawJson {
    RawJson::parse(text.to_owned()).unwrap()
}

pub(crate) fn embedding(model: &str, numbers: &[f32]) -> NewEmbedding {
    NewEmbedding { model: model.to_owned(), vector: Vector::new(numbers.to_vec()).unwrap() }
}

impl Keeper {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, ctx: Ctx::system() }
    }

    pub(crate) async fn project(&self, name: &str, created_at: Timestamp) -> Scope {
        let project_id = self.ctx.new_project_id(self.ctx.now());
        let project = Project::new(project_id, name, created_at);
        Scope::project(self.store.create_project(project, None).await.unwrap().value.project_id)
    }

    pub(crate) async fn key(&self, change: impl FnOnce(&mut ApiKey)) -> ApiKey {
        let presented = PresentedKey::generate(&self.ctx);
        let mut key = ApiKey::new(&presented, ProjectId::DEFAULT, "a key", KeyScopes::all(), self.ctx.now());
        change(&mut key);
        self.store.create_api_key(key.clone(), None).await.unwrap();
        key
    }

    fn new_session(&self, scope: &Scope, user_id: Option<&str>, external_id: Option<&str>) -> NewSession {
        let created_at = self.ctx.now();
        let bucket = scope.bucket(user_id, external_id, self.ctx.random());
        NewSession {
            session_id: self.ctx.new_session_id(created_at, bucket),
            user_id: user_id.map(str::to_owned),
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: json("{\"topic\":\"tea\"}"),
            external_id: external_id.map(str::to_owned),
            created_at,
        }
    }

    pub(crate) async fn session(&self, scope: &Scope, user_id: Option<&str>, external_id: Option<&str>) -> Session {
        self.store
            .create_session(scope, self.new_session(scope, user_id, external_id), Vec::new(), None)
            .await
            .unwrap()
            .value
    }

    pub(crate) fn message(&self, session: &Session, content: &str) -> NewMessage {
        NewMessage::text(self.ctx.new_message_id(self.ctx.now(), session.session_id), "user", content)
    }

    pub(crate) async fn append(&self, session: &Session, new: Vec<NewMessage>) -> Vec<Message> {
        let scope = Scope::project(session.project_id);
        self.store.append_messages(&scope, session.session_id, new, self.ctx.now(), None).await.unwrap().value
    }

    pub(crate) async fn say(&self, session: &Session, content: &str) -> Message {
        self.append(session, vec![self.message(session, content)]).await.remove(0)
    }

    /// Appends `count` messages, each with its size in tokens.
    pub(crate) async fn chat(&self, session: &Session, count: usize) -> Vec<Message> {
        let new: Vec<_> = (0..count)
            .map(|n| NewMessage { token_count: Some(n as i64), ..self.message(session, &format!("message {n}")) })
            .collect();
        self.append(session, new).await
    }

    pub(crate) async fn embed(&self, session: &Session, message_id: MessageId, embedding: NewEmbedding) {
        let scope = Scope::project(session.project_id);
        self.store.set_embedding(&scope, message_id, embedding, self.ctx.now()).await.unwrap();
    }

    pub(crate) async fn patch(&self, session: &Session, message_id: MessageId, patch: MessagePatch) {
        let scope = Scope::project(session.project_id);
        self.store.update_message(&scope, message_id, patch, Any, self.ctx.now()).await.unwrap();
    }

    pub(crate) async fn delete_message(&self, session: &Session, message_id: MessageId) {
        let scope = Scope::project(session.project_id);
        self.store.delete_message(&scope, message_id, Any, self.ctx.now()).await.unwrap();
    }

    pub(crate) async fn delete(&self, session: &Session) {
        let scope = Scope::project(session.project_id);
        self.store.delete_session(&scope, session.session_id, Any, self.ctx.now()).await.unwrap();
    }

    pub(crate) async fn rename(&self, session: &Session, name: &str) {
        let scope = Scope::project(session.project_id);
        let patch = SessionPatch { session_name: Some(name.to_owned()), ..SessionPatch::default() };
        self.store.update_session(&scope, session.session_id, patch, Any, self.ctx.now()).await.unwrap();
    }

    /// A deleted session whose messages are many.
    pub(crate) async fn deleted(&self, scope: &Scope, external_id: &str) -> Session {
        let session = self.session(scope, Some("ada"), Some(external_id)).await;
        let new = |_| {
            let secret = Some(json(&format!("{{\"secret\":\"{ERASED}\"}}")));
            let message = self.message(&session, ERASED);
            NewMessage { payload: secret.clone(), context: secret, token_count: Some(3), ..message }
        };
        let messages = self.append(&session, (0..700).map(new).collect()).await;
        self.delete_message(&session, messages[699].message_id).await;
        self.delete(&session).await;
        session
    }

    /// Everything but what is erased already.
    pub(crate) async fn fill(&self) {
        self.keys_and_projects().await;
        let default = Scope::project(ProjectId::DEFAULT);
        let other = self.project("Pröjekt \"2\"", self.ctx.now()).await;
        for scope in [&default, &other] {
            self.ordinary(scope).await;
            self.counted(scope).await;
            self.long(scope).await;
            self.imported(scope).await;
            // Its external id is free again, and taken by another.
            self.deleted(scope, "again").await;
            self.session(scope, Some("ada"), Some("again")).await;
        }
        let large = self.session(&default, None, None).await;
        for _ in 0..3 {
            self.say(&large, &"é".repeat(LARGE_BYTES / 2)).await;
        }
    }

    async fn keys_and_projects(&self) {
        let long_ago = Timestamp::parse("1999-12-31T23:59:59.999999Z").unwrap();
        let empty = self.project("empty", long_ago).await;
        self.project("of the same moment", long_ago).await;
        self.key(|_| {}).await;
        self.key(|key| key.scopes = KeyScopes::default()).await;
        self.key(|key| {
            key.project_id = empty.project_id;
            key.name = ODD_TEXT.to_owned();
            key.scopes = [Permission::Read, Permission::Search].into_iter().collect();
            key.user_id = Some("ada".to_owned());
            key.created_at = long_ago;
            key.expires_at = Some(long_ago.plus_micros(1));
            key.revoked_at = Some(long_ago.plus_micros(2));
            key.last_used_at = Some(long_ago.plus_micros(3));
            key.previous = Some(PreviousDigest { digest: KeyDigest::of("before"), expires_at: long_ago });
            key.settings = self.key_settings();
        })
        .await;
        self.settings_and_secrets(empty.project_id).await;
        self.events(empty.project_id).await;
    }

    fn key_settings(&self) -> KeySettings {
        KeySettings {
            limits: ClassRates { search: Rates::parse("1/day;2/second burst 9"), ..ClassRates::default() },
            limits_by_operator: true,
            allowed_origins: vec!["https://app.example".to_owned()],
            allowed_addresses: vec!["203.0.113.0/24".to_owned(), "::1/128".to_owned()],
        }
    }

    /// A project with all that can be its own, the secret before included.
    async fn settings_and_secrets(&self, project_id: ProjectId) {
        let now = self.ctx.now();
        for _ in 0..2 {
            self.new_token_secret(project_id).await;
        }
        let public_key = TokenPublicKey {
            key_id: Some("one".to_owned()),
            algorithm: TokenAlgorithm::EdDSA,
            public_key: ODD_TEXT.to_owned(),
        };
        let audience = Some("app".to_owned());
        let patch = ProjectPatch {
            name: None,
            limits: Some(ClassRates { reads: Some(Rates::OFF), ..ClassRates::default() }),
            total_limit: Some(Rates::parse("9/minute")),
            quotas: Some(Quotas { messages_per_session: Some(1 << 53), ..Quotas::default() }),
            tokens: Some(TokenSettings { public_keys: vec![public_key], audience, issuer: None }),
        };
        self.store.update_project(project_id, patch, now).await.unwrap();
    }

    pub(crate) async fn new_token_secret(&self, project_id: ProjectId) {
        let (now, secret) = (self.ctx.now(), TokenSecret::generate(&self.ctx));
        let until = now.plus_micros(3_600_000_000);
        self.store.rotate_token_secret(project_id, Some(secret), until, now, None).await.unwrap();
    }

    /// More events than a page holds, also of a project that is no more.
    async fn events(&self, project_id: ProjectId) {
        let gone = self.project("gone", self.ctx.now()).await.project_id;
        self.store.delete_project(gone, self.ctx.now()).await.unwrap();
        for project_id in [ProjectId::DEFAULT, project_id, gone] {
            for n in 0..EVENTS_EACH {
                self.event(project_id, Actor::ALL[n % Actor::ALL.len()]).await;
            }
        }
    }

    pub(crate) async fn event(&self, project_id: ProjectId, actor: Actor) -> AuditEventId {
        let now = self.ctx.now();
        let is_command = actor == Actor::Command;
        let text = |text: &str| (!is_command).then(|| text.to_owned());
        let event = AuditEvent {
            event_id: self.ctx.new_audit_event_id(now),
            project_id,
            created_at: now,
            actor,
            actor_id: text("0aZ"),
            user_id: text(ODD_TEXT),
            action: "delete_session".to_owned(),
            target_id: text("target"),
            outcome: "ok".to_owned(),
            address: text("2001:db8::1"),
            request_id: text("request"),
        };
        self.store.append_audit_events(vec![event.clone()]).await.unwrap();
        event.event_id
    }

    async fn ordinary(&self, scope: &Scope) {
        self.session(scope, None, None).await;
        let new = NewSession {
            session_name: ODD_TEXT.to_owned(),
            is_favorite: true,
            metadata: json(ODD_JSON),
            ..self.new_session(scope, Some("ada"), Some("conv_1"))
        };
        let session = self.store.create_session(scope, new, Vec::new(), None).await.unwrap().value;
        let root = self.say(&session, "root").await;
        let rich = NewMessage {
            parent_id: Some(root.message_id),
            role: "assistant".to_owned(),
            kind: "function_call".to_owned(),
            payload: Some(json(ODD_JSON)),
            metadata: json(ODD_JSON),
            context: Some(json("[ ]")),
            external_id: Some("fc_1".to_owned()),
            token_count: Some(5),
            embedding: Some(embedding("mini", &[1.0, 0.0])),
            ..self.message(&session, ODD_TEXT)
        };
        let streamed = |status| NewMessage { status, ..self.message(&session, "") };
        let new = vec![rich, streamed(MessageStatus::InProgress), streamed(MessageStatus::Incomplete)];
        let made = self.append(&session, new).await;
        // What is gone frees its external id, and keeps it.
        self.delete_message(&session, made[0].message_id).await;
        let again = NewMessage { external_id: Some("fc_1".to_owned()), ..self.message(&session, "again") };
        let again = self.append(&session, vec![again]).await.remove(0);
        for (model, numbers) in [("mini", &[1.0 / 3.0, -1e-9][..]), ("another", &[f32::MIN_POSITIVE, -0.0, 1e18])] {
            self.embed(&session, again.message_id, embedding(model, numbers)).await;
        }
        let status = Some(MessageStatus::Completed);
        let patch = MessagePatch { content: Some("whole".to_owned()), status, ..MessagePatch::default() };
        self.patch(&session, made[1].message_id, patch).await;
        self.rename(&session, "renamed").await;
        self.rename(&session, ODD_TEXT).await;
        // The last thing that happened to it is a deletion.
        self.delete_message(&session, made[2].message_id).await;
        // Another user's with the same external id.
        self.session(scope, Some("bob"), Some("conv_1")).await;
    }

    async fn counted(&self, scope: &Scope) {
        for counts in [vec![None], vec![Some(0)], vec![Some(7)], vec![Some(7), None, Some(1_000_000_000_000)]] {
            let session = self.session(scope, None, None).await;
            let new =
                counts.iter().map(|count| NewMessage { token_count: *count, ..self.message(&session, "counted") });
            let messages = self.append(&session, new.collect()).await;
            if counts.len() == 1 {
                self.delete_message(&session, messages[0].message_id).await;
            } else {
                let patch = MessagePatch { token_count: Some(2), ..MessagePatch::default() };
                self.patch(&session, messages[1].message_id, patch).await;
            }
        }
        // Deleted, with counts and without.
        for count in [None, Some(4)] {
            let session = self.session(scope, None, None).await;
            self.append(&session, vec![NewMessage { token_count: count, ..self.message(&session, ERASED) }]).await;
            self.rename(&session, ERASED).await;
            self.delete(&session).await;
        }
    }

    /// With tombstones and changed ones on either side of where pages end.
    async fn long(&self, scope: &Scope) {
        let session = self.session(scope, Some("ada"), None).await;
        let messages = self.chat(&session, LONG).await;
        for seq in [1, 499, 500, 1_001, LONG] {
            self.delete_message(&session, messages[seq - 1].message_id).await;
        }
        for seq in [2, 501, 1_000, LONG - 1] {
            let patch = MessagePatch { content: Some("changed".to_owned()), ..MessagePatch::default() };
            self.patch(&session, messages[seq - 1].message_id, patch).await;
        }
    }

    /// As archives bring them: times that no append makes, versions, an origin.
    async fn imported(&self, scope: &Scope) {
        let moment = |us| Timestamp::parse("2001-02-03T04:05:06.000007Z").unwrap().plus_micros(us);
        for (n, last_message_at) in [None, Some(moment(-1)), Some(moment(1 << 50))].into_iter().enumerate() {
            let origin = self.new_session(scope, Some("eve"), None);
            let mut session = self.new_session(scope, Some("eve"), None).into_session(scope.project_id);
            (session.created_at, session.updated_at, session.last_message_at) =
                (moment(0), moment(-5), last_message_at);
            session.version = 1_000_000_000_000_000;
            session.forked_from = Some(origin.session_id);
            if n == 1 {
                session.deleted_at = Some(moment(-9));
            }
            let message = |seq: i64| {
                let new = NewMessage { token_count: Some(seq), ..self.message(&session, "imported") };
                let mut message = new.into_message(scope.project_id, session.session_id, seq, moment(-seq));
                (message.updated_at, message.version) = (moment(seq), seq);
                message.deleted_at = (seq % 7 == 0).then(|| moment(-77));
                message
            };
            let messages = (1..=501).map(message).collect();
            let archived = ArchivedSession {
                identity: ArchiveIdentity::SessionId,
                session,
                messages,
                embeddings: Vec::new(),
                embed: false,
            };
            self.store.import_session(scope, archived).await.unwrap();
        }
    }
}
