"""A mesh under measurement: instances as a user starts them, on one etcd and one machine."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import grpc

from bench.product import Product, serving
from modelmesh.testing.etcd import Etcd
from modelmesh.wire.generated import model_mesh_pb2 as wire

SERVICE = "bench"
MEETING_S = 30.0
API = "/mmesh.ModelMesh/"


def flags(etcd: Etcd, root: Path) -> tuple[str, ...]:
    """What makes an instance one of the mesh on this etcd."""
    return (
        "--store",
        f"etcd:{etcd.endpoints}",
        "--service",
        SERVICE,
        "--model-root",
        str(root),
        "--peer-port",
        "0",
    )


@contextlib.contextmanager
def etcd_server() -> Iterator[Etcd]:
    """One member, its data on disk as ever."""
    with tempfile.TemporaryDirectory(prefix="modelmesh-bench-etcd-") as scratch, Etcd(Path(scratch)) as etcd:
        yield etcd


@contextlib.contextmanager
def mesh(n_instances: int, root: Path, *, memory: str = "1GiB") -> Iterator[list[Product]]:
    """Instances of one worker each, without models, that know each other."""
    with etcd_server() as etcd, contextlib.ExitStack() as stack:
        instances = [
            stack.enter_context(serving(None, memory=memory, flags=flags(etcd, root)))
            for _ in range(n_instances)
        ]
        yield instances


def status(instance: Product, model: str) -> wire.ModelStatusInfo:
    """As the instance tells it over gRPC, with the copies of all instances. Raises grpc.RpcError."""
    with grpc.insecure_channel(instance.grpc) as channel:
        call = channel.unary_unary(
            f"{API}getModelStatus",
            request_serializer=wire.GetStatusRequest.SerializeToString,
            response_deserializer=wire.ModelStatusInfo.FromString,
        )
        return call(wire.GetStatusRequest(modelId=model), timeout=10)


def wait_met(instances: Sequence[Product], model: str) -> None:
    """Until all know of the copy of a model that one of them has. TimeoutError when that takes too long."""
    ends_s = time.monotonic() + MEETING_S
    for instance in instances:
        while status(instance, model).status != wire.ModelStatusInfo.LOADED:
            if time.monotonic() > ends_s:
                raise TimeoutError(f"{instance.grpc} does not know of the copy of {model}.")
            time.sleep(0.05)


def warm(instances: Sequence[Product], models: Iterable[str]) -> None:
    """Load models until each instance has one: then they know each other, and all have imported the format. RuntimeError when
    these are too few for that."""
    for model in models:
        instances[0].post(f"/models/{model}:load")
        wait_met(instances, model)
        if all(instance.get("/instance")["models_loaded"] for instance in instances):
            return
    raise RuntimeError("Not every instance was given a model.")
