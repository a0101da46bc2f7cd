//! Sessions and messages by the million, whose ids follow from their numbers, so that pgbench can name them too.
//!
//! The four digits of a session's number are the last of its id, and so, read as hexadecimal, its bucket: sessions stand
//! apart in every index, as those of many users do.

use std::{
    io::{self, Write},
    thread,
};

use anyhow::{Result, ensure};

use super::database::Database;
use crate::bench::store::CONTENT;

const HOUR_US: u64 = 3_600_000_000;
/// COPYs at the same time: one takes one core.
const WRITERS: usize = 2;
/// Their numbers have four digits.
pub(super) const SESSIONS_MAX: usize = 10_000;

/// For pgbench: `:n` is a random session's number and `:bucket` its bucket.
pub(super) const RANDOM_SESSION: &str = r"\set n random(0, :sessions - 1)
\set bits :n / 1000 * 4096 + :n / 100 % 10 * 256 + :n / 10 % 10 * 16 + :n % 10
\set bucket :bits - :bits / 32768 * 65536
";
/// For SQL: the id of the session with the number `:n`.
pub(super) const SESSION_ID: &str = "lpad(:n, 32, '0')::uuid";

/// Sessions of no user that are all of the same length.
#[derive(Clone, Copy)]
pub(super) struct Conversations {
    pub(super) sessions: usize,
    pub(super) messages_each: usize,
    /// Between the last messages of two that follow each other, up to now.
    pub(super) minutes_apart: u64,
}

