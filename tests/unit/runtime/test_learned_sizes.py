"""What models weigh, learned and predicted."""

from __future__ import annotations

import pytest

from modelmesh.runtime import sizes
from modelmesh.runtime.examined import Examined
from modelmesh.runtime.sizes import Sizes, Weight
from modelmesh.worker.formats.table import formats

SKLEARN, ONNX = formats()["sklearn"], formats()["onnx"]


def _examined(name: str = "a", size_bytes: int = 1000) -> Examined:
    return Examined(SKLEARN, name, size_bytes)


def test_a_prediction_grows_with_the_file_and_has_a_floor() -> None:
    learned = Sizes()
    small, large = learned.predicted(SKLEARN, 100), learned.predicted(SKLEARN, 10_000_000)
    assert SKLEARN.hints.floor_bytes <= small.size_bytes < large.size_bytes
    assert large.peak_bytes >= large.size_bytes
    assert learned.predicted(ONNX, 1000).size_bytes > 90_000, "a session weighs far more than a small file"


def test_a_measured_content_is_known_wherever_it_lies() -> None:
    learned = Sizes()
    learned.learn(_examined("a"), "same", Weight(5000, 9000, 0.1), measured=True)
    assert learned.content_of(_examined("a")) == "same"
    assert learned.content_of(_examined("b")) == ""
    assert learned.measured("same") == Weight(5000, 9000, 0.1)
    assert learned.measured("") is None


def test_the_highest_size_and_peak_are_kept() -> None:
    learned = Sizes()
    learned.learn(_examined(), "c", Weight(5000, 9000, 0.1), measured=True)
    learned.learn(_examined(), "c", Weight(5100, 5100, 0.2), measured=True)
    learned.learn(_examined(), "c", Weight(4900, 4900, 0.3), measured=True)
    assert learned.measured("c") == Weight(5100, 9000, 0.3, times=3)


def test_a_weight_is_settled_once_it_was_measured_a_few_times() -> None:
    learned = Sizes()
    assert learned.settled(SKLEARN, "c") is None
    for _ in range(sizes.MEASURED_TIMES):
        assert learned.settled(SKLEARN, "c") is None
        learned.learn(_examined(), "c", Weight(5000, 9000, 0.1), measured=True)
    assert learned.settled(SKLEARN, "c") == learned.measured("c")


@pytest.mark.parametrize(
    "weight",
    [Weight(5000, 9000, 0.1, file_bytes=1), Weight(5000, 5000 + 50 * sizes.PEAK_BYTES_MIN, 0.1)],
    ids=["mapped from files", "an unusual peak"],
)
def test_what_must_be_measured_at_each_load_is_never_settled(weight: Weight) -> None:
    learned = Sizes()
    for _ in range(2 * sizes.MEASURED_TIMES):
        learned.learn(_examined(), "c", weight, measured=True)
    assert learned.settled(SKLEARN, "c") is None


def test_a_provisional_size_is_not_believed() -> None:
    learned = Sizes()
    learned.learn(_examined(), "c", Weight(5000, 9000, 0.1), measured=False)
    assert learned.measured("c") is None
    assert learned.content_of(_examined()) == "c"
    learned.settle("c", Weight(4000, 9000, 0.1))
    assert learned.measured("c") == Weight(4000, 9000, 0.1)


def test_predictions_follow_the_bytes_of_experience() -> None:
    learned = Sizes()
    plain = learned.predicted(SKLEARN, 1_000_000).size_bytes
    for number in range(3):
        weight = Weight(5 * plain, 5 * plain, 0.1)
        learned.learn(_examined(str(number), 1_000_000), str(number), weight, measured=True)
    assert learned.predicted(SKLEARN, 1_000_000).size_bytes == pytest.approx(5 * plain, rel=0.01)
    tiny = Weight(50 * learned.predicted(SKLEARN, 10).size_bytes, 1, 0.1)
    learned.learn(_examined("tiny", 10), "tiny", tiny, measured=True)
    assert learned.predicted(SKLEARN, 1_000_000).size_bytes == pytest.approx(5 * plain, rel=0.1), (
        "tiny ones say little"
    )
    for _ in range(200):
        learned.learn(_examined("b", 1_000_000), "b", Weight(plain, plain, 0.1), measured=True)
    assert learned.predicted(SKLEARN, 1_000_000).size_bytes == pytest.approx(plain, rel=0.1), "the past fades"
    assert learned.predicted(ONNX, 1000).size_bytes == Sizes().predicted(ONNX, 1000).size_bytes, (
        "formats apart"
    )


def test_one_monster_does_not_make_all_others_impossible() -> None:
    learned = Sizes()
    plain = learned.predicted(SKLEARN, 1000).size_bytes
    learned.learn(_examined("a", 1000), "a", Weight(10**12, 10**12, 0.1), measured=True)
    assert learned.predicted(SKLEARN, 1000).size_bytes <= sizes.FACTOR_MAX * plain


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "CONTENTS_MAX", 3)
    learned = Sizes()
    for number in range(5):
        learned.learn(_examined(str(number)), str(number), Weight(1, 1, 0.1), measured=True)
    assert [learned.measured(str(number)) is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
