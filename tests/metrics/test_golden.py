"""The values that disentanglement_lib's own code gives on its identity data, to the digits given, from the same draws.

The data has ten factors, uniform on 1..10, and its observation is the vector of factors. `RandomState(0)` draws them as
disentanglement_lib does, so what is computed from the drawn rows is deterministic.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from raydis.metrics.beta_vae import beta_vae
from raydis.metrics.dci import completeness, disentanglement, per_unit_disentanglement
from raydis.metrics.factor_vae import factor_vae
from raydis.metrics.irs import irs
from raydis.metrics.mig import discretise, information_matrix, mutual_information
from raydis.metrics.modularity import explicitness, per_unit_modularity
from raydis.metrics.sap import mean_gap, sap_continuous, squared_correlations, svc_accuracies

DIAGONAL = 5.0 * np.eye(5)
MATRICES = {
    "diagonal": DIAGONAL,
    "empty codes": np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
    "zero": np.zeros((10, 10)),
    "redundant codes": np.vstack([DIAGONAL, DIAGONAL]),
    "missed factors": DIAGONAL[:2],
    "one code for two factors": np.hstack([DIAGONAL, DIAGONAL]),
}
SHARED = 1 - math.log(2) / math.log(10)
EXPECTED = {  # disentanglement, completeness, modularity
    "diagonal": (1, 1, 1),
    "empty codes": (1, 1, 2 / 3),
    "zero": (0, 0, 0),
    "redundant codes": (1, SHARED, 1),
    "missed factors": (1, 1, 1),
    "one code for two factors": (SHARED, 1, 1 - 1 / 9),
}


def identity(*sizes: int) -> list[NDArray[np.int64]]:
    """Draws of one generator, one after the other."""
    rng = np.random.RandomState(0)  # the generator of the published code
    return [rng.randint(1, 11, size=(size, 10)) for size in sizes]


@pytest.mark.parametrize("name", MATRICES)
def test_importance_matrices_have_the_published_values(name: str) -> None:
    matrix = MATRICES[name]
    found = disentanglement(matrix), completeness(matrix), float(per_unit_modularity(matrix).mean())
    assert found == pytest.approx(EXPECTED[name], abs=1e-7)


def test_a_matrix_of_four_codes_has_the_values_of_its_entropies() -> None:
    matrix = np.array([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.2, 0.7], [0.0, 0.0, 0.0]])
    assert per_unit_disentanglement(matrix) == pytest.approx([0.418328, 0.270153, 0.270153, 0.0], abs=1e-6)
    assert (disentanglement(matrix), completeness(matrix)) == pytest.approx((0.319545, 0.460752), abs=1e-6)


def test_bins_entropy_and_information_have_the_published_values() -> None:
    bins = discretise(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), 3)
    assert (bins + 1).tolist() == [1, 1, 2, 2, 3, 3]
    assert mutual_information(bins, bins, 3, 3) == pytest.approx(math.log(3))
    codes, factors = np.array([[1, 2, 1, 2], [1, 1, 2, 2]]).T, np.array([[1, 2, 1, 2], [2, 2, 1, 1]]).T
    assert information_matrix(codes * 1.0, factors, 2)[0] == pytest.approx(np.diag([math.log(2)] * 2))


def test_mig_of_the_identity() -> None:
    (drawn,) = identity(3000)
    information, entropies = information_matrix(drawn * 1.0, drawn, 20)
    second, best = np.sort(information, axis=0)[-2:]
    assert float(((best - second) / entropies).mean()) == pytest.approx(0.9922, abs=5e-5)
    information, _ = information_matrix(np.hstack([drawn, drawn]) * 1.0, drawn, 20)
    assert mean_gap(information) == 0.0


def test_sap_of_the_identity() -> None:
    train, test = identity(3000, 3000)
    assert mean_gap(squared_correlations(train * 1.0, train)) == pytest.approx(0.9991, abs=5e-5)
    assert mean_gap(squared_correlations(np.hstack([train, train]) * 1.0, train)) == pytest.approx(0.0, abs=1e-12)
    assert mean_gap(squared_correlations(np.zeros((3000, 10)), train)) == 0.0
    # One support vector classifier for two of the ten codes and factors, and the published number for all.
    assert mean_gap(svc_accuracies((train * 1.0, train), (test * 1.0, test))) == pytest.approx(0.1885, abs=5e-5)


def test_modularity_and_explicitness_of_the_identity() -> None:
    train, test = identity(3000, 3000)
    once, twice = (information_matrix(codes * 1.0, train, 20)[0] for codes in (train, np.hstack([train, train])))
    assert per_unit_modularity(once).mean() == pytest.approx(0.99996, abs=5e-6)
    assert per_unit_modularity(twice).mean() == pytest.approx(0.99996, abs=5e-6)
    found = explicitness((train * 1.0, train), (test * 1.0, test))
    assert found == pytest.approx((0.99994, 0.99990), abs=5e-6)


def test_codes_whose_values_are_exchanged_within_each_row_have_no_modularity() -> None:
    (drawn,) = identity(20_000)
    mixed = np.random.default_rng(0).permuted(drawn, axis=1)
    assert per_unit_modularity(information_matrix(mixed * 1.0, drawn, 20)[0]).mean() <= 0.2  # as the library asserts


def test_beta_vae_and_irs_of_the_identity_are_perfect() -> None:
    (drawn,) = identity(20_000)
    found = beta_vae(drawn * 1.0, drawn, rng=np.random.default_rng(0), batch_size=5, num_train=2000, num_eval=2000)
    assert (found.train_accuracy, found.score) == (1.0, 1.0)
    assert irs(drawn * 1.0, drawn, rng=np.random.default_rng(0), num_samples=3000).score == 1.0


def test_factor_vae_of_the_identity_lies_where_the_library_has_it() -> None:
    (drawn,) = identity(20_000)
    sizes = {"batch_size": 5, "num_variance": 3000, "num_train": 2000, "num_eval": 2500, "prune_threshold": 0.0}
    found = factor_vae(drawn * 1.0, drawn, rng=np.random.default_rng(0), **sizes)
    # 0.9993 and 0.9995 of the votes are right; four deviations of a share of 2,000 votes are below 0.003
    assert (found.train_accuracy, found.score) == pytest.approx((0.9993, 0.9995), abs=0.003)


def test_codes_of_zeros_are_invalid_where_the_library_says_0() -> None:
    (drawn,) = identity(500)
    for metric in (sap_continuous, irs, factor_vae, beta_vae):
        assert metric(np.zeros((500, 10)), drawn, rng=np.random.default_rng(0)).status == "invalid"
