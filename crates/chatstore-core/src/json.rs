//! JSON kept byte for byte, and the check for what both engines cannot hold.

mod meaning;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::limits::JSON_DEPTH_MAX;

/// A JSON text as the client sent it: never reordered, rounded or re-spaced.
#[derive(Clone)]
pub struct RawJson(Box<RawValue>);

impl RawJson {
    /// Takes `text` if it is one well-formed JSON value.
    pub fn parse(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(Self)
    }

    /// `{}`: what metadata is when none was given.
    pub fn empty_object() -> Self {
        Self(RawValue::from_string("{}".to_owned()).expect("`{}` is JSON"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Bytes of the text.
    pub fn bytes(&self) -> usize {
        self.as_str().len()
    }

    /// Whether the value is an object.
    pub fn is_object(&self) -> bool {
        self.as_str().starts_with('{')
    }

    /// Whether both are the same value, in whatever order, spacing and escapes they are written: `1.0` is 1, and fractions
    /// are the same if they are read as the same double. What is longer than 2 MiB or holds a number of 2^64 or more must be
    /// the same text.
    pub fn has_value_of(&self, other: &Self) -> bool {
        self == other
            || meaning::digest(self.as_str()).is_some_and(|digest| Some(digest) == meaning::digest(other.as_str()))
    }

    /// The object's top-level members that are strings, numbers or booleans, each as the text a
    /// filter names it by: a number as it is written. The last of a repeated key counts; an array or other value has none.
    pub fn scalars(&self) -> Vec<(String, String)> {
        if self.as_str() == "{}" {
            return Vec::new();
        }
        let Ok(members) = serde_json::from_str::<BTreeMap<String, &RawValue>>(self.as_str()) else {
            return Vec::new();
        };
        let text = |value: &RawValue| match value.get().as_bytes().first() {
            Some(b'"') => serde_json::from_str(value.get()).ok(),
            Some(b'{' | b'[' | b'n') | None => None,
            Some(_) => Some(value.get().to_owned()),
        };
        members.into_iter().filter_map(|(key, value)| Some((key, text(value)?))).collect()
    }
}

impl fmt::Debug for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RawJson {}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self)
    }
}

/// What a JSON text contains that not every engine can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unstorable {
    /// The character U+0000.
    Nul,
    /// One half of a surrogate pair.
    LoneSurrogate,
    /// Nesting beyond [`JSON_DEPTH_MAX`].
    TooDeep,
}

impl fmt::Display for Unstorable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nul => f.write_str("contains the character U+0000, which cannot be stored"),
            Self::LoneSurrogate => f.write_str("contains half of a surrogate pair, which is no character"),
            Self::TooDeep => write!(f, "is nested deeper than {JSON_DEPTH_MAX} levels"),
        }
    }
}

/// The first thing in a JSON text that cannot be stored, with the JSON Pointer (RFC 6901) to the
/// value (or to the object, when a key is at fault). The text need not be well-formed; then the
/// answer is a guess that a parser will overrule.
pub fn find_unstorable(json: &[u8]) -> Option<(String, Unstorable)> {
    let mut walk = Walk::new(json);
    let fault = walk.run()?;
    Some((walk.pointer(), fault))
}

