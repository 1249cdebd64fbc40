//! A tensor with its data in one form, row-major little-endian bytes, whichever form it came in; and the rules for both
//! forms of the protocol: exact lengths, BYTES framing, the contents field of the datatype, shapes that cannot overflow.

use std::fmt::Display;

use bytes::{Buf, Bytes};

use crate::Invalid;
use crate::datatype::{Datatype, Element};
use crate::messages::{InferTensor, InferTensorContents, Parameters};

/// The most dimensions a tensor may have: what numpy has allowed in all its versions.
pub const RANK_MAX: usize = 32;

/// A named tensor; its data has exactly the elements its shape says.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The input's or output's name.
    pub name: String,
    /// The type of the elements.
    pub datatype: Datatype,
    /// Dimensions, none of them negative; the product fits the address space.
    pub shape: Vec<i64>,
    /// The tensor's own parameters.
    pub parameters: Parameters,
    /// The elements.
    pub data: TensorData,
}

/// The elements of a tensor in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorData {
    /// Numbers and booleans as little-endian bytes without padding; a boolean is one byte, 0 or 1.
    Fixed(Bytes),
    /// The elements of a BYTES tensor.
    Elements(Vec<Bytes>),
}

/// How many elements a shape has.
///
/// # Errors
/// When a dimension is negative, there are more than [`RANK_MAX`], or the bytes of so many elements overflow. A zero
/// among the dimensions excuses none of this.
pub fn element_count(name: &str, datatype: Datatype, shape: &[i64]) -> Result<usize, Invalid> {
    if shape.len() > RANK_MAX {
        return Err(Invalid::new(format!(
            "Tensor '{name}' has {} dimensions; at most {RANK_MAX} are possible.",
            shape.len()
        )));
    }
    let mut count = 1usize;
    let mut bytes = datatype.size_bytes().unwrap_or(1);
    for &dimension in shape {
        let Ok(dimension) = usize::try_from(dimension) else {
            return Err(Invalid::new(format!(
                "Tensor '{name}' has the shape {shape:?}; write the actual size for {dimension}."
            )));
        };
        bytes = bytes
            .checked_mul(dimension.max(1))
            .filter(|bytes| *bytes <= isize::MAX.unsigned_abs())
            .ok_or_else(|| {
                Invalid::new(format!(
                    "Tensor '{name}' has the shape {shape:?}, which is too large."
                ))
            })?;
        count = count.saturating_mul(dimension);
    }
    Ok(count)
}

impl Tensor {
    /// A tensor of a message: `raw` is its entry of `raw_input_contents` or `raw_output_contents`, `None` in the typed form.
    ///
    /// # Errors
    /// When the datatype is unknown, or the data is not exactly what datatype and shape say.
    pub fn from_message(tensor: InferTensor, raw: Option<Bytes>) -> Result<Self, Invalid> {
        let InferTensor {
            name,
            datatype,
            shape,
            parameters,
            contents,
        } = tensor;
        let datatype = parse_datatype(&name, &datatype)?;
        let count = element_count(&name, datatype, &shape)?;
        let contents = contents.unwrap_or_default();
        let data = match raw {
            Some(_) if filled_fields(&contents).next().is_some() => return Err(mixed(&name)),
            Some(raw) => check_raw(&name, datatype, &shape, count, raw)?,
            None => from_contents(&name, datatype, &shape, count, contents)?,
        };
        Ok(Self {
            name,
            datatype,
            shape,
            parameters,
            data,
        })
    }

    /// The tensor in the raw form: what describes it, and its entry of the raw list.
    #[must_use]
    pub fn into_raw(self) -> (InferTensor, Bytes) {
        let raw = match &self.data {
            TensorData::Fixed(bytes) => bytes.clone(),
            TensorData::Elements(elements) => frame(elements),
        };
        (self.describe(None), raw)
    }

    /// The tensor in the typed form. FP16 and BF16 have none ([`Datatype::contents_field`]) and come out empty.
    #[must_use]
    pub fn into_typed(self) -> InferTensor {
        let contents = to_contents(self.datatype, &self.data);
        self.describe(Some(contents))
    }

    fn describe(self, contents: Option<InferTensorContents>) -> InferTensor {
        let Self {
            name,
            datatype,
            shape,
            parameters,
            ..
        } = self;
        InferTensor {
            name,
            datatype: datatype.name().to_owned(),
            shape,
            parameters,
            contents,
        }
    }
}

