"""The page of results: a run of one group leaves the others' sections, and the page is what its kept results yield."""

from __future__ import annotations

from pathlib import Path

from bench import page
from bench.__main__ import GROUPS
from bench.report import Row


def sitting(date: str) -> page.Sitting:
    return page.Sitting(date, "a machine", f"python -m bench --{date}", "nothing")


def test_a_run_of_one_group_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    rows = [
        Row("policy", "load-seconds", "1 s", "2 s", 0.5, 0.8),
        Row("miss", "a miss", "3 ms", "", 3, 0.5, unit=" ms"),
    ]
    page.write(sitting("one").sections(rows), path)
    page.write(sitting("two").sections([Row("miss", "a miss", "4 ms", "", 4, 0.5, unit=" ms")]), path)
    text = path.read_text()
    assert text.index("## Misses") < text.index("## Policies"), "the order of the page, not that of the runs"
    assert "| a miss | 4 ms |  | 4 ms | ≤ 0.5 ms | NO |" in text
    assert "3 ms" not in text
    assert "| load-seconds | 1 s | 2 s | 0.5× | ≤ 0.8× | yes |" in text
    assert "one, by `python -m bench --one`" in text
    assert "two, by `python -m bench --two`" in text


def test_the_page_is_what_its_kept_results_yield() -> None:
    assert page.render(page.kept()) == page.PAGE.read_text()


def test_every_group_has_a_place_on_the_page() -> None:
    assert set(GROUPS) <= set(page.ABOUT)
