//! What an index holds of a message, and what it must be asked.
//!
//! A lexeme is a project's code, a word, `·` and the session's bucket. One equal lexeme finds a word
//! within a user; all that begin alike find it within a project; no lookup ever touches what
//! another project wrote. Of scripts without spaces an index holds each character and each two neighbours. It may find
//! too much (codes and buckets are short, long words are cut), never too little: [`super::TextQuery::score`] decides.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::analyser::{Word, walk};
use super::phrase::{Phrase, Step};
use crate::ids::{Bucket, ProjectId};

/// Between a word and a bucket; no word holds it.
const SEPARATOR: char = '·';
/// Characters of a project's code.
const PROJECT_CHARS: usize = 4;
/// Bytes of a word in a lexeme; of a longer one the rest is not indexed.
const WORD_BYTES_MAX: usize = 64;
/// Distinct lexemes of one message, and their bytes: what PostgreSQL's `tsvector` holds with room to spare. A message of
/// more has the first ones and an empty word, which every query asks for, too.
const LEXEMES_MAX: usize = 16_384;
const LEXEMES_BYTES_MAX: usize = 512 * 1_024;
/// Bytes of a lexeme beside its word: code, separator, bucket and the space between two.
const LEXEME_BYTES: usize = PROJECT_CHARS + SEPARATOR.len_utf8() + 4 + 1;

/// What an index is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lexeme {
    /// Exactly this one.
    Exact(String),
    /// Every one that begins so.
    Prefix(String),
}

/// A condition on a message's lexemes: of each group it must have at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LexemeQuery {
    /// The groups; none of them is empty, and there is at least one.
    pub groups: Vec<Vec<Lexeme>>,
}

/// The distinct lexemes of a text in `bucket`, sorted, with a space between; none holds a space.
/// Empty for a text without words.
pub fn lexemes(project_id: ProjectId, bucket: Bucket, text: &str) -> String {
    let (words, ranges) = indexed_words(text);
    let mut distinct: Vec<&str> = ranges.into_iter().map(|range| &words[range]).collect();
    let bytes = distinct.iter().map(|word| word.len() + LEXEME_BYTES).sum::<usize>();
    if distinct.len() > LEXEMES_MAX || bytes > LEXEMES_BYTES_MAX {
        keep_the_first(&mut distinct);
    }
    distinct.sort_unstable();
    distinct.dedup();
    let code = project_code(project_id);
    let end = format!("{SEPARATOR}{:04x}", bucket.bits());
    let mut lexemes = String::with_capacity(distinct.iter().map(|word| word.len() + LEXEME_BYTES).sum());
    for word in distinct {
        if !lexemes.is_empty() {
            lexemes.push(' ');
        }
        lexemes.extend([code.as_str(), word, end.as_str()]);
    }
    lexemes
}

/// The words of a text that are indexed, in order and not distinct: one string, and where they stand in it.
fn indexed_words(text: &str) -> (String, Vec<Range<usize>>) {
    let mut words = String::with_capacity(text.len());
    let mut ranges = Vec::with_capacity(text.len() / 5);
    let mut unspaced_before: Option<Range<usize>> = None;
    walk(text, &mut |word: Word<'_>| {
        let start = words.len();
        words.push_str(cut(word.text));
        let range = start..words.len();
        ranges.push(range.clone());
        if let Some(before) = unspaced_before.take().filter(|_| word.unspaced) {
            let pair = pair(&words[before], word.text);
            ranges.push(range.end..range.end + pair.len());
            words.push_str(&pair);
        }
        unspaced_before = word.unspaced.then_some(range);
    });
    (words, ranges)
}

/// Leaves as many as an index takes of one message, without repetitions, and the empty word if that is not all.
fn keep_the_first(words: &mut Vec<&str>) {
    let (mut seen, mut bytes, mut is_cut) = (HashSet::new(), LEXEME_BYTES, false);
    words.retain(|word| {
        if is_cut || !seen.insert(*word) {
            return false;
        }
        bytes += word.len() + LEXEME_BYTES;
        is_cut = seen.len() >= LEXEMES_MAX || bytes > LEXEMES_BYTES_MAX;
        !is_cut
    });
    if is_cut {
        words.push("");
    }
}

/// A word as it is indexed.
fn cut(word: &str) -> &str {
    &word[..word.floor_char_boundary(WORD_BYTES_MAX)]
}

/// Two neighbours of a script without spaces, as they are indexed.
fn pair(first: &str, second: &str) -> String {
    let mut pair = [cut(first), second].concat();
    pair.truncate(cut(&pair).len());
    pair
}

