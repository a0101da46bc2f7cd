//! Writers that remember what they sent and what they were told, and the check of it against what
//! is there: nothing acknowledged is missing, nothing unsent is present, nothing is there twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Client, Random};

/// One client program with its memory of what it sent and what it was told.
pub(crate) struct Writer {
    number: usize,
    random: Random,
    requests: Vec<Request>,
    /// Every acknowledged message.
    journal: Vec<Acknowledged>,
    /// The longest wait for an answer.
    pub(crate) slowest: Duration,
}

/// An append that was sent, whatever became of it.
struct Request {
    session: usize,
    messages: usize,
    /// Whether it was answered with 503; it may be stored all the same, and later than what follows.
    refused: bool,
}

struct Acknowledged {
    session: usize,
    message_id: String,
    seq: i64,
    content: String,
}

/// Why a writer came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was told to stop.
    Told,
    /// Its connection broke.
    Broken,
}

impl Writer {
    pub(crate) fn new(number: usize, seed: u64) -> Self {
        let random = Random::new(seed.wrapping_add(1 + number as u64));
        Self { number, random, requests: Vec::new(), journal: Vec::new(), slowest: Duration::ZERO }
    }

    /// Messages that it sent, and those of them that were acknowledged.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.requests.iter().map(|request| request.messages).sum(), self.journal.len())
    }

    /// Requests that were answered with 503.
    pub(crate) fn refused(&self) -> usize {
        self.requests.iter().filter(|request| request.refused).count()
    }

    /// Appends until it is told to stop or the connection breaks. What is not acknowledged stays
    /// unknown and is not repeated.
    pub(crate) fn append_until(&mut self, url: &str, sessions: &[String], stop: &AtomicBool) -> End {
        let Ok(mut client) = Client::connect(url) else {
            return End::Broken;
        };
        while !stop.load(Ordering::Relaxed) {
            // All of it is read again: few enough to stay quick.
            std::thread::sleep(Duration::from_millis(self.random.below(10)));
            let session = usize::try_from(self.random.below(sessions.len() as u64)).unwrap();
            // Half of the requests are batches.
            let is_batch = self.random.below(2) == 0;
            let messages = if is_batch { usize::try_from(2 + self.random.below(7)).unwrap() } else { 1 };
            let contents: Vec<String> =
                (0..messages).map(|place| content(self.number, self.requests.len(), place, messages)).collect();
            let bodies: Vec<Value> =
                contents.iter().map(|content| json!({"role": "user", "content": content})).collect();
            let body = if is_batch { Value::from(bodies) } else { bodies[0].clone() };
            self.requests.push(Request { session, messages, refused: false });
            let sent = Instant::now();
            let Ok(answer) = client.try_send("POST", &sessions[session], Some(&body.to_string())) else {
                return End::Broken;
            };
            self.slowest = self.slowest.max(sent.elapsed());
            if answer.status == 503 {
                answer.expect_retry();
                self.requests.last_mut().unwrap().refused = true;
                continue;
            }
            let made = answer.expect(201);
            let made = if is_batch { made.as_array().unwrap().clone() } else { vec![made] };
            assert_eq!(made.len(), messages);
            for (made, content) in made.iter().zip(contents) {
                assert_eq!(made["content"], *content);
                self.journal.push(Acknowledged {
                    session,
                    message_id: text(made, "message_id"),
                    seq: number(made, "seq"),
                    content,
                });
            }
        }
        End::Told
    }
}

/// A text that tells who sent it, in which request and place, and whether it is whole.
fn content(writer: usize, request: usize, place: usize, messages: usize) -> String {
    let mut random = Random::new((writer << 40 | request << 16 | place) as u64);
    let padding: String = (0..random.below(200))
        .map(|_| char::from_u32(0x21 + u32::try_from(random.below(0x300)).unwrap()).unwrap())
        .collect();
    format!("{writer} {request} {place} {messages} {padding}")
}

/// The sender, request, place and size of batch that a content claims.
fn claims(content: &str) -> [usize; 4] {
    let mut words = content.splitn(5, ' ').map(|word| word.parse().unwrap_or(usize::MAX));
    [(); 4].map(|()| words.next().unwrap_or(usize::MAX))
}

struct Found {
    session: Value,
    messages: Vec<Value>,
}

/// Every session with all of its messages.
fn read_all(url: &str, sessions: &[String]) -> Vec<Found> {
    std::thread::scope(|scope| {
        let readers: Vec<_> = sessions
            .iter()
            .map(|messages| {
                scope.spawn(move || {
                    let mut client = Client::connect(url).unwrap();
                    let session = client.get(messages.strip_suffix("/messages").unwrap()).expect(200);
                    Found { session, messages: client.all(messages) }
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    })
}

/// Checks everything that was ever sent against what is there, and counts the latter.
pub(crate) fn check(url: &str, sessions: &[String], writers: &[Writer]) -> usize {
    let found = read_all(url, sessions);
    let mut by_id = HashMap::new();
    let mut contents = HashSet::new();
    for (index, Found { session, messages }) in found.iter().enumerate() {
        let path = &sessions[index];
        let count = i64::try_from(messages.len()).unwrap();
        assert_eq!((number(session, "message_count"), number(session, "last_seq")), (count, count), "{path}");
        // Which places of a request are here, and the seq of the first.
        let mut requests: BTreeMap<(usize, usize), (usize, i64)> = BTreeMap::new();
        for (message, expected_seq) in messages.iter().zip(1..) {
            let text_found = text(message, "content");
            let seq = number(message, "seq");
            assert_eq!(seq, expected_seq, "{path}: a gap");
            let [writer, request, place, batch] = claims(&text_found);
            let sent = writers.get(writer).and_then(|writer| writer.requests.get(request));
            let sent = sent.unwrap_or_else(|| panic!("{path}: never sent: {text_found}"));
            assert_eq!((sent.session, sent.messages), (index, batch), "{path}: sent elsewhere: {text_found}");
            assert_eq!(text_found, content(writer, request, place, batch), "{path}: altered");
            assert!(contents.insert(text_found), "{path}: twice: seq {seq}");
            let (places, first) = requests.entry((writer, request)).or_insert((0, seq));
            assert_eq!((place, *first + i64::try_from(place).unwrap()), (*places, seq), "{path}: a batch out of order");
            *places += 1;
            let before = by_id.insert(text(message, "message_id"), (index, message));
            assert!(before.is_none(), "{path}: one id twice");
        }
        let mut last = HashMap::new();
        for ((writer, request), (places, first)) in requests {
            let sent = &writers[writer].requests[request];
            assert_eq!(places, sent.messages, "{path}: part of a batch");
            if sent.refused {
                continue;
            }
            // A writer sends one request after the other, so they stand in that order.
            let previous = last.insert(writer, first);
            assert!(previous < Some(first), "{path}: writer {writer} request {request} overtook");
        }
    }
    for writer in writers {
        for acknowledged in &writer.journal {
            let (session, message) = by_id
                .get(&acknowledged.message_id)
                .unwrap_or_else(|| panic!("acknowledged and lost: {:?}", claims(&acknowledged.content)));
            assert_eq!(
                (*session, number(message, "seq"), message["content"].as_str()),
                (acknowledged.session, acknowledged.seq, Some(acknowledged.content.as_str()))
            );
        }
    }
    contents.len()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap().to_owned()
}

fn number(value: &Value, name: &str) -> i64 {
    value[name].as_i64().unwrap()
}
