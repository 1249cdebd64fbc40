"""The `curl` line that `serve` prints."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from modelmesh.cli.curl import Door, curl_line, example_request


def tensor(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def test_what_the_metadata_says_is_followed() -> None:
    request = example_request({"inputs": [tensor("age", "INT64", [-1, 1]), tensor("job", "BYTES", [-1])]})
    assert request == {
        "inputs": [
            {"name": "age", "shape": [1, 1], "datatype": "INT64", "data": [0]},
            {"name": "job", "shape": [1], "datatype": "BYTES", "data": [""]},
        ]
    }


def test_what_the_metadata_leaves_open_is_chosen() -> None:
    assert example_request({"inputs": [tensor("", "", [-1, 3])]}) == {
        "inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP64", "data": [0, 0, 0]}]
    }


@pytest.mark.parametrize(
    "metadata", [{}, {"inputs": []}, {"inputs": [tensor("pixels", "FP32", [-1, 3, 224, 224])]}]
)
def test_long_or_unknown_requests_are_not_made_up(metadata: dict[str, Any]) -> None:
    assert example_request(metadata) is None


def answering(handle: Callable[[str], bytes], names: list[str]) -> str:
    """The line made against a REST port that answers each path with these bytes."""

    async def run() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(handle(head.split()[1].decode()))
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.wait_for(curl_line(Door(f"http://127.0.0.1:{port}"), names), 10)

    return asyncio.run(run())


def ok(value: object) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + json.dumps(value).encode()


def test_the_first_model_that_works_is_taken_and_the_line_can_be_pasted() -> None:
    metadata = {"inputs": [tensor("it's", "FP32", [-1, 2])]}

    def handle(path: str) -> bytes:
        return ok(metadata) if path.endswith("team%2Fm") else b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}"

    line = answering(handle, ["broken", "team/m", "never asked"])
    command, url, flag, body = shlex.split(line)
    assert (command, flag) == ("curl", "-d")
    assert url.endswith("/v2/models/team%2Fm/infer")
    assert json.loads(body)["inputs"][0]["name"] == "it's"


def test_a_model_that_does_not_say_what_it_takes_is_asked_for_its_metadata() -> None:
    assert answering(lambda path: ok({"inputs": []}), ["m"]).endswith("/v2/models/m")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n[]", b"HTTP/1.1 200 OK\r\n\r\n{", b"no HTTP\r\n\r\n"]
)
def test_where_no_model_works_the_line_still_does(answer: bytes) -> None:
    assert answering(lambda path: answer, ["a", "b"]).endswith("/v2")


def test_a_port_that_is_gone() -> None:
    assert asyncio.run(curl_line(Door("http://127.0.0.1:1"), ["a"])) == "curl http://127.0.0.1:1/v2"


def test_who_has_to_show_a_certificate_is_told_so() -> None:
    door = Door("https://127.0.0.1:1", certificate="/tls/my cert.pem", asks_certificate=True)
    line = asyncio.run(curl_line(door, ["a"]))
    assert line.startswith("curl --cacert '/tls/my cert.pem' --cert ")
