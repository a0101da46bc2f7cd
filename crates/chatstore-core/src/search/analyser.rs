//! From text to words: one analyser for both engines, so that both find the same.
//!
//! A word is a run of letters and digits; all else separates, apostrophes and underscores, too. A run is split where its
//! case changes and between letters and digits (`HTTPServer2` is `http`, `server`, `2`); it stands whole, too, and so do
//! its letters without the digits (`httpserver2`, `httpserver`), so that a name is found whole and in parts. In scripts
//! without spaces each character is a word, and so is each emoji and each flag.

use std::ops::Range;

use super::folding::{Class, cluster_length, fold_case, fold_cluster};

/// Grows with every change of what the analyser makes of a text: an index made by another version
/// is made anew.
pub const ANALYSER_VERSION: i64 = 1;

/// Parts of a run, at most: one of more is no name but a key or encoded data, and stays whole.
pub(super) const PARTS_MAX: usize = 12;

/// A word of a text, as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Folded: case, diacritics and width do not count.
    pub text: String,
    /// Its place among the text's words, from 0.
    pub position: u32,
    /// How many places it takes: a whole `camelCase` name stands at its first part and takes as
    /// many places as it has parts.
    pub span: u32,
    /// Bytes of the text it was made from.
    pub bytes: Range<usize>,
}

/// The words of a text, in order.
pub fn analyse(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    walk(text, &mut |word: Word<'_>| {
        let Word { text, position, span, start, end, .. } = word;
        tokens.push(Token { text: text.to_owned(), position, span, bytes: start..end });
    });
    tokens
}

/// A [`Token`] that borrows what it can.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) position: u32,
    pub(super) span: u32,
    pub(super) start: usize,
    pub(super) end: usize,
    /// Whether it is a character of a script without spaces.
    pub(super) unspaced: bool,
}

/// Shows the words of a text in order, a whole before its parts; gives the number of places.
pub(super) fn walk<F: FnMut(Word<'_>)>(text: &str, on_word: &mut F) -> u32 {
    let bytes = text.as_bytes();
    let mut run = Run::new(on_word);
    let mut at = 0;
    while at < bytes.len() {
        let kind = KINDS[usize::from(bytes[at])];
        if kind == SEPARATOR {
            at += 1;
            continue;
        }
        let end = if kind == OTHER { at } else { simple_end(bytes, at) };
        let is_simple = end > at && bytes.get(end).is_none_or(|byte| KINDS[usize::from(*byte)] == SEPARATOR);
        if is_simple {
            run.emit_simple(&text[at..end], kind == UPPER, at);
            at = end;
        } else {
            at = run.read(text, at);
        }
    }
    run.position
}

const SEPARATOR: u8 = 0;
const LOWER: u8 = 1;
const UPPER: u8 = 2;
const DIGIT: u8 = 3;
/// Not ASCII.
const OTHER: u8 = 4;

const KINDS: [u8; 256] = {
    let mut kinds = [SEPARATOR; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' => LOWER,
            b'A'..=b'Z' => UPPER,
            b'0'..=b'9' => DIGIT,
            0x80.. => OTHER,
            _ => SEPARATOR,
        };
        byte += 1;
    }
    kinds
};

/// The end of an ASCII word of one part that begins here: `word`, `Word`, `WORD`, `42`.
fn simple_end(bytes: &[u8], start: usize) -> usize {
    let kind_at = |at: usize| bytes.get(at).map_or(SEPARATOR, |byte| KINDS[usize::from(*byte)]);
    let mut kind = kind_at(start);
    let mut end = start + 1;
    if kind == UPPER && kind_at(end) == LOWER {
        kind = LOWER;
    }
    while kind_at(end) == kind {
        end += 1;
    }
    end
}

/// A part of a run.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Where it begins in the folded run.
    folded: usize,
    /// Bytes of the text.
    start: usize,
    end: usize,
    is_number: bool,
}

