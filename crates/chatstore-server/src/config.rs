//! Every setting of the server, from its name to its typed value.
//!
//! [`SETTINGS`] is the one table of names; flag, environment variable and TOML key follow from it. The defaults stand in
//! `config.default.toml`. A value comes from the strongest source that has one: flag, environment, `.env` file, TOML
//! file, default.

mod access;
mod dotenv;
mod error;
mod resolved;
mod sources;
mod typo;
mod value;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use chatstore_core::rates::Rates;
use chatstore_core::store::Quotas;
use clap::Arg;

pub use access::{CorsOrigins, RateLimitStore, parse_origin};
pub use error::ConfigError;
pub use sources::Sources;
pub use value::{DatabaseUrl, EmbeddingsUrl, LogFormat, LogLevel, PostgresAppend, Secret, SqliteSynchronous};

use crate::embedder::EmbedderSettings;
use resolved::{Values, rates};
use sources::{DEFAULTS, KEYS};

/// A setting: one line of the table from which flags, variables and keys follow.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name and TOML key, in `snake_case`; the variable is in upper case, the flag in `kebab-case`.
    pub name: &'static str,
    /// Heading under which it is shown.
    pub group: &'static str,
    /// Whether it holds a secret: it is shown redacted, and may also be given as a file by its name with `_file`.
    pub secret: bool,
    /// What it decides, in one line.
    pub help: &'static str,
}

const fn plain(group: &'static str, name: &'static str, help: &'static str) -> Setting {
    Setting { name, group, secret: false, help }
}

const fn secret(group: &'static str, name: &'static str, help: &'static str) -> Setting {
    Setting { name, group, secret: true, help }
}

/// Every setting, in the order of `config.default.toml`.
pub const SETTINGS: &[Setting] = &[
    plain("Network", "host", "Address to listen on"),
    plain("Network", "port", "TCP port to listen on; 0 takes any free port"),
    plain("Network", "unix_socket", "Unix socket to listen on instead of TCP"),
    secret("Storage", "database_url", "Where conversations are stored: sqlite:PATH or postgres://…"),
    secret("Storage", "migrate_database_url", "The database as the PostgreSQL role that may change its schema"),
    plain("Storage", "auto_migrate", "Bring the database schema up to date at start"),
    plain("Storage", "pgvector_dimension", "Number of dimensions of the default model's embeddings"),
    plain("Embeddings", "embeddings_url", "OpenAI-compatible API that makes embeddings, such as http://…/v1"),
    plain("Embeddings", "embeddings_model", "Model that makes embeddings"),
    secret("Embeddings", "embeddings_api_key", "Key for that API"),
    plain("Embeddings", "embeddings_dimensions", "Number of dimensions to ask for, of models that can shorten"),
    plain("Embeddings", "embeddings_query_prefix", "What the model wants before a query"),
    plain("Embeddings", "embeddings_document_prefix", "What the model wants before a text that is to be found"),
    plain("Embeddings", "embeddings_input_bytes_max", "Bytes of one text; longer ones are embedded in parts"),
    plain("Embeddings", "embeddings_batch_max", "Texts of one request for embeddings"),
    plain("Embeddings", "embeddings_concurrency", "Requests for embeddings at the same time"),
    plain("Embeddings", "embeddings_timeout_ms", "Time for a request for embeddings"),
    secret("Access", "api_key", "Key that callers must present"),
    secret("Access", "secret_key", "Key that signs user tokens"),
    plain("Access", "trusted_proxies", "Proxies in front whose X-Forwarded-For or Forwarded is believed"),
    plain("Access", "cors_origins", "Origins whose pages may use the API: * or a list"),
    plain("Rates", "rate_limit", "Requests of each key, user and address, such as 30/minute or 100/hour;10/second"),
    plain("Rates", "rate_limit_reads", "The same for reads alone"),
    plain("Rates", "rate_limit_writes", "The same for writes alone"),
    plain("Rates", "rate_limit_search", "The same for searches alone"),
    plain("Rates", "rate_limit_global", "Requests of everybody together"),
    plain("Rates", "rate_limit_failed_auth", "Failed attempts to authenticate from each address"),
    secret("Rates", "rate_limit_store", "Where rates are counted: memory, or redis://…"),
    plain("Quotas", "quota_sessions_per_user", "Sessions of one user"),
    plain("Quotas", "quota_messages_per_session", "Messages of one session"),
    plain("Quotas", "quota_project_bytes", "Bytes of one project"),
    plain("Logging", "log_level", "Least severe level to log, from trace to off"),
    plain("Logging", "log_format", "Form of a log line: auto, human or json"),
    plain("Logging", "debug", "Log more, for development"),
    plain("Limits", "content_bytes_max", "Largest content of one message, in bytes"),
    plain("Limits", "body_bytes_max", "Largest request body, in bytes"),
    plain("Limits", "requests_max", "Requests handled at the same time; a few more wait, the rest are turned away"),
    plain("Limits", "connections_max", "Connections open at the same time"),
    plain("Limits", "body_bytes_per_second_min", "Slowest rate at which a request body may arrive"),
    plain("Timeouts", "request_timeout_ms", "Time for handling one request"),
    plain("Timeouts", "body_read_timeout_ms", "Time for a request body to arrive"),
    plain("Timeouts", "first_byte_timeout_ms", "Time for the first byte on a new connection"),
    plain("Timeouts", "header_read_timeout_ms", "Time for the header of a request to arrive"),
    plain("Timeouts", "idle_timeout_ms", "Time a connection may stay open between requests"),
    plain("Timeouts", "write_stall_timeout_ms", "Time a caller may take nothing of a response"),
    plain("Timeouts", "drain_timeout_ms", "Time for requests under way to end at a stop"),
    plain("SQLite", "sqlite_synchronous", "When a commit counts as done: full or normal"),
    plain("SQLite", "sqlite_write_queue_max", "Writes that may wait for the writer"),
    plain("SQLite", "sqlite_batch_max", "Writes that may share one commit"),
    plain("SQLite", "sqlite_readers", "Connections that read; 0 decides by the number of cores"),
    plain("PostgreSQL", "postgres_connections_max", "Connections open to the database at the same time"),
    plain("PostgreSQL", "postgres_acquire_timeout_ms", "Time to wait for a free connection"),
    plain("PostgreSQL", "postgres_statement_timeout_ms", "Time for a whole operation on the database"),
    plain("PostgreSQL", "postgres_prepared_statements", "Prepare statements; false behind a transaction pooler"),
    plain("PostgreSQL", "postgres_append", "How appends are written: batched or per_session"),
    plain("PostgreSQL", "postgres_append_batch_max", "Appends that may share one commit"),
    plain("PostgreSQL", "postgres_append_queue_max", "Appends that may wait for their commit"),
    plain("Runtime", "worker_threads", "Threads that serve requests; 0 decides by the number of cores"),
];

