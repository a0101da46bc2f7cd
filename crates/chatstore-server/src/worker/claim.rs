//! What was borrowed from the queue at once: its texts are embedded in batches and each message is given back with its
//! vectors, with a time for another try, or with the reason why there will be none.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatstore_core::clock::Timestamp;
use chatstore_core::embeddings::{EmbeddingJob, JobOutcome, Vector};
use chatstore_core::store::StoreError;

use super::is_of_the_source;
use crate::app::App;
use crate::embedder::{Embedder, EmbedderError, parts};

/// Tries of a message, each ended by a fault of its own or by the end of the worker.
const ATTEMPTS_MAX: u32 = 5;
/// Tries of a message beside others. One that takes the worker down does so alone after that, so that only its own
/// attempts run out.
const ATTEMPTS_BESIDE_OTHERS_MAX: u32 = 2;
/// Before the second try; each further one waits twice as long.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of the texts of one request, unless one text alone is longer: some sources bound a request as a whole.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// A refused text of more bytes is cut in two: the model's window may be smaller than the settings say.
const REFUSED_BYTES_MAX: usize = 200;
/// Tries to store what was paid for.
const STORE_TRIES_MAX: u32 = 5;

/// A moment later by `length`.
pub(super) fn after(now: Timestamp, length: Duration) -> Timestamp {
    now.plus_micros(i64::try_from(length.as_micros()).unwrap_or(i64::MAX))
}

/// Why the work on a claim ends early.
enum Stop {
    /// The source as a whole is at fault.
    Source(EmbedderError),
    /// The application stops.
    Shutdown,
}

/// Messages that were borrowed together.
pub(super) struct Claim {
    app: App,
    embedder: Arc<Embedder>,
    lease: Duration,
    renewed_at: Instant,
    jobs: Vec<Job>,
}

struct Job {
    job: EmbeddingJob,
    /// Where its parts stand among those of all.
    parts: Range<usize>,
    is_done: bool,
}

/// A part's vector, or several if it had to be cut smaller, or why there is none.
type Part = Result<Vec<Vector>, EmbedderError>;

/// Those of what was lent that are worked now, and those that are given back: messages that may have taken the worker
/// down are worked one at a time, by the first lane.
pub(super) fn choose(jobs: Vec<EmbeddingJob>, is_first_lane: bool) -> (Vec<EmbeddingJob>, Vec<EmbeddingJob>) {
    let (suspects, others): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| job.attempts > ATTEMPTS_BESIDE_OTHERS_MAX);
    let mut suspects = suspects.into_iter();
    match suspects.next() {
        Some(first) if is_first_lane => (vec![first], suspects.chain(others).collect()),
        Some(first) => (others, std::iter::once(first).chain(suspects).collect()),
        None => (others, Vec::new()),
    }
}

impl Claim {
    pub(super) fn new(app: App, embedder: Arc<Embedder>, lease: Duration, jobs: Vec<EmbeddingJob>) -> Self {
        let jobs = jobs.into_iter().map(|job| Job { job, parts: 0..0, is_done: false }).collect();
        Self { app, embedder, lease, renewed_at: Instant::now(), jobs }
    }

    /// Whether it is a message that may have taken the worker down.
    pub(super) fn is_suspect(&self) -> bool {
        self.jobs.iter().any(|job| job.job.attempts > ATTEMPTS_BESIDE_OTHERS_MAX)
    }

    /// Does what can be done; nothing stays borrowed.
    pub(super) async fn work(mut self) {
        self.park_those_that_never_end().await;
        let contents: Vec<(usize, String)> = self.contents();
        let mut texts: Vec<&str> = Vec::new();
        for (at, content) in &contents {
            let first = texts.len();
            texts.extend(parts(content, self.embedder.settings().input_bytes_max));
            self.jobs[*at].parts = first..texts.len();
        }
        let mut found: Vec<Option<Part>> = vec![None; texts.len()];
        for batch in batches(&texts, self.embedder.settings().batch_max) {
            let stopped = self.embed(&texts, batch, &mut found).await.err();
            self.give_back_finished(&mut found).await;
            if let Some(stop) = stopped {
                if let Stop::Source(error) = stop {
                    self.embedder.fail(&error);
                }
                self.give_back_unfinished().await;
                return;
            }
        }
    }

