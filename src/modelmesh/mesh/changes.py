"""What a change of the registry means for the copies here: gone, another artefact, a vmodel that moves."""

from __future__ import annotations

from collections.abc import Callable

from modelmesh.mesh.cache.copies import Copies, Copy, Purpose, identity
from modelmesh.mesh.cache.failures import Failures
from modelmesh.mesh.cache.histories import Histories
from modelmesh.mesh.cache.holds import UNTIL_USED
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.keeping.upkeep import Upkeep
from modelmesh.mesh.names import Names
from modelmesh.mesh.views import State
from modelmesh.registry.mirror import ChangedIds, Mirror


class Changes:
    """`settle` is called after each change."""

    def __init__(
        self,
        mirror: Mirror,
        copies: Copies,
        sites: Sites,
        failures: Failures,
        histories: Histories,
        names: Names,
        upkeep: Upkeep,
        *,
        settle: Callable[[], None],
    ) -> None:
        self._mirror = mirror
        self._copies = copies
        self._sites = sites
        self._failures = failures
        self._histories = histories
        self._names = names
        self._upkeep = upkeep
        self._settle = settle

    def follow(self, changed: ChangedIds) -> None:
        """The mirror is different. Most changes are learned facts, which concern nobody here."""
        models = sorted(changed.models)
        for model in models:
            copy = self._copies.get(model)
            if model in self._failures and (known := self._mirror.model(model)) is not None:
                self._failures.replaced(model, identity(known))
            if copy is None:  # most are registered and cold: their records are not decoded
                if not self._mirror.has_model(model):
                    self._unregistered(model, None)
                elif model in self._mirror.with_min_copies:
                    self._upkeep.changed(model)
                continue
            self._upkeep.changed(model)
            record = self._mirror.model(model)
            if record is None or copy.identity != identity(record):
                self._unregistered(model, copy)
        for vmodel in sorted(changed.vmodels & self._mirror.unsettled):
            moving = self._mirror.vmodel(vmodel)
            if moving is not None:
                self._inherit(moving.active, moving.target)
        self._names.changed([*models, *sorted(changed.vmodels)])
        self._settle()

    def _unregistered(self, model: str, copy: Copy | None) -> None:
        """The model is gone, or another is registered under its id."""
        self._failures.forget(model)
        self._histories.forget(model)
        if copy is None:
            return
        self._copies.unhold(copy.model, UNTIL_USED)
        if copy.state is State.LOADED:
            self._sites.holding(copy).evictions.retire(copy, Purpose.UNREGISTERED, "it was unregistered")
        else:
            self._sites.cancel(copy)

    def _inherit(self, active: str, target: str) -> None:
        """The target of a vmodel takes over the use of the active model, so it is not the first to be evicted."""
        source, heir = self._copies.get(active), self._copies.get(target)
        uses = source.history if source is not None else self._histories.peek(active)
        if uses is None:
            return
        history = heir.history if heir is not None else self._histories.take(target)
        history.inherit(uses)
        if heir is None:
            self._histories.put(target, history)
        else:
            heir.budget.residents.refresh(heir)
