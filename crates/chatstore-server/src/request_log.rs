//! The one line in the log that each request leaves: never a key, a path with ids, or a text.

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::response::Response;
use tokio::time::Instant;

use crate::auth::CallerProject;

/// A line that waits for its request to end.
pub struct RequestLine {
    method: Method,
    route: Option<MatchedPath>,
    started: Instant,
}

impl RequestLine {
    /// Notes when a request began and where it goes.
    pub fn begin(request: &Request) -> Self {
        Self {
            method: request.method().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
            started: Instant::now(),
        }
    }

    /// Writes the line. Requests for health, which probes repeat all day, count as debug.
    pub fn end(self, response: &Response, request_id: &str, code: Option<&'static str>) {
        let route = self.route.as_ref().map_or("", MatchedPath::as_str);
        let route = if route.len() > 1 { route.trim_end_matches('/') } else { route };
        let method = self.method.as_str();
        let status = response.status().as_u16();
        let duration_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let project = response.extensions().get::<CallerProject>().map(|project| tracing::field::display(project.0));
        let quiet = matches!(route, "/healthz" | "/livez" | "/readyz") && status < 400;
        if quiet {
            tracing::debug!(method, route, status, duration_us, request_id, "request");
        } else {
            tracing::info!(method, route, status, duration_us, request_id, project, code, "request");
        }
    }
}
