"""The line `serve` prints for people to paste: a request the first model can answer, made from its own metadata."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

_ELEMENTS_MAX: Final = 64
_TIMEOUT_S: Final = 30.0


def curl_line(rest: str, name: str) -> str:
    """A `curl` command for the model. Asks the REST port for its metadata, which may load it; blocks for as long, so call it in a
    thread. When the model cannot tell what it takes, the command asks for its metadata instead."""
    url = f"{rest}/v2/models/{quote(name, safe='')}"
    try:
        with urlopen(url, timeout=_TIMEOUT_S) as answer:
            body = example_request(json.load(answer))
    except (URLError, OSError, ValueError):
        body = None
    if body is None:
        return f"curl {url}"
    return f"curl {url}/infer -d {shlex.quote(json.dumps(body, separators=(',', ':')))}"


def example_request(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """A request of zeros, one row, that fits the metadata; None when it would be long or the inputs are unknown."""
    inputs = [_example_input(each) for each in metadata.get("inputs", ())]
    elements = sum(math.prod(each["shape"]) for each in inputs)
    return {"inputs": inputs} if inputs and elements <= _ELEMENTS_MAX else None


def _example_input(tensor: dict[str, Any]) -> dict[str, Any]:
    """What the metadata leaves open (−1 in a shape, an empty name or datatype: any) is chosen."""
    shape = [max(1, size) for size in tensor.get("shape") or [1, 1]]
    datatype = tensor.get("datatype") or "FP64"
    value: object = {"BYTES": "", "BOOL": False}.get(datatype, 0)
    return {
        "name": tensor.get("name") or "input",
        "shape": shape,
        "datatype": datatype,
        "data": [value] * math.prod(shape),
    }
