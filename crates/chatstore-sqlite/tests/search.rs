//! What only SQLite's search and embeddings do: words leave the file, memory follows the rows, and
//! old files become searchable. Answers are compared with a look at every row.
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chatstore_core::archive::{ArchiveIdentity, ArchiveStore as _, ArchivedSession};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::conformance::join_all;
use chatstore_core::embeddings::{EmbeddingStore as _, JobOutcome, Metric, NewEmbedding, Vector, VectorQuery};
use chatstore_core::ids::{Bucket, MessageId, ProjectId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessagePatch, MessageStore as _, NewMessage};
use chatstore_core::migrations::Migration;
use chatstore_core::search::query::Candidate;
use chatstore_core::search::{Derived, RankedMessage, SearchFilter, SearchStore as _, TextQuery};
use chatstore_core::sessions::{NewSession, Session, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, Scope, Store as _};
use chatstore_sqlite::{SqliteOptions, SqliteStore, Synchronous, migrate};
use rusqlite::{Connection, params};
use tempfile::TempDir;

struct World {
    store: SqliteStore,
    path: PathBuf,
    ctx: Ctx,
    project: Scope,
    random: Random,
    _folder: TempDir,
}

/// SplitMix64: the same numbers every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % end as u64).expect("it is less than `end`")
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

fn options(path: &Path) -> SqliteOptions {
    SqliteOptions { synchronous: Synchronous::Normal, ..SqliteOptions::new(path) }
}

