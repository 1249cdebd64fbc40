"""`migrate`: what will happen to a registry of KServe ModelMesh when it is served from here. It changes nothing: the layout is
shared, so there is nothing to apply.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from modelmesh.cli.exits import CommandFailed, Exit
from modelmesh.cli.options import Json, print_json
from modelmesh.cli.quantities import counted
from modelmesh.errors import SettingsError, StoreUnavailable
from modelmesh.instance.model_root import ModelRoot
from modelmesh.registry.survey import Survey, survey
from modelmesh.settings import predecessor
from modelmesh.settings.live import disables, without_effect
from modelmesh.settings.sources import ENVIRONMENT_PREFIX, read_settings
from modelmesh.settings.tree import Settings
from modelmesh.store.etcd import EtcdStore
from modelmesh.store.etcd_connection import read_connection
from modelmesh.store.protocol import Entry
from modelmesh.worker.formats.table import formats

_SETTINGS: Final = ("store", "service", "store_prefix", "model_root")
_NAMED_MAX: Final = 10
"""Ids named in a sentence; the others are counted. JSON has all."""


def migrate(
    store: Annotated[
        str | None,
        typer.Option(
            help="etcd: and a connection file or endpoints. Default: KV_STORE.", metavar="etcd:WHERE"
        ),
    ] = None,
    service: Annotated[str | None, typer.Option(help="Name of the mesh. Default: MM_SERVICE_NAME.")] = None,
    store_prefix: Annotated[
        str | None,
        typer.Option(help="What its keys begin with. Default: MM_KVSTORE_PREFIX, else tas-runtime."),
    ] = None,
    model_root: Annotated[
        str | None, typer.Option(help="Where local model files lie, as given to serve.", metavar="DIR")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at a registry of KServe ModelMesh and tell what serving it from here will mean. Nothing is changed."""
    flags = dict(zip(_SETTINGS, (store, service, store_prefix, model_root), strict=True))
    try:
        settings = read_settings(flags, _only_ours(os.environ))
        if settings.state.store is None:
            raise SettingsError(
                "store: say where the registry is: --store etcd:FILE or etcd:HOST:PORT, or KV_STORE."
            )
        entries = asyncio.run(_read(settings))
    except SettingsError as error:
        raise CommandFailed(str(error), Exit.USAGE) from error
    except StoreUnavailable as error:
        raise CommandFailed(str(error), Exit.NO_INSTANCE) from error
    found = survey(entries, ModelRoot(settings.models.model_root).refusal)
    unserved = {type: n for type, n in found.types.items() if type.lower() not in formats()}
    environment = [*predecessor.refused(os.environ), *predecessor.ignored(os.environ)]
    if as_json:
        print_json(_json(found, unserved, environment))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(found, unserved, environment, settings)))


def _only_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the settings used here: what else is set is told, and must not stop the telling."""
    names = {f"{ENVIRONMENT_PREFIX}{setting.upper()}" for setting in _SETTINGS}
    for row in predecessor.TABLE:
        if isinstance(row, predecessor.Carried) and row.setting in _SETTINGS:
            names.update(row.names)
    return {name: value for name, value in environment.items() if name in names}


async def _read(settings: Settings) -> Sequence[Entry]:
    state = settings.state
    assert state.store is not None
    connection = read_connection(state.store)
    store = EtcdStore(connection, connection.keys_of(state.store_prefix, state.service or ""))
    try:
        await store.open()
        return (await store.snapshot("")).entries
    finally:
        await store.close()


def _json(found: Survey, unserved: Mapping[str, int], environment: Sequence[str]) -> dict[str, Any]:
    ignored = without_effect(found.config)
    return {
        "models": found.n_models,
        "vmodels": found.n_vmodels,
        "types": dict(found.types),
        "types_not_served": dict(unserved),
        "paths_refused": found.refused,
        "vmodels_moving": found.moving,
        "vmodels_dangling": found.dangling,
        "claims_ignored": found.n_claims,
        "failures_ignored": found.n_failures,
        "unreadable": found.unreadable,
        "instances_alive": found.instances,
        "config_carried": {name: text for name, text in found.config.items() if name not in ignored},
        "config_ignored": {name: found.config[name] for name in ignored},
        "environment": list(environment),
    }


def _lines(
    found: Survey, unserved: Mapping[str, int], environment: Sequence[str], settings: Settings
) -> Iterator[str]:
    state = settings.state
    if not found.n_models and not found.n_vmodels:
        yield f"Nothing is registered for {state.service} there. Check the name of the mesh, --store-prefix and root_prefix."
        return
    of_types = ", ".join(f"{type} {n}" for type, n in found.types.most_common())
    yield f"Registered: {counted(found.n_models, 'model')} ({of_types}), {counted(found.n_vmodels, 'vmodel')}."
    if unserved:
        of_types = ", ".join(f"{type} ({counted(n, 'model')})" for type, n in unserved.items())
        yield f"The built-in runtime does not serve {of_types}; other runtimes may."
    if found.refused:
        example = next(iter(found.refused))
        yield (
            f"The built-in runtime will not load {counted(len(found.refused), 'model')} from where they lie: "
            f"{_some(found.refused)}. {example}: {found.refused[example]}"
        )
    if found.dangling:
        yield f"Vmodels that point at models that are not registered: {_some(found.dangling)}."
    if found.unreadable:
        example = next(iter(found.unreadable))
        yield f"Records that cannot be read, and are left alone: {_some(found.unreadable)}. {found.unreadable[example]}"
    if found.moving:
        yield f"Vmodels on their way to another model, which goes on from here: {_some(found.moving)}."
    if found.n_claims or found.n_failures:
        claims, failures = counted(found.n_claims, "claim"), counted(found.n_failures, "failure")
        yield (
            f"Where ModelMesh has models loaded ({claims}) and failed to ({failures}) is ignored, and left in the records."
        )
    ignored = without_effect(found.config)
    if carried := [name for name in found.config if name not in ignored]:
        yield f"Dynamic settings in the store that count here too: {_some(carried)}."
    if ignored:
        yield f"Dynamic settings in the store that have no effect here: {_some(ignored)}."
    if disables(found.config):
        yield "The dynamic setting disable keeps any instance from starting; delete it first."
    yield from environment
    if found.instances:
        yield (
            f"Alive: {counted(len(found.instances), 'instance')} of ModelMesh ({_some(found.instances)}). Until the last has "
            "gone, the registry is only read here."
        )
    yield "Nothing has to be applied. Serve it:"
    root = f" --model-root {settings.models.model_root}" if settings.models.model_root else ""
    prefix = "" if state.store_prefix == "tas-runtime" else f" --store-prefix {state.store_prefix}"
    yield f"  modelmesh serve --store etcd:{state.store} --service {state.service}{prefix}{root}"


def _some(names: Mapping[str, str] | Sequence[str]) -> str:
    shown = list(names)[:_NAMED_MAX]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
