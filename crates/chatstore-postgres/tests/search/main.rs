//! What search and embeddings promise on PostgreSQL beyond the contract: rows of words after every
//! form of append, answers equal to a look at everything, workers that do not meet, upgrades,
//! indexes of vectors.

mod model;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::conformance::join_all;
use chatstore_core::embeddings::{EmbeddingStore as _, JobOutcome, Metric, Vector};
use chatstore_core::ids::{Bucket, ProjectId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessagePatch, MessageStore as _, NewMessage};
use chatstore_core::search::{Derived, SearchFilter, SearchStore as _, TextQuery};
use chatstore_core::sessions::{NewSession, SessionStore as _};
use chatstore_core::store::{ExpectedVersion, Scope, Store as _};
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{AppendForm, PostgresOptions, PostgresStore, build_vector_indexes, migrate};
use tokio_postgres::{Client, NoTls};

use model::{Model, query, vector};

/// A store, its database and the clock of the test.
pub(crate) struct Engine {
    pub(crate) store: Arc<PostgresStore>,
    pub(crate) database: TestDatabase,
    pub(crate) ctx: Ctx,
    pub(crate) scope: Scope,
}

async fn open(database: &TestDatabase, change: impl FnOnce(&mut PostgresOptions)) -> Arc<PostgresStore> {
    let mut options = PostgresOptions::new(database.url());
    options.connections_max = 4;
    // Writes that come at once wait for each other.
    options.acquire_timeout = Duration::from_secs(30);
    change(&mut options);
    Arc::new(PostgresStore::open(&options).await.expect("a fresh database can be opened"))
}

