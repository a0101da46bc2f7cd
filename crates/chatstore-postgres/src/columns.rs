//! Columns as the types they stand for.

use chatstore_core::clock::Timestamp;
use chatstore_core::ids::Bucket;
use chatstore_core::json::RawJson;
use chatstore_core::store::StoreError;
use tokio_postgres::Row;

use crate::pool::Failure;

/// A bucket as `smallint` holds its 16 bits.
pub(crate) fn bucket_value(bucket: Bucket) -> i16 {
    bucket.bits().cast_signed()
}

/// A time.
pub(crate) fn time_column(row: &Row, column: usize) -> Result<Timestamp, Failure> {
    time(row.try_get(column)?)
}

/// A time that may be absent.
pub(crate) fn time_column_opt(row: &Row, column: usize) -> Result<Option<Timestamp>, Failure> {
    row.try_get::<_, Option<i64>>(column)?.map(time).transpose()
}

/// JSON kept as text.
pub(crate) fn json_column(row: &Row, column: usize) -> Result<RawJson, Failure> {
    json(row.try_get(column)?)
}

/// JSON that may be absent.
pub(crate) fn json_column_opt(row: &Row, column: usize) -> Result<Option<RawJson>, Failure> {
    row.try_get::<_, Option<String>>(column)?.map(json).transpose()
}

fn time(us: i64) -> Result<Timestamp, Failure> {
    Timestamp::from_micros(us).ok_or_else(|| StoreError::internal("a stored time is out of range").into())
}

fn json(text: String) -> Result<RawJson, Failure> {
    RawJson::parse(text).map_err(|error| StoreError::internal(format!("stored JSON: {error}")).into())
}
