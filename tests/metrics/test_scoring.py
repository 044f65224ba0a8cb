"""From codes and factors to scores: the numbers, their spread, and scores without numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from raydis.errors import MetricError
from raydis.metrics import importance
from raydis.metrics.dci import dci
from raydis.metrics.entry import Metric, Number
from raydis.metrics.factor_vae import factor_vae
from raydis.metrics.importance import Estimator
from raydis.metrics.mig import mig
from raydis.metrics.protocol import SEARCH
from raydis.metrics.representation import per_unit_pca
from raydis.metrics.sampling import LevelIndex
from raydis.metrics.scores import Scores, differences
from raydis.metrics.scoring import derived_seed, fitting_metrics, measure, score
from raydis.metrics.table import METRICS, metrics_of

SIZES = (4, 3, 2)
QUICK = replace(
    SEARCH,
    overrides={
        "factor_vae": {"num_variance": 500, "num_train": 400, "num_eval": 300},
        "dci": {"num_train": 300, "num_test": 200},
        "sample_efficiency": {"num_many": 300, "num_test": 200},
    },
)


def run(
    codes: np.ndarray, factors: np.ndarray, *, estimator: Estimator = "tree", seed: int = 0, num_draws: int = 3
) -> Scores:
    return score(
        codes,
        factors,
        protocol=QUICK,
        estimator=estimator,
        seed=seed,
        num_draws=num_draws,
        data_fingerprint="grid-a",
    )


@pytest.mark.parametrize("estimator", ["tree", "hist"])
def test_scores_are_to_the_bit_what_each_metric_gives_from_its_own_fresh_generator(
    synthetic: Callable, estimator: Estimator
) -> None:
    codes, factors = synthetic("mixed30", SIZES)
    scores = run(codes, factors, estimator=estimator, seed=3)
    scalars = per_unit_pca(codes)

    def fresh() -> np.random.Generator:
        return np.random.default_rng(3)

    votes = factor_vae(scalars, factors, rng=fresh(), num_variance=500, num_train=400, num_eval=300)
    fits = dci(scalars, factors, rng=fresh(), estimator=estimator, num_train=300, num_test=200)
    assert (scores.status, scores.reason, scores.num_images) == ("valid", None, 24)
    assert scores.values == {
        "factor_vae": votes.score,
        "dci_disentanglement": fits.disentanglement,
        "dci_completeness": fits.completeness,
        "dci_informativeness": fits.informativeness,
        "mig": mig(scalars, factors, rng=fresh()).score,
    }
    assert fits.importance is not None
    assert scores.details == {"num_active_units": votes.num_active, "importance": fits.importance.tolist()}


def test_the_numbers_are_those_of_the_configured_seed_however_many_draws_give_the_spread(synthetic: Callable) -> None:
    table = synthetic("noisy", SIZES)
    single, several = run(*table, seed=5, num_draws=1), run(*table, seed=5, num_draws=4)
    assert (single.num_draws, single.spread) == (1, None)
    assert several.num_draws == 4
    assert several.values == single.values
    assert several.details == single.details
    assert replace(several, num_draws=1, spread=None) == single
    assert not differences(single, several)


def test_the_spread_is_the_standard_deviation_over_the_seeds_of_the_draws(synthetic: Callable) -> None:
    table = synthetic("rotated", SIZES)
    seeds = [5, derived_seed(5, "draw 2"), derived_seed(5, "draw 3")]
    draws = [run(*table, seed=seed, num_draws=1).values for seed in seeds]
    expected = {name: np.std([values[name] for values in draws], ddof=1) for name in draws[0]}
    assert run(*table, seed=5).spread == pytest.approx(expected)
    assert min(expected[name] for name in ("factor_vae", "dci_disentanglement", "mig")) > 0


def test_draws_do_not_move_what_they_cannot(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    spread = run(codes[:, :3], factors).spread
    assert spread is not None
    assert spread["factor_vae"] == spread["dci_informativeness"] == 0.0


def test_a_draw_that_prunes_all_units_leaves_the_spread_unknown(synthetic: Callable) -> None:
    codes, factors = synthetic("noisy", SIZES)
    codes = codes[:, :2] - codes[:, :2].mean(axis=0)
    seeds = [0, derived_seed(0, "draw 2"), derived_seed(0, "draw 3")]
    rows = [np.random.default_rng(seed).integers(len(codes), size=500) for seed in seeds]
    first, *others = (codes[drawn].std(axis=0, ddof=1).max() for drawn in rows)
    assert first > min(others)  # or no threshold prunes another draw and leaves the first
    scaled = codes * METRICS["factor_vae"].sizes["prune_threshold"] / ((first + min(others)) / 2)
    scores = run(scaled, factors)
    assert (scores.status, scores.num_draws, scores.spread) == ("valid", 3, None)
    assert "factor_vae" in scores.values


def test_no_draw_is_refused(synthetic: Callable) -> None:
    with pytest.raises(MetricError, match="num_draws=0 must be at least 1"):
        run(*synthetic("noisy", SIZES), num_draws=0)


def test_streams_of_a_seed_have_seeds_of_their_own() -> None:
    found = {derived_seed(seed, name) for seed in range(100) for name in ("publication", "draw 2", "draw 3")}
    assert len(found) == 300
    assert not found & set(range(100))
    assert derived_seed(3, "publication") == derived_seed(3, "publication")


def test_units_that_are_vectors_score_as_their_first_component(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    tokens = codes[:, :, None] * np.array([0.6, 0.8]) + 4.0
    scalar, vector = run(codes, factors).values, run(tokens, factors).values
    assert vector["factor_vae"] == scalar["factor_vae"]
    assert vector["dci_disentanglement"] == pytest.approx(scalar["dci_disentanglement"], abs=1e-6)


def test_the_same_seed_gives_the_same_scores_and_another_one_other_draws(synthetic: Callable) -> None:
    table = synthetic("noisy", SIZES)
    assert run(*table) == run(*table)
    assert run(*table) != run(*table, seed=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_failed_representation_is_invalid_with_a_reason_and_without_a_number(
    synthetic: Callable, value: float
) -> None:
    codes, factors = synthetic("perfect", SIZES)
    codes[:, 1 if value else slice(None)] = value
    scores = run(codes, factors)
    assert scores.status == "invalid"
    assert scores.reason
    assert (scores.values, scores.details, scores.spread) == ({}, {}, None)


def test_scores_of_other_codes_and_seeds_compare_and_of_another_estimator_or_number_of_rows_do_not(
    synthetic: Callable,
) -> None:
    codes, factors = synthetic("noisy", SIZES)
    scores = run(codes, factors)
    assert not differences(scores, run(codes + 1.0, factors, seed=9))
    assert differences(scores, run(codes, factors, estimator="hist"))
    assert differences(scores, run(codes[1:], factors[1:]))


def test_factors_of_unequal_length_are_refused(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    with pytest.raises(MetricError, match="24 rows of codes but 23 of factors"):
        run(codes, factors[1:])


@dataclass(frozen=True)
class Broken:
    """A result that claims to be valid."""

    status: str = "valid"
    reason: str | None = None
    score: float = float("nan")


def test_a_metric_without_a_finite_value_makes_the_scores_invalid_and_is_named(
    synthetic: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = Number("broken", field="score", short="broken", title="Broken")
    broken = Metric(function=lambda codes, factors, rng: Broken(), numbers=(number,), default=True)
    monkeypatch.setitem(METRICS, "broken", broken)
    scores = run(*synthetic("noisy", SIZES))
    assert (scores.status, scores.values) == ("invalid", {})
    assert scores.reason == "broken is nan: the metric broken has no finite value for these codes"


def test_a_table_that_lacks_what_a_metric_needs_is_refused_before_the_metric_sees_it(
    synthetic: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = Number("needy", field="score", short="needy", title="Needy")
    metric = Metric(function=lambda codes, factors, rng: Broken(score=1.0), numbers=(number,), needs=())
    codes, factors = synthetic("noisy", SIZES)
    for need, table, message in (
        ("two_units", (codes[:, :1], factors), "needy compares units, .* give the codes of at least two units"),
        ("discrete_factors", (codes, factors + 0.5), "factors of type float64 are not levels"),
        ("discrete_factors", (codes, factors * [0, 0, 1]), "1 of 3 factors vary"),
    ):
        monkeypatch.setitem(METRICS, "needy", metric)
        assert measure("needy", *table, protocol=QUICK, seed=0).values == {"needy": 1.0}
        monkeypatch.setitem(METRICS, "needy", replace(metric, needs=(need,)))
        with pytest.raises(MetricError, match=message):
            measure("needy", *table, protocol=QUICK, seed=0)


def test_one_metric_alone_gives_the_numbers_that_scores_hold(synthetic: Callable) -> None:
    table = synthetic("noisy", SIZES)
    protocol, scalars = replace(QUICK, metrics="all"), per_unit_pca(table[0])
    whole = score(*table, protocol=protocol, seed=4, num_draws=1, data_fingerprint="grid-a")
    of_vectors = {name for name, metric in METRICS.items() if "vectors" in metric.needs}
    assert set(METRICS) - set(whole.sizes) == {"tad"} | of_vectors  # tad needs binary factors
    for name in whole.sizes:
        alone = measure(name, scalars, table[1], protocol=QUICK, seed=4).values
        assert alone == {number.name: whole.values[number.name] for number in METRICS[name].numbers}


def test_a_choice_of_metrics_gives_their_numbers_in_the_order_of_the_table(synthetic: Callable) -> None:
    table = synthetic("noisy", SIZES)
    chosen = score(*table, protocol=replace(QUICK, metrics=("irs", "mig")), data_fingerprint="grid-a")
    assert list(chosen.values) == ["mig", "irs"]
    assert set(chosen.sizes) == {"mig", "irs"}
    assert chosen.values["mig"] == run(*table).values["mig"]
    assert not differences(chosen, run(*table, estimator="hist"))


def test_a_metric_that_the_factors_do_not_fit_is_refused_by_name_and_left_out_of_all(synthetic: Callable) -> None:
    codes, factors = synthetic("noisy", SIZES)
    binary = (factors > 0).astype(int)
    every = replace(QUICK, metrics="all")
    assert set(fitting_metrics(codes, binary, vectors=True)) == set(METRICS)
    assert set(METRICS) - set(fitting_metrics(codes[:, :1], factors, vectors=True)) == {
        name for name, metric in METRICS.items() if {"two_units", "binary_factors"} & set(metric.needs)
    }
    with pytest.raises(
        MetricError, match=r"tad is of binary attributes, but factors \[0, 1\] have more than two values"
    ):
        score(codes, factors, protocol=replace(every, metrics=("tad",)), data_fingerprint="grid-a")


def test_all_draws_share_one_index_of_the_levels(synthetic: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    build = LevelIndex.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(LevelIndex, "of", classmethod(lambda cls, factors: calls.append(1) or build(cls, factors)))
    protocol = replace(QUICK, metrics=("factor_vae", "beta_vae"))
    score(*synthetic("noisy", SIZES), protocol=protocol, data_fingerprint="grid-a")
    assert len(calls) == 1


def test_metrics_of_one_draw_share_their_fits_and_give_the_same_numbers(
    synthetic: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = synthetic("noisy", SIZES)
    sizes = {"num_test": 200}
    overrides = {"dci": sizes | {"num_train": 300}, "sample_efficiency": sizes | {"num_many": 300}}
    protocol = replace(SEARCH, estimator="tree", metrics=("dci", "sample_efficiency"), overrides=overrides)
    alone = [measure(name, per_unit_pca(table[0]), table[1], protocol=protocol, seed=4) for name in protocol.metrics]
    calls: list[int] = []
    fit = importance.fit_factor
    monkeypatch.setattr(importance, "fit_factor", lambda *args, **kwargs: calls.append(1) or fit(*args, **kwargs))
    together = score(*table, protocol=protocol, seed=4, num_draws=1, data_fingerprint="grid-a")
    assert together.values == {**alone[0].values, **alone[1].values}
    assert len(calls) == 2 * len(SIZES)  # to many labels once, and to few


def test_an_unknown_metric_is_refused_with_the_nearest_name() -> None:
    for name, near in (("mgi", "mig"), ("dci_disentanglement", "dci"), ("modularity", "modularity_explicitness")):
        with pytest.raises(MetricError, match=f"no metric is named {name}; did you mean {near}\\?"):
            metrics_of(replace(SEARCH, metrics=(name,)))
    with pytest.raises(MetricError, match="no metric is chosen: name some of factor_vae"):
        metrics_of(replace(SEARCH, metrics=()))