impl Engine {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut PostgresOptions)) -> Self {
        let database = TestDatabase::create().await;
        let store = open(&database, change).await;
        let noon = Timestamp::parse("2026-01-15T12:00:00Z").expect("a time");
        Self { store, database, ctx: Ctx::fixed(noon, 1_000, 7), scope: Scope::project(ProjectId::DEFAULT) }
    }

    async fn outsider(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.database.owner_url(), NoTls).await.expect("it answers");
        tokio::spawn(connection);
        client
    }

    fn new_session(&self, user_id: &str) -> NewSession {
        let created_at = self.ctx.now();
        NewSession {
            session_id: self.ctx.new_session_id(created_at, Bucket::of_user(self.scope.project_id, user_id)),
            user_id: Some(user_id.to_owned()),
            session_name: format!("of {user_id}"),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at,
        }
    }

    async fn session(&self, user_id: &str) -> SessionId {
        let new = self.new_session(user_id);
        self.store
            .create_session(&self.scope, new, Vec::new(), None)
            .await
            .expect("a session can be created")
            .value
            .session_id
    }

    fn new_message(&self, session_id: SessionId, content: &str) -> NewMessage {
        NewMessage::text(self.ctx.new_message_id(self.ctx.now(), session_id), "user", content)
    }

    async fn append(&self, session_id: SessionId, new: Vec<NewMessage>) -> Vec<Message> {
        let appended = self.store.append_messages(&self.scope, session_id, new, self.ctx.now(), None).await;
        appended.expect("it can be appended").value
    }

    async fn say(&self, session_id: SessionId, content: &str) -> Message {
        self.append(session_id, vec![self.new_message(session_id, content)]).await.remove(0)
    }

    async fn found(&self, text: &str) -> Vec<i64> {
        let (parsed, filter) = (TextQuery::parse(text), SearchFilter::default());
        let found = self.store.search_text(&self.scope, &parsed, &filter, 1_000).await.expect("it can be searched");
        let mut seqs: Vec<i64> = found.iter().map(|message| message.seq).collect();
        seqs.sort_unstable();
        seqs
    }

    async fn reindex(&self, derived: Derived) {
        while self.store.reindex_some(derived).await.expect("a part can be done").more {}
    }
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect("it can be counted").get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_append_stores_words_and_jobs() {
    for form in [AppendForm::Batched, AppendForm::PerSession] {
        let engine = Engine::with(|options| options.append_form = form).await;
        let (one, two) = (engine.session("ada").await, engine.session("bob").await);
        // Alone, in a batch, with an id to check, with a vector, and what says nothing.
        let first = engine.say(one, "plain words").await;
        let new = |content: &str| NewMessage { embed: true, ..engine.new_message(one, content) };
        let child = NewMessage { parent_id: Some(first.message_id), ..new("checked words") };
        let embedded = NewMessage { embedding: Some(query("m", &[1.0, 0.0]).0), ..new("near words") };
        let rows = vec![vec![new("more words"), new(""), new(" … ")], vec![child], vec![embedded]];
        let appends = rows.into_iter().map(|new| engine.append(one, new)).collect::<Vec<_>>();
        let others = (0..20).map(|n| engine.append(two, vec![engine.new_message(two, &format!("other {n}"))]));
        tokio::join!(join_all(appends), join_all(others));
        let outsider = engine.outsider().await;
        let wrong = "select count(*) from messages m left join message_texts t using (bucket, session_id, seq)
            where (m.content ~ '[a-z]') <> (t.seq is not null) or m.created_at <> t.created_at";
        assert_eq!(count(&outsider, wrong).await, 0);
        assert_eq!(count(&outsider, "select count(*) from message_texts").await, 24);
        let waiting =
            "select count(*) from embedding_jobs j join messages m using (bucket, session_id, seq, message_id)
            where m.content <> '' and j.version = 1 and j.attempts = 0 and j.queued_at = m.created_at";
        assert_eq!(count(&outsider, waiting).await, 4);
        assert_eq!(count(&outsider, "select count(*) from embedding_jobs").await, 4);
        let vectors = "select count(*) from message_embeddings where user_id = 'ada' and dimensions = 2";
        assert_eq!(count(&outsider, vectors).await, 1);
        assert_eq!(engine.found("words").await.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_agrees_with_a_look_at_everything_after_a_random_mix() {
    let engine = Engine::new().await;
    let mut model = Model::new(&engine).await;
    for step in 0..400 {
        model.step(&engine).await;
        if step % 40 == 39 {
            model.check(&engine).await;
        }
    }
    // What is made anew says the same.
    for derived in [Derived::Text, Derived::Embeddings] {
        engine.store.start_reindex(derived).await.expect("it can be noted");
        engine.reindex(derived).await;
    }
    model.check(&engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_base_schema_becomes_searchable() {
    let engine = Engine::new().await;
    let session = engine.session("ada").await;
    for n in 0..1_200 {
        engine.say(session, &format!("old words {}", n % 2)).await;
    }
    let outsider = engine.outsider().await;
    let old = "drop table message_texts, text_index, embedding_models, message_embeddings, embedding_jobs,
        embedding_source, retired_embedding_models, reindexes; delete from schema_migrations where version = 2";
    outsider.batch_execute(old).await.expect("the owner may drop its tables");
    assert_eq!(migrate(&engine.database.owner_url(), &Ctx::system()).await.expect("it can be migrated"), ["search"]);
    let grants = include_str!("../../grants.sql").replace(":\"role\"", "chatstore_test_app");
    outsider.batch_execute(&grants).await.expect("the owner may grant");
    let store = open(&engine.database, |_| {}).await;
    let engine = Engine { store, ..engine };
    assert!(engine.store.is_reindexing(Derived::Text).await.expect("it can be asked"));
    let (mut steps, mut messages) = (0, 0);
    loop {
        let step = engine.store.reindex_some(Derived::Text).await.expect("a part can be done");
        (steps, messages) = (steps + 1, messages + step.messages);
        if !step.more {
            break;
        }
    }
    assert_eq!((steps, messages), (4, 1_200));
    assert_eq!(engine.found("old 1").await, (1..=1_200).filter(|seq| seq % 2 == 0).collect::<Vec<_>>());
    assert!(!engine.store.is_reindexing(Derived::Embeddings).await.expect("it can be asked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn words_of_an_older_analyser_are_made_anew() {
    let engine = Engine::new().await;
    let session = engine.session("ada").await;
    engine.say(session, "fresh words").await;
    let outsider = engine.outsider().await;
    let old = "update text_index set analyser_version = 0; update message_texts set lexemes = ''";
    outsider.batch_execute(old).await.expect("the owner may change rows");
    assert_eq!(engine.found("fresh").await, Vec::<i64>::new());
    let engine = Engine { store: open(&engine.database, |_| {}).await, ..engine };
    engine.reindex(Derived::Text).await;
    assert_eq!(engine.found("fresh").await, [1]);
    open(&engine.database, |_| {}).await;
    assert!(!engine.store.is_reindexing(Derived::Text).await.expect("it can be asked"));
    // A newer one's words are left alone.
    outsider.batch_execute("update text_index set analyser_version = 1000000").await.expect("the owner may");
    engine.store.start_reindex(Derived::Text).await.expect("it can be noted");
    open(&engine.database, |_| {}).await;
    assert_eq!(engine.store.reindex_some(Derived::Text).await.expect("it is no fault").messages, 0);
    assert!(engine.store.is_reindexing(Derived::Text).await.expect("it can be asked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reindex_removes_what_was_left_of_deleted_messages() {
    let engine = Engine::new().await;
    let (kept, doomed) = (engine.session("ada").await, engine.session("ada").await);
    for session in [kept, kept, doomed] {
        let embedding = Some(query("m", &[1.0, 0.0]).0);
        let new = NewMessage { embed: true, embedding, ..engine.new_message(session, "words") };
        engine.append(session, vec![new]).await;
    }
    let outsider = engine.outsider().await;
    // As a server does that knows nothing of these tables.
    let old = format!(
        "update messages set deleted_at = 1 where session_id = '{kept}' and seq = 1;
        update sessions set deleted_at = 1 where session_id = '{doomed}'"
    );
    outsider.batch_execute(&old).await.expect("the owner may change rows");
    engine.store.start_reindex(Derived::Text).await.expect("it can be noted");
    engine.reindex(Derived::Text).await;
    for table in ["message_texts", "message_embeddings", "embedding_jobs"] {
        let left = format!("select count(*) from {table} where session_id <> '{kept}' or seq <> 2");
        assert_eq!(count(&outsider, &left).await, 0, "{table}");
        assert_eq!(count(&outsider, &format!("select count(*) from {table}")).await, 1, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reindex_loses_nothing_that_is_changed_meanwhile() {
    let engine = Engine::new().await;
    let session = engine.session("ada").await;
    let new = (0..400).map(|n| engine.new_message(session, &format!("words {n}"))).collect();
    let messages = engine.append(session, new).await;
    let outsider = engine.outsider().await;
    for round in 0..5 {
        outsider.batch_execute("delete from message_texts").await.expect("the owner may change rows");
        engine.store.start_reindex(Derived::Text).await.expect("it can be noted");
        let metadata = RawJson::parse(format!("{{\"round\":{round}}}")).expect("JSON");
        let edits = messages.iter().step_by(9).enumerate().map(|(n, message)| {
            let content = (n % 2 == 0).then(|| format!("words of round {round}"));
            let patch = MessagePatch { content, metadata: Some(metadata.clone()), ..MessagePatch::default() };
            let (id, now) = (message.message_id, engine.ctx.now());
            engine.store.update_message(&engine.scope, id, patch, ExpectedVersion::Any, now)
        });
        let (edited, ()) = tokio::join!(join_all(edits), engine.reindex(Derived::Text));
        assert!(edited.iter().all(Result::is_ok));
        assert_eq!(engine.found("words").await.len(), 400);
        assert_eq!(engine.found(&format!("\"of round {round}\"")).await.len(), 23);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_put_aside_waits_with_the_others_when_the_model_changes() {
    let engine = Engine::new().await;
    let session = engine.session("ada").await;
    let new = NewMessage { embed: true, ..engine.new_message(session, "words") };
    engine.append(session, vec![new]).await;
    engine.store.set_embedding_source("m").await.expect("it can be noted");
    let (now, later) = (engine.ctx.now(), engine.ctx.now());
    let job = engine.store.claim_embedding_jobs(now, later, 1).await.expect("it can be claimed").remove(0);
    let parked = vec![(job, JobOutcome::Parked { reason: "a reason".to_owned() })];
    engine.store.complete_embedding_jobs(parked, now).await.expect("it can be completed");
    engine.store.set_embedding_source("another").await.expect("it can be noted");
    let waiting = "select count(*) from embedding_jobs
        where is_backfill and queued_at is null and parked_reason is null and attempts = 0";
    assert_eq!(count(&engine.outsider().await, waiting).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_keeps_away_from_vectors_that_callers_brought() {
    let engine = Engine::new().await;
    let session = engine.session("ada").await;
    engine.store.set_embedding_source("a").await.expect("it can be noted");
    let (brought, asked) = query("b", &[1.0, 0.0]);
    let new = NewMessage { embed: true, embedding: Some(brought), ..engine.new_message(session, "words") };
    engine.append(session, vec![new]).await;
    engine.store.set_embedding_source("b").await.expect("it can be noted");
    let now = engine.ctx.now();
    let job = engine.store.claim_embedding_jobs(now, engine.ctx.now(), 1).await.expect("it can be claimed").remove(0);
    let made = JobOutcome::Embedded { model: "b".to_owned(), vectors: vec![vector(&[0.0, 1.0])] };
    engine.store.complete_embedding_jobs(vec![(job, made)], now).await.expect("it can be completed");
    let found = engine.store.search_vectors(&engine.scope, &asked, &SearchFilter::default(), 9).await.expect("it can");
    assert!(found.len() == 1 && found[0].score > 0.99, "{found:?}");
    assert_eq!(count(&engine.outsider().await, "select count(*) from embedding_jobs").await, 0);
}

/// The connections of stores, those included that are still being closed.
const CONNECTIONS: &str = "select count(*) from pg_stat_activity
    where datname = current_database() and application_name = 'chatstore'";

/// Waits until so many connections of stores are left.
async fn await_connections(outsider: &Client, left: i64) {
    model::within(async || count(outsider, CONNECTIONS).await == left).await;
}

/// How often an index, or a table as a whole, was walked by servers that have ended.
async fn walks(outsider: &Client, of: &str) -> i64 {
    await_connections(outsider, 0).await;
    let walks = format!(
        "select (select coalesce(sum(idx_scan), 0) from pg_stat_user_indexes where indexrelname = '{of}')::bigint
            + (select coalesce(sum(seq_scan), 0) from pg_stat_user_tables where relname = '{of}')::bigint"
    );
    count(outsider, &walks).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_walks_its_index_a_few_times_however_many_do_not_fit() {
    let engine = Engine::new().await;
    let (own, foreign) = (engine.session("ada").await, engine.session("bob").await);
    let rare = NewMessage { role: "rare".to_owned(), ..engine.new_message(own, "wordless") };
    engine.append(own, vec![rare]).await;
    for part in 0..6 {
        let new = (0..1_000).map(|n| engine.new_message(foreign, &format!("word{part}x{n}")));
        engine.append(foreign, new.collect()).await;
    }
    let rare = SearchFilter { role: Some("rare".to_owned()), ..SearchFilter::default() };
    let ada = Scope::user(engine.scope.project_id, "ada");
    for (scope, filter, walks_max) in [(&ada, SearchFilter::default(), 1), (&engine.scope, rare, 2)] {
        engine.store.close().await;
        let outsider = engine.outsider().await;
        let before = walks(&outsider, "message_texts_lexemes").await;
        let store = open(&engine.database, |_| {}).await;
        let found = store.search_text(scope, &TextQuery::parse("wor*"), &filter, 10).await.expect("it can");
        assert_eq!(found.len(), 1);
        store.close().await;
        drop(store);
        let after = walks(&outsider, "message_texts_lexemes").await;
        assert!((1..=walks_max).contains(&(after - before)), "{} walks", after - before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_of_vectors_serves_messages_of_many_parts() {
    let engine = Engine::new().await;
    let parts = model::fill_with_parts(&engine, 300, 20).await;
    build_vector_indexes(&engine.database.owner_url(), |_| {}).await.expect("the owner may");
    engine.store.close().await;
    let outsider = engine.outsider().await;
    let whole = ["message_embeddings", "message_embeddings_model"];
    let before = [walks(&outsider, whole[0]).await, walks(&outsider, whole[1]).await];
    let store = open(&engine.database, |_| {}).await;
    for vector in parts.iter().step_by(1_000) {
        let asked = model::query_of(vector.clone(), Metric::Cosine);
        let found = store.search_vectors(&engine.scope, &asked, &SearchFilter::default(), 10).await.expect("it can");
        assert_eq!(found.len(), 10);
    }
    store.close().await;
    drop(store);
    let after = [walks(&outsider, whole[0]).await, walks(&outsider, whole[1]).await];
    // Once it is asked whether there are enough vectors.
    assert!(after[0] + after[1] <= before[0] + before[1] + 1, "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_several_replicas_lend_no_job_twice() {
    let engine = Engine::new().await;
    let session = engine.session("ada").await;
    let new = (0..300).map(|n| NewMessage { embed: true, ..engine.new_message(session, &format!("text {n}")) });
    engine.append(session, new.collect()).await;
    let other = open(&engine.database, |_| {}).await;
    let (now, later) = (engine.ctx.now(), engine.ctx.now().plus_micros(60_000_000));
    let mut seen = HashSet::new();
    loop {
        let claims = (0..8).map(|n| if n % 2 == 0 { &engine.store } else { &other });
        let claims = join_all(claims.map(|store| store.claim_embedding_jobs(now, later, 7))).await;
        let jobs: Vec<_> = claims.into_iter().flat_map(|jobs| jobs.expect("it can be claimed")).collect();
        if jobs.is_empty() {
            break;
        }
        assert!(jobs.iter().all(|job| seen.insert(job.message_id) && job.content == format!("text {}", job.seq - 1)));
    }
    assert_eq!(seen.len(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_is_never_that_of_an_older_text() {
    let engine = Engine::new().await;
    let session = engine.session("ada").await;
    let new = (0..8).map(|_| NewMessage { embed: true, ..engine.new_message(session, "1") });
    let messages = engine.append(session, new.collect()).await;
    let outsider = engine.outsider().await;
    for round in 2..22 {
        let jobs = engine.store.claim_embedding_jobs(engine.ctx.now(), engine.ctx.now(), 100).await.expect("it can");
        let outcome = |content: &str| JobOutcome::Embedded {
            model: "m".to_owned(),
            vectors: vec![vector(&[content.parse().expect("a number"), 1.0])],
        };
        let done = jobs.into_iter().map(|job| (job.clone(), outcome(&job.content))).collect();
        let complete = engine.store.complete_embedding_jobs(done, engine.ctx.now());
        let edits = messages.iter().map(|message| {
            let content = Some(round.to_string());
            let patch = MessagePatch { content, embed: true, ..MessagePatch::default() };
            engine.store.update_message(
                &engine.scope,
                message.message_id,
                patch,
                ExpectedVersion::Any,
                engine.ctx.now(),
            )
        });
        let (completed, edited) = tokio::join!(complete, join_all(edits));
        completed.expect("it can be completed");
        assert!(edited.iter().all(Result::is_ok));
        let stale = "select count(*) from message_embeddings e join messages m using (bucket, session_id, seq)
            where (e.embedding::real[])[1] <> m.content::real";
        assert_eq!(count(&outsider, stale).await, 0, "in round {round}");
    }
    assert_eq!(count(&outsider, "select count(*) from embedding_jobs").await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_of_vectors_finds_nearly_all_and_keeps_to_its_project() {
    const DIMENSIONS: usize = 24;
    let engine = Engine::new().await;
    let owner_url = engine.database.owner_url();
    let vectors = model::fill_with_clusters(&engine, DIMENSIONS).await;
    let exact = |to: &Vector, k: usize| {
        let mut near: Vec<_> = vectors.iter().map(|(id, vector)| (model::cosine(to, vector), *id)).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        near.truncate(k);
        near.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
    };
    // Few vectors of another length take no index.
    let few = engine.session("eve").await;
    let embedding = Some(query("few", &[1.0, 0.0]).0);
    engine.append(few, vec![NewMessage { embedding, ..engine.new_message(few, "") }]).await;
    let told = build_vector_indexes(&engine.database.url(), |_| {}).await.expect_err("it is not the owner");
    assert!(told.to_string().contains("MIGRATE_DATABASE_URL"), "{told}");
    // What a killed build leaves behind.
    let outsider = engine.outsider().await;
    let broken = "create index message_embeddings_hnsw_24 on message_embeddings (dimensions);
        update pg_index set indisvalid = false where indexrelid = 'message_embeddings_hnsw_24'::regclass";
    outsider.batch_execute(broken).await.expect("a superuser may do this");
    let mut sentences = Vec::new();
    let built = build_vector_indexes(&owner_url, |sentence| sentences.push(sentence.to_owned())).await;
    assert_eq!(built.expect("the owner may"), ["message_embeddings_hnsw_24"]);
    assert!(sentences[0].contains("unfinished") && sentences.len() == 3, "{sentences:?}");
    assert_eq!(build_vector_indexes(&owner_url, |_| {}).await.expect("the owner may"), Vec::<String>::new());
    for prepared in [true, false] {
        let store = open(&engine.database, |options| options.prepared_statements = prepared).await;
        let (mut hits, mut wanted) = (0, 0);
        for (_, near) in vectors.iter().step_by(97) {
            let asked = model::query_of(near.clone(), Metric::Cosine);
            let all = store.search_vectors(&engine.scope, &asked, &SearchFilter::default(), 10).await.expect("it can");
            assert_eq!(all.len(), 10);
            let exact: HashSet<_> = exact(near, 10).into_iter().collect();
            hits += all.iter().filter(|found| exact.contains(&found.message_id)).count();
            wanted += 10;
            let rare = SearchFilter { role: Some("rare".to_owned()), ..SearchFilter::default() };
            let few = store.search_vectors(&engine.scope, &asked, &rare, 10).await.expect("it can");
            assert_eq!(few.len(), 10, "with a selective filter");
        }
        assert!(hits * 100 >= wanted * 95, "recall is {hits} of {wanted}");
    }
    // A filter that many fit costs no connection.
    let (ada, of_users) = (Scope::user(engine.scope.project_id, "ada"), Some("user".to_owned()));
    let filter = SearchFilter { role: of_users, ..SearchFilter::default() };
    let asked = model::query_of(vectors[0].1.clone(), Metric::Cosine);
    drop(engine.store);
    await_connections(&outsider, 0).await;
    let store = open(&engine.database, |options| options.connections_max = 1).await;
    // The eraser has looked for work, and then nothing else is open: neither comes nor goes one by itself any more.
    let has_looked = format!("{CONNECTIONS} and state = 'idle' and query = 'commit'");
    model::within(async || count(&outsider, &has_looked).await == 1).await;
    await_connections(&outsider, 1).await;
    let connections = CONNECTIONS.replace("count(*)", "min(pid)::bigint * 10000000 + max(pid)");
    let mut before = 0;
    for n in 0..4 {
        let found = store.search_vectors(&ada, &asked, &filter, 100).await.expect("it can");
        assert_eq!(found.len(), 100);
        before = if n == 0 { count(&outsider, &connections).await } else { before };
    }
    assert_eq!(count(&outsider, &connections).await, before);
    let used = "select idx_scan from pg_stat_user_indexes where indexrelname = 'message_embeddings_hnsw_24'";
    drop(store);
    model::within(async || count(&outsider, used).await > 0).await;
}
