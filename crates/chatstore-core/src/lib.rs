//! What Chatstore is: its nouns, the contract every engine fulfils, and the laws both obey.
//!
//! No I/O happens here. A noun's file holds its types and its store trait; `store` holds the error
//! list, the scope and the one trait object the server talks to. `conformance` (a feature, for
//! tests) is the suite that every engine must pass.

pub mod api_keys;
pub mod archive;
pub mod audit;
pub mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod embeddings;
pub mod idempotency;
pub mod ids;
pub mod json;
pub mod limits;
pub mod messages;
pub mod migrations;
pub mod page;
pub mod projects;
pub mod rates;
pub mod search;
pub mod sessions;
pub mod store;
