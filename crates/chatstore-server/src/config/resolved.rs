//! The values that were found, and how each becomes typed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use chatstore_core::rates::{RATES_ACCEPTED, Rates};

use super::sources::{DEFAULT_ORIGIN, Value};
use super::{ConfigError, DatabaseUrl, ListedSetting, RateLimitStore, SETTINGS, Setting, Sources};

/// The values that were found, still as text.
pub(super) struct Values(BTreeMap<&'static str, Value>);

impl Values {
    pub(super) fn resolve(sources: &Sources) -> Result<Self, ConfigError> {
        super::sources::resolve(sources).map(Self)
    }

    /// With `debug`, a log level that nobody chose is debug.
    pub(super) fn apply_debug(&mut self, debug: bool) {
        if let Some(level) = self.0.get_mut("log_level").filter(|level| debug && level.origin == DEFAULT_ORIGIN) {
            "debug".clone_into(&mut level.text);
            "default with debug".clone_into(&mut level.origin);
        }
    }

    pub(super) fn optional<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        parse(&value.text).map(Some).map_err(|accepted| invalid(name, value, accepted))
    }

    pub(super) fn text<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        match self.0.get(name).filter(|value| !value.is_text) {
            Some(value) => Err(invalid(name, value, "a text in quotes".to_owned())),
            None => self.optional(name, parse),
        }
    }

    pub(super) fn required<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        self.optional(name, parse).map(|value| value.expect("config.default.toml has it, as a test makes sure"))
    }

    pub(super) fn required_text<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        self.text(name, parse).map(|value| value.expect("config.default.toml has it, as a test makes sure"))
    }

    pub(super) fn integer<T: TryFrom<u64>>(
        &self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<T, ConfigError> {
        self.required(name, |text| whole_number(text, &range))
    }

    pub(super) fn optional_integer<T: TryFrom<u64>>(
        &self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<T>, ConfigError> {
        self.optional(name, |text| whole_number(text, &range))
    }

    /// Whether somebody set it, be it to its default.
    pub(super) fn is_chosen(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.origin != DEFAULT_ORIGIN)
    }

    /// The fault that a value does not fit to another setting.
    pub(super) fn unfit(&self, name: &'static str, accepted: impl Into<String>) -> ConfigError {
        match self.0.get(name) {
            Some(value) => invalid(name, value, accepted.into()),
            None => ConfigError::Missing { name, reason: accepted.into() },
        }
    }

    pub(super) fn milliseconds(&self, name: &'static str, range: RangeInclusive<u64>) -> Result<Duration, ConfigError> {
        self.integer(name, range).map(Duration::from_millis)
    }

    pub(super) fn listing(&self) -> Vec<ListedSetting> {
        let listed = |setting: &Setting| {
            let value = self.0.get(setting.name);
            let shown = value.map(|value| match setting.name {
                // Of a database only the password is secret.
                "database_url" | "migrate_database_url" => {
                    DatabaseUrl::parse(&value.text).map_or_else(|_| "***".to_owned(), |url| url.to_string())
                }
                "rate_limit_store" => {
                    RateLimitStore::parse(&value.text).map_or_else(|_| "***".to_owned(), |store| store.to_string())
                }
                _ if setting.secret => "***".to_owned(),
                _ => value.text.trim().to_owned(),
            });
            ListedSetting {
                name: setting.name,
                group: setting.group,
                value: shown,
                origin: value.map_or_else(|| "not set".to_owned(), |value| value.origin.clone()),
                help: setting.help,
            }
        };
        SETTINGS.iter().map(listed).collect()
    }
}

fn whole_number<T: TryFrom<u64>>(text: &str, range: &RangeInclusive<u64>) -> Result<T, String> {
    let digits = text.trim();
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    let number = number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
}

fn invalid(name: &'static str, value: &Value, accepted: String) -> ConfigError {
    let is_secret = SETTINGS.iter().any(|setting| setting.name == name && setting.secret);
    // What is no address may hold a key where one is put by mistake.
    let given = (!is_secret && name != "embeddings_url").then(|| value.text.chars().take(60).collect());
    ConfigError::Invalid { name, origin: value.origin.clone(), accepted, given }
}

pub(super) fn rates(text: &str) -> Result<Rates, String> {
    Rates::parse(text).ok_or_else(|| RATES_ACCEPTED.to_owned())
}
