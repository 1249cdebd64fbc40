"""`modelmesh serve` with the ports the predecessor's manifests expect."""

from __future__ import annotations

import re
import signal
from http.client import HTTPConnection
from pathlib import Path
from select import select

import httpx
import pytest

from modelmesh.testing.serving import served, until


def test_ports_of_their_own_and_a_hook_that_outlives_the_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_PROBE_PORT", "0")
    monkeypatch.setenv("MM_PRESTOP_WAIT_PORT", "0")
    monkeypatch.setenv("MM_METRICS", "prometheus:port=0;scheme=https;fq_names=true")
    monkeypatch.setenv("MM_INFO_METRICS", "deployment;slot=SLOT")
    monkeypatch.setenv("SLOT", "blue")
    with served(tmp_path, "--memory", "300MiB", "--workers", "1", "--state", "memory") as instance:
        told = until(lambda: (out := instance.out.read_text()) and "Ctrl-C" in out and out, "the greeting")
        urls = dict(re.findall(r"^  (probes|prestop|metrics)  (\S+)$", told, re.MULTILINE))
        assert httpx.get(f"{urls['probes']}/ready").status_code == 200
        text = httpx.get(f"{urls['metrics']}/metrics", verify=False).text
        assert 'deployment{slot="blue"} 1.0' in text

        host = urls["prestop"].removeprefix("http://")
        hook = HTTPConnection(host, timeout=60)
        hook.request("GET", "/prestop")
        # It waits, without keeping others from being answered, and begins nothing.
        assert httpx.get(f"{urls['prestop']}/other", timeout=10).status_code == 404
        assert httpx.get(f"{urls['probes']}/ready").status_code == 200
        assert select([hook.sock], [], [], 0)[0] == []
        assert instance.stop(signal.SIGTERM) == 0, instance.err.read_text()
        answer = hook.getresponse()
        assert (answer.status, answer.read()) == (200, b"drained\n")
        hook.close()
        instance.assert_nothing_left()