/// The objects and arrays in the four upper levels of a JSON text, well-formed or not: as many as a
/// reader of it would hold apart, whatever else stays one piece of text.
pub fn upper_containers(json: &[u8]) -> usize {
    let (mut depth, mut count, mut at) = (0_usize, 0, 0);
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while json.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if json[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'{' | b'[' => {
                depth += 1;
                count += usize::from(depth <= 4);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    count
}

/// A walk over the bytes that remembers where it stands: the key's place or the index for each
/// container it is in. Nothing is allocated for a key until a fault is found.
struct Walk<'a> {
    json: &'a [u8],
    at: usize,
    stack: Vec<Step>,
}

/// The place inside one container.
enum Step {
    /// The byte range of the last key, quotes included, and whether a key comes next.
    Object {
        key: Option<(usize, usize)>,
        expects_key: bool,
    },
    Array {
        index: usize,
    },
}

impl<'a> Walk<'a> {
    fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0, stack: Vec::new() }
    }

    fn run(&mut self) -> Option<Unstorable> {
        while let Some(&byte) = self.json.get(self.at) {
            match byte {
                b'"' => {
                    let start = self.at;
                    let fault = self.skip_string();
                    if let Some(Step::Object { key, expects_key: true }) = self.stack.last_mut() {
                        // A faulty key has no pointer that could be written down.
                        *key = fault.is_none().then_some((start, self.at));
                    }
                    if fault.is_some() {
                        return fault;
                    }
                    continue;
                }
                b'{' | b'[' if self.stack.len() == JSON_DEPTH_MAX => return Some(Unstorable::TooDeep),
                b'{' => self.stack.push(Step::Object { key: None, expects_key: true }),
                b'[' => self.stack.push(Step::Array { index: 0 }),
                b'}' | b']' => {
                    self.stack.pop();
                }
                b':' => self.expect_key(false),
                b',' => match self.stack.last_mut() {
                    Some(Step::Array { index }) => *index += 1,
                    _ => self.expect_key(true),
                },
                _ => {}
            }
            self.at += 1;
        }
        None
    }

    fn expect_key(&mut self, yes: bool) {
        if let Some(Step::Object { expects_key, .. }) = self.stack.last_mut() {
            *expects_key = yes;
        }
    }

    /// Moves past a string and tells what is wrong in it.
    fn skip_string(&mut self) -> Option<Unstorable> {
        self.at += 1;
        let mut high_surrogate = false;
        let mut fault = None;
        while let Some(&byte) = self.json.get(self.at) {
            if byte == b'\\' && self.json.get(self.at + 1) == Some(&b'u') {
                let unit = self.json.get(self.at + 2..self.at + 6).and_then(hex4);
                let low = matches!(unit, Some(0xDC00..=0xDFFF));
                if low != high_surrogate {
                    fault = fault.or(Some(Unstorable::LoneSurrogate));
                }
                high_surrogate = matches!(unit, Some(0xD800..=0xDBFF));
                if unit == Some(0) {
                    fault = fault.or(Some(Unstorable::Nul));
                }
                self.at += 6;
                continue;
            }
            if high_surrogate {
                fault = fault.or(Some(Unstorable::LoneSurrogate));
                high_surrogate = false;
            }
            self.at += match byte {
                b'"' => break,
                b'\\' => 2,
                _ => 1,
            };
        }
        self.at += 1;
        fault
    }

    fn pointer(&self) -> String {
        let mut pointer = String::new();
        for step in &self.stack {
            match step {
                Step::Array { index } => pointer.push_str(&format!("/{index}")),
                Step::Object { key: Some((start, end)), .. } => {
                    let key = serde_json::from_slice::<String>(&self.json[*start..*end]).unwrap_or_default();
                    pointer.push('/');
                    pointer.push_str(&escape_pointer(&key));
                }
                Step::Object { key: None, .. } => break,
            }
        }
        pointer
    }
}

