//! Protobuf surgery without a schema: find the model id in an encoded message, or put another one in its place.
//!
//! A path is the field numbers from the message down to the id, `[1]` for ModelInfer, `[1, 1]` for TensorFlow
//! Serving's Predict. Bytes are spliced, never re-encoded: what is not the id, or a length around it, stays as it came.
//!
//! A message may hold the id more than once, and then parsers let the last one win. So the first one names the model
//! and [`replace`] changes all of them: whatever the model server's parser picks, it is the id the call was routed by.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::wire::{self, Field, Fields, VARINT_BYTES_MAX, WireError, WireType};

/// The longest path: more wrappers than any known protocol has around its model id.
pub const PATH_DEPTH_MAX: usize = 16;

/// How often one message may hold the id. Each occurrence grows by the new id's length, so an unbounded number would
/// let a small message become a huge one.
pub const OCCURRENCES_MAX: usize = 64;

/// Why an id could not be read from, or written into, a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceError {
    /// The bytes are no protobuf message.
    Malformed(WireError),
    /// A field on the path is no string or message.
    NotLengthDelimited {
        /// The field's number.
        field: u32,
    },
    /// The id is not UTF-8.
    NotUtf8,
    /// The id occurs more than [`OCCURRENCES_MAX`] times.
    TooMany,
    /// The path holds an impossible field number or more than [`PATH_DEPTH_MAX`] elements.
    BadPath,
}

impl fmt::Display for SpliceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => {
                write!(f, "The request body is not a protobuf message: {error}.")
            }
            Self::NotLengthDelimited { field } => {
                write!(
                    f,
                    "Field {field} on the way to the model id is not a string or message; check the request type."
                )
            }
            Self::NotUtf8 => write!(f, "The model id in the request body is not UTF-8."),
            Self::TooMany => write!(
                f,
                "The request body names a model more than {OCCURRENCES_MAX} times; name it once."
            ),
            Self::BadPath => write!(
                f,
                "An id extraction path has 1 to {PATH_DEPTH_MAX} field numbers, each between 1 and {}; correct the data plane configuration.",
                wire::FIELD_NUMBER_MAX
            ),
        }
    }
}

impl std::error::Error for SpliceError {}

impl From<WireError> for SpliceError {
    fn from(error: WireError) -> Self {
        Self::Malformed(error)
    }
}

/// The first id in `message` at `path`; `None` when the field is absent (an empty path names no field). What follows the
/// id is not looked at.
///
/// # Errors
/// When the bytes up to the id are malformed, hold groups, or the path does not fit them.
pub fn extract<'a>(path: &[u32], message: &'a [u8]) -> Result<Option<&'a str>, SpliceError> {
    check(path)?;
    let Some(bytes) = first(path, message)? else {
        return Ok(None);
    };
    std::str::from_utf8(bytes)
        .map(Some)
        .map_err(|_| SpliceError::NotUtf8)
}

/// `message` with every id at `path` being `id`. Where there is none, it is appended, with the wrappers that are
/// missing, to the deepest wrapper present. If nothing changes, the same buffer is returned without a copy.
///
/// # Errors
/// When the bytes are malformed, hold groups, the path does not fit them, or the id occurs too often.
pub fn replace(path: &[u32], message: &Bytes, id: &str) -> Result<Bytes, SpliceError> {
    check(path)?;
    if path.is_empty() {
        return Ok(message.clone());
    }
    let mut plan = Plan {
        id,
        patches: Vec::new(),
        occurrences: 0,
    };
    let mut growth = plan.replace_all(path, message, 0)?;
    if plan.occurrences == 0 {
        growth = plan.append(path, message, 0)?;
    }
    if plan.patches.is_empty() {
        return Ok(message.clone());
    }
    Ok(plan.apply(message, message.len().saturating_add_signed(growth)))
}

fn check(path: &[u32]) -> Result<(), SpliceError> {
    let possible = |number: &u32| (1..=wire::FIELD_NUMBER_MAX).contains(number);
    if path.len() > PATH_DEPTH_MAX || !path.iter().all(possible) {
        Err(SpliceError::BadPath)
    } else {
        Ok(())
    }
}

