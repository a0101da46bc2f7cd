//! Wire types and handlers of `/api/v1`, a file a noun.

pub mod api_keys;
pub mod archive;
pub mod audit;
pub mod embeddings;
pub mod limits;
pub mod messages;
pub mod projects;
pub mod search;
pub mod service;
pub mod sessions;
pub mod tokens;

use chatstore_core::api_keys::{KeyScopes, Permission};
use chatstore_core::ids::ProjectId;
use chatstore_core::json::RawJson;
use chatstore_core::limits::{EXTERNAL_ID_BYTES_MAX, METADATA_BYTES_MAX, METADATA_FILTERS_MAX};

use crate::auth::Caller;
use crate::error::{ApiError, Code, FieldError};
use crate::query::Pairs;

/// What the document says of an operation beside its types.
#[derive(Clone, Copy, Debug)]
pub struct OperationDoc {
    /// `operationId`: the handler's and the store method's name too.
    pub id: &'static str,
    /// One line.
    pub summary: &'static str,
    /// The rest of what a caller must know.
    pub description: &'static str,
    /// The group it is shown in.
    pub tag: &'static str,
}

/// Refuses a text longer than `bytes_max`.
fn check_length(pointer: &str, text: Option<&str>, bytes_max: usize, errors: &mut Vec<FieldError>) {
    if text.is_some_and(|text| text.len() > bytes_max) {
        errors.push(FieldError::new(pointer, format!("must have at most {bytes_max} bytes")));
    }
}

/// Refuses a text that is empty or longer than `bytes_max`.
pub(crate) fn check_id(pointer: &str, text: Option<&str>, bytes_max: usize, errors: &mut Vec<FieldError>) {
    if text.is_some_and(str::is_empty) {
        errors.push(FieldError::new(pointer, "must not be empty"));
    }
    check_length(pointer, text, bytes_max, errors);
}

/// Refuses an id of the client's that is empty or too long.
fn check_external_id(pointer: &str, text: Option<&str>, errors: &mut Vec<FieldError>) {
    check_id(pointer, text, EXTERNAL_ID_BYTES_MAX, errors);
}

/// Refuses metadata that is no object or too large.
fn check_metadata(pointer: &str, metadata: Option<&RawJson>, errors: &mut Vec<FieldError>) {
    check_metadata_within(METADATA_BYTES_MAX, pointer, metadata, errors);
}

fn check_metadata_within(bytes_max: usize, pointer: &str, metadata: Option<&RawJson>, errors: &mut Vec<FieldError>) {
    let Some(metadata) = metadata else { return };
    if !metadata.is_object() {
        errors.push(FieldError::new(pointer, "must be an object"));
    } else if metadata.bytes() > bytes_max {
        errors.push(FieldError::new(pointer, format!("must have at most {bytes_max} bytes")));
    }
}

/// Refuses filters `metadata[key]=value` that are malformed or too many.
pub(crate) fn check_metadata_filter(pairs: &Pairs, filter: &[(String, String)], errors: &mut Vec<FieldError>) {
    if filter.len() > METADATA_FILTERS_MAX {
        errors.push(FieldError::new("?metadata", format!("may stand at most {METADATA_FILTERS_MAX} times")));
    }
    if pairs.has_malformed("metadata") {
        errors.push(FieldError::new("?metadata", "must have the form `metadata[key]=value`"));
    }
}

/// The project whose things are listed: the one named, else the caller's own; for an operator, else every one.
fn chosen_project(caller: &Caller, named: Option<ProjectId>) -> Result<Option<ProjectId>, ApiError> {
    let own = caller.scope.project_id;
    match named {
        _ if caller.scopes.contains(Permission::Operator) => Ok(named),
        Some(other) if other != own => Err(other_project()),
        _ => Ok(Some(own)),
    }
}

/// Refuses a caller who lacks one of `scopes`; `needed` says for what.
fn require_scopes(caller: &Caller, scopes: KeyScopes, needed: &str) -> Result<(), ApiError> {
    let lacking = scopes.iter().filter(|permission| !caller.scopes.contains(*permission));
    let lacking: Vec<String> = lacking.map(|permission| format!("`{}`", permission.as_str())).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let detail = format!("Your key lacks {}{needed}", lacking.join(", "));
    Err(ApiError::new(Code::InsufficientScope, detail))
}

/// Another project than the caller's, for a caller who rules the own alone.
fn other_project() -> ApiError {
    let detail = "This is about another project: it needs a key with the scope `operator`. Leave `project_id` out for \
        the key's own project.";
    ApiError::new(Code::InsufficientScope, detail)
}

/// The project of the caller was deleted a moment ago, and the credential with it.
fn project_is_gone() -> ApiError {
    ApiError::new(Code::InvalidApiKey, "The project of the key was deleted.")
}
