"""Calls to an etcd of several endpoints: each with a deadline, on a connection that stands, with a token that is valid.

All endpoints are kept connected while one is sought; calls go to the same one until it fails. A read that fails is sent to the
next endpoint; a write only when the first has certainly not applied it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
from grpc import ChannelConnectivity, StatusCode

from modelmesh.errors import SettingsError, StoreUnavailable
from modelmesh.store.etcd_connection import EtcdConnection
from modelmesh.store.etcd_errors import (
    RIGHTS,
    is_passing,
    is_refused,
    is_stale_token,
    text_of,
    translated,
    was_not_applied,
)
from modelmesh.wire.generated import etcd_pb2 as pb

Q = TypeVar("Q")
A = TypeVar("A")
log = logging.getLogger(__name__)

CALL_S: Final = 6.0
ATTEMPT_S: Final = 3.0
"""About the predecessor's. etcd itself waits 6 s for a write that its leader took to the grave."""
CALLS_MAX: Final = 256
"""Calls under way; more wait for their turn."""
WAITING_MAX: Final = 10_000
LOOK_EVERY_S: Final = 0.02
"""How often a connection is looked for while there is none."""
OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 10_000),  # etcd allows one ping in 5 s
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Q, A]):
    """A method of etcd. `writes`: a repetition may apply it twice. `streams`: in both directions."""

    path: str
    request: type[Q]
    answer: type[A]
    writes: bool = False
    streams: bool = False