fn first<'a>(path: &[u32], message: &'a [u8]) -> Result<Option<&'a [u8]>, SpliceError> {
    let Some((&number, inner)) = path.split_first() else {
        return Ok(None);
    };
    for field in Fields::of(message) {
        let field = field?;
        if field.number != number {
            continue;
        }
        let value = &message[content(&field)?];
        if inner.is_empty() {
            return Ok(Some(value));
        }
        if let Some(found) = first(inner, value)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn content(field: &Field) -> Result<Range<usize>, SpliceError> {
    if field.wire_type == WireType::LengthDelimited {
        Ok(field.value.clone())
    } else {
        Err(SpliceError::NotLengthDelimited {
            field: field.number,
        })
    }
}

/// New bytes for a range of the old message.
struct Patch {
    range: Range<usize>,
    bytes: Vec<u8>,
}

impl Patch {
    fn growth(&self) -> isize {
        self.bytes.len().cast_signed() - self.range.len().cast_signed()
    }
}

/// The patches of one message, in the order of their ranges.
struct Plan<'a> {
    id: &'a str,
    patches: Vec<Patch>,
    occurrences: usize,
}

impl Plan<'_> {
    /// Plans to replace every id under `message`, which starts at `base` of the whole. Returns by how many bytes it grows.
    fn replace_all(
        &mut self,
        path: &[u32],
        message: &[u8],
        base: usize,
    ) -> Result<isize, SpliceError> {
        let (number, inner) = (path[0], &path[1..]);
        let mut growth = 0;
        for field in Fields::of(message) {
            let field = field?;
            if field.number != number {
                continue;
            }
            let value = content(&field)?;
            if inner.is_empty() {
                growth += self.replace_one(
                    &message[value.clone()],
                    base + field.after_tag..base + value.end,
                )?;
            } else {
                let at = self.patches.len();
                let inside =
                    self.replace_all(inner, &message[value.clone()], base + value.start)?;
                growth += inside + self.rewrite_length(at, &field, base, inside);
            }
        }
        Ok(growth)
    }

    fn replace_one(&mut self, old: &[u8], range: Range<usize>) -> Result<isize, SpliceError> {
        self.occurrences += 1;
        if self.occurrences > OCCURRENCES_MAX {
            return Err(SpliceError::TooMany);
        }
        if old == self.id.as_bytes() {
            return Ok(0);
        }
        let mut bytes = Vec::with_capacity(VARINT_BYTES_MAX + self.id.len());
        wire::put_varint(self.id.len() as u64, &mut bytes);
        bytes.extend_from_slice(self.id.as_bytes());
        Ok(self.push(Patch { range, bytes }))
    }

    /// Plans the new length of a wrapper whose content grows by `inside`; `at` is where its content's patches begin.
    /// Returns by how much the length itself grows.
    fn rewrite_length(&mut self, at: usize, field: &Field, base: usize, inside: isize) -> isize {
        if inside == 0 {
            return 0;
        }
        let mut bytes = Vec::with_capacity(VARINT_BYTES_MAX);
        wire::put_varint(
            field.value.len().saturating_add_signed(inside) as u64,
            &mut bytes,
        );
        let patch = Patch {
            range: base + field.after_tag..base + field.value.start,
            bytes,
        };
        let growth = patch.growth();
        self.patches.insert(at, patch);
        growth
    }

    /// Plans to append the id to a message that has none, inside the first wrapper of each level that is there.
    fn append(&mut self, path: &[u32], message: &[u8], base: usize) -> Result<isize, SpliceError> {
        if path.len() > 1 {
            for field in Fields::of(message) {
                let field = field?;
                if field.number == path[0] {
                    let value = content(&field)?;
                    let at = self.patches.len();
                    let inside =
                        self.append(&path[1..], &message[value.clone()], base + value.start)?;
                    return Ok(inside + self.rewrite_length(at, &field, base, inside));
                }
            }
        }
        let end = base + message.len();
        let mut bytes = self.id.as_bytes().to_vec();
        for &number in path.iter().rev() {
            let mut outer = Vec::with_capacity(bytes.len() + 2 * VARINT_BYTES_MAX);
            wire::put_length_delimited(number, &bytes, &mut outer);
            bytes = outer;
        }
        Ok(self.push(Patch {
            range: end..end,
            bytes,
        }))
    }

    fn push(&mut self, patch: Patch) -> isize {
        let growth = patch.growth();
        self.patches.push(patch);
        growth
    }

    fn apply(&self, message: &[u8], len: usize) -> Bytes {
        let mut out = Vec::with_capacity(len);
        let mut copied = 0;
        for patch in &self.patches {
            out.extend_from_slice(&message[copied..patch.range.start]);
            out.extend_from_slice(&patch.bytes);
            copied = patch.range.end;
        }
        out.extend_from_slice(&message[copied..]);
        debug_assert_eq!(out.len(), len);
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The naive model: a message as the list of its fields, decoded along the path, changed, and encoded again.
    #[derive(Clone, Debug)]
    enum Value {
        Varint(u64),
        Fixed32([u8; 4]),
        Fixed64([u8; 8]),
        Content(Vec<u8>),
        Message(Vec<(u32, Value)>),
    }

    fn encode(fields: &[(u32, Value)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, value) in fields {
            match value {
                Value::Varint(n) => {
                    wire::put_tag(*number, WireType::Varint, &mut out);
                    wire::put_varint(*n, &mut out);
                }
                Value::Fixed32(b) => {
                    wire::put_tag(*number, WireType::Fixed32, &mut out);
                    out.extend_from_slice(b);
                }
                Value::Fixed64(b) => {
                    wire::put_tag(*number, WireType::Fixed64, &mut out);
                    out.extend_from_slice(b);
                }
                Value::Content(b) => wire::put_length_delimited(*number, b, &mut out),
                Value::Message(inner) => {
                    wire::put_length_delimited(*number, &encode(inner), &mut out)
                }
            }
        }
        out
    }

    fn model_extract(path: &[u32], fields: &[(u32, Value)]) -> Option<Vec<u8>> {
        fields
            .iter()
            .filter(|(number, _)| *number == path[0])
            .find_map(|(_, value)| match value {
                Value::Content(bytes) if path.len() == 1 => Some(bytes.clone()),
                Value::Message(inner) if path.len() > 1 => model_extract(&path[1..], inner),
                _ => None,
            })
    }

    fn model_replace(path: &[u32], fields: &mut [(u32, Value)], id: &str) -> usize {
        let mut replaced = 0;
        for (_, value) in fields.iter_mut().filter(|(number, _)| *number == path[0]) {
            match value {
                Value::Content(bytes) if path.len() == 1 => {
                    *bytes = id.as_bytes().to_vec();
                    replaced += 1;
                }
                Value::Message(inner) => replaced += model_replace(&path[1..], inner, id),
                _ => {}
            }
        }
        replaced
    }

    fn model_append(path: &[u32], fields: &mut Vec<(u32, Value)>, id: &str) {
        if path.len() == 1 {
            fields.push((path[0], Value::Content(id.as_bytes().to_vec())));
            return;
        }
        if let Some((_, Value::Message(inner))) =
            fields.iter_mut().find(|(number, _)| *number == path[0])
        {
            model_append(&path[1..], inner, id);
        } else {
            let mut inner = Vec::new();
            model_append(&path[1..], &mut inner, id);
            fields.push((path[0], Value::Message(inner)));
        }
    }

    /// Fields that are not on the path: numbers 4 to 2000, the path being of 1 to 3.
    fn other() -> impl Strategy<Value = (u32, Value)> {
        let value = prop_oneof![
            any::<u64>().prop_map(Value::Varint),
            any::<[u8; 4]>().prop_map(Value::Fixed32),
            any::<[u8; 8]>().prop_map(Value::Fixed64),
            prop::collection::vec(any::<u8>(), 0..200).prop_map(Value::Content),
        ];
        (4u32..2000, value)
    }

    fn message(path: &'static [u32]) -> BoxedStrategy<Vec<(u32, Value)>> {
        let on_path = if path.len() == 1 {
            "\\PC{0,130}"
                .prop_map(move |id| (path[0], Value::Content(id.into_bytes())))
                .boxed()
        } else {
            message(&path[1..])
                .prop_map(move |inner| (path[0], Value::Message(inner)))
                .boxed()
        };
        prop::collection::vec(prop_oneof![2 => other(), 1 => on_path], 0..6).boxed()
    }

    fn path_and_message() -> impl Strategy<Value = (&'static [u32], Vec<(u32, Value)>)> {
        let with = |path: &'static [u32]| message(path).prop_map(move |m| (path, m));
        prop_oneof![
            with(&[1]),
            with(&[2, 1]),
            with(&[1, 1, 1]),
            with(&[3, 2, 3, 1])
        ]
    }

    proptest! {
        #[test]
        fn is_what_decoding_changing_and_encoding_gives(
            (path, mut fields) in path_and_message(),
            id in "\\PC{0,200}",
        ) {
            let encoded = Bytes::from(encode(&fields));
            let found = extract(path, &encoded).unwrap().map(|s| s.as_bytes().to_vec());
            prop_assert_eq!(found, model_extract(path, &fields));

            if model_replace(path, &mut fields, &id) == 0 {
                model_append(path, &mut fields, &id);
            }
            let spliced = replace(path, &encoded, &id).unwrap();
            prop_assert_eq!(&spliced[..], &encode(&fields)[..]);
            prop_assert_eq!(extract(path, &spliced).unwrap(), Some(id.as_str()));
            prop_assert_eq!(replace(path, &spliced, &id).unwrap().as_ptr(), spliced.as_ptr());
        }

        #[test]
        fn any_bytes_are_spliced_or_refused(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(10u8), Just(0u8), 1u8..9], 0..64),
            path in prop::collection::vec(1u32..4, 0..4),
        ) {
            let bytes = Bytes::from(bytes);
            let _ = extract(&path, &bytes);
            if let Ok(spliced) = replace(&path, &bytes, "model-7") {
                let expected = if path.is_empty() { None } else { Some("model-7") };
                prop_assert_eq!(extract(&path, &spliced).unwrap(), expected);
            }
        }

        #[test]
        fn a_truncated_message_is_refused((path, fields) in path_and_message(), cut in any::<prop::sample::Index>()) {
            let encoded = encode(&fields);
            prop_assume!(!encoded.is_empty());
            let whole: Vec<usize> = Fields::of(&encoded).map(|f| f.unwrap().value.end).collect();
            let cut = cut.index(encoded.len());
            prop_assume!(cut != 0 && !whole.contains(&cut));
            let cut = Bytes::copy_from_slice(&encoded[..cut]);
            prop_assert!(matches!(replace(path, &cut, "m"), Err(SpliceError::Malformed(_))));
        }
    }

    #[test]
    fn lengths_grow_from_one_byte_to_two() {
        let message = encode(&[(1, Value::Message(vec![(1, Value::Content(b"m".to_vec()))]))]);
        assert_eq!(message, [0x0a, 3, 0x0a, 1, b'm']);
        let id = "x".repeat(126);
        let spliced = replace(&[1, 1], &message.into(), &id).unwrap();
        assert_eq!(spliced[..5], [0x0a, 0x80, 0x01, 0x0a, 126]);
        assert_eq!(spliced.len(), 5 + 126);
    }

    #[test]
    fn a_second_id_does_not_redirect_the_call() {
        let message = Bytes::from_static(b"\x0a\x01a\x0a\x05other");
        assert_eq!(extract(&[1], &message), Ok(Some("a")));
        assert_eq!(
            &replace(&[1], &message, "b").unwrap()[..],
            b"\x0a\x01b\x0a\x01b"
        );
    }

    #[test]
    fn ids_by_the_thousand_are_refused() {
        let message = Bytes::from([0x0a, 0].repeat(OCCURRENCES_MAX + 1));
        assert_eq!(replace(&[1], &message, "model"), Err(SpliceError::TooMany));
    }

    #[test]
    fn a_length_written_longer_than_needed_is_read_and_kept() {
        let message = Bytes::from_static(b"\x0a\x81\x00a");
        assert_eq!(extract(&[1], &message), Ok(Some("a")));
        assert_eq!(
            replace(&[1], &message, "a").unwrap().as_ptr(),
            message.as_ptr()
        );
        assert_eq!(&replace(&[1], &message, "bc").unwrap()[..], b"\x0a\x02bc");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let refused = |path: &[u32], bytes: &'static [u8]| {
            replace(path, &Bytes::from_static(bytes), "m").unwrap_err()
        };
        assert_eq!(
            refused(&[1], b"\x0b\x0c"),
            SpliceError::Malformed(WireError::Group)
        );
        assert_eq!(
            refused(&[1], b"\x0a\x05ab"),
            SpliceError::Malformed(WireError::Truncated)
        );
        assert_eq!(
            refused(&[1], b"\x08\x01"),
            SpliceError::NotLengthDelimited { field: 1 }
        );
        assert_eq!(refused(&[0], b""), SpliceError::BadPath);
        assert_eq!(refused(&[1; PATH_DEPTH_MAX + 1], b""), SpliceError::BadPath);
        assert_eq!(extract(&[1], b"\x0a\x01\xff"), Err(SpliceError::NotUtf8));
        let huge = b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(
            refused(&[1], huge),
            SpliceError::Malformed(WireError::Truncated)
        );
        let overflowing = b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02";
        assert_eq!(
            refused(&[1], overflowing),
            SpliceError::Malformed(WireError::Varint)
        );
    }
}
