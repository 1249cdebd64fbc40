"""Who is a member: the leased records under `members/` in the store, watched."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from modelmesh.errors import InvalidInput
from modelmesh.peers.protocol import Member
from modelmesh.store.followed import Followed
from modelmesh.store.protocol import Store

MEMBERS: Final = "members/"
"""What follows in a key is the instance's id."""

log = logging.getLogger(__name__)


def encode(member: Member) -> bytes:
    """The record of a member. Fields that say nothing are left out."""
    value: dict[str, Any] = {"epoch": member.epoch, "address": member.address}
    texts = {name: str(getattr(member, name)) for name in ("zone", "host", "version", "revision", "folder")}
    lists = {"labels": sorted(member.labels), "types": sorted(member.model_types)}
    numbers = {"capacityBytes": member.capacity_bytes, "started": member.started_wall_ms}
    value |= {name: content for name, content in (texts | lists | numbers).items() if content}
    return json.dumps(value, separators=(",", ":")).encode()


def decode(id: str, raw: bytes) -> Member:
    """Raises InvalidInput for what is no record; fields that are not known are ignored."""
    try:
        value = json.loads(raw)
        return Member(
            id=id,
            epoch=int(value["epoch"]),
            address=str(value["address"]),
            zone=str(value.get("zone", "")),
            host=str(value.get("host", "")),
            labels=frozenset(map(str, value.get("labels", ()))),
            model_types=frozenset(map(str, value.get("types", ()))),
            version=str(value.get("version", "")),
            revision=str(value.get("revision", "")),
            capacity_bytes=int(value.get("capacityBytes", 0)),
            started_wall_ms=int(value.get("started", 0)),
            folder=str(value.get("folder", "")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(
            f"The record of the instance {id} in the store cannot be read: {error!r}."
        ) from error


class Members:
    """Follows the records from `read` on. `on_change(id, member)` is told of each that is new or other, with None of each that is
    gone. While the store is away all stay as they were."""

    def __init__(
        self, store: Store, on_change: Callable[[str, Member | None], None], prefix: str = ""
    ) -> None:
        self._on_change = on_change
        self._followed = Followed(store, prefix + MEMBERS, "Members", self._take)
        self._known: dict[str, Member] = {}

    def key(self, id: str) -> str:
        """Where the record of an instance is."""
        return self._followed.key(id)

    @property
    def known(self) -> Mapping[str, Member]:
        """By id, this instance among them."""
        return self._known

    async def read(self) -> None:
        """Look at all of them. Raises StoreUnavailable."""
        await self._followed.read()

    async def follow(self) -> None:
        """Watch for ever."""
        await self._followed.follow()

    def _take(self, changed: Mapping[str, bytes | None]) -> None:
        for id, value in changed.items():
            try:
                member = None if value is None else decode(id, value)
            except InvalidInput as error:
                log.warning("%s It is not asked for anything.", error)
                member = None
            if member == self._known.get(id):
                continue
            if member is None:
                del self._known[id]
            else:
                self._known[id] = member
            self._on_change(id, member)
