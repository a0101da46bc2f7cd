//! Query strings: strict decoding, typed parameters, and the link to the next page.

use chatstore_core::clock::Timestamp;
use chatstore_core::limits::{OFFSET_MAX, PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX};
use chatstore_core::page::{CursorKey, Order, PageRequest, PageStart, Position};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::{ApiError, Code, FieldError};
use crate::openapi::Operation;

/// What stays as it is in a query of ours: letters, digits and the unreserved marks (RFC 3986).
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'[').remove(b']');

/// A decoded query string and the path it stands behind.
pub struct Pairs {
    path: String,
    pairs: Vec<(String, String)>,
}

impl Pairs {
    /// Decodes `key=value&…`.
    ///
    /// # Errors
    /// 422 for what is not UTF-8 or contains NUL.
    pub fn parse(path: &str, query: &str) -> Result<Self, ApiError> {
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| {
                let spaced = text.replace('+', " ");
                let text = percent_decode_str(&spaced).decode_utf8().ok()?.into_owned();
                Some(text).filter(|text| !text.contains('\0'))
            };
            match (decode(key), decode(value)) {
                (Some(key), Some(value)) => pairs.push((key, value)),
                (key, _) => {
                    let name = key.unwrap_or_default();
                    return Err(ApiError::invalid_field(
                        format!("?{name}"),
                        "must be UTF-8 without the character U+0000",
                    ));
                }
            }
        }
        Ok(Self { path: path.to_owned(), pairs })
    }

    /// The value of `name`; the last one counts. An empty value is one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Every `name[key]=value`.
    pub fn get_map(&self, name: &str) -> Vec<(String, String)> {
        let key_of = |key: &str| Some(key.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?.to_owned());
        self.pairs.iter().filter_map(|(key, value)| Some((key_of(key)?, value.clone()))).collect()
    }

    /// Every value of a list: `name=a`, `name[]=a` and `name[0]=a`, in the order in which they stand there.
    pub fn get_list(&self, name: &str) -> Vec<&str> {
        let is_index = |key: &str| key.bytes().all(|byte| byte.is_ascii_digit());
        let is_one = |key: &str| match key.strip_prefix(name) {
            Some("") => true,
            Some(rest) => rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(is_index),
            None => false,
        };
        self.pairs.iter().filter(|(key, _)| is_one(key)).map(|(_, value)| value.as_str()).collect()
    }

    /// Whether `name` stands there in another form than `name[key]`.
    pub fn has_malformed(&self, name: &str) -> bool {
        let mut forms = self.pairs.iter().filter_map(|(key, _)| key.strip_prefix(name));
        forms.any(|rest| rest.is_empty() || (rest.starts_with('[') && !rest.ends_with(']')))
    }

    /// The value of `name` as read by `parse`; `form` ends the sentence "must be …".
    pub fn read<T>(
        &self,
        name: &str,
        form: &str,
        parse: impl Fn(&str) -> Option<T>,
        errors: &mut Vec<FieldError>,
    ) -> Option<T> {
        let value = parse(self.get(name)?);
        if value.is_none() {
            errors.push(FieldError::new(format!("?{name}"), format!("must be {form}")));
        }
        value
    }

    /// A time.
    pub fn time(&self, name: &str, errors: &mut Vec<FieldError>) -> Option<Timestamp> {
        // A `+` of an offset that was not encoded arrives as a space.
        let parse = |text: &str| Timestamp::parse(text).or_else(|| Timestamp::parse(&text.replace(' ', "+")));
        self.read(name, "a time in RFC 3339, such as 2026-01-31T12:00:00Z", parse, errors)
    }

    /// The direction of a list.
    pub fn order(&self, default: Order, errors: &mut Vec<FieldError>) -> Order {
        let parse = |text: &str| match text {
            "asc" => Some(Order::Asc),
            "desc" => Some(Order::Desc),
            _ => None,
        };
        self.read("order", "`asc` or `desc`", parse, errors).unwrap_or(default)
    }

    /// `true` or `false`.
    pub fn boolean(&self, name: &str, errors: &mut Vec<FieldError>) -> Option<bool> {
        let parse = |text: &str| match text {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        self.read(name, "`true` or `false`", parse, errors)
    }

    /// A whole number from 0; one that is too large is the largest.
    pub fn natural(&self, name: &str, errors: &mut Vec<FieldError>) -> Option<u64> {
        self.read(name, "a whole number from 0", natural, errors)
    }

    /// The size of a page that begins where a cursor says.
    pub fn cursor_paging(&self, errors: &mut Vec<FieldError>) -> Paging {
        let limit =
            self.read("limit", "a whole number from 1", |text| natural(text).filter(|limit| *limit > 0), errors);
        let cursor = self.get("cursor").map(ToOwned::to_owned);
        Paging { path: self.path.clone(), others: self.others(), ..Paging::new(limit, cursor) }
    }

    /// The size of a page, and where it begins if no cursor says so.
    pub fn paging(&self, errors: &mut Vec<FieldError>) -> Paging {
        let paging = self.cursor_paging(errors);
        let mut offset = None;
        for name in ["skip", "offset"] {
            let value = self.natural(name, errors);
            if value.is_some_and(|value| value > OFFSET_MAX) {
                let detail =
                    format!("must be at most {OFFSET_MAX}; follow `cursor` from the `Link` header to go deeper");
                errors.push(FieldError::new(format!("?{name}"), detail));
            }
            offset = offset.or(value);
        }
        if paging.cursor.is_some() && offset.is_some() {
            errors.push(FieldError::new("?cursor", "cannot be joined with `skip` or `offset`"));
        }
        Paging { offset: offset.unwrap_or(0), ..paging }
    }

    fn others(&self) -> Vec<(String, String)> {
        let paging = |key: &str| matches!(key, "cursor" | "skip" | "offset");
        self.pairs.iter().filter(|(key, _)| !paging(key)).cloned().collect()
    }
}

