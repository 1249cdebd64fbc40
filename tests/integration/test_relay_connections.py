"""Clients that break rules, and the relay's own start and end."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from relay_face import METHOD, Context, Face, relay_face, run

from modelmesh.dataplane.protocol import DataPlaneConfig, Fault, Replica
from modelmesh.dataplane.relay import Relay
from modelmesh.errors import SettingsError

Code = grpc.StatusCode
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 2, 3, 4, 6, 9


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def field(name: str, value: str) -> bytes:
    """A literal header field without indexing (RFC 7541, 6.2.2), lengths below 127."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def request_headers(
    path: str = METHOD, method: str = "POST", content_type: str = "application/grpc"
) -> bytes:
    pairs = ((":method", method), (":scheme", "http"), (":path", path), (":authority", "x"))
    more = (("content-type", content_type), ("te", "trailers"), ("mm-model-id", "iris"))
    return b"".join(field(name, value) for name, value in (*pairs, *more))


async def talk(face: Face, data: bytes, *, until_closed: bool = True) -> bytes:
    """Send bytes as they are, read until the relay closes or (not `until_closed`) the answer is complete."""
    host, _, port = face.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    received = b""
    try:
        writer.write(data)
        async with asyncio.timeout(15):
            while chunk := await reader.read(65536):
                received += chunk
                if not until_closed and any(kind == HEADERS for kind, _, _ in frames(received)):
                    break
    except (ConnectionResetError, BrokenPipeError):
        pass
    finally:
        writer.transport.abort()
    return received


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """(kind, flags, payload) of the whole frames in it."""
    found = []
    while len(data) >= 9:
        length = int.from_bytes(data[:3], "big")
        if len(data) < 9 + length:
            break
        found.append((data[3], data[4], data[9 : 9 + length]))
        data = data[9 + length :]
    return found


START = PREFACE + frame(SETTINGS)
OPEN = frame(HEADERS, 0x4, 1, request_headers())

BROKEN: dict[str, bytes] = {
    "http/1": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "garbage": random.Random(1).randbytes(5000),
    "headers that are none": START + frame(HEADERS, 0x5, 1, b"\xff\xff\xff\xff"),
    "data on no stream": START + frame(DATA, 0, 0, b"x"),
    "a frame beyond the size": START + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "settings of odd length": START + frame(SETTINGS, 0, 0, b"12345"),
    "continuation of nothing": START + frame(CONTINUATION, 4, 1, b""),
    "pings without end": START + frame(PING, 0, 0, b"12345678") * 50_000,
    "settings without end": START + frame(SETTINGS) * 50_000,
    "opening and resetting": START
    + b"".join(
        frame(HEADERS, 0x5, n, request_headers()) + frame(RST_STREAM, 0, n, b"\x00\x00\x00\x08")
        for n in range(1, 40_001, 2)
    ),
    "empty data without end": START + OPEN + frame(DATA, 0, 1) * 50_000,
    "headers without end": START
    + frame(HEADERS, 0, 1, request_headers())
    + frame(CONTINUATION, 0, 1, field("x", "y" * 100) * 100) * 200,
}

FLOODS = {"pings without end", "settings without end", "opening and resetting", "empty data without end"}


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_broken_client_is_cut_off_and_disturbs_nobody(tmp_path: Path, broken: str) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, threads=1) as face:
            face.serve("iris", Replica(1, 1))
            stop = asyncio.Event()
            codes: list[grpc.StatusCode] = []

            async def work() -> None:
                while not stop.is_set() or len(codes) < 20:
                    codes.append((await face.ask()).code)

            working = asyncio.ensure_future(work())
            await talk(face, BROKEN[broken])
            stop.set()
            await working
            assert set(codes) == {Code.OK}
            await face.until(lambda: face.plane.stats().connections == 1, "the broken one is closed")
            await face.until(lambda: face.plane.stats().in_flight == 0)
            counters = face.plane.stats().counters
            if broken in FLOODS:
                assert counters["floods"] + counters["malformed"] >= 1

    run(test())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\x00\x00\x00\x00\x05abc", Code.INVALID_ARGUMENT),
        (b"\x02\x00\x00\x00\x01a", Code.INVALID_ARGUMENT),
        (b"\x00\xff\xff\xff\xff", Code.RESOURCE_EXHAUSTED),
        (b"\x00\x00", Code.INVALID_ARGUMENT),
    ],
)
def test_broken_messages_are_refused(tmp_path: Path, body: bytes, code: grpc.StatusCode) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            face.serve("iris", Replica(1, 1))
            received = await talk(face, START + OPEN + frame(DATA, 1, 1, body), until_closed=False)
            heads = [payload for kind, _, payload in frames(received) if kind == HEADERS]
            assert heads, received
            async with asyncio.timeout(15):
                await face.until(lambda: face.plane.stats().in_flight == 0)
            row = next(r for r in face.plane.histograms() if r.metric == "modelmesh_api_request_milliseconds")
            assert row.code == code.value[0]

    run(test())


