//! gRPC over one HTTP/2 stream: the message of a unary call in, its answer out
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>). This file and `connection` alone know `h2`.

use std::future::poll_fn;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};

use crate::budget::{Budget, Charge};
use crate::encode::PREFIX_BYTES;
use crate::queue::PUSHBACK_MS;
use crate::status::{Code, Status};

/// How long a client may take to send its message.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest `grpc-message`: header lists are bounded on the other side, and names in sentences may be long.
const SENTENCE_BYTES_MAX: usize = 2048;

/// How a call ends.
#[derive(Debug)]
pub enum Ending {
    /// With a message, framed.
    Message {
        /// The message behind its prefix.
        frame: Bytes,
        /// The trailer `mm-execution-us`.
        execution_us: Option<u32>,
    },
    /// With a failure.
    Failed(Status),
    /// The caller left.
    Gone,
}

impl From<Status> for Ending {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// The bounds on a message that is read.
#[derive(Debug)]
pub struct MessageLimits {
    /// The largest message.
    pub message_bytes_max: usize,
    /// All messages together.
    pub budget: Arc<Budget>,
}

/// The parts of a call: its head, the message to read, and whom to answer.
#[must_use]
pub fn open(request: Request<RecvStream>, respond: SendResponse<Bytes>) -> (Parts, Body, Caller) {
    let (head, stream) = request.into_parts();
    let gzip = head
        .headers
        .get("grpc-encoding")
        .is_some_and(|encoding| encoding.as_bytes() == b"gzip");
    (head, Body { stream, gzip }, Caller(respond))
}

/// The message of a call, on its way in.
pub struct Body {
    stream: RecvStream,
    /// Whether a message that is marked as compressed is so by gzip; no other way is known.
    gzip: bool,
}

impl Body {
    /// Reads the one message of a unary call, unpacked if it was compressed: the limit and the budget count what it holds then.
    ///
    /// # Errors
    /// How the call ends instead.
    pub async fn read_message(
        &mut self,
        limits: &MessageLimits,
    ) -> Result<(Bytes, Charge), Ending> {
        match tokio::time::timeout(BODY_TIMEOUT, self.read_in_time(limits)).await {
            Ok(read) => read,
            Err(_) => Err(Status::new(
                Code::DeadlineExceeded,
                "The request message did not arrive within a minute.",
            )
            .into()),
        }
    }

    async fn read_in_time(&mut self, limits: &MessageLimits) -> Result<(Bytes, Charge), Ending> {
        let mut chunk = self.chunk().await?.ok_or_else(cut_short)?;
        while chunk.len() < PREFIX_BYTES {
            let more = self.chunk().await?.ok_or_else(cut_short)?;
            chunk = [chunk, more].concat().into();
        }
        let prefix = chunk.split_to(PREFIX_BYTES);
        let packed = self.is_packed(prefix[0])?;
        let len = message_len(&prefix, limits)?;
        let charge = charged(len, limits)?;
        // A message in one frame is not copied.
        let message = if chunk.len() >= len {
            chunk
        } else {
            self.rest(chunk, len).await?
        };
        if message.len() > len {
            return Err(too_many());
        }
        while !self.stream.is_end_stream() {
            match self.chunk().await? {
                None => break,
                Some(more) if more.is_empty() => {}
                Some(_) => return Err(too_many()),
            }
        }
        if !packed {
            return Ok((message, charge));
        }
        let unpacked = unpack(&message, limits.message_bytes_max)?;
        let charge = charged(unpacked.len(), limits)?;
        Ok((unpacked, charge))
    }

    /// Whether the flag before a message says that it is compressed, in the one way that is known.
    fn is_packed(&self, flag: u8) -> Result<bool, Ending> {
        match flag {
            0 => Ok(false),
            1 if self.gzip => Ok(true),
            1 => {
                let sentence = "The request is compressed in a way that is not supported; use gzip, or send it uncompressed.";
                Err(Status::new(Code::Unimplemented, sentence).into())
            }
            flag => Err(Status::invalid(format!(
                "The request is not framed as gRPC: its message begins with the flag {flag}."
            ))
            .into()),
        }
    }