pub(crate) fn parse_datatype(name: &str, datatype: &str) -> Result<Datatype, Invalid> {
    Datatype::named(datatype).ok_or_else(|| {
        let known = Datatype::ALL.map(Datatype::name).join(", ");
        Invalid::new(format!(
            "Tensor '{name}' has the datatype '{datatype}'; write one of {known}."
        ))
    })
}

pub(crate) fn wrong_count(name: &str, shape: &[i64], count: usize, found: impl Display) -> Invalid {
    Invalid::new(format!(
        "Tensor '{name}' has the shape {shape:?}, which is {count} elements, but its data has {found}."
    ))
}

fn mixed(name: &str) -> Invalid {
    Invalid::new(format!(
        "Tensor '{name}' has typed contents in a message with raw contents; send all tensors in the same form."
    ))
}

fn check_raw(
    name: &str,
    datatype: Datatype,
    shape: &[i64],
    count: usize,
    raw: Bytes,
) -> Result<TensorData, Invalid> {
    let Some(size) = datatype.size_bytes() else {
        return Ok(TensorData::Elements(unframe(name, shape, count, raw)?));
    };
    if raw.len() != count * size {
        return Err(Invalid::new(format!(
            "Tensor '{name}' ({datatype}, shape {shape:?}) needs {} raw bytes, but has {}.",
            count * size,
            raw.len()
        )));
    }
    if datatype == Datatype::Bool && raw.iter().any(|byte| *byte > 1) {
        return Err(Invalid::new(format!(
            "Tensor '{name}' is BOOL, whose raw bytes are 0 or 1, but has others."
        )));
    }
    Ok(TensorData::Fixed(raw))
}

/// Takes BYTES elements apart: each is a four-byte little-endian length and that many bytes.
fn unframe(name: &str, shape: &[i64], count: usize, mut raw: Bytes) -> Result<Vec<Bytes>, Invalid> {
    let mut elements = Vec::with_capacity(count.min(raw.len() / 4));
    while !raw.is_empty() {
        let len = raw
            .try_get_u32_le()
            .map(|len| len as usize)
            .ok()
            .filter(|len| *len <= raw.len());
        let Some(len) = len else {
            return Err(Invalid::new(format!(
                "Tensor '{name}' is BYTES, but its raw data ends within element {}; each is a 4-byte little-endian length and that many bytes.",
                elements.len()
            )));
        };
        elements.push(raw.split_to(len));
    }
    if elements.len() == count {
        Ok(elements)
    } else {
        Err(wrong_count(name, shape, count, elements.len()))
    }
}

fn frame(elements: &[Bytes]) -> Bytes {
    let mut out = Vec::with_capacity(elements.iter().map(|element| 4 + element.len()).sum());
    for element in elements {
        let len = u32::try_from(element.len())
            .expect("an element is part of a message, and those are below 4 GiB");
        len.put(&mut out);
        out.extend_from_slice(element);
    }
    out.into()
}

fn filled_fields(contents: &InferTensorContents) -> impl Iterator<Item = (&'static str, usize)> {
    [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ]
    .into_iter()
    .filter(|(_, len)| *len != 0)
}

fn from_contents(
    name: &str,
    datatype: Datatype,
    shape: &[i64],
    count: usize,
    contents: InferTensorContents,
) -> Result<TensorData, Invalid> {
    let Some(expected) = datatype.contents_field() else {
        return Err(Invalid::new(format!(
            "Tensor '{name}' is {datatype}, which only travels as raw contents."
        )));
    };
    let mut found = 0;
    for (field, len) in filled_fields(&contents) {
        if field != expected {
            return Err(Invalid::new(format!(
                "Tensor '{name}' is {datatype}, whose elements belong into {expected}, but {field} is filled."
            )));
        }
        found = len;
    }
    if found != count {
        return Err(wrong_count(name, shape, count, found));
    }
    let raw = match datatype {
        Datatype::Bool => contents.bool_contents.into_iter().map(u8::from).collect(),
        Datatype::Uint8 => narrow::<_, u8>(name, datatype, &contents.uint_contents)?,
        Datatype::Uint16 => narrow::<_, u16>(name, datatype, &contents.uint_contents)?,
        Datatype::Uint32 => to_raw(&contents.uint_contents),
        Datatype::Uint64 => to_raw(&contents.uint64_contents),
        Datatype::Int8 => narrow::<_, i8>(name, datatype, &contents.int_contents)?,
        Datatype::Int16 => narrow::<_, i16>(name, datatype, &contents.int_contents)?,
        Datatype::Int32 => to_raw(&contents.int_contents),
        Datatype::Int64 => to_raw(&contents.int64_contents),
        Datatype::Fp32 => to_raw(&contents.fp32_contents),
        Datatype::Fp64 => to_raw(&contents.fp64_contents),
        Datatype::Bytes => return Ok(TensorData::Elements(contents.bytes_contents)),
        Datatype::Fp16 | Datatype::Bf16 => unreachable!("they have no contents field"),
    };
    Ok(TensorData::Fixed(raw.into()))
}

