"""One EM step is scikit-learn's; splits and drops keep what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from raydis.models.em import RIDGE, State, drop_small, e_step, m_step, run_em, seed, split_loose

NEVER = -math.inf


def overlapping_points(num_mixtures: int = 3, dim: int = 4, num_points: int = 700) -> Tensor:
    """Centred points (N, d, S) of four overlapping Gaussians, other ones for each mixture."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(num_mixtures, 4, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (num_mixtures, num_points), generator=generator)
    noise = torch.randn(num_mixtures, num_points, dim, generator=generator, dtype=torch.float64)
    points = centres[torch.arange(num_mixtures)[:, None], labels] + 0.7 * noise
    return (points - points.mean(1, keepdim=True)).mT.contiguous()


def seeded(points: Tensor, num_components: int) -> State:
    draws = torch.rand(len(points), num_components, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return seed(points, draws)


def total_moments(state: State) -> tuple[Tensor, Tensor]:
    """Mean (N, d) and covariance (N, d, d) of whole mixtures."""
    weights = state.log_weights.exp()
    mean = (weights[..., None] * state.means).sum(1)
    second = state.covariances + state.means.unsqueeze(-1) * state.means.unsqueeze(-2)
    return mean, (weights[..., None, None] * second).sum(1) - mean.unsqueeze(-1) * mean.unsqueeze(-2)


def test_em_follows_scikit_learn_step_by_step_from_the_same_start() -> None:
    points = overlapping_points()
    start = seeded(points, 4)
    for num_steps in (1, 12):
        trace: list[Tensor] = []
        state = run_em(points, start, num_steps, NEVER, trace)
        assert len(trace) == num_steps
        for i in range(len(points)):
            eye = RIDGE * np.eye(4)
            oracle = GaussianMixture(
                4,
                reg_covar=RIDGE,
                max_iter=num_steps,
                tol=0.0,
                weights_init=start.log_weights[i].exp().numpy(),
                means_init=start.means[i].numpy(),
                precisions_init=np.linalg.inv(start.covariances[i].numpy() + eye),
            )
            with pytest.warns(ConvergenceWarning):
                oracle.fit(points[i].T.numpy())
            np.testing.assert_allclose(state.log_weights[i].exp().numpy(), oracle.weights_, rtol=1e-8)
            np.testing.assert_allclose(state.means[i].numpy(), oracle.means_, atol=1e-8)
            np.testing.assert_allclose(state.covariances[i].numpy() + eye, oracle.covariances_, atol=1e-8)
            assert float(trace[-1][i]) == pytest.approx(oracle.lower_bound_, abs=1e-9)


def test_the_log_likelihood_does_not_fall() -> None:
    points = overlapping_points()
    trace: list[Tensor] = []
    run_em(points, seeded(points, 6), 40, NEVER, trace)
    steps = torch.stack(trace).diff(dim=0)
    assert steps.min() > -1e-6  # the ridge is not part of the maximised likelihood
    assert steps.max() > 1e-2


def test_after_an_m_step_the_mixture_has_exactly_the_mean_and_covariance_of_the_points() -> None:
    points = overlapping_points()
    mean, covariance = total_moments(run_em(points, seeded(points, 5), 3, NEVER, []))
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    torch.testing.assert_close(covariance, points @ points.mT / points.shape[-1], atol=1e-12, rtol=0)


def test_covariances_are_symmetric_and_positive_semidefinite() -> None:
    points = overlapping_points()
    covariances = run_em(points, seeded(points, 8), 10, NEVER, []).covariances
    assert torch.equal(covariances, covariances.mT)
    assert torch.linalg.eigvalsh(covariances).min() > -1e-12


def test_statistics_do_not_depend_on_how_points_are_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = overlapping_points()
    state = seeded(points, 4)
    whole = e_step(points, state)
    monkeypatch.setattr("raydis.models.em._CHUNK_FEATURES", {"cpu": 1})  # chunks of 64 for 700 points: one is short
    for part, expected in zip(e_step(points, state), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)


def test_a_mixture_stops_on_its_own_and_ends_as_if_fitted_alone() -> None:
    points = overlapping_points()
    points[0] *= 1e-3  # converges at another pace than the others
    start = seeded(points, 4)
    trace: list[Tensor] = []
    together = run_em(points, start, 200, 1e-4, trace)
    num_steps = []
    for i in range(len(points)):
        own: list[Tensor] = []
        alone = run_em(points[i : i + 1], State(*(part[i : i + 1] for part in start)), 200, 1e-4, own)
        num_steps.append(len(own))
        torch.testing.assert_close(together.means[i], alone.means[0], rtol=1e-9, atol=1e-12)
        assert float(trace[-1][i]) == pytest.approx(float(own[-1][0]), abs=1e-9)
    assert len(set(num_steps)) > 1
    assert len(trace) == max(num_steps) < 200


def test_seeds_are_distinct_points_and_no_more_than_there_are() -> None:
    values = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    points = values.repeat(50, 1).T.unsqueeze(0)  # (1, 2, 150)
    state = seeded(points, 8)
    alive = state.log_weights[0].isfinite()
    assert int(alive.sum()) == 3
    assert {tuple(mean) for mean in state.means[0][alive].tolist()} == {tuple(value) for value in values.tolist()}
    assert state.log_weights[0][alive].exp().tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("count", [0.0, 1e-9])
def test_a_component_without_points_becomes_absent_and_takes_no_weight(count: float) -> None:
    points = overlapping_points(num_mixtures=1)
    counts, moments, _ = e_step(points, seeded(points, 3))
    moments[0, 1] *= count / counts[0, 1]
    counts[0, 1] = count
    state = m_step(counts, moments)
    assert state.log_weights.isfinite().tolist() == [[True, False, True]]
    assert float(state.log_weights.exp().sum()) == pytest.approx(1.0)
    assert all(part.isfinite().all() for part in (state.means, state.covariances))


@pytest.mark.parametrize(("max_components", "expected"), [(32, 9), (4, 3)])
def test_a_split_keeps_mean_covariance_and_weight_of_the_mixture(max_components: int, expected: int) -> None:
    points = overlapping_points()
    parents = run_em(points, seeded(points, 3), 5, NEVER, [])
    children, num_split = split_loose(parents, 0.0, max_components)
    assert num_split == expected
    assert children.log_weights.shape == (3, 3 + expected // 3)
    for child, parent in zip(total_moments(children), total_moments(parents), strict=True):
        torch.testing.assert_close(child, parent, rtol=1e-10, atol=1e-12)


def test_a_split_goes_to_the_loosest_components_for_which_there_is_room() -> None:
    spreads = torch.tensor([0.2, 0.9, 0.6, 0.7], dtype=torch.float64)
    state = State(
        torch.full((1, 4), -math.log(4), dtype=torch.float64),
        torch.arange(8, dtype=torch.float64).reshape(1, 4, 2),
        (spreads.square() / 2)[None, :, None, None] * torch.eye(2, dtype=torch.float64),  # trace = spread^2
    )
    for max_components, expected in ((4, []), (5, [1]), (6, [1, 3]), (7, [1, 2, 3]), (32, [1, 2, 3])):
        children, num_split = split_loose(state, 0.5, max_components)
        assert num_split == len(expected)
        assert children.log_weights.shape[1] == 4 + len(expected) <= max(max_components, 4)
        kept = [k for k in range(4) if (children.means[0] == state.means[0, k]).all(-1).any()]
        assert sorted(set(range(4)) - set(kept)) == expected


def test_dropping_removes_small_components_but_never_the_largest() -> None:
    points = torch.zeros(1, 1, 100, dtype=torch.float64)
    points[0, 0, 60:95], points[0, 0, 95:] = 5.0, 9.0  # 60, 35 and 5 points
    state = State(
        torch.full((1, 3), -math.log(3), dtype=torch.float64),
        torch.tensor([[[0.0], [5.0], [9.0]]], dtype=torch.float64),
        torch.full((1, 3, 1, 1), 1e-4, dtype=torch.float64),
    )
    for min_count, expected in ((1, [0.0, 5.0, 9.0]), (10, [0.0, 5.0]), (50, [0.0]), (1000, [0.0])):
        left = drop_small(points, state, min_count)
        assert left.means.flatten().tolist() == expected
        assert float(left.log_weights.exp().sum()) == pytest.approx(1.0)
