"""A lease in etcd, kept alive until it is closed."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Final

from modelmesh.errors import LeaseLost, StoreUnavailable
from modelmesh.store.etcd_client import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, EtcdClient
from modelmesh.wire.generated import etcd_pb2 as pb

log = logging.getLogger(__name__)

_RENEWALS: Final = 4
"""Renewals within a lifetime: it survives the failure of all but one."""


class EtcdLease:
    """`lost` turns True when etcd says that it has run out. While etcd cannot be reached that is unknown: there, leases do not
    run out without a leader, and a new leader lets all of them begin anew."""

    def __init__(self, client: EtcdClient, lease_id: int, ttl_s: float) -> None:
        self._client = client
        self._id = lease_id
        self._closed = False
        self._lost = asyncio.Event()
        self._renewing = asyncio.create_task(self._renew(ttl_s / _RENEWALS), name=f"lease-{lease_id:x}")

    @classmethod
    async def grant(cls, client: EtcdClient, ttl_s: float) -> EtcdLease:
        """Raises StoreUnavailable. A grant that was answered too late runs out by itself."""
        granted = await client.call(LEASE_GRANT, pb.LeaseGrantRequest(TTL=math.ceil(ttl_s)))
        return cls(client, granted.ID, granted.TTL)

    @property
    def id(self) -> int:
        return self._id

    @property
    def ended(self) -> bool:
        """Closed, or lost."""
        return self._closed or self.lost

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        if self.ended:
            return
        self._closed = True
        self._renewing.cancel()
        await asyncio.wait({self._renewing})
        try:
            await self._client.call(LEASE_REVOKE, pb.LeaseRevokeRequest(ID=self._id))
        except LeaseLost:
            pass  # it had run out already
        except StoreUnavailable as error:
            log.warning("A lease could not be ended, so its keys vanish when it runs out: %s", error)

    async def _renew(self, every_s: float) -> None:
        failing = False
        while True:
            await asyncio.sleep(every_s)
            try:
                answer = await self._client.call(LEASE_KEEP_ALIVE, pb.LeaseKeepAliveRequest(ID=self._id))
            except LeaseLost:
                self._lost.set()
                return
            except StoreUnavailable as error:
                if not failing:
                    log.warning("A lease is not renewed until etcd answers: %s", error)
                failing = True
                continue
            failing = False
            if answer.TTL <= 0:
                self._lost.set()
                return
