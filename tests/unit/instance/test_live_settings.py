"""Settings that the store changes while instances run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modelmesh.errors import FailedPrecondition, InvalidInput, SettingsError
from modelmesh.instance.live_settings import VALUE_BYTES_MAX, LiveSettings
from modelmesh.instance.type_constraints import TypeConstraints, parse_constraints
from modelmesh.journal import Did, Journal
from modelmesh.policy.runtimes import Constraint
from modelmesh.settings.sources import read_settings
from modelmesh.store.memory import MemoryStore
from modelmesh.store.protocol import Txn
from modelmesh.testing.control import StoppedClock
from modelmesh.testing.loop import run
from modelmesh.testing.stage import raised


class Instance:
    """One that has a log level and a period of grace."""

    def __init__(self, store: MemoryStore, *, grace_s: float = 30.0, refusal: str = "") -> None:
        self.journal = Journal(StoppedClock())
        self.live = LiveSettings(store, self.journal, lambda: refusal)
        self.in_force: dict[str, Any] = {}
        self._grace_s = grace_s
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.live.read()
        self._following = asyncio.create_task(self.live.follow())
        self.live.offer("log_level", lambda level: self.in_force.update(log_level=level), "info")
        self.live.offer("grace", lambda seconds: self.in_force.update(grace=seconds), self._grace_s)

    def stop(self) -> None:
        assert self._following is not None
        self._following.cancel()

    def told(self, did: Did) -> list[str]:
        return [entry.reason for entry in self.journal.since(0) if entry.did is did]


async def two(store: MemoryStore) -> tuple[Instance, Instance]:
    await store.open()
    a, b = Instance(store), Instance(store, grace_s=7.0)
    await a.start()
    await b.start()
    return a, b


async def put(store: MemoryStore, **values: str) -> None:
    await store.commit(Txn(puts={f"config/{name}": value.encode() for name, value in values.items()}))
    await asyncio.sleep(0.1)


def test_all_instances_follow_and_go_back_to_what_they_were_started_with() -> None:
    async def scene() -> None:
        store = MemoryStore()
        a, b = await two(store)
        value = await a.live.set("grace", "5")
        assert (value.value, value.stored, value.started, value.problem) == ("5", "5", "30", "")
        assert a.in_force == {"grace": 5.0}
        await asyncio.sleep(0.1)
        assert b.in_force == {"grace": 5.0}
        assert (b.live.get("grace").value, b.live.get("grace").started) == ("5", "7")
        late = Instance(store)
        await late.start()
        assert late.in_force == {"grace": 5.0}
        await b.live.unset("grace")
        await asyncio.sleep(0.1)
        assert (a.in_force["grace"], b.in_force["grace"]) == (30.0, 7.0)
        assert a.told(Did.CONFIGURED) == [
            "grace is 5 now, by config/grace in the store.",
            "grace is again as at the start (30).",
        ]
        for instance in (a, b, late):
            instance.stop()

    run(scene())


def test_a_bad_value_in_the_store_is_told_once_and_as_good_as_absent() -> None:
    async def scene() -> None:
        store = MemoryStore()
        a, b = await two(store)
        await a.live.set("log_level", "debug")
        await put(store, log_level="loud")
        assert (a.in_force["log_level"], b.in_force["log_level"]) == ("info", "info")
        assert a.told(Did.WARNED) == [
            "config/log_level in the store is not used, log_level is as at the start (info). "
            'log_level: "loud" is none of debug, info, warning, error.'
        ]
        value = a.live.get("log_level")
        assert (value.value, value.stored) == ("info", "loud")
        assert value.problem.startswith('log_level: "loud" is none of')
        await put(store, grace="3")
        assert len(a.told(Did.WARNED)) == 1
        await put(store, log_level="error")
        assert (a.in_force["log_level"], a.live.get("log_level").problem) == ("error", "")
        a.stop()
        b.stop()

    run(scene())


def test_wrong_names_and_values_are_refused_with_what_would_do() -> None:
    async def scene() -> None:
        store = MemoryStore()
        a, b = await two(store)
        for name, text, sentence in (
            ("log_level", "loud", 'log_level: "loud" is none of debug, info, warning, error.'),
            ("grace", "soon", 'grace: "soon" is not a number of seconds from 0 to 86400.'),
            (
                "memory",
                "1GB",
                '"memory" is no setting that can be changed while instances run; these can: grace, log_level.',
            ),
            ("log_level", "x" * (VALUE_BYTES_MAX + 1), "log_level: it has more than 256 KiB."),
        ):
            error = await raised(a.live.set(name, text))
            assert isinstance(error, InvalidInput) and str(error) == sentence
        assert not a.in_force and not b.in_force
        assert isinstance(await raised(a.live.unset("grce")), InvalidInput), "a slip of the pen is told"
        read_only = Instance(store, refusal="It is only read here.")
        await read_only.start()
        for call in (read_only.live.set("grace", "1"), read_only.live.unset("grace")):
            assert isinstance(await raised(call), FailedPrecondition)
        for instance in (a, b, read_only):
            instance.stop()

    run(scene())


def test_the_predecessors_keys_count_and_others_are_told() -> None:
    async def scene() -> None:
        store = MemoryStore()
        a, b = await two(store)
        await put(store, logger_level="WARN", scaleup_rpm_threshold="5000")
        assert a.in_force == {"log_level": "warning"}
        assert a.told(Did.CONFIGURED) == ["log_level is warning now, by config/logger_level in the store."]
        assert [reason.split(":")[0] for reason in a.told(Did.WARNED)] == [
            "config/scaleup_rpm_threshold in the store has no effect"
        ]
        assert list(a.live.without_effect()) == ["scaleup_rpm_threshold"]
        await a.live.unset("scaleup_rpm_threshold")
        assert not a.live.without_effect()
        await put(store, disable="true")
        late = Instance(store)
        with pytest.raises(SettingsError, match="no instance of this mesh may start"):
            await late.start()
        a.stop()
        b.stop()

    run(scene())


def test_type_constraints_of_the_store_count_before_those_of_the_start() -> None:
    async def scene() -> None:
        store = MemoryStore()
        await store.open()
        own = '{"tf": {"required": ["gpu"]}}'
        constraints = TypeConstraints(read_settings({"type_constraints": own}, {}).runtimes)
        table = constraints.table
        live = LiveSettings(store, Journal(StoppedClock()))
        await live.read()
        live.offer(
            "type_constraints",
            constraints.store_says,
            None,
            started=constraints.started,
            parse=lambda text: parse_constraints(text, "type_constraints"),
        )
        assert live.get("type_constraints").value == own
        await live.set("type_constraints", '{"_default": {"preferred": ["spot"]}}')
        assert table == {"_default": Constraint(preferred=frozenset({"spot"}))}
        error = await raised(live.set("type_constraints", '{"tf": 7}'))
        assert (
            str(error) == 'type_constraints, type "tf" is not an object of "required" and "preferred" labels.'
        )
        await live.unset("type_constraints")
        assert table == {"tf": Constraint(frozenset({"gpu"}))}

    run(scene())
