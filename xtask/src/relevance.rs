//! `relevance`: how well search finds messages that are known, on a server that runs.
//!
//! The conversations of a file are stored, and messages of them are looked for: 500 by three of their rarest words, and
//! 200 by a paraphrase, six tenths of their words in another order. Where several messages have one text, each of them is
//! the one looked for. The sets are the same in every run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::Agent;

/// Whose sessions are made and searched.
const USER_ID: &str = "relevance";
/// Hits that are asked for; a message further down counts as not found.
const DEPTH: usize = 10;
const RARE_WORD_ITEMS: usize = 500;
const PARAPHRASE_ITEMS: usize = 200;
/// Words of a query of rare words.
const RARE_WORDS: usize = 3;
/// Distinct words that a message must have to be looked for.
const DISTINCT_WORDS_MIN: usize = 8;
/// The share of its words that a paraphrase keeps.
const PARAPHRASE_SHARE: f64 = 0.6;
const SEED: u64 = 4;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
const BACKLOG_INTERVAL: Duration = Duration::from_secs(5);

/// What `relevance` takes.
#[derive(Debug, Args)]
pub(crate) struct RelevanceArgs {
    /// The server's address, such as http://127.0.0.1:8000
    #[arg(long)]
    url: String,
    /// A key of it that may read, write, search and see the backlog of embeddings
    #[arg(long)]
    key: String,
    /// Conversations: a JSON object a line, {"id", "messages": [{"role", "content"}]}; `.gz` is read, too
    #[arg(long)]
    data: PathBuf,
    /// How to search; several may be given [default: text]
    #[arg(long = "mode", value_enum)]
    modes: Vec<Mode>,
    /// Take so many conversations of the file instead of all
    #[arg(long)]
    conversations: Option<usize>,
    /// Do not store the conversations: they were stored by a run before
    #[arg(long)]
    stored: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Text,
    Vector,
    Hybrid,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Vector => "vector",
            Self::Hybrid => "hybrid",
        }
    }
}

#[derive(Debug, Deserialize)]
struct Conversation {
    id: String,
    messages: Vec<Message>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: String,
}

/// A text that is looked for.
#[derive(Debug, PartialEq, Eq)]
struct Item<'a> {
    query: String,
    content: &'a str,
}

/// Stores, asks and prints.
pub(crate) fn run(args: &RelevanceArgs) -> Result<()> {
    let conversations = read(args)?;
    let server = Server::new(&args.url, &args.key);
    let modes = if args.modes.is_empty() { &[Mode::Text][..] } else { &args.modes };
    if !args.stored {
        store(&server, &conversations)?;
    }
    if modes.iter().any(|mode| *mode != Mode::Text) {
        wait_for_embeddings(&server)?;
    }
    let contents: Vec<&str> = conversations.iter().flat_map(|one| &one.messages).map(|one| &*one.content).collect();
    let sets = [("rare words", rare_words(&contents)), ("paraphrase", paraphrases(&contents))];
    println!("{:<12} {:>8} {:<8} {:>8} {:>10} {:>10}", "set", "messages", "mode", "MRR@10", "recall@10", "ms a query");
    for (name, items) in &sets {
        for mode in modes {
            let result = measure(&server, items, *mode)?;
            println!("{name:<12} {:>8} {:<8} {result}", items.len(), mode.as_str());
        }
    }
    Ok(())
}

fn read(args: &RelevanceArgs) -> Result<Vec<Conversation>> {
    let path = args.data.display();
    let file = File::open(&args.data).with_context(|| format!("{path} cannot be opened"))?;
    let is_compressed = args.data.extension().is_some_and(|extension| extension == "gz");
    let reader: Box<dyn Read> = if is_compressed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut conversations = Vec::new();
    for line in BufReader::new(reader).lines().take(args.conversations.unwrap_or(usize::MAX)) {
        let number = conversations.len() + 1;
        let line = line.with_context(|| format!("{path} cannot be read"))?;
        conversations.push(serde_json::from_str(&line).with_context(|| format!("{path}: conversation {number}"))?);
    }
    Ok(conversations)
}

fn store(server: &Server, conversations: &[Conversation]) -> Result<()> {
    let started = Instant::now();
    let mut count = 0;
    for conversation in conversations {
        let session = server.post("sessions", &json!({"user_id": USER_ID, "session_name": conversation.id}))?;
        let id = session["session_id"].as_str().context("a session without an id")?;
        let messages: Vec<Value> =
            conversation.messages.iter().map(|one| json!({"role": one.role, "content": one.content})).collect();
        server.post(&format!("sessions/{id}/messages"), &messages.into())?;
        count += conversation.messages.len();
    }
    println!("stored {count} messages of {} conversations in {:.1?}", conversations.len(), started.elapsed());
    Ok(())
}

/// Waits until every message has its vector.
fn wait_for_embeddings(server: &Server) -> Result<()> {
    let started = Instant::now();
    let mut before = u64::MAX;
    loop {
        let backlog = server
            .call(server.agent.get(server.address("admin/embeddings")).header("X-API-Key", &server.key).call())?;
        let pending = backlog["pending"].as_u64().context("a backlog without `pending`")?;
        if pending == 0 {
            println!("every message has its vector after {:.0?}", started.elapsed());
            return Ok(());
        }
        if pending != before {
            println!("{pending} messages wait for a vector");
        }
        before = pending;
        sleep(BACKLOG_INTERVAL);
    }
}

/// Words as they are counted here: not by the analyser that is measured.
fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

