//! Admission control: how many requests are handled at once, which wait, and which are turned away at once instead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chatstore_core::clock::Ctx;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::app::App;
use crate::body::discard_at_hand;
use crate::error::{ApiError, Code};

/// Requests that may wait, for each that is handled.
const WAITING_PER_PLACE: usize = 8;
/// Whoever would wait longer is turned away.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// A queue this young says nothing about the pace yet.
const GRACE: Duration = Duration::from_millis(100);
/// How far back the pace looks.
const MEMORY: Duration = Duration::from_secs(1);
/// Those who are turned away come back spread over this time, in milliseconds.
const RETRY_AFTER_MS: std::ops::RangeInclusive<u64> = 1_000..=5_000;

/// Whether a request may be turned away because others are slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Turned away if it would wait too long.
    Usual,
    /// Turned away only if the queue is full: what frees or rules, and what has been received already.
    High,
}

/// Lets requests in.
pub struct Admission(Arc<Gate>);

struct Gate {
    places: Arc<Semaphore>,
    waiting_max: usize,
    queue: Mutex<Queue>,
    ctx: Ctx,
}

/// Those who wait, and the pace at which places become free while somebody does.
struct Queue {
    waiting: usize,
    began: Instant,
    /// Places that became free, each fading with [`MEMORY`].
    freed: f64,
    faded_at: Instant,
}

impl Admission {
    /// Lets `requests_max` in at once.
    pub fn new(requests_max: usize, ctx: Ctx) -> Self {
        let now = Instant::now();
        Self(Arc::new(Gate {
            places: Arc::new(Semaphore::new(requests_max.min(Semaphore::MAX_PERMITS))),
            waiting_max: requests_max.saturating_mul(WAITING_PER_PLACE),
            queue: Mutex::new(Queue { waiting: 0, began: now, freed: 0.0, faded_at: now }),
            ctx,
        }))
    }

    /// Takes a place, after those who wait already.
    ///
    /// # Errors
    /// 503 `overloaded` at once if a place would come too late.
    pub async fn enter(&self, priority: Priority) -> Result<Place, ApiError> {
        let permit = self.0.take(priority).await?;
        Ok(Place(Arc::new(Held { gate: self.0.clone(), permit: Mutex::new(Some(permit)) })))
    }
}

impl Gate {
    async fn take(self: &Arc<Self>, priority: Priority) -> Result<Permit, ApiError> {
        let permit = match self.places.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::join(self, priority)?;
                let permit = self.places.clone().acquire_owned().await;
                permit.map_err(|_| ApiError::internal("the places are closed"))?
            }
        };
        Ok(Permit { gate: self.clone(), _permit: permit })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusal(&self) -> ApiError {
        let spread = RETRY_AFTER_MS.end() - RETRY_AFTER_MS.start() + 1;
        let pause_ms = RETRY_AFTER_MS.start() + u64::from_le_bytes(self.ctx.random()) % spread;
        ApiError::new(
            Code::Overloaded,
            "More requests came than can be handled now; nothing was done. Try again later.",
        )
        .retry_after(Duration::from_millis(pause_ms))
    }
}

impl Queue {
    /// Seconds until one more would have a place.
    fn expected_wait(&self, now: Instant) -> f64 {
        let age = now - self.began;
        if age < GRACE {
            return 0.0;
        }
        // One place counts as freed at the beginning: a first handler that takes its time is no standstill yet.
        let freed = self.freed * fading(now - self.faded_at) + fading(age);
        let pace = freed / (MEMORY.as_secs_f64() * (1.0 - fading(age)));
        (self.waiting + 1) as f64 / pace
    }

    fn note_freed(&mut self, now: Instant) {
        if self.waiting > 0 {
            self.freed = self.freed * fading(now - self.faded_at) + 1.0;
            self.faded_at = now;
        }
    }
}

/// What is left of something after this time.
fn fading(age: Duration) -> f64 {
    (-age.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

/// One who waits.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn join(gate: &'a Gate, priority: Priority) -> Result<Self, ApiError> {
        let mut queue = gate.queue();
        let now = Instant::now();
        if queue.waiting == 0 {
            *queue = Queue { waiting: 0, began: now, freed: 0.0, faded_at: now };
        }
        let is_too_slow = || queue.expected_wait(now) > WAIT_MAX.as_secs_f64();
        if queue.waiting >= gate.waiting_max || (priority == Priority::Usual && is_too_slow()) {
            return Err(gate.refusal());
        }
        queue.waiting += 1;
        Ok(Self(gate))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.queue().waiting -= 1;
    }
}

/// The right to be handled.
struct Permit {
    gate: Arc<Gate>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.queue().note_freed(Instant::now());
    }
}

/// A request's place. Clones are of the same place, which is free again when the last is dropped.
#[derive(Clone)]
pub struct Place(Arc<Held>);

struct Held {
    gate: Arc<Gate>,
    permit: Mutex<Option<Permit>>,
}

