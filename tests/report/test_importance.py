"""The picture of an evaluation is drawn in every format, for any number of runs, units and factors."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from raydis.evaluation import Estimate, Evaluation, Run
from raydis.metrics.table import numbers
from raydis.report.importance import COLUMN, DPI, FIGURE_FORMATS, ROW, draw_evaluation


def evaluation(importance: np.ndarray | None, *, num_runs: int = 1) -> Evaluation:
    num_units, num_factors = (2, 2) if importance is None else importance.shape
    estimates = (
        *(Estimate(name, 0.5, 0.1, 0.4, 0.6) for name in list(numbers())[:-1]),
        Estimate("mig", None, reason="no"),
    )
    details = {} if importance is None else {"importance": importance.tolist()}
    runs = tuple(
        Run(f"run {number}", tuple(f"${{unit {n}" for n in range(num_units)), estimates, details)
        for number in range(num_runs)
    )
    return Evaluation(
        estimates=estimates,
        intervals="rows",
        confidence=0.95,
        runs=runs,
        factor_names=tuple(f"$x_{j}" for j in range(num_factors)),  # which is no formula
        num_levels=(3,) * num_factors,
        num_samples=100,
        num_draws=10,
        protocol="search",
        estimator="hist",
        sizes={},
        seed=0,
    )


def pixels(found: Evaluation) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_evaluation(found))).convert("RGB")).astype(int)


@pytest.mark.parametrize("suffix", FIGURE_FORMATS)
def test_a_picture_has_the_format_of_its_suffix(suffix: str) -> None:
    content = draw_evaluation(evaluation(np.eye(2)), suffix=suffix)
    begins = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml", ".webp": b"RIFF"}
    assert content.startswith(begins.get(suffix, b"\xff\xd8"))


@pytest.mark.parametrize(
    ("importance", "num_runs"), [(None, 1), (np.eye(2), 3), (np.eye(62, 25), 1), (np.eye(3), 9), (np.zeros((2, 3)), 1)]
)
def test_any_number_of_runs_units_and_factors_is_drawn(importance: np.ndarray | None, num_runs: int) -> None:
    drawn = pixels(evaluation(importance, num_runs=num_runs))
    assert drawn.shape[1] > 400
    assert drawn.std() > 1


def test_the_importance_is_drawn_in_the_colour_of_its_value() -> None:
    """Four cells of importance 1 are dark where those of importance 0 are not, but for the digits in them."""
    four, none = ((pixels(evaluation(importance))[..., 0] < 40).sum() for importance in (np.eye(4), np.zeros((4, 4))))
    assert four - none > 4 * 0.75 * (ROW * DPI) * (COLUMN * DPI)
