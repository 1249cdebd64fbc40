//! `modelmesh._native.ModelServer`: the model server, for `modelmesh.dataplane.model_server`.

use std::cell::OnceCell;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use inference::datatype::Datatype;
use inference::messages::ParameterChoice;
use model_server::{Code, Config, Limits, Output, OutputData, Signature, Source, TensorSpec};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMemoryView};

/// The model server. See `_native.pyi`.
#[pyclass(module = "modelmesh._native", frozen)]
pub struct ModelServer {
    server: model_server::ModelServer,
}

#[pymethods]
impl ModelServer {
    #[new]
    #[pyo3(signature = (
        socket_path,
        executing_path,
        *,
        message_bytes_max = 16_777_216,
        batch_rows_max = 256,
        batch_bytes_max = 4_194_304,
        queue_max = 4096,
        queue_bytes_max = 67_108_864,
        stuck_after_ms = 60_000,
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        socket_path: PathBuf,
        executing_path: PathBuf,
        message_bytes_max: usize,
        batch_rows_max: usize,
        batch_bytes_max: usize,
        queue_max: usize,
        queue_bytes_max: usize,
        stuck_after_ms: u64,
    ) -> Self {
        let config = Config {
            socket_path,
            executing_path,
            message_bytes_max,
            queue_bytes_max,
            limits: Limits {
                batch_rows_max,
                batch_bytes_max,
                queue_max,
            },
            stuck_after: Duration::from_millis(stuck_after_ms),
        };
        Self {
            server: model_server::ModelServer::new(config),
        }
    }

    fn start(&self) -> PyResult<()> {
        self.refuse_fork()?;
        Ok(self.server.start()?)
    }

    #[pyo3(signature = (model_id, handle, *, platform, inputs, outputs, row_wise))]
    fn add_model(
        &self,
        model_id: &str,
        handle: i64,
        platform: &str,
        inputs: Vec<(String, String, Vec<i64>)>,
        outputs: Vec<(String, String, Vec<i64>, bool)>,
        row_wise: bool,
    ) -> PyResult<()> {
        let inputs = inputs
            .into_iter()
            .map(|(name, datatype, shape)| spec(name, &datatype, shape, true));
        let outputs = outputs
            .into_iter()
            .map(|(name, datatype, shape, by_default)| spec(name, &datatype, shape, by_default));
        let signature = Signature {
            platform: platform.into(),
            inputs: inputs.collect::<PyResult<_>>()?,
            outputs: outputs.collect::<PyResult<_>>()?,
            row_wise,
        };
        if self.server.add_model(model_id, handle, signature) {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "Model {model_id} is served already; remove it first."
        )))
    }

    fn remove_model(&self, model_id: &str) -> usize {
        self.server.remove_model(model_id)
    }

    fn next_batch(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<Option<Batch>> {
        self.refuse_fork()?;
        let batch = py.detach(|| self.server.next_batch(Duration::from_millis(timeout_ms)));
        Ok(batch.map(|batch| Batch { batch }))
    }

    fn stop(&self, py: Python<'_>, grace_ms: u64) {
        py.detach(|| self.server.stop(Duration::from_millis(grace_ms)));
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.server.stats();
        let dict = PyDict::new(py);
        dict.set_item("requests", stats.requests)?;
        dict.set_item("batches", stats.batches)?;
        dict.set_item("rows", stats.rows)?;
        dict.set_item("queued", stats.queued)?;
        dict.set_item("refused", stats.refused)?;
        dict.set_item("connections", stats.connections)?;
        Ok(dict)
    }
}

impl ModelServer {
    fn refuse_fork(&self) -> PyResult<()> {
        if self.server.is_forked() {
            return Err(PyRuntimeError::new_err(
                "This model server was started before the process forked and does not work here; create one in this process.",
            ));
        }
        Ok(())
    }
}

fn spec(name: String, datatype: &str, shape: Vec<i64>, by_default: bool) -> PyResult<TensorSpec> {
    let datatype = if datatype.is_empty() {
        None
    } else {
        Some(named(&name, datatype)?)
    };
    Ok(TensorSpec {
        name: name.into(),
        datatype,
        shape: shape.into(),
        by_default,
    })
}

fn named(tensor: &str, datatype: &str) -> PyResult<Datatype> {
    Datatype::named(datatype).ok_or_else(|| {
        PyValueError::new_err(format!(
            "Tensor '{tensor}' has the unknown datatype '{datatype}'."
        ))
    })
}