impl Conversations {
    /// Stores them all in a database that a server has migrated and made its project in.
    pub(super) fn store(self, database: &Database) -> Result<()> {
        ensure!(self.sessions <= SESSIONS_MAX, "{} sessions are more than {SESSIONS_MAX}", self.sessions);
        let stamp = Stamp { project: project(database)?, now_us: now_us(database)? };
        let mut numbers: Vec<usize> = (0..self.sessions).collect();
        // In the order of the keys, so that every page of an index is written once.
        numbers.sort_by_key(|number| (bucket(*number), *number));
        database.copy(COPY_SESSIONS, |output| self.write_sessions(output, &numbers, &stamp))?;
        thread::scope(|scope| {
            let (parts, stamp) = (numbers.chunks(numbers.len().div_ceil(WRITERS)), &stamp);
            let copies: Vec<_> = parts
                .map(|part| {
                    scope.spawn(|| {
                        database.copy(COPY_MESSAGES, |output| self.write_messages(output, part, stamp.now_us))
                    })
                })
                .collect();
            copies.into_iter().try_for_each(|copy| copy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        // What a database of some age has behind it, and what would otherwise fall into the measurements.
        for sql in ["vacuum (analyze) sessions", "vacuum (analyze) messages", "checkpoint"] {
            database.run(sql)?;
        }
        Ok(())
    }

    /// The ids of `count` sessions, each chosen by itself.
    pub(super) fn random_ids(self, count: usize) -> impl Iterator<Item = String> {
        (0..count).map(move |draw| id((scattered(draw) % self.sessions as u64) as usize))
    }

    /// When all of a session was written.
    fn written_us(self, number: usize, now_us: u64) -> u64 {
        now_us - number as u64 * self.minutes_apart * 60_000_000
    }

    fn write_sessions(self, output: &mut dyn Write, numbers: &[usize], stamp: &Stamp) -> io::Result<()> {
        let (project, count) = (&stamp.project, self.messages_each);
        for n in numbers {
            let at = self.written_us(*n, stamp.now_us);
            writeln!(
                output,
                "{bucket}\t{id}\t{project}\tConversation {n}\tf\t{{}}\t{count}\t{count}\t1\t{at}\t{at}\t{at}\t\
                 {hour}\t{hour}",
                hour = hour(at),
                bucket = bucket(*n),
                id = id(*n),
            )?;
        }
        Ok(())
    }

    fn write_messages(self, output: &mut dyn Write, numbers: &[usize], now_us: u64) -> io::Result<()> {
        for n in numbers {
            let (bucket, id, at) = (bucket(*n), id(*n), self.written_us(*n, now_us));
            let begun_ms = at / 1000 - self.messages_each as u64;
            for seq in 1..=self.messages_each {
                let message_id = message_id(*n, seq, begun_ms);
                writeln!(
                    output,
                    "{bucket}\t{id}\t{seq}\t{message_id}\tuser\tmessage\tcompleted\t{CONTENT}\t{{}}\t1\t{at}\t{at}",
                )?;
            }
        }
        Ok(())
    }
}

/// Whose sessions they are, and when all of it was written.
struct Stamp {
    project: String,
    now_us: u64,
}

const COPY_SESSIONS: &str = "copy sessions (bucket, session_id, project_id, session_name, is_favorite, metadata, \
    last_seq, message_count, version, created_at, updated_at, last_message_at, updated_hour, active_hour) from stdin";
const COPY_MESSAGES: &str = "copy messages (bucket, session_id, seq, message_id, role, kind, status, content, metadata, \
    version, created_at, updated_at) from stdin";

/// The id of the server's own project.
pub(super) fn project(database: &Database) -> Result<String> {
    database.run("select project_id from projects where name = 'default'")
}

/// The time of the database.
pub(super) fn now_us(database: &Database) -> Result<u64> {
    Ok(database.run("select (extract(epoch from now()) * 1000000)::bigint")?.parse()?)
}

/// The whole hours of a time.
pub(super) fn hour(us: u64) -> u64 {
    us / HOUR_US
}

/// The id of the session with this number.
pub(super) fn id(number: usize) -> String {
    format!("00000000-0000-0000-0000-{number:012}")
}

/// The last 16 bits of its id, as the column holds them.
pub(super) fn bucket(number: usize) -> i16 {
    let digits = [1000, 100, 10, 1].map(|place| u16::try_from(number / place % 10).unwrap_or_default());
    digits.iter().fold(0, |bits, digit| bits << 4 | digit).cast_signed()
}

/// Of version 7, in its session's bucket: it grows with `seq` and has random bits behind its time.
fn message_id(number: usize, seq: usize, begun_ms: u64) -> String {
    let millis = begun_ms + seq as u64;
    let random = scattered(number.wrapping_mul(1_000_003).wrapping_add(seq));
    format!(
        "{:08x}-{:04x}-7{:03x}-8{:03x}-{:08x}{number:04}",
        millis >> 16,
        millis & 0xffff,
        random & 0xfff,
        random >> 12 & 0xfff,
        random >> 24 & 0xffff_ffff,
    )
}

/// Numbers that look random, the same in every run.
fn scattered(n: usize) -> u64 {
    let mixed = (n as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_is_the_end_of_the_id() {
        for number in [0, 7, 1234, 7999, 8000, 9999] {
            let id = id(number);
            let bits = u16::from_str_radix(&id[32..], 16).unwrap();
            assert_eq!(bucket(number), bits.cast_signed(), "{id}");
            assert_eq!(message_id(number, 3, 1_700_000_000_000)[32..], id[32..]);
        }
    }

    #[test]
    fn message_ids_are_of_version_7_and_grow() {
        let ids: Vec<String> = (1..1000).map(|seq| message_id(42, seq, 1_700_000_000_000)).collect();
        assert!(ids.is_sorted());
        assert!(ids.iter().all(|id| id.len() == 36 && &id[14..15] == "7" && &id[19..20] == "8"), "{}", ids[0]);
    }

    #[test]
    fn rows_have_a_value_for_every_column() {
        let conversations = Conversations { sessions: 2, messages_each: 3, minutes_apart: 1 };
        let stamp = Stamp { project: "p".to_owned(), now_us: 1_700_000_000_000_000 };
        let (mut sessions, mut messages) = (Vec::new(), Vec::new());
        conversations.write_sessions(&mut sessions, &[1, 0], &stamp).unwrap();
        conversations.write_messages(&mut messages, &[1, 0], stamp.now_us).unwrap();
        for (rows, sql, count) in [(sessions, COPY_SESSIONS, 2), (messages, COPY_MESSAGES, 6)] {
            let rows = String::from_utf8(rows).unwrap();
            assert_eq!(rows.lines().count(), count);
            let columns = sql.split(',').count();
            assert!(rows.lines().all(|row| row.split('\t').count() == columns), "{rows}");
        }
    }

    #[test]
    fn sessions_are_drawn_from_all() {
        let conversations = Conversations { sessions: 10, messages_each: 0, minutes_apart: 0 };
        let drawn: std::collections::HashSet<String> = conversations.random_ids(200).collect();
        assert_eq!(drawn.len(), 10);
    }
}
