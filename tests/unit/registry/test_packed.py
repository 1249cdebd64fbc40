"""The packed map behaves like a sorted dict, whatever is done to it."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelmesh.registry.packed import BLOCK_ENTRIES, PackedMap

keys = st.text(st.sampled_from("ab/é\U0001f600"), max_size=4)
values = st.binary(max_size=6).map(lambda raw: raw.replace(b"\x00", b"0"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.dictionaries(keys, st.none() | values, max_size=40), max_size=8),
    st.lists(st.tuples(keys, keys, st.integers(0, 5)), min_size=1, max_size=5),
)
def test_like_a_sorted_dict(
    updates: list[dict[str, bytes | None]], looks: list[tuple[str, str, int]]
) -> None:
    packed, plain = PackedMap(), dict[str, bytes]()
    for update in updates:
        packed.update(update)
        for key, value in update.items():
            if value is None:
                plain.pop(key, None)
            else:
                plain[key] = value
        assert len(packed) == len(plain)
        assert list(packed.scan()) == sorted(plain.items())
    for prefix, after, limit in looks:
        assert packed.get(prefix) == plain.get(prefix)
        assert packed.count(prefix) == sum(key.startswith(prefix) for key in plain)
        expected = [
            item
            for item in sorted(plain.items())
            if item[0].startswith(prefix) and (not after or item[0] > after)
        ]
        assert list(packed.scan(prefix, after, limit)) == (expected[:limit] if limit else expected)


def test_many_entries_stay_in_small_blocks_and_give_them_back() -> None:
    packed = PackedMap()
    names = [f"model-{number:05}" for number in range(5000)]
    for start in range(0, 5000, 7):
        packed.update({name: name.encode() for name in names[start::1000]})
    packed.update({name: name.encode() for name in names})
    assert [key for key, _ in packed.scan()] == names
    assert all(packed.get(name) == name.encode() for name in names)
    assert max(packed._counts) <= BLOCK_ENTRIES
    assert packed.count("model-01") == 1000
    for name in names[:-1]:
        packed.update({name: None})
    assert list(packed.scan()) == [(names[-1], names[-1].encode())]
    assert len(packed._blocks) == 1
    packed.update({names[-1]: None})
    assert len(packed) == 0
    assert packed.get(names[0]) is None
    assert list(packed.scan("m")) == []


def test_a_value_that_looks_like_a_key_is_no_key() -> None:
    packed = PackedMap()
    packed.update({"a": b"b\x01c", "d": b"e"})
    assert packed.get("b") is None
    assert packed.get("a") == b"b\x01c"
    assert packed.get("") is None
