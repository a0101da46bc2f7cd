//! What this process knows of the tries of OpenAI's SDKs, beside the records in the store.
//!
//! An SDK counts its tries and does not say why it tries again. Where only the body names a request, three things must
//! be known to tell a retry from a second request: whether the tries before it were refused before they had been read
//! (they did nothing then, and this one is the request itself), when those that failed later would have been recorded
//! (an equal one of another time is another request), and whether one is still at work (then there is nothing to repeat
//! yet). All this is known to the process that met the earlier tries, and to no other; and it cannot know that an
//! answer was lost.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::idempotency::{Claim, ClaimId, Recognition};
use chatstore_core::limits::{IN_FLIGHT_WAIT_MS, SDK_RETRY_SECONDS};
use chatstore_core::store::StoreError;
use futures_util::FutureExt as _;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::auth::{API_KEY_HEADER, USER_ID_HEADER, USER_ISOLATION_HEADER};
use crate::error::{ApiError, Code};
use crate::idempotency::{IDEMPOTENCY_KEY_HEADER, retry_count};

/// What the SDKs try again after, beside a server's faults.
const TRIED_AGAIN: [StatusCode; 3] = [StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS];
/// How long a try is remembered: as long as an earlier, equal request is.
const REMEMBERED: Duration = Duration::from_secs(SDK_RETRY_SECONDS);
/// Tries of each kind that are remembered; the oldest are forgotten first.
const NOTES_MAX: usize = 10_000;

/// Tries that did nothing, tries that failed, and tries at work.
pub struct SdkTries {
    ctx: Ctx,
    is_wanted: bool,
    refused: Notes<(RequestDigest, u32), ()>,
    failed: Arc<Notes<ClaimId, Failed>>,
    work: Arc<Work>,
}

/// One try of a request that its body alone may name.
#[derive(Clone, Debug)]
pub struct Try {
    request: RequestDigest,
    retry: u32,
    is_new: bool,
    /// Whether nothing is to be noted of it: it may have done something, or has no valid credential.
    is_unnoted: Arc<AtomicBool>,
}

/// A request as far as it is the same in each try and can be read off its headers: whose it is, its path, its length.
type RequestDigest = [u8; 32];

/// A try whose body was read, and that failed.
struct Failed {
    retry: u32,
    /// When it, and failed ones before it, would have been recorded.
    at: Vec<Timestamp>,
}

impl Try {
    /// Whether no earlier try can have done anything: it is the first, or all before it were refused.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Sees to it that nothing is noted of it. Who has no valid credential would push out what is known of others.
    pub fn leave_unnoted(&self) {
        self.is_unnoted.store(true, Ordering::Relaxed);
    }
}

fn is_tried_again(error: Code) -> bool {
    error.status().is_server_error() || TRIED_AGAIN.contains(&error.status())
}

impl SdkTries {
    /// Knows of nothing yet. Nothing is learned if retries are not to be known (`is_wanted`).
    pub fn new(ctx: Ctx, is_wanted: bool) -> Self {
        Self { ctx, is_wanted, refused: Notes::default(), failed: Arc::default(), work: Arc::default() }
    }

    /// The try that a request is, if only its body can name it. It takes the place of one refused try before it.
    pub fn meet(&self, request: &Request) -> Option<Try> {
        let headers = request.headers();
        if !self.is_wanted || !appends_items(request) || headers.contains_key(IDEMPOTENCY_KEY_HEADER) {
            return None;
        }
        let retry = retry_count(headers)?;
        let request = digest(request.uri().path(), headers);
        let was_refused = |before| self.refused.take(&(request, before), self.ctx.elapsed(), |()| true).is_some();
        let is_new = retry.checked_sub(1).is_none_or(was_refused);
        Some(Try { request, retry, is_new, is_unnoted: Arc::default() })
    }

    /// A try is answered with an error: one that did nothing is remembered, unless that is not known of those before it.
    /// One without an answer is not, for its retry may have come already.
    pub fn refuse(&self, sdk_try: &Try, error: Code) {
        if sdk_try.is_new && !sdk_try.is_unnoted.load(Ordering::Relaxed) && is_tried_again(error) {
            self.refused.note((sdk_try.request, sdk_try.retry), (), self.ctx.elapsed());
        }
    }

