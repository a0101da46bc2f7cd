//! The query language of people, and what of a message it matches and how well.
//!
//! # Score
//!
//! Each word or phrase of the query counts as in BM25, without its inverse document frequency: all hits hold all words,
//! and statistics would show what others wrote. With `tf` occurrences in a message of `n` words it adds
//! `tf · 2.2 / (tf + 1.2 · (0.25 + 0.75 · n / 20))`; 20 words is the mean of a message in conversations between people.
//! The sum counts up to twice: it is multiplied by one and the share that the query's words have of the shortest part of
//! the message that holds them all, four fifths of it where they stand in another order than asked for. So the score
//! depends on nothing but the query and the message.

use std::ops::Range;

use super::lexemes::{LexemeQuery, lexeme_query};
use super::phrase::{Occurrence, Phrases};
use super::syntax::{self, Asked};
use crate::ids::{Bucket, ProjectId};

/// How soon more occurrences of a word stop to count: BM25's k₁.
const SATURATION: f64 = 1.2;
/// How much the length of a message counts: BM25's b.
const LENGTH_SHARE: f64 = 0.75;
/// Words of an average message.
const AVERAGE_WORDS: f64 = 20.0;
/// What is left of nearness where words stand in another order than asked for.
const OTHER_ORDER: f64 = 0.8;

/// A query, read; any text is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextQuery {
    /// First the wanted ones, then the excluded ones.
    phrases: Phrases,
    wanted: usize,
    /// All of these must stand in the session's name.
    names: Phrases,
    /// In lower case.
    roles: Vec<String>,
}

/// What of a message a query is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its text.
    pub content: &'a str,
    /// Who speaks.
    pub role: &'a str,
    /// The name of its session.
    pub session_name: &'a str,
}

impl TextQuery {
    /// Reads a query. What is malformed counts as words.
    pub fn parse(text: &str) -> Self {
        let Asked { wanted: mut phrases, excluded, names, roles } = syntax::read(text);
        let wanted = phrases.len();
        phrases.extend(excluded);
        Self { phrases: Phrases::new(phrases), wanted, names: Phrases::new(names), roles }
    }

    /// Whether it asks for no word: then it matches nothing.
    pub fn is_empty(&self) -> bool {
        self.wanted == 0
    }

    /// What an index must be asked so that it finds at least every message that matches: within one
    /// bucket (of a user or a session), or in all of a project. `None` if nothing can match.
    pub fn lexemes(&self, project_id: ProjectId, bucket: Option<Bucket>) -> Option<LexemeQuery> {
        let wanted = self.phrases.iter().take(self.wanted);
        (!self.is_empty()).then(|| lexeme_query(project_id, bucket, wanted))
    }

    /// How well a message fits; `None` if the query does not match it. Depends on nothing but the
    /// two. Finite and positive.
    pub fn score(&self, candidate: &Candidate<'_>) -> Option<f64> {
        if self.is_empty() || !self.admits_role(candidate.role) {
            return None;
        }
        let mut found = Found::new(self.wanted);
        let mut is_excluded = false;
        let words = self.phrases.find(candidate.content, &mut |occurrence| {
            if occurrence.phrase < self.wanted {
                found.note(&occurrence);
            } else {
                is_excluded = true;
            }
        });
        let matches = !is_excluded && found.missing == 0 && self.admits_name(candidate.session_name);
        matches.then(|| found.score(words))
    }

    /// Whether it rules out messages whatever wanted words they hold: by exclusions, roles or
    /// names of sessions.
    pub fn has_conditions(&self) -> bool {
        self.phrases.len() > self.wanted || self.names.len() > 0 || !self.roles.is_empty()
    }

    /// Whether a message passes these conditions; its wanted words do not matter.
    pub fn admits(&self, candidate: &Candidate<'_>) -> bool {
        let mut is_excluded = false;
        if self.phrases.len() > self.wanted {
            self.phrases.find(candidate.content, &mut |occurrence| is_excluded |= occurrence.phrase >= self.wanted);
        }
        !is_excluded && self.admits_role(candidate.role) && self.admits_name(candidate.session_name)
    }

