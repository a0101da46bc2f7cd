//! One request to the source: `POST …/embeddings`, as OpenAI defined it.
//!
//! Redirects are not followed and proxies of the environment not used: texts and key are for the operator's address
//! alone.

use std::error::Error as _;
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use axum::http::{Method, Request, StatusCode, Uri};
use bytes::Bytes;
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::embeddings::Vector;
use chatstore_core::limits::VECTOR_DIMENSIONS_MAX;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;

use super::answer::{fault_code, vectors};
use super::{EmbedderError, EmbedderSettings};

/// Longer answers are not read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What surrounds the numbers of an answer.
const ANSWER_FRAME_BYTES: usize = 64 << 10;
/// The longest form of a number with what separates it from the next, in a document that is indented.
const NUMBER_BYTES: usize = 40;
/// What is read of an answer that holds no vectors.
const FAULT_BYTES_MAX: usize = 64 << 10;
/// Connections that are not used are closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The model that is asked, and how long.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) model: &'a str,
    pub(super) dimensions: Option<u16>,
    pub(super) timeout: Duration,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: &'a [&'a str],
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<u16>,
}

pub(super) struct Client {
    client: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoint: Uri,
    authorization: Option<HeaderValue>,
    ctx: Ctx,
}

impl Client {
    pub(super) fn new(settings: &EmbedderSettings, ctx: Ctx) -> Result<Self, String> {
        let endpoint = settings.url.endpoint().clone();
        let builder = HttpsConnectorBuilder::new();
        let connector = if endpoint.scheme_str() == Some("https") {
            builder
                .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
                .map_err(|error| {
                    format!(
                        "the system's certificate authorities, which an https address in EMBEDDINGS_URL needs, cannot \
                         be read ({error}); install ca-certificates or set SSL_CERT_FILE"
                    )
                })?
                .https_only()
        } else {
            // Nothing is trusted, for nothing is asked over TLS.
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("the provider has suites for the default versions")
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(tls).https_or_http()
        };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector.enable_http1().build());
        let authorization = settings.api_key.as_ref().map(|key| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose()))
                .expect("the settings take only a key that a header can carry");
            value.set_sensitive(true);
            value
        });
        Ok(Self { client, endpoint, authorization, ctx })
    }

    /// The vectors of texts, in their order.
    pub(super) async fn embed(&self, call: &Call<'_>, texts: &[&str]) -> Result<Vec<Vector>, EmbedderError> {
        match tokio::time::timeout(call.timeout, self.exchange(call, texts)).await {
            Ok(result) => result,
            Err(_) => Err(EmbedderError::too_slow(call.timeout)),
        }
    }

    async fn exchange(&self, call: &Call<'_>, texts: &[&str]) -> Result<Vec<Vector>, EmbedderError> {
        let body = Body { model: call.model, input: texts, encoding_format: "float", dimensions: call.dimensions };
        let body = serde_json::to_vec(&body).expect("texts and numbers can be written as JSON");
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("chatstore/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let response = self.client.request(request).await.map_err(|error| unreached(&error))?;
        let (parts, body) = response.into_parts();
        if parts.status == StatusCode::OK {
            let numbers = texts.len().saturating_mul(VECTOR_DIMENSIONS_MAX * NUMBER_BYTES);
            let body = read(body, (ANSWER_FRAME_BYTES + numbers).min(ANSWER_BYTES_MAX)).await?;
            return vectors(&body, texts.len());
        }
        let code = read(body, FAULT_BYTES_MAX).await.ok().and_then(|body| fault_code(&body));
        Err(fault(parts.status, &parts.headers, code, self.ctx.now()))
    }
}

async fn read(body: Incoming, bytes_max: usize) -> Result<Bytes, EmbedderError> {
    match Limited::new(body, bytes_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(EmbedderError::garbage(format!("it is longer than {bytes_max} bytes")))
        }
        Err(_) => Err(EmbedderError::down("broke off its answer")),
    }
}

/// Why it could not be asked, in the words of the system or of TLS.
fn unreached(error: &legacy::Error) -> EmbedderError {
    if !error.is_connect() {
        return EmbedderError::down("closed the connection without an answer");
    }
    let mut cause = error.source();
    let mut words = "no connection".to_owned();
    while let Some(error) = cause {
        words = error.to_string();
        cause = error.source();
    }
    EmbedderError::down(format!("cannot be reached ({words})"))
}

/// Who is at fault, by the status.
fn fault(status: StatusCode, headers: &HeaderMap, code: Option<String>, now: Timestamp) -> EmbedderError {
    let number = status.as_u16();
    let reason = match code {
        Some(code) => format!("status {number}, {code}"),
        None => format!("status {number}"),
    };
    let retry_after = retry_after(headers, now);
    match number {
        300..=399 => EmbedderError::Unauthorised { reason: format!("{reason}: a redirect, which is not followed") },
        401..=407 => EmbedderError::Unauthorised { reason },
        429 => EmbedderError::Busy { reason, retry_after },
        503 if retry_after.is_some() => EmbedderError::Busy { reason, retry_after },
        400 | 413 | 414 | 422 => EmbedderError::Refused { reason },
        _ => EmbedderError::down(format!("fails ({reason})")),
    }
}

/// The pause that is asked for, in seconds or until a time.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_microsecond();
    Some(Duration::from_micros(u64::try_from(until.saturating_sub(now.as_micros())).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_who_is_at_fault() {
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let fault = |status: u16, wait: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(wait) = wait {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(wait));
            }
            fault(StatusCode::from_u16(status).unwrap(), &headers, None, now)
        };
        for status in [301, 302, 307, 308, 401, 403, 404, 405] {
            assert!(matches!(fault(status, None), EmbedderError::Unauthorised { .. }), "{status}");
        }
        for status in [400, 413, 422] {
            assert!(matches!(fault(status, None), EmbedderError::Refused { .. }), "{status}");
        }
        for status in [204, 408, 409, 500, 502, 503, 504] {
            assert!(matches!(fault(status, None), EmbedderError::Down { .. }), "{status}");
        }
        let pause = |status, wait| match fault(status, wait) {
            EmbedderError::Busy { retry_after, .. } => retry_after,
            error => panic!("{error}"),
        };
        assert_eq!(pause(429, None), None);
        assert_eq!(pause(503, Some("7")), Some(Duration::from_secs(7)));
        assert_eq!(pause(429, Some("Thu, 01 Jan 2026 00:01:00 GMT")), Some(Duration::from_secs(60)));
        assert_eq!(pause(429, Some("Wed, 31 Dec 2025 00:00:00 GMT")), Some(Duration::ZERO));
        assert_eq!(pause(429, Some("soon")), None);
    }
}
