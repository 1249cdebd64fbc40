"""What clients meet at the ports, as the settings say: built once, and again when the files behind it change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modelmesh.dataplane.protocol import DataPlane
from modelmesh.errors import SettingsError
from modelmesh.instance.watched_files import WatchedFiles
from modelmesh.journal import Journal
from modelmesh.settings.tree import Edges


def prepare(edges: Edges, dataplane: DataPlane, journal: Journal) -> list[WatchedFiles]:
    """Put in force what the settings say, before the data plane starts; what is returned is for the caller to run. Raises
    SettingsError with a sentence."""
    watched = []
    if (rules := _method_rules(edges, dataplane)) is not None:
        use, path = rules
        use()
        if path is not None:
            watched.append(WatchedFiles([path], use, journal, f"The data-plane config {path}"))
    return watched


def _method_rules(edges: Edges, dataplane: DataPlane) -> tuple[Callable[[], None], Path | None] | None:
    """How the data-plane config is put in force, and the file it comes from if it does; None: there is no config."""
    inline, path = edges.dataplane_config, edges.dataplane_config_path
    if inline is None and path is None:
        return None
    if inline is not None and path is not None:
        raise SettingsError(
            "dataplane_config and dataplane_config_path are both given; which one is meant is not clear, so give only one."
        )
    from modelmesh.dataplane.method_config import parse_method_config

    def use() -> None:
        text = _read(path) if path is not None else inline or ""
        dataplane.set_method_rules(*parse_method_config(text, str(path or "dataplane_config")))

    return use, path


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from error
