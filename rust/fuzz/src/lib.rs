//! What strangers can send us, fuzzed. A target is a function of bytes that panics when a promise is broken; it is run
//! by libFuzzer where that is installed (`fuzz_targets/`), and by `main.rs` on any stable toolchain.

pub mod mutate;
pub mod seeds;
pub mod targets;
