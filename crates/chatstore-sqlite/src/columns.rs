//! Columns as the types they stand for.

use chatstore_core::clock::Timestamp;
use chatstore_core::json::RawJson;
use chatstore_core::store::StoreError;
use rusqlite::Row;
use rusqlite::types::Type;
use uuid::Uuid;

/// An id of 16 bytes.
pub(crate) fn id_column(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    row.get(column).map(Uuid::from_bytes)
}

/// A time.
pub(crate) fn time_column(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    let us: i64 = row.get(column)?;
    Timestamp::from_micros(us).ok_or(rusqlite::Error::IntegralValueOutOfRange(column, us))
}

/// A time that may be absent.
pub(crate) fn time_column_opt(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    let us: Option<i64> = row.get(column)?;
    us.map(|us| Timestamp::from_micros(us).ok_or(rusqlite::Error::IntegralValueOutOfRange(column, us))).transpose()
}

/// A number that cannot be negative.
pub(crate) fn count_column(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let count: i64 = row.get(column)?;
    u64::try_from(count).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, count))
}

/// JSON kept as text.
pub(crate) fn json_column(row: &Row<'_>, column: usize) -> rusqlite::Result<RawJson> {
    json(column, row.get(column)?)
}

/// JSON that may be absent.
pub(crate) fn json_column_opt(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<RawJson>> {
    row.get::<_, Option<String>>(column)?.map(|text| json(column, text)).transpose()
}

/// Settings, which `parse` reads: those that cannot be read must not count as none.
pub(crate) fn settings_column<T>(
    row: &Row<'_>,
    column: usize,
    parse: fn(&str) -> Result<T, StoreError>,
) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    parse(text).map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
}

fn json(column: usize, text: String) -> rusqlite::Result<RawJson> {
    RawJson::parse(text).map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
}
