//! The steps of a schema: which of them a database lacks, and which databases a binary refuses.

use std::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::clock::Timestamp;

/// Why a database cannot be opened as a store: a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct OpenError {
    message: String,
    /// Whether the same may succeed in a moment: the server was not reached, is starting or full.
    pub is_passing: bool,
}

impl OpenError {
    /// The sentence, which begins with the name of the database where there is one.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_passing: false }
    }

    /// The same sentence about what passes by itself.
    pub fn passing(self) -> Self {
        Self { is_passing: true, ..self }
    }
}

/// One step of the schema. Applied steps never change; a later one mends.
#[derive(Debug)]
pub struct Migration {
    /// Its number, from 1.
    pub version: i64,
    /// Its name, the same in every engine.
    pub name: &'static str,
    /// What it does.
    pub sql: &'static str,
    /// The oldest schema whose binaries still work after this step: it rises only when a
    /// contraction takes away what they use.
    pub serves_from: i64,
}

impl Migration {
    /// The SHA-256 of its SQL in hexadecimal digits.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A step as a database remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedMigration {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// The [`Migration::checksum`] of what was run.
    pub checksum: String,
    /// The oldest schema whose binaries still work.
    pub serves_from: i64,
    /// When it was applied, in microseconds since the Unix epoch.
    pub applied_at: i64,
}

/// A step and whether it is in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Its number, from 1.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// When it was applied; `None` while it is pending.
    pub applied_at: Option<Timestamp>,
}

/// The steps that this binary knows and the database lacks, oldest first.
pub fn pending(known: &'static [Migration], applied: &[AppliedMigration]) -> Vec<&'static Migration> {
    known.iter().filter(|step| applied.iter().all(|other| other.version != step.version)).collect()
}

/// The steps in the database and then those it lacks, each oldest first.
pub fn status(known: &'static [Migration], applied: Vec<AppliedMigration>) -> Vec<MigrationStatus> {
    let pending = pending(known, &applied).into_iter().map(|step| MigrationStatus {
        version: step.version,
        name: step.name.to_owned(),
        applied_at: None,
    });
    let applied = applied.into_iter().map(|step| MigrationStatus {
        version: step.version,
        name: step.name,
        applied_at: Timestamp::from_micros(step.applied_at),
    });
    applied.chain(pending).collect()
}

/// Refuses a schema that this binary can neither serve nor bring further.
///
/// # Errors
/// A sentence: a newer binary made it, or another build changed one of its steps.
pub fn refuse_unfit(
    known: &[Migration],
    applied: &[AppliedMigration],
    shown: impl fmt::Display,
) -> Result<(), OpenError> {
    let newest = known.last().map_or(0, |step| step.version);
    let needed = applied.iter().map(|step| step.serves_from).max().unwrap_or(0);
    if needed > newest {
        return Err(OpenError::new(format!(
            "{shown} has schema {}, made by a newer Chatstore; this one knows schema {newest}: upgrade it",
            applied.last().map_or(0, |step| step.version),
        )));
    }
    for step in known {
        let changed = applied.iter().any(|other| other.version == step.version && other.checksum != step.checksum());
        if changed {
            return Err(OpenError::new(format!(
                "{shown} was migrated by another build: migration {} `{}` differs from this binary's",
                step.version, step.name
            )));
        }
    }
    Ok(())
}

/// Refuses a schema that lacks steps of this binary.
///
/// # Errors
/// A sentence that tells how to apply them.
pub fn refuse_pending(
    known: &'static [Migration],
    applied: &[AppliedMigration],
    shown: impl fmt::Display,
) -> Result<(), OpenError> {
    match pending(known, applied).len() {
        0 => Ok(()),
        lacking => Err(OpenError::new(format!(
            "{shown} lacks {lacking} migration(s); run `chatstore migrate up` or start with AUTO_MIGRATE=true"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Migration] = &[
        Migration { version: 1, name: "base", sql: "create table a (b)", serves_from: 1 },
        Migration { version: 2, name: "more", sql: "create table c (d)", serves_from: 1 },
    ];

    fn applied(step: &Migration) -> AppliedMigration {
        AppliedMigration {
            version: step.version,
            name: step.name.to_owned(),
            checksum: step.checksum(),
            serves_from: step.serves_from,
            applied_at: 7,
        }
    }

    fn newer(serves_from: i64) -> AppliedMigration {
        AppliedMigration { version: 9, name: "later".to_owned(), checksum: "x".to_owned(), serves_from, applied_at: 8 }
    }

    #[test]
    fn what_is_not_applied_is_pending() {
        let first = vec![applied(&KNOWN[0])];
        assert_eq!(pending(KNOWN, &first).iter().map(|step| step.name).collect::<Vec<_>>(), ["more"]);
        let refused = refuse_pending(KNOWN, &first, "db").unwrap_err().to_string();
        assert!(refused.starts_with("db lacks 1 migration"), "{refused}");
        let shown = status(KNOWN, first);
        assert_eq!(shown[0].applied_at, Timestamp::from_micros(7));
        assert_eq!((shown[1].version, shown[1].applied_at), (2, None));
    }

    #[test]
    fn a_newer_schema_is_refused_unless_it_still_serves_this_binary() {
        let mut steps: Vec<_> = KNOWN.iter().map(applied).collect();
        steps.push(newer(2));
        refuse_unfit(KNOWN, &steps, "db").unwrap();
        refuse_pending(KNOWN, &steps, "db").unwrap();
        steps.push(newer(3));
        let refused = refuse_unfit(KNOWN, &steps, "db").unwrap_err().to_string();
        assert!(refused.starts_with("db has schema 9, made by a newer Chatstore"), "{refused}");
    }

    #[test]
    fn a_changed_step_is_refused() {
        let steps = vec![AppliedMigration { checksum: "other".to_owned(), ..applied(&KNOWN[0]) }];
        let refused = refuse_unfit(KNOWN, &steps, "db").unwrap_err().to_string();
        assert!(refused.contains("migration 1 `base` differs"), "{refused}");
    }
}
