"""Settings of what is served, and of what it runs in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modelmesh.settings import parsing
from modelmesh.settings.runtimes import RuntimeChoice, parse_address, parse_labels, parse_runtimes
from modelmesh.settings.setting import Setting


@dataclass(frozen=True, slots=True)
class Models:
    """What is served."""

    folder: Annotated[
        Path | None,
        Setting(
            "folder",
            parsing.folder,
            "",
            "Folder of models to serve; a model's name is its folder's.",
            "FOLDER",
        ),
    ]
    model_root: Annotated[
        Path | None,
        Setting(
            "model_root",
            parsing.folder,
            "",
            "Models registered by a local path must lie under this folder, because loading one runs its code. Default: the "
            "served folder; without one, registering by path is refused.",
            "DIR",
        ),
    ]
    static_models: Annotated[
        str | None,
        Setting(
            "static_models",
            parsing.text,
            "",
            "Models to register at every start, and to load where an entry says so, as JSON in the predecessor's form.",
            "JSON",
        ),
    ]
    static_models_path: Annotated[
        Path | None,
        Setting(
            "static_models_path", parsing.path, "", "File with such JSON; its models come first.", "FILE"
        ),
    ]
    vmodel_owner: Annotated[
        str | None,
        Setting(
            "vmodel_owner", parsing.text, "", "Owner of vmodels created without one. Default: none.", "NAME"
        ),
    ]
    fill_memory: Annotated[
        bool,
        Setting(
            "fill_memory",
            parsing.truth,
            "true",
            "Load models used in the last week into memory that is free, those expected to be used soonest first, so that they "
            "are back after a restart before they are asked for; false: load on request only.",
            "BOOL",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Runtimes:
    """What the models run in."""

    chosen: Annotated[
        tuple[RuntimeChoice, ...],
        Setting(
            "runtime",
            parse_runtimes,
            "",
            "What serves the models, repeated for several: builtin, or a server of the mmesh.ModelRuntime contract at unix:PATH "
            "or HOST:PORT; in quotes with types=TYPE,TYPE if it is for those only, labels=LABEL,LABEL, and serving=ADDRESS if it "
            "serves elsewhere than it is managed; sidecar: where the predecessor looks. Default: builtin.",
            "RUNTIME",
            several=True,
        ),
    ]
    serving_address: Annotated[
        str | None,
        Setting(
            "runtime_serving",
            parse_address,
            "",
            "Where the one runtime given serves requests, if not where it is managed.",
            "ADDRESS",
        ),
    ]

    labels: Annotated[
        frozenset[str],
        Setting(
            "labels",
            parse_labels,
            "",
            "Labels of this instance, with commas between them: type constraints look for them, and for those of a runtime "
            "(labels= behind its address). Default: none.",
            "LABELS",
        ),
    ]
    type_constraints: Annotated[
        str | None,
        Setting(
            "type_constraints",
            parsing.text,
            "",
            "Which labels a model type requires or prefers of its runtime, as JSON in the predecessor's form.",
            "JSON",
            live=True,
        ),
    ]
    type_constraints_path: Annotated[
        Path | None,
        Setting(
            "type_constraints_path",
            parsing.path,
            "",
            "File with that JSON instead; a change takes effect at once.",
            "FILE",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Memory:
    """What the built-in runtime may use."""

    budget_bytes: Annotated[
        int,
        Setting(
            "memory",
            parsing.memory,
            "60%",
            'Memory the workers may use in all: a size ("500MiB", "2GB") or a share of the limit of the control group, or of '
            "the machine.",
            "SIZE",
        ),
    ]
    workers: Annotated[
        int,
        Setting(
            "workers",
            parsing.count,
            "",
            "Worker processes. Default: one per core, and one per 512 MiB of memory, whichever is less.",
        ),
    ]
