"""What of the settings reaches the data plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelmesh.instance import instance
from modelmesh.settings.sources import read_settings


def test_ages_headers_and_series_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmesh.dataplane.relay.Relay", lambda config: config)

    def built(**settings: str) -> Any:
        return instance._build_dataplane(read_settings(settings, {}), Path("/nowhere"))

    config = built(
        connection_age="600",
        connection_age_grace="1.5",
        log_request_headers='{"X-Request-Id": "request"}',
        metrics="prometheus:port=none;per_model_metrics=true",
    )
    assert (config.connection_age_ms, config.connection_age_grace_ms) == (600_000, 1500)
    assert config.told_headers == (("x-request-id", "request"),)
    assert config.model_series_max == 250
    plain = built()
    assert (plain.connection_age_ms, plain.connection_age_grace_ms, plain.model_series_max) == (0, 0, 0)
    assert plain.told_headers == ()
