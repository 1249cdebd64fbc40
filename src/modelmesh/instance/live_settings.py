"""Settings that change while the instance runs: what the store says is in force, in all instances, as soon as it is heard.

A value that cannot be used is told in the journal, once, and then as good as absent: an instance that starts later does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelmesh.errors import FailedPrecondition, InvalidInput, SettingsError
from modelmesh.journal import Did, Journal
from modelmesh.registry.survey import CONFIG
from modelmesh.settings.live import DISABLE, Given, disables, given, live_settings, without_effect
from modelmesh.settings.setting import Setting
from modelmesh.store.followed import Followed
from modelmesh.store.protocol import Store, Txn

VALUE_BYTES_MAX: Final = 256 << 10
"""Of one value: type constraints of thousands of types."""
_SHOWN: Final = 200
"""Characters of a value in a sentence."""


@dataclass(slots=True)
class _Knob:
    """A live setting of this instance."""

    setting: Setting
    parse: Callable[[str], Any]
    use: Callable[[Any], None]
    default: Any
    """What the instance was started with."""
    started: str
    """That, as a user would write it; empty: nothing."""
    given: Given | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LiveValue:
    """A live setting as it stands. Values are as a user would write them."""

    name: str
    says: str
    value: str
    """In force; empty: none."""
    started: str
    stored: str | None
    """None: the store says nothing, and what the instance was started with is in force."""
    problem: str
    """Why what is stored is not in force, in a sentence; else empty."""


class LiveSettings:
    """`offer` what can be changed, `read` before anything starts, `follow` in a task. One owner, the event loop."""

    def __init__(self, store: Store, journal: Journal, refusal: Callable[[], str] = lambda: "") -> None:
        """`refusal` says why nothing is to be written to the store; empty: it may be."""
        self._store = store
        self._journal = journal
        self._refusal = refusal
        self._followed = Followed(store, CONFIG, "Settings in the store", self._changed)
        self._knobs: dict[str, _Knob] = {}

    def offer(
        self,
        name: str,
        use: Callable[[Any], None],
        default: Any,
        *,
        started: str | None = None,
        parse: Callable[[str], Any] | None = None,
    ) -> None:
        """Have a setting changed by `use`, at once if the store says something now. `default` is what the instance was started
        with, `started` how a user would write that. `parse` instead of the setting's own raises SettingsError with a sentence."""
        setting = live_settings()[name]
        text = (
            started if started is not None else f"{default:g}" if isinstance(default, float) else str(default)
        )
        self._knobs[name] = _Knob(setting, parse or setting.parse, use, default, text)
        self._turn()

    async def read(self) -> None:
        """Look at what the store says. Raises StoreUnavailable; SettingsError when it says that no instance may start."""
        await self._followed.read()
        if disables(self._stored()):
            raise SettingsError(
                f"The store says that no instance of this mesh may start ({self._followed.key(DISABLE)}): delete that key there, "
                "or by an instance that runs, with: modelmesh config unset disable."
            )

    async def follow(self) -> None:
        """For ever."""
        await self._followed.follow()

    # --- what is asked --------------------------------------------------------------------------------------

    def all(self) -> list[LiveValue]:
        """By name."""
        return [self.get(name) for name in sorted(self._knobs)]

    def get(self, name: str) -> LiveValue:
        """Raises InvalidInput for a name that is no live setting."""
        knob = self._knob(name)
        in_force = knob.given is not None and not knob.problem
        return LiveValue(
            name=name,
            says=knob.setting.says,
            value=knob.given.text if in_force and knob.given is not None else knob.started,
            started=knob.started,
            stored=knob.given.text if knob.given is not None else None,
            problem=knob.problem,
        )

    def without_effect(self) -> dict[str, str]:
        """Names in the store that change nothing here, and why."""
        return without_effect(self._stored())

    async def set(self, name: str, text: str) -> LiveValue:
        """Change it in all instances, until it is changed again or unset. Raises InvalidInput, FailedPrecondition,
        StoreUnavailable."""
        knob = self._knob(name)
        if complaint := _complaint(knob, text):
            raise InvalidInput(complaint)
        await self._write(name, text.encode())
        return self.get(name)

    async def unset(self, name: str) -> None:
        """Have what each instance was started with in force again. Any name in the store may be unset. Raises InvalidInput for
        others that are no settings, FailedPrecondition, StoreUnavailable."""
        if name not in self._followed.values:
            self._knob(name)
        await self._write(name, None)

    async def _write(self, name: str, value: bytes | None) -> None:
        if refusal := self._refusal():
            raise FailedPrecondition(refusal)
        key = self._followed.key(name)
        txn = Txn(deletes=(key,)) if value is None else Txn(puts={key: value})
        commit = await self._store.commit(txn)
        self._followed.changed_here(name, value, commit.revision)

    def _knob(self, name: str) -> _Knob:
        knob = self._knobs.get(name)
        if knob is None:
            raise InvalidInput(
                f'"{name}" is no setting that can be changed while instances run; these can: {", ".join(sorted(self._knobs))}.'
            )
        return knob

    # --- what is heard --------------------------------------------------------------------------------------

    def _stored(self) -> dict[str, str]:
        return {name: value.decode(errors="replace") for name, value in self._followed.values.items()}

    def _changed(self, changed: Mapping[str, bytes | None]) -> None:
        for name, why in self.without_effect().items():
            if changed.get(name) is not None:
                self._journal.record(Did.WARNED, "", f"{CONFIG}{name} in the store has no effect: {why}.")
        self._turn()

    def _turn(self) -> None:
        """Put in force what the store says now."""
        said = given(self._stored())
        for name, knob in self._knobs.items():
            if said.get(name) == knob.given:
                continue
            knob.given = said.get(name)
            knob.problem = _complaint(knob, knob.given.text) if knob.given is not None else ""
            if knob.given is None or knob.problem:
                knob.use(knob.default)
            else:
                knob.use(knob.parse(knob.given.text))
            self._tell(name, knob)

    def _tell(self, name: str, knob: _Knob) -> None:
        as_started = f"as at the start{f' ({knob.started})' if knob.started else ''}"
        if knob.given is None:
            self._journal.record(Did.CONFIGURED, "", f"{name} is again {as_started}.")
        elif knob.problem:
            self._journal.record(
                Did.WARNED,
                "",
                f"{CONFIG}{knob.given.name} in the store is not used, {name} is {as_started}. {knob.problem}",
            )
        else:
            self._journal.record(
                Did.CONFIGURED,
                "",
                f"{name} is {_short(knob.given.text)} now, by {CONFIG}{knob.given.name} in the store.",
            )


def _complaint(knob: _Knob, text: str) -> str:
    """What is wrong with a value, in a sentence; empty when it can be used."""
    name = knob.setting.name
    if len(text.encode()) > VALUE_BYTES_MAX:
        return f"{name}: it has more than {VALUE_BYTES_MAX >> 10} KiB."
    try:
        knob.parse(text)
    except ValueError as error:
        return f'{name}: "{_short(text)}" {error}.'
    except SettingsError as error:
        return str(error)
    return ""


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
