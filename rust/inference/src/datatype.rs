//! The protocol's datatypes: their names, element sizes, and numbers as little-endian bytes.

use std::fmt;

/// A tensor element's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are the protocol's names")]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bf16,
    Bytes,
}

impl Datatype {
    /// All of them, in the order of the protocol's table.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Fp32,
        Self::Fp64,
        Self::Bf16,
        Self::Bytes,
    ];

    /// The datatype of this name, which is case-sensitive; `None` when there is none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|datatype| datatype.name() == name)
    }

    /// The protocol's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bf16 => "BF16",
            Self::Bytes => "BYTES",
        }
    }

    /// The bytes of one element; `None` for BYTES, whose elements differ.
    #[must_use]
    pub fn size_bytes(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }

    /// The field of `InferTensorContents` that holds it; `None` for FP16 and BF16, which only travel raw.
    #[must_use]
    pub fn contents_field(self) -> Option<&'static str> {
        match self {
            Self::Bool => Some("bool_contents"),
            Self::Int8 | Self::Int16 | Self::Int32 => Some("int_contents"),
            Self::Int64 => Some("int64_contents"),
            Self::Uint8 | Self::Uint16 | Self::Uint32 => Some("uint_contents"),
            Self::Uint64 => Some("uint64_contents"),
            Self::Fp32 => Some("fp32_contents"),
            Self::Fp64 => Some("fp64_contents"),
            Self::Bytes => Some("bytes_contents"),
            Self::Fp16 | Self::Bf16 => None,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A number as the little-endian bytes it has in a raw tensor.
pub(crate) trait Element: Copy {
    fn put(self, out: &mut Vec<u8>);
    /// The elements of `raw`, whose length is a multiple of the element's.
    fn each(raw: &[u8]) -> impl Iterator<Item = Self>;
}

macro_rules! elements {
    ($($number:ty),*) => {$(
        impl Element for $number {
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn each(raw: &[u8]) -> impl Iterator<Item = Self> {
                let (chunks, _) = raw.as_chunks();
                chunks.iter().map(|bytes| Self::from_le_bytes(*bytes))
            }
        }
    )*};
}

elements!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_back() {
        for datatype in Datatype::ALL {
            assert_eq!(Datatype::named(datatype.name()), Some(datatype));
        }
        assert_eq!(Datatype::named("fp32"), None);
        assert_eq!(Datatype::named(""), None);
    }
}
