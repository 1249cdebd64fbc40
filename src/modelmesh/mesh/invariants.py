"""What must hold whenever the event loop is between two callbacks. Linear in the copies: for tests and the simulator."""

from __future__ import annotations

from modelmesh.errors import InvariantBroken
from modelmesh.mesh.cache.copies import Copies, Copy
from modelmesh.mesh.cache.holds import yields
from modelmesh.mesh.cache.site import Site
from modelmesh.mesh.cache.sites import Sites
from modelmesh.mesh.views import State


def check(copies: Copies, sites: Sites) -> None:
    """Raises InvariantBroken with a sentence that names the first contradiction."""
    wanted = [copy for copy in copies if copy.want is not None]
    _equal("wanted copies", len(copies.wanted()), len(wanted))
    _equal("loaded copies", copies.n_loaded, sum(copy.state is State.LOADED for copy in copies))
    for copy in copies:
        _check_copy(copy, copies)
    for site in sites:
        _check_site(site, [copy for copy in copies if copy.budget is site.budget])


def pulse(copies: Copies, sites: Sites) -> object:
    """Another value after nearly everything that could break one of these. Costs little."""
    return (
        len(copies),
        copies.n_loaded,
        [
            (site.budget.ledger.free_bytes, site.budget.residents.size_bytes, site.loads.n_queued, site.loads.n_running)
            for site in sites
        ],
    )  # fmt: skip


def _check_site(site: Site, copies: list[Copy]) -> None:
    """Its totals are those of its copies, and no other runtime's bytes are in its account."""
    site.budget.ledger.check()
    name, view = site.offer.name, site.budget.ledger.view()
    charged_bytes = sum(site.budget.ledger.charged_bytes(copy.model) for copy in copies)
    evictable_bytes = sum(copy.size_bytes for copy in copies if copy.evictable)
    retiring_bytes = sum(copy.size_bytes for copy in copies if copy.retirement is not None)
    n_loading = sum(copy.state is State.LOADING for copy in copies)
    _equal(
        f"charged bytes of {name}",
        view.loaded_bytes + view.loading_bytes + view.unloading_bytes,
        charged_bytes,
    )
    _equal(f"running loads of {name}", site.loads.n_running, n_loading)
    _equal(f"evictable bytes of {name}", site.budget.residents.size_bytes, evictable_bytes)
    held = [copy for copy in copies if copy.state is State.LOADED and copy.holds]
    give_way = [copy for copy in held if copy.retirement is None and yields(copy.holds)]
    held_bytes = sum(copy.size_bytes for copy in held)
    yielding_bytes = sum(copy.size_bytes for copy in give_way)
    _equal(f"held bytes of {name}", site.budget.held_bytes, held_bytes - yielding_bytes)
    _equal(f"yielding bytes of {name}", site.budget.yielding_bytes, yielding_bytes)
    _equal(f"yielding copies of {name}", len(site.budget.yielding), len(give_way))
    _equal(f"retiring bytes of {name}", site.evictions.incoming_bytes - view.unloading_bytes, retiring_bytes)
    if site.loads.n_running > site.loads.slots:
        raise InvariantBroken(f"{site.loads.n_running} loads run on {site.loads.slots} slots of {name}.")
    if site.loads.n_gentle > site.loads.gentle_slots:
        raise InvariantBroken(
            f"{site.loads.n_gentle} gentle loads run on {site.loads.slots} slots of {name}."
        )


def _check_copy(copy: Copy, copies: Copies) -> None:
    model, charged_bytes = copy.model, copy.budget.ledger.charged_bytes(copy.model)
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
