//! Taking a request's body: how much of it, for how long, and unpacked.

use std::error::Error;
use std::io::Read;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, HeaderMap};
use tokio::time::{Instant, timeout_at};

use super::exchange::off_loop;
use crate::status::{Code, Status};

/// How long a client may pause within a body.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// How long a body may take in all, however slowly it comes.
const WHOLE_MAX: Duration = Duration::from_secs(300);

/// How a body is packed (RFC 9110, 8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

/// The whole body, unpacked; neither what is sent nor what it unpacks to may be over `bytes_max`.
pub async fn read(headers: &HeaderMap, body: Incoming, bytes_max: usize) -> Result<Bytes, Status> {
    let encoding = encoding(headers)?;
    let packed = collect(body, bytes_max).await?;
    if encoding == Encoding::Identity {
        return Ok(packed);
    }
    // It may be small and unpack to the limit, so it never runs on the loop.
    off_loop(usize::MAX, move || unpack(encoding, &packed, bytes_max)).await
}

async fn collect(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Status> {
    let announced = body.size_hint().lower();
    if announced > bytes_max as u64 {
        return Err(Status::too_large("request", announced, bytes_max as u64));
    }
    let end = Instant::now() + WHOLE_MAX;
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    loop {
        let until = end.min(Instant::now() + PAUSE_MAX);
        let frame = timeout_at(until, body.frame())
            .await
            .map_err(|_| too_slow())?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| broken(&error))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let len = first.len() + all.len() + data.len();
        if len > bytes_max {
            return Err(Status::too_large("request", len as u64, bytes_max as u64));
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn broken(error: &hyper::Error) -> Status {
    let reason = error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string);
    Status::new(
        Code::InvalidArgument,
        format!("The request body broke off or is malformed: {reason}."),
    )
}

fn too_slow() -> Status {
    let sentence = format!(
        "The request body came too slowly; send it without pauses over {} s, within {} s.",
        PAUSE_MAX.as_secs(),
        WHOLE_MAX.as_secs()
    );
    Status::new(Code::DeadlineExceeded, sentence).over_http(408)
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Status> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let (value, more) = (values.next(), values.next());
    let name = value.map(|value| {
        String::from_utf8_lossy(value.as_bytes())
            .trim()
            .to_ascii_lowercase()
    });
    match name.as_deref() {
        None | Some("" | "identity") if more.is_none() => Ok(Encoding::Identity),
        Some("gzip" | "x-gzip") if more.is_none() => Ok(Encoding::Gzip),
        Some("deflate") if more.is_none() => Ok(Encoding::Deflate),
        _ => {
            let sentence = "The Content-Encoding is not supported; send the body as it is, or as one of gzip, deflate.";
            Err(Status::new(Code::Unimplemented, sentence).over_http(415))
        }
    }
}

fn unpack(encoding: Encoding, packed: &[u8], bytes_max: usize) -> Result<Bytes, Status> {
    let decoder: &mut dyn Read = match encoding {
        Encoding::Identity => &mut &*packed,
        Encoding::Gzip => &mut MultiGzDecoder::new(packed),
        Encoding::Deflate => &mut ZlibDecoder::new(packed),
    };
    let mut unpacked = Vec::new();
    let read = decoder
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut unpacked);
    read.map_err(|error| {
        Status::new(
            Code::InvalidArgument,
            format!("The request body is not what its Content-Encoding says: {error}."),
        )
    })?;
    if unpacked.len() > bytes_max {
        return Err(Status::too_large(
            "unpacked request",
            unpacked.len() as u64,
            bytes_max as u64,
        ));
    }
    Ok(unpacked.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use hyper::header::HeaderValue;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn packed_bodies() {
        assert_eq!(
            unpack(Encoding::Gzip, &gzip(b"abc"), 3),
            Ok(Bytes::from_static(b"abc"))
        );
        let twice = [gzip(b"abc"), gzip(b"def")].concat();
        assert_eq!(
            unpack(Encoding::Gzip, &twice, 6),
            Ok(Bytes::from_static(b"abcdef"))
        );
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"abc").unwrap();
        assert_eq!(
            unpack(Encoding::Deflate, &encoder.finish().unwrap(), 3),
            Ok(Bytes::from_static(b"abc"))
        );
    }

    #[test]
    fn bombs_and_garbage_are_refused() {
        let bomb = gzip(&vec![0; 1 << 20]);
        assert_eq!(
            unpack(Encoding::Gzip, &bomb, 1000)
                .unwrap_err()
                .http_status(),
            413
        );
        for garbage in [&b"abc"[..], b"", &gzip(b"abc")[..15]] {
            assert_eq!(
                unpack(Encoding::Gzip, garbage, 1000)
                    .unwrap_err()
                    .http_status(),
                400,
                "{garbage:?}"
            );
        }
    }

    #[test]
    fn encodings() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            encoding(&headers).map_err(|status| status.http_status())
        };
        assert_eq!(of(&[]), Ok(Encoding::Identity));
        assert_eq!(of(&["identity"]), Ok(Encoding::Identity));
        assert_eq!(of(&["GZIP"]), Ok(Encoding::Gzip));
        assert_eq!(of(&["deflate"]), Ok(Encoding::Deflate));
        assert_eq!(of(&["br"]), Err(415));
        assert_eq!(of(&["gzip, gzip"]), Err(415));
        assert_eq!(of(&["gzip", "gzip"]), Err(415));
    }
}
