//! How often an address may fail to authenticate.
//!
//! Past its budget, an address is told so instead of 401, and what it shows is looked up only if there is a key or
//! project of that id, and where it is remembered and refused, once in a moment: guesses cost few lookups, and no valid
//! key is refused for the failures of others for longer than that moment. An attempt counts when it has failed: those
//! under way at one moment may together pass the budget. What was good until a while ago is no attempt to guess.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chatstore_core::clock::Ctx;
use chatstore_core::limits::RATES_MAX;
use chatstore_core::rates::{Rates, Verdict};

use crate::client_address::ClientAddress;
use crate::rate_limit::network;

/// Addresses that are counted one by one; while there are more, all others share one budget.
const ADDRESSES_MAX: usize = 65_536;
/// Between two looks for addresses that have their whole budget again.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Counts failed attempts to authenticate, each address for itself, in this process.
pub struct Failures {
    rates: Rates,
    ctx: Ctx,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    buckets: HashMap<Source, Bucket>,
    others: Bucket,
    swept_at: Option<Duration>,
}

/// Nanoseconds at which each of the rates is full again.
type Bucket = [u64; RATES_MAX];

/// Who is behind an address: one customer has a whole network of IPv6. All without an address are one.
type Source = Option<[u8; 9]>;

fn source(address: ClientAddress) -> Source {
    address.0.map(|address| network(&address.to_canonical()))
}

impl Failures {
    /// Nobody has failed yet.
    pub fn new(rates: Rates, ctx: Ctx) -> Self {
        Self { rates, ctx, counted: Mutex::default() }
    }

    /// How long an address must wait whose budget is used up.
    pub(super) fn wait(&self, address: ClientAddress) -> Option<Duration> {
        if self.rates.as_slice().is_empty() {
            return None;
        }
        let now = self.ctx.elapsed();
        let counted = self.counted();
        let bucket = counted.buckets.get(&source(address));
        let is_full = counted.buckets.len() >= ADDRESSES_MAX;
        let bucket = bucket.or(is_full.then_some(&counted.others)).copied().unwrap_or_default();
        decide(&self.rates, bucket, now).err()
    }

    /// Counts a failed attempt, or tells how long the address must wait.
    pub(super) fn count(&self, address: ClientAddress) -> Option<Duration> {
        if self.rates.as_slice().is_empty() {
            return None;
        }
        let now = self.ctx.elapsed();
        let mut counted = self.counted();
        let bucket = counted.bucket(source(address), now);
        match decide(&self.rates, *bucket, now) {
            Ok(after) => {
                *bucket = after;
                None
            }
            Err(wait) => Some(wait),
        }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn bucket(&mut self, source: Source, now: Duration) -> &mut Bucket {
        if self.buckets.len() >= ADDRESSES_MAX && !self.buckets.contains_key(&source) {
            if self.swept_at.is_none_or(|at| at + SWEEP_PAUSE <= now) {
                self.swept_at = Some(now);
                self.buckets.retain(|_, bucket| bucket.iter().any(|full_at| nanos(now) < *full_at));
            }
            if self.buckets.len() >= ADDRESSES_MAX {
                return &mut self.others;
            }
        }
        self.buckets.entry(source).or_default()
    }
}

/// What one more failure makes of a bucket, or how long until there may be one.
fn decide(rates: &Rates, mut bucket: Bucket, now: Duration) -> Result<Bucket, Duration> {
    let mut wait = None;
    for (rate, full_at) in rates.as_slice().iter().zip(&mut bucket) {
        match rate.share(1).decide(*full_at, nanos(now)) {
            Verdict::Admit { full_at_ns, .. } => *full_at = full_at_ns,
            Verdict::Refuse { wait_ns } => wait = wait.max(Some(Duration::from_nanos(wait_ns))),
        }
    }
    wait.map_or(Ok(bucket), Err)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chatstore_core::clock::Timestamp;
    use std::net::IpAddr;

    fn failures(rates: &str) -> Failures {
        let ctx = Ctx::fixed(Timestamp::from_micros(0).unwrap(), 0, 1);
        Failures::new(Rates::parse(rates).unwrap(), ctx)
    }

    fn address(text: &str) -> ClientAddress {
        ClientAddress(Some(text.parse().unwrap()))
    }

    #[test]
    fn an_address_has_its_budget_and_gets_it_back() {
        let failures = failures("3/minute;4/hour");
        let one = address("203.0.113.9");
        for _ in 0..3 {
            assert_eq!(failures.wait(one), None);
            assert_eq!(failures.count(one), None);
        }
        assert_eq!(failures.wait(one), Some(Duration::from_secs(20)));
        assert_eq!(failures.count(one), failures.wait(one), "a refusal counts nothing");
        failures.ctx.advance(Duration::from_secs(20));
        assert_eq!((failures.wait(one), failures.count(one)), (None, None));
        // Now the hour is used up, too, and the longer wait is told.
        assert_eq!(failures.wait(one), Some(Duration::from_secs(880)));
        failures.ctx.advance(Duration::from_secs(880));
        assert_eq!(failures.count(one), None);
    }

    #[test]
    fn addresses_are_counted_apart_and_a_network_of_ipv6_together() {
        let failures = failures("1/minute");
        for (text, is_refused) in [
            ("203.0.113.9", false),
            ("203.0.113.8", false),
            ("::ffff:203.0.113.9", true),
            ("2001:db8::1", false),
            ("2001:db8::2:1", true),
            ("2001:db8:0:1::1", false),
        ] {
            assert_eq!(failures.count(address(text)).is_some(), is_refused, "{text}");
        }
        assert_eq!(failures.count(ClientAddress(None)), None);
        assert!(failures.count(ClientAddress(None)).is_some());
    }

    #[test]
    fn off_counts_nothing() {
        let failures = failures("off");
        assert!((0..1_000).all(|_| failures.count(ClientAddress(None)).is_none()));
        assert!(failures.counted().buckets.is_empty());
    }

    #[test]
    fn a_flood_of_addresses_takes_bounded_room_and_resets_nobody() {
        let failures = failures("1/hour");
        let first = address("203.0.113.9");
        failures.count(first);
        let addresses = (0..ADDRESSES_MAX as u32).map(|n| ClientAddress(Some(IpAddr::V4((n + (10 << 24)).into()))));
        let refused = addresses.filter(|address| failures.count(*address).is_some()).count();
        assert_eq!((failures.counted().buckets.len(), refused), (ADDRESSES_MAX, 0));
        // The last one had the budget of all others; the next is refused with it, and so is the first.
        assert!(failures.wait(address("192.0.2.1")).is_some());
        assert!(failures.count(address("192.0.2.2")).is_some() && failures.count(first).is_some());
        // An hour later nobody is counted any more.
        failures.ctx.advance(Duration::from_secs(3_600));
        assert_eq!(failures.count(address("192.0.2.1")), None);
        assert_eq!(failures.counted().buckets.len(), 1);
    }
}