fn distinct(text: &str) -> BTreeSet<String> {
    words(text).into_iter().filter(|word| word.chars().count() > 2).collect()
}

/// The distinct texts with words enough, in an order that only the seed decides.
fn candidates<'a>(contents: &[&'a str], chance: &mut Chance) -> Vec<&'a str> {
    let distinct_texts: BTreeSet<&str> = contents.iter().copied().collect();
    let mut texts: Vec<&str> =
        distinct_texts.into_iter().filter(|text| distinct(text).len() >= DISTINCT_WORDS_MIN).collect();
    chance.shuffle(&mut texts);
    texts
}

fn rare_words<'a>(contents: &[&'a str]) -> Vec<Item<'a>> {
    let mut frequencies: HashMap<String, u32> = HashMap::new();
    for word in contents.iter().flat_map(|text| distinct(text)) {
        *frequencies.entry(word).or_default() += 1;
    }
    let mut chance = Chance(SEED);
    let texts = candidates(contents, &mut chance);
    let query = |text: &str| {
        let mut words: Vec<_> = distinct(text).into_iter().map(|word| (frequencies[&word], word)).collect();
        words.sort();
        words.into_iter().take(RARE_WORDS).map(|(_, word)| word).collect::<Vec<_>>().join(" ")
    };
    texts.into_iter().take(RARE_WORD_ITEMS).map(|content| Item { query: query(content), content }).collect()
}

fn paraphrases<'a>(contents: &[&'a str]) -> Vec<Item<'a>> {
    let mut chance = Chance(SEED + 1);
    let texts = candidates(contents, &mut chance);
    let mut query = |text: &str| {
        let mut words = words(text);
        chance.shuffle(&mut words);
        let kept = (words.len() as f64 * PARAPHRASE_SHARE).ceil() as usize;
        words[..kept].join(" ")
    };
    texts.into_iter().take(PARAPHRASE_ITEMS).map(|content| Item { query: query(content), content }).collect()
}

/// Searches for each item; gives the row's end.
fn measure(server: &Server, items: &[Item<'_>], mode: Mode) -> Result<String> {
    let started = Instant::now();
    let (mut reciprocal_ranks, mut found) = (0.0, 0_u32);
    let mut degraded = BTreeMap::new();
    for item in items {
        let asked = json!({"query": item.query, "mode": mode.as_str(), "user_id": USER_ID, "limit": DEPTH});
        let answer = server.post("search", &asked)?;
        let hits = answer["hits"].as_array().context("an answer without hits")?;
        if let Some(rank) = hits.iter().position(|hit| hit["message"]["content"] == item.content) {
            reciprocal_ranks += 1.0 / (rank + 1) as f64;
            found += 1;
        }
        if let Some(reason) = answer["degraded"].as_str() {
            *degraded.entry(reason.to_owned()).or_insert(0_u32) += 1;
        }
    }
    ensure!(!items.is_empty(), "no message has {DISTINCT_WORDS_MIN} distinct words");
    let (count, time) = (items.len() as f64, started.elapsed().as_secs_f64() * 1_000.0);
    let mut row =
        format!("{:>8.3} {:>10.3} {:>10.1}", reciprocal_ranks / count, f64::from(found) / count, time / count);
    for (reason, times) in degraded {
        write!(row, "\n  degraded {times} times: {reason}")?;
    }
    Ok(row)
}

/// The server that is measured.
struct Server {
    agent: Agent,
    base: String,
    key: String,
}

impl Server {
    fn new(url: &str, key: &str) -> Self {
        let config = Agent::config_builder().timeout_global(Some(REQUEST_TIMEOUT)).http_status_as_error(false);
        let agent = config.proxy(None).build().new_agent();
        Self { agent, base: format!("{}/api/v1", url.trim_end_matches('/')), key: key.to_owned() }
    }

    fn address(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(self.address(path)).header("X-API-Key", &self.key);
        self.call(request.header("Content-Type", "application/json").send(body.to_string()))
    }

    fn call(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
        let mut answer = answer.with_context(|| format!("{} does not answer", self.base))?;
        let body = answer.body_mut().with_config().limit(64 << 20).read_to_string()?;
        if !answer.status().is_success() {
            bail!("the server answered {}: {body}", answer.status());
        }
        Ok(serde_json::from_str(&body)?)
    }
}

/// Pseudorandom numbers: splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "Penguins waddle over cold antarctic glaciers while researchers count them";
    const OTHER: &str = "Researchers count cold glaciers over and over while nobody will ever waddle";

    #[test]
    fn the_rarest_words_are_asked_for() {
        let items = rare_words(&[LONG, OTHER, OTHER, "Too short"]);
        let query = |content| items.iter().find(|item| item.content == content).map(|item| item.query.as_str());
        assert_eq!(query(LONG), Some("antarctic penguins them"));
        assert_eq!(query(OTHER), Some("and ever nobody"));
        assert_eq!(items.len(), 2);
    }

    #[test]
    fn a_paraphrase_has_some_of_the_words_and_is_the_same_each_time() {
        let items = paraphrases(&[LONG, OTHER]);
        assert_eq!(items, paraphrases(&[OTHER, LONG]));
        for item in items {
            let words = words(item.content);
            let kept: Vec<&str> = item.query.split(' ').collect();
            assert_eq!(kept.len(), (words.len() * 6).div_ceil(10));
            assert!(kept.iter().all(|word| words.iter().any(|one| one == word)));
        }
    }
}
