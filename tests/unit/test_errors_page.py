"""The errors table is complete, and the errors page shows it."""

from __future__ import annotations

import re
from pathlib import Path

from modelmesh import errors
from modelmesh.errors import (
    HTTP_OF_CODE,
    WIRE,
    Code,
    LoadFailed,
    ModelMeshError,
    Quarantined,
    code_of,
    http_status_of,
)

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()


def test_every_error_has_a_row() -> None:
    kinds = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelMeshError)
    }
    assert set(WIRE) == kinds - {ModelMeshError}
    assert set(HTTP_OF_CODE) == set(Code)


def test_the_page_shows_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\d+) \| (yes|no) \| ", PAGE, re.MULTILINE)
    assert {(name, grpc, int(http), again == "yes") for name, grpc, http, again in rows} == {
        (kind.__name__, wire.grpc.name, wire.http, wire.retry_safe) for kind, wire in WIRE.items()
    }


def test_the_page_shows_the_statuses_of_bare_codes() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert {name: int(status) for name, status in rows} == {
        code.name: status for code, status in HTTP_OF_CODE.items()
    }


def test_a_failed_load_carries_the_runtimes_code() -> None:
    failed = LoadFailed("It is not a pickle.", code=Code.INVALID_ARGUMENT)
    assert (code_of(failed), http_status_of(failed), failed.permanent) == (Code.INVALID_ARGUMENT, 400, True)
    assert not LoadFailed("The disk is slow.", code=Code.UNAVAILABLE).permanent
    quarantined = Quarantined("It killed its worker twice.", code=Code.UNAVAILABLE)
    assert (code_of(quarantined), http_status_of(quarantined)) == (Code.FAILED_PRECONDITION, 412)
