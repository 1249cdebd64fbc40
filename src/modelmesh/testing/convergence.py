"""What must be so a while after the last trouble: everything that can be served is, from everywhere, and all agree.

`SETTLE_S` after the last fault every instance knows all others and what each holds. Then each model is served by each, at
the latest when the failures that stand have expired; vmodels reach their targets; as many copies are loaded as are to be kept; a
model that all ask for at once is loaded once; and the store holds what was acknowledged, with the right number of references.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from modelmesh.dataplane.protocol import Name, NameKind
from modelmesh.errors import Code, ModelMeshError
from modelmesh.mesh.cache.targets import RESIDENCE_LOADS, RESIDENCE_S, VMODEL_ACTIVE, VMODEL_TARGET
from modelmesh.mesh.views import State
from modelmesh.registry.mirror import Mirror
from modelmesh.registry.records import REGISTRY, ModelRecord
from modelmesh.testing.clients import Clients
from modelmesh.testing.requests import Answer
from modelmesh.testing.theatre import Theatre
from modelmesh.testing.traffic import Traffic

SETTLE_S: Final = 13.0
"""Leases of the dead run out, what is said slowly arrives."""
TRIES: Final = 12
PATIENCE_S: Final = 30.0
VMODEL_S: Final = 400.0
"""A target that failed several times is tried again within this."""
KEPT_S: Final = 200.0
"""So is a load of a copy that is to be kept."""
LOOKS: Final = 6
ONCE: Final = 2
"""Models that are tried for being loaded once."""


class Convergence:
    """`await reached()` once all trouble is over and all instances run. Problems are told to `clients`."""

    def __init__(self, theatre: Theatre, clients: Clients, traffic: Traffic, seen: Counter[str]) -> None:
        self._theatre = theatre
        self._clients = clients
        self._traffic = traffic
        self._seen = seen
        self._expect = clients.expect

    async def reached(self) -> None:
        """Wait for it, and look."""
        await asyncio.sleep(SETTLE_S)
        self._all_know_all()
        for model in self._clients.sure():
            await self._served(model)
        await self._vmodels_at_rest()
        await self._kept()
        await self._agreed()
        for model in self._clients.sure()[:ONCE]:
            await self._loaded_once(model)
        self._stored()

    def _is_good(self, model: str) -> bool:
        path = self._clients.registered.get(model)
        return path is not None and self._theatre.artefacts[path].error is None

    # --- serving --------------------------------------------------------------------------------------------

    async def _served(self, model: str) -> None:
        """By all instances at once."""
        if not self._is_good(model):
            return
        name, pending = Name(NameKind.MODEL, model), sorted(self._theatre.stages)
        answers: dict[str, Answer] = {}
        for _ in range(TRIES):
            requests = [self._traffic.ask(self._theatre[id], name, PATIENCE_S) for id in pending]
            answers = {id: await request.answer for id, request in zip(pending, requests, strict=True)}
            pending = [id for id, answer in answers.items() if answer.code is not Code.OK]
            if not pending:
                return
            await asyncio.sleep(max(max(answer.retry_after_ms for answer in answers.values()), 500) / 1000)
        self._expect(False, f"{model} is not served by {pending[0]} in peace: {answers[pending[0]]}")

    async def _loaded_once(self, model: str) -> None:
        """Unloaded everywhere, and then asked of all at once, it makes one copy."""
        record = next(iter(self._theatre)).mirror.model(model)
        moving = self._under_way(next(iter(self._theatre)).mirror)
        if not self._is_good(model) or record is None or record.keep.min_copies or model in moving:
            return
        if self._theatre.artefacts[record.path].max_concurrency:
            return  # that all ask at once may be reason enough for another copy
        try:
            await next(iter(self._theatre)).mesh.unload(model, timeout_s=PATIENCE_S)
        except ModelMeshError as error:
            self._expect(False, f"{model} cannot be unloaded in peace: {error}")
            return
        await asyncio.sleep(1.0 + 200.0 * self._theatre.network.delay_s[1])
        left = self._theatre.holders(model)
        self._expect(not left, f"{left} still hold {model} though it was unloaded")
        before = self._theatre.loads(model)
        await self._served(model)
        loads = self._theatre.loads(model) - before
        self._seen["asked of all at once"] += 1
        self._expect(loads == 1, f"{model} was loaded {loads} times when all asked for it at once")

    # --- agreeing -------------------------------------------------------------------------------------------

    def _all_know_all(self) -> None:
        for id, stage in self._theatre.stages.items():
            fleet = stage.mesh.fleet
            assert fleet is not None
            known = {peer.id for peer in fleet}
            self._expect(known == self._theatre.stages.keys() - {id}, f"{id} knows {sorted(known)} only")
            for peer in fleet:
                self._expect(not peer.silent and not peer.lost, f"{id} still suspects {peer.id}")
                self._expect(peer.load is not None, f"{id} does not know how {peer.id} is doing")

    async def _agreed(self) -> None:
        """What each believes of the others is so, but for what is being said."""
        self._all_know_all()
        wrong = self._wrong_beliefs()
        for _ in range(LOOKS):
            if not wrong:
                return
            await asyncio.sleep(0.5)
            wrong &= self._wrong_beliefs()
        self._expect(not wrong, "; ".join(sorted(wrong)))

    def _wrong_beliefs(self) -> set[str]:
        wrong: set[str] = set()
        for id, stage in self._theatre.stages.items():
            for peer in stage.mesh.fleet or ():
                theirs = self._theatre[peer.id].mesh
                believed = {model for model in peer.copies if peer.holds(model)}
                held = {
                    model
                    for model in believed | self._clients.registered.keys()
                    if (copy := theirs.copy(model)) is not None
                    and copy.state is State.LOADED
                    and copy.retirement is None
                }
                wrong.update(f"{id} believes {model} of {peer.id}" for model in believed - held)
                unknown = [model for model in held - believed if model not in peer.denied]
                wrong.update(f"{id} does not know {model} of {peer.id}" for model in unknown)
        return wrong

    # --- vmodels --------------------------------------------------------------------------------------------

    async def _vmodels_at_rest(self) -> None:
        """Every vmodel reached its target, if that can be loaded, and nothing is held for it any more."""
        loop, mirror = asyncio.get_running_loop(), next(iter(self._theatre)).mirror
        ends_s = loop.time() + VMODEL_S
        while moving := [vmodel for vmodel in sorted(mirror.unsettled) if self._can_move(mirror, vmodel)]:
            await asyncio.sleep(1.0)
            if loop.time() >= ends_s:
                break
        self._expect(not moving, f"{moving} never reached their targets")
        slowest_s = max((artefact.load_s for artefact in self._theatre.artefacts.values()), default=0.0)
        await asyncio.sleep(min(RESIDENCE_S[0] + RESIDENCE_LOADS * slowest_s, RESIDENCE_S[1]) + 1.0)
        for id, stage in self._theatre.stages.items():
            for model in self._clients.registered.keys() - self._under_way(stage.mirror):
                copy = stage.mesh.copy(model)
                held = {VMODEL_TARGET, VMODEL_ACTIVE} & set(copy.holds if copy is not None else ())
                self._expect(not held, f"{id} still holds {model}, as {sorted(held)}")

    def _can_move(self, mirror: Mirror, vmodel: str) -> bool:
        record = mirror.vmodel(vmodel)
        return record is not None and not record.rolled_back and self._is_good(record.target)

    @staticmethod
    def _under_way(mirror: Mirror) -> set[str]:
        """The models of vmodels that move."""
        records = [mirror.vmodel(vmodel) for vmodel in sorted(mirror.unsettled)]
        moving = [record for record in records if record is not None and not record.rolled_back]
        return {model for record in moving for model in (record.active, record.target)}

    # --- what is kept ---------------------------------------------------------------------------------------

    async def _kept(self) -> None:
        """As many copies are loaded as are to be kept, as far as there are instances."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + KEPT_S
        while (missing := self._missing()) and loop.time() < ends_s:  # noqa: ASYNC110 - anything may end it
            await asyncio.sleep(1.0)
        self._expect(not missing, f"fewer copies than are to be kept: {missing}")
        mirror = next(iter(self._theatre)).mirror
        records = [record for model in self._clients.sure() if (record := mirror.model(model)) is not None]
        self._seen["kept"] += sum(record.keep.min_copies for record in records)

    def _missing(self) -> dict[str, str]:
        """The models of which fewer copies are loaded than are to be kept."""
        mirror, missing = next(iter(self._theatre)).mirror, {}
        for model in filter(self._is_good, self._clients.sure()):
            record = mirror.model(model)
            wanted = 0 if record is None else min(record.keep.min_copies, len(self._theatre.stages))
            held = len(self._theatre.holders(model))
            if held < wanted:
                missing[model] = f"{held} of {wanted}"
        return missing

    def _stored(self) -> None:
        """Nothing acknowledged is lost, and references are counted right."""
        mirror = next(iter(self._theatre)).mirror
        references: Counter[str] = Counter()
        for _, vmodel in mirror.page_vmodels():
            references.update({vmodel.active, vmodel.target})
        stored = {
            key.removeprefix(REGISTRY): ModelRecord.decode(value)
            for key, value in self._theatre.store.contents(REGISTRY).items()
        }
        for model, path in self._clients.registered.items():
            if model not in self._clients.doubtful:
                found = stored[model].path if model in stored else None
                self._expect(found == path, f"{model} is stored as {found}, not as {path}")
        for model, record in stored.items():
            n = references[model]
            self._expect(record.references == n, f"{model} counts {record.references} references of {n}")
