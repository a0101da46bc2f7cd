//! Where settings come from, how they are documented, and that secrets stay so.

mod access;
mod values;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use chatstore_core::rates::ClassRates;
use tempfile::TempDir;

use super::*;
use crate::access::AccessSettings;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.env.example");
const KEY: &str = "hush-hush-hush-hush-hush-hush-hush";

fn here() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn write(dir: &TempDir, name: &str, text: &str) {
    std::fs::write(dir.path().join(name), text).unwrap();
}

fn bare(dir: &TempDir) -> Sources {
    Sources::new(dir.path())
}

fn with_env(name: &str, value: &str) -> Result<Config, ConfigError> {
    Config::load(&bare(&here()).with_env(name, value))
}

fn with_toml(text: &str) -> Result<Config, ConfigError> {
    let dir = here();
    write(&dir, "chatstore.toml", text);
    Config::load(&bare(&dir))
}

fn with_dotenv(text: &str) -> Result<Config, ConfigError> {
    let dir = here();
    write(&dir, ".env", text);
    Config::load(&bare(&dir))
}

fn message(result: Result<Config, ConfigError>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n') && !message.contains("hush"), "{message}");
    message
}

fn listed(config: &Config, name: &str) -> (Option<String>, String) {
    let listed = config.listing().into_iter().find(|listed| listed.name == name).unwrap();
    (listed.value, listed.origin)
}

/// The keys of a file, those behind a `# ` included.
fn documented(text: &str, equals: &str) -> BTreeSet<String> {
    let lines = text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
    let keys = lines.filter_map(|line| line.split_once(equals)).map(|(key, _)| key.to_owned());
    keys.filter(|key| key.chars().all(|c| c.is_ascii_alphabetic() || c == '_')).collect()
}

#[test]
fn defaults_are_what_they_are_documented_to_be() {
    let config = Config::load(&bare(&here())).unwrap();
    assert_eq!((config.host.as_str(), config.port), ("127.0.0.1", 8000));
    assert!(matches!(&config.database_url, DatabaseUrl::Sqlite(path) if path == Path::new("./data/chatstore.db")));
    assert!(config.unix_socket.is_none() && config.api_key.is_none() && config.secret_key.is_none());
    assert!(config.rate_limit.is_none() && config.auto_migrate && !config.debug);
    assert_eq!((config.log_level, config.log_format), (LogLevel::Info, LogFormat::Auto));
    assert_eq!((config.content_bytes_max, config.body_bytes_max), (1_048_576, 16_777_216));
    assert_eq!((config.body_bytes_per_second_min, config.connections_max), (1024, 10_000));
    assert!(config.embeddings.is_none() && config.default_dimensions == Some(1536));
    let timeouts = [
        (config.request_timeout, 30_000),
        (config.body_read_timeout, 30_000),
        (config.first_byte_timeout, 10_000),
        (config.header_read_timeout, 10_000),
        (config.idle_timeout, 75_000),
        (config.write_stall_timeout, 30_000),
        (config.drain_timeout, 7_000),
        (config.postgres_acquire_timeout, 1_000),
        (config.postgres_statement_timeout, 5_000),
    ];
    for (timeout, milliseconds) in timeouts {
        assert_eq!(timeout, Duration::from_millis(milliseconds));
    }
    assert_eq!(config.sqlite_synchronous, SqliteSynchronous::Full);
    assert_eq!((config.sqlite_write_queue_max, config.sqlite_batch_max), (4096, 256));
    assert_eq!((config.sqlite_readers, config.worker_threads), (0, 0));
    assert!(config.migrate_database_url.is_none() && config.postgres_prepared_statements);
    assert_eq!((config.postgres_connections_max, config.postgres_append), (16, PostgresAppend::Batched));
    assert_eq!((config.postgres_append_batch_max, config.postgres_append_queue_max), (256, 4096));
    for listed in config.listing() {
        let origin = if listed.value.is_some() { "default" } else { "not set" };
        assert_eq!(listed.origin, origin, "{}", listed.name);
    }
}

