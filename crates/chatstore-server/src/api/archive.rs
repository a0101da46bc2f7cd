//! Whole conversations on the wire: the form of `import` and `export`, and the import over HTTP.

mod conversation;
mod message;

use std::time::Duration;

use axum::extract::State;
use chatstore_core::api_keys::Permission;
use chatstore_core::archive::{ArchivedSession, Imported};
use chatstore_core::clock::Ctx;
use chatstore_core::ids::SessionId;
use chatstore_core::limits::{IMPORT_MESSAGES_MAX, IMPORT_SESSIONS_MAX};
use chatstore_core::store::{Scope, Store, StoreError};
use futures_util::stream::{self, StreamExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use conversation::{Conversation, KeptIds};
pub use message::ConversationMessage;

use super::OperationDoc;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Code, FieldError};
use crate::extract::Stored;
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

/// Conversations of one request that are on their way into the store at once.
const IMPORTS_AT_ONCE: usize = 16;
/// How often, and after which pause, a conversation is tried again while the store is busy.
const BUSY_PAUSES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

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
    Stored(body): Stored<Vec<Conversation>>,
) -> Result<Ok200<ImportResponse>, ApiError> {
    if body.len() > IMPORT_SESSIONS_MAX {
        return Err(ApiError::invalid_field("", format!("must hold at most {IMPORT_SESSIONS_MAX} conversations")));
    }
    if body.iter().map(|conversation| conversation.messages.len()).sum::<usize>() > IMPORT_MESSAGES_MAX {
        let detail =
            format!("One import may hold at most {IMPORT_MESSAGES_MAX} messages; send a long conversation in parts.");
        return Err(ApiError::new(Code::BodyTooLarge, detail));
    }
    // Before anything is stored: the request is refused whole.
    for conversation in &body {
        caller.user(conversation.user_id.clone())?;
    }
    let imports = body.into_iter().map(|conversation| import_session(&app, &caller, conversation));
    // Some at once, so that they share commits, but not so many that others find the queue full.
    let outcomes: Vec<_> = stream::iter(imports).buffered(IMPORTS_AT_ONCE).collect().await;
    let mut response = ImportResponse { sessions: 0, messages: 0, refused: Vec::new() };
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome? {
            Ok(imported) => {
                response.sessions += u64::from(imported.session);
                response.messages += imported.messages;
            }
            Err(detail) => response.refused.push(RefusedConversation { index, detail }),
        }
    }
    if response.messages > 0 {
        app.embedding_queued();
    }
    Ok(Ok200(response))
}

/// Stores one conversation; the inner error is a reason for its sender, the outer one ends the request.
async fn import_session(
    app: &App,
    caller: &Caller,
    mut conversation: Conversation,
) -> Result<Result<Imported, String>, ApiError> {
    conversation.user_id = caller.user(conversation.user_id)?;
    let kept = kept_ids(app, caller, &conversation).await?;
    let mut pauses = BUSY_PAUSES;
    let imported = loop {
        let (store, context) = (app.store.as_ref(), (&app.ctx, &caller.scope));
        let rules = ImportRules { content_bytes_max: app.limits.content_bytes_max, embed: app.embedder.is_some() };
        let attempt = import_conversation(store, context, kept, rules, &conversation);
        match attempt.await {
            Err(ImportError::Store(StoreError::Busy)) if pauses > 0 => {
                pauses -= 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            imported => break imported,
        }
    };
    match imported {
        Ok(imported) => Ok(Ok(imported)),
        Err(ImportError::Refused(detail)) => Ok(Err(detail)),
        Err(ImportError::Store(error)) => Err(ApiError::from_store(error, "conversation")),
    }
}

/// An operator brings ids as they are. Anyone else keeps the id of a session of their own; else
/// it would show that an id is taken in another project.
async fn kept_ids(app: &App, caller: &Caller, conversation: &Conversation) -> Result<KeptIds, ApiError> {
    if caller.scopes.contains(Permission::Operator) {
        return Ok(KeptIds::ALL);
    }
    let Some(session_id) = conversation.session_id.as_deref().and_then(SessionId::parse) else {
        return Ok(KeptIds::NONE);
    };
    let own = app.store.get_session(&caller.scope, session_id).await;
    let own = own.map_err(|error| ApiError::from_store(error, "session"))?;
    Ok(KeptIds { session: own.is_some(), messages: false })
}

/// What holds for all conversations of an import.
#[derive(Clone, Copy, Debug)]
pub struct ImportRules {
    /// Bytes of one message's content, unless it comes from an export.
    pub content_bytes_max: usize,
    /// Whether messages are queued for the embedding source.
    pub embed: bool,
}

/// Why a conversation was not stored.
#[derive(Debug)]
pub enum ImportError {
    /// It breaks a rule: the reason, for its sender.
    Refused(String),
    /// The store could not.
    Store(StoreError),
}

/// Stores a conversation as it is; where its ids are taken by something else, under ids derived
/// from them, which are the same when it comes again.
///
/// # Errors
/// If it breaks a rule, or the store cannot take it.
pub async fn import_conversation(
    store: &dyn Store,
    (ctx, scope): (&Ctx, &Scope),
    kept: KeptIds,
    rules: ImportRules,
    conversation: &Conversation,
) -> Result<Imported, ImportError> {
    let archived = |kept| {
        let archived = conversation.clone().into_archived(ctx, scope, kept, rules.content_bytes_max);
        let archived = archived.map(|archived| ArchivedSession { embed: rules.embed, ..archived });
        archived.map_err(|errors| ImportError::Refused(explain(&errors)))
    };
    let imported = match store.import_session(scope, archived(kept)?).await {
        Err(StoreError::Conflict { field: "session_id" | "message_id" }) if conversation.session_id.is_some() => {
            store.import_session(scope, archived(KeptIds::NONE)?).await
        }
        imported => imported,
    };
    imported.map_err(|error| match error {
        StoreError::Conflict { field } => {
            ImportError::Refused(format!("its `{field}` belongs to something else in the store"))
        }
        StoreError::Invalid { pointer, detail } => ImportError::Refused(format!("{pointer} {detail}")),
        StoreError::QuotaExceeded { quota, max } => {
            ImportError::Refused(format!("it is more than the quota `{quota}` allows, which is {max}"))
        }
        error => ImportError::Store(error),
    })
}

/// Faults as one line for people.
pub fn explain(errors: &[FieldError]) -> String {
    errors.iter().map(|error| format!("{} {}", error.pointer, error.detail)).collect::<Vec<_>>().join("; ")
}
