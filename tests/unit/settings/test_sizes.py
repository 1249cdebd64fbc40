"""Sizes as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmesh.settings.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1048576", 1 << 20),
        ("500MiB", 500 << 20),
        ("500 mib", 500 << 20),
        ("2GB", 2_000_000_000),
        ("1.5KiB", 1536),
        ("512Mi", 512 << 20),
        ("7b", 7),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


def test_shares_are_taken_of_the_whole() -> None:
    assert parse_size("60%", whole_bytes=1000) == 600
    assert parse_size("12.5 %", whole_bytes=1000) == 125


@pytest.mark.parametrize("text", ["", "five", "12 parrots", "-3MiB", "0", "0MiB", "101%", "0%", "1e9", "%"])
def test_nonsense_is_refused_with_half_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is (not )?a? ?"):
        parse_size(text, whole_bytes=1000)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="is a share"):
        parse_size("60%")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (500 << 20, "500 MiB"),
        (-(3 << 20), "-3.00 MiB"),
        (1 << 40, "1.00 TiB"),
    ],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(min_value=1, max_value=1 << 50))
def test_what_is_written_reads_back_within_a_percent(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.01)
