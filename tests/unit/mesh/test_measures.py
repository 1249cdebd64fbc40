"""Histograms told apart by model: bounded, and places change hands when they are idle."""

from __future__ import annotations

from modelmesh.mesh.measures import Measures

NAME = "modelmesh_loadmodel_milliseconds"


def counts(measures: Measures) -> dict[str, int]:
    return {model: by_name[NAME].count for model, by_name in measures.by_model.items()}


def test_none_unless_wanted() -> None:
    measures = Measures()
    measures.observe(NAME, 1.0, "a")
    assert measures.histograms[NAME].count == 1
    assert measures.by_model == {}


def test_models_beyond_the_bound_share_one_and_idle_ones_give_way() -> None:
    now_s = [0.0]
    measures = Measures(models_max=2, now_s=lambda: now_s[0])
    for model in ("a", "b", "c", "a"):
        measures.observe(NAME, 1.0, model)
        now_s[0] += 100.0
    assert counts(measures) == {"a": 2, "b": 1, "other": 1}
    now_s[0] = 3699.0  # b was used at 100
    measures.observe(NAME, 1.0, "c")
    assert counts(measures) == {"a": 2, "b": 1, "other": 2}
    now_s[0] = 3700.0
    measures.observe(NAME, 1.0, "c")
    assert counts(measures) == {"a": 2, "c": 1, "other": 2}
    assert measures.histograms[NAME].count == 6
