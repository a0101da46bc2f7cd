//! What a search asks for, in a body or in a query string.

use std::collections::BTreeMap;

use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{Metric, Vector};
use chatstore_core::ids::SessionId;
use chatstore_core::json::RawJson;
use chatstore_core::limits::{
    EMBEDDING_MODEL_BYTES_MAX, KIND_BYTES_MAX, METADATA_FILTERS_MAX, ROLE_BYTES_MAX, SEARCH_CONTEXT_MAX,
    SEARCH_QUERY_BYTES_MAX, USER_ID_BYTES_MAX,
};
use chatstore_core::search::SearchFilter;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::Mode;
use crate::api::embeddings::check_vector;
use crate::api::{check_id, check_length, check_metadata_filter};
use crate::auth::Caller;
use crate::body::{Body, Field};
use crate::error::{ApiError, FieldError};
use crate::extract::FromQuery;
use crate::openapi::{Example, Operation, optional_id, optional_numbers, optional_object, optional_time};
use crate::query::{Paging, Pairs, binding};

/// A search.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct SearchRequest {
    /// Words are all looked for; `"a phrase"`, `-without`, `begin*`, `role:user` and `in:session-name` are understood.
    /// Any text is a query.
    #[serde(default)]
    query: Field<String>,
    /// A vector to look near, made by the model that is searched. With `query`, it stands for the query's meaning.
    #[serde(default)]
    #[schemars(schema_with = "optional_numbers")]
    embedding: Field<Vec<f32>>,
    /// The model whose vectors are searched; the embedding source's, or else `default`, if absent. With `embedding`,
    /// it must be named where there is an embedding source.
    #[serde(default)]
    embedding_model: Field<String>,
    /// `hybrid` (if absent), `text` or `vector`.
    #[serde(default)]
    mode: Field<String>,
    /// How nearness is measured: `cosine` (if absent), `inner_product` or `l2`.
    #[serde(default)]
    metric: Field<String>,
    /// Only this user's.
    #[serde(default)]
    user_id: Field<String>,
    /// Only this session's.
    #[serde(default)]
    #[schemars(schema_with = "optional_id")]
    session_id: Field<String>,
    /// Only this role's.
    #[serde(default)]
    role: Field<String>,
    /// Only of this kind.
    #[serde(default)]
    kind: Field<String>,
    /// Only messages whose metadata has these top-level values: up to 8 strings, numbers or booleans.
    #[serde(default)]
    #[schemars(schema_with = "optional_object")]
    metadata: Field<RawJson>,
    /// Only those stored at this time or later.
    #[serde(default)]
    #[schemars(schema_with = "optional_time")]
    created_after: Field<Timestamp>,
    /// Only those stored before this time.
    #[serde(default)]
    #[schemars(schema_with = "optional_time")]
    created_before: Field<Timestamp>,
    /// Hits in the page: from 1, cut to 100; 20 if absent.
    #[serde(default)]
    limit: Field<i64>,
    /// Where the page begins: `next_cursor` of the page before.
    #[serde(default)]
    cursor: Field<String>,
    /// Whether only the best hit of each session is shown.
    #[serde(default)]
    group_by_session: Field<bool>,
    /// Messages before each hit to show beside it: cut to 10.
    #[serde(default)]
    context_before: Field<i64>,
    /// Messages after each hit to show beside it: cut to 10.
    #[serde(default)]
    context_after: Field<i64>,
}

impl Body for SearchRequest {}

impl Example for SearchRequest {
    fn example() -> Value {
        json!({"query": "tram \"Graça\" -28E", "user_id": "ada", "limit": 5, "context_after": 1})
    }
}

/// A search in a query string.
#[derive(Debug)]
pub struct SearchQuery(Draft);

/// A search of one session in a query string.
#[derive(Debug)]
pub struct SessionSearchQuery(pub(super) SearchQuery);

/// A search as it came, in either form.
#[derive(Debug)]
struct Draft {
    query: Option<String>,
    vector: Option<Vector>,
    model: Option<String>,
    mode: Option<String>,
    metric: Option<String>,
    session_id: Option<String>,
    filter: SearchFilter,
    is_grouped: bool,
    context_before: u64,
    context_after: u64,
    paging: Paging,
}

/// A search that is well-formed.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) form: Form,
    pub(super) query: Option<String>,
    pub(super) vector: Option<Vector>,
    pub(super) model: Option<String>,
    pub(super) mode: Mode,
    pub(super) metric: Metric,
    pub(super) filter: SearchFilter,
    pub(super) is_grouped: bool,
    pub(super) context_before: u32,
    pub(super) context_after: u32,
    pub(super) paging: Paging,
}

/// How a search came; a field is pointed at by `/name` in a body, `?name` in a query string.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// In a body.
    Body,
    /// In a query string, which holds no vector.
    Query,
}

impl Form {
    fn at(self, name: &str) -> String {
        match (self, name) {
            (Self::Body, name) => format!("/{name}"),
            (Self::Query, "query") => "?q".to_owned(),
            (Self::Query, name) => format!("?{name}"),
        }
    }
}

