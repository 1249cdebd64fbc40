"""Which runtimes serve the models, as text: `builtin`, or where a server of the mmesh.ModelRuntime contract is.

unix:/run/triton.sock types=onnx,tensorflow ; localhost:8085 serving=localhost:8001 ; builtin
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BUILTIN: Final = "builtin"
SIDECAR: Final = "sidecar"
SIDECAR_ADDRESSES: Final = ("unix:/tmp/mmesh/grpc.sock", "localhost:8085")
"""Where the predecessor looks when it is told nothing (reference mesh.md 1.3)."""
_PORT_MAX: Final = 65535


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """One runtime. `addresses`: where it may be, the first that answers counts; none: the built-in one."""

    name: str
    addresses: tuple[str, ...] = ()
    serving_address: str = ""
    """Where it serves requests; empty: where it is managed."""
    model_types: frozenset[str] = frozenset()
    """Those it is for; none: any."""
    labels: frozenset[str] = frozenset()
    """What type constraints may require of it."""

    @property
    def is_builtin(self) -> bool:
        return not self.addresses


def parse_runtimes(text: str) -> tuple[RuntimeChoice, ...]:
    """Raises ValueError with the second half of a sentence."""
    choices = tuple(_choice(part) for part in text.split(";") if part.strip())
    if not choices:
        raise ValueError("names no runtime")
    names = [choice.name for choice in choices]
    if len(set(names)) < len(names):
        raise ValueError("names a runtime twice")
    return choices


def parse_address(text: str) -> str:
    """`unix:/path` or `host:port`."""
    address = text.strip()
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if path.startswith("//"):
            path = path.removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f'has "{address}", but the path of a socket must be absolute: unix:/path')
        return f"unix:{path}"
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= _PORT_MAX:
        raise ValueError(f'has "{address}", which is neither unix:/path nor host:port')
    return address


def parse_labels(text: str) -> frozenset[str]:
    """Words with commas between them."""
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def _choice(text: str) -> RuntimeChoice:
    where, *words = text.split()
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("types", "labels", "serving") or not equals or not value or name in options:
            raise ValueError(
                f'has "{word}" after {where}; there may be types=TYPE,TYPE labels=LABEL,LABEL and serving=ADDRESS'
            )
        options[name] = value
    types, labels = parse_labels(options.get("types", "")), parse_labels(options.get("labels", ""))
    serving = parse_address(options["serving"]) if "serving" in options else ""
    if where == BUILTIN:
        if options.keys() - {"labels"}:
            raise ValueError(f"gives {BUILTIN} more than labels: it knows its types itself")
        return RuntimeChoice(BUILTIN, labels=labels)
    if where == SIDECAR:
        return RuntimeChoice(SIDECAR, SIDECAR_ADDRESSES, serving, types, labels)
    address = parse_address(where)
    return RuntimeChoice(address, (address,), serving, types, labels)
