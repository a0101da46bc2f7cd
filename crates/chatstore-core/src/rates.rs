//! Rates: how often something may happen, and the one rule that decides it (GCRA).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::RATES_MAX;

/// So many requests in so much time, and how many of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests, at least 1.
    pub count: u32,
    /// Length of the time window, in seconds: 1, 60, 3,600 or 86,400.
    pub per_seconds: u32,
    /// Requests that may come at once after a rest, at least 1. Unless it is given, `count`.
    pub burst: u32,
}

/// What [`Rates::parse`] accepts, to stand after "must be".
pub const RATES_ACCEPTED: &str = "a rate such as 30 (a minute), 30/minute, 5 per second or 10/second burst 50, or several joined by \";\"; each number counts from 1 to 4294967295";

impl Rate {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let (rate, burst) = match text.rsplit_once("burst") {
            // A word of its own: `secondburst` is more likely a slip.
            Some((rate, burst)) if rate.ends_with(char::is_whitespace) && burst.starts_with(char::is_whitespace) => {
                (rate.trim_end(), Some(number(burst.trim())?))
            }
            Some(_) => return None,
            None => (text.as_str(), None),
        };
        let digits = rate.find(|c: char| !c.is_ascii_digit()).unwrap_or(rate.len());
        let (count, rest) = rate.split_at(digits);
        let count = number(count)?;
        let per_seconds = if rest.is_empty() { 60 } else { unit_seconds(rest)? };
        Some(Self { count, per_seconds, burst: burst.unwrap_or(count) })
    }

    /// Nanoseconds between two requests at the full rate, rounded up: never more than `count` in a window.
    pub fn interval_ns(&self) -> u64 {
        (u64::from(self.per_seconds) * 1_000_000_000).div_ceil(u64::from(self.count))
    }

    /// Nanoseconds by which a full burst runs ahead.
    pub fn window_ns(&self) -> u64 {
        self.interval_ns().saturating_mul(u64::from(self.burst))
    }

    /// Whether everything that this rate admits `other` admits, too.
    pub fn is_within(&self, other: &Self) -> bool {
        self.interval_ns() >= other.interval_ns() && self.burst <= other.burst
    }

    /// The `n`th part of it, for one of `n` that share it; at least one request at a time.
    #[must_use]
    pub fn share(&self, n: u32) -> Share {
        let n = n.max(1);
        Share { interval_ns: self.interval_ns().saturating_mul(u64::from(n)), burst: (self.burst / n).max(1) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per_seconds {
            1 => "second",
            60 => "minute",
            3_600 => "hour",
            _ => "day",
        };
        write!(f, "{}/{unit}", self.count)?;
        if self.burst == self.count { Ok(()) } else { write!(f, " burst {}", self.burst) }
    }
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|count| digits && *count > 0)
}

/// The length of the unit in `/minute` or ` per minute`.
fn unit_seconds(text: &str) -> Option<u32> {
    let unit = match text.trim_start().strip_prefix('/') {
        Some(unit) => unit,
        // White space on both sides of the word: `5persecond` is more likely a slip.
        None => text
            .strip_prefix(char::is_whitespace)?
            .trim_start()
            .strip_prefix("per")?
            .strip_prefix(char::is_whitespace)?,
    };
    match unit.trim() {
        "s" | "second" | "seconds" => Some(1),
        "m" | "minute" | "minutes" => Some(60),
        "h" | "hour" | "hours" => Some(3_600),
        "d" | "day" | "days" => Some(86_400),
        _ => None,
    }
}

/// Rates that all apply at once. Empty means that nothing is limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates(Vec<Rate>);

impl Rates {
    /// No limit: `off` in its text form.
    pub const OFF: Self = Self(Vec::new());

    /// Reads one or more rates, joined by `;`, or `off`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.trim().eq_ignore_ascii_case("off") {
            return Some(Self::OFF);
        }
        let rates: Option<Vec<Rate>> = text.split(';').map(Rate::parse).collect();
        rates.filter(|rates| rates.len() <= RATES_MAX).map(Self)
    }

    /// Each of them.
    pub fn as_slice(&self) -> &[Rate] {
        &self.0
    }

    /// Whether everything that these rates admit `others` admit, too.
    pub fn are_within(&self, others: &Self) -> bool {
        others.0.iter().all(|other| self.0.iter().any(|rate| rate.is_within(other)))
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("off");
        }
        let rates: Vec<String> = self.0.iter().map(Rate::to_string).collect();
        f.write_str(&rates.join(";"))
    }
}

