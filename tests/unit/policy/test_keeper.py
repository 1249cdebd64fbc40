from __future__ import annotations

from collections import Counter

from modelmesh.policy.keeper import keeper, ranked

MODELS = [f"m{number}" for number in range(4000)]


def test_the_order_is_the_same_everywhere() -> None:
    """Pinned: instances of different versions must agree, or models get two keepers for long."""
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert [ranked(model, weights) for model in ("m0", "m1", "m2")] == PINNED
    assert ranked("m0", dict(reversed(weights.items()))) == PINNED[0]


PINNED = [["c", "a", "b"], ["c", "b", "a"], ["c", "b", "a"]]


def test_the_keeper_is_the_first() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert all(keeper(model, weights) == ranked(model, weights)[0] for model in MODELS[:50])
    assert keeper("m", {}) is None and ranked("m", {}) == []


def test_models_fall_in_proportion_to_the_weights() -> None:
    kept = Counter(keeper(model, {"a": 1.0, "b": 3.0, "none": 0.0}) for model in MODELS)
    assert set(kept) == {"a", "b"} and 900 < kept["a"] < 1100


def test_only_models_of_the_lost_instance_move() -> None:
    weights = {f"i{number}": 1.0 for number in range(5)}
    before = {model: keeper(model, weights) for model in MODELS}
    left = {instance: weight for instance, weight in weights.items() if instance != "i3"}
    moved = {model for model in MODELS if keeper(model, left) != before[model]}
    assert moved == {model for model, instance in before.items() if instance == "i3"}
    assert all(keeper(model, left) == ranked(model, weights)[1] for model in moved)
