//! The program as an operator meets it: real processes, their output, their exit, their files.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod commands;
mod first_start;
mod health;
mod keys;
mod logs;
mod neighbours;
mod postgres;
mod refusals;
mod ruling;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
