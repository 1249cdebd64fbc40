"""Ask two of the example models over gRPC: `python -m examples.grpc_client [HOST:PORT]`, while `make serve` runs.

Uses the client of Triton as it is (`pip install tritonclient[grpc]`): the protocol is the same.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from sklearn.datasets import load_breast_cancer, load_wine
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput


def infer(
    client: InferenceServerClient, model: str, rows: np.ndarray, datatype: str, output: str
) -> np.ndarray:
    """Send `rows` as one input tensor and return the output of that name."""
    tensor = InferInput("x", list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows)
    answer = client.infer(model, [tensor], outputs=[InferRequestedOutput(output)], client_timeout=30)
    return answer.as_numpy(output)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "address", nargs="?", default="127.0.0.1:8033", help="the gRPC address that serve printed"
    )
    with InferenceServerClient(parser.parse_args().address) as client:
        wine, cancer = load_wine(), load_breast_cancer()
        labels = infer(client, "wine-xgboost", wine.data[::40].astype(np.float32), "FP32", "predict")
        print(
            "wine-xgboost           predicts", labels.ravel().tolist(), " truth", wine.target[::40].tolist()
        )
        rows = cancer.data[17:22]
        probabilities = infer(client, "breast-cancer-sklearn", rows, "FP64", "predict_proba")
        print(
            "breast-cancer-sklearn  predicts",
            probabilities.round(2).tolist(),
            " truth",
            cancer.target[17:22].tolist(),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