    /// Where the wanted words and phrases stand in a text.
    pub(super) fn find_wanted(&self, text: &str, on_occurrence: &mut impl FnMut(Occurrence)) {
        self.phrases.find(text, &mut |occurrence| {
            if occurrence.phrase < self.wanted {
                on_occurrence(occurrence);
            }
        });
    }

    fn admits_role(&self, role: &str) -> bool {
        self.roles.is_empty() || self.roles.contains(&role.to_lowercase())
    }

    fn admits_name(&self, session_name: &str) -> bool {
        let mut is_found = vec![false; self.names.len()];
        if !is_found.is_empty() {
            self.names.find(session_name, &mut |occurrence| is_found[occurrence.phrase] = true);
        }
        is_found.into_iter().all(|is_found| is_found)
    }
}

/// What was found of the wanted phrases so far.
struct Found {
    /// How often each was.
    counts: Vec<u32>,
    /// Where each was found last.
    last: Vec<Range<u32>>,
    /// How many were not yet.
    missing: usize,
    /// How near they stood to each other at best: 1 is side by side.
    nearness: f64,
}

impl Found {
    fn new(phrases: usize) -> Self {
        Self { counts: vec![0; phrases], last: vec![0..0; phrases], missing: phrases, nearness: 0.0 }
    }

    fn note(&mut self, occurrence: &Occurrence) {
        let count = &mut self.counts[occurrence.phrase];
        *count = count.saturating_add(1);
        if *count == 1 {
            self.missing -= 1;
        }
        self.last[occurrence.phrase] = occurrence.places.clone();
        // The best there is needs no further look: so a text of nothing but hits costs little.
        if self.missing == 0 && self.nearness < 1.0 {
            self.nearness = self.nearness.max(self.nearness_here());
        }
    }

    /// The share that the phrases have of the part of the text from the first to the last of them.
    fn nearness_here(&self) -> f64 {
        let start = self.last.iter().map(|places| places.start).min().unwrap_or_default();
        let end = self.last.iter().map(|places| places.end).max().unwrap_or_default();
        let taken: u32 = self.last.iter().map(|places| places.end - places.start).sum();
        let share = (f64::from(taken) / f64::from((end - start).max(1))).min(1.0);
        let in_order = self.last.windows(2).all(|pair| pair[0].start < pair[1].start);
        share * if in_order { 1.0 } else { OTHER_ORDER }
    }

    fn score(&self, words: u32) -> f64 {
        let length = 1.0 - LENGTH_SHARE + LENGTH_SHARE * f64::from(words) / AVERAGE_WORDS;
        let weight = |count: &u32| {
            let count = f64::from(*count);
            count * (SATURATION + 1.0) / (count + SATURATION * length)
        };
        self.counts.iter().map(weight).sum::<f64>() * (1.0 + self.nearness)
    }
}

#[cfg(test)]
mod tests {
    use super::super::analyser::analyse;
    use super::super::lexemes::{Lexeme, lexemes};
    use super::super::texts::{any_query, any_text};
    use super::*;
    use crate::ids::ProjectId;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn score(query: &str, content: &str) -> Option<f64> {
        let candidate = Candidate { content, role: "user", session_name: "Trip to Rome, day 2" };
        TextQuery::parse(query).score(&candidate)
    }

    #[track_caller]
    fn assert_matches(query: &str, content: &str, expected: bool) {
        assert_eq!(score(query, content).is_some(), expected, "{query:?} in {content:?}");
        if expected {
            assert_eq!(misses(query, content), None);
        }
    }

    /// What an index would miss although the query matches.
    fn misses(query: &str, content: &str) -> Option<String> {
        let (project, bucket) = (ProjectId::from(Uuid::from_bytes([7; 16])), Bucket::from(0xa0b1));
        let stored = lexemes(project, bucket, content);
        let holds = |lexeme: &Lexeme| match lexeme {
            Lexeme::Exact(lexeme) => stored.split(' ').any(|stored| stored == lexeme),
            Lexeme::Prefix(start) => stored.split(' ').any(|stored| stored.starts_with(start.as_str())),
        };
        for bucket in [Some(bucket), None] {
            let Some(wanted) = TextQuery::parse(query).lexemes(project, bucket) else {
                return Some("the query is empty".to_owned());
            };
            if let Some(group) = wanted.groups.iter().find(|group| !group.iter().any(holds)) {
                return Some(format!("{group:?} not in {stored}"));
            }
        }
        None
    }

