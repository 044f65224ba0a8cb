"""Each metric against its definition, written plainly: loops, and the libraries that the published code calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.special import digamma
from scipy.stats import entropy, spearmanr
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import Lasso
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.tree import DecisionTreeClassifier

from raydis.metrics.beta_vae import mean_differences
from raydis.metrics.dci_es import DEPTHS, dci_es, explicitness, loss_curve
from raydis.metrics.frechet import frechet_distance
from raydis.metrics.infomec import infomec
from raydis.metrics.irs import irs
from raydis.metrics.med import med
from raydis.metrics.mig import mig
from raydis.metrics.modularity import modularity_explicitness
from raydis.metrics.nearest_information import nearest_information
from raydis.metrics.probes import area_under_roc
from raydis.metrics.sample_efficiency import sample_efficiency
from raydis.metrics.sampling import LevelIndex
from raydis.metrics.sap import sap, sap_continuous
from raydis.metrics.self_mig import self_mig
from raydis.metrics.tad import tad
from raydis.metrics.udr import udr
from tests.metrics import plain
from tests.metrics.plain import Table

SIZES = (5, 4, 3)
NUM = {"num_train": 700, "num_test": 400}


def fresh() -> np.random.Generator:
    return np.random.default_rng(3)


def draws(table: Table) -> tuple[Table, Table]:
    """The training and the test rows that every metric of two draws takes first."""
    rng, (codes, factors) = fresh(), table
    train, test = (rng.integers(len(codes), size=size) for size in NUM.values())
    return (codes[train], factors[train]), (codes[test], factors[test])


@pytest.fixture(params=["perfect", "noisy", "rotated"])
def table(request: pytest.FixtureRequest, synthetic: Callable[..., Table]) -> Table:
    codes, factors = synthetic(request.param, SIZES, repeats=10)
    return codes[:, :5], factors


def test_sap(table: Table) -> None:
    assert sap(*table, rng=fresh(), **NUM).score == pytest.approx(plain.sap(*draws(table)), abs=1e-12)


def test_sap_continuous(table: Table) -> None:
    found = sap_continuous(*table, rng=fresh(), num_samples=700).score
    assert found == pytest.approx(plain.sap_continuous(*draws(table)[0]), abs=1e-12)


def test_mig(table: Table) -> None:
    assert mig(*table, rng=fresh(), num_samples=700).score == pytest.approx(plain.mig(*draws(table)[0]), abs=1e-12)


def test_modularity_and_explicitness(table: Table) -> None:
    found = modularity_explicitness(*table, rng=fresh(), **NUM)
    assert (found.modularity, found.explicitness) == pytest.approx(
        plain.modularity_explicitness(*draws(table)), abs=1e-9
    )


def test_the_area_under_a_curve_counts_ties_half() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(5, size=(200, 3)) / 4, rng.integers(2, size=200).astype(bool)
    expected = [roc_auc_score(positive, column) for column in scores.T]
    assert area_under_roc(scores, positive) == pytest.approx(expected, abs=1e-12)
    assert area_under_roc(np.array([[0.0], [1.0], [1.0]]), np.array([False, True, True])).tolist() == [1.0]


def test_pairs_of_beta_vae_agree_in_one_factor_and_are_random_in_the_others(table: Table) -> None:
    codes, factors = table
    fixed, first, second = LevelIndex.of(factors).draw_pairs(fresh(), num_batches=300, batch_size=20)
    agree = factors[first] == factors[second]  # (300, 20, 3)
    assert agree[np.arange(300), :, fixed].all()
    assert len({tuple(row) for row in factors[first][0].tolist()}) > 5  # a level of its own for each pair
    for j, size in enumerate(SIZES):
        share = agree[fixed != j][..., j].mean()  # of about 4,000 pairs; five standard errors are below 0.04
        assert share == pytest.approx(1 / size, abs=0.04)
    expected = [
        np.mean([np.abs(codes[a] - codes[b]) for a, b in zip(*rows, strict=True)], axis=0)
        for rows in zip(first[:4], second[:4], strict=True)
    ]
    assert mean_differences(codes, first[:4], second[:4]) == pytest.approx(np.array(expected), abs=1e-12)


def test_irs(table: Table) -> None:
    assert irs(*table, rng=fresh(), num_samples=700).score == pytest.approx(plain.irs(*draws(table)[0]), abs=1e-12)


@pytest.mark.parametrize("kind", ["continuous", "levels"])
def test_information_by_neighbours_is_that_of_the_library(kind: str) -> None:
    rng = np.random.default_rng(1)
    factors = np.stack([rng.integers(6, size=900), rng.integers(3, size=900)], axis=1)
    codes = factors @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(900, 4))
    if kind == "levels":
        codes = np.column_stack([factors, factors.sum(axis=1), rng.integers(2, size=900)]).astype(float)
    found = nearest_information(codes, factors, seed=5, num_neighbors=10)
    for j in range(2):
        expected = mutual_info_classif(codes, factors[:, j], n_neighbors=10, random_state=5)
        assert found[:, j] == pytest.approx(expected, abs=1e-9)


def test_information_by_neighbours_of_rare_levels_is_that_of_its_definition() -> None:
    """The library measures these levels by another formula for distances, whose rounding changes single counts."""
    rng = np.random.default_rng(1)
    levels, code = rng.integers(3, size=300), rng.normal(size=300)
    levels[:21] = np.repeat([7, 8, 9], [1, 4, 16])  # fewer samples than neighbours; a level with one, which has none
    kept = levels != 7
    values, served = code[kept], levels[kept]
    terms = []
    for value, level in zip(values, served, strict=True):
        size = (served == level).sum()
        neighbors = min(10, size - 1)
        distance = np.sort(np.abs(values[served == level] - value))[neighbors]
        closer = (np.abs(values - value) < distance).sum()
        terms.append(digamma(neighbors) - digamma(size) - digamma(closer))
    expected = max(0.0, digamma(len(values)) + np.mean(terms))
    found = nearest_information(code[:, None], levels[:, None], seed=0, num_neighbors=10)
    assert found.item() == pytest.approx(expected, abs=1e-9)
    assert expected > 0


def test_infomec(table: Table) -> None:
    rng = fresh()
    rows, seed = rng.permutation(len(table[0]))[:500], int(rng.integers(2**31))
    expected = plain.infomec(table[0][rows], table[1][rows], seed=seed)
    found = infomec(*table, rng=fresh(), max_samples=500)
    assert (found.modularity, found.compactness) == pytest.approx(expected[:2], abs=1e-9)
    assert found.explicitness == pytest.approx(expected[2], abs=1e-6)  # of a fit that is cut off


def test_infomec_of_few_rows_knows_perfect_units(synthetic: Callable[..., Table]) -> None:
    """Of rows that are drawn several times, the nearest neighbours are copies, and all units seem to know all."""
    codes, factors = synthetic("perfect", (4, 4, 4, 4, 6))  # 1,536 rows, and 10,000 samples by default
    found = infomec(codes[:, :5], factors, rng=fresh())
    assert min(found.modularity or 0.0, found.compactness or 0.0) > 0.95


def test_infomec_counts_active_units_by_their_range(table: Table) -> None:
    codes, factors = table
    extent = np.ptp(codes, axis=0).max()
    small = codes * np.where(np.arange(5) == 1, 0.9 / 20 * extent / np.ptp(codes[:, 1]), 1.0)
    found = infomec(small, factors, rng=fresh())
    assert found.num_active == 4
    assert found.information is not None
    assert found.information[1].tolist() == [0.0] * 3
    alone = infomec(codes * [1, 0, 0, 0, 0], factors, rng=fresh())
    assert (alone.status, alone.num_active) == ("invalid", 1)
    assert alone.reason is not None
    assert "of which there are 1" in alone.reason


def test_med(table: Table) -> None:
    found = med(*table, rng=fresh(), **NUM)
    numbers = found.disentanglement, found.completeness, found.informativeness
    assert numbers == pytest.approx(plain.med(*draws(table)), abs=1e-9)


def test_a_cut_tree_is_the_tree_of_that_depth(table: Table) -> None:
    (codes, factors), (test_codes, test_factors) = draws(table)
    found = loss_curve((codes, factors[:, 0]), (test_codes, test_factors[:, 0]), seed=1)
    for depth, loss in zip(DEPTHS, found, strict=True):
        tree = DecisionTreeClassifier(max_depth=depth, random_state=1).fit(codes, factors[:, 0])
        # Equally good splits, which the seed decides, may be chosen differently in a few leaves of a deep tree.
        assert loss == pytest.approx(1 - tree.score(test_codes, test_factors[:, 0]), abs=0.03 if depth > 4 else 1e-12)


def test_explicitness_of_dci_es_is_known_for_simple_curves() -> None:
    depths = np.array(DEPTHS)
    assert explicitness(np.full(len(depths), 0.1), baseline=0.8) == 1.0  # the simplest probe is as good as any
    assert explicitness(0.8 * (32 - depths) / 31, baseline=0.8) == pytest.approx(0.0)  # along a straight line
    late = np.where(depths < 32, 0.8, 0.0)
    assert explicitness(late, baseline=0.8) == pytest.approx(1 - 2 * (19 + 12 / 2) / 31)  # only the largest works
    up = np.array([0.5, 0.2, 0.9, *np.full(len(depths) - 3, 0.7)])
    assert explicitness(up, baseline=0.8) == pytest.approx(1 - 2 * 0.15 / (31 * 0.8))  # a worse probe changes nothing


def test_size_of_dci_es_is_that_of_the_table(synthetic: Callable[..., Table]) -> None:
    codes, factors = synthetic("perfect", SIZES)
    assert dci_es(codes, factors, rng=fresh(), **NUM).size == pytest.approx(3 / 7)
    assert dci_es(codes[:, :2], factors, rng=fresh(), **NUM).size == 1.0


def test_tad() -> None:
    rng = np.random.default_rng(2)
    present = rng.integers(2, size=(600, 5)).astype(bool)
    present[:, 4] = present[:, 3] ^ (rng.random(600) < 0.05)  # tells of attribute 3: neither is captured
    codes = np.column_stack([present + 0.3 * rng.normal(size=(600, 5)), 0.01 * rng.normal(size=(600, 1))])
    areas = np.array([[plain.tad_area(code, attribute) for attribute in present.T] for code in codes.T])
    shares = np.array([[mutual_info_score(a, b) / entropy(np.bincount(a)) for b in present.T] for a in present.T])
    np.fill_diagonal(shares, 0.0)
    captured = (areas.max(axis=0) >= 0.75) & (shares.max(axis=1) <= 0.2)
    assert captured.tolist() == [True, True, True, False, False]
    expected = plain.tad(codes, present.astype(int))
    found = tad(codes, present.astype(int), rng=fresh())
    assert found.areas == pytest.approx(areas, abs=1e-12)
    assert (found.num_captured, found.score) == (3, pytest.approx(expected, abs=1e-12))


def test_attributes_that_do_not_vary_in_the_rows_drawn_are_invalid() -> None:
    present = np.zeros((1000, 3), int)
    present[[3, 500], [0, 1]] = 1
    found = tad(np.random.default_rng(0).normal(size=(1000, 2)), present, rng=fresh(), num_samples=2)
    assert (found.status, found.score) == ("invalid", None)
    assert found.reason == "no attribute varies in the rows that were drawn: raise num_samples"


def test_tad_of_copies_is_0() -> None:
    present = np.random.default_rng(2).integers(2, size=(600, 3))
    assert tad(np.hstack([present, present]), present, rng=fresh()).score == 0.0


@pytest.mark.parametrize("correlation", ["spearman", "lasso"])
def test_udr(correlation: str) -> None:
    rng = np.random.default_rng(4)
    truth = rng.normal(size=(500, 4))
    runs = [truth @ np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2)] + [truth[:, [2, 0, 1]] * [1, -2, 3]]
    rows = fresh().integers(500, size=400)
    drawn = [run[rows] for run in runs]

    def score(a: int, b: int) -> float:
        if correlation == "spearman":
            strengths = np.array([[abs(spearmanr(x, y).statistic) for y in drawn[b].T] for x in drawn[a].T])
        else:
            x, y = ((run - run.mean(axis=0)) / run.std(axis=0) for run in (drawn[a], drawn[b]))
            strengths = np.abs(Lasso(alpha=0.1).fit(x, y).coef_).T
        return float(np.mean([(strengths.max(k) ** 2 / strengths.sum(k)).mean() for k in (0, 1)]))

    found = udr(runs, rng=fresh(), correlation=correlation, num_samples=400)  # type: ignore[arg-type]
    for a in range(3):
        others = [score(a, b) for b in range(3) if b != a]
        assert found.scores is not None
        assert found.scores[a] == pytest.approx(np.median(others), abs=1e-9)


def test_runs_that_agree_up_to_order_and_sign_have_a_udr_of_almost_1() -> None:
    truth = np.random.default_rng(4).normal(size=(4000, 3))
    dead = np.column_stack([-truth[:, [2, 0, 1]], np.full(4000, 0.5)])  # a dead unit is left out
    found = udr([truth, dead, truth * 3], rng=fresh())
    assert found.scores is not None
    assert found.scores.min() > 0.9
    assert udr([truth, truth * np.nan], rng=fresh()).status == "invalid"


def test_self_mig_is_known_for_copies_independent_units_and_halves() -> None:
    rng = np.random.default_rng(5)
    units = rng.integers(4, size=(4000, 3)) * 1.0
    assert self_mig(np.hstack([units, units]), rng=fresh()).score == 0.0
    assert self_mig(units, rng=fresh()).score == pytest.approx(1.0, abs=0.01)
    half = np.column_stack([units[:, 0], units[:, 0] // 2, units[:, 1]])  # ln 2 of ln 4; all of ln 2; nothing
    found = self_mig(half, rng=fresh())
    assert found.per_unit == pytest.approx([0.5, 0.0, 1.0], abs=0.01)
    assert found.largest == pytest.approx(1.0, abs=0.01)
    dead = self_mig(np.column_stack([units, np.ones(4000)]), rng=fresh())
    assert dead.score == pytest.approx(1.0, abs=0.01)


def test_self_mig(table: Table) -> None:
    assert self_mig(table[0], rng=fresh(), num_samples=700).score == pytest.approx(
        plain.self_mig(draws(table)[0][0]), abs=1e-12
    )


def test_sample_efficiency(synthetic: Callable[..., Table]) -> None:
    codes, factors = synthetic("noisy", (3, 2), repeats=50)
    rng = fresh()
    many, test, seeds = rng.integers(300, size=200), rng.integers(300, size=100), rng.integers(2**31, size=2)
    few, all_rows, tested = ((codes[rows], factors[rows]) for rows in (many[:20], many, test))
    models = (DecisionTreeClassifier(max_depth=10, random_state=seed) for seed in [*seeds, *seeds])
    expected = plain.sample_efficiency(few, all_rows, tested, lambda: next(models))
    sizes = {"num_few": 20, "num_many": 200, "num_test": 100}
    found = sample_efficiency(codes, factors, rng=fresh(), estimator="tree", **sizes)
    assert found.score == pytest.approx(expected, abs=1e-12)
    assert 0.5 < expected < 1.0  # or the test would compare ones
    assert found.score == pytest.approx((found.few_accuracy or 0) / (found.many_accuracy or 1))


def test_the_distance_of_two_sets_of_features() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(200, 5)) + 1.0
    covariances = np.cov(first.T), np.cov(second.T)
    expected = np.square(first.mean(0) - second.mean(0)).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * np.real(sqrtm(covariances[0] @ covariances[1])))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(first + 2.0, first) == pytest.approx(4.0 * 5, rel=1e-6)
