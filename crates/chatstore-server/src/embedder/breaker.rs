//! A breaker: a source that fails is left alone, for longer each time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chatstore_core::clock::{Ctx, Timestamp};

use super::{EmbedderError, EmbedderStatus};

/// Whether a source is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    Closed,
    /// It is left alone.
    Open,
    /// Its pause is over; the next request decides.
    HalfOpen,
}

impl BreakerState {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// How long a source that fails is left alone.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// After the first fault; each further one doubles it.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
    /// After one that only the operator can mend.
    pub misconfigured: Duration,
}

/// Longest pause that a source can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(120),
            misconfigured: Duration::from_secs(300),
        }
    }
}

pub(crate) struct Breaker {
    /// What is asked for through it, for the log.
    name: &'static str,
    /// Faults in a row that open it.
    failures_max: u32,
    pace: Pace,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    failures: u32,
    last_error: Option<String>,
    open_until: Option<Instant>,
}

impl Inner {
    fn remaining(&self) -> Option<Duration> {
        self.open_until.map(|until| until.saturating_duration_since(Instant::now()))
    }
}

impl Breaker {
    pub(crate) fn new(name: &'static str, failures_max: u32, pace: Pace) -> Self {
        Self { name, failures_max, pace, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.inner().remaining() {
            None => BreakerState::Closed,
            Some(Duration::ZERO) => BreakerState::HalfOpen,
            Some(_) => BreakerState::Open,
        }
    }

    /// How long the source is still left alone.
    pub(crate) fn remaining(&self) -> Duration {
        self.inner().remaining().unwrap_or_default()
    }

    /// Refuses while the source is left alone.
    pub(crate) fn check(&self) -> Result<(), EmbedderError> {
        let inner = self.inner();
        match inner.remaining() {
            None | Some(Duration::ZERO) => Ok(()),
            Some(remaining) => {
                Err(EmbedderError::Resting { reason: inner.last_error.clone().unwrap_or_default(), remaining })
            }
        }
    }

    pub(crate) fn succeed(&self) {
        let before = std::mem::take(&mut *self.inner());
        if before.open_until.is_some() {
            tracing::info!(asked_for = self.name, "the embedding source answers again");
        }
    }

    pub(crate) fn fail(&self, error: &EmbedderError, ctx: &Ctx) {
        let mut inner = self.inner();
        inner.failures = inner.failures.saturating_add(1);
        inner.last_error = Some(error.to_string());
        let is_final = matches!(error, EmbedderError::Unauthorised { .. } | EmbedderError::Dimensions { .. });
        let asked = matches!(error, EmbedderError::Busy { retry_after: Some(_), .. });
        if inner.failures < self.failures_max && !is_final && !asked {
            return;
        }
        let was_closed = inner.open_until.is_none();
        let pause = self.pause(error, inner.failures - self.failures_max.min(inner.failures), ctx);
        inner.open_until = Some(Instant::now() + pause);
        drop(inner);
        let seconds = pause.as_secs_f64();
        match (was_closed, is_final) {
            (true, true) => tracing::error!(asked_for = self.name, pause_s = seconds, "{error}"),
            (true, false) => tracing::warn!(asked_for = self.name, pause_s = seconds, "{error}"),
            (false, _) => tracing::debug!(asked_for = self.name, pause_s = seconds, "{error}"),
        }
    }

    /// Half of the pause is left to chance, so that replicas do not come back together.
    fn pause(&self, error: &EmbedderError, repeats: u32, ctx: &Ctx) -> Duration {
        let full = match error {
            EmbedderError::Unauthorised { .. } | EmbedderError::Dimensions { .. } => self.pace.misconfigured,
            _ => self.pace.first.saturating_mul(1_u32.checked_shl(repeats).unwrap_or(u32::MAX)).min(self.pace.longest),
        };
        let chance = f64::from(u16::from_be_bytes(ctx.random())) / f64::from(u16::MAX);
        let pause = full.mul_f64(0.5 + chance / 2.0);
        match error {
            // Not before it wants us back.
            EmbedderError::Busy { retry_after: Some(asked), .. } => (*asked).min(RETRY_AFTER_MAX) + pause / 4,
            _ => pause,
        }
    }

    pub(crate) fn status(&self, now: Timestamp) -> EmbedderStatus {
        let state = self.state();
        let inner = self.inner();
        let remaining = inner.remaining().filter(|remaining| !remaining.is_zero());
        let micros = |pause: Duration| i64::try_from(pause.as_micros()).unwrap_or(i64::MAX);
        EmbedderStatus {
            state,
            last_error: inner.last_error.clone(),
            retry_at: remaining.map(|pause| now.plus_micros(micros(pause))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctx() -> Ctx {
        Ctx::fixed(Timestamp::parse("2026-01-01T00:00:00Z").unwrap(), 1, 7)
    }

    fn down() -> EmbedderError {
        EmbedderError::down("is away")
    }

    #[test]
    fn it_opens_after_faults_in_a_row_and_closes_with_an_answer() {
        let breaker = Breaker::new("queries", 3, Pace::default());
        for _ in 0..2 {
            breaker.fail(&down(), &ctx());
        }
        assert_eq!((breaker.state(), breaker.check()), (BreakerState::Closed, Ok(())));
        breaker.succeed();
        for _ in 0..3 {
            assert_eq!(breaker.check(), Ok(()));
            breaker.fail(&down(), &ctx());
        }
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(matches!(breaker.check(), Err(EmbedderError::Resting { reason, .. }) if reason.contains("is away")));
        let status = breaker.status(ctx().now());
        assert!(status.retry_at.is_some() && status.last_error.unwrap().contains("is away"));
        breaker.succeed();
        assert_eq!((breaker.state(), breaker.status(ctx().now()).last_error), (BreakerState::Closed, None));
    }

    #[test]
    fn pauses_grow_to_a_limit_and_leave_half_to_chance() {
        let pace = Pace::default();
        let breaker = Breaker::new("texts", 1, pace);
        let ctx = ctx();
        for (repeats, full) in [(0, pace.first), (3, pace.first * 8), (40, pace.longest)] {
            let pauses: Vec<_> = (0..50).map(|_| breaker.pause(&down(), repeats, &ctx)).collect();
            assert!(pauses.iter().all(|pause| *pause >= full / 2 && *pause <= full), "{pauses:?}");
            assert!(pauses.iter().max() > pauses.iter().min());
        }
    }

    #[test]
    fn the_source_is_not_asked_before_it_wants_us_back() {
        let breaker = Breaker::new("queries", 3, Pace::default());
        let busy =
            |seconds| EmbedderError::Busy { reason: "429".to_owned(), retry_after: Some(Duration::from_secs(seconds)) };
        breaker.fail(&busy(40), &ctx());
        assert!(breaker.remaining() > Duration::from_secs(39), "{:?}", breaker.remaining());
        breaker.fail(&busy(1_000_000), &ctx());
        assert!(breaker.remaining() < RETRY_AFTER_MAX * 2);
    }

    #[test]
    fn what_only_the_operator_can_mend_opens_it_at_once_and_for_long() {
        let breaker = Breaker::new("queries", 3, Pace::default());
        breaker.fail(&EmbedderError::Unauthorised { reason: "401".to_owned() }, &ctx());
        assert!(breaker.remaining() > Duration::from_secs(140));
    }
}