impl SearchRequest {
    pub(super) fn check(self, caller: &Caller) -> Result<Search, ApiError> {
        let mut errors = Vec::new();
        let vector = self.embedding.value().and_then(|numbers| check_vector("/embedding", numbers, &mut errors));
        let limit = at_least(1, "/limit", self.limit.value(), &mut errors);
        let draft = Draft {
            query: self.query.value(),
            vector,
            model: self.embedding_model.value(),
            mode: self.mode.value(),
            metric: self.metric.value(),
            session_id: self.session_id.value(),
            filter: SearchFilter {
                user_id: self.user_id.value(),
                session_id: None,
                role: self.role.value(),
                kind: self.kind.value(),
                metadata: self.metadata.value().map_or_else(Vec::new, |it| metadata_filter(&it, &mut errors)),
                created_after: self.created_after.value(),
                created_before: self.created_before.value(),
            },
            is_grouped: self.group_by_session.value().unwrap_or(false),
            context_before: at_least(0, "/context_before", self.context_before.value(), &mut errors).unwrap_or(0),
            context_after: at_least(0, "/context_after", self.context_after.value(), &mut errors).unwrap_or(0),
            paging: Paging::new(limit, self.cursor.value()),
        };
        draft.check(Form::Body, caller, None, errors)
    }
}

/// The filter that an object of metadata means.
fn metadata_filter(metadata: &RawJson, errors: &mut Vec<FieldError>) -> Vec<(String, String)> {
    let members: Option<BTreeMap<String, IgnoredAny>> = serde_json::from_str(metadata.as_str()).ok();
    let scalars = metadata.scalars();
    let fault = match members.map(|members| members.len()) {
        None => "must be an object".to_owned(),
        Some(count) if count > METADATA_FILTERS_MAX => format!("must have at most {METADATA_FILTERS_MAX} members"),
        Some(count) if count > scalars.len() => "must hold strings, numbers and booleans alone".to_owned(),
        Some(_) => return scalars,
    };
    errors.push(FieldError::new("/metadata", fault));
    Vec::new()
}

fn at_least(least: i64, pointer: &str, number: Option<i64>, errors: &mut Vec<FieldError>) -> Option<u64> {
    let number = number?;
    if number < least {
        errors.push(FieldError::new(pointer, format!("must be a whole number from {least}")));
    }
    u64::try_from(number).ok()
}

impl FromQuery for SearchQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let text = |name: &str| pairs.get(name).map(ToOwned::to_owned);
        let draft = Draft {
            query: text("q"),
            vector: None,
            model: text("embedding_model"),
            mode: text("mode"),
            metric: text("metric"),
            session_id: text("session_id"),
            filter: SearchFilter {
                user_id: text("user_id"),
                session_id: None,
                role: text("role"),
                kind: text("kind"),
                metadata: pairs.get_map("metadata"),
                created_after: pairs.time("created_after", &mut errors),
                created_before: pairs.time("created_before", &mut errors),
            },
            is_grouped: pairs.boolean("group_by_session", &mut errors).unwrap_or(false),
            context_before: pairs.natural("context_before", &mut errors).unwrap_or(0),
            context_after: pairs.natural("context_after", &mut errors).unwrap_or(0),
            paging: pairs.cursor_paging(&mut errors),
        };
        check_metadata_filter(pairs, &draft.filter.metadata, &mut errors);
        if errors.is_empty() { Ok(Self(draft)) } else { Err(ApiError::invalid(errors)) }
    }

    fn describe(operation: &mut Operation) {
        let id = json!({"type": "string", "format": "uuid"});
        operation.query_parameter("session_id", "Only this session's.", id);
        SessionSearchQuery::describe(operation);
    }
}

impl FromQuery for SessionSearchQuery {
    fn from_query(pairs: &Pairs) -> Result<Self, ApiError> {
        SearchQuery::from_query(pairs).map(Self)
    }

    fn describe(operation: &mut Operation) {
        let text = json!({"type": "string"});
        let time = json!({"type": "string", "format": "date-time"});
        let natural = json!({"type": "integer", "minimum": 0, "default": 0});
        operation.query_parameter("q", "What is looked for; see `query` of `POST /api/v1/search`.", text.clone());
        let modes = Mode::ALL.map(Mode::as_str);
        operation.query_parameter(
            "mode",
            "By words, by meaning, or by both.",
            json!({"type": "string", "enum": modes, "default": "hybrid"}),
        );
        operation.query_parameter("embedding_model", "The model whose vectors are searched.", text.clone());
        let metrics = Metric::ALL.map(Metric::as_str);
        operation.query_parameter(
            "metric",
            "How nearness is measured.",
            json!({"type": "string", "enum": metrics, "default": "cosine"}),
        );
        operation.query_parameter("user_id", "Only this user's.", text.clone());
        operation.query_parameter("role", "Only this role's.", text.clone());
        operation.query_parameter("kind", "Only of this kind.", text);
        operation
            .query_map("metadata", "Only messages whose metadata has these top-level values: `metadata[key]=value`.");
        operation.query_parameter("created_after", "Only those stored at this time or later.", time.clone());
        operation.query_parameter("created_before", "Only those stored before this time.", time);
        operation.query_parameter(
            "group_by_session",
            "Whether only the best hit of each session is shown.",
            json!({"type": "boolean", "default": false}),
        );
        operation.query_parameter("context_before", "Messages before each hit to show: cut to 10.", natural.clone());
        operation.query_parameter("context_after", "Messages after each hit to show: cut to 10.", natural);
        Paging::describe_cursor(operation);
    }
}

