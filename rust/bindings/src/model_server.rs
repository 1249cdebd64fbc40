//! `modelmesh._native.ModelServer`: the model server, for `modelmesh.dataplane.model_server`.

use pyo3::prelude::*;

/// The model server. See `_native.pyi`.
#[pyclass(module = "modelmesh._native")]
pub struct ModelServer {}

/// Requests to run together. See `_native.pyi`.
#[pyclass(module = "modelmesh._native")]
pub struct Batch {}
