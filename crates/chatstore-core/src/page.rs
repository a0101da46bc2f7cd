//! Pages: how a list is cut, and the signed cursors that lead to the next one.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::ids::{AuditEventId, MessageId, ProjectId, SessionId};
use crate::limits::PAGE_ITEMS_DEFAULT;

/// Direction of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Smallest first.
    Asc,
    /// Largest first.
    Desc,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageStart<P> {
    /// After this many items (0 is the beginning); cost grows with the number.
    Offset(u64),
    /// After the item at this position; cost does not depend on depth.
    After(P),
}

/// Which page of a list is wanted; `P` is the position type of that list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest<P> {
    /// Most items in the page, 1 to [`crate::limits::PAGE_ITEMS_MAX`].
    pub limit: u32,
    /// Where it begins.
    pub start: PageStart<P>,
}

impl<P> Default for PageRequest<P> {
    fn default() -> Self {
        Self { limit: PAGE_ITEMS_DEFAULT, start: PageStart::Offset(0) }
    }
}

/// One page: the items, and the position after which the next page begins, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, P> {
    /// The items in the list's order.
    pub items: Vec<T>,
    /// Position of the last item, when more items follow it.
    pub next: Option<P>,
}

impl<T, P> Page<T, P> {
    /// Cuts `items`, read one beyond `limit`, into a page.
    pub fn cut(mut items: Vec<T>, limit: u32, position: impl Fn(&T) -> P) -> Self {
        let limit = limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(position) } else { None };
        Self { items, next }
    }
}

/// Position of a session in a list: the value it is sorted by, then its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPosition {
    /// The time the list is sorted by.
    pub sorted_by: Timestamp,
    /// Breaks ties.
    pub session_id: SessionId,
}

/// Position of a message in its session: its `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessagePosition {
    /// The message's place, from 1.
    pub seq: i64,
}

/// Position of a key in a list: when it was made, then its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPosition {
    /// When it was made.
    pub created_at: Timestamp,
    /// Breaks ties.
    pub key_id: String,
}

/// Position of a project in a list: when it was made, then its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectPosition {
    /// When it was made.
    pub created_at: Timestamp,
    /// Breaks ties.
    pub project_id: ProjectId,
}

/// Position of an event in the audit log: its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditPosition {
    /// Ids grow with time.
    pub event_id: AuditEventId,
}

/// Position in what a search found: what the list must be made from, and where it goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchPosition {
    /// Only what was stored before this time is in the list.
    pub as_of: Timestamp,
    /// What the next page comes after.
    pub after: SearchAfter,
}

/// What the next page of a search comes after.
#[derive(Clone, Debug, PartialEq)]
pub enum SearchAfter {
    /// A hit of a list that was made by words alone: it can be made again.
    Hit {
        /// The hit's score.
        score: f64,
        /// When its message was stored.
        created_at: Timestamp,
        /// Its message.
        message_id: MessageId,
    },
    /// All that was shown, by [`SearchAfter::mark`]: vectors that arrive meanwhile move what stands
    /// in a list that was made by meaning, too.
    Shown(Vec<u32>),
}

impl SearchAfter {
    /// How many hits it names.
    pub fn shown(&self) -> usize {
        match self {
            Self::Hit { .. } => 1,
            Self::Shown(marks) => marks.len(),
        }
    }

    /// A short name of a message or session that was shown.
    pub fn mark(id: Uuid) -> u32 {
        let digest = Sha256::digest(id.as_bytes());
        u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
    }
}

/// A position that can stand in a cursor.
pub trait Position: Sized {
    /// The position as bytes.
    fn encode(&self) -> Vec<u8>;
    /// The position that [`Position::encode`] wrote.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Position for SessionPosition {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.sorted_by.as_micros().to_be_bytes().to_vec();
        bytes.extend_from_slice(self.session_id.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (us, id) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            sorted_by: Timestamp::from_micros(i64::from_be_bytes(*us))?,
            session_id: Uuid::from_slice(id).ok()?.into(),
        })
    }
}

