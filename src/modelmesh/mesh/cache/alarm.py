"""Saying that the working set does not fit, once when it begins, and for as long as it lasts."""

from __future__ import annotations

from collections.abc import Iterable

from modelmesh.journal import Did, Journal
from modelmesh.mesh.cache.refusals import thrashing_sentence
from modelmesh.mesh.cache.site import Site


class Alarm:
    """Looks at what the sites' loads brought back."""

    def __init__(self, sites: Iterable[Site], journal: Journal) -> None:
        self._sites = sites
        self._journal = journal
        self.sentence = ""
        """What is wrong now; empty when nothing is."""

    def look(self, now_s: float) -> None:
        """Each tick."""
        said: list[str] = []
        for site in self._sites:
            seen = site.budget.thrash.judge(now_s)
            if seen is None:
                continue
            said.append(thrashing_sentence(seen))
            if not self.sentence:
                self._journal.record(
                    Did.WARNED,
                    "",
                    said[-1],
                    loads=seen.loads,
                    returns=seen.returns,
                    lacking_bytes=seen.lacking_bytes,
                    runtime=site.offer.name,
                )
        self.sentence = " ".join(said)
