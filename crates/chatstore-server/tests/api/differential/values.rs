//! Chance, and the texts and JSON that it gives: mostly plain, at times as odd as a client may send.

use chatstore_core::clock::{Ctx, Timestamp};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Chance that repeats itself for the same seed.
pub(super) struct Dice(Ctx);

const WORDS: [&str; 8] = ["hello", "tea", "Lisbon", "yes", "a longer sentence about trams.", "no", "42", "x"];
const ODD: [&str; 22] = [
    "",
    " ",
    "  spaces around  ",
    "tab\tand\nline\r\nbreaks",
    "\u{1}\u{7f}",
    "\u{feff}mark",
    "é",
    "e\u{301}",
    "ẞßSS",
    "😀👩‍👩‍👧‍👦",
    "\u{10FFFF}\u{FFFD}",
    "שלום عالم",
    "用户",
    "'; drop table sessions; --",
    "\"quoted\" \\ back / slash",
    "%_*?",
    "$1 $$ ?1",
    "NULL",
    "null",
    "{\"json\": [1, 2]}",
    "\\x00 \\u0000",
    "Z z A a",
];
/// What metadata is made of; filters name the same.
const KEYS: [&str; 7] = ["topic", "n", "ok", "ключ", "a.b", "😀", ""];
const SCALARS: [&str; 11] =
    ["\"tea\"", "\"\"", "1", "1.0", "1e2", "-0", "true", "false", "\"1\"", "\"😀\"", "12345678901234567890123"];
const FILTERS: [&str; 10] = ["tea", "", "1", "1.0", "1e2", "-0", "true", "null", "😀", "12345678901234567890123"];
/// JSON that is kept as it was sent, or refused.
const DOCUMENTS: [&str; 14] = [
    "null",
    "true",
    "1.50",
    "1e400",
    "-0.0",
    "\"text\"",
    "\"\\u0041\\ud83d\\ude00\"",
    "[]",
    "[1 , 2 ,\t3]",
    "{ \"b\" : 1 , \"a\" : 2 }",
    "{\"a\":1,\"a\":2}",
    "{\"content\":[{\"type\":\"output_text\",\"text\":\"a\"},{\"text\":\"b\"}]}",
    "{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\",\"output\":\"42\"}",
    "[\n{\n}\n]",
];
const REFUSED: [&str; 6] = ["\"\\u0000\"", "\"\\ud800\"", "{\"a\":}", "01", "[1,]", "NaN"];

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Ctx::fixed(Timestamp::from_micros(0).unwrap(), 0, seed))
    }

    pub(super) fn number(&self) -> u64 {
        u64::from_be_bytes(self.0.random())
    }

    pub(super) fn below(&self, end: usize) -> usize {
        usize::try_from(self.number() % end.max(1) as u64).unwrap()
    }

    pub(super) fn percent(&self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(super) fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One of the values, each as often as its weight says.
    pub(super) fn weighed<T: Copy>(&self, from: &[(usize, T)]) -> T {
        let mut at = self.below(from.iter().map(|(weight, _)| weight).sum());
        for (weight, value) in from {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *value,
            }
        }
        from[0].1
    }

    /// A text.
    pub(super) fn text(&self) -> String {
        match self.below(400) {
            0 => "nul \0".to_owned(),
            1..4 => self.pick(&ODD).repeat(1 + self.below(200)),
            4 => "long ".repeat(self.below(20_000)),
            5..120 => self.pick(&ODD).to_owned(),
            _ => self.pick(&WORDS).to_owned(),
        }
    }

    /// A text as a JSON string.
    pub(super) fn string(&self) -> String {
        match self.below(600) {
            0 => self.pick(&REFUSED).to_owned(),
            1 => self.pick(&DOCUMENTS).to_owned(),
            _ => serde_json::to_string(&self.text()).unwrap(),
        }
    }

    /// Any JSON.
    pub(super) fn document(&self) -> String {
        match self.below(120) {
            0 => self.pick(&REFUSED).to_owned(),
            1 => {
                // Around the deepest that is accepted; a body adds one or two levels of its own.
                let depth = 60 + self.below(6);
                format!("{}{}", "[".repeat(depth), "]".repeat(depth))
            }
            2..30 => self.string(),
            30..60 => self.object(),
            _ => self.pick(&DOCUMENTS).to_owned(),
        }
    }

    /// An object, as metadata must be.
    pub(super) fn object(&self) -> String {
        match self.below(150) {
            0 => self.document(),
            // Around the largest that is accepted.
            1 => format!("{{\"large\":\"{}\"}}", "é".repeat(8_180 + self.below(12))),
            _ => {
                let gap = if self.percent(20) { " " } else { "" };
                let member = |_| {
                    let value = if self.percent(80) { self.pick(&SCALARS) } else { self.pick(&DOCUMENTS) };
                    format!("{gap}{}:{gap}{value}", serde_json::to_string(self.pick(&KEYS)).unwrap())
                };
                let members: Vec<_> = (0..self.below(5)).map(member).collect();
                format!("{{{}}}", members.join(","))
            }
        }
    }

    /// A filter on metadata, as it stands in a query.
    pub(super) fn filter(&self) -> String {
        format!("metadata[{}]={}", encoded(self.pick(&KEYS)), encoded(self.pick(&FILTERS)))
    }

    /// A time that is likely to lie among those of the rows.
    pub(super) fn time(&self) -> String {
        match self.below(30) {
            0 => "0001-01-01T00:00:00Z".to_owned(),
            1 => "9999-12-31T23:59:59.999999Z".to_owned(),
            2 => "1969-12-31T23:59:59.999999Z".to_owned(),
            3 => "2026-01-17T03:00:00.123456789+02:00".to_owned(),
            4 => "yesterday".to_owned(),
            _ => {
                let start = Timestamp::parse("2026-01-14T00:00:00Z").unwrap();
                start.plus_micros(i64::try_from(self.below(240)).unwrap() * 1_800_000_000).to_string()
            }
        }
    }

    /// An id that nothing has.
    pub(super) fn uuid(&self, bucket: u16) -> String {
        let (a, b) = (self.number(), self.number());
        format!(
            "019b{:04x}-{:04x}-7{:03x}-8{:03x}-{:08x}{bucket:04x}",
            a & 0xffff,
            (a >> 16) & 0xffff,
            (a >> 32) & 0xfff,
            b & 0xfff,
            (b >> 12) & 0xffff_ffff
        )
    }
}

/// A text as it can stand in a path or query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
