//! The client of the embedding source: what it asks, what it takes, and what it makes of a source that misbehaves.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_server::config::EmbeddingsUrl;
use chatstore_server::embedder::{BreakerState, Embedder, EmbedderError, EmbedderSettings, Pace};
use serde_json::json;

use crate::provider::{Answer, DIMENSIONS, PROVIDER_KEY, Provider, embedder, vector_of};
use crate::worker::eventually;

const TEXT: &str = "what the canary asked";
/// How long [`patient`] rests at first: longer than a test takes, and well below the longest rest.
const REST: Duration = Duration::from_secs(30);

fn ctx() -> Ctx {
    Ctx::fixed(Timestamp::parse("2026-01-15T12:00:00Z").unwrap(), 1_000, 7)
}

/// A client that does not come back by itself while a test runs.
fn patient(provider: &Provider) -> Arc<Embedder> {
    let pace = Pace { first: REST, ..Pace::default() };
    Arc::new(Embedder::with_pace(provider.settings("m"), ctx(), pace).unwrap())
}

/// The fault of a query that is answered so.
async fn fault(provider: &Provider, answer: Answer) -> EmbedderError {
    provider.always(answer);
    let embedder = embedder(provider.settings("m"), &ctx());
    let error = embedder.embed_query("m", TEXT).await.unwrap_err();
    let shown = format!("{error} {error:?} {:?}", embedder.status());
    assert!(!shown.contains("hush") && !shown.contains("canary"), "{shown}");
    error
}

#[tokio::test]
async fn a_query_is_asked_as_openai_defined_it() {
    let provider = Provider::start().await;
    let client = embedder(provider.settings("m"), &ctx());
    let vector = client.embed_query("m", TEXT).await.unwrap();
    assert_eq!(vector.numbers(), vector_of(TEXT, DIMENSIONS));
    let asked = provider.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/v1/embeddings");
    assert_eq!(asked[0].authorization, Some(format!("Bearer {PROVIDER_KEY}")));
    assert_eq!(asked[0].body, json!({"model": "m", "input": [TEXT], "encoding_format": "float"}));
    assert_eq!((client.model(), client.status().state), ("m", BreakerState::Closed));

    provider.always(Answer::Dimensions(8));
    let short = EmbedderSettings { dimensions: Some(8), api_key: None, ..provider.settings("m") };
    let client = embedder(short, &ctx());
    assert_eq!(client.model(), "m@8");
    assert_eq!(client.embed_query("m@8", TEXT).await.unwrap().dimensions(), 8);
    let asked = provider.asked().pop().unwrap();
    assert_eq!((asked.authorization, &asked.body["dimensions"]), (None, &json!(8)));
}

#[tokio::test]
async fn an_older_model_is_asked_for_by_its_own_name() {
    let provider = Provider::start().await;
    provider.answers(|asked| match asked.model() {
        "old" => Answer::Dimensions(8),
        "gone" => Answer::Status(404, None),
        _ => Answer::Vectors,
    });
    let client = embedder(provider.settings("new"), &ctx());
    assert_eq!(client.embed_query("new", TEXT).await.unwrap().dimensions(), DIMENSIONS);
    assert_eq!(client.embed_query("old@8", TEXT).await.unwrap().dimensions(), 8);
    assert_eq!(provider.asked().pop().unwrap().body["dimensions"], 8);
    // That the source no longer has it says nothing of the new one.
    let error = client.embed_query("gone", TEXT).await.unwrap_err();
    assert!(matches!(error, EmbedderError::Unauthorised { .. }), "{error}");
    client.embed_query("new", TEXT).await.unwrap();
}

