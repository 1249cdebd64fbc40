"""Scripts of the scripted model server as JSON, and ids in messages."""

import pytest

from modelmesh.errors import Code
from modelmesh.testing.model_runtime import Script, id_in, parse_script
from modelmesh.wire.generated.inference_pb2 import ModelInferRequest


def test_scripts_from_json() -> None:
    assert parse_script({"load_s": 2, "load_error": ["INTERNAL", "no"]}) == Script(
        load_s=2, load_error=(Code.INTERNAL, "no")
    )
    with pytest.raises(ValueError, match="lode_s: a script has"):
        parse_script({"lode_s": 2})
    with pytest.raises(KeyError):
        parse_script({"load_error": ["WRONG", "no"]})


def test_ids_are_found_where_protobuf_finds_them() -> None:
    request = ModelInferRequest(model_name="first", id="x")
    request.inputs.add(name="deep")
    body = request.SerializeToString()
    assert id_in(body, [1]) == "first"
    assert id_in(body, [5, 1]) == "deep"
    assert id_in(body, [9]) == ""
    assert id_in(body + ModelInferRequest(model_name="last").SerializeToString(), [1]) == "last"
