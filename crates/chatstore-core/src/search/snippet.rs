//! Snippets: the parts of a message that a query matched.

use std::ops::Range;

use super::TextQuery;
use super::analyser::{Word, walk};
use super::folding::{follows, is_unspaced};

/// Snippets of one message.
const SNIPPETS_MAX: usize = 3;
/// Characters of a snippet; marks that belong to its last character may come on top.
const SNIPPET_CHARS: usize = 200;
/// Characters from the first to the last match of a snippet; the rest of it is what stands around.
const MATCHES_CHARS: usize = 140;
/// Matched words that are looked at; a text of more has enough in its beginning.
const MATCHES_MAX: usize = 20_000;
/// Marks after which a character may be cut off from more: Unicode's stream-safe text has no more.
const MARKS_MAX: usize = 30;

/// A part of a message's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// The part, as it stands in the text.
    pub text: String,
    /// What of it matched: from and to which character (Unicode code points, the end is not in it).
    pub highlights: Vec<(u32, u32)>,
}

/// The best parts of `content`; its beginning if no word of the query stands in it (`None` for a
/// search by meaning alone). Empty for an empty text.
pub fn snippets(query: Option<&TextQuery>, content: &str) -> Vec<Snippet> {
    let matches = query.map_or_else(Vec::new, |query| matches(query, content));
    let mut windows = best_windows(&matches);
    if windows.is_empty() {
        windows.push(0..0);
    }
    let mut snippets = Vec::with_capacity(windows.len());
    let mut free_from = 0;
    for (index, window) in windows.iter().enumerate() {
        let shown = &matches[window.clone()];
        let free_to = windows.get(index + 1).map_or(content.len(), |next| matches[next.start].bytes.start);
        let cut = match shown {
            [] => 0..end_after(content, 0, 0, free_to),
            [first, ..] => {
                let last = shown.last().unwrap_or(first);
                around(content, first.bytes.start..last.bytes.end, free_from..free_to)
            }
        };
        free_from = cut.end;
        let cut = trim(content, cut);
        if !cut.is_empty() {
            let highlights = highlights(&content[cut.clone()], cut.start, shown);
            snippets.push(Snippet { text: content[cut].to_owned(), highlights });
        }
    }
    snippets
}

/// A matched word, or several that touch.
#[derive(Debug)]
struct Match {
    bytes: Range<usize>,
    /// The same in characters.
    chars: Range<usize>,
    /// Which of the query's phrases it is of.
    phrase: usize,
}

/// The matched words, in order and apart.
fn matches(query: &TextQuery, content: &str) -> Vec<Match> {
    let mut occurrences: Vec<(Range<usize>, usize)> = Vec::new();
    query.find_wanted(content, &mut |found| {
        if occurrences.len() < MATCHES_MAX {
            occurrences.push((found.bytes, found.phrase));
        }
    });
    occurrences.sort_unstable_by_key(|(bytes, phrase)| (bytes.start, bytes.end, *phrase));
    let mut matches: Vec<Match> = Vec::new();
    let (mut next, mut current): (usize, Option<(usize, usize)>) = (0, None);
    walk(content, &mut |word: Word<'_>| {
        while let Some((bytes, phrase)) = occurrences.get(next).filter(|(bytes, _)| bytes.start <= word.start) {
            if current.is_none_or(|(end, _)| bytes.end > end) {
                current = Some((bytes.end, *phrase));
            }
            next += 1;
        }
        let Some((_, phrase)) = current.filter(|(end, _)| word.end <= *end) else { return };
        match matches.last_mut() {
            Some(last) if last.bytes.end >= word.start => last.bytes.end = last.bytes.end.max(word.end),
            _ => matches.push(Match { bytes: word.start..word.end, chars: 0..0, phrase }),
        }
    });
    let (mut byte, mut char) = (0, 0);
    for found in &mut matches {
        let start = char + content[byte..found.bytes.start].chars().count();
        char = start + content[found.bytes.clone()].chars().count();
        byte = found.bytes.end;
        found.chars = start..char;
    }
    matches
}

