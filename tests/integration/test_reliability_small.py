"""The faults of `bench/reliability` at a size for every day: real processes on machines of their own, real etcd, real clients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.reliability import network
from modelmesh.testing.etcd import missing

FAULTS = ("instance-killed", "parted-from-peers")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clients_of_others_see_no_failure(tmp_path: Path) -> None:
    if why := missing() or network.missing():
        pytest.skip(why)
    logs = tmp_path / "logs"
    command = [sys.executable, "-m", "bench.reliability", "--only", ",".join(FAULTS), "--json"]
    command += ["--instances", "3", "--etcd", "1", "--models", "60", "--rate", "40"]
    command += ["--calm", "3", "--keep", str(logs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == list(FAULTS)
    for row in rows:
        assert not row["broken"], (row, done.stderr)
        assert row["requests"] > 400
        assert row["registered"]["acknowledged"] > 5
        assert row["loads_during"] + row["loads_after"] > 5, "what was out of reach was loaded elsewhere"
