//! Who may do what, and how much, as the operator set it.

use chatstore_core::limits::{APPEND_MESSAGES_MAX, CONVERSATION_ITEMS_MAX};
use chatstore_core::rates::{ClassRates, Rates};
use chatstore_core::store::Quotas;

use crate::config::{Config, CorsOrigins, RateLimitStore, Secret};

/// The settings behind authentication, limits and browser safety. The default limits nothing and admits no browser.
#[derive(Clone, Debug)]
pub struct AccessSettings {
    /// The key that always works.
    pub api_key: Option<Secret>,
    /// What signs and verifies user tokens of every project (HS256).
    pub secret_key: Option<Secret>,
    /// Rates of each key, user and address.
    pub rates: ClassRates,
    /// One budget for everything there is.
    pub global_rates: Rates,
    /// Failed attempts to authenticate from one address.
    pub failed_auth_rates: Rates,
    /// Where rates are counted.
    pub rate_limit_store: RateLimitStore,
    /// How many proxies stand in front and can be believed.
    pub trusted_proxies: usize,
    /// Origins whose pages may read answers.
    pub cors_origins: CorsOrigins,
    /// How much a project may hold that has no quotas of its own.
    pub quotas: Quotas,
    /// Requests that may be handled at the same time.
    pub requests_max: usize,
    /// What the Conversations wire takes.
    pub openai: OpenAiSettings,
}

/// What the Conversations wire takes.
#[derive(Clone, Copy, Debug)]
pub struct OpenAiSettings {
    /// Whether an SDK's own retries are known by their bodies.
    pub sdk_retry_dedupe: bool,
    /// Items that one request may bring, unless it is strict.
    pub items_max: usize,
    /// Whether items are taken and refused as the official service does it.
    pub is_strict: bool,
}

impl Default for OpenAiSettings {
    fn default() -> Self {
        Self { sdk_retry_dedupe: true, items_max: APPEND_MESSAGES_MAX, is_strict: false }
    }
}

impl OpenAiSettings {
    /// Items that one request may bring.
    pub fn items_at_once(&self) -> usize {
        if self.is_strict { self.items_max.min(CONVERSATION_ITEMS_MAX) } else { self.items_max }
    }
}

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            api_key: None,
            secret_key: None,
            rates: ClassRates::default(),
            global_rates: Rates::OFF,
            failed_auth_rates: Rates::OFF,
            rate_limit_store: RateLimitStore::Memory,
            trusted_proxies: 0,
            cors_origins: CorsOrigins::None,
            quotas: Quotas::default(),
            requests_max: 512,
            openai: OpenAiSettings::default(),
        }
    }
}

impl From<&Config> for AccessSettings {
    fn from(config: &Config) -> Self {
        let rates = |own: &Option<Rates>| own.clone().or_else(|| config.rate_limit.clone());
        Self {
            api_key: config.api_key.clone(),
            secret_key: config.secret_key.clone(),
            rates: ClassRates {
                reads: rates(&config.rate_limit_reads),
                writes: rates(&config.rate_limit_writes),
                search: rates(&config.rate_limit_search),
            },
            global_rates: config.rate_limit_global.clone(),
            failed_auth_rates: config.rate_limit_failed_auth.clone(),
            rate_limit_store: config.rate_limit_store.clone(),
            trusted_proxies: config.trusted_proxies,
            cors_origins: config.cors_origins.clone(),
            quotas: config.quotas,
            requests_max: config.requests_max,
            openai: OpenAiSettings {
                sdk_retry_dedupe: config.sdk_retry_dedupe,
                items_max: config.openai_items_max,
                is_strict: config.openai_strict,
            },
        }
    }
}
