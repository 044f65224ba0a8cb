"""Metrics of units that are vectors, on codes whose scores are known beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raydis.errors import MetricError
from raydis.metrics import grouped
from raydis.metrics.dci import completeness, dci, disentanglement
from raydis.metrics.grouped import grouped_dci, leakage, sum_of_groups, swap_consistency
from raydis.metrics.importance import FactorFit
from raydis.metrics.protocol import SEARCH
from raydis.metrics.representation import all_scalars, per_unit_pca
from raydis.metrics.scoring import fitting_metrics, score

FACTORS = np.tile(np.indices((4, 3, 5)).reshape(3, -1).T, (20, 1))  # (1200, 3)
# A vector of four entries with the first two factors, one of two with the third, and a single entry of noise.
WIDTHS = (4, 2, 1)
NEW = ("scalar_factor_vae", "grouped_dci", "leakage")
GROUPS = np.repeat(np.arange(3), WIDTHS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scalars(leak: float = 0.0) -> np.ndarray:
    """All scalars (M, 7). With a leak, the second unit knows the first factor as well, under noise of 1 / leak."""
    noise = rng(1).normal(size=(len(FACTORS), 7))
    first, second, third = (FACTORS - FACTORS.mean(0)).T
    turned = np.stack([first + second, first - second, first, second], axis=1)
    codes = np.concatenate([turned, np.stack([third, leak * first], axis=1), noise[:, 6:]], axis=1)
    return codes + 0.01 * noise


def vectors(found: np.ndarray) -> np.ndarray:
    """The same as codes (M, 3, 4), filled up with zeros."""
    codes = np.zeros((len(found), 3, 4))
    for unit, start in enumerate(np.cumsum((0, *WIDTHS[:-1]))):
        codes[:, unit, : WIDTHS[unit]] = found[:, start : start + WIDTHS[unit]]
    return codes


def test_importances_of_a_units_scalars_are_summed() -> None:
    importance = np.arange(14.0).reshape(7, 2)
    assert sum_of_groups(importance, GROUPS).tolist() == [[12, 16], [18, 20], [12, 13]]


def test_grouped_dci_scores_whole_vectors_and_scores_their_scalars_as_dci_does() -> None:
    found = grouped_dci(scalars(), FACTORS, rng=rng(3), estimator="tree", groups=GROUPS)
    plain = dci(scalars(), FACTORS, rng=rng(3), estimator="tree")
    assert (found.scalar_disentanglement, found.scalar_completeness) == (plain.disentanglement, plain.completeness)
    assert found.informativeness == plain.informativeness
    # The first unit holds two factors alike: D_0 = 1 - H_3(1/2, 1/2, 0), with two thirds of the weight; D_1 = 1.
    assert found.disentanglement == pytest.approx(1 - 2 / 3 * np.log(2) / np.log(3), abs=0.01)
    assert found.completeness == pytest.approx(1.0, abs=0.01)
    assert plain.importance is not None
    served = sum_of_groups(plain.importance, GROUPS)
    np.testing.assert_array_equal(found.importance, served)
    assert (found.disentanglement, found.completeness) == (disentanglement(served), completeness(served))


def test_units_of_one_scalar_each_make_grouped_dci_plain_dci() -> None:
    found = grouped_dci(scalars(), FACTORS, rng=rng(), estimator="tree", groups=np.arange(7))
    assert found.disentanglement == found.scalar_disentanglement
    assert found.completeness == found.scalar_completeness
    bare = grouped_dci(scalars(), FACTORS, rng=rng(), estimator="tree")
    assert (bare.disentanglement, bare.completeness) == (found.disentanglement, found.completeness)


def test_a_constant_factor_has_no_part_in_grouped_dci() -> None:
    more = np.column_stack([FACTORS, np.zeros(len(FACTORS), np.int64)])
    found = grouped_dci(scalars(), more, rng=rng(), estimator="tree", groups=GROUPS)
    assert found.disentanglement == pytest.approx(1 - 2 / 3 * np.log(2) / np.log(3), abs=0.01)
    assert found.importance is not None
    assert not found.importance[:, 3].any()


def test_leakage_is_what_the_second_best_unit_knows() -> None:
    clean = leakage(scalars(), FACTORS, rng=rng(), estimator="tree", groups=GROUPS)
    leaky = leakage(scalars(leak=1.0), FACTORS, rng=rng(), estimator="tree", groups=GROUPS)
    assert clean.gap is not None
    assert leaky.gap is not None
    assert clean.gap > 0.85  # trees guess from the noise that repeats within the rows, and are a little above chance
    assert clean.leakage is not None
    assert leaky.leakage is not None
    assert leaky.leakage - clean.leakage == pytest.approx(1 / 3, abs=0.05)  # one of three factors
    assert clean.gap - leaky.gap == pytest.approx(1 / 3, abs=0.05)
    assert clean.accuracy is not None
    assert clean.accuracy.shape == (4, 3)
    np.testing.assert_allclose(clean.accuracy[[0, 0, 1, 3, 3, 3], [0, 1, 2, 0, 1, 2]], 1.0)  # both own and all units


def test_no_row_is_both_fitted_and_tested_so_noise_that_names_its_row_does_not_leak() -> None:
    codes = np.column_stack([FACTORS[:, 0], np.arange(len(FACTORS)) + 0.5])  # the second scalar is the row's number
    shuffled = rng(2).permutation(len(codes))
    found = leakage(codes, FACTORS[shuffled][:, [0, 1]], rng=rng(), estimator="hist")
    assert found.leakage is not None
    assert found.leakage < 0.1


def test_leakage_never_fits_the_reference_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def fit(estimator: str, *tables: object, seed: int) -> FactorFit:
        used.append(estimator)
        return FactorFit(np.ones(1), 0.5)

    monkeypatch.setattr(grouped, "fit_factor", fit)
    for estimator in ("reference", "hist", "tree"):
        leakage(scalars(), FACTORS[:, :2], rng=rng(), estimator=estimator, groups=GROUPS)
    assert used == ["hist"] * 16 + ["tree"] * 8  # two factors, three units and all of them


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 0, 1], r"groups of shape \(3,\) and type int64 do not fit 7 columns of codes: give the integer number"),
        (np.zeros(7), r"groups of shape \(7,\) and type float64 do not fit 7 columns"),
        ([0, 0, 0, 2, 2, 2, 2], r"groups name the units \[0, 2\]: number them from 0 without a gap"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: list[int], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        grouped_dci(scalars(), FACTORS, rng=rng(), estimator="tree", groups=groups)


def test_a_single_unit_has_no_second_best() -> None:
    with pytest.raises(MetricError, match="there is only one: give the codes of at least two units"):
        leakage(scalars(), FACTORS, rng=rng(), estimator="tree", groups=np.zeros(7, np.int64))


def test_swaps_are_consistent_if_the_units_are_found_again() -> None:
    expected = rng().normal(size=(4000, 2, 3))
    np.testing.assert_array_equal(swap_consistency(expected, expected), [1.0, 1.0])
    # Half of the second unit's variance is lost: the error is 1/4 of the variance, an eighth of the distance.
    shrunk = expected.copy()
    shrunk[:, 1] /= 2
    np.testing.assert_allclose(swap_consistency(shrunk, expected), [1.0, 1 - 1 / 8], atol=0.01)
    others = rng(1).normal(size=expected.shape)  # of other images: as far as random ones
    np.testing.assert_allclose(swap_consistency(others, expected), [0.0, 0.0], atol=0.05)


def test_the_distance_of_random_images_is_that_of_all_pairs() -> None:
    expected, found = rng().normal(size=(7, 1, 2)), rng(1).normal(size=(7, 1, 2))
    pairs = [((expected[i] - expected[j]) ** 2).sum() for i in range(7) for j in range(7) if i != j]
    error = ((found - expected) ** 2).sum() / 7
    assert swap_consistency(found, expected)[0] == pytest.approx(1 - error / np.mean(pairs), abs=1e-12)


def test_a_unit_that_is_always_equal_is_found_exactly_or_not() -> None:
    expected = np.ones((5, 2, 3))
    found = expected.copy()
    found[0, 1] = 2.0
    assert swap_consistency(found, expected).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 2, 3), (5, 2), (5, 2, 4)])
def test_codes_that_cannot_be_compared_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MetricError, match="must both be"):
        swap_consistency(np.zeros(shape), np.zeros((5, 2, 3) if shape[0] == 5 else shape))


def test_all_scalars_are_the_entries_of_each_unit_with_one_scale_a_unit() -> None:
    found = scalars()
    entries, groups = all_scalars(vectors(found), WIDTHS)
    assert groups.tolist() == GROUPS.tolist()
    for unit in range(3):
        own, raw = entries[:, groups == unit], found[:, groups == unit]
        assert own.var(axis=0).mean() == pytest.approx(1.0, abs=1e-12)
        ratio = own.std(axis=0) / raw.std(axis=0)
        np.testing.assert_allclose(ratio, ratio[0])
        np.testing.assert_allclose(own, (raw - raw.mean(0)) * ratio[0], atol=1e-12)


def test_a_constant_unit_has_scalars_of_zero_and_a_broken_one_nan() -> None:
    codes = vectors(scalars())
    codes[:, 1], codes[3, 2, 0] = 0.1, np.inf
    entries, groups = all_scalars(codes, WIDTHS)
    assert not entries[:, groups == 1].any()
    assert np.isnan(entries[:, groups == 2]).any()
    assert np.isfinite(entries[:, groups == 0]).all()


@pytest.mark.parametrize(
    ("codes", "widths", "message"),
    [
        (np.zeros((5, 3)), (1, 1, 1), r"codes of vectors must be real numbers \(M, N, D\), found float64 \(5, 3\)"),
        (np.zeros((5, 3, 4)), (4, 4), r"widths \[4, 4\] do not fit \(5, 3, 4\): give each unit one from 1 to 4"),
        (np.zeros((5, 3, 4)), (4, 5, 1), r"widths \[4, 5, 1\] do not fit"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(codes: np.ndarray, widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        all_scalars(codes, widths)


def test_all_metrics_of_scalars_leave_out_those_of_vectors() -> None:
    codes = per_unit_pca(vectors(scalars()))
    assert not set(NEW) & set(fitting_metrics(codes, FACTORS))
    assert set(NEW) <= set(fitting_metrics(codes, FACTORS, vectors=True))


def test_metrics_of_vectors_that_are_asked_for_take_scalars_as_vectors_of_one() -> None:
    protocol = replace(SEARCH, metrics=("dci", "grouped_dci"))
    codes = per_unit_pca(vectors(scalars()))
    found = score(codes, FACTORS, protocol=protocol, estimator="tree", data_fingerprint="x", num_draws=1).values
    assert found["grouped_disentanglement"] == found["scalar_disentanglement"] == found["dci_disentanglement"]


def test_scores_of_vectors_hold_the_numbers_of_scalars_unchanged_and_those_of_vectors() -> None:
    codes = vectors(scalars())
    options: dict[str, Any] = {"estimator": "tree", "data_fingerprint": "x"}
    options["protocol"] = replace(SEARCH, metrics=("factor_vae", "dci", *NEW))
    plain = score(codes, FACTORS, num_draws=1, **(options | {"protocol": SEARCH}))
    found = score(codes, FACTORS, widths=WIDTHS, num_draws=2, **options)
    assert found.sizes.keys() == {"factor_vae", "dci", *NEW}
    assert {name: found.values[name] for name in plain.values if name in found.values} == {
        name: value for name, value in plain.values.items() if name != "mig"
    }
    assert found.spread is not None
    assert found.spread.keys() == found.values.keys()
    entries, groups = all_scalars(codes, WIDTHS)
    alone = grouped_dci(entries, FACTORS, rng=rng(), estimator="tree", groups=groups)
    assert found.values["grouped_disentanglement"] == alone.disentanglement
    # The first principal component of the first unit cannot hold both of its factors; the vector does.
    assert per_unit_pca(codes).shape == (1200, 3)
    assert found.values["scalar_informativeness"] > found.values["dci_informativeness"] + 0.1
