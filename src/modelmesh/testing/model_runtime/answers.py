"""What a scripted model was told, read from its answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.unknown_fields import UnknownFieldSet

from modelmesh.wire.generated import inference_pb2

INFER: Final = "inference.GRPCInferenceService/ModelInfer"


@dataclass(slots=True)
class Answer:
    """What a scripted model was told, as its answer says."""

    model: str
    method: str
    headers: dict[str, str]
    """Without those of gRPC itself; of those named -bin the bytes as text."""
    body: bytes
    server: int
    """How many times the server had been started when it answered."""


def read_answers(answer: bytes) -> dict[str, Answer]:
    """What the models of a call were told, by model: of any method but ModelInfer."""
    return {model: _answer(told) for model, told in MessageToDict(Struct.FromString(answer)).items()}


def read_answer(answer: bytes, method: str = "") -> Answer:
    """The same of a call of one model, `method` being its full name (only ModelInfer differs)."""
    if method == INFER:
        message = inference_pb2.ModelInferResponse.FromString(answer)
        return _answer(json.loads(message.outputs[0].contents.bytes_contents[0]))
    (told,) = read_answers(answer).values()
    return told


def id_in(body: bytes, path: Sequence[int]) -> str:
    """The text at a path of field numbers in an encoded message, the last occurrence counting as in protobuf; empty when
    there is none."""
    found = body
    for number in path:
        unknown: Any = UnknownFieldSet(Empty.FromString(found))
        values = [each.data for each in unknown if each.field_number == number]
        if not values:
            return ""
        found = values[-1]
    return found.decode()


def _answer(told: Mapping[str, Any]) -> Answer:
    return Answer(
        told["model"],
        told["method"],
        dict(told["headers"]),
        base64.b64decode(told["body"]),
        int(told["server"]),
    )
