//! The metadata of a conversation: a few short texts.

use std::collections::HashSet;

use chatstore_core::json::{RawJson, escape_pointer};
use chatstore_core::limits::{
    CONVERSATION_METADATA_BYTES_MAX, CONVERSATION_METADATA_KEY_CHARS_MAX, CONVERSATION_METADATA_PAIRS_MAX,
    CONVERSATION_METADATA_VALUE_CHARS_MAX,
};

use super::members::Members;
use crate::error::ApiError;

/// Refuses metadata that this wire cannot carry.
pub(super) fn check_metadata(metadata: &RawJson) -> Result<(), ApiError> {
    let invalid = |key: Option<&str>, detail: String| {
        let key = key.map(|key| format!("/{}", escape_pointer(key)));
        Err(ApiError::invalid_field(format!("/metadata{}", key.unwrap_or_default()), detail))
    };
    let Some(members) = Members::parse(metadata.as_str()) else {
        return invalid(None, "must be an object".to_owned());
    };
    if members.iter().count() > CONVERSATION_METADATA_PAIRS_MAX {
        return invalid(None, format!("must have at most {CONVERSATION_METADATA_PAIRS_MAX} pairs"));
    }
    let mut keys = HashSet::new();
    for (key, value) in members.iter() {
        if !keys.insert(key) {
            return invalid(Some(key), "must not stand there twice".to_owned());
        }
        if key.chars().count() > CONVERSATION_METADATA_KEY_CHARS_MAX {
            return invalid(
                Some(key),
                format!("has a key of more than {CONVERSATION_METADATA_KEY_CHARS_MAX} characters"),
            );
        }
        let Ok(text) = serde_json::from_str::<String>(value) else {
            return invalid(Some(key), "must be a string".to_owned());
        };
        if text.chars().count() > CONVERSATION_METADATA_VALUE_CHARS_MAX {
            let detail = format!("must have at most {CONVERSATION_METADATA_VALUE_CHARS_MAX} characters");
            return invalid(Some(key), detail);
        }
    }
    if metadata.bytes() > CONVERSATION_METADATA_BYTES_MAX {
        return invalid(None, format!("must have at most {CONVERSATION_METADATA_BYTES_MAX} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fault(metadata: &serde_json::Value) -> Option<String> {
        let metadata = RawJson::parse(metadata.to_string()).unwrap();
        check_metadata(&metadata).err().map(|error| error.errors()[0].pointer.clone())
    }

    fn pairs(count: usize) -> serde_json::Value {
        (0..count).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
    }

    #[test]
    fn the_limits_are_those_of_the_wire() {
        assert_eq!(fault(&pairs(16)), None);
        assert_eq!(fault(&pairs(17)).as_deref(), Some("/metadata"));
        assert_eq!(fault(&json!({"é".repeat(64): "é".repeat(512)})), None);
        let emoji = |n: usize| format!("{n:02}{}", "\u{1F600}".repeat(62));
        let full: serde_json::Map<_, _> = (0..16).map(|n| (emoji(n), json!("\u{1F600}".repeat(512)))).collect();
        assert_eq!(fault(&full.into()), None);
        let long = "k".repeat(65);
        assert_eq!(fault(&json!({&long: "v"})), Some(format!("/metadata/{long}")));
        assert_eq!(fault(&json!({"a/b": "v".repeat(513)})).as_deref(), Some("/metadata/a~1b"));
        for value in [json!(1), json!(null), json!(true), json!(["v"]), json!({})] {
            assert_eq!(fault(&json!({"topic": value})).as_deref(), Some("/metadata/topic"));
        }
        for metadata in [json!([]), json!("x"), json!(1)] {
            assert_eq!(fault(&metadata).as_deref(), Some("/metadata"));
        }
        let twice = RawJson::parse(r#"{"a":"1","b":"1","\u0061":"2"}"#.to_owned()).unwrap();
        assert_eq!(check_metadata(&twice).unwrap_err().errors()[0].pointer, "/metadata/a");
    }
}
