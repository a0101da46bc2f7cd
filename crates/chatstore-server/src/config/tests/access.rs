//! The settings behind limits, tokens and browsers.

use super::*;

fn rates(text: &str) -> Option<Rates> {
    Some(Rates::parse(text).unwrap())
}

#[test]
fn rates_come_from_every_source() {
    assert_eq!(with_toml("rate_limit = 30").unwrap().rate_limit, rates("30/minute"));
    assert_eq!(with_env("RATE_LIMIT", "30/minute").unwrap().rate_limit, rates("30"));
    let two = with_dotenv("RATE_LIMIT='100/hour;10 per second burst 50'").unwrap().rate_limit;
    assert_eq!(two, rates("100/hour;10/second burst 50"));
    assert_eq!(listed(&with_toml("rate_limit = 30").unwrap(), "rate_limit").0.unwrap(), "30");
    for name in [
        "RATE_LIMIT",
        "RATE_LIMIT_READS",
        "RATE_LIMIT_WRITES",
        "RATE_LIMIT_SEARCH",
        "RATE_LIMIT_GLOBAL",
        "RATE_LIMIT_FAILED_AUTH",
    ] {
        for text in
            ["30/fortnight", "0", "1/second;", "-1", "1/second burst 0", "none", "1;2;3;4;5", "4294967296/second"]
        {
            let message = message(with_env(name, text));
            let begin = format!("{} (from environment {name}) must be a rate such as 30", name.to_lowercase());
            assert!(message.starts_with(&begin), "{message}");
        }
    }
}

#[test]
fn each_class_of_requests_follows_the_common_rate_unless_it_has_its_own() {
    let dir = here();
    let sources = bare(&dir).with_env("RATE_LIMIT", "30").with_env("RATE_LIMIT_SEARCH", "5/second");
    let access = |sources: &Sources| AccessSettings::from(&Config::load(sources).unwrap());
    let limits = access(&sources.with_env("RATE_LIMIT_WRITES", "Off")).rates;
    assert_eq!(limits, ClassRates { reads: rates("30"), writes: Some(Rates::OFF), search: rates("5/second") });
    // Without any, nothing is limited but guesses.
    let none = access(&bare(&dir));
    assert_eq!((none.rates, none.global_rates), (ClassRates::default(), Rates::OFF));
    assert_eq!(Some(none.failed_auth_rates), rates("60/minute"));
    let set = bare(&dir).with_env("RATE_LIMIT_FAILED_AUTH", "off").with_env("RATE_LIMIT_GLOBAL", "1000/second");
    assert_eq!((access(&set).failed_auth_rates, Some(access(&set).global_rates)), (Rates::OFF, rates("1000/second")));
    assert_eq!(access(&set).rates, ClassRates::default(), "what everybody may do together is no limit of each");
}

#[test]
fn the_conversations_wire_is_strict_on_demand() {
    let openai = |text: &str| AccessSettings::from(&with_toml(text).unwrap()).openai;
    let default = openai("");
    assert_eq!((default.sdk_retry_dedupe, default.is_strict, default.items_at_once()), (true, false, 1_000));
    assert!(!openai("sdk_retry_dedupe = false").sdk_retry_dedupe);
    assert_eq!(openai("openai_items_max = 45").items_at_once(), 45);
    let strict = openai("openai_strict = true");
    assert_eq!((strict.is_strict, strict.items_at_once()), (true, 20));
    assert_eq!(openai("openai_strict = true\nopenai_items_max = 5").items_at_once(), 5);
    for max in ["0", "1001"] {
        let message = message(with_env("OPENAI_ITEMS_MAX", max));
        assert!(message.contains("must be a whole number from 1 to 1000"), "{message}");
    }
}

#[test]
fn quotas_are_off_or_whole_numbers() {
    assert_eq!(with_toml("").unwrap().quotas, Quotas::default());
    let set = "quota_sessions_per_user = 1\nquota_messages_per_session = 2\nquota_project_bytes = 9007199254740992";
    let quotas = AccessSettings::from(&with_toml(set).unwrap()).quotas;
    let expected = Quotas {
        sessions_per_user: Some(1),
        messages_per_session: Some(2),
        project_bytes: Some(9_007_199_254_740_992),
    };
    assert_eq!(quotas, expected);
    for name in ["QUOTA_SESSIONS_PER_USER", "QUOTA_MESSAGES_PER_SESSION", "QUOTA_PROJECT_BYTES"] {
        for text in ["0", "-1", "1.5", "10GB", "9007199254740993", " "] {
            let message = message(with_env(name, text));
            assert!(message.contains("from 1 to 9007199254740992") && message.contains(name), "{message}");
        }
    }
}

