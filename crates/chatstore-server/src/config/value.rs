//! The types of values and how each is read from text.
//!
//! A `parse` function that fails says what it accepts, in words that stand after "must be".

use std::fmt;
use std::path::PathBuf;

use axum::http::Uri;
use chatstore_core::limits::EMBEDDING_MODEL_BYTES_MAX;

/// A text that is never shown: `Debug` and `Display` print `***`.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where conversations are stored. `Debug` and `Display` hide the password.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A file of SQLite.
    Sqlite(PathBuf),
    /// A server of PostgreSQL, as the URL that names it.
    Postgres(Secret),
}

impl DatabaseUrl {
    /// Reads `sqlite:PATH`, `sqlite://PATH`, `postgres://…` or `postgresql://…`.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ACCEPTED: &str = "sqlite:PATH, sqlite://PATH, postgres://… or postgresql://…";
        if text.chars().any(char::is_control) {
            return Err(format!("{ACCEPTED}, without control characters"));
        }
        if let Some(rest) = text.strip_prefix("sqlite:") {
            return sqlite_path(rest.strip_prefix("//").unwrap_or(rest)).map(Self::Sqlite);
        }
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        match rest {
            Some(rest) if !rest.is_empty() && !rest.contains(char::is_whitespace) => {
                Ok(Self::Postgres(Secret::new(text)))
            }
            _ => Err(ACCEPTED.to_owned()),
        }
    }
}

/// A database that has roles, one of which may migrate it.
pub(super) fn postgres_url(text: &str) -> Result<DatabaseUrl, String> {
    match DatabaseUrl::parse(text) {
        Ok(url @ DatabaseUrl::Postgres(_)) => Ok(url),
        _ => Err("postgres://… or postgresql://…, the database of database_url".to_owned()),
    }
}

/// Refuses the names that SQLite would not take for a file of its own, so that nothing is stored where it is lost.
fn sqlite_path(path: &str) -> Result<PathBuf, String> {
    if path.contains(":memory:") || path.contains("mode=memory") {
        return Err("a file when it is SQLite, because a database in memory is lost when the server stops".to_owned());
    }
    if path.is_empty() || path.ends_with('/') || path.starts_with("file:") || path.contains('?') {
        return Err("sqlite: with the path of a file, without \"file:\" and without options after \"?\"".to_owned());
    }
    Ok(PathBuf::from(path))
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => f.write_str(&redacted_url(url.expose())),
        }
    }
}

/// The URL without its password, be it before the host or among the options.
fn redacted_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "***".to_owned();
    };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // A later `@` means that a password holds an unescaped `/`, `?` or `#`: where it ends is anyone's guess.
    if tail.contains('@') {
        return format!("{scheme}://***");
    }
    let authority = match authority.rsplit_once('@') {
        Some((login, host)) => match login.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    match tail.split_once('?') {
        Some((path, options)) => {
            let options: Vec<_> = options.split('&').map(redacted_option).collect();
            format!("{scheme}://{authority}{path}?{}", options.join("&"))
        }
        None => format!("{scheme}://{authority}{tail}"),
    }
}

/// Only names known to be harmless show their values: a driver may learn a new secret option any day.
fn redacted_option(option: &str) -> String {
    const SHOWN: &[&str] =
        &["application_name", "connect_timeout", "dbname", "host", "port", "sslmode", "sslrootcert", "user"];
    match option.split_once('=') {
        Some((name, _)) if SHOWN.contains(&name) => option.to_owned(),
        Some((name, _)) => format!("{name}=***"),
        None => "***".to_owned(),
    }
}

/// Where the embedding source is asked.
#[derive(Clone, Debug)]
pub struct EmbeddingsUrl(Uri);

impl EmbeddingsUrl {
    /// Reads the base of an OpenAI-compatible API, such as `https://api.openai.com/v1`, or the whole address of its
    /// embeddings.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ACCEPTED: &str =
            "the address of an OpenAI-compatible API such as https://api.openai.com/v1, http or https, without query";
        let base = text.trim_end_matches('/');
        let whole = if base.ends_with("/embeddings") { base.to_owned() } else { format!("{base}/embeddings") };
        let url: Uri = whole.parse().map_err(|_| ACCEPTED.to_owned())?;
        let is_http = matches!(url.scheme_str(), Some("http" | "https"));
        match url.authority() {
            Some(authority) if authority.as_str().contains('@') => {
                Err(format!("{ACCEPTED}, and without user and password: a key goes into embeddings_api_key"))
            }
            Some(authority) if is_http && !authority.host().is_empty() && !text.contains(['?', '#']) => Ok(Self(url)),
            _ => Err(ACCEPTED.to_owned()),
        }
    }

    /// The whole address.
    pub fn endpoint(&self) -> &Uri {
        &self.0
    }
}

