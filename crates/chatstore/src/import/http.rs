//! Through a running server, in requests that are small enough to be answered in time.

use std::collections::HashSet;
use std::ops::Range;

use chatstore_core::clock::Ctx;
use chatstore_core::limits::IMPORT_SESSIONS_MAX;
use chatstore_server::api::archive::{Conversation, ConversationMessage, ImportResponse};

use super::Report;
use super::client::{Answer, Client};
use super::lines::{Lines, parse};
use crate::export::line_head;

/// Bytes of a request: far below what a server takes, so that each is stored within its time.
const REQUEST_BYTES: usize = 1 << 20;

pub(super) fn import(url: &str, key: &str, mut lines: Lines, report: &mut Report<'_>) -> anyhow::Result<()> {
    let client = Client::new(url, key)?;
    let mut sender = Sender { client, ctx: Ctx::system(), batch: Vec::new(), bytes: 0, keys: HashSet::new(), report };
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return sender.flush(),
            Err(error) => {
                // What came before the fault is stored.
                sender.flush()?;
                return Err(error);
            }
        };
        let checked = line.text.and_then(|text| parse(&text).map(|conversation| (text, conversation)));
        match checked {
            Ok((text, conversation)) => sender.add(line.number, text, conversation)?,
            Err(reason) => sender.report.refuse(line.number, &reason),
        }
        sender.report.tick();
    }
}

/// A conversation as it is sent: the text of its line.
struct Item {
    number: u64,
    text: Vec<u8>,
}

struct Sender<'a, 'b> {
    client: Client,
    ctx: Ctx,
    batch: Vec<Item>,
    bytes: usize,
    /// Lines with the same key may be parts of one session: they keep their order.
    keys: HashSet<(Option<String>, Option<String>)>,
    report: &'a mut Report<'b>,
}

impl Sender<'_, '_> {
    fn add(&mut self, number: u64, text: Vec<u8>, conversation: Conversation) -> anyhow::Result<()> {
        if text.len() > REQUEST_BYTES {
            self.flush()?;
            return self.send_parts(number, conversation, REQUEST_BYTES);
        }
        let key = (conversation.user_id, conversation.id.or(conversation.session_id));
        if self.bytes + text.len() > REQUEST_BYTES
            || self.batch.len() == IMPORT_SESSIONS_MAX
            || self.keys.contains(&key)
        {
            self.flush()?;
        }
        self.keys.insert(key);
        self.bytes += text.len() + 1;
        self.batch.push(Item { number, text });
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        self.keys.clear();
        self.send(&batch)
    }

    /// Sends conversations together; those of a request that is refused whole are sent in halves,
    /// so that only the one at fault is left out.
    fn send(&mut self, items: &[Item]) -> anyhow::Result<()> {
        let Some((first, rest)) = items.split_first() else { return Ok(()) };
        let texts: Vec<_> = items.iter().map(|item| item.text.as_slice()).collect();
        match self.client.import(&texts, self.report)? {
            Answer::Stored(stored) => {
                self.count(&stored, items.len());
                for refused in &stored.refused {
                    let number = items.get(refused.index).map_or(first.number, |item| item.number);
                    self.report.refuse(number, refused.detail.trim_start());
                }
                Ok(())
            }
            Answer::TooLarge(reason) if rest.is_empty() => self.send_smaller(first, &reason),
            Answer::Refused(reason) if rest.is_empty() => {
                self.report.refuse(first.number, &reason);
                Ok(())
            }
            Answer::TooLarge(_) | Answer::Refused(_) => {
                let (left, right) = items.split_at(items.len() / 2);
                self.send(left)?;
                self.send(right)
            }
        }
    }

    fn count(&mut self, stored: &ImportResponse, sent: usize) {
        let tally = &mut self.report.tally;
        tally.sessions += stored.sessions;
        tally.messages += stored.messages;
        tally.known += (sent as u64).saturating_sub(stored.sessions + stored.refused.len() as u64);
        self.report.tick();
    }