    /// Does the `work` of a request, also if its caller goes away meanwhile. A retry that its body alone names waits first
    /// for the equal ones that came before it; its claim tells then when these would have been recorded, if they failed.
    ///
    /// # Errors
    /// 409 `request_in_flight` if they take long, or those of the work.
    pub async fn in_turn<T: Send + 'static, W>(
        &self,
        sdk_try: Option<&Try>,
        claim: Option<Claim>,
        work: impl FnOnce(Option<Claim>) -> W,
    ) -> Result<T, ApiError>
    where
        W: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let Some(Claim { claim_id, now, recognition: Recognition::Body { retry, .. }, .. }) = claim else {
            return work(claim).await;
        };
        if let Some(sdk_try) = sdk_try {
            sdk_try.leave_unnoted();
        }
        let (at_work, before) = self.work.begin(claim_id);
        let mut tried = None;
        if retry > 0 {
            let all_done = async {
                for done in before {
                    done.cancelled().await;
                }
            };
            let waited = tokio::time::timeout(Duration::from_millis(IN_FLIGHT_WAIT_MS), all_done).await;
            waited.map_err(|_| ApiError::from_store(StoreError::InFlight, "request"))?;
            let earlier = self.failed.take(&claim_id, self.ctx.elapsed(), |failed| failed.retry < retry);
            tried = earlier.map(|failed| failed.at);
        }
        let recognition = Recognition::Body { retry, tried: tried.as_deref().map(Arc::from) };
        let work = work(claim.map(|claim| Claim { recognition, ..claim }));
        let (failed, ctx) = (self.failed.clone(), self.ctx.clone());
        // What the store has begun it ends, whoever waits for it; until then it is at work.
        let done = tokio::spawn(async move {
            let _at_work = at_work;
            let done = AssertUnwindSafe(work).catch_unwind().await;
            let has_failed = match &done {
                Ok(done) => done.as_ref().is_err_and(|error| is_tried_again(error.code)),
                Err(_panic) => true,
            };
            if has_failed && (retry == 0 || tried.is_some()) {
                let mut at = tried.unwrap_or_default();
                at.push(now);
                failed.note(claim_id, Failed { retry, at }, ctx.elapsed());
            }
            done
        });
        match done.await {
            Ok(done) => done.unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => Err(ApiError::internal("the runtime ended before a request did")),
        }
    }
}

/// Whether it is a `POST /v1/conversations/{id}/items`.
fn appends_items(request: &Request) -> bool {
    let rest = trimmed(request.uri().path()).strip_prefix("/v1/conversations/");
    let id = rest.and_then(|rest| rest.strip_suffix("/items"));
    request.method() == Method::POST && id.is_some_and(|id| !id.contains('/'))
}

fn trimmed(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

fn digest(path: &str, headers: &HeaderMap) -> RequestDigest {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    };
    add(trimmed(path).as_bytes());
    let told = [
        API_KEY_HEADER,
        header::AUTHORIZATION.as_str(),
        USER_ID_HEADER,
        USER_ISOLATION_HEADER,
        header::CONTENT_LENGTH.as_str(),
    ];
    for name in told {
        add(headers.get(name).map_or(b"", |value| value.as_bytes()));
    }
    hash.finalize().into()
}

/// What is known of tries, each for a while.
struct Notes<K, N>(Mutex<Noted<K, N>>);

struct Noted<K, N> {
    /// Those that no later try has taken the place of, the oldest first, with their numbers.
    open: HashMap<K, VecDeque<(u64, N)>>,
    /// All of them in their order, those too that are taken: when each came, its number, and what it is of.
    order: VecDeque<(Duration, u64, K)>,
    count: u64,
}

impl<K, N> Default for Notes<K, N> {
    fn default() -> Self {
        Self(Mutex::new(Noted { open: HashMap::new(), order: VecDeque::new(), count: 0 }))
    }
}

impl<K: Copy + Eq + Hash, N> Notes<K, N> {
    fn note(&self, of: K, note: N, now: Duration) {
        let mut noted = self.noted();
        noted.count += 1;
        let number = noted.count;
        noted.open.entry(of).or_default().push_back((number, note));
        noted.order.push_back((now, number, of));
        noted.forget(now);
    }