/// Largest quota: what both engines and JSON hold exactly.
pub const QUOTA_MAX: u64 = 1 << 53;

/// The settings, each checked and typed. `Debug` shows no secret.
#[derive(Clone)]
pub struct Config {
    /// Address to listen on: an IP address or a host name.
    pub host: String,
    /// TCP port to listen on; 0 takes any free port.
    pub port: u16,
    /// Unix socket to listen on instead of TCP.
    pub unix_socket: Option<PathBuf>,
    /// Where conversations are stored.
    pub database_url: DatabaseUrl,
    /// The database as the PostgreSQL role that may change its schema; without it, `database_url` is.
    pub migrate_database_url: Option<DatabaseUrl>,
    /// Whether to bring the schema up to date at start.
    pub auto_migrate: bool,
    /// Number of dimensions of the default model's embeddings; nothing if the embedding source decides.
    pub default_dimensions: Option<u16>,
    /// What makes embeddings.
    pub embeddings: Option<EmbedderSettings>,
    /// Key that callers must present.
    pub api_key: Option<Secret>,
    /// Key that signs user tokens.
    pub secret_key: Option<Secret>,
    /// How many proxies stand in front and can be believed.
    pub trusted_proxies: usize,
    /// Origins whose pages may read answers.
    pub cors_origins: CorsOrigins,
    /// Rates of each key, user and address, for classes of requests that have none of their own.
    pub rate_limit: Option<Rates>,
    /// Rates of reads.
    pub rate_limit_reads: Option<Rates>,
    /// Rates of writes.
    pub rate_limit_writes: Option<Rates>,
    /// Rates of searches.
    pub rate_limit_search: Option<Rates>,
    /// Rates of everybody together.
    pub rate_limit_global: Rates,
    /// Rates of failed attempts to authenticate from each address.
    pub rate_limit_failed_auth: Rates,
    /// Where rates are counted.
    pub rate_limit_store: RateLimitStore,
    /// How much a project may hold that has no quotas of its own.
    pub quotas: Quotas,
    /// Least severe level to log.
    pub log_level: LogLevel,
    /// Form of a log line.
    pub log_format: LogFormat,
    /// Whether to log more, for development.
    pub debug: bool,
    /// Largest content of one message.
    pub content_bytes_max: usize,
    /// Largest request body.
    pub body_bytes_max: usize,
    /// Requests handled at the same time.
    pub requests_max: usize,
    /// Connections open at the same time.
    pub connections_max: usize,
    /// Slowest rate at which a request body may arrive; 0 allows any.
    pub body_bytes_per_second_min: u64,
    /// Time for handling one request (`request_timeout_ms`).
    pub request_timeout: Duration,
    /// Time for a request body to arrive (`body_read_timeout_ms`).
    pub body_read_timeout: Duration,
    /// Time for the first byte on a new connection (`first_byte_timeout_ms`).
    pub first_byte_timeout: Duration,
    /// Time for the header of a request to arrive (`header_read_timeout_ms`).
    pub header_read_timeout: Duration,
    /// Time a connection may stay open between requests (`idle_timeout_ms`).
    pub idle_timeout: Duration,
    /// Time a caller may take nothing of a response (`write_stall_timeout_ms`).
    pub write_stall_timeout: Duration,
    /// Time for requests under way to end at a stop (`drain_timeout_ms`).
    pub drain_timeout: Duration,
    /// When SQLite takes a commit for done.
    pub sqlite_synchronous: SqliteSynchronous,
    /// Writes that may wait for the writer.
    pub sqlite_write_queue_max: usize,
    /// Writes that may share one commit.
    pub sqlite_batch_max: usize,
    /// Connections that read; 0 decides by the number of cores.
    pub sqlite_readers: usize,
    /// Connections open to PostgreSQL at the same time.
    pub postgres_connections_max: usize,
    /// Time to wait for a free connection (`postgres_acquire_timeout_ms`).
    pub postgres_acquire_timeout: Duration,
    /// Time for a whole operation on the database (`postgres_statement_timeout_ms`).
    pub postgres_statement_timeout: Duration,
    /// Whether statements are prepared once a connection.
    pub postgres_prepared_statements: bool,
    /// How appends are written.
    pub postgres_append: PostgresAppend,
    /// Appends that may share one commit.
    pub postgres_append_batch_max: usize,
    /// Appends that may wait for their commit.
    pub postgres_append_queue_max: usize,
    /// Threads that serve requests; 0 decides by the number of cores.
    pub worker_threads: usize,
    listing: Vec<ListedSetting>,
}