#[test]
fn every_name_is_documented_and_every_documented_name_exists() {
    let names: BTreeSet<_> = KEYS.iter().map(|key| key.name.clone()).collect();
    assert_eq!(documented(DEFAULTS, " = "), names);
    let mut variables: BTreeSet<_> = KEYS.iter().map(|key| key.env.clone()).collect();
    variables.insert("CONFIG_FILE".to_owned());
    assert_eq!(documented(&std::fs::read_to_string(EXAMPLE).unwrap(), "="), variables);
}

#[test]
fn every_default_has_its_type_and_a_comment() {
    for (name, value) in DEFAULTS.parse::<toml::Table>().unwrap() {
        let text = value.to_string();
        let is_bare = text.parse::<u64>().is_ok() || text == "true" || text == "false";
        assert_ne!(is_bare, value.is_str(), "{name}");
    }
    let lines: Vec<_> = DEFAULTS.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair[1].contains(" = ") && !pair[1].ends_with('.')) {
        assert!(pair[0].starts_with("# ") && pair[0].ends_with('.'), "{} needs a comment above", pair[1]);
    }
}

#[test]
fn the_order_and_groups_of_the_files_are_those_of_the_table() {
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    for (text, upper, equals) in [(DEFAULTS, false, " = "), (example.as_str(), true, "=")] {
        let mut place = 0;
        let mut group = "";
        for setting in SETTINGS {
            if setting.group != group {
                group = setting.group;
                place += text[place..].find(&format!("\n# ---- {group} -")).expect(group);
            }
            let name = if upper { setting.name.to_uppercase() } else { setting.name.to_owned() };
            let found = [format!("\n{name}{equals}"), format!("\n# {name}{equals}")];
            place += found.iter().find_map(|line| text[place..].find(line)).expect(setting.name);
        }
    }
}

