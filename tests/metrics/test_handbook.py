"""The tables of the handbook show what the metrics say today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.handbook import KINDS, VECTOR_KINDS, values_of, vector_values_of

README = Path(__file__).resolve().parents[2] / "raydis/metrics/README.md"
ROUNDING = 0.005 + 1e-6  # of two digits, and of processors whose sums differ


FIRST_KINDS = {True: "circles", False: "perfect"}  # of the table of vectors and of that of scalars


def table(*, vectors: bool = False) -> tuple[list[str], dict[str, list[str]]]:
    """The head of a table of the handbook and its rows by title."""
    lines = README.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| | {FIRST_KINDS[vectors]} "))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : lines.index("", start)]]
    return rows[0][1:], {title: cells for title, *cells in rows[2:]}


def check(kind: str, *, vectors: bool = False) -> None:
    kinds, rows = table(vectors=vectors)
    found = vector_values_of(kind) if vectors else values_of(kind)
    assert list(rows) == list(found)
    for title, value in found.items():
        shown = rows[title][kinds.index(kind)]
        assert value is not None
        assert float(shown) == pytest.approx(value, abs=ROUNDING), title


@pytest.mark.parametrize(("vectors", "expected"), [(False, KINDS), (True, VECTOR_KINDS)], ids=["scalars", "vectors"])
def test_the_columns_are_those_of_the_command(vectors: bool, expected: dict) -> None:
    kinds, rows = table(vectors=vectors)
    assert kinds == list(expected)
    assert {len(cells) for cells in rows.values()} == {len(kinds)}


@pytest.mark.parametrize("kind", ["shared", "rotated"])
def test_a_column_shows_what_the_metrics_say(kind: str) -> None:
    check(kind)


def test_a_column_of_vectors_shows_what_the_metrics_say() -> None:
    check("copied", vectors=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"shared", "rotated"}))
def test_every_other_column_shows_what_the_metrics_say(kind: str) -> None:
    check(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(VECTOR_KINDS.keys() - {"copied"}))
def test_every_other_column_of_vectors_shows_what_the_metrics_say(kind: str) -> None:
    check(kind, vectors=True)
