//! `/v1`: OpenAI's Conversations, a file a noun. A conversation is a session, an item is a message.

pub mod conversations;
pub mod error;
mod item;
pub mod items;
mod lists;
mod members;
mod metadata;
mod path;

pub use path::{ConversationPath, ItemPath};

/// The operations whose bodies hold items.
pub const TAKING_ITEMS: [&str; 2] = [conversations::CREATE_CONVERSATION.id, items::CREATE_ITEMS.id];

/// Whether what stands at this path speaks this wire, errors included.
pub fn serves(path: &str) -> bool {
    path.strip_prefix("/v1").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
