"""Threads that take payloads from the data plane and hand them to the processors.

They wait in the data plane, not on the event loop; while all of them are busy its queue fills, and what does not fit is
dropped there. So a slow or dead processor costs payloads, never requests.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from modelmesh.dataplane.protocol import DataPlane, Payload
from modelmesh.payloads.addresses import Address

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("modelmesh.payloads")

HELD_BYTES_MAX: Final = 64 << 20
"""Bodies that the data plane holds for processors, of running calls and queued payloads together."""
_TAKE_MS: Final = 250
_SEND_TIMEOUT_S: Final = 10.0
_WARN_EVERY_S: Final = 60.0
DRAIN_S: Final = 5.0
"""How long a stop may spend on what is queued."""


class Consumers:
    """Begun by `start`, ended by `stop`, once each. `n` threads; `queue_max` payloads may wait."""

    def __init__(
        self,
        dataplane: DataPlane,
        addresses: Sequence[Address],
        *,
        n: int,
        queue_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dataplane, self._addresses, self._clock = dataplane, tuple(addresses), clock
        self._ends_s: float | None = None
        """When a stop gives up what is queued; None: not stopping."""
        self._warned_s, self._warned_dropped = float("-inf"), 0
        self._warning = threading.Lock()
        self._queue_max = queue_max
        self._threads = [
            threading.Thread(target=self._run, name=f"payloads-{at}", daemon=True) for at in range(n)
        ]

    def start(self) -> None:
        """Offers begin."""
        filters = [(address.model, address.method) for address in self._addresses]
        self._dataplane.set_payload_filters(filters, self._queue_max, HELD_BYTES_MAX)
        for thread in self._threads:
            thread.start()

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Take nothing new; return when what is queued was handed on, or after `drain_s` and what one sending may last."""
        self._dataplane.set_payload_filters([], 0, 0)
        self._ends_s = self._clock() + drain_s
        for thread in self._threads:
            thread.join(max(0.0, self._ends_s - self._clock()) + 1.0)
        left = [thread.name for thread in self._threads if thread.is_alive()]
        if left:
            _log.warning("A payload processor does not answer; what was queued for it is given up.")

    def _run(self) -> None:
        senders = [_sender(address) for address in self._addresses]
        try:
            while True:
                payload = self._dataplane.take_payload(_TAKE_MS)
                self._warn_of_drops()
                if self._ends_s is not None and (payload is None or self._clock() > self._ends_s):
                    return
                if payload is not None:
                    self._hand_on(payload, senders)
        finally:
            for sender in senders:
                sender.close()

    def _hand_on(self, payload: Payload, senders: Sequence[_Sender]) -> None:
        for address, sender in zip(self._addresses, senders, strict=True):
            if address.wants(payload):
                try:
                    sender.send(payload)
                except Exception:
                    _log.exception("A payload could not be handed to %s.", address.url or address.scheme)

    def _warn_of_drops(self) -> None:
        """Once a minute at most, with how many there were since the last time."""
        if self._clock() - self._warned_s < _WARN_EVERY_S or not self._warning.acquire(blocking=False):
            return
        try:
            dropped = self._dataplane.stats().counters.get("payloads_dropped", 0)
            if dropped > self._warned_dropped:
                _log.warning(
                    "%d payloads were dropped, since the payload processors are too slow or away; allow more of them to "
                    "wait (payload_queue), or more consumers (payload_consumers).",
                    dropped - self._warned_dropped,
                )
                self._warned_s, self._warned_dropped = self._clock(), dropped
        finally:
            self._warning.release()


class _Logger:
    def send(self, payload: Payload) -> None:
        _log.info(
            "%s of %s for model %s: %s, %d bytes.",
            payload.kind.capitalize(),
            payload.method,
            payload.model,
            payload.status or "sent",
            len(payload.data),
        )

    def close(self) -> None:
        pass


class _Poster:
    """Posts to one URL over connections of its own. The client is imported here: `serve` without processors has none."""

    def __init__(self, url: str) -> None:
        import httpx

        self._url = url
        self._http: httpx.Client = httpx.Client(timeout=_SEND_TIMEOUT_S)
        self._refused: type[Exception] = httpx.HTTPError

    def send(self, payload: Payload) -> None:
        try:
            answer = self._http.post(
                self._url, content=as_json(payload), headers={"Content-Type": "application/json"}
            )
        except self._refused as error:
            _log.warning("The payload processor %s did not take a payload: %r.", self._url, error)
            return
        if answer.status_code != 200:
            _log.warning("The payload processor %s answered %d.", self._url, answer.status_code)

    def close(self) -> None:
        self._http.close()


_Sender = _Logger | _Poster


def _sender(address: Address) -> _Sender:
    return _Logger() if address.scheme == "logger" else _Poster(address.url)


def as_json(payload: Payload) -> bytes:
    """What a processor is sent, in the predecessor's form (reference mesh.md 10.1)."""
    return json.dumps(
        {
            "id": payload.id,
            "modelid": payload.model,
            "vModelId": payload.vmodel,
            "method": payload.method,
            "data": base64.b64encode(payload.data).decode(),
            "kind": payload.kind,
            "status": payload.status,
            "metadata": payload.metadata,
        }
    ).encode()