/// A key as it stands in a JSON Pointer (RFC 6901, section 3).
pub fn escape_pointer(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn hex4(digits: &[u8]) -> Option<u16> {
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fault(json: &str) -> Option<(String, Unstorable)> {
        find_unstorable(json.as_bytes())
    }

    #[test]
    fn equal_values_are_equal_however_they_are_written() {
        let json = |text: &str| RawJson::parse(text.to_owned()).unwrap();
        let one = json(r#"{"a": [1, {"b":"\u00e9"}, -7, true, 1.5e0], "c":null}"#);
        assert!(one.has_value_of(&json(r#"{"c":null,"a":[1,{"b":"é"},-7,true,1.50]}"#)));
        for other in [
            r#"{"a":[1,{"b":"é"},-7,true,1.5]}"#,
            r#"{"c":null,"a":[2,{"b":"é"},-7,true,1.5]}"#,
            r#"{"c":null,"a":[{"b":"é"},1,-7,true,1.5]}"#,
            r#"{"c":null,"a":[1,{"b":"é"},-7,true,1.5,[]]}"#,
            r#"{"c":"null","a":[1,{"b":"é"},-7,true,1.5]}"#,
            r#"{"a":null,"c":[1,{"b":"é"},-7,true,1.5]}"#,
        ] {
            assert!(!one.has_value_of(&json(other)), "{other}");
        }
        for (a, b) in
            [(r#"["ab","c"]"#, r#"["a","bc"]"#), ("[[],[]]", "[[[]]]"), (r#"{"a":{"b":1}}"#, r#"{"a":1,"b":1}"#)]
        {
            assert!(!json(a).has_value_of(&json(b)), "{a} {b}");
        }
        assert!(json("[1e999]").has_value_of(&json("[1e999]")));
        assert!(!json("[1e999]").has_value_of(&json("[ 1e999]")), "no double comes near it");
        for (number, other, is_same) in [
            ("1767225600000.0", "1767225600000", true),
            ("-1767225600000.0", "-1767225600000", true),
            ("9007199254740992", "9007199254740992.0", true),
            ("9007199254740993", "9007199254740992", false),
            ("18446744073709551615", "18446744073709551614", false),
            ("18446744073709551617", "18446744073709551618", false),
            ("-18446744073709551617", "-18446744073709551618", false),
        ] {
            assert_eq!(json(number).has_value_of(&json(other)), is_same, "{number} {other}");
            assert!(json(number).has_value_of(&json(number)));
        }
        let long = |space: &str| json(&format!("[{space}\"{}\"]", "x".repeat(2 << 20)));
        assert!(long("").has_value_of(&long("")));
        assert!(!long("").has_value_of(&long(" ")));
    }

    #[test]
    fn faults_are_found_with_their_place() {
        let nul = |p: &str| Some((p.to_owned(), Unstorable::Nul));
        let lone = |p: &str| Some((p.to_owned(), Unstorable::LoneSurrogate));
        assert_eq!(fault(r#"{"content":"a\u0000"}"#), nul("/content"));
        assert_eq!(fault(r#"[{"a":1},{"b":{"c/d~":["x","\u0000"]}}]"#), nul("/1/b/c~1d~0/1"));
        assert_eq!(fault(r#"{"a":{"\u0000":1}}"#), nul("/a"));
        assert_eq!(fault(r#"{"a":"\ud800"}"#), lone("/a"));
        assert_eq!(fault(r#"{"a":"\ud800x"}"#), lone("/a"));
        assert_eq!(fault(r#"{"a":"\udc00"}"#), lone("/a"));
        assert_eq!(fault(r#"{"a":"\ud800\ud800\udc00"}"#), lone("/a"));
        assert_eq!(fault(r#""\u0000""#), nul(""));
    }

    #[test]
    fn what_can_be_stored_passes() {
        for json in
            [r#"{"a":"\ud83d\ude00 \\u0000 \\\\u0000 \u0001","b":[1,{"c":null}]}"#, "{}", "[]", r#""""#, "1e400"]
        {
            assert_eq!(fault(json), None, "{json}");
        }
    }

    #[test]
    fn depth_is_counted_not_recursed() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(fault(&nested(JSON_DEPTH_MAX)), None);
        assert_eq!(fault(&nested(JSON_DEPTH_MAX + 1)).unwrap().1, Unstorable::TooDeep);
        assert_eq!(fault(&nested(200_000)).unwrap().1, Unstorable::TooDeep);
    }

    #[test]
    fn containers_are_counted_where_they_are_read_apart() {
        for (json, count) in [("[{},{}]", 3), ("\"[{\"", 0), (r#"{"a\"{":[1,{"b":{"c":{}}}]}"#, 4), ("]]{", 1), ("", 0)]
        {
            assert_eq!(upper_containers(json.as_bytes()), count, "{json}");
        }
    }

    #[test]
    fn scalars_are_what_filters_can_name() {
        let json =
            RawJson::parse(r#"{"a":"x","b":1.50,"c":true,"d":null,"e":[1],"f":{"g":1},"g":1e400}"#.to_owned()).unwrap();
        let text = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(json.scalars(), [text("a", "x"), text("b", "1.50"), text("c", "true"), text("g", "1e400")]);
        assert_eq!(json.as_str(), r#"{"a":"x","b":1.50,"c":true,"d":null,"e":[1],"f":{"g":1},"g":1e400}"#);
    }

    proptest! {
        #[test]
        fn agrees_with_a_parser(text in r#"[\[\]{}",:\\u0dD8cC a]{0,40}"#) {
            // Whatever serde_json reads as a string without NUL passes, and no input panics.
            let found = find_unstorable(text.as_bytes());
            if let Ok(serde_json::Value::String(value)) = serde_json::from_str(&text) {
                prop_assert_eq!(found.is_some(), value.contains('\0'));
            }
        }
    }
}
