//! Limits on requests: everything, the address, the project, the key and the user at once, by GCRA.

mod memory;
mod redis;
mod standing;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chatstore_core::api_keys::KeySettings;
use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::page::CursorKey;
use chatstore_core::projects::ProjectSettings;
use chatstore_core::rates::{ClassRates, Rate, Rates, RequestClass, Verdict};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::access::AccessSettings;
use crate::client_address::ClientAddress;
use crate::config::RateLimitStore;

use memory::Memory;
use redis::{CALL_TIMEOUT, Shared};
pub use standing::Standing;

/// Counts requests against their limits.
pub struct Limiter {
    rates: ClassRates,
    global_rates: Rates,
    ctx: Ctx,
    memory: Memory,
    shared: Option<(Arc<Shared>, DropGuard)>,
}

/// On whose account a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// Where it comes from.
    pub address: ClientAddress,
    /// Its project; nothing for open pages.
    pub project: Option<(ProjectId, &'a ProjectSettings)>,
    /// The id of its key; nothing for open pages and user tokens.
    pub key_id: Option<&'a str>,
    /// What was decided about its key; nothing for `API_KEY`.
    pub key_settings: Option<&'a KeySettings>,
    /// The user of its project that it speaks for.
    pub user_id: Option<&'a str>,
}

impl Account<'_> {
    /// That of a request without a credential.
    pub fn of_address(address: ClientAddress) -> Self {
        Self { address, project: None, key_id: None, key_settings: None, user_id: None }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dimension {
    Global,
    Address,
    Project,
    Key,
    User,
}

impl Dimension {
    /// Whether all classes of requests draw on one budget.
    fn is_of_all_classes(self) -> bool {
        matches!(self, Self::Global | Self::Project)
    }
}

/// Rates that all apply to one thing, each with a bucket of its own.
struct Limit<'a> {
    dimension: Dimension,
    class: RequestClass,
    rates: &'a [Rate],
    /// What names the thing, the same wherever it is counted.
    subject: Vec<u8>,
}

impl<'a> Limit<'a> {
    fn new(dimension: Dimension, class: RequestClass, rates: Option<&'a Rates>, subject: &[&[u8]]) -> Option<Self> {
        let rates = rates.map(Rates::as_slice).filter(|rates| !rates.is_empty())?;
        let budget = if dimension.is_of_all_classes() { b"all" } else { class.as_str().as_bytes() };
        Some(Self { dimension, class, rates, subject: [&[dimension as u8], budget, b":", &subject.concat()].concat() })
    }
}

/// The limits that a request falls under, in the order of [`Dimension`].
type Limits<'a> = [Option<Limit<'a>>; 5];

/// What tells one address from another: of IPv6, the 64 bits that one customer has at least.
pub(crate) fn network(address: &IpAddr) -> [u8; 9] {
    let mut bytes = [0; 9];
    match address {
        IpAddr::V4(address) => {
            bytes[0] = 4;
            bytes[1..5].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes[0] = 6;
            bytes[1..].copy_from_slice(&address.octets()[..8]);
        }
    }
    bytes
}

impl Limiter {
    /// A limiter of this process alone that counts nothing yet.
    pub fn new(settings: &AccessSettings, ctx: Ctx) -> Self {
        Self {
            rates: settings.rates.clone(),
            global_rates: settings.global_rates.clone(),
            memory: Memory::new(&ctx),
            ctx,
            shared: None,
        }
    }

    /// A limiter that counts where the settings say. One that shares Redis with other servers looks after its
    /// connection until it is dropped: requests are counted while a server drains, too. Servers of one store have the
    /// same `secret`.
    pub async fn start(settings: &AccessSettings, ctx: Ctx, secret: &CursorKey) -> Self {
        Self::start_with(settings, ctx, secret, CALL_TIMEOUT).await
    }

    /// The same; a request waits for Redis no longer than `call_timeout`.
    pub async fn start_with(settings: &AccessSettings, ctx: Ctx, secret: &CursorKey, call_timeout: Duration) -> Self {
        let mut limiter = Self::new(settings, ctx.clone());
        if let RateLimitStore::Redis(url) = &settings.rate_limit_store
            && let Some(shared) = Shared::new(url, &ctx, secret, call_timeout)
        {
            let shared = Arc::new(shared);
            let stop = CancellationToken::new();
            shared.keep_alive().await;
            tokio::spawn(shared.clone().look_after(stop.clone()));
            limiter.shared = Some((shared, stop.drop_guard()));
        }
        limiter
    }

    /// Counts one request: against all its limits, or, if one of them refuses it, against none.
    pub async fn count(&self, account: &Account<'_>, class: RequestClass) -> Standing {
        let limits = self.limits(account, class);
        if limits.iter().all(Option::is_none) {
            return Standing::default();
        }
        let verdicts = match &self.shared {
            None => self.count_here(&limits, 1),
            Some((shared, _)) => match shared.count(&limits).await {
                Some(verdicts) => verdicts,
                None => self.count_here(&limits, shared.replicas()),
            },
        };
        Standing::new(&limits, &verdicts)
    }

    fn count_here(&self, limits: &Limits<'_>, replicas: u32) -> Vec<Verdict> {
        self.memory.count(limits, replicas, || u64::try_from(self.ctx.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn limits<'a>(&'a self, account: &Account<'a>, class: RequestClass) -> Limits<'a> {
        use Dimension::{Address, Global, Key, Project, User};
        let general = self.rates.get(class);
        let followed = account.project.and_then(|(_, settings)| settings.limits.get(class)).or(general);
        let of_key = account.key_settings.map_or(followed, |settings| settings.rates(class, followed));
        let address = account.address.0.as_ref();
        [
            Limit::new(Global, class, Some(&self.global_rates), &[]),
            address.and_then(|address| Limit::new(Address, class, general, &[&network(address)])),
            account.project.and_then(|(project_id, settings)| {
                Limit::new(Project, class, settings.total_limit.as_ref(), &[project_id.uuid().as_bytes()])
            }),
            account.key_id.and_then(|key_id| Limit::new(Key, class, of_key, &[key_id.as_bytes()])),
            account.project.zip(account.user_id).and_then(|((project_id, _), user_id)| {
                Limit::new(User, class, followed, &[project_id.uuid().as_bytes(), user_id.as_bytes()])
            }),
        ]
    }
}
