//! Variables from an `.env` file, without a change to the environment of the process.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};

use super::ConfigError;
use super::sources::{Document, Value};

/// The variables of an `.env` file; the last of two equal names counts, as in a shell.
pub(super) fn variables(document: &Document) -> Result<BTreeMap<String, Value>, ConfigError> {
    let lines_read = Cell::new(0);
    // The parser loses the last line without a line end if it ends in a blank.
    let text = format!("{}\n", document.text);
    let mut variables = BTreeMap::new();
    for item in dotenvy::from_read_iter(LineReader { rest: text.as_bytes(), lines_read: &lines_read }) {
        match item {
            Ok((name, text)) => {
                let origin = format!("{} line {}", document.place, lines_read.get());
                variables.insert(name, Value::text(text, origin));
            }
            Err(error) => {
                // An unclosed quote runs on to the end of the file: name the line where it began.
                let run = match error {
                    dotenvy::Error::LineParse(lines, _) => lines.lines().count().max(1),
                    _ => 1,
                };
                return Err(ConfigError::Syntax {
                    place: document.place.clone(),
                    line: (lines_read.get() + 1).saturating_sub(run).max(1),
                    reason:
                        "a line must be NAME=value, with quotes around a value that has blanks, quotes or \"#\" in it"
                            .to_owned(),
                });
            }
        }
    }
    Ok(variables)
}

/// Hands out one line a call, so that the number of lines the parser has taken is known.
struct LineReader<'a> {
    rest: &'a [u8],
    lines_read: &'a Cell<usize>,
}

impl Read for LineReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.iter().position(|&byte| byte == b'\n').map_or(self.rest.len(), |end| end + 1);
        let (piece, rest) = self.rest.split_at(line.min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(piece);
        self.rest = rest;
        if piece.ends_with(b"\n") {
            self.lines_read.set(self.lines_read.get() + 1);
        }
        Ok(piece.len())
    }
}
