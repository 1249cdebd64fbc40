"""The predecessor's data-plane config, and what is told about a wrong one."""

from __future__ import annotations

import pytest

from modelmesh.dataplane.method_config import parse_method_config
from modelmesh.dataplane.protocol import MethodRule
from modelmesh.errors import SettingsError


def test_a_config_becomes_rules() -> None:
    config = parse_method_config(
        '{"rpcConfigs": {"a.B/C": {"idExtractionPath": [1, 536870911], "vModelId": true}, "a.B/D": {}},'
        ' "allowOtherRpcs": true}',
        "test",
    )
    assert config.rules == (MethodRule("a.B/C", (1, 536870911), True), MethodRule("a.B/D"))
    assert config.allow_others


@pytest.mark.parametrize("text", ["{}", '{"rpcConfigs": null, "allowOtherRpcs": null}'])
def test_others_are_kept_out_unless_a_config_says_otherwise(text: str) -> None:
    assert parse_method_config(text, "test") == ((), False)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", "not JSON"),
        ("[]", "has to be an object"),
        ('{"rpcConfig": {}}', '"rpcConfig"'),
        ('{"allowOtherRpcs": "yes"}', "allowOtherRpcs"),
        ('{"rpcConfigs": {"a.B": {}}}', '"a.B"'),
        ('{"rpcConfigs": {"/a.B/C": {}}}', '"/a.B/C"'),
        ('{"rpcConfigs": {"a.B/C": 1}}', '"a.B/C"'),
        ('{"rpcConfigs": {"a.B/C": {"path": [1]}}}', '"path"'),
        ('{"rpcConfigs": {"a.B/C": {"idExtractionPath": [0]}}}', "[0]"),
        ('{"rpcConfigs": {"a.B/C": {"idExtractionPath": [true]}}}', "[true]"),
        ('{"rpcConfigs": {"a.B/C": {"idExtractionPath": [536870912]}}}', "[536870912]"),
        (f'{{"rpcConfigs": {{"a.B/C": {{"idExtractionPath": {[1] * 17}}}}}}}', "field numbers"),
        ('{"rpcConfigs": {"a.B/C": {}, "a.B/C": {}}}', '"a.B/C" is there twice'),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_config_is_named_in_a_sentence(text: str, names: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_method_config(text, "the file")
    assert str(raised.value).startswith("the file")
    assert names in str(raised.value)
