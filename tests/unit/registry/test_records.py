"""Records keep what they do not know, and refuse what they cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelmesh.errors import InvalidInput
from modelmesh.registry.keep import COPIES_MAX, PRIORITY_MAX, PRIORITY_MIN, Keep
from modelmesh.registry.records import Canary, ModelRecord, VModelRecord


def test_the_predecessors_model_record_survives() -> None:
    raw = {
        "type": "sklearn",
        "mPath": "s3/iris",
        "encKey": '{"a":1}',
        "instanceIds": {"9c4f7b-x2k8d": 1717000000123},
        "failedIn": {"9c4f7b-q7z1m": 1716999900000},
        "refs": 1,
        "autoDel": True,
        "lu": 1716999999000,
    }
    record = ModelRecord.decode(json.dumps(raw).encode())
    assert (record.type, record.path, record.key) == ("sklearn", "s3/iris", '{"a":1}')
    assert (record.references, record.auto_delete, record.last_used_ms) == (1, True, 1716999999000)
    assert json.loads(record.encode()) == raw


def test_defaults_are_left_out() -> None:
    assert json.loads(ModelRecord("onnx").encode()) == {"type": "onnx"}
    assert ModelRecord.decode(b"{}").type == "NLCLASSIFIER"
    assert json.loads(VModelRecord("a", "a", failed=True).encode()) == {"amid": "a", "tmid": "a"}
    assert json.loads(VModelRecord("a", "b", "me", failed=True).encode()) == {
        "amid": "a",
        "tmid": "b",
        "o": "me",
        "failed": True,
    }


def test_what_was_learned_survives() -> None:
    record = ModelRecord("onnx", size_bytes=5, load_ms=6, content="c", other={"x": True})
    assert ModelRecord.decode(record.encode()) == record


def test_how_it_is_kept_survives_beside_what_is_not_known() -> None:
    keep = Keep(min_copies=2, max_copies=5, pin=True, priority=2.5)
    record = ModelRecord("onnx", keep=keep, other={"instanceIds": {"a": 1}})
    assert json.loads(record.encode()) == {
        "type": "onnx", "minCopies": 2, "maxCopies": 5, "pin": True, "priority": 2.5, "instanceIds": {"a": 1},
    }  # fmt: skip
    assert ModelRecord.decode(record.encode()) == record
    assert json.loads(ModelRecord("onnx", keep=Keep(pin=True)).encode()) == {"type": "onnx", "pin": True}


def test_how_it_is_kept_is_taken_for_the_nearest_that_makes_sense() -> None:
    raw = b'{"type":"a","minCopies":-3,"maxCopies":100000,"pin":0,"priority":NaN}'
    assert ModelRecord.decode(raw).keep == Keep(max_copies=COPIES_MAX)
    assert ModelRecord.decode(b'{"type":"a","priority":0}').keep.priority == PRIORITY_MIN
    assert ModelRecord.decode(b'{"type":"a","priority":1e9}').keep.priority == PRIORITY_MAX


def test_a_last_use_is_only_raised() -> None:
    assert ModelRecord("onnx", last_used_ms=5).used(3).last_used_ms == 5
    assert ModelRecord("onnx", last_used_ms=5).used(7).last_used_ms == 7


def test_why_a_target_failed_is_kept_while_it_has() -> None:
    record = VModelRecord("a", "b", failed=True, reason="The file is torn.")
    assert json.loads(record.encode()) == {
        "amid": "a",
        "tmid": "b",
        "failed": True,
        "reason": "The file is torn.",
    }
    assert VModelRecord.decode(record.encode()) == record
    assert b"reason" not in VModelRecord("a", "a", failed=True, reason="The file is torn.").encode()


def test_a_canary_is_kept_until_its_vmodel_settles() -> None:
    canary = Canary(0.05, 600_000, 50, 1.5, 1_717_000_000_123)
    record = VModelRecord("a", "b", canary=canary, other={"x": 1})
    assert json.loads(record.encode()) == {
        "amid": "a",
        "tmid": "b",
        "canary": {
            "share": 0.05,
            "forMs": 600_000,
            "requests": 50,
            "slowerMax": 1.5,
            "sinceMs": 1_717_000_000_123,
        },
        "x": 1,
    }
    assert VModelRecord.decode(record.encode()) == record
    assert (record.on_trial, record.rolled_back) == (True, False)
    failed = replace(record, failed=True, reason="worse")
    assert (failed.on_trial, failed.rolled_back) == (False, True)
    waiting = replace(record, canary=replace(canary, since_ms=0))
    assert (waiting.on_trial, replace(waiting, failed=True).rolled_back) == (False, False)
    assert b"canary" not in replace(record, target="a").encode()


@pytest.mark.parametrize(
    "foreign",
    [0.1, "much", {}, {"share": 2, "forMs": 1, "requests": 1}, {"share": "x", "forMs": 1, "requests": 1}],
)
def test_what_others_call_a_canary_is_left_alone(foreign: object) -> None:
    raw = {"amid": "a", "tmid": "b", "canary": foreign}
    record = VModelRecord.decode(json.dumps(raw).encode())
    assert (record.canary, record.other) == (None, {"canary": foreign})
    assert json.loads(record.encode()) == raw


def test_a_vmodel_without_target_is_settled() -> None:
    assert VModelRecord.decode(b'{"amid":"a"}').settled
    assert not VModelRecord.decode(b'{"amid":"a","tmid":"b","canary":0.1}').settled
    assert VModelRecord.decode(b'{"amid":"a","tmid":"b","canary":0.1}').other == {"canary": 0.1}


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense", b"[]", b'"text"', b"\xff", b'{"refs":"many"}', b'{"lu":null}']
)
def test_an_unreadable_model_record_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match="The stored model record"):
        ModelRecord.decode(raw)


@pytest.mark.parametrize("raw", [b"", b"1", b"{}", b'{"amid":null}', b'{"tmid":"b"}'])
def test_an_unreadable_vmodel_record_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match="The stored vmodel record"):
        VModelRecord.decode(raw)


fields = st.dictionaries(
    st.sampled_from(
        [
            *("type", "mPath", "encKey", "refs", "autoDel", "lu", "sizeBytes", "loadMs", "content", "x"),
            *("minCopies", "maxCopies", "pin", "priority"),
        ]
    ),
    st.one_of(
        st.text('a"\\é\n/', max_size=4), st.integers(-2, 12), st.booleans(), st.none(), st.floats(0, 3)
    ),
    max_size=6,
)
pieces = st.lists(
    st.sampled_from(
        [
            b'{"type":',
            b'"a"',
            b"}",
            b',"refs":',
            b"1",
            b"0",
            b"07",
            b',"autoDel":true',
            b',"minCopies":',
            b',"priority":',
            b".5",
            b"1" * 400,
            b',"mPath":',
            b'"',
            b"\\",
        ]
    ),
    max_size=7,
).map(b"".join)
vfields = st.dictionaries(
    st.sampled_from(["amid", "tmid", "o", "failed", "reason", "x"]),
    st.text('a"é', max_size=2) | st.just(True),
    max_size=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fields.map(lambda value: json.dumps(value, separators=(",", ":")).encode()) | pieces)
def test_checking_agrees_with_decoding(raw: bytes) -> None:
    def raises(read: Callable[[bytes], object]) -> bool:
        try:
            read(raw)
        except InvalidInput:
            return True
        return False

    assert raises(ModelRecord.check) == raises(ModelRecord.decode)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(vfields)
def test_the_fast_reading_of_vmodels_agrees_with_the_slow_one(value: dict[str, object]) -> None:
    tight, spaced = json.dumps(value, separators=(",", ":")).encode(), json.dumps(value, indent=1).encode()
    try:
        slow = VModelRecord.decode(spaced)
    except InvalidInput:
        with pytest.raises(InvalidInput):
            VModelRecord.decode(tight)
    else:
        assert VModelRecord.decode(tight) == slow
