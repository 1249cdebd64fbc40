//! The worker's half: an Open Inference Protocol server on a unix socket that hands out batches.
