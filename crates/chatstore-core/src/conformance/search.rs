//! Checks of search.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use std::pin::Pin;

use super::{TestStore, is_invalid, join_all, json};
use crate::archive::{ArchiveIdentity, ArchivedSession};
use crate::clock::Timestamp;
use crate::embeddings::{Metric, NewEmbedding, Vector, VectorQuery};
use crate::ids::MessageId;
use crate::limits::SEARCH_MATCHES_MAX;
use crate::messages::{Message, MessagePatch, NewMessage};
use crate::search::query::Candidate;
use crate::search::{Derived, RankedMessage, SearchFilter, TextQuery};
use crate::sessions::{NewSession, Session, SessionPatch};
use crate::store::{ExpectedVersion, Scope, StoreError};

pub(super) fn vector(numbers: &[f32]) -> Vector {
    Vector::new(numbers.to_vec()).unwrap()
}

pub(super) fn embedding(numbers: &[f32]) -> NewEmbedding {
    NewEmbedding { model: "m".to_owned(), vector: vector(numbers) }
}

fn ids(found: &[RankedMessage]) -> Vec<MessageId> {
    found.iter().map(|message| message.message_id).collect()
}

fn all() -> SearchFilter {
    SearchFilter::default()
}

fn session_filter(session: &Session) -> SearchFilter {
    SearchFilter { session_id: Some(session.session_id), ..all() }
}

impl TestStore {
    async fn search(&self, scope: &Scope, query: &str, filter: &SearchFilter) -> Vec<RankedMessage> {
        self.store.search_text(scope, &TextQuery::parse(query), filter, SEARCH_MATCHES_MAX).await.unwrap()
    }

    /// Ids of what a query finds in the whole project, in no order.
    async fn found(&self, query: &str) -> Vec<MessageId> {
        sorted(ids(&self.search(&self.project, query, &all()).await))
    }

    async fn nearest(&self, scope: &Scope, to: &[f32], filter: &SearchFilter, limit: usize) -> Vec<RankedMessage> {
        let query = VectorQuery { model: "m".to_owned(), vector: vector(to), metric: Metric::Cosine };
        self.store.search_vectors(scope, &query, filter, limit).await.unwrap()
    }

    /// Appends a message with a vector.
    pub(super) async fn place(&self, session: &Session, numbers: &[f32]) -> Message {
        let new = NewMessage { embedding: Some(embedding(numbers)), ..self.new_message(session, "placed") };
        self.append(session, vec![new]).await.unwrap().remove(0)
    }

    /// Makes something derived anew, to the end.
    pub(super) async fn reindex(&self, derived: Derived) {
        self.store.start_reindex(derived).await.unwrap();
        assert!(self.store.is_reindexing(derived).await.unwrap());
        while self.store.reindex_some(derived).await.unwrap().more {}
        assert!(!self.store.is_reindexing(derived).await.unwrap());
    }
}

fn sorted(mut ids: Vec<MessageId>) -> Vec<MessageId> {
    ids.sort_by_key(|id| id.uuid());
    ids
}

fn of(messages: &[&Message]) -> Vec<MessageId> {
    sorted(messages.iter().map(|message| message.message_id).collect())
}

pub async fn search_text_finds_what_was_just_appended(t: TestStore) {
    let (mine, nobodys) = (t.session_of("alice").await, t.session().await);
    let tea = t.say(&mine, "A cup of green tea, please").await;
    let green = t.say(&nobodys, "Green is the colour").await;
    assert_eq!(t.found("green").await, of(&[&tea, &green]));
    assert_eq!(t.found("GREEN tea").await, of(&[&tea]));
    assert_eq!(t.found("coffee").await, []);
    for scope in [&t.user("alice"), &t.project] {
        for filter in [session_filter(&mine), SearchFilter { user_id: Some("alice".to_owned()), ..all() }] {
            let found = t.search(scope, "green", &filter).await;
            assert_eq!(ids(&found), of(&[&tea]));
            let first = &found[0];
            assert_eq!((first.session_id, first.seq, first.created_at), (mine.session_id, tea.seq, tea.created_at));
            assert!(first.score.is_finite() && first.score > 0.0);
        }
    }
    assert_eq!(ids(&t.search(&t.project, "green", &session_filter(&nobodys)).await), of(&[&green]));
}