/// A whole number from 0 in digits alone; one that is too large is the largest.
pub fn natural(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
}

/// A page as asked for.
#[derive(Debug)]
pub struct Paging {
    limit: u32,
    offset: u64,
    cursor: Option<String>,
    path: String,
    others: Vec<(String, String)>,
}

impl Paging {
    /// A page of a list that has no path of its own: its parameters stand in a body. A limit that is too large is cut.
    pub fn new(limit: Option<u64>, cursor: Option<String>) -> Self {
        let limit =
            limit.map_or(PAGE_ITEMS_DEFAULT, |limit| u32::try_from(limit).unwrap_or(u32::MAX).min(PAGE_ITEMS_MAX));
        Self { limit, offset: 0, cursor, path: String::new(), others: Vec::new() }
    }

    /// Most items of the page.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// What the store is asked for; the cursor must have been signed for the same `binding`.
    ///
    /// # Errors
    /// 400 `invalid_cursor` for any other cursor.
    pub fn request<P: Position>(&self, key: &CursorKey, binding: &[u8]) -> Result<PageRequest<P>, ApiError> {
        let start = match &self.cursor {
            None => PageStart::Offset(self.offset),
            Some(cursor) => PageStart::After(key.verify(cursor, binding).ok_or_else(|| {
                ApiError::new(
                    Code::InvalidCursor,
                    "Take `cursor` from a page of this list, and send it with the same filters and order.",
                )
            })?),
        };
        Ok(PageRequest { limit: self.limit, start })
    }

    /// The path and query of the page after `next`.
    pub fn next_link<P: Position>(&self, key: &CursorKey, binding: &[u8], next: &P) -> String {
        let mut link = format!("{}?", self.path);
        for (name, value) in &self.others {
            link.push_str(&format!("{}={}&", utf8_percent_encode(name, ESCAPED), utf8_percent_encode(value, ESCAPED)));
        }
        link.push_str("cursor=");
        link.push_str(&key.sign(next, binding));
        link
    }

    /// Writes the parameters of every list into the document.
    pub fn describe(operation: &mut Operation) {
        Self::describe_cursor(operation);
        let offset = serde_json::json!({"type": "integer", "minimum": 0, "maximum": OFFSET_MAX, "default": 0});
        operation.query_parameter(
            "skip",
            "Items to pass over; for small depths. `offset` is the same.",
            offset.clone(),
        );
        operation.query_parameter("offset", "Items to pass over; for small depths. `skip` is the same.", offset);
    }

    /// Writes the parameters of a list that is walked by cursors alone into the document.
    pub fn describe_cursor(operation: &mut Operation) {
        operation.query_parameter(
            "limit",
            "Items in the page: from 1, cut to 100.",
            serde_json::json!({"type": "integer", "minimum": 1, "default": PAGE_ITEMS_DEFAULT}),
        );
        operation.query_parameter(
            "cursor",
            "Where the page begins: from the `Link` header of the page before.",
            serde_json::json!({"type": "string"}),
        );
        operation.fails(Code::InvalidCursor);
    }
}

/// Writes the direction of a list into the document.
pub fn describe_order(operation: &mut Operation, description: &str, default: &str) {
    let schema = serde_json::json!({"type": "string", "enum": ["asc", "desc"], "default": default});
    operation.query_parameter("order", description, schema);
}

/// Bytes that name a list with its tenant, filters and order, so that a cursor fits no other.
pub fn binding(parts: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(parts).unwrap_or_default()
}
