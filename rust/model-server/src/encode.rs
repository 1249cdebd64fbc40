//! Responses: outputs cut by rows and written straight into their gRPC frames.

use std::ops::Range;

use bytes::Bytes;
use inference::datatype::Datatype;
use inference::infer::InferResponse;
use inference::messages::Parameters;
use inference::tensor::{Tensor, TensorData, element_count};
use inference::wire::{WireType, put_length_delimited, put_tag, put_varint};

use crate::request::Request;
use crate::status::{Code, Status};

/// A gRPC message begins with a flag (0: not compressed) and its length (u32, big-endian).
pub const PREFIX_BYTES: usize = 5;

/// Row-major little-endian bytes that can be read from anywhere; not necessarily ours to borrow.
pub trait Source {
    /// How many bytes there are.
    fn len_bytes(&self) -> usize;
    /// Appends some of them to `out`. The range is within the length.
    fn append(&self, range: Range<usize>, out: &mut Vec<u8>);
}

impl Source for Vec<u8> {
    fn len_bytes(&self) -> usize {
        self.len()
    }

    fn append(&self, range: Range<usize>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self[range]);
    }
}

/// The elements of an output.
#[derive(Clone)]
pub enum OutputData<'a> {
    /// Numbers and booleans.
    Fixed(&'a dyn Source),
    /// The elements of a BYTES tensor.
    Elements(&'a [&'a [u8]]),
}

/// One output of a whole batch.
#[derive(Clone)]
pub struct Output<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its datatype.
    pub datatype: Datatype,
    /// Its shape.
    pub shape: &'a [i64],
    /// Its elements, as many as the shape says.
    pub data: OutputData<'a>,
}

impl Output<'_> {
    /// Checks that the data is exactly what datatype and shape say.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn check(&self) -> Result<(), String> {
        let count = element_count(self.name, self.datatype, self.shape)
            .map_err(|error| error.to_string())?;
        let (found, expected, what) = match (&self.data, self.datatype.size_bytes()) {
            (OutputData::Fixed(data), Some(size)) => (data.len_bytes(), count * size, "bytes"),
            (OutputData::Elements(elements), None) => (elements.len(), count, "elements"),
            (OutputData::Elements(_), Some(_)) => {
                return Err(format!(
                    "Output '{}' is {}, so its data is a buffer, not a list.",
                    self.name, self.datatype
                ));
            }
            (OutputData::Fixed(_), None) => {
                return Err(format!(
                    "Output '{}' is BYTES, so its data is a list of bytes, not a buffer.",
                    self.name
                ));
            }
        };
        if found == expected {
            return Ok(());
        }
        Err(format!(
            "Output '{}' ({}, shape {:?}) needs {expected} {what}, but has {found}.",
            self.name, self.datatype, self.shape
        ))
    }

    /// The elements one row has; all of them when there are no rows.
    fn row_elements(&self) -> usize {
        self.shape.iter().skip(1).fold(1, |count, dimension| {
            count * usize::try_from(*dimension).unwrap_or(0)
        })
    }
}

/// Which of the outputs' rows answer a request; `None`: all, as they are.
pub type Rows = Option<Range<usize>>;

/// The response to one request, behind its gRPC prefix, in the form of the request. FP16 and BF16 make it raw.
///
/// # Errors
/// INTERNAL when it is too large for a gRPC message.
pub fn response(request: &Request, outputs: &[Output<'_>], rows: &Rows) -> Result<Bytes, Status> {
    let only_raw = |output: &Output<'_>| {
        output.datatype.size_bytes().is_some() && output.datatype.contents_field().is_none()
    };
    if request.raw || outputs.iter().any(only_raw) {
        raw_response(request, outputs, rows)
    } else {
        typed_response(request, outputs, rows)
    }
}

/// A message behind its gRPC prefix.
///
/// # Errors
/// INTERNAL when it is too large for a gRPC message.
pub fn framed(message: &[u8]) -> Result<Bytes, Status> {
    let mut frame = Vec::with_capacity(PREFIX_BYTES + message.len());
    frame.extend_from_slice(&[0; PREFIX_BYTES]);
    frame.extend_from_slice(message);
    finish(frame)
}

fn finish(mut frame: Vec<u8>) -> Result<Bytes, Status> {
    let len = frame.len() - PREFIX_BYTES;
    let Ok(prefix) = u32::try_from(len) else {
        let sentence = format!("The response of {len} bytes is too large for gRPC; ask for less.");
        return Err(Status::new(Code::Internal, sentence));
    };
    frame[1..PREFIX_BYTES].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame.into())
}

