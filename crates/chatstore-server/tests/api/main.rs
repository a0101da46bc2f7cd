//! The HTTP suite: one sentence a test, on every engine.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod app;
mod client;
mod schema;

mod bytes;
mod errors;
mod identity;
mod messages;
mod paging;
mod preconditions;
mod sessions;
mod wire;