    /// Takes the oldest that is wanted, if there is one.
    fn take(&self, of: &K, now: Duration, is_wanted: impl Fn(&N) -> bool) -> Option<N> {
        let mut noted = self.noted();
        noted.forget(now);
        noted.remove(of, |(_, note)| is_wanted(note))
    }

    fn noted(&self) -> MutexGuard<'_, Noted<K, N>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash, N> Noted<K, N> {
    fn remove(&mut self, of: &K, is_wanted: impl Fn(&(u64, N)) -> bool) -> Option<N> {
        let open = self.open.get_mut(of)?;
        let place = open.iter().position(is_wanted)?;
        let removed = open.remove(place);
        if open.is_empty() {
            self.open.remove(of);
        }
        removed.map(|(_, note)| note)
    }

    fn forget(&mut self, now: Duration) {
        while let Some((at, number, of)) = self.order.front().copied()
            && (self.order.len() > NOTES_MAX || at + REMEMBERED <= now)
        {
            self.order.pop_front();
            self.remove(&of, |(open, _)| *open == number);
        }
    }
}

/// Requests at work that their bodies name.
#[derive(Default)]
struct Work(Mutex<Line>);

#[derive(Default)]
struct Line {
    begun: u64,
    /// By what names them; each in its order, with what is cancelled when it is done.
    at_work: HashMap<ClaimId, Vec<(u64, CancellationToken)>>,
}

/// A request at work, until this is dropped.
struct AtWork {
    work: Arc<Work>,
    claim_id: ClaimId,
    number: u64,
    done: CancellationToken,
}