/// A setting as it is shown to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSetting {
    /// Name of the setting.
    pub name: &'static str,
    /// Heading under which it is shown.
    pub group: &'static str,
    /// The value that acts, with secrets hidden; nothing when it is not set and has no default.
    pub value: Option<String>,
    /// Where the value came from: `default`, `environment PORT`, `flag --port`, `.env line 3`, `chatstore.toml`;
    /// `not set` without a value.
    pub origin: String,
    /// What the setting decides.
    pub help: &'static str,
}

impl Config {
    /// Reads, checks and types every setting.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut values = Values::resolve(sources)?;
        let debug = values.required("debug", value::boolean)?;
        values.apply_debug(debug);
        let timeout = |name| values.milliseconds(name, 1..=3_600_000);
        let (embeddings, default_dimensions) = embeddings(&values)?;
        let config = Self {
            host: values.required_text("host", value::host)?,
            port: values.integer("port", 0..=65_535)?,
            unix_socket: values.text("unix_socket", value::unix_socket)?,
            database_url: values.required_text("database_url", DatabaseUrl::parse)?,
            migrate_database_url: values.text("migrate_database_url", value::postgres_url)?,
            auto_migrate: values.required("auto_migrate", value::boolean)?,
            default_dimensions,
            embeddings,
            api_key: values.text("api_key", value::api_key)?,
            secret_key: values.text("secret_key", value::secret_key)?,
            trusted_proxies: values.integer("trusted_proxies", 0..=100)?,
            cors_origins: values.text("cors_origins", CorsOrigins::parse)?.unwrap_or_default(),
            rate_limit: values.optional("rate_limit", rates)?,
            rate_limit_reads: values.optional("rate_limit_reads", rates)?,
            rate_limit_writes: values.optional("rate_limit_writes", rates)?,
            rate_limit_search: values.optional("rate_limit_search", rates)?,
            rate_limit_global: values.optional("rate_limit_global", rates)?.unwrap_or_default(),
            rate_limit_failed_auth: values.required("rate_limit_failed_auth", rates)?,
            rate_limit_store: values.required_text("rate_limit_store", RateLimitStore::parse)?,
            quotas: Quotas {
                sessions_per_user: values.optional_integer("quota_sessions_per_user", 1..=QUOTA_MAX)?,
                messages_per_session: values.optional_integer("quota_messages_per_session", 1..=QUOTA_MAX)?,
                project_bytes: values.optional_integer("quota_project_bytes", 1..=QUOTA_MAX)?,
            },
            log_level: values.required("log_level", LogLevel::parse)?,
            log_format: values.required("log_format", LogFormat::parse)?,
            debug,
            content_bytes_max: values.integer("content_bytes_max", 1..=268_435_456)?,
            body_bytes_max: values.integer("body_bytes_max", 1..=1_073_741_824)?,
            requests_max: values.integer("requests_max", 1..=1_000_000)?,
            connections_max: values.integer("connections_max", 1..=1_000_000)?,
            body_bytes_per_second_min: values.integer("body_bytes_per_second_min", 0..=1_073_741_824)?,
            request_timeout: timeout("request_timeout_ms")?,
            body_read_timeout: timeout("body_read_timeout_ms")?,
            first_byte_timeout: timeout("first_byte_timeout_ms")?,
            header_read_timeout: timeout("header_read_timeout_ms")?,
            idle_timeout: timeout("idle_timeout_ms")?,
            write_stall_timeout: timeout("write_stall_timeout_ms")?,
            drain_timeout: values.milliseconds("drain_timeout_ms", 0..=7_000)?,
            sqlite_synchronous: values.required("sqlite_synchronous", SqliteSynchronous::parse)?,
            sqlite_write_queue_max: values.integer("sqlite_write_queue_max", 1..=1_000_000)?,
            sqlite_batch_max: values.integer("sqlite_batch_max", 1..=65_536)?,
            sqlite_readers: values.integer("sqlite_readers", 0..=1_024)?,
            postgres_connections_max: values.integer("postgres_connections_max", 2..=10_000)?,
            postgres_acquire_timeout: timeout("postgres_acquire_timeout_ms")?,
            postgres_statement_timeout: timeout("postgres_statement_timeout_ms")?,
            postgres_prepared_statements: values.required("postgres_prepared_statements", value::boolean)?,
            postgres_append: values.required("postgres_append", PostgresAppend::parse)?,
            postgres_append_batch_max: values.integer("postgres_append_batch_max", 1..=65_536)?,
            postgres_append_queue_max: values.integer("postgres_append_queue_max", 1..=1_000_000)?,
            worker_threads: values.integer("worker_threads", 0..=1_024)?,
            listing: Vec::new(),
        };
        let listing = values.listing();
        Ok(Self { listing, ..config })
    }

    /// Every setting with its value and where it came from, for an operator; secrets are hidden.
    pub fn listing(&self) -> Vec<ListedSetting> {
        self.listing.clone()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The listing is redacted already, so a new field cannot be forgotten here.
        let mut out = f.debug_struct("Config");
        for listed in &self.listing {
            out.field(listed.name, &listed.value);
        }
        out.finish()
    }
}

