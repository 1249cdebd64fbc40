"""Registrations of a model type that no runtime here serves: nearly always a misspelling, found out today instead of at the
first request."""

from __future__ import annotations

from difflib import get_close_matches

from modelmesh.errors import InvalidInput
from modelmesh.mesh.control import ControlPlane


class ModelTypes:
    """The types that are served at the moment it is made. Case does not count, as it does not where a runtime is chosen."""

    def __init__(self, control: ControlPlane) -> None:
        offered = [runtime.model_types for runtime in control.instance().runtimes]
        self._any = not all(offered)
        self._served = {type.lower() for types in offered for type in types}

    def check(self, model: str, type: str) -> None:
        """Raises InvalidInput, naming the types there are, when no runtime serves this one. A blank type is another mistake,
        told elsewhere."""
        wanted = type.lower()
        if self._any or not self._served or wanted in self._served or not type.strip():
            return
        served = sorted(self._served)
        near = get_close_matches(wanted.strip(), served, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise InvalidInput(
            f'Model "{model}" cannot be registered: no runtime here serves the type "{type}"; '
            f"there are {', '.join(served)}.{meant} "
            'To register it all the same, force it: modelmesh register --force, or "force": true of PUT /models/{id}.',
            model=model,
        )
