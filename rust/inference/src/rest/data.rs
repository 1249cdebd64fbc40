//! The `data` of a tensor: JSON numbers, booleans or strings, flat or nested as the shape, to and from tensor elements.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use crate::Invalid;
use crate::datatype::{Datatype, Element};
use crate::tensor::{TensorData, element_count, out_of_range, wrong_count};

/// What a tensor says about its data.
pub(super) struct Signature<'a> {
    pub(super) name: &'a str,
    pub(super) datatype: Datatype,
    pub(super) shape: &'a [i64],
    /// The strings of a BYTES tensor are base64.
    pub(super) base64: bool,
}

impl Signature<'_> {
    fn invalid(&self, problem: &str) -> Invalid {
        Invalid::new(format!(
            "Tensor '{}' ({}, shape {:?}) {problem}",
            self.name, self.datatype, self.shape
        ))
    }
}

/// Reads `text`, which is valid JSON and part of `body`; strings without escapes share the body's memory.
pub(super) fn parse(
    signature: &Signature<'_>,
    text: &str,
    body: &Bytes,
) -> Result<TensorData, Invalid> {
    let count = element_count(signature.name, signature.datatype, signature.shape)?;
    let reader = Reader {
        signature,
        count,
        text,
        at: 0,
    };
    match signature.datatype {
        Datatype::Bool => reader.numbers::<bool>(),
        Datatype::Uint8 => reader.numbers::<u8>(),
        Datatype::Uint16 => reader.numbers::<u16>(),
        Datatype::Uint32 => reader.numbers::<u32>(),
        Datatype::Uint64 => reader.numbers::<u64>(),
        Datatype::Int8 => reader.numbers::<i8>(),
        Datatype::Int16 => reader.numbers::<i16>(),
        Datatype::Int32 => reader.numbers::<i32>(),
        Datatype::Int64 => reader.numbers::<i64>(),
        Datatype::Fp32 => reader.numbers::<f32>(),
        Datatype::Fp64 => reader.numbers::<f64>(),
        Datatype::Bytes => reader.strings(body),
        Datatype::Fp16 | Datatype::Bf16 => {
            Err(signature
                .invalid("has no JSON form; send it over gRPC as raw contents, or as FP32."))
        }
    }
}

/// Appends the elements as a flat JSON array. `None`: the datatype has no JSON form.
pub(super) fn render(datatype: Datatype, raw: &[u8], out: &mut Vec<u8>) -> Option<()> {
    match datatype {
        Datatype::Bool => list(raw.iter().map(|byte| *byte != 0), out),
        Datatype::Uint8 => list(u8::each(raw), out),
        Datatype::Uint16 => list(u16::each(raw), out),
        Datatype::Uint32 => list(u32::each(raw), out),
        Datatype::Uint64 => list(u64::each(raw), out),
        Datatype::Int8 => list(i8::each(raw), out),
        Datatype::Int16 => list(i16::each(raw), out),
        Datatype::Int32 => list(i32::each(raw), out),
        Datatype::Int64 => list(i64::each(raw), out),
        Datatype::Fp32 => list(f32::each(raw), out),
        Datatype::Fp64 => list(f64::each(raw), out),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => return None,
    }
    Some(())
}

/// Appends BYTES elements as JSON strings, `base64` or as the UTF-8 they are.
pub(super) fn render_strings(elements: &[Bytes], base64: bool, out: &mut Vec<u8>) {
    if base64 {
        list(elements.iter().map(|element| BASE64.encode(element)), out);
    } else {
        list(
            elements
                .iter()
                .map(|element| String::from_utf8_lossy(element)),
            out,
        );
    }
}

fn list<T: serde::Serialize>(items: impl Iterator<Item = T>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (i, item) in items.enumerate() {
        if i != 0 {
            out.push(b',');
        }
        super::response::put(&item, out);
    }
    out.push(b']');
}

/// A number or boolean in JSON.
trait Token: Sized {
    /// The value a token stands for; `None` when it is another kind of token or does not fit.
    fn parse(token: &str) -> Option<Self>;
    fn put(self, out: &mut Vec<u8>);
}

impl Token for bool {
    fn parse(token: &str) -> Option<Self> {
        token.parse().ok()
    }

    fn put(self, out: &mut Vec<u8>) {
        out.push(u8::from(self));
    }
}

macro_rules! tokens {
    ($parse:ident: $($number:ty),*) => {$(
        impl Token for $number {
            fn parse(token: &str) -> Option<Self> {
                $parse(token)
            }

            fn put(self, out: &mut Vec<u8>) {
                Element::put(self, out);
            }
        }
    )*};
}

