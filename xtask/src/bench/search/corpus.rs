//! Messages with words and vectors that follow from their numbers, so that queries can be made for them.

use std::fmt::Write as _;

use serde_json::json;

/// Numbers of a vector: those of small models.
pub(super) const DIMENSIONS: usize = 384;
const MODEL: &str = "bench";
const WORDS_A_MESSAGE: u64 = 20;
const VOCABULARY: f64 = 30_000.0;
/// Vectors stand in heaps, as those of texts do.
const TOPICS: u64 = 500;
const SYLLABLES: [&str; 16] =
    ["ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "du", "fa", "gi", "ho", "ju", "po", "wen"];

/// Someone whose messages are searched.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    number: u64,
    pub(super) messages: usize,
}

/// The users of a store: those that are measured, and as many others as fill it.
pub(super) fn users(measured: &[usize], messages: usize) -> Vec<User> {
    const OTHERS: usize = 1_000;
    let own: usize = measured.iter().sum();
    let others = messages.saturating_sub(own).div_ceil(OTHERS);
    let sizes = measured.iter().copied().chain(std::iter::repeat_n(OTHERS, others));
    sizes.zip(0..).map(|(messages, number)| User { name: format!("user-{number}"), number, messages }).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl User {
    fn random(&self, message: usize) -> Random {
        Random((self.number << 32) ^ message as u64)
    }

    /// The words of a message: few that are everywhere, many that are rare.
    pub(super) fn words(&self, message: usize) -> Vec<String> {
        let mut random = self.random(message);
        (0..WORDS_A_MESSAGE).map(|_| word(VOCABULARY.powf(random.share()) as u64)).collect()
    }

    /// The vector of a message.
    pub(super) fn vector(&self, message: usize) -> Vec<f32> {
        let mut random = self.random(message);
        random.next();
        let mut topic = Random(random.next() % TOPICS);
        let mut number = || (topic.share() - 0.5) + (random.share() - 0.5);
        // Three digits, as they are sent.
        (0..DIMENSIONS).map(|_| ((number() * 1_000.0).round() / 1_000.0) as f32).collect()
    }

    /// The body that appends some of its messages.
    pub(super) fn batch(&self, from: usize, count: usize) -> String {
        let mut body = String::from("[");
        for message in from..from + count {
            let comma = if message > from { "," } else { "" };
            let (text, vector) = (self.words(message).join(" "), numbers(&self.vector(message)));
            // Writing to a string cannot fail.
            let _ = write!(body, r#"{comma}{{"content":"{text}","embedding":{vector},"embedding_model":"{MODEL}"}}"#);
        }
        body.push(']');
        body
    }

    /// A search for two of the words of a message.
    pub(super) fn text_query(&self, message: usize) -> String {
        let words = self.words(message);
        format!("{} {}", words[message % words.len()], words[(message + 7) % words.len()])
    }

    /// The body of a search within the user, by a message of its own.
    pub(super) fn search(&self, mode: &str, message: usize) -> String {
        let mut body = json!({"mode": mode, "user_id": self.name, "limit": super::HITS});
        self.ask(&mut body, mode, message);
        body.to_string()
    }

    /// The same over the whole project.
    pub(super) fn search_all(&self, mode: &str, message: usize) -> String {
        let mut body = json!({"mode": mode, "limit": super::HITS});
        self.ask(&mut body, mode, message);
        body.to_string()
    }

    fn ask(&self, body: &mut serde_json::Value, mode: &str, message: usize) {
        if mode != "vector" {
            body["query"] = json!(self.text_query(message));
        }
        if mode != "text" {
            body["embedding"] = json!(self.vector(message));
            body["embedding_model"] = json!(MODEL);
        }
    }
}

fn word(number: u64) -> String {
    let mut rest = number + 16;
    let mut word = String::new();
    while rest > 0 {
        word.push_str(SYLLABLES[(rest % 16) as usize]);
        rest /= 16;
    }
    word
}

/// A vector as JSON, which is also how pgvector reads it.
pub(super) fn numbers(vector: &[f32]) -> String {
    let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
    format!("[{}]", numbers.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_repeat_themselves_and_differ_from_others() {
        let users = users(&[100, 10], 3_000);
        assert_eq!(users.iter().map(|user| user.messages).sum::<usize>(), 3_110);
        assert_eq!(users[0].words(5), users[0].words(5));
        assert_ne!(users[0].words(5), users[1].words(5));
        assert_ne!(users[0].vector(5), users[0].vector(6));
        assert_eq!(users[0].vector(5).len(), DIMENSIONS);
    }

    #[test]
    fn a_batch_is_an_array_of_messages_with_vectors() {
        let batch: serde_json::Value = serde_json::from_str(&users(&[10], 10)[0].batch(2, 3)).unwrap();
        assert_eq!(batch.as_array().unwrap().len(), 3);
        assert_eq!(batch[0]["embedding"].as_array().unwrap().len(), DIMENSIONS);
    }
}
