from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from raydis.errors import MetricError
from raydis.metrics.dci import dci
from raydis.metrics.factor_vae import factor_vae
from raydis.metrics.importance import Estimator
from raydis.metrics.mig import mig
from raydis.metrics.protocol import (
    PUBLISHED,
    SCORE_NAMES,
    SEARCH,
    Scores,
    comparable,
    derived_seed,
    score,
    search_subgrid,
    unscored,
)

SIZES = (4, 3, 2)
QUICK = replace(
    SEARCH,
    factor_vae_num_variance=500,
    factor_vae_num_train=400,
    factor_vae_num_eval=300,
    dci_num_train=300,
    dci_num_test=200,
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


def test_the_published_sizes_are_those_of_disentanglement_lib() -> None:
    assert PUBLISHED.whole_data_set
    assert PUBLISHED.estimator == "reference"
    assert PUBLISHED.sizes() == {
        "factor_vae_num_variance": 10_000,
        "factor_vae_num_train": 10_000,
        "factor_vae_num_eval": 5_000,
        "factor_vae_batch_size": 64,
        "prune_threshold": 0.05,
        "dci_num_train": 10_000,
        "dci_num_test": 5_000,
        "mig_num_samples": 10_000,
        "mig_num_bins": 20,
    }


def test_scores_hold_what_each_metric_gives_from_its_own_fresh_generator(synthetic: Callable) -> None:
    codes, factors = synthetic("mixed30", SIZES)
    scores = run(codes, factors, seed=3)
    votes = factor_vae(
        codes - codes.mean(axis=0),
        factors,
        rng=np.random.default_rng(3),
        num_variance=500,
        num_train=400,
        num_eval=300,
    )
    fits = dci(
        codes - codes.mean(axis=0), factors, rng=np.random.default_rng(3), estimator="tree", num_train=300, num_test=200
    )
    assert scores.status == "valid"
    assert scores.reason is None
    assert scores.num_images == 24
    assert (scores.factor_vae, scores.num_active_units) == (votes.score, votes.num_active)
    assert scores.dci_disentanglement == pytest.approx(fits.disentanglement, abs=1e-9)
    assert scores.dci_completeness == pytest.approx(fits.completeness, abs=1e-9)
    assert scores.dci_informativeness == fits.informativeness
    assert scores.mig == mig(codes, factors, rng=np.random.default_rng(3)).score
    assert scores.importance is not None
    np.testing.assert_allclose(scores.importance, fits.importance, atol=1e-9)


def test_the_numbers_are_those_of_the_configured_seed_however_many_draws_give_the_spread(synthetic: Callable) -> None:
    table = synthetic("noisy", SIZES)
    single, several = run(*table, seed=5, num_draws=1), run(*table, seed=5, num_draws=4)
    assert (single.num_draws, single.spread) == (1, None)
    assert several.num_draws == 4
    assert several.values() == single.values()
    assert several.importance == single.importance
    assert replace(several, num_draws=1, spread=None) == single
    assert comparable(single, several)


def test_the_spread_is_the_standard_deviation_over_the_seeds_of_the_draws(synthetic: Callable) -> None:
    table = synthetic("rotated", SIZES)
    seeds = [5, derived_seed(5, "draw 2"), derived_seed(5, "draw 3")]
    draws = [run(*table, seed=seed, num_draws=1).values() for seed in seeds]
    expected = {name: np.std([values[name] for values in draws], ddof=1) for name in SCORE_NAMES}
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
    rows = [np.random.default_rng(seed).integers(len(codes), size=QUICK.factor_vae_num_variance) for seed in seeds]
    first, *others = (codes[drawn].std(axis=0, ddof=1).max() for drawn in rows)
    assert first > min(others)  # or no threshold prunes another draw and leaves the first
    scaled = codes * QUICK.prune_threshold / ((first + min(others)) / 2)
    scores = run(scaled, factors)
    assert (scores.status, scores.num_draws, scores.spread) == ("valid", 3, None)
    assert scores.factor_vae is not None


def test_no_draw_is_refused(synthetic: Callable) -> None:
    with pytest.raises(MetricError, match="num_draws=0 must be at least 1"):
        run(*synthetic("noisy", SIZES), num_draws=0)


def test_streams_of_a_seed_have_seeds_of_their_own() -> None:
    found = {derived_seed(seed, name) for seed in range(100) for name in ("publication", "draw 2", "draw 3")}
    assert len(found) == 300
    assert not found & set(range(100))
    assert derived_seed(3, "publication") == derived_seed(3, "publication")


def test_scores_from_before_spreads_were_kept_still_load_with_an_unknown_one(synthetic: Callable) -> None:
    values = run(*synthetic("noisy", SIZES)).to_dict()
    del values["spread"], values["num_draws"]
    scores = Scores.from_dict(values)
    assert (scores.num_draws, scores.spread) == (1, None)


def test_units_that_are_vectors_score_as_their_first_component(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    tokens = codes[:, :, None] * np.array([0.6, 0.8]) + 4.0
    assert run(tokens, factors).factor_vae == run(codes, factors).factor_vae
    assert run(tokens, factors).dci_disentanglement == pytest.approx(run(codes, factors).dci_disentanglement, abs=1e-6)


def test_the_same_seed_gives_the_same_scores_and_another_one_other_draws(synthetic: Callable) -> None:
    table = synthetic("noisy", SIZES)
    assert run(*table) == run(*table)
    assert run(*table) != run(*table, seed=1)


def test_scores_survive_json(synthetic: Callable) -> None:
    scores = run(*synthetic("noisy", SIZES))
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict(), allow_nan=False))) == scores
    nothing = unscored("no_factors", "mnist has no factors", protocol=SEARCH, num_images=9, data_fingerprint="mnist")
    assert Scores.from_dict(json.loads(json.dumps(nothing.to_dict()))) == nothing


