"""`explain`: how a model stands now, in one sentence, and the journal entries that led there."""

from __future__ import annotations

from collections.abc import Iterable

from modelmesh.journal import Entry, Journal
from modelmesh.mesh.views import ModelView, State, VModelView
from modelmesh.settings.sizes import format_size


def entries_about(journal: Journal, names: Iterable[str]) -> list[Entry]:
    """What the journal remembers of any of these names, oldest first."""
    wanted = frozenset(names) - {""}
    return [entry for entry in journal.since(0) if entry.model in wanted]


def standing(name: str, model: ModelView | None, vmodel: VModelView | None, now_wall_s: float) -> str:
    """How it stands, in one or two sentences."""
    if model is None:
        return f'"{name}" is not registered; register it with: modelmesh register "{name}" --type FORMAT --path PATH.'
    sentence = _standing_of_model(model, now_wall_s)
    if vmodel is None:
        return sentence
    sentence = f'Vmodel "{vmodel.id}" points at "{vmodel.active}". {sentence}'
    if vmodel.target_failed:
        return f'{sentence} It cannot move to "{vmodel.target}": {vmodel.reason or "its load failed"}.'
    if vmodel.target != vmodel.active:
        return f'{sentence} It is moving to "{vmodel.target}".'
    return sentence


def _standing_of_model(model: ModelView, now_wall_s: float) -> str:
    subject = f'Model "{model.id}"'
    if model.state is State.LOADED:
        return f"{subject} is loaded: {_weight(model)}, {_use(model, now_wall_s)}{_pin(model)}."
    if model.state is State.FAILED and model.failure:
        wait_s = max(0.0, model.failure.expires_wall_s - now_wall_s)
        reason = model.failure.reason.rstrip(".")
        outlook = "That will not pass by itself; t" if model.failure.permanent else "T"
        return (
            f"{subject} failed to load: {reason}. {outlook}he first request after {wait_s:.0f} s tries again."
        )
    if model.state in (State.QUEUED, State.LOADING):
        doing = "waits to be loaded" if model.state is State.QUEUED else "is being loaded"
        return f"{subject} {doing}; {model.waiting} requests wait for it."
    if model.state is State.UNLOADING:
        return f"{subject} is being unloaded; {model.in_flight} requests are in flight."
    duration = f", which takes about {model.load_s:.3g} s" if model.load_s else ""
    return f"{subject} is registered but not loaded; the next request loads it{duration}."


def _weight(model: ModelView) -> str:
    how = "measured" if model.size_measured else "estimated"
    replicas = "1 replica" if model.replicas == 1 else f"{model.replicas} replicas"
    return f"{format_size(model.size_bytes)} {how}, {replicas}"


def _use(model: ModelView, now_wall_s: float) -> str:
    if not model.last_used_wall_s:
        return "never used"
    ago_s = max(0.0, now_wall_s - model.last_used_wall_s)
    return f"{model.requests_total} requests, about {model.requests_per_s:.3g}/s, last used {ago_s:.0f} s ago"


def _pin(model: ModelView) -> str:
    return f", held against eviction ({model.pinned_by})" if model.pinned_by else ""
