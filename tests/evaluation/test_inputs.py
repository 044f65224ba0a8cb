"""Codes and factors of any origin are brought into one form, or refused in a sentence that says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from raydis.errors import MetricError
from raydis.evaluation.inputs import check_codes, check_factors
from raydis.metrics.representation import per_unit_pca
from raydis.metrics.table import METRICS

FACTORS = np.array([[0, 5], [1, 5], [0, 7], [1, 7], [0, 5], [1, 7]])
CODES = np.random.default_rng(0).normal(size=(6, 3))


# ---- factors


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.int64, np.float16, np.float64])
def test_whole_numbers_of_any_type_are_levels(dtype: Any) -> None:
    found = check_factors(FACTORS.astype(dtype))
    assert found.levels.dtype == np.int64
    assert (found.levels == FACTORS).all()
    assert (found.names, found.notes) == (("factor 0", "factor 1"), ())


def test_integers_of_unknown_type_are_levels() -> None:
    assert (check_factors(FACTORS.astype(object)).levels == FACTORS).all()
    assert (check_factors(pd.DataFrame(FACTORS).astype("Int64")).levels == FACTORS).all()


def test_text_becomes_levels_in_sorted_order_and_a_note_says_so() -> None:
    shapes = np.array(["oval", "cube", "oval", "cube", "ball", "ball"])
    found = check_factors(pd.DataFrame({"shape": shapes, "size": FACTORS[:, 1], "lit": FACTORS[:, 0] > 0}))
    assert found.names == ("shape", "size", "lit")
    assert found.levels[:, 0].tolist() == [2, 1, 2, 1, 0, 0]
    assert found.levels[:, 2].tolist() == FACTORS[:, 0].tolist()
    (note,) = found.notes
    assert "factor shape is text" in note
    assert "ball, cube, oval" in note


def test_text_levels_separate_rows_as_the_text_does() -> None:
    both = check_factors(np.array([["a", "x"], ["b", "x"], ["a", "y"], ["b", "y"]]))
    assert both.levels.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_a_constant_factor_is_named_in_a_note_and_left_to_the_metrics() -> None:
    found = check_factors(np.column_stack([FACTORS, np.full(6, 3)]), ["a", "b", "c"])
    assert found.levels.shape == (6, 3)
    assert "factor c has a single level" in found.notes[0]


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (FACTORS + 0.25, ["factor 0 holds 0.25", "numpy.digitize"]),
        (np.where(FACTORS == 7, np.nan, FACTORS), ["factor 1 misses 3 of 6 values", "remove these rows"]),
        (np.where(FACTORS == 7, 2.0**60, FACTORS), ["levels are integers"]),
        (pd.DataFrame({"a": ["x", None, "y", "x", "y", "y"], "b": FACTORS[:, 0]}), ["factor a misses 1 of 6"]),
        (pd.DataFrame({"a": ["x", "", "y", "x", "y", "y"], "b": FACTORS[:, 0]}), ["factor a misses 1 of 6"]),
        (
            pd.DataFrame({"a": pd.array(["x", None, "y", "x", "y", "y"], "string"), "b": FACTORS[:, 0]}),
            ["factor a misses 1 of 6"],
        ),
        (FACTORS.astype(np.uint64) << np.uint64(61), ["factor 0 holds 2.3", "numpy.unique"]),
        (np.ma.masked_equal(FACTORS, 7), ["factors holds masked values", "remove their rows"]),
        ([[1, 2], [3]], ["factors is no array", "as many values"]),
        (pd.DataFrame({"a": ["x", 2, "y", "x", "y", "y"], "b": FACTORS[:, 0]}), ["factor a mixes types"]),
        (FACTORS * 1j, ["complex128", "integer index"]),
        (FACTORS[:, :1], ["1 of 1 factors vary", "at least two"]),
        (FACTORS[:, 0], ["1 of 1 factors vary"]),
        (FACTORS * 0, ["0 of 2 factors vary"]),
        (np.column_stack([FACTORS, np.arange(6)]), ["factor 2 has 6 levels in 6 rows", "leave it out"]),
        (FACTORS[:0], ["is empty"]),
        (FACTORS[:, :, None], ["shape (6, 2, 1)"]),
    ],
)
def test_factors_that_are_no_levels_are_refused(factors: Any, words: list[str]) -> None:
    with pytest.raises(MetricError) as refused:
        check_factors(factors)
    for word in words:
        assert word in str(refused.value)
    assert "factor factor" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_names_must_be_as_many_as_factors_and_different(names: list[str]) -> None:
    with pytest.raises(MetricError, match="names for 2 factors"):
        check_factors(FACTORS, names)


# ---- codes


def test_one_array_is_one_run_and_vectors_are_reduced_to_their_principal_component() -> None:
    vectors = np.random.default_rng(1).normal(size=(6, 3, 2))
    (run,) = check_codes(vectors, num_rows=6)
    assert np.array_equal(run.scalars, per_unit_pca(vectors))
    assert run.unit_names == ("unit 0", "unit 1", "unit 2")


def test_lists_and_dictionaries_are_several_runs() -> None:
    assert [run.name for run in check_codes([CODES, CODES[:, :2]], num_rows=6)] == ["run 0", "run 1"]
    assert [run.name for run in check_codes({"seed 3": CODES, "seed 4": CODES}, num_rows=6)] == ["seed 3", "seed 4"]
    assert [run.name for run in check_codes([CODES], num_rows=6)] == ["run 0"]


def test_a_list_of_rows_is_one_run() -> None:
    (run,) = check_codes(CODES.tolist(), num_rows=6)
    assert np.array_equal(run.scalars, per_unit_pca(CODES))
    (run,) = check_codes(list(CODES), num_rows=6)
    assert run.scalars.shape == (6, 3)


def test_a_data_frame_names_its_units() -> None:
    (run,) = check_codes(pd.DataFrame(CODES, columns=["z0", "z1", "z2"]), num_rows=6)
    assert run.unit_names == ("z0", "z1", "z2")
    (typed,) = check_codes(pd.DataFrame(CODES).astype({0: "Float64", 1: "Float32"}), num_rows=6)
    assert typed.scalars == pytest.approx(run.scalars, abs=1e-6)


def test_vectors_of_different_widths_end_in_zeros_that_are_no_scalars() -> None:
    name = next(name for name, metric in METRICS.items() if "vectors" in metric.needs)
    vectors = np.random.default_rng(1).normal(size=(6, 3, 4))
    vectors[:, 0, 2:] = 0.0
    vectors[:, 2] = 5.0  # a collapsed unit keeps one
    (run,) = check_codes(vectors, num_rows=6)
    columns, groups = run.seen_by(METRICS[name])
    assert groups is not None
    assert groups.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert columns.shape == (6, 7)


BROKEN = CODES.copy()
BROKEN[2:4, 1] = np.nan


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (BROKEN, ["unit 1 of 3 holds NaN", "in 2 of 6 rows", "remove these rows"]),
        (np.where(CODES > 0, np.inf, CODES), ["unit 0 (and 2 others) of 3", "infinity"]),
        (CODES * 0 + 2, ["all 3 units are constant", "collapsed"]),
        (CODES[:4], ["codes has 4 rows", "factors have 6"]),
        (CODES.T, ["3 rows", "transpose the codes"]),
        (CODES[:, 0], ["shape (6,)", "(M, N)", "codes[:, None]"]),
        (CODES[:, :0], ["shape (6, 0)"]),
        (CODES[:, :, None, None], ["shape (6, 3, 1, 1)", "flatten or pool"]),
        (CODES * 1j, ["complex128"]),
        (CODES.astype(str), ["not real numbers"]),
        (pd.DataFrame(CODES).assign(file="a.png"), ["column file is not of numbers", "leave it out"]),
        (np.ma.masked_greater(CODES, 1.0), ["codes holds masked values", "remove their rows"]),
        ([[1.0, 2.0], [3.0]], ["codes is no array", "as many values"]),
        ([CODES, CODES[:3]], ["run 1 has 3 rows"]),
        ({}, ["no codes"]),
    ],
)
def test_codes_that_cannot_be_scored_are_refused(codes: Any, words: list[str]) -> None:
    with pytest.raises(MetricError) as refused:
        check_codes(codes, num_rows=6)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)
