//! An object's members one by one, and changes to it that keep every byte of the others.

use std::fmt;

use chatstore_core::json::RawJson;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object, as they are written.
pub(super) struct Members<'a> {
    json: &'a str,
    all: Vec<(String, &'a RawValue)>,
}

impl<'a> Members<'a> {
    /// Those of a JSON text; `None` if it is no object.
    pub(super) fn parse(json: &'a str) -> Option<Self> {
        let All(all) = serde_json::from_str(json).ok()?;
        Some(Self { json, all })
    }

    /// Those of `{}`.
    pub(super) fn none() -> Self {
        Self { json: "{}", all: Vec::new() }
    }

    /// The value of a member, the last one of its name; null counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.all.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.get()).filter(|value| *value != "null")
    }

    /// The same if it is a string.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// Names and values, as they are written.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.all.iter().map(|(key, value)| (key.as_str(), value.get()))
    }

    /// The object with other values for some members; those it lacks come first, in their order. Every other byte stays.
    pub(super) fn with(&self, others: &[(&str, String)]) -> RawJson {
        let is_there = |name: &str| self.all.iter().any(|(key, _)| key == name);
        let added = others.iter().filter(|(name, _)| !is_there(name));
        let added: Vec<String> = added.map(|(name, value)| format!("{}:{value}", quoted(name))).collect();
        let begin = self.json.find('{').map_or(0, |brace| brace + 1);
        let comma = if added.is_empty() || self.all.is_empty() { "" } else { "," };
        let mut written = format!("{}{}{comma}", &self.json[..begin], added.join(","));
        let mut kept_to = begin;
        for (key, value) in &self.all {
            if let Some((_, other)) = others.iter().find(|(name, _)| name == key) {
                let value_at = value.get().as_ptr() as usize - self.json.as_ptr() as usize;
                written.push_str(&self.json[kept_to..value_at]);
                written.push_str(other);
                kept_to = value_at + value.get().len();
            }
        }
        written.push_str(&self.json[kept_to..]);
        RawJson::parse(written).unwrap_or_else(|_| RawJson::empty_object())
    }
}

/// A text as JSON.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

struct All<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for All<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AllVisitor;
        impl<'de> Visitor<'de> for AllVisitor {
            type Value = All<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(All(members))
            }
        }
        deserializer.deserialize_map(AllVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_keeps_its_bytes() {
        let members = Members::parse(r#"{ "b": 1.0e0,"a":{ "x":1 } , "i\u0064" : null,"c":"\u00e9"}"#).unwrap();
        assert_eq!((members.get("a"), members.get("id")), (Some(r#"{ "x":1 }"#), None));
        assert_eq!(members.text("c").as_deref(), Some("é"));
        let with = members.with(&[("id", quoted("x")), ("type", quoted("t"))]);
        assert_eq!(with.as_str(), r#"{"type":"t", "b": 1.0e0,"a":{ "x":1 } , "i\u0064" : "x","c":"\u00e9"}"#);
        for (json, with) in [("{}", r#"{"id":1}"#), (r#"{ "id":2,"id" :3}"#, r#"{ "id":1,"id" :1}"#)] {
            assert_eq!(Members::parse(json).unwrap().with(&[("id", "1".to_owned())]).as_str(), with);
        }
        assert_eq!(Members::none().with(&[]).as_str(), "{}");
        for other in ["[]", "1", "null", "\"x\""] {
            assert!(Members::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn of_a_repeated_member_the_last_one_counts() {
        assert_eq!(Members::parse(r#"{"a":1,"a":2}"#).unwrap().get("a"), Some("2"));
    }
}
