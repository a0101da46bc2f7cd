//! The lines of a file of conversations, and what each says.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use chatstore_server::api::archive::{Conversation, explain};
use chatstore_server::body::Body as _;
use flate2::bufread::MultiGzDecoder;
use serde::de::IgnoredAny;

/// Longest line that is read; a longer one is refused.
const LINE_BYTES_MAX: usize = 256 << 20;
const BUFFER_BYTES: usize = 256 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line that is not blank.
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: u64,
    /// Its text, or why it is refused unread.
    pub(super) text: Result<Vec<u8>, String>,
}

/// A file, line by line; only one line is in memory.
pub(crate) struct Lines {
    reader: Box<dyn BufRead + Send>,
    name: String,
    gzip: bool,
    /// Size of the file, if it has one.
    total: Option<u64>,
    read: Arc<AtomicU64>,
    number: u64,
    line_bytes_max: usize,
}

impl Lines {
    /// Opens a file, or standard input for `-`; gzip is recognised by its first bytes.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        if path.as_os_str() == "-" {
            return Self::new(Box::new(io::stdin()), "standard input".to_owned(), None);
        }
        let name = path.display().to_string();
        let cannot = || format!("cannot read {name}");
        let file = File::open(path).with_context(cannot)?;
        let metadata = file.metadata().with_context(cannot)?;
        if metadata.is_dir() {
            bail!("{name} is a folder; name a file of JSON Lines");
        }
        let total = metadata.is_file().then_some(metadata.len());
        Self::new(Box::new(file), name, total)
    }

    fn new(source: Box<dyn Read + Send>, name: String, total: Option<u64>) -> anyhow::Result<Self> {
        let read = Arc::new(AtomicU64::new(0));
        let counting = Counting { source, read: read.clone() };
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, counting);
        let gzip = starts_with_gzip(&mut reader).with_context(|| format!("cannot read {name}"))?;
        let reader: Box<dyn BufRead + Send> = match gzip {
            true => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(reader))),
            false => Box::new(reader),
        };
        Ok(Self { reader, name, gzip, total, read, number: 0, line_bytes_max: LINE_BYTES_MAX })
    }

    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    pub(super) fn read_counter(&self) -> Arc<AtomicU64> {
        self.read.clone()
    }

    /// The next line that is not blank.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Line>> {
        loop {
            let text = match self.read_line() {
                Ok(Some(text)) => text,
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.broken(&error)),
            };
            self.number += 1;
            if text.as_ref().is_ok_and(|text| text.iter().all(u8::is_ascii_whitespace)) {
                continue;
            }
            return Ok(Some(Line { number: self.number, text }));
        }
    }

    fn broken(&self, error: &io::Error) -> anyhow::Error {
        let (name, number) = (&self.name, self.number);
        match error.kind() {
            io::ErrorKind::UnexpectedEof if self.gzip => {
                anyhow::anyhow!("{name} ends within its gzip data, after line {number}: it was cut off; get it whole")
            }
            _ if self.gzip => anyhow::anyhow!("{name} is damaged gzip after line {number} ({error}); get it anew"),
            _ => anyhow::anyhow!("{name} cannot be read after line {number}: {error}"),
        }
    }

    /// A line without its end; the inner error is for one that is too long, which is skipped.
    fn read_line(&mut self) -> io::Result<Option<Result<Vec<u8>, String>>> {
        let mut text = Vec::new();
        let (mut seen, mut too_long, mut ended) = (false, false, false);
        while !ended {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            seen = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            ended = end.is_some();
            let taken = end.unwrap_or(available.len());
            too_long |= text.len() + taken > self.line_bytes_max;
            if too_long {
                text = Vec::new();
            } else {
                text.extend_from_slice(&available[..taken]);
            }
            let consumed = taken + usize::from(ended);
            self.reader.consume(consumed);
        }
        if too_long {
            let mib = self.line_bytes_max >> 20;
            return Ok(Some(Err(format!("is longer than {mib} MiB; give the conversation in parts, with `seq`"))));
        }
        if self.number == 0 && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(seen.then_some(Ok(text)))
    }
}

fn starts_with_gzip(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        match reader.fill_buf() {
            // A pipe may give a single byte first; no line begins with this one.
            Ok(start) => {
                return Ok(start.first() == Some(&GZIP_MAGIC[0]) && start.get(1).is_none_or(|b| *b == GZIP_MAGIC[1]));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Counts what is read, for the bar.
struct Counting {
    source: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Reads a line with the checks of a request's body.
pub(super) fn parse(text: &[u8]) -> Result<Conversation, String> {
    match Conversation::read(text) {
        Ok(conversation) => Ok(conversation),
        Err(error) if error.errors().is_empty() => Err(match serde_json::from_slice::<IgnoredAny>(text) {
            Err(error) => malformed(&error),
            Ok(_) => "is not well-formed JSON".to_owned(),
        }),
        Err(error) => Err(explain(error.errors()).trim_start().to_owned()),
    }
}

fn malformed(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    format!("is not well-formed JSON at column {}: {reason}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static [u8], line_bytes_max: usize) -> Vec<(u64, Result<String, String>)> {
        let mut lines = Lines::new(Box::new(text), "test".to_owned(), None).unwrap();
        lines.line_bytes_max = line_bytes_max;
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push((line.number, line.text.map(|text| String::from_utf8(text).unwrap())));
        }
        all
    }

    #[test]
    fn blank_lines_count_and_say_nothing() {
        let ok = |number, text: &str| (number, Ok(text.to_owned()));
        assert_eq!(lines(b"\xef\xbb\xbf{}\n\n \r\n{}\r\nlast", 100), [ok(1, "{}"), ok(4, "{}\r"), ok(5, "last")]);
        assert_eq!(lines(b"", 100), []);
    }

    #[test]
    fn a_line_too_long_is_skipped_alone() {
        let found = lines(b"123456\n123\n1234567", 5);
        assert!(found[0].1.is_err() && found[2].1.is_err(), "{found:?}");
        assert_eq!(found[1], (2, Ok("123".to_owned())));
    }

    #[test]
    fn reasons_name_the_place() {
        let reason = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert_eq!(reason("{\"id\":}"), "is not well-formed JSON at column 7: expected value");
        assert_eq!(reason("[]"), "is not acceptable: invalid type: sequence, expected an object");
        assert_eq!(
            reason(r#"{"id":"a","messages":[{"content":"\u0000"}]}"#),
            "/messages/0/content contains the character U+0000, which cannot be stored"
        );
        assert!(
            reason(r#"{"id":"a","messages":[{"content":5}]}"#).starts_with("/messages/0/content is not acceptable")
        );
    }
}