/// Bytes of what stands before each text; some models take a sentence.
const PREFIX_BYTES_MAX: usize = 500;

/// Room is left for `@4000`, which stored names end with where the length is asked for.
pub(super) fn embeddings_model(text: &str) -> Result<String, String> {
    let bytes_max = EMBEDDING_MODEL_BYTES_MAX - 5;
    if text.is_empty() || text.len() > bytes_max || text.contains(char::is_control) {
        return Err(format!("the name of a model, 1 to {bytes_max} bytes without control characters"));
    }
    Ok(text.to_owned())
}

/// A few words; a blank at the end belongs to them.
pub(super) fn embeddings_prefix(text: &str) -> Result<String, String> {
    if text.len() > PREFIX_BYTES_MAX {
        return Err(format!("at most {PREFIX_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

/// What a header can carry.
pub(super) fn embeddings_api_key(text: &str) -> Result<Secret, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("visible ASCII characters without blanks".to_owned());
    }
    Ok(Secret::new(text))
}

/// How severe an event must be to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything, dependencies included.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What an operator wants to know.
    Info,
    /// What an operator should look at.
    Warn,
    /// What failed.
    Error,
    /// What stops the service; equals `Error`, as there is no higher level to log at.
    Critical,
    /// Nothing.
    Off,
}

impl LogLevel {
    /// Reads a level, in any case.
    pub fn parse(text: &str) -> Result<Self, String> {
        choice(
            text,
            &[
                ("trace", Self::Trace),
                ("debug", Self::Debug),
                ("info", Self::Info),
                ("warn", Self::Warn),
                ("warning", Self::Warn),
                ("error", Self::Error),
                ("critical", Self::Critical),
                ("off", Self::Off),
            ],
        )
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `Human` on a terminal, `Json` elsewhere.
    Auto,
    /// Lines for people.
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Reads a format, in any case.
    pub fn parse(text: &str) -> Result<Self, String> {
        choice(text, &[("auto", Self::Auto), ("human", Self::Human), ("json", Self::Json)])
    }
}

/// When SQLite takes a commit for done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqliteSynchronous {
    /// When it is on the disk.
    Full,
    /// When the system has it; the last commits may be lost on power loss.
    Normal,
}

impl SqliteSynchronous {
    /// Reads a mode, in any case.
    pub fn parse(text: &str) -> Result<Self, String> {
        choice(text, &[("full", Self::Full), ("normal", Self::Normal)])
    }
}

/// How appends are written to PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresAppend {
    /// Appends to any sessions share one statement and one commit: for one node.
    Batched,
    /// A transaction for each append: for a sharded database.
    PerSession,
}

impl PostgresAppend {
    /// Reads a form, in any case.
    pub fn parse(text: &str) -> Result<Self, String> {
        choice(text, &[("batched", Self::Batched), ("per_session", Self::PerSession)])
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    choice(
        text,
        &[
            ("true", true),
            ("false", false),
            ("yes", true),
            ("no", false),
            ("on", true),
            ("off", false),
            ("1", true),
            ("0", false),
        ],
    )
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text.trim()));
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|&(name, _)| name).collect();
        format!("one of {}", names.join(", "))
    })
}

pub(super) fn host(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if text.is_empty() || !text.chars().all(plain) {
        return Err("an IP address or a host name, without a scheme, port or brackets".to_owned());
    }
    Ok(text.to_owned())
}

/// 107 bytes and a final NUL are what an address of a Unix socket holds on Linux.
pub(super) fn unix_socket(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.len() > 107 || text.contains('\0') {
        return Err("a path of 1 to 107 bytes".to_owned());
    }
    Ok(PathBuf::from(text))
}

pub(super) fn api_key(text: &str) -> Result<Secret, String> {
    // What a header can carry, so that the key that is set is one that can be sent.
    if text.len() < 8 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("at least 8 visible ASCII characters".to_owned());
    }
    Ok(Secret::new(text))
}

pub(super) fn secret_key(text: &str) -> Result<Secret, String> {
    if text.len() < 32 {
        return Err("at least 32 bytes long".to_owned());
    }
    Ok(Secret::new(text))
}
