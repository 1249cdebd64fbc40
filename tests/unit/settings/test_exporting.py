"""The forms of the predecessor's MM_METRICS and MM_INFO_METRICS."""

from __future__ import annotations

import pytest

from modelmesh.errors import SettingsError
from modelmesh.settings.exporting import Export, InfoMetric, Statsd, export
from modelmesh.settings.sources import read_settings


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("disabled", Export()),
        ("prometheus", Export(port=2112, https=True)),
        ("prometheus:port=9090;scheme=http", Export(port=9090)),
        (
            "prometheus:port=NONE;fq_names=true;per_model_metrics=True;mem_detail=netty,gc",
            Export(https=True, full_methods=True, per_model=True),
        ),
        ("statsd", Export(statsd=Statsd("127.0.0.1", 8126, legacy=False))),
        (
            "statsd:port=8125;legacy=true;fq_names=true;host=agent",
            Export(statsd=Statsd("agent", 8125, legacy=True), full_methods=True),
        ),
    ],
)
def test_ways_are_read(value: str, read: Export) -> None:
    assert export(value) == read
    assert read_settings({}, {"MM_METRICS": value}).metrics.export == read


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("graphite", "is none of disabled, prometheus and statsd"),
        ("disabled:", "ends in a colon"),
        ("prometheus:", "ends in a colon"),
        ("prometheus:port", 'has "port" where one name=value of each is expected'),
        ("prometheus:port=1;port=2", 'has "port=2" where'),
        ("prometheus:port=ninety", "has port=ninety, which is not a port"),
        ("prometheus:scheme=ftp", "has scheme=ftp, which is neither http nor https"),
        ("statsd:scheme=http", "has the parameter scheme; known are fq_names, host, legacy, port"),
        ("statsd:legacy=perhaps", "has legacy=perhaps, which is neither true nor false"),
    ],
)
def test_wrong_ways_stop_the_start_with_a_sentence(value: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({}, {"MM_METRICS": value})
    assert str(caught.value).startswith(f'MM_METRICS: "{value}" {says}')


def test_the_info_metric_takes_its_labels_from_the_environment() -> None:
    given = {"MM_INFO_METRICS": "assistant:relabel;slot=SLOT, group=GROUP", "SLOT": "blue", "GROUP": ""}
    told = read_settings({}, given).metrics.info
    assert told == InfoMetric("assistant:relabel", (("slot", "blue"), ("group", "")))
    assert read_settings({}, {"MM_INFO_METRICS": "alone"}).metrics.info == InfoMetric("alone", ())
    del given["SLOT"]
    with pytest.raises(SettingsError, match="takes the label slot from SLOT, which is not set"):
        read_settings({}, given)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (";a=A", "does not begin with the name of a metric"),
        ("a b", "does not begin with the name of a metric"),
        ("modelmesh_info;a=A", "begins with modelmesh_"),
        ("name;a", 'has "a" where label=VARIABLE is expected'),
        ("name;a-b=A", 'has "a-b=A" where label=VARIABLE is expected'),
        ("name;a=A,a=B", "names a label twice"),
        ("name;a=A,b=A,c=A,d=A,e=A", "has 5 labels; 4 are allowed"),
    ],
)
def test_wrong_info_metrics_stop_the_start_with_a_sentence(value: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({}, {"MM_INFO_METRICS": value, "A": "", "B": ""})
    assert f'MM_INFO_METRICS: "{value}" {says}' in str(caught.value)
