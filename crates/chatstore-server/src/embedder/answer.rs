//! What the source answers, taken for vectors only if it is what was asked for.

use chatstore_core::embeddings::Vector;
use serde::Deserialize;

use super::EmbedderError;

#[derive(Deserialize)]
struct Answer {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    index: usize,
    embedding: Vec<f32>,
}

/// The vectors of `count` texts, in the order of the texts.
pub(super) fn vectors(body: &[u8], count: usize) -> Result<Vec<Vector>, EmbedderError> {
    // The parser's own words are not passed on: they may quote the answer.
    let answer: Answer = serde_json::from_slice(body).map_err(|_| {
        EmbedderError::garbage("it is not the JSON of an OpenAI-compatible /v1/embeddings with arrays of numbers")
    })?;
    if answer.data.len() != count {
        return Err(EmbedderError::garbage(format!("{} vectors for {count} texts", answer.data.len())));
    }
    let mut vectors: Vec<Option<Vector>> = vec![None; count];
    for item in answer.data {
        let place = vectors.get_mut(item.index).filter(|place| place.is_none());
        let place = place.ok_or_else(|| EmbedderError::garbage("`index` does not name each text once"))?;
        let vector =
            Vector::new(item.embedding).map_err(|error| EmbedderError::garbage(format!("a vector {error}")))?;
        *place = Some(vector);
    }
    // As many as there are places, and each in one of its own: none is empty.
    let vectors: Vec<Vector> = vectors.into_iter().flatten().collect();
    match vectors.iter().all(|vector| vector.dimensions() == vectors[0].dimensions()) {
        true => Ok(vectors),
        false => Err(EmbedderError::garbage("its vectors differ in length")),
    }
}

/// The short code that an answer of a fault holds, if it cannot be anything else than a code.
pub(super) fn fault_code(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error")?;
    let code = ["code", "type"].into_iter().find_map(|name| error.get(name)?.as_str())?;
    let is_code = (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_code.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(body: &str, count: usize) -> String {
        vectors(body.as_bytes(), count).unwrap_err().to_string()
    }

    #[test]
    fn vectors_come_in_the_order_of_the_texts() {
        let body = r#"{"object":"list","data":[{"index":1,"embedding":[0,1]},{"index":0,"embedding":[1.5,0]}],
            "model":"m","usage":{"prompt_tokens":2}}"#;
        let numbers: Vec<_> = vectors(body.as_bytes(), 2).unwrap().iter().map(|v| v.numbers().to_vec()).collect();
        assert_eq!(numbers, [[1.5, 0.0], [0.0, 1.0]]);
    }

    #[test]
    fn what_was_not_asked_for_is_refused_without_quoting_it() {
        let one = |numbers: &str| format!(r#"{{"data":[{{"index":0,"embedding":{numbers}}}]}}"#);
        for (body, part) in [
            ("hush", "not the JSON"),
            ("[]", "not the JSON"),
            (r#"{"data":[{"index":0,"embedding":"aGVsbG8="}]}"#, "arrays of numbers"),
            (r#"{"data":[{"index":-1,"embedding":[1]}]}"#, "not the JSON"),
            (r#"{"data":[{"embedding":[1]}]}"#, "not the JSON"),
            (r#"{"data":[]}"#, "0 vectors for 1"),
            (r#"{"data":[{"index":1,"embedding":[1]}]}"#, "`index`"),
            (&one("[NaN]"), "not the JSON"),
            (&one("[null]"), "not the JSON"),
            (&one("[1e39]"), "finite"),
            (&one("[1e999]"), "not the JSON"),
            (&one("[0,0]"), "length"),
            (&one("[]"), "1 to 4000"),
        ] {
            let reason = reason(body, 1);
            assert!(reason.contains(part) && !reason.contains("hush"), "{body}: {reason}");
        }
        let twice = r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#;
        assert!(reason(twice, 2).contains("`index`"));
        let uneven = r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1,2]}]}"#;
        assert!(reason(uneven, 2).contains("differ in length"));
    }

    #[test]
    fn only_a_code_is_taken_from_a_fault() {
        for (body, code) in [
            (r#"{"error":{"message":"key sk-hush","code":"model_not_found"}}"#, Some("model_not_found")),
            (r#"{"error":{"message":"hush","type":"insufficient_quota","code":null}}"#, Some("insufficient_quota")),
            (r#"{"error":{"code":"sk-HUSH1"}}"#, None),
            (r#"{"error":"hush"}"#, None),
            ("hush", None),
        ] {
            assert_eq!(fault_code(body.as_bytes()).as_deref(), code, "{body}");
        }
    }
}
