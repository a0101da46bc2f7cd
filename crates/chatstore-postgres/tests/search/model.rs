//! Everything a store was told, kept in memory, and what a look at all of it finds.

use std::time::{Duration, Instant};

use chatstore_core::archive::{ArchiveIdentity, ArchiveStore as _, ArchivedSession};
use chatstore_core::embeddings::{Embedding, EmbeddingStore as _, Metric, NewEmbedding, Vector, VectorQuery};
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessagePatch, MessageStore as _, NewMessage};
use chatstore_core::projects::{Project, ProjectStore as _};
use chatstore_core::search::query::Candidate;
use chatstore_core::search::{RankedMessage, SearchFilter, SearchStore as _, TextQuery};
use chatstore_core::sessions::SessionStore as _;
use chatstore_core::store::{ExpectedVersion, Scope};

use super::Engine;

const WORDS: [&str; 12] =
    ["tea", "coffee", "Straße", "don't", "snake_case", "camelCase", "北京", "naïve", "v1.2", "ไทย", "x", "a\\b's"];
const QUERIES: [&str; 12] = [
    "tea",
    "tea coffee",
    "strasse",
    "sna*",
    "\"tea coffee\"",
    "tea -coffee",
    "京",
    "case",
    "role:rare",
    "x role:user",
    "b's",
    "v1.2 OR tea",
];
const USERS: [&str; 3] = ["ada", "bob", "eve"];

pub(crate) fn vector(numbers: &[f32]) -> Vector {
    Vector::new(numbers.to_vec()).expect("it is a vector")
}

/// A vector to be stored, and one to be asked for.
pub(crate) fn query(model: &str, numbers: &[f32]) -> (NewEmbedding, VectorQuery) {
    let new = NewEmbedding { model: model.to_owned(), vector: vector(numbers) };
    let asked = VectorQuery { model: model.to_owned(), vector: vector(numbers), metric: Metric::Cosine };
    (new, asked)
}

pub(crate) fn query_of(vector: Vector, metric: Metric) -> VectorQuery {
    VectorQuery { model: "m".to_owned(), vector, metric }
}

