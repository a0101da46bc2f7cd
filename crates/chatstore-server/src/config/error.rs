//! What can be wrong with the settings, one sentence each.

use std::io;

/// Why the settings cannot be used.
///
/// The message is one sentence for an operator: it names the setting, where the value came from and what is accepted,
/// and never holds the value of a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is not among the accepted ones.
    #[error("{name} (from {origin}) must be {accepted}{}", given.as_ref().map(|text| format!(", not {text:?}")).unwrap_or_default())]
    Invalid {
        /// The setting, as it is named in TOML.
        name: &'static str,
        /// Where the value came from.
        origin: String,
        /// What would be right.
        accepted: String,
        /// The beginning of the value; nothing for a secret.
        given: Option<String>,
    },
    /// A value is missing that another setting needs.
    #[error("{name} must be set {reason}")]
    Missing {
        /// The setting, as it is named in TOML.
        name: &'static str,
        /// Why it is needed.
        reason: String,
    },
    /// A secret is given both directly and by a file, at the same level.
    #[error("{name} is given twice, by {direct} and by {file}; keep one of them")]
    Twice {
        /// The setting.
        name: &'static str,
        /// Where the value stands.
        direct: String,
        /// Where the name of the file stands.
        file: String,
    },
    /// A key of the TOML file is not a setting.
    #[error("{key:?} (in {place}) is not a setting{}", suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The key as written.
        key: String,
        /// The TOML file.
        place: String,
        /// The setting that was probably meant.
        nearest: Option<String>,
    },
    /// A variable is not a setting, but nearly has the name of one.
    #[error("{variable} (in {place}) is not a setting; did you mean {nearest}?")]
    Typo {
        /// The variable as written.
        variable: String,
        /// `the environment`, or the path of the `.env` file.
        place: String,
        /// The variable that was probably meant.
        nearest: String,
    },
    /// A file named by a setting, or found in the working directory, cannot be read.
    #[error("the file named by {origin} cannot be read: {reason}")]
    Unreadable {
        /// What named the file.
        origin: String,
        /// Why it cannot be read.
        reason: io::Error,
    },
    /// A file is not in its format.
    #[error("{place} cannot be understood at line {line}: {reason}")]
    Syntax {
        /// The file.
        place: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, without a word of the line itself.
        reason: String,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}