impl Position for MessagePosition {
    fn encode(&self) -> Vec<u8> {
        self.seq.to_be_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self { seq: i64::from_be_bytes(bytes.try_into().ok()?) })
    }
}

impl Position for KeyPosition {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.created_at.as_micros().to_be_bytes().to_vec();
        bytes.extend_from_slice(self.key_id.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (us, key_id) = bytes.split_first_chunk::<8>()?;
        let created_at = Timestamp::from_micros(i64::from_be_bytes(*us))?;
        Some(Self { created_at, key_id: std::str::from_utf8(key_id).ok()?.to_owned() })
    }
}

impl Position for ProjectPosition {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.created_at.as_micros().to_be_bytes().to_vec();
        bytes.extend_from_slice(self.project_id.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (us, id) = bytes.split_first_chunk::<8>()?;
        let created_at = Timestamp::from_micros(i64::from_be_bytes(*us))?;
        Some(Self { created_at, project_id: Uuid::from_slice(id).ok()?.into() })
    }
}

impl Position for AuditPosition {
    fn encode(&self) -> Vec<u8> {
        self.event_id.as_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self { event_id: Uuid::from_slice(bytes).ok()?.into() })
    }
}

/// Begins a [`SearchAfter::Hit`] in a cursor.
const AFTER_HIT: u8 = 0;
/// Begins a [`SearchAfter::Shown`] in a cursor.
const AFTER_SHOWN: u8 = 1;

impl Position for SearchPosition {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.as_of.as_micros().to_be_bytes().to_vec();
        match &self.after {
            SearchAfter::Hit { score, created_at, message_id } => {
                bytes.push(AFTER_HIT);
                bytes.extend_from_slice(&score.to_be_bytes());
                bytes.extend_from_slice(&created_at.as_micros().to_be_bytes());
                bytes.extend_from_slice(message_id.as_bytes());
            }
            SearchAfter::Shown(marks) => {
                bytes.push(AFTER_SHOWN);
                bytes.extend(marks.iter().flat_map(|mark| mark.to_be_bytes()));
            }
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (as_of, bytes) = bytes.split_first_chunk::<8>()?;
        let (kind, bytes) = bytes.split_first()?;
        let after = if *kind == AFTER_SHOWN {
            let (marks, []) = bytes.as_chunks::<4>() else { return None };
            SearchAfter::Shown(marks.iter().map(|mark| u32::from_be_bytes(*mark)).collect())
        } else {
            let (score, bytes) = bytes.split_first_chunk::<8>()?;
            let (created_at, id) = bytes.split_first_chunk::<8>()?;
            SearchAfter::Hit {
                score: f64::from_be_bytes(*score),
                created_at: Timestamp::from_micros(i64::from_be_bytes(*created_at))?,
                message_id: Uuid::from_slice(id).ok()?.into(),
            }
        };
        Some(Self { as_of: Timestamp::from_micros(i64::from_be_bytes(*as_of))?, after })
    }
}

/// The installation's secret that signs cursors.
#[derive(Clone)]
pub struct CursorKey([u8; 32]);

/// Bytes of the signature in a cursor: HMAC-SHA-256 cut to 128 bits (RFC 2104, section 5).
const SIGNATURE_BYTES: usize = 16;

impl CursorKey {
    /// The key with these secret bytes.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// Writes a cursor: the position and a signature over it and over `binding`, which names
    /// whatever the cursor must not be used without (tenant, list, filters, order).
    pub fn sign<P: Position>(&self, position: &P, binding: &[u8]) -> String {
        let mut bytes = position.encode();
        let signature = self.signature(&bytes, binding);
        bytes.extend_from_slice(&signature);
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor that this key signed for the same `binding`; `None` for any other text.
    pub fn verify<P: Position>(&self, cursor: &str, binding: &[u8]) -> Option<P> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (position, signature) = bytes.split_last_chunk::<SIGNATURE_BYTES>()?;
        let expected = self.signature(position, binding);
        bool::from(expected.ct_eq(signature)).then(|| P::decode(position))?
    }

