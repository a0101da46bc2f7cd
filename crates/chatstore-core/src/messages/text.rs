//! What of a structured item people read.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use crate::json::RawJson;

/// Members that are read in items of every type, in the order of their texts, and those that only some types have.
const ITEM_KEYS: [&str; 16] = [
    "name",
    "summary",
    "content",
    "text",
    "code",
    "input",
    "queries",
    "action",
    "arguments",
    "output",
    "outputs",
    "type",
    "result",
    "operation",
    "reason",
    "results",
];

/// Members that are read in what stands in those.
const PART_KEYS: [&str; 9] = ["text", "refusal", "stdout", "stderr", "logs", "query", "queries", "command", "commands"];

/// What is nested deeper is not read, so that no text exhausts the stack; stored items end long before.
const DEPTH_MAX: usize = 128;

/// The text projection of a structured item: what of it people read and search. It is its name, and the text of its
/// summaries, content parts, code, inputs, queries, commands, arguments and outputs, in that order, a line each; then, by
/// type, the result of a program, the diff of a patch, the reason of an approval, and what a file search found.
pub fn payload_text(payload: &RawJson) -> String {
    let item = payload.as_str();
    if item.starts_with('"') {
        return unquoted(item).unwrap_or_default().into_owned();
    }
    let [always @ .., kind, result, operation, reason, results] = members(item, ITEM_KEYS);
    // A `result` is no text in other types: that of `image_generation_call` is an image.
    let of_type = match kind.and_then(unquoted).as_deref() {
        Some("program_output") => result,
        Some("apply_patch_call") => operation.and_then(|operation| members(operation, ["diff"])[0]),
        Some("mcp_approval_response") => reason,
        Some("file_search_call") => results,
        _ => None,
    };
    let mut lines = String::new();
    for value in always.into_iter().chain([of_type]).flatten() {
        let _ = Reader(value).text(DEPTH_MAX, &mut lines);
    }
    lines
}

/// The values of an object's members of these names, each the last one of its name; none if it is no object.
fn members<'a, const N: usize>(json: &'a str, keys: [&str; N]) -> [Option<&'a str>; N] {
    let mut values = [None; N];
    if json.starts_with('{') {
        let _ = Reader(json).members(|reader, key| {
            let value = reader.value()?;
            if let Some(n) = keys.iter().position(|of| *of == key) {
                values[n] = Some(value);
            }
            Some(())
        });
    }
    values
}