    #[test]
    fn conditions_hold_without_the_words() {
        let candidate = |content| Candidate { content, role: "user", session_name: "Trip to Rome, day 2" };
        for (query, content, expected) in [
            ("tea", "coffee", true),
            ("tea -coffee", "coffee", false),
            ("tea -coffee", "water", true),
            ("tea role:assistant", "tea", false),
            ("tea role:User in:rome", "water", true),
            ("tea in:paris", "tea", false),
        ] {
            let parsed = TextQuery::parse(query);
            assert_eq!(parsed.admits(&candidate(content)), expected, "{query:?} on {content:?}");
            assert_eq!(parsed.has_conditions(), query != "tea", "{query:?}");
        }
    }

    #[test]
    fn a_query_finds_what_a_reader_would_find() {
        for (query, content, expected) in [
            ("green TEA", "Tea, green", true),
            ("green tea", "tea", false),
            ("\"green tea\"", "some green tea", true),
            ("\"green tea\"", "tea green", false),
            ("“green tea”", "green tea", true),
            ("„green tea“ «hot»", "green tea, hot", true),
            ("\"green tea", "tea and green", true),
            ("tea -green", "tea", true),
            ("tea -green", "green tea", false),
            ("tea -\"green tea\"", "green tea", false),
            ("tea -\"green tea\"", "tea green", true),
            ("tea --verbose", "tea verbose", true),
            ("trai*", "the Training", true),
            ("trai*", "a portrait", false),
            ("\"night trai*\"", "night trains", false),
            ("night-trai*", "night trains", true),
            ("tea role:user", "tea", true),
            ("tea role:Assistant", "tea", false),
            ("tea role:assistant ROLE:user", "tea", true),
            ("tea in:rome", "tea", true),
            ("tea in:\"rome day\"", "tea", true),
            ("tea in:\"day rome\"", "tea", false),
            ("tea in:trip in:2", "tea", true),
            ("tea in:trip in:3", "tea", false),
            ("role: tea", "my role: tea", true),
            ("in: tea", "tea in", true),
            ("AND ( tea \" - * : ) \0 OR", "and tea or", true),
            ("-tea", "coffee", false),
            ("role:user", "tea", false),
            ("in:rome", "tea", false),
            ("", "", false),
            ("don't", "I DON’T know", true),
            ("snake_case", "a snake_case name", true),
            ("snake_case", "case snake", false),
            ("src/main.rs", "see ./src/main.rs:12", true),
            ("main.rs", "see ./src/main.rs:12", true),
            ("v1.2.3", "since V1.2.3-rc1", true),
            ("1.2", "since v1.2.3", true),
            ("1.3", "since v1.2.3", false),
            ("iphone", "my iPhone", true),
            ("phone", "my iPhone", true),
            ("iPhone", "my iphone", true),
            ("iPhone", "my i-phone", true),
            ("iPhone", "phone i", false),
            ("getUser*", "call getUserById", true),
            ("\"call getuserbyid now\"", "call getUserById now", true),
            ("oauth", "OAuth2", true),
            ("gpt4", "gpt4 GPT-4", true),
            ("GPT-4", "gpt4", true),
            ("gpt 4", "gpt4", true),
            ("gpt4", "GPT 4", true),
            ("3d", "in 3D", true),
            ("strasse", "Straße", true),
            ("STRAẞE", "strasse", true),
            ("ecole", "École", true),
            ("istanbul", "İSTANBUL", true),
            ("οδος", "ΟΔΟΣ", true),
            ("ежик", "Ёжик", true),
            ("محمد", "مُحَمَّدٌ", true),
            ("שלום", "שָׁלוֹם", true),
            ("हिन्दी", "मैं हिन्दी बोलता हूँ", true),
            ("हिन्द", "हिन्दी", false),
            ("รัก", "ฉันรักแมว", true),
            ("แมวรัก", "ฉันรักแมว", false),
            ("机", "我喜欢机器学习", true),
            ("机器学习", "我喜欢机器学习", true),
            ("学机", "我喜欢机器学习", false),
            ("ガス", "ｶﾞｽ", true),
            ("한국", "한국어를 배워요", true),
            ("duong", "Đường", true),
            ("👍", "nice 👍🏿", true),
            ("🇩🇪", "🇦🇩🇪🇸", false),
            ("🇦🇩", "🇦🇩🇪🇸", true),
        ] {
            assert_matches(query, content, expected);
        }
    }

