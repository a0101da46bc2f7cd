//! Admission control: how many requests are handled at once, which wait, and which are turned away at once instead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chatstore_core::clock::Ctx;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::app::App;
use crate::body::discard;
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

/// Around the guard of a route: a request holds a place until its answer is there.
pub async fn admit(app: App, priority: Priority, mut request: Request, next: Next) -> Response {
    match app.admission.enter(priority).await {
        Ok(place) => {
            request.extensions_mut().insert(place.clone());
            let response = next.run(request).await;
            drop(place);
            response
        }
        Err(error) => {
            discard(request).await;
            error.into_response()
        }
    }
}