RANGE: Final = Rpc("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
READ: Final = Rpc("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)
"""A transaction that only reads."""
TXN: Final = Rpc("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse, writes=True)
WATCH: Final = Rpc("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse, streams=True)
LEASE_GRANT: Final = Rpc("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE: Final = Rpc("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
LEASE_KEEP_ALIVE: Final = Rpc(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse, streams=True
)
AUTHENTICATE: Final = Rpc("/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse)
STATUS: Final = Rpc("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse)


class Endpoint:
    """One channel, and the methods that were called on it."""

    def __init__(self, address: str, connection: EtcdConnection) -> None:
        self.address = address
        options = list(OPTIONS)
        if not connection.tls:
            self.channel = grpc.aio.insecure_channel(address, options)
        else:
            if connection.authority:
                options.append(("grpc.ssl_target_name_override", connection.authority))
            credentials = grpc.ssl_channel_credentials(
                connection.trust, connection.client_key, connection.client_certificate
            )
            self.channel = grpc.aio.secure_channel(address, credentials, options)
        self._methods: dict[str, Any] = {}

    @property
    def connected(self) -> bool:
        """Whether it can be called now; asked, an idle one connects."""
        return self.channel.get_state(try_to_connect=True) is ChannelConnectivity.READY

    def method(self, rpc: Rpc[Q, A]) -> Any:
        """Its callable."""
        if rpc.path not in self._methods:
            make = self.channel.stream_stream if rpc.streams else self.channel.unary_unary
            self._methods[rpc.path] = make(
                rpc.path,
                request_serializer=rpc.request.SerializeToString,  # type: ignore[attr-defined]
                response_deserializer=rpc.answer.FromString,  # type: ignore[attr-defined]
            )
        return self._methods[rpc.path]


class EtcdClient:
    """`open` first, `close` last. One owner, the event loop."""

    def __init__(
        self, connection: EtcdConnection, *, timeout_s: float = CALL_S, attempt_timeout_s: float = ATTEMPT_S
    ) -> None:
        """`timeout_s` bounds every call with all its attempts, `attempt_timeout_s`, at most half of it, each
        attempt."""
        self._connection = connection
        self._timeout_s = timeout_s
        self._attempt_timeout_s = min(attempt_timeout_s, timeout_s / 2)
        self._endpoints: list[Endpoint] = []
        self._first = 0
        """The endpoint that is tried first."""
        self._token = ""
        self._asks_password = bool(connection.user)
        self._authenticating = asyncio.Lock()
        self._slots = asyncio.Semaphore(CALLS_MAX)
        self._waiting = 0
        self._cluster_id = 0

    def __str__(self) -> str:
        return str(self._connection)

    async def open(self) -> None:
        """Create the channels; they connect when first used."""
        self._endpoints = [Endpoint(address, self._connection) for address in self._connection.endpoints]

    async def close(self) -> None:
        """Calls under way end with StoreUnavailable. Idempotent."""
        endpoints, self._endpoints = self._endpoints, []
        await asyncio.gather(*(endpoint.channel.close() for endpoint in endpoints))

    async def check(self, timeout_s: float) -> None:
        """Return when etcd is reached and lets us in. Raises StoreUnavailable after that time, SettingsError when it refuses us,
        each with the reason."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._authenticated(await self._connected())
        except TimeoutError:
            raise StoreUnavailable(
                f"The etcd at {self} cannot be reached: {await self._why()}. Check the endpoints given by --store."
            ) from None
        except grpc.aio.AioRpcError as error:
            raise SettingsError(
                f"The etcd at {self} cannot be used: {text_of(error)}."
                + (f" {RIGHTS}" if is_refused(error) else "")
            ) from error

    async def call(self, rpc: Rpc[Q, A], request: Q) -> A:
        """Raises what `etcd_errors.translated` makes of the last error."""
        if self._waiting >= WAITING_MAX:
            raise StoreUnavailable(f"More than {WAITING_MAX} calls wait for the etcd at {self}: try later.")
        self._waiting += 1
        last: grpc.aio.AioRpcError | None = None
        endpoint: Endpoint | None = None
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                while True:
                    endpoint = await self._connected()
                    token = self._token
                    try:
                        return self._checked(await self._attempt(endpoint, rpc, request))
                    except grpc.aio.AioRpcError as error:
                        self._judge(error, endpoint, rpc, token, last)
                        last = error
                    await asyncio.sleep(LOOK_EVERY_S)
        except asyncio.CancelledError:
            if self._endpoints or _is_cancelled():
                raise
            # Closing the channel cancelled the call, not its caller.
            raise StoreUnavailable(self._closed()) from None
        except TimeoutError:
            if endpoint is not None:
                self._avoid(endpoint)
            if last is not None:
                raise translated(last, str(self)) from last
            raise StoreUnavailable(
                f"The etcd at {self} did not answer within {self._timeout_s:g} s. Is it running, and has it a leader?"
            ) from None
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def stream(self, rpc: Rpc[Q, A]) -> AsyncIterator[tuple[Any, str]]:
        """A stream without a deadline on a connected endpoint, and the version of etcd there. The endpoint is not tried first
        any more when the block ends by an error. Raises grpc.aio.AioRpcError, and TimeoutError when none is connected in time."""
        async with asyncio.timeout(self._timeout_s):
            endpoint = await self._connected()
        token = self._token
        try:
            metadata = await self._metadata(endpoint)
            status = endpoint.method(STATUS)
            version = (
                await status(pb.StatusRequest(), timeout=self._attempt_timeout_s, metadata=metadata)
            ).version
            call = endpoint.method(rpc)(metadata=metadata)
            try:
                yield call, version
            finally:
                call.cancel()
        except Exception as error:
            if isinstance(error, grpc.aio.AioRpcError):
                self._renew_token(error, token)
            self._avoid(endpoint)
            raise

    def forget_token(self) -> None:
        """Show the password at the next call."""
        self._token = ""
        self._asks_password = bool(self._connection.user)

    def check_cluster(self, header: pb.ResponseHeader) -> None:
        """Raises StoreUnavailable when another cluster answers than before: its revisions have another meaning."""
        if self._cluster_id == 0:
            self._cluster_id = header.cluster_id
        elif header.cluster_id not in (0, self._cluster_id):
            raise StoreUnavailable(
                f"The etcd at {self} is another cluster than before (restored from a backup, or set up anew?). What is loaded is "
                "served on; restart this instance to follow the registry there."
            )

    def _checked(self, answer: A) -> A:
        self.check_cluster(answer.header)  # type: ignore[attr-defined]
        return answer

    def _judge(
        self,
        error: grpc.aio.AioRpcError,
        endpoint: Endpoint,
        rpc: Rpc[Any, Any],
        token: str,
        last: grpc.aio.AioRpcError | None,
    ) -> None:
        """Return when the call may be tried again; raise otherwise. `last` is the error of the attempt before."""
        if (
            is_stale_token(error)
            and self._connection.user
            and not (last is not None and is_stale_token(last))
        ):
            self._renew_token(error, token)
            return
        self._avoid(endpoint)
        if not (is_passing(error) and (not rpc.writes or was_not_applied(error))):
            raise translated(error, str(self)) from error

    def _renew_token(self, error: grpc.aio.AioRpcError, token: str) -> None:
        if is_stale_token(error) and self._token == token:
            self.forget_token()

    def _avoid(self, endpoint: Endpoint) -> None:
        if self._endpoints and self._endpoints[self._first] is endpoint:
            self._first = (self._first + 1) % len(self._endpoints)

    async def _attempt(self, endpoint: Endpoint, rpc: Rpc[Q, A], request: Q) -> A:
        timeout_s = self._attempt_timeout_s
        method, metadata = endpoint.method(rpc), await self._metadata(endpoint)
        if not rpc.streams:
            answer: A = await method(request, timeout=timeout_s, metadata=metadata)
            return answer
        call = method(timeout=timeout_s, metadata=metadata)
        try:
            await call.write(request)
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise grpc.aio.AioRpcError(
                    await call.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), details=await call.details()
                )
            return answer
        finally:
            call.cancel()

    async def _connected(self) -> Endpoint:
        """The first endpoint that is connected, beginning with the one in use. Waits without end: callers have deadlines."""
        while True:
            if not self._endpoints:
                raise StoreUnavailable(self._closed())
            ordered = self._endpoints[self._first :] + self._endpoints[: self._first]
            for endpoint in ordered:
                if endpoint.connected:
                    self._first = self._endpoints.index(endpoint)
                    return endpoint
            await asyncio.sleep(LOOK_EVERY_S)

    async def _metadata(self, endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
        token = await self._authenticated(endpoint)
        # Rather an error than waiting on a member that has lost its leader.
        return (("hasleader", "true"), ("token", token)) if token else (("hasleader", "true"),)

    async def _authenticated(self, endpoint: Endpoint) -> str:
        """The token, fetched when there is none; empty when none is needed. Raises grpc.aio.AioRpcError."""
        if self._asks_password and not self._token:
            async with self._authenticating:
                if not self._token:
                    await self._authenticate(endpoint)
        return self._token

    async def _authenticate(self, endpoint: Endpoint) -> None:
        request = pb.AuthenticateRequest(name=self._connection.user, password=self._connection.password)
        try:
            answer = await endpoint.method(AUTHENTICATE)(request, timeout=self._attempt_timeout_s)
            self._token = answer.token
        except grpc.aio.AioRpcError as error:
            if error.code() is not StatusCode.FAILED_PRECONDITION:
                raise
            log.warning("The etcd at %s asks for no password; the userid given is not used.", self)
            self._asks_password = False

    def _closed(self) -> str:
        return f"The connection to the etcd at {self} is closed."

    async def _why(self) -> str:
        """What the last endpoint tried says about not being connected."""
        try:
            await self._endpoints[self._first].method(STATUS)(pb.StatusRequest(), timeout=1.0)
        except grpc.aio.AioRpcError as error:
            return text_of(error)
        return "it answered too late"


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
