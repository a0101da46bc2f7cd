//! The worker: each message gets its vectors once, or visibly does not.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chatstore_core::clock::Ctx;
use chatstore_core::embeddings::{EmbeddingBacklog, Metric, Vector, VectorQuery};
use chatstore_core::ids::{MessageId, ProjectId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{MessagePatch, NewMessage};
use chatstore_core::search::{Derived, SearchFilter};
use chatstore_core::sessions::NewSession;
use chatstore_core::store::{ExpectedVersion, Scope};
use chatstore_server::app::App;
use chatstore_server::embedder::{BreakerState, Embedder, EmbedderSettings, Pace};
use chatstore_server::worker::{self, WorkerPace};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::{STEP_US, TestApp, access, api_tests, limits};
use crate::provider::{Answer, PROBE, Provider, embedder, vector_of};

api_tests! {
    an_appended_message_is_found_by_its_meaning
    a_long_text_is_embedded_to_its_end
    a_text_has_the_prefix_that_the_model_wants
    an_edit_is_embedded_anew
    what_is_deleted_meanwhile_gets_no_vector
    a_text_that_is_refused_is_put_aside_alone
    a_text_that_breaks_the_source_is_put_aside_in_the_end
    a_source_that_fails_costs_no_attempts
    a_source_that_asks_for_a_pause_gets_it
    pauses_grow_although_a_word_is_embedded
    what_the_operator_has_mended_is_tried_at_once
    what_is_too_long_for_the_model_is_cut_smaller
    what_was_there_before_the_source_is_known_to_be_missing
    vectors_of_another_length_are_never_stored
    what_a_killed_worker_held_is_done_by_another
    what_takes_the_worker_down_is_put_aside
    only_what_takes_the_worker_down_runs_out_of_tries
    what_takes_longer_than_a_lease_stays_with_its_worker
    a_worker_that_stops_gives_back_what_it_holds
    several_workers_ask_for_each_text_once
    an_old_model_serves_until_all_is_embedded_anew
    a_worker_of_the_old_model_leaves_the_new_ones_work
    words_are_indexed_anew_without_a_source
}

const PATIENCE: Duration = Duration::from_secs(20);
/// How soon a worker must stop: well before a source that hangs is given up.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Waits until a condition holds.
pub(crate) async fn eventually<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A worker that looks often.
fn pace() -> WorkerPace {
    let pause = Duration::from_millis(10);
    WorkerPace { idle_first: pause, idle_longest: pause, fault: pause, rebuild_idle: pause, ..WorkerPace::default() }
}

/// A process that works: its application, its source, its worker.
struct Process {
    app: App,
    embedder: Arc<Embedder>,
    worker: JoinHandle<()>,
}

impl Process {
    async fn start(test: &TestApp, settings: EmbedderSettings) -> Self {
        Self::start_at(test, settings, pace()).await
    }

    async fn start_at(test: &TestApp, settings: EmbedderSettings, pace: WorkerPace) -> Self {
        Self::start_with(test, embedder(settings, &test.ctx), pace).await
    }

    async fn start_with(test: &TestApp, embedder: Arc<Embedder>, pace: WorkerPace) -> Self {
        let app = App::new(test.store.clone(), test.ctx.clone(), access(), limits(), CancellationToken::new());
        let app = app.await.unwrap().with_embeddings(Some(embedder.clone()), None);
        let worker = worker::start(app.clone(), pace);
        eventually("it has looked at what was there before", async || {
            let source = test.store.get_embedding_source().await.unwrap()?;
            let is_reindexing = test.store.is_reindexing(Derived::Embeddings).await.unwrap();
            (source.model == embedder.model() && !is_reindexing).then_some(())
        })
        .await;
        Self { app, embedder, worker }
    }

    /// Ends as a process does that is told to.
    async fn stop(mut self) {
        self.app.shutdown.cancel();
        tokio::time::timeout(STOP_LIMIT, &mut self.worker).await.expect("it stops soon").unwrap();
    }

    /// Ends as a process does that is killed.
    async fn kill(mut self) {
        self.worker.abort();
        assert!((&mut self.worker).await.unwrap_err().is_cancelled());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.app.shutdown.cancel();
    }
}

fn scope() -> Scope {
    Scope::project(ProjectId::DEFAULT)
}

impl TestApp {
    async fn session(&self) -> SessionId {
        let created_at = self.ctx.now();
        let bucket = scope().bucket(Some("alice"), None, self.ctx.random());
        let session = NewSession {
            session_id: self.ctx.new_session_id(created_at, bucket),
            user_id: Some("alice".to_owned()),
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at,
        };
        self.store.create_session(&scope(), session, Vec::new(), None).await.unwrap().value.session_id
    }

    /// Appends messages to be embedded.
    async fn append(&self, session_id: SessionId, texts: &[&str]) -> Vec<MessageId> {
        let new = texts.iter().map(|text| {
            let message_id = self.ctx.new_message_id(self.ctx.now(), session_id);
            NewMessage { embed: true, ..NewMessage::text(message_id, "user", *text) }
        });
        let stored =
            self.store.append_messages(&scope(), session_id, new.collect(), self.ctx.now(), None).await.unwrap().value;
        stored.iter().map(|message| message.message_id).collect()
    }

    async fn backlog(&self) -> EmbeddingBacklog {
        self.store.get_embedding_backlog(&scope()).await.unwrap()
    }

    async fn all_done(&self) -> EmbeddingBacklog {
        eventually("nothing waits", async || (self.backlog().await.pending == 0).then_some(())).await;
        self.backlog().await
    }

    /// Models and numbers of the vectors that messages have.
    async fn vectors(&self, messages: &[MessageId]) -> Vec<(MessageId, String, usize)> {
        let found = self.store.list_embeddings(&scope(), messages).await.unwrap();
        found.into_iter().map(|found| (found.message_id, found.model, found.vectors.len())).collect()
    }

    /// What is nearest to a text.
    async fn nearest(&self, model: &str, text: &str, dimensions: usize) -> Vec<MessageId> {
        let vector = Vector::new(vector_of(text, dimensions)).unwrap();
        let query = VectorQuery { model: model.to_owned(), vector, metric: Metric::Cosine };
        let found = self.store.search_vectors(&scope(), &query, &SearchFilter::default(), 3).await.unwrap();
        found.into_iter().map(|found| found.message_id).collect()
    }

    /// Lets time pass.
    fn pass(&self, length: Duration) {
        let readings = i64::try_from(length.as_micros()).unwrap() / STEP_US;
        for _ in 0..readings {
            self.ctx.now();
        }
    }
}

async fn an_appended_message_is_found_by_its_meaning(app: TestApp) {
    let provider = Provider::start().await;
    let process = Process::start(&app, provider.settings("m")).await;
    let session = app.session().await;
    let texts = ["the cat sat", "a dog ran far", "rain in spain", "", "numbers and letters", "the end of it"];
    let messages = app.append(session, &texts).await;
    process.app.embedding_queued();
    let backlog = app.all_done().await;
    assert_eq!((backlog.parked, backlog.oldest_queued_at), (0, None));
    for (text, message) in texts.iter().zip(&messages).filter(|(text, _)| !text.is_empty()) {
        assert_eq!(app.nearest("m", text, 64).await[0], *message, "{text}");
        assert_eq!(provider.times(text), 1, "{text}");
    }
    assert_eq!(app.vectors(&messages).await.len(), 5);
    assert!(provider.asked().iter().all(|asked| asked.texts().len() <= 4));
    let vector = process.embedder.embed_query("m", "the cat sat").await.unwrap();
    assert_eq!(vector.numbers(), vector_of("the cat sat", 64));
    process.stop().await;
}

async fn a_long_text_is_embedded_to_its_end(app: TestApp) {
    let provider = Provider::start().await;
    let _process = Process::start(&app, provider.settings("m")).await;
    let session = app.session().await;
    let long = format!("{}zebra xylophone quagga", "filler words that say little. ".repeat(400));
    let messages = app.append(session, &["something else", &long]).await;
    app.all_done().await;
    assert_eq!(app.nearest("m", "zebra xylophone quagga", 64).await[0], messages[1]);
    let (_, _, parts) = app.vectors(&messages).await.into_iter().find(|(id, ..)| *id == messages[1]).unwrap();
    assert!((12..20).contains(&parts), "{parts}");
    for asked in provider.asked() {
        assert!(asked.texts().len() <= 4 && asked.texts().iter().all(|text| text.len() <= 1_000));
    }
}

async fn a_text_has_the_prefix_that_the_model_wants(app: TestApp) {
    let provider = Provider::start().await;
    let settings = EmbedderSettings { document_prefix: "search_document: ".to_owned(), ..provider.settings("m") };
    let _process = Process::start(&app, settings).await;
    let session = app.session().await;
    app.append(session, &["one", "two"]).await;
    app.all_done().await;
    for text in ["one", "two"] {
        assert_eq!(provider.times(&format!("search_document: {text}")), 1);
    }
}

async fn an_edit_is_embedded_anew(app: TestApp) {
    let provider = Provider::start().await;
    let _process = Process::start(&app, provider.settings("m")).await;
    let session = app.session().await;
    let message = app.append(session, &["apples and pears"]).await[0];
    let other = app.append(session, &["a bridge over water"]).await[0];
    app.all_done().await;
    let patch = MessagePatch { content: Some("bridge water".to_owned()), embed: true, ..MessagePatch::default() };
    app.store.update_message(&scope(), message, patch, ExpectedVersion::Any, app.ctx.now()).await.unwrap();
    app.all_done().await;
    assert_eq!(app.nearest("m", "bridge water", 64).await[..2], [message, other]);
    assert_eq!(app.vectors(&[message]).await, [(message, "m".to_owned(), 1)]);
}

async fn what_is_deleted_meanwhile_gets_no_vector(app: TestApp) {
    let provider = Provider::start().await;
    provider.always(Answer::Hang);
    let settings = EmbedderSettings { timeout: Duration::from_millis(300), ..provider.settings("m") };
    let _process = Process::start(&app, settings).await;
    let session = app.session().await;
    let messages = app.append(session, &["short lived", "long lived"]).await;
    eventually("it is asked for", async || (provider.times("short lived") > 0).then_some(())).await;
    app.store.delete_message(&scope(), messages[0], ExpectedVersion::Any, app.ctx.now()).await.unwrap();
    let patch = MessagePatch { content: Some("edited".to_owned()), embed: true, ..MessagePatch::default() };
    app.store.update_message(&scope(), messages[1], patch, ExpectedVersion::Any, app.ctx.now()).await.unwrap();
    provider.always(Answer::Vectors);
    app.all_done().await;
    assert_eq!(app.vectors(&messages).await, [(messages[1], "m".to_owned(), 1)]);
    assert_eq!(app.nearest("m", "edited", 64).await, [messages[1]]);
}

async fn a_text_that_is_refused_is_put_aside_alone(app: TestApp) {
    let provider = Provider::start().await;
    provider.answers(|asked| match asked.texts().contains(&"poison") {
        true => Answer::Status(400, None),
        false => Answer::Vectors,
    });
    let _process = Process::start(&app, provider.settings("m")).await;
    let session = app.session().await;
    let messages = app.append(session, &["one", "two", "poison", "three", "four", "five"]).await;
    let backlog = app.all_done().await;
    let reason = "the embedding source refuses the text (status 400, no_luck)".to_owned();
    assert_eq!((backlog.parked, backlog.parked_examples), (1, vec![(messages[2], reason)]));
    assert_eq!(app.vectors(&messages).await.len(), 5);
    assert!(provider.times("poison") <= 3, "a batch of four is halved twice");
    // Somebody mends it and asks for another try.
    provider.always(Answer::Vectors);
    assert_eq!(app.store.retry_parked_embeddings(&scope(), app.ctx.now()).await.unwrap(), 1);
    assert_eq!(app.all_done().await.parked, 0);
    assert_eq!(app.vectors(&messages).await.len(), 6);
}

async fn a_text_that_breaks_the_source_is_put_aside_in_the_end(app: TestApp) {
    let provider = Provider::start().await;
    provider.answers(|asked| match asked.texts().contains(&"bomb") {
        true => Answer::Status(500, None),
        false => Answer::Vectors,
    });
    let _process = Process::start(&app, provider.settings("m")).await;
    let session = app.session().await;
    let messages = app.append(session, &["one", "bomb", "two"]).await;
    eventually("its neighbours are done", async || (app.vectors(&messages).await.len() == 2).then_some(())).await;
    assert_eq!(app.backlog().await.parked, 0);
    let backlog = eventually("it is put aside", async || {
        // Its pauses grow to 80 s.
        app.pass(Duration::from_secs(10));
        Some(app.backlog().await).filter(|backlog| backlog.parked == 1)
    })
    .await;
    assert!(backlog.parked_examples[0].1.contains("fails (status 500"), "{backlog:?}");
    // Alone five times, and before that in company.
    let asked = provider.asked();
    assert_eq!(asked.iter().filter(|asked| asked.texts() == ["bomb"]).count(), 5);
}

async fn a_source_that_fails_costs_no_attempts(app: TestApp) {
    let provider = Provider::start().await;
    provider.always(Answer::Status(500, None));
    let process = Process::start(&app, provider.settings("m")).await;
    let session = app.session().await;
    let messages = app.append(session, &["one", "two", "three", "four", "five"]).await;
    eventually("it has failed often", async || (provider.asked().len() > 12).then_some(())).await;
    let backlog = app.backlog().await;
    assert_eq!((backlog.pending, backlog.parked), (5, 0));
    assert!(backlog.oldest_queued_at.is_some());
    let status = process.embedder.status();
    assert!(status.state != BreakerState::Closed && status.last_error.unwrap().contains("status 500"));
    for answer in [Answer::Status(401, None), Answer::Status(422, None), Answer::Body("none".to_owned())] {
        let before = provider.asked().len();
        provider.always(answer);
        eventually("it is asked again", async || (provider.asked().len() > before + 6).then_some(())).await;
    }
    provider.always(Answer::Vectors);
    assert_eq!(app.all_done().await.parked, 0);
    assert_eq!(app.vectors(&messages).await.len(), 5);
    assert_eq!(process.embedder.status().state, BreakerState::Closed);
}

async fn a_source_that_asks_for_a_pause_gets_it(app: TestApp) {
    let provider = Provider::start().await;
    let (told, mut times) = tokio::sync::mpsc::unbounded_channel();
    provider.answers(move |asked| {
        if asked.texts() == ["a query"] {
            return Answer::Vectors;
        }
        told.send(Instant::now()).unwrap();
        Answer::Status(429, Some("1"))
    });
    let process = Process::start(&app, provider.settings("m")).await;
    let first = times.recv().await.unwrap();
    eventually("it rests", async || (process.embedder.status().state == BreakerState::Open).then_some(())).await;
    let session = app.session().await;
    let messages = app.append(session, &["one", "two"]).await;
    // A search may ask: it was the texts that were too many.
    process.embedder.embed_query("m", "a query").await.unwrap();
    assert_eq!(process.embedder.status().state, BreakerState::Open);
    let second = times.recv().await.unwrap();
    assert!(second - first >= Duration::from_millis(990), "{:?}", second - first);
    provider.always(Answer::Vectors);
    app.all_done().await;
    assert_eq!(app.vectors(&messages).await.len(), 2);
}

async fn pauses_grow_although_a_word_is_embedded(app: TestApp) {
    let provider = Provider::start().await;
    provider.answers(|asked| match asked.texts() == [PROBE] {
        true => Answer::Vectors,
        false => Answer::Status(429, None),
    });
    let first = Duration::from_millis(20);
    let embedder = Embedder::with_pace(provider.settings("m"), app.ctx.clone(), Pace { first, ..Pace::default() });
    let process = Process::start_with(&app, Arc::new(embedder.unwrap()), pace()).await;
    let session = app.session().await;
    app.append(session, &["one"]).await;
    eventually("it is asked for", async || (provider.times("one") > 0).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // 10 to 20 ms, then twice as long each time.
    assert!((3..=9).contains(&provider.times("one")), "{}", provider.times("one"));
    provider.always(Answer::Vectors);
    process.embedder.reset();
    app.all_done().await;
}

async fn what_the_operator_has_mended_is_tried_at_once(app: TestApp) {
    let provider = Provider::start().await;
    provider.always(Answer::Status(404, None));
    let embedder = Arc::new(Embedder::new(provider.settings("m"), app.ctx.clone()).unwrap());
    let process = Process::start_with(&app, embedder, pace()).await;
    // It is known before the first message comes.
    let error = eventually("it is asked", async || process.embedder.status().last_error).await;
    assert!(error.contains("check EMBEDDINGS_URL") && provider.texts().is_empty(), "{error}");
    let session = app.session().await;
    let messages = app.append(session, &["one"]).await;
    let error = process.embedder.embed_query("m", "a query").await.unwrap_err();
    assert!(error.retry_after().unwrap() > Duration::from_secs(100), "{error:?}");
    provider.always(Answer::Vectors);
    process.embedder.reset();
    process.embedder.embed_query("m", "a query").await.unwrap();
    app.all_done().await;
    assert_eq!(app.vectors(&messages).await.len(), 1);
}

async fn what_is_too_long_for_the_model_is_cut_smaller(app: TestApp) {
    let provider = Provider::start().await;
    provider.answers(|asked| match asked.texts().iter().any(|text| text.len() > 300 || text.contains("poison")) {
        true => Answer::Status(400, None),
        false => Answer::Vectors,
    });
    let _process = Process::start(&app, provider.settings("m")).await;
    let session = app.session().await;
    let filler = "filler words that say little. ".repeat(30);
    let long = format!("{filler}zebra xylophone quagga. {filler}");
    let messages = app.append(session, &["short", &long, &format!("{filler}poison. {filler}")]).await;
    let backlog = app.all_done().await;
    let reason = "the embedding source refuses the text (status 400, no_luck)".to_owned();
    assert_eq!(backlog.parked_examples, [(messages[2], reason)]);
    assert_eq!(app.nearest("m", "zebra xylophone quagga", 64).await[0], messages[1]);
    let found = app.vectors(&messages).await;
    assert!(found.len() == 2 && found.iter().any(|(id, _, parts)| *id == messages[1] && (7..20).contains(parts)));
    assert!(provider.texts().len() < 60, "{}", provider.texts().len());
}

async fn what_was_there_before_the_source_is_known_to_be_missing(app: TestApp) {
    let provider = Provider::start().await;
    let session = app.session().await;
    app.append(session, &["one", "two"]).await;
    let hold = Arc::new(AtomicBool::new(true));
    let holds = hold.clone();
    provider.answers(move |_| if holds.load(Ordering::SeqCst) { Answer::Status(500, None) } else { Answer::Vectors });
    let process = Process::start(&app, provider.settings("m")).await;
    assert!(process.embedder.is_catching_up());
    hold.store(false, Ordering::SeqCst);
    app.all_done().await;
    eventually("nothing is missing", async || (!process.embedder.is_catching_up()).then_some(())).await;
}

async fn vectors_of_another_length_are_never_stored(app: TestApp) {
    let provider = Provider::start().await;
    let settings = EmbedderSettings { expected_dimensions: Some(8), ..provider.settings("m") };
    let process = Process::start(&app, settings).await;
    let session = app.session().await;
    let messages = app.append(session, &["one", "two"]).await;
    let error = eventually("it is noticed", async || process.embedder.status().last_error).await;
    assert!(error.contains("64 numbers where 8 are expected") && error.contains("PGVECTOR_DIMENSION"), "{error}");
    assert!(app.vectors(&messages).await.is_empty());
    assert_eq!(app.backlog().await.pending, 2);
    provider.always(Answer::Dimensions(8));
    app.all_done().await;
    assert_eq!(app.nearest("m", "one", 8).await[0], messages[0]);
}

async fn what_a_killed_worker_held_is_done_by_another(app: TestApp) {
    let provider = Provider::start().await;
    provider.always(Answer::Hang);
    let process = Process::start(&app, provider.settings("m")).await;
    let session = app.session().await;
    let messages = app.append(session, &["one", "two", "three"]).await;
    eventually("it is asked for", async || (provider.times("one") > 0).then_some(())).await;
    process.kill().await;
    provider.always(Answer::Vectors);
    let _next = Process::start(&app, provider.settings("m")).await;
    let later = app.append(session, &["after it"]).await;
    eventually("new ones are not held up", async || (app.vectors(&later).await.len() == 1).then_some(())).await;
    assert!(app.vectors(&messages).await.is_empty(), "the lease is not over");
    app.pass(Duration::from_secs(71));
    app.all_done().await;
    assert_eq!(app.vectors(&messages).await.len(), 3);
    assert_eq!(["one", "two", "three"].map(|text| provider.times(text)), [2, 2, 2]);
}

async fn what_takes_the_worker_down_is_put_aside(app: TestApp) {
    let provider = Provider::start().await;
    app.store.set_embedding_source("m").await.unwrap();
    while app.store.reindex_some(Derived::Embeddings).await.unwrap().more {}
    let session = app.session().await;
    let message = app.append(session, &["deadly"]).await[0];
    for attempts in 1..=5 {
        let now = app.ctx.now();
        let lent = app.store.claim_embedding_jobs(now, now.plus_micros(1_000_000), 10).await.unwrap();
        assert_eq!(lent.iter().map(|job| job.attempts).collect::<Vec<_>>(), [attempts]);
        app.pass(Duration::from_secs(2));
    }
    let _process = Process::start(&app, provider.settings("m")).await;
    let backlog = app.all_done().await;
    assert_eq!(backlog.parked_examples[0].0, message);
    assert!(backlog.parked_examples[0].1.contains("tried 5 times"), "{backlog:?}");
    assert_eq!(provider.times("deadly"), 0);
}

async fn only_what_takes_the_worker_down_runs_out_of_tries(app: TestApp) {
    let provider = Provider::start().await;
    provider.answers(|asked| if asked.texts().contains(&"deadly") { Answer::Hang } else { Answer::Vectors });
    let session = app.session().await;
    let settings = EmbedderSettings { concurrency: 2, ..provider.settings("m") };
    app.store.set_embedding_source("m").await.unwrap();
    let messages = app.append(session, &["one", "two", "deadly", "three", "four", "five", "six"]).await;
    let mut deaths = 0;
    let backlog = loop {
        let before = provider.times("deadly");
        let process = Process::start(&app, settings.clone()).await;
        let is_asked = eventually("it is asked for or put aside", async || {
            let is_asked = provider.times("deadly") > before;
            (is_asked || app.backlog().await.parked > 0).then_some(is_asked)
        });
        if !is_asked.await {
            break app.all_done().await;
        }
        process.kill().await;
        deaths += 1;
        app.pass(Duration::from_secs(71));
    };
    assert_eq!((backlog.parked, backlog.parked_examples[0].0, deaths), (1, messages[2], 5));
    assert_eq!(app.vectors(&messages).await.len(), 6);
}

async fn what_takes_longer_than_a_lease_stays_with_its_worker(app: TestApp) {
    let provider = Provider::start().await;
    // All parts together take longer than a lease, which is that of two requests at least.
    provider.always(Answer::Slow(Duration::from_millis(250)));
    let settings = EmbedderSettings { batch_max: 1, timeout: Duration::from_secs(2), ..provider.settings("m") };
    let mut app = app;
    app.ctx = Ctx::system();
    let pace = WorkerPace { lease: Duration::from_secs(4), ..pace() };
    let _one = Process::start_at(&app, settings.clone(), pace).await;
    let _two = Process::start_at(&app, settings, pace).await;
    let session = app.session().await;
    let message = app.append(session, &[&"a few words that fill their place. ".repeat(600)]).await;
    app.all_done().await;
    let (asked, parts) = (provider.texts().len(), app.vectors(&message).await[0].2);
    assert!(parts > 20 && asked == parts, "{asked} requests for {parts} parts");
}

async fn a_worker_that_stops_gives_back_what_it_holds(app: TestApp) {
    let provider = Provider::start().await;
    provider.always(Answer::Hang);
    let session = app.session().await;
    let messages = app.append(session, &["one", "two"]).await;
    for _ in 0..7 {
        let before = provider.times("one");
        let process = Process::start(&app, provider.settings("m")).await;
        eventually("it is asked for", async || (provider.times("one") > before).then_some(())).await;
        process.stop().await;
    }
    provider.always(Answer::Vectors);
    let _process = Process::start(&app, provider.settings("m")).await;
    assert_eq!(app.all_done().await.parked, 0);
    assert_eq!(app.vectors(&messages).await.len(), 2);
}

async fn several_workers_ask_for_each_text_once(app: TestApp) {
    let provider = Provider::start().await;
    let settings = EmbedderSettings { concurrency: 2, ..provider.settings("m") };
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(Process::start(&app, settings.clone()).await);
    }
    let mut texts = Vec::new();
    for batch in 0..10 {
        let session = app.session().await;
        let own: Vec<String> = (0..20).map(|n| format!("text {n} of batch {batch}")).collect();
        app.append(session, &own.iter().map(String::as_str).collect::<Vec<_>>()).await;
        processes[batch % 3].app.embedding_queued();
        texts.extend(own);
    }
    assert_eq!(app.all_done().await.models[0].vectors, 200);
    let all = provider.texts();
    assert_eq!(all.len(), 200);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), texts.len());
    for process in processes {
        process.stop().await;
    }
}

