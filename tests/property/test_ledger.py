"""The ledger against a second one that adds up everything anew each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelmesh.mesh.cache.ledger import Ledger

MODELS = ("a", "b", "c", "d")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.sampled_from(MODELS), st.integers(0, 60)),
        st.tuples(st.just("settle"), st.sampled_from(MODELS), st.integers(0, 80)),
        st.tuples(st.just("resize"), st.sampled_from(MODELS), st.integers(0, 80)),
        st.tuples(st.just("unload"), st.sampled_from(MODELS), st.just(0)),
        st.tuples(st.just("release"), st.sampled_from(MODELS), st.just(0)),
        st.tuples(st.just("adopt"), st.sampled_from(MODELS), st.integers(50, 120)),
    ),
    max_size=60,
)


class Naive:
    """One row per model: the account and its bytes."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.unattributed_bytes = 0
        self.rows: dict[str, tuple[str, int]] = {}

    def sum(self, account: str) -> int:
        return sum(size for name, size in self.rows.values() if name == account)

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.unattributed_bytes - sum(size for _, size in self.rows.values())


@given(STEPS)
def test_agrees_with_the_naive_ledger(steps: list[tuple[str, str, int]]) -> None:
    ledger, naive = Ledger(100), Naive(100)
    for verb, model, size in steps:
        account = naive.rows.get(model, ("", 0))[0]
        before = ledger.free_bytes
        if verb == "reserve" and not account:
            granted = ledger.reserve(model, size)
            assert granted is (size <= naive.free_bytes)
            if granted:
                naive.rows[model] = ("loading", size)
                assert ledger.free_bytes >= 0, "a reservation never overdraws"
        elif verb == "settle" and account == "loading":
            ledger.settle(model, size, naive.capacity_bytes)
            naive.rows[model] = ("loaded", size)
        elif verb == "resize" and account in ("loaded", "unloading"):
            ledger.resize(model, size)
            naive.rows[model] = (account, size)
        elif verb == "unload" and account in ("loaded", "loading"):
            ledger.begin_unload(model)
            naive.rows[model] = ("unloading", naive.rows[model][1])
            assert ledger.free_bytes == before, "an unload frees nothing before it is confirmed"
        elif verb == "release" and account in ("loaded", "unloading"):
            ledger.release(model)
            del naive.rows[model]
        elif verb == "adopt":
            ledger.adopt(size, size // 10)
            naive.capacity_bytes, naive.unattributed_bytes = size, size // 10
        ledger.check()
        view = ledger.view()
        assert ledger.free_bytes == view.free_bytes == naive.free_bytes
        assert (view.loaded_bytes, view.loading_bytes, view.unloading_bytes) == (
            naive.sum("loaded"),
            naive.sum("loading"),
            naive.sum("unloading"),
        )
        assert [ledger.charged_bytes(one) for one in MODELS] == [
            naive.rows.get(one, ("", 0))[1] for one in MODELS
        ]
