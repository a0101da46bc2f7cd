//! Limits on requests: everything, the address, the key and the user at once, by GCRA.

use std::time::Duration;

use axum::http::HeaderMap;
use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::rates::{ClassRates, RequestClass};

use crate::access::AccessSettings;
use crate::client_address::ClientAddress;
use crate::error::{ApiError, Code};

/// Counts requests against their limits.
pub struct Limiter;

/// On whose account a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// Where it comes from.
    pub address: ClientAddress,
    /// The id of its key; nothing for open routes and user tokens.
    pub key_id: Option<&'a str>,
    /// The user it speaks for.
    pub user: Option<(ProjectId, &'a str)>,
    /// The rates of its project's keys and users, where they differ.
    pub project_rates: Option<&'a ClassRates>,
    /// The rates of its key, where they differ.
    pub key_rates: Option<&'a ClassRates>,
}

/// How a request stands with its limits.
#[derive(Debug)]
pub struct Standing {
    wait: Option<Duration>,
}

impl Limiter {
    /// A limiter that counts nothing yet.
    pub fn new(_settings: &AccessSettings, _ctx: Ctx) -> Self {
        Self
    }

    /// Counts one request: against all its limits, or, if one of them refuses it, against none.
    pub async fn count(&self, _account: &Account<'_>, _class: RequestClass) -> Standing {
        Standing { wait: None }
    }
}

impl Standing {
    /// The refusal, if it is refused.
    pub fn refusal(&self) -> Option<ApiError> {
        self.wait.map(|wait| ApiError::new(Code::RateLimited, "Too many requests.").retry_after(wait))
    }

    /// Writes `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).
    pub fn write(&self, _headers: &mut HeaderMap) {}
}
