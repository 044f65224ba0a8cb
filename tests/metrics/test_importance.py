from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier

from raydis.errors import MetricError
from raydis.metrics.importance import Estimator, fit_factor

ESTIMATORS: tuple[Estimator, ...] = ("reference", "hist", "tree")


def labelled_codes(num_levels: int = 3, num_samples: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Three codes of which the second alone tells the level."""
    rng = np.random.default_rng(0)
    levels = rng.integers(num_levels, size=num_samples)
    codes = rng.normal(size=(num_samples, 3))
    codes[:, 1] = levels + rng.uniform(0.0, 0.5, size=num_samples)
    return codes, levels


@pytest.mark.parametrize("num_levels", [2, 4])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_code_that_tells_the_level_has_all_importance(estimator: Estimator, num_levels: int) -> None:
    data = labelled_codes(num_levels)
    fit = fit_factor(estimator, data, data, seed=0)
    np.testing.assert_allclose(fit.importance, [0.0, 1.0, 0.0], atol=0.02)
    assert fit.importance.sum() == pytest.approx(1.0)
    assert fit.accuracy == 1.0


def test_the_reference_is_scikit_learns_default_gradient_boosting() -> None:
    codes, levels = labelled_codes()
    codes[:, 1] += np.random.default_rng(1).normal(size=len(codes))
    fit = fit_factor("reference", (codes, levels), (codes[:50], levels[:50]), seed=5)
    model = GradientBoostingClassifier(random_state=5).fit(codes, levels)
    np.testing.assert_array_equal(fit.importance, model.feature_importances_)
    assert fit.accuracy == model.score(codes[:50], levels[:50])


def test_histogram_gains_match_the_reference_importances_on_ambiguous_codes() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(2, size=2000)
    codes = levels[:, None] + rng.normal(size=(2000, 3)) * [0.4, 0.8, 5.0]
    reference, hist = (fit_factor(e, (codes, levels), (codes, levels), seed=0) for e in ("reference", "hist"))
    np.testing.assert_allclose(hist.importance, reference.importance, atol=0.03)
    assert reference.importance[0] > reference.importance[1] > reference.importance[2]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_draw_of_one_level_is_predicted_by_that_level_with_no_importance(estimator: Estimator) -> None:
    codes = np.random.default_rng(0).normal(size=(8, 3))
    fit = fit_factor(estimator, (codes, np.full(8, 4)), (codes, np.array([4, 4, 4, 4, 4, 4, 0, 1])), seed=0)
    assert fit.importance.tolist() == [0.0, 0.0, 0.0]
    assert fit.accuracy == 0.75


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_constant_codes_have_no_importance(estimator: Estimator) -> None:
    levels = np.tile([0, 1, 2], 20)
    fit = fit_factor(estimator, (np.ones((60, 2)), levels), (np.ones((60, 2)), levels), seed=0)
    assert fit.importance.tolist() == [0.0, 0.0]
    assert fit.accuracy == pytest.approx(1 / 3)


def test_a_scikit_learn_without_split_gains_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit_without_predictors(self: HistGradientBoostingClassifier, *_: np.ndarray) -> HistGradientBoostingClassifier:
        return self

    monkeypatch.setattr(HistGradientBoostingClassifier, "fit", fit_without_predictors)
    with pytest.raises(
        MetricError, match=r"does not store split gains where version 1\.9 does.*_predictors.*use estimator="
    ):
        fit_factor("hist", labelled_codes(), labelled_codes(), seed=0)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(MetricError, match="unknown DCI estimator 'forest'"):
        fit_factor("forest", labelled_codes(), labelled_codes(), seed=0)  # pyright: ignore[reportArgumentType]
