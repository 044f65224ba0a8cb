"""The table of the handbook shows what the metrics say today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.handbook import KINDS, values_of

README = Path(__file__).resolve().parents[2] / "raydis/metrics/README.md"
ROUNDING = 0.005 + 1e-6  # of two digits, and of processors whose sums differ


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The head of the handbook's table and its rows by title."""
    lines = README.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| | perfect "))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : lines.index("", start)]]
    return rows[0][1:], {title: cells for title, *cells in rows[2:]}


def check(kind: str) -> None:
    kinds, rows = table()
    found = values_of(kind)
    assert list(rows) == list(found)
    for title, value in found.items():
        shown = rows[title][kinds.index(kind)]
        assert value is not None
        assert float(shown) == pytest.approx(value, abs=ROUNDING), title


def test_the_columns_are_those_of_the_command() -> None:
    kinds, rows = table()
    assert kinds == list(KINDS)
    assert {len(cells) for cells in rows.values()} == {len(kinds)}


@pytest.mark.parametrize("kind", ["shared", "rotated"])
def test_a_column_shows_what_the_metrics_say(kind: str) -> None:
    check(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"shared", "rotated"}))
def test_every_other_column_shows_what_the_metrics_say(kind: str) -> None:
    check(kind)
