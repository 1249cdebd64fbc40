//! Open Inference Protocol: messages, tensors, REST <-> gRPC, id splice. Pure bytes in, bytes out; no I/O.

pub mod splice;
pub mod wire;