@pytest.mark.parametrize("change", [{"dci": 0.9}, {"seed": None}])
def test_a_dict_with_other_fields_is_refused(synthetic: Callable, change: dict) -> None:
    values = {**run(*synthetic("noisy", SIZES)).to_dict(), **change}
    values = {name: value for name, value in values.items() if value is not None or name == "reason"}
    with pytest.raises(MetricError, match=r"these are not scores: .*(dci|seed).*the fields are protocol, sizes"):
        Scores.from_dict(values)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_failed_representation_is_invalid_with_a_reason_and_without_a_number(
    synthetic: Callable, value: float
) -> None:
    codes, factors = synthetic("perfect", SIZES)
    codes[:, 1 if value else slice(None)] = value
    scores = run(codes, factors)
    assert scores.status == "invalid"
    assert scores.reason
    numbers = (scores.factor_vae, scores.dci_disentanglement, scores.dci_completeness, scores.dci_informativeness)
    assert numbers == (None, None, None, None)
    assert scores.importance is None


def test_only_equal_protocol_sizes_estimator_and_data_compare(synthetic: Callable) -> None:
    codes, factors = synthetic("noisy", SIZES)
    scores = run(codes, factors)
    assert comparable(scores, run(codes + 1.0, factors, seed=9))
    assert not comparable(scores, run(codes, factors, estimator="hist"))
    assert not comparable(scores, run(codes[1:], factors[1:]))
    assert not comparable(scores, replace(scores, protocol="published"))
    assert not comparable(scores, replace(scores, data_fingerprint="grid-b"))
    assert not comparable(scores, replace(scores, sizes={**scores.sizes, "dci_num_train": 10_000}))


def test_published_scores_of_another_estimator_keep_its_name_and_do_not_compare_with_the_reference() -> None:
    reference = unscored("invalid", "", protocol=PUBLISHED, num_images=9, data_fingerprint="a")
    hist = unscored("invalid", "", protocol=PUBLISHED, estimator="hist", num_images=9, data_fingerprint="a")
    assert (reference.estimator, hist.estimator) == ("reference", "hist")
    assert not comparable(reference, hist)


def test_factors_of_unequal_length_are_refused(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    with pytest.raises(MetricError, match="24 rows of codes but 23 of factors"):
        run(codes, factors[1:])


def test_the_shapes3d_grid_shrinks_to_ten_thousand_balanced_cells() -> None:
    levels = search_subgrid((10, 10, 10, 8, 4, 15), 10_000)
    assert [len(kept) for kept in levels] == [5, 5, 5, 4, 4, 5]
    assert levels[0] == (0, 2, 4, 6, 8)
    assert levels[5] == (0, 3, 6, 9, 12)


@pytest.mark.parametrize(
    ("sizes", "max_images"),
    [((6, 6, 2, 3, 3, 40, 40), 10_000), ((4, 24, 183), 10_000), ((3, 6, 40, 32, 32), 100), ((1, 5, 2), 4), ((7, 7), 9)],
)
def test_a_subgrid_is_bounded_and_keeps_two_levels_of_each_factor_that_has_them(
    sizes: tuple[int, ...], max_images: int
) -> None:
    levels = search_subgrid(sizes, max_images)
    counts = [len(kept) for kept in levels]
    assert max_images / 2 < math.prod(counts) <= max_images
    for size, kept in zip(sizes, levels, strict=True):
        assert min(size, 2) <= len(kept) <= size
        assert list(kept) == sorted(set(kept))
        assert 0 <= kept[0] <= kept[-1] < size
    assert levels == search_subgrid(sizes, max_images)


def test_a_grid_that_fits_is_kept_whole() -> None:
    assert search_subgrid((3, 2), 6) == ((0, 1, 2), (0, 1))


def test_too_small_a_bound_is_refused_with_the_smallest_that_works() -> None:
    with pytest.raises(MetricError, match=r"max_images=7 cannot hold 2 levels .*raise it to at least 8"):
        search_subgrid((5, 5, 5, 1), 7)


@pytest.mark.parametrize("sizes", [(), (3, 0)])
def test_sizes_of_no_grid_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(MetricError, match="must be positive, and at least one"):
        search_subgrid(sizes, 10)
