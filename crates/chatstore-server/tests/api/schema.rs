//! The OpenAPI document as a judge: which answers an operation may give, and how they look.

use std::collections::HashMap;
use std::sync::LazyLock;

use chatstore_core::clock::Timestamp;
use serde_json::Value;

use crate::client::Reply;

/// The document, from the code.
pub(crate) static DOCUMENT: LazyLock<Value> = LazyLock::new(chatstore_server::openapi::document);

/// Every operation by its id.
pub(crate) static OPERATIONS: LazyLock<HashMap<String, Value>> = LazyLock::new(|| {
    let paths = DOCUMENT["paths"].as_object().unwrap().values();
    let operations = paths.flat_map(|path| path.as_object().unwrap().values());
    operations.map(|operation| (operation["operationId"].as_str().unwrap().to_owned(), operation.clone())).collect()
});

/// Asserts that `operation` may answer so.
pub(crate) fn check_documented(operation: &str, reply: &Reply) {
    let documented = &OPERATIONS[operation]["responses"][reply.status.to_string()];
    assert!(documented.is_object(), "`{operation}` does not document {}: {}", reply.status, reply.text());
    let content = &documented["content"];
    let media_type = reply.header("content-type").unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default();
    let Some(json) = content.get(essence) else {
        let nothing = content.as_object().is_none_or(serde_json::Map::is_empty) && reply.bytes.is_empty();
        assert!(nothing, "`{operation}` does not document {media_type} for {}", reply.status);
        return;
    };
    if !essence.ends_with("json") {
        return;
    }
    // Numbers beyond a double are kept as text, and a parser of values cannot read them.
    let Ok(body) = serde_json::from_slice(&reply.bytes) else {
        let well_formed: Result<&serde_json::value::RawValue, _> = serde_json::from_slice(&reply.bytes);
        assert!(well_formed.is_ok(), "{}", reply.text());
        return;
    };
    if operation != "get_openapi"
        && let Err(fault) = validate(&json["schema"], &body)
    {
        panic!("`{operation}` answered {} against its schema: {fault}: {}", reply.status, reply.text());
    }
}

/// What `$ref` names.
pub(crate) fn resolve(reference: &str) -> Option<&'static Value> {
    DOCUMENT.pointer(reference.strip_prefix('#')?)
}

/// Whether `value` has the form `schema` says; the error tells the first place where it has not.
/// Knows what the document uses, and holds objects to the properties they name.
pub(crate) fn validate(schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return validate(resolve(reference).ok_or_else(|| format!("{reference} names nothing"))?, value);
    }
    for word in ["oneOf", "anyOf"] {
        if let Some(schemas) = schema[word].as_array() {
            let fits = schemas.iter().filter(|schema| validate(schema, value).is_ok()).count();
            if fits == 0 || (word == "oneOf" && fits > 1) {
                return Err(format!("{value} fits {fits} of `{word}`"));
            }
        }
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|name| is_a(name, value)) {
        return Err(format!("{value} is none of {types:?}"));
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        return Err(format!("{value} is not in `enum`"));
    }
    if let (Some(format), Some(text)) = (schema["format"].as_str(), value.as_str())
        && !has_format(format, text)
    {
        return Err(format!("{value} is no {format}"));
    }
    if let Some(items) = value.as_array().filter(|_| schema["items"].is_object()) {
        items.iter().try_for_each(|item| validate(&schema["items"], item))?;
    }
    validate_object(schema, value)
}

fn validate_object(schema: &Value, value: &Value) -> Result<(), String> {
    let (Some(members), Some(properties)) = (value.as_object(), schema["properties"].as_object()) else {
        return Ok(());
    };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !members.contains_key(name) {
            return Err(format!("`{name}` is missing"));
        }
    }
    for (name, member) in members {
        let property = properties.get(name).ok_or_else(|| format!("`{name}` is not documented"))?;
        validate(property, member).map_err(|fault| format!("{name}: {fault}"))?;
    }
    Ok(())
}

fn is_a(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

fn has_format(format: &str, text: &str) -> bool {
    match format {
        "uuid" => chatstore_core::ids::SessionId::parse(text).is_some_and(|id| id.to_string() == text),
        "date-time" => Timestamp::parse(text).is_some(),
        _ => true,
    }
}
