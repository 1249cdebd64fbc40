"""A batch is answered whatever its model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from modelmesh.errors import Code, InvalidInput
from modelmesh.worker.process import run_batch


class FakeBatch:
    """Takes the answer down."""

    handle = 1

    def __init__(self, reply_error: Exception | None = None) -> None:
        self.outputs: list[str] = []
        self.parameters: dict[str, Any] = {}
        self.answers: list[Any] = []
        self._reply_error = reply_error

    def inputs(self) -> dict[str, Any]:
        return {"x": np.zeros(1)}

    def reply(self, results: Any) -> bool:
        if self._reply_error is not None:
            raise self._reply_error
        self.answers.append(results)
        return True

    def fail(self, code: Code, message: str) -> bool:
        self.answers.append((code, message))
        return True


class FakeResidents:
    def __init__(self, infer: Callable[..., Any] | None) -> None:
        self._model = None if infer is None else type("Model", (), {"infer": staticmethod(infer)})

    def get(self, handle: int) -> Any:
        return self._model


def _run(infer: Callable[..., Any] | None, reply_error: Exception | None = None) -> Any:
    batch = FakeBatch(reply_error)
    run_batch(batch, FakeResidents(infer))  # type: ignore[arg-type]
    (answer,) = batch.answers
    return answer


def _raiser(error: BaseException) -> Callable[..., Any]:
    def infer(*_: Any) -> Any:
        raise error

    return infer


def test_results_are_sent() -> None:
    assert _run(lambda inputs, outputs, parameters: {"y": 1}) == {"y": 1}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("Send more."), Code.INVALID_ARGUMENT),
        (ValueError("4 features expected"), Code.INVALID_ARGUMENT),
        (TypeError("no text"), Code.INVALID_ARGUMENT),
        (MemoryError(), Code.RESOURCE_EXHAUSTED),
        (KeyError("bug"), Code.INTERNAL),
        (RecursionError(), Code.INTERNAL),
        (SystemExit(0), Code.INTERNAL),
        (KeyboardInterrupt(), Code.INTERNAL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_becomes_its_code(error: BaseException, code: Code) -> None:
    answer = _run(_raiser(error))
    assert answer[0] is code
    assert answer[1]


def test_an_answer_that_cannot_be_sent_is_the_models_fault() -> None:
    code, message = _run(lambda *_: {}, ValueError("output 'predict' is missing"))
    assert code is Code.INTERNAL
    assert "predict" in message


def test_a_batch_of_a_freed_model_may_be_sent_again() -> None:
    assert _run(None)[0] is Code.UNAVAILABLE