fn dot(a: &Vector, b: &Vector) -> f64 {
    a.numbers().iter().zip(b.numbers()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

pub(crate) fn cosine(a: &Vector, b: &Vector) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

pub(crate) async fn within(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it takes too long");
    }
}

struct Told {
    message: Message,
    user: &'static str,
    vector: Option<Vector>,
}

/// What was told and not taken back.
pub(crate) struct Model {
    sessions: Vec<(&'static str, SessionId)>,
    told: Vec<Told>,
}

impl Model {
    pub(crate) async fn new(engine: &Engine) -> Self {
        let mut model = Self { sessions: Vec::new(), told: Vec::new() };
        for user in USERS.into_iter().chain(USERS) {
            model.sessions.push((user, engine.session(user).await));
        }
        model
    }

    fn pick(engine: &Engine, below: usize) -> usize {
        usize::from(u16::from_be_bytes(engine.ctx.random())) % below
    }

    fn text(engine: &Engine) -> String {
        let words = (0..Self::pick(engine, 5)).map(|_| WORDS[Self::pick(engine, WORDS.len())]);
        words.collect::<Vec<_>>().join(" ")
    }

    fn vector(engine: &Engine) -> Vector {
        // Some are equal, so that time and id decide.
        let number = || Self::pick(engine, 3) as f32;
        vector(&[1.0, number(), number()])
    }

    fn new_message(engine: &Engine, session: SessionId) -> NewMessage {
        let vector = (Self::pick(engine, 2) == 0).then(|| Self::vector(engine));
        NewMessage {
            role: if Self::pick(engine, 8) == 0 { "rare" } else { "user" }.to_owned(),
            metadata: RawJson::parse(format!("{{\"n\":{}}}", Self::pick(engine, 3))).expect("JSON"),
            embedding: vector.map(|vector| NewEmbedding { model: "m".to_owned(), vector }),
            ..engine.new_message(session, &Self::text(engine))
        }
    }

    /// Does something to the store, and the same here.
    pub(crate) async fn step(&mut self, engine: &Engine) {
        match Self::pick(engine, 12) {
            0..=5 => self.append(engine).await,
            6 | 7 => self.update(engine).await,
            8 => self.delete(engine).await,
            9 => self.set_vector(engine).await,
            10 => self.import(engine).await,
            _ if Self::pick(engine, 4) == 0 => self.delete_session(engine).await,
            _ => {}
        }
    }

    async fn append(&mut self, engine: &Engine) {
        let (user, session) = self.sessions[Self::pick(engine, self.sessions.len())];
        let new: Vec<_> = (0..=Self::pick(engine, 3)).map(|_| Self::new_message(engine, session)).collect();
        let vectors: Vec<_> = new.iter().map(|new| new.embedding.clone().map(|new| new.vector)).collect();
        let stored = engine.append(session, new).await;
        self.told.extend(stored.into_iter().zip(vectors).map(|(message, vector)| Told { message, user, vector }));
    }

    async fn update(&mut self, engine: &Engine) {
        if self.told.is_empty() {
            return;
        }
        let n = Self::pick(engine, self.told.len());
        let content = Self::text(engine);
        let told = &mut self.told[n];
        if content != told.message.content {
            told.vector = None;
        }
        let patch = MessagePatch { content: Some(content), ..MessagePatch::default() };
        let (id, now) = (told.message.message_id, engine.ctx.now());
        let updated = engine.store.update_message(&engine.scope, id, patch, ExpectedVersion::Any, now).await;
        told.message = updated.expect("it can be updated");
    }

    async fn delete(&mut self, engine: &Engine) {
        if self.told.is_empty() {
            return;
        }
        let told = self.told.swap_remove(Self::pick(engine, self.told.len()));
        let (id, now) = (told.message.message_id, engine.ctx.now());
        let deleted = engine.store.delete_message(&engine.scope, id, ExpectedVersion::Any, now).await;
        deleted.expect("it can be deleted");
    }

    async fn set_vector(&mut self, engine: &Engine) {
        if self.told.is_empty() {
            return;
        }
        let (n, vector) = (Self::pick(engine, self.told.len()), Self::vector(engine));
        let new = NewEmbedding { model: "m".to_owned(), vector: vector.clone() };
        let id = self.told[n].message.message_id;
        engine.store.set_embedding(&engine.scope, id, new, engine.ctx.now()).await.expect("it can be set");
        self.told[n].vector = Some(vector);
    }

    async fn import(&mut self, engine: &Engine) {
        let user = USERS[Self::pick(engine, USERS.len())];
        let session = engine.new_session(user).into_session(engine.scope.project_id);
        let (mut messages, mut embeddings) = (Vec::new(), Vec::new());
        for seq in 1..=4 {
            let new = Self::new_message(engine, session.session_id);
            let vector = new.embedding.clone().map(|new| new.vector);
            let mut message = new.into_message(engine.scope.project_id, session.session_id, seq, engine.ctx.now());
            if let Some(vector) = &vector {
                let (message_id, vectors) = (message.message_id, vec![vector.clone()]);
                embeddings.push(Embedding { message_id, model: "m".to_owned(), vectors });
            }
            if seq == 3 {
                message.deleted_at = Some(message.created_at);
            } else {
                self.told.push(Told { message: message.clone(), user, vector });
            }
            messages.push(message);
        }
        self.sessions.push((user, session.session_id));
        let identity = ArchiveIdentity::SessionId;
        let archived = ArchivedSession { identity, session, messages, embeddings, embed: false };
        engine.store.import_session(&engine.scope, archived).await.expect("it can be imported");
    }

    async fn delete_session(&mut self, engine: &Engine) {
        let (_, id) = self.sessions.swap_remove(Self::pick(engine, self.sessions.len()));
        let deleted = engine.store.delete_session(&engine.scope, id, ExpectedVersion::Any, engine.ctx.now()).await;
        deleted.expect("it can be deleted");
        self.told.retain(|told| told.message.session_id != id);
        for user in USERS {
            if self.sessions.iter().all(|(other, _)| *other != user) {
                self.sessions.push((user, engine.session(user).await));
            }
        }
    }

    /// Compares what the store finds with a look at everything.
    pub(crate) async fn check(&self, engine: &Engine) {
        let filters = [
            SearchFilter::default(),
            SearchFilter { role: Some("rare".to_owned()), ..SearchFilter::default() },
            SearchFilter { metadata: vec![("n".to_owned(), "1".to_owned())], ..SearchFilter::default() },
            SearchFilter { session_id: Some(self.sessions[0].1), ..SearchFilter::default() },
            SearchFilter { user_id: Some("bob".to_owned()), ..SearchFilter::default() },
            SearchFilter {
                created_after: self.told.get(30).map(|told| told.message.created_at),
                ..SearchFilter::default()
            },
        ];
        for scope in [engine.scope.clone(), Scope::user(engine.scope.project_id, "ada")] {
            for filter in &filters {
                for text in QUERIES {
                    let parsed = TextQuery::parse(text);
                    let found = engine.store.search_text(&scope, &parsed, filter, 1_000).await.expect("it can");
                    let expected = self.look(&scope, filter, 1_000, |told| {
                        let session_name = format!("of {}", told.user);
                        let Message { content, role, .. } = &told.message;
                        parsed.score(&Candidate { content, role, session_name: &session_name })
                    });
                    assert_eq!(found, expected, "{text} in {scope:?} {filter:?}");
                }
                for metric in Metric::ALL {
                    self.check_vectors(engine, &scope, filter, metric).await;
                }
            }
        }
    }

    async fn check_vectors(&self, engine: &Engine, scope: &Scope, filter: &SearchFilter, metric: Metric) {
        let to = vector(&[1.0, 2.0, 0.5]);
        let asked = query_of(to.clone(), metric);
        for limit in [1, 7, 1_000] {
            let found = engine.store.search_vectors(scope, &asked, filter, limit).await.expect("it can");
            let expected = self.look(scope, filter, limit, |told| {
                let vector = told.vector.as_ref()?;
                Some(match metric {
                    Metric::Cosine => cosine(&to, vector),
                    Metric::InnerProduct => dot(&to, vector),
                    Metric::L2 => -(dot(&to, &to) + dot(vector, vector) - 2.0 * dot(&to, vector)).max(0.0).sqrt(),
                })
            });
            assert_eq!(found.len(), expected.len(), "{metric:?} in {scope:?} {filter:?}");
            for (found, expected) in found.iter().zip(&expected) {
                // Single precision may swap what is nearly equal.
                assert!((found.score - expected.score).abs() < 1e-5, "{found:?} is not {expected:?}");
            }
        }
    }

    fn look(
        &self,
        scope: &Scope,
        filter: &SearchFilter,
        limit: usize,
        score: impl Fn(&Told) -> Option<f64>,
    ) -> Vec<RankedMessage> {
        let fits = |told: &&Told| {
            let message = &told.message;
            filter.user(scope).is_none_or(|user| user == told.user)
                && !filter.contradicts(scope)
                && filter.session_id.is_none_or(|id| id == message.session_id)
                && filter.role.as_ref().is_none_or(|role| *role == message.role)
                && filter.created_after.is_none_or(|after| message.created_at >= after)
                && filter.admits(&message.metadata)
        };
        let ranked = |told: &Told| {
            let Message { message_id, session_id, seq, created_at, .. } = told.message;
            Some(RankedMessage { message_id, session_id, seq, created_at, score: score(told)? })
        };
        let mut found: Vec<_> = self.told.iter().filter(fits).filter_map(ranked).collect();
        found.sort_by(RankedMessage::order);
        found.truncate(limit);
        found
    }
}

/// Stores vectors in clusters for several users of the default project, and others, nearer to
/// everything, in another project. Gives those of the default project.
pub(crate) async fn fill_with_clusters(engine: &Engine, dimensions: usize) -> Vec<(MessageId, Vector)> {
    let number = || f32::from(i16::from_be_bytes(engine.ctx.random())) / 32_768.0;
    let direction = || (0..dimensions).map(|_| number()).collect::<Vec<f32>>();
    let centres: Vec<_> = (0..40).map(|_| direction()).collect();
    let created_at = engine.ctx.now();
    let project_id = engine.ctx.new_project_id(created_at);
    let other = Project::new(project_id, "other", created_at);
    engine.store.create_project(other, None).await.expect("it can be created");
    let mut all = Vec::new();
    for part in 0..16 {
        let scope = Scope::project(if part % 4 == 3 { project_id } else { ProjectId::DEFAULT });
        let session = engine.new_session("ada").into_session(scope.project_id);
        let bucket = scope.bucket(session.user_id.as_deref(), None, [0; 2]);
        let session_id = engine.ctx.new_session_id(created_at, bucket);
        let session = chatstore_core::sessions::Session { session_id, ..session };
        let (mut messages, mut embeddings) = (Vec::new(), Vec::new());
        for seq in 1..=500 {
            let centre = &centres[Model::pick(engine, centres.len())];
            let near = centre.iter().map(|at| at + 0.3 * number()).collect();
            let vector = Vector::new(near).expect("it is a vector");
            let new = NewMessage {
                role: if seq % 100 == 0 { "rare" } else { "user" }.to_owned(),
                ..engine.new_message(session_id, "")
            };
            let message = new.into_message(scope.project_id, session_id, seq, created_at);
            if scope.project_id == ProjectId::DEFAULT {
                all.push((message.message_id, vector.clone()));
            }
            let (message_id, vectors) = (message.message_id, vec![vector]);
            embeddings.push(Embedding { message_id, model: "m".to_owned(), vectors });
            messages.push(message);
        }
        let identity = ArchiveIdentity::SessionId;
        let archived = ArchivedSession { identity, session, messages, embeddings, embed: false };
        engine.store.import_session(&scope, archived).await.expect("it can be imported");
    }
    all
}

/// Stores messages of several vectors each in the default project; gives all vectors.
pub(crate) async fn fill_with_parts(engine: &Engine, messages: i64, parts: usize) -> Vec<Vector> {
    let number = || f32::from(i16::from_be_bytes(engine.ctx.random())) / 32_768.0;
    let (scope, session) = (&engine.scope, engine.new_session("ada").into_session(engine.scope.project_id));
    let mut all = Vec::new();
    let (mut stored, mut embeddings) = (Vec::new(), Vec::new());
    for seq in 1..=messages {
        let new = engine.new_message(session.session_id, "");
        let message = new.into_message(scope.project_id, session.session_id, seq, engine.ctx.now());
        let direction: Vec<f32> = (0..24).map(|_| number()).collect();
        let part = || vector(&direction.iter().map(|at| at + 0.01 * number()).collect::<Vec<_>>());
        let vectors: Vec<_> = (0..parts).map(|_| part()).collect();
        all.extend(vectors.clone());
        embeddings.push(Embedding { message_id: message.message_id, model: "m".to_owned(), vectors });
        stored.push(message);
    }
    let identity = ArchiveIdentity::SessionId;
    let archived = ArchivedSession { identity, session, messages: stored, embeddings, embed: false };
    engine.store.import_session(scope, archived).await.expect("it can be imported");
    all
}
