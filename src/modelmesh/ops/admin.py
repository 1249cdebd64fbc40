"""The admin API: all of its operations, made from the parts of an instance.

Errors are raised by the handlers as `ModelMeshError` and answered in one place (`problems`).
"""

from __future__ import annotations

from modelmesh.ops.config import Configs
from modelmesh.ops.instances import Instances
from modelmesh.ops.models import Models
from modelmesh.ops.operations import Operation
from modelmesh.ops.parts import Parts
from modelmesh.ops.stories import Stories
from modelmesh.ops.vmodels import VModels


def operations(parts: Parts) -> tuple[Operation, ...]:
    """In the order of the docs page."""
    return (
        *Models(parts).operations(),
        *VModels(parts).operations(),
        *Instances(parts).operations(),
        *Configs(parts).operations(),
        *Stories(parts).operations(),
    )
