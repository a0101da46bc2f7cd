//! Folding: what of a character counts when words are compared, and what kind of character it is.
//!
//! A cluster is a character with the marks that follow it. It is decomposed for compatibility (NFKD), loses marks that a
//! reader may leave out, is composed again, and its case is folded in full, so that `Straße` is `STRASSE` and `ﬁ` is `fi`.

use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::{decompose_compatible, is_combining_mark};

/// What a character is to words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Stands between words.
    Separator,
    /// A letter that is not upper case, or has no case.
    Lower,
    /// A letter of upper case.
    Upper,
    /// A digit or another number.
    Digit,
    /// A character of a script that puts no spaces between words.
    Unspaced,
    /// An emoji or another picture.
    Pictograph,
    /// Half a flag.
    Flag,
    /// Belongs to the character before it.
    Mark,
}

/// Bytes of the cluster that a text begins with; 0 for an empty text.
pub(super) fn cluster_length(text: &str) -> usize {
    let mut chars = text.chars();
    let Some(base) = chars.next() else { return 0 };
    let is_jamo = is_leading_jamo(base);
    let followers = chars.take_while(|c| follows(*c) || is_jamo && is_following_jamo(*c));
    base.len_utf8() + followers.map(char::len_utf8).sum::<usize>()
}

/// Shows the characters that a cluster is made of, before their case is folded.
pub(super) fn fold_cluster(cluster: &str, emit: &mut impl FnMut(Class, char)) {
    let Some(base) = cluster.chars().next() else { return };
    if !(base.is_alphanumeric() || follows(base) || is_squared_word(base)) {
        emit(symbol_class(base), base);
    } else if cluster.len() == base.len_utf8() {
        fold_alone(base, emit);
    } else {
        cluster.nfkd().filter(|c| !is_left_out(*c)).nfc().for_each(|c| emit(class(c), c));
    }
}

/// A character without marks: most need no buffer, and those of the common alphabets no look-up.
fn fold_alone(base: char, emit: &mut impl FnMut(Class, char)) {
    if let Some(Alone::One(class, c)) = COMMON.get(base as usize).map(|common| common.alone) {
        return emit(class, c);
    }
    if is_plainly_unspaced(base) {
        return emit(Class::Unspaced, base);
    }
    match decompose_alone(base) {
        Alone::Nothing => {}
        Alone::One(class, c) => emit(class, c),
        Alone::Many => std::iter::once(base).nfkd().filter(|c| !is_left_out(*c)).nfc().for_each(|c| emit(class(c), c)),
    }
}

/// What a character without marks is made of.
#[derive(Clone, Copy, Debug)]
enum Alone {
    Nothing,
    One(Class, char),
    Many,
}

fn decompose_alone(base: char) -> Alone {
    let mut alone = Alone::Nothing;
    decompose_compatible(base, |c| {
        if !is_left_out(c) {
            alone = if matches!(alone, Alone::Nothing) { Alone::One(class(c), c) } else { Alone::Many };
        }
    });
    alone
}

/// What is made of a character of the common alphabets.
struct Common {
    alone: Alone,
    /// With its case folded, if that is one character.
    folded: Option<char>,
}

/// The characters up to Arabic, worked out once.
static COMMON: LazyLock<Vec<Common>> = LazyLock::new(|| {
    let common = |c: char| {
        let mut folded = String::new();
        fold_any_case(c, &mut folded);
        let mut chars = folded.chars();
        let folded = chars.next().filter(|_| chars.next().is_none());
        Common { alone: decompose_alone(c), folded }
    };
    ('\0'..'\u{700}').map(common).collect()
});

/// Most of Han, kana and Hangul: letters without case and compatibility forms.
fn is_plainly_unspaced(c: char) -> bool {
    matches!(c, '\u{3041}'..='\u{3096}' | '\u{30A1}'..='\u{30FA}' | '\u{4E00}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7A3}')
}

/// Appends a character with its case folded. Letters with a stroke, which Unicode does not decompose, lose it.
pub(super) fn fold_case(c: char, to: &mut String) {
    if c.is_ascii() {
        to.push(c.to_ascii_lowercase());
    } else if let Some(folded) = COMMON.get(c as usize).and_then(|common| common.folded) {
        to.push(folded);
    } else if is_plainly_unspaced(c) {
        to.push(c);
    } else {
        fold_any_case(c, to);
    }
}

fn fold_any_case(c: char, to: &mut String) {
    // By way of lower case first: `ẞ` has no other upper case, `ß` has.
    for folded in c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase) {
        match folded {
            'đ' => to.push('d'),
            'ħ' => to.push('h'),
            'ł' => to.push('l'),
            'ø' => to.push('o'),
            'ŧ' => to.push('t'),
            'æ' => to.push_str("ae"),
            'œ' => to.push_str("oe"),
            _ if is_left_out(folded) => {}
            _ => to.push(folded),
        }
    }
}

/// The kind of a decomposed character.
fn class(c: char) -> Class {
    if c.is_ascii() {
        return ascii_class(c);
    }
    if is_combining_mark(c) {
        Class::Mark
    } else if is_unspaced(c) && c.is_alphabetic() {
        Class::Unspaced
    } else if c.is_uppercase() {
        Class::Upper
    } else if c.is_alphabetic() {
        Class::Lower
    } else if c.is_numeric() {
        Class::Digit
    } else {
        Class::Separator
    }
}

