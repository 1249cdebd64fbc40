"""When a batch counts as one that does not end."""

from __future__ import annotations

from modelmesh.dataplane.executing import Execution
from modelmesh.runtime.stuck import GRACE_S, StuckBatches

SLOW = (1, Execution(7, "slow"))


def test_the_same_batch_for_too_long() -> None:
    stuck = StuckBatches(60.0)
    assert stuck.overdue([SLOW], 100.0) == set()
    assert stuck.overdue([SLOW], 159.0 + GRACE_S) == set()
    assert stuck.overdue([SLOW, (1, Execution(8, "quick"))], 160.0 + GRACE_S) == {SLOW}


def test_many_batches_of_a_busy_model_are_not_one() -> None:
    stuck = StuckBatches(10.0)
    for second in range(100):
        assert stuck.overdue([(1, Execution(second // 9, "busy"))], float(second)) == set()


def test_a_batch_of_the_same_number_in_another_worker_is_another() -> None:
    stuck = StuckBatches(10.0)
    assert stuck.overdue([SLOW], 0.0) == set()
    assert stuck.overdue([(2, SLOW[1])], 20.0) == set()
