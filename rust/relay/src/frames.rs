//! gRPC message frames: watched as they pass, never copied.

use std::io::Read;

use bytes::{BufMut, Bytes, BytesMut};

use crate::status::{Code, Status};

/// The flag and the length before each message.
pub const PREFIX_BYTES: usize = 5;

/// Follows the frames of one direction of a call and refuses what breaks the rules.
#[derive(Debug)]
pub struct Frames {
    what: &'static str,
    bytes_max: u64,
    prefix: [u8; PREFIX_BYTES],
    have: usize,
    missing: u64,
    bytes: u64,
}

impl Frames {
    /// Before the first byte. `what`: "request" or "response", for sentences.
    pub fn new(what: &'static str, bytes_max: usize) -> Frames {
        Frames {
            what,
            bytes_max: bytes_max as u64,
            prefix: [0; PREFIX_BYTES],
            have: 0,
            missing: 0,
            bytes: 0,
        }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// When a message is over the limit, or the bytes are no frames.
    pub fn feed(&mut self, mut chunk: &[u8]) -> Result<(), Status> {
        self.bytes += chunk.len() as u64;
        while !chunk.is_empty() {
            if self.missing > 0 {
                let passed = self.missing.min(chunk.len() as u64);
                self.missing -= passed;
                chunk = &chunk[passed as usize..];
                continue;
            }
            let take = (PREFIX_BYTES - self.have).min(chunk.len());
            self.prefix[self.have..self.have + take].copy_from_slice(&chunk[..take]);
            self.have += take;
            chunk = &chunk[take..];
            if self.have == PREFIX_BYTES {
                self.have = 0;
                self.begin()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Status> {
        let [flag, length @ ..] = self.prefix;
        let length = u64::from(u32::from_be_bytes(length));
        if flag > 1 {
            let sentence = format!(
                "The {} body is no gRPC message: its first byte is {flag}, not 0 or 1.",
                self.what
            );
            return Err(Status::new(self.malformed(), sentence));
        }
        if length > self.bytes_max {
            return Err(Status::too_large(self.what, length, self.bytes_max));
        }
        self.missing = length;
        Ok(())
    }

    /// The direction ended.
    ///
    /// # Errors
    /// When it ended within a message.
    pub fn end(&self) -> Result<(), Status> {
        if self.have == 0 && self.missing == 0 {
            return Ok(());
        }
        let sentence = format!(
            "The {} body ended within a message; {} bytes are missing.",
            self.what, self.missing
        );
        Err(Status::new(self.malformed(), sentence))
    }

    fn malformed(&self) -> Code {
        if self.what == "request" {
            Code::InvalidArgument
        } else {
            Code::Internal
        }
    }

    /// All bytes so far, prefixes included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The prefix of an uncompressed message of `length` bytes.
pub fn prefix(length: usize) -> Bytes {
    let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
    prefix.put_u8(0);
    prefix.put_u32(length as u32);
    prefix.freeze()
}

/// The flag and length at the start of `bytes`; `None` when there are too few.
pub fn parse_prefix(bytes: &[u8]) -> Option<(bool, usize)> {
    let (flag, length) = (bytes.first()?, bytes.get(1..PREFIX_BYTES)?);
    Some((
        *flag != 0,
        u32::from_be_bytes(length.try_into().ok()?) as usize,
    ))
}

/// Up to `bytes_max` of what gzip data holds; all that can be read when the data is cut short. The second says whether that is all.
///
/// # Errors
/// When nothing can be read.
pub fn gunzip(compressed: &[u8], bytes_max: usize) -> Result<(Vec<u8>, bool), std::io::Error> {
    let mut decoder = flate2::read::GzDecoder::new(compressed);
    let mut plain = Vec::new();
    let mut buffer = [0; 8192];
    while plain.len() < bytes_max {
        match decoder.read(&mut buffer) {
            Ok(0) => return Ok((plain, true)),
            Ok(n) => plain.extend_from_slice(&buffer[..n.min(bytes_max - plain.len())]),
            Err(error) if plain.is_empty() => return Err(error),
            Err(_) => return Ok((plain, false)),
        }
    }
    let all = matches!(decoder.read(&mut buffer), Ok(0));
    Ok((plain, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(flag: u8, length: u32) -> Vec<u8> {
        let mut bytes = vec![flag];
        bytes.extend(length.to_be_bytes());
        bytes.extend(vec![7; length as usize]);
        bytes
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let bytes = [frame(0, 3), frame(1, 0), frame(0, 9)].concat();
        for cut in 1..=bytes.len() {
            let mut frames = Frames::new("request", 9);
            for chunk in bytes.chunks(cut) {
                frames.feed(chunk).expect("fine");
            }
            frames.end().expect("at a boundary");
            assert_eq!(frames.bytes(), bytes.len() as u64);
        }
        for end in 1..8 {
            let mut frames = Frames::new("request", 9);
            frames.feed(&bytes[..end]).expect("fine");
            assert_eq!(frames.end().is_err(), end != 8, "{end}");
        }
    }

    #[test]
    fn large_messages_and_garbage_are_refused() {
        let refused = |bytes: &[u8]| Frames::new("request", 9).feed(bytes).expect_err("refused");
        assert_eq!(refused(&frame(0, 10)[..5]).code, Code::ResourceExhausted);
        assert_eq!(refused(&frame(0, 10)[..5]).http_status(), 413);
        assert_eq!(refused(&frame(2, 1)).code, Code::InvalidArgument);
    }

    #[test]
    fn gzip_is_read_up_to_a_bound() {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&[5; 100_000]).expect("memory");
        let compressed = encoder.finish().expect("memory");
        let (plain, all) = gunzip(&compressed, 200_000).expect("gzip");
        assert!(all && plain.len() == 100_000);
        let (plain, all) = gunzip(&compressed, 1000).expect("gzip");
        assert!(!all && plain.len() == 1000);
        assert!(gunzip(b"garbage that is no gzip", 10).is_err());
    }
}
