"""Gauges of the whole mesh, exported by one of its instances, so that a sum over all of them is right.

That is the one which is there longest of those that answer (the predecessor's leader, reference mesh.md 10.3). When instances
are cut off from each other, one on each side believes that it is the one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelmesh.mesh.views import MemberView, MeshCount


def counted(census: MeshCount | None) -> dict[str, float]:
    """Those without labels that have to be counted; none where another instance exports them."""
    if census is None:
        return {}
    return {
        "modelmesh_models_loaded_total": census.models_loaded,
        "modelmesh_models_with_failure_total": census.models_failed,
        "modelmesh_models_managed_total": census.models,
        "modelmesh_mesh_copies": census.copies,
    }


def summed(members: Sequence[MemberView]) -> dict[str, float]:
    """What the instances told of themselves, over those that answer."""
    answering = [member for member in members if not member.suspected]
    return {
        "modelmesh_mesh_capacity_bytes": sum(member.capacity_bytes for member in answering),
        "modelmesh_mesh_free_bytes": sum(member.free_bytes for member in answering),
        "modelmesh_mesh_requests_per_second": sum(member.requests_per_s for member in answering),
    }


def instances(members: Sequence[MemberView]) -> list[tuple[Mapping[str, str], float]]:
    """How many there are in each condition; each instance is in one."""
    conditions = dict.fromkeys(("ok", "cordoned", "draining", "suspected"), 0)
    for member in members:
        conditions[_condition(member)] += 1
    return [({"condition": condition}, n) for condition, n in conditions.items()]


def peers(members: Sequence[MemberView]) -> list[tuple[Mapping[str, str], float]]:
    """How this instance finds the others: every instance exports that, since each may find them otherwise."""
    others = [member for member in members if not member.here]
    suspected = sum(member.suspected for member in others)
    return [({"condition": "answers"}, len(others) - suspected), ({"condition": "suspected"}, suspected)]


def _condition(member: MemberView) -> str:
    if member.suspected:
        return "suspected"
    if member.draining:
        return "draining"
    return "cordoned" if member.cordoned else "ok"
