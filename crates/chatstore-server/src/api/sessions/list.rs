//! Which sessions to list.

use chatstore_core::limits::USER_ID_BYTES_MAX;
use chatstore_core::page::Order;
use chatstore_core::sessions::{SessionQuery, SessionSort};
use serde_json::json;

use crate::api::{check_id, check_metadata_filter};
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::FromQuery;
use crate::openapi::Operation;
use crate::query::{Paging, Pairs, binding, describe_order};

/// Which sessions to list.
#[derive(Debug)]
pub struct ListSessionsQuery {
    pub(super) query: SessionQuery,
    pub(super) paging: Paging,
}

const SORTS: [(&str, SessionSort); 3] = [
    ("created_at", SessionSort::CreatedAt),
    ("updated_at", SessionSort::UpdatedAt),
    ("last_message_at", SessionSort::LastMessageAt),
];

impl FromQuery for ListSessionsQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let sort = |text: &str| SORTS.into_iter().find(|(name, _)| *name == text).map(|(_, sort)| sort);
        let query = SessionQuery {
            user_id: pairs.get("user_id").map(ToOwned::to_owned),
            is_favorite: pairs.boolean("is_favorite", &mut errors),
            metadata: pairs.get_map("metadata"),
            created_after: pairs.time("created_after", &mut errors),
            created_before: pairs.time("created_before", &mut errors),
            sort: pairs
                .read("sort", "`created_at`, `updated_at` or `last_message_at`", sort, &mut errors)
                .unwrap_or(SessionSort::CreatedAt),
            order: pairs.order(Order::Asc, &mut errors),
        };
        check_id("?user_id", query.user_id.as_deref(), USER_ID_BYTES_MAX, &mut errors);
        check_metadata_filter(pairs, &query.metadata, &mut errors);
        let paging = pairs.paging(&mut errors);
        if errors.is_empty() { Ok(Self { query, paging }) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        let text = json!({"type": "string"});
        let time = json!({"type": "string", "format": "date-time"});
        operation.query_parameter("user_id", "Only this user's.", text);
        operation.query_parameter("is_favorite", "Only marked, or only unmarked ones.", json!({"type": "boolean"}));
        operation.query_map("metadata", "Only those whose metadata has these top-level values: `metadata[key]=value`.");
        operation.query_parameter("created_after", "Only those created later.", time.clone());
        operation.query_parameter("created_before", "Only those created earlier.", time);
        let sorts = SORTS.map(|(name, _)| name);
        operation.query_parameter(
            "sort",
            "What orders them. Without messages, `last_message_at` counts as `created_at`.",
            json!({"type": "string", "enum": sorts, "default": "created_at"}),
        );
        describe_order(operation, "Oldest or newest first.", "asc");
        Paging::describe(operation);
    }
}

impl ListSessionsQuery {
    /// What a cursor of this list is bound to.
    pub(super) fn binding(&self, caller: &Caller) -> Vec<u8> {
        let query = &self.query;
        let sort = SORTS.into_iter().find(|(_, sort)| *sort == query.sort).map(|(name, _)| name);
        binding(&(
            ("sessions", caller.scope.project_id, &caller.scope.user_id),
            (&query.user_id, query.is_favorite, &query.metadata),
            (query.created_after, query.created_before),
            (sort, query.order == Order::Asc),
            &caller.sessions.as_deref(),
        ))
    }
}
