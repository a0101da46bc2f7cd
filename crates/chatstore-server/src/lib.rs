//! HTTP in, contract calls out.
//!
//! `router` holds every route; `auth` decides who is calling; `api` holds the wire types and
//! handlers of `/api/v1`, a file a noun; `listener` accepts connections within limits; `config`
//! and `telemetry` are what a process needs around it.

pub mod access;
pub mod admission;
pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod body;
pub mod client_address;
pub mod config;
mod cors;
pub mod docs;
pub mod embedder;
pub mod error;
pub mod extract;
pub mod idempotency;
mod layers;
pub mod listener;
pub mod openai;
pub mod openapi;
pub mod query;
pub mod quotas;
pub mod rate_limit;
pub mod request_log;
pub mod respond;
pub mod router;
pub mod sdk_tries;
pub mod telemetry;
pub mod worker;