#[test]
fn the_example_holds_the_defaults_and_can_be_loaded() {
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    let is_assignment = |line: &&str| {
        let name = line.split('=').next().unwrap_or_default();
        line.contains('=') && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    assert!(!example.lines().any(|line| is_assignment(&line)), "every value stands behind a `# `");
    let active: Vec<_> = example.lines().filter_map(|line| line.strip_prefix("# ")).filter(is_assignment).collect();
    let dir = here();
    write(&dir, ".env", &active.join("\n"));
    write(&dir, "chatstore.toml", "");
    let config = Config::load(&bare(&dir)).unwrap();
    for (listed, default) in config.listing().iter().zip(Config::load(&bare(&here())).unwrap().listing()) {
        assert_eq!(listed.value, default.value, "{}", listed.name);
    }
}

#[test]
fn the_stronger_source_wins() {
    let dir = here();
    let mut sources = bare(&dir);
    let port = |sources: &Sources| {
        let config = Config::load(sources).unwrap();
        (config.port, listed(&config, "port").1)
    };
    assert_eq!(port(&sources), (8000, "default".to_owned()));
    write(&dir, "chatstore.toml", "port = 1");
    assert_eq!(port(&sources), (1, "chatstore.toml".to_owned()));
    write(&dir, ".env", "# first\nPORT=9\nexport PORT = \"2\" # last\n");
    assert_eq!(port(&sources), (2, ".env line 3".to_owned()));
    sources = sources.with_env("PORT", "3");
    assert_eq!(port(&sources), (3, "environment PORT".to_owned()));
    sources = sources.with_flag("port", "4");
    assert_eq!(port(&sources), (4, "flag --port".to_owned()));
}

#[test]
fn empty_variables_count_as_unset() {
    let dir = here();
    write(&dir, ".env", "PORT=\nHOST=''\nAPI_KEY=\"\"\nCONFIG_FILE=\n");
    let sources = bare(&dir).with_env("PORT", "").with_env("RATE_LIMIT", "").with_env("ENV_FILE", "");
    let config = Config::load(&sources.with_env("CONFIG_FILE", "").with_env("API_KEY_FILE", "")).unwrap();
    assert_eq!((config.port, config.host.as_str()), (8000, "127.0.0.1"));
    assert!(config.api_key.is_none() && config.rate_limit.is_none());
}

#[test]
fn files_are_found_by_name_and_must_then_exist() {
    let dir = here();
    write(&dir, "my.toml", "port = 5");
    write(&dir, "your.toml", "port = 6");
    write(&dir, "my.env", "\u{feff}CONFIG_FILE=my.toml");
    let env_file = bare(&dir).with_env("ENV_FILE", "my.env");
    assert_eq!(Config::load(&env_file).unwrap().port, 5);
    assert_eq!(Config::load(&env_file.clone().with_env("CONFIG_FILE", "your.toml")).unwrap().port, 6);
    let flagged = env_file.clone().with_env("CONFIG_FILE", "none.toml").with_flag("config", "your.toml");
    assert_eq!(Config::load(&flagged).unwrap().port, 6);
    assert_eq!(listed(&Config::load(&flagged).unwrap(), "port").1, "your.toml");
    let cases = [
        (bare(&dir).with_flag("config", "none"), "flag --config"),
        (bare(&dir).with_flag("env_file", "none"), "flag --env-file"),
        (bare(&dir).with_env("CONFIG_FILE", "none"), "environment CONFIG_FILE"),
        (bare(&dir).with_env("ENV_FILE", "none"), "environment ENV_FILE"),
    ];
    for (sources, origin) in cases {
        let message = message(Config::load(&sources));
        assert!(message.starts_with(&format!("the file named by {origin} cannot be read: ")), "{message}");
    }
    std::fs::create_dir(dir.path().join(".env")).unwrap();
    assert!(message(Config::load(&bare(&dir))).contains(".env"));
}

#[test]
fn flags_come_from_the_command_line() {
    let matches = |args: &[&str]| {
        let command = clap::Command::new("chatstore").args(command_args());
        command.try_get_matches_from(std::iter::once("chatstore").chain(args.iter().copied()))
    };
    for key in KEYS.iter() {
        let flag = format!("--{}", key.flag);
        let given = matches(&[&flag, "value"]).unwrap();
        assert_eq!(given.get_one::<String>(&key.name).unwrap(), "value");
    }
    let dir = here();
    write(&dir, "my.toml", "worker_threads = 3");
    let given = matches(&["--rate-limit", "5 per second", "--config", "my.toml", "--debug=yes"]).unwrap();
    let config = Config::load(&bare(&dir).with_matches(&given)).unwrap();
    assert_eq!(config.rate_limit, Rates::parse("5/second"));
    assert_eq!((config.worker_threads, config.log_level), (3, LogLevel::Debug));
    assert!(matches(&["--rate-limt", "5"]).is_err());
    clap::Command::new("chatstore").args(command_args()).debug_assert();
    let other = clap::Command::new("other").get_matches_from(["other"]);
    assert!(Config::load(&bare(&dir).with_matches(&other)).is_ok());
}

#[test]
fn a_password_in_a_database_url_is_never_shown() {
    for (text, shown) in [
        ("postgres://u:hush@h:5432/db", "postgres://u:***@h:5432/db"),
        ("postgresql://u:hu@sh@h/db", "postgresql://u:***@h/db"),
        ("postgres://u:hush:hush@h", "postgres://u:***@h"),
        ("postgres://:hush@h", "postgres://:***@h"),
        ("postgres://u@h/db", "postgres://u@h/db"),
        ("postgres://h/db?sslmode=require&password=hush", "postgres://h/db?sslmode=require&password=***"),
        ("postgres://h/db?p%61ssword=hush&hush", "postgres://h/db?p%61ssword=***&***"),
        ("postgres://u:p@h/db?password=a@hush", "postgres://***"),
        ("postgres://u:a/hush@h/db", "postgres://***"),
        ("postgres://u:a?hush@h/db", "postgres://***"),
        ("postgres://u:a#hu@sh@h/db", "postgres://***"),
    ] {
        let config = bare(&here()).with_env("DATABASE_URL", text).with_env("MIGRATE_DATABASE_URL", text);
        let config = Config::load(&config).unwrap();
        assert_eq!(listed(&config, "database_url").0.unwrap(), shown);
        assert_eq!(listed(&config, "migrate_database_url").0.unwrap(), shown);
        assert_eq!(format!("{:?}", config.database_url), shown);
        assert!(!format!("{config:?}").contains("hush"));
    }
}

#[test]
fn secrets_are_never_shown() {
    let dir = here();
    let all = bare(&dir).with_env("API_KEY", KEY).with_flag("secret_key", KEY);
    let source = all.with_env("EMBEDDINGS_URL", "http://h").with_env("EMBEDDINGS_MODEL", "m");
    let config = Config::load(&source.with_env("EMBEDDINGS_API_KEY", KEY)).unwrap();
    let shown = format!("{:?}", config.embeddings.as_ref().unwrap());
    assert!(!shown.contains("hush") && shown.contains("***"), "{shown}");
    assert_eq!(config.api_key.as_ref().unwrap().expose(), KEY);
    assert_eq!(config.secret_key.as_ref().unwrap().expose(), KEY);
    let shown = format!("{config:?} {config:#?} {:?} {:?}", config.listing(), config.api_key);
    assert!(!shown.contains("hush") && shown.contains("***"), "{shown}");
    assert_eq!(Secret::new("hush").to_string(), "***");
    assert_eq!(listed(&config, "api_key"), (Some("***".to_owned()), "environment API_KEY".to_owned()));

    for (name, text) in [("API_KEY", "hush"), ("API_KEY", "hush hush"), ("API_KEY", "hushhush\u{7}")] {
        let message = message(with_env(name, text));
        assert!(message.starts_with("api_key (from environment API_KEY) must be at least 8"), "{message}");
    }
    assert!(message(with_env("SECRET_KEY", "hush")).contains("32 bytes"));
    assert!(with_env("SECRET_KEY", &"é".repeat(16)).is_ok());
    assert!(with_env("API_KEY", "12345678").is_ok() && with_env("API_KEY", "1234567").is_err());

    // Faults around a secret must not quote their line either.
    for text in ["api_key = hush", "port = 1\napi_key = \"hush", "api_key = 'hush' hush", "hush", "api_key = ['hush']"]
    {
        assert!(message(with_toml(text)).contains("chatstore.toml"));
    }
    for text in ["API_KEY=hush hush", "PORT=1\nAPI_KEY='hush\nhush", "API_KEY=\"hush\nhush\n", "hush", "=hush"] {
        let message = message(with_dotenv(text));
        let line = if text.starts_with("PORT") { 2 } else { 1 };
        assert!(message.starts_with(&format!(".env cannot be understood at line {line}: ")), "{message}");
    }
    assert!(message(with_toml("port = 1\nport = 2")).contains("line 2"));
}

#[test]
fn secrets_may_stand_in_files() {
    let dir = here();
    write(&dir, "key", &format!("{KEY}\r\n"));
    write(&dir, "url", "postgres://u:hush@h/db\n");
    let sources = bare(&dir).with_env("API_KEY_FILE", "key").with_flag("secret_key_file", "key");
    write(&dir, "chatstore.toml", "database_url_file = 'url'\napi_key = 'weaker-and-ignored'");
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.api_key.as_ref().unwrap().expose(), KEY);
    assert_eq!(config.secret_key.as_ref().unwrap().expose(), KEY);
    assert_eq!(listed(&config, "database_url").0.unwrap(), "postgres://u:***@h/db");
    assert_eq!(listed(&config, "secret_key").1, "flag --secret-key-file");

    // A stronger value hides a weaker file, which is then not read.
    let sources = bare(&dir).with_flag("api_key", "12345678").with_env("API_KEY_FILE", "absent");
    assert_eq!(Config::load(&sources).unwrap().api_key.unwrap().expose(), "12345678");

    let twice = bare(&dir).with_env("API_KEY", KEY).with_env("API_KEY_FILE", "key");
    assert_eq!(
        message(Config::load(&twice)),
        "api_key is given twice, by environment API_KEY and by environment API_KEY_FILE; keep one of them"
    );
    let absent = message(with_env("SECRET_KEY_FILE", "hush"));
    assert!(absent.starts_with("the file named by environment SECRET_KEY_FILE cannot be read: "), "{absent}");
    write(&dir, "empty", "\n");
    assert!(message(Config::load(&bare(&dir).with_env("SECRET_KEY_FILE", "empty"))).contains("SECRET_KEY_FILE"));
}

