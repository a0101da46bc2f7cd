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

use chatstore_core::limits::APPEND_MESSAGES_MAX;
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
    plain("OpenAI", "sdk_retry_dedupe", "Know an SDK's own retries by their bodies, so that items are stored once"),
    plain("OpenAI", "openai_items_max", "Items of a conversation that one request may bring"),
    plain("OpenAI", "openai_strict", "Take and refuse items as the official service does: 20 at once, no id twice"),
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
    /// Whether an SDK's own retries are known by their bodies.
    pub sdk_retry_dedupe: bool,
    /// Items of a conversation that one request may bring.
    pub openai_items_max: usize,
    /// Whether items are taken and refused as the official service does it.
    pub openai_strict: bool,
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
            sdk_retry_dedupe: values.required("sdk_retry_dedupe", value::boolean)?,
            openai_items_max: values.integer("openai_items_max", 1..=APPEND_MESSAGES_MAX as u64)?,
            openai_strict: values.required("openai_strict", value::boolean)?,
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
mod tests;
