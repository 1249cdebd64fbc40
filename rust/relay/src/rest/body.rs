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

/// How much of a body nobody asked for is read, so that the connection can be used again.
const READ_OUT_BYTES_MAX: u64 = 64 * 1024;

/// How long that may take: the answer waits for it.
const READ_OUT_MAX: Duration = Duration::from_millis(100);

/// A body on its way in, of which it is known how far it was read.
pub struct Upload<B> {
    body: B,
    stands: Stands,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// More may come.
    Open,
    /// All of it was read.
    Read,
    /// Nothing more can be read of it.
    Broken,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes, Error: Error> + Unpin,
{
    /// A body of which nothing was read yet.
    pub fn new(body: B) -> Upload<B> {
        Upload {
            body,
            stands: Stands::Open,
        }
    }

    /// Whether nothing of it is left.
    pub fn is_read(&self) -> bool {
        self.stands == Stands::Read || (self.stands == Stands::Open && self.body.is_end_stream())
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, B::Error> {
        while self.stands == Stands::Open {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    self.stands = Stands::Broken;
                    return Err(error);
                }
                None => self.stands = Stands::Read,
            }
        }
        Ok(None)
    }

    /// Reads what is left of it, if that is little and there soon. Whether nothing is left: only then can the connection
    /// carry another request.
    pub async fn read_out(&mut self) -> bool {
        if self.body.size_hint().lower() <= READ_OUT_BYTES_MAX {
            let until = Instant::now() + READ_OUT_MAX;
            let mut left = READ_OUT_BYTES_MAX;
            while let Ok(Ok(Some(data))) = timeout_at(until, self.next()).await {
                match left.checked_sub(data.len() as u64) {
                    Some(less) => left = less,
                    None => break,
                }
            }
        }
        self.is_read()
    }
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
    upload: &mut Upload<Incoming>,
    bytes_max: usize,
) -> Result<Received, Status> {
    let encoding = encoding(headers)?;
    let mut received = collect(upload, bytes_max).await?;
    if encoding != Encoding::Identity {
        let packed = received.bytes;
        // It may be small and unpack to the limit, so it never runs on the loop.
        received.bytes = off_loop(usize::MAX, move || unpack(encoding, &packed, bytes_max)).await?;
        hold(&mut received.held, received.bytes.len(), bytes_max)?;
    }
    Ok(received)
}

async fn collect<B>(upload: &mut Upload<B>, bytes_max: usize) -> Result<Received, Status>
where
    B: Body<Data = Bytes, Error: Error> + Unpin,
{
    let announced = upload.body.size_hint().lower();
    if announced > bytes_max as u64 {
        return Err(Status::too_large("request", announced, bytes_max as u64));
    }
    let end = Instant::now() + WHOLE_MAX;
    let mut held = Held::none(&LARGE_BYTES);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    loop {
        let until = end.min(Instant::now() + PAUSE_MAX);
        let next = timeout_at(until, upload.next())
            .await
            .map_err(|_| too_slow())?;
        let Some(data) = next.map_err(|error| broken(&error))? else {
            break;
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

    /// A body that breaks off.
    struct Broken;

    impl Body for Broken {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
            Some(Err(std::io::ErrorKind::UnexpectedEof.into())).into()
        }
    }

    /// A body of these chunks, each after so many milliseconds.
    fn slow(chunks: Vec<(u64, &'static [u8])>) -> Upload<Slow> {
        let chunks = chunks
            .into_iter()
            .map(|(pause_ms, chunk)| (Duration::from_millis(pause_ms), chunk))
            .collect();
        Upload::new(Slow(chunks, None))
    }

    fn block_on<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(test)
    }

    fn collected(chunks: Vec<(u64, &'static [u8])>, bytes_max: usize) -> Result<Bytes, u16> {
        let received = block_on(async { collect(&mut slow(chunks), bytes_max).await });
        received
            .map(|received| received.bytes)
            .map_err(|status| status.http_status())
    }

    #[test]
    fn slow_bodies_are_taken_and_too_slow_ones_refused() {
        assert_eq!(
            collected(vec![(0, b"ab"), (19_000, b"c"), (19_000, b"d")], 4),
            Ok(Bytes::from_static(b"abcd"))
        );
        assert_eq!(collected(vec![], 4), Ok(Bytes::new()));
        assert_eq!(collected(vec![(0, b"ab"), (21_000, b"c")], 4), Err(408));
        assert_eq!(collected(vec![(19_000, b"a"); 20], 100), Err(408));
        assert_eq!(collected(vec![(0, b"ab"), (0, b"cde")], 4), Err(413));
    }

    #[test]
    fn what_nobody_asked_for_is_read_out_when_it_is_little() {
        static LARGE: [u8; READ_OUT_BYTES_MAX as usize + 1] =
            [b' '; READ_OUT_BYTES_MAX as usize + 1];
        let read_out = |chunks| block_on(async { slow(chunks).read_out().await });
        assert!(read_out(vec![]));
        assert!(read_out(vec![(0, b"a"), (99, b"b")]));
        assert!(!read_out(vec![(0, b"a"), (101, b"b")]), "it comes too late");
        assert!(!read_out(vec![(0, b"a"), (0, &LARGE)]), "it is too much");
    }

    #[test]
    fn a_body_that_was_read_is_over_and_one_that_broke_never_is() {
        block_on(async {
            let mut upload = slow(vec![(0, b"a")]);
            assert!(collect(&mut upload, 9).await.is_ok());
            assert!(upload.read_out().await);
            let mut upload = Upload::new(Broken);
            let refused = collect(&mut upload, 9).await;
            assert_eq!(refused.map(|_| ()).unwrap_err().http_status(), 400);
            assert!(!upload.read_out().await);
        });
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