    /// The message that begins with `first` and has `len` bytes.
    async fn rest(&mut self, first: Bytes, len: usize) -> Result<Bytes, Ending> {
        let mut whole = BytesMut::with_capacity(len);
        whole.extend_from_slice(&first);
        while whole.len() < len {
            let more = self.chunk().await?.ok_or_else(cut_short)?;
            if more.len() > len - whole.len() {
                return Err(too_many());
            }
            whole.extend_from_slice(&more);
        }
        Ok(whole.freeze())
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Ending> {
        match self.stream.data().await {
            None => Ok(None),
            Some(Err(_)) => Err(Ending::Gone),
            Some(Ok(chunk)) => {
                // What is held is bounded by the budget; the window only paces the sender.
                self.stream
                    .flow_control()
                    .release_capacity(chunk.len())
                    .map_err(|_| Ending::Gone)?;
                Ok(Some(chunk))
            }
        }
    }
}

fn message_len(prefix: &[u8], limits: &MessageLimits) -> Result<usize, Ending> {
    let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if len > limits.message_bytes_max {
        return Err(too_large(&format!("of {len} bytes"), limits.message_bytes_max).into());
    }
    Ok(len)
}

fn charged(len: usize, limits: &MessageLimits) -> Result<Charge, Status> {
    limits.budget.charge(len).ok_or_else(|| {
        Status::exhausted(
            "The requests in this server take too much memory already; try again later.",
            PUSHBACK_MS,
        )
    })
}

/// What a gzip stream holds; never more than one byte over the limit is unpacked to find that it holds too much.
fn unpack(packed: &[u8], bytes_max: usize) -> Result<Bytes, Status> {
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(packed)
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| Status::invalid(format!("The request message is not gzip: {error}.")))?;
    if unpacked.len() > bytes_max {
        return Err(too_large("once unpacked", bytes_max));
    }
    Ok(unpacked.into())
}

fn too_large(how: &str, bytes_max: usize) -> Status {
    Status::new(
        Code::ResourceExhausted,
        format!(
            "The request message {how} is over the limit of {bytes_max} bytes; send less or raise it."
        ),
    )
}

fn cut_short() -> Ending {
    Status::invalid("The request ended before its message was complete.").into()
}

fn too_many() -> Ending {
    Status::invalid("The request has more than one message, but the call takes one.").into()
}

/// Who called, to be answered once. A caller who is gone is not told.
pub struct Caller(SendResponse<Bytes>);

impl Caller {
    /// Waits until the caller leaves.
    pub async fn left(&mut self) {
        // An error is the end of the connection: the caller has left as well.
        let _ = poll_fn(|context| self.0.poll_reset(context)).await;
    }

    /// Ends the call.
    pub fn answer(self, ending: Ending) {
        match ending {
            Ending::Message {
                frame,
                execution_us,
            } => self.answer_message(frame, execution_us),
            Ending::Failed(status) => {
                let mut response = head();
                describe(&status, response.headers_mut());
                self.answer_head(response);
            }
            Ending::Gone => {}
        }
    }

    /// Refuses what is no gRPC call at all.
    pub fn refuse(self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        self.answer_head(response);
    }

    fn answer_head(mut self, response: Response<()>) {
        // An error here, as below, means that the stream or the connection is closed.
        let _ = self.0.send_response(response, true);
    }

    fn answer_message(mut self, frame: Bytes, execution_us: Option<u32>) {
        let Ok(mut stream) = self.0.send_response(head(), false) else {
            return;
        };
        if stream.send_data(frame, false).is_err() {
            return;
        }
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        if let Some(execution_us) = execution_us {
            let mut value = HeaderValue::from(execution_us);
            value.set_sensitive(true); // a new value each time: kept out of the compression table
            trailers.insert("mm-execution-us", value);
        }
        let _ = stream.send_trailers(trailers);
    }
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

fn describe(status: &Status, headers: &mut HeaderMap) {
    headers.insert("grpc-status", HeaderValue::from(status.code as u16));
    if let Ok(mut sentence) = HeaderValue::try_from(percent_encode(&status.message)) {
        sentence.set_sensitive(true);
        headers.insert("grpc-message", sentence);
    }
    if status.not_here {
        headers.insert("mm-not-here", HeaderValue::from_static("1"));
    }
    if let Some(pushback_ms) = status.pushback_ms {
        headers.insert("grpc-retry-pushback-ms", HeaderValue::from(pushback_ms));
    }
    if status.code == Code::Unimplemented {
        headers.insert(
            "grpc-accept-encoding",
            HeaderValue::from_static("identity,gzip"),
        );
    }
}

/// A sentence as `grpc-message` carries it: all but printable ASCII percent-encoded, '%' too; cut when it is too long.
fn percent_encode(sentence: &str) -> String {
    let mut encoded = String::with_capacity(sentence.len());
    for c in sentence.chars() {
        if encoded.len() > SENTENCE_BYTES_MAX {
            encoded.push_str("...");
            break;
        }
        if matches!(c, ' '..='~') && c != '%' {
            encoded.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                encoded.push('%');
                encoded.extend(
                    [byte >> 4, byte & 15]
                        .map(|nibble| char::from(b"0123456789ABCDEF"[usize::from(nibble)])),
                );
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_is_unpacked_up_to_the_limit_and_no_further() {
        let code =
            |packed: &[u8], bytes_max| unpack(packed, bytes_max).map_err(|status| status.code);
        assert_eq!(code(&gzip(b"abc"), 3), Ok(Bytes::from_static(b"abc")));
        let twice = [gzip(b"abc"), gzip(b"def")].concat();
        assert_eq!(code(&twice, 6), Ok(Bytes::from_static(b"abcdef")));
        assert_eq!(code(&gzip(b"abcd"), 3), Err(Code::ResourceExhausted));
        let bomb = gzip(&vec![0; 8 << 20]);
        assert_eq!(code(&bomb, 1 << 10), Err(Code::ResourceExhausted));
        assert_eq!(code(b"abc", 3), Err(Code::InvalidArgument));
        let whole = gzip(b"abcdefgh");
        let cut = &whole[..whole.len() - 4];
        assert_eq!(code(cut, 100), Err(Code::InvalidArgument));
    }

    #[test]
    fn sentences_are_encoded_and_cut() {
        assert_eq!(
            percent_encode("100 % größer\n"),
            "100 %25 gr%C3%B6%C3%9Fer%0A"
        );
        assert!(percent_encode(&"ö".repeat(10_000)).len() < SENTENCE_BYTES_MAX + 16);
    }
}
