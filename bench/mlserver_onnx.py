"""The ONNX model MLServer does not ship: about the least code that serves one. Runs in MLServer's environment."""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class OnnxModel(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(await get_model_uri(self.settings), options)
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {each.name: np.asarray(NumpyCodec.decode_input(each), np.float32) for each in payload.inputs}
        results = zip(self._names, self._session.run(self._names, feeds), strict=True)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in results]
        return InferenceResponse(model_name=self.name, outputs=outputs)
