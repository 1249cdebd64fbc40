"""Admission by deadline: whoever cannot be served in time is refused at once, so that the others are."""

from __future__ import annotations

from collections.abc import Mapping

from modelmesh.clock import Clock
from modelmesh.dataplane.protocol import DataPlane
from modelmesh.mesh.cache.budget import Budget
from modelmesh.mesh.cache.copies import Copies, Copy
from modelmesh.mesh.cache.loads import Loads
from modelmesh.mesh.cache.refusals import Refusals
from modelmesh.mesh.tuning import Tuning
from modelmesh.policy.urgency import ready_in_s


class Admission:
    """Of one runtime. Tells the data plane when the models requests wait for can be ready. What is not known is held against
    nobody."""

    def __init__(
        self,
        budget: Budget,
        copies: Copies,
        loads: Loads,
        dataplane: DataPlane,
        refusals: Refusals,
        clock: Clock,
        tuning: Tuning,
    ) -> None:
        self._budget = budget
        self._copies = copies
        self._loads = loads
        self._dataplane = dataplane
        self._refusals = refusals
        self._clock = clock
        self._tuning = tuning

    def announce(self, only: Mapping[str, None] | None = None) -> None:
        """For all models requests wait for, or `only` those."""
        if only is not None and self._loads.n_queued > self._tuning.announce_max:
            # The next tick tells all of them exactly; until then no more is said than that the load itself takes time.
            for model in only:
                copy = self._copies.get(model)
                if copy is not None and copy.budget is self._budget:
                    self._expect(copy, copy.load_s)
            return
        if not self._loads.slots:
            return
        running = self._loads.running()
        ordered = self._loads.ordered()
        ready_s = ready_in_s(
            [copy.load_s for copy in ordered], self._loads.slots, [one.left_s for one in running]
        )
        soon = [(one.copy, one.left_s) for one in running]
        for copy, ready_in in [*soon, *zip(ordered, ready_s, strict=True)]:
            if (only is None or copy.model in only) and copy.load_s > 0.0:
                self._expect(copy, ready_in)

    def _expect(self, copy: Copy, ready_in: float) -> None:
        want, now_s = copy.want, self._clock.monotonic_s()
        if want is None or not want.waiting or ready_in <= 0.0:
            return
        ready_s = now_s + ready_in
        want.late = want.latest_deadline_s < ready_s
        moved_s = abs(ready_s - want.announced_s) if want.announced_s else ready_in
        if (
            moved_s > max(self._tuning.announce_step_s, ready_in * self._tuning.announce_step_share)
            or want.late
        ):
            want.announced_s = ready_s
            self._dataplane.expect(copy.model, round(ready_in * 1000))
        if want.late:
            self._refusals.late(copy.model, ready_in, want.latest_deadline_s - now_s, self._loads.n_queued)