    /// The texts of those that are not done, by their place.
    fn contents(&mut self) -> Vec<(usize, String)> {
        let open = self.jobs.iter_mut().enumerate().filter(|(_, job)| !job.is_done);
        open.map(|(at, job)| (at, std::mem::take(&mut job.job.content))).collect()
    }

    /// The attempt was counted when it was borrowed: too many mean that each ended with the worker.
    async fn park_those_that_never_end(&mut self) {
        let mut parked = Vec::new();
        for job in self.jobs.iter_mut().filter(|job| job.job.attempts > ATTEMPTS_MAX) {
            job.is_done = true;
            let reason = format!("it was tried {ATTEMPTS_MAX} times, and each time the worker ended before it");
            parked.push((job.job.clone(), JobOutcome::Parked { reason }));
        }
        self.store(parked).await;
    }

    /// Embeds a batch. One that fails although the source works is halved until the text that is at fault stands alone.
    async fn embed(&mut self, texts: &[&str], batch: Range<usize>, found: &mut [Option<Part>]) -> Result<(), Stop> {
        let mut waiting = vec![batch];
        let mut is_trusted = false;
        while let Some(range) = waiting.pop() {
            let error = match self.ask(&texts[range.clone()]).await? {
                Ok(vectors) => {
                    is_trusted = true;
                    for (place, vector) in found[range].iter_mut().zip(vectors) {
                        *place = Some(Ok(vec![vector]));
                    }
                    continue;
                }
                Err(error) => error,
            };
            // A source that has just embedded something and now says no to a text still works; one that says nothing
            // may have gone.
            if !is_trusted || matches!(error, EmbedderError::Down { .. }) {
                self.probe().await?;
                is_trusted = true;
            }
            if range.len() == 1 {
                found[range.start] = Some(self.embed_smaller(texts[range.start], error).await?);
            } else {
                let middle = range.start + range.len() / 2;
                waiting.push(middle..range.end);
                waiting.push(range.start..middle);
            }
        }
        Ok(())
    }

    /// Embeds a text that was refused in halves, and these in halves again. A short one that is refused is at fault.
    async fn embed_smaller(&mut self, text: &str, refusal: EmbedderError) -> Result<Part, Stop> {
        let mut vectors = Vec::new();
        let mut waiting = halves(text, &refusal);
        if waiting.is_empty() {
            return Ok(Err(refusal));
        }
        while let Some(half) = waiting.pop() {
            match self.ask(&[half]).await? {
                Ok(found) => vectors.extend(found),
                Err(error) => {
                    let smaller = halves(half, &error);
                    if smaller.is_empty() {
                        return Ok(Err(error));
                    }
                    waiting.extend(smaller);
                }
            }
        }
        Ok(Ok(vectors))
    }

    /// One request. The inner fault is one that a text may be the reason of.
    async fn ask(&mut self, texts: &[&str]) -> Result<Result<Vec<Vector>, EmbedderError>, Stop> {
        // Another lane may have met a fault meanwhile.
        self.embedder.breaker().check().map_err(Stop::Source)?;
        self.renew().await;
        let answer = tokio::select! {
            answer = self.embedder.embed(texts) => answer,
            () = self.app.shutdown.cancelled() => return Err(Stop::Shutdown),
        };
        match answer {
            Err(error) if is_of_the_source(&error) => Err(Stop::Source(error)),
            Err(error) => Ok(Err(error)),
            Ok(vectors) => {
                self.embedder.breaker().forget();
                Ok(Ok(vectors))
            }
        }
    }

    async fn probe(&mut self) -> Result<(), Stop> {
        self.renew().await;
        tokio::select! {
            answer = self.embedder.probe() => answer.map_err(Stop::Source),
            () = self.app.shutdown.cancelled() => Err(Stop::Shutdown),
        }
    }

    /// Lengthens the lease of what is not done, if it might not last for another request, which is half of it at most.
    async fn renew(&mut self) {
        if self.renewed_at.elapsed() < self.lease / 5 * 2 {
            return;
        }
        let due_at = after(self.app.ctx.now(), self.lease);
        let open = self.jobs.iter().filter(|job| !job.is_done);
        let renewed = open.map(|job| (job.job.clone(), JobOutcome::Later { due_at, counts: true })).collect();
        self.store(renewed).await;
        self.renewed_at = Instant::now();
    }

