//! How a request stands with its limits: the headers that say so, and the refusal.

use std::fmt::{self, Write as _};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use chatstore_core::rates::{Rate, RequestClass, Verdict};

use super::{Dimension, Limits};
use crate::error::{ApiError, Code};

static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// How a request stands with its limits; where there are none, nothing.
#[derive(Debug, Default)]
pub struct Standing {
    counted: Vec<Counted>,
    is_refused: bool,
}

/// One rate, and what it says of the request.
#[derive(Clone, Copy, Debug)]
struct Counted {
    dimension: Dimension,
    class: RequestClass,
    rate: Rate,
    /// Where a limit has several rates: how many of the same window stand before this one.
    nth: Option<usize>,
    verdict: Verdict,
}

impl Standing {
    pub(super) fn new(limits: &Limits<'_>, verdicts: &[Verdict]) -> Self {
        let rates = limits.iter().flatten().flat_map(|limit| {
            limit.rates.iter().enumerate().map(move |(at, rate)| {
                let same_window = |other: &&Rate| other.per_seconds == rate.per_seconds;
                let nth = (limit.rates.len() > 1).then(|| limit.rates[..at].iter().filter(same_window).count());
                (limit, rate, nth)
            })
        });
        let counted = rates.zip(verdicts).map(|((limit, rate, nth), verdict)| Counted {
            dimension: limit.dimension,
            class: limit.class,
            rate: *rate,
            nth,
            verdict: *verdict,
        });
        let is_refused = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Refuse { .. }));
        Self { counted: counted.collect(), is_refused }
    }

    /// The refusal, if it is refused.
    pub fn refusal(&self) -> Option<ApiError> {
        let waits = self.counted.iter().filter_map(|counted| Some((counted.wait()?, counted)));
        let (wait, longest) = waits.max_by_key(|(wait, _)| *wait)?;
        let seconds = seconds(wait);
        let unit = if seconds == 1 { "second" } else { "seconds" };
        let detail = format!("{longest} is used up; it admits one more in {seconds} {unit}.");
        Some(ApiError::new(Code::RateLimited, detail).retry_after(wait))
    }

    /// Writes `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10): the limits that count, and
    /// how much of each may come at once, or, of a refused request, what refused it.
    pub fn write(&self, headers: &mut HeaderMap) {
        if self.counted.is_empty() {
            return;
        }
        let (mut policies, mut states) = (String::new(), String::new());
        for counted in &self.counted {
            let (quota, window) = (counted.rate.burst, window_seconds(counted.rate));
            append(&mut policies, format_args!("\"{}\";q={quota};w={window}", Name(counted)));
            let (remaining, wait_ns) = match counted.verdict {
                Verdict::Refuse { wait_ns } => (0, wait_ns),
                Verdict::Admit { .. } if self.is_refused => continue,
                Verdict::Admit { remaining, next_ns, .. } => (remaining, next_ns),
            };
            let seconds = seconds(Duration::from_nanos(wait_ns));
            append(&mut states, format_args!("\"{}\";r={remaining};t={seconds}", Name(counted)));
        }
        for (name, text) in [(&POLICY, policies), (&LIMIT, states)] {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name.clone(), value);
            }
        }
    }
}

fn append(list: &mut String, item: fmt::Arguments<'_>) {
    let separator = if list.is_empty() { "" } else { ", " };
    // Writing to a string cannot fail.
    let _ = write!(list, "{separator}{item}");
}

/// The time in which a full burst comes back, rounded up.
fn window_seconds(rate: Rate) -> u64 {
    (u64::from(rate.per_seconds) * u64::from(rate.burst)).div_ceil(u64::from(rate.count))
}

/// Rounded up, so that nobody comes too early.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Counted {
    fn wait(&self) -> Option<Duration> {
        match self.verdict {
            Verdict::Refuse { wait_ns } => Some(Duration::from_nanos(wait_ns)),
            Verdict::Admit { .. } => None,
        }
    }
}

/// A limit in words.
impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.dimension, self.class) {
            (dimension, _) if dimension.is_of_all_classes() => "requests",
            (_, RequestClass::Reads) => "reads",
            (_, RequestClass::Writes) => "writes",
            (_, RequestClass::Search) => "searches",
        };
        let whose = match self.dimension {
            Dimension::Global => "of everybody together",
            Dimension::Address => "from this address",
            Dimension::Project => "of this project together",
            Dimension::Key => "with this API key",
            Dimension::User => "for this user",
        };
        write!(f, "The limit of {} on {what} {whose}", self.rate)
    }
}

/// The name of a policy: `global`, `key-reads`, or `key-reads-3600` beside another window.
struct Name<'a>(&'a Counted);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counted { dimension, class, rate, nth, .. } = self.0;
        match dimension {
            Dimension::Global => f.write_str("global")?,
            Dimension::Address => write!(f, "address-{}", class.as_str())?,
            Dimension::Project => f.write_str("project")?,
            Dimension::Key => write!(f, "key-{}", class.as_str())?,
            Dimension::User => write!(f, "user-{}", class.as_str())?,
        }
        match nth {
            None => Ok(()),
            Some(0) => write!(f, "-{}", rate.per_seconds),
            Some(nth) => write!(f, "-{}-{}", rate.per_seconds, nth + 1),
        }
    }
}
