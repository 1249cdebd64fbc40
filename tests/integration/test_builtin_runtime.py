"""The built-in runtime with real worker processes: loads, answers, sizes, memory that comes back, deaths, isolation."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from tritonclient.utils import InferenceServerException

from modelmesh.errors import Code, LoadFailed, ModelTooLarge
from modelmesh.journal import Did
from modelmesh.runtime.protocol import ModelSpec
from modelmesh.worker.memory import LINUX, footprint
from tests.integration.builtin_runtime import MIB, notes, serving

FEATURES, LABELS = load_iris(return_X_y=True)


def test_models_answer_over_their_sockets_as_in_process(iris: tuple[Path, Any]) -> None:
    path, estimator = iris

    async def scenario() -> None:
        async with serving(n_workers=2) as served:
            assert served.info.model_types >= {"sklearn", "xgboost", "lightgbm", "onnx"}
            assert 0 < served.info.capacity_bytes < 1000 * MIB
            spec = ModelSpec("iris", "sklearn", str(path))
            first = await served.runtime.estimate(spec)
            assert first.base_bytes > 20 * MIB, "the framework has to be imported"
            assert first.peak_bytes >= first.size_bytes > 0
            loaded = await served.load("iris", "sklearn", path)
            assert loaded.capacity_bytes < served.info.capacity_bytes - 20 * MIB, "the base is nobody's model"
            assert loaded.size_bytes < MIB
            (told,) = notes(served, Did.IMPORTED, "iris")
            assert re.fullmatch(r"worker-\d imported sklearn first, in \d+\.\d s\.", told)
            answer = await served.infer("iris", FEATURES, "predict", "predict_proba")
            np.testing.assert_array_equal(answer["predict"], estimator.predict(FEATURES)[:, None])
            np.testing.assert_allclose(answer["predict_proba"], estimator.predict_proba(FEATURES), rtol=1e-6)
            again = await served.runtime.estimate(spec)
            assert (again.base_bytes, again.content) == (0, loaded.content)
            assert again.size_bytes == loaded.size_bytes
            await served.unload("iris")
            await served.unload("iris")
            await served.unload("never loaded")

    asyncio.run(scenario())


def test_files_that_changed_since_they_were_seen_are_seen_again(
    iris: tuple[Path, Any], tmp_path: Path
) -> None:
    first, other = iris[1], RandomForestClassifier(3, random_state=1).fit(FEATURES, (LABELS + 1) % 3)
    path = tmp_path / "model.joblib"

    async def scenario() -> None:
        async with serving() as served:
            for estimator in (first, other):
                joblib.dump(estimator, path)
                loaded = await served.load("iris", "sklearn", path)
                answer = await served.infer("iris", FEATURES)
                np.testing.assert_array_equal(answer["predict"], estimator.predict(FEATURES)[:, None])
                await served.unload("iris")
            spec = ModelSpec("iris", "sklearn", str(path))
            estimate = await served.runtime.estimate(spec)
            assert estimate.content == loaded.content
            path.unlink()
            with pytest.raises(LoadFailed) as gone:
                await served.runtime.load(spec, estimate)
            assert gone.value.code is Code.NOT_FOUND

    asyncio.run(scenario())


def test_a_bad_request_in_a_batch_fails_alone(iris: tuple[Path, Any]) -> None:
    path, estimator = iris

    async def scenario() -> None:
        async with serving() as served:
            await served.load("iris", "sklearn", path)
            rows = [FEATURES[place : place + 1].copy() for place in range(40)]
            rows[7][0, 0] = np.nan
            answers = await asyncio.gather(
                *(served.infer("iris", row) for row in rows), return_exceptions=True
            )
            assert isinstance(answers[7], InferenceServerException)
            assert "NaN" in answers[7].message()
            assert "INVALID_ARGUMENT" in str(answers[7].status())
            for place, answer in enumerate(answers):
                if place != 7:
                    assert not isinstance(answer, BaseException)
                    assert answer["predict"] == estimator.predict(FEATURES[place : place + 1])

    asyncio.run(scenario())


def test_artefacts_that_cannot_be_loaded_say_why(tmp_path: Path) -> None:
    broken = tmp_path / "model.joblib"
    broken.write_bytes(b"\x80\x04broken")

    async def scenario() -> None:
        async with serving(budget_mib=300) as served:
            for spec, code, said in (
                (ModelSpec("a", "sklearn", str(tmp_path / "nothing")), Code.NOT_FOUND, "nothing at"),
                (
                    ModelSpec("b", "prophet", str(broken)),
                    Code.FAILED_PRECONDITION,
                    "'prophet' is not served here",
                ),
                (ModelSpec("c", "onnx", str(broken)), Code.INVALID_ARGUMENT, "looks like sklearn"),
            ):
                with pytest.raises(LoadFailed, match=said) as failure:
                    await served.runtime.estimate(spec)
                assert (failure.value.code, failure.value.model) == (code, spec.id)
            spec = ModelSpec("d", "sklearn", str(broken))
            with pytest.raises(LoadFailed, match="not a whole pickle") as failure:
                await served.runtime.load(spec, await served.runtime.estimate(spec))
            assert failure.value.permanent
            big = tmp_path / "big.onnx"
            with big.open("wb") as stream:
                stream.write(b"\x08\x07")
                stream.truncate(400 * MIB)
            with pytest.raises(ModelTooLarge, match=r"needs about .* MiB of memory would do"):
                await served.runtime.estimate(ModelSpec("e", "onnx", str(big)))

    asyncio.run(scenario())


@pytest.mark.skipif(not LINUX, reason="PSS is Linux's")
def test_sizes_are_near_the_truth_and_memory_comes_back(tmp_path: Path) -> None:
    forest = tmp_path / "forest.joblib"
    joblib.dump(RandomForestClassifier(30, random_state=0).fit(FEATURES, LABELS), forest)

    async def scenario() -> None:
        async with serving() as served:
            await served.load("warm", "sklearn", forest)
            await served.infer("warm", FEATURES)
            await served.unload("warm")
            (pid,) = served.pids()
            await served.until(lambda: bool(served.runtime.memory()[0][1]), "a reading")
            before = footprint(pid)
            assert before is not None
            charged_bytes = 0
            for number in range(200):
                loaded = await served.load(f"forest-{number}", "sklearn", forest)
                charged_bytes += loaded.size_bytes
            assert charged_bytes == served.runtime.memory()[0][3]
            full = footprint(pid)
            assert full is not None
            grown_bytes = full.anon_bytes - before.anon_bytes
            assert grown_bytes > 5 * MIB, "or the test measures nothing"
            assert 0.75 * grown_bytes < charged_bytes < 1.35 * grown_bytes
            await served.infer("forest-7", FEATURES)
            for number in range(200):
                await served.unload(f"forest-{number}")
            assert served.runtime.memory()[0][3] == 0

            def is_near_base() -> bool:
                now = footprint(pid)
                return now is not None and now.anon_bytes - before.anon_bytes < 0.1 * grown_bytes + 3 * MIB

            await served.until(is_near_base, "the memory comes back")

    asyncio.run(scenario())


@pytest.mark.skipif(not LINUX, reason="PSS is Linux's")
def test_an_idle_worker_is_small() -> None:
    async def scenario() -> None:
        async with serving() as served:
            status = await asyncio.to_thread(Path(f"/proc/{served.pids()[0]}/status").read_text)
            (resident,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
            assert int(resident.split()[1]) * 1024 <= 45 * MIB

    asyncio.run(scenario())


def test_what_is_prepared_is_imported_before_a_load_asks_for_it(iris: tuple[Path, Any]) -> None:
    async def scenario() -> None:
        async with serving(n_workers=2) as served:
            await served.runtime.prepare({"SKlearn", "unheard of"})
            await served.runtime.prepare({"sklearn"})
            assert len(notes(served, Did.IMPORTED)) == 1
            assert (await served.runtime.estimate(ModelSpec("iris", "sklearn", str(iris[0])))).base_bytes == 0
            loaded = await served.load("iris", "sklearn", iris[0])
            assert loaded.capacity_bytes < served.info.capacity_bytes - 20 * MIB, "the base is nobody's model"
            assert not notes(served, Did.IMPORTED, "iris")

    asyncio.run(scenario())


def test_nothing_is_prepared_that_memory_does_not_hold() -> None:
    async def scenario() -> None:
        async with serving(budget_mib=60) as served:
            await served.runtime.prepare({"sklearn"})
            assert not notes(served, Did.IMPORTED)

    asyncio.run(scenario())


def test_one_of_many_first_loads_pays_for_the_import(iris: tuple[Path, Any]) -> None:
    async def scenario() -> None:
        async with serving(n_workers=2) as served:
            specs = [ModelSpec(f"m{number}", "sklearn", str(iris[0])) for number in range(10)]
            estimates = [await served.runtime.estimate(spec) for spec in specs]
            assert [estimate.base_bytes > 0 for estimate in estimates] == [True] + [False] * 9
            assert (await served.runtime.estimate(specs[0])).base_bytes == estimates[0].base_bytes
            pairs = zip(specs, estimates, strict=True)
            await asyncio.gather(*(served.runtime.load(spec, estimate) for spec, estimate in pairs))
            imported = [len(seat.formats) for seat in served.runtime._supervisor.seats]
            assert sorted(imported) == [0, 1]

    asyncio.run(scenario())
