//! Limits and names on the wire: what keys and projects share.

use chatstore_core::limits::NAME_BYTES_MAX;
use chatstore_core::rates::{ClassRates, RATES_ACCEPTED, Rates};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::body::{Field, Object};
use crate::error::FieldError;

/// The rates of each class of requests; what is null follows what stands above.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LimitsResponse {
    /// Requests that read, such as `30/minute`, `5/second burst 20` or `off`.
    #[schemars(with = "Option<String>")]
    reads: Option<Rates>,
    /// Requests that create, change or delete.
    #[schemars(with = "Option<String>")]
    writes: Option<Rates>,
    /// Searches.
    #[schemars(with = "Option<String>")]
    search: Option<Rates>,
}

impl From<ClassRates> for LimitsResponse {
    fn from(rates: ClassRates) -> Self {
        Self { reads: rates.reads, writes: rates.writes, search: rates.search }
    }
}

/// Rates of each class of requests; a class that is absent or null follows what stands above.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LimitsRequest {
    /// Requests that read, such as `30/minute`, `5/second burst 20`, several joined by `;`, or `off`.
    reads: Option<String>,
    /// Requests that create, change or delete.
    writes: Option<String>,
    /// Searches.
    search: Option<String>,
}

impl LimitsRequest {
    fn check(self, errors: &mut Vec<FieldError>) -> ClassRates {
        let mut rates = |class: &str, text: Option<String>| {
            let text = text?;
            let rates = Rates::parse(&text);
            if rates.is_none() {
                let detail = format!("must be {RATES_ACCEPTED}, or \"off\"");
                errors.push(FieldError::new(format!("/limits/{class}"), detail));
            }
            rates
        };
        ClassRates {
            reads: rates("reads", self.reads),
            writes: rates("writes", self.writes),
            search: rates("search", self.search),
        }
    }
}

/// The rates in `limits`, if they are there; null is none.
pub(super) fn check_limits(field: Field<Object<LimitsRequest>>, errors: &mut Vec<FieldError>) -> Option<ClassRates> {
    let change = field.change()?;
    Some(change.map_or_else(ClassRates::default, |Object(limits)| limits.check(errors)))
}

/// Refuses a name that is empty, too long, or would spoil a line it is shown in.
pub(super) fn check_name(name: Option<&str>, errors: &mut Vec<FieldError>) {
    let Some(name) = name else { return };
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let detail = format!("must have 1 to {NAME_BYTES_MAX} bytes and no control characters");
        errors.push(FieldError::new("/name", detail));
    }
}

/// A whole number of seconds from `least` to `most`, or `default`.
pub(super) fn check_seconds(
    pointer: &str,
    number: Option<i64>,
    (least, most, default): (i64, i64, i64),
    errors: &mut Vec<FieldError>,
) -> i64 {
    let seconds = number.unwrap_or(default);
    if !(least..=most).contains(&seconds) {
        errors.push(FieldError::new(pointer, format!("must be a whole number from {least} to {most}")));
    }
    seconds
}

/// Microseconds in a second.
pub(super) const SECOND_US: i64 = 1_000_000;
