"""What a registry of the predecessor holds, told."""

from __future__ import annotations

import json
from dataclasses import dataclass

from modelmesh.registry.survey import survey


@dataclass
class Stored:
    key: str
    value: bytes


def stored(**records: object) -> list[Stored]:
    return [
        Stored(
            key.replace("__", "/"), value.encode() if isinstance(value, str) else json.dumps(value).encode()
        )
        for key, value in sorted(records.items())
    ]


def refusal(path: str) -> str:
    return "" if path.startswith("/m") else f"{path} is elsewhere."


def test_everything_is_counted_and_named() -> None:
    found = survey(
        stored(
            registry__a={
                "type": "sklearn", "mPath": "/m/a", "instanceIds": {"i": 1, "j": 2}, "failedIn": {"k": 3}
            },
            registry__b={"mPath": "s3://b", "fails": {}},
            registry__broken="{",
            vmodels__settled={"amid": "a", "tmid": "a"},
            vmodels__moving={"amid": "a", "tmid": "b"},
            vmodels__lost={"amid": "gone", "tmid": "gone"},
            vmodels__empty={},
            instances__i={"count": 1},
            config__disable="false",
            leaderLatch___i="_i",
        ),
        refusal,
    )  # fmt: skip
    assert found.types == {"sklearn": 1, "NLCLASSIFIER": 1}
    assert (found.n_models, found.n_vmodels) == (2, 3)
    assert (found.n_claims, found.n_failures) == (2, 1)
    assert found.refused == {"b": "s3://b is elsewhere."}
    assert found.moving == ["moving"]
    assert found.dangling == {"lost": "gone"}
    assert found.unreadable.keys() == {"registry/broken", "vmodels/empty"}
    assert (found.instances, found.config) == (["i"], {"disable": "false"})


def test_nothing_is_there() -> None:
    found = survey([], refusal)
    assert (found.n_models, found.n_vmodels, found.unreadable) == (0, 0, {})
