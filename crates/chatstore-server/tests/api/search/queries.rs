//! No text is a wrong query.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

use super::{SEARCH, hits, search, session_of, words};
use crate::app::{Engine, TestApp, api_tests};

const CASES: u32 = 192;

api_tests! {
    the_language_of_queries
    words_of_many_scripts_are_found
}

async fn the_language_of_queries(app: TestApp) {
    let admin = app.admin();
    let id = session_of(&admin, "Harbour plans", &["the red boat sails", "the boat is red", "a blue boat"]).await;
    let said = json!({"content": "red boats rest", "role": "assistant"});
    admin.post(&format!("/api/v1/sessions/{id}/messages"), said).await.expect(201);
    session_of(&admin, "Other", &["red boat elsewhere"]).await;
    for (query, mut wanted) in [
        ("boat red", vec!["the red boat sails", "the boat is red", "red boat elsewhere"]),
        ("\"red boat\"", vec!["the red boat sails", "red boat elsewhere"]),
        ("boat -red", vec!["a blue boat"]),
        ("boat -\"red boat\"", vec!["the boat is red", "a blue boat"]),
        ("boats*", vec!["red boats rest"]),
        ("boa* role:assistant", vec!["red boats rest"]),
        ("red boat in:harbour", vec!["the red boat sails", "the boat is red"]),
        ("RED  BOAT, elsewhere!", vec!["red boat elsewhere"]),
        ("nowhere boat", vec![]),
    ] {
        let mut found = words(&admin, query).await;
        found.sort();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{query}");
    }
}

async fn words_of_many_scripts_are_found(app: TestApp) {
    let admin = app.admin();
    for (text, queries) in [
        ("Die Straße nach Zürich", &["strasse", "STRASSE", "zurich", "Zürich", "ZU\u{308}RICH"][..]),
        ("東京都に住んでいます", &["東京", "京", "住んで"][..]),
        ("ฉันรักภาษาไทย", &["ภาษา", "ไทย"][..]),
        ("안녕하세요 세계", &["안녕", "세계"][..]),
        ("مرحبا بالعالم", &["مرحبا"][..]),
        ("Съешь ещё этих булок", &["еще", "БУЛОК"][..]),
        (
            "call parse_http_header in src/net/http.rs",
            &["parse_http_header", "header", "http.rs", "src/net/http.rs"][..],
        ),
        ("the getUserName method", &["getUserName", "getusername", "user name"][..]),
        ("what a day 😀🎉", &["😀", "🎉"][..]),
        ("it's l'été", &["it's", "ete", "été"][..]),
    ] {
        session_of(&admin, "n", &[text]).await;
        for query in queries {
            assert_eq!(words(&admin, query).await, [text], "{query}");
        }
    }
}

/// What has a meaning to query languages, engines of search and SQL, and texts of every kind.
fn any_query() -> impl Strategy<Value = String> {
    let telling = prop::sample::select(vec![
        "\"",
        "\"\"",
        "'",
        "''",
        "(",
        ")",
        "*",
        "-",
        "--",
        "+",
        ":",
        "role:",
        "role:user",
        "in:",
        "in:\"",
        "NEAR(",
        "AND",
        "OR",
        "NOT",
        "^",
        "{",
        "}",
        "\\",
        "&",
        "|",
        "!",
        "<->",
        ":*",
        "%",
        "_",
        "\0",
        "\u{1}",
        "\u{7f}",
        "\u{feff}",
        "\u{200d}",
        "\u{301}",
        "ß",
        "İ",
        "東京",
        "ภาษา",
        "👩‍👩‍👧‍👦",
        "apple",
        "app*",
        "-apple",
        "\"apple pie\"",
        " ",
        "\n",
        "·",
        "\u{10FFFF}",
        "a_b",
        "fooBar",
        "a/b.c",
        "1.2.3",
    ]);
    let long = (any::<char>(), 1_usize..5_000).prop_map(|(c, n)| c.to_string().repeat(n));
    let pieces = prop::collection::vec(prop_oneof![telling.prop_map(ToOwned::to_owned), any::<String>()], 0..8);
    prop_oneof![6 => pieces.prop_map(|pieces| pieces.concat()), 2 => any::<String>(), 1 => long]
}

fn no_query_is_refused_on(engine: Engine) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (app, session) = runtime.block_on(async {
        let app = TestApp::start(engine).await;
        let session = session_of(&app.admin(), "apple", &["apple pie", "a_b fooBar 東京 ß 👩‍👩‍👧‍👦", ""]).await;
        (app, session)
    });
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&any_query(), |query| {
        runtime.block_on(async {
            let admin = app.admin();
            let too_long = query.len() > 4_096;
            let nul = query.contains('\0');
            let body = search(&admin, json!({"query": query, "context_before": 1})).await;
            let encoded = utf8_percent_encode(&query, NON_ALPHANUMERIC).to_string();
            let short = admin.get(&format!("{SEARCH}?q={encoded}&mode=text")).await;
            let within = admin.get(&format!("/api/v1/sessions/{session}/search?q={encoded}&mode=text")).await;
            if too_long || nul {
                // A field that cannot be stored is found before its length is looked at.
                body.expect_invalid(&["/query"]);
                short.expect_invalid(&["?q"]);
                within.expect_invalid(&["?q"]);
            } else {
                let counts = [&body, &short, &within].map(|reply| hits(reply).len());
                assert_eq!(counts, [counts[0]; 3], "{query:?}");
            }
        });
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn no_query_is_refused_on_sqlite() {
    no_query_is_refused_on(Engine::Sqlite);
}

#[test]
fn no_query_is_refused_on_postgres() {
    no_query_is_refused_on(Engine::Postgres);
}
