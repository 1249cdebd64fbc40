//! Open Inference Protocol: messages, tensors, REST <-> gRPC, id splice; and what gRPC writes in headers. Pure bytes in, bytes out;
//! no I/O.

use std::fmt;

pub mod code;
pub mod datatype;
pub mod grpc;
pub mod infer;
pub mod messages;
pub mod rest;
pub mod splice;
pub mod tensor;
pub mod wire;

/// A request (or a model server's answer) breaks the protocol. It displays as a sentence for the caller, who gets it
/// as INVALID_ARGUMENT or HTTP 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(sentence: String) -> Self {
        Self(sentence)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}
