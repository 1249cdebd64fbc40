"""What instances tell each other survives the wire."""

from __future__ import annotations

from modelmesh.errors import Code
from modelmesh.peers.messages import from_ask, from_update, to_ask, to_update
from modelmesh.peers.protocol import Ask, Failed, Held, Load, Tally, Update
from modelmesh.policy.urgency import Why


def test_updates() -> None:
    load = Load(
        100, -5, 0.25, 1.5, 0.5, 2.0, True, True,
        tallies=(Tally("v", 1_717_000_000_123, 4600, 3, 5_520, 240, 12, 312), Tally("w", 7, 0, 0, 0, 0, 0, 0)),
    )  # fmt: skip
    update = Update(
        3, 9, True, False, (Held("m", True, False, 10, 20, 0.5, 30),),
        (Failed("n", Code.NOT_FOUND, "gone", True, 500),), load,
    )  # fmt: skip
    assert from_update(to_update(update)) == update
    assert from_update(to_update(Update(3, 10))) == Update(3, 10)


def test_asks() -> None:
    ask = Ask("m", 4.0, Why.ASKED, "why", 0.5, 30, ("a", "b"), 2, until_used=True, suspicion=True)
    assert from_ask(to_ask("me", ask), 4.0) == ask
