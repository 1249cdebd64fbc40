"""What breaks HTTP gets the right answer, and disturbs nobody else."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from rest_face import MESSAGE_BYTES_MAX, TIMEOUT_S, RestFace, rest_face, wait_until

BODY = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}]}).encode()
HOST = b"Host: here\r\n"
CHUNKED = b"POST /v2/models/iris/infer HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestFace]:
    with rest_face(tmp_path_factory.mktemp("rest")) as face:
        face.serve("iris")
        yield face


@pytest.fixture(autouse=True)
def others_are_served(face: RestFace) -> Iterator[None]:
    """Whatever a test sends, a neighbour's call works before and after."""
    with httpx.Client(base_url=face.url, timeout=TIMEOUT_S) as neighbour:
        assert neighbour.post("/v2/models/iris/infer", content=BODY).status_code == 200
        yield
        assert neighbour.post("/v2/models/iris/infer", content=BODY).status_code == 200


def status_of(answer: bytes) -> int:
    version, _, rest = answer.partition(b" ")
    assert version in (b"HTTP/1.1", b"HTTP/1.0"), answer
    return int(rest[:3])


def sized(length: bytes, body: bytes = b"") -> bytes:
    return (
        b"POST /v2/models/iris/infer HTTP/1.1\r\n" + HOST + b"Content-Length: " + length + b"\r\n\r\n" + body
    )


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /v2 HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n bad: fold\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n" + HOST + b"X: \x00\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 1000 + b"\r\n", 431),
        (b"GET /" + b"v" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
        (sized(b"-5"), 400),
        (sized(b"5x"), 400),
        (sized(b"5\r\nContent-Length: 6", b"hello"), 400),
        (sized(b"99999999999999999999999"), 400),
        (sized(str(MESSAGE_BYTES_MAX + 1).encode()), 413),
        (CHUNKED + b"\r\nzz\r\n", 400),
        (CHUNKED + b"\r\nffffffffffffffffff\r\n", 400),
        (CHUNKED + b"\r\n5\r\nhelloX\r\n", 400),
    ],
)
def test_malformed_requests(face: RestFace, data: bytes, status: int) -> None:
    answer = face.talk(data)
    assert status_of(answer) == status
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: application/json\r\n" in head
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head
    assert b"\r\nconnection: close" in head
    assert json.loads(body)["error"].endswith(".")


