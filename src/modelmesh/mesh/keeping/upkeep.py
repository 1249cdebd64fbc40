"""What the registry says of how models are kept, and who else holds them, applied to the copies here: pins, copies that always
stay, priorities, and which copies are spare."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modelmesh.mesh.cache.copies import Copies, Copy, Purpose
from modelmesh.mesh.cache.holds import MIN_COPIES, PINNED
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.peering.others import Others
from modelmesh.mesh.views import State
from modelmesh.policy.copies import Holder, kept
from modelmesh.registry.keep import Keep
from modelmesh.registry.mirror import Mirror


class Upkeep:
    """Takes note of models whose record, copy here or copies elsewhere changed; `settle` applies it. `on_wanting` is told of
    those of which some copies are always kept: one may be missing; `on_spare` of copies here that others can do without, or can
    no more."""

    def __init__(
        self,
        mirror: Mirror,
        copies: Copies,
        sites: Sites,
        others: Others | None,
        *,
        on_wanting: Callable[[str], None],
        on_spare: Callable[[str, bool], None],
    ) -> None:
        self._mirror = mirror
        self._copies = copies
        self._sites = sites
        self._others = others
        self._on_wanting = on_wanting
        self._on_spare = on_spare
        self._me = "" if others is None else others.me.id
        self._changed: dict[str, None] = {}
        copies.on_change(self.changed)

    def changed(self, model: str) -> None:
        """Its copy here is in another state, or its record is another."""
        self._changed[model] = None

    def changed_abroad(self, models: Iterable[str]) -> None:
        """Other instances hold these, or do so no more. Most are of no concern here."""
        for model in models:
            if self._copies.get(model) is not None or model in self._mirror.with_min_copies:
                self._changed[model] = None

    def settle(self) -> None:
        """Apply what was noted. What that changes is noted and applied, too."""
        while self._changed:
            changed, self._changed = self._changed, {}
            for model in changed:
                self._follow(model)

    def _follow(self, model: str) -> None:
        if model in self._mirror.with_min_copies:
            self._on_wanting(model)
        copy, record = self._copies.get(model), self._mirror.model(model)
        if copy is None or record is None or _leaves(copy):
            self._copies.unhold(model, PINNED)
            self._copies.unhold(model, MIN_COPIES)
            self._on_spare(model, False)
            return
        if copy.keep != record.keep:
            copy.keep, copy.priority = record.keep, record.keep.priority
            copy.budget.residents.refresh(copy)
            self._sites.holding(copy).loads.changed(model)
        if copy.state is State.LOADED:
            self._hold(copy, record.keep)

    def _hold(self, copy: Copy, keep: Keep) -> None:
        model = copy.model
        holders = self.holders(model)
        stays = self._me in kept(model, holders, keep.min_copies)
        self._set_hold(model, PINNED, keep.pin)
        self._set_hold(model, MIN_COPIES, keep.min_copies > 0 and stays)
        if (keep.pin or (keep.min_copies and stays)) and copy.retirement is not None:
            self._sites.holding(copy).evictions.revive(copy, "it is to be kept")
        spare = len(holders) > 1 and self._me not in kept(model, holders, 1)
        if copy.spare is not spare:
            copy.spare = spare
            copy.budget.residents.refresh(copy)
        self._on_spare(model, spare)

    def holders(self, model: str) -> list[Holder]:
        """This instance and those others that have it loaded, and will have it."""
        if self._others is None:
            return [Holder(self._me)]
        members = [self._others.me, *(peer.member for peer in self._others.fleet.staying(model))]
        return [Holder(member.id, member.zone, member.host) for member in members]

    def _set_hold(self, model: str, reason: str, holds: bool) -> None:
        if holds:
            self._copies.hold(model, reason)
        else:
            self._copies.unhold(model, reason)


def _leaves(copy: Copy) -> bool:
    """Whether it goes for another reason than that others need its room."""
    if copy.state is State.UNLOADING:
        return True
    return copy.retirement is not None and copy.retirement.purpose is not Purpose.ROOM
