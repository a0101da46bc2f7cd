//! Ids: UUIDs of version 7 whose low 16 bits say where a row lives.

use std::fmt;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Placement of a session and all that hangs on it: the low 16 bits of its id.
///
/// It is a hash of project and user, so that one user's chats stand together. Placement only,
/// never permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket(u16);

impl From<u16> for Bucket {
    fn from(bits: u16) -> Self {
        Self(bits)
    }
}

impl From<[u8; 2]> for Bucket {
    fn from(bytes: [u8; 2]) -> Self {
        Self(u16::from_be_bytes(bytes))
    }
}

impl Bucket {
    /// The bucket of all sessions of one user: the first two bytes of
    /// SHA-256(`"user"`, project id, user id), big-endian.
    pub fn of_user(project_id: ProjectId, user_id: &str) -> Self {
        Self::hash("user", project_id, user_id)
    }

    /// The bucket of a session without a user that brought its own id.
    pub fn of_external_id(project_id: ProjectId, external_id: &str) -> Self {
        Self::hash("external_id", project_id, external_id)
    }

    /// The 16 bits.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// `id` with its low 16 bits replaced by this bucket.
    pub(crate) fn mark(self, id: Uuid) -> Uuid {
        let mut bytes = id.into_bytes();
        bytes[14..].copy_from_slice(&self.0.to_be_bytes());
        Uuid::from_bytes(bytes)
    }

    fn of(id: Uuid) -> Self {
        let bytes = id.as_bytes();
        Self(u16::from_be_bytes([bytes[14], bytes[15]]))
    }

    fn hash(kind: &str, project_id: ProjectId, name: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(kind.as_bytes());
        hash.update(project_id.uuid().as_bytes());
        hash.update(name.as_bytes());
        let digest = hash.finalize();
        Self(u16::from_be_bytes([digest[0], digest[1]]))
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Reads the canonical form (36 characters, hyphens, either case); every other text
            /// names nothing.
            pub fn parse(text: &str) -> Option<Self> {
                if text.len() != 36 {
                    return None;
                }
                Uuid::try_parse(text).ok().map(Self)
            }

            /// The UUID.
            pub fn uuid(self) -> Uuid {
                self.0
            }

            /// The 16 bytes as stored.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Where its row lives.
            pub fn bucket(self) -> Bucket {
                Bucket::of(self.0)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut buffer = [0; 36];
                serializer.serialize_str(self.0.hyphenated().encode_lower(&mut buffer))
            }
        }
    };
}

id_type! {
    /// Names a session.
    SessionId
}
id_type! {
    /// Names a message.
    MessageId
}
id_type! {
    /// Names a project.
    ProjectId
}

id_type! {
    /// Names an event of the audit log.
    AuditEventId
}

impl SessionId {
    /// Reads the form of the Conversations wire, `conv_` and 32 hexadecimal digits.
    pub fn parse_conversation_id(text: &str) -> Option<Self> {
        parse_hex(text.strip_prefix("conv_")?).map(Self)
    }

    /// The form of the Conversations wire.
    pub fn to_conversation_id(self) -> String {
        format!("conv_{}", self.0.simple())
    }
}

impl MessageId {
    /// Reads the form of the Conversations wire, a prefix that names a type, `_` and 32 hexadecimal digits: `msg_…`.
    pub fn parse_item_id(text: &str) -> Option<Self> {
        let (prefix, digits) = text.rsplit_once('_')?;
        let is_word = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if is_word { parse_hex(digits).map(Self) } else { None }
    }

    /// The form of the Conversations wire.
    pub fn to_item_id(self, prefix: &str) -> String {
        format!("{prefix}_{}", self.0.simple())
    }
}

/// 32 lower-case hexadecimal digits.
fn parse_hex(digits: &str) -> Option<Uuid> {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() == 32 && digits.bytes().all(is_hex) { Uuid::try_parse(digits).ok() } else { None }
}

impl ProjectId {
    /// The project named `default`, the same in every installation, so that ids keep their
    /// buckets when its data moves.
    pub const DEFAULT: Self = Self(Uuid::from_bytes([0, 0, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 1]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_names_something() {
        let id = "018f4e2a-7b1c-7def-8abc-0123456789ab";
        assert_eq!(SessionId::parse(id).unwrap().to_string(), id);
        assert_eq!(SessionId::parse(&id.to_uppercase()).unwrap().to_string(), id);
        for text in [
            "",
            "1",
            "018f4e2a7b1c7def8abc0123456789ab",
            "{018f4e2a-7b1c-7def-8abc-0123456789ab}",
            "018f4e2a-7b1c-7def-8abc-0123456789a",
            "018f4e2a-7b1c-7def-8abc-0123456789aé",
        ] {
            assert_eq!(SessionId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_conversations_wire_writes_the_same_ids() {
        let uuid = Uuid::try_parse("018f4e2a-7b1c-7def-8abc-0123456789ab").unwrap();
        let (session_id, message_id) = (SessionId::from(uuid), MessageId::from(uuid));
        assert_eq!(session_id.to_conversation_id(), "conv_018f4e2a7b1c7def8abc0123456789ab");
        assert_eq!(SessionId::parse_conversation_id(&session_id.to_conversation_id()), Some(session_id));
        assert_eq!(message_id.to_item_id("msg"), "msg_018f4e2a7b1c7def8abc0123456789ab");
        for prefix in ["msg", "fc", "mcp_call"] {
            assert_eq!(MessageId::parse_item_id(&message_id.to_item_id(prefix)), Some(message_id));
        }
        for text in [
            "",
            "msg_",
            "018f4e2a7b1c7def8abc0123456789ab",
            "_018f4e2a7b1c7def8abc0123456789ab",
            "msg_018F4E2A7B1C7DEF8ABC0123456789AB",
            "msg_018f4e2a7b1c7def8abc0123456789a",
            "rs_abc",
        ] {
            assert_eq!(MessageId::parse_item_id(text), None, "{text}");
            assert_eq!(SessionId::parse_conversation_id(text), None, "{text}");
        }
    }

    #[test]
    fn buckets_are_the_documented_hash() {
        let mut input = b"user".to_vec();
        input.extend_from_slice(ProjectId::DEFAULT.as_bytes());
        input.extend_from_slice(b"ada");
        let digest = Sha256::digest(&input);
        let bucket = Bucket::of_user(ProjectId::DEFAULT, "ada");
        assert_eq!(bucket.bits().to_be_bytes(), digest[..2]);
        assert_ne!(bucket, Bucket::of_external_id(ProjectId::DEFAULT, "ada"));
    }
}
