//! What a JSON text means, however it is written: order of members, spaces and escapes do not count.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use sha2::{Digest as _, Sha256};

/// A longer text is the same as another only byte for byte: nobody's comparison is to take long.
const BYTES_MAX: usize = 2 << 20;
/// Integers up to this are doubles, too.
const EXACT_MAX: u64 = 1 << 53;
/// From here on integers are read as doubles: 2^64.
const DIGITS_END: f64 = 18_446_744_073_709_551_616.0;

/// A digest of the value; `None` for a text that is too long, or holds a number of 2^64 or more, whose digits a double would
/// not tell apart. It is made in one pass that keeps no more than the depth of the text.
pub(super) fn digest(json: &str) -> Option<[u8; 32]> {
    if json.len() > BYTES_MAX {
        return None;
    }
    let mut hash = Sha256::new();
    let mut deserializer = serde_json::Deserializer::from_str(json);
    Value(&mut hash).deserialize(&mut deserializer).ok()?;
    Some(hash.finalize().into())
}

/// Feeds a value to a hash.
struct Value<'a>(&'a mut Sha256);

impl Value<'_> {
    fn feed<E>(self, kind: u8, bytes: &[u8]) -> Result<(), E> {
        self.0.update([kind]);
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.feed(b'n', &[])
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.feed(b'b', &[u8::from(value)])
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match value <= EXACT_MAX {
            true => self.visit_f64(value as f64),
            false => self.feed(b'u', &value.to_be_bytes()),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        match value.unsigned_abs() <= EXACT_MAX {
            true => self.visit_f64(value as f64),
            false => self.feed(b'i', &value.to_be_bytes()),
        }
    }

    /// Integers come here, too, if they are exact: clients write 1 for 1.0.
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        if value.abs() >= DIGITS_END {
            return Err(E::custom("its digits are lost"));
        }
        // There is one zero.
        self.feed(b'd', &(value + 0.0).to_bits().to_be_bytes())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.feed(b's', value.as_bytes())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.0.update(b"[");
        while items.next_element_seed(Value(self.0))?.is_some() {}
        self.0.update(b"]");
        Ok(())
    }

    /// The digests of its members are added up, so that their order does not count.
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut sum = [0_u64; 4];
        loop {
            let mut member = Sha256::new();
            if members.next_key_seed(Value(&mut member))?.is_none() {
                break;
            }
            members.next_value_seed(Value(&mut member))?;
            let member: [u8; 32] = member.finalize().into();
            let (lanes, _) = member.as_chunks::<8>();
            for (sum, lane) in sum.iter_mut().zip(lanes) {
                *sum = sum.wrapping_add(u64::from_be_bytes(*lane));
            }
        }
        self.feed(b'{', sum.map(u64::to_be_bytes).as_flattened())
    }
}