/// A run that is being read.
struct Run<'f, F> {
    on_word: &'f mut F,
    position: u32,
    folded: String,
    parts: Vec<Part>,
    too_many: bool,
    /// The kind of its last character that is no mark; `Separator` if there is none.
    last: Class,
    /// A part that would begin at its last character, and where the part before would end.
    last_as_part: Part,
    last_before: usize,
}

impl<'f, F: FnMut(Word<'_>)> Run<'f, F> {
    fn new(on_word: &'f mut F) -> Self {
        let none = Part { folded: 0, start: 0, end: 0, is_number: false };
        let (folded, parts) = (String::new(), Vec::new());
        let last = Class::Separator;
        Self { on_word, position: 0, folded, parts, too_many: false, last, last_as_part: none, last_before: 0 }
    }

    fn emit_simple(&mut self, word: &str, folds: bool, start: usize) {
        let end = start + word.len();
        let text = if folds {
            self.folded.clear();
            self.folded.push_str(word);
            self.folded.make_ascii_lowercase();
            &self.folded
        } else {
            word
        };
        (self.on_word)(Word { text, position: self.position, span: 1, start, end, unspaced: false });
        self.folded.clear();
        self.position += 1;
    }

    /// Reads up to the next separator; gives where it stopped.
    fn read(&mut self, text: &str, mut at: usize) -> usize {
        let bytes = text.as_bytes();
        while let Some(&byte) = bytes.get(at) {
            let kind = KINDS[usize::from(byte)];
            if kind != OTHER && bytes.get(at + 1).is_none_or(u8::is_ascii) {
                let class = match kind {
                    LOWER => Class::Lower,
                    UPPER => Class::Upper,
                    DIGIT => Class::Digit,
                    _ => break,
                };
                self.push(class, char::from(byte), at, at + 1);
                at += 1;
                continue;
            }
            let (start, mut is_separated) = (at, false);
            at += cluster_length(&text[at..]);
            fold_cluster(&text[start..at], &mut |class, c| {
                is_separated = class == Class::Separator;
                self.push(class, c, start, at);
            });
            if is_separated {
                break;
            }
        }
        self.flush();
        at
    }

    /// Takes a character that was made of these bytes.
    fn push(&mut self, class: Class, c: char, start: usize, end: usize) {
        match class {
            Class::Separator => return self.flush(),
            Class::Mark if matches!(self.last, Class::Separator | Class::Pictograph | Class::Flag) => return,
            Class::Mark => {
                fold_case(c, &mut self.folded);
                return self.extend(end);
            }
            Class::Flag if self.last == Class::Flag => {
                self.folded.push(c);
                self.last = Class::Pictograph;
                return self.extend(end);
            }
            Class::Unspaced | Class::Pictograph | Class::Flag => self.flush(),
            Class::Lower | Class::Upper | Class::Digit => {
                if matches!(self.last, Class::Unspaced | Class::Pictograph | Class::Flag) {
                    self.flush();
                }
            }
        }
        let part = Part { folded: self.folded.len(), start, end, is_number: class == Class::Digit };
        let before = self.parts.last().map_or(start, |part| part.end);
        let is_number_change = (class == Class::Digit) != (self.last == Class::Digit);
        if self.parts.is_empty() || is_number_change || (self.last, class) == (Class::Lower, Class::Upper) {
            self.begin(part);
        } else if (self.last, class) == (Class::Upper, Class::Lower) {
            // `HTTPServer`: the last of several capitals begins the next part.
            if self.parts.last().is_some_and(|part| part.folded < self.last_as_part.folded) {
                if let Some(part) = self.parts.last_mut() {
                    part.end = self.last_before;
                }
                self.begin(self.last_as_part);
            }
        }
        self.extend(end);
        fold_case(c, &mut self.folded);
        (self.last, self.last_as_part, self.last_before) = (class, part, before);
    }

    fn begin(&mut self, part: Part) {
        if self.parts.len() < PARTS_MAX {
            self.parts.push(part);
        } else {
            self.too_many = true;
        }
    }

    fn extend(&mut self, end: usize) {
        if let Some(part) = self.parts.last_mut() {
            part.end = end;
        }
    }

    /// Shows the run's words.
    fn flush(&mut self) {
        let unspaced = self.last == Class::Unspaced;
        self.last = Class::Separator;
        let (Some(first), Some(last)) = (self.parts.first(), self.parts.last()) else { return };
        let position = self.position;
        let mut emit = |parts: &[Part], place: usize, span: usize, to: usize| {
            if let (Some(first), Some(last)) = (parts.first(), parts.last()) {
                let text = &self.folded[first.folded..to];
                let [place, span] = [place, span].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
                let word = Word { text, position: position + place, span, start: first.start, end: last.end, unspaced };
                (self.on_word)(word);
            }
        };
        let (count, length) = (self.parts.len(), self.folded.len());
        if self.too_many {
            let whole = Part { end: last.end, ..*first };
            emit(&[whole], 0, 1, length);
            self.position += 1;
        } else {
            if count > 1 {
                emit(&self.parts, 0, count, length);
            }
            let end_of = |index: usize| self.parts.get(index + 1).map_or(length, |next| next.folded);
            let mut stretch_end = 0;
            for index in 0..count {
                let letters = self.parts[index..].iter().take_while(|part| !part.is_number).count();
                if index >= stretch_end && letters > 1 {
                    stretch_end = index + letters;
                    if letters < count {
                        emit(&self.parts[index..stretch_end], index, letters, end_of(stretch_end - 1));
                    }
                }
                emit(&self.parts[index..=index], index, 1, end_of(index));
            }
            self.position += u32::try_from(count).unwrap_or(u32::MAX);
        }
        self.parts.clear();
        self.folded.clear();
        self.too_many = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::texts::any_text;
    use super::*;
    use proptest::prelude::*;

    /// The words of one place each, and in brackets what stands whole over several.
    fn shown(text: &str) -> String {
        let shown = analyse(text).into_iter().map(|token| match token.span {
            1 => token.text,
            span => format!("[{} {span}]", token.text),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn words_are_what_a_reader_takes_for_words() {
        for (text, expected) in [
            ("", ""),
            (" \0\n()\"-*: ", ""),
            ("Hello, World! 42", "hello world 42"),
            ("don't DON’T", "don t don t"),
            ("snake_case kebab-case src/main.rs", "snake case kebab case src main rs"),
            ("iPhone GitHub getUserById", "[iphone 2] i phone [github 2] git hub [getuserbyid 4] get user by id"),
            ("HTTPServer parseJSON JSON", "[httpserver 2] http server [parsejson 2] parse json json"),
            ("gpt4 GPT-4 utf8 3D", "[gpt4 2] gpt 4 gpt 4 [utf8 2] utf 8 [3d 2] 3 d"),
            ("v1.2.3", "[v1 2] v 1 2 3"),
            ("OAuth2", "[oauth2 3] [oauth 2] o auth 2"),
            ("C++ and C# for $5.00", "c and c for 5 00"),
            ("aB1aB1aB1aB1aB1", "ab1ab1ab1ab1ab1"),
            ("Straße STRASSE ﬁn İstanbul ISPARTA ısı", "strasse strasse fin istanbul isparta isi"),
            ("Crème brûlée, à l’été; cœur", "creme brulee a l ete coeur"),
            ("ΣΊΣΥΦΟΣ Σίσυφος ΐ", "σισυφοσ σισυφοσ ι"),
            ("Ёлка ещё йод", "елка еще иод"),
            ("Đường phố Việt Nam", "duong pho viet nam"),
            ("smørrebrød łódź", "smorrebrod lodz"),
            ("مُحَمَّد كتـــاب أحمد", "محمد كتاب احمد"),
            ("שָׁלוֹם", "שלום"),
            ("हिन्दी में", "हिन्दी में"),
            ("我喜欢机器", "我 喜 欢 机 器"),
            ("iPhone手机2024年", "[iphone 2] i phone 手 机 2024 年"),
            ("ガ ｶﾞ カ\u{3099} がっこう", "ガ ガ ガ が っ こ う"),
            ("한국 \u{1112}\u{1161}\u{11AB}국", "한 국 한 국"),
            ("ก่อน น้ำ", "ก่ อ น น้\u{E4D} า"),
            ("ＡＢＣ　１２", "abc 12"),
            ("½ x² ㎏ iPhone™ ①", "1 2 [x2 2] x 2 kg [iphone 2] i phone 1"),
            ("Donau\u{AD}dampf e\u{301}te\u{301} caf\u{e9}1", "donaudampf ete [cafe1 2] cafe 1"),
            ("good👍🏽👨‍👩‍👧❤️🇩🇪🇫🇷!", "good 👍 👨 👩 👧 ❤ 🇩🇪 🇫🇷"),
            ("1️⃣ \u{301}\u{94D} a\u{E33}", "1 a\u{E4D} า"),
            ("\u{FDFA}", "صلى الله عليه وسلم"),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_word_knows_the_bytes_it_was_made_from() {
        for (text, expected) in [
            ("Oh, iPhone7!", vec!["Oh", "iPhone7", "iPhone", "i", "Phone", "7"]),
            ("éa\u{AD}B HTTPServer", vec!["éa\u{AD}B", "éa\u{AD}", "B", "HTTPServer", "HTTP", "Server"]),
            ("ｶﾞ①½", vec!["ｶﾞ", "①½", "½"]),
            ("😀🇩🇪น้ำ", vec!["😀", "🇩🇪", "น้ำ", "ำ"]),
        ] {
            let tokens = analyse(text);
            let texts: Vec<&str> = tokens.iter().map(|token| &text[token.bytes.clone()]).collect();
            assert_eq!(texts[..expected.len().min(texts.len())], expected, "{text}");
        }
    }

    #[test]
    fn folding_every_character_again_changes_nothing() {
        for c in '\0'..=char::MAX {
            for token in analyse(&c.to_string()) {
                assert_again(&token.text);
            }
        }
    }

    #[test]
    fn the_version_stands_for_what_becomes_of_every_character() {
        use sha2::{Digest as _, Sha256};
        // Alone, and between letters: what it is made of, and whether it parts or joins them.
        let mut digest = Sha256::new();
        for c in '\0'..=char::MAX {
            for text in [c.to_string(), format!("a{c}B1")] {
                for token in analyse(&text) {
                    digest.update(format!("{} {} {}\n", token.text, token.position, token.span));
                }
                digest.update("\n");
            }
        }
        let digest: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            (ANALYSER_VERSION, digest.as_str()),
            (1, "101147f60efc7991"),
            "the analyser, or Unicode's tables in std or unicode-normalization, make other words of some character: \
             raise ANALYSER_VERSION by one, so that indexes are made anew, and note the new pair here"
        );
    }

    #[track_caller]
    fn assert_again(folded: &str) {
        let again = analyse(folded);
        assert_eq!(again.first().map(|token| &*token.text), Some(folded), "{:?}", folded.chars().collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn words_are_in_order_and_lie_in_the_text(text in any_text()) {
            let tokens = analyse(&text);
            let mut places = 0;
            for token in &tokens {
                prop_assert!(!token.text.is_empty() && token.span >= 1);
                prop_assert!(text.get(token.bytes.clone()).is_some_and(|bytes| !bytes.is_empty()));
                prop_assert!(!token.text.contains([' ', '·', '\0']));
                prop_assert!(token.position <= places);
                places = places.max(token.position + 1);
            }
            prop_assert!(tokens.is_sorted_by_key(|token| token.position));
            prop_assert!(tokens.iter().all(|token| token.position + token.span <= places));
        }

        #[test]
        fn folding_again_changes_nothing(text in any_text()) {
            for token in analyse(&text) {
                assert_again(&token.text);
            }
        }
    }
}
