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
    /// Faults in a row; those of requests that were under way when it opened are not counted.
    failures: u32,
    last_error: Option<EmbedderError>,
    open_until: Option<Instant>,
    /// Until then the one request that decides has its chance.
    trial_until: Option<Instant>,
}

impl Inner {
    fn remaining(&self) -> Option<Duration> {
        self.open_until.max(self.trial_until).map(|until| until.saturating_duration_since(Instant::now()))
    }

    fn check(&self) -> Result<(), EmbedderError> {
        match self.remaining() {
            None | Some(Duration::ZERO) => Ok(()),
            Some(remaining) => {
                let reason = self.last_error.as_ref().map(ToString::to_string).unwrap_or_default();
                Err(EmbedderError::Resting { reason, remaining })
            }
        }
    }
}

/// What a request was made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// One of any number.
    Ordinary,
    /// The one that decides whether the source works again.
    Trial,
}

impl Breaker {
    pub(crate) fn new(name: &'static str, failures_max: u32, pace: Pace) -> Self {
        Self { name, failures_max, pace, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.rest() {
            None => BreakerState::Closed,
            Some(Duration::ZERO) => BreakerState::HalfOpen,
            Some(_) => BreakerState::Open,
        }
    }

    /// How long the source is still left alone; nothing while it is not, zero if the next request decides.
    pub(crate) fn rest(&self) -> Option<Duration> {
        self.inner().remaining()
    }

    /// Refuses while the source is left alone.
    pub(crate) fn check(&self) -> Result<(), EmbedderError> {
        self.inner().check()
    }

    /// The same, but if the source only asked for a pause of what was sent to it.
    pub(crate) fn check_fault(&self) -> Result<(), EmbedderError> {
        let inner = self.inner();
        if matches!(inner.last_error, Some(EmbedderError::Busy { .. })) { Ok(()) } else { inner.check() }
    }

    /// Refuses while the source is left alone; when its pause is over, lets one through, and others only if that one
    /// has told nothing within `trial`.
    pub(crate) fn pass(&self, trial: Duration) -> Result<Pass, EmbedderError> {
        let mut inner = self.inner();
        inner.check()?;
        if inner.open_until.is_none() {
            return Ok(Pass::Ordinary);
        }
        inner.trial_until = Some(Instant::now() + trial);
        Ok(Pass::Trial)
    }

    /// The source works, and its faults are forgotten.
    pub(crate) fn succeed(&self) {
        self.close();
        self.forget();
    }

    /// The source is asked again as if it had never failed.
    pub(crate) fn reset(&self) {
        *self.inner() = Inner::default();
    }

    /// The source is asked again; should it fail, its pause grows on.
    pub(crate) fn close(&self) {
        let mut inner = self.inner();
        let before = std::mem::take(&mut *inner);
        inner.failures = before.failures;
        if before.open_until.is_some() {
            tracing::info!(asked_for = self.name, "the embedding source answers again");
        }
    }

    /// The source works, as what it was sent shows: its faults are forgotten, unless it asked for a pause meanwhile.
    pub(crate) fn forget(&self) {
        let mut inner = self.inner();
        if inner.open_until.is_none() {
            *inner = Inner::default();
        }
    }

    /// What was let through told nothing of the source; the next one decides.
    pub(crate) fn release(&self, pass: Pass) {
        if pass == Pass::Trial {
            self.inner().trial_until = None;
        }
    }

    /// Notes a fault. While the source is left alone only a trial's makes the pauses grow: the others were under way.
    pub(crate) fn fail(&self, error: &EmbedderError, pass: Pass, ctx: &Ctx) {
        if matches!(error, EmbedderError::Resting { .. }) {
            // Nothing was asked.
            return;
        }
        let mut inner = self.inner();
        let was_closed = inner.open_until.is_none();
        if was_closed || pass == Pass::Trial {
            inner.failures = inner.failures.saturating_add(1);
        }
        if pass == Pass::Trial {
            inner.trial_until = None;
        }
        let is_final = matches!(error, EmbedderError::Unauthorised { .. } | EmbedderError::Dimensions { .. });
        let asked = matches!(error, EmbedderError::Busy { retry_after: Some(_), .. });
        if was_closed && inner.failures < self.failures_max && !is_final && !asked {
            inner.last_error = Some(error.clone());
            return;
        }
        let pause = self.pause(error, inner.failures.saturating_sub(self.failures_max), ctx);
        let until = Instant::now() + pause;
        if inner.open_until.is_none_or(|before| before < until) {
            inner.open_until = Some(until);
            inner.last_error = Some(error.clone());
        }
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
            last_error: inner.last_error.as_ref().map(ToString::to_string),
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
            breaker.fail(&down(), Pass::Ordinary, &ctx());
        }
        assert_eq!((breaker.state(), breaker.check()), (BreakerState::Closed, Ok(())));
        breaker.succeed();
        for _ in 0..3 {
            assert_eq!(breaker.check(), Ok(()));
            breaker.fail(&down(), Pass::Ordinary, &ctx());
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
        breaker.fail(&busy(40), Pass::Ordinary, &ctx());
        assert!(breaker.rest().unwrap() > Duration::from_secs(39), "{:?}", breaker.rest().unwrap());
        breaker.fail(&busy(1_000_000), Pass::Ordinary, &ctx());
        assert!(breaker.rest().unwrap() < RETRY_AFTER_MAX * 2);
    }

    #[test]
    fn what_only_the_operator_can_mend_opens_it_at_once_and_for_long() {
        let breaker = Breaker::new("queries", 3, Pace::default());
        breaker.fail(&EmbedderError::Unauthorised { reason: "401".to_owned() }, Pass::Ordinary, &ctx());
        assert!(breaker.rest().unwrap() > Duration::from_secs(140));
    }

    /// A breaker whose pause is over at once.
    fn hasty() -> Breaker {
        Breaker::new("queries", 1, Pace { first: Duration::ZERO, ..Pace::default() })
    }

    #[test]
    fn requests_that_were_under_way_do_not_make_pauses_grow() {
        let breaker = Breaker::new("queries", 3, Pace::default());
        for _ in 0..25 {
            breaker.fail(&down(), Pass::Ordinary, &ctx());
        }
        assert!(breaker.rest().unwrap() <= Pace::default().first, "{:?}", breaker.rest());
    }

    #[test]
    fn a_longer_rest_is_not_cut_short() {
        let breaker = Breaker::new("texts", 1, Pace::default());
        let busy = EmbedderError::Busy { reason: "429".to_owned(), retry_after: Some(Duration::from_secs(40)) };
        breaker.fail(&busy, Pass::Ordinary, &ctx());
        let resting = breaker.check().unwrap_err();
        for error in [&resting, &down()] {
            breaker.fail(error, Pass::Ordinary, &ctx());
            assert!(breaker.rest().unwrap() > Duration::from_secs(39), "{error}: {:?}", breaker.rest());
            assert!(breaker.status(ctx().now()).last_error.unwrap().contains("429"));
        }
    }

    #[test]
    fn after_a_pause_one_request_decides() {
        let breaker = hasty();
        assert_eq!(breaker.pass(Duration::from_secs(9)), Ok(Pass::Ordinary));
        breaker.fail(&down(), Pass::Ordinary, &ctx());
        for _ in 0..3 {
            assert_eq!(breaker.state(), BreakerState::HalfOpen);
            assert_eq!(breaker.pass(Duration::from_secs(9)), Ok(Pass::Trial));
            assert!(matches!(breaker.pass(Duration::from_secs(9)), Err(EmbedderError::Resting { .. })));
            breaker.release(Pass::Trial);
        }
        // One that tells nothing does not keep others out for ever.
        assert_eq!(breaker.pass(Duration::ZERO), Ok(Pass::Trial));
        assert_eq!(breaker.pass(Duration::from_secs(9)), Ok(Pass::Trial));
        breaker.succeed();
        assert_eq!(breaker.pass(Duration::from_secs(9)), Ok(Pass::Ordinary));
    }

    #[test]
    fn pauses_grow_with_the_trials_that_fail() {
        let breaker = hasty();
        for failures in 1..5 {
            breaker.fail(&down(), Pass::Trial, &ctx());
            breaker.fail(&down(), Pass::Ordinary, &ctx());
            assert_eq!(breaker.inner().failures, failures);
        }
        // That it embeds a plain word is not enough.
        breaker.close();
        assert_eq!((breaker.state(), breaker.inner().failures), (BreakerState::Closed, 4));
        breaker.fail(&down(), Pass::Ordinary, &ctx());
        breaker.forget();
        assert_eq!(breaker.inner().failures, 5, "it rests");
        breaker.close();
        breaker.forget();
        assert_eq!(breaker.inner().failures, 0);
    }

    #[test]
    fn a_pause_of_texts_alone_is_no_fault_of_the_source() {
        let breaker = Breaker::new("texts", 1, Pace::default());
        breaker.fail(&EmbedderError::Busy { reason: "429".to_owned(), retry_after: None }, Pass::Ordinary, &ctx());
        assert!(breaker.check().is_err() && breaker.check_fault().is_ok());
        breaker.fail(&EmbedderError::Unauthorised { reason: "401".to_owned() }, Pass::Ordinary, &ctx());
        assert!(breaker.check_fault().is_err());
        breaker.reset();
        assert_eq!((breaker.state(), breaker.check()), (BreakerState::Closed, Ok(())));
    }
}