async fn an_old_model_serves_until_all_is_embedded_anew(app: TestApp) {
    let provider = Provider::start().await;
    let session = app.session().await;
    let process = Process::start(&app, provider.settings("old")).await;
    let messages = app.append(session, &["one fish", "two fish", "red fish", "blue fish", "fifth"]).await;
    app.all_done().await;
    process.stop().await;

    // The new one is away at first: the old one is searched, and its queries are embedded by it.
    provider.answers(|asked| if asked.model() == "old" { Answer::Vectors } else { Answer::Status(500, None) });
    let process = Process::start(&app, provider.settings("new")).await;
    eventually("all are queued", async || (app.backlog().await.pending == 5).then_some(())).await;
    let source = app.store.get_embedding_source().await.unwrap().unwrap();
    assert_eq!((source.model.as_str(), source.serving.as_str()), ("new", "old"));
    assert_eq!(app.nearest("old", "red fish", 64).await[0], messages[2]);

    provider.answers(|asked| match asked.model() {
        "old" => Answer::Vectors,
        _ if asked.texts().contains(&"fifth") => Answer::Status(500, None),
        _ => Answer::Dimensions(8),
    });
    let serving = async || app.store.get_embedding_source().await.unwrap().unwrap().serving;
    eventually("four are embedded", async || {
        let new = app.vectors(&messages).await.into_iter().filter(|(_, model, _)| model == "new").count();
        (new == 4).then_some(())
    })
    .await;
    assert_eq!(serving().await, "old");
    assert_eq!(app.nearest("old", "red fish", 64).await[0], messages[2]);
    process.kill().await;

    provider.always(Answer::Dimensions(8));
    let _process = Process::start(&app, provider.settings("new")).await;
    app.pass(Duration::from_secs(71));
    app.all_done().await;
    eventually("the new one serves", async || (serving().await == "new").then_some(())).await;
    eventually("the old vectors are gone", async || {
        let found = app.vectors(&messages).await;
        found.iter().all(|(_, model, _)| model == "new").then_some(())
    })
    .await;
    assert_eq!(app.vectors(&messages).await.len(), 5);
    assert_eq!(app.nearest("new", "red fish", 8).await[0], messages[2]);
}

