//! Phrases: words in a row, compared with the words of a text in one pass over it.
//!
//! A phrase and a text are both ways through places: `iPhone` can be walked as `iphone` in one step or as `i`, `phone` in
//! two. A phrase stands in a text where both can be walked with equal steps.

use std::ops::Range;

use super::analyser::{PARTS_MAX, Word, walk};

/// One step of a phrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The folded word.
    pub(super) text: String,
    /// The places it leads over.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Whether words that only begin so fit, too.
    pub(super) is_prefix: bool,
    pub(super) unspaced: bool,
}

impl Step {
    fn fits(&self, word: &str) -> bool {
        if self.is_prefix { word.starts_with(&self.text) } else { word == self.text }
    }
}

/// Words in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phrase {
    /// In order of the places they begin at.
    pub(super) steps: Vec<Step>,
    /// Places; at least one.
    pub(super) places: usize,
}

impl Phrase {
    /// The words of a text, at most `places_max` of them; `None` if there are none. If the text is to be a prefix and
    /// ends with a word, words that begin like this one fit, too.
    pub(super) fn read(text: &str, is_prefix: bool, places_max: usize) -> Option<Self> {
        let mut steps = Vec::new();
        let mut on_word = |word: Word<'_>| {
            let is_prefix = is_prefix && word.end == text.len();
            let from = word.position as usize;
            let to = from + word.span as usize;
            if to <= places_max {
                let unspaced = word.unspaced;
                steps.push(Step { text: word.text.to_owned(), from, to, is_prefix, unspaced });
            }
        };
        let places = (walk(text, &mut on_word) as usize).min(places_max);
        (places > 0).then_some(Self { steps, places })
    }
}

/// A phrase found in a text.
#[derive(Clone, Debug)]
pub(super) struct Occurrence {
    /// Which of the phrases.
    pub(super) phrase: usize,
    /// The places it takes in the text.
    pub(super) places: Range<u32>,
    /// From its first to its last byte.
    pub(super) bytes: Range<usize>,
}

/// Phrases, made ready to be looked for all at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Phrases {
    phrases: Vec<Phrase>,
    /// Every step of them, by the bytes of its word.
    steps: Vec<PhraseStep>,
    /// Where in `steps` words with this first byte begin, for each byte, and the end.
    by_first_byte: Vec<usize>,
}

/// A step, with its places counted over all phrases.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PhraseStep {
    step: Step,
    phrase: usize,
    is_first: bool,
    is_last: bool,
    /// Whether its word is that of the step before it in the list: then it need not be compared again.
    is_same_word: bool,
}

/// Places of a text of which unfinished phrases are remembered: more than a word can span.
const REMEMBERED: usize = 16;
const _: () = assert!(REMEMBERED > PARTS_MAX);

/// An unfinished phrase.
#[derive(Clone, Copy)]
struct Begun {
    /// The place in the text it has come to.
    at: u32,
    first_place: u32,
    first_byte: usize,
}

impl Phrases {
    pub(super) fn new(phrases: Vec<Phrase>) -> Self {
        let mut steps: Vec<PhraseStep> = Vec::new();
        let mut before = 0;
        for (index, phrase) in phrases.iter().enumerate() {
            steps.extend(phrase.steps.iter().map(|step| PhraseStep {
                step: Step { from: before + step.from, to: before + step.to, ..step.clone() },
                phrase: index,
                is_first: step.from == 0,
                is_last: step.to == phrase.places,
                is_same_word: false,
            }));
            before += phrase.places;
        }
        steps.sort_by(|a, b| (&a.step.text, a.step.is_prefix).cmp(&(&b.step.text, b.step.is_prefix)));
        for at in 1..steps.len() {
            let (a, b) = (&steps[at - 1].step, &steps[at].step);
            steps[at].is_same_word = (&a.text, a.is_prefix) == (&b.text, b.is_prefix);
        }
        let start = |byte| steps.partition_point(|step| usize::from(first_byte(&step.step.text)) < byte);
        Self { by_first_byte: (0..=256).map(start).collect(), phrases, steps }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Phrase> {
        self.phrases.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.phrases.len()
    }

    /// Shows where the phrases stand in a text, from left to right and without overlaps of one phrase with itself; gives
    /// the number of the text's places.
    pub(super) fn find(&self, text: &str, on_occurrence: &mut impl FnMut(Occurrence)) -> u32 {
        if self.phrases.is_empty() {
            return walk(text, &mut |_| {});
        }
        let places: usize = self.phrases.iter().map(|phrase| phrase.places).sum();
        let row = places + 1;
        let is_simple = places == self.phrases.len();
        let none = Begun { at: u32::MAX, first_place: 0, first_byte: 0 };
        let mut begun = vec![none; if is_simple { 0 } else { row * REMEMBERED }];
        let row_of = |place: u32| place as usize % REMEMBERED * row;
        let mut ends = vec![0; self.phrases.len()];
        walk(text, &mut |word: Word<'_>| {
            let first = usize::from(first_byte(word.text));
            let end = word.position + word.span;
            let (row, end_row) = (row_of(word.position), row_of(end));
            let mut fits = false;
            for wanted in &self.steps[self.by_first_byte[first]..self.by_first_byte[first + 1]] {
                let PhraseStep { step, phrase, is_first, is_last, is_same_word } = wanted;
                fits = if *is_same_word { fits } else { step.fits(word.text) };
                if !fits {
                    continue;
                }
                let came = if *is_first {
                    Begun { at: end, first_place: word.position, first_byte: word.start }
                } else {
                    let from = begun[row + step.from];
                    if from.at != word.position {
                        continue;
                    }
                    Begun { at: end, ..from }
                };
                if !is_last {
                    begun[end_row + step.to] = came;
                } else if came.first_place >= ends[*phrase] {
                    ends[*phrase] = end;
                    let (places, bytes) = (came.first_place..end, came.first_byte..word.end);
                    on_occurrence(Occurrence { phrase: *phrase, places, bytes });
                }
            }
        })
    }
}

fn first_byte(text: &str) -> u8 {
    text.as_bytes().first().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found, as `phrase:text`.
    fn found(phrases: &[&str], text: &str) -> Vec<String> {
        let phrases = phrases.iter().filter_map(|phrase| Phrase::read(phrase, false, 64)).collect();
        let mut found = Vec::new();
        Phrases::new(phrases).find(text, &mut |one| found.push(format!("{}:{}", one.phrase, &text[one.bytes])));
        found
    }

    #[test]
    fn a_phrase_is_found_on_every_way_through_its_places() {
        for (phrases, text, expected) in [
            (&["tea"][..], "Tea or tea", vec!["0:Tea", "0:tea"]),
            (&["green tea", "tea"], "green, tea tea", vec!["0:green, tea", "1:tea", "1:tea"]),
            (&["a b a"], "a b a b a b a", vec!["0:a b a", "0:a b a"]),
            (
                &["iPhone case"],
                "iphone case i-phone case iPhone Case",
                vec!["0:iphone case", "0:i-phone case", "0:iPhone Case"],
            ),
            (&["my phone"], "my iPhone", vec![]),
            (&["my i", "phone x"], "my iPhone X", vec!["0:my i", "1:Phone X"]),
            (&["get user by id now"], "getUserById now", vec!["0:getUserById now"]),
            (&["getuserbyid now"], "getUserById now", vec!["0:getUserById now"]),
            (&["oauth 2 token"], "an OAuth2 token", vec!["0:OAuth2 token"]),
        ] {
            assert_eq!(found(phrases, text), expected, "{phrases:?}");
        }
    }
}