/// Ranges of matches for a snippet each, in order: first what shows most of the query, then what shows most of the rest.
fn best_windows(matches: &[Match]) -> Vec<Range<usize>> {
    let mut windows: Vec<Range<usize>> = Vec::new();
    let mut shown: Vec<usize> = Vec::new();
    while windows.len() < SNIPPETS_MAX
        && let Some(window) = best_window(matches, &windows, &shown)
    {
        shown.extend(matches[window.clone()].iter().map(|found| found.phrase));
        shown.sort_unstable();
        shown.dedup();
        windows.push(window);
    }
    windows.sort_unstable_by_key(|window| window.start);
    windows
}

/// The range of free matches near each other that has the most phrases that were not shown, then the most phrases, then
/// the most matches; the first among equals.
fn best_window(matches: &[Match], taken: &[Range<usize>], shown: &[usize]) -> Option<Range<usize>> {
    let phrases = matches.iter().map(|found| found.phrase + 1).max()?;
    let is_taken = |index: usize| taken.iter().any(|window| window.contains(&index));
    let mut counts = vec![0_usize; phrases];
    let (mut fresh, mut distinct, mut start) = (0, 0, 0);
    let mut best = None;
    for (end, found) in matches.iter().enumerate() {
        let is_out = |start: usize| found.chars.end - matches[start].chars.start > MATCHES_CHARS && start < end;
        if !is_taken(end) {
            let count = &mut counts[found.phrase];
            distinct += usize::from(*count == 0);
            fresh += usize::from(*count == 0 && shown.binary_search(&found.phrase).is_err());
            *count += 1;
        }
        while start < end && (is_out(start) || is_taken(start) || is_taken(end)) {
            if !is_taken(start) {
                let count = &mut counts[matches[start].phrase];
                *count -= 1;
                distinct -= usize::from(*count == 0);
                fresh -= usize::from(*count == 0 && shown.binary_search(&matches[start].phrase).is_err());
            }
            start += 1;
        }
        let value = (fresh, distinct, end + 1 - start);
        if !is_taken(end) && !is_taken(start) && best.as_ref().is_none_or(|(most, _)| value > *most) {
            best = Some((value, start..end + 1));
        }
    }
    best.map(|(_, window)| window)
}

/// A snippet's bytes: the matches with some of what stands around them.
fn around(content: &str, matches: Range<usize>, free: Range<usize>) -> Range<usize> {
    let taken = content[matches.clone()].chars().take(SNIPPET_CHARS).count();
    let before = (SNIPPET_CHARS - taken) / 2;
    let earliest = content[free.start..matches.start].char_indices().rev().take(before).last();
    let earliest = earliest.map_or(matches.start, |(at, _)| free.start + at);
    let mut borders = content[earliest..matches.start].char_indices().map(|(at, _)| earliest + at);
    let start = borders.find(|at| is_word_border(content, *at)).unwrap_or(matches.start);
    start..end_after(content, start, matches.end, free.end)
}

/// Where a snippet that begins at `start` ends: at a word's border, not before `matches_end` if there is room, and not
/// after `free_to`.
fn end_after(content: &str, start: usize, matches_end: usize, free_to: usize) -> usize {
    let mut latest = content[start..free_to].char_indices().nth(SNIPPET_CHARS).map_or(free_to, |(at, _)| start + at);
    let earliest = matches_end.clamp(start, latest);
    let back = |from: usize| content[start..from].char_indices().rev().map(|(at, _)| start + at);
    let from_latest = std::iter::once(latest).chain(back(latest)).take_while(|at| *at >= earliest.max(start + 1));
    let mut borders = from_latest;
    if let Some(border) = borders.find(|at| is_word_border(content, *at)) {
        return border;
    }
    // A word longer than the snippet is cut, but not between a character and its marks.
    let within = std::iter::once(latest).chain(back(latest).take(MARKS_MAX));
    let mut whole = within.filter(|at| *at > start && is_cluster_border(content, *at));
    latest = whole.next().unwrap_or(latest);
    latest
}

fn around_border(content: &str, at: usize) -> Option<(char, char)> {
    content[..at].chars().next_back().zip(content[at..].chars().next())
}

