"""Lists of models of the whole mesh, a page at a time: filtered, in order, the same from any instance.

Without a filter, and by id, a page is read off the mirror. Everything else looks through what all instances hold and what failed
there: some 25 milliseconds per 10,000 copies, a few hundred at a time, so that the event loop is never kept for long.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple

from modelmesh.clock import Clock
from modelmesh.errors import InstanceNotFound, InvalidInput
from modelmesh.mesh.cache.copies import Copies
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.control import Page, Query, Sort
from modelmesh.mesh.fleet import Fleet
from modelmesh.mesh.peering.reports import Reports
from modelmesh.mesh.views import MeshCount, ModelView, State
from modelmesh.registry.mirror import Mirror

AT_ONCE: Final = 500
"""Copies looked at in one step of the event loop: some 1 ms. One by one: thousands that are kept at a time would have the garbage
collector walk all that is known of the mesh, for ten times as long."""
VIEWS_AT_ONCE: Final = 50
"""Models of a page put together in one step."""
_BEST_FIRST: Final = (State.LOADED, State.LOADING, State.QUEUED, State.UNLOADING, State.FAILED)
_RANK: Final = {state: rank for rank, state in enumerate(_BEST_FIRST)}

_Key = tuple[float, str]


class _Known(NamedTuple):
    """A copy, or a failure, in some instance."""

    model: str
    state: State
    size_bytes: int = 0
    rate_per_s: float = 0.0
    last_used_wall_s: float = 0.0


_NUMBERS: Final[dict[Sort, Callable[[_Known], float]]] = {
    Sort.RATE: lambda known: known.rate_per_s,
    Sort.SIZE: lambda known: float(known.size_bytes),
    Sort.USED: lambda known: known.last_used_wall_s,
    Sort.COPIES: lambda known: float(known.state is State.LOADED),
}
_SUMMED: Final = frozenset({Sort.RATE, Sort.COPIES})
"""Over the copies of a model; of the others the largest counts."""


class _Piece(NamedTuple):
    """What is gathered of some of the models: of each that is not cold the rank of its best state, and the number it is sorted
    by."""

    ranks: dict[str, int]
    numbers: dict[str, float]


class Listing:
    """`me` is this instance's id; no fleet: it is alone."""

    def __init__(
        self,
        me: str,
        mirror: Mirror,
        copies: Copies,
        failures: Failures,
        fleet: Fleet | None,
        reports: Reports,
        clock: Clock,
    ) -> None:
        self._me = me
        self._mirror = mirror
        self._copies = copies
        self._failures = failures
        self._fleet = fleet
        self._reports = reports
        self._clock = clock

    async def page(self, query: Query) -> Page:
        """Raises InvalidInput for a page that cannot be, InstanceNotFound."""
        if query.instance:
            self._check_instance(query)
        if query.sort is Sort.ID and query.state is None and not query.instance:
            ids = self._mirror.ids(query.prefix, query.after, query.limit + 1)
            return await self._page([(0.0, id) for id in ids], query, self._mirror.count(query.prefix))
        if query.state is State.COLD:
            return await self._cold(query)
        pieces = await self._gather(query)
        start, total = _start(query), 0
        lowest: list[_Key] = []
        while pieces:
            ranks, numbers = pieces.pop()
            ids = [id for id, rank in ranks.items() if query.state in (None, _BEST_FIRST[rank])]
            total += len(ids)
            keys = ((-numbers.get(id, 0.0), id) for id in ids)
            lowest = heapq.nsmallest(query.limit + 1, chain(lowest, (key for key in keys if key > start)))
            await asyncio.sleep(0)
        return await self._page(lowest, query, total)

    def _check_instance(self, query: Query) -> None:
        if query.instance != self._me and (self._fleet is None or self._fleet.get(query.instance) is None):
            raise InstanceNotFound.named(query.instance)
        if query.state is State.COLD:
            raise InvalidInput("state: a cold model is in no instance; leave out the state, or the instance.")

    async def _cold(self, query: Query) -> Page:
        """Of those that nobody holds and that failed nowhere, which have no number to be sorted by."""
        if query.sort is not Sort.ID:
            raise InvalidInput(f"sort: cold models are listed by id only, not by {query.sort}.")
        pieces = await self._gather(query)
        found: list[_Key] = []
        after = query.after
        while len(found) <= query.limit:
            ids = self._mirror.ids(query.prefix, after, AT_ONCE)
            found += ((0.0, id) for id in ids if id not in _of(pieces, id).ranks)
            if len(ids) < AT_ONCE:
                break
            after = ids[-1]
            await asyncio.sleep(0)
        return await self._page(
            found, query, self._mirror.count(query.prefix) - sum(len(piece.ranks) for piece in pieces)
        )

    async def _page(self, keys: list[_Key], query: Query, total: int) -> Page:
        """`keys` go on beyond the page where there is more. What was unregistered meanwhile is left out."""
        shown = keys[: query.limit]
        views: list[ModelView] = []
        for start in range(0, len(shown), VIEWS_AT_ONCE):
            some = shown[start : start + VIEWS_AT_ONCE]
            views += [self._reports.model(id) for _, id in some if self._mirror.has_model(id)]
            await asyncio.sleep(0)
        more = len(keys) > query.limit
        return Page(views, _cursor(shown[-1], query.sort) if more else "", total)

    async def count(self) -> MeshCount:
        """The whole mesh in numbers."""
        loaded: set[str] = set()
        failed: set[str] = set()
        copies = 0
        async for known in _sliced(self._everything("")):
            if known.state is State.LOADED:
                copies += 1
                loaded.add(known.model)
            elif known.state is State.FAILED:
                failed.add(known.model)
        return MeshCount(self._mirror.n_models, len(loaded), len(failed), self._mirror.n_vmodels, copies)

    # --- what all hold --------------------------------------------------------------------------------------

    async def _gather(self, query: Query) -> list[_Piece]:
        """In pieces, because a large dict takes its time when it grows and when it is given up."""
        number, summed = _NUMBERS.get(query.sort), query.sort in _SUMMED
        pieces = [_Piece({}, {}) for _ in range(1 + self._mirror.n_models // AT_ONCE)]
        async for known in _sliced(self._everything(query.instance)):
            id = known.model
            if not id.startswith(query.prefix):
                continue
            ranks, numbers = _of(pieces, id)
            rank = _RANK[known.state]
            if rank <= ranks.get(id, rank):
                ranks[id] = rank
            if number is not None:
                before, now = numbers.get(id, 0.0), number(known)
                numbers[id] = before + now if summed else max(before, now)
        return pieces

    def _everything(self, instance: str) -> Iterator[_Known]:
        """Each copy and each standing failure; of one instance, or of all."""
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        if instance in ("", self._me):
            for copy in list(self._copies):
                history = copy.history
                used_s = wall_s - (now_s - history.last_s) if history.count else 0.0
                yield _Known(copy.model, copy.state, copy.size_bytes, history.rate_per_s(now_s), used_s)
            for model in self._failures.models():
                yield _Known(model, State.FAILED)
        for peer in list(self._fleet or ()):
            if instance not in ("", peer.id):
                continue
            for model in list(peer.copies):
                held = peer.copies.get(model)
                if held is None:
                    continue
                if not held.loaded:
                    yield _Known(model, State.LOADING)
                elif peer.holds(model):
                    used_s = held.last_used_wall_ms / 1000
                    yield _Known(model, State.LOADED, held.size_bytes, held.rate_at(wall_s), used_s)
            for model in list(peer.failed):
                failed = peer.failed.get(model)
                if failed is not None and failed.expires_s > now_s:
                    yield _Known(model, State.FAILED)


def _of(pieces: Sequence[_Piece], model: str) -> _Piece:
    return pieces[hash(model) % len(pieces)]


# --- where a page begins ----------------------------------------------------------------------------------------


def _start(query: Query) -> _Key:
    """The key after which the page begins."""
    if not query.after:
        return -math.inf, ""
    if query.sort is Sort.ID:
        return 0.0, query.after
    number, _, id = query.after.partition(" ")
    try:
        return -float(number), id
    except ValueError as error:
        raise InvalidInput(
            f'after: "{query.after}" is not the next_after of a page sorted by {query.sort}.'
        ) from error


def _cursor(key: _Key, sort: Sort) -> str:
    """What `_start` reads."""
    number, id = key
    return id if sort is Sort.ID else f"{-number!r} {id}"


# --- some at a time ---------------------------------------------------------------------------------------------


async def _sliced(items: Iterable[_Known]) -> AsyncIterator[_Known]:
    for n, item in enumerate(items, 1):
        yield item
        if n % AT_ONCE == 0:
            await asyncio.sleep(0)
