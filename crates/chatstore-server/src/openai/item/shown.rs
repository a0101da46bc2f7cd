//! A message as an item: nothing stands in it that was not sent, but for what every item has.

use chatstore_core::json::RawJson;
use chatstore_core::messages::{KIND_MESSAGE, Message, MessageStatus, item_prefix};

use super::{ROLES, check_message, is_item_id, role_of};
use crate::error::ApiError;
use crate::openai::members::{Members, quoted};

/// A message as an item, and its id.
pub(in crate::openai) fn shown(message: &Message) -> (String, RawJson) {
    let payload = message.payload.as_ref().and_then(|payload| Some((payload, Members::parse(payload.as_str())?)));
    let Some((payload, members)) = payload.filter(|(_, members)| is_item(&message.kind, members)) else {
        let id = own_name(message)
            .map_or_else(|| message.message_id.to_item_id(item_prefix(KIND_MESSAGE)), ToOwned::to_owned);
        let item = of_text(message, &id);
        return (id, item);
    };
    let own = members.text("id");
    let id = item_id(message, own.as_deref());
    let mut changes = Vec::new();
    if own.as_deref() != Some(&id) {
        changes.push(("id", quoted(&id)));
    }
    // Who ends an item on the native surface, or gives it to another, need not write it anew.
    let was_in_progress = members.text("status").as_deref() == Some(MessageStatus::InProgress.as_str());
    if was_in_progress && message.status != MessageStatus::InProgress {
        changes.push(("status", quoted(message.status.as_str())));
    }
    let has_other = message.role != role_of(&message.kind, &members) && ROLES.contains(&message.role.as_str());
    let role = members.text("role").map(|said| if has_other { message.role.clone() } else { said });
    if has_other && let Some(role) = &role {
        changes.push(("role", quoted(role)));
    }
    if message.kind == KIND_MESSAGE {
        complete_message(message, &role.unwrap_or_default(), &members, &mut changes);
    }
    let item = if changes.is_empty() { payload.clone() } else { members.with(&changes) };
    (id, item)
}

/// The same under another id.
pub(in crate::openai) fn shown_as(message: &Message, id: &str) -> RawJson {
    let (_, item) = shown(message);
    let renamed = Members::parse(item.as_str()).map(|members| members.with(&[("id", quoted(id))]));
    renamed.unwrap_or(item)
}

/// Whether a payload is an item of this type, in a form that can be shown.
fn is_item(kind: &str, members: &Members<'_>) -> bool {
    match members.get("type") {
        _ if kind != KIND_MESSAGE => members.text("type").as_deref() == Some(kind),
        Some(_) if members.text("type").as_deref() != Some(KIND_MESSAGE) => false,
        _ => check_message(members, &|_, _| ApiError::not_found("message")).is_ok(),
    }
}

/// What a message of `role` has beside what was sent; its content is an array.
fn complete_message(message: &Message, role: &str, members: &Members<'_>, changes: &mut Vec<(&'static str, String)>) {
    if members.get("type").is_none() {
        changes.push(("type", quoted(KIND_MESSAGE)));
    }
    if members.get("status").is_none() {
        changes.push(("status", quoted(message.status.as_str())));
    }
    if let Some(text) = members.text("content") {
        changes.push(("content", format!("[{}]", part(role, &text))));
    }
}

fn of_text(message: &Message, id: &str) -> RawJson {
    let role = if ROLES.contains(&message.role.as_str()) { &message.role } else { "unknown" };
    let members = [
        ("id", quoted(id)),
        ("type", quoted(KIND_MESSAGE)),
        ("status", quoted(message.status.as_str())),
        ("role", quoted(role)),
        ("content", format!("[{}]", part(role, &message.content))),
    ];
    Members::none().with(&members)
}

/// A text as a part of a message's content.
fn part(role: &str, text: &str) -> String {
    let text = quoted(text);
    match role {
        "assistant" => format!(r#"{{"type":"output_text","text":{text},"annotations":[],"logprobs":[]}}"#),
        _ => format!(r#"{{"type":"input_text","text":{text}}}"#),
    }
}

/// The id by which the item is found: the one in the item if the message is known by it; else the message's own name if
/// it fits the type; else one that is made of the message's id.
fn item_id(message: &Message, in_item: Option<&str>) -> String {
    let prefix = item_prefix(&message.kind);
    let fits =
        |name: &&str| in_item == Some(name) || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('_'));
    own_name(message).filter(fits).map_or_else(|| message.message_id.to_item_id(prefix), ToOwned::to_owned)
}

/// The name that the client gave the message, if it has the form of an item's id.
fn own_name(message: &Message) -> Option<&str> {
    message.external_id.as_deref().filter(|name| is_item_id(name))
}