fn raw_response(request: &Request, outputs: &[Output<'_>], rows: &Rows) -> Result<Bytes, Status> {
    let echoed = request.model_name.len() + request.model_version.len() + request.id.len();
    let sized: usize = outputs
        .iter()
        .map(|output| output.name.len() + 128 + data_bytes(output, rows))
        .sum();
    let mut frame = Vec::with_capacity(PREFIX_BYTES + 32 + echoed + sized);
    frame.extend_from_slice(&[0; PREFIX_BYTES]);
    for (number, text) in [
        (1, &request.model_name),
        (2, &request.model_version),
        (3, &request.id),
    ] {
        if !text.is_empty() {
            put_length_delimited(number, text.as_bytes(), &mut frame);
        }
    }
    let (mut described, mut dimensions) = (Vec::with_capacity(128), Vec::with_capacity(64));
    for output in outputs {
        described.clear();
        dimensions.clear();
        put_length_delimited(1, output.name.as_bytes(), &mut described);
        put_length_delimited(2, output.datatype.name().as_bytes(), &mut described);
        for dimension in shape(output, rows) {
            put_varint(dimension.cast_unsigned(), &mut dimensions);
        }
        if !dimensions.is_empty() {
            put_length_delimited(3, &dimensions, &mut described);
        }
        put_length_delimited(5, &described, &mut frame);
    }
    for output in outputs {
        put_tag(6, WireType::LengthDelimited, &mut frame);
        put_varint(data_bytes(output, rows) as u64, &mut frame);
        let range = elements(output, rows);
        match (&output.data, output.datatype.size_bytes()) {
            (OutputData::Fixed(data), size) => {
                let size = size.unwrap_or(0);
                data.append(range.start * size..range.end * size, &mut frame);
            }
            (OutputData::Elements(elements), _) => {
                for element in &elements[range] {
                    frame.extend_from_slice(&(element.len() as u32).to_le_bytes());
                    frame.extend_from_slice(element);
                }
            }
        }
    }
    finish(frame)
}

fn typed_response(request: &Request, outputs: &[Output<'_>], rows: &Rows) -> Result<Bytes, Status> {
    let tensor = |output: &Output<'_>| {
        let range = elements(output, rows);
        let data = match (&output.data, output.datatype.size_bytes()) {
            (OutputData::Fixed(data), size) => {
                let size = size.unwrap_or(0);
                let mut bytes = Vec::with_capacity(range.len() * size);
                data.append(range.start * size..range.end * size, &mut bytes);
                TensorData::Fixed(bytes.into())
            }
            (OutputData::Elements(elements), _) => TensorData::Elements(
                elements[range]
                    .iter()
                    .map(|element| Bytes::copy_from_slice(element))
                    .collect(),
            ),
        };
        Tensor {
            name: output.name.to_owned(),
            datatype: output.datatype,
            shape: shape(output, rows).collect(),
            parameters: Parameters::new(),
            data,
        }
    };
    let response = InferResponse {
        model_name: request.model_name.clone(),
        model_version: request.model_version.clone(),
        id: request.id.clone(),
        parameters: Parameters::new(),
        outputs: outputs.iter().map(tensor).collect(),
    };
    framed(&response.encode(false))
}

fn shape<'a>(output: &'a Output<'_>, rows: &'a Rows) -> impl Iterator<Item = i64> + 'a {
    let first = rows.as_ref().map(|rows| rows.len() as i64);
    output
        .shape
        .iter()
        .enumerate()
        .map(move |(axis, dimension)| match first {
            Some(first) if axis == 0 => first,
            _ => *dimension,
        })
}

/// The elements of those rows.
fn elements(output: &Output<'_>, rows: &Rows) -> Range<usize> {
    match rows {
        Some(rows) => {
            let row = output.row_elements();
            rows.start * row..rows.end * row
        }
        None => match (&output.data, output.datatype.size_bytes()) {
            (OutputData::Fixed(data), size) => 0..data.len_bytes() / size.unwrap_or(1),
            (OutputData::Elements(elements), _) => 0..elements.len(),
        },
    }
}

fn data_bytes(output: &Output<'_>, rows: &Rows) -> usize {
    let range = elements(output, rows);
    match (&output.data, output.datatype.size_bytes()) {
        (OutputData::Fixed(_), size) => range.len() * size.unwrap_or(0),
        (OutputData::Elements(elements), _) => elements[range]
            .iter()
            .map(|element| 4 + element.len())
            .sum(),
    }
}
