//! The grammar of `rate_limit`.

/// So many requests in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests, at least 1.
    pub count: u32,
    /// Length of the time window, in seconds.
    pub per_seconds: u32,
}

/// What [`Rate::parse_list`] accepts, to stand after "must be".
pub(super) const ACCEPTED: &str = "a rate such as 30 (a minute), 30/minute, 5 per second, or several joined by \";\"; each counts from 1 to 4294967295";

impl Rate {
    /// Reads one or more rates, joined by `;`.
    pub fn parse_list(text: &str) -> Option<Vec<Self>> {
        text.split(';').map(Self::parse).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (count, rest) = text.split_at(digits);
        let count = count.parse().ok().filter(|&count| count > 0)?;
        let per_seconds = if rest.is_empty() { 60 } else { unit_seconds(rest)? };
        Some(Self { count, per_seconds })
    }
}

/// The length of the unit in `/minute` or ` per minute`.
fn unit_seconds(text: &str) -> Option<u32> {
    let unit = match text.trim_start().strip_prefix('/') {
        Some(unit) => unit,
        // White space on both sides of the word: `5persecond` is more likely a slip.
        None => text
            .strip_prefix(char::is_whitespace)?
            .trim_start()
            .strip_prefix("per")?
            .strip_prefix(char::is_whitespace)?,
    };
    match unit.trim() {
        "s" | "second" | "seconds" => Some(1),
        "m" | "minute" | "minutes" => Some(60),
        "h" | "hour" | "hours" => Some(3_600),
        "d" | "day" | "days" => Some(86_400),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;

    fn pairs(text: &str) -> Option<Vec<(u32, u32)>> {
        Rate::parse_list(text).map(|rates| rates.iter().map(|rate| (rate.count, rate.per_seconds)).collect())
    }

    #[test]
    fn every_unit_and_joiner_is_accepted() {
        let units = [
            (1, ["s", "second", "seconds", "SECOND"]),
            (60, ["m", "minute", "minutes", "Minute"]),
            (3_600, ["h", "hour", "hours", "H"]),
            (86_400, ["d", "day", "days", "Days"]),
        ];
        for (seconds, names) in units {
            for name in names {
                for joiner in ["/", " / ", " per ", "  PER\t", "/ "] {
                    let text = format!(" 7{joiner}{name} ");
                    assert_eq!(pairs(&text), Some(vec![(7, seconds)]), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn lists_and_bare_counts_are_accepted() {
        assert_eq!(pairs("30"), Some(vec![(30, 60)]));
        assert_eq!(pairs("100/hour;10/second"), Some(vec![(100, 3_600), (10, 1)]));
        assert_eq!(pairs("100/h ; 10 per s ; 4294967295"), Some(vec![(100, 3_600), (10, 1), (u32::MAX, 60)]));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            " ",
            ";",
            "30;",
            ";30",
            "0",
            "0/minute",
            "-1",
            "+1",
            "1.5",
            "4294967296",
            "x",
            "/minute",
            "30/",
            "30 /",
            "30/week",
            "30/2 minutes",
            "30 minute",
            "30minute",
            "5persecond",
            "5 persecond",
            "5per second",
            "5 per",
            "per second",
            "30//minute",
            "30/minute/hour",
            "30,40",
            "30/minute,40/hour",
            "٣/minute",
            "30/minute\0",
        ] {
            assert_eq!(pairs(text), None, "{text:?}");
        }
    }
}
