//! Bodies: read within limits, refused with the place of the fault, and the pieces they are made of.

use std::marker::PhantomData;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use bytes::Bytes;
use chatstore_core::json::{escape_pointer, find_unstorable, upper_containers};
use chatstore_core::limits::{BODIES_BYTES_MAX, BODY_CONTAINERS_MAX};
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use crate::admission::Place;
use crate::app::App;
use crate::error::{ApiError, Code, FieldError};

/// What is read of a body that nobody wants, and for how long.
const DISCARD_BYTES_MAX: usize = 32 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);
/// The same of one that is turned away because there is too much to do.
const SHED_TIMEOUT: Duration = Duration::from_millis(20);
/// A slow body gets this long before its rate counts.
const BODY_GRACE: Duration = Duration::from_secs(5);

/// What a request's body is read as: an object, unless the type says otherwise.
pub trait Body: DeserializeOwned + Send {
    /// Reads the body.
    ///
    /// # Errors
    /// See [`parse_body`].
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        parse_body::<Object<Self>>(bytes).map(|Object(value)| value)
    }
}

impl<T: Body> Body for Vec<T> {
    fn read(bytes: &[u8]) -> Result<Self, ApiError> {
        parse_body::<Vec<Object<T>>>(bytes).map(|items| items.into_iter().map(|Object(value)| value).collect())
    }
}

/// A type read from an object alone: serde would also fill its fields from an array, in their order.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// An array of objects, for a field.
///
/// # Errors
/// Those of the deserializer.
pub fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let items = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(items.into_iter().map(|Object(value)| value).collect())
}

/// Reads a body within its limits of size, time and rate.
pub(crate) async fn read_body(request: Request, app: &App) -> Result<Vec<u8>, ApiError> {
    let limits = &app.limits;
    let too_large =
        || ApiError::new(Code::BodyTooLarge, format!("A body may have at most {} bytes.", limits.body_bytes_max));
    let declared =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limits.body_bytes_max as u64) {
        discard(request).await;
        return Err(too_large());
    }
    let place = request.extensions().get::<Place>().cloned();
    let mut body = request.into_body();
    let time_max = limits.body_read_timeout.min(limits.request_timeout.mul_f32(0.9));
    let mut held = HeldBytes { app, bytes: 0 };
    let started = Instant::now();
    let mut bytes = Vec::with_capacity(usize::try_from(declared.unwrap_or(0)).unwrap_or(0).min(64 << 10));
    loop {
        let earned = bytes.len() as u64 * 1_000 / limits.body_bytes_per_second_min.max(1);
        let paced = if limits.body_bytes_per_second_min == 0 { u64::MAX / 4 } else { earned };
        let allowed = time_max.min(BODY_GRACE.saturating_add(Duration::from_millis(paced)));
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                // Others are handled while this one waits for its client.
                place.as_ref().inspect(|place| place.leave());
                let Ok(frame) = tokio::time::timeout_at(started + allowed, body.frame()).await else {
                    return Err(ApiError::new(Code::BodyTimeout, "The body came too slowly; send it again, faster."));
                };
                frame
            }
        };
        match frame {
            None => break,
            Some(Err(_)) => {
                return Err(ApiError::new(Code::BodyIncomplete, "The body broke off before its end; send it again."));
            }
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                if bytes.len() + data.len() > limits.body_bytes_max {
                    return Err(too_large());
                }
                held.grow(data.len())?;
                bytes.extend_from_slice(&data);
            }
        }
    }
    if let Some(place) = place {
        place.come_back().await?;
    }
    Ok(bytes)
}

/// Reads and drops the body of a request that is refused unread: a client that is still sending
/// would find the connection broken instead of the answer. One that asked first (`Expect`) is told
/// at once.
pub(crate) async fn discard(request: Request) {
    // A client slower than this has its answer on a broken connection.
    read_off(request, DISCARD_TIMEOUT).await;
}

/// The same for a request that is turned away at once: little more is read than what is there already. Whether that
/// was all of the body; if not, the connection is good for nothing after the answer.
pub(crate) async fn discard_at_hand(request: Request) -> bool {
    read_off(request, SHED_TIMEOUT).await
}

/// Whether the body came to its end.
async fn read_off(request: Request, time_max: Duration) -> bool {
    if request.headers().contains_key(header::EXPECT) {
        return false;
    }
    if let Some(place) = request.extensions().get::<Place>() {
        place.leave();
    }
    let mut body = request.into_body();
    let mut bytes = 0;
    let read = async {
        while bytes <= DISCARD_BYTES_MAX {
            match body.frame().await {
                None => return true,
                Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) => return false,
            }
        }
        false
    };
    tokio::time::timeout(time_max, read).await.unwrap_or(false)
}

/// A body's share of the memory that all bodies may take.
struct HeldBytes<'a> {
    app: &'a App,
    bytes: usize,
}

impl HeldBytes<'_> {
    fn grow(&mut self, by: usize) -> Result<(), ApiError> {
        self.bytes += by;
        let all = self.app.bodies_bytes.fetch_add(by, Ordering::Relaxed) + by;
        if all > BODIES_BYTES_MAX {
            return Err(ApiError::new(Code::Overloaded, "Too much is being sent at once; try again in a moment."));
        }
        Ok(())
    }
}

