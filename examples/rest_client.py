"""Ask two of the example models over REST: `python -m examples.rest_client [URL]`, while `make serve` runs.

The requests are plain Open Inference Protocol V2 JSON; any HTTP client can send them.
"""

from __future__ import annotations

import argparse
import sys

import httpx
from sklearn.datasets import load_digits, load_iris


def infer(
    client: httpx.Client, model: str, name: str, datatype: str, rows: list[list[float]]
) -> dict[str, list]:
    """Send `rows` as one input tensor; returns the outputs by name, each a flat list."""
    tensor = {"name": name, "datatype": datatype, "shape": [len(rows), len(rows[0])], "data": rows}
    response = client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    if response.is_error:
        raise SystemExit(f"{model} answered {response.status_code}: {response.json()['error']}")
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "url", nargs="?", default="http://127.0.0.1:8008", help="the REST address that serve printed"
    )
    with httpx.Client(base_url=parser.parse_args().url, timeout=30) as client:
        iris, digits = load_iris(), load_digits()
        outputs = infer(client, "iris-sklearn", "x", "FP64", iris.data[::30].tolist())
        print("iris-sklearn  predicts", outputs["predict"], " truth", iris.target[::30].tolist())
        outputs = infer(client, "digits-onnx", "X", "FP32", digits.data[:5].tolist())
        print("digits-onnx   predicts", outputs["label"], " truth", digits.target[:5].tolist())
    return 0


if __name__ == "__main__":
    sys.exit(main())