    #[test]
    fn more_and_nearer_and_in_order_is_better() {
        for (query, better, worse) in [
            ("tea", "tea tea", "tea cup"),
            ("tea", "tea", "tea in a very large cup"),
            ("green tea", "some green tea here now", "some green and hot tea"),
            ("green tea", "some green tea here", "some tea green here"),
        ] {
            assert!(score(query, better) > score(query, worse), "{query}: {better} / {worse}");
        }
        assert_eq!(score("tea tea", "tea"), score("tea", "tea"));
    }

    #[test]
    fn a_long_word_and_a_long_text_are_found() {
        let word = format!("{}z", "ä".repeat(500));
        assert_matches(&word, &word.to_uppercase(), true);
        assert_matches(&format!("{}*", "a".repeat(100)), &word, true);
        assert_matches(&"a".repeat(500), &word, false);
        let key: String = (0..2_000).map(|n| ['a', 'B', '1', 'd'][n * n / 3 % 4]).collect();
        assert_matches(&key.to_lowercase()[..1_500], &key[..1_500], true);
        let text: String = (0..40_000).map(|n| format!("w{n}x ")).collect();
        for query in ["w1x w39999x", "\"w39998x w39999x\"", "w3999*"] {
            assert_matches(query, &text, true);
        }
        let marks = format!("か{}", "\u{3099}".repeat(50_000));
        assert_matches(&marks[..3_000], &marks[..3_000], true);
        score(&marks, &marks);
    }

    #[test]
    fn no_more_words_count_than_the_limit() {
        let words: String = (0..100).map(|n| format!("w{n} ")).collect();
        let text: String = (0..64).map(|n| format!("w{n} ")).collect();
        assert_matches(&words, &text, true);
        assert_matches(&words.replace(' ', "_"), &text, true);
        assert_matches("a".repeat(4_096).as_str(), &"a".repeat(4_096), true);
    }

    proptest! {
        #[test]
        fn what_matches_is_found_in_the_index(text in any_text(), query in any_query()) {
            let parsed = TextQuery::parse(&query);
            let candidate = Candidate { content: &text, role: "a", session_name: "a b 我" };
            let score = parsed.score(&candidate);
            prop_assert_eq!(score, parsed.score(&candidate));
            if let Some(score) = score {
                prop_assert!(score.is_finite() && score > 0.0 && !parsed.is_empty());
                prop_assert_eq!(misses(&query, &text), None);
            }
        }

        #[test]
        fn a_part_of_a_text_finds_it(text in any_text(), from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
            let words: Vec<_> = analyse(&text).into_iter().filter(|token| token.span == 1).collect();
            prop_assume!(!words.is_empty());
            let (from, to) = (from.index(words.len()), to.index(words.len()));
            let phrase = words[from.min(to)..=from.max(to)].iter().map(|token| &*token.text).collect::<Vec<_>>();
            for query in [phrase.join(" "), format!("\"{}\"", phrase.join(" ")), format!("{}*", phrase.join("-"))] {
                prop_assert!(score(&query, &text).is_some(), "{}", query);
                prop_assert_eq!(misses(&query, &text), None);
            }
            for token in analyse(&text) {
                prop_assert!(score(&token.text, &text).is_some(), "{}", token.text);
            }
            for part in text.split_whitespace().filter(|part| !analyse(part).is_empty()) {
                let quoted = format!("\"{}\"", part.replace('"', " "));
                prop_assert!(score(&quoted, &text).is_some(), "{}", quoted);
            }
        }

        #[test]
        fn no_query_is_an_error(query in any::<String>(), text in any::<String>()) {
            let parsed = TextQuery::parse(&query);
            let candidate = Candidate { content: &text, role: &query, session_name: &text };
            prop_assert!(!parsed.is_empty() || parsed.score(&candidate).is_none());
        }
    }
}