/// What an index must be asked to find all texts that hold these phrases, within a bucket or within all of a project.
pub(super) fn lexeme_query<'a>(
    project_id: ProjectId,
    bucket: Option<Bucket>,
    phrases: impl Iterator<Item = &'a Phrase>,
) -> LexemeQuery {
    let code = project_code(project_id);
    let wanted = |word: &str, is_prefix: bool| {
        let word = cut(word);
        match bucket {
            _ if is_prefix => Lexeme::Prefix(format!("{code}{word}")),
            Some(bucket) => Lexeme::Exact(format!("{code}{word}{SEPARATOR}{:04x}", bucket.bits())),
            None => Lexeme::Prefix(format!("{code}{word}{SEPARATOR}")),
        }
    };
    let mut groups = BTreeSet::new();
    for phrase in phrases {
        for place in 0..phrase.places {
            let mut group: Vec<Lexeme> = match unspaced_neighbours(phrase, place) {
                Some((first, second)) => vec![wanted(&pair(&first.text, &second.text), second.is_prefix)],
                None if has_neighbour_before(phrase, place) => continue,
                None => {
                    let over = phrase.steps.iter().filter(|step| (step.from..step.to).contains(&place));
                    over.map(|step| wanted(&step.text, step.is_prefix)).collect()
                }
            };
            group.push(wanted("", false));
            groups.insert(group);
        }
    }
    LexemeQuery { groups: groups.into_iter().collect() }
}

/// The characters at this place and the next, if both are of a script without spaces.
fn unspaced_neighbours(phrase: &Phrase, place: usize) -> Option<(&Step, &Step)> {
    let at = |place: usize| phrase.steps.iter().find(|step| step.unspaced && step.from == place);
    at(place).zip(at(place + 1))
}

/// Whether the pair that begins at the place before says all about this one.
fn has_neighbour_before(phrase: &Phrase, place: usize) -> bool {
    place.checked_sub(1).is_some_and(|before| unspaced_neighbours(phrase, before).is_some())
}

fn project_code(project_id: ProjectId) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(project_id.as_bytes());
    digest.iter().take(PROJECT_CHARS).map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::TextQuery;
    use uuid::Uuid;

    const BUCKET: u16 = 0xa0b1;

    fn project(byte: u8) -> ProjectId {
        Uuid::from_bytes([byte; 16]).into()
    }

    fn stored(text: &str) -> Vec<String> {
        let lexemes = lexemes(project(7), Bucket::from(BUCKET), text);
        lexemes.split(' ').filter(|lexeme| !lexeme.is_empty()).map(str::to_owned).collect()
    }

    /// The words of lexemes, without project and bucket.
    fn words(lexemes: &[String]) -> Vec<&str> {
        lexemes.iter().map(|lexeme| lexeme[PROJECT_CHARS..].strip_suffix("·a0b1").unwrap()).collect()
    }

    #[test]
    fn a_message_is_indexed_once_for_each_word() {
        for (text, expected) in [
            ("", vec![]),
            ("Tea, tea & iPhone", vec!["i", "iphone", "phone", "tea"]),
            ("我喜欢 机 a 器", vec!["a", "喜", "喜欢", "器", "我", "我喜", "机", "欢", "欢机"]),
        ] {
            assert_eq!(words(&stored(text)), expected, "{text}");
        }
        let other = lexemes(project(8), Bucket::from(BUCKET), "tea");
        assert_ne!(stored("tea"), [other]);
    }

    #[test]
    fn a_query_asks_for_what_is_rarest_of_a_phrase() {
        let asked = |query: &str, bucket: Option<Bucket>| {
            let query = TextQuery::parse(query).lexemes(project(7), bucket).unwrap();
            let text = |lexeme: &Lexeme| match lexeme {
                Lexeme::Exact(lexeme) => lexeme[PROJECT_CHARS..].to_owned(),
                Lexeme::Prefix(lexeme) => format!("{}*", &lexeme[PROJECT_CHARS..]),
            };
            let groups = query.groups.iter().map(|group| group.iter().map(text).collect::<Vec<_>>().join("|"));
            let mut groups: Vec<String> = groups.collect();
            groups.sort();
            groups.join(" ")
        };
        let bucket = Some(Bucket::from(BUCKET));
        assert_eq!(asked("tea tea", bucket), "tea·a0b1|·a0b1");
        assert_eq!(asked("tea te*", None), "te*|·* tea·*|·*");
        assert_eq!(asked("喜欢机", None), "喜欢·*|·* 欢机·*|·*");
        assert_eq!(asked("机 a", None), "a·*|·* 机·*|·*");
        assert_eq!(asked("iPhone", None), "iphone·*|i·*|·* iphone·*|phone·*|·*");
        assert!(TextQuery::parse("-tea role:user in:x").lexemes(project(7), None).is_none());
    }

    #[test]
    fn a_message_of_too_many_words_has_the_first_and_the_empty_one() {
        let text: String = (0..40_000).map(|n| format!("w{n} ")).collect();
        let stored = stored(&text.replace('w', ""));
        assert_eq!(stored.len(), LEXEMES_MAX);
        assert!(words(&stored).contains(&"") && words(&stored).contains(&"0") && !words(&stored).contains(&"39999"));
        let long: String = (0..20_000).map(|n| format!("{n:0>200} {n:a>64} ")).collect();
        let long = lexemes(project(7), Bucket::from(BUCKET), &long);
        assert!(long.len() <= LEXEMES_BYTES_MAX && long.len() > LEXEMES_BYTES_MAX / 2);
        assert_eq!(self::stored(&"tea ".repeat(100_000)).len(), 1);
    }
}
