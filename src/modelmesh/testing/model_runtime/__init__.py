"""A model server behind `mmesh.ModelRuntime` whose faults are scripted: what a mesh has to live with, without a model.

async with ModelRuntimeServer("127.0.0.1:0", scripts={"slow": Script(load_s=2.0)}) as server:
    ...  # point a mesh at server.address

It answers every other unary method as inference, with what it was told (`read_answer`). As a process:

    python -m modelmesh.testing.model_runtime 127.0.0.1:8085 --scripts '{"slow": {"load_s": 2}}'
"""

from modelmesh.testing.model_runtime.answers import INFER, Answer, id_in, read_answer, read_answers
from modelmesh.testing.model_runtime.script import FORGOTTEN, MIB, Call, Faults, Script, parse_script
from modelmesh.testing.model_runtime.server import LEGACY_SERVICE, SERVICE, ModelRuntimeServer

__all__ = (
    "FORGOTTEN",
    "INFER",
    "LEGACY_SERVICE",
    "MIB",
    "SERVICE",
    "Answer",
    "Call",
    "Faults",
    "ModelRuntimeServer",
    "Script",
    "id_in",
    "parse_script",
    "read_answer",
    "read_answers",
)
