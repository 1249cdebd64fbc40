"""The rules of vmodels as transactions on a draft (reference mesh.md 9.2, its defects corrected).

A model's reference count is the number of vmodels for which it is active or target, each counted once. Every rule here goes
through `_move`, which derives the counts from the vmodel before and after, so they are exact whatever the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from modelmesh.errors import AlreadyExists, FailedPrecondition, InvalidInput, ModelNotFound
from modelmesh.mesh.control import Registration
from modelmesh.mesh.naming.draft import Draft
from modelmesh.mesh.naming.registrar import register_in
from modelmesh.registry.ids import check_id, follows_versions
from modelmesh.registry.keep import NO_KEEP, taken_over
from modelmesh.registry.records import Canary, VModelRecord

HOUR_MS: Final = 3_600_000
REASON_MAX: Final = 500
"""Characters kept of why a target failed."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The call to point `vmodel` at `target`. With `model` the target is registered when absent."""

    vmodel: str
    target: str
    model: Registration | None = None
    auto_delete_target: bool = False
    load_now: bool = False
    force: bool = False
    expected_target: str = ""
    owner: str = ""
    update_only: bool = False
    canary: Canary | None = None
    """Try the target out first. A new vmodel has nothing to compare it with."""


class Outcome(Enum):
    """What a setting did."""

    CREATED = "created"
    UNCHANGED = "unchanged"
    SWITCHED = "switched"
    """The target is active at once."""
    KEPT = "kept"
    """The active model stays; the transition under way is called off."""
    BEGUN = "begun"
    """The target becomes active when it is loaded, or has stood its trial."""


def set_in(
    draft: Draft, setting: Setting, copies: Callable[[str], int], now_ms: int, default_owner: str = ""
) -> Outcome:
    """Point a vmodel at a model. `copies` says in how many instances a model is loaded. Raises InvalidInput, ModelNotFound,
    AlreadyExists, FailedPrecondition before anything is written."""
    vmodel, target = check_id(setting.vmodel, "vmodel"), check_id(setting.target)
    old = draft.vmodel(vmodel)
    if old is None and setting.update_only:
        raise ModelNotFound(f"vmodel not found: there is no vmodel {vmodel} to update.", model=vmodel)
    if old is not None and setting.owner and old.owner != setting.owner:
        whose = f"belongs to {old.owner}" if old.owner else "has no owner"
        raise AlreadyExists(f"The vmodel {vmodel} {whose}, not to {setting.owner}.", model=vmodel)
    if setting.canary is not None:
        setting.canary.check()
        if setting.force:
            raise InvalidInput("A target is switched to at once, or tried out first: not both.")
    _check_expected(setting, old)
    _need_target(draft, setting)

    if old is None:
        _use(draft, target, setting.model.last_used_ms if setting.model is not None else 0)
        _move(draft, vmodel, None, VModelRecord(target, target, setting.owner or default_owner))
        return Outcome.CREATED
    if old.target == target and (old.settled or not setting.force):
        return _try_in(draft, vmodel, old, setting.canary)
    canary = None if setting.canary is None else replace(setting.canary, since_ms=0)
    anew = replace(old, target=target, failed=False, reason="", canary=canary)
    waits = canary is not None or (
        must_load(vmodel, anew, copies) and copies(target) < max(copies(old.active), 1)
    )
    at_once = setting.force or target == old.active or not waits
    _inherit_use(draft, old.active, target, now_ms - (HOUR_MS if setting.load_now else 6 * HOUR_MS))
    _move(draft, vmodel, old, replace(anew, active=target, canary=None) if at_once else anew)
    if target == old.active:
        return Outcome.KEPT
    return Outcome.SWITCHED if at_once else Outcome.BEGUN


def must_load(vmodel: str, record: VModelRecord, copies: Callable[[str], int]) -> bool:
    """Whether the target has to prove itself before it becomes active: the active model serves, or the target failed before, or
    is to be tried out, or the active one is another version that could go on serving when asked."""
    proves = record.failed or record.canary is not None
    return proves or copies(record.active) > 0 or follows_versions(vmodel, record.active)


def _try_in(draft: Draft, vmodel: str, old: VModelRecord, canary: Canary | None) -> Outcome:
    """The vmodel has this target already. Asked for anew, a trial under way goes on by other terms, and a target that failed
    has another."""
    if canary is None or old.settled:
        return Outcome.UNCHANGED
    since_ms = old.canary.since_ms if old.on_trial and old.canary is not None else 0
    anew = replace(old, failed=False, reason="", canary=replace(canary, since_ms=since_ms))
    if anew == old:
        return Outcome.UNCHANGED
    draft.put_vmodel(vmodel, anew)
    return Outcome.BEGUN


def begin_trial_in(draft: Draft, vmodel: str, target: str, now_ms: int) -> bool:
    """The canary is loaded: give it its share. False when the vmodel has other plans by now."""
    record = draft.vmodel(vmodel)
    if record is None or record.settled or record.target != target or record.canary is None:
        return False
    if record.canary.since_ms:
        return False
    canary = replace(record.canary, since_ms=now_ms)
    draft.put_vmodel(vmodel, replace(record, failed=False, reason="", canary=canary))
    return True