fn ascii_class(c: char) -> Class {
    match c {
        'a'..='z' => Class::Lower,
        'A'..='Z' => Class::Upper,
        '0'..='9' => Class::Digit,
        _ => Class::Separator,
    }
}

fn symbol_class(c: char) -> Class {
    match c {
        '\u{1F1E6}'..='\u{1F1FF}' => Class::Flag,
        '\u{231A}'..='\u{231B}'
        | '\u{2328}'
        | '\u{23CF}'
        | '\u{23E9}'..='\u{23FA}'
        | '\u{25AA}'..='\u{25FE}'
        | '\u{2600}'..='\u{27BF}'
        | '\u{2B05}'..='\u{2B55}'
        | '\u{1F000}'..='\u{1FAFF}' => Class::Pictograph,
        _ => Class::Separator,
    }
}

/// Whether a character belongs to the one before it.
pub(super) fn follows(c: char) -> bool {
    match c {
        '\0'..'\u{300}' => c == '\u{AD}',
        '\u{370}'..='\u{482}' | '\u{3041}'..='\u{3098}' | '\u{309B}'..='\u{A66E}' | '\u{AC00}'..='\u{D7A3}' => false,
        '\u{1F000}'..='\u{1F3FA}' | '\u{1F400}'..='\u{1FAFF}' => false,
        '\u{FF9E}'..='\u{FF9F}' => true,
        _ => is_invisible(c) || is_combining_mark(c),
    }
}

/// Characters that have no width, and those that choose the look of an emoji.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{180B}'..='\u{180F}' | '\u{200C}'..='\u{200F}' | '\u{202A}'..='\u{202E}'
        | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206F}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}'
        | '\u{1F3FB}'..='\u{1F3FF}' | '\u{E0000}'..='\u{E0FFF}')
}

/// Marks that people leave out when they type: diacritics of Latin, Greek and Cyrillic letters, Hebrew points, Arabic
/// vowel signs and tatweel. Vowel signs of Thai, Devanagari and the like are the substance of a word, and stay.
fn is_left_out(c: char) -> bool {
    if c < '\u{AD}' {
        return false;
    }
    let latin = matches!(c,
        '\u{300}'..='\u{36F}' | '\u{483}'..='\u{489}' | '\u{1AB0}'..='\u{1AFF}' | '\u{1DC0}'..='\u{1DFF}'
        | '\u{20D0}'..='\u{20FF}' | '\u{FE20}'..='\u{FE2F}');
    let hebrew = matches!(c,
        '\u{591}'..='\u{5BD}' | '\u{5BF}' | '\u{5C1}'..='\u{5C2}' | '\u{5C4}'..='\u{5C5}' | '\u{5C7}');
    let arabic = matches!(c,
        '\u{610}'..='\u{61A}' | '\u{640}' | '\u{64B}'..='\u{65F}' | '\u{670}' | '\u{6D6}'..='\u{6DC}'
        | '\u{6DF}'..='\u{6E4}' | '\u{6E7}'..='\u{6E8}' | '\u{6EA}'..='\u{6ED}' | '\u{8CA}'..='\u{8E1}'
        | '\u{8E3}'..='\u{8FF}');
    latin || hebrew || arabic || is_invisible(c)
}

/// Scripts that put no spaces between words.
pub(super) fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{E00}'..='\u{109F}' // Thai, Lao, Tibetan, Myanmar
        | '\u{1100}'..='\u{11FF}' | '\u{A960}'..='\u{A97F}' | '\u{AC00}'..='\u{D7FF}' // Hangul
        | '\u{1780}'..='\u{17FF}' | '\u{1950}'..='\u{19FF}' | '\u{1A20}'..='\u{1AAF}' // Khmer, Tai, Lanna
        | '\u{1B00}'..='\u{1B7F}' | '\u{A980}'..='\u{A9FF}' | '\u{AA60}'..='\u{AADF}' // Balinese, Javanese, Tai Viet
        | '\u{2E80}'..='\u{2FDF}' | '\u{3005}'..='\u{3007}' | '\u{3021}'..='\u{303C}' // Han
        | '\u{3040}'..='\u{31FF}' | '\u{3400}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' // Kana, Han
        | '\u{16FE0}'..='\u{18DFF}' | '\u{1AFF0}'..='\u{1B2FF}' | '\u{20000}'..='\u{3FFFF}') // Tangut, Kana, Han
}

/// Words and units that are drawn in one square or circle, such as `㎏`.
fn is_squared_word(c: char) -> bool {
    matches!(c, '\u{3200}'..='\u{33FF}')
}

fn is_leading_jamo(c: char) -> bool {
    matches!(c, '\u{1100}'..='\u{115F}' | '\u{A960}'..='\u{A97C}' | '\u{AC00}'..='\u{D7A3}')
}

fn is_following_jamo(c: char) -> bool {
    matches!(c, '\u{1160}'..='\u{11FF}' | '\u{D7B0}'..='\u{D7FB}')
}
