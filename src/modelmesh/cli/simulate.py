"""`simulate`: what other sizes of memory, policies and numbers of instances would have done with the requests of a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from modelmesh.cli.exits import CommandFailed, Exit
from modelmesh.cli.options import Json, console, print_json
from modelmesh.cli.quantities import parse_share
from modelmesh.settings.sizes import parse_size

if TYPE_CHECKING:
    from modelmesh.simulate.outcome import Rule, Setup
    from modelmesh.simulate.report import Stage
    from modelmesh.simulate.trace import LoadCost, Trace


def simulate(
    log: Annotated[
        Path | None,
        typer.Argument(
            help="A request log: .csv, .csv.gz or .parquet with the columns time, model.", metavar="LOG"
        ),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            help="Instead of a log: a made-up trace, such as models=2000,zipf=1,sweeps=2 (docs/simulate.md)."
        ),
    ] = None,
    memory: Annotated[
        str, typer.Option(help="Sizes of memory of all instances together; shares are of all models' bytes.")
    ] = "10%,20%,40%,80%",
    policies: Annotated[str, typer.Option(help="Of rate-cost, lru, optimum.")] = "rate-cost,lru,optimum",
    instances: Annotated[str, typer.Option(help="Numbers of instances that share the memory.")] = "1",
    warm: Annotated[
        str,
        typer.Option(help="How much memory is needed for so many requests to find their model loaded: 99%."),
    ] = "",
    warmup: Annotated[
        str, typer.Option(help="The first share of the requests fills memory and does not count.")
    ] = "0%",
    columns: Annotated[
        str, typer.Option(help="Other names of the log's columns: time=ts,model=name,size=bytes.")
    ] = "",
    default_size: Annotated[str, typer.Option(help="Of models whose size the log does not tell.")] = "",
    load_fixed: Annotated[
        float,
        typer.Option(help="Seconds a load takes beside reading the bytes, unless the log tells.", min=0.0),
    ] = 0.05,
    load_rate: Annotated[
        str, typer.Option(help="Bytes a load reads in a second, unless the log tells.")
    ] = "200MB",
    loads: Annotated[int, typer.Option(help="Loads at once in an instance.", min=1)] = 4,
    slots: Annotated[int, typer.Option(help="Requests at once in an instance, for its busyness.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of the synthetic trace and of what policies draw.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this file: .svg, .png or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Replay a request log on other sizes of memory, without an instance."""
    from modelmesh.cli import simulated
    from modelmesh.simulate.outcome import Setup
    from modelmesh.simulate.report import describe, memory_for, run_all
    from modelmesh.simulate.trace import LoadCost, TraceError

    if (log is None) == (synthetic is None):
        _wrong(
            "Name a request log, or a made-up trace with --synthetic (one of them; --synthetic '' for its defaults)."
        )
    rules = [_rule(name) for name in _parts("--policies", policies)]
    counts = [_count(text) for text in _parts("--instances", instances)]
    wanted_share = parse_share("--warm", warm) if warm else None
    base = Setup(1, loads=loads, slots=slots, seed=seed, warmup=parse_share("--warmup", warmup, full=False))
    cost = LoadCost(load_fixed, float(_size("--load-rate", load_rate)))
    default_size_bytes = _size("--default-size", default_size) if default_size else None
    try:
        if plot is not None:
            from modelmesh.simulate.plot import check

            if wanted_share is not None:
                _wrong("--plot draws runs and --warm answers a question: ask for one of them.")
            check(plot)
        with simulated.progress_bar() as stage:
            trace = (
                _read(log, columns, default_size_bytes, cost, stage)
                if log is not None
                else _made(synthetic or "", seed, cost)
            )
            about = describe(trace, str(log) if log is not None else "synthetic trace")
            if wanted_share is not None:
                asked = [
                    memory_for(trace, _with(base, count, rule), wanted_share, stage)
                    for count in counts
                    for rule in rules
                ]
            else:
                sizes = [_size("--memory", text, trace.total_bytes) for text in _parts("--memory", memory)]
                runs = run_all(trace, base, sizes, rules, counts, stage)
    except TraceError as error:
        source = f"{log}: " if log is not None else "--synthetic: "
        raise CommandFailed(f"{source}{error}", Exit.USAGE) from error
    except OSError as error:
        raise CommandFailed(f"{log} cannot be read: {error.strerror or error}.", Exit.USAGE) from error

    terminal = console()
    if wanted_share is not None:
        if as_json:
            print_json({"trace": about, "answers": [answer.as_json() for answer in asked]})
            return
        terminal.print(simulated.trace_line(about), markup=False)
        for answer in asked:
            terminal.print(answer.sentence(), markup=False)
        return
    if plot is not None:
        _draw(runs, simulated.trace_line(about), plot)
    if as_json:
        print_json({"trace": about, "runs": [run.as_json() for run in runs]})
        return
    terminal.print(simulated.trace_line(about), markup=False)
    terminal.print()
    terminal.print(simulated.runs_table(runs))
    terminal.print()
    terminal.print(simulated.bars(runs))
    for remark in simulated.remarks(runs):
        terminal.print(remark, markup=False)


def _read(log: Path, columns: str, default_size_bytes: int | None, cost: LoadCost, stage: Stage) -> Trace:
    from modelmesh.simulate.csv_log import read_csv
    from modelmesh.simulate.parquet_log import read_parquet

    renamed = {}
    for part in _parts("--columns", columns) if columns else []:
        ours, equals, theirs = part.partition("=")
        if not equals or not theirs:
            _wrong(f"--columns {part!r} is not NAME=COLUMN, such as time=ts.")
        renamed[ours] = theirs
    name = log.name.lower()
    reader = read_parquet if name.endswith(".parquet") else read_csv
    if not name.endswith((".parquet", ".csv", ".csv.gz")):
        _wrong(f"{log} is neither .csv, .csv.gz nor .parquet by its name.")
    progress = stage(f"reading {log.name}", log.stat().st_size)
    return reader(log, renamed=renamed, default_size_bytes=default_size_bytes, cost=cost, progress=progress)


def _made(text: str, seed: int, cost: LoadCost) -> Trace:
    from modelmesh.simulate.synthetic import parse_synthetic, synthesise

    return synthesise(parse_synthetic(text), seed, cost)


def _draw(runs: Any, title: str, path: Path) -> None:
    from modelmesh.simulate.plot import draw

    try:
        draw(runs, title, path)
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror or error}.", Exit.USAGE) from error


# --- the command line as values ---------------------------------------------------------------------------------------


def _with(base: Setup, instances: int, rule: Rule) -> Setup:
    from dataclasses import replace

    return replace(base, instances=instances, rule=rule)


def _parts(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        _wrong(f"{option} is empty.")
    return list(dict.fromkeys(parts))


def _rule(name: str) -> Rule:
    from modelmesh.simulate.outcome import Rule

    if name not in set(Rule):
        _wrong(f"--policies {name!r} is not one of {', '.join(Rule)}.")
    return Rule(name)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        _wrong(f"--instances {text!r} is not a number from 1 to 1000.")
    return int(text)


def _size(option: str, text: str, whole_bytes: int | None = None) -> int:
    try:
        return parse_size(text, whole_bytes=whole_bytes)
    except ValueError as error:
        _wrong(f"{option} {text!r} {error}.")


def _wrong(sentence: str) -> NoReturn:
    raise CommandFailed(sentence, Exit.USAGE)
