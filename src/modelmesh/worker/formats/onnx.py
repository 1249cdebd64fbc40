"""ONNX models, run by onnxruntime with sessions sized for density: one thread, no arena, no memory pattern."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelmesh.errors import Code, InvalidInput, LoadFailed
from modelmesh.worker.formats import names
from modelmesh.worker.formats.protocol import Claim, InputSpec, OutputSpec, Parameters, SizeHints

if TYPE_CHECKING:
    from modelmesh.dataplane.model_server import Array

DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxFormat:
    """The model type `onnx`."""

    name = "onnx"
    extra = "onnx"
    modules: tuple[str, ...] = ("onnxruntime",)
    well_known: tuple[str, ...] = ("model.onnx",)
    extensions = (".onnx", ".ort")
    hints = SizeHints(floor_bytes=96 * 1024, per_file_byte=1.1, peak_factor=2.2)

    def claims(self, files: Sequence[str]) -> Claim:
        return names.claim(files, self.well_known, self.extensions)

    def pick(self, files: Sequence[str]) -> str | None:
        """The graph; weights may lie in files beside it."""
        return names.pick(files, self.well_known, self.extensions)

    def recognises(self, head: bytes) -> bool:
        """A ModelProto begins with its `ir_version` (field 1), rarely with opset_import, producer or graph; onnxruntime's
        own format has an identifier at byte 4."""
        protobuf = head[:1] == b"\x08" and 0 < head[1] < 0x40 if len(head) > 2 else False
        return protobuf or head[4:8] == b"ORTM" or head[:2] in (b"\x42\x02", b"\x42\x04", b"\x12\x07")

    def import_framework(self) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)

    def load(self, path: Path) -> Graph:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                session = onnxruntime.InferenceSession(
                    str(path), sess_options=options, providers=["CPUExecutionProvider"]
                )
        except MemoryError:
            raise
        except Exception as error:
            raise LoadFailed(
                f"{path} is not an ONNX model that can be run ({error}).", code=Code.INVALID_ARGUMENT
            ) from error
        return Graph(session, path)


class Graph:
    """A session with the metadata of its graph."""

    platform = "onnx_onnxruntime"

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.inputs = tuple(
            InputSpec(node.name, _datatype(node, path), _shape(node.shape)) for node in inputs
        )
        self.outputs = tuple(
            OutputSpec(node.name, DATATYPES.get(node.type, ""), _shape(node.shape), node.type in DATATYPES)
            for node in outputs
        )
        self._defaults = [output.name for output in self.outputs if output.default] or [
            output.name for output in self.outputs
        ]
        self.row_wise = all(_symbolic_first(node) for node in [*inputs, *outputs])

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], parameters: Parameters
    ) -> Mapping[str, Array]:
        from modelmesh.worker.formats.tensors import texts

        wanted = list(outputs) or self._defaults
        feeds = {name: texts(array) for name, array in inputs.items()}
        try:
            answers = self._session.run(wanted, feeds)
        except MemoryError:
            raise
        except Exception as error:
            if type(error).__module__.startswith("onnxruntime") and type(error).__name__ in (
                "Fail",
                "InvalidArgument",
            ):
                raise ValueError(str(error)) from error
            raise
        return {name: _plain(name, answer) for name, answer in zip(wanted, answers, strict=True)}

    def owned(self) -> object:
        return self._session


def _datatype(node: Any, path: Path) -> str:
    datatype = DATATYPES.get(node.type)
    if datatype is None:
        raise LoadFailed(
            f"The input {node.name!r} of {path} is of the type {node.type}, which cannot be sent in the protocol.",
            code=Code.INVALID_ARGUMENT,
        )
    return datatype


def _shape(shape: Sequence[Any] | None) -> tuple[int, ...]:
    return tuple(length if isinstance(length, int) and length >= 0 else -1 for length in shape or ())


def _symbolic_first(node: Any) -> bool:
    """Whether the first dimension is free, so that rows may be stacked; an output that is a sequence has none."""
    return bool(node.shape) and not isinstance(node.shape[0], int)


def _plain(name: str, answer: Any) -> Any:
    """Tensors as they are; a sequence of maps (skl2onnx's ZipMap) as a matrix of its values in key order."""
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        import numpy as np

        return np.asarray([[row[key] for key in sorted(row)] for row in answer])
    if isinstance(answer, list | dict):
        raise InvalidInput(
            f"The output {name!r} is not a tensor and cannot be returned: ask for another one."
        )
    return answer
