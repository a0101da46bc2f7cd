//! Names that are nearly those of settings.

use super::ConfigError;
use super::sources::KEYS;

/// Shorter names are near to too many others.
const TYPO_LEN_MIN: usize = 8;

/// Stops at a variable that is nearly a setting: it would be ignored without a word.
pub(super) fn refuse_typos<'a>(names: impl Iterator<Item = &'a String>, place: &str) -> Result<(), ConfigError> {
    let known: Vec<_> = KEYS.iter().map(|key| key.env.as_str()).chain(["CONFIG_FILE", "ENV_FILE"]).collect();
    for name in names {
        // A name that differs by more than two letters in length cannot be near; this also bounds the work.
        let candidates =
            known.iter().copied().filter(|known| known.len() >= TYPO_LEN_MIN && known.len().abs_diff(name.len()) <= 2);
        if name.len() < TYPO_LEN_MIN || known.contains(&name.as_str()) {
            continue;
        }
        if let Some((nearest, 1..=2)) = nearest(name, candidates) {
            let (variable, nearest) = (name.clone(), nearest.to_owned());
            return Err(ConfigError::Typo { variable, place: place.to_owned(), nearest });
        }
    }
    Ok(())
}

/// The known name with the least distance, and that distance.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<(&'a str, usize)> {
    known.map(|known| (known, distance(name, known))).min_by_key(|&(_, far)| far)
}

/// Letters to insert, drop, change or swap with their neighbour to turn one name into the other.
fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().collect();
    let other: Vec<char> = other.chars().collect();
    // `rows[i][j]`: the distance between the first `i` letters of one and the first `j` of the other.
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let same = one[i - 1] == other[j - 1];
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + usize::from(!same));
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances_count_swaps_as_one() {
        for (one, other, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "ab", 1),
            ("abc", "xabc", 1),
            ("abc", "axc", 1),
            ("kitten", "sitting", 3),
            ("ca", "abc", 3),
            ("é", "e", 1),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }
}
