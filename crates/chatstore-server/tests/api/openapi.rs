//! The OpenAPI document: complete, without loose ends, and the one that is committed. That every
//! answer of the suite is documented and fits its schema is checked in `client`.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::Method;
use chatstore_server::error::Code;
use chatstore_server::openapi::document_text;
use chatstore_server::router::{Access, routes};
use serde_json::{Value, json};

use crate::app::{TestApp, api_tests};
use crate::schema::{DOCUMENT, OPERATIONS, resolve, validate};

api_tests! {
    the_document_is_served_as_it_is
}

async fn the_document_is_served_as_it_is(app: TestApp) {
    for client in [app.anon(), app.admin()] {
        let reply = client.get("/openapi.json").await;
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.text(), document_text());
    }
}

#[test]
fn the_committed_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == document_text(), "openapi.json is not current: run `cargo run -- openapi > openapi.json`");
}

#[test]
fn the_document_is_openapi_3_1() {
    let version = DOCUMENT["openapi"].as_str().unwrap();
    assert!(version.starts_with("3.1."), "{version}");
    assert_eq!(DOCUMENT["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(DOCUMENT["info"]["description"].as_str().is_some_and(|text| text.len() > 100));
    let schemes = DOCUMENT["components"]["securitySchemes"].as_object().unwrap();
    assert_eq!(schemes["api_key"], json!({"type": "apiKey", "in": "header", "name": "X-API-Key"}));
    assert_eq!((&schemes["bearer"]["type"], &schemes["bearer"]["scheme"]), (&json!("http"), &json!("bearer")));
}

/// Calls `visit` with every object of the document.
fn walk(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(members) => {
            visit(members);
            members.values().for_each(|member| walk(member, visit));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let mut used = BTreeSet::new();
    walk(&DOCUMENT, &mut |object| {
        if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
            assert!(resolve(reference).is_some(), "{reference}");
            used.insert(reference.trim_start_matches("#/components/schemas/").to_owned());
        }
    });
    let defined: BTreeSet<String> = DOCUMENT["components"]["schemas"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(used, defined);
}

#[test]
fn paths_and_operations_are_those_of_the_router() {
    let mut documented = BTreeSet::new();
    for (path, operations) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            documented.insert((
                method.to_uppercase(),
                path.clone(),
                operation["operationId"].as_str().unwrap().to_owned(),
            ));
        }
    }
    let served: BTreeSet<_> = routes()
        .iter()
        .map(|route| (route.method.to_string(), route.path.to_owned(), route.doc.id.to_owned()))
        .collect();
    assert_eq!(documented, served);
    assert_eq!(OPERATIONS.len(), served.len(), "operation ids are unique");
}

#[test]
fn an_operation_has_the_name_of_its_handler() {
    let router = include_str!("../../src/router.rs");
    for route in routes() {
        let module = match route.doc.tag {
            "admin" => "archive",
            "conversations" if route.path.contains("/items") => "items",
            tag => tag,
        };
        let (id, constant) = (route.doc.id, route.doc.id.to_uppercase());
        assert!(router.contains(&format!("{module}::{id},")), "{module}::{id}");
        assert!(router.contains(&format!("&{module}::{constant}")), "{module}::{constant}");
    }
}

#[test]
fn every_operation_says_what_a_caller_must_know() {
    let tags: Vec<&Value> = DOCUMENT["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    for route in routes() {
        let operation = &OPERATIONS[route.doc.id];
        for field in ["summary", "description"] {
            assert!(operation[field].as_str().is_some_and(|text| text.len() > 5), "`{}` has no {field}", route.doc.id);
        }
        assert!(operation["tags"].as_array().is_some_and(|own| own.len() == 1 && tags.contains(&&own[0])));
        let security = match route.access {
            Access::Open | Access::Health => json!([]),
            Access::Needs(_) => json!([{"api_key": []}, {"bearer": []}]),
        };
        assert_eq!(operation["security"], security, "{}", route.doc.id);
        if let Access::Needs(permission) = route.access {
            assert_eq!(operation["x-required-scope"], permission.as_str());
        }
        let in_path = route.path.matches('{').count();
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let required = parameters.iter().filter(|parameter| parameter["in"] == "path" && parameter["required"] == true);
        assert_eq!(required.count(), in_path, "{}", route.doc.id);
        let names: BTreeSet<_> = parameters.iter().map(|own| (own["in"].as_str(), own["name"].as_str())).collect();
        assert_eq!(names.len(), parameters.len(), "{}", route.doc.id);
        let alias = (Some("header"), Some("X-Ms-User-Isolation-Key"));
        assert_eq!(names.contains(&alias), route.path.starts_with("/v1/"), "{}", route.doc.id);
        for parameter in &parameters {
            assert!(parameter["description"].as_str().is_some_and(|text| !text.is_empty()), "{parameter}");
            assert!(parameter["schema"].is_object(), "{parameter}");
            let name = format!("{{{}}}", parameter["name"].as_str().unwrap());
            assert!(parameter["in"] != "path" || route.path.contains(&name), "{name}");
        }
        let limited = route.access != Access::Health;
        assert_eq!(operation["responses"]["429"]["headers"]["Retry-After"].is_object(), limited, "{}", route.doc.id);
        for response in operation["responses"].as_object().unwrap().values() {
            for header in ["RateLimit-Policy", "RateLimit"] {
                assert_eq!(response["headers"][header].is_object(), limited, "{}", route.doc.id);
            }
        }
        let sends = route.method != Method::GET && route.method != Method::DELETE;
        assert_eq!(
            operation["requestBody"].is_object(),
            sends && !["retry_parked_embeddings", "revoke_api_key"].contains(&route.doc.id)
        );
    }
}

#[test]
fn every_answer_is_described_and_exemplified() {
    for (id, operation) in OPERATIONS.iter() {
        let responses = operation["responses"].as_object().unwrap();
        let good: Vec<&String> = responses.keys().filter(|status| status.starts_with('2')).collect();
        assert_eq!(good.len(), 1, "{id}");
        for (status, response) in responses {
            let what = format!("{id} {status}");
            assert!(response["description"].as_str().is_some_and(|text| text.len() > 3), "{what}");
            assert!(response["headers"]["X-Request-Id"].is_object(), "{what}");
            for (media_type, content) in response["content"].as_object().unwrap() {
                let examples: Vec<&Value> = match content["examples"].as_object() {
                    Some(examples) => examples.values().map(|example| &example["value"]).collect(),
                    None => vec![&content["example"]],
                };
                assert!(!examples.is_empty() && !examples.contains(&&Value::Null), "{what} has no example");
                if media_type.ends_with("json") && id != "get_openapi" {
                    for example in examples {
                        assert_eq!(validate(&content["schema"], example), Ok(()), "{what}: {example}");
                    }
                }
            }
            let is_openai = operation["tags"][0] == "conversations";
            let problem = status.as_str() >= "400" && !is_openai;
            assert_eq!(response["content"]["application/problem+json"].is_object(), problem, "{what}");
            let schema = &response["content"]["application/json"]["schema"]["$ref"];
            let is_error = is_openai && status.as_str() >= "400";
            assert_eq!(schema == "#/components/schemas/ErrorResponse", is_error, "{what}");
        }
        if let Some(body) = operation["requestBody"]["content"]["application/json"].as_object() {
            assert_eq!(validate(&body["schema"], &body["example"]), Ok(()), "{id}");
        }
    }
}

#[test]
fn every_error_code_is_documented_where_its_status_is() {
    let mut documented: BTreeMap<String, u64> = BTreeMap::new();
    walk(&DOCUMENT["paths"], &mut |object| {
        if let (Some(code), Some(status)) = (object.get("code").and_then(Value::as_str), object.get("status")) {
            documented.insert(code.to_owned(), status.as_u64().unwrap());
        }
    });
    // These two come from no operation.
    let elsewhere = [Code::RouteNotFound, Code::MethodNotAllowed];
    let known: BTreeMap<String, u64> = Code::ALL
        .iter()
        .filter(|code| !elsewhere.contains(code))
        .map(|code| (code.as_str().to_owned(), u64::from(code.status().as_u16())))
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn on_the_conversations_wire_errors_have_the_names_that_clients_meet() {
    let names = |id: &str, status: &str| -> Vec<String> {
        let examples = &OPERATIONS[id]["responses"][status]["content"]["application/json"]["examples"];
        examples.as_object().unwrap().keys().cloned().collect()
    };
    let of_items = [
        "body_incomplete",
        "invalid_header",
        "invalid_item",
        "invalid_json",
        "invalid_value",
        "item_already_in_conversation",
    ];
    for id in ["create_items", "create_conversation"] {
        let description = OPERATIONS[id]["responses"]["400"]["description"].as_str().unwrap();
        assert!(
            names(id, "400") == of_items && of_items.iter().all(|name| description.contains(name)),
            "{description}"
        );
    }
    assert_eq!(
        names("update_conversation", "400"),
        ["body_incomplete", "invalid_header", "invalid_json", "invalid_value"]
    );
    assert_eq!(names("list_items", "401"), ["invalid_api_key"]);
    assert_eq!(OPERATIONS["get_item"]["responses"]["404"]["description"], "Not Found.", "it has no code");
    for operation in OPERATIONS.values().filter(|operation| operation["tags"][0] == "conversations") {
        walk(&operation["responses"], &mut |object| {
            for (name, example) in object.get("examples").and_then(Value::as_object).into_iter().flatten() {
                let code = &example["value"]["error"]["code"];
                assert!(code == name.as_str() || (code.is_null() && name == "not_found"), "{name}: {code}");
            }
        });
    }
}

#[test]
fn the_judge_of_schemas_refuses_what_does_not_fit() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {
        "a": {"type": ["integer", "null"]}, "b": {"type": "array", "items": {"enum": ["x"]}}, "c": {"format": "date-time"},
    }});
    for good in [json!({"a": 1}), json!({"a": null, "b": ["x"], "c": "2026-01-01T00:00:00.000000Z"})] {
        assert_eq!(validate(&schema, &good), Ok(()));
    }
    for bad in [
        json!([]),
        json!({}),
        json!({"a": "1"}),
        json!({"a": 1, "b": ["y"]}),
        json!({"a": 1, "d": 1}),
        json!({"a": 1, "c": "now"}),
    ] {
        assert!(validate(&schema, &bad).is_err(), "{bad}");
    }
}
