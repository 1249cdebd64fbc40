"""The part of the admin API that tells what happened and why: the story of a model, and the journal."""

from __future__ import annotations

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from modelmesh.errors import ModelNotFound
from modelmesh.mesh.views import ModelView, VModelView
from modelmesh.ops import follow, schemas
from modelmesh.ops import operations as op
from modelmesh.ops.answers import answer, page_limit, path_id
from modelmesh.ops.parts import Parts
from modelmesh.ops.standing import standing

_PAGE_MAX: Final = 500


class Stories:
    """The handlers."""

    def __init__(self, parts: Parts) -> None:
        self._control = parts.control
        self._followers = follow.Followers(parts.control.journal)

    def operations(self) -> tuple[op.Operation, ...]:
        """In the order of the docs page."""
        return (
            op.Operation(
                "GET", "/explain/{id}", "What happened to a model and why", self.explain, schemas.Story
            ),
            op.Operation(
                "GET",
                "/journal",
                "Decisions of this instance and their reasons",
                self.read_journal,
                schemas.JournalPage,
                None,
                (op.SINCE, op.MODEL, op.LIMIT, op.FOLLOW),
                answers_also="text/event-stream",
            ),
        )

    async def explain(self, request: Request) -> Response:
        name = path_id(request)
        model, vmodel = self._find(name)
        names = [name, *((model.id, *model.names) if model else ())]
        if vmodel:
            names += (vmodel.active, vmodel.target)
        story = await self._control.story([name for name in dict.fromkeys(names) if name])
        if model is None and not story.entries and not story.mute:
            raise ModelNotFound(
                f'"{name}" is not registered and no journal remembers anything of it; see: modelmesh list.',
                model=name,
            )
        return answer(
            schemas.Story.model_construct(
                name=name,
                model=schemas.Model.of(model) if model else None,
                vmodel=schemas.VModel.of(vmodel) if vmodel else None,
                now=standing(name, model, vmodel, time.time(), several=len(self._control.members()) > 1),
                entries=[schemas.StoryEntry.told(happened) for happened in story.entries],
                answered=list(story.told),
                unanswered=[
                    schemas.Unanswered.model_construct(instance=mute.instance, reason=mute.reason)
                    for mute in story.mute
                ],
                cut=story.cut,
            )
        )

    async def read_journal(self, request: Request) -> Response:
        since, model, limit = (
            op.SINCE.read(request),
            op.MODEL.read(request),
            page_limit(request, _PAGE_MAX),
        )
        if op.FOLLOW.read(request):
            as_lines = "application/x-ndjson" in request.headers.get("accept", "")
            return StreamingResponse(
                self._followers.stream(since, model, as_lines=as_lines),
                media_type="application/x-ndjson" if as_lines else "text/event-stream",
                headers={"Cache-Control": "no-store"},
            )
        return answer(follow.page(self._control.journal, since, model, limit))

    def _find(self, name: str) -> tuple[ModelView | None, VModelView | None]:
        try:
            vmodel: VModelView | None = self._control.vmodel(name)
        except ModelNotFound:
            vmodel = None
        try:
            return self._control.model(name), vmodel
        except ModelNotFound:
            return None, vmodel