    /// Another secret for `purpose`, the same wherever the store is used.
    pub fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        // Longer than any position, so that nothing derived is ever a cursor's signature.
        mac.update(&u64::MAX.to_be_bytes());
        mac.update(purpose);
        mac.finalize().into_bytes().into()
    }

    fn signature(&self, position: &[u8], binding: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(&(position.len() as u64).to_be_bytes());
        mac.update(position);
        mac.update(binding);
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(&mac.finalize().into_bytes()[..SIGNATURE_BYTES]);
        signature
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_knows_whether_more_follows() {
        let page = Page::cut(vec![1, 2, 3], 2, |n| *n);
        assert_eq!((page.items, page.next), (vec![1, 2], Some(2)));
        let page = Page::cut(vec![1, 2], 2, |n| *n);
        assert_eq!((page.items, page.next), (vec![1, 2], None));
    }

    #[test]
    fn a_derived_secret_is_of_its_key_and_purpose_alone() {
        let derive = |key, purpose: &[u8]| CursorKey::new([key; 32]).derive(purpose);
        assert_eq!(derive(7, b"a"), derive(7, b"a"));
        assert_ne!(derive(7, b"a"), derive(7, b"b"));
        assert_ne!(derive(7, b"a"), derive(8, b"a"));
    }

    proptest! {
        #[test]
        fn cursors_come_back(seq in any::<i64>(), us in -1_000_000_000_000i64..1_000_000_000_000, id in any::<[u8; 16]>(), marks in any::<Vec<u32>>(), binding in any::<Vec<u8>>()) {
            let key = CursorKey::new([7; 32]);
            let message = MessagePosition { seq };
            prop_assert_eq!(key.verify(&key.sign(&message, &binding), &binding), Some(message));
            let session = SessionPosition { sorted_by: Timestamp::from_micros(us).unwrap(), session_id: Uuid::from_bytes(id).into() };
            prop_assert_eq!(key.verify(&key.sign(&session, &binding), &binding), Some(session));
            let created_at = Timestamp::from_micros(us).unwrap();
            let project = ProjectPosition { created_at, project_id: Uuid::from_bytes(id).into() };
            prop_assert_eq!(key.verify(&key.sign(&project, &binding), &binding), Some(project));
            let event = AuditPosition { event_id: Uuid::from_bytes(id).into() };
            prop_assert_eq!(key.verify(&key.sign(&event, &binding), &binding), Some(event));
            let api_key = KeyPosition { created_at, key_id: "0aZ".to_owned() };
            prop_assert_eq!(key.verify(&key.sign(&api_key, &binding), &binding), Some(api_key));
            let hit = SearchAfter::Hit { score: seq as f64 / 7.0, created_at, message_id: Uuid::from_bytes(id).into() };
            for after in [hit, SearchAfter::Shown(marks)] {
                let position = SearchPosition { as_of: created_at, after };
                prop_assert_eq!(key.verify(&key.sign(&position, &binding), &binding), Some(position));
            }
        }

        #[test]
        fn a_changed_or_foreign_cursor_is_nothing(seq in any::<i64>(), at in 0usize..32, bit in 0u8..6) {
            let key = CursorKey::new([7; 32]);
            let cursor = key.sign(&MessagePosition { seq }, b"a");
            prop_assert_eq!(key.verify::<MessagePosition>(&cursor, b"b"), None);
            prop_assert_eq!(CursorKey::new([8; 32]).verify::<MessagePosition>(&cursor, b"a"), None);
            let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(&cursor).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(key.verify::<MessagePosition>(&BASE64_URL_SAFE_NO_PAD.encode(bytes), b"a"), None);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,64}") {
            prop_assert_eq!(CursorKey::new([7; 32]).verify::<SessionPosition>(&text, b""), None);
            prop_assert_eq!(CursorKey::new([7; 32]).verify::<SearchPosition>(&text, b""), None);
        }
    }
}