tokens!(integer: u8, u16, u32, u64, i8, i16, i32, i64);
tokens!(float: f32, f64);

fn integer<T: std::str::FromStr>(token: &str) -> Option<T> {
    token.parse().ok()
}

/// A float, which is refused when it would become infinite.
fn float<T: std::str::FromStr + Into<f64> + From<f32> + Copy>(token: &str) -> Option<T> {
    if token == "null" {
        return Some(f32::NAN.into());
    }
    token
        .parse()
        .ok()
        .filter(|number: &T| (*number).into().is_finite())
}

/// Walks the text, which is known to be valid JSON.
struct Reader<'a> {
    signature: &'a Signature<'a>,
    count: usize,
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn numbers<T: Token>(mut self) -> Result<TensorData, Invalid> {
        let mut raw = Vec::with_capacity(self.capacity() * size_of::<T>());
        let signature = self.signature;
        self.walk(|token| {
            T::parse(token)
                .ok_or_else(|| refusal(signature, token))?
                .put(&mut raw);
            Ok(())
        })?;
        Ok(TensorData::Fixed(raw.into()))
    }

    fn strings(mut self, body: &Bytes) -> Result<TensorData, Invalid> {
        let mut elements = Vec::with_capacity(self.capacity());
        let signature = self.signature;
        self.walk(|token| {
            elements.push(string(signature, token, body)?);
            Ok(())
        })?;
        Ok(TensorData::Elements(elements))
    }

    /// How many elements there can be. The shape may promise more, but each takes two characters with what follows it.
    fn capacity(&self) -> usize {
        self.count.min(self.text.len() / 2)
    }

    fn walk(
        &mut self,
        mut element: impl FnMut(&'a str) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        let shape: Vec<usize> = self
            .signature
            .shape
            .iter()
            .map(|dimension| usize::try_from(*dimension).unwrap_or(0))
            .collect();
        let depth = self
            .text
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace())
            .take_while(|byte| *byte == b'[')
            .count();
        if depth == 1 {
            self.array(&[self.count], &mut element)
        } else if depth == shape.len() && depth > 0 {
            self.array(&shape, &mut element)
        } else if depth == 0 {
            Err(self.signature.invalid("needs its data as a JSON array."))
        } else {
            Err(self.signature.invalid(&format!(
                "has data nested {depth} deep; nest it as deep as the shape is long, or write it flat in row-major order."
            )))
        }
    }

    fn array(
        &mut self,
        shape: &[usize],
        element: &mut impl FnMut(&'a str) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        if self.peek() != b'[' {
            return Err(self
                .signature
                .invalid("has data that is not nested like its shape."));
        }
        self.at += 1;
        let mut len = 0;
        while self.peek() != b']' {
            if len == shape[0] {
                return Err(self.wrong_length(shape[0], "more"));
            }
            if let [_, inner @ ..] = shape
                && !inner.is_empty()
            {
                self.array(inner, element)?;
            } else {
                element(self.token()?)?;
            }
            len += 1;
            if self.peek() == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
        if len == shape[0] {
            Ok(())
        } else {
            Err(self.wrong_length(shape[0], &len.to_string()))
        }
    }

    fn wrong_length(&self, expected: usize, found: &str) -> Invalid {
        if expected == self.count {
            return wrong_count(self.signature.name, self.signature.shape, expected, found);
        }
        self.signature.invalid(&format!(
            "has data where a row of {expected} has {found} elements."
        ))
    }

    /// The next character that is not white space; NUL, which is no JSON, at the end.
    fn peek(&mut self) -> u8 {
        let rest = &self.text.as_bytes()[self.at..];
        let space = rest
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        self.at += space;
        rest.get(space).copied().unwrap_or(0)
    }

    /// The scalar that begins here.
    fn token(&mut self) -> Result<&'a str, Invalid> {
        let rest = &self.text[self.at..];
        let len = match rest.as_bytes()[0] {
            b'[' => {
                return Err(self
                    .signature
                    .invalid("has data that is nested deeper than its shape."));
            }
            b'{' => {
                return Err(self
                    .signature
                    .invalid("has a JSON object in its data; write its elements."));
            }
            b'"' => string_len(rest.as_bytes()),
            _ => {
                let ends = |byte: u8| byte == b',' || byte == b']' || byte.is_ascii_whitespace();
                rest.bytes().position(ends).unwrap_or(rest.len())
            }
        };
        self.at += len;
        Ok(&rest[..len])
    }
}