impl Drop for HeldBytes<'_> {
    fn drop(&mut self) {
        self.app.bodies_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Refuses a body of so many pieces that reading it would take many times its own memory.
pub(crate) fn require_few_pieces(bytes: &[u8]) -> Result<(), ApiError> {
    // A piece has two bytes at least, so that most bodies need no count.
    if bytes.len() > 2 * BODY_CONTAINERS_MAX && upper_containers(bytes) > BODY_CONTAINERS_MAX {
        let detail =
            format!("A body may hold at most {BODY_CONTAINERS_MAX} objects and arrays in its upper four levels.");
        return Err(ApiError::new(Code::BodyTooLarge, detail));
    }
    Ok(())
}

/// Reads JSON. What is no JSON is a 400 with its place; what cannot be stored or has the wrong
/// shape is a 422 with a pointer.
pub fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // A parser looks at the encoding of what it keeps, not of what it passes over.
    let text = std::str::from_utf8(bytes).map_err(|_| ApiError::new(Code::InvalidJson, "The body is not UTF-8."))?;
    let unstorable = find_unstorable(bytes);
    let parsed = serde_json::from_str(text);
    if let (Ok(value), None) = (parsed, &unstorable) {
        return Ok(value);
    }
    if let Err(error) = serde_json::from_slice::<&serde_json::value::RawValue>(bytes) {
        return Err(malformed(bytes, &error));
    }
    Err(match unstorable {
        Some((pointer, fault)) => ApiError::invalid_field(pointer, fault.to_string()),
        None => misfit::<T>(bytes),
    })
}

fn malformed(bytes: &[u8], error: &serde_json::Error) -> ApiError {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return ApiError::new(Code::InvalidJson, "The body is empty; send JSON.");
    }
    let (line, column) = (error.line(), error.column());
    let detail = format!("The body is not well-formed JSON at line {line}, column {column}: {}.", reason(error));
    ApiError::new(Code::InvalidJson, detail)
}

/// The message of an error without its place.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

/// Reads `bytes`, known to be JSON of the wrong shape, once more and tells where it is wrong.
fn misfit<T: DeserializeOwned>(bytes: &[u8]) -> ApiError {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Ok(_) => ApiError::invalid_field("", "has trailing data"),
        Err(error) => {
            let mut pointer = String::new();
            for segment in error.path() {
                match segment {
                    serde_path_to_error::Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
                    serde_path_to_error::Segment::Map { key } => {
                        pointer.push('/');
                        pointer.push_str(&escape_pointer(key));
                    }
                    _ => {}
                }
            }
            ApiError::invalid_field(pointer, format!("is not acceptable: {}", reason(error.inner())))
        }
    }
}

/// A body's field that tells absent from null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field<T> {
    /// The key does not stand in the body.
    #[default]
    Absent,
    /// The key stands there with `null`.
    Null,
    /// The key stands there with a value.
    Value(T),
}

impl<T> Field<T> {
    /// The value; null counts as absent.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// The value of a field that may be absent but not null.
    pub fn not_null(self, pointer: &str, errors: &mut Vec<FieldError>) -> Option<T> {
        if matches!(self, Self::Null) {
            errors.push(FieldError::new(pointer, "must not be null"));
        }
        self.value()
    }

    /// The value of a field that must be there.
    pub fn required(self, pointer: &str, errors: &mut Vec<FieldError>) -> Option<T> {
        if matches!(self, Self::Absent) {
            errors.push(FieldError::new(pointer, "is required"));
        }
        self.not_null(pointer, errors)
    }

    /// The change a patch makes: `None` for none, `Some(None)` to clear.
    pub fn change(self) -> Option<Option<T>> {
        match self {
            Self::Absent => None,
            Self::Null => Some(None),
            Self::Value(value) => Some(Some(value)),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Option::<T>::deserialize(deserializer)? {
            Some(value) => Self::Value(value),
            None => Self::Null,
        })
    }
}

/// A field that may be null, unless its own attributes say otherwise.
impl<T: JsonSchema> JsonSchema for Field<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        Option::<T>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Option::<T>::json_schema(generator)
    }
}

/// A body that is one thing or an array of them.
#[derive(Debug)]
pub enum OneOrMany<T> {
    /// An object.
    One(T),
    /// An array of objects.
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object or an array of objects")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(OneOrMany::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(Object(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(OneOrMany::Many(items))
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body as RequestBody;
    use futures_util::StreamExt as _;

    #[tokio::test]
    async fn of_a_request_that_is_shed_only_what_is_there_is_read() {
        let parts = || futures_util::stream::iter(["{", "}"].map(Ok::<_, std::io::Error>));
        let whole = RequestBody::from_stream(parts());
        let stalled = RequestBody::from_stream(parts().chain(futures_util::stream::pending()));
        assert!(discard_at_hand(Request::new(RequestBody::empty())).await);
        assert!(discard_at_hand(Request::new(whole)).await);
        let began = Instant::now();
        assert!(!discard_at_hand(Request::new(stalled)).await);
        // However busy the machine is: less than any other body is waited for.
        let took = began.elapsed();
        assert!((SHED_TIMEOUT..DISCARD_TIMEOUT).contains(&took), "{took:?}");
    }
}
