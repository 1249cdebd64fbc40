"""The runtimes of an instance, built from its settings, and what may be registered with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from modelmesh.instance.model_root import ModelRoot
from modelmesh.mesh.control import Admit, Registration
from modelmesh.policy.runtimes import Constraint, Offer, choose
from modelmesh.runtime.ids import Ids
from modelmesh.runtime.protocol import Runtime
from modelmesh.settings.runtimes import BUILTIN, RuntimeChoice
from modelmesh.settings.tree import Settings

LOAD_TIMEOUT_S: Final = 60.0
"""Of the built-in runtime."""
EXTERNAL_LOAD_TIMEOUT_S: Final = 300.0
"""What a runtime outside is thought to allow itself at most, before it has said so."""


def build_runtimes(settings: Settings, socket_dir: Path, root: ModelRoot) -> list[Runtime]:
    """In the order of the settings, none started."""
    ids = Ids()
    return [
        _builtin(settings, choice, socket_dir, root, ids)
        if choice.is_builtin
        else _external(settings, choice, ids)
        for choice in settings.runtimes.chosen
    ]


def load_timeout_s(settings: Settings) -> float:
    """The longest a load may take at any of them, as far as it is known before they run."""
    outside = any(not choice.is_builtin for choice in settings.runtimes.chosen)
    return EXTERNAL_LOAD_TIMEOUT_S if outside else LOAD_TIMEOUT_S


def admission(runtimes: Sequence[Runtime], root: ModelRoot, constraints: Mapping[str, Constraint]) -> Admit:
    """The check of what is to be registered: paths of models for the built-in runtime must lie under the root, those for others
    mean nothing to us and are passed on as they are."""
    offers = [runtime.offer() for runtime in runtimes]
    names = {offer.name for offer in offers}
    if names == {BUILTIN}:
        return root.admit

    def admit(registration: Registration) -> Registration:
        chosen = choose(registration.type, offers, constraints)
        is_ours = not isinstance(chosen, str) and offers[chosen].name == BUILTIN
        return root.admit(registration) if is_ours else registration

    return admit


def _external(settings: Settings, choice: RuntimeChoice, ids: Ids) -> Runtime:
    from modelmesh.runtime.spi.runtime import SpiConfig, SpiRuntime

    offer = Offer(choice.name, choice.model_types, choice.labels | settings.runtimes.labels)
    return SpiRuntime(SpiConfig(offer, choice.addresses, choice.serving_address, ids=ids))


def _builtin(
    settings: Settings, choice: RuntimeChoice, socket_dir: Path, root: ModelRoot, ids: Ids
) -> Runtime:
    from modelmesh.runtime.builtin import BuiltinConfig, BuiltinRuntime
    from modelmesh.runtime.worker_process import WorkerConfig

    state = settings.state.path
    return BuiltinRuntime(
        BuiltinConfig(
            budget_bytes=settings.memory.budget_bytes,
            workers=WorkerConfig(
                socket_dir,
                message_bytes_max=settings.network.message_bytes_max,
                stuck_after_s=settings.lifecycle.inference_timeout_s,
            ),
            n_workers=settings.memory.workers,
            load_timeout_s=LOAD_TIMEOUT_S,
            facts_path=None if state is None else state / "runtime-facts.json",
            # Others may have registered what is in a shared store; in our own everything was admitted.
            refusal=(lambda path: "") if settings.state.store is None else root.refusal,
            labels=choice.labels | settings.runtimes.labels,
            ids=ids,
        )
    )
