"""Requests that wait run together, and nobody's answer or failure depends on the company; nothing waits without a bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from model_server_client import TIMEOUT_S, Worker, echo, infer_request, outputs_of, trailer, wait_until

from modelmesh.dataplane.model_server import Batch
from modelmesh.errors import Code


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(
        tmp_path, batch_rows_max=64, queue_max=50, queue_bytes_max=1 << 20, message_bytes_max=1 << 20
    )
    yield worker
    worker.close()


def failure(future: grpc.Future) -> tuple[str, str]:
    error = future.exception(timeout=TIMEOUT_S)
    assert error is not None
    return error.code().name, error.details()


def test_what_waits_is_stacked_and_split(worker: Worker) -> None:
    batches = []

    def model(batch: Batch) -> None:
        x = batch.inputs()["x"]
        batches.append((batch.n_requests, batch.rows, x.shape))
        batch.reply({"double": x * 2, "text": x.sum(axis=1).astype(str), "sum": x.sum(axis=1)})

    worker.add("m", model)
    rng = np.random.default_rng(7)
    arrays = [rng.random((1 + at % 3, 4)) for at in range(20)]
    with worker.paused():
        futures = [
            worker.client.start(infer_request("m", {"x": array}, raw=bool(at % 2)))
            for at, array in enumerate(arrays)
        ]
        worker.queued(20)
    rows = sum(len(array) for array in arrays)
    for array, future in zip(arrays, futures, strict=True):
        answer = outputs_of(future.result())
        np.testing.assert_array_equal(answer["double"], array * 2)
        np.testing.assert_array_equal(answer["sum"], array.sum(axis=1))
        assert answer["text"].tolist() == [text.encode() for text in array.sum(axis=1).astype(str)]
    assert batches == [(20, rows, (rows, 4))]
    assert worker.server.stats() == {
        "requests": 20,
        "batches": 1,
        "rows": rows,
        "queued": 0,
        "refused": 0,
        "connections": 1,
    }


def test_bytes_are_stacked_and_split(worker: Worker) -> None:
    worker.add("m", echo, inputs=[("x", "BYTES", [-1])])
    texts = [np.array([f"{at}".encode()] * (at + 1), dtype=object) for at in range(5)]
    with worker.paused():
        futures = [worker.client.start(infer_request("m", {"x": text})) for text in texts]
        worker.queued(5)
    for text, future in zip(texts, futures, strict=True):
        assert outputs_of(future.result())["x"].tolist() == text.tolist()
    assert worker.server.stats()["batches"] == 1


def test_a_bad_request_fails_alone(worker: Worker) -> None:
    def model(batch: Batch) -> None:
        x = batch.inputs()["x"]
        if (x < 0).any():
            batch.fail(Code.OUT_OF_RANGE, "a value is negative")
        else:
            batch.reply({"x": x})

    worker.add("m", model)
    with worker.paused():
        futures = [worker.client.start(infer_request("m", {"x": np.array([float(at)])})) for at in range(7)]
        futures.append(worker.client.start(infer_request("m", {"x": np.array([-1.0])})))
        worker.queued(8)
    assert [outputs_of(future.result())["x"].tolist() for future in futures[:7]] == [
        [float(at)] for at in range(7)
    ]
    assert failure(futures[7]) == ("OUT_OF_RANGE", "a value is negative")
    # 8, 4, 4, 2, 2, 1, 1: only what holds the bad one is halved.
    assert worker.server.stats()["batches"] == 7


def test_a_model_whose_outputs_have_no_rows_is_not_batched_again(worker: Worker) -> None:
    sizes = []

    def model(batch: Batch) -> None:
        sizes.append(
            (batch.n_requests, batch.reply({"mean": batch.inputs()["x"].mean(keepdims=True).reshape(1)}))
        )

    worker.add("m", model)
    for _ in range(2):
        with worker.paused():
            futures = [
                worker.client.start(infer_request("m", {"x": np.array([float(at)] * 2)})) for at in range(3)
            ]
            worker.queued(3)
        assert [outputs_of(future.result())["mean"].tolist() for future in futures] == [[0.0], [1.0], [2.0]]
    assert sizes == [(3, False)] + [(1, True)] * 6


def test_other_models_are_not_stacked(worker: Worker) -> None:
    sizes = []

    def model(batch: Batch) -> None:
        sizes.append((batch.n_requests, batch.rows))
        batch.reply({"y": np.zeros(3)})

    worker.add("m", model, row_wise=False)
    with worker.paused():
        futures = [worker.client.start(infer_request("m", {"x": np.zeros(1)})) for _ in range(2)]
        worker.queued(2)
    assert [outputs_of(future.result())["y"].shape for future in futures] == [(3,), (3,)]
    assert sizes == [(1, 0), (1, 0)]


def test_the_expired_and_the_cancelled_leave_the_queue(worker: Worker) -> None:
    worker.add("m", echo)
    request = infer_request("m", {"x": np.zeros(1)})
    with worker.paused():
        cancelled = worker.client.start(request)
        worker.queued(1)
        cancelled.cancel()
        worker.queued(0)
        expiring = worker.client.start(request, timeout_s=0.05)
        assert failure(expiring)[0] == "DEADLINE_EXCEEDED"
        worker.queued(0)
    worker.client.call("ModelInfer", request)
    assert worker.server.stats()["rows"] == 1


def test_a_cancelled_request_of_a_running_batch_does_not_disturb_the_others(worker: Worker) -> None:
    running, go_on = threading.Event(), threading.Event()

    def model(batch: Batch) -> None:
        running.set()
        go_on.wait(TIMEOUT_S)
        echo(batch)

    worker.add("m", model)
    with worker.paused():
        futures = [worker.client.start(infer_request("m", {"x": np.array([float(at)])})) for at in range(3)]
        worker.queued(3)
    running.wait(TIMEOUT_S)
    futures[1].cancel()
    # The server has seen the cancellation once it has answered a later call on the same connection.
    worker.client.fails("ModelInfer", infer_request("other", {}))
    go_on.set()
    assert outputs_of(futures[0].result())["x"].tolist() == [0.0]
    assert outputs_of(futures[2].result())["x"].tolist() == [2.0]


def test_many_cancelled_at_once_do_not_close_the_connection(worker: Worker) -> None:
    worker.add("m", echo)
    request = infer_request("m", {"x": np.zeros(1)})
    with worker.paused():
        kept = worker.client.start(request)
        worker.queued(1)
        for future in [worker.client.start(request) for _ in range(400)]:
            future.cancel()
        worker.queued(1)
    assert outputs_of(kept.result())["x"].tolist() == [0.0]


def test_a_full_queue_refuses_and_says_when_to_come_back(worker: Worker) -> None:
    worker.add("m", echo)
    request = infer_request("m", {"x": np.zeros(1)})
    with worker.paused():
        futures = [worker.client.start(request) for _ in range(50)]
        worker.queued(50)
        error = worker.client.fails("ModelInfer", request)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "50 wait in this server already" in error.details()
        assert int(trailer(error, "grpc-retry-pushback-ms") or 0) > 0
    for future in futures:
        future.result()


def test_waiting_messages_are_bounded_by_their_bytes(worker: Worker) -> None:
    worker.add("m", echo)
    large = infer_request("m", {"x": np.zeros((1, 60_000))})
    with worker.paused():
        futures = [worker.client.start(large) for _ in range(2)]
        worker.queued(2)
        error = worker.client.fails("ModelInfer", large)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "too much memory" in error.details()
    for future in futures:
        future.result()
    worker.client.call("ModelInfer", large)


def test_a_dropped_batch_fails(worker: Worker) -> None:
    worker.add("m", lambda batch: None)
    error = worker.client.fails("ModelInfer", infer_request("m", {"x": np.zeros(1)}))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "Model m gave no answer: its batch was dropped.",
    )


def test_a_removed_model_is_served_out(worker: Worker) -> None:
    worker.add("m", echo)
    request = infer_request("m", {"x": np.zeros(1)})
    with worker.paused():
        futures = [worker.client.start(request) for _ in range(3)]
        worker.queued(3)
        assert worker.server.remove_model("m") == 3
        assert trailer(worker.client.fails("ModelInfer", request), "mm-not-here") == "1"
        assert worker.server.remove_model("m") == 3
    for future in futures:
        future.result()
    wait_until(lambda: worker.server.remove_model("m") == 0, "the requests to be gone")


def test_several_threads_may_drain(worker: Worker) -> None:
    together = threading.Barrier(2)

    def model(batch: Batch) -> None:
        together.wait(TIMEOUT_S)
        echo(batch)

    worker.add("a", model)
    worker.add("b", model)

    def second_thread() -> None:
        batch = worker.server.next_batch(TIMEOUT_S)
        assert batch is not None
        worker.models[batch.handle](batch)

    thread = threading.Thread(target=second_thread)
    thread.start()
    futures = [worker.client.start(infer_request(model_id, {"x": np.zeros(1)})) for model_id in ("a", "b")]
    for future in futures:
        future.result()
    thread.join(TIMEOUT_S)
