"""Registry records and their codec: the predecessor's JSON (reference mesh.md 2.3, 2.5) plus our learned facts and
how the model is kept.

Unknown fields are kept and written back, so that a newer or older program sharing the store loses nothing. `instanceIds` and
`failedIn` of the predecessor are ignored and left as they are.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Final, Self

from modelmesh.errors import InvalidInput
from modelmesh.registry.keep import NO_KEEP, Keep, stored

REGISTRY = "registry/"
VMODELS = "vmodels/"
"""What follows these prefixes in a key is the id, '/' included; ids are never encoded."""


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def _dump(value: dict[str, Any]) -> bytes:
    return _ENCODER.encode(value).encode()


# Nearly all records are plain: printable ASCII without escapes, in our own order of fields. Recognising those by a pattern is
# several times faster than parsing, which matters when 100,000 are mirrored at a start.
_TEXT: Final = rb'"[ !#-\[\]-~]*"'
_COUNT: Final = rb"(?:0|[1-9][0-9]{0,17})"
_FACTOR: Final = rb"(?:0|[1-9][0-9]{0,2})(?:\.[0-9]{1,6})?"
_PLAIN_MODEL: Final = re.compile(
    rb'\{"type":%b(?:,"(?:mPath|content)":%b|,"(?:refs|lu|sizeBytes|loadMs|minCopies|maxCopies)":%b|,"(?:autoDel|pin)":true'
    rb'|,"priority":%b)*\}' % (_TEXT, _TEXT, _COUNT, _FACTOR)
)
_PLAIN_VMODEL: Final = re.compile(
    rb'\{"amid":"([ !#-\[\]-~]+)","tmid":"([ !#-\[\]-~]+)"(?:,"o":"([ !#-\[\]-~]*)")?(,"failed":true)?\}'
)


def _parse(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode())
    except ValueError as error:
        raise InvalidInput(f"The stored {what} record is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"The stored {what} record is not a JSON object.")
    return value


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A registered model. `references` counts the vmodels that point at it; `last_used_ms` is lazy (Unix epoch)."""

    type: str
    path: str = ""
    key: str = ""
    references: int = 0
    auto_delete: bool = False
    last_used_ms: int = 0
    size_bytes: int = 0
    """Learned; 0 when unknown."""
    load_ms: int = 0
    """Learned; 0 when unknown."""
    content: str = ""
    """Fingerprint of the content the learned facts belong to; empty when unknown."""
    keep: Keep = NO_KEEP
    other: dict[str, Any] = field(default_factory=dict)

    def same_model(self, other: Self) -> bool:
        """Whether both name the same artefact (type, path, key)."""
        return (self.type, self.path, self.key) == (other.type, other.path, other.key)

    def used(self, last_used_ms: int) -> Self:
        """The record with a raised last use; never lowered."""
        return replace(self, last_used_ms=last_used_ms) if last_used_ms > self.last_used_ms else self

    def encode(self) -> bytes:
        value: dict[str, Any] = {"type": self.type}
        if self.path:
            value["mPath"] = self.path
        if self.key:
            value["encKey"] = self.key
        if self.references:
            value["refs"] = self.references
        if self.auto_delete:
            value["autoDel"] = True
        if self.last_used_ms:
            value["lu"] = self.last_used_ms
        if self.size_bytes:
            value["sizeBytes"] = self.size_bytes
        if self.load_ms:
            value["loadMs"] = self.load_ms
        if self.content:
            value["content"] = self.content
        if self.keep is not NO_KEEP:
            value |= _keep_fields(self.keep)
        return _dump(value | self.other)

    @classmethod
    def check(cls, raw: bytes) -> None:
        """Raises InvalidInput exactly when `decode` does, in less time for most records."""
        if _PLAIN_MODEL.fullmatch(raw) is None:
            cls.decode(raw)

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Raises InvalidInput when `raw` is not a record. An absent type is the predecessor's `NLCLASSIFIER`."""
        value = _parse(raw, "model")
        try:
            return cls(
                type=str(value.pop("type", "NLCLASSIFIER")),
                path=str(value.pop("mPath", "")),
                key=str(value.pop("encKey", "")),
                references=int(value.pop("refs", 0)),
                auto_delete=bool(value.pop("autoDel", False)),
                last_used_ms=int(value.pop("lu", 0)),
                size_bytes=int(value.pop("sizeBytes", 0)),
                load_ms=int(value.pop("loadMs", 0)),
                content=str(value.pop("content", "")),
                keep=stored(
                    int(value.pop("minCopies", 0)),
                    int(value.pop("maxCopies", 0)),
                    bool(value.pop("pin", False)),
                    float(value.pop("priority", 1.0)),
                ),
                other=value,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(f"The stored model record has a field of the wrong kind: {error}.") from error


def _keep_fields(keep: Keep) -> dict[str, Any]:
    """Those that are not the default."""
    fields = {
        "minCopies": keep.min_copies,
        "maxCopies": keep.max_copies,
        "pin": keep.pin,
        "priority": round(keep.priority, 4),
    }
    return {name: value for name, value in fields.items() if value != (1.0 if name == "priority" else 0)}


@dataclass(frozen=True, slots=True)
class Canary:
    """The target of a vmodel is tried out on a share of its requests first."""

    share: float
    """Above 0, at most 1."""
    for_ms: int
    """How long, at least; 0: until it had its requests."""
    requests: int
    """The least it must have served."""
    slower_max: float = 0.0
    """How many times longer than the active model it may take for a request; 0: as long as it likes."""
    since_ms: int = 0
    """When its trial began (Unix epoch); 0: it has not been loaded for it yet."""

    def check(self) -> None:
        """Raises InvalidInput when it makes no sense."""
        if not 0 < self.share <= 1:
            raise InvalidInput(f"The share of a canary is above 0 and at most 1, not {self.share:g}.")
        if self.for_ms < 0 or self.requests < 0 or not (self.for_ms or self.requests):
            raise InvalidInput("A canary is tried for some time, or for some requests, or both.")
        if self.slower_max and not 1 <= self.slower_max < inf:
            raise InvalidInput(
                f"A canary may take 1 time as long as the active model or more, not {self.slower_max:g} times."
            )

    def encode(self) -> dict[str, Any]:
        value: dict[str, Any] = {"share": self.share, "forMs": self.for_ms, "requests": self.requests}
        if self.slower_max:
            value["slowerMax"] = self.slower_max
        if self.since_ms:
            value["sinceMs"] = self.since_ms
        return value

    @classmethod
    def decode(cls, value: object) -> Self | None:
        """None when it is not one of ours."""
        if not isinstance(value, dict):
            return None
        try:
            canary = cls(
                share=float(value["share"]),
                for_ms=int(value["forMs"]),
                requests=int(value["requests"]),
                slower_max=float(value.get("slowerMax", 0.0)),
                since_ms=int(value.get("sinceMs", 0)),
            )
            canary.check()
        except (InvalidInput, KeyError, TypeError, ValueError, OverflowError):
            return None
        return canary


@dataclass(frozen=True, slots=True)
class VModelRecord:
    """A stable name. `target` equals `active` when settled; the rest but the owner means something only while they differ."""

    active: str
    target: str
    owner: str = ""
    failed: bool = False
    reason: str = ""
    """Why the target failed, for whoever asks any instance; empty when it did not."""
    canary: Canary | None = None
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        return self.active == self.target

    @property
    def on_trial(self) -> bool:
        """The canary is loaded and gets its share of the requests."""
        return not self.settled and not self.failed and self.canary is not None and self.canary.since_ms > 0

    @property
    def rolled_back(self) -> bool:
        """The canary had its trial and failed: nothing is tried any more until somebody asks for it."""
        return not self.settled and self.failed and self.canary is not None and self.canary.since_ms > 0

    def encode(self) -> bytes:
        value: dict[str, Any] = {"amid": self.active, "tmid": self.target}
        if self.owner:
            value["o"] = self.owner
        if self.failed and not self.settled:
            value["failed"] = True
            if self.reason:
                value["reason"] = self.reason
        if self.canary is not None and not self.settled:
            value["canary"] = self.canary.encode()
        return _dump(value | self.other)

    @classmethod
    def check(cls, raw: bytes) -> None:
        """As `ModelRecord.check`."""
        if _PLAIN_VMODEL.fullmatch(raw) is None:
            cls.decode(raw)

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Raises InvalidInput when `raw` is not a record or names no active model."""
        if (plain := _PLAIN_VMODEL.fullmatch(raw)) is not None:
            active, target, owner, failed = plain.groups()
            return cls(active.decode(), target.decode(), (owner or b"").decode(), failed is not None)
        value = _parse(raw, "vmodel")
        canary = Canary.decode(value.get("canary"))
        if canary is not None:
            del value["canary"]
        active = str(value.pop("amid", "") or "")
        if not active:
            raise InvalidInput("The stored vmodel record names no active model.")
        return cls(
            active=active,
            target=str(value.pop("tmid", "") or active),
            owner=str(value.pop("o", "") or ""),
            failed=bool(value.pop("failed", False)),
            reason=str(value.pop("reason", "") or ""),
            canary=canary,
            other=value,
        )
