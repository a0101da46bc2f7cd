//! What an item of a conversation is: how one comes in, and as which message it is stored.

mod shown;

use chatstore_core::json::RawJson;
use chatstore_core::limits::{KIND_BYTES_MAX, ROLE_BYTES_MAX};
use chatstore_core::messages::{KIND_MESSAGE, MessageStatus};
use serde_json::value::RawValue;

use super::error::{INVALID_ITEM, NOT_TO_BE_SHOWN};
use super::members::Members;
use crate::error::ApiError;

pub(super) use shown::{shown, shown_as};

/// Who can speak in a message on this wire.
const ROLES: [&str; 8] = ["unknown", "user", "assistant", "system", "critic", "discriminator", "developer", "tool"];

const ITEM_ID_CHARS_MAX: usize = 64;

/// The Agents SDK writes this into items of models that give them no ids.
const NO_ID: &str = "__fake_id__";

/// Whether a text has the form of an item's id.
fn is_item_id(text: &str) -> bool {
    (1..=ITEM_ID_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// What stands in `items` of a request.
#[derive(Clone, Debug)]
pub(super) enum Sent {
    /// An item.
    Item(Item),
    /// The id of one that is stored.
    Reference(String),
}

/// An item as it came.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Its type.
    pub(super) kind: String,
    /// Who speaks in it, or made it.
    pub(super) role: String,
    /// Whether it is complete.
    pub(super) status: MessageStatus,
    /// The id it brought.
    pub(super) id: Option<String>,
    /// All of it, byte for byte.
    pub(super) json: RawJson,
}

/// Reads the item that stands at `at` in the body. It need have no more than what is needed to show it again; types that
/// are not known here are taken as they are.
pub(super) fn read(at: &str, json: RawJson) -> Result<Sent, ApiError> {
    let invalid = |field: &str, detail: &str| ApiError::invalid_field(format!("{at}{field}"), detail.to_owned());
    let Some(members) = Members::parse(json.as_str()) else {
        return Err(invalid("", "must be an object"));
    };
    let kind = match members.get("type") {
        Some(_) => members.text("type").ok_or_else(|| invalid("/type", "must be a string"))?,
        None if members.get("role").is_some() && members.get("content").is_some() => KIND_MESSAGE.to_owned(),
        None if members.iter().all(|(key, _)| matches!(key, "id" | "type")) => "item_reference".to_owned(),
        None => return Err(invalid("/type", "is required, except for a message with `role` and `content`")),
    };
    if kind.is_empty() || kind.len() > KIND_BYTES_MAX {
        return Err(invalid("/type", &format!("must have 1 to {KIND_BYTES_MAX} bytes")));
    }
    let id = match members.get("id") {
        Some(_) => Some(members.text("id").filter(|id| is_item_id(id)).ok_or_else(|| {
            invalid("/id", &format!("must have 1 to {ITEM_ID_CHARS_MAX} letters, digits, `_` or `-`"))
        })?),
        None => None,
    };
    if kind == "item_reference" {
        return id.map(Sent::Reference).ok_or_else(|| invalid("/id", "is required"));
    }
    let id = id.filter(|id| id != NO_ID);
    if kind == KIND_MESSAGE {
        check_message(&members, &invalid)?;
    }
    if kind == "reasoning" && id.is_none() && members.get("encrypted_content").is_none() {
        return Err(ApiError::on_conversations(INVALID_ITEM, "/item", NOT_TO_BE_SHOWN.to_owned()));
    }
    let status = members.text("status").and_then(|status| MessageStatus::parse(&status));
    let (role, status) = (role_of(&kind, &members), status.unwrap_or(MessageStatus::Completed));
    Ok(Sent::Item(Item { role, status, id, kind, json }))
}

fn check_message(members: &Members<'_>, invalid: &impl Fn(&str, &str) -> ApiError) -> Result<(), ApiError> {
    if members.text("role").is_none_or(|role| !ROLES.contains(&role.as_str())) {
        return Err(invalid("/role", &format!("must be one of `{}`", ROLES.join("`, `"))));
    }
    if members.get("content").is_none_or(|content| !is_content(content)) {
        return Err(invalid("/content", "must be a string or an array of objects"));
    }
    Ok(())
}

/// Whether a value is a string or an array of objects.
fn is_content(json: &str) -> bool {
    let are_objects = |parts: Vec<&RawValue>| parts.iter().all(|part| part.get().starts_with('{'));
    json.starts_with('"') || serde_json::from_str(json).is_ok_and(are_objects)
}

/// Whose an item is: it says so, or its type does.
fn role_of(kind: &str, members: &Members<'_>) -> String {
    let said = members.text("role").filter(|role| !role.is_empty() && role.len() <= ROLE_BYTES_MAX);
    let by_kind = match kind {
        "mcp_approval_response" => "user",
        kind if kind.ends_with("_output") => "tool",
        _ => "assistant",
    };
    said.unwrap_or_else(|| by_kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(json: &str) -> Result<Sent, ApiError> {
        read("/items/0", RawJson::parse(json.to_owned()).unwrap())
    }

    fn item(json: &str) -> Item {
        match sent(json).unwrap() {
            Sent::Item(item) => item,
            Sent::Reference(id) => panic!("{id}"),
        }
    }

    #[test]
    fn an_item_says_whose_it_is() {
        for (json, kind, role) in [
            (r#"{"role":"user","content":"a"}"#, "message", "user"),
            (r#"{"type":"message","role":"developer","content":[]}"#, "message", "developer"),
            (r#"{"type":"function_call"}"#, "function_call", "assistant"),
            (r#"{"type":"function_call_output"}"#, "function_call_output", "tool"),
            (r#"{"type":"mcp_approval_response"}"#, "mcp_approval_response", "user"),
            (r#"{"type":"additional_tools","role":"developer"}"#, "additional_tools", "developer"),
            (r#"{"type":"of_tomorrow","role":7}"#, "of_tomorrow", "assistant"),
        ] {
            let item = item(json);
            assert_eq!((item.kind.as_str(), item.role.as_str()), (kind, role), "{json}");
            assert_eq!(item.json.as_str(), json);
        }
    }

    #[test]
    fn an_item_may_bring_its_id_and_its_status() {
        let whole = item(r#"{"type":"x","id":"fc_1-A","status":"incomplete"}"#);
        assert_eq!((whole.id.as_deref(), whole.status), (Some("fc_1-A"), MessageStatus::Incomplete));
        let bare = item(r#"{"type":"x","id":null,"status":"searching"}"#);
        assert_eq!((bare.id, bare.status), (None, MessageStatus::Completed));
        assert_eq!(item(r#"{"type":"x","id":"__fake_id__"}"#).id, None);
    }

    #[test]
    fn an_id_alone_is_a_reference() {
        for json in [r#"{"id":"msg_1"}"#, r#"{"type":null,"id":"msg_1"}"#, r#"{"type":"item_reference","id":"msg_1"}"#]
        {
            assert!(matches!(sent(json).unwrap(), Sent::Reference(id) if id == "msg_1"), "{json}");
        }
    }

    #[test]
    fn what_could_not_be_shown_again_is_refused() {
        for (json, pointer) in [
            ("1", "/items/0"),
            ("[]", "/items/0"),
            ("{}", "/items/0/id"),
            (r#"{"type":7}"#, "/items/0/type"),
            (r#"{"type":""}"#, "/items/0/type"),
            (r#"{"role":"user"}"#, "/items/0/type"),
            (r#"{"type":"message","content":"a"}"#, "/items/0/role"),
            (r#"{"role":"narrator","content":"a"}"#, "/items/0/role"),
            (r#"{"role":"user","content":7}"#, "/items/0/content"),
            (r#"{"role":"user","content":["a"]}"#, "/items/0/content"),
            (r#"{"type":"message","role":"user"}"#, "/items/0/content"),
            (r#"{"type":"x","id":7}"#, "/items/0/id"),
            (r#"{"type":"x","id":""}"#, "/items/0/id"),
            (r#"{"type":"x","id":"a/b"}"#, "/items/0/id"),
            (r#"{"type":"item_reference"}"#, "/items/0/id"),
            (r#"{"type":"reasoning","summary":[]}"#, "/item"),
        ] {
            let error = sent(json).unwrap_err();
            assert_eq!(error.errors()[0].pointer, pointer, "{json}");
        }
    }
}
