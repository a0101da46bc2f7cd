//! The query language of people: words, `"phrases"`, `-without`, `begin*`, `role:user`, `in:name`. There are no errors:
//! what is none of these is words.

use super::phrase::Phrase;
use crate::limits::SEARCH_WORDS_MAX;

/// What a query asks for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// All of these.
    pub(super) wanted: Vec<Phrase>,
    /// None of these.
    pub(super) excluded: Vec<Phrase>,
    /// All of these in the session's name.
    pub(super) names: Vec<Phrase>,
    /// One of these roles, in lower case; any, if there are none.
    pub(super) roles: Vec<String>,
}

/// Reads a query; its first [`SEARCH_WORDS_MAX`] words count.
pub(super) fn read(query: &str) -> Asked {
    let mut asked = Asked::default();
    let mut words_left = SEARCH_WORDS_MAX;
    let mut rest = query.trim_start();
    while !rest.is_empty() && words_left > 0 {
        let (piece, after) = next_piece(rest);
        rest = after.trim_start();
        if let (Kind::Role, false) = (&piece.kind, piece.text.is_empty()) {
            asked.roles.push(piece.text.to_lowercase());
            words_left -= 1;
            continue;
        }
        let text = if piece.is_quoted { piece.text } else { piece.text.trim_end_matches('*') };
        let is_prefix = text.len() < piece.text.len();
        let Some(phrase) = Phrase::read(text, is_prefix, words_left) else { continue };
        words_left -= phrase.places;
        let list = match piece.kind {
            Kind::Excluded => &mut asked.excluded,
            Kind::Name => &mut asked.names,
            Kind::Wanted | Kind::Role => &mut asked.wanted,
        };
        if !list.contains(&phrase) {
            list.push(phrase);
        }
    }
    asked
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Wanted,
    Excluded,
    Name,
    Role,
}

/// What stands between two spaces, or between two quotes.
#[derive(Debug)]
struct Piece<'a> {
    kind: Kind,
    text: &'a str,
    is_quoted: bool,
}

/// The first piece of a query that is not empty, and what follows it.
fn next_piece(query: &str) -> (Piece<'_>, &str) {
    for (sign, kind) in [("role:", Kind::Role), ("in:", Kind::Name), ("-", Kind::Excluded)] {
        let Some(value) = without_prefix(query, sign) else { continue };
        // `--verbose` is a word, and so is a sign with nothing behind it.
        let is_alone = value.is_empty() || value.starts_with(char::is_whitespace) || value.starts_with('-');
        if is_alone {
            continue;
        }
        let (text, is_quoted, rest) = value_of(value);
        if kind == Kind::Excluded || text.contains(char::is_alphanumeric) {
            return (Piece { kind, text, is_quoted }, rest);
        }
    }
    let (text, is_quoted, rest) = value_of(query);
    (Piece { kind: Kind::Wanted, text, is_quoted }, rest)
}

fn without_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// What stands in quotes here, or up to the next space.
fn value_of(text: &str) -> (&str, bool, &str) {
    if let Some(inside) = text.strip_prefix(is_quote)
        && let Some((inside, rest)) = inside.split_once(is_quote)
    {
        return (inside, true, rest);
    }
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, false, rest)
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '“' | '”' | '„' | '‟' | '«' | '»' | '＂')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The phrases of a list, with `-` between words of one place.
    fn shown(phrases: &[Phrase]) -> String {
        let shown = |phrase: &Phrase| {
            let places = (0..phrase.places).filter_map(|place| {
                let mut single = phrase.steps.iter().filter(|step| (step.from, step.to) == (place, place + 1));
                single.next().map(|step| format!("{}{}", step.text, if step.is_prefix { "*" } else { "" }))
            });
            places.collect::<Vec<_>>().join("-")
        };
        phrases.iter().map(shown).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_text_is_a_query() {
        for (query, wanted, excluded, names, roles) in [
            ("green tea", "green tea", "", "", ""),
            ("\"green tea\" hot", "green-tea hot", "", "", ""),
            ("“green tea” „a b“ «c d»", "green-tea a-b c-d", "", "", ""),
            ("\"green tea", "green tea", "", "", ""),
            ("5\" or \"big screen\"", "5 or big-screen", "", "", ""),
            ("\"a\"\"b c\"d", "a b-c d", "", "", ""),
            ("-hot -\"ice cold\" tea", "tea", "hot ice-cold", "", ""),
            ("- -- --x -\" -", "x", "", "", ""),
            ("te* te** *te t*e \"te a*\" te-* te-a*", "te* te t-e te-a te-a*", "", "", ""),
            ("role:user Role:\"The Tool\" role:a", "", "", "", "user,the tool,a"),
            ("in:trip in:\"to rome\" IN:x*", "", "", "trip to-rome x*", ""),
            ("role: in: role:! in:- :", "role in", "", "", ""),
            ("-role:user -in:a", "", "role-user in-a", "", ""),
            ("AND ( NOT tea ) OR \0", "and not tea or", "", "", ""),
            ("tea TEA \"tea\"", "tea", "", "", ""),
            ("", "", "", "", ""),
        ] {
            let asked = read(query);
            let lists = (shown(&asked.wanted), shown(&asked.excluded), shown(&asked.names), asked.roles.join(","));
            let expected = (wanted.to_owned(), excluded.to_owned(), names.to_owned(), roles.to_owned());
            assert_eq!(lists, expected, "{query:?}");
        }
    }

    #[test]
    fn words_past_the_limit_are_ignored() {
        let asked = read(&"a-b-c -x role:r in:n ".repeat(100));
        let places = |phrases: &[Phrase]| phrases.iter().map(|phrase| phrase.places).sum::<usize>();
        assert!(places(&asked.wanted) + places(&asked.excluded) + places(&asked.names) <= SEARCH_WORDS_MAX);
        let long = (0..100).map(|n| format!("w{n}x")).collect::<Vec<_>>().join("_");
        assert_eq!(read(&long).wanted[0].places, SEARCH_WORDS_MAX);
    }
}