impl Place {
    /// Gives the place to somebody else while the request waits for its client.
    pub fn leave(&self) {
        let left = self.0.permit().take();
        drop(left);
    }

    /// Takes a place again, if it was left.
    ///
    /// # Errors
    /// 503 `overloaded` if the queue is full.
    pub async fn come_back(&self) -> Result<(), ApiError> {
        if self.0.permit().is_none() {
            let permit = self.0.gate.take(Priority::High).await?;
            *self.0.permit() = Some(permit);
        }
        Ok(())
    }
}

impl Held {
    fn permit(&self) -> MutexGuard<'_, Option<Permit>> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Around the guard of a route: a request holds a place until its answer is there. Who is turned away hears it at
/// once, however long the body would take.
pub async fn admit(app: App, priority: Priority, mut request: Request, next: Next) -> Response {
    match app.admission.enter(priority).await {
        Ok(place) => {
            request.extensions_mut().insert(place.clone());
            let response = next.run(request).await;
            drop(place);
            response
        }
        Err(error) => {
            let is_read = discard_at_hand(request).await;
            let mut response = error.into_response();
            if !is_read {
                // HTTP/2 ends the stream instead and leaves the header out.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn admission(requests_max: usize) -> Admission {
        Admission::new(requests_max, Ctx::system())
    }

    fn enter(admission: &Admission, priority: Priority) -> Option<Result<Place, ApiError>> {
        admission.enter(priority).now_or_never()
    }

    /// Makes the queue older than it is.
    fn age(admission: &Admission, by: Duration) {
        let mut queue = admission.0.queue();
        queue.began -= by;
        queue.faded_at -= by;
    }

    #[tokio::test]
    async fn places_are_given_in_turn() {
        let admission = admission(1);
        let first = admission.enter(Priority::Usual).await.unwrap();
        let (mut second, mut third) =
            (Box::pin(admission.enter(Priority::Usual)), Box::pin(admission.enter(Priority::Usual)));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let second = second.await.unwrap();
        drop(second);
        drop(third.await.unwrap());
        assert_eq!(admission.0.queue().waiting, 0);
    }

    #[tokio::test]
    async fn a_full_queue_turns_everybody_away() {
        let admission = admission(2);
        let places = [admission.enter(Priority::Usual).await.unwrap(), admission.enter(Priority::Usual).await.unwrap()];
        let mut waiting = Vec::new();
        for _ in 0..2 * WAITING_PER_PLACE {
            let mut entering = Box::pin(admission.enter(Priority::High));
            assert!(entering.as_mut().now_or_never().is_none());
            waiting.push(entering);
        }
        for priority in [Priority::Usual, Priority::High] {
            let refused = enter(&admission, priority).unwrap().err().unwrap();
            let refused = refused.render("id");
            assert_eq!(refused.status(), 503);
            let pause: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=5).contains(&pause), "{pause}");
        }
        // Whoever goes away while waiting makes room.
        waiting.pop();
        assert!(enter(&admission, Priority::High).is_none());
        drop(places);
        for entering in waiting {
            assert!(entering.await.is_ok());
        }
    }

    #[tokio::test]
    async fn where_nothing_gets_done_only_what_must_be_waits() {
        let admission = admission(1);
        let _hung = admission.enter(Priority::Usual).await.unwrap();
        let mut first = Box::pin(admission.enter(Priority::Usual));
        assert!(first.as_mut().now_or_never().is_none());
        age(&admission, Duration::from_secs(2));
        assert!(enter(&admission, Priority::Usual).unwrap().is_err());
        assert!(enter(&admission, Priority::High).is_none());
    }

    #[test]
    fn the_wait_is_foreseen_from_the_pace() {
        let start = Instant::now();
        let mut queue = Queue { waiting: 10, began: start, freed: 0.0, faded_at: start };
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(queue.expected_wait(at(50)), 0.0);
        for n in 1..=100 {
            queue.note_freed(at(n * 10));
        }
        let wait = queue.expected_wait(at(1_000));
        assert!((0.09..=0.12).contains(&wait), "{wait}");
        // A short rest changes little, a long one is a standstill.
        assert!(queue.expected_wait(at(1_300)) < 0.2);
        assert!(queue.expected_wait(at(6_000)) > WAIT_MAX.as_secs_f64());
        queue.waiting = 100;
        assert!(queue.expected_wait(at(1_000)) > WAIT_MAX.as_secs_f64());
    }

    #[tokio::test]
    async fn a_place_that_was_left_is_free_for_others() {
        let admission = admission(1);
        let slow = admission.enter(Priority::Usual).await.unwrap();
        let same = slow.clone();
        slow.come_back().await.unwrap();
        slow.leave();
        let other = enter(&admission, Priority::Usual).unwrap().unwrap();
        let mut back = Box::pin(same.come_back());
        assert!(back.as_mut().now_or_never().is_none());
        drop(other);
        back.await.unwrap();
        assert!(enter(&admission, Priority::Usual).is_none());
        drop((slow, same));
        assert!(enter(&admission, Priority::Usual).unwrap().is_ok());
    }
}
