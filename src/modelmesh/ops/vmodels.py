"""The part of the admin API that is about vmodels."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from modelmesh.mesh.control import Registration
from modelmesh.ops import operations as op
from modelmesh.ops import schemas
from modelmesh.ops.answers import answer, page_limit, path_id
from modelmesh.ops.bodies import read_body
from modelmesh.ops.model_types import ModelTypes
from modelmesh.ops.models import admitted
from modelmesh.ops.parts import Parts


class VModels:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._control = parts.control

    def operations(self) -> tuple[op.Operation, ...]:
        """In the order of the docs page."""
        page, vmodel = (op.PREFIX, op.AFTER, op.LIMIT), schemas.VModel
        return (
            op.Operation("GET", "/vmodels", "List vmodels", self.list_vmodels, schemas.VModels, None, page),
            op.Operation("GET", "/vmodels/{id}", "One vmodel", self.get_vmodel, vmodel, None, (op.OWNER,)),
            op.Operation(
                "PUT",
                "/vmodels/{id}",
                "Point a vmodel at a model",
                self.set_vmodel,
                vmodel,
                schemas.SetVModel,
            ),
            op.Operation(
                "DELETE", "/vmodels/{id}", "Remove a vmodel", self.delete_vmodel, None, None, (op.OWNER,)
            ),
        )

    async def list_vmodels(self, request: Request) -> Response:
        limit = page_limit(request)
        views = self._control.vmodels(
            prefix=op.PREFIX.read(request), after=op.AFTER.read(request), limit=limit + 1
        )
        shown = views[:limit]
        return answer(
            schemas.VModels.model_construct(
                vmodels=[schemas.VModel.of(view) for view in shown],
                next_after=shown[-1].id if len(views) > limit else "",
            )
        )

    async def get_vmodel(self, request: Request) -> Response:
        return answer(schemas.VModel.of(self._control.vmodel(path_id(request), owner=op.OWNER.read(request))))

    async def set_vmodel(self, request: Request) -> Response:
        body = await read_body(request, schemas.SetVModel)
        model = Registration(body.target, body.type, body.path, body.key) if body.type else None
        if model is not None:
            ModelTypes(self._control).check(model.id, model.type)
        view = await self._control.set_vmodel(
            path_id(request),
            body.target,
            model=await admitted(self._parts, model) if model else None,
            auto_delete_target=body.auto_delete_target,
            load_now=body.load,
            force=body.force,
            sync=body.wait,
            expected_target=body.expected_target,
            owner=body.owner,
            update_only=body.update_only,
            canary=None if body.canary is None else body.canary.terms(),
        )
        return answer(schemas.VModel.of(view))

    async def delete_vmodel(self, request: Request) -> Response:
        await self._control.delete_vmodel(path_id(request), owner=op.OWNER.read(request))
        return Response(status_code=204)
