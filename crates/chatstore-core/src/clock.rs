//! Time and randomness, injected: nothing else in the product reads a clock or mints an id.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::{Builder, Uuid};

use crate::ids::{AuditEventId, Bucket, MessageId, ProjectId, SessionId};

/// A moment: microseconds since the Unix epoch, UTC.
///
/// On the wire it is RFC 3339 with six digits and `Z`; in the stores a 64-bit integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Microseconds in an hour.
const HOUR_US: i64 = 3_600_000_000;
/// 0001-01-01T00:00:00Z and 9999-12-30T21:59:59.999999Z: what RFC 3339, jiff and both engines can write.
const RANGE_US: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_207_199_999_999;

impl Timestamp {
    /// The moment `us` microseconds after the epoch; `None` outside the years 1 to 9999 (of which the last 26 hours
    /// are left out).
    pub fn from_micros(us: i64) -> Option<Self> {
        RANGE_US.contains(&us).then_some(Self(us))
    }

    /// Microseconds since the Unix epoch.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole hours since the Unix epoch, rounded down: the coarse activity that lists index.
    pub fn hour(self) -> i64 {
        self.0.div_euclid(HOUR_US)
    }

    /// This moment moved by `us` microseconds, kept inside the range.
    pub fn plus_micros(self, us: i64) -> Self {
        Self(self.0.saturating_add(us).clamp(*RANGE_US.start(), *RANGE_US.end()))
    }

    /// Reads RFC 3339 with any offset; digits beyond microseconds are cut.
    pub fn parse(text: &str) -> Option<Self> {
        let parsed: jiff::Timestamp = text.parse().ok()?;
        let us = parsed.as_nanosecond().div_euclid(1_000);
        Self::from_micros(i64::try_from(us).ok()?)
    }
}

/// Characters of a time on the wire: `2026-01-31T12:00:00.000000Z`.
const TEXT_BYTES: usize = 27;

impl Timestamp {
    /// The text, written by hand: a page of messages has a hundred of them.
    fn text(self) -> [u8; TEXT_BYTES] {
        let moment = jiff::Timestamp::from_microsecond(self.0).unwrap_or_default();
        let civil = jiff::tz::Offset::UTC.to_datetime(moment);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let micros = self.0.rem_euclid(1_000_000);
        for (at, digits, value) in [
            (0, 4, i64::from(civil.year())),
            (5, 2, i64::from(civil.month())),
            (8, 2, i64::from(civil.day())),
            (11, 2, i64::from(civil.hour())),
            (14, 2, i64::from(civil.minute())),
            (17, 2, i64::from(civil.second())),
            (20, 6, micros),
        ] {
            let mut rest = value;
            for digit in text[at..at + digits].iter_mut().rev() {
                *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
                rest /= 10;
            }
        }
        text
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&self.text()).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("must be a time in RFC 3339, such as 2026-01-31T12:00:00Z"))
    }
}

/// Where moments and random bytes come from.
pub trait Source: Send + Sync {
    /// The present moment.
    fn now(&self) -> Timestamp;
    /// Time since the source was made. Unlike [`Source::now`] it never runs back.
    fn elapsed(&self) -> Duration;
    /// Moves a clock of tests; any other goes by itself.
    fn advance(&self, _by: Duration) {}
    /// Fills `bytes` with random bytes fit for secrets.
    fn fill(&self, bytes: &mut [u8]);
}

/// The context every handler takes its time, ids and secrets from.
#[derive(Clone)]
pub struct Ctx(Arc<dyn Source>);

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ctx")
    }
}

impl Ctx {
    /// The system's clock and its source of randomness.
    pub fn system() -> Self {
        Self(Arc::new(System::new()))
    }

    /// A clock that starts at `start` and moves by `step_us` a reading, with bytes that repeat for
    /// the same `seed`: for tests.
    pub fn fixed(start: Timestamp, step_us: i64, seed: u64) -> Self {
        Self(Arc::new(Fixed {
            start,
            step_us,
            readings: AtomicU64::new(0),
            advanced_us: AtomicU64::new(0),
            state: AtomicU64::new(seed),
        }))
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// Time since the context was made. It never runs back, and a clock that is set does not move it: what limits
    /// and caches count by. A fixed clock moves it by its readings and by [`Ctx::advance`] alone.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Moves a fixed clock; the system's goes by itself.
    pub fn advance(&self, by: Duration) {
        self.0.advance(by);
    }

    /// Random bytes fit for secrets.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes);
        bytes
    }

    /// A new session id in `bucket`.
    pub fn new_session_id(&self, now: Timestamp, bucket: Bucket) -> SessionId {
        SessionId::from(bucket.mark(self.uuid(now)))
    }

    /// A new message id in the bucket of its session.
    pub fn new_message_id(&self, now: Timestamp, session_id: SessionId) -> MessageId {
        MessageId::from(session_id.bucket().mark(self.uuid(now)))
    }

    /// A new project id.
    pub fn new_project_id(&self, now: Timestamp) -> ProjectId {
        ProjectId::from(self.uuid(now))
    }

    /// A new id of an event in the audit log.
    pub fn new_audit_event_id(&self, now: Timestamp) -> AuditEventId {
        AuditEventId::from(self.uuid(now))
    }

