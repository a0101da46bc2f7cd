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
