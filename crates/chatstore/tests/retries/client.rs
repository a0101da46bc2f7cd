//! A client program that sends each request until it is answered, and again when it pleases.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::proxy::{Proxy, Said};
use crate::request::{Kind, Name, Place, Request};
use crate::support::{Answer, Client, Random};

/// How long a request may go without an answer; generous, for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a stock SDK waits at least before it retries.
const SDK_PAUSE_MS: u64 = 375;
/// One request in so many is sent once more after its answer.
const REPEATED_ONE_IN: u64 = 4;
/// After so many faults there is nothing more to learn.
const FAULTS_MAX: usize = 100;

/// What all clients share.
pub(crate) struct Field<'a> {
    pub(crate) proxy: &'a Proxy,
    pub(crate) places: &'a [Place],
    /// Requests that are to be sent at least twice.
    pub(crate) goal: usize,
    /// Those that were.
    pub(crate) retried: AtomicUsize,
    /// How often a server was killed.
    pub(crate) kills: AtomicUsize,
    /// What was wrong with answers, a sentence each.
    pub(crate) faults: Mutex<Vec<String>>,
}

impl<'a> Field<'a> {
    pub(crate) fn new(proxy: &'a Proxy, places: &'a [Place], goal: usize) -> Self {
        let (retried, kills) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { proxy, places, goal, retried, kills, faults: Mutex::default() }
    }

    /// Until enough were retried and a server was killed, or too much is wrong.
    fn goes_on(&self) -> bool {
        let is_short = self.retried.load(Ordering::Relaxed) < self.goal || self.kills.load(Ordering::Relaxed) == 0;
        is_short && self.faults.lock().unwrap().len() < FAULTS_MAX
    }

    fn blame(&self, request: &Request, fault: &str) {
        self.faults.lock().unwrap().push(format!("{} {:?}: {fault}", request.id, request.kind));
    }
}

/// A request that was answered.
pub(crate) struct Done {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) place: Option<usize>,
    pub(crate) texts: Vec<String>,
    /// What the answer said was made.
    pub(crate) made: Vec<String>,
}

pub(crate) struct Worker<'a> {
    number: usize,
    field: &'a Field<'a>,
    random: Random,
    connection: Option<Client>,
    pub(crate) done: Vec<Done>,
    /// Requests, each as often as it was sent.
    pub(crate) tries: usize,
    /// Answers that were the repetition of an earlier one.
    pub(crate) replays: usize,
    /// Answers that asked to come again, by status.
    pub(crate) put_off: BTreeMap<u16, usize>,
    /// The longest wait for an answer or a cut.
    pub(crate) slowest: Duration,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(number: usize, random: Random, field: &'a Field<'a>) -> Self {
        let (done, put_off, slowest) = (Vec::new(), BTreeMap::new(), Duration::ZERO);
        Self { number, field, random, connection: None, done, tries: 0, replays: 0, put_off, slowest }
    }

    /// Sends requests, one after the other, until enough of all clients' were retried.
    pub(crate) fn work(mut self) -> Self {
        while self.field.goes_on() {
            let id = format!("r{}-{}", self.number, self.done.len());
            let request = Request::draw(id, &mut self.random, self.field.places);
            let mut tries = 0;
            let answer = self.send(&request, &mut tries);
            if answer.is_some() && self.random.below(REPEATED_ONE_IN) == 0 {
                let again = self.send(&request, &mut tries);
                let is_replay = again.is_some_and(|again| again.header("idempotent-replayed") == Some("true"));
                if !is_replay && request.kind.name() != Name::Ids {
                    self.field.blame(&request, "the repetition does not say that it is one");
                }
            }
            self.check_said(&request);
            self.tries += tries;
            self.field.retried.fetch_add(usize::from(tries > 1), Ordering::Relaxed);
            let made = answer.map(|answer| request.made(&answer.body)).unwrap_or_default();
            let Request { id, kind, place, texts, .. } = request;
            self.done.push(Done { kind, id, place, texts, made });
        }
        self
    }

    /// Sends the request until it is known what became of it; nothing if it was refused.
    fn send(&mut self, request: &Request, tries: &mut usize) -> Option<Answer> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let sent = Instant::now();
            let outcome = self.send_once(request, *tries);
            self.slowest = self.slowest.max(sent.elapsed());
            *tries += 1;
            match outcome {
                Ok(answer) if (200..300).contains(&answer.status) => return Some(answer),
                Ok(answer) if puts_off(&answer) => *self.put_off.entry(answer.status).or_default() += 1,
                Ok(answer) => {
                    let text = String::from_utf8_lossy(&answer.body);
                    self.field.blame(request, &format!("refused with {} {text}", answer.status));
                    return None;
                }
                Err(error) => {
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
                        self.field.blame(request, &format!("try {tries} is neither answered nor cut: {error}"));
                    }
                    self.connection = None;
                }
            }
            let pause_ms = match request.kind.name() {
                Name::Body => SDK_PAUSE_MS + self.random.below(SDK_PAUSE_MS / 3),
                Name::Key | Name::Ids => self.random.below(20),
            };
            std::thread::sleep(Duration::from_millis(pause_ms));
        }
        self.field.blame(request, &format!("not answered within {PATIENCE:?}"));
        None
    }

    fn send_once(&mut self, request: &Request, tries: usize) -> io::Result<Answer> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(Client::connect(&self.field.proxy.url)?),
        };
        connection.write(request.bytes(tries).as_bytes())?;
        connection.read()
    }

    /// Checks that all that was said to one request is the same, and that it was carried out at most once.
    fn check_said(&mut self, request: &Request) {
        let said = self.field.proxy.take_said(&request.id);
        let mut firsts = said.iter().filter(|said| !said.is_replay);
        if let Some(other) = said.iter().find(|other| (other.status, &other.body) != (said[0].status, &said[0].body)) {
            let text = |said: &Said| format!("{} {}", said.status, String::from_utf8_lossy(&said.body));
            self.field.blame(request, &format!("answered differently: {} and {}", text(&said[0]), text(other)));
        }
        if request.kind.name() != Name::Ids && firsts.nth(1).is_some() {
            self.field.blame(request, "carried out twice");
        }
        self.replays += said.iter().filter(|said| said.is_replay).count();
    }
}

/// Whether an answer asks to come again, and says nothing of the request.
fn puts_off(answer: &Answer) -> bool {
    match answer.status {
        409 => String::from_utf8_lossy(&answer.body).contains(r#""request_in_flight""#),
        429 | 503 => true,
        _ => false,
    }
}