/// The embedding source, if there is one, and the length of the default model's vectors, if it is fixed.
fn embeddings(values: &Values) -> Result<(Option<EmbedderSettings>, Option<u16>), ConfigError> {
    let fixed: u16 = values.integer("pgvector_dimension", 1..=4_000)?;
    let model = values.text("embeddings_model", value::embeddings_model)?;
    let api_key = values.text("embeddings_api_key", value::embeddings_api_key)?;
    let dimensions: Option<u16> = values.optional_integer("embeddings_dimensions", 1..=4_000)?;
    let query_prefix = values.text("embeddings_query_prefix", value::embeddings_prefix)?.unwrap_or_default();
    let document_prefix = values.text("embeddings_document_prefix", value::embeddings_prefix)?.unwrap_or_default();
    let input_bytes_max = values.integer("embeddings_input_bytes_max", 100..=1_000_000)?;
    let batch_max = values.integer("embeddings_batch_max", 1..=512)?;
    let concurrency = values.integer("embeddings_concurrency", 1..=64)?;
    let timeout = values.milliseconds("embeddings_timeout_ms", 1..=600_000)?;
    let url = values.text("embeddings_url", EmbeddingsUrl::parse)?;
    let (url, model) = match (url, model) {
        (Some(url), Some(model)) => (url, model),
        (Some(_), None) => return Err(values.unfit("embeddings_model", "if embeddings_url is")),
        (None, Some(_)) => return Err(values.unfit("embeddings_url", "if embeddings_model is")),
        (None, None) => return Ok((None, Some(fixed))),
    };
    let chosen = values.is_chosen("pgvector_dimension").then_some(fixed);
    if let (Some(chosen), Some(dimensions)) = (chosen, dimensions)
        && chosen != dimensions
    {
        return Err(values.unfit("embeddings_dimensions", format!("{chosen}, as pgvector_dimension is, or not set")));
    }
    let expected_dimensions = chosen.or(dimensions);
    let settings = EmbedderSettings {
        url,
        model,
        api_key,
        dimensions,
        expected_dimensions,
        batch_max,
        timeout,
        concurrency,
        input_bytes_max,
        query_prefix,
        document_prefix,
    };
    Ok((Some(settings), expected_dimensions))
}

