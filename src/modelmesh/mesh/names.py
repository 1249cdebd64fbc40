"""From what a request asks for to a concrete model; and which of these answers the data plane remembers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Literal

from modelmesh.dataplane.protocol import DataPlane, Name, NameKind, Split
from modelmesh.errors import ModelMeshError, ModelNotFound
from modelmesh.mesh.cache.refusals import Refusals
from modelmesh.mesh.tuning import Tuning
from modelmesh.registry.ids import version_name
from modelmesh.registry.mirror import Mirror


class Names:
    """The data plane is told only names it asked for, and told again when their answer changes. A refused name is
    remembered too, so that registering it ends the refusal at once. The oldest are forgotten beyond the bound."""

    def __init__(
        self,
        mirror: Mirror,
        dataplane: DataPlane,
        refusals: Refusals,
        tuning: Tuning,
        serves_versions: Callable[[], bool] = lambda: False,
    ) -> None:
        self._mirror = mirror
        self._dataplane = dataplane
        self._refusals = refusals
        self._tuning = tuning
        self._told: OrderedDict[Name, str | Split] = OrderedDict()
        """Name -> what the data plane was told; empty: it was refused."""
        self._by_id: dict[str, dict[Name, None]] = {}
        """Id of a model or vmodel -> the told names whose answer depends on it."""
        self._redirected: dict[str, tuple[str, str]] = {}
        """vmodel -> its active model, and the one that is meant instead."""
        self._serves_versions = serves_versions
        """Whether a runtime that runs knows versions of its own."""

    def __len__(self) -> int:
        return len(self._told)

    def resolve(self, name: Name) -> str | None:
        """The concrete model that requests for a name wait for now, or None. A version N means the vmodel `name:N` where there
        is one, else it is the matter of a runtime that knows versions, and nothing for one that does not."""
        meaning = self._meaning(name)
        return meaning.model if isinstance(meaning, Split) else meaning

    def _meaning(self, name: Name) -> str | Split | None:
        kind = name.kind
        if name.version and kind is not NameKind.MODEL:
            active = self._active(version_name(name.name, name.version))
            if active is not None:
                return active
        if name.version and not self._serves_versions():
            return None
        if kind in (NameKind.MODEL, NameKind.MODEL_FIRST) and self._mirror.has_model(name.name):
            return name.name
        if kind is not NameKind.MODEL:
            active = self._active(name.name)
            if active is not None:
                return active
        if kind is NameKind.VMODEL_FIRST and self._mirror.has_model(name.name):
            return name.name
        return None

    def _active(self, vmodel: str) -> str | Split | None:
        record = self._mirror.vmodel(vmodel)
        if record is None:
            return None
        active, instead = self._redirected.get(vmodel, ("", ""))
        if active == record.active and self._mirror.has_model(instead):
            return instead
        if record.on_trial and record.canary is not None:
            return Split(record.active, record.target, record.canary.share)
        return record.active

    def redirect(self, vmodel: str, model: str) -> None:
        """Until its record changes, a vmodel means this model instead of its active one, also for those that wait; the active
        one itself ends that."""
        record = self._mirror.vmodel(vmodel)
        if record is None or record.active == model:
            self._redirected.pop(vmodel, None)
        else:
            self._redirected[vmodel] = (record.active, model)
        self.changed([vmodel])

    def not_found(self, name: Name) -> ModelNotFound:
        """The error of a name that means nothing."""
        what: Literal["model", "vmodel"] = "vmodel" if name.kind is NameKind.VMODEL else "model"
        return ModelNotFound.named(name.name, what=what, version=name.version)

    def tell(self, names: Iterable[Name]) -> None:
        """Tell the data plane what these mean; those that mean nothing are left out."""
        batch = [(name, meaning) for name in names if (meaning := self._meaning(name)) is not None]
        if not batch:
            return
        for name, meaning in batch:
            self._remember(name, meaning)
        self._dataplane.publish_names(batch)
        self._trim()

    def refuse(self, name: Name, error: ModelMeshError, waiting: int, cache_s: float) -> None:
        """Answer that a name means nothing, or that this cannot be known now."""
        if cache_s > 0:
            self._remember(name, "")
        self._refusals.name(name, error, waiting, cache_s)
        self._trim()

    def changed(self, ids: Iterable[str]) -> None:
        """Models or vmodels with these ids were put or deleted: tell the names whose answer is another now."""
        publish: list[Name] = []
        forget: list[Name] = []
        for id in ids:
            self._end_redirect(id)
            for name in self._by_id.get(id, ()):
                told, meaning = self._told[name], self._meaning(name)
                if meaning is None:
                    if told:
                        forget.append(name)
                elif meaning != told:
                    publish.append(name)
        for name in dict.fromkeys(forget):
            self._drop(name)
        if forget:
            self._dataplane.forget_names(list(dict.fromkeys(forget)))
        self.tell(dict.fromkeys(publish))

    def _end_redirect(self, vmodel: str) -> None:
        """Unless it is still about the vmodel's active model."""
        if vmodel in self._redirected:
            record = self._mirror.vmodel(vmodel)
            if record is None or record.active != self._redirected[vmodel][0]:
                del self._redirected[vmodel]

    def _ids(self, name: Name) -> tuple[str, ...]:
        return (name.name, version_name(name.name, name.version)) if name.version else (name.name,)

    def _remember(self, name: Name, meaning: str | Split) -> None:
        self._told[name] = meaning
        self._told.move_to_end(name)
        for id in self._ids(name):
            self._by_id.setdefault(id, {})[name] = None

    def _drop(self, name: Name) -> None:
        del self._told[name]
        for id in self._ids(name):
            names = self._by_id[id]
            del names[name]
            if not names:
                del self._by_id[id]

    def _trim(self) -> None:
        forget: list[Name] = []
        while len(self._told) > self._tuning.names_max:
            name = next(iter(self._told))
            if self._told[name]:
                forget.append(name)
            self._drop(name)
        if forget:
            self._dataplane.forget_names(forget)
