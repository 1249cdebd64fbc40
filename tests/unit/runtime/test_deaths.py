"""What a death means."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from modelmesh.runtime import deaths
from modelmesh.runtime.deaths import Death, oom_kills


@pytest.mark.parametrize(
    ("return_code", "out_of_memory", "blamed", "said"),
    [
        (-signal.SIGSEGV, False, True, "SIGSEGV"),
        (-signal.SIGABRT, False, True, "SIGABRT"),
        (-signal.SIGBUS, False, True, "SIGBUS"),
        (-signal.SIGILL, False, True, "SIGILL"),
        (0, False, True, "exit status 0"),
        (3, False, True, "exit status 3"),
        (-signal.SIGKILL, True, True, "lack of memory"),
        (-signal.SIGKILL, False, False, "SIGKILL"),
        (-signal.SIGTERM, False, False, "SIGTERM"),
        (-signal.SIGTERM, True, False, "SIGTERM"),
        (-signal.SIGINT, False, False, "SIGINT"),
    ],
)
def test_blame(return_code: int, out_of_memory: bool, blamed: bool, said: str) -> None:
    death = Death(return_code, out_of_memory, "", ("m",))
    assert death.blames_models is blamed
    assert said in death.reason


@pytest.mark.parametrize("return_code", [-signal.SIGSEGV, -signal.SIGKILL, 0, 1])
def test_a_worker_ended_on_purpose_blames_nobody(return_code: int) -> None:
    death = Death(return_code, True, "the server stops", ("m",))
    assert not death.blames_models
    assert death.reason == "the server stops"


def test_kills_for_memory_are_counted_where_the_system_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent, second = tmp_path / "absent", tmp_path / "memory.events"
    second.write_text("low 0\nhigh 0\noom 2\noom_kill 7\noom_group_kill 0\n")
    monkeypatch.setattr(deaths, "_oom_counters", lambda: [absent, second])
    assert oom_kills() == 7
    monkeypatch.setattr(deaths, "_oom_counters", lambda: [absent])
    assert oom_kills() == 0
