"""The account of a worker's bytes."""

from __future__ import annotations

import random

import pytest

from modelmesh.runtime.memory import ABSORBED_BYTES_MAX, Account, Charge, capacity_bytes, unattributed_bytes
from modelmesh.worker.memory import Footprint

MIB = 1 << 20


def test_the_base_is_what_it_weighed_idle_and_by_imports() -> None:
    account = Account()
    account.found_idle(Footprint(20, 10))
    assert account.base_bytes == 30
    assert account.base_grew(Footprint(20, 10), Footprint(90, 40)) == 100
    assert account.base_bytes == 130


def test_mapped_memory_is_the_base_as_it_is_shared_now() -> None:
    account = Account()
    account.found_idle(Footprint(20, 40))
    account.measured(Footprint(20, 25))
    assert (account.base_bytes, account.unattributed_bytes) == (45, 0)


def test_a_models_mapped_file_is_not_the_base() -> None:
    account = Account()
    account.found_idle(Footprint(20, 10))
    account.charges["m"] = Charge(size_bytes=150, file_bytes=100)
    account.measured(Footprint(70, 110))
    assert (account.base_bytes, account.unattributed_bytes) == (30, 0)


def test_what_belongs_to_nobody_is_unattributed() -> None:
    account = Account()
    account.found_idle(Footprint(20, 10))
    account.charges["m"] = Charge(100, 0)
    account.measured(Footprint(160, 10))
    assert account.unattributed_bytes == 40


def test_a_running_load_is_neither_nobodys_nor_hides_what_was() -> None:
    account = Account()
    account.found_idle(Footprint(20, 10))
    account.measured(Footprint(50, 10))
    assert account.unattributed_bytes == 30
    account.reserved_bytes = 200
    account.measured(Footprint(150, 15))
    assert account.unattributed_bytes == 30
    assert account.base_bytes == 30, "what an import maps is reserved already"
    account.measured(Footprint(290, 10))
    assert account.unattributed_bytes == 70, "beyond its reservation it shows"
    account.measured(Footprint(60, 10))
    assert account.unattributed_bytes == 40, "no more than there is"
    account.reserved_bytes = 0
    account.measured(Footprint(50, 10))
    assert account.unattributed_bytes == 30


def test_an_empty_workers_weight_is_its_base_but_a_leak_is_not() -> None:
    account = Account()
    account.found_idle(Footprint(20 * MIB, 10 * MIB))
    account.found_empty(30 * MIB)
    assert account.base_anon_bytes == 30 * MIB
    account.found_empty(28 * MIB)
    assert account.base_anon_bytes == 28 * MIB
    account.found_empty(20 * MIB + ABSORBED_BYTES_MAX)
    account.found_empty(20 * MIB + ABSORBED_BYTES_MAX + 1)
    account.found_empty(900 * MIB)
    assert account.base_anon_bytes == 20 * MIB + ABSORBED_BYTES_MAX


@pytest.mark.parametrize("seed", range(50))
def test_capacity_less_charges_less_unattributed_is_the_budget_less_all_there_is(seed: int) -> None:
    rng = random.Random(seed)
    accounts = []
    for _ in range(rng.randint(1, 4)):
        account = Account()
        account.found_idle(Footprint(rng.randint(0, 100), rng.randint(0, 100)))
        for model in range(rng.randint(0, 3)):
            size = rng.randint(0, 100)
            account.charges[str(model)] = Charge(size, rng.randint(0, size))
        account.measured(Footprint(rng.randint(0, 500), rng.randint(0, 500)))
        accounts.append(account)
    weigh_bytes = sum(account.footprint.pss_bytes for account in accounts)
    charged_bytes = sum(account.charged_bytes for account in accounts)
    free_bytes = capacity_bytes(10_000, accounts) - charged_bytes - unattributed_bytes(accounts)
    assert free_bytes <= 10_000 - weigh_bytes
    if unattributed_bytes(accounts) > 0:
        assert free_bytes == 10_000 - weigh_bytes


def test_bases_beyond_the_budget_leave_nothing() -> None:
    account = Account()
    account.found_idle(Footprint(200, 0))
    assert capacity_bytes(100, [account]) == 0
