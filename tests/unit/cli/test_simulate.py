"""`modelmesh simulate` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelmesh.cli import main as cli
from modelmesh.cli.exits import Exit
from modelmesh.cli.simulated import duration

PLOT_OR_WARM = "--plot draws runs and --warm answers a question: ask for one of them."
SMALL = "models=50,requests=2000,rate=20,load_spread=1"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["simulate", *arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four models of 10 bytes, asked for in turn a hundred times, once a second."""
    path = tmp_path / "log.csv"
    rows = (f"{step},m{step % 4},10" for step in range(400))
    path.write_text("\n".join(["time,model,size", *rows]) + "\n")
    return path


def test_a_log_as_json(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    code, out, err = run(capsys, str(log), "--memory", "30B,100%", "--load-fixed", "0.1", "--json")
    assert (code, err) == (Exit.OK, "")
    answer = json.loads(out)
    assert answer["trace"] == {
        "source": str(log),
        "requests": 400,
        "models": 4,
        "span_s": 399.0,
        "total_bytes": 40,
        "largest_bytes": 10,
        "models_with_known_size": 4,
    }
    runs = {(run["memory_bytes"], run["rule"]): run for run in answer["runs"]}
    assert list(runs) == [(size, rule) for size in (30, 40) for rule in ("rate-cost", "lru", "optimum")]
    assert runs[30, "lru"]["misses"] == 400, "LRU on a loop one model too long"
    # Belady on a loop of 4 with room for 3 keeps 2 of them for each round: a miss every 3 requests.
    assert runs[30, "optimum"]["misses"] == 4 + (396 + 2) // 3
    assert all(runs[40, rule]["misses"] == 4 for rule in ("rate-cost", "lru", "optimum"))
    assert runs[40, "lru"]["load_s"] == pytest.approx(0.4)
    assert runs[30, "rate-cost"]["load_s_of_lru"] == pytest.approx(40.0)
    documented = Path(__file__).parents[3].joinpath("docs", "simulate.md").read_text()
    for name in (*answer["trace"], *answer["runs"][0]):
        assert f"`{name}`" in documented, name


def test_a_table_and_bars(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    code, out, err = run(capsys, str(log), "--memory", "20B,100%", "--policies", "lru", "--instances", "1,2")
    lines = out.splitlines()
    assert (code, err) == (Exit.OK, "")
    assert lines[0] == (
        f"{log}: 400 requests for 4 models in 399 s; all models weigh 40 B, the largest 10 B."
    )
    assert lines[2].split()[:4] == ["INSTANCES", "MEMORY", "RULE", "WARM"]
    assert lines[4].split()[:6] == ["1", "40", "B", "lru", "99.00", "%"]
    assert sum(any(block in line for block in "█▍") for line in lines) == 4


def test_how_much_memory_for_99_percent(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    code, out, _ = run(capsys, str(log), "--warm", "99%", "--policies", "lru,optimum")
    assert code == Exit.OK
    assert out.splitlines()[1:] == [
        "99 % of the requests find their model loaded with 40 B under lru (99.00 %).",
        "99 % of the requests find their model loaded with 40 B under optimum (99.00 %).",
    ]
    code, out, _ = run(capsys, str(log), "--warm", "0.995", "--policies", "lru", "--json")
    (answer,) = json.loads(out)["answers"]
    assert answer["memory_bytes"] is None and answer["first_uses_share"] == pytest.approx(0.01)
    assert answer["sentence"] == (
        "No memory makes 99.5 % warm under lru: with room for all models it is 99.00 %, and 1.00 % of the requests are the "
        "first for their model. Leave out the beginning with --warmup 20%."
    )
    documented = Path(__file__).parents[3].joinpath("docs", "simulate.md").read_text()
    assert all(f"`{name}`" in documented for name in answer)
    code, out, _ = run(capsys, str(log), "--warm", "100%", "--warmup", "10%", "--policies", "rate-cost")
    assert "100 % of the requests find their model loaded with 40 B under rate-cost (100.00 %)." in out


def test_the_found_memory_is_enough_and_little_less_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--synthetic", SMALL, "--warm", "80%", "--policies", "lru", "--json")
    found = json.loads(out)["answers"][0]
    sizes = f"{found['memory_bytes']},{int(found['memory_bytes'] / 1.025)}"
    _, out, _ = run(capsys, "--synthetic", SMALL, "--memory", sizes, "--policies", "lru", "--json")
    enough, less = json.loads(out)["runs"]
    assert enough["warm_share"] == found["reached_share"] >= 0.8 > less["warm_share"]


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_a_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    plots = []
    for _ in range(2 if name.endswith("svg") else 1):
        code, _, err = run(
            capsys, "--synthetic", SMALL, "--memory", "20%,40%", "--plot", str(tmp_path / name)
        )
        assert (code, err) == (Exit.OK, "")
        plots.append((tmp_path / name).read_bytes())
    assert len(plots[0]) > 5_000 and plots[0].startswith((b"<?xml", b"\x89PNG"))
    assert plots[0] == plots[-1], "the same runs, the same file"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Name a request log, or a made-up trace with --synthetic (one of them; --synthetic '' for its defaults)."),
        (["nowhere.csv"], "nowhere.csv cannot be read: No such file or directory."),
        (["log.txt"], "log.txt is neither .csv, .csv.gz nor .parquet by its name."),
        (["--synthetic", "models=x"], "--synthetic: models=x is not a number."),
        (["--synthetic", "", "--policies", "fifo"], "--policies 'fifo' is not one of rate-cost, lru, optimum."),
        (["--synthetic", "", "--instances", "0"], "--instances '0' is not a number from 1 to 1000."),
        (["--synthetic", "", "--warm", "99 of 100"], "--warm '99 of 100' is not a share such as 99% or 0.99."),
        (["--synthetic", "", "--warmup", "100%"], "--warmup '100%' is not a share such as 99% or 0.99."),
        (["--synthetic", "", "--memory", ","], "--memory is empty."),
        (["--synthetic", "", "--plot", "a.gif"], "--synthetic: A plot is written as .svg, .png, .pdf, not a.gif."),
        (["--synthetic", "", "--plot", "a.svg", "--warm", "9%"], PLOT_OR_WARM),
        (["a.csv", "--columns", "time"], "--columns 'time' is not NAME=COLUMN, such as time=ts."),
    ],
)  # fmt: skip
def test_mistakes_end_with_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run(capsys, *arguments) == (Exit.USAGE, "", f"{sentence}\n")


def test_the_row_of_a_bad_log_is_named(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    with log.open("a") as file:
        file.write("400,m1,much\n")
    code, out, err = run(capsys, str(log))
    assert (code, out) == (Exit.USAGE, "")
    assert err == f"{log}: Row 402, column size: 'much' is not a number that is not negative.\n"


def test_numpy_is_imported_when_it_is_needed_only() -> None:
    said = (
        "import sys, modelmesh.cli.main as m; m.build(); "
        "print([name for name in ('numpy', 'pyarrow', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", said], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_durations_have_three_digits() -> None:
    said = [duration(seconds) for seconds in (0, 2e-6, 0.0125, 1.5, 998, 3000, 20_000, 300_000)]
    assert said == ["0 s", "2 µs", "12.5 ms", "1.5 s", "998 s", "3000 s", "5.6 h", "3.5 d"]