/// Whether no word goes on over this place.
fn is_word_border(content: &str, at: usize) -> bool {
    let Some((before, after)) = around_border(content, at) else { return true };
    let in_word = |c: char| (c.is_alphanumeric() || follows(c)) && !is_unspaced(c);
    is_cluster_border(content, at) && !(in_word(before) && in_word(after))
}

/// Whether a character's marks do not go on over this place, nor an emoji or a flag.
fn is_cluster_border(content: &str, at: usize) -> bool {
    let is_flag = |c: char| matches!(c, '\u{1F1E6}'..='\u{1F1FF}');
    around_border(content, at)
        .is_none_or(|(before, after)| !(follows(after) || before == '\u{200D}' || is_flag(before) && is_flag(after)))
}

/// Without the space at both ends.
fn trim(content: &str, cut: Range<usize>) -> Range<usize> {
    let text = &content[cut.clone()];
    let start = cut.start + (text.len() - text.trim_start().len());
    start..start + text.trim().len()
}

/// Where the matches stand in a snippet that begins at byte `start` of the text.
fn highlights(snippet: &str, start: usize, matches: &[Match]) -> Vec<(u32, u32)> {
    let (mut byte, mut char) = (0, 0_usize);
    let mut ranges = Vec::with_capacity(matches.len());
    for found in matches {
        let from = found.bytes.start.saturating_sub(start).max(byte);
        let to = (found.bytes.end - start).min(snippet.len());
        if from >= to {
            continue;
        }
        let first = char + snippet[byte..from].chars().count();
        char = first + snippet[from..to].chars().count();
        byte = to;
        ranges.push([first, char].map(|n| u32::try_from(n).unwrap_or(u32::MAX)).into());
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::super::analyser::analyse;
    use super::super::texts::{any_query, any_text};
    use super::*;
    use proptest::prelude::*;

    /// The snippets, with what is highlighted in brackets.
    fn shown(query: &str, content: &str) -> Vec<String> {
        let snippets = snippets(Some(&TextQuery::parse(query)), content);
        snippets.iter().map(shown_snippet).collect()
    }

    fn shown_snippet(snippet: &Snippet) -> String {
        let mut shown = String::new();
        for (at, c) in (0..).zip(snippet.text.chars()) {
            for (from, to) in &snippet.highlights {
                shown.push_str(if *to == at { "]" } else { "" });
                shown.push_str(if *from == at { "[" } else { "" });
            }
            shown.push(c);
        }
        let end = u32::try_from(snippet.text.chars().count()).unwrap();
        shown + if snippet.highlights.iter().any(|(_, to)| *to == end) { "]" } else { "" }
    }

    #[test]
    fn what_matched_is_highlighted() {
        for (query, content, expected) in [
            ("tea", " Green Tea, teapot ", "Green [Tea], teapot"),
            ("tea*", "Green Tea, teapot", "Green [Tea], [teapot]"),
            ("\"green tea\" hot", "green TEA is hot, not green", "[green] [TEA] is [hot], not green"),
            ("tea -hot role:user in:day", "hot tea day", "hot [tea] day"),
            ("iphone", "my iPhone!", "my [iPhone]!"),
            ("phone", "my iPhone!", "my i[Phone]!"),
            ("i-phone", "my iPhone!", "my [iPhone]!"),
            ("src/main.rs", "in src/main.rs:3", "in [src]/[main].[rs]:3"),
            ("strasse", "die Stra\u{DF}e", "die [Stra\u{DF}e]"),
            ("ete", "l’e\u{301}te\u{301}.", "l’[e\u{301}te\u{301}]."),
            ("机器", "我喜欢机器学习", "我喜欢[机器]学习"),
            ("👍", "so👍🏽so", "so[👍🏽]so"),
            ("coffee", "green tea", "green tea"),
            ("", "green tea", "green tea"),
        ] {
            assert_eq!(shown(query, content), [expected], "{query}");
        }
        for empty in ["", " \n\t "] {
            assert_eq!(shown("tea", empty), Vec::<String>::new());
            assert_eq!(snippets(None, empty), []);
        }
    }

    #[test]
    fn a_long_text_is_shown_around_its_best_matches() {
        let filler = "lorem ipsum dolor sit amet ".repeat(40);
        let text = format!("{filler}one tea {filler}green tea leaves {filler}tea {filler}green {filler}");
        let shown = shown("green tea", &text);
        assert_eq!(shown.len(), 3, "{shown:?}");
        assert!(shown[1].contains("amet [green] [tea] leaves lorem"), "{shown:?}");
        assert!(shown.iter().all(|snippet| (100..220).contains(&snippet.chars().count())));
        let words: Vec<&str> = "lorem ipsum dolor sit amet one [tea] [green] leaves".split(' ').collect();
        assert!(shown.iter().all(|snippet| snippet.split_whitespace().all(|word| words.contains(&word))), "{shown:?}");
        assert_eq!(snippets(None, &filler)[0].text, filler[..200].trim_end());
    }

    #[test]
    fn each_word_of_the_query_is_shown_before_one_is_shown_twice() {
        let filler = "lorem ipsum dolor sit amet ".repeat(20);
        let text = format!("tea tea tea {filler} tea tea {filler} tea tea {filler} green {filler}");
        assert!(shown("green tea", &text).iter().any(|snippet| snippet.contains("[green]")));
    }

    #[test]
    fn a_word_without_end_is_cut_but_not_within_a_character() {
        let long = "e\u{301}".repeat(5_000);
        for (query, content) in [("", &long), (&*long, &long), ("x", &format!("{long} x {long}"))] {
            for snippet in snippets(Some(&TextQuery::parse(query)), content) {
                assert!(snippet.text.chars().count() <= SNIPPET_CHARS + 1, "{}", snippet.text.chars().count());
                assert!(!snippet.text.starts_with('\u{301}') && !snippet.text.ends_with('e'));
            }
        }
        assert!(!snippets(None, &"\u{301}".repeat(5_000)).is_empty());
        assert_eq!(snippets(None, &"🇩🇪".repeat(500)).len(), 1);
    }

    proptest! {
        #[test]
        fn highlights_are_words_of_the_query(text in any_text(), fillers in 0..3_usize, query in any_query()) {
            let content = vec![text.clone(); 1 + fillers].join(&" lorem ipsum".repeat(fillers * 10));
            let parsed = TextQuery::parse(&query);
            let snippets = snippets(Some(&parsed), &content);
            prop_assert_eq!(snippets.is_empty(), content.trim().is_empty());
            prop_assert!(snippets.len() <= SNIPPETS_MAX);
            let wanted: Vec<_> = analyse(&query).into_iter().map(|token| token.text).collect();
            let mut from = 0;
            for snippet in &snippets {
                let found = content[from..].find(&snippet.text);
                prop_assert!(found.is_some());
                from += found.unwrap_or_default();
                let chars: Vec<char> = snippet.text.chars().collect();
                prop_assert!(chars.len() <= SNIPPET_CHARS + MARKS_MAX);
                prop_assert!(snippet.highlights.is_sorted_by(|a, b| a.1 < b.0));
                for (start, end) in &snippet.highlights {
                    prop_assert!(start < end && *end as usize <= chars.len());
                    let highlighted: String = chars[*start as usize..*end as usize].iter().collect();
                    let folded = analyse(&highlighted);
                    prop_assert!(folded.iter().any(|token| wanted.iter().any(|wanted| token.text.starts_with(wanted))
                        || wanted.iter().any(|wanted| wanted.starts_with(&token.text))), "{highlighted:?} {wanted:?}");
                }
            }
            let is_found = parsed.score(&super::super::query::Candidate { content: &content, role: "a", session_name: "a b 我" });
            prop_assert!(is_found.is_none() || snippets.iter().any(|snippet| !snippet.highlights.is_empty()));
        }

        #[test]
        fn no_text_is_too_strange(text in any::<String>(), query in any::<String>()) {
            prop_assert_eq!(snippets(Some(&TextQuery::parse(&query)), &text).is_empty(), text.trim().is_empty());
        }
    }
}