async fn a_worker_of_the_old_model_leaves_the_new_ones_work(app: TestApp) {
    let (old, new) = (Provider::start().await, Provider::start().await);
    let _old = Process::start(&app, old.settings("old")).await;
    let session = app.session().await;
    app.append(session, &["before"]).await;
    app.all_done().await;
    // A replica was updated; the one with the former settings still runs.
    let _new = Process::start(&app, new.settings("new")).await;
    let before = old.asked().len();
    let messages = app.append(session, &["after one", "after two"]).await;
    app.all_done().await;
    assert!(app.vectors(&messages).await.iter().all(|(_, model, _)| model == "new"));
    assert_eq!(old.asked().len(), before);
}

async fn words_are_indexed_anew_without_a_source(app: TestApp) {
    let application = App::new(app.store.clone(), app.ctx.clone(), access(), limits(), CancellationToken::new());
    let application = application.await.unwrap();
    let session = app.session().await;
    app.append(session, &["one", "two", "three"]).await;
    app.store.start_reindex(Derived::Text).await.unwrap();
    assert!(app.store.is_reindexing(Derived::Text).await.unwrap());
    let worker = worker::start(application.clone(), pace());
    eventually("it is done", async || (!app.store.is_reindexing(Derived::Text).await.unwrap()).then_some(())).await;
    application.shutdown.cancel();
    worker.await.unwrap();
}
