"""The built-in runtime when workers die, hang, swell, or their models misbehave. All with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from modelmesh.dataplane.executing import executing_models
from modelmesh.errors import Code, LoadFailed, LoadTimeout, Quarantined
from modelmesh.journal import Did
from modelmesh.runtime import examined, facts, meter, replacing, supervisor
from modelmesh.runtime.protocol import CopyLost, ModelSpec, Noted, ReplicasChanged
from modelmesh.worker.memory import LINUX
from tests.integration.builtin_runtime import FINE, MIB, TROUBLE, Served, answers, is_running, notes, serving

Save = Callable[..., Path]


def _executing(served: Served) -> list[str]:
    return [model for path in served.socket_dir.glob("*.run") for model in executing_models(path)]


async def _until_lost(served: Served, *models: str) -> None:
    await served.until(
        lambda: {lost.model for lost in served.seen(CopyLost)} == set(models), f"{models} are lost"
    )


async def _dies(served: Served, model: str) -> None:
    with pytest.raises(InferenceServerException):
        await served.infer(model, TROUBLE)


def test_a_worker_that_was_started_again_imports_what_it_had(strange: Save) -> None:
    async def scenario() -> None:
        async with serving() as served:
            await served.load("calm", "strange", strange("calm"))
            assert not notes(served, Did.IMPORTED)
            os.kill(served.pid_of("calm"), signal.SIGKILL)
            await served.until(lambda: bool(notes(served, Did.IMPORTED)), "it is imported again")
            (told,) = notes(served, Did.IMPORTED)
            assert told.startswith("worker-0 imported strange, in")
            await served.load("calm", "strange", strange("calm"))
            assert await answers(served, "calm")
            assert len(notes(served, Did.IMPORTED, "calm")) == 1, "the first time only"

    asyncio.run(scenario())


def test_a_worker_killed_from_outside_blames_nobody(strange: Save) -> None:
    async def scenario() -> None:
        async with serving() as served:
            await served.load("calm", "strange", strange("calm"))
            await served.load("slow", "strange", strange("slow", trouble="sleep 20"))
            running = asyncio.create_task(served.infer("slow", TROUBLE))
            await served.until(lambda: _executing(served) == ["slow"], "it executes")
            os.kill(served.pid_of("calm"), signal.SIGKILL)
            with pytest.raises(InferenceServerException):
                await running
            await _until_lost(served, "calm", "slow")
            assert all("SIGKILL" in lost.reason for lost in served.seen(CopyLost))
            (death,) = notes(served, Did.WORKER_DIED)
            assert "while it ran or loaded slow" in death
            await served.load("calm", "strange", strange("calm"))
            await served.load("slow", "strange", strange("slow"))
            assert await answers(served, "calm")
            assert served.pid_of("slow") == served.pid_of("calm"), "it is not isolated"
            assert not [note for note in served.seen(Noted) if note.did in (Did.STRUCK, Did.QUARANTINED)]

    asyncio.run(scenario())


def test_the_other_worker_serves_on(strange: Save) -> None:
    async def scenario() -> None:
        async with serving(n_workers=2) as served:
            for model in ("one", "two"):
                path = strange(model, weighs_bytes=80 * MIB, trouble="abort" if model == "one" else "")
                await served.load(model, "strange", path)
            assert served.pid_of("one") != served.pid_of("two")
            dying = asyncio.create_task(_dies(served, "one"))
            while not dying.done():
                assert await answers(served, "two")
            await dying
            await _until_lost(served, "one")
            await served.until(lambda: len(served.pids()) == 2, "it is started again")

    asyncio.run(scenario())


@pytest.mark.parametrize("trouble", ["abort", "exit 3", "exit 0"])
def test_a_model_that_kills_its_worker_is_isolated_then_quarantined(trouble: str, strange: Save) -> None:
    async def scenario() -> None:
        async with serving() as served:
            bad = strange("bad", trouble=trouble)
            await served.load("calm", "strange", strange("calm"))
            await served.load("bad", "strange", bad)
            assert await answers(served, "bad")
            await _dies(served, "bad")
            await _until_lost(served, "calm", "bad")
            assert len(notes(served, Did.STRUCK, "bad")) == 1

            await served.load("calm", "strange", strange("calm"))
            spec = ModelSpec("bad", "strange", str(bad))
            estimate = await served.runtime.estimate(spec)
            assert estimate.base_bytes > 15 * MIB, "a worker of its own is reserved"
            await served.load("bad", "strange", bad)
            assert served.pid_of("bad") != served.pid_of("calm")
            assert await answers(served, "bad")
            await _dies(served, "bad")
            await served.until(lambda: bool(notes(served, Did.QUARANTINED, "bad")), "it is quarantined")
            await served.until(lambda: len(served.pids()) == 1, "its worker is not started again")
            assert [lost.model for lost in served.seen(CopyLost)].count("calm") == 1
            with pytest.raises(Quarantined, match=r"Model bad is quarantined .* 2 times") as refused:
                await served.runtime.load(spec, estimate)
            assert refused.value.retry_after_s
            assert await answers(served, "calm")

    asyncio.run(scenario())


def test_a_model_that_runs_alone_gives_its_worker_back(strange: Save) -> None:
    async def scenario() -> None:
        async with serving() as served:
            bad = strange("bad", trouble="abort")
            await served.load("bad", "strange", bad)
            await _dies(served, "bad")
            await _until_lost(served, "bad")
            loaded = await served.load("bad", "strange", bad)
            await served.unload("bad")
            await served.until(lambda: len(served.pids()) == 1, "only the regular worker is left")
            await served.until(
                lambda: served.capacity[0] > loaded.capacity_bytes + 15 * MIB, "its base is back"
            )

    asyncio.run(scenario())


def test_without_room_for_a_worker_of_its_own_it_is_refused(
    strange: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "UNKNOWN_MODULE_BYTES", 0)

    async def scenario() -> None:
        async with serving(budget_mib=40) as served:
            bad = strange("bad", trouble="abort")
            await served.load("bad", "strange", bad)
            await _dies(served, "bad")
            await _until_lost(served, "bad")
            with pytest.raises(Quarantined, match="no room for a worker of its own"):
                await served.load("bad", "strange", bad)

    asyncio.run(scenario())


def test_a_model_that_kills_its_worker_while_loading_is_found_out(strange: Save) -> None:
    async def scenario() -> None:
        async with serving() as served:
            await served.load("calm", "strange", strange("calm"))
            bad = strange("bad", on_load="abort")
            with pytest.raises(LoadFailed, match=r"died while model bad was loading: .*SIGABRT") as failure:
                await served.load("bad", "strange", bad)
            assert not failure.value.permanent
            for _ in range(2):
                with pytest.raises(Quarantined):
                    await served.load("bad", "strange", bad)
            await served.load("calm", "strange", strange("calm"))
            assert await answers(served, "calm")

    asyncio.run(scenario())


def test_a_load_whose_worker_is_killed_from_outside_is_done_elsewhere(strange: Save) -> None:
    async def scenario() -> None:
        async with serving() as served:
            loading = asyncio.create_task(
                served.load("slow", "strange", strange("slow", on_load="sleep 1.5"))
            )
            seat = served.runtime._supervisor.seats[0]
            await served.until(lambda: seat.loading is not None and bool(seat.formats), "it loads")
            os.kill(served.pids()[0], signal.SIGKILL)
            await loading
            assert await answers(served, "slow")
            assert not notes(served, Did.STRUCK, "slow")

    asyncio.run(scenario())


def test_while_storage_hangs_its_worker_serves_on_and_nobody_is_blamed(
    strange: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examined, "LOOK_S", 0.2)
    monkeypatch.setattr(examined, "POLL_S", 0.05)
    back = threading.Event()

    def refusal(path: str) -> str:
        return "" if not hanging or back.wait(30) else "It hung."

    async def scenario() -> None:
        async with serving(load_timeout_s=1.0) as served:
            monkeypatch.setattr(served.runtime._examinations, "_refusal", refusal)
            await served.load("calm", "strange", strange("calm"))
            before = served.pid_of("calm")
            loading = asyncio.create_task(
                served.load("hangs", "strange", strange("hangs", on_load="sleep 600"))
            )
            await asyncio.sleep(0.5)
            hanging.append(True)
            with pytest.raises(LoadFailed, match=r"was given up\. Its storage does not") as told:
                await loading
            assert told.value.code is Code.UNAVAILABLE
            assert not notes(served, Did.STRUCK)
            assert served.pid_of("calm") == before and await answers(served, "calm")
            back.set()
            await served.until(lambda: not is_running(before), "the worker is replaced")
            assert served.seen(CopyLost) == []
            assert await answers(served, "calm")

    hanging: list[bool] = []
    asyncio.run(scenario())


def test_a_worker_is_not_replaced_while_the_files_of_its_models_are_away(
    strange: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "LOOK_S", 0.05)

    async def scenario() -> None:
        async with serving() as served:
            folder = strange("calm")
            await served.load("calm", "strange", folder)
            before = served.pid_of("calm")
            away = folder.rename(folder.with_name("away"))
            served.runtime._replacing.swollen(served.runtime._supervisor.seats[0])
            await asyncio.sleep(0.3)
            assert served.pid_of("calm") == before and await answers(served, "calm")
            assert not notes(served, Did.WORKER_RECYCLED)
            away.rename(folder)
            await served.until(lambda: not is_running(before), "the worker is replaced")
            assert served.seen(CopyLost) == []
            assert await answers(served, "calm")

    asyncio.run(scenario())


def test_a_load_that_hangs_is_given_up_and_the_others_are_saved(strange: Save) -> None:
    async def scenario() -> None:
        async with serving(load_timeout_s=2.0) as served:
            await served.load("calm", "strange", strange("calm"))
            before = served.pid_of("calm")
            with pytest.raises(LoadTimeout, match="Model hangs was still loading after 2 s"):
                await served.load("hangs", "strange", strange("hangs", on_load="sleep 600"))
            await served.until(lambda: not is_running(before), "the worker is ended")
            assert [moved.model for moved in served.seen(ReplicasChanged)] == ["calm"]
            assert served.seen(CopyLost) == []
            assert served.pid_of("calm") != before
            assert await answers(served, "calm")
            assert notes(served, Did.STRUCK, "hangs")
            assert len(served.pids()) == 1

    asyncio.run(scenario())


def test_a_model_that_never_answers_is_isolated_then_quarantined(strange: Save) -> None:
    """Who waits for it is told; its worker, with all that wait behind it, is replaced."""

    async def scenario() -> None:
        async with serving(stuck_after_s=1.0) as served:
            hangs = strange("hangs", trouble="sleep 600")
            await served.load("calm", "strange", strange("calm"))
            await served.load("hangs", "strange", hangs)
            first = served.pid_of("calm")
            waiting = asyncio.create_task(served.infer("hangs", TROUBLE))
            await served.until(lambda: _executing(served) == ["hangs"], "it executes")
            behind = asyncio.create_task(served.infer("calm", FINE))
            with pytest.raises(InferenceServerException, match="hangs did not answer within 1 s") as told:
                await waiting
            assert told.value.status() == "StatusCode.DEADLINE_EXCEEDED"
            with pytest.raises(InferenceServerException):
                await behind
            await _until_lost(served, "calm", "hangs")
            assert not is_running(first)
            (struck,) = notes(served, Did.STRUCK, "hangs")
            assert "hangs did not answer within 1 s" in struck
            await served.until(lambda: len(served.pids()) == 1, "the worker is started again")

            await served.load("calm", "strange", strange("calm"))
            await served.load("hangs", "strange", hangs)
            assert served.pid_of("hangs") != served.pid_of("calm"), "it runs alone"
            with pytest.raises(InferenceServerException, match="hangs did not answer"):
                await served.infer("hangs", TROUBLE)
            await served.until(lambda: bool(notes(served, Did.QUARANTINED, "hangs")), "it is quarantined")
            with pytest.raises(Quarantined, match="hangs did not answer within 1 s"):
                await served.load("hangs", "strange", hangs)
            assert await answers(served, "calm")
            assert not notes(served, Did.STRUCK, "calm")

    asyncio.run(scenario())


def test_a_slow_model_is_left_alone(strange: Save) -> None:
    """Many batches one after another are not one that does not end."""

    async def scenario() -> None:
        async with serving(stuck_after_s=1.0) as served:
            await served.load("slow", "strange", strange("slow", trouble="sleep 0.7"))
            worker = served.pid_of("slow")
            for _ in range(6):
                assert ((await served.infer("slow", TROUBLE))["predict"] == TROUBLE * 2).all()
            assert served.pid_of("slow") == worker

    asyncio.run(scenario())


def test_a_cancelled_load_leaves_nothing(strange: Save) -> None:
    async def scenario() -> None:
        async with serving() as served:
            path = strange("slow", on_load="sleep 1")
            loading = asyncio.create_task(served.load("slow", "strange", path))
            seat = served.runtime._supervisor.seats[0]
            await served.until(lambda: seat.loading is not None and bool(seat.formats), "it loads")
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            await served.unload("slow")
            assert seat.loading is None
            assert seat.models == {}
            assert seat.account.charged_bytes == 0
            await served.load("slow", "strange", path)
            assert await answers(served, "slow")

    asyncio.run(scenario())


def test_requests_in_a_worker_are_served_out_when_their_model_is_unloaded(strange: Save) -> None:
    async def scenario() -> None:
        async with serving() as served:
            await served.load("slow", "strange", strange("slow", trouble="sleep 0.7"))
            running = asyncio.create_task(served.infer("slow", TROUBLE))
            await served.until(lambda: _executing(served) == ["slow"], "it executes")
            await served.runtime.unload("slow")
            assert running.done() or not _executing(served)
            assert ((await running)["predict"] == TROUBLE * 2).all()
            with pytest.raises(InferenceServerException):
                await served.infer("slow", FINE)

    asyncio.run(scenario())


@pytest.mark.skipif(not LINUX, reason="PSS is Linux's")
def test_a_worker_whose_memory_does_not_come_back_is_replaced(
    strange: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "SWOLLEN_S", 1.0)

    async def scenario() -> None:
        async with serving(budget_mib=400) as served:
            await served.load("calm", "strange", strange("calm"))
            await served.load("leaks", "strange", strange("leaks", trouble="leak 180"))
            before = served.pid_of("calm")
            await served.infer("leaks", TROUBLE)
            await served.until(lambda: served.capacity[1] > 100 * MIB, "the leak is seen")
            await served.until(lambda: not is_running(before), "the worker is replaced")
            assert {moved.model for moved in served.seen(ReplicasChanged)} == {"calm", "leaks"}
            assert served.seen(CopyLost) == []
            (note,) = notes(served, Did.WORKER_RECYCLED)
            assert "belong to no model" in note
            assert await answers(served, "calm")
            await served.until(lambda: served.capacity[1] < 20 * MIB, "the memory is back")

    asyncio.run(scenario())


@pytest.mark.skipif(not LINUX, reason="PSS is Linux's")
def test_without_room_for_a_second_worker_it_is_replaced_at_once(
    strange: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "SWOLLEN_S", 1.0)

    async def scenario() -> None:
        async with serving(budget_mib=150) as served:
            await served.load("calm", "strange", strange("calm"))
            await served.load("leaks", "strange", strange("leaks", trouble="leak 110"))
            await served.infer("leaks", TROUBLE)
            await _until_lost(served, "calm", "leaks")
            assert all("belong to no model" in lost.reason for lost in served.seen(CopyLost))
            assert served.seen(ReplicasChanged) == []
            await served.load("calm", "strange", strange("calm"))
            assert await answers(served, "calm")
            assert not notes(served, Did.STRUCK, "leaks")

    asyncio.run(scenario())


def test_a_worker_that_cannot_be_started_again_is_tried_until_it_can(
    strange: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_S_MIN", 0.05)

    async def scenario() -> None:
        async with serving() as served:
            monkeypatch.setenv("PYTHONHOME", "/nowhere")
            await served.load("calm", "strange", strange("calm"))
            os.kill(served.pids()[0], signal.SIGKILL)
            await _until_lost(served, "calm")
            seat = served.runtime._supervisor.seats[0]
            await served.until(lambda: seat.failed_starts >= 3, "it fails to start")
            loading = asyncio.create_task(served.load("calm", "strange", strange("calm")))
            monkeypatch.delenv("PYTHONHOME")
            await loading
            assert await answers(served, "calm")

    asyncio.run(scenario())


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import asyncio
        from tests.integration.builtin_runtime import serving

        async def main():
            async with serving(n_workers=2) as served:
                print(*served.pids(), flush=True)
                await asyncio.sleep(60)

        asyncio.run(main())
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
        parent.kill()
        parent.wait(10)
    ends_s = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < ends_s, "a worker outlives its parent"
        time.sleep(0.05)