/// What a JSON string says; `None` for another value, or half of a surrogate pair.
fn unquoted(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(json).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

fn add_line(lines: &mut String, text: Cow<'_, str>) {
    match (lines.is_empty(), text.is_empty()) {
        (_, true) => {}
        (true, false) => *lines = text.into_owned(),
        (false, false) => {
            lines.push('\n');
            lines.push_str(&text);
        }
    }
}

/// What is left of a well-formed JSON text. It is read in one pass, and numbers never are: there are such that no double
/// comes near. `None` stands for a text that is not well-formed after all.
struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    /// The next byte that is no blank.
    fn peek(&mut self) -> Option<u8> {
        self.0 = self.0.trim_ascii_start();
        self.0.bytes().next()
    }

    fn advance(&mut self) -> Option<()> {
        self.0 = self.0.get(1..)?;
        Some(())
    }

    /// The next value as it is written.
    fn value(&mut self) -> Option<&'a str> {
        self.peek()?;
        let mut values = serde_json::Deserializer::from_str(self.0).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        let (value, rest) = self.0.split_at_checked(values.byte_offset())?;
        self.0 = rest;
        Some(value)
    }

    /// Reads the elements of an array, or the members of an object.
    fn each(&mut self, mut read: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.advance()?;
        loop {
            match self.peek()? {
                b']' | b'}' => return self.advance(),
                b',' => self.advance()?,
                _ => read(self)?,
            }
        }
    }

    /// Reads the values of an object's members.
    fn members(&mut self, mut read: impl FnMut(&mut Self, &str) -> Option<()>) -> Option<()> {
        self.each(|reader| {
            let key = unquoted(reader.value()?).unwrap_or_default();
            reader.peek().filter(|byte| *byte == b':')?;
            reader.advance()?;
            read(reader, &key)
        })
    }

    /// Adds the texts in the next value.
    fn text(&mut self, depth: usize, lines: &mut String) -> Option<()> {
        match self.peek()? {
            b'"' => add_line(lines, unquoted(self.value()?).unwrap_or_default()),
            b'[' if depth > 0 => self.each(|reader| reader.text(depth - 1, lines))?,
            b'{' if depth > 0 => {
                let mut texts: [String; PART_KEYS.len()] = Default::default();
                self.members(|reader, key| match PART_KEYS.iter().position(|of| *of == key) {
                    Some(n) => {
                        texts[n].clear();
                        reader.text(depth - 1, &mut texts[n])
                    }
                    None => reader.value().map(drop),
                })?;
                texts.into_iter().for_each(|text| add_line(lines, Cow::Owned(text)));
            }
            _ => {
                self.value()?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn text(payload: &str) -> String {
        payload_text(&RawJson::parse(payload.to_owned()).unwrap())
    }

    /// The text of an item, and of the same with a number beside its members that no double comes near.
    #[track_caller]
    fn assert_text(item: &str, expected: &str) {
        assert_eq!(text(item), expected);
        let members = item.strip_prefix('{').unwrap();
        let comma = if members.starts_with('}') { "" } else { "," };
        assert_eq!(text(&format!(r#"{{"n":1e400{comma}{members}"#)), expected);
        let members = item.strip_suffix('}').unwrap();
        let comma = if members == "{" { "" } else { "," };
        assert_eq!(text(&format!(r#"{members}{comma}"n":{{"a":[-1E+999]}}}}"#)), expected);
    }

    #[test]
    fn the_text_of_an_item_is_what_people_read() {
        for (item, expected) in [
            (r#"{"type":"message","content":"hi"}"#, "hi"),
            (
                r#"{"content":[{"type":"input_text","text":"a"},{"type":"image"},{"type":"refusal","refusal":"no"}]}"#,
                "a\nno",
            ),
            (r#"{"type":"function_call","name":"f","arguments":"{\"x\":1}"}"#, "f\n{\"x\":1}"),
            (r#"{"type":"reasoning","summary":[{"text":"because"}]}"#, "because"),
            (r#"{"type":"function_call_output","output":"42"}"#, "42"),
            (r#"{"type":"code_interpreter_call","code":"1+1","outputs":[{"logs":"2"}]}"#, "1+1\n2"),
            (r#"{"type":"custom_tool_call","name":"f","input":"x"}"#, "f\nx"),
            (r#"{"type":"file_search_call","queries":["a","b"]}"#, "a\nb"),
            (r#"{"type":"web_search_call","action":{"type":"search","query":"q"}}"#, "q"),
            (r#"{"type":"local_shell_call","action":{"command":["ls","-l"]}}"#, "ls\n-l"),
            (r#"{"type":"shell_call_output","output":[{"stdout":"a","stderr":""}]}"#, "a"),
            (r#"{"type":"image_generation_call","result":"aGk="}"#, ""),
            ("{}", ""),
        ] {
            assert_text(item, expected);
        }
        for (other, expected) in
            [("[1,2]", ""), (r#"["a"]"#, ""), (r#" "a\u00e9" "#, "aé"), ("1e400", ""), ("null", ""), (r#""""#, "")]
        {
            assert_eq!(text(other), expected, "{other}");
        }
    }

    #[test]
    fn some_texts_are_of_one_type() {
        for (item, expected) in [
            (r#"{"result":"the answer","type":"program_output","status":"completed"}"#, "the answer"),
            (r#"{"type":"program_output","result":[{"type":"output_text","text":"a"},{"text":"b"}]}"#, "a\nb"),
            (r#"{"type":"apply_patch_call","operation":{"type":"update_file","path":"p","diff":"+x\n-y"}}"#, "+x\n-y"),
            (r#"{"type":"apply_patch_call","operation":{"type":"delete_file","path":"p"}}"#, ""),
            (r#"{"type":"apply_patch_call","operation":"x"}"#, ""),
            (r#"{"type":"mcp_approval_response","approve":false,"reason":"because"}"#, "because"),
            (
                r#"{"type":"file_search_call","results":[{"file_id":"f","text":"a","score":0.5},{"text":"b"}],"queries":["q"]}"#,
                "q\na\nb",
            ),
            (r#"{"type":"file_search_call","queries":["q"],"results":null}"#, "q"),
            // The last type counts, as everywhere.
            (r#"{"type":"program_output","result":"aGk=","type":"image_generation_call"}"#, ""),
            (r#"{"type":"x","result":"a","operation":{"diff":"b"},"reason":"c","results":[{"text":"d"}]}"#, ""),
        ] {
            assert_text(item, expected);
        }
    }

    #[test]
    fn numbers_are_not_read() {
        assert_text(r#"{"content":[1e400,{"text":"a","x":[1e400]},-1e400,{"text":1e400},"b"],"name":1e400}"#, "a\nb");
    }

    #[test]
    fn no_nesting_exhausts_the_stack() {
        let nested = |n: usize| format!(r#"{{"content":{}"a"{},"name":"f"}}"#, "[".repeat(n), "]".repeat(n));
        assert_eq!(text(&nested(100)), "f\na");
        assert_eq!(text(&nested(100_000)), "f");
        let nested = |n: usize| format!(r#"{{"content":{}"a"{}}}"#, r#"{"text":"#.repeat(n), "}".repeat(n));
        assert_eq!((text(&nested(100)).as_str(), text(&nested(100_000)).as_str()), ("a", ""));
    }

    /// The same by a tree of the item.
    fn by_tree(item: &str) -> String {
        fn collect<'a>(value: Option<&'a Value>, lines: &mut Vec<&'a str>) {
            match value {
                Some(Value::String(text)) if !text.is_empty() => lines.push(text),
                Some(Value::Array(parts)) => parts.iter().for_each(|part| collect(Some(part), lines)),
                Some(Value::Object(part)) => PART_KEYS.iter().for_each(|key| collect(part.get(*key), lines)),
                _ => {}
            }
        }
        let item: Value = serde_json::from_str(item).unwrap();
        let mut lines: Vec<&str> = item.as_str().into_iter().collect();
        ITEM_KEYS[..11].iter().for_each(|key| collect(item.get(key), &mut lines));
        lines.join("\n")
    }

    /// JSON, written in many ways, with the members that are read and others, some of them twice.
    fn any_json() -> impl Strategy<Value = String> {
        let keys: Vec<&str> = ITEM_KEYS.into_iter().chain(PART_KEYS).filter(|key| *key != "type").collect();
        let key = prop_oneof![
            8 => proptest::sample::select(keys).prop_map(|key| format!("\"{key}\"")),
            1 => Just(r#""\u0074ext""#.to_owned()),
            1 => Just(r#""te\"xt,:]}""#.to_owned()),
        ];
        let leaf = prop_oneof![
            3 => "[a-z]{0,3}".prop_map(|text| Value::from(text).to_string()),
            2 => any::<String>().prop_map(|text| Value::from(text).to_string()),
            1 => proptest::sample::select(vec![
                r#""\ud83d\ude00\/\u0000\n""#, r#""]},:{[\"\\""#, "1", "-0.5e-3", "true", "null", "[ ]", "{\t}"
            ]).prop_map(str::to_owned),
        ];
        leaf.prop_recursive(6, 60, 6, move |inner| {
            let blank = proptest::sample::select(vec!["", " ", "\r\n\t"]);
            let member = (key.clone(), blank.clone(), inner.clone());
            let member = member.prop_map(|(key, blank, value)| format!("{key}{blank}:{blank}{value}{blank}"));
            prop_oneof![
                1 => (proptest::collection::vec(inner, 0..4), blank)
                    .prop_map(|(all, blank)| format!("[{blank}{}{blank}]", all.join(&format!("{blank},{blank}")))),
                2 => proptest::collection::vec(member, 0..6).prop_map(|all| format!("{{{}}}", all.join(","))),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_is_what_a_tree_of_the_item_says(item in any_json()) {
            prop_assert_eq!(text(&item), by_tree(&item));
        }
    }
}