pub async fn search_text_speaks_the_query_language(t: TestStore) {
    let travel = t.create(NewSession { session_name: "Travel plans".to_owned(), ..t.new_session(None) }).await;
    let work = t.create(NewSession { session_name: "Work".to_owned(), ..t.new_session(None) }).await;
    let night = t.say(&travel, "The night train to Vienna leaves at nine").await;
    let train = t.say(&travel, "I train at night, every night").await;
    let code = t.say(&work, "call getUserById in src/train_model.rs").await;
    let answer = NewMessage { role: "assistant".to_owned(), ..t.new_message(&work, "The train is late") };
    let late = t.append(&work, vec![answer]).await.unwrap().remove(0);
    for (query, expected) in [
        ("night train", vec![&night, &train]),
        ("\"night train\"", vec![&night]),
        ("train -night", vec![&code, &late]),
        ("trai*", vec![&night, &train, &code, &late]),
        ("train role:assistant", vec![&late]),
        ("train in:\"travel plans\"", vec![&night, &train]),
        ("train_model", vec![&code]),
        ("getuserbyid", vec![&code]),
        ("user", vec![&code]),
        ("\"night", vec![&night, &train]),
        ("nothing here", vec![]),
        ("-train", vec![]),
        ("", vec![]),
    ] {
        assert_eq!(t.found(query).await, of(&expected), "{query}");
    }
}

pub async fn search_text_finds_scripts_without_spaces(t: TestStore) {
    let session = t.session_of("alice").await;
    let chinese = t.say(&session, "我喜欢机器学习").await;
    let thai = t.say(&session, "ฉันรักแมว").await;
    let german = t.say(&session, "Die Straße ist weiß").await;
    let wide = "x".repeat(3_000);
    let long = t.say(&session, &format!("{wide} end")).await;
    for scope in [&t.user("alice"), &t.project] {
        for (query, expected) in [
            ("机", vec![&chinese]),
            ("机器", vec![&chinese]),
            ("机器学习", vec![&chinese]),
            ("器机", vec![]),
            ("แมว", vec![&thai]),
            ("strasse WEISS", vec![&german]),
            (wide.as_str(), vec![&long]),
            (&wide[1..], vec![]),
        ] {
            assert_eq!(ids(&t.search(scope, query, &all()).await), of(&expected), "{query}");
        }
    }
}

pub async fn search_text_finds_nothing_outside_its_scope(t: TestStore) {
    let (alices, bobs) = (t.session_of("alice").await, t.session_of("bob").await);
    let (alice, bob) = (t.say(&alices, "a secret word").await, t.say(&bobs, "a secret word").await);
    let foreign = t.placed(&t.other, NewSession { user_id: Some("alice".to_owned()), ..t.new_session(None) });
    let foreign = t.store.create_session(&t.other, foreign, Vec::new(), None).await.unwrap().value;
    let new = t.new_message(&foreign, "a secret word");
    let foreign_message =
        t.store.append_messages(&t.other, foreign.session_id, vec![new], t.ctx.now(), None).await.unwrap().value;
    assert_eq!(t.found("secret").await, of(&[&alice, &bob]));
    assert_eq!(t.found("secr*").await, of(&[&alice, &bob]));
    assert_eq!(ids(&t.search(&t.user("alice"), "secret", &all()).await), of(&[&alice]));
    assert_eq!(ids(&t.search(&t.user("bob"), "secr*", &all()).await), of(&[&bob]));
    assert_eq!(t.search(&t.user("carol"), "secret", &all()).await, []);
    assert_eq!(t.search(&t.user("alice"), "secret", &session_filter(&bobs)).await, []);
    let of_bob = SearchFilter { user_id: Some("bob".to_owned()), ..all() };
    assert_eq!(t.search(&t.user("alice"), "secret", &of_bob).await, []);
    assert_eq!(t.search(&t.project, "secret", &session_filter(&foreign)).await, []);
    assert_eq!(ids(&t.search(&t.other, "secret", &all()).await), [foreign_message[0].message_id]);
}

