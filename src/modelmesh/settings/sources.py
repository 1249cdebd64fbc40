"""Where settings come from, in order: flags, environment, TOML file, the predecessor's variables, defaults. Read once; complaints
are sentences."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_type_hints

from modelmesh.errors import SettingsError
from modelmesh.settings import exporting, parsing, predecessor
from modelmesh.settings.machine import cores
from modelmesh.settings.runtimes import BUILTIN, SIDECAR, parse_runtimes
from modelmesh.settings.tree import (
    Edges,
    Lifecycle,
    Logs,
    Memory,
    Metrics,
    Models,
    Network,
    Peering,
    Runtimes,
    Setting,
    Settings,
    State,
)

ENVIRONMENT_PREFIX: Final = "MODELMESH_"
_CONCERNS: Final = {
    "models": Models,
    "runtimes": Runtimes,
    "memory": Memory,
    "network": Network,
    "edges": Edges,
    "state": State,
    "peering": Peering,
    "lifecycle": Lifecycle,
    "logs": Logs,
    "metrics": Metrics,
}
_BYTES_PER_WORKER: Final = 512 * 2**20


def described() -> Iterator[tuple[str, Setting]]:
    """Every setting, with the concern it belongs to."""
    for concern, kind in _CONCERNS.items():
        for setting in _settings_of(kind).values():
            yield concern, setting


def read_settings(
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> Settings:
    """Gather, validate and freeze. `flags` maps names to values, None when not given; `config` is the TOML file, or else the
    one `MODELMESH_CONFIG` names. Raises SettingsError with a sentence that names the setting as the user wrote it.

    Unknown environment variables are passed over: Kubernetes itself sets `MODELMESH_SERVICE_HOST` and the like beside a
    service called modelmesh. Unknown keys of the file are refused, since they can only be mistakes.
    """
    flags = flags or {}
    environment = os.environ if environment is None else environment
    if config is None and environment.get(f"{ENVIRONMENT_PREFIX}CONFIG"):
        config = Path(environment[f"{ENVIRONMENT_PREFIX}CONFIG"])
    file = _read_file(config) if config else {}
    predecessor.check_refused(environment)
    concerns = {
        concern: {
            field: _value(setting, flags, environment, file, config)
            for field, setting in _settings_of(kind).items()
        }
        for concern, kind in _CONCERNS.items()
    }
    _derive(concerns, environment)
    _derive_runtimes(concerns, environment)
    return Settings(**{concern: kind(**concerns[concern]) for concern, kind in _CONCERNS.items()})


def default_workers(budget_bytes: int, n_cores: int) -> int:
    """One per core and per 512 MiB of budget, whichever is less; at least 1."""
    return max(1, min(n_cores, budget_bytes // _BYTES_PER_WORKER))


def default_state(folder: Path | None, environment: Mapping[str, str]) -> Path:
    """The user's state folder by the XDG base directory specification, and in it one per served folder."""
    base = environment.get("XDG_STATE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16] if folder else "default"
    return root / "modelmesh" / name


def _derive(concerns: dict[str, dict[str, Any]], environment: Mapping[str, str]) -> None:
    """Fill in what was left open and follows from the rest."""
    models, memory, state = concerns["models"], concerns["memory"], concerns["state"]
    metrics = concerns["metrics"]
    if state["read_only"] and models["folder"] is not None:
        raise SettingsError(
            "read_only: serving a folder registers its models, which a read-only registry does not allow; leave out one of both."
        )
    if state["store"] is not None and state["service"] is None:
        raise SettingsError(
            "service: a registry that is shared needs the name of its mesh; give the same --service to all its instances."
        )
    if models["model_root"] is None:
        models["model_root"] = models["folder"]
    if memory["workers"] is None:
        memory["workers"] = default_workers(memory["budget_bytes"], cores())
    if state["path"] is None:
        state["path"] = default_state(models["folder"], environment)
    elif state["path"] == parsing.MEMORY:
        state["path"] = None
    if metrics["info"] is not None:
        try:
            metrics["info"] = exporting.filled_in(metrics["info"], environment)
        except ValueError as error:
            raise SettingsError(f"info_metric: {metrics['info'].name} {error}.") from error


def _derive_runtimes(concerns: dict[str, dict[str, Any]], environment: Mapping[str, str]) -> None:
    """Put the serving address where it belongs. In a pod of the predecessor's, where nothing is said of runtimes and no local
    model could be loaded, the runtime is beside us."""
    models, runtimes = concerns["models"], concerns["runtimes"]
    runtimes["labels"] = runtimes["labels"] or frozenset()
    serving = runtimes["serving_address"]
    if runtimes["chosen"] is None:
        beside = serving is not None or (predecessor.in_pod(environment) and models["model_root"] is None)
        runtimes["chosen"] = parse_runtimes(SIDECAR if beside else BUILTIN)
    chosen = runtimes["chosen"]
    if models["folder"] is not None and not any(choice.is_builtin for choice in chosen):
        raise SettingsError(
            "runtime: a folder is served by the built-in runtime, which is not among those given; add --runtime builtin, or "
            "leave out the folder."
        )
    if serving is not None:
        if len(chosen) > 1 or chosen[0].is_builtin or chosen[0].serving_address:
            raise SettingsError(
                "runtime_serving: it is for one runtime outside of this program; write serving=ADDRESS behind each that needs it."
            )
        runtimes["chosen"] = (replace(chosen[0], serving_address=serving),)


def _value(
    setting: Setting,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    file: Mapping[str, object],
    config: Path | None,
) -> Any:
    """The parsed value from the first source that has one; None when none has and there is no default."""
    name = setting.name
    variable = ENVIRONMENT_PREFIX + name.upper()
    raw: object = setting.default
    source = name
    if flags.get(name) is not None:
        raw, source = flags[name], "FOLDER" if name == "folder" else f"--{name.replace('_', '-')}"
        if isinstance(raw, list):
            raw = ";".join(raw)
    elif environment.get(variable):
        raw, source = environment[variable], variable
    elif name in file:
        raw, source = file[name], f"{name} in {config}"
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raise SettingsError(f"{source}: {raw!r} is neither a text nor a number.")
    elif old := predecessor.carried(name, environment):
        source, raw = old
    if raw == "":
        return None
    try:
        return setting.parse(str(raw))
    except ValueError as error:
        raise SettingsError(f'{source}: "{raw}" {error}.') from error


def _read_file(config: Path) -> dict[str, object]:
    try:
        file = tomllib.loads(config.read_text())
    except FileNotFoundError as error:
        raise SettingsError(f"--config: {config} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config: {config} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--config: {config} is not TOML: {error}.") from error
    known = {setting.name for _, setting in described()}
    for name in file:
        if name not in known:
            raise SettingsError(f"{name} in {config}: there is no such setting; docs/settings.md lists them.")
    return file


def _settings_of(concern: type) -> dict[str, Setting]:
    """By field name, in the order of the fields."""
    return {name: hint.__metadata__[0] for name, hint in get_type_hints(concern, include_extras=True).items()}