def test_what_is_malformed_after_good_requests_is_told_after_their_answers(face: RestFace) -> None:
    good = sized(str(len(BODY)).encode(), BODY)
    answers = face.talk(good * 2 + b"GARBAGE\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert b"HTTP/1.1 400 Bad Request" in answers
    assert "no HTTP/1.1 request" in json.loads(answers.rpartition(b"\r\n\r\n")[2])["error"]


def test_pipelined_requests_are_answered_in_order(face: RestFace) -> None:
    last = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    answers = face.talk(sized(str(len(BODY)).encode(), BODY) * 3 + last)
    assert answers.count(b"HTTP/1.1 200 OK") == 4
    assert answers.count(b'"model_name":"iris"') == 3
    assert answers.endswith(b'{"live":true}')


def test_a_body_is_asked_for_only_when_it_may_come(face: RestFace) -> None:
    expecting = (
        b"POST /v2/models/iris/infer HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: "
    )
    with socket.create_connection(face.address, timeout=TIMEOUT_S) as connection:
        connection.sendall(expecting + str(len(BODY)).encode() + b"\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert status_of(connection.recv(65536)) == 200
    assert status_of(face.talk(expecting + str(MESSAGE_BYTES_MAX + 1).encode() + b"\r\n\r\n")) == 413


def test_a_refused_upload_gets_its_answer(face: RestFace) -> None:
    """The client sends all of it before it reads: a reset would take the answer away."""
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    for _ in range(10):
        answer = face.talk(CHUNKED + b"\r\n", more=chunk * 6 + b"0\r\n\r\n")
        assert status_of(answer) == 413
        assert b"over the limit" in answer


REFUSED_EARLY = [
    (b"POST /v2/models/iris/infer HTTP/1.1\r\nContent-Encoding: br\r\n", 415),
    (b"POST /v2/models/iris/infer HTTP/1.1\r\nGrpc-Timeout: soon\r\n", 400),
    (b"POST /v2/models/iris/infer HTTP/1.1\r\nInference-Header-Content-Length: 9\r\n", 501),
    (b"POST /v2/nothing HTTP/1.1\r\n", 404),
    (b"POST /v2/health/live HTTP/1.1\r\n", 405),
]
LIVE = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"


def answer_from(connection: socket.socket) -> tuple[bytes, bytes]:
    """One answer: its head in lower case, and its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536) or pytest.fail(f"closed after {received!r}")
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536) or pytest.fail(f"closed after {received!r}")
    assert len(body) == length
    return head.lower(), body


@pytest.mark.parametrize(("head", "status"), REFUSED_EARLY)
@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 50000\r\n\r\n" + b" " * 50_000,
        b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b" " * 0x1000 + b"\r\n") * 12 + b"0\r\n\r\n",
    ],
    ids=["sized", "chunked"],
)
def test_a_connection_outlives_a_small_refused_body(
    face: RestFace, head: bytes, status: int, body: bytes
) -> None:
    with socket.create_connection(face.address, timeout=TIMEOUT_S) as connection:
        for _ in range(3):
            connection.sendall(head + HOST + body)
            answered, error = answer_from(connection)
            assert status_of(answered.upper()) == status
            assert b"connection: close" not in answered
            assert json.loads(error)["error"]
        connection.sendall(LIVE)
        assert answer_from(connection)[1] == b'{"live":true}'


@pytest.mark.parametrize(("head", "status"), REFUSED_EARLY)
@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        (b"Content-Length: 100\r\n\r\nhalf", b" " * 96),
        (b"Content-Length: 3000000\r\n\r\n", b" " * 3_000_000),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", b"lo\r\n0\r\n\r\n"),
        (b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n", b"late"),
    ],
    ids=["sized", "large", "chunked", "expecting"],
)
def test_an_answer_before_the_end_of_a_body_says_close(
    face: RestFace, head: bytes, status: int, begun: bytes, rest: bytes
) -> None:
    """The client that goes on sending is not reset: it is read until it has seen the end."""
    with socket.create_connection(face.address, timeout=TIMEOUT_S) as connection:
        connection.sendall(head + HOST + begun)
        answered, error = answer_from(connection)
        assert status_of(answered.upper()) == status
        assert b"connection: close" in answered
        assert json.loads(error)["error"]
        connection.sendall(rest)
        assert connection.recv(1) == b""


def test_slow_and_silent_clients_disturb_nobody(face: RestFace) -> None:
    connections = []
    try:
        for beginning in [b"", b"GET /v2/hea", sized(b"1000", b"half"), CHUNKED + b"\r\n5\r\nhe"] * 20:
            connection = socket.create_connection(face.address, timeout=TIMEOUT_S)
            connection.sendall(beginning)
            connections.append(connection)
        with httpx.Client(base_url=face.url, timeout=TIMEOUT_S) as neighbour:
            for _ in range(20):
                assert neighbour.post("/v2/models/iris/infer", content=BODY).status_code == 200
    finally:
        for connection in connections:
            connection.close()


def test_a_client_that_leaves_frees_its_place(face: RestFace) -> None:
    with socket.create_connection(face.address, timeout=TIMEOUT_S) as connection:
        cold = (
            b"POST /v2/models/never/infer HTTP/1.1\r\n" + HOST + b"Content-Length: " + str(len(BODY)).encode()
        )
        connection.sendall(cold + b"\r\n\r\n" + BODY)
        wait_until(lambda: face.plane.stats().parked_requests == 1)
    wait_until(lambda: face.plane.stats().parked_requests == 0)


def test_malformed_input_is_counted(face: RestFace) -> None:
    before = face.plane.stats().counters["malformed"]
    face.talk(b"GARBAGE\r\n\r\n")
    httpx.post(f"{face.url}/v2/models/iris/infer", content=b"{", timeout=TIMEOUT_S)
    wait_until(lambda: face.plane.stats().counters["malformed"] == before + 2)
