"""Which runtime serves a type."""

from __future__ import annotations

from modelmesh.policy.runtimes import Constraint, Offer, choose

BUILTIN = Offer("builtin", frozenset({"sklearn", "onnx"}), frozenset({"cpu"}))
TRITON = Offer("triton", frozenset({"onnx", "tensorrt"}), frozenset({"gpu", "big"}))
ANY = Offer("any")


def test_those_that_name_the_type_come_first_then_the_configured_order() -> None:
    assert choose("onnx", [ANY, BUILTIN, TRITON]) == 1
    assert choose("tensorrt", [ANY, BUILTIN, TRITON]) == 2
    assert choose("pytorch", [BUILTIN, TRITON, ANY]) == 2
    assert choose("SKLearn", [TRITON, BUILTIN]) == 1


def test_a_type_nobody_serves_is_refused_with_what_is_served() -> None:
    assert choose("pytorch", [BUILTIN, TRITON]) == (
        "No runtime here serves type pytorch; there are onnx, sklearn, tensorrt."
    )


def test_a_single_runtime_is_asked_itself() -> None:
    assert choose("pytorch", [BUILTIN]) == 0


def test_required_labels_bar_and_preferred_ones_rank() -> None:
    gpu = {"onnx": Constraint(required=frozenset({"gpu"}))}
    assert choose("onnx", [BUILTIN, TRITON], gpu) == 1
    refusal = choose("sklearn", [BUILTIN, TRITON], {"sklearn": Constraint(frozenset({"gpu", "big"}))})
    assert refusal == (
        "No runtime here may serve type sklearn: it requires the labels big, gpu; builtin has cpu."
    )
    assert choose("onnx", [BUILTIN, TRITON], {"onnx": Constraint(preferred=frozenset({"big"}))}) == 1


def test_the_default_applies_to_types_without_a_constraint_of_their_own() -> None:
    constraints = {"_default": Constraint(frozenset({"gpu"})), "sklearn": Constraint()}
    assert choose("sklearn", [BUILTIN, TRITON], constraints) == 0
    assert choose("onnx", [BUILTIN, TRITON], constraints) == 1
    assert isinstance(choose("sklearn", [BUILTIN], {"_default": Constraint(frozenset({"gpu"}))}), str)
