"""The admin API: registrations, loads, vmodels, the instance, the journal. Each handler reads or changes one thing."""

from __future__ import annotations

import asyncio
import os
import time

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from modelmesh.errors import InvalidInput, ModelNotFound
from modelmesh.mesh.control import Registration
from modelmesh.mesh.views import ModelView, State, VModelView
from modelmesh.ops import follow, schemas, story
from modelmesh.ops import operations as op
from modelmesh.ops.batch import register_batch
from modelmesh.ops.bodies import read_body
from modelmesh.ops.model_types import ModelTypes
from modelmesh.ops.parts import Parts

_PAGE_MAX = 250
"""A page of so many takes the event loop 4 ms."""
_JOURNAL_PAGE_MAX = 500


class Admin:
    """The handlers. Errors are raised as `ModelMeshError` and answered in one place (`problems`)."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._control = parts.control
        self._followers = follow.Followers(parts.control.journal)

    async def list_models(self, request: Request) -> Response:
        raw_state = op.STATE.read(request)
        try:
            state = State(raw_state) if raw_state else None
        except ValueError as error:
            raise InvalidInput(f'state: "{raw_state}" is none of {", ".join(State)}.') from error
        page = self._control.models(
            prefix=op.PREFIX.read(request), state=state, after=op.AFTER.read(request), limit=_limit(request)
        )
        return _answer(schemas.Models.of(page))

    async def get_model(self, request: Request) -> Response:
        return _answer(schemas.Model.of(self._control.model(_id(request))))

    async def register_model(self, request: Request) -> Response:
        body = await read_body(request, schemas.RegisterModel)
        if not body.force:
            ModelTypes(self._control).check(_id(request), body.type)
        registration = await self._admitted(
            Registration(_id(request), body.type, body.path, body.key, keep=body.change())
        )
        view = await self._control.register(registration, load_now=body.load, sync=body.wait)
        return _answer(schemas.Model.of(view))

    async def keep_model(self, request: Request) -> Response:
        body = await read_body(request, schemas.KeepModel)
        return _answer(schemas.Model.of(await self._control.keep(_id(request), body.change())))

    async def unregister_model(self, request: Request) -> Response:
        await self._control.unregister(_id(request))
        return Response(status_code=204)

    async def register_models(self, request: Request) -> Response:
        return await register_batch(request, self._parts)

    async def load_model(self, request: Request) -> Response:
        view = await self._control.load(_id(request), timeout_s=op.TIMEOUT.read(request))
        return _answer(schemas.Model.of(view))

    async def unload_model(self, request: Request) -> Response:
        view = await self._control.unload(_id(request), timeout_s=op.TIMEOUT.read(request))
        return _answer(schemas.Model.of(view))

    async def list_vmodels(self, request: Request) -> Response:
        limit = _limit(request)
        views = self._control.vmodels(
            prefix=op.PREFIX.read(request), after=op.AFTER.read(request), limit=limit + 1
        )
        shown = views[:limit]
        return _answer(
            schemas.VModels.model_construct(
                vmodels=[schemas.VModel.of(view) for view in shown],
                next_after=shown[-1].id if len(views) > limit else "",
            )
        )

    async def get_vmodel(self, request: Request) -> Response:
        return _answer(schemas.VModel.of(self._control.vmodel(_id(request), owner=op.OWNER.read(request))))

    async def set_vmodel(self, request: Request) -> Response:
        body = await read_body(request, schemas.SetVModel)
        model = Registration(body.target, body.type, body.path, body.key) if body.type else None
        if model is not None:
            ModelTypes(self._control).check(model.id, model.type)
        view = await self._control.set_vmodel(
            _id(request),
            body.target,
            model=await self._admitted(model) if model else None,
            auto_delete_target=body.auto_delete_target,
            load_now=body.load,
            force=body.force,
            sync=body.wait,
            expected_target=body.expected_target,
            owner=body.owner,
            update_only=body.update_only,
        )
        return _answer(schemas.VModel.of(view))

    async def delete_vmodel(self, request: Request) -> Response:
        await self._control.delete_vmodel(_id(request), owner=op.OWNER.read(request))
        return Response(status_code=204)

    async def get_instance(self, request: Request) -> Response:
        listening, relay = self._parts.listening(), self._parts.relay.stats()
        return _answer(
            schemas.Instance.of(
                self._control.instance(),
                self._control.memory(),
                schemas.Addresses.model_construct(
                    grpc=listening.grpc, rest=listening.rest, ops=listening.ops
                ),
                pid=os.getpid(),
                folder=self._parts.folder,
                budget_bytes=self._parts.budget_bytes,
                requests_total=relay.counters.get("requests", 0),
                in_flight=relay.in_flight,
                parked=relay.parked_requests,
            )
        )

    async def explain(self, request: Request) -> Response:
        name = _id(request)
        model, vmodel = self._find(name)
        names = [name, *((model.id, *model.names) if model else ())]
        if vmodel:
            names += (vmodel.active, vmodel.target)
        entries = story.entries_about(self._control.journal, names)
        if model is None and not entries:
            raise ModelNotFound(
                f'"{name}" is not registered and the journal remembers nothing of it; see: modelmesh list.',
                model=name,
            )
        return _answer(
            schemas.Story.model_construct(
                name=name,
                model=schemas.Model.of(model) if model else None,
                vmodel=schemas.VModel.of(vmodel) if vmodel else None,
                now=story.standing(name, model, vmodel, time.time()),
                entries=[schemas.JournalEntry.of(entry) for entry in entries],
            )
        )

    async def read_journal(self, request: Request) -> Response:
        since, model, limit = (
            op.SINCE.read(request),
            op.MODEL.read(request),
            _limit(request, _JOURNAL_PAGE_MAX),
        )
        if op.FOLLOW.read(request):
            as_lines = "application/x-ndjson" in request.headers.get("accept", "")
            return StreamingResponse(
                self._followers.stream(since, model, as_lines=as_lines),
                media_type="application/x-ndjson" if as_lines else "text/event-stream",
                headers={"Cache-Control": "no-store"},
            )
        return _answer(follow.page(self._control.journal, since, model, limit))

    async def _admitted(self, registration: Registration) -> Registration:
        return await asyncio.to_thread(self._parts.admit, registration)

    def _find(self, name: str) -> tuple[ModelView | None, VModelView | None]:
        try:
            vmodel: VModelView | None = self._control.vmodel(name)
        except ModelNotFound:
            vmodel = None
        try:
            return self._control.model(name), vmodel
        except ModelNotFound:
            return None, vmodel


def operations() -> tuple[op.Operation, ...]:
    """All of the API, in the order of the docs page."""
    page, model, vmodel = (op.PREFIX, op.AFTER, op.LIMIT), schemas.Model, schemas.VModel
    return (
        op.Operation(
            "GET", "/models", "List models", Admin.list_models, schemas.Models, None, (op.STATE, *page)
        ),
        op.Operation(
            "POST",
            "/models:batch",
            "Register many: a JSON array, or lines of JSON (application/x-ndjson), answered in kind, one answer each",
            Admin.register_models,
            schemas.BatchAnswer,
            schemas.BatchItem,
            answers_also="application/x-ndjson",
        ),
        op.Operation("GET", "/models/{id}", "One model, by its id or a vmodel", Admin.get_model, model),
        op.Operation(
            "PUT", "/models/{id}", "Register a model", Admin.register_model, model, schemas.RegisterModel
        ),
        op.Operation(
            "PATCH",
            "/models/{id}",
            "Change how a registered model is kept: copies, pin, priority",
            Admin.keep_model,
            model,
            schemas.KeepModel,
        ),
        op.Operation("DELETE", "/models/{id}", "Unregister a model", Admin.unregister_model),
        op.Operation(
            "POST",
            "/models/{id}:load",
            "Load now and hold until its first use",
            Admin.load_model,
            model,
            None,
            (op.TIMEOUT,),
        ),
        op.Operation(
            "POST",
            "/models/{id}:unload",
            "Unload once its requests are done",
            Admin.unload_model,
            model,
            None,
            (op.TIMEOUT,),
        ),
        op.Operation("GET", "/vmodels", "List vmodels", Admin.list_vmodels, schemas.VModels, None, page),
        op.Operation("GET", "/vmodels/{id}", "One vmodel", Admin.get_vmodel, vmodel, None, (op.OWNER,)),
        op.Operation(
            "PUT", "/vmodels/{id}", "Point a vmodel at a model", Admin.set_vmodel, vmodel, schemas.SetVModel
        ),
        op.Operation(
            "DELETE", "/vmodels/{id}", "Remove a vmodel", Admin.delete_vmodel, None, None, (op.OWNER,)
        ),
        op.Operation("GET", "/instance", "The instance at a glance", Admin.get_instance, schemas.Instance),
        op.Operation(
            "GET", "/explain/{id}", "What happened to a model and why", Admin.explain, schemas.Story
        ),
        op.Operation(
            "GET",
            "/journal",
            "Decisions and their reasons",
            Admin.read_journal,
            schemas.JournalPage,
            None,
            (op.SINCE, op.MODEL, op.LIMIT, op.FOLLOW),
            answers_also="text/event-stream",
        ),
    )


def _answer(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


def _id(request: Request) -> str:
    id: str = request.path_params["id"]
    if not id.strip():
        raise InvalidInput("The path names no model.")
    return id


def _limit(request: Request, limit_max: int = _PAGE_MAX) -> int:
    limit: int = op.LIMIT.read(request)
    if not 1 <= limit <= limit_max:
        raise InvalidInput(f'limit: "{limit}" is not a number from 1 to {limit_max}.')
    return limit
