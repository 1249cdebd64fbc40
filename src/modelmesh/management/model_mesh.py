"""`mmesh.ModelMesh`: the management API of KServe ModelMesh, whose clients call it unchanged.

A model that cannot be loaded is no error of a call: the reply says LOADING_FAILED and why. `docs/model-mesh-api.md` tells
what each call does; `docs/compatibility.md` where it differs from the predecessor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from modelmesh.errors import (
    InvalidInput,
    LoadFailed,
    LoadTimeout,
    ModelMeshError,
    ModelNotFound,
    NoCapacity,
    RuntimeUnavailable,
)
from modelmesh.management.server import Context, Service, unary
from modelmesh.mesh.control import Admit, ControlPlane, Registration
from modelmesh.mesh.gathering import Gathering
from modelmesh.mesh.views import CopyView, ModelView, State, VModelView
from modelmesh.registry.ids import check_id
from modelmesh.wire.generated import model_mesh_pb2 as pb

NAME: Final = "mmesh.ModelMesh"
LEGACY_NAME: Final = "com.ibm.watson.tas.proto.TasRuntime"
HOUR_MS: Final = 3_600_000
ADMITTED_AT_ONCE: Final = 128
"""Registrations whose paths are looked at together: each takes some file system calls."""
_NOT_GIVEN_FROM: Final = 1 << 63
"""The predecessor reads the unsigned field as a signed one, and takes a negative time as none."""

Status = pb.ModelStatusInfo
VStatus = pb.VModelStatusInfo
_STATUS: Final = {
    State.LOADED: Status.LOADED,
    State.LOADING: Status.LOADING,
    State.QUEUED: Status.LOADING,
    State.FAILED: Status.LOADING_FAILED,
}
"""Of a copy. A model has the status of its best copy, the order being this."""


class ModelMesh:
    """The calls. `wall_s` is the time of day."""

    def __init__(self, control: ControlPlane, admit: Admit, wall_s: Callable[[], float] = time.time) -> None:
        self._control = control
        self._admit = admit
        self._wall_s = wall_s
        self._admissions = Gathering(self._admit_all, ADMITTED_AT_ONCE)

    async def register_model(self, request: pb.RegisterModelRequest, context: Context) -> Status:
        """Idempotent; ALREADY_EXISTS for other attributes."""
        used_ms = self._used_ms(request.lastUsedTime, load_now=request.loadNow)
        registration = await self._admitted(check_id(request.modelId), request.modelInfo, used_ms)
        view = await self._control.register(registration)
        if not request.loadNow:
            return _status(view)
        return await self._ensured(registration.id, used_ms, sync=request.sync)

    async def unregister_model(
        self, request: pb.UnregisterModelRequest, context: Context
    ) -> pb.UnregisterModelResponse:
        """Unknown ids succeed; FAILED_PRECONDITION while vmodels refer to it."""
        await self._control.unregister(check_id(request.modelId))
        return pb.UnregisterModelResponse()

    async def get_model_status(self, request: pb.GetStatusRequest, context: Context) -> Status:
        """Neither loads it nor counts as a use."""
        return await self._model(check_id(request.modelId))

    async def ensure_loaded(self, request: pb.EnsureLoadedRequest, context: Context) -> Status:
        """Counts as a use at the time given."""
        used_ms = _given_ms(request.lastUsedTime)
        return await self._ensured(check_id(request.modelId), used_ms, sync=request.sync)

    async def set_vmodel(self, request: pb.SetVModelRequest, context: Context) -> VStatus:
        """See `mesh.vmodel_rules`. With `sync` it answers when the transition ended, and says how."""
        vmodel, target = check_id(request.vModelId, "vmodel"), check_id(request.targetModelId, "target model")
        model = None
        if request.HasField("modelInfo"):
            used_ms = self._used_ms(0, load_now=request.loadNow)
            model = await self._admitted(target, request.modelInfo, used_ms)
        view = await self._control.set_vmodel(
            vmodel,
            target,
            model=model,
            auto_delete_target=request.autoDeleteTargetModel,
            load_now=request.loadNow,
            force=request.force,
            sync=request.sync,
            expected_target=request.expectedTargetModelId,
            owner=request.owner,
            update_only=request.updateOnly,
        )
        return await self._vmodel(view)

    async def delete_vmodel(
        self, request: pb.DeleteVModelRequest, context: Context
    ) -> pb.DeleteVModelResponse:
        """Unknown ids, empty ones too, and those of other owners succeed and change nothing."""
        await self._control.delete_vmodel(request.vModelId, owner=request.owner)
        return pb.DeleteVModelResponse()

    async def get_vmodel_status(self, request: pb.GetVModelStatusRequest, context: Context) -> VStatus:
        """NOT_FOUND is a status here, no error; so it is for the vmodels of other owners."""
        try:
            view = self._control.vmodel(request.vModelId, owner=request.owner)
        except ModelNotFound:
            return VStatus(status=VStatus.NOT_FOUND)
        return await self._vmodel(view)

    # --- requests ---------------------------------------------------------------------------------------------

    async def _admitted(self, model: str, info: pb.ModelInfo, used_ms: int) -> Registration:
        if not info.type.strip():
            raise InvalidInput(f"Model {model} needs a type, for example sklearn.", model=model)
        registration = Registration(model, info.type, info.path, info.key, used_ms)
        return await self._admissions.one(registration)

    async def _admit_all(
        self, registrations: Sequence[Registration]
    ) -> Sequence[Registration | ModelMeshError]:
        return await asyncio.to_thread(lambda: [self._admitted_or_why(each) for each in registrations])

    def _admitted_or_why(self, registration: Registration) -> Registration | ModelMeshError:
        try:
            return self._admit(registration)
        except ModelMeshError as error:
            return error

    def _used_ms(self, given: int, *, load_now: bool) -> int:
        """When a model to register was last used: what the client says, but not in the future; else an hour ago when it is to be
        loaded now, six hours otherwise."""
        now_ms = round(self._wall_s() * 1000)
        return min(_given_ms(given), now_ms) or now_ms - (HOUR_MS if load_now else 6 * HOUR_MS)

    async def _ensured(self, model: str, used_ms: int, *, sync: bool) -> Status:
        """Have it loaded, and say what came of it."""
        try:
            # The caller's own deadline ends the call by cancelling it, with the code it expects.
            view = await self._control.ensure(model, last_used_ms=used_ms, sync=sync)
        except ModelNotFound as error:
            raise ModelNotFound("model not found", model=model) from error  # clients compare this text
        except (LoadFailed, LoadTimeout, NoCapacity, RuntimeUnavailable) as error:
            return await self._not_loaded(model, error)
        return _status(view)

    async def _not_loaded(self, model: str, error: ModelMeshError) -> Status:
        """A load that failed without leaving a trace, as for want of room, has to be told from the error."""
        status = await self._model(model)
        if status.status == Status.NOT_LOADED:
            status.status = Status.LOADING_FAILED
            status.errors.append(str(error))
            status.modelCopyInfos.add(
                location=self._control.instance().id,
                copyStatus=Status.LOADING_FAILED,
                time=round(self._wall_s() * 1000),
            )
        return status

    # --- replies ----------------------------------------------------------------------------------------------

    async def _model(self, model: str) -> Status:
        """NOT_FOUND is a status here, no error."""
        try:
            return _status(await self._control.status(model))
        except ModelNotFound:
            return Status(status=Status.NOT_FOUND)

    async def _vmodel(self, view: VModelView) -> VStatus:
        if not view.active:  # deleted while the call waited
            return VStatus(status=VStatus.NOT_FOUND)
        settled = view.active == view.target
        answer = VStatus(
            status=VStatus.DEFINED if settled else VStatus.TRANSITIONING,
            activeModelId=view.active,
            targetModelId=view.target,
            activeModelStatus=await self._model(view.active),
            owner=view.owner,
        )
        if settled:
            return answer
        target = await self._model(view.target)
        if view.target_failed:
            answer.status = VStatus.TRANSITION_FAILED
            target.status = Status.LOADING_FAILED
            if not target.errors:
                target.errors.append(view.reason or f"Model {view.target} could not be loaded.")
        elif target.status == Status.NOT_LOADED:
            target.status = Status.LOADING  # its turn comes
        answer.targetModelStatus.CopyFrom(target)
        return answer


def services(control: ControlPlane, admit: Admit) -> list[Service]:
    """The service, and the name it had before, both with the two methods that were renamed."""
    calls = ModelMesh(control, admit)
    register = unary(calls.register_model, pb.RegisterModelRequest, Status)
    unregister = unary(calls.unregister_model, pb.UnregisterModelRequest, pb.UnregisterModelResponse)
    methods = {
        "registerModel": register,
        "addModel": register,
        "unregisterModel": unregister,
        "deleteModel": unregister,
        "getModelStatus": unary(calls.get_model_status, pb.GetStatusRequest, Status),
        "ensureLoaded": unary(calls.ensure_loaded, pb.EnsureLoadedRequest, Status),
        "setVModel": unary(calls.set_vmodel, pb.SetVModelRequest, VStatus),
        "deleteVModel": unary(calls.delete_vmodel, pb.DeleteVModelRequest, pb.DeleteVModelResponse),
        "getVModelStatus": unary(calls.get_vmodel_status, pb.GetVModelStatusRequest, VStatus),
    }
    return [Service(NAME, methods), Service(LEGACY_NAME, methods)]


def _given_ms(last_used: int) -> int:
    """0 when not given."""
    return last_used if last_used < _NOT_GIVEN_FROM else 0


def _status(view: ModelView) -> Status:
    """Copies and errors, newest first. An error may stand beside LOADED: another copy failed."""
    states = {copy.state for copy in view.copies}
    best = next((status for state, status in _STATUS.items() if state in states), Status.NOT_LOADED)
    answer = Status(status=best)
    for copy in view.copies:
        if copy.reason:
            answer.errors.append(copy.reason)
        answer.modelCopyInfos.append(_copy(copy))
    return answer


def _copy(copy: CopyView) -> pb.ModelStatusInfo.ModelCopyInfo:
    return pb.ModelStatusInfo.ModelCopyInfo(
        location=copy.instance, copyStatus=_STATUS[copy.state], time=round(copy.at_wall_s * 1000)
    )