    /// A server may take less than is usual.
    fn send_smaller(&mut self, item: &Item, reason: &str) -> anyhow::Result<()> {
        match parse(&item.text) {
            Ok(conversation) if conversation.messages.len() > 1 => {
                self.send_parts(item.number, conversation, item.text.len() / 2)
            }
            _ => {
                self.report.refuse(item.number, reason);
                Ok(())
            }
        }
    }

    /// Sends a long conversation in parts of about `bytes_max`, up to one that is refused.
    fn send_parts(&mut self, number: u64, conversation: Conversation, bytes_max: usize) -> anyhow::Result<()> {
        let long = Long::new(conversation, &self.ctx)?;
        for part in long.parts(bytes_max) {
            if !self.send_part(number, &long, part)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether the part was stored; one that is too large is sent in halves.
    fn send_part(&mut self, number: u64, long: &Long, part: Range<usize>) -> anyhow::Result<bool> {
        let reason = match self.client.import(&[&long.text(part.clone())], self.report)? {
            Answer::Stored(stored) if stored.refused.is_empty() => {
                // It is one conversation, whatever its parts.
                self.count(&stored, usize::from(part.start == 0));
                return Ok(true);
            }
            Answer::Stored(stored) => {
                stored.refused.into_iter().next().map(|refused| refused.detail).unwrap_or_default()
            }
            Answer::TooLarge(_) if part.len() > 1 => {
                let middle = part.start + part.len() / 2;
                return Ok(self.send_part(number, long, part.start..middle)?
                    && self.send_part(number, long, middle..part.end)?);
            }
            Answer::TooLarge(reason) | Answer::Refused(reason) => reason,
        };
        let stored = match part.start {
            0 => String::new(),
            before => format!(" (the first {before} of its messages are stored)"),
        };
        self.report.refuse(number, &format!("{}{stored}", reason.trim_start()));
        Ok(false)
    }
}

/// A conversation to be cut into parts.
struct Long {
    /// Its line up to the messages.
    head: String,
    /// The messages' texts, each with its place.
    messages: Vec<String>,
}

impl Long {
    fn new(mut conversation: Conversation, ctx: &Ctx) -> anyhow::Result<Self> {
        let messages = std::mem::take(&mut conversation.messages);
        // Every part must say the same.
        let first_at = messages.iter().find_map(|message| message.created_at);
        conversation.created_at = Some(conversation.created_at.or(first_at).unwrap_or_else(|| ctx.now()));
        let head = line_head(&conversation)?;
        let text = |(n, mut message): (usize, ConversationMessage)| {
            message.seq = message.seq.or(i64::try_from(n + 1).ok());
            serde_json::to_string(&message)
        };
        Ok(Self { head, messages: messages.into_iter().enumerate().map(text).collect::<Result<_, _>>()? })
    }

    /// At least one message each, and one part even if there are none.
    fn parts(&self, bytes_max: usize) -> Vec<Range<usize>> {
        let (mut parts, mut start, mut bytes) = (Vec::new(), 0, 0);
        for (n, message) in self.messages.iter().enumerate() {
            if n > start && bytes + message.len() > bytes_max {
                parts.push(start..n);
                (start, bytes) = (n, 0);
            }
            bytes += message.len() + 1;
        }
        parts.push(start..self.messages.len());
        parts
    }

    fn text(&self, part: Range<usize>) -> Vec<u8> {
        format!("{}{}]}}", self.head, self.messages[part].join(",")).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_conversation_is_cut_between_messages() {
        let line = br#"{"id":"a","messages":[{"content":"one"},{"content":"two","seq":2},{"content":"three"}]}"#;
        let long = Long::new(parse(line).unwrap(), &Ctx::system()).unwrap();
        assert_eq!(long.parts(1), [0..1, 1..2, 2..3]);
        assert_eq!(long.parts(1 << 20).len(), 1);
        let part = parse(&long.text(1..3)).unwrap();
        let seqs: Vec<_> = part.messages.iter().map(|message| message.seq).collect();
        assert_eq!((part.id.as_deref(), seqs), (Some("a"), vec![Some(2), Some(3)]));
        assert!(part.created_at.is_some());
    }
}
