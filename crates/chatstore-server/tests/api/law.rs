//! The laws of the house: who may know whom, one name for one thing, one file for one noun.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chatstore_server::config::SETTINGS;
use chatstore_server::router::routes;

/// Files that may be longer than the law allows, with the lines they may have; it only shrinks.
const LONG_FILES: [(&str, usize); 0] = [];

const LINES_MAX: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file under a folder, by its path from the root.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The source files of every crate, but for tests: the suite that engines run, and those in files of their own.
fn all_sources() -> Vec<(String, String)> {
    let all = crates().into_iter().flat_map(|name| sources(&format!("crates/{name}/src")));
    let tests = ["/conformance/", "/tests/", "/tests.rs"];
    all.filter(|(name, _)| !tests.iter().any(|part| name.contains(part))).collect()
}

fn crates() -> Vec<String> {
    let names = std::fs::read_dir(root().join("crates")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What a crate depends on, outside of tests.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest: toml::Table = read(format!("crates/{name}/Cargo.toml")).parse().unwrap();
    let table = |key: &str| manifest.get(key).and_then(toml::Value::as_table);
    let own = ["dependencies", "build-dependencies"].into_iter().filter_map(table);
    own.flat_map(|table| table.keys().cloned()).collect()
}

/// A file without the tests at its foot.
fn without_tests(source: &str) -> &str {
    let ends = ["mod ", "pub(crate) mod "].map(|module| source.find(&format!("\n#[cfg(test)]\n{module}")));
    ends.into_iter().flatten().min().map_or(source, |end| &source[..end])
}

#[test]
fn dependencies_point_towards_core() {
    let core = dependencies("chatstore-core");
    let allowed = [
        "async-trait",
        "base64",
        "crc32fast",
        "getrandom",
        "hmac",
        "jiff",
        "serde",
        "serde_json",
        "sha2",
        "subtle",
        "thiserror",
        "tracing",
        "unicode-normalization",
        "uuid",
    ];
    let strangers: Vec<&String> = core.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
    assert!(strangers.is_empty(), "core depends on {strangers:?}");
    let engines = ["chatstore-sqlite", "chatstore-postgres"];
    let drivers = ["rusqlite", "libsqlite3-sys", "tokio-postgres", "deadpool-postgres", "sqlx"];
    for name in crates() {
        let used = dependencies(&name);
        let uses = |names: &[&str]| used.iter().any(|used| names.contains(&used.as_str()));
        let is_engine = engines.contains(&name.as_str());
        assert!(is_engine || !uses(&drivers), "`{name}` knows SQL");
        assert!(name == "chatstore" || !uses(&engines), "`{name}` knows an engine");
        assert!(name == "chatstore" || !uses(&["chatstore", "chatstore-server"]), "`{name}` knows the server");
        assert!(name == "chatstore-server" || !uses(&["axum", "hyper", "hyper-util"]), "`{name}` knows HTTP");
    }
}

#[test]
fn only_the_store_crates_speak_sql() {
    let sql = ["\"select ", "\"insert into", "\"update sessions", "\"delete from", "\"create table"];
    for (name, source) in all_sources() {
        if name.contains("chatstore-sqlite/") || name.contains("chatstore-postgres/") {
            continue;
        }
        let lower = without_tests(&source).to_lowercase();
        for sql in sql {
            assert!(!lower.contains(sql), "{sql} in {name}");
        }
    }
}

#[test]
fn a_noun_has_the_same_file_in_every_room() {
    for (path, source) in sources("crates/chatstore-server/src/api") {
        let file = path.rsplit('/').next().unwrap();
        // A noun has operations; `service.rs` is what the service says of itself, and a user token is stored nowhere.
        if matches!(file, "service.rs" | "tokens.rs") || !source.contains(": OperationDoc = ") {
            continue;
        }
        for room in ["chatstore-core", "chatstore-sqlite", "chatstore-postgres"] {
            let folder = root().join("crates").join(room);
            let exists = folder.join("src").join(file).exists() || !folder.exists();
            assert!(exists, "{room} has no {file}");
        }
        let suite = root().join("crates/chatstore-core/src/conformance").join(file);
        assert!(suite.exists(), "the conformance suite has no {file}");
    }
}

#[test]
fn one_operation_has_one_name_from_wire_to_sql() {
    // Several conversations on the wire are one store call each, a search has several forms, and the own project is a
    // project.
    let renamed = [
        ("import_sessions", "import_session"),
        ("get_own_project", "get_project"),
        ("update_own_project", "update_project"),
        ("delete_token_secret", "rotate_token_secret"),
        ("search_messages", "search_text"),
        ("search_messages_by_query", "search_text"),
        ("search_session", "search_text"),
    ];
    for route in routes().iter().filter(|route| !matches!(route.doc.tag, "service" | "tokens" | "conversations")) {
        let (id, noun) = (route.doc.id, if route.doc.tag == "admin" { "archive" } else { route.doc.tag });
        let method = renamed.iter().find(|(wire, _)| *wire == id).map_or(id, |(_, store)| store);
        for file in [format!("crates/chatstore-core/src/{noun}.rs"), format!("crates/chatstore-sqlite/src/{noun}.rs")] {
            assert!(read(&file).contains(&format!("async fn {method}(")), "{file} has no `{method}`");
        }
        let handler = format!("crates/chatstore-server/src/api/{noun}.rs");
        assert!(read(&handler).contains(&format!("pub async fn {id}(")), "{handler} has no `{id}`");
        assert!(read(&handler).contains(&format!("store.{method}(")), "{handler} does not call `{method}`");
        let suite = format!("crates/chatstore-core/src/conformance/{noun}.rs");
        assert!(read(&suite).contains(method), "{suite} does not name `{method}`");
    }
}

#[test]
fn the_other_wire_speaks_to_the_same_store() {
    // What the handler calls: the store, or a function of the named file, and so on.
    type Calls<'a> = &'a [(&'a str, &'a str)];
    let stands_for: [(&str, &str, Calls<'_>, &str); 9] = [
        ("conversations", "create_conversation", &[], "create_session"),
        ("conversations", "get_conversation", &[("conversations", "conversation")], "get_session"),
        ("conversations", "update_conversation", &[], "update_session"),
        ("conversations", "delete_conversation", &[], "delete_session"),
        (
            "conversations/list",
            "list_conversations",
            &[("conversations/list", "page_after"), ("../api/sessions", "list_page")],
            "list_sessions",
        ),
        ("items", "create_items", &[("items/append", "append")], "append_messages"),
        ("items", "list_items", &[], "list_messages"),
        ("items", "get_item", &[("items", "find")], "find_message"),
        ("items", "delete_item", &[], "delete_message"),
    ];
    let body = |file: &str, function: &str| {
        let source = read(format!("crates/chatstore-server/src/openai/{file}.rs"));
        let start = source.find(&format!("fn {function}(")).unwrap_or_else(|| panic!("{file} has no `{function}`"));
        let line = source[..start].rfind('\n').map_or(0, |end| end + 1);
        let indent = &source[line..line + source[line..].find(|char| char != ' ').unwrap()];
        let begin = start + source[start..].find("{\n").unwrap();
        let end = begin + source[begin..].find(&format!("\n{indent}}}\n")).unwrap();
        source[begin..end].to_owned()
    };
    for route in routes().iter().filter(|route| route.doc.tag == "conversations") {
        let (file, id, calls, method) = stands_for.iter().find(|(_, id, ..)| *id == route.doc.id).unwrap();
        let mut caller = body(file, id);
        for (file, function) in *calls {
            assert!(caller.contains(&format!("{function}(")), "`{id}` does not call `{function}`");
            caller = body(file, function);
        }
        assert!(caller.contains(&format!("store.{method}(")), "`{id}` does not call `{method}`");
    }
}

#[test]
fn nothing_unwraps_outside_tests() {
    for (name, source) in all_sources() {
        assert!(!without_tests(&source).contains(".unwrap()"), "{name}");
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in ["crates", "xtask"] {
        for (name, source) in sources(folder) {
            assert!(source.starts_with("//! "), "{name} does not begin with `//!`");
        }
    }
}

#[test]
fn no_file_is_long() {
    let mut too_long = Vec::new();
    for (name, source) in all_sources() {
        let lines = without_tests(&source).lines().count();
        let allowed = LONG_FILES.iter().find(|(file, _)| *file == name).map_or(LINES_MAX, |(_, lines)| *lines);
        if lines > allowed {
            too_long.push((name, lines));
        } else if allowed > LINES_MAX {
            assert!(lines > LINES_MAX, "{name} is short again: take it off the list");
        }
    }
    assert!(too_long.is_empty(), "longer than {LINES_MAX} lines without their tests: {too_long:?}");
}

#[test]
fn the_documents_name_every_setting() {
    for document in ["README.md", ".env.example"] {
        let text = read(document);
        for setting in SETTINGS {
            let variable = setting.name.to_uppercase();
            assert!(text.contains(&variable), "{document} does not name {variable}");
            let file = format!("{variable}_FILE");
            assert!(
                !setting.secret || text.contains(&file) || text.contains("_FILE`"),
                "{document} does not name {file}"
            );
        }
    }
    let defaults = read("crates/chatstore-server/config.default.toml");
    for setting in SETTINGS {
        assert!(defaults.contains(setting.name), "config.default.toml does not name {}", setting.name);
    }
}

#[test]
fn every_check_is_listed_and_no_test_is_ignored() {
    let ignore = concat!("#[", "ignore");
    for (name, source) in sources("crates") {
        assert!(!source.contains(ignore), "{name}");
    }
    for (name, source) in sources("crates/chatstore-server/tests/api") {
        let listed = source.matches(concat!("(app: ", "TestApp) {")).count();
        let Some(list) = source.split("\napi_tests! {").nth(1).and_then(|rest| rest.split('}').next()) else {
            assert_eq!(listed, 0, "{name} lists no checks");
            continue;
        };
        assert_eq!(list.split_whitespace().count(), listed, "{name}");
    }
}
