"""Models that kill their worker: after the first time they run alone, after the second they are kept away for a while."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelmesh.errors import Quarantined

BACK_OFF_S: Final = 60.0
BACK_OFF_S_MAX: Final = 3600.0
FORGET_S: Final = 3600.0
"""A strike without another one for this long is forgotten."""
RECORDS_MAX: Final = 10_000


@dataclass(slots=True)
class _Record:
    strikes: int
    reason: str
    at_s: float
    quarantines: int = 0
    until_s: float = 0.0


class Quarantine:
    """Strikes by model. Times are monotonic seconds, passed in."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def strike(self, model: str, reason: str, now_s: float, *, alone: bool) -> bool:
        """A worker died of this model. `alone`: it had a worker to itself, so nothing else can be to blame. Returns
        whether it is quarantined now."""
        record = self._standing_record(model, now_s)
        if record is None:
            record = _Record(0, reason, now_s)
        record.strikes, record.reason, record.at_s = record.strikes + 1, reason, now_s
        self._records.pop(model, None)
        self._records[model] = record
        while len(self._records) > RECORDS_MAX:
            self._records.pop(next(iter(self._records)))
        if record.strikes < 2 or not alone:
            return False
        record.until_s = now_s + min(BACK_OFF_S * 2**record.quarantines, BACK_OFF_S_MAX)
        record.quarantines += 1
        return True

    def runs_alone(self, model: str, now_s: float) -> bool:
        """Whether the model must have a worker to itself."""
        return self._standing_record(model, now_s) is not None

    def check(self, model: str, now_s: float) -> None:
        """Raises Quarantined while the model is kept away."""
        record = self._standing_record(model, now_s)
        if record is not None and record.until_s > now_s:
            left_s = record.until_s - now_s
            raise Quarantined(
                f"Model {model} is quarantined for another {left_s:.0f} s: it killed its worker "
                f"{record.strikes} times, last because {record.reason}. Replace the model, or look at its code.",
                model=model,
                retry_after_s=left_s,
            )

    def _standing_record(self, model: str, now_s: float) -> _Record | None:
        record = self._records.get(model)
        if record is not None and now_s - max(record.at_s, record.until_s) > FORGET_S:
            del self._records[model]
            return None
        return record
