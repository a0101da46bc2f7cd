//! Where the database is: the URL as libpq reads it, and single connections to what it names.

pub(crate) mod server;

use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::{OpenError, not_in_time, open_error};
use crate::sqlstate::described;
use crate::tls::TlsOptions;

/// What holds unless the URL says otherwise: a server that is gone without a word is noticed
/// within a minute, and within seconds while something is sent to it.
const DEFAULTS: &str =
    "application_name=chatstore&keepalives_idle=30&keepalives_interval=10&keepalives_retries=3&tcp_user_timeout=10";

/// The port where none is named.
const PORT: u16 = 5432;

/// A database, and how it is reached.
#[derive(Clone)]
pub(crate) struct Target {
    config: Config,
    tls: MakeRustlsConnect,
    shown: String,
}

/// The password stays inside.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.shown).finish()
    }
}

impl Target {
    /// Reads `postgres://USER:PASSWORD@HOST:PORT/NAME?OPTION=VALUE&…`.
    ///
    /// # Errors
    /// A sentence without the URL, for that may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self, OpenError> {
        let (place, query) = split(url)?;
        let options = Options::parse(query)?;
        let mut config: Config = format!("{place}?{DEFAULTS}{}", options.others)
            .parse()
            .map_err(|error| OpenError::new(format!("the database URL cannot be read: {}", described(&error))))?;
        if let Some(timeout) = options.tcp_user_timeout {
            config.tcp_user_timeout(timeout);
        }
        let nowhere = |host: &Host| matches!(host, Host::Tcp(name) if name.is_empty());
        if config.get_hosts().iter().any(nowhere)
            || (config.get_hosts().is_empty() && config.get_hostaddrs().is_empty())
        {
            return Err(OpenError::new("the database URL names no host; write postgres://USER:PASSWORD@HOST/NAME"));
        }
        let Some(user) = config.get_user().filter(|user| !user.is_empty()).map(str::to_owned) else {
            return Err(OpenError::new("the database URL names no user; write postgres://USER:PASSWORD@HOST/NAME"));
        };
        if config.get_dbname().is_none() {
            config.dbname(user);
        }
        let by_socket = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        // Servers offer no TLS on a socket, and libpq asks for none there.
        config.ssl_mode(if by_socket && config.get_hostaddrs().is_empty() {
            SslMode::Disable
        } else {
            options.tls.ssl_mode()
        });
        Ok(Self { tls: options.tls.connector()?, shown: shown(&config), config })
    }

    /// What secures a connection.
    pub(crate) fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }

    /// The name for logs and sentences: `postgres://HOST:PORT/NAME`, without user or password.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// The settings of a connection that is to be open within `timeout`: a host that is silent
    /// leaves time for the next one.
    pub(crate) fn config_within(&self, timeout: Duration) -> Config {
        let mut config = self.config.clone();
        if config.get_connect_timeout().is_none() {
            let addresses = config.get_hosts().len().max(config.get_hostaddrs().len()) + 1;
            config.connect_timeout(timeout / u32::try_from(addresses).unwrap_or(u32::MAX));
        }
        config
    }

    /// Opens one connection, driven by a task of its own until the client is dropped.
    ///
    /// # Errors
    /// A sentence for the operator, within `timeout`.
    pub(crate) async fn connect(&self, timeout: Duration) -> Result<Client, OpenError> {
        let config = self.config_within(timeout);
        let opened = tokio::time::timeout(timeout, config.connect(self.tls())).await;
        let (client, connection) = opened
            .map_err(|_| OpenError::new(not_in_time(&self.shown)).passing())?
            .map_err(|error| open_error(&self.shown, &error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = described(&error), "a connection to the database ended");
            }
        });
        Ok(client)
    }
}

/// The URL up to its options, and these.
fn split(url: &str) -> Result<(&str, &str), OpenError> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    let rest = rest.ok_or_else(|| OpenError::new("the database URL must begin with postgres:// or postgresql://"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    // Else a part of the password would be read as a host, and be shown.
    if rest.matches('@').count() != authority.matches('@').take(1).count() {
        return Err(OpenError::new(
            "the database URL cannot be read: in user, password and options write @ as %40, / as %2F and ? as %3F",
        ));
    }
    Ok(url.split_once('?').unwrap_or((url, "")))
}

/// The options of a URL, apart from those that the driver reads itself.
#[derive(Default)]
struct Options {
    tls: TlsOptions,
    tcp_user_timeout: Option<Duration>,
    /// What the driver reads, each preceded by `&`.
    others: String,
}

impl Options {
    fn parse(query: &str) -> Result<Self, OpenError> {
        let mut options = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let unreadable = || OpenError::new("the database URL has an option that is not of the form NAME=VALUE");
            let (key, written) = pair.split_once('=').ok_or_else(unreadable)?;
            let key = percent_decode_str(key).decode_utf8().map_err(|_| unreadable())?;
            let value = percent_decode_str(written).decode_utf8();
            match (key.as_ref(), value.as_deref()) {
                (key, Ok(value)) if options.tls.take(key, value)? => {}
                // libpq counts milliseconds, the driver seconds.
                ("tcp_user_timeout", Ok(value)) => {
                    let ms = value.parse().map_err(|_| {
                        OpenError::new("tcp_user_timeout in the database URL must be a number of milliseconds")
                    })?;
                    options.tcp_user_timeout = Some(Duration::from_millis(ms));
                }
                ("keepalives_count", _) => options.others.push_str(&format!("&keepalives_retries={written}")),
                _ => options.others.push_str(&format!("&{pair}")),
            }
        }
        Ok(options)
    }
}

