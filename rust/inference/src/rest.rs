//! The protocol's REST bodies: JSON to the gRPC messages and back. Routes and headers are the listener's.
//!
//! JSON cannot say everything the messages can. What is lost or refused is decided here, once:
//! - NaN and infinities are written as `null`, and `null` among floats is read as NaN;
//! - integers are exact or refused; booleans are `true` or `false`;
//! - BYTES are JSON strings; when an output's are not UTF-8, all of it is base64 and says so in the parameter
//!   `content_type`, which is understood in requests too;
//! - FP16 and BF16 have no JSON form.

mod data;
mod request;
mod response;

pub use request::{parse_index, parse_infer, parse_model_control};
pub use response::{
    error, index, infer, live, model_metadata, model_ready, ready, server_metadata,
};

/// The tensor parameter, and its value, that mark BYTES elements as base64 text.
const CONTENT_TYPE: &str = "content_type";
const BASE64: &str = "base64";
