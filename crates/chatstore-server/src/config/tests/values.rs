//! What each setting accepts.

use super::*;

#[test]
fn wrong_values_name_the_setting_its_source_and_what_is_accepted() {
    let dir = here();
    assert_eq!(
        message(Config::load(&bare(&dir).with_flag("port", "70000"))),
        r#"port (from flag --port) must be a whole number from 0 to 65535, not "70000""#
    );
    assert_eq!(
        message(with_env("DRAIN_TIMEOUT_MS", "9001")),
        r#"drain_timeout_ms (from environment DRAIN_TIMEOUT_MS) must be a whole number from 0 to 7000, not "9001""#
    );
    assert_eq!(
        message(with_dotenv("\nDEBUG=maybe")),
        r#"debug (from .env line 2) must be one of true, false, yes, no, on, off, 1, 0, not "maybe""#
    );
    assert_eq!(
        message(with_toml("log_format = 'xml'")),
        r#"log_format (from chatstore.toml) must be one of auto, human, json, not "xml""#
    );
    for (text, part) in [
        ("port = -1", "from 0 to 65535"),
        ("port = 1.5", "port (from chatstore.toml) must be a text in quotes, a whole number, true or false"),
        ("port = true", "whole number"),
        ("host = true", "a text in quotes"),
        ("api_key = 12345678", "a text in quotes"),
        ("api_key_file = 1", "a path in quotes"),
        ("rate_limit = ['30']", "a text in quotes, a whole number"),
        ("unix_socket = ''", "a path of 1 to 107 bytes"),
        ("host = 'http://localhost'", "without a scheme"),
    ] {
        let message = message(with_toml(text));
        assert!(message.contains(part) && message.contains("(from chatstore.toml)"), "{message}");
    }
    let long = message(with_env("HOST", &"é\n".repeat(1000)));
    assert!(long.len() < 400, "{long}");
    let config = Config::load(&bare(&dir).with_env("PORT", OsStr::from_bytes(b"\xff")));
    assert_eq!(message(config), "PORT (from environment PORT) must be valid UTF-8");
}

#[test]
fn numbers_keep_to_their_ranges() {
    let cases: &[(&str, u64, u64)] = &[
        ("PORT", 0, 65_535),
        ("PGVECTOR_DIMENSION", 1, 4_000),
        ("TRUSTED_PROXIES", 0, 100),
        ("EMBEDDINGS_INPUT_BYTES_MAX", 100, 1_000_000),
        ("EMBEDDINGS_BATCH_MAX", 1, 512),
        ("EMBEDDINGS_CONCURRENCY", 1, 64),
        ("EMBEDDINGS_TIMEOUT_MS", 1, 600_000),
        ("CONTENT_BYTES_MAX", 1, 268_435_456),
        ("BODY_BYTES_MAX", 1, 1_073_741_824),
        ("REQUESTS_MAX", 1, 1_000_000),
        ("CONNECTIONS_MAX", 1, 1_000_000),
        ("BODY_BYTES_PER_SECOND_MIN", 0, 1_073_741_824),
        ("REQUEST_TIMEOUT_MS", 1, 3_600_000),
        ("BODY_READ_TIMEOUT_MS", 1, 3_600_000),
        ("FIRST_BYTE_TIMEOUT_MS", 1, 3_600_000),
        ("HEADER_READ_TIMEOUT_MS", 1, 3_600_000),
        ("IDLE_TIMEOUT_MS", 1, 3_600_000),
        ("WRITE_STALL_TIMEOUT_MS", 1, 3_600_000),
        ("DRAIN_TIMEOUT_MS", 0, 7_000),
        ("SQLITE_WRITE_QUEUE_MAX", 1, 1_000_000),
        ("SQLITE_BATCH_MAX", 1, 65_536),
        ("SQLITE_READERS", 0, 1_024),
        ("POSTGRES_CONNECTIONS_MAX", 2, 10_000),
        ("POSTGRES_ACQUIRE_TIMEOUT_MS", 1, 3_600_000),
        ("POSTGRES_STATEMENT_TIMEOUT_MS", 1, 3_600_000),
        ("POSTGRES_APPEND_BATCH_MAX", 1, 65_536),
        ("POSTGRES_APPEND_QUEUE_MAX", 1, 1_000_000),
        ("WORKER_THREADS", 0, 1_024),
    ];
    for &(name, least, most) in cases {
        assert!(with_env(name, &least.to_string()).is_ok(), "{name}");
        assert!(with_env(name, &format!(" {most} ")).is_ok(), "{name}");
        let beyond = [format!("{}", i128::from(least) - 1), (most + 1).to_string()];
        let odd = ["x", "1.0", "+1", "1_000", "0x10", "1e3", " ", "1 2", "99999999999999999999999", "١"];
        for text in beyond.iter().map(String::as_str).chain(odd) {
            let message = message(with_env(name, text));
            assert!(message.contains(&format!("from {least} to {most}")) && message.contains(name), "{message}");
        }
        // The comment above the default states the same range.
        let key = format!("\n{} = ", name.to_lowercase());
        let above = DEFAULTS.split(&key).next().unwrap().rsplit("\n\n").next().unwrap();
        assert!(above.contains(&format!("{least} to {most}")), "{name}: {above}");
    }
}

