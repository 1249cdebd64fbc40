//! The data plane: listeners, names, routes, parking, balancing, limits, usage.
//!
//! A request comes in by `connection` and `serve` (gRPC; `several` if it names more than one model) or `dispatch` and `gather` (REST) and is led by `call`:
//! `naming` says what it asks for (`meaning` what that stands for), `waiting` finds it a slot,
//! `infer` makes attempts (with `inject` where a model server reads the id in messages), `answer` goes back. `plane` is what all loops share and the control plane writes;
//! `data_plane` starts and stops it all. Only `connection` and `upstream` (with `liveness`) know the HTTP/2 library.
//!
//! Another instance is a target like a model server (`upstream`, `infer`), and at its own port a caller like a client
//! (`call::Origin`), whose requests are served from copies here or not at all (`waiting`).

mod answer;
mod attempt;
mod body;
mod books;
mod budget;
mod call;
mod circuit;
pub mod config;
mod connection;
pub mod data_plane;
mod deadline;
pub mod dispatch;
pub mod event;
mod event_loop;
mod flood;
mod frames;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gate;
mod gather;
mod headers;
mod heard;
mod id_headers;
mod infer;
mod inject;
mod liveness;
pub mod meaning;
mod method;
pub mod metrics;
pub mod name;
mod naming;
pub mod peer_tls;
mod pick;
pub mod plane;
pub mod replica;
mod rest;
pub mod rules;
pub mod series;
mod serve;
mod several;
mod socket;
pub mod space;
pub mod status;
mod stream;
pub mod tee;
pub mod tls;
mod trailers;
mod upstream;
mod waiting;
