//! How fields look whose types say too little of it.

use chatstore_core::limits::VECTOR_DIMENSIONS_MAX;
use schemars::SchemaGenerator;

/// How a time looks.
pub fn time(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "date-time"})
}

/// How a time that may be absent looks.
pub fn optional_time(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["string", "null"], "format": "date-time"})
}

/// How an id looks.
pub fn id(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "uuid"})
}

/// How an id that may be absent looks.
pub fn optional_id(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["string", "null"], "format": "uuid"})
}

/// How an object that is kept byte for byte looks.
pub fn object(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "additionalProperties": {}})
}

/// How an object that is kept byte for byte and may be absent looks.
pub fn optional_object(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["object", "null"], "additionalProperties": {}})
}

/// How the status of a message looks.
pub fn status(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "enum": ["in_progress", "completed", "incomplete"]})
}

/// How a vector looks.
pub fn numbers(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": VECTOR_DIMENSIONS_MAX,
    })
}

/// How a vector that may be absent looks.
pub fn optional_numbers(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["array", "null"], "items": {"type": "number"}, "minItems": 1, "maxItems": VECTOR_DIMENSIONS_MAX,
    })
}

/// How any JSON that is kept byte for byte looks.
pub fn anything(_: &mut SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({})
}
