//! A long text as parts that a model takes whole, so that nothing at its end is lost.

/// Parts of one text; of a longer one the parts grow instead. The longest content of the default settings is
/// cut as small as a quarter of the default size.
const PARTS_MAX: usize = 8_192;
/// This share of a part stands in the part before, too: what is cut apart is whole in one of them.
const OVERLAP_DIVISOR: usize = 10;

/// Cuts a text into parts of at most `bytes_max` bytes that overlap, at the ends of paragraphs, sentences or words
/// where there are any. Together they hold every character; a text of at most that length is its only part.
pub(crate) fn parts(text: &str, bytes_max: usize) -> Vec<&str> {
    // Even a part that is cut early, at three quarters, goes on by six tenths of its size.
    let bytes_max = bytes_max.max(text.len() / PARTS_MAX * 10 / 6 + 1).max(16);
    let mut parts = Vec::new();
    let mut start = 0;
    while text.len() - start > bytes_max {
        let end = cut(text, start + bytes_max / 4 * 3, start + bytes_max);
        parts.push(&text[start..end]);
        start = resume(text, end - bytes_max / OVERLAP_DIVISOR, end);
    }
    parts.push(&text[start..]);
    parts
}

/// The best place between two to end a part.
fn cut(text: &str, least: usize, most: usize) -> usize {
    let (least, most) = (text.ceil_char_boundary(least), text.floor_char_boundary(most));
    let window = &text[least..most];
    let after = |found: Option<(usize, &str)>| found.map(|(at, border)| least + at + border.len());
    after(window.rmatch_indices("\n\n").next())
        .or_else(|| after(window.rmatch_indices('\n').next()))
        .or_else(|| sentence_end(window).map(|at| least + at))
        .or_else(|| after(window.rmatch_indices(char::is_whitespace).next()))
        .unwrap_or(most)
}

/// Behind the last sentence of a text.
fn sentence_end(text: &str) -> Option<usize> {
    text.rmatch_indices(['.', '!', '?', '。', '！', '？', '।', '؟']).find_map(|(at, mark)| {
        let end = at + mark.len();
        // A full stop is one only before a blank, but for scripts without blanks.
        let is_end = !mark.is_ascii() || text[end..].starts_with(char::is_whitespace);
        is_end.then_some(end)
    })
}

/// Where the next part begins: at a word, if one begins between the two places.
fn resume(text: &str, least: usize, end: usize) -> usize {
    let least = text.floor_char_boundary(least);
    let word = text[least..end].find(char::is_whitespace).map(|at| text.ceil_char_boundary(least + at + 1));
    word.filter(|word| *word < end).unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text that parts were cut from, given where each begins.
    fn covers(text: &str, parts: &[&str]) -> bool {
        let place = |part: &&str| part.as_ptr() as usize - text.as_ptr() as usize;
        let starts_and_ends = parts.windows(2).all(|pair| {
            let end = place(&pair[0]) + pair[0].len();
            place(&pair[0]) < place(&pair[1]) && place(&pair[1]) <= end
        });
        let last = parts[parts.len() - 1];
        starts_and_ends && place(&parts[0]) == 0 && place(&last) + last.len() == text.len()
    }

    #[test]
    fn a_short_text_is_its_only_part() {
        assert_eq!(parts("short", 100), ["short"]);
        assert_eq!(parts("", 100), [""]);
    }

    #[test]
    fn parts_end_with_sentences_and_begin_with_words() {
        let sentence = "The quick brown fox jumps over the lazy dog. ";
        let text = sentence.repeat(20);
        let parts = parts(&text, 200);
        assert!(covers(&text, &parts) && parts.len() > 4);
        for pair in parts.windows(2) {
            assert!(pair[0].ends_with("dog."), "{pair:?}");
            assert!(text.contains(&format!(" {}", pair[1].split(' ').next().unwrap())), "{pair:?}");
        }
    }

    #[test]
    fn a_huge_text_has_a_bounded_number_of_parts() {
        for unit in ["x", "wort ", "漢字。", "a.b\n\n"] {
            let text = unit.repeat((4 << 20) / unit.len());
            let parts = parts(&text, 100);
            assert!(parts.len() <= PARTS_MAX && covers(&text, &parts), "{unit:?}: {}", parts.len());
        }
    }

    #[test]
    fn the_longest_text_of_the_default_settings_keeps_to_the_set_size() {
        for unit in ["x", "wort ", "漢字。", "a.b\n\n"] {
            let text = unit.repeat((1 << 20) / unit.len());
            for bytes_max in [1_000, 250] {
                let longest = parts(&text, bytes_max).iter().map(|part| part.len()).max().unwrap();
                assert!(longest <= bytes_max, "{unit:?}: {longest}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_the_text(text in "(\\PC|[ .\n]|漢){0,400}", bytes_max in 16_usize..200) {
            let parts = parts(&text, bytes_max);
            prop_assert!(covers(&text, &parts), "{parts:?}");
            prop_assert!(parts.iter().all(|part| part.len() <= bytes_max));
        }
    }
}