    /// Gives back the messages all parts of which are known.
    async fn give_back_finished(&mut self, found: &mut [Option<Part>]) {
        let now = self.app.ctx.now();
        let model = self.embedder.model();
        let mut finished = Vec::new();
        for job in self.jobs.iter_mut().filter(|job| !job.is_done) {
            let own = &mut found[job.parts.clone()];
            if own.iter().any(Option::is_none) {
                continue;
            }
            job.is_done = true;
            let vectors: Result<Vec<Vec<Vector>>, EmbedderError> = own.iter_mut().filter_map(Option::take).collect();
            let outcome = match vectors {
                Ok(vectors) => JobOutcome::Embedded { model: model.to_owned(), vectors: vectors.concat() },
                Err(error) => outcome(&job.job, &error, now),
            };
            finished.push((job.job.clone(), outcome));
        }
        self.store(finished).await;
    }

    async fn give_back_unfinished(&self) {
        let open = self.jobs.iter().filter(|job| !job.is_done);
        give_back(&self.app, open.map(|job| job.job.clone()).collect()).await;
    }

    async fn store(&self, outcomes: Vec<(EmbeddingJob, JobOutcome)>) {
        store(&self.app, outcomes).await;
    }
}

/// Gives back messages whose attempt is not theirs: they can be borrowed again at once.
pub(super) async fn give_back(app: &App, jobs: Vec<EmbeddingJob>) {
    let due_at = app.ctx.now();
    store(app, jobs.into_iter().map(|job| (job, JobOutcome::Later { due_at, counts: false })).collect()).await;
}

/// What cannot be stored is done again by whoever borrows it when the lease is over.
async fn store(app: &App, outcomes: Vec<(EmbeddingJob, JobOutcome)>) {
    if outcomes.is_empty() {
        return;
    }
    let count = outcomes.len();
    for tries in 1..=STORE_TRIES_MAX {
        let stored = app.store.complete_embedding_jobs(outcomes.clone(), app.ctx.now()).await;
        let Err(error) = stored else { return };
        let passes = matches!(error, StoreError::Busy | StoreError::Unavailable { .. } | StoreError::Full);
        if tries == STORE_TRIES_MAX || !passes || app.shutdown.is_cancelled() {
            tracing::warn!(%error, messages = count, "what became of embeddings cannot be stored");
            return;
        }
        super::pause(app, Duration::from_millis(100 << tries)).await;
    }
}

/// A text as two that overlap, the later one first, if it may have been refused for its length.
fn halves<'a>(text: &'a str, error: &EmbedderError) -> Vec<&'a str> {
    if !matches!(error, EmbedderError::Refused { .. }) || text.len() <= REFUSED_BYTES_MAX {
        return Vec::new();
    }
    let mut halves = parts(text, text.len() * 2 / 3);
    halves.reverse();
    halves
}

/// What becomes of a message whose own fault it is, or may be.
fn outcome(job: &EmbeddingJob, error: &EmbedderError, now: Timestamp) -> JobOutcome {
    let may_pass = matches!(error, EmbedderError::Down { .. });
    if may_pass && job.attempts < ATTEMPTS_MAX {
        let pause = RETRY_PAUSE * (1 << job.attempts.saturating_sub(1));
        return JobOutcome::Later { due_at: after(now, pause), counts: true };
    }
    let reason = error.to_string();
    tracing::warn!(message_id = %job.message_id, reason, "a message gets no embedding until it is tried again");
    JobOutcome::Parked { reason }
}

/// Neighbouring texts as batches of a bounded number and size.
fn batches(texts: &[&str], count_max: usize) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, text) in texts.iter().enumerate() {
        if at > start && (at - start == count_max || bytes + text.len() > BATCH_BYTES_MAX) {
            batches.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += text.len();
    }
    if start < texts.len() {
        batches.push(start..texts.len());
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_bounded_and_hold_every_text_once() {
        let long = "x".repeat(BATCH_BYTES_MAX + 1);
        assert_eq!(batches(&[], 3), Vec::<Range<usize>>::new());
        assert_eq!(batches(&["a"; 7], 3), [0..3, 3..6, 6..7]);
        assert_eq!(batches(&["a", &long, "b", "c"], 3), [0..1, 1..2, 2..4]);
    }
}
