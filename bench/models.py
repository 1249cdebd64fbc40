"""The model zoo: thousands of real models of four frameworks, with the answers each must give.

A zoo is made once per (count, seed, library versions) and kept in `bench/out`. Beside the model folders lies
`index.json`: for each model four input rows and the prediction its framework gives for them in this process, which
whoever serves the zoo must repeat. Sizes are log-uniform: most models are small, most bytes are in few large ones.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.metadata
import json
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.makers import KIB, KINDS, MIB, N_FEATURES, Kind

OUT = Path(__file__).parent / "out"
LIBRARIES = ("scikit-learn", "xgboost-cpu", "xgboost", "lightgbm", "onnx", "onnxruntime", "numpy")
FORMAT = 4
"""Raised when models of the same seed come out different, so that kept zoos are made anew."""

N_ROWS = 4
SIZE_BYTES_MAX = 20 * MIB
SHARES = {
    "sklearn-linear": 0.08,
    "sklearn-wide": 0.12,
    "sklearn-forest": 0.12,
    "xgboost-classifier": 0.06,
    "xgboost-regressor": 0.18,
    "lightgbm": 0.19,
    "onnx": 0.25,
}


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One model of the zoo. `rows` are the inputs, `answers` what it predicts for each; both one list per row."""

    name: str
    kind: str
    datatype: str
    output: str
    size_bytes: int
    """About what it weighs in memory; the file may be smaller (compressed layouts) or larger (text)."""
    disk_bytes: int
    rows: list[list[float]]
    answers: list[list[float]]


@dataclass(frozen=True, slots=True)
class Zoo:
    """`models` is the folder to serve."""

    models: Path
    index: Sequence[ZooModel]

    @property
    def size_bytes(self) -> int:
        return sum(model.size_bytes for model in self.index)


@dataclass(frozen=True, slots=True)
class Order:
    """One model to make."""

    number: int
    kind: str
    size_bytes: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:05d}"


def plan(
    n_models: int,
    seed: int,
    size_bytes_max: int = SIZE_BYTES_MAX,
    tree_bytes_max: int = SIZE_BYTES_MAX,
    kinds: Sequence[str] = tuple(SHARES),
) -> list[Order]:
    """Which models a zoo has: the same for equal arguments. (Leaf values also depend on who made which model first.)"""
    rng = np.random.default_rng(seed)
    shares = np.array([SHARES[kind] for kind in kinds])
    orders = []
    for number, kind in enumerate(rng.choice(list(kinds), n_models, p=shares / shares.sum())):
        boosted = KINDS[kind].framework in ("xgboost", "lightgbm")
        least = max(KIB, KINDS[kind].size_bytes_min)
        most = max(least, min(tree_bytes_max if boosted else size_bytes_max, KINDS[kind].size_bytes_max))
        size_bytes = round(math.exp(rng.uniform(math.log(least), math.log(most))))
        orders.append(Order(number, str(kind), size_bytes, int(rng.integers(2**31))))
    return orders


def make_model(order: Order, root: Path) -> ZooModel:
    """Write one model and ask it, alone in this process, what it predicts."""
    kind = KINDS[order.kind]
    rng = np.random.default_rng(order.seed)
    path = root / order.name / kind.file_name
    path.parent.mkdir(parents=True)
    kind.make(path, order.size_bytes, rng)
    rows = _rows(order.kind, kind, rng)
    answers = np.asarray(kind.predict(path, rows), dtype=np.float64).reshape(N_ROWS, -1)
    if not np.isfinite(answers).all():
        raise AssertionError(f"{order.name} predicts {answers.tolist()}, which nobody can check")
    disk_bytes = path.stat().st_size
    size_bytes = max(order.size_bytes, 1) if kind.size_bytes_min else disk_bytes
    return ZooModel(
        order.name,
        order.kind,
        kind.datatype,
        kind.output,
        size_bytes,
        disk_bytes,
        rows.tolist(),
        answers.tolist(),
    )


def _rows(name: str, kind: Kind, rng: np.random.Generator) -> np.ndarray:
    if name == "sklearn-linear":
        rows = rng.uniform(0, 7, (N_ROWS, 4))
    elif name == "xgboost-classifier":
        from sklearn.datasets import load_wine

        rows = rng.permutation(load_wine().data)[:N_ROWS]
    else:
        rows = rng.standard_normal((N_ROWS, N_FEATURES))
    return rows.astype(np.float32 if kind.datatype == "FP32" else np.float64)