@pytest.mark.parametrize(
    ("method", "content_type", "status"),
    [("GET", "application/grpc", b"405"), ("POST", "application/json", b"415")],
)
def test_what_is_no_grpc_is_told_so_in_http(
    tmp_path: Path, method: str, content_type: str, status: bytes
) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            head = frame(HEADERS, 0x5, 1, request_headers(method=method, content_type=content_type))
            received = await talk(face, START + head, until_closed=False)
            (payload,) = [payload for kind, _, payload in frames(received) if kind == HEADERS]
            # A status without an entry of its own in HPACK's table is a literal, perhaps Huffman-coded.
            huffman = {b"405": b"\x68\x0d\xbf", b"415": b"\x68\x2d\xbf"}
            assert status in payload or huffman[status][:2] in payload

    run(test())


def test_draining_finishes_what_is_in_flight(tmp_path: Path) -> None:
    async def test() -> None:
        finish = asyncio.Event()

        async def serve(request: bytes, context: Context) -> bytes:
            await finish.wait()
            return request

        async with relay_face(tmp_path) as face:
            face.upstreams[0].serve = serve
            face.serve("iris", Replica(1, 1))
            asked = face.ask()
            parked = face.ask("cold")
            await face.until(lambda: face.upstreams[0].running == 1)
            await face.event(Fault)
            face.plane.drain(20_000)
            host, _, port = face.address.rpartition(":")

            async with asyncio.timeout(15):
                with pytest.raises(OSError):
                    while True:
                        _, writer = await asyncio.open_connection(host, int(port))
                        writer.close()
                        await asyncio.sleep(0.01)
            assert face.plane.stats().in_flight == 2
            finish.set()
            assert (await asked).code == Code.OK
            face.serve("cold", Replica(2, 1))
            assert (await parked).code == Code.OK
            await face.until(lambda: face.plane.stats().connections == 0)

    run(test())


def test_draining_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with relay_face(tmp_path) as face:
            asked = face.ask("cold")
            await face.event(Fault)
            face.plane.drain(200)
            await face.until(lambda: face.plane.stats().connections == 0)
            assert (await asked).code in (Code.UNAVAILABLE, Code.CANCELLED)

    run(test())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_taken_port_is_named(tmp_path: Path, threads: int) -> None:
    async def test() -> None:
        async with relay_face(tmp_path, threads=threads) as face:
            port = int(face.address.rpartition(":")[2])
            second = Relay(DataPlaneConfig(control_socket="", grpc_port=port, rest_port=-1, threads=threads))
            with pytest.raises(SettingsError, match=f"port {port} on 127.0.0.1 is taken"):
                second.start()
            second.stop()
            assert (await face.ask("x", method="/mmesh.ModelMesh/x")).code == Code.OK

    run(test())


@pytest.mark.parametrize(
    ("settings", "says"), [({"grpc_port": 70_000}, "65535"), ({"host": "256.1.1.1"}, "256.1.1.1")]
)
def test_impossible_settings_are_named(settings: dict[str, object], says: str) -> None:
    config: Callable[..., DataPlaneConfig] = DataPlaneConfig
    with pytest.raises(SettingsError, match=says):
        Relay(config(control_socket="", **{"grpc_port": 0, **settings})).start()


def test_stopping_twice_and_starting_again(tmp_path: Path) -> None:
    plane = Relay(DataPlaneConfig(control_socket="", grpc_port=0, rest_port=0))
    addresses = plane.start()
    assert addresses.grpc and addresses.rest
    plane.stop()
    plane.stop()
    with pytest.raises(SettingsError):
        plane.start()


def test_a_forked_child_is_refused(tmp_path: Path) -> None:
    plane = Relay(DataPlaneConfig(control_socket="", grpc_port=0, rest_port=-1))
    plane.start()
    child = os.fork()
    if child == 0:
        try:
            plane.stats()
        except RuntimeError as error:
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    plane.stop()
