"""Where payloads go, as a user writes it."""

from __future__ import annotations

import logging

import pytest

from modelmesh.dataplane.protocol import Payload
from modelmesh.payloads.addresses import Address, parse_addresses


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://sink:8080/x", Address("http", "http://sink:8080/x", "", "")),
        ("https://sink/x?*#*", Address("https", "https://sink/x?*", "", "")),
        ("http://sink?/a/b#a.B/C", Address("http", "http://sink?/a/b", "a/b", "a.B/C")),
        ("logger:///*?iris@1#/a.B/C", Address("logger", "", "iris@1", "a.B/C")),
        ("logger://", Address("logger", "", "", "")),
    ],
)
def test_filters_are_in_the_query_and_the_fragment(uri: str, address: Address) -> None:
    assert parse_addresses(uri) == [address]


def test_what_is_no_processor_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = parse_addresses("ftp://x  http:///nowhere http://[::1/x http://x:99999/ logger:")
    assert [address.scheme for address in found] == ["logger"]
    assert len(caplog.records) == 4


def test_a_filter_matches_the_model_or_the_name_it_was_asked_by() -> None:
    payload = Payload("1", "iris@1", "iris", "a.B/C", None, {}, b"")
    wants = {
        uri: parse_addresses(uri)[0].wants(payload)
        for uri in ("logger:?iris", "logger:?iris@1", "logger:?x", "logger:#a.B/C", "logger:?iris#a.B/D")
    }
    assert list(wants.values()) == [True, True, False, True, False]