#[test]
fn an_embedding_source_needs_an_address_and_a_model() {
    let with = |variables: &[(&str, &str)]| {
        let dir = here();
        let sources = variables.iter().fold(bare(&dir), |sources, (name, value)| sources.with_env(name, *value));
        Config::load(&sources)
    };
    let (url, model) = (("EMBEDDINGS_URL", "http://h/v1"), ("EMBEDDINGS_MODEL", "m"));
    for (base, endpoint) in [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/embeddings"),
        ("http://127.0.0.1:11434/v1/", "http://127.0.0.1:11434/v1/embeddings"),
        ("http://[::1]:80/v1/embeddings", "http://[::1]:80/v1/embeddings"),
        ("http://h", "http://h/embeddings"),
    ] {
        let source = with(&[("EMBEDDINGS_URL", base), model]).unwrap().embeddings.unwrap();
        assert_eq!(source.url.endpoint().to_string(), endpoint);
    }
    for bad in
        ["h:8000", "ftp://h/v1", "http://", "file:///etc/passwd", "http://h/v1?key=hush", "http://h/#a", "http://a b"]
    {
        assert!(message(with(&[("EMBEDDINGS_URL", bad), model])).contains("OpenAI-compatible"), "{bad}");
    }
    for login in ["http://me@h/v1", "https://me:hush@h/v1"] {
        assert!(message(with(&[("EMBEDDINGS_URL", login), model])).contains("without user and password"));
    }
    assert_eq!(message(with(&[url])), "embeddings_model must be set if embeddings_url is");
    assert_eq!(message(with(&[model])), "embeddings_url must be set if embeddings_model is");
    assert!(message(with(&[url, ("EMBEDDINGS_MODEL", &"m".repeat(196))])).contains("1 to 195 bytes"));
    assert!(message(with(&[url, model, ("EMBEDDINGS_API_KEY", "hush hush")])).contains("without blanks"));
    for (name, value) in [("EMBEDDINGS_DIMENSIONS", "0"), ("EMBEDDINGS_DIMENSIONS", "4001")] {
        assert!(message(with(&[url, model, (name, value)])).contains("from 1 to 4000"), "{value}");
    }
}

#[test]
fn a_blank_at_the_end_of_a_prefix_belongs_to_it() {
    let dir = here();
    let sources = bare(&dir).with_env("EMBEDDINGS_URL", "http://h").with_env("EMBEDDINGS_MODEL", "m");
    let prefixes = |sources: &Sources| {
        let source = Config::load(sources).unwrap().embeddings.unwrap();
        (source.query_prefix, source.document_prefix)
    };
    assert_eq!(prefixes(&sources), (String::new(), String::new()));
    let with = sources.with_env("EMBEDDINGS_QUERY_PREFIX", "query: ").with_env("EMBEDDINGS_DOCUMENT_PREFIX", "");
    assert_eq!(prefixes(&with), ("query: ".to_owned(), String::new()));
    let long = with.with_env("EMBEDDINGS_DOCUMENT_PREFIX", "x".repeat(501));
    assert!(message(Config::load(&long)).contains("at most 500 bytes"));
}

#[test]
fn the_length_of_embeddings_is_fixed_by_whoever_names_it() {
    let source = |more: &[(&str, &str)]| {
        let dir = here();
        let sources = bare(&dir).with_env("EMBEDDINGS_URL", "http://h").with_env("EMBEDDINGS_MODEL", "m");
        Config::load(&more.iter().fold(sources, |sources, (name, value)| sources.with_env(name, *value)))
    };
    let expected = |more: &[(&str, &str)]| {
        let config = source(more).unwrap();
        let source = config.embeddings.unwrap();
        assert_eq!(source.expected_dimensions, config.default_dimensions);
        (source.dimensions, source.expected_dimensions)
    };
    let (pgvector, asked) = (("PGVECTOR_DIMENSION", "384"), ("EMBEDDINGS_DIMENSIONS", "384"));
    assert_eq!(expected(&[]), (None, None));
    assert_eq!(expected(&[("PGVECTOR_DIMENSION", "1536")]), (None, Some(1536)));
    assert_eq!(expected(&[asked]), (Some(384), Some(384)));
    assert_eq!(expected(&[asked, pgvector]), (Some(384), Some(384)));
    let message = message(source(&[("EMBEDDINGS_DIMENSIONS", "512"), pgvector]));
    assert!(message.contains("must be 384, as pgvector_dimension is"), "{message}");
}

