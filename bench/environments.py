"""Environments of the references: each in a folder of its own under `bench/envs`, made on first use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENTS = Path(__file__).parent / "envs"
UV = Path(sys.executable).with_name("uv")


def environment(name: str, requirements: Sequence[str], *, without_dependencies: Sequence[str] = ()) -> Path:
    """The `bin` folder of an environment with these packages. CalledProcessError with pip's words when they cannot be had."""
    folder = ENVIRONMENTS / name
    wanted = hashlib.sha256(repr((requirements, without_dependencies)).encode()).hexdigest()
    stamp = folder / ".made"
    if not stamp.exists() or stamp.read_text() != wanted:
        _uv("venv", "-q", "--allow-existing", "--python", sys.executable, str(folder))
        _uv("pip", "install", "-q", *requirements, into=folder)
        if without_dependencies:
            _uv("pip", "install", "-q", "--no-deps", *without_dependencies, into=folder)
        stamp.write_text(wanted)
    return folder / "bin"


def _uv(*arguments: str, into: Path | None = None) -> None:
    variables = {**os.environ, "VIRTUAL_ENV": str(into)} if into else None
    done = subprocess.run(
        [str(UV), *arguments], env=variables, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise RuntimeError(f"uv {' '.join(arguments)} failed: {done.stderr.strip()[-800:]}")
