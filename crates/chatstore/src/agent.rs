//! HTTP to a server that runs, over TCP or a Unix socket.

#[cfg(unix)]
mod unix_socket;

use std::net::IpAddr;

use anyhow::bail;
use serde_json::Value;
use ureq::http::{Response, Uri};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body, config::ConfigBuilder};

/// A longer answer is not read.
pub(crate) const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// An agent for the server at `url`, and the start of the address of everything it serves.
///
/// What is on this host is never asked through a proxy.
///
/// # Errors
/// If `url` is not `http://…`, `https://…` or `unix:PATH`.
pub(crate) fn agent(url: &str, config: ConfigBuilder<AgentScope>) -> anyhow::Result<(Agent, &str)> {
    let config = config
        .http_status_as_error(false)
        // What is sent is for this address alone.
        .max_redirects(0)
        .user_agent(concat!("chatstore/", env!("CARGO_PKG_VERSION")));
    let (agent, base) = match url.strip_prefix("unix:") {
        Some(path) => (unix_agent(config.proxy(None).build(), path)?, "http://127.0.0.1"),
        None if is_loopback(&checked(url)?) => (config.proxy(None).build().new_agent(), url),
        None => (config.build().new_agent(), url),
    };
    Ok((agent, base.trim_end_matches('/').trim_end_matches("/api/v1")))
}

fn checked(url: &str) -> anyhow::Result<Uri> {
    let parsed: Option<Uri> = url.parse().ok();
    let is_known = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    match parsed {
        Some(uri) if is_known(&uri) && uri.query().is_none() => Ok(uri),
        _ => bail!("--url must be the address of a server, such as http://127.0.0.1:8000 or unix:/run/chatstore.sock"),
    }
}

fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(unix)]
fn unix_agent(config: ureq::config::Config, path: &str) -> anyhow::Result<Agent> {
    Ok(unix_socket::agent(config, path))
}

#[cfg(not(unix))]
fn unix_agent(_: ureq::config::Config, _: &str) -> anyhow::Result<Agent> {
    bail!("this system has no Unix sockets; give --url an http address")
}

/// What the server said instead of doing it, as a clause.
pub(crate) fn problem(mut response: Response<Body>) -> String {
    let status = response.status();
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().unwrap_or_default();
    let problem = serde_json::from_slice::<Value>(&body).ok();
    match problem.as_ref().and_then(|problem| problem.get("detail")?.as_str()) {
        Some(detail) => format!("the server says {}: {}", status.as_u16(), detail.trim_end_matches('.')),
        None => format!("the server says {status}"),
    }
}
