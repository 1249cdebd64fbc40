"""The data plane under an explicit config: which methods it lets in, and where it looks for the model (reference mesh.md 1.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from relay_face import METHOD, relay_face, run

from modelmesh.dataplane.protocol import Fault, MethodRule, Name, NameKind, Replica
from modelmesh.wire.generated import inference_pb2 as pb

Code = grpc.StatusCode
INFER = "inference.GRPCInferenceService/ModelInfer"
RULES = (
    MethodRule(INFER, (1,), vmodel=True),
    MethodRule("test.Echo/Nested", (2, 1)),
    MethodRule("test.Echo/ByHeader"),
    MethodRule("mmesh.ModelRuntime/loadModel", (1,)),
)
NESTED = b"\x12\x03\x0a\x01m"
EMPTY_ID = b"\x12\x02\x0a\x00"


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
@pytest.mark.parametrize(
    ("method", "message", "headers", "name"),
    [
        (f"/{INFER}", pb.ModelInferRequest(model_name="v").SerializeToString(), (), (NameKind.VMODEL, "v")),
        ("/test.Echo/Nested", NESTED, (), (NameKind.MODEL, "m")),
        ("/test.Echo/Nested", NESTED, (("mm-vmodel-id", "other"),), (NameKind.MODEL, "m")),
        ("/test.Echo/Nested", b"\x1a\x01x", (("mm-vmodel-id", "other"),), (NameKind.VMODEL, "other")),
        ("/test.Echo/ByHeader", NESTED, (("tas-model-id", "old"),), (NameKind.MODEL_FIRST, "old")),
    ],
)
def test_listed_methods_find_the_model_where_their_rule_says(
    tmp_path: Path, method: str, message: bytes, headers: Any, name: tuple[NameKind, str], compression: Any
) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.plane.set_method_rules(RULES, False)
            asked = face.ask(method=method, message=message, headers=headers, compression=compression)
            assert (await face.event(Fault)).name == Name(*name)
            face.serve("m@1", Replica(1, 1))
            face.plane.publish_names([(Name(*name), "m@1")])
            assert (await asked).message == message

    run(test())


@pytest.mark.parametrize(
    ("method", "message", "headers", "code"),
    [
        ("/test.Echo/Nested", EMPTY_ID, (("mm-model-id", "m"),), Code.INVALID_ARGUMENT),
        ("/test.Echo/Nested", b"\x10\x01", (("mm-model-id", "m"),), Code.INVALID_ARGUMENT),
        ("/test.Echo/Nested", b"", (), Code.INVALID_ARGUMENT),
        ("/test.Echo/ByHeader", NESTED, (), Code.INVALID_ARGUMENT),
        (METHOD, b"x", (("mm-model-id", "m"),), Code.UNIMPLEMENTED),
        ("/mmesh.ModelRuntime/loadModel", b"\x0a\x01m", (), Code.UNIMPLEMENTED),
        ("/com.ibm.watson.tas.internal.proto.ModelServer/x", b"", (), Code.UNIMPLEMENTED),
    ],
)
def test_what_the_rules_do_not_allow_is_refused(
    tmp_path: Path, method: str, message: bytes, headers: Any, code: Code
) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("m", Replica(1, 1))
            face.plane.set_method_rules(RULES, False)
            reply = await face.ask(method=method, message=message, headers=headers)
            assert reply.code == code
            assert bool(reply.details) == (code != Code.UNIMPLEMENTED)
            assert not face.upstreams[0].requests

    run(test())


def test_an_unlisted_method_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.plane.set_method_rules(RULES, False)
            call = face.channel.stream_stream("/test.Echo/OtherStream")(metadata=(("mm-model-id", "m"),))
            assert await call.code() == Code.UNIMPLEMENTED

    run(test())


def test_rules_are_swapped_while_clients_are_connected(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("m", Replica(1, 1))

            async def code(method: str = METHOD) -> Code:
                return (await face.ask("m", method=method)).code

            assert await code() == Code.OK
            face.plane.set_method_rules(RULES, False)
            assert await code() == Code.UNIMPLEMENTED
            for control in ("/mmesh.ModelMesh/getModelStatus", "/grpc.health.v1.Health/Check"):
                assert await code(control) == Code.OK
            face.plane.set_method_rules(RULES, True)
            assert await code() == Code.OK
            assert await code("/mmesh.ModelRuntime/loadModel") == Code.UNIMPLEMENTED
            face.plane.set_method_rules(None, False)
            assert await code() == Code.OK

    run(test())