impl World {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chatstore.db");
        migrate(&path, &Ctx::system()).unwrap();
        let ctx = Ctx::fixed(Timestamp::parse("2026-01-15T12:00:00Z").unwrap(), 1_000_000, seed);
        let project = Scope::project(ProjectId::DEFAULT);
        let store = SqliteStore::open(&options(&path)).unwrap();
        Self { store, path, ctx, project, random: Random(seed), _folder: folder }
    }

    /// A store as another process would have it.
    fn neighbour(&self) -> SqliteStore {
        SqliteStore::open(&SqliteOptions { exclusive: false, ..options(&self.path) }).unwrap()
    }

    fn outsider(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }

    fn new_session(&self, user: Option<&str>) -> NewSession {
        let created_at = self.ctx.now();
        let bucket = self.project.bucket(user, None, self.ctx.random());
        NewSession {
            session_id: self.ctx.new_session_id(created_at, bucket),
            user_id: user.map(str::to_owned),
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at,
        }
    }

    async fn session(&self, user: &str) -> Session {
        self.store.create_session(&self.project, self.new_session(Some(user)), Vec::new(), None).await.unwrap().value
    }

    fn message(&self, session: &Session, content: &str) -> NewMessage {
        NewMessage::text(self.ctx.new_message_id(self.ctx.now(), session.session_id), "user", content)
    }

    async fn append(&self, session: &Session, new: Vec<NewMessage>) -> Vec<Message> {
        self.store.append_messages(&self.project, session.session_id, new, self.ctx.now(), None).await.unwrap().value
    }

    async fn edit(&self, message: &Message, content: &str) {
        let patch = MessagePatch { content: Some(content.to_owned()), ..MessagePatch::default() };
        let (id, now) = (message.message_id, self.ctx.now());
        self.store.update_message(&self.project, id, patch, ExpectedVersion::Any, now).await.unwrap();
    }

    async fn delete(&self, message_id: MessageId) {
        self.store.delete_message(&self.project, message_id, ExpectedVersion::Any, self.ctx.now()).await.unwrap();
    }

    async fn delete_session(&self, session: &Session) {
        let (id, now) = (session.session_id, self.ctx.now());
        self.store.delete_session(&self.project, id, ExpectedVersion::Any, now).await.unwrap();
        let outsider = self.outsider();
        let deadline = Instant::now() + Duration::from_secs(20);
        while outsider.query_row("select count(*) from session_erasures", (), |row| row.get::<_, i64>(0)).unwrap() > 0 {
            assert!(Instant::now() < deadline, "a session is not erased");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn found(&self, query: &str) -> usize {
        let (query, filter) = (TextQuery::parse(query), SearchFilter::default());
        self.store.search_text(&self.project, &query, &filter, 1_000).await.unwrap().len()
    }

    async fn reindex(&self, derived: Derived) {
        while self.store.reindex_some(derived).await.unwrap().more {}
    }

    /// The sound state of the index: as FTS5 sees it, and by its number of rows.
    fn check_index(&self) {
        let outsider = self.outsider();
        outsider.execute("insert into message_terms (message_terms) values ('integrity-check')", ()).unwrap();
        let count = |sql: &str| outsider.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(
            count("select count(*) from pending_texts p join message_texts d on d.message_no = p.message_no"),
            0
        );
        assert_eq!(
            count(
                "select count(*) from (select message_no from message_texts union all select message_no from pending_texts) d left join messages m on m.message_no = d.message_no where m.deleted_at is not null or m.content is null"
            ),
            0
        );
    }

    /// Every message that can be found, with its session.
    async fn everything(&self) -> Vec<(Session, Message)> {
        let mut all = Vec::new();
        for session in self.store.export_sessions(&self.project, None, 10_000).await.unwrap() {
            let (id, last) = (session.session_id, session.last_seq);
            let messages = self.store.export_messages(&self.project, id, 0, last, 10_000).await.unwrap();
            all.extend(messages.into_iter().filter(|m| m.deleted_at.is_none()).map(|m| (session.clone(), m)));
        }
        all
    }
}

fn ranked(message: &Message, score: f64) -> RankedMessage {
    RankedMessage {
        message_id: message.message_id,
        session_id: message.session_id,
        seq: message.seq,
        created_at: message.created_at,
        score,
    }
}

fn admits(filter: &SearchFilter, session: &Session, message: &Message) -> bool {
    filter.user_id.as_ref().is_none_or(|user| session.user_id.as_ref() == Some(user))
        && filter.session_id.is_none_or(|id| session.session_id == id)
        && filter.role.as_ref().is_none_or(|role| message.role == *role)
        && filter.kind.as_ref().is_none_or(|kind| message.kind == *kind)
        && filter.created_after.is_none_or(|after| message.created_at >= after)
        && filter.created_before.is_none_or(|before| message.created_at < before)
        && filter.admits(&message.metadata)
}

fn filters(everything: &[(Session, Message)]) -> Vec<SearchFilter> {
    let all = SearchFilter::default();
    let (session, message) = &everything[everything.len() / 2];
    vec![
        all.clone(),
        SearchFilter { user_id: Some("alice".to_owned()), ..all.clone() },
        SearchFilter { user_id: Some("nobody".to_owned()), ..all.clone() },
        SearchFilter { session_id: Some(session.session_id), ..all.clone() },
        SearchFilter { role: Some("assistant".to_owned()), ..all.clone() },
        SearchFilter { metadata: vec![("n".to_owned(), "3".to_owned())], ..all.clone() },
        SearchFilter {
            user_id: Some("bob".to_owned()),
            created_after: Some(message.created_at.plus_micros(-200_000_000)),
            created_before: Some(message.created_at),
            ..all
        },
    ]
}

const WORDS: [&str; 14] = [
    "tea",
    "Tasse",
    "getUserById",
    "snake_case",
    "机器学习",
    "ฉันรักแมว",
    "it's",
    "v1.2.3",
    "a/b-c",
    "weiß",
    "😀",
    "Ω",
    "\"quoted\"",
    "re*",
];

impl World {
    fn content(&mut self) -> String {
        (0..self.random.below(8)).map(|_| *self.random.pick(&WORDS)).collect::<Vec<_>>().join(" ")
    }

    fn varied(&mut self, session: &Session) -> NewMessage {
        let content = self.content();
        let n = self.random.below(6);
        NewMessage {
            role: if n == 0 { "assistant" } else { "user" }.to_owned(),
            metadata: RawJson::parse(format!("{{\"n\":{n}}}")).unwrap(),
            ..self.message(session, &content)
        }
    }

    /// Some writes of all kinds.
    async fn stir(&mut self, sessions: &mut Vec<Session>, rounds: usize) {
        for _ in 0..rounds {
            let session = self.random.pick(sessions).clone();
            match self.random.below(10) {
                0..=4 => {
                    let new = (0..=self.random.below(40)).map(|_| self.varied(&session)).collect();
                    self.append(&session, new).await;
                }
                5 => {
                    let user = *self.random.pick(&["alice", "bob"]);
                    sessions.push(self.session(user).await);
                }
                6 => {
                    let fresh = self.new_session(Some("alice")).into_session(ProjectId::DEFAULT);
                    let mut messages = Vec::new();
                    for seq in 1..=5 {
                        let at = self.ctx.now().plus_micros(-3_600_000_000);
                        messages.push(self.varied(&fresh).into_message(ProjectId::DEFAULT, fresh.session_id, seq, at));
                    }
                    messages[2].deleted_at = Some(self.ctx.now());
                    let (identity, embeddings) = (ArchiveIdentity::SessionId, Vec::new());
                    let archived = ArchivedSession { identity, session: fresh, messages, embeddings, embed: true };
                    self.store.import_session(&self.project, archived).await.unwrap();
                }
                _ => {
                    let everything = self.everything().await;
                    if everything.is_empty() {
                        continue;
                    }
                    let (_, message) = self.random.pick(&everything);
                    let content = self.content();
                    if self.random.below(3) == 0 {
                        self.delete(message.message_id).await;
                    } else {
                        self.edit(message, &content).await;
                    }
                }
            }
        }
    }

    async fn compare_texts(&self) {
        let everything = self.everything().await;
        let queries = [
            "tea",
            "tasse weiss",
            "user",
            "\"get user\"",
            "机器",
            "习",
            "แมว",
            "snake*",
            "tea -tasse",
            "its",
            "1.2",
            "b role:assistant",
            "😀",
            "ω",
            "re",
            "tea in:session",
            "nothing",
        ];
        for text in queries {
            let query = TextQuery::parse(text);
            for filter in filters(&everything) {
                let mut expected = Vec::new();
                for (session, message) in everything.iter().filter(|(s, m)| admits(&filter, s, m)) {
                    let (content, role, session_name) = (&message.content, &message.role, &session.session_name);
                    let score = query.score(&Candidate { content, role, session_name });
                    expected.extend(score.map(|score| ranked(message, score)));
                }
                expected.sort_by(RankedMessage::order);
                for limit in [5, 1_000] {
                    let found = self.store.search_text(&self.project, &query, &filter, limit).await.unwrap();
                    assert_eq!(found, expected[..limit.min(expected.len())], "{text} {filter:?}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_text_equals_a_look_at_every_message_after_any_writes() {
    for seed in 1..=2 {
        let mut world = World::new(seed);
        let mut sessions = vec![world.session("alice").await, world.session("bob").await];
        for _ in 0..2 {
            world.stir(&mut sessions, 30).await;
            world.check_index();
            world.compare_texts().await;
            let gone = sessions.remove(0);
            world.delete_session(&gone).await;
            sessions.push(world.session("bob").await);
        }
        world.compare_texts().await;
        world.store.start_reindex(Derived::Text).await.unwrap();
        world.reindex(Derived::Text).await;
        world.check_index();
        world.compare_texts().await;
    }
}

fn traces(path: &Path, word: &str) -> usize {
    let folder = path.parent().unwrap();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    files.map(|bytes| bytes.windows(word.len()).filter(|window| *window == word.as_bytes()).count()).sum()
}

impl World {
    /// How often lexemes that begin with `word` stand in the index, in whatever project and bucket.
    fn indexed(&self, word: &str) -> i64 {
        let count = "select count(*) from message_words where substr(term, 5, length(?1)) = ?1";
        self.outsider().query_row(count, [word], |row| row.get(0)).unwrap()
    }

    /// Parts of texts whose words are still to leave the index, and the bytes of the longest.
    fn leaving(&self) -> (i64, i64) {
        let count = "select count(*), coalesce(max(octet_length(lexemes)), 0) from deleted_terms";
        self.outsider().query_row(count, (), |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    }

    async fn wait_until_words_have_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.leaving().0 > 0 {
            assert!(Instant::now() < deadline, "words stay in the index");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Enough that everything stands in the index and does not wait for it.
    async fn fill(&self, session: &Session) {
        let filler = (0..300).map(|n| self.message(session, &format!("filler number{n}")));
        self.append(session, filler.collect()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_words_leave_the_index_and_a_vacuumed_file() {
    let mut world = World::new(1);
    let (kept, doomed) = (world.session("alice").await, world.session("alice").await);
    let canaries = ["zdeletedcanary", "yeditedcanary", "xdoomedcanary", "wkeptcanary"];
    let mut stored = Vec::new();
    for (canary, session) in canaries.into_iter().zip([&kept, &kept, &doomed, &kept]) {
        stored.extend(world.append(session, vec![world.message(session, canary)]).await);
    }
    world.fill(&kept).await;
    assert_eq!(canaries.map(|canary| world.indexed(canary)), [1; 4]);
    let waiting = world.append(&kept, vec![world.message(&kept, "vwaitingcanary")]).await;
    world.delete(waiting[0].message_id).await;
    world.delete(stored[0].message_id).await;
    world.edit(&stored[1], "harmless").await;
    world.delete_session(&doomed).await;
    world.wait_until_words_have_left().await;
    assert_eq!(canaries.map(|canary| world.indexed(canary)), [0, 0, 0, 1]);
    assert_eq!((world.found("wkeptcanary").await, world.found("harmless").await), (1, 1));
    world.store.close().await;
    world.check_index();
    // Pages that are free or were moved keep what they held until then.
    world.outsider().execute_batch("vacuum; pragma wal_checkpoint(truncate)").unwrap();
    let left: Vec<usize> = canaries.iter().map(|canary| traces(&world.path, canary)).collect();
    // In the message and in the index.
    assert_eq!((&left[..3], traces(&world.path, "vwaitingcanary")), (&[0, 0, 0][..], 0));
    assert!(left[3] >= 2, "{left:?}");
    world.store = SqliteStore::open(&options(&world.path)).unwrap();
    assert_eq!((world.found("wkeptcanary").await, world.found("zdeletedcanary").await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn words_of_a_long_text_leave_the_index_in_parts() {
    let mut world = World::new(1);
    let session = world.session("alice").await;
    let long = (0..3_000).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
    let doomed = world.append(&session, vec![world.message(&session, &long)]).await.remove(0);
    let kept = world.append(&session, vec![world.message(&session, "word1 word2 word2999")]).await.remove(0);
    world.fill(&session).await;
    assert_eq!((world.indexed("word2"), world.found("\"word 2999\"").await), (1_113, 2));
    // A process that erases nothing: what is deleted is gone for searches at once all the same.
    world.store.close().await;
    world.store = world.neighbour();
    world.delete(doomed.message_id).await;
    let (parts, longest) = world.leaving();
    assert!(parts > 20 && longest <= 2_048, "{parts} parts of {longest} bytes");
    assert_eq!((world.found("\"word 2999\"").await, world.found("word5").await), (1, 0));
    // Nothing that comes meanwhile takes its place.
    let new = world.append(&session, vec![world.message(&session, "word5 meanwhile")]).await.remove(0);
    world.fill(&session).await;
    world.store.close().await;
    world.store = SqliteStore::open(&options(&world.path)).unwrap();
    let began = world.append(&session, vec![world.message(&session, "during")]).await;
    assert_eq!(began.len(), 1);
    world.wait_until_words_have_left().await;
    world.check_index();
    assert_eq!((world.indexed("word5"), world.indexed("word2999"), world.indexed("word3")), (1, 1, 0));
    assert_eq!((world.found("meanwhile").await, world.found("word2").await), (1, 1));
    for message in [kept, new] {
        world.delete(message.message_id).await;
    }
    world.wait_until_words_have_left().await;
    world.check_index();
    assert_eq!(world.indexed("word"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_do_not_wait_for_the_words_of_many_deleted_messages() {
    let world = World::new(1);
    let session = world.session("alice").await;
    let text = |n: usize| (0..40).map(|word| format!("doomed{} ", n * 31 + word)).collect::<String>();
    let doomed = world.append(&session, (0..250).map(|n| world.message(&session, &text(n))).collect()).await;
    world.fill(&session).await;
    let deletes = join_all(doomed.iter().map(|message| world.delete(message.message_id)));
    let append = async {
        tokio::task::yield_now().await;
        world.append(&session, vec![world.message(&session, "between")]).await
    };
    tokio::join!(deletes, append);
    // Taken out one after the other they would have kept the append waiting for all.
    assert!(world.leaving().0 > 10, "{:?}", world.leaving());
    assert_eq!((world.found("doomed5").await, world.found("between").await), (0, 1));
    world.wait_until_words_have_left().await;
    world.check_index();
    assert_eq!((world.indexed("doomed"), world.found("filler").await), (0, 300));
}

/// A file as a binary of the first schema left it.
fn make_old(path: &Path, sessions: i64, messages: i64) {
    let base = include_str!("../migrations/0001_base.sql");
    let checksum = Migration { version: 1, name: "base", sql: base, serves_from: 1 }.checksum();
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(base).unwrap();
    connection
        .execute_batch(
            "create table schema_migrations (version integer primary key, name text not null, checksum text not null,
                serves_from integer not null, applied_at integer not null) strict;
            pragma application_id = 0x43485354; insert into installation values (1, zeroblob(32), 0)",
        )
        .unwrap();
    connection.execute("insert into schema_migrations values (1, 'base', ?1, 1, 0)", params![checksum]).unwrap();
    let project = ProjectId::DEFAULT;
    connection.execute("insert into projects values (?1, 'default', 0)", params![project.as_bytes()]).unwrap();
    let id = |kind: u8, n: i64| {
        let mut id = [kind; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        id[14..].copy_from_slice(&Bucket::of_user(project, "ada").bits().to_be_bytes());
        id
    };
    for n in 1..=sessions {
        connection
            .execute(
                "insert into sessions values (?1, ?2, ?3, 'ada', 'old', 0, '{}', null, ?4, ?4, null, 1, 0, 0, 0, 0, 0,
                    case when ?1 = 2 then 9 end, null)",
                params![n, id(1, n), project.as_bytes(), messages],
            )
            .unwrap();
        for seq in 1..=messages {
            let text = format!("old words number{seq}");
            connection
                .execute(
                    "insert into messages values (?1, ?2, null, 'user', 'message', 'completed', ?3, null, '{}', null,
                        null, null, 1, ?4, ?4, null)",
                    params![(n << 32) + seq, id(2, n * 1_000_000 + seq), text, seq],
                )
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_first_schema_becomes_searchable_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chatstore.db");
    make_old(&path, 3, 700);
    assert_eq!(migrate(&path, &Ctx::system()).unwrap(), ["search", "access", "idempotency"]);
    let store = SqliteStore::open(&options(&path)).unwrap();
    let (project, ada) = (Scope::project(ProjectId::DEFAULT), Scope::user(ProjectId::DEFAULT, "ada"));
    let search = async |text: &str| {
        let (query, filter) = (TextQuery::parse(text), SearchFilter::default());
        let whole = store.search_text(&project, &query, &filter, 1_000).await.unwrap();
        assert_eq!(store.search_text(&ada, &query, &filter, 1_000).await.unwrap(), whole);
        whole.len()
    };
    assert!(store.is_reindexing(Derived::Text).await.unwrap());
    assert_eq!(search("number5").await, 0);
    let mut messages = 0;
    loop {
        let part = store.reindex_some(Derived::Text).await.unwrap();
        messages += part.messages;
        if !part.more {
            break;
        }
    }
    assert_eq!(messages, 2_100);
    // The second session is deleted.
    assert_eq!((search("number5").await, search("old words").await), (2, 1_000));
    store.close().await;
    let reopened = SqliteStore::open(&options(&path)).unwrap();
    assert!(!reopened.is_reindexing(Derived::Text).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_another_analyser_is_made_anew() {
    let mut world = World::new(1);
    let session = world.session("alice").await;
    for _ in 0..3 {
        let new = (0..200).map(|n| world.message(&session, &format!("words number{n}"))).collect();
        world.append(&session, new).await;
    }
    world.store.close().await;
    world.outsider().execute("update text_index set analyser_version = -1", ()).unwrap();
    world.store = SqliteStore::open(&options(&world.path)).unwrap();
    assert!(world.store.is_reindexing(Derived::Text).await.unwrap());
    assert_eq!(world.found("number7").await, 0);
    world.append(&session, vec![world.message(&session, "number7 meanwhile")]).await;
    assert_eq!(world.found("number7").await, 1);
    world.reindex(Derived::Text).await;
    assert_eq!(world.found("number7").await, 4);
    world.check_index();
    // One of a newer version is left as it is, and a process beside the server touches none.
    for (version, exclusive) in [(1_000, true), (-1, false)] {
        world.store.close().await;
        world.outsider().execute("update text_index set analyser_version = ?1", [version]).unwrap();
        world.store = SqliteStore::open(&SqliteOptions { exclusive, ..options(&world.path) }).unwrap();
        assert!(!world.store.is_reindexing(Derived::Text).await.unwrap());
        assert_eq!(world.found("number7").await, 4);
    }
}

fn vector(numbers: &[f32]) -> Vector {
    Vector::new(numbers.to_vec()).unwrap()
}

fn embedding(numbers: &[f32]) -> NewEmbedding {
    NewEmbedding { model: "m".to_owned(), vector: vector(numbers) }
}

/// Small whole numbers: sums are exact, and equal scores happen.
fn numbers(random: &mut Random, dimensions: usize) -> Vec<f32> {
    let mut numbers: Vec<f32> = (0..dimensions).map(|_| [-2.0, -1.0, 0.0, 1.0, 2.0][random.below(5)]).collect();
    numbers[0] = 1.0;
    numbers
}

fn nearness(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let pairs = || a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let product: f64 = pairs().map(|(a, b)| a * b).sum();
    match metric {
        Metric::InnerProduct => product,
        Metric::L2 => -pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt(),
        Metric::Cosine => {
            let length = |v: &[f32]| v.iter().map(|n| f64::from(*n) * f64::from(*n)).sum::<f64>().sqrt();
            product / length(a) / length(b)
        }
    }
}

const DIMENSIONS: usize = 19;

/// Compares searches of several stores on one file with a look at every vector.
async fn compare_vectors(world: &mut World, stores: &[&SqliteStore]) {
    let everything = world.everything().await;
    let ids: Vec<MessageId> = everything.iter().map(|(_, message)| message.message_id).collect();
    let embeddings = world.store.list_embeddings(&world.project, &ids).await.unwrap();
    for metric in Metric::ALL {
        let asked = numbers(&mut world.random, DIMENSIONS);
        let query = VectorQuery { model: "m".to_owned(), vector: vector(&asked), metric };
        for filter in filters(&everything) {
            let mut expected = Vec::new();
            for embedding in &embeddings {
                let found = everything.iter().find(|(_, message)| message.message_id == embedding.message_id);
                let (session, message) = found.unwrap();
                let parts = embedding.vectors.iter().map(|part| nearness(metric, &asked, part.numbers()));
                if admits(&filter, session, message) {
                    expected.push(ranked(message, parts.fold(f64::NEG_INFINITY, f64::max)));
                }
            }
            expected.sort_by(RankedMessage::order);
            for (store, limit) in stores.iter().flat_map(|store| [1, 7, 10_000].map(|limit| (store, limit))) {
                let found = store.search_vectors(&world.project, &query, &filter, limit).await.unwrap();
                let expected = &expected[..limit.min(expected.len())];
                assert_eq!(found.len(), expected.len(), "{metric:?} {filter:?}");
                assert!(found.is_sorted_by(|a, b| RankedMessage::order(a, b).is_lt()));
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found.score - expected.score).abs() < 1e-6, "{found:?} {expected:?}");
                }
                if metric != Metric::Cosine {
                    let ids = |list: &[RankedMessage]| list.iter().map(|m| m.message_id).collect::<Vec<_>>();
                    assert_eq!(ids(&found), ids(expected), "{metric:?} {filter:?}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_vectors_equals_a_look_at_every_vector_whatever_is_kept_in_memory() {
    let mut world = World::new(5);
    let without =
        SqliteStore::open(&SqliteOptions { exclusive: false, vector_cache_bytes: 0, ..options(&world.path) }).unwrap();
    let little =
        SqliteStore::open(&SqliteOptions { exclusive: false, vector_cache_bytes: 4_096, ..options(&world.path) })
            .unwrap();
    let neighbour = world.neighbour();
    let mut sessions = Vec::new();
    for user in ["alice", "alice", "bob", "carol"] {
        sessions.push(world.session(user).await);
    }
    for round in 0..6 {
        for _ in 0..15 {
            let session = world.random.pick(&sessions).clone();
            let vector = numbers(&mut world.random, DIMENSIONS);
            let new = NewMessage { embedding: Some(embedding(&vector)), ..world.varied(&session) };
            // Either process writes.
            let store = if world.random.below(2) == 0 { &world.store } else { &neighbour };
            let (id, now) = (session.session_id, world.ctx.now());
            store.append_messages(&world.project, id, vec![new], now, None).await.unwrap();
        }
        let everything = world.everything().await;
        let message = world.random.pick(&everything).1.clone();
        let again = embedding(&numbers(&mut world.random, DIMENSIONS));
        let now = world.ctx.now();
        match round {
            1 => neighbour.set_embedding(&world.project, message.message_id, again, now).await.unwrap(),
            2 => world.delete(message.message_id).await,
            3 => world.edit(&message, "another text").await,
            4 => {
                let gone = sessions.remove(0);
                world.delete_session(&gone).await;
            }
            _ => {}
        }
        let world_store = SqliteStore::open(&SqliteOptions { exclusive: false, ..options(&world.path) }).unwrap();
        let kept = std::mem::replace(&mut world.store, world_store);
        compare_vectors(&mut world, &[&kept, &neighbour, &without, &little]).await;
        world.store = kept;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_of_a_model_that_is_no_longer_used_are_removed_from_memory_too() {
    let world = World::new(5);
    let session = world.session("alice").await;
    let scope = Scope::user(ProjectId::DEFAULT, "alice");
    let now = world.ctx.now();
    world.store.set_embedding_source("m").await.unwrap();
    let new = (0..900).map(|_| NewMessage { embed: true, ..world.message(&session, "x") }).collect();
    let stored = world.append(&session, new).await;
    let jobs = world.store.claim_embedding_jobs(world.ctx.now(), world.ctx.now(), 1_000).await.unwrap();
    let made = |_| JobOutcome::Embedded { model: "m".to_owned(), vectors: vec![vector(&[1.0, 0.0])] };
    let done = jobs.iter().map(|job| (job.clone(), made(job))).collect();
    world.store.complete_embedding_jobs(done, now).await.unwrap();
    let query = VectorQuery { model: "m".to_owned(), vector: vector(&[1.0, 0.0]), metric: Metric::L2 };
    let count = async || {
        let filter = SearchFilter::default();
        world.store.search_vectors(&scope, &query, &filter, 2_000).await.unwrap().len()
    };
    assert_eq!(count().await, 900);
    world.store.set_embedding_source("n").await.unwrap();
    world.reindex(Derived::Embeddings).await;
    for message in &stored {
        let other = NewEmbedding { model: "n".to_owned(), vector: vector(&[1.0]) };
        world.store.set_embedding(&world.project, message.message_id, other, now).await.unwrap();
    }
    let mut calls = 0;
    while world.store.settle_embedding_source().await.unwrap() {
        calls += 1;
        assert!(count().await < 900);
    }
    assert!(calls > 1, "removed in {calls} parts");
    assert_eq!(count().await, 0);
    // The name is free for vectors of another length.
    let again = NewEmbedding { model: "m".to_owned(), vector: vector(&[1.0, 2.0, 3.0]) };
    world.store.set_embedding(&world.project, stored[0].message_id, again, now).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_source_leaves_what_somebody_brought() {
    let world = World::new(5);
    let session = world.session("alice").await;
    let (now, later) = (world.ctx.now(), world.ctx.now().plus_micros(60_000_000));
    world.store.set_embedding_source("m").await.unwrap();
    world.reindex(Derived::Embeddings).await;
    let new = vec![
        NewMessage { embedding: Some(embedding(&[1.0, 0.0])), ..world.message(&session, "brought") },
        NewMessage { embed: true, ..world.message(&session, "made") },
        NewMessage { embed: true, ..world.message(&session, "late") },
        world.message(&session, "stored by a server without a source"),
    ];
    let stored = world.append(&session, new).await;
    let jobs = world.store.claim_embedding_jobs(now.plus_micros(10_000_000), later, 9).await.unwrap();
    assert_eq!(jobs.len(), 2);
    let done = JobOutcome::Embedded { model: "m".to_owned(), vectors: vec![vector(&[0.0, 1.0])] };
    world.store.complete_embedding_jobs(vec![(jobs[0].clone(), done.clone())], now).await.unwrap();
    // A server that starts with the same source looks for what nobody queued.
    world.store.set_embedding_source("m").await.unwrap();
    world.reindex(Derived::Embeddings).await;
    assert_eq!(world.store.get_embedding_backlog(&world.project).await.unwrap().pending, 2);
    world.store.set_embedding_source("n").await.unwrap();
    // What was made with the model before comes too late.
    world.store.complete_embedding_jobs(vec![(jobs[1].clone(), done)], now).await.unwrap();
    let models = async || {
        let ids: Vec<MessageId> = stored.iter().map(|message| message.message_id).collect();
        let embeddings = world.store.list_embeddings(&world.project, &ids).await.unwrap();
        embeddings.into_iter().map(|embedding| (embedding.message_id, embedding.model)).collect::<Vec<_>>()
    };
    let (brought, of_m) = (stored[0].message_id, || "m".to_owned());
    assert_eq!(models().await, [(brought, of_m()), (stored[1].message_id, of_m())]);
    world.reindex(Derived::Embeddings).await;
    loop {
        let jobs = world.store.claim_embedding_jobs(later.plus_micros(1), later, 9).await.unwrap();
        if jobs.is_empty() {
            break;
        }
        let made = || JobOutcome::Embedded { model: "n".to_owned(), vectors: vec![vector(&[1.0])] };
        let done = jobs.into_iter().map(|job| (job, made())).collect();
        world.store.complete_embedding_jobs(done, now).await.unwrap();
    }
    while world.store.settle_embedding_source().await.unwrap() {}
    let expected: Vec<_> = stored.iter().map(|message| (message.message_id, "n".to_owned())).collect();
    assert_eq!(models().await, [&[(brought, of_m())], &expected[..]].concat());
    let wrong = NewEmbedding { model: of_m(), vector: vector(&[1.0]) };
    assert!(world.store.set_embedding(&world.project, brought, wrong, now).await.is_err());
}
