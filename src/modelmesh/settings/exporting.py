"""Where metrics go besides /metrics of the ops port: the predecessor's `MM_METRICS` and `MM_INFO_METRICS`, whose form our
settings `metrics` and `info_metric` share (reference mesh.md 10.3). Text in, value out, ValueError with the second half of a
sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from modelmesh.settings.parsing import optional_port, port, truth

_PROMETHEUS_PORT: Final = "2112"
_STATSD_PORT: Final = "8126"
_T = TypeVar("_T")
_INFO_LABELS_MAX: Final = 4
_METRIC_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Statsd:
    """A server of the statsd protocol, over UDP. `legacy`: the predecessor's older names."""

    host: str
    port: int
    legacy: bool


@dataclass(frozen=True, slots=True)
class Export:
    """`port` serves /metrics, by `https` or not; None: only the ops port does. Statsd None: nothing is sent. `full_methods`:
    labels say "pkg.Service/Method" instead of "Method". `per_model`: series are labelled with models too."""

    port: int | None = None
    https: bool = False
    statsd: Statsd | None = None
    full_methods: bool = False
    per_model: bool = False


NO_EXPORT: Final = Export()


@dataclass(frozen=True, slots=True)
class InfoMetric:
    """A constant of 1 under this name. `labels`: their names and values."""

    name: str
    labels: tuple[tuple[str, str], ...]


def export(value: str) -> Export:
    """`disabled`, or `prometheus` or `statsd` with parameters, as in `prometheus:port=2112;scheme=http`."""
    kind, colon, text = value.strip().partition(":")
    given = _parameters(text, colon)
    if kind == "disabled" and not colon:
        return NO_EXPORT
    if kind == "statsd":
        return _statsd(given)
    if kind == "prometheus":
        return _prometheus(given)
    raise ValueError(
        "is none of disabled, prometheus and statsd, the latter two with parameters if need be: prometheus:port=2112;scheme=http"
    )


def info_metric(value: str) -> InfoMetric:
    """`name;label=VARIABLE,label=VARIABLE`. The values of the labels are still the names of variables: see `filled_in`."""
    name, _, text = value.strip().partition(";")
    if not _METRIC_NAME.fullmatch(name):
        raise ValueError("does not begin with the name of a metric: write name;label=VARIABLE,label=VARIABLE")
    if name.startswith("modelmesh_"):
        raise ValueError("begins with modelmesh_, as our own metrics do; choose another name")
    labels = []
    for part in filter(None, map(str.strip, text.split(","))):
        label, _, variable = part.partition("=")
        if not _LABEL_NAME.fullmatch(label) or not variable:
            raise ValueError(f'has "{part}" where label=VARIABLE is expected')
        labels.append((label, variable))
    if len({label for label, _ in labels}) < len(labels):
        raise ValueError("names a label twice")
    if len(labels) > _INFO_LABELS_MAX:
        raise ValueError(f"has {len(labels)} labels; {_INFO_LABELS_MAX} are allowed")
    return InfoMetric(name, tuple(labels))


def filled_in(metric: InfoMetric, environment: Mapping[str, str]) -> InfoMetric:
    """With the values of the variables. Raises ValueError for one that is not set."""
    for label, variable in metric.labels:
        if variable not in environment:
            raise ValueError(f"takes the label {label} from {variable}, which is not set")
    return InfoMetric(metric.name, tuple((label, environment[variable]) for label, variable in metric.labels))


def _prometheus(given: Mapping[str, str]) -> Export:
    known = {"port", "scheme", "fq_names", "per_model_metrics", "mem_detail"}
    _check(given, known)
    if given.get("scheme", "https") not in ("http", "https"):
        raise ValueError(f"has scheme={given['scheme']}, which is neither http nor https")
    return Export(
        port=_parameter(given, "port", optional_port, _PROMETHEUS_PORT),
        https=given.get("scheme", "https") == "https",
        full_methods=_parameter(given, "fq_names", truth, "false"),
        per_model=_parameter(given, "per_model_metrics", truth, "false"),
    )


def _statsd(given: Mapping[str, str]) -> Export:
    _check(given, {"host", "port", "fq_names", "legacy"})
    server = Statsd(
        host=given.get("host", "127.0.0.1"),
        port=_parameter(given, "port", port, _STATSD_PORT),
        legacy=_parameter(given, "legacy", truth, "false"),
    )
    return Export(statsd=server, full_methods=_parameter(given, "fq_names", truth, "false"))


def _parameters(text: str, colon: str) -> dict[str, str]:
    parts = [part.strip() for part in text.split(";") if part.strip()]
    given: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not value or name in given:
            raise ValueError(f'has "{part}" where one name=value of each is expected')
        given[name] = value
    if colon and not given:
        raise ValueError("ends in a colon without parameters behind it")
    return given


def _check(given: Mapping[str, str], known: set[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"has the parameter {name}; known are {', '.join(sorted(known))}")


def _parameter(given: Mapping[str, str], name: str, parse: Callable[[str], _T], default: str) -> _T:
    try:
        return parse(given.get(name, default))
    except ValueError as error:
        raise ValueError(f"has {name}={given[name]}, which {error}") from error