    /// A new request id: 32 hexadecimal digits.
    pub fn new_request_id(&self) -> String {
        Builder::from_random_bytes(self.random()).into_uuid().simple().to_string()
    }

    /// A UUID version 7 (RFC 9562): 48 bits of milliseconds, the rest random.
    fn uuid(&self, now: Timestamp) -> Uuid {
        let ms = u64::try_from(now.as_micros().div_euclid(1_000)).unwrap_or(0);
        Builder::from_unix_timestamp_millis(ms, &self.random()).into_uuid()
    }
}

/// The real world.
struct System {
    started: Instant,
    pool: Mutex<Pool>,
}

/// Random bytes fetched ahead: a system call for each id would cost more than the id.
struct Pool {
    bytes: [u8; POOL_BYTES],
    used: usize,
}

const POOL_BYTES: usize = 1_024;

impl System {
    fn new() -> Self {
        Self { started: Instant::now(), pool: Mutex::new(Pool { bytes: [0; POOL_BYTES], used: POOL_BYTES }) }
    }
}

impl Source for System {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn now(&self) -> Timestamp {
        let us = jiff::Timestamp::now().as_microsecond();
        Timestamp(us.clamp(*RANGE_US.start(), *RANGE_US.end()))
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that asks for random bytes")]
    fn fill(&self, bytes: &mut [u8]) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks_mut(POOL_BYTES) {
            if pool.used + chunk.len() > POOL_BYTES {
                getrandom::fill(&mut pool.bytes).expect("without the system's randomness no id or secret is safe");
                pool.used = 0;
            }
            let taken = pool.used..pool.used + chunk.len();
            chunk.copy_from_slice(&pool.bytes[taken.clone()]);
            // What was given out is nobody else's to read.
            pool.bytes[taken.clone()].fill(0);
            pool.used = taken.end;
        }
    }
}

/// A world that repeats itself.
struct Fixed {
    start: Timestamp,
    step_us: i64,
    readings: AtomicU64,
    advanced_us: AtomicU64,
    state: AtomicU64,
}

impl Fixed {
    /// Microseconds since the start, after `readings`.
    fn elapsed_us(&self, readings: u64) -> i64 {
        let readings = i64::try_from(readings).unwrap_or(i64::MAX);
        let advanced = i64::try_from(self.advanced_us.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        self.step_us.saturating_mul(readings).saturating_add(advanced)
    }
}

impl Source for Fixed {
    fn now(&self) -> Timestamp {
        self.start.plus_micros(self.elapsed_us(self.readings.fetch_add(1, Ordering::Relaxed)))
    }

    fn elapsed(&self) -> Duration {
        let us = self.elapsed_us(self.readings.load(Ordering::Relaxed));
        Duration::from_micros(u64::try_from(us).unwrap_or(0))
    }

    fn advance(&self, by: Duration) {
        self.advanced_us.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): plenty for tests, worthless for secrets.
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let seed = self.state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
            let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let word = (z ^ (z >> 31)).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_written_with_six_digits_and_z() {
        let t = Timestamp::parse("2026-01-31T12:00:00+02:00").unwrap();
        assert_eq!(t.to_string(), "2026-01-31T10:00:00.000000Z");
        let t = Timestamp::parse("1969-12-31T23:59:59.9999999Z").unwrap();
        assert_eq!(t.to_string(), "1969-12-31T23:59:59.999999Z");
    }

    #[test]
    fn the_first_and_the_last_moment_are_written_as_they_are() {
        let text = |us| Timestamp::from_micros(us).unwrap().to_string();
        assert_eq!(text(*RANGE_US.start()), "0001-01-01T00:00:00.000000Z");
        assert_eq!(text(*RANGE_US.end()), "9999-12-30T21:59:59.999999Z");
        assert_eq!(Timestamp::from_micros(RANGE_US.end() + 1), None);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01", "2026-01-01T00:00:00", "12345"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn random_bytes_do_not_repeat() {
        let ctx = Ctx::system();
        let seen: std::collections::HashSet<[u8; 16]> = (0..1_000).map(|_| ctx.random()).collect();
        assert_eq!(seen.len(), 1_000);
        assert_ne!(ctx.random::<3_000>()[2_000..], [0; 1_000]);
    }

    #[test]
    fn ids_are_version_7_and_carry_time_and_bucket() {
        let ctx = Ctx::fixed(Timestamp::parse("2026-01-01T00:00:00Z").unwrap(), 1, 7);
        let now = ctx.now();
        let session = ctx.new_session_id(now, Bucket::from(0xBEEF));
        assert_eq!(session.uuid().get_version_num(), 7);
        assert_eq!(session.bucket(), Bucket::from(0xBEEF));
        let message = ctx.new_message_id(now, session);
        assert!(message.to_string().ends_with("beef"));
        let (s, _) = session.uuid().get_timestamp().unwrap().to_unix();
        assert_eq!(i64::try_from(s).unwrap() * 1_000_000, now.as_micros());
    }

    proptest! {
        #[test]
        fn every_moment_survives_text(us in RANGE_US) {
            let t = Timestamp::from_micros(us).unwrap();
            prop_assert_eq!(Timestamp::parse(&t.to_string()), Some(t));
        }
    }
}