def _make_share(orders: Sequence[Order], root: Path) -> list[ZooModel]:
    return [make_model(order, root) for order in orders]


def zoo(
    n_models: int,
    *,
    seed: int = 1,
    size_bytes_max: int = SIZE_BYTES_MAX,
    tree_bytes_max: int = SIZE_BYTES_MAX,
    kinds: Sequence[str] = tuple(SHARES),
    console: Console | None = None,
) -> Zoo:
    """The zoo of these arguments, made now unless it is kept. One process per core makes it. Some `kinds` keep their shares among
    each other.

    `tree_bytes_max` bounds boosted trees; below 500 KiB none need to be grown deep, which saves most of a small zoo's time.
    """
    name = f"zoo-{n_models}-{seed}-{size_bytes_max // KIB}k-{tree_bytes_max // KIB}k"
    folder = OUT / (name if len(kinds) == len(SHARES) else "-".join([name, *kinds]))
    made_with = {"format": FORMAT, "libraries": _versions()}
    kept = _read(folder, made_with)
    if kept is not None:
        return kept
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    (partial / "models").mkdir(parents=True)
    orders = plan(n_models, seed, size_bytes_max, tree_bytes_max, kinds)
    index = _make_all(orders, partial / "models", console or Console(stderr=True))
    document = {**made_with, "models": [asdict(model) for model in index]}
    (partial / "index.json").write_text(json.dumps(document))
    partial.rename(folder)
    return Zoo(folder / "models", index)


def _make_all(orders: Sequence[Order], root: Path, console: Console) -> list[ZooModel]:
    # Alike models next to each other, so that each process grows few kinds of trees; spawn, because OpenMP dislikes fork.
    alike = sorted(orders, key=lambda order: (order.kind, order.size_bytes))
    shares = [alike[start : start + 25] for start in range(0, len(alike), 25)]
    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("Making models"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    index: list[ZooModel] = []
    with (
        Progress(*columns, console=console) as progress,
        concurrent.futures.ProcessPoolExecutor(
            min(len(shares), os.cpu_count() or 1), mp_context=context
        ) as pool,
    ):
        bar = progress.add_task("", total=len(orders))
        for done in concurrent.futures.as_completed(
            [pool.submit(_make_share, share, root) for share in shares]
        ):
            index.extend(done.result())
            progress.update(bar, completed=len(index))
    return sorted(index, key=lambda model: model.name[-5:])


def _read(folder: Path, made_with: dict[str, object]) -> Zoo | None:
    try:
        document = json.loads((folder / "index.json").read_text())
    except FileNotFoundError:
        return None
    if any(document.get(key) != value for key, value in made_with.items()):
        return None
    return Zoo(folder / "models", [ZooModel(**fields) for fields in document["models"]])


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def tiny_models(n_models: int, *, distinct: bool) -> Path:
    """A folder of `n_models` small scikit-learn models (about 1 KiB), kept in `bench/out`.

    With `distinct` each has coefficients of its own; otherwise they are hard links to a few files, which is enough
    where nothing is loaded.
    """
    folder = OUT / f"tiny-{n_models}-{'distinct' if distinct else 'links'}"
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    kind = KINDS["sklearn-linear"]
    rng = np.random.default_rng(2)
    for number in range(n_models):
        path = partial / f"tiny-{number:06d}" / kind.file_name
        path.parent.mkdir(parents=True)
        if distinct or number % 50_000 == 0:
            kind.make(path, 0, rng)
            original = path
        else:
            path.hardlink_to(original)
    partial.rename(folder)
    return folder


def describe(models: Iterable[ZooModel]) -> str:
    """Counts, bytes and spread in one sentence."""
    sizes = sorted(model.size_bytes for model in models)
    total, median = sum(sizes), sizes[len(sizes) // 2]
    tenth = sum(sizes[-max(1, len(sizes) // 10) :]) / total
    return (
        f"{len(sizes)} models, {total / 2**30:.2f} GiB in memory, {sizes[0] / KIB:.1f} KiB to {sizes[-1] / MIB:.1f} MiB "
        f"(median {median / KIB:.0f} KiB; the largest tenth holds {tenth:.0%})"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models", description="Make a model zoo and say where it is."
    )
    parser.add_argument("n_models", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    made = zoo(arguments.n_models, seed=arguments.seed)
    print(
        f"{made.models}: {describe(made.index)}, {sum(m.disk_bytes for m in made.index) / 2**30:.2f} GiB on disk"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