impl SearchQuery {
    /// The search, in the session of the path if there is one.
    pub(super) fn check(self, caller: &Caller, session_id: Option<SessionId>) -> Result<Search, ApiError> {
        self.0.check(Form::Query, caller, session_id, Vec::new())
    }
}

impl Draft {
    fn check(
        self,
        form: Form,
        caller: &Caller,
        session_id: Option<SessionId>,
        mut errors: Vec<FieldError>,
    ) -> Result<Search, ApiError> {
        let filter = &self.filter;
        check_length(&form.at("query"), self.query.as_deref(), SEARCH_QUERY_BYTES_MAX, &mut errors);
        check_id(&form.at("embedding_model"), self.model.as_deref(), EMBEDDING_MODEL_BYTES_MAX, &mut errors);
        check_id(&form.at("user_id"), filter.user_id.as_deref(), USER_ID_BYTES_MAX, &mut errors);
        check_length(&form.at("role"), filter.role.as_deref(), ROLE_BYTES_MAX, &mut errors);
        check_length(&form.at("kind"), filter.kind.as_deref(), KIND_BYTES_MAX, &mut errors);
        let named = (self.mode.as_deref(), Mode::parse);
        let mode = read(form.at("mode"), named, "`hybrid`, `text` or `vector`", &mut errors);
        let named = (self.metric.as_deref(), Metric::parse);
        let metric = read(form.at("metric"), named, "`cosine`, `inner_product` or `l2`", &mut errors);
        let mode = match (&self.query, &self.vector, mode) {
            (Some(_), _, mode) => mode.unwrap_or(Mode::Hybrid),
            (None, Some(_), mode) if mode != Some(Mode::Text) => Mode::Vector,
            _ => {
                // A vector that is refused is what is wrong.
                if errors.is_empty() {
                    errors.push(FieldError::new(form.at("query"), "is required, as words or as a vector"));
                }
                Mode::Text
            }
        };
        if !errors.is_empty() {
            return Err(ApiError::invalid(errors));
        }
        caller.user(self.filter.user_id.clone())?;
        let named = match self.session_id.filter(|_| session_id.is_none()) {
            Some(text) => Some(SessionId::parse(&text).ok_or_else(|| ApiError::not_found("session"))?),
            None => session_id,
        };
        let named = only_session(form, caller, named)?;
        let context = |messages: u64| u32::try_from(messages).unwrap_or(u32::MAX).min(SEARCH_CONTEXT_MAX);
        Ok(Search {
            form,
            query: self.query,
            vector: self.vector,
            model: self.model,
            mode,
            metric: metric.unwrap_or_default(),
            filter: SearchFilter { session_id: named, ..self.filter },
            is_grouped: self.is_grouped,
            context_before: context(self.context_before),
            context_after: context(self.context_after),
            paging: self.paging,
        })
    }
}

/// The session to look in, for a caller for whom only some exist.
fn only_session(form: Form, caller: &Caller, named: Option<SessionId>) -> Result<Option<SessionId>, ApiError> {
    match (named, caller.sessions.as_deref()) {
        (None, Some([only])) => Ok(Some(*only)),
        (None, Some(_)) => {
            let detail = "is required, because the token is for some sessions: name one of them";
            Err(ApiError::invalid_field(form.at("session_id"), detail))
        }
        (Some(session_id), _) if !caller.may_see(session_id) => Err(ApiError::not_found("session")),
        (named, _) => Ok(named),
    }
}

/// The value of this name.
fn read<T>(
    pointer: String,
    (name, parse): (Option<&str>, impl Fn(&str) -> Option<T>),
    form: &str,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    let value = parse(name?);
    if value.is_none() {
        errors.push(FieldError::new(pointer, format!("must be {form}")));
    }
    value
}

impl Search {
    /// What a cursor of this search is bound to: all but the size of the page. `model` is the one that is searched.
    pub(super) fn binding(&self, caller: &Caller, model: Option<&str>) -> Vec<u8> {
        let filter = &self.filter;
        binding(&(
            ("search", caller.scope.project_id, &caller.scope.user_id),
            (&self.query, self.vector.as_ref().map(Vector::numbers), model),
            (self.mode.as_str(), self.metric.as_str(), self.is_grouped, self.context_before, self.context_after),
            (&filter.user_id, filter.session_id, &filter.role, &filter.kind, &filter.metadata),
            (filter.created_after, filter.created_before),
        ))
    }
}
