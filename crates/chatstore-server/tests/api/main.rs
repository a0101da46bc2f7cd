//! The HTTP suite: one sentence a test, on every engine.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod app;
mod client;
mod faulty;
mod provider;
mod schema;

mod addresses;
mod admission;
mod api_keys;
mod audit;
mod auth;
mod browser;
mod bytes;
mod canary;
mod conversations;
mod differential;
mod embedder;
mod embeddings;
mod errors;
mod faults;
mod fuzz;
mod idempotency;
mod identity;
mod items;
mod key_life;
mod law;
mod matrix;
mod messages;
mod openai_errors;
mod openapi;
mod paging;
mod preconditions;
mod projects;
mod quotas;
mod rate_limits;
mod search;
mod sessions;
mod socket;
mod tokens;
mod wire;
mod worker;
