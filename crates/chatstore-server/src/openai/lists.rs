//! Lists on this wire: what is asked for, and the envelope around what is found.

use chatstore_core::limits::{PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX};
use chatstore_core::page::Order;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{ApiError, FieldError};
use crate::extract::FromQuery;
use crate::openapi::{Example, Operation};
use crate::query::{Pairs, describe_order, natural};

/// A page of a list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ListOf{T}")]
pub struct ListResponse<T> {
    /// `list`.
    object: &'static str,
    /// What the page holds.
    data: Vec<T>,
    /// The id of the first thing in it.
    first_id: Option<String>,
    /// The id of the last thing in it: `after` for the next page.
    last_id: Option<String>,
    /// Whether more follows in the direction of the list.
    has_more: bool,
}

impl<T> ListResponse<T> {
    /// The page of these things, each with its id.
    pub(super) fn new(items: impl IntoIterator<Item = (String, T)>, has_more: bool) -> Self {
        let (ids, data): (Vec<String>, Vec<T>) = items.into_iter().unzip();
        let (first_id, last_id) = (ids.first().cloned(), ids.last().cloned());
        Self { object: "list", data, first_id, last_id, has_more }
    }
}

impl<T: Example> Example for ListResponse<T> {
    fn example() -> Value {
        let example = T::example();
        let id = example["id"].clone();
        json!({"object": "list", "data": [example], "first_id": id, "last_id": id, "has_more": false})
    }
}

/// Where a page stands, and how large it is.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) limit: u32,
    pub(super) order: Order,
    pub(super) after: Option<String>,
    pub(super) before: Option<String>,
}

impl Window {
    pub(super) fn read(pairs: &Pairs, errors: &mut Vec<FieldError>) -> Self {
        let size = |text: &str| natural(text)?.try_into().ok().filter(|size| (1..=PAGE_ITEMS_MAX).contains(size));
        let form = format!("a whole number from 1 to {PAGE_ITEMS_MAX}");
        Self {
            limit: pairs.read("limit", &form, size, errors).unwrap_or(PAGE_ITEMS_DEFAULT),
            order: pairs.order(Order::Desc, errors),
            after: pairs.get("after").map(ToOwned::to_owned),
            before: pairs.get("before").map(ToOwned::to_owned),
        }
    }

    pub(super) fn describe(operation: &mut Operation, noun: &str) {
        let limit = json!({"type": "integer", "minimum": 1, "maximum": PAGE_ITEMS_MAX, "default": PAGE_ITEMS_DEFAULT});
        operation.query_parameter("limit", "How many at most.", limit);
        describe_order(operation, "Newest or oldest first.", "desc");
        let id = json!({"type": "string"});
        operation.query_parameter("after", &format!("Only what follows this {noun} in that order."), id.clone());
        let before =
            format!("Only what precedes this {noun} in that order; without `after`, what stands right before it.");
        operation.query_parameter("before", &before, id);
    }

    /// Whether the page is found by looking back from `before`.
    pub(super) fn looks_back(&self) -> bool {
        self.before.is_some() && self.after.is_none()
    }

    /// The order in which the page is found.
    pub(super) fn order_of_search(&self) -> Order {
        match (self.order, self.looks_back()) {
            (order, false) => order,
            (Order::Asc, true) => Order::Desc,
            (Order::Desc, true) => Order::Asc,
        }
    }
}

/// What items may show beside themselves. All of it is shown in any case; what is unknown is refused.
#[derive(Debug)]
pub struct Include;

/// What can be asked for.
const INCLUDABLE: [&str; 8] = [
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
];

impl Include {
    pub(super) fn read(pairs: &Pairs, errors: &mut Vec<FieldError>) {
        let values = pairs.get_list("include");
        if values.iter().flat_map(|value| value.split(',')).any(|value| !INCLUDABLE.contains(&value)) {
            errors.push(FieldError::new("?include", format!("can hold `{}`", INCLUDABLE.join("`, `"))));
        }
    }
}

impl FromQuery for Include {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        Self::read(pairs, &mut errors);
        if errors.is_empty() { Ok(Self) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        let schema = json!({"type": "array", "items": {"type": "string", "enum": INCLUDABLE}});
        let description = "Checked, and otherwise of no effect: an item is always shown whole. `include[]=a`, \
            `include[0]=a` and `include=a,b` are understood, too.";
        operation.query_parameter("include", description, schema);
    }
}