impl Serialize for Rates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("must be {RATES_ACCEPTED}")))
    }
}

/// What a request does; each class has a budget of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestClass {
    /// It reads.
    Reads,
    /// It creates, changes or deletes.
    Writes,
    /// It searches.
    Search,
}

impl RequestClass {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Writes => "writes",
            Self::Search => "search",
        }
    }
}

/// The rates of each class of requests; a class without rates follows what stands above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassRates {
    /// Requests that read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reads: Option<Rates>,
    /// Requests that create, change or delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<Rates>,
    /// Searches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<Rates>,
}

impl ClassRates {
    /// The rates of `class`, if it has its own.
    pub fn get(&self, class: RequestClass) -> Option<&Rates> {
        match class {
            RequestClass::Reads => self.reads.as_ref(),
            RequestClass::Writes => self.writes.as_ref(),
            RequestClass::Search => self.search.as_ref(),
        }
    }
}

/// A rate as one of several who share it applies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Nanoseconds between two requests.
    pub interval_ns: u64,
    /// Requests that may come at once.
    pub burst: u32,
}

/// What the generic cell rate algorithm (ITU-T I.371) says of one more request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Admit {
        /// The state to keep: nanoseconds on the clock of `now`, at which the bucket is full again.
        full_at_ns: u64,
        /// Requests that may still come at once.
        remaining: u32,
        /// Nanoseconds until one more may.
        next_ns: u64,
    },
    /// It must wait this many nanoseconds; then it may pass if nothing else came.
    Refuse {
        /// Nanoseconds to wait.
        wait_ns: u64,
    },
}

