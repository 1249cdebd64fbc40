//! The worker's half of the data plane: an Open Inference Protocol server on a unix socket that hands out batches.
//!
//! One thread at a time drives the sockets (`server`, `connection`, `grpc`, `call`): it reads, decodes and checks requests and
//! puts them in the `queue`. Whoever runs the models takes a `batch` from there, and its `answers` go back in one piece. That is
//! mostly one and the same thread (`wheel`).

mod answers;
mod batch;
mod budget;
mod call;
mod connection;
mod encode;
mod executing;
mod grpc;
mod models;
mod queue;
mod request;
mod server;
mod status;
#[cfg(test)]
mod testing;
mod wheel;

pub use batch::{Batch, Input};
pub use encode::{Output, OutputData, Source};
pub use executing::RECORD_BYTES;
pub use models::{Signature, TensorSpec};
pub use queue::Limits;
pub use server::{Config, ModelServer, Stats};
pub use status::Code;
