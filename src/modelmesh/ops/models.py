"""The part of the admin API that is about models: lists, registrations, loads."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from modelmesh.mesh.control import Query, Registration, Sort
from modelmesh.mesh.views import State
from modelmesh.ops import operations as op
from modelmesh.ops import schemas
from modelmesh.ops.answers import answer, page_limit, path_id
from modelmesh.ops.batch import register_batch
from modelmesh.ops.bodies import read_body
from modelmesh.ops.model_types import ModelTypes
from modelmesh.ops.parts import Parts


class Models:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._control = parts.control

    def operations(self) -> tuple[op.Operation, ...]:
        """In the order of the docs page."""
        model = schemas.Model
        return (
            op.Operation(
                "GET",
                "/models",
                "List models of the mesh",
                self.list_models,
                schemas.Models,
                None,
                (op.STATE, op.INSTANCE, op.SORT, op.PREFIX, op.AFTER, op.LIMIT),
            ),
            op.Operation(
                "POST",
                "/models:batch",
                "Register many: a JSON array, or lines of JSON (application/x-ndjson), answered in kind, one answer each",
                self.register_models,
                schemas.BatchAnswer,
                schemas.BatchItem,
                answers_also="application/x-ndjson",
            ),
            op.Operation("GET", "/models/{id}", "One model, by its id or a vmodel", self.get_model, model),
            op.Operation(
                "PUT", "/models/{id}", "Register a model", self.register_model, model, schemas.RegisterModel
            ),
            op.Operation(
                "PATCH",
                "/models/{id}",
                "Change how a registered model is kept: copies, pin, priority",
                self.keep_model,
                model,
                schemas.KeepModel,
            ),
            op.Operation("DELETE", "/models/{id}", "Unregister a model", self.unregister_model),
            op.Operation(
                "POST",
                "/models/{id}:load",
                "Load now and hold until its first use",
                self.load_model,
                model,
                None,
                (op.TIMEOUT,),
            ),
            op.Operation(
                "POST",
                "/models/{id}:unload",
                "Unload once its requests are done",
                self.unload_model,
                model,
                None,
                (op.TIMEOUT,),
            ),
        )

    async def list_models(self, request: Request) -> Response:
        query = Query(
            prefix=op.PREFIX.read(request),
            state=op.one_of(State, op.STATE, request),
            instance=op.INSTANCE.read(request),
            sort=op.one_of(Sort, op.SORT, request) or Sort.ID,
            after=op.AFTER.read(request),
            limit=page_limit(request),
        )
        return answer(schemas.Models.of(await self._control.models(query)))

    async def get_model(self, request: Request) -> Response:
        return answer(schemas.Model.of(self._control.model(path_id(request))))

    async def register_model(self, request: Request) -> Response:
        body = await read_body(request, schemas.RegisterModel)
        if not body.force:
            ModelTypes(self._control).check(path_id(request), body.type)
        registration = await admitted(
            self._parts, Registration(path_id(request), body.type, body.path, body.key, keep=body.change())
        )
        view = await self._control.register(registration, load_now=body.load, sync=body.wait)
        return answer(schemas.Model.of(view))

    async def keep_model(self, request: Request) -> Response:
        body = await read_body(request, schemas.KeepModel)
        return answer(schemas.Model.of(await self._control.keep(path_id(request), body.change())))

    async def unregister_model(self, request: Request) -> Response:
        await self._control.unregister(path_id(request))
        return Response(status_code=204)

    async def register_models(self, request: Request) -> Response:
        return await register_batch(request, self._parts)

    async def load_model(self, request: Request) -> Response:
        view = await self._control.load(path_id(request), timeout_s=op.TIMEOUT.read(request))
        return answer(schemas.Model.of(view))

    async def unload_model(self, request: Request) -> Response:
        view = await self._control.unload(path_id(request), timeout_s=op.TIMEOUT.read(request))
        return answer(schemas.Model.of(view))


async def admitted(parts: Parts, registration: Registration) -> Registration:
    """What may be registered. Reads the disk, so in a thread. Raises FailedPrecondition."""
    return await asyncio.to_thread(parts.admit, registration)