impl Work {
    /// Begins one more; gives also the equal ones that are at work.
    fn begin(self: &Arc<Self>, claim_id: ClaimId) -> (AtWork, Vec<CancellationToken>) {
        let done = CancellationToken::new();
        let mut line = self.line();
        line.begun += 1;
        let number = line.begun;
        let equal = line.at_work.entry(claim_id).or_default();
        let before = equal.iter().map(|(_, done)| done.clone()).collect();
        equal.push((number, done.clone()));
        (AtWork { work: self.clone(), claim_id, number, done }, before)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut line = self.work.line();
        if let Some(equal) = line.at_work.get_mut(&self.claim_id) {
            equal.retain(|(number, _)| *number != self.number);
            if equal.is_empty() {
                line.at_work.remove(&self.claim_id);
            }
        }
        drop(line);
        self.done.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use chatstore_core::clock::Timestamp;
    use chatstore_core::ids::ProjectId;

    const ITEMS: &str = "/v1/conversations/conv_1/items";

    fn tries() -> SdkTries {
        SdkTries::new(Ctx::fixed(Timestamp::parse("2026-01-15T12:00:00Z").unwrap(), 1, 7), true)
    }

    fn request(path: &str, headers: &[(&'static str, &str)]) -> Request {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn meet(tries: &SdkTries, retry: &str) -> Try {
        tries.meet(&request(ITEMS, &[("x-stainless-retry-count", retry)])).unwrap()
    }

    #[test]
    fn only_items_without_a_key_from_who_counts_are_met() {
        let counted = ("x-stainless-retry-count", "0");
        let is_met = |path: &str, headers: &[_]| tries().meet(&request(path, headers)).is_some();
        assert!(is_met(ITEMS, &[counted]) && is_met(&format!("{ITEMS}/?include=x"), &[counted]));
        for path in ["/v1/conversations", "/v1/conversations/conv_1", "/v1/conversations/a/b/items", "/api/v1/sessions"]
        {
            assert!(!is_met(path, &[counted]), "{path}");
        }
        assert!(!is_met(ITEMS, &[]) && !is_met(ITEMS, &[counted, ("idempotency-key", "k")]));
        let mut listed = request(ITEMS, &[counted]);
        *listed.method_mut() = Method::GET;
        assert!(tries().meet(&listed).is_none());
        let unwanted = SdkTries { is_wanted: false, ..tries() };
        assert!(unwanted.meet(&request(ITEMS, &[counted])).is_none());
    }

    fn refuse(tries: &SdkTries, refused: Try) {
        tries.refuse(&refused, Code::RateLimited);
    }

    #[test]
    fn a_retry_is_new_for_each_refused_try_before_it() {
        let tries = tries();
        assert!(meet(&tries, "0").is_new() && !meet(&tries, "1").is_new());
        for _ in 0..2 {
            refuse(&tries, meet(&tries, "0"));
        }
        for is_new in [true, true, false] {
            assert_eq!(meet(&tries, "1").is_new(), is_new);
        }
        // A refusal says nothing about what became of the tries before it, unless they were refused, too.
        refuse(&tries, meet(&tries, "1"));
        assert!(!meet(&tries, "2").is_new());
        for retry in ["0", "1", "2"] {
            refuse(&tries, meet(&tries, retry));
        }
        assert!(meet(&tries, "3").is_new());
    }

    #[test]
    fn only_what_did_nothing_and_will_be_tried_again_is_a_refusal() {
        for (code, is_new) in [
            (Code::InvalidJson, false),
            (Code::NotFound, false),
            // Nobody reads this answer.
            (Code::BodyIncomplete, false),
            (Code::BodyTimeout, true),
            (Code::RateLimited, true),
            (Code::Overloaded, true),
            (Code::StoreUnavailable, true),
        ] {
            let tries = tries();
            tries.refuse(&meet(&tries, "0"), code);
            assert_eq!(meet(&tries, "1").is_new(), is_new, "{code:?}");
            let begun = meet(&tries, "0");
            begun.leave_unnoted();
            tries.refuse(&begun, code);
            assert!(!meet(&tries, "1").is_new(), "{code:?}");
        }
    }

    #[tokio::test]
    async fn a_retry_knows_when_failed_tries_would_have_been_recorded() {
        let tries = tries();
        let fails = || async { Err::<(), _>(ApiError::new(Code::StoreUnavailable, "it is away")) };
        let send = async |name, retry, fail: bool| {
            let (claim, mut tried) = (claim(name, retry, &tries), None);
            let at = claim.now;
            let done = tries.in_turn(None, Some(claim), |claim| {
                let Some(Recognition::Body { tried: told, .. }) = claim.map(|claim| claim.recognition) else {
                    panic!()
                };
                tried = told;
                async move { if fail { fails().await } else { Ok(()) } }
            });
            assert_eq!(done.await.is_err(), fail);
            (at, tried.map(|tried| tried.to_vec()))
        };
        let (first, _) = send(1, 0, true).await;
        let (other, _) = send(1, 0, true).await;
        send(2, 0, true).await;
        // Each takes one of its like, and fails with it.
        let (second, tried) = send(1, 1, true).await;
        assert_eq!(tried, Some(vec![first]));
        assert_eq!(send(1, 1, false).await.1, Some(vec![other]));
        assert_eq!(send(1, 1, false).await.1, None);
        assert_eq!(send(1, 2, false).await.1, Some(vec![first, second]));
        // Of what was done, and of what followed something unknown, nothing is known.
        send(1, 3, true).await;
        assert_eq!(send(1, 4, false).await.1, None);
    }

    #[test]
    fn a_refusal_is_of_one_request() {
        let (count, key) = (("x-stainless-retry-count", "0"), ("x-api-key", "a"));
        let (again, tries) = (("x-stainless-retry-count", "1"), tries());
        refuse(&tries, tries.meet(&request(ITEMS, &[count, key, ("content-length", "7")])).unwrap());
        let is_new = |path: &str, headers: &[_]| tries.meet(&request(path, headers)).unwrap().is_new();
        let other_path = "/v1/conversations/conv_2/items";
        assert!(!is_new(other_path, &[again, key, ("content-length", "7")]));
        for other in [
            vec![("x-api-key", "b"), ("content-length", "7")],
            vec![("authorization", "a"), ("content-length", "7")],
            vec![key, ("x-user-id", "u"), ("content-length", "7")],
            vec![key, ("x-ms-user-isolation-key", "u"), ("content-length", "7")],
            vec![key, ("content-length", "8")],
            vec![key],
        ] {
            assert!(!is_new(ITEMS, &[vec![again], other.clone()].concat()), "{other:?}");
        }
        assert!(is_new(&format!("{ITEMS}/"), &[again, ("content-length", "7"), key]));
    }

    #[test]
    fn notes_are_forgotten_in_time_and_when_there_are_too_many() {
        let notes = Notes::default();
        let (at, at_end) = (Duration::from_secs(1), Duration::from_secs(1) + REMEMBERED);
        let take = |of: u32, now| notes.take(&of, now, |_| true);
        let held = || {
            let noted = notes.noted();
            (noted.open.len(), noted.order.len())
        };
        notes.note(0, 'a', at);
        notes.note(0, 'b', at);
        assert_eq!(take(0, at_end - Duration::from_micros(1)), Some('a'));
        assert_eq!(take(0, at_end), None);
        assert_eq!(held(), (0, 0));
        for n in 0..=NOTES_MAX as u32 {
            notes.note(n, 'c', at);
        }
        assert_eq!(held(), (NOTES_MAX, NOTES_MAX));
        assert_eq!((take(0, at), take(1, at)), (None, Some('c')));
        // The place of one that is taken is not forgotten for one that came later.
        notes.note(1, 'd', at_end - Duration::from_micros(1));
        assert_eq!(take(1, at_end), Some('d'));
    }

    fn claim(name: u8, retry: u32, tries: &SdkTries) -> Claim {
        let (claim_id, now) = (ClaimId::of(&[&[name]]), tries.ctx.now());
        Claim {
            project_id: ProjectId::DEFAULT,
            claim_id,
            bucket: claim_id.bucket(),
            fingerprint: [0; 32],
            recognition: Recognition::Body { retry, tried: None },
            now,
            expires_at: now,
        }
    }

    /// Work that is at hand until the test ends it.
    fn held(release: &CancellationToken) -> impl Future<Output = Result<(), ApiError>> + Send + 'static {
        let release = release.clone();
        async move {
            release.cancelled().await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_retry_waits_for_what_is_at_work_even_if_nobody_waits_for_that() {
        let (tries, release) = (tries(), CancellationToken::new());
        let first = claim(1, 0, &tries);
        // Its caller goes away.
        assert!(tries.in_turn(None, Some(first.clone()), |_| held(&release)).now_or_never().is_none());
        let retry = claim(1, 1, &tries);
        let mut waiting = Box::pin(tries.in_turn(None, Some(retry.clone()), |_| async { Ok(()) }));
        assert!((&mut waiting).now_or_never().is_none());
        // Other requests wait for nothing, and neither does one that is a new one.
        for other in [claim(2, 1, &tries), claim(1, 0, &tries)] {
            tries.in_turn(None, Some(other.clone()), |_| async { Ok(()) }).await.unwrap();
        }
        tries.in_turn(None, None, |_| async { Ok(()) }).await.unwrap();
        assert!((&mut waiting).now_or_never().is_none());
        release.cancel();
        waiting.await.unwrap();
        assert!(tries.work.line().at_work.is_empty());
    }

    #[tokio::test]
    async fn two_retries_do_not_wait_for_each_other() {
        let (tries, release) = (tries(), CancellationToken::new());
        let first = claim(1, 0, &tries);
        assert!(tries.in_turn(None, Some(first.clone()), |_| held(&release)).now_or_never().is_none());
        let retry = claim(1, 1, &tries);
        let retries = [0, 1].map(|_| tries.in_turn(None, Some(retry.clone()), |_| async { Ok(()) }));
        let all = futures_util::future::join_all(retries);
        let (all, ()) = tokio::join!(all, async { release.cancel() });
        assert!(all.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_panic_ends_the_work_and_is_passed_on() {
        let tries = tries();
        let first = claim(1, 0, &tries);
        let at = first.now;
        let failed = tries.in_turn::<(), _>(None, Some(first), |_| async { panic!("on purpose") });
        assert!(AssertUnwindSafe(failed).catch_unwind().await.is_err());
        assert!(tries.work.line().at_work.is_empty());
        // It has failed like any other.
        let retry = tries.in_turn(None, Some(claim(1, 1, &tries)), |claim| {
            let tried = Some(Arc::from([at]));
            assert_eq!(claim.unwrap().recognition, Recognition::Body { retry: 1, tried });
            async { Ok(()) }
        });
        retry.await.unwrap();
    }
}
