//! What a search answers.

use axum::response::{IntoResponse, Response};
use chatstore_core::ids::SessionId;
use chatstore_core::search::snippet::Snippet;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::messages::MessageResponse;
use crate::error::Code;
use crate::openapi::{DescribeOutput, Example, Operation, id};
use crate::respond::Linked;

/// What was found, best first.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SearchResponse {
    /// A page of hits.
    pub(super) hits: Vec<SearchHit>,
    /// What the search did without, in a sentence, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(super) degraded: Option<String>,
    /// Where the next page begins, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(super) next_cursor: Option<String>,
}

/// A message that was found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SearchHit {
    /// The message.
    pub(super) message: MessageResponse,
    /// Its session.
    #[schemars(schema_with = "id")]
    pub(super) session_id: SessionId,
    /// The name of its session.
    pub(super) session_name: String,
    /// The larger, the better it fits; comparable with hits of the same search only.
    pub(super) score: f64,
    /// Its places in the lists it comes from, from 1.
    pub(super) ranks: SearchRanks,
    /// The parts of its text that fit best.
    pub(super) snippets: Vec<SearchSnippet>,
    /// The messages before it, oldest first, if they were asked for.
    pub(super) context_before: Vec<MessageResponse>,
    /// The messages after it, oldest first, if they were asked for.
    pub(super) context_after: Vec<MessageResponse>,
    /// With `group_by_session`, how many of the matches that were ranked stand in its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub(super) session_hits: Option<u64>,
}

/// Places of a hit in the lists it comes from; absent where it is not in the list.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SearchRanks {
    /// Among what was found by words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub(super) text: Option<u32>,
    /// Among what was found by meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pub(super) vector: Option<u32>,
}

/// A part of a message's text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SearchSnippet {
    /// The part, as it stands in the text.
    text: String,
    /// What of it fits: pairs of the first character and the one behind the last, counted in Unicode code points from 0.
    #[schemars(schema_with = "ranges")]
    highlights: Vec<(u32, u32)>,
}

impl From<Snippet> for SearchSnippet {
    fn from(snippet: Snippet) -> Self {
        Self { text: snippet.text, highlights: snippet.highlights }
    }
}

fn ranges(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2},
    })
}

impl Example for SearchResponse {
    fn example() -> Value {
        let message = MessageResponse::example();
        json!({
            "hits": [{
                "message": message,
                "session_id": message["session_id"],
                "session_name": "Trip to Lisbon",
                "score": 0.032_522_474,
                "ranks": {"text": 1, "vector": 2},
                "snippets": [{"text": "What should I see in Lisbon in two days?", "highlights": [[21, 27]]}],
                "context_before": [],
                "context_after": [],
            }],
            "next_cursor": "AAZIaDkwYAABP6qqqqqqqqo",
        })
    }
}

/// A page of hits, with a link to the next one where the search has a path of its own.
pub struct Found(pub(super) Linked<SearchResponse>);

impl IntoResponse for Found {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl DescribeOutput for Found {
    fn describe(operation: &mut Operation) {
        Linked::<SearchResponse>::describe(operation);
        for code in [Code::NotFound, Code::InvalidCursor, Code::EmbeddingsUnavailable, Code::EmbeddingsMismatch] {
            operation.fails(code);
        }
    }
}