fn shown(config: &Config) -> String {
    let port = |at: usize| config.get_ports().get(at).or(config.get_ports().first()).copied().unwrap_or(PORT);
    let mut hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]"),
            Host::Tcp(name) => name.clone(),
            Host::Unix(folder) => folder.display().to_string(),
        })
        .collect();
    if hosts.is_empty() {
        hosts.extend(config.get_hostaddrs().iter().map(ToString::to_string));
    }
    let places: Vec<String> = hosts.iter().enumerate().map(|(at, host)| format!("{host}:{}", port(at))).collect();
    format!("postgres://{}/{}", places.join(","), config.get_dbname().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        let sentence = Target::parse(url).expect_err(url).to_string();
        assert!(!sentence.contains("secret") && sentence.lines().count() == 1, "{sentence}");
        sentence
    }

    #[test]
    fn a_target_is_shown_without_user_and_password() {
        for (url, shown) in [
            ("postgres://me:secret@db.example/chat", "postgres://db.example:5432/chat"),
            ("postgresql://me:secret@db.example:6432/chat?connect_timeout=3", "postgres://db.example:6432/chat"),
            ("postgres://me:secret@db.example", "postgres://db.example:5432/me"),
            ("postgres://me:secret@[::1]:6432/chat", "postgres://[::1]:6432/chat"),
            ("postgres://me:secret@a,b:6432/chat", "postgres://a:5432,b:6432/chat"),
            ("postgres://me:secret@%2Frun%2Fpg:6432/chat", "postgres:///run/pg:6432/chat"),
            ("postgres://me@/chat?host=/run/pg&password=secret", "postgres:///run/pg:5432/chat"),
            ("postgres:///chat?hostaddr=10.0.0.1&user=me&password=secret", "postgres://10.0.0.1:5432/chat"),
        ] {
            let target = Target::parse(url).expect(url);
            assert_eq!(target.shown(), shown);
            assert!(!format!("{target:?}").contains("secret"));
        }
    }

    #[test]
    fn parts_are_decoded() {
        let target =
            Target::parse("postgres://m%40e:s%2Fe%3Acr%25et@db.example/ch%20at?application_name=a%26b").unwrap();
        let config = target.config_within(Duration::from_secs(1));
        assert_eq!(config.get_user(), Some("m@e"));
        assert_eq!(config.get_password(), Some(&b"s/e:cr%et"[..]));
        assert_eq!(config.get_dbname(), Some("ch at"));
        assert_eq!(config.get_application_name(), Some("a&b"));
    }

    #[test]
    fn a_dead_server_is_noticed_unless_the_url_says_otherwise() {
        let target = Target::parse("postgres://me@db.example/chat").unwrap();
        let config = target.config_within(Duration::from_secs(1));
        assert_eq!(config.get_application_name(), Some("chatstore"));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(10)));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(30));
        assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(10)));
        assert_eq!(config.get_keepalives_retries(), Some(3));
        let own = "postgres://me@db.example/chat?application_name=mine&keepalives_idle=5&keepalives_count=7&\
                   tcp_user_timeout=1500";
        let target = Target::parse(own).unwrap();
        let config = target.config_within(Duration::from_secs(1));
        assert_eq!(config.get_application_name(), Some("mine"));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_millis(1_500)));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(5));
        assert_eq!(config.get_keepalives_retries(), Some(7));
    }

    #[test]
    fn tls_is_asked_for_as_the_mode_says_and_never_on_a_socket() {
        let mode = |url: &str| Target::parse(url).expect(url).config_within(Duration::from_secs(1)).get_ssl_mode();
        assert_eq!(mode("postgres://me@db.example/chat"), SslMode::Prefer);
        assert_eq!(mode("postgres://me@db.example/chat?sslmode=allow"), SslMode::Prefer);
        assert_eq!(mode("postgres://me@db.example/chat?sslmode=disable"), SslMode::Disable);
        assert_eq!(mode("postgres://me@db.example/chat?sslmode=require"), SslMode::Require);
        assert_eq!(mode("postgres://me@%2Frun/chat?sslmode=require"), SslMode::Disable);
        assert_eq!(mode("postgres://me@%2Frun,db.example/chat?sslmode=require"), SslMode::Require);
    }

    #[test]
    fn a_url_that_cannot_be_meant_is_refused_without_its_password() {
        for (url, part) in [
            ("mysql://me:secret@db.example/chat", "must begin with postgres://"),
            ("host=db.example password=secret", "must begin with postgres://"),
            ("postgres://me:@secret@db.example/chat", "@ as %40"),
            ("postgres://me:/secret@db.example/chat", "/ as %2F"),
            ("postgres://me:?secret@db.example/chat", "? as %3F"),
            ("postgres://me:secret@/chat", "names no host"),
            ("postgres://db.example/chat?password=secret", "names no user"),
            ("postgres://me:secret@db.example:many/chat", "`port`"),
            ("postgres://me:secret@db.example/chat?colour=red", "unknown option `colour`"),
            ("postgres://me:secret@db.example/chat?colour", "NAME=VALUE"),
            ("postgres://me:secret@db.example/chat?tcp_user_timeout=soon", "milliseconds"),
            ("postgres://me:secret@db.example/chat?sslmode=on", "verify-full"),
            ("postgres://me:secret@db.example/chat?sslmode=verify-ca", "needs a file in sslrootcert="),
            ("postgres://me:secret@db.example/chat?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
            ("postgres://me:secret@db.example/chat?sslkey=/own.key", "both sslcert and sslkey"),
        ] {
            let sentence = refusal(url);
            assert!(sentence.contains(part), "{url}: {sentence}");
        }
    }
}
