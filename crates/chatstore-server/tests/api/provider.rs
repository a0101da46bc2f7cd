//! An embedding source that does what a test says, and remembers what it was asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use chatstore_core::clock::Ctx;
use chatstore_server::config::{EmbeddingsUrl, Secret};
use chatstore_server::embedder::{Embedder, EmbedderSettings, Pace};
use chatstore_server::listener::{self, ListenAddr, Listener, ListenerLimits};
use futures_util::stream;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The key that the source is presented.
pub(crate) const PROVIDER_KEY: &str = "sk-hush-hush-hush";
/// What it is asked for to find out whether it works.
pub(crate) const PROBE: &str = "hello";
/// Numbers of its vectors.
pub(crate) const DIMENSIONS: usize = 64;

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

impl Asked {
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.body["input"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
    }

    pub(crate) fn model(&self) -> &str {
        self.body["model"].as_str().unwrap()
    }
}

/// What it says.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Vectors, last text first.
    Vectors,
    /// Vectors of this length.
    Dimensions(usize),
    /// Vectors as good as any, but for one number.
    Number(&'static str),
    /// One vector too few or too many.
    Count(isize),
    /// A status with `Retry-After`.
    Status(u16, Option<&'static str>),
    /// A redirect to this address.
    Redirect(String),
    /// This body.
    Body(String),
    /// A body without end.
    Endless,
    /// Vectors, but not at once.
    Slow(Duration),
    /// No answer.
    Hang,
}

type Script = Box<dyn FnMut(&Asked) -> Answer + Send>;

struct Inner {
    script: Mutex<Script>,
    asked: Mutex<Vec<Asked>>,
    sent: Mutex<u64>,
}

/// A source that listens on a port of its own until it is dropped.
pub(crate) struct Provider {
    pub(crate) url: String,
    inner: Arc<Inner>,
    _stop: DropGuard,
}

impl Provider {
    /// One that gives vectors.
    pub(crate) async fn start() -> Self {
        let script: Script = Box::new(|_| Answer::Vectors);
        let inner = Arc::new(Inner { script: Mutex::new(script), asked: Mutex::default(), sent: Mutex::default() });
        let listener = Listener::bind(&ListenAddr::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let url = format!("http://{}/v1", listener.tcp_addr().unwrap());
        let router = Router::new().fallback(any(answer)).with_state(inner.clone());
        let stop = CancellationToken::new();
        let limits = ListenerLimits { drain_timeout: Duration::ZERO, ..ListenerLimits::default() };
        tokio::spawn(listener::serve(listener, router, limits, stop.clone()));
        Self { url, inner, _stop: stop.drop_guard() }
    }

    /// From now on it answers so.
    pub(crate) fn answers(&self, script: impl FnMut(&Asked) -> Answer + Send + 'static) {
        *self.inner.script.lock().unwrap() = Box::new(script);
    }

    /// From now on it always answers so.
    pub(crate) fn always(&self, answer: Answer) {
        self.answers(move |_| answer.clone());
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.inner.asked.lock().unwrap().clone()
    }

    /// The texts that it was asked for so far, but those that try whether it works.
    pub(crate) fn texts(&self) -> Vec<String> {
        let asked = self.asked();
        let texts = asked.iter().flat_map(Asked::texts).filter(|text| *text != PROBE);
        texts.map(str::to_owned).collect()
    }

    /// How often it was asked for a text, in whatever company.
    pub(crate) fn times(&self, text: &str) -> usize {
        self.asked().iter().map(|asked| asked.texts().iter().filter(|asked| **asked == text).count()).sum()
    }

    /// Bytes of endless bodies that were taken from it.
    pub(crate) fn sent(&self) -> u64 {
        *self.inner.sent.lock().unwrap()
    }

    /// What a server is told of it.
    pub(crate) fn settings(&self, model: &str) -> EmbedderSettings {
        EmbedderSettings {
            url: EmbeddingsUrl::parse(&self.url).unwrap(),
            model: model.to_owned(),
            api_key: Some(Secret::new(PROVIDER_KEY)),
            dimensions: None,
            expected_dimensions: None,
            batch_max: 4,
            timeout: Duration::from_secs(10),
            concurrency: 1,
            input_bytes_max: 1_000,
            query_prefix: String::new(),
            document_prefix: String::new(),
        }
    }
}

/// A client that comes back soon.
pub(crate) fn embedder(settings: EmbedderSettings, ctx: &Ctx) -> Arc<Embedder> {
    let pause = Duration::from_millis(20);
    let pace = Pace { first: pause, longest: pause * 4, misconfigured: pause };
    Arc::new(Embedder::with_pace(settings, ctx.clone(), pace).unwrap())
}

/// A vector that is near to those of texts with the same words.
pub(crate) fn vector_of(text: &str, dimensions: usize) -> Vec<f32> {
    let mut numbers = vec![0.01; dimensions];
    for word in text.split_whitespace() {
        let hash = word.bytes().fold(17_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        numbers[hash % dimensions] += 1.0;
    }
    numbers
}

async fn answer(State(inner): State<Arc<Inner>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let asked = Asked { path: uri.path().to_owned(), authorization, body };
    let answer = (inner.script.lock().unwrap())(&asked);
    inner.asked.lock().unwrap().push(asked.clone());
    let texts = asked.texts();
    let item = |index: usize, embedding: Value| json!({"object": "embedding", "index": index, "embedding": embedding});
    let items = |dimensions: usize| -> Vec<Value> {
        let items = texts.iter().enumerate().map(|(index, text)| item(index, json!(vector_of(text, dimensions))));
        items.rev().collect()
    };
    let list = |items: Vec<Value>| json!({"object": "list", "data": items, "usage": {"total_tokens": 1}}).to_string();
    match answer {
        Answer::Vectors => list(items(DIMENSIONS)).into_response(),
        Answer::Dimensions(dimensions) => list(items(dimensions)).into_response(),
        Answer::Number(number) => {
            list(items(DIMENSIONS)).replace("1.00999", number).replace("0.00999", number).into_response()
        }
        Answer::Count(more) => {
            let mut items = items(DIMENSIONS);
            items.resize(items.len().saturating_add_signed(more), item(0, json!(vec![1.0; DIMENSIONS])));
            list(items).into_response()
        }
        Answer::Status(status, retry_after) => {
            let quoted = json!({"error": {"message": format!("no: {PROVIDER_KEY} {texts:?}"), "type": "no_luck"}});
            let mut response = (StatusCode::from_u16(status).unwrap(), quoted.to_string()).into_response();
            if let Some(retry_after) = retry_after {
                response.headers_mut().insert("retry-after", retry_after.parse().unwrap());
            }
            response
        }
        Answer::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response(),
        Answer::Body(body) => body.into_response(),
        Answer::Endless => {
            let chunk = Bytes::from(vec![b' '; 1 << 20]);
            let body = stream::repeat_with(move || {
                *inner.sent.lock().unwrap() += chunk.len() as u64;
                Ok::<_, std::io::Error>(chunk.clone())
            });
            Body::from_stream(body).into_response()
        }
        Answer::Slow(pause) => {
            tokio::time::sleep(pause).await;
            list(items(DIMENSIONS)).into_response()
        }
        Answer::Hang => std::future::pending().await,
    }
}
