//! `modelmesh._native.DataPlane`: the relay, for `modelmesh.dataplane.relay`.

use pyo3::prelude::*;

/// The relay. See `_native.pyi`.
#[pyclass(module = "modelmesh._native")]
pub struct DataPlane {}
