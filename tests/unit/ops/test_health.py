"""Probes: /live, /ready, /prestop."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from threading import Thread

import httpx
import pytest

from modelmesh.errors import SettingsError
from modelmesh.ops.listener import Listener
from modelmesh.testing.control import FakeControlPlane
from modelmesh.testing.ops import parts_over, served_ops


def test_ready_only_when_it_is() -> None:
    control = FakeControlPlane()
    with served_ops(parts_over(control)) as url:
        for ready, draining, status in [(True, False, 200), (False, False, 503), (True, True, 503)]:
            control.ready, control.draining = ready, draining
            assert httpx.get(f"{url}/ready").status_code == status
            assert httpx.get(f"{url}/ready/").status_code == status
            assert httpx.get(f"{url}/live").status_code == 200
        assert httpx.post(f"{url}/live/").status_code == 200


def test_prestop_returns_when_drained_and_others_are_answered_meanwhile() -> None:
    control = FakeControlPlane()
    release = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def drain() -> None:
        loops.append(asyncio.get_running_loop())
        control.draining = True
        await release.wait()

    answers: list[int] = []
    with served_ops(replace(parts_over(control), drain=drain)) as url:
        caller = Thread(target=lambda: answers.append(httpx.get(f"{url}/prestop", timeout=10).status_code))
        caller.start()
        while not control.draining:
            assert httpx.get(f"{url}/live").status_code == 200
        assert httpx.get(f"{url}/ready").status_code == 503
        assert answers == []
        loops[0].call_soon_threadsafe(release.set)
        caller.join(10)
    assert answers == [200]


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"^--ops-port: port {port} is taken; .*\.$"):
            Listener("127.0.0.1", port)


def test_a_foreign_address_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"--host: \"192\.0\.2\.1\" is not an address of this machine\."):
        Listener("192.0.2.1", 0)
    with pytest.raises(SettingsError, match=r"--host: \"no such host\.\" is not an address"):
        Listener("no such host.", 0)
