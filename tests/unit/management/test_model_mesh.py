"""`mmesh.ModelMesh` over the fake control plane: what the faces hand on, and what they make of the answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from modelmesh.errors import FailedPrecondition, InvalidInput, NoCapacity
from modelmesh.management.model_mesh import ModelMesh
from modelmesh.management.server import Context
from modelmesh.mesh.control import Registration
from modelmesh.mesh.views import CopyView, ModelView, State
from modelmesh.testing.control import FakeControlPlane
from modelmesh.wire.generated import model_mesh_pb2 as pb

Status = pb.ModelStatusInfo
INFO = pb.ModelInfo(type="sklearn", path="m", key="k")


class NoDeadline:
    def time_remaining(self) -> None:
        return None


CONTEXT = cast(Context, NoDeadline())


def calls(control: FakeControlPlane, admit: Any = lambda registration: registration) -> ModelMesh:
    return ModelMesh(control, admit, control.clock.wall_s)


def test_paths_are_admitted_before_anything_is_registered() -> None:
    def admit(registration: Registration) -> Registration:
        if registration.path.startswith("/"):
            raise FailedPrecondition("It does not lie under the model root.")
        return replace(registration, path=f"/root/{registration.path}")

    async def main() -> None:
        control = FakeControlPlane()
        face = calls(control, admit)
        await face.register_model(pb.RegisterModelRequest(modelId="a", modelInfo=INFO), CONTEXT)
        await face.set_vmodel(pb.SetVModelRequest(vModelId="v", targetModelId="b", modelInfo=INFO), CONTEXT)
        assert {view.id: view.path for view in control.registered.values()} == {
            "a": "/root/m",
            "b": "/root/m",
        }
        outside = pb.ModelInfo(type="sklearn", path="/etc/passwd")
        with pytest.raises(FailedPrecondition, match="model root"):
            await face.register_model(pb.RegisterModelRequest(modelId="c", modelInfo=outside), CONTEXT)
        with pytest.raises(FailedPrecondition, match="model root"):
            await face.set_vmodel(
                pb.SetVModelRequest(vModelId="w", targetModelId="c", modelInfo=outside), CONTEXT
            )
        assert set(control.registered) == {"a", "b"}

    asyncio.run(main())


def test_a_vmodels_name_is_no_models_id() -> None:
    async def main() -> None:
        control = FakeControlPlane()
        face = calls(control)
        await face.register_model(pb.RegisterModelRequest(modelId="a", modelInfo=INFO), CONTEXT)
        await control.set_vmodel("v", "a")
        assert await face.get_model_status(pb.GetStatusRequest(modelId="v"), CONTEXT) == Status(
            status=Status.NOT_FOUND
        )
        with pytest.raises(InvalidInput, match="target model id"):
            await face.set_vmodel(pb.SetVModelRequest(vModelId="v"), CONTEXT)

    asyncio.run(main())


def test_a_refusal_that_leaves_no_trace_is_a_failed_load() -> None:
    class Full(FakeControlPlane):
        async def ensure(self, model: str, **how: Any) -> ModelView:
            raise NoCapacity("Too many models wait.", model=model)

    async def main() -> None:
        control = Full()
        request = pb.RegisterModelRequest(modelId="a", modelInfo=INFO, loadNow=True)
        answer = await calls(control).register_model(request, CONTEXT)
        assert (answer.status, list(answer.errors)) == (Status.LOADING_FAILED, ["Too many models wait."])
        (copy,) = answer.modelCopyInfos
        assert (copy.location, copy.copyStatus, copy.time) == (
            "fake",
            Status.LOADING_FAILED,
            1_700_000_000_000,
        )

    asyncio.run(main())


def test_a_model_is_as_well_off_as_its_best_copy() -> None:
    class Several(FakeControlPlane):
        copies: tuple[CopyView, ...] = ()

        async def status(self, model: str) -> ModelView:
            return replace(await super().status(model), copies=self.copies)

    failed, queued = CopyView("x", State.FAILED, 3.0, "torn"), CopyView("y", State.QUEUED, 2.0)
    loaded = CopyView("z", State.LOADED, 1.0)

    async def main() -> None:
        control = Several()
        await control.register(Registration("a", "sklearn"))
        for copies, expected in [
            ((), Status.NOT_LOADED),
            ((failed,), Status.LOADING_FAILED),
            ((failed, queued), Status.LOADING),
            ((failed, queued, loaded), Status.LOADED),
        ]:
            control.copies = copies
            answer = await calls(control).get_model_status(pb.GetStatusRequest(modelId="a"), CONTEXT)
            assert answer.status == expected
            assert list(answer.errors) == (["torn"] if copies else [])
            assert [copy.location for copy in answer.modelCopyInfos] == [copy.instance for copy in copies]

    asyncio.run(main())
