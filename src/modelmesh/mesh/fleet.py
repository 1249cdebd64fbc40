"""What is known of the other instances: who lives, what each holds, what failed there, how it is doing. Pure: fed with news.

A copy is one tuple in the table of its holder, so that 200,000 of them an instance cost little; who holds a model is asked of
each instance in turn, of which there are few. What is known can be wrong for a moment, never for long: a holder that answers *not
here* is denied until it says something newer of that model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from modelmesh.errors import LoadFailed
from modelmesh.peers.protocol import (
    Back,
    Failed,
    Gone,
    Held,
    Joined,
    Load,
    Member,
    News,
    Provided,
    Silent,
    Told,
)

DENIALS_MAX: Final = 100_000
"""Of one instance; the oldest is forgotten beyond, which costs one more answer *not here*."""


class Known(NamedTuple):
    """A copy as its holder told of it. `sequence`: of the telling."""

    sequence: int
    loaded: bool
    size_bytes: int
    load_ms: int
    rate_per_s: float
    last_used_wall_ms: int

    def rate_at(self, wall_s: float) -> float:
        """The rate as of now: what was told is not told again while the copy is not used."""
        if not self.last_used_wall_ms or not self.rate_per_s:
            return self.rate_per_s
        return min(self.rate_per_s, 1.0 / max(wall_s - self.last_used_wall_ms / 1000, 1e-6))


class FailedThere(NamedTuple):
    """A load failure of another instance, until `expires_s` (monotonic)."""

    error: LoadFailed
    told_s: float
    expires_s: float


class Peer:
    """Another instance in its present life."""

    __slots__ = ("copies", "denied", "failed", "heard", "load", "lost", "member", "silent", "silent_s")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.load: Load | None = None
        self.heard = -1
        """All that it told up to this sequence is known; -1: not all of what it holds was heard yet."""
        self.copies: dict[str, Known] = {}
        self.failed: dict[str, FailedThere] = {}
        self.denied: dict[str, int] = {}
        """Model -> the sequence up to which its word is not believed."""
        self.silent = False
        """It does not answer pings."""
        self.silent_s = 0.0
        self.lost = False
        """The data plane has no connection to it."""

    @property
    def id(self) -> str:
        return self.member.id

    def holds(self, model: str) -> bool:
        """Whether it has a loaded copy, as far as it is believed."""
        known = self.copies.get(model)
        return known is not None and known.loaded and known.sequence > self.denied.get(model, -1)

    def loads(self, model: str) -> bool:
        """Whether a load of the model runs or waits there."""
        known = self.copies.get(model)
        return known is not None and not known.loaded

    @property
    def leaves(self) -> bool:
        """Whether it is draining: what it holds is soon gone."""
        return self.load is not None and self.load.draining

    @property
    def takes_loads(self) -> bool:
        """Whether new copies may be placed there."""
        load = self.load
        return not self.lost and load is not None and not load.draining and not load.cordoned


class Fleet:
    """`apply` says which models may be served elsewhere than before. `me` is never among the peers."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._peers: dict[str, Peer] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, id: str) -> Peer | None:
        return self._peers.get(id)

    # --- news -----------------------------------------------------------------------------------------------

    def apply(self, news: News, now_s: float) -> list[str]:
        """Take one piece of news in. Returns the models whose holders may be others now."""
        match news:
            case Joined(member):
                return self._joined(member)
            case Gone(id):
                peer = self._peers.pop(id, None)
                return [] if peer is None else list(peer.copies)
            case Silent(id) | Back(id):
                peer = self._peers.get(id)
                if peer is None:
                    return []
                peer.silent, peer.silent_s = isinstance(news, Silent), now_s
                return list(peer.copies)
            case Told():
                return self._told(news, now_s)

    def _joined(self, member: Member) -> list[str]:
        if member.id == self._me:
            return []
        known = self._peers.get(member.id)
        if known is not None and known.member.epoch >= member.epoch:
            if known.member.epoch == member.epoch:
                known.member = member
            return []
        self._peers[member.id] = Peer(member)
        return [] if known is None else list(known.copies)

    def _told(self, news: Told, now_s: float) -> list[str]:
        peer, update = self._peers.get(news.id), news.update
        if peer is None or update.epoch != peer.member.epoch:
            return []
        changed: dict[str, None] = {}
        if update.begins:
            changed.update(dict.fromkeys(peer.copies))
            peer.copies.clear()
            peer.failed.clear()
            # It has said since what it holds: all of it follows.
            peer.denied = {model: at for model, at in peer.denied.items() if at >= update.sequence}
            peer.heard = -1
        for held in update.held:
            self._hold(peer, held, update.sequence)
            changed[held.model] = None
        for failed in update.failed:
            self._fail(peer, failed, now_s)
        if update.load is not None:
            peer.load = update.load
        if update.complete:
            peer.heard = update.sequence
        return list(changed)

    @staticmethod
    def _hold(peer: Peer, held: Held, sequence: int) -> None:
        known = peer.copies.get(held.model)
        if known is not None and known.sequence > sequence:
            return
        here = held.loaded or held.loading
        if (held.loaded or not here) and sequence > peer.denied.get(held.model, sequence):
            del peer.denied[held.model]
        if not here:
            peer.copies.pop(held.model, None)
            return
        peer.copies[held.model] = Known(
            sequence, held.loaded, held.size_bytes, held.load_ms, held.rate_per_s, held.last_used_wall_ms
        )

    @staticmethod
    def _fail(peer: Peer, failed: Failed, now_s: float) -> None:
        if failed.expires_in_ms <= 0:
            peer.failed.pop(failed.model, None)
            return
        error = LoadFailed(failed.message, code=failed.code, model=failed.model)
        peer.failed[failed.model] = FailedThere(error, now_s, now_s + failed.expires_in_ms / 1000)

    # --- what is found out here -----------------------------------------------------------------------------

    def provided(self, model: str, provided: Provided) -> None:
        """An instance said that a copy is loaded there: as good as told by it. What it told since counts more: the copy may be
        gone again."""
        peer = self._peers.get(provided.holder)
        if peer is None or peer.member.epoch != provided.epoch or provided.sequence <= peer.heard:
            return
        known = peer.copies.get(model)
        size_bytes, load_ms = (known.size_bytes, known.load_ms) if known is not None else (0, 0)
        self._hold(peer, Held(model, True, False, size_bytes, load_ms), provided.sequence)

    def deny(self, id: str, model: str) -> None:
        """It said *not here*: it is not believed to hold the model until it says so anew."""
        peer = self._peers.get(id)
        known = peer.copies.get(model) if peer is not None else None
        if peer is None or known is None:
            return
        peer.denied[model] = known.sequence
        if len(peer.denied) > DENIALS_MAX:
            del peer.denied[next(iter(peer.denied))]

    def reached(self, id: str, reached: bool) -> None:
        """The data plane lost its connection to an instance, or has it back."""
        peer = self._peers.get(id)
        if peer is not None:
            peer.lost = not reached

    # --- asking ---------------------------------------------------------------------------------------------

    @property
    def doubts_itself(self) -> bool:
        """More than half of the others are silent: it is more likely that this instance is cut off."""
        return 2 * sum(peer.silent for peer in self) > len(self._peers) > 1

    @property
    def whole(self) -> bool:
        """Whether all is known of those that answer, so that a copy not known is a copy not there."""
        return all(peer.heard >= 0 or peer.silent or peer.lost for peer in self)

    def answers(self, peer: Peer) -> bool:
        """Whether it may be asked for something, as far as known."""
        return not peer.lost and (not peer.silent or self.doubts_itself)

    def holders(self, model: str) -> list[Peer]:
        """Who is believed to have it loaded; those that are suspected only when there is nobody else."""
        held = [peer for peer in self if peer.holds(model)]
        if self.doubts_itself:
            return held
        return [peer for peer in held if not peer.silent] or held

    def staying(self, model: str, *, loading: bool = False) -> list[Peer]:
        """Who has it loaded (with `loading`: or loads it), answers, and does not leave."""
        return [
            peer
            for peer in self
            if not (peer.silent or peer.lost or peer.leaves)
            and (peer.holds(model) or (loading and peer.loads(model)))
        ]

    def loading(self, model: str) -> list[Peer]:
        """Who has begun to load it and answers."""
        return [peer for peer in self if peer.loads(model) and not peer.silent and not peer.lost]

    def failures(self, model: str, now_s: float) -> list[tuple[str, FailedThere]]:
        """The failures that stand, the newest first."""
        standing: list[tuple[str, FailedThere]] = []
        for peer in self:
            failed = peer.failed.get(model)
            if failed is not None and failed.expires_s > now_s:
                standing.append((peer.id, failed))
            elif failed is not None:
                del peer.failed[model]
        return sorted(standing, key=lambda pair: -pair[1].told_s)

    def facts(self, model: str) -> Known | None:
        """What the holder that knows most tells of its copy: for sizes and use."""
        known = [copy for peer in self if (copy := peer.copies.get(model)) is not None]
        return max(known, key=lambda copy: (copy.loaded, copy.last_used_wall_ms), default=None)
