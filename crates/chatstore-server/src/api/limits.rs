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

/// The rates of a project; what is null follows the settings of the installation.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProjectLimitsResponse {
    #[serde(flatten)]
    classes: LimitsResponse,
    /// One budget for all requests of its keys and users together; null is none.
    #[schemars(with = "Option<String>")]
    total: Option<Rates>,
}

impl ProjectLimitsResponse {
    pub(super) fn new(classes: ClassRates, total: Option<Rates>) -> Self {
        Self { classes: classes.into(), total }
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
        ClassRates {
            reads: check_rates("reads", self.reads, errors),
            writes: check_rates("writes", self.writes, errors),
            search: check_rates("search", self.search, errors),
        }
    }
}

/// Rates of a project; what is absent or null follows the settings of the installation.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProjectLimitsRequest {
    /// Requests that read, such as `30/minute`, `5/second burst 20`, several joined by `;`, or `off`.
    reads: Option<String>,
    /// Requests that create, change or delete.
    writes: Option<String>,
    /// Searches.
    search: Option<String>,
    /// One budget for all requests of its keys and users together; none, if absent or null.
    total: Option<String>,
}

impl ProjectLimitsRequest {
    /// The rates of each class, and the total.
    pub(super) fn check(self, errors: &mut Vec<FieldError>) -> (ClassRates, Option<Rates>) {
        let Self { reads, writes, search, total } = self;
        let classes = LimitsRequest { reads, writes, search }.check(errors);
        (classes, check_rates("total", total, errors))
    }
}

fn check_rates(name: &str, text: Option<String>, errors: &mut Vec<FieldError>) -> Option<Rates> {
    let rates = Rates::parse(&text?);
    if rates.is_none() {
        let detail = format!("must be {RATES_ACCEPTED}, or \"off\"");
        errors.push(FieldError::new(format!("/limits/{name}"), detail));
    }
    rates
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
