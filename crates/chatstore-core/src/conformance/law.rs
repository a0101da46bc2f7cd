//! No store method without a check, no check that is not run.

/// The nouns: their contract and their checks.
const NOUNS: [(&str, &str, &str); 10] = [
    ("sessions", include_str!("../sessions.rs"), include_str!("sessions.rs")),
    ("messages", include_str!("../messages.rs"), include_str!("messages.rs")),
    ("api_keys", include_str!("../api_keys.rs"), include_str!("api_keys.rs")),
    ("projects", include_str!("../projects.rs"), include_str!("projects.rs")),
    ("audit", include_str!("../audit.rs"), include_str!("audit.rs")),
    ("archive", include_str!("../archive.rs"), include_str!("archive.rs")),
    ("search", include_str!("../search.rs"), include_str!("search.rs")),
    ("embeddings", include_str!("../embeddings.rs"), include_str!("embeddings.rs")),
    ("idempotency", include_str!("../idempotency.rs"), include_str!("idempotency.rs")),
    ("store", include_str!("../store.rs"), include_str!("store.rs")),
];

/// Methods of the store traits that no check of their noun calls.
pub fn methods_without_check() -> Vec<String> {
    let mut missing = Vec::new();
    for (noun, contract, checks) in NOUNS {
        let methods = methods(contract);
        assert!(!methods.is_empty(), "{noun} has a store trait");
        let called = |method: &str| checks.contains(&format!(".{method}("));
        missing.extend(methods.into_iter().filter(|method| !called(method)).map(|method| format!("{noun}::{method}")));
    }
    missing
}

/// Checks that `conformance_tests!` does not name.
pub fn checks_without_test() -> Vec<String> {
    let tests: Vec<&str> = include_str!("mod.rs").lines().map(str::trim).collect();
    let checks = NOUNS.into_iter().flat_map(|(noun, _, checks)| {
        checks.lines().filter_map(|line| line.strip_prefix("pub async fn ")).map(move |line| (noun, name(line)))
    });
    checks.filter(|(_, check)| !tests.contains(check)).map(|(noun, check)| format!("{noun}::{check}")).collect()
}

/// The methods of the traits whose names end in `Store`.
fn methods(contract: &str) -> Vec<&str> {
    let mut methods = Vec::new();
    let mut inside = false;
    for line in contract.lines() {
        if let Some(line) = line.strip_prefix("pub trait ") {
            inside = name(line).ends_with("Store");
        } else if line == "}" {
            inside = false;
        } else if let Some(line) = line.trim().trim_start_matches("async ").strip_prefix("fn ").filter(|_| inside) {
            methods.push(name(line));
        }
    }
    methods
}

/// The identifier at the head of `text`.
fn name(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(text)
}
