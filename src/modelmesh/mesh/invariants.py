"""What must hold whenever the event loop is between two callbacks. Linear in the copies: for tests and the simulator."""

from __future__ import annotations

from modelmesh.errors import InvariantBroken
from modelmesh.mesh.copies import Copies, Copy
from modelmesh.mesh.evictions import Evictions
from modelmesh.mesh.loads import Loads
from modelmesh.mesh.views import State


def check(copies: Copies, loads: Loads, evictions: Evictions) -> None:
    """Raises InvariantBroken with a sentence that names the first contradiction."""
    copies.ledger.check()
    wanted = [copy for copy in copies if copy.want is not None]
    _equal("wanted copies", len(copies.wanted()), len(wanted))
    evictable_bytes = retiring_bytes = n_loaded = n_loading = 0
    for copy in copies:
        _check_copy(copies, copy)
        n_loaded += copy.state is State.LOADED
        n_loading += copy.state is State.LOADING
        evictable_bytes += copy.size_bytes if copy.evictable else 0
        retiring_bytes += copy.size_bytes if copy.retirement is not None else 0
    _equal("loaded copies", copies.n_loaded, n_loaded)
    _equal("running loads", loads.n_running, n_loading)
    _equal("evictable bytes", copies.residents.size_bytes, evictable_bytes)
    _equal("retiring bytes", evictions.incoming_bytes - copies.ledger.unloading_bytes, retiring_bytes)
    if loads.n_running > loads.slots:
        raise InvariantBroken(f"{loads.n_running} loads run on {loads.slots} slots.")


def _check_copy(copies: Copies, copy: Copy) -> None:
    model, charged_bytes = copy.model, copies.ledger.charged_bytes(copy.model)
    if copy.state is State.QUEUED and charged_bytes:
        raise InvariantBroken(f"Model {model} is charged while it waits for its load.", model=model)
    if copy.state is State.LOADED and charged_bytes != copy.size_bytes:
        raise InvariantBroken(
            f"Model {model} weighs {copy.size_bytes} and is charged {charged_bytes}.", model=model
        )
    if (copy.index >= 0) is not copy.evictable:
        raise InvariantBroken(
            f"Model {model} is wrongly {'not ' * (copy.index < 0)}among the residents.", model=model
        )
    if copy.retirement is not None and copy.state is not State.LOADED:
        raise InvariantBroken(f"Model {model} retires while it is {copy.state}.", model=model)
    if copy.state in (State.QUEUED, State.LOADING) and copy.want is None and not copy.cancelled:
        raise InvariantBroken(f"Model {model} is {copy.state} though nobody wants it.", model=model)
    if copy.holds != copies.holds(model):
        raise InvariantBroken(f"Model {model} does not know its holds.", model=model)


def _equal(what: str, kept: int, counted: int) -> None:
    if kept != counted:
        raise InvariantBroken(f"The {what} are kept as {kept} and counted as {counted}.")