#[test]
fn words_are_accepted_in_any_case() {
    for (texts, expected) in [(["true", "1", "YES", "On"], true), (["False", "0", "no", "OFF"], false)] {
        for text in texts {
            assert_eq!(with_env("AUTO_MIGRATE", text).unwrap().auto_migrate, expected, "{text}");
        }
    }
    assert!(!with_toml("auto_migrate = false").unwrap().auto_migrate);
    for (text, expected) in [
        ("TRACE", LogLevel::Trace),
        ("debug", LogLevel::Debug),
        ("Info", LogLevel::Info),
        ("warn", LogLevel::Warn),
        ("WARNING", LogLevel::Warn),
        ("error", LogLevel::Error),
        ("critical", LogLevel::Critical),
        ("off", LogLevel::Off),
    ] {
        assert_eq!(with_env("LOG_LEVEL", text).unwrap().log_level, expected);
    }
    for name in [
        "AUTO_MIGRATE",
        "DEBUG",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "SQLITE_SYNCHRONOUS",
        "POSTGRES_PREPARED_STATEMENTS",
        "POSTGRES_APPEND",
    ] {
        assert!(message(with_env(name, "perhaps")).contains("must be one of"));
    }
    assert!(!with_env("POSTGRES_PREPARED_STATEMENTS", "Off").unwrap().postgres_prepared_statements);
    assert_eq!(with_env("POSTGRES_APPEND", "Per_Session").unwrap().postgres_append, PostgresAppend::PerSession);
    assert_eq!(with_env("SQLITE_SYNCHRONOUS", "Normal").unwrap().sqlite_synchronous, SqliteSynchronous::Normal);
}

#[test]
fn debug_lowers_the_log_level_that_nobody_chose() {
    let config = with_env("DEBUG", "1").unwrap();
    assert_eq!(config.log_level, LogLevel::Debug);
    assert_eq!(listed(&config, "log_level"), (Some("debug".to_owned()), "default with debug".to_owned()));
    assert_eq!(with_toml("debug = true\nlog_level = 'info'").unwrap().log_level, LogLevel::Info);
}

#[test]
fn database_urls_are_told_apart() {
    for (text, path) in [
        ("sqlite:a.db", "a.db"),
        ("sqlite:./a b.db", "./a b.db"),
        ("sqlite://a.db", "a.db"),
        ("sqlite:///var/a.db", "/var/a.db"),
        ("sqlite:/var/a.db", "/var/a.db"),
    ] {
        let config = with_env("DATABASE_URL", text).unwrap();
        assert!(matches!(&config.database_url, DatabaseUrl::Sqlite(found) if found == Path::new(path)), "{text}");
    }
    for text in ["postgres://u:p@h/db", "postgresql://h", "postgres:///db?host=/run"] {
        let config = with_env("DATABASE_URL", text).unwrap();
        assert!(matches!(&config.database_url, DatabaseUrl::Postgres(url) if url.expose() == text));
    }
    for text in ["sqlite::memory:", "sqlite://:memory:", "sqlite:file::memory:", "sqlite://x?mode=memory"] {
        let message = message(with_env("DATABASE_URL", text));
        assert!(message.contains("lost when the server stops"), "{message}");
    }
    for text in [
        "hush",
        "sqlite",
        "sqlite:",
        "sqlite://",
        "sqlite:dir/",
        "sqlite:file:x",
        "sqlite:x?mode=rwc",
        "postgres://",
        "postgres:hush",
        "mysql://u:hush@h",
        "postgres://u:hush hush@h",
        "sqlite:a\nb",
    ] {
        let message = message(with_env("DATABASE_URL", text));
        assert!(message.contains("environment DATABASE_URL") && message.contains("sqlite:"), "{message}");
    }
}

#[test]
fn only_postgresql_has_a_role_that_migrates() {
    let config = with_env("MIGRATE_DATABASE_URL", "postgresql://owner:hush@h/db").unwrap();
    assert!(matches!(config.migrate_database_url, Some(DatabaseUrl::Postgres(_))));
    for text in ["sqlite:a.db", "hush", "postgres://", "postgres://u:hush@h\n"] {
        let message = message(with_env("MIGRATE_DATABASE_URL", text));
        assert!(message.contains("environment MIGRATE_DATABASE_URL) must be postgres://"), "{message}");
    }
}
