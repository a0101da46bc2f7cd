//! Names that are nearly those of settings.

use super::ConfigError;
use super::sources::KEYS;

/// Variables of the environment are mostly not ours; shorter ones are near to too many others.
const ENVIRONMENT_LEN_MIN: usize = 8;
/// In `.env` nearly every name is meant for us.
const FILE_LEN_MIN: usize = 4;
/// Names from this length on may be two letters off.
const TWO_OFF_LEN_MIN: usize = 7;

/// Stops at a variable that is nearly a setting: it would be ignored without a word.
pub(super) fn refuse_typos<'a>(
    names: impl Iterator<Item = &'a String>,
    place: &str,
    is_file: bool,
) -> Result<(), ConfigError> {
    let known: Vec<_> = KEYS.iter().map(|key| key.env.as_str()).chain(["CONFIG_FILE", "ENV_FILE"]).collect();
    let len_min = if is_file { FILE_LEN_MIN } else { ENVIRONMENT_LEN_MIN };
    for name in names.filter(|name| !known.contains(&name.as_str())) {
        let Some(meant) = meant(name, &known, len_min) else { continue };
        let (variable, nearest) = (name.clone(), meant.to_owned());
        return Err(ConfigError::Typo { variable, place: place.to_owned(), nearest });
    }
    Ok(())
}

/// The setting that `name` was probably meant for.
fn meant<'a>(name: &str, known: &[&'a str], len_min: usize) -> Option<&'a str> {
    let bare = name.strip_prefix("CHATSTORE_").unwrap_or(name);
    let whole = known.iter().copied().find(|known| bare != name && *known == bare);
    let unit =
        |known: &&str| known.strip_prefix(name).is_some_and(|rest| rest == "_MS" || rest == "_MAX" || rest == "_MIN");
    if let Some(setting) = whole.or_else(|| known.iter().copied().find(unit)) {
        return Some(setting);
    }
    if name.len() < len_min {
        return None;
    }
    // A name that differs by more than two letters in length cannot be near; this also bounds the work.
    let near =
        known.iter().copied().filter(|known| known.len().abs_diff(name.len()) <= 2 && known.len() + 1 >= len_min);
    let (nearest, far) = nearest(name, near)?;
    let far_max = if nearest.len() >= TWO_OFF_LEN_MIN && name.len() >= TWO_OFF_LEN_MIN { 2 } else { 1 };
    (1..=far_max).contains(&far).then_some(nearest)
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
