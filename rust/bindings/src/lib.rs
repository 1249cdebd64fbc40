//! PyO3 bindings: the only crate that knows Python. Converts, calls, maps errors; nothing else.

mod data_plane;
mod model_server;

use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Every name that crosses, on one page; `src/modelmesh/_native.pyi` says what each promises.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::data_plane::DataPlane;
    #[pymodule_export]
    use super::model_server::{Batch, ModelServer};
}
