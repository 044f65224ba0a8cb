"""What an evaluation looks like as text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from raydis.evaluation.formats import FORMATS, SUFFIXES, as_markdown, to_csv, to_json, to_latex, to_markdown
from raydis.evaluation.result import Estimate, Evaluation, Run
from raydis.evaluation.text import (
    BAR,
    MAX_NAME,
    MAX_TITLE,
    MAX_UNITS,
    WIDTH,
    as_lines,
    as_text,
    distinct_labels,
    heading,
)
from raydis.metrics.table import numbers

NAMES = tuple(numbers())
UNITS = tuple(f"the unit of a network with a long name, number {n}" for n in range(3))


def run_of(name: str, *, num_units: int = 3, num_factors: int = 2, value: float = 0.25) -> Run:
    """A run in which unit n is important for factor n alone, and which one metric cannot score."""
    estimates = [Estimate(name, value, 0.125, value - 0.125, value + 0.25) for name in NAMES[:-1]]
    estimates.append(Estimate(NAMES[-1], None, reason="codes | of one\nunit " + "only " * 30))
    importance = np.eye(num_units, num_factors)[::-1]
    return Run(
        name, tuple(f"unit {n}" for n in range(num_units)), tuple(estimates), {"importance": importance.tolist()}
    )


def evaluation(*runs: Run, num_factors: int = 2) -> Evaluation:
    runs = runs or (run_of("codes"),)
    return Evaluation(
        estimates=runs[0].estimates,
        intervals="runs" if len(runs) > 1 else "rows",
        confidence=0.95,
        runs=runs,
        factor_names=tuple(f"factor_{j} & $x$ | 100%" for j in range(num_factors)),
        num_levels=(4,) * num_factors,
        num_samples=12_345,
        num_draws=10,
        protocol="search",
        estimator="hist",
        sizes={},
        seed=3,
        notes=("factor 1 is text",),
    )


@pytest.mark.parametrize(
    "found",
    [
        evaluation(),
        evaluation(*(run_of(f"runs/a/rather/long/name/of/a/file-{number}.npy") for number in range(12))),
        evaluation(run_of("codes", num_units=90, num_factors=40), num_factors=40),
    ],
)
def test_the_text_fits_into_a_hundred_columns(found: Evaluation) -> None:
    assert max(map(len, as_text(found).splitlines())) <= WIDTH == 100
    assert as_text(found) == str(found)


def test_the_text_holds_every_number_its_interval_and_a_bar() -> None:
    text = as_text(evaluation())
    for name in NAMES[:-1]:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{heading(numbers()[name])}  ")]
        assert "0.250  [0.125, 0.500]" in line
        number = numbers()[name]
        if (number.low, number.high) == (0.0, 1.0):
            assert line.endswith("█" * (BAR // 8) + "▒" * (BAR // 2 - BAR // 8) + "·" * (BAR // 2)) or BAR % 8
    assert "–  codes | of one unit only" in text
    assert "95 % confidence intervals by bootstrap over the rows, 10 draws." in text
    assert "12,345 samples, 3 units, 2 factors; protocol search, estimator hist, seed 3" in text
    assert "note: factor 1 is text" in text


def test_no_metric_has_a_title_that_is_cut() -> None:
    assert max(len(heading(number)) for number in numbers().values()) <= MAX_TITLE
    assert "Leakage between units (lower is better)" in as_text(evaluation())


def test_without_intervals_the_text_says_so() -> None:
    estimates = (Estimate(NAMES[0], 0.5),)
    single = replace(evaluation(), estimates=estimates, intervals=None, num_draws=1)
    text = as_text(single)
    assert "interval" not in text.splitlines()[3]
    assert "0.500  " + "█" * (BAR // 2) + "·" * (BAR // 2) in text
    assert "No intervals" in text


def test_importance_shows_as_a_diagonal_with_other_units_last() -> None:
    lines = as_text(evaluation()).splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("importance"))
    rows = [line for line in lines[start:] if line.startswith("unit ")]
    assert [row.split()[1] for row in rows] == ["2", "1", "0"]
    assert rows[0].index("1.00") < rows[1].index("1.00")
    assert "1.00" not in rows[2]


def test_of_many_units_the_most_important_are_shown_and_the_others_counted() -> None:
    text = as_text(evaluation(run_of("codes", num_units=90)))
    assert len(re.findall(r"^unit \d+ ", text, re.MULTILINE)) == MAX_UNITS
    assert "and 50 other units, of importance 0.00 at most" in text


def test_each_run_has_a_column() -> None:
    text = as_text(evaluation(run_of("seed 0"), run_of("seed 1", value=0.5)))
    head = next(line for line in text.splitlines() if "seed 0" in line and "seed 1" in line)
    title = numbers()[NAMES[0]].title
    row = [line for line in text.splitlines() if line.startswith(f"{title}  ")][1]
    assert row.split()[-2:] == ["0.250", "0.500"]
    assert row.rstrip().endswith("0.500")
    assert len(head) == len(row.rstrip())
    assert "of the mean over 2 training runs" in text


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["seed 0", "seed 1"], ["seed 0", "seed 1"]),
        (["reference.npy", "other.npy"], ["reference.n…", "other.npy"]),
        (["runs/of/codes/1.npy", "runs/of/codes/2.npy"], ["…codes/1.npy", "…codes/2.npy"]),
        (["runs/arena/seed-101/last_checkpoint", "runs/arena/seed-102/last_checkpoint"], ["…seed-101…", "…seed-102…"]),
        (["a/checkpoint_3", "b/checkpoint_3", "b/checkpoint_4"], ["1 a/checkpo…", "2 b/checkpo…", "3 b/checkpo…"]),
        (["many_of_its_runs/checkpoint", "many_of_its_seeds/checkpoint"], ["…f_its_runs…", "…_its_seeds…"]),
        (
            ["very_long_1_and_what_else_is_there", "very_long_2_and_what_else_is_there"],
            ["very_long_1…", "very_long_2…"],
        ),
        (["a/b", "a/b/c_and_much_more"], ["a/b", "a/b/c_and_m…"]),
        (["one_and_the_same_name"] * 2, ["one_and_the…"] * 2),
        (["one_long_name_alone"], ["one_long_na…"]),
    ],
)
def test_names_that_differ_differ_when_they_are_cut(names: list[str], labels: list[str]) -> None:
    found = distinct_labels(names, MAX_NAME)
    assert len(set(found)) == len(set(names))
    assert max(map(len, found)) <= MAX_NAME
    assert found == labels


def test_runs_units_and_factors_of_long_names_can_be_distinct_labels_in_the_table() -> None:
    runs = [replace(run_of(f"runs/long/prefix/of/trial-{n}/checkpoint_000003"), unit_names=UNITS) for n in range(3)]
    names = ("position_of_the_left_object", "position_of_the_right_object")
    lines = as_text(replace(evaluation(*runs), factor_names=names)).splitlines()
    assert any(line.split() == ["…trial-0…", "…trial-1…", "…trial-2…"] for line in lines)
    head, *rows = lines[-6:-2]
    assert head.split() == ["…left_object", "…ight_object"]
    assert len({row[: 2 * MAX_NAME] for row in rows}) == 3


def test_spans_join_to_the_text() -> None:
    found = evaluation()
    joined = ["".join(span.text for span in line).rstrip() for line in as_lines(found)]
    assert joined == as_text(found).splitlines()


# ---- files


def test_every_format_has_a_suffix() -> None:
    assert set(SUFFIXES.values()) == set(FORMATS)
    for write in FORMATS.values():
        assert write(evaluation()).endswith("\n")


def test_json_holds_everything() -> None:
    found = evaluation(run_of("a"), run_of("b"))
    tree = json.loads(to_json(found))
    assert tree.pop("raydis")
    assert tree == json.loads(json.dumps(found.to_dict()))
    assert tree["runs"][1]["name"] == "b"


def test_csv_has_a_line_for_each_number_of_each_run_and_of_the_mean() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(evaluation(run_of("a"), run_of("b"))))))
    assert [(row["run"], row["metric"]) for row in rows] == [
        (run, name) for run in ("a", "b", "mean") for name in NAMES
    ]
    assert (rows[0]["value"], rows[0]["low"], rows[0]["confidence"]) == ("0.25", "0.125", "0.95")
    assert (rows[len(NAMES) - 1]["value"], rows[len(NAMES) - 1]["confidence"]) == ("", "")
    assert rows[len(NAMES) - 1]["reason"].startswith("codes")
    assert len(list(csv.DictReader(io.StringIO(to_csv(evaluation()))))) == len(NAMES)


def test_markdown_tables_are_rectangular() -> None:
    text = to_markdown(evaluation())
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
        assert len({len(line) for line in table.splitlines()}) == 1
    assert f"| {numbers()[NAMES[0]].title}" in text
    assert r"factor_0 & \$x\$ \| 100%" in text
    assert "| unit 2 |" in tables[1].splitlines()[2]
    assert f"{heading(numbers()[NAMES[-1]])}: codes \\| of one unit only" in text
    assert "\n\nNote: factor 1 is text.\n\n" in text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("floor_hue", "floor_hue"),
        ("__init__", r"\_\_init\_\_"),
        ("a\\|b", r"a\\\|b"),  # or the bar would end the cell after an escaped backslash
        ("<b>*x*</b>\n`y`", r"\<b>\*x\*\</b> \`y\`"),
    ],
)
def test_names_are_no_markup_in_markdown(name: str, written: str) -> None:
    assert as_markdown(name) == written
    text = to_markdown(replace(evaluation(replace(run_of("codes"), unit_names=(name, "b", "c"))), notes=(name,)))
    assert f"| {written} " in text
    assert f"Note: {written}." in text


def test_latex_is_escaped_and_rectangular() -> None:
    text = to_latex(evaluation())
    code = [line for line in text.splitlines() if not line.startswith("%")]
    assert r"factor\_0 \& \$x\$ \textbar{} 100\%" in text
    assert "\n% factor 1 is text\n" in text
    rows = [line for line in code if line.endswith(r" \\")]
    assert len(rows) == (len(NAMES) + 1) + (3 + 1)
    for row in rows:
        assert not re.search(r"(?<!\\)[$%#_]", row)
    columns = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert [len(re.findall(r"(?<!\\)&", row)) + 1 for row in (rows[0], rows[-1])] == list(map(len, columns))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 2


def test_latex_keeps_a_bracket_at_the_start_of_a_row_out_of_the_line_before() -> None:
    found = evaluation(replace(run_of("codes"), unit_names=("[a]", "*", "c^~\\")))
    text = to_latex(found)
    assert "\n  {}[a] &" in text
    assert "\n  {}* &" in text
    assert r"\textless{}d\textgreater{} &" in to_latex(evaluation(replace(run_of("a"), unit_names=("<d>", "e", "f"))))
    assert r"c\textasciicircum{}\textasciitilde{}\textbackslash{}" in text
