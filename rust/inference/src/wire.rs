//! The protobuf wire format (<https://protobuf.dev/programming-guides/encoding>): walking and writing fields, no schema.

use std::fmt;
use std::ops::Range;

/// The largest field number protobuf allows.
pub const FIELD_NUMBER_MAX: u32 = (1 << 29) - 1;

/// The longest varint of 64 bits.
pub const VARINT_BYTES_MAX: usize = 10;

/// Why bytes are no protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// It ends within a field.
    Truncated,
    /// A varint is longer than ten bytes or exceeds 64 bits.
    Varint,
    /// A tag has field number 0, one above [`FIELD_NUMBER_MAX`], or a wire type that does not exist.
    Tag,
    /// It holds a group, which proto3 does not have.
    Group,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "it ends within a field",
            Self::Varint => "a varint exceeds 64 bits",
            Self::Tag => "a tag is invalid",
            Self::Group => "it holds a group, and groups are not supported",
        })
    }
}

impl std::error::Error for WireError {}

/// How a field's value is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    /// A variable-length integer.
    Varint = 0,
    /// Eight bytes.
    Fixed64 = 1,
    /// A length and that many bytes: strings, bytes, messages, packed numbers.
    LengthDelimited = 2,
    /// Four bytes.
    Fixed32 = 5,
}

/// One field of a message; positions count from the message's first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The field number.
    pub number: u32,
    /// How the value is encoded.
    pub wire_type: WireType,
    /// Where the tag ends: the length begins here if there is one, else the value.
    pub after_tag: usize,
    /// The value, without the length before it.
    pub value: Range<usize>,
}

/// The fields of an encoded message in their order. Ends after the first error.
pub struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Walks `message`.
    #[must_use]
    pub fn of(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    fn field(&mut self) -> Result<Field, WireError> {
        let tag = u32::try_from(self.varint()?).map_err(|_| WireError::Tag)?;
        let (number, after_tag) = (tag >> 3, self.at);
        if number == 0 {
            return Err(WireError::Tag);
        }
        let (wire_type, len) = match tag & 7 {
            0 => {
                self.varint()?;
                return Ok(Field {
                    number,
                    wire_type: WireType::Varint,
                    after_tag,
                    value: after_tag..self.at,
                });
            }
            1 => (WireType::Fixed64, 8),
            2 => (
                WireType::LengthDelimited,
                usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?,
            ),
            3 | 4 => return Err(WireError::Group),
            5 => (WireType::Fixed32, 4),
            _ => return Err(WireError::Tag),
        };
        let start = self.at;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= self.message.len())
            .ok_or(WireError::Truncated)?;
        self.at = end;
        Ok(Field {
            number,
            wire_type,
            after_tag,
            value: start..end,
        })
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let (value, len) = varint(&self.message[self.at..])?;
        self.at += len;
        Ok(value)
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.message.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.message.len();
        }
        Some(field)
    }
}

/// The varint `bytes` begin with, and its length in bytes.
///
/// # Errors
/// When it is cut off or exceeds 64 bits.
pub fn varint(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        if i == VARINT_BYTES_MAX - 1 && byte > 1 {
            return Err(WireError::Varint);
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Ok((value, i + 1));
        }
    }
    Err(WireError::Truncated)
}

/// Appends `value` as a varint.
pub fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes `value` takes as a varint.
#[must_use]
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a field's tag.
pub fn put_tag(number: u32, wire_type: WireType, out: &mut Vec<u8>) {
    put_varint(u64::from(number << 3 | wire_type as u32), out);
}

/// Appends a string, bytes or message field.
pub fn put_length_delimited(number: u32, value: &[u8], out: &mut Vec<u8>) {
    put_tag(number, WireType::LengthDelimited, out);
    put_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_at_every_length() {
        for bits in 0..64 {
            for value in [1u64 << bits, (1 << bits) - 1, u64::MAX >> bits] {
                let mut out = Vec::new();
                put_varint(value, &mut out);
                assert_eq!(out.len(), varint_len(value));
                assert_eq!(varint(&out), Ok((value, out.len())));
                for cut in 0..out.len() {
                    assert_eq!(varint(&out[..cut]), Err(WireError::Truncated));
                }
            }
        }
    }

    #[test]
    fn invalid_tags_end_the_walk() {
        for (bytes, error) in [
            (&b"\x00\x01"[..], WireError::Tag),
            (b"\x0e", WireError::Tag),
            (b"\x0f", WireError::Tag),
            (b"\x0c", WireError::Group),
            (b"\xff\xff\xff\xff\x7f", WireError::Tag),
            (b"\x0d\x01\x02\x03", WireError::Truncated),
            (b"\x09\x01\x02\x03\x04\x05\x06\x07", WireError::Truncated),
        ] {
            assert_eq!(
                Fields::of(bytes).collect::<Vec<_>>(),
                [Err(error)],
                "{bytes:?}"
            );
        }
    }
}