#[tokio::test]
async fn what_is_no_answer_is_refused() {
    let provider = Provider::start().await;
    let long = format!(r#"{{"data":[{{"index":0,"embedding":[{}1]}}]}}"#, "1,".repeat(4_000));
    for answer in [
        Answer::Count(1),
        Answer::Count(-1),
        Answer::Number("NaN"),
        Answer::Number("1e39"),
        Answer::Number("\"1\""),
        Answer::Number("null"),
        Answer::Body(r#"{"data":[{"index":0,"embedding":[0,0]}]}"#.to_owned()),
        Answer::Body(r#"{"data":[{"index":1,"embedding":[1,0]}]}"#.to_owned()),
        Answer::Body(r#"{"data":[{"index":0,"embedding":"AAAA"}]}"#.to_owned()),
        Answer::Body(long),
        Answer::Body("<html>canary</html>".to_owned()),
        Answer::Body(String::new()),
    ] {
        let error = fault(&provider, answer.clone()).await;
        assert!(matches!(error, EmbedderError::Garbage { .. }), "{answer:?}: {error}");
    }
    for (status, retry_after) in [(500, None), (502, None), (503, None)] {
        let error = fault(&provider, Answer::Status(status, retry_after)).await;
        assert!(matches!(error, EmbedderError::Down { .. }), "{status}: {error}");
    }
    let error = fault(&provider, Answer::Status(422, None)).await;
    assert_eq!(error.to_string(), "the embedding source refuses the text (status 422, no_luck)");
    let error = fault(&provider, Answer::Status(429, Some("30"))).await;
    assert!(matches!(error, EmbedderError::Busy { retry_after: Some(pause), .. } if pause.as_secs() == 30));
    let error = fault(&provider, Answer::Status(401, None)).await;
    assert!(error.to_string().contains("check EMBEDDINGS_URL"), "{error}");
}

#[tokio::test]
async fn a_vector_of_another_length_than_the_first_is_refused() {
    let provider = Provider::start().await;
    let client = embedder(provider.settings("m"), &ctx());
    client.embed_query("m", TEXT).await.unwrap();
    provider.always(Answer::Dimensions(8));
    let error = client.embed_query("m", TEXT).await.unwrap_err();
    assert!(matches!(error, EmbedderError::Dimensions { found: 8, expected: DIMENSIONS, .. }), "{error}");
    let fixed = EmbedderSettings { expected_dimensions: Some(1536), ..provider.settings("m") };
    let error = embedder(fixed, &ctx()).embed_query("m", TEXT).await.unwrap_err();
    assert!(error.to_string().contains("PGVECTOR_DIMENSION"), "{error}");
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let (provider, target) = (Provider::start().await, Provider::start().await);
    for to in [format!("{}/embeddings", target.url), "/v1/embeddings".to_owned()] {
        let error = fault(&provider, Answer::Redirect(to)).await;
        assert!(error.to_string().contains("redirect"), "{error}");
    }
    assert_eq!((target.asked().len(), provider.asked().len()), (0, 2));
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    let provider = Provider::start().await;
    let error = fault(&provider, Answer::Endless).await;
    assert!(matches!(&error, EmbedderError::Garbage { reason } if reason.contains("longer than")), "{error}");
    assert!(provider.sent() < 16 << 20, "{}", provider.sent());
}

#[tokio::test]
async fn a_source_that_hangs_costs_three_queries_two_seconds() {
    let provider = Provider::start().await;
    provider.always(Answer::Hang);
    let client = patient(&provider);
    let began = Instant::now();
    let three = [TEXT; 3].map(|text| client.embed_query("m", text));
    for result in futures_util::future::join_all(three).await {
        assert!(matches!(result, Err(EmbedderError::Down { .. })), "{result:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let began = Instant::now();
    let error = client.embed_query("m", TEXT).await.unwrap_err();
    assert!(matches!(error, EmbedderError::Resting { .. }), "{error}");
    // To ask would have taken two seconds.
    assert!(began.elapsed() < Duration::from_secs(2) && provider.asked().len() == 3);
}

#[tokio::test]
async fn a_source_that_is_slow_at_first_is_ready_for_the_next_query() {
    let provider = Provider::start().await;
    provider.always(Answer::Slow(Duration::from_millis(2_600)));
    let client = embedder(provider.settings("m"), &ctx());
    let three = [TEXT; 3].map(|text| client.embed_query("m", text));
    for result in futures_util::future::join_all(three).await {
        assert!(matches!(result, Err(EmbedderError::Down { .. })), "{result:?}");
    }
    assert_ne!(client.status().state, BreakerState::Closed);
    // The requests went on, and their answers tell that the source works.
    eventually("it is known to work", async || (client.status().state == BreakerState::Closed).then_some(())).await;
    assert_eq!(client.status().last_error, None);
    provider.always(Answer::Vectors);
    client.embed_query("m", TEXT).await.unwrap();
}

#[tokio::test]
async fn queries_that_fail_together_are_one_fault_that_is_shown() {
    let provider = Provider::start().await;
    provider.always(Answer::Status(500, None));
    let client = patient(&provider);
    let many = [TEXT; 25].map(|text| client.embed_query("m", text));
    for result in futures_util::future::join_all(many).await {
        result.unwrap_err();
    }
    let error = client.embed_query("m", TEXT).await.unwrap_err();
    assert!(error.retry_after().is_some_and(|rest| rest <= REST), "{error:?}");
    let status = client.status();
    assert!(status.state == BreakerState::Open && status.retry_at.is_some(), "{status:?}");
    assert!(status.last_error.unwrap().contains("status 500"));
    provider.always(Answer::Vectors);
    client.reset();
    client.embed_query("m", TEXT).await.unwrap();
    assert_eq!(client.status().state, BreakerState::Closed);
}

#[tokio::test]
async fn a_query_has_the_prefix_that_the_model_wants() {
    let provider = Provider::start().await;
    let settings = EmbedderSettings { query_prefix: "search_query: ".to_owned(), ..provider.settings("m") };
    let client = embedder(settings, &ctx());
    client.embed_query("m", TEXT).await.unwrap();
    client.embed_query("old", TEXT).await.unwrap();
    let asked: Vec<_> = provider.asked().iter().map(|asked| asked.body["input"].clone()).collect();
    assert_eq!(asked, [json!([format!("search_query: {TEXT}")]), json!([TEXT])]);
}

#[tokio::test]
async fn a_source_that_cannot_be_reached_is_named_without_its_secrets() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let provider = Provider::start().await;
    for url in [format!("http://127.0.0.1:{port}/v1"), "http://nowhere.invalid/v1".to_owned()] {
        let settings = EmbedderSettings { url: EmbeddingsUrl::parse(&url).unwrap(), ..provider.settings("m") };
        let error = embedder(settings, &ctx()).embed_query("m", TEXT).await.unwrap_err();
        assert!(error.to_string().contains("cannot be reached ("), "{error}");
    }
    // TLS is spoken, and to nobody who cannot show a certificate.
    let url = EmbeddingsUrl::parse(&provider.url.replace("http:", "https:")).unwrap();
    let error =
        embedder(EmbedderSettings { url, ..provider.settings("m") }, &ctx()).embed_query("m", TEXT).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached ("), "{error}");
    assert!(provider.asked().is_empty());
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn neither_key_nor_text_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let provider = Provider::start().await;
    let answers = [
        Answer::Vectors,
        Answer::Status(401, None),
        Answer::Status(429, Some("1")),
        Answer::Status(500, None),
        Answer::Body("hush canary".to_owned()),
        Answer::Redirect(format!("http://{PROVIDER_KEY}@127.0.0.1:1/")),
    ];
    for answer in answers {
        provider.always(answer);
        let client = embedder(provider.settings("m"), &ctx());
        for _ in 0..3 {
            let _ = client.embed_query("m", TEXT).await;
        }
    }
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("the embedding source refuses us (status 401"), "{logged}");
    assert!(!logged.contains("hush") && !logged.contains("canary"), "{logged}");
}