fn to_raw<T: Element>(values: &[T]) -> Vec<u8> {
    let mut out = Vec::with_capacity(size_of_val(values));
    values.iter().for_each(|value| value.put(&mut out));
    out
}

/// Small integers travel in 32-bit fields; a value that does not fit is refused, not wrapped.
fn narrow<W, N>(name: &str, datatype: Datatype, values: &[W]) -> Result<Vec<u8>, Invalid>
where
    W: Copy + Display,
    N: Element + TryFrom<W>,
{
    let mut out = Vec::with_capacity(values.len() * size_of::<N>());
    for &value in values {
        let narrow = N::try_from(value).map_err(|_| out_of_range(name, datatype, value))?;
        narrow.put(&mut out);
    }
    Ok(out)
}

pub(crate) fn out_of_range(name: &str, datatype: Datatype, value: impl Display) -> Invalid {
    Invalid::new(format!(
        "Tensor '{name}' is {datatype}, and {value} does not fit; choose a wider datatype."
    ))
}

fn to_contents(datatype: Datatype, data: &TensorData) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    let raw = match data {
        TensorData::Fixed(raw) => raw,
        TensorData::Elements(elements) => {
            contents.bytes_contents.clone_from(elements);
            return contents;
        }
    };
    match datatype {
        Datatype::Bool => contents.bool_contents = raw.iter().map(|byte| *byte != 0).collect(),
        Datatype::Uint8 => contents.uint_contents = u8::each(raw).map(u32::from).collect(),
        Datatype::Uint16 => contents.uint_contents = u16::each(raw).map(u32::from).collect(),
        Datatype::Uint32 => contents.uint_contents = u32::each(raw).collect(),
        Datatype::Uint64 => contents.uint64_contents = u64::each(raw).collect(),
        Datatype::Int8 => contents.int_contents = i8::each(raw).map(i32::from).collect(),
        Datatype::Int16 => contents.int_contents = i16::each(raw).map(i32::from).collect(),
        Datatype::Int32 => contents.int_contents = i32::each(raw).collect(),
        Datatype::Int64 => contents.int64_contents = i64::each(raw).collect(),
        Datatype::Fp32 => contents.fp32_contents = f32::each(raw).collect(),
        Datatype::Fp64 => contents.fp64_contents = f64::each(raw).collect(),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => {}
    }
    contents
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(datatype: &str, shape: &[i64]) -> InferTensor {
        InferTensor {
            name: "x".into(),
            datatype: datatype.into(),
            shape: shape.into(),
            ..Default::default()
        }
    }

    fn raw(datatype: &str, shape: &[i64], data: &'static [u8]) -> Result<TensorData, String> {
        let tensor = Tensor::from_message(message(datatype, shape), Some(Bytes::from_static(data)));
        tensor
            .map(|tensor| tensor.data)
            .map_err(|error| error.to_string())
    }

    fn typed(
        datatype: &str,
        shape: &[i64],
        contents: InferTensorContents,
    ) -> Result<TensorData, String> {
        let tensor = InferTensor {
            contents: Some(contents),
            ..message(datatype, shape)
        };
        Tensor::from_message(tensor, None)
            .map(|tensor| tensor.data)
            .map_err(|error| error.to_string())
    }

    fn any_tensor() -> impl Strategy<Value = Tensor> {
        (
            prop::sample::select(Datatype::ALL.to_vec()),
            prop::collection::vec(0i64..4, 0..4),
        )
            .prop_flat_map(|(datatype, shape)| {
                let count = element_count("t", datatype, &shape).unwrap();
                let data = match datatype.size_bytes() {
                    None => prop::collection::vec(
                        prop::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from),
                        count,
                    )
                    .prop_map(TensorData::Elements)
                    .boxed(),
                    Some(size) => {
                        let byte = if datatype == Datatype::Bool {
                            (0..2u8).boxed()
                        } else {
                            any::<u8>().boxed()
                        };
                        let bytes = prop::collection::vec(byte, count * size);
                        bytes
                            .prop_map(|bytes| TensorData::Fixed(bytes.into()))
                            .boxed()
                    }
                };
                data.prop_map(move |data| Tensor {
                    name: "t".into(),
                    datatype,
                    shape: shape.clone(),
                    parameters: Parameters::new(),
                    data,
                })
            })
    }

    proptest! {
        #[test]
        fn both_forms_and_back(tensor in any_tensor()) {
            let (described, raw) = tensor.clone().into_raw();
            prop_assert_eq!(&Tensor::from_message(described, Some(raw)).unwrap(), &tensor);
            if tensor.datatype.contents_field().is_some() {
                let typed = tensor.clone().into_typed();
                prop_assert_eq!(&Tensor::from_message(typed, None).unwrap(), &tensor);
            }
        }

        #[test]
        fn a_wrong_length_is_refused(tensor in any_tensor(), cut in 1usize..4, longer in any::<bool>()) {
            let (described, raw) = tensor.into_raw();
            let mut raw = raw.to_vec();
            if longer {
                raw.extend(vec![0; cut]);
            } else {
                prop_assume!(raw.len() >= cut);
                raw.truncate(raw.len() - cut);
            }
            prop_assert!(Tensor::from_message(described, Some(raw.into())).is_err());
        }
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        for shape in [
            &[-1][..],
            &[2, i64::MIN],
            &[1 << 32, 1 << 32],
            &[1 << 40, 0, 1 << 40],
            &[i64::MAX],
            &[1; 33],
        ] {
            let refused = raw("FP64", shape, b"").unwrap_err();
            assert!(refused.contains("'x'"), "{refused}");
        }
        assert_eq!(
            raw("FP64", &[0, 1 << 40], b""),
            Ok(TensorData::Fixed(Bytes::new()))
        );
        assert_eq!(
            raw("UINT8", &[], b"a"),
            Ok(TensorData::Fixed(Bytes::from_static(b"a")))
        );
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        let contents = InferTensorContents {
            int_contents: vec![1, 300],
            ..Default::default()
        };
        let refused = typed("INT8", &[2], contents.clone()).unwrap_err();
        assert_eq!(
            refused,
            "Tensor 'x' is INT8, and 300 does not fit; choose a wider datatype."
        );
        assert_eq!(
            typed("INT16", &[2], contents),
            Ok(TensorData::Fixed(Bytes::from_static(&[1, 0, 44, 1])))
        );
        let refused = raw("BOOL", &[2], &[1, 2]).unwrap_err();
        assert_eq!(
            refused,
            "Tensor 'x' is BOOL, whose raw bytes are 0 or 1, but has others."
        );
    }

    #[test]
    fn the_wrong_field_or_both_forms_are_refused() {
        let contents = InferTensorContents {
            fp64_contents: vec![1.0],
            ..Default::default()
        };
        let refused = typed("FP32", &[1], contents.clone()).unwrap_err();
        assert_eq!(
            refused,
            "Tensor 'x' is FP32, whose elements belong into fp32_contents, but fp64_contents is filled."
        );
        let tensor = InferTensor {
            contents: Some(contents),
            ..message("FP64", &[1])
        };
        let refused = Tensor::from_message(tensor, Some(Bytes::from_static(&[0; 8]))).unwrap_err();
        assert!(refused.to_string().contains("same form"), "{refused}");
        assert!(
            typed("FP16", &[0], InferTensorContents::default())
                .unwrap_err()
                .contains("raw contents")
        );
        assert!(
            raw("FLOAT", &[0], b"")
                .unwrap_err()
                .contains("one of BOOL, UINT8")
        );
    }

    #[test]
    fn bytes_are_framed_exactly() {
        let elements = |parts: &[&'static str]| {
            Ok(TensorData::Elements(
                parts
                    .iter()
                    .map(|part| Bytes::from_static(part.as_bytes()))
                    .collect(),
            ))
        };
        assert_eq!(
            raw("BYTES", &[2], b"\x01\0\0\0a\0\0\0\0"),
            elements(&["a", ""])
        );
        assert!(
            raw("BYTES", &[1], b"\x02\0\0\0a")
                .unwrap_err()
                .contains("ends within element 0")
        );
        assert!(
            raw("BYTES", &[1], b"\x01\0\0")
                .unwrap_err()
                .contains("ends within element 0")
        );
        assert!(
            raw("BYTES", &[1], b"\xff\xff\xff\xff")
                .unwrap_err()
                .contains("ends within element 0")
        );
        assert!(
            raw("BYTES", &[1], b"\0\0\0\0\0\0\0\0")
                .unwrap_err()
                .contains("but its data has 2")
        );
    }
}
