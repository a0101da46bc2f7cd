//! Writers append, the process is killed at a random moment, thirty times on the same file: what
//! was acknowledged is there afterwards, unchanged and once, and nothing is there that was never sent.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::{Client, DATABASE, Random, Server, eventually, integrity};

const ROUNDS: u64 = 30;
const WRITERS: usize = 8;
const SESSIONS: usize = 4;
/// From the first append of a round to its end.
const ROUND_MS: std::ops::Range<u64> = 50..400;
const READY_LIMIT: Duration = Duration::from_secs(5);

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let seed = Random::any_seed();
    eprintln!("CHATSTORE_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|number| Writer::new(number, seed)).collect();
    let mut server = Server::start(folder.path());
    let sessions: Vec<String> = (0..SESSIONS).map(|_| server.client().new_session()).collect();
    let mut ready_max = Duration::ZERO;
    let mut present = 0;
    for round in 0..ROUNDS {
        let life = ROUND_MS.start + random.below(ROUND_MS.end - ROUND_MS.start);
        std::thread::scope(|scope| {
            for writer in &mut writers {
                scope.spawn(|| writer.append_until_killed(&server.url, &sessions));
            }
            std::thread::sleep(Duration::from_millis(life));
            server.process.kill();
        });
        let started = Instant::now();
        server = Server::start(folder.path());
        let mut client = server.client();
        eventually("readiness", READY_LIMIT, || (client.get("/readyz").status == 200).then_some(()));
        ready_max = ready_max.max(started.elapsed());
        assert!(started.elapsed() < READY_LIMIT, "round {round}: ready after {:?}", started.elapsed());
        let found = read_all(&server.url, &sessions);
        present = check(&found, &sessions, &writers);
    }
    server.stop();
    assert_eq!(integrity(&folder.path().join(DATABASE)), "ok");
    let acknowledged: usize = writers.iter().map(|writer| writer.journal.len()).sum();
    let sent: usize =
        writers.iter().map(|writer| writer.requests.iter().map(|request| request.messages).sum::<usize>()).sum();
    eprintln!(
        "{ROUNDS} kills: {acknowledged} of {sent} messages acknowledged, {present} there, ready within {ready_max:?}"
    );
    assert!(acknowledged > 500, "the test has hardly tested: {acknowledged} acknowledged");
}

/// One client program with its memory of what it sent and what it was told.
struct Writer {
    number: usize,
    random: Random,
    requests: Vec<Request>,
    /// Every acknowledged message.
    journal: Vec<Acknowledged>,
}

/// An append that was sent, whatever became of it.
struct Request {
    session: usize,
    messages: usize,
}

struct Acknowledged {
    session: usize,
    message_id: String,
    seq: i64,
    content: String,
}

impl Writer {
    fn new(number: usize, seed: u64) -> Self {
        let random = Random::new(seed.wrapping_add(1 + number as u64));
        Self { number, random, requests: Vec::new(), journal: Vec::new() }
    }

    /// Appends until the connection breaks. What is not answered stays unknown and is not repeated.
    fn append_until_killed(&mut self, url: &str, sessions: &[String]) {
        let Ok(mut client) = Client::connect(url) else {
            return;
        };
        loop {
            // All of it is read again after every round: few enough to stay quick.
            std::thread::sleep(Duration::from_millis(self.random.below(10)));
            let session = usize::try_from(self.random.below(SESSIONS as u64)).unwrap();
            // Half of the requests are batches.
            let is_batch = self.random.below(2) == 0;
            let messages = if is_batch { usize::try_from(2 + self.random.below(7)).unwrap() } else { 1 };
            let contents: Vec<String> =
                (0..messages).map(|place| content(self.number, self.requests.len(), place, messages)).collect();
            let bodies: Vec<Value> =
                contents.iter().map(|content| json!({"role": "user", "content": content})).collect();
            let body = if is_batch { Value::from(bodies) } else { bodies[0].clone() };
            self.requests.push(Request { session, messages });
            let Ok(answer) = client.try_send("POST", &sessions[session], Some(&body.to_string())) else {
                return;
            };
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
                    Found { session, messages: client.all_messages(messages) }
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    })
}

/// Checks everything that was ever sent against what is there, and counts the latter.
fn check(found: &[Found], sessions: &[String], writers: &[Writer]) -> usize {
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
            assert_eq!(places, writers[writer].requests[request].messages, "{path}: part of a batch");
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
