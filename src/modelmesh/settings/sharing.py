"""Settings of where registrations live, and of who shares them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modelmesh.settings import parsing
from modelmesh.settings.setting import Setting


@dataclass(frozen=True, slots=True)
class State:
    """Where registrations live."""

    path: Annotated[
        Path | None,
        Setting(
            "state",
            parsing.state,
            "",
            'Folder of the registry, or "memory" to keep nothing. Default: under the user\'s state folder ($XDG_STATE_HOME, else '
            "~/.local/state), by a hash of the served folder's path.",
            "PATH|memory",
        ),
    ]
    store: Annotated[
        str | None,
        Setting(
            "store",
            parsing.store,
            "",
            "The etcd in which the registry is shared with other instances: etcd: and then a connection file (JSON in the "
            "predecessor's form), or host:port, several with commas between them. Default: the registry is this machine's, under "
            "state.",
            "etcd:WHERE",
        ),
    ]
    service: Annotated[
        str | None,
        Setting(
            "service",
            parsing.key_part,
            "",
            "Name of the mesh, needed with store: instances of one name share one registry, others see nothing of it.",
            "NAME",
        ),
    ]
    store_prefix: Annotated[
        str,
        Setting(
            "store_prefix",
            parsing.key_part,
            "tas-runtime",
            "What the keys in the store begin with, before the name of the mesh; the default is the predecessor's.",
            "NAME",
        ),
    ]
    read_only: Annotated[
        bool,
        Setting(
            "read_only",
            parsing.truth,
            "false",
            "true: serve what is registered and change none of it; no vmodel moves, and no folder can be served.",
            "BOOL",
        ),
    ]