#[test]
fn unknown_toml_keys_stop_the_start() {
    assert_eq!(
        message(with_toml("rate_limt = 1")),
        r#""rate_limt" (in chatstore.toml) is not a setting; did you mean "rate_limit"?"#
    );
    assert_eq!(message(with_toml("zzz = 1")), r#""zzz" (in chatstore.toml) is not a setting"#);
    assert!(message(with_toml("[server]\nport = 1")).contains(r#""server" (in chatstore.toml)"#));
    assert!(message(with_toml("PORT = 1")).contains("not a setting"));
}

#[test]
fn variables_that_are_nearly_settings_stop_the_start() {
    assert_eq!(message(with_dotenv("RATE_LIMT=30")), "RATE_LIMT (in .env) is not a setting; did you mean RATE_LIMIT?");
    for (variable, meant) in [
        ("RATE_LIMITS", "RATE_LIMIT"),
        ("RATELIMIT", "RATE_LIMIT"),
        ("DATABASE_ULR", "DATABASE_URL"),
        ("LOG_LEVLE", "LOG_LEVEL"),
        ("API_KEY_FIEL", "API_KEY_FILE"),
        ("CONFIGFILE", "CONFIG_FILE"),
        ("WORKER_THREAD", "WORKER_THREADS"),
        ("API_KEYY", "API_KEY"),
        ("CHATSTORE_PORT", "PORT"),
        ("REQUEST_TIMEOUT", "REQUEST_TIMEOUT_MS"),
    ] {
        let message = message(with_env(variable, "hush"));
        let expected = format!("{variable} (in the environment) is not a setting; did you mean {meant}?");
        assert_eq!(message, expected);
    }
    for (variable, meant) in [("PROT", "PORT"), ("HOTS", "HOST"), ("APIKEY", "API_KEY"), ("DEBUGG", "DEBUG")] {
        let expected = format!("{variable} (in .env) is not a setting; did you mean {meant}?");
        assert_eq!(message(with_dotenv(&format!("{variable}=1"))), expected);
    }
    let known = "PATH HOME USER SHELL LOGNAME LANG LC_ALL TERM PWD OLDPWD HOSTNAME RUST_LOG RUST_BACKTRACE NO_COLOR TZ \
        APIKEY APP_KEY PORTS HOSTS DEBUGS KUBERNETES_PORT KUBERNETES_SERVICE_HOST DATABASE DATABASE_HOST PGHOST PGPASSWORD \
        POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB POSTGRES_HOST POSTGRES_INITDB_ARGS OPENAI_API_KEY SSL_CERT_FILE DISPLAY NOTIFY_SOCKET LISTEN_FDS INVOCATION_ID LOG_FILE \
        LOG_DIR CARGO_MANIFEST_DIR LD_LIBRARY_PATH NODEBUG SECRETS XDG_RUNTIME_DIR log_levels";
    let dir = here();
    let sources = known.split_whitespace().fold(bare(&dir), |sources, name| sources.with_env(name, "x"));
    assert!(Config::load(&sources).is_ok());
}