/// The length of the string literal that `text` begins with, quotes included.
fn string_len(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn string(signature: &Signature<'_>, token: &str, body: &Bytes) -> Result<Bytes, Invalid> {
    let Some(plain) = token
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    else {
        return Err(refusal(signature, token));
    };
    let text = if plain.contains('\\') {
        let unescaped: String = serde_json::from_str(token)
            .map_err(|_| signature.invalid("has a string with an escape that is no character."))?;
        Bytes::from(unescaped)
    } else {
        body.slice_ref(plain.as_bytes())
    };
    if !signature.base64 {
        return Ok(text);
    }
    let decoded = BASE64.decode(&text).map_err(|error| {
        signature.invalid(&format!(
            "has the content_type base64, but the string {} is not: {error}.",
            short(token)
        ))
    })?;
    Ok(decoded.into())
}

fn refusal(signature: &Signature<'_>, token: &str) -> Invalid {
    let Signature { name, datatype, .. } = *signature;
    let is_number = token.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    let wanted = match datatype {
        Datatype::Bool => "true or false",
        Datatype::Bytes => "strings",
        _ if !is_number => "numbers",
        Datatype::Fp32 | Datatype::Fp64 => return out_of_range(name, datatype, short(token)),
        _ if token.contains(['.', 'e', 'E']) => "integers without fraction or exponent",
        _ => return out_of_range(name, datatype, short(token)),
    };
    signature.invalid(&format!(
        "has {} in its data; write {wanted}.",
        short(token)
    ))
}

/// A token as an error may quote it.
fn short(token: &str) -> String {
    const QUOTED_CHARS_MAX: usize = 40;
    match token.char_indices().nth(QUOTED_CHARS_MAX) {
        None => token.to_owned(),
        Some((at, _)) => format!("{}…", &token[..at]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(datatype: Datatype, shape: &[i64], text: &str) -> Result<TensorData, String> {
        let body = Bytes::copy_from_slice(text.as_bytes());
        let raw: &serde_json::value::RawValue =
            serde_json::from_slice(&body).expect("the test's JSON is valid");
        let signature = Signature {
            name: "x",
            datatype,
            shape,
            base64: false,
        };
        parse(&signature, raw.get(), &body).map_err(|error| error.to_string())
    }

    fn fixed<T: Token>(values: impl IntoIterator<Item = T>) -> Result<TensorData, String> {
        let mut raw = Vec::new();
        values.into_iter().for_each(|value| value.put(&mut raw));
        Ok(TensorData::Fixed(raw.into()))
    }

    #[test]
    fn flat_and_nested_are_the_same() {
        let expected = fixed([1f32, 2.5, -3e-7, 4.0, 5.0, 0.1]);
        for text in [
            "[1,2.5,-3e-7,4,5.0,0.1]",
            "[[1,2.5,-3E-7],[4,5.0,0.1]]",
            " [ [ 1 ,\t2.5,\n-3e-7 ] , [4,5,0.1 ] ] ",
        ] {
            assert_eq!(
                read(Datatype::Fp32, &[2, 3], text.trim()),
                expected,
                "{text}"
            );
        }
        assert_eq!(read(Datatype::Int64, &[0, 3], "[]"), fixed::<i64>([]));
        assert_eq!(read(Datatype::Int64, &[2, 0], "[[],[]]"), fixed::<i64>([]));
        assert_eq!(
            read(Datatype::Bool, &[2], "[true,false]"),
            fixed([true, false])
        );
        assert_eq!(read(Datatype::Int64, &[], "[7]"), fixed([7i64]));
    }

    #[test]
    fn what_does_not_fit_its_shape_is_refused() {
        for (shape, text, sentence) in [
            (
                &[2, 2][..],
                "[1,2,3]",
                "Tensor 'x' has the shape [2, 2], which is 4 elements, but its data has 3.",
            ),
            (&[2, 2], "[1,2,3,4,5]", "but its data has more."),
            (&[2, 2], "[[1,2],[3]]", "where a row of 2 has 1 elements"),
            (
                &[2, 2],
                "[[1,2],[3,4,5]]",
                "where a row of 2 has more elements",
            ),
            (&[2, 2], "[[1,2]]", "where a row of 2 has 1 elements"),
            (&[2, 2], "[[1,2],3]", "not nested like its shape"),
            (&[2, 2], "[[1,2],[3,[4]]]", "nested deeper than its shape"),
            (&[2, 2], "[[[1,2],[3,4]]]", "nested 3 deep"),
            (&[2], "[1,{}]", "a JSON object"),
            (&[2], "7", "needs its data as a JSON array"),
            (&[2], "\"[[\"", "needs its data as a JSON array"),
            (&[1 << 40], "[1]", "but its data has 1."),
            (&[-1], "[1]", "write the actual size for -1"),
        ] {
            let refused = read(Datatype::Int64, shape, text).unwrap_err();
            assert!(refused.contains(sentence), "{text}: {refused}");
        }
    }

    #[test]
    fn what_does_not_fit_its_datatype_is_refused() {
        for (datatype, text, sentence) in [
            (
                Datatype::Int8,
                "[128]",
                "Tensor 'x' is INT8, and 128 does not fit; choose a wider datatype.",
            ),
            (Datatype::Uint8, "[-1]", "-1 does not fit"),
            (Datatype::Uint64, "[18446744073709551616]", "does not fit"),
            (
                Datatype::Int64,
                "[1.0]",
                "has 1.0 in its data; write integers without fraction or exponent.",
            ),
            (Datatype::Int64, "[1e3]", "write integers"),
            (
                Datatype::Int64,
                "[null]",
                "has null in its data; write numbers.",
            ),
            (
                Datatype::Int64,
                "[\"1\"]",
                "has \"1\" in its data; write numbers.",
            ),
            (Datatype::Fp32, "[1e39]", "1e39 does not fit"),
            (Datatype::Fp64, "[-1e400]", "-1e400 does not fit"),
            (
                Datatype::Fp64,
                "[true]",
                "has true in its data; write numbers.",
            ),
            (
                Datatype::Bool,
                "[1]",
                "has 1 in its data; write true or false.",
            ),
            (Datatype::Bytes, "[1]", "has 1 in its data; write strings."),
            (
                Datatype::Bytes,
                "[\"\\ud800\"]",
                "an escape that is no character",
            ),
            (Datatype::Fp16, "[1]", "has no JSON form; send it over gRPC"),
        ] {
            let refused = read(datatype, &[1], text).unwrap_err();
            assert!(refused.contains(sentence), "{text}: {refused}");
        }
    }

    #[test]
    fn strings_are_their_bytes() {
        let elements = read(
            Datatype::Bytes,
            &[4],
            r#"["plain","", "größer \"\\\u00e9\n", "]\\"]"#,
        );
        let expected = ["plain", "", "größer \"\\é\n", "]\\"].map(Bytes::from);
        assert_eq!(elements, Ok(TensorData::Elements(expected.to_vec())));
    }

    proptest! {
        #[test]
        fn numbers_survive_json(values in prop::collection::vec(any::<f64>(), 0..20), integers: Vec<i64>, narrow: Vec<f32>) {
            let round = |datatype, raw: &TensorData, len: usize| {
                let TensorData::Fixed(raw) = raw else { unreachable!() };
                let mut text = Vec::new();
                render(datatype, raw, &mut text).unwrap();
                read(datatype, &[i64::try_from(len).unwrap()], std::str::from_utf8(&text).unwrap())
            };
            // What is not finite comes back as NaN, through null.
            let finite = |value: f64| if value.is_finite() { value } else { f64::NAN };
            let written = fixed(values.iter().copied()).unwrap();
            let bits = |data: TensorData| {
                let TensorData::Fixed(raw) = data else { unreachable!() };
                f64::each(&raw).map(|value| if value.is_nan() { None } else { Some(value.to_bits()) }).collect::<Vec<_>>()
            };
            let read_back = round(Datatype::Fp64, &written, values.len()).unwrap();
            prop_assert_eq!(bits(read_back), bits(fixed(values.into_iter().map(finite)).unwrap()));

            let written = fixed(integers.iter().copied());
            prop_assert_eq!(round(Datatype::Int64, written.as_ref().unwrap(), integers.len()), written);

            let narrow: Vec<f32> = narrow.into_iter().filter(|value| value.is_finite()).collect();
            let written = fixed(narrow.iter().copied());
            prop_assert_eq!(round(Datatype::Fp32, written.as_ref().unwrap(), narrow.len()), written);
        }

        #[test]
        fn strings_survive_json(strings: Vec<String>) {
            let elements: Vec<Bytes> = strings.iter().cloned().map(Bytes::from).collect();
            let mut text = Vec::new();
            render_strings(&elements, false, &mut text);
            let text = std::str::from_utf8(&text).unwrap();
            let read_back = read(Datatype::Bytes, &[i64::try_from(strings.len()).unwrap()], text);
            prop_assert_eq!(read_back, Ok(TensorData::Elements(elements)));
        }
    }
}
