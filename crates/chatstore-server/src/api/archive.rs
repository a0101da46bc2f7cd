//! Whole conversations on the wire: the form of `import` and `export`, and the import over HTTP.

mod conversation;

use axum::extract::State;
use chatstore_core::archive::Imported;
use chatstore_core::limits::IMPORT_SESSIONS_MAX;
use chatstore_core::store::StoreError;
use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use conversation::{Conversation, ConversationMessage};

use super::OperationDoc;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, FieldError};
use crate::extract::Json;
use crate::openapi::Example;
use crate::respond::Ok200;

/// What became of each conversation of an import.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct ImportResponse {
    /// Sessions that were new.
    pub sessions: u64,
    /// Messages that were new.
    pub messages: u64,
    /// Conversations that were not stored, whole.
    pub refused: Vec<RefusedConversation>,
}

/// A conversation that was not stored.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
pub struct RefusedConversation {
    /// Its index in the request.
    pub index: usize,
    /// Why, with the place in the conversation.
    pub detail: String,
}

impl Example for ImportResponse {
    fn example() -> Value {
        json!({"sessions": 1, "messages": 2, "refused": []})
    }
}

/// See [`import_sessions`].
pub const IMPORT_SESSIONS: OperationDoc = OperationDoc {
    id: "import_sessions",
    summary: "Import conversations",
    description: "Takes an array of up to 1,000 conversations in the form of `chatstore export`. Each is stored whole or \
        refused with a reason; what is already there is left as it is, so that a repeated import adds nothing. A long \
        conversation may come in parts whose messages carry `seq`.",
    tag: "admin",
};

/// Imports conversations.
pub async fn import_sessions(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<Vec<Conversation>>,
) -> Result<Ok200<ImportResponse>, ApiError> {
    if body.len() > IMPORT_SESSIONS_MAX {
        return Err(ApiError::invalid_field("", format!("must hold at most {IMPORT_SESSIONS_MAX} conversations")));
    }
    let imports = body.into_iter().map(|conversation| import_session(&app, &caller, conversation));
    let mut response = ImportResponse { sessions: 0, messages: 0, refused: Vec::new() };
    for (index, outcome) in join_all(imports).await.into_iter().enumerate() {
        match outcome? {
            Ok(imported) => {
                response.sessions += u64::from(imported.session);
                response.messages += imported.messages;
            }
            Err(detail) => response.refused.push(RefusedConversation { index, detail }),
        }
    }
    Ok(Ok200(response))
}

/// Stores one conversation; the inner error is a reason for its sender, the outer one ends the request.
async fn import_session(
    app: &App,
    caller: &Caller,
    mut conversation: Conversation,
) -> Result<Result<Imported, String>, ApiError> {
    conversation.user_id = match caller.user(conversation.user_id) {
        Ok(user_id) => user_id,
        Err(error) => return Err(error),
    };
    let archived = match conversation.into_archived(&app.ctx, &caller.scope, app.limits.content_bytes_max) {
        Ok(archived) => archived,
        Err(errors) => return Ok(Err(explain(&errors))),
    };
    match app.store.import_session(&caller.scope, archived).await {
        Ok(imported) => Ok(Ok(imported)),
        Err(error @ (StoreError::Invalid { .. } | StoreError::Conflict { .. })) => Ok(Err(error.to_string())),
        Err(error) => Err(ApiError::from_store(error, "conversation")),
    }
}

/// Faults as one line for people.
pub fn explain(errors: &[FieldError]) -> String {
    errors.iter().map(|error| format!("{} {}", error.pointer, error.detail)).collect::<Vec<_>>().join("; ")
}
