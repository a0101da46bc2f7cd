//! The client's side of `POST /api/v1/admin/import`: one request, sent until it is answered.

use std::time::Duration;

use anyhow::{Context as _, bail};
use chatstore_server::api::archive::ImportResponse;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::Report;
use crate::agent::{ANSWER_BYTES_MAX, agent, problem};

/// Tries of a request that the server is too busy for.
const TRIES_MAX: u32 = 10;
/// Tries of a request that does not reach the server.
const CONNECTION_TRIES_MAX: u32 = 4;
/// Longest pause between tries, whatever the server asks for.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than a server takes to answer or to give up.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A body larger than this is announced first.
const ASK_BYTES_MIN: usize = 64 << 10;

/// What became of a request that the server understood.
pub(super) enum Answer {
    Stored(ImportResponse),
    /// It is too large as a whole.
    TooLarge(String),
    /// Something in it is at fault.
    Refused(String),
}

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    key: String,
}

impl Client {
    pub(super) fn new(url: &str, key: &str) -> anyhow::Result<Self> {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("the API key must be of printable ASCII characters, without spaces");
        }
        let config = Agent::config_builder().timeout_connect(Some(CONNECT_TIMEOUT)).timeout_global(Some(CALL_TIMEOUT));
        let (agent, base) = agent(url, config)?;
        Ok(Self { agent, endpoint: format!("{base}/api/v1/admin/import"), key: key.to_owned() })
    }

    /// Sends conversations, each a text of JSON.
    pub(super) fn import(&self, texts: &[&[u8]], report: &Report<'_>) -> anyhow::Result<Answer> {
        let body = [b"[".as_slice(), &texts.join(&b','), b"]"].concat();
        let (mut tries, mut unreached) = (0, 0);
        loop {
            let mut request = self.agent.post(&self.endpoint).header("Content-Type", "application/json");
            if body.len() > ASK_BYTES_MIN {
                // A server that takes less says so before it is sent, and not by a broken connection.
                request = request.header("Expect", "100-continue");
            }
            let sent = request.header("X-API-Key", &self.key).send(&body);
            tries += 1;
            let (reason, pause) = match sent {
                Ok(response) if is_transient(response.status()) => {
                    let pause = retry_after(&response);
                    (problem(response), pause)
                }
                Ok(response) => return self.read(response),
                // Importing is idempotent: what was stored before the connection broke is recognised.
                Err(error) => {
                    unreached += 1;
                    (format!("{} cannot be reached: {error}", self.endpoint), None)
                }
            };
            if tries == TRIES_MAX || unreached == CONNECTION_TRIES_MAX {
                bail!("{reason} (tried {tries} times)");
            }
            let pause = pause.unwrap_or(Duration::from_millis(250 << tries.min(6))).min(PAUSE_MAX);
            if pause >= Duration::from_secs(5) {
                report.progress.say(&format!("{reason}; trying again in {} s", pause.as_secs()));
            }
            std::thread::sleep(pause);
        }
    }

    fn read(&self, mut response: Response<Body>) -> anyhow::Result<Answer> {
        let status = response.status();
        if status == StatusCode::OK {
            let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
            let text = text.with_context(|| format!("the answer of {} broke off", self.endpoint))?;
            let stored = serde_json::from_slice(&text);
            return Ok(Answer::Stored(
                stored.with_context(|| format!("{} does not answer as Chatstore does; check --url", self.endpoint))?,
            ));
        }
        if status.is_redirection() {
            let target =
                response.headers().get("location").and_then(|value| value.to_str().ok()).unwrap_or("elsewhere");
            bail!("{} redirects to {target}; name that server in --url", self.endpoint);
        }
        let problem = problem(response);
        match status {
            StatusCode::UNAUTHORIZED => {
                bail!("the server does not accept the API key: {problem}; give another in API_KEY")
            }
            StatusCode::FORBIDDEN => {
                bail!("the API key may not import: {problem}; give one with the scope `admin`")
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                bail!("there is no Chatstore at {} ({problem}); check --url", self.endpoint)
            }
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Answer::TooLarge(problem)),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Ok(Answer::Refused(problem)),
            _ => bail!("{problem}"),
        }
    }
}

fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 502 | 503 | 504)
}

/// The pause in seconds that the server asks for; a date is left to our own measure.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = response.headers().get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for url in ["http://h:8000", "http://h:8000/", "http://h:8000/api/v1/"] {
            assert_eq!(Client::new(url, "key-key-key").unwrap().endpoint, "http://h:8000/api/v1/admin/import");
        }
        assert_eq!(Client::new("https://h/chats", "k").unwrap().endpoint, "https://h/chats/api/v1/admin/import");
        for url in ["", "h:8000", "ftp://h", "http://", "http://h/?a=b"] {
            assert!(Client::new(url, "k").is_err(), "{url}");
        }
        assert!(Client::new("http://h", "two words").is_err());
    }
}