#[test]
fn proxies_and_origins_are_believed_only_if_named() {
    let config = with_toml("").unwrap();
    assert_eq!((config.trusted_proxies, &config.cors_origins), (0, &CorsOrigins::None));
    assert_eq!(with_env("CORS_ORIGINS", "*").unwrap().cors_origins, CorsOrigins::Any);
    let list = with_env("CORS_ORIGINS", "https://App.example, http://localhost:3000").unwrap().cors_origins;
    let expected = ["https://app.example", "http://localhost:3000"].map(str::to_owned);
    assert_eq!(list, CorsOrigins::List(expected.to_vec()));
    for text in ["app.example", "https://app.example/", "https://*.example", "https://a.example,", "null", "true"] {
        let message = message(with_env("CORS_ORIGINS", text));
        assert!(message.contains("must be *, or origins such as https://app.example"), "{message}");
    }
    assert!(message(with_toml("cors_origins = true")).contains("a text in quotes"));
    for text in ["-1", "101", "10.0.0.0/8", "true"] {
        assert!(message(with_env("TRUSTED_PROXIES", text)).contains("a whole number from 0 to 100"), "{text}");
    }
}

#[test]
fn rates_are_counted_in_memory_or_in_redis() {
    assert!(matches!(with_toml("").unwrap().rate_limit_store, RateLimitStore::Memory));
    let url = "redis://limits:p%40ss@cache.example:6380/3";
    for text in [url.to_owned(), format!(" {url}\n")] {
        let config = with_env("RATE_LIMIT_STORE", &text).unwrap();
        assert!(matches!(config.rate_limit_store, RateLimitStore::Redis(found) if found.expose() == url));
    }
    for text in ["redis://h", "redis://h:6379", "redis://:p@[::1]:6379/0", "redis://u:p@127.0.0.1/15"] {
        assert!(with_env("RATE_LIMIT_STORE", text).is_ok(), "{text}");
    }
    for text in [
        "hush",
        "redis",
        "redis://",
        "redis://:hush@",
        "redis://u:hush@/0",
        "redis://h:hush",
        "redis://h:0x1/0",
        "redis://h/hush",
        "redis://h/0/hush",
        "redis://h?password=hush",
        "redis://u:hush hush@h",
        "redis://u:hu/sh@h",
        "rediss://u:hush@h",
        "http://u:hush@h",
    ] {
        let message = message(with_env("RATE_LIMIT_STORE", text));
        let begin = "rate_limit_store (from environment RATE_LIMIT_STORE) must be memory, or redis://";
        assert!(message.starts_with(begin), "{message}");
    }
    assert!(message(with_toml("rate_limit_store = 1")).contains("a text in quotes"));
}

#[test]
fn the_password_of_redis_is_never_shown() {
    let dir = here();
    let url = "redis://limits:hush@cache.example:6380/3";
    write(&dir, "url", &format!("{url}\n"));
    for sources in [
        bare(&dir).with_env("RATE_LIMIT_STORE", url),
        bare(&dir).with_env("RATE_LIMIT_STORE_FILE", "url"),
        bare(&dir).with_flag("rate_limit_store_file", "url"),
    ] {
        let config = Config::load(&sources).unwrap();
        assert!(matches!(&config.rate_limit_store, RateLimitStore::Redis(found) if found.expose() == url));
        assert_eq!(listed(&config, "rate_limit_store").0.unwrap(), "redis://***");
        let access = AccessSettings::from(&config);
        let shown = format!("{config:?} {config:#?} {:?} {access:?} {}", config.listing(), config.rate_limit_store);
        assert!(!shown.contains("hush"), "{shown}");
    }
    let memory = Config::load(&bare(&dir)).unwrap();
    assert_eq!(listed(&memory, "rate_limit_store"), (Some("memory".to_owned()), "default".to_owned()));
    let twice = bare(&dir).with_env("RATE_LIMIT_STORE", url).with_env("RATE_LIMIT_STORE_FILE", "url");
    assert!(message(Config::load(&twice)).contains("given twice"));
    assert!(message(with_env("RATE_LIMIT_STORE_FILE", "absent")).contains("RATE_LIMIT_STORE_FILE cannot be read"));
}

#[test]
fn a_slip_in_a_name_is_seen() {
    for (variable, meant) in [
        ("RATE_LIMIT_READ", "RATE_LIMIT_READS"),
        ("RATE_LIMIT_GLOBL", "RATE_LIMIT_GLOBAL"),
        ("RATE_LIMIT_FAILD_AUTH", "RATE_LIMIT_FAILED_AUTH"),
        ("RATE_LIMIT_STOER", "RATE_LIMIT_STORE"),
        ("TRUSTED_PROXIS", "TRUSTED_PROXIES"),
        ("CORS_ORIGIN", "CORS_ORIGINS"),
        ("QUOTA_SESSION_PER_USER", "QUOTA_SESSIONS_PER_USER"),
        ("QUOTA_PROJECT_BYTE", "QUOTA_PROJECT_BYTES"),
        ("REQUEST_MAX", "REQUESTS_MAX"),
        ("REQUESTS", "REQUESTS_MAX"),
    ] {
        let expected = format!("{variable} (in the environment) is not a setting; did you mean {meant}?");
        assert_eq!(message(with_env(variable, "hush")), expected);
    }
}