impl Share {
    /// Decides about a request at `now_ns`. `full_at_ns` is what the last admitted one left, 0 if there was none.
    ///
    /// A clock that was set back cannot lock anybody out: the state is never further ahead than a full burst.
    pub fn decide(&self, full_at_ns: u64, now_ns: u64) -> Verdict {
        let window = self.interval_ns.saturating_mul(u64::from(self.burst));
        let debt = full_at_ns.saturating_sub(now_ns).min(window);
        let after = debt.saturating_add(self.interval_ns);
        if after > window {
            return Verdict::Refuse { wait_ns: after - window };
        }
        let room = window - after;
        let remaining = u32::try_from(room / self.interval_ns).unwrap_or(u32::MAX);
        let next_ns = if remaining == self.burst { 0 } else { self.interval_ns - room % self.interval_ns };
        Verdict::Admit { full_at_ns: now_ns.saturating_add(after), remaining, next_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn triples(text: &str) -> Option<Vec<(u32, u32, u32)>> {
        Rates::parse(text).map(|rates| rates.0.iter().map(|r| (r.count, r.per_seconds, r.burst)).collect())
    }

    #[test]
    fn every_unit_and_joiner_is_accepted() {
        let units = [
            (1, ["s", "second", "seconds", "SECOND"]),
            (60, ["m", "minute", "minutes", "Minute"]),
            (3_600, ["h", "hour", "hours", "H"]),
            (86_400, ["d", "day", "days", "Days"]),
        ];
        for (seconds, names) in units {
            for name in names {
                for joiner in ["/", " / ", " per ", "  PER\t", "/ "] {
                    let text = format!(" 7{joiner}{name} ");
                    assert_eq!(triples(&text), Some(vec![(7, seconds, 7)]), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn lists_bare_counts_and_bursts_are_accepted() {
        assert_eq!(triples("30"), Some(vec![(30, 60, 30)]));
        assert_eq!(triples("100/hour;10/second"), Some(vec![(100, 3_600, 100), (10, 1, 10)]));
        assert_eq!(triples("4294967295"), Some(vec![(u32::MAX, 60, u32::MAX)]));
        assert_eq!(triples("10 per second burst 50; 30 BURST 1"), Some(vec![(10, 1, 50), (30, 60, 1)]));
        assert_eq!(triples(" Off "), Some(Vec::new()));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            " ",
            ";",
            "30;",
            ";30",
            "0",
            "0/minute",
            "-1",
            "+1",
            "1.5",
            "4294967296",
            "x",
            "/minute",
            "30/",
            "30 /",
            "30/week",
            "30/2 minutes",
            "30 minute",
            "30minute",
            "5persecond",
            "5 persecond",
            "5per second",
            "5 per",
            "per second",
            "30//minute",
            "30/minute/hour",
            "30,40",
            "30/minute,40/hour",
            "٣/minute",
            "30/minute\0",
            "30 burst",
            "30 burst 0",
            "30 burst x",
            "30burst 3",
            "30 burst3",
            "burst 3",
            "30 burst +3",
            "off;30",
            "1;1;1;1;1",
        ] {
            assert_eq!(triples(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_text_is_written_as_it_is_read() {
        for text in ["30/minute", "100/hour;10/second", "5/second burst 9", "1/day", "off"] {
            assert_eq!(Rates::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn narrower_rates_are_within_wider_ones() {
        let within = |a: &str, b: &str| Rates::parse(a).unwrap().are_within(&Rates::parse(b).unwrap());
        assert!(within("10/minute", "30/minute"));
        assert!(within("30/minute", "30/minute"));
        assert!(within("1/hour", "30/minute;100/hour"));
        assert!(within("1/hour", "off"));
        assert!(!within("off", "30/minute"));
        assert!(!within("30/minute burst 31", "30/minute"));
        assert!(!within("1800/hour", "30/minute"));
        assert!(!within("30/minute", "30/minute;100/hour"));
    }

    /// The same rule as a count of tokens, in exact fractions: `count` a window flow in, at most `burst` are kept.
    struct Bucket {
        level: u128,
        at_ns: u64,
    }

    impl Bucket {
        fn take(&mut self, rate: &Share, now_ns: u64) -> bool {
            let one = u128::from(rate.interval_ns);
            let full = one * u128::from(rate.burst);
            self.level = (self.level + u128::from(now_ns - self.at_ns)).min(full);
            self.at_ns = now_ns;
            let admitted = self.level >= one;
            if admitted {
                self.level -= one;
            }
            admitted
        }
    }

    proptest! {
        #[test]
        fn gcra_admits_what_a_bucket_of_tokens_does(
            count in 1u32..50, per in prop::sample::select(vec![1u32, 60, 3_600]), burst in 1u32..50,
            steps in prop::collection::vec(0u64..4_000_000_000, 1..200),
        ) {
            let share = Rate { count, per_seconds: per, burst }.share(1);
            let mut bucket = Bucket { level: u128::from(share.interval_ns) * u128::from(burst), at_ns: 0 };
            let (mut now, mut state) = (0u64, 0u64);
            for step in steps {
                now += step;
                let expected = bucket.take(&share, now);
                match share.decide(state, now) {
                    Verdict::Admit { full_at_ns, remaining, next_ns } => {
                        prop_assert!(expected);
                        prop_assert_eq!(u128::from(remaining), bucket.level / u128::from(share.interval_ns));
                        prop_assert!(next_ns <= share.interval_ns);
                        state = full_at_ns;
                    }
                    Verdict::Refuse { wait_ns } => {
                        prop_assert!(!expected);
                        // A moment before the wait is over it is still refused, then it is not.
                        let too_early = matches!(share.decide(state, now + wait_ns - 1), Verdict::Refuse { .. });
                        let in_time = matches!(share.decide(state, now + wait_ns), Verdict::Admit { .. });
                        prop_assert!(too_early && in_time);
                    }
                }
            }
        }

        #[test]
        fn a_clock_set_back_locks_nobody_out(state in any::<u64>(), now in any::<u64>(), count in 1u32..100, burst in 1u32..100) {
            let rate = Rate { count, per_seconds: 60, burst };
            if let Verdict::Refuse { wait_ns } = rate.share(1).decide(state, now) {
                prop_assert!(wait_ns <= rate.interval_ns());
            }
        }

        #[test]
        fn what_is_within_is_admitted(a in (1u32..40, 1u32..40), b in (1u32..40, 1u32..40), steps in prop::collection::vec(0u64..3_000_000_000, 1..100)) {
            let (narrow, wide) = (Rate { count: a.0, per_seconds: 60, burst: a.1 }, Rate { count: b.0, per_seconds: 60, burst: b.1 });
            prop_assume!(narrow.is_within(&wide));
            let (mut now, mut one, mut two) = (0, 0, 0);
            for step in steps {
                now += step;
                if let Verdict::Admit { full_at_ns, .. } = narrow.share(1).decide(one, now) {
                    one = full_at_ns;
                    let Verdict::Admit { full_at_ns, .. } = wide.share(1).decide(two, now) else {
                        return Err(TestCaseError::fail("the wider one refused"));
                    };
                    two = full_at_ns;
                }
            }
        }
    }
}
