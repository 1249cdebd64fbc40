"""The `curl` line that `serve` prints."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.error import URLError

import pytest

from modelmesh.cli.curl import curl_line, example_request


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


def test_where_no_model_works_the_line_still_does() -> None:
    assert curl_line("http://127.0.0.1:1", ["a", "b"]) == "curl http://127.0.0.1:1/v2"


def test_the_first_model_that_works_is_taken_and_the_line_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Answer:
        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def read(self) -> bytes:
            return json.dumps({"inputs": [tensor("it's", "FP32", [-1, 2])]}).encode()

    def opened(url: str, timeout: float) -> Answer:
        if "broken" in url:
            raise URLError("503")
        return Answer()

    monkeypatch.setattr("modelmesh.cli.curl.urlopen", opened)
    command, url, flag, body = shlex.split(curl_line("http://h:1", ["broken", "team/m"]))
    assert (command, url, flag) == ("curl", "http://h:1/v2/models/team%2Fm/infer", "-d")
    assert json.loads(body)["inputs"][0]["name"] == "it's"
