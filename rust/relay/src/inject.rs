//! The concrete model's id, spliced into the messages of a request for a model server that reads it there.
//!
//! A message is held until it is whole, and then sent as a changed copy: both count as parked bytes until the copy is
//! handed on, whatever the size of the body. Compressed messages are unpacked and sent as they are then: whoever packed
//! them saved on the client's network, and packing them again for a model server next door would only cost time.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use inference::splice::{self, SpliceError};

use crate::attempt::DIRECT_BYTES_MAX;
use crate::frames::{PREFIX_BYTES, gunzip, parse_prefix, prefix};
use crate::plane::{Held, Plane};
use crate::status::{Code, Status};
use crate::waiting::no_room;

/// A copy is handed on in pieces, so that it is almost gone when its last piece is asked for and it counts no more.
const PIECE_BYTES: usize = 64 << 10;

/// What one attempt puts into the messages of its request, and where.
pub struct Injection<'a> {
    path: Arc<[u32]>,
    model: Arc<str>,
    method: Box<str>,
    gzip: bool,
    plane: &'a Plane,
    /// The changed message, as far as it was not handed on.
    ready: VecDeque<Bytes>,
    /// What is counted for it.
    ready_bytes: usize,
    held: Held<'a>,
}

impl<'a> Injection<'a> {
    /// The id of `model` at `path` in each message. `gzip`: its compressed messages are compressed by that.
    pub fn new(
        path: Arc<[u32]>,
        model: Arc<str>,
        method: &str,
        gzip: bool,
        plane: &'a Plane,
    ) -> Injection<'a> {
        Injection {
            path,
            model,
            method: method.trim_start_matches('/').into(),
            gzip,
            plane,
            ready: VecDeque::new(),
            ready_bytes: 0,
            held: Held::none(&plane.gauges.parked_bytes),
        }
    }

    /// Counts bytes that are held for it.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when there is no room.
    pub fn hold(&mut self, more: usize) -> Result<(), Status> {
        if self.held.try_add(more, self.plane.config.parked_bytes_max) {
            return Ok(());
        }
        Err(no_room(
            self.plane,
            &format!("{} for {}", self.method, self.model),
        ))
    }

    /// Changes a whole message, given with its prefix; its bytes were counted as they came.
    ///
    /// # Errors
    /// What the client is told when that cannot be done.
    pub fn change(&mut self, frame: &Bytes) -> Result<(), Status> {
        let message = match parse_prefix(frame) {
            Some((true, _)) => self.unpacked(&frame[PREFIX_BYTES..])?,
            _ => frame.slice(PREFIX_BYTES..),
        };
        let changed = splice::replace(&self.path, &message, &self.model)
            .map_err(|error| self.unfit(error))?;
        self.hold(changed.len())?;
        self.ready_bytes = frame.len() + changed.len();
        if changed.len() <= DIRECT_BYTES_MAX - PREFIX_BYTES {
            let mut whole = BytesMut::with_capacity(PREFIX_BYTES + changed.len());
            whole.put(prefix(changed.len()));
            whole.put(changed);
            self.ready.push_back(whole.freeze());
        } else {
            self.ready.extend([prefix(changed.len()), changed]);
        }
        Ok(())
    }

    /// Whether a changed message, or a piece of one, waits to be handed on.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next piece of the changed message.
    pub fn piece(&mut self) -> Option<Bytes> {
        let mut first = self.ready.pop_front()?;
        let rest = first.split_off(PIECE_BYTES.min(first.len()));
        if !rest.is_empty() {
            self.ready.push_front(rest);
        }
        if self.ready.is_empty() {
            self.held.give_back(std::mem::take(&mut self.ready_bytes));
        }
        Some(first)
    }

    fn unpacked(&self, compressed: &[u8]) -> Result<Bytes, Status> {
        if !self.gzip {
            let sentence = format!(
                "The message of {} is compressed otherwise than by gzip, so the id of model {} cannot be put into it; send it uncompressed.",
                self.method, self.model
            );
            return Err(Status::new(Code::Unimplemented, sentence));
        }
        let bytes_max = self.plane.config.message_bytes_max;
        match gunzip(compressed, bytes_max) {
            Ok((plain, true)) => Ok(plain.into()),
            Ok((plain, false)) if plain.len() >= bytes_max => Err(Status::too_large(
                "unpacked request",
                plain.len() as u64 + 1,
                bytes_max as u64,
            )),
            Ok(_) | Err(_) => Err(Status::new(
                Code::InvalidArgument,
                format!(
                    "The message of {} for model {} is marked as compressed but is no gzip.",
                    self.method, self.model
                ),
            )),
        }
    }

    fn unfit(&self, error: SpliceError) -> Status {
        let (method, model) = (&self.method, &self.model);
        if error == SpliceError::BadPath {
            let sentence = format!(
                "The model server of {model} wants its id at the impossible path {:?} in messages of {method}; correct what it says of its methods.",
                self.path
            );
            return Status::new(Code::Internal, sentence);
        }
        let sentence =
            format!("The id of model {model} cannot be put into the message of {method}. {error}");
        Status::new(Code::InvalidArgument, sentence)
    }
}
