//! Taking a request's body: how much of it, for how long, and unpacked.

use std::error::Error;
use std::io::Read;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, HeaderMap};
use tokio::time::{Instant, timeout_at};

use super::exchange::off_loop;
use crate::plane::Held;
use crate::status::{Code, Status};

/// How long a client may pause within a body.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// How long a body may take in all, however slowly it comes.
const WHOLE_MAX: Duration = Duration::from_secs(300);

/// How much the large bodies of all connections may hold together, or four times the size limit if that is more.
const LARGE_BYTES_MAX: usize = 256 << 20;

/// Bodies up to this size are not counted: large uploads must not keep small calls out.
const SMALL_BYTES: usize = 64 * 1024;

/// What large bodies hold now.
static LARGE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// How a body is packed (RFC 9110, 8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

/// A body, and its share of what large bodies may hold, to be kept as long as the body.
pub struct Received {
    /// The whole body, unpacked.
    pub bytes: Bytes,
    held: Held<'static>,
}

/// The whole body, unpacked; neither what is sent nor what it unpacks to may be over `bytes_max`.
pub async fn read(
    headers: &HeaderMap,
    body: Incoming,
    bytes_max: usize,
) -> Result<Received, Status> {
    let encoding = encoding(headers)?;
    let mut received = collect(body, bytes_max).await?;
    if encoding != Encoding::Identity {
        let packed = received.bytes;
        // It may be small and unpack to the limit, so it never runs on the loop.
        received.bytes = off_loop(usize::MAX, move || unpack(encoding, &packed, bytes_max)).await?;
        hold(&mut received.held, received.bytes.len(), bytes_max)?;
    }
    Ok(received)
}

async fn collect<B>(mut body: B, bytes_max: usize) -> Result<Received, Status>
where
    B: Body<Data = Bytes, Error: Error> + Unpin,
{
    let announced = body.size_hint().lower();
    if announced > bytes_max as u64 {
        return Err(Status::too_large("request", announced, bytes_max as u64));
    }
    let end = Instant::now() + WHOLE_MAX;
    let mut held = Held::none(&LARGE_BYTES);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    loop {
        let until = end.min(Instant::now() + PAUSE_MAX);
        let frame = timeout_at(until, body.frame())
            .await
            .map_err(|_| too_slow())?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() else {
            continue;
        };
        let len = first.len() + all.len() + data.len();
        if len > bytes_max {
            return Err(Status::too_large("request", len as u64, bytes_max as u64));
        }
        if len > SMALL_BYTES {
            hold(&mut held, data.len(), bytes_max)?;
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    let bytes = if all.is_empty() { first } else { all.freeze() };
    Ok(Received { bytes, held })
}

fn hold(held: &mut Held<'static>, more: usize, bytes_max: usize) -> Result<(), Status> {
    if held.try_add(more, LARGE_BYTES_MAX.max(bytes_max.saturating_mul(4))) {
        return Ok(());
    }
    let sentence = "Too many large request bodies are being received; send this one again later.";
    Err(Status::new(Code::ResourceExhausted, sentence).retry_after(Duration::from_secs(1)))
}

fn broken(error: &impl Error) -> Status {
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

    /// A body of these chunks, each after a pause; it never ends if the last pause is endless.
    struct Slow(
        std::collections::VecDeque<(Duration, &'static [u8])>,
        Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    );

    impl Body for Slow {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
            let Some((pause, chunk)) = self.0.front().copied() else {
                return None.into();
            };
            let pausing = self
                .1
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
            std::task::ready!(pausing.as_mut().poll(cx));
            self.0.pop_front();
            self.1 = None;
            Some(Ok(hyper::body::Frame::data(Bytes::from_static(chunk)))).into()
        }
    }

    fn collected(chunks: Vec<(u64, &'static [u8])>, bytes_max: usize) -> Result<Bytes, u16> {
        let chunks = chunks
            .into_iter()
            .map(|(pause_s, chunk)| (Duration::from_secs(pause_s), chunk))
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let received = runtime.block_on(collect(Slow(chunks, None), bytes_max));
        received
            .map(|received| received.bytes)
            .map_err(|status| status.http_status())
    }

    #[test]
    fn slow_bodies_are_taken_and_too_slow_ones_refused() {
        assert_eq!(
            collected(vec![(0, b"ab"), (19, b"c"), (19, b"d")], 4),
            Ok(Bytes::from_static(b"abcd"))
        );
        assert_eq!(collected(vec![], 4), Ok(Bytes::new()));
        assert_eq!(collected(vec![(0, b"ab"), (21, b"c")], 4), Err(408));
        assert_eq!(collected(vec![(19, b"a"); 20], 100), Err(408));
        assert_eq!(collected(vec![(0, b"ab"), (0, b"cde")], 4), Err(413));
    }

    #[test]
    fn large_bodies_share_a_bound_that_small_ones_do_not_see() {
        static LARGE: [u8; SMALL_BYTES + 1] = [b' '; SMALL_BYTES + 1];
        let mut others = Held::none(&LARGE_BYTES);
        assert!(others.try_add(LARGE_BYTES_MAX, LARGE_BYTES_MAX));
        assert_eq!(collected(vec![(0, &LARGE)], LARGE.len()), Err(429));
        assert_eq!(
            collected(vec![(0, b"small")], LARGE.len()),
            Ok(Bytes::from_static(b"small"))
        );
        others.clear();
        assert!(collected(vec![(0, &LARGE)], LARGE.len()).is_ok());
        assert_eq!(LARGE_BYTES.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
}
