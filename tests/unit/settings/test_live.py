"""What the keys under `config/` mean."""

from __future__ import annotations

import re
from pathlib import Path

from modelmesh.settings.live import PREDECESSOR_IGNORES, Given, disables, given, live_settings, without_effect

PAGES = Path(__file__).parents[3] / "docs"


def test_our_names_and_the_predecessors() -> None:
    assert given({"log_level": "debug", "grace": "5", "nonsense": "1"}) == {
        "log_level": Given("log_level", "debug"),
        "grace": Given("grace", "5"),
    }
    assert given({"logger_level": "WARN"}) == {"log_level": Given("logger_level", "warning")}
    assert given({"logger_level": "WARN", "log_level": "error"})["log_level"].text == "error"
    assert given({"logger_level": "loud"})["log_level"].text == "loud"


def test_what_has_no_effect_is_told_with_the_reason() -> None:
    told = without_effect(
        {"log_level": "x", "logger_level": "x", "disable": "x", "scaleup_rpm_threshold": "9", "z": ""}
    )
    assert list(told) == ["scaleup_rpm_threshold", "z"]
    assert told["scaleup_rpm_threshold"] == PREDECESSOR_IGNORES["scaleup_rpm_threshold"]


def test_disable_is_anything_but_false() -> None:
    assert not disables({})
    assert not disables({"disable": " False "})
    assert disables({"disable": ""})
    assert disables({"disable": "true"})


def test_the_page_of_settings_lists_the_live_ones() -> None:
    page = (PAGES / "settings.md").read_text()
    section = page.partition("## While instances run\n")[2].partition("\n## ")[0]
    assert re.findall(r"^- `(\w+)`: ", section, re.MULTILINE) == sorted(live_settings())


def test_the_page_of_compatibility_lists_the_predecessors_keys() -> None:
    page = (PAGES / "compatibility.md").read_text()
    section = page.partition("## Dynamic settings\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (same|better|not carried) \|", section, re.MULTILINE))
    assert {name for name, verdict in told.items() if verdict == "not carried"} == set(PREDECESSOR_IGNORES)
    assert set(told) == {"logger_level", "disable", *PREDECESSOR_IGNORES}