pub async fn search_text_filters(t: TestStore) {
    let session = t.session_of("alice").await;
    let tagged = json(r#"{"topic":"tea","stars":5,"deep":{"topic":"no"}}"#);
    let rows = [
        NewMessage { role: "assistant".to_owned(), ..t.new_message(&session, "word one") },
        NewMessage { kind: "reasoning".to_owned(), ..t.new_message(&session, "word two") },
        NewMessage { metadata: tagged, ..t.new_message(&session, "word three") },
    ];
    let mut stored = Vec::new();
    for new in rows {
        stored.extend(t.append(&session, vec![new]).await.unwrap());
    }
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    for scope in [&t.user("alice"), &t.project] {
        for (filter, expected) in [
            (SearchFilter { role: Some("assistant".to_owned()), ..all() }, vec![&stored[0]]),
            (SearchFilter { kind: Some("reasoning".to_owned()), ..all() }, vec![&stored[1]]),
            (SearchFilter { metadata: vec![pair("topic", "tea"), pair("stars", "5")], ..all() }, vec![&stored[2]]),
            (SearchFilter { metadata: vec![pair("topic", "no")], ..all() }, vec![]),
            (SearchFilter { created_after: Some(stored[1].created_at), ..all() }, vec![&stored[1], &stored[2]]),
            (SearchFilter { created_before: Some(stored[1].created_at), ..all() }, vec![&stored[0]]),
        ] {
            assert_eq!(sorted(ids(&t.search(scope, "word", &filter).await)), of(&expected), "{filter:?}");
        }
    }
}

pub async fn search_text_forgets_what_was_deleted_or_changed(t: TestStore) {
    let (session, doomed) = (t.session_of("alice").await, t.session_of("alice").await);
    let (kept, gone) = (t.say(&session, "plain canary").await, t.say(&session, "deleted canary").await);
    t.say(&doomed, "doomed canary").await;
    let changed = t.say(&session, "changed canary").await;
    let now = t.ctx.now();
    t.store.delete_message(&t.project, gone.message_id, ExpectedVersion::Any, now).await.unwrap();
    t.store.delete_session(&t.project, doomed.session_id, ExpectedVersion::Any, now).await.unwrap();
    let patch = MessagePatch { content: Some("replaced finch".to_owned()), ..MessagePatch::default() };
    t.store.update_message(&t.project, changed.message_id, patch, ExpectedVersion::Any, now).await.unwrap();
    assert_eq!(t.found("canary").await, of(&[&kept]));
    assert_eq!(t.found("finch").await, of(&[&changed]));
    for query in ["deleted", "doomed", "changed"] {
        assert_eq!(t.found(query).await, [], "{query}");
    }
    // The text may follow from another payload.
    let payload = Some(json(r#"{"type":"message","content":"derived heron"}"#));
    let patch = MessagePatch { payload, ..MessagePatch::default() };
    t.store.update_message(&t.project, changed.message_id, patch, ExpectedVersion::Any, now).await.unwrap();
    assert_eq!((t.found("heron").await, t.found("finch").await), (of(&[&changed]), vec![]));
    // A patch of something else leaves the words findable.
    let patch = MessagePatch { role: Some("assistant".to_owned()), ..MessagePatch::default() };
    t.store.update_message(&t.project, kept.message_id, patch, ExpectedVersion::Any, now).await.unwrap();
    assert_eq!(t.found("canary role:assistant").await, of(&[&kept]));
    // The name that `in:` compares is the present one.
    let patch = SessionPatch { session_name: Some("aviary".to_owned()), ..SessionPatch::default() };
    t.store.update_session(&t.project, session.session_id, patch, ExpectedVersion::Any, now).await.unwrap();
    assert_eq!(t.found("canary in:aviary").await, of(&[&kept]));
}

pub async fn search_text_is_in_a_total_order(t: TestStore) {
    let session = t.session_of("alice").await;
    for n in 0..30 {
        t.say(&session, &format!("tea{}", " and more words".repeat(n % 5))).await;
    }
    let found = t.search(&t.project, "tea", &all()).await;
    assert_eq!(found.len(), 30);
    assert!(found.is_sorted_by(|a, b| RankedMessage::order(a, b).is_lt()));
    assert_eq!(found, t.search(&t.user("alice"), "tea", &session_filter(&session)).await);
    let query = TextQuery::parse("tea");
    let best = t.store.search_text(&t.project, &query, &all(), 7).await.unwrap();
    assert_eq!(best, found[..7]);
}

pub async fn search_text_scores_by_query_and_message_alone(t: TestStore) {
    let session = t.session_of("alice").await;
    let content = "tea with milk, then tea without";
    let message = t.say(&session, content).await;
    let before = t.search(&t.user("alice"), "tea milk", &all()).await;
    let query = TextQuery::parse("tea milk");
    let candidate = Candidate { content, role: "user", session_name: &session.session_name };
    assert_eq!(Some(before[0].score), query.score(&candidate));
    let bobs = t.session_of("bob").await;
    for _ in 0..5 {
        t.say(&bobs, "tea and milk").await;
    }
    let after = t.search(&t.user("alice"), "tea milk", &all()).await;
    assert_eq!((&after, after[0].message_id), (&before, message.message_id));
}

pub async fn search_text_ranks_the_newest_of_very_many(t: TestStore) {
    let session = t.session_of("alice").await;
    let batch = |n: usize| (0..n).map(|_| t.new_message(&session, "common")).collect::<Vec<_>>();
    t.append(&session, batch(200)).await.unwrap();
    let newest = t.append(&session, batch(SEARCH_MATCHES_MAX)).await.unwrap();
    let found = t.search(&t.project, "common", &all()).await;
    assert_eq!(sorted(ids(&found)), of(&newest.iter().collect::<Vec<_>>()));
    // What the index finds and core does not count leaves room for older ones.
    let rare = t.say(&session, "rare common").await;
    t.append(&session, (0..1_000).map(|_| t.new_message(&session, "common rare")).collect()).await.unwrap();
    assert_eq!(t.found("\"rare common\"").await, of(&[&rare]));
}

pub async fn search_text_agrees_with_a_look_at_every_message(t: TestStore) {
    const WORDS: [&str; 6] = ["tea", "cup", "green", "Tee-Tasse", "teaCup", "茶杯"];
    let (alice, bob) = (t.session_of("alice").await, t.session_of("bob").await);
    let mut stored = Vec::new();
    for n in 0_usize..120 {
        let session = if n.is_multiple_of(3) { &bob } else { &alice };
        let words: Vec<&str> = (0..n % 5 + 1).map(|k| WORDS[(n * 7 + k * k * 5) % WORDS.len()]).collect();
        stored.push((session, t.say(session, &words.join(" ")).await));
    }
    for query in ["tea", "cup tea", "\"tea cup\"", "tea -green", "te*", "茶", "杯 tea", "tasse", "teacup", "green te*"]
    {
        let parsed = TextQuery::parse(query);
        for (scope, user) in [(&t.project, None), (&t.user("alice"), Some("alice")), (&t.user("bob"), Some("bob"))] {
            let mut expected: Vec<RankedMessage> = Vec::new();
            for (session, message) in &stored {
                if user.is_some() && session.user_id.as_deref() != user {
                    continue;
                }
                let (content, role, session_name) = (&message.content, &message.role, &session.session_name);
                if let Some(score) = parsed.score(&Candidate { content, role, session_name }) {
                    let (message_id, session_id) = (message.message_id, session.session_id);
                    let (seq, created_at) = (message.seq, message.created_at);
                    expected.push(RankedMessage { message_id, session_id, seq, created_at, score });
                }
            }
            expected.sort_by(RankedMessage::order);
            assert_eq!(t.search(scope, query, &all()).await, expected, "{query} for {user:?}");
        }
    }
}

pub async fn search_text_finds_imported_messages(t: TestStore) {
    let session = t.new_session(Some("alice")).into_session(t.project.project_id);
    let place = |new: NewMessage, seq, at| new.into_message(t.project.project_id, session.session_id, seq, at);
    let live = place(t.new_message(&session, "imported words"), 1, t.ctx.now());
    let mut dead = place(t.new_message(&session, "imported words too"), 2, t.ctx.now());
    dead.deleted_at = Some(t.ctx.now());
    let archived = ArchivedSession {
        identity: ArchiveIdentity::SessionId,
        session,
        messages: vec![live.clone(), dead],
        embeddings: Vec::new(),
        embed: false,
    };
    t.store.import_session(&t.project, archived.clone()).await.unwrap();
    t.store.import_session(&t.project, archived).await.unwrap();
    assert_eq!(t.found("imported").await, of(&[&live]));
    assert_eq!(ids(&t.search(&t.user("alice"), "words", &all()).await), of(&[&live]));
}

pub async fn search_vectors_finds_the_nearest_first(t: TestStore) {
    let session = t.session_of("alice").await;
    let (east, north) = (t.place(&session, &[1.0, 0.0]).await, t.place(&session, &[0.0, 3.0]).await);
    let between = t.place(&session, &[1.0, 1.0]).await;
    t.say(&session, "without a vector").await;
    let order = async |metric, to: &[f32]| {
        let query = VectorQuery { model: "m".to_owned(), vector: vector(to), metric };
        let mut answers = Vec::new();
        for (scope, filter) in [
            (&t.project, all()),
            (&t.user("alice"), all()),
            (&t.project, session_filter(&session)),
            (&t.project, SearchFilter { user_id: Some("alice".to_owned()), ..all() }),
        ] {
            answers.push(t.store.search_vectors(scope, &query, &filter, 10).await.unwrap());
        }
        let first = answers.remove(0);
        assert!(answers.iter().all(|answer| ids(answer) == ids(&first)));
        first
    };
    let by = |found: &[RankedMessage], wanted: [(&Message, f64); 3]| {
        assert_eq!(ids(found), wanted.map(|(message, _)| message.message_id));
        for (found, (_, score)) in found.iter().zip(wanted) {
            assert!((found.score - score).abs() < 1e-5, "{} is not {score}", found.score);
        }
    };
    let half = std::f64::consts::FRAC_1_SQRT_2;
    by(&order(Metric::Cosine, &[5.0, 0.0]).await, [(&east, 1.0), (&between, half), (&north, 0.0)]);
    by(&order(Metric::InnerProduct, &[1.0, 1.0]).await, [(&north, 3.0), (&between, 2.0), (&east, 1.0)]);
    by(&order(Metric::L2, &[1.0, 1.0]).await, [(&between, 0.0), (&east, -1.0), (&north, -5_f64.sqrt())]);
}

pub async fn search_vectors_is_exact_however_selective_the_filter(t: TestStore) {
    let (alice, bob) = (t.session_of("alice").await, t.session_of("bob").await);
    let mut wanted = Vec::new();
    for n in 0..60_u8 {
        let rare = n % 20 == 7;
        let near = [1.0, f32::from(n) / 60.0, 0.5];
        let new = NewMessage {
            embedding: Some(embedding(&near)),
            role: if rare { "judge" } else { "user" }.to_owned(),
            metadata: json(if rare { r#"{"rare":true}"# } else { "{}" }),
            ..t.new_message(&alice, "x")
        };
        let message = t.append(&alice, vec![new]).await.unwrap().remove(0);
        if rare {
            wanted.push(message.message_id);
        }
        t.place(&bob, &[1.0, 0.0, 0.5]).await;
    }
    let role = SearchFilter { role: Some("judge".to_owned()), ..all() };
    let metadata = SearchFilter { metadata: vec![("rare".to_owned(), "true".to_owned())], ..all() };
    for scope in [&t.user("alice"), &t.project] {
        for filter in [&role, &metadata] {
            for limit in [1, 2, 3, 50] {
                let found = t.nearest(scope, &[1.0, 0.0, 0.5], filter, limit).await;
                assert_eq!(ids(&found), wanted[..limit.min(3)], "{limit} by {filter:?}");
            }
        }
    }
    for limit in [0, 1, 59, 60, 100] {
        assert_eq!(t.nearest(&t.user("alice"), &[0.0, 1.0, 0.0], &all(), limit).await.len(), limit.min(60));
    }
    let found = t.nearest(&t.user("alice"), &[1.0, 0.2, 0.5], &all(), 60).await;
    assert!(found.is_sorted_by(|a, b| RankedMessage::order(a, b).is_lt()));
}

pub async fn search_vectors_finds_nothing_outside_its_scope(t: TestStore) {
    let (alices, bobs) = (t.session_of("alice").await, t.session_of("bob").await);
    let alice = t.place(&alices, &[1.0, 0.0]).await;
    let bob = t.place(&bobs, &[1.0, 0.0]).await;
    let foreign = t.placed(&t.other, t.new_session(None));
    let foreign = t.store.create_session(&t.other, foreign, Vec::new(), None).await.unwrap().value;
    // The model of another project has a length of its own.
    let new = NewMessage { embedding: Some(embedding(&[1.0, 0.0, 0.0])), ..t.new_message(&foreign, "x") };
    t.store.append_messages(&t.other, foreign.session_id, vec![new], t.ctx.now(), None).await.unwrap();
    assert_eq!(sorted(ids(&t.nearest(&t.project, &[1.0, 0.0], &all(), 9).await)), of(&[&alice, &bob]));
    assert_eq!(ids(&t.nearest(&t.user("alice"), &[1.0, 0.0], &all(), 9).await), of(&[&alice]));
    assert_eq!(t.nearest(&t.user("alice"), &[1.0, 0.0], &session_filter(&bobs), 9).await, []);
    let of_bob = SearchFilter { user_id: Some("bob".to_owned()), ..all() };
    assert_eq!(t.nearest(&t.user("alice"), &[1.0, 0.0], &of_bob, 9).await, []);
    assert_eq!(t.nearest(&t.project, &[1.0, 0.0], &session_filter(&foreign), 9).await, []);
    assert_eq!(t.nearest(&t.other, &[1.0, 0.0, 0.0], &all(), 9).await.len(), 1);
}

pub async fn search_vectors_never_mixes_models(t: TestStore) {
    let session = t.session_of("alice").await;
    let first = t.place(&session, &[1.0, 0.0]).await;
    let other = NewEmbedding { model: "other".to_owned(), vector: vector(&[1.0, 0.0]) };
    let new = NewMessage { embedding: Some(other), ..t.new_message(&session, "x") };
    let second = t.append(&session, vec![new]).await.unwrap().remove(0);
    let search = async |model: &str, to: &[f32]| {
        let query = VectorQuery { model: model.to_owned(), vector: vector(to), metric: Metric::Cosine };
        t.store.search_vectors(&t.project, &query, &all(), 9).await
    };
    assert_eq!(ids(&search("m", &[1.0, 0.0]).await.unwrap()), of(&[&first]));
    assert_eq!(ids(&search("other", &[1.0, 0.0]).await.unwrap()), of(&[&second]));
    assert_eq!(search("unknown", &[1.0]).await.unwrap(), []);
    assert!(is_invalid(search("m", &[1.0, 0.0, 0.0]).await, "/embedding"));
}

pub async fn search_vectors_forgets_what_was_deleted_or_changed(t: TestStore) {
    let (session, doomed) = (t.session_of("alice").await, t.session_of("alice").await);
    let (kept, gone) = (t.place(&session, &[1.0, 0.0]).await, t.place(&session, &[1.0, 0.0]).await);
    let changed = t.place(&session, &[1.0, 0.0]).await;
    t.place(&doomed, &[1.0, 0.0]).await;
    assert_eq!(t.nearest(&t.user("alice"), &[1.0, 0.0], &all(), 9).await.len(), 4);
    let now = t.ctx.now();
    t.store.delete_message(&t.project, gone.message_id, ExpectedVersion::Any, now).await.unwrap();
    t.store.delete_session(&t.project, doomed.session_id, ExpectedVersion::Any, now).await.unwrap();
    let patch = MessagePatch { content: Some("new".to_owned()), ..MessagePatch::default() };
    t.store.update_message(&t.project, changed.message_id, patch, ExpectedVersion::Any, now).await.unwrap();
    for scope in [&t.user("alice"), &t.project] {
        assert_eq!(ids(&t.nearest(scope, &[1.0, 0.0], &all(), 9).await), of(&[&kept]));
    }
    let patch = MessagePatch { role: Some("assistant".to_owned()), ..MessagePatch::default() };
    t.store.update_message(&t.project, kept.message_id, patch, ExpectedVersion::Any, now).await.unwrap();
    assert_eq!(t.nearest(&t.project, &[1.0, 0.0], &all(), 9).await.len(), 1);
}

pub async fn search_vectors_sees_every_change_at_once(t: TestStore) {
    let session = t.session_of("alice").await;
    let user = t.user("alice");
    let mut placed = Vec::new();
    for n in 1..=20_u8 {
        placed.push(t.place(&session, &[1.0, f32::from(n)]).await);
        assert_eq!(t.nearest(&user, &[0.0, 1.0], &all(), 50).await.len(), usize::from(n));
        if n % 4 == 0 {
            let again = NewEmbedding { model: "m".to_owned(), vector: vector(&[-1.0, -1.0]) };
            let first = placed.remove(0);
            t.store.set_embedding(&user, first.message_id, again, t.ctx.now()).await.unwrap();
            let found = t.nearest(&user, &[0.0, 1.0], &all(), 50).await;
            assert_eq!((found.len(), found[found.len() - 1].score < 0.0), (usize::from(n), true));
        }
    }
    for (left, message) in (0..placed.len()).rev().zip(&placed) {
        let deleted = t.store.delete_message(&user, message.message_id, ExpectedVersion::Any, t.ctx.now()).await;
        deleted.unwrap();
        assert_eq!(t.nearest(&user, &[0.0, 1.0], &all(), 50).await.len(), left + 5);
    }
}

pub async fn get_found_messages_keeps_the_order_and_leaves_out_what_is_gone(t: TestStore) {
    let named = t.create(NewSession { session_name: "named".to_owned(), ..t.new_session(Some("alice")) }).await;
    let (bobs, doomed) = (t.session_of("bob").await, t.session_of("alice").await);
    let (first, second) = (t.say(&named, "one").await, t.say(&named, "two").await);
    let (bob, gone) = (t.say(&bobs, "three").await, t.say(&named, "four").await);
    let lost = t.say(&doomed, "five").await;
    let now = t.ctx.now();
    let deleted = t.store.delete_message(&t.project, gone.message_id, ExpectedVersion::Any, now).await;
    deleted.unwrap();
    t.store.delete_session(&t.project, doomed.session_id, ExpectedVersion::Any, now).await.unwrap();
    let wanted = [&second, &gone, &bob, &lost, &first].map(|message| message.message_id);
    let found = t.store.get_found_messages(&t.project, &wanted).await.unwrap();
    let shown: Vec<_> = found.iter().map(|found| (found.message.clone(), found.session_name.as_str())).collect();
    assert_eq!(shown, [(second.clone(), "named"), (bob, "a session"), (first.clone(), "named")]);
    let found = t.store.get_found_messages(&t.user("alice"), &wanted).await.unwrap();
    assert_eq!(found.iter().map(|found| &found.message).collect::<Vec<_>>(), [&second, &first]);
    assert_eq!(t.store.get_found_messages(&t.other, &wanted).await.unwrap(), []);
    assert_eq!(t.store.get_found_messages(&t.project, &[]).await.unwrap(), []);
}

pub async fn reindex_some_of_text_gives_the_same_answers(t: TestStore) {
    let (session, doomed) = (t.session_of("alice").await, t.session().await);
    for n in 0..40 {
        t.say(&session, &format!("word number {n} 机器")).await;
    }
    let gone = t.say(&session, "word canary").await;
    t.say(&doomed, "word canary").await;
    t.say(&session, "").await;
    let now = t.ctx.now();
    t.store.delete_message(&t.project, gone.message_id, ExpectedVersion::Any, now).await.unwrap();
    t.store.delete_session(&t.project, doomed.session_id, ExpectedVersion::Any, now).await.unwrap();
    let queries = ["word", "word 7", "机器", "canary", "num*"];
    let mut before = Vec::new();
    for query in queries {
        before.push(t.search(&t.project, query, &all()).await);
    }
    assert_eq!((before[0].len(), before[3].len()), (40, 0));
    assert!(!t.store.is_reindexing(Derived::Text).await.unwrap());
    assert_eq!(t.store.reindex_some(Derived::Text).await.unwrap().messages, 0);
    t.reindex(Derived::Text).await;
    for (query, before) in queries.into_iter().zip(before) {
        assert_eq!(t.search(&t.project, query, &all()).await, before, "{query}");
    }
    // What comes after is found as ever.
    let new = t.say(&session, "word afterwards").await;
    assert_eq!(t.found("afterwards").await, of(&[&new]));
}

pub async fn reindex_some_may_be_called_by_many_at_once(t: TestStore) {
    let session = t.session_of("alice").await;
    for batch in 0..3 {
        let new = (0..500).map(|n| t.new_message(&session, &format!("word {batch} {n}"))).collect();
        t.append(&session, new).await.unwrap();
    }
    t.store.start_reindex(Derived::Text).await.unwrap();
    let work = async || while t.store.reindex_some(Derived::Text).await.unwrap().more {};
    let appends = async || {
        for n in 0..20 {
            t.say(&session, &format!("meanwhile {n}")).await;
        }
    };
    let mut all: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = vec![Box::pin(appends())];
    all.extend((0..3).map(|_| Box::pin(work()) as _));
    join_all(all).await;
    assert_eq!(t.found("meanwhile").await.len(), 20);
    assert_eq!(t.found("\"word 1\"").await.len(), 500);
}

pub async fn concurrent_append_messages_are_all_found_by_search_text(t: TestStore) {
    let sessions = join_all((0..8).map(|n| {
        let t = &t;
        async move { t.session_of(&format!("user-{}", n % 3)).await }
    }))
    .await;
    let appends = (0..64_usize).map(|n| {
        let (t, session) = (&t, &sessions[n % sessions.len()]);
        async move { t.say(session, &format!("shared word{n}")).await }
    });
    let stored = join_all(appends).await;
    assert_eq!(t.found("shared").await, of(&stored.iter().collect::<Vec<_>>()));
    for (n, message) in stored.iter().enumerate() {
        assert_eq!(t.found(&format!("word{n}")).await, of(&[message]));
    }
    let of_user = t.search(&t.user("user-1"), "shared", &all()).await;
    let owned = sessions.iter().filter(|session| session.user_id.as_deref() == Some("user-1")).count();
    assert_eq!(of_user.len(), owned * 8);
}

pub async fn failed_append_messages_leave_nothing_to_search_text(t: TestStore) {
    let session = t.session_of("alice").await;
    let stray =
        NewMessage { parent_id: Some(MessageId::from(session.session_id.uuid())), ..t.new_message(&session, "canary") };
    let result = t.append(&session, vec![t.new_message(&session, "canary"), stray]).await;
    assert!(is_invalid(result, "/1/parent_id"));
    assert_eq!(t.found("canary").await, []);
    let gone = Session { session_id: t.new_session(None).session_id, ..session };
    assert_eq!(t.append(&gone, vec![t.new_message(&gone, "canary")]).await, Err(StoreError::NotFound));
    assert_eq!(t.found("canary").await, []);
    let never = SearchFilter { created_before: Timestamp::from_micros(0), ..all() };
    assert_eq!(t.search(&t.project, "canary", &never).await, []);
}
