"""The line `serve` prints for people to paste: a request the first model can answer, made from its own metadata."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote
from urllib.request import urlopen

_ELEMENTS_MAX: Final = 64
_TIMEOUT_S: Final = 30.0


def curl_line(rest: str, names: Iterable[str]) -> str:
    """A `curl` command for the first of these models that works. Asks the REST port for metadata, which may load a model; blocks
    for as long, so call it in a thread. A model that does not say what it takes is asked for its metadata instead."""
    for name in names:
        url = f"{rest}/v2/models/{quote(name, safe='')}"
        try:
            with urlopen(url, timeout=_TIMEOUT_S) as answer:
                body = example_request(json.load(answer))
        except (OSError, ValueError):
            continue  # it is broken, or too large; /explain tells
        if body is None:
            return f"curl {url}"
        return f"curl {url}/infer -d {shlex.quote(json.dumps(body, separators=(',', ':')))}"
    return f"curl {rest}/v2"


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
