//! The types of the settings behind limits and browsers.

use std::fmt;

use super::Secret;

/// Origins whose pages may read answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CorsOrigins {
    /// None but the server's own.
    #[default]
    None,
    /// Every one: `*`.
    Any,
    /// These.
    List(Vec<String>),
}

impl CorsOrigins {
    /// Reads `*`, or origins separated by commas.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ACCEPTED: &str =
            "*, or origins such as https://app.example or http://localhost:3000, separated by commas";
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let origins: Option<Vec<String>> = text.split(',').map(|origin| parse_origin(origin.trim())).collect();
        origins.map(Self::List).ok_or_else(|| ACCEPTED.to_owned())
    }
}

/// An origin as browsers write it (RFC 6454, section 6.2): scheme and host in lower case, no default port, no path.
pub fn parse_origin(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let (scheme, host) = text.split_once("://")?;
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let uri: axum::http::Uri = text.parse().ok()?;
    let is_bare = uri.path() == "/" && uri.query().is_none() && !host.ends_with('/') && !host.contains('@');
    let default_port = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let is_default_port = uri.port_u16().is_some() && uri.port_u16() == default_port;
    (is_word(scheme) && is_bare && uri.host().is_some_and(is_host) && !is_default_port).then_some(text)
}

/// Whether it is a name or address; a pattern such as `*.example` is none.
fn is_host(host: &str) -> bool {
    let name = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))
}

/// Where rates are counted.
#[derive(Clone, Debug, Default)]
pub enum RateLimitStore {
    /// In the process: each server counts for itself.
    #[default]
    Memory,
    /// In Redis or Valkey, for all servers together.
    Redis(Secret),
}

impl RateLimitStore {
    /// Reads `memory` or a URL of Redis.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "memory" => Ok(Self::Memory),
            url if is_redis_url(url) => Ok(Self::Redis(Secret::new(url))),
            _ => {
                Err("memory, or redis://USER:PASSWORD@HOST:PORT/NUMBER, of which only HOST must be there; in USER and \
                      PASSWORD, characters such as /, @ and # are written as %2F, %40 and %23"
                    .to_owned())
            }
        }
    }
}

/// Whether it is a URL of Redis that leaves nothing to guess.
fn is_redis_url(text: &str) -> bool {
    let Ok(url) = text.parse::<axum::http::Uri>() else { return false };
    let Some(authority) = url.authority().map(|authority| authority.as_str()) else { return false };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = match host.rfind(']').map_or(host, |end| &host[end..]).split_once(':') {
        Some((_, port)) => port.parse::<u16>().is_ok_and(|port| port > 0),
        None => true,
    };
    let number = url.path().trim_start_matches('/');
    let number = number.is_empty() || number.bytes().all(|b| b.is_ascii_digit());
    url.scheme_str() == Some("redis")
        && url.host().is_some_and(|host| !host.is_empty())
        && port
        && number
        && url.query().is_none()
}

impl fmt::Display for RateLimitStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Redis(_) => "redis://***",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for good in ["https://app.example", "http://localhost:3000", "http://[::1]:8080", "capacitor://localhost"] {
            assert_eq!(parse_origin(good).as_deref(), Some(good));
        }
        assert_eq!(parse_origin("HTTPS://App.Example").as_deref(), Some("https://app.example"));
        for bad in [
            "",
            "*",
            "null",
            "app.example",
            "https://",
            "https://a.example/",
            "https://a.example/x",
            "https://a:443",
            "http://a?x",
            "https://u@a",
            "https://*.example",
        ] {
            assert_eq!(parse_origin(bad), None, "{bad}");
        }
    }

    #[test]
    fn lists_of_origins_are_read() {
        assert_eq!(CorsOrigins::parse(" * "), Ok(CorsOrigins::Any));
        let list = ["https://a.example", "https://b.example"].map(str::to_owned).to_vec();
        assert_eq!(CorsOrigins::parse("https://a.example, https://b.example"), Ok(CorsOrigins::List(list)));
        assert!(CorsOrigins::parse("https://a.example,*").is_err());
        assert!(CorsOrigins::parse("").is_err());
    }
}
