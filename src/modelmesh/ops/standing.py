"""How a model stands now, in a sentence or two: what `explain` begins with."""

from __future__ import annotations

from modelmesh.mesh.views import ModelView, State, VModelView
from modelmesh.settings.sizes import format_size


def standing(
    name: str, model: ModelView | None, vmodel: VModelView | None, now_wall_s: float, *, several: bool = False
) -> str:
    """How it stands, in one or two sentences; with `several` instances they are named."""
    if model is None:
        return f'"{name}" is not registered; register it with: modelmesh register "{name}" --type FORMAT --path PATH.'
    sentence = _standing_of_model(model, now_wall_s, several)
    if vmodel is None:
        return sentence
    sentence = f'Vmodel "{vmodel.id}" points at "{vmodel.active}". {sentence}'
    canary = vmodel.canary
    if vmodel.target_failed and canary is not None and canary.since_wall_s:
        return f'{sentence} Its canary "{vmodel.target}" was given up: {vmodel.reason}'
    if vmodel.target_failed:
        reason = (vmodel.reason or "its load failed").rstrip(".")
        return f'{sentence} It cannot move to "{vmodel.target}": {reason}.'
    if canary is not None and canary.since_wall_s:
        return (
            f'{sentence} {100 * canary.share:.3g} % of its requests go to "{vmodel.target}": {canary.outlook}'
        )
    if vmodel.target != vmodel.active:
        return f'{sentence} It is moving to "{vmodel.target}".'
    return sentence


def _standing_of_model(model: ModelView, now_wall_s: float, several: bool) -> str:
    subject = f'Model "{model.id}"'
    where = _where(model) if several else ""
    if model.state is State.LOADED:
        replicas = "" if several else f", {model.replicas} replica{'' if model.replicas == 1 else 's'}"
        return f"{subject} is loaded{where}: {_weight(model)}{replicas}, {_use(model, now_wall_s, several)}{_pin(model)}."
    if model.state is State.FAILED and model.failure:
        wait_s = max(0.0, model.failure.expires_wall_s - now_wall_s)
        reason = model.failure.reason.rstrip(".")
        outlook = "That will not pass by itself; t" if model.failure.permanent else "T"
        return (
            f"{subject} failed to load: {reason}. {outlook}he first request after {wait_s:.0f} s tries again."
        )
    if model.state in (State.QUEUED, State.LOADING):
        doing = "waits to be loaded" if model.state is State.QUEUED else "is being loaded"
        return f"{subject} {doing}{where}; {model.waiting} requests wait for it."
    if model.state is State.UNLOADING:
        return f"{subject} is being unloaded; {model.in_flight} requests are in flight."
    duration = f", which takes about {model.load_s:.3g} s" if model.load_s else ""
    return f"{subject} is registered but not loaded; the next request loads it{duration}."


def _where(model: ModelView) -> str:
    """The instances that make up its state."""
    ids = [copy.instance for copy in model.copies if copy.state is model.state]
    if not ids:
        return ""
    return f" in {', '.join(ids[:-1])} and {ids[-1]}" if len(ids) > 1 else f" in {ids[0]}"


def _weight(model: ModelView) -> str:
    how = "measured" if model.size_measured else "estimated"
    return f"{format_size(model.size_bytes)} {how}"


def _use(model: ModelView, now_wall_s: float, several: bool) -> str:
    if not model.last_used_wall_s:
        return "never used"
    ago_s = max(0.0, now_wall_s - model.last_used_wall_s)
    requests = (
        "" if several else f"{model.requests_total} requests, "
    )  # they are counted where they were served
    return f"{requests}about {model.requests_per_s:.3g}/s, last used {ago_s:.0f} s ago"


def _pin(model: ModelView) -> str:
    return f", held against eviction ({model.pinned_by})" if model.pinned_by else ""