/// One flag for each setting, and those that name the files to read; for a command that calls [`Sources::from_process`].
pub fn command_args() -> Vec<Arg> {
    let defaults: toml::Table = DEFAULTS.parse().expect("a test reads the defaults");
    let settings = KEYS.iter().map(|key| {
        let help = match defaults.get(&key.name) {
            _ if key.is_file => format!("File that holds the value of --{}", key.setting.name.replace('_', "-")),
            Some(toml::Value::String(text)) => format!("{} [default: {text}]", key.setting.help),
            Some(default) => format!("{} [default: {default}]", key.setting.help),
            None => key.setting.help.to_owned(),
        };
        let value_name = if key.is_file { "FILE" } else { "VALUE" };
        Arg::new(key.name.as_str())
            .long(key.flag.as_str())
            .value_name(value_name)
            .help(help)
            .help_heading(key.setting.group)
    });
    let files = [
        Arg::new("config").long("config").help("TOML file of settings [default: chatstore.toml, if it exists]"),
        Arg::new("env_file").long("env-file").help("File of variables [default: .env, if it exists]"),
    ];
    files.map(|arg| arg.value_name("FILE").help_heading("Settings")).into_iter().chain(settings).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;

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
            ("EMBEDDINGS_INPUT_BYTES_MAX", 100, 1_000_000),
            ("EMBEDDINGS_BATCH_MAX", 1, 512),
            ("EMBEDDINGS_CONCURRENCY", 1, 64),
            ("EMBEDDINGS_TIMEOUT_MS", 1, 600_000),
            ("CONTENT_BYTES_MAX", 1, 268_435_456),
            ("BODY_BYTES_MAX", 1, 1_073_741_824),
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
        for bad in [
            "h:8000",
            "ftp://h/v1",
            "http://",
            "file:///etc/passwd",
            "http://h/v1?key=hush",
            "http://h/#a",
            "http://a b",
        ] {
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
        for text in
            ["api_key = hush", "port = 1\napi_key = \"hush", "api_key = 'hush' hush", "hush", "api_key = ['hush']"]
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
    fn rates_come_from_every_source() {
        let expected = [Rate { count: 30, per_seconds: 60 }];
        assert_eq!(with_toml("rate_limit = 30").unwrap().rate_limit, expected);
        assert_eq!(with_env("RATE_LIMIT", "30/minute").unwrap().rate_limit, expected);
        let two = with_dotenv("RATE_LIMIT='100/hour;10 per second'").unwrap().rate_limit;
        assert_eq!(two, [Rate { count: 100, per_seconds: 3_600 }, Rate { count: 10, per_seconds: 1 }]);
        let message = message(with_env("RATE_LIMIT", "30/fortnight"));
        assert!(message.starts_with("rate_limit (from environment RATE_LIMIT) must be a rate such as 30"), "{message}");
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
        assert_eq!(
            message(with_dotenv("RATE_LIMT=30")),
            "RATE_LIMT (in .env) is not a setting; did you mean RATE_LIMIT?"
        );
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
}