/// Name, datatype, shape, data.
type InputTuple<'a, 'py> = (&'a str, &'static str, Vec<i64>, Bound<'py, PyAny>);

/// Requests to run together. See `_native.pyi`.
#[pyclass(module = "modelmesh._native")]
pub struct Batch {
    batch: model_server::Batch,
}

#[pymethods]
impl Batch {
    #[getter]
    fn handle(&self) -> i64 {
        self.batch.handle()
    }

    #[getter]
    fn n_requests(&self) -> usize {
        self.batch.n_requests()
    }

    #[getter]
    fn rows(&self) -> usize {
        self.batch.rows()
    }

    #[getter]
    fn outputs(&self) -> Vec<&str> {
        self.batch.outputs().iter().map(String::as_str).collect()
    }

    #[getter]
    fn parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, parameter) in self.batch.parameters().into_iter().flatten() {
            match &parameter.choice {
                None => {}
                Some(ParameterChoice::Bool(value)) => dict.set_item(name, value)?,
                Some(ParameterChoice::Int64(value)) => dict.set_item(name, value)?,
                Some(ParameterChoice::Uint64(value)) => dict.set_item(name, value)?,
                Some(ParameterChoice::Double(value)) => dict.set_item(name, value)?,
                Some(ParameterChoice::String(value)) => dict.set_item(name, value)?,
            }
        }
        Ok(dict)
    }

    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Vec<InputTuple<'_, 'py>>> {
        let mut inputs = Vec::new();
        for input in self.batch.inputs() {
            let data = if input.datatype == Datatype::Bytes {
                let elements: Vec<_> = input
                    .elements()
                    .map(|element| PyBytes::new(py, element))
                    .collect();
                PyList::new(py, elements)?.into_any()
            } else {
                let copy = |target: &mut [u8]| {
                    input.copy_into(target);
                    Ok(())
                };
                PyByteArray::new_with(py, input.size_bytes(), copy)?.into_any()
            };
            inputs.push((input.name, input.datatype.name(), input.shape, data));
        }
        Ok(inputs)
    }

    fn reply(
        &mut self,
        outputs: Vec<(String, String, Vec<i64>, Bound<'_, PyAny>)>,
    ) -> PyResult<bool> {
        let given: Vec<Data<'_>> = outputs
            .iter()
            .map(|(name, datatype, _, data)| Data::of(name, datatype, data))
            .collect::<PyResult<_>>()?;
        let elements: Vec<Vec<&[u8]>> = given
            .iter()
            .map(|data| match data {
                Data::Buffer(_) => Vec::new(),
                Data::Elements(elements) => {
                    elements.iter().map(|element| element.as_bytes()).collect()
                }
            })
            .collect();
        let mut whole = Vec::with_capacity(outputs.len());
        for (((name, datatype, shape, _), data), elements) in
            outputs.iter().zip(&given).zip(&elements)
        {
            whole.push(Output {
                name,
                datatype: named(name, datatype)?,
                shape,
                data: match data {
                    Data::Buffer(buffer) => OutputData::Fixed(buffer),
                    Data::Elements(_) => OutputData::Elements(elements),
                },
            });
        }
        self.batch.reply(&whole).map_err(PyValueError::new_err)
    }

    fn fail(&mut self, code: i64, message: &str) -> PyResult<bool> {
        self.batch
            .fail(Code::of_failure(code), message)
            .map_err(PyValueError::new_err)
    }
}

/// An output's data as it was given, kept alive.
enum Data<'py> {
    Buffer(Buffer<'py>),
    Elements(Vec<Bound<'py, PyBytes>>),
}

/// The bytes of a Python buffer. Others may write to it, so it is not borrowed: all of it is copied straight to where it
/// goes; parts come from one copy.
struct Buffer<'py> {
    py: Python<'py>,
    /// `None`: empty.
    bytes: Option<PyBuffer<u8>>,
    copied: OnceCell<Vec<u8>>,
}

const ITS_OWN_LENGTH: &str =
    "a contiguous buffer of bytes can be copied to a slice of its own length";

impl Source for Buffer<'_> {
    fn len_bytes(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len_bytes())
    }

    fn append(&self, range: Range<usize>, out: &mut Vec<u8>) {
        let Some(bytes) = &self.bytes else { return };
        if range.len() == bytes.len_bytes() {
            let at = out.len();
            out.resize(at + range.len(), 0);
            bytes
                .copy_to_slice(self.py, &mut out[at..])
                .expect(ITS_OWN_LENGTH);
        } else {
            let copied = self
                .copied
                .get_or_init(|| bytes.to_vec(self.py).expect(ITS_OWN_LENGTH));
            out.extend_from_slice(&copied[range]);
        }
    }
}

impl<'py> Data<'py> {
    fn of(name: &str, datatype: &str, data: &Bound<'py, PyAny>) -> PyResult<Self> {
        if datatype == "BYTES" {
            return Ok(Self::Elements(data.extract()?));
        }
        let view = PyMemoryView::from(data)?;
        if !view.getattr("c_contiguous")?.extract::<bool>()? {
            let sentence =
                format!("Output '{name}' is not C-contiguous; copy it into a contiguous array.");
            return Err(PyValueError::new_err(sentence));
        }
        // An empty view cannot be cast.
        let bytes = if view.getattr("nbytes")?.extract::<usize>()? == 0 {
            None
        } else {
            Some(PyBuffer::get(&view.call_method1("cast", ("B",))?)?)
        };
        Ok(Self::Buffer(Buffer {
            py: data.py(),
            bytes,
            copied: OnceCell::new(),
        }))
    }
}