def end_trial_in(draft: Draft, vmodel: str, since_ms: int, fault: str) -> bool:
    """The trial that began then is over: with a fault its target failed, without one the vmodel moves to it. False when it is
    not that trial that is on."""
    record = draft.vmodel(vmodel)
    if record is None or record.canary is None or not record.on_trial or record.canary.since_ms != since_ms:
        return False
    if fault:
        draft.put_vmodel(vmodel, replace(record, failed=True, reason=_shortened(fault)))
    else:
        draft.put_vmodel(vmodel, replace(record, canary=None))
    return True


def switch_in(draft: Draft, vmodel: str, target: str) -> bool:
    """The target is ready: make it active. False when the vmodel has other plans by now, also to try that target out first."""
    record = draft.vmodel(vmodel)
    if record is None or record.settled or record.target != target or record.canary is not None:
        return False
    _move(draft, vmodel, record, replace(record, active=target, failed=False, reason=""))
    return True


def fail_in(draft: Draft, vmodel: str, target: str, reason: str) -> bool:
    """The target failed: say so and why, and leave the active model alone. False when the vmodel has other plans by now."""
    record = draft.vmodel(vmodel)
    if record is None or record.settled or record.target != target:
        return False
    draft.put_vmodel(vmodel, replace(record, failed=True, reason=_shortened(reason)))
    return True


def delete_in(draft: Draft, vmodel: str, owner: str) -> bool:
    """False, and no error, when there is no such vmodel or an owner is given and it is another's."""
    record = draft.vmodel(vmodel)
    if record is None or (owner and record.owner != owner):
        return False
    _move(draft, vmodel, record, None)
    return True


def _shortened(reason: str) -> str:
    return reason if len(reason) <= REASON_MAX else reason[: REASON_MAX - 1] + "…"


def _check_expected(setting: Setting, old: VModelRecord | None) -> None:
    expected = setting.expected_target
    if not expected or setting.target == (expected if old is None else old.target):
        return
    present = "does not exist" if old is None else f"has the target {old.target}"
    if old is None or old.target != expected:
        raise FailedPrecondition(
            f"The vmodel {setting.vmodel} {present}, not the expected target {expected}: read it again and decide anew.",
            model=setting.vmodel,
        )


def _need_target(draft: Draft, setting: Setting) -> None:
    """Register the target, or make sure that it exists."""
    if setting.model is None:
        if draft.model(setting.target) is None:
            raise ModelNotFound(
                f"model not found: {setting.target} is not registered, so {setting.vmodel} cannot point at it.",
                model=setting.target,
            )
        return
    if setting.model.id and setting.model.id != setting.target:
        raise InvalidInput(
            f"The model to register is {setting.model.id}, but the target is {setting.target}."
        )
    model = setting.model
    if model.id != setting.target or model.last_used_ms:
        # Its last use is decided by what the vmodel pointed at before.
        model = replace(model, id=setting.target, last_used_ms=0)
    register_in(draft, model, auto_delete=setting.auto_delete_target)


def _inherit_use(draft: Draft, active: str, target: str, otherwise_ms: int) -> None:
    """The target is as recently used as the model it follows. A last use is only ever raised."""
    leaving = draft.model(active)
    if active != target:
        _use(draft, target, leaving.last_used_ms if leaving and leaving.last_used_ms else otherwise_ms)


def _use(draft: Draft, model: str, used_ms: int) -> None:
    """Raise its last use."""
    record = draft.model(model)
    if record is not None:
        draft.put_model(model, record.used(used_ms))


def _move(draft: Draft, vmodel: str, old: VModelRecord | None, new: VModelRecord | None) -> None:
    """Write the vmodel, count its references by what it referred to before and does after, and pass on how its model is kept."""
    if old is not None and new is not None and old.active != new.active:
        _pass_on_keep(draft, vmodel, old.active, new.active)
    before = set() if old is None else {old.active, old.target}
    after = set() if new is None else {new.active, new.target}
    for model in sorted(after - before):
        record = draft.model(model)
        if record is not None:
            draft.put_model(model, replace(record, references=record.references + 1))
    for model in sorted(before - after):
        record = draft.model(model)
        if record is not None:
            left = max(record.references - 1, 0)
            gone = left == 0 and record.auto_delete
            draft.put_model(model, None if gone else replace(record, references=left))
    draft.put_vmodel(vmodel, new)


def _pass_on_keep(draft: Draft, vmodel: str, former: str, model: str) -> None:
    """What was set for a name goes with the name: to a model that has no terms of its own, and away from the former, unless
    another name may rely on it. A version that the bare name leaves has a name of its own by design; nobody relies on that."""
    leaving, taking = draft.model(former), draft.model(model)
    if leaving is None or taking is None or (keep := taken_over(leaving.keep, taking.keep)) == taking.keep:
        return
    draft.put_model(model, replace(taking, keep=keep))
    if leaving.references <= 1 or follows_versions(vmodel, former):
        draft.put_model(former, replace(leaving, keep=NO_KEEP))
