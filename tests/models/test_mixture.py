"""Mixtures of tokens: known blobs are found, bad units are reported, densities are the textbook's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from raydis.models import em
from raydis.models.em import RIDGE, State, drop_small
from raydis.models.mixture import Mixtures, fit_mixtures, joint_log_density

OPTIONS: dict[str, Any] = {
    "num_gaussians": 4,
    "max_gaussians": 8,
    "num_splits": 3,
    "split_spread": 0.5,
    "min_count": 10.0,
    "em_steps": 30,
}


def fit(tokens: Tensor, seed: int = 0, **options: Any) -> Mixtures:
    return fit_mixtures(tokens, **{**OPTIONS, **options}, generator=torch.Generator().manual_seed(seed))


def blobs(num_samples: int = 600, num_units: int = 3, unit_dim: int = 5, num_blobs: int = 4) -> tuple[Tensor, Tensor]:
    """Tokens (S, N, D) in tight, well separated blobs, other ones for each unit, and the blob of each token (S, N)."""
    generator = torch.Generator().manual_seed(5)
    centres = 10 * torch.rand(num_units, num_blobs, unit_dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_blobs, (num_samples, num_units), generator=generator)
    noise = torch.randn(num_samples, num_units, unit_dim, generator=generator, dtype=torch.float64)
    return centres[torch.arange(num_units), labels] + 0.1 * noise, labels


def curves(num_samples: int = 800, num_units: int = 3, unit_dim: int = 16) -> Tensor:
    """Tokens as an encoder makes them: a random ReLU network of one scalar a unit; float32, (S, N, D)."""
    generator = torch.Generator().manual_seed(6)
    units = torch.randn(num_units, num_samples, 1, generator=generator)
    hidden = torch.relu(
        units * torch.randn(num_units, 1, 32, generator=generator) + torch.randn(num_units, 1, 32, generator=generator)
    )
    return torch.relu(hidden @ torch.randn(num_units, 32, unit_dim, generator=generator)).transpose(0, 1) / 6


def normalise(tokens: Tensor, mixtures: Mixtures) -> Tensor:
    return (tokens - mixtures.offset[:, None]) / mixtures.scale[:, None]


def joint(normalised: Tensor, mixtures: Mixtures) -> Tensor:
    return joint_log_density(normalised, mixtures.log_weights, mixtures.means, mixtures.precision_cholesky)


def tensors(mixtures: Mixtures) -> dict[str, Tensor]:
    return {name: value for name, value in vars(mixtures).items() if isinstance(value, Tensor)}


def same_unit(left: Mixtures, i: int, right: Mixtures, j: int) -> bool:
    return all(
        torch.allclose(getattr(left, name)[i], getattr(right, name)[j], rtol=1e-6, atol=1e-9)
        for name in ("offset", "scale", "log_weights", "means", "precision_cholesky")
    ) and torch.equal(left.alive[i], right.alive[j])


def test_separated_blobs_are_recovered_with_their_means_weights_and_covariances() -> None:
    tokens, labels = blobs()
    mixtures = fit(tokens)
    assert mixtures.alive.sum(1).tolist() == [4, 4, 4]
    assert mixtures.reasons == ("", "", "")
    for i in range(3):
        for blob in range(4):
            members = normalise(tokens, mixtures)[labels[:, i] == blob, i]
            distance = (mixtures.means[i] - members.mean(0)).norm(dim=-1).masked_fill(~mixtures.alive[i], torch.inf)
            k = int(distance.argmin())
            whitening = mixtures.precision_cholesky[i, k]
            covariance = torch.linalg.inv(whitening.T @ whitening)
            assert float(distance[k]) < 2e-4  # of a unit range: axes with a thousandth of the variance are left out
            assert float(mixtures.log_weights[i, k].exp()) == pytest.approx(len(members) / 600, abs=1e-6)
            variance = normalise(tokens, mixtures)[:, i].var(0, correction=0).sum()
            expected = members.T.cov(correction=0) + RIDGE * variance * torch.eye(5)
            torch.testing.assert_close(covariance, expected, rtol=1e-3, atol=float(RIDGE * variance), check_dtype=False)


def test_splitting_finds_blobs_that_too_few_seeds_missed() -> None:
    tokens, labels = blobs()
    mixtures = fit(tokens, num_gaussians=1, num_splits=4, split_spread=0.1)
    component = joint(normalise(tokens, mixtures), mixtures).argmax(-1)
    for i in range(3):
        # No component serves two blobs.
        owners = [set(component[labels[:, i] == blob, i].tolist()) for blob in range(4)]
        assert all(owners)
        assert sum(map(len, owners)) == len(set.union(*owners))
    assert fit(tokens, num_gaussians=1, num_splits=0).alive.sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("max_gaussians", [2, 5, 9])
def test_no_unit_exceeds_the_bound_however_much_is_split(max_gaussians: int) -> None:
    mixtures = fit(curves(), num_gaussians=2, max_gaussians=max_gaussians, split_spread=1e-3, num_splits=5, min_count=1)
    assert mixtures.means.shape == (3, max_gaussians, 16)
    assert mixtures.alive.sum(1).max() <= max_gaussians
    assert mixtures.alive.sum(1).min() >= min(2, max_gaussians)


@pytest.mark.parametrize(("num_samples", "min_count", "seed"), [(800, 60, 0), (800, 60, 3), (300, 40, 0), (300, 40, 1)])
def test_weights_sum_to_one_and_hold_at_least_the_smallest_count(
    num_samples: int, min_count: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = []

    def drop(points: Tensor, state: State, min_count: float) -> State:
        left = drop_small(points, state, min_count)
        dropped.append(int(state.log_weights.isfinite().sum() - left.log_weights.isfinite().sum()))
        return left

    monkeypatch.setattr(em, "drop_small", drop)
    mixtures = fit(curves(num_samples), seed=seed, num_gaussians=8, num_splits=0, min_count=min_count)
    weights = mixtures.log_weights.exp()
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (weights > 0).equal(mixtures.alive)
    assert num_samples * float(weights[mixtures.alive].min()) >= min_count - 1e-3
    assert dropped[0] > 0
    assert dropped[1:] == [1 if num_samples == 300 else 0]  # of 300, one has become too small since


def test_the_mean_of_the_mixture_is_the_mean_of_the_tokens() -> None:
    tokens = curves().double()
    mixtures = fit(tokens)
    mean = (mixtures.log_weights.exp().unsqueeze(-1) * mixtures.means).sum(1)
    torch.testing.assert_close(mean, normalise(tokens, mixtures).mean(0), rtol=0, atol=1e-10)


def test_normalised_tokens_span_minus_one_to_zero() -> None:
    tokens = curves()
    mixtures = fit(tokens)
    normalised = normalise(tokens, mixtures)
    assert normalised.amax((0, 2)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert normalised.amin((0, 2)).tolist() == pytest.approx([-1, -1, -1], abs=1e-5)


def test_densities_are_those_of_torch_distributions() -> None:
    tokens, _ = blobs()
    mixtures = fit(tokens)
    normalised = normalise(tokens[:50], mixtures)
    found = joint(normalised, mixtures)
    for i in range(3):
        for k in range(8):
            if not mixtures.alive[i, k]:
                assert (found[:, i, k] == -torch.inf).all()
                continue
            whitening = mixtures.precision_cholesky[i, k]
            gaussian = MultivariateNormal(mixtures.means[i, k], precision_matrix=whitening.T @ whitening)
            expected = mixtures.log_weights[i, k] + gaussian.log_prob(normalised[:, i])
            torch.testing.assert_close(found[:, i, k], expected, rtol=1e-6, atol=1e-6)


def test_float32_densities_keep_a_hundredth_of_a_nat_on_near_singular_curves() -> None:
    tokens = curves()
    mixtures = fit(tokens)
    assert mixtures.means.dtype == torch.float32
    exact = Mixtures(
        **{**vars(mixtures), **{k: v.double() for k, v in tensors(mixtures).items() if v.is_floating_point()}}
    )
    near = joint(normalise(tokens, mixtures), mixtures).logsumexp(-1)
    far = joint(normalise(tokens, mixtures).double(), exact).logsumexp(-1)
    torch.testing.assert_close(near, far.float(), atol=1e-2, rtol=0)
    assert float(mixtures.precision_cholesky.diagonal(dim1=-2, dim2=-1).max()) > 150  # as singular as the ridge lets it


def test_the_reported_log_likelihood_is_the_mean_log_density_of_the_tokens() -> None:
    tokens = curves().double()
    tokens[:, 1, 3:] = 0.0  # a unit with dead entries
    mixtures = fit(tokens, em_steps=200)
    final = joint(normalise(tokens, mixtures), mixtures).logsumexp(-1).mean(0)
    torch.testing.assert_close(mixtures.log_likelihood[-1], final, rtol=0, atol=0.1)


def test_a_dead_entry_or_a_rotation_of_tokens_changes_nothing_but_the_coordinates() -> None:
    tokens, _ = blobs(num_units=1, unit_dim=3)
    wide = torch.cat([tokens, tokens.mean() * torch.ones(600, 1, 4)], -1)
    narrow, padded = fit(tokens), fit(wide)
    torch.testing.assert_close(narrow.means, padded.means[..., :3], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(narrow.log_weights, padded.log_weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        joint(normalise(tokens, narrow), narrow).softmax(-1), joint(normalise(wide, padded), padded).softmax(-1)
    )


def test_the_same_seed_gives_the_same_mixtures_and_another_seed_others() -> None:
    first, second, other = fit(curves(), seed=3), fit(curves(), seed=3), fit(curves(), seed=4)
    assert all(torch.equal(a, b) for a, b in zip(tensors(first).values(), tensors(second).values(), strict=True))
    assert not torch.equal(first.means, other.means)


def test_unusable_units_are_reported_and_leave_the_others_as_they_are() -> None:
    tokens = curves(num_units=7)
    good = fit(tokens)
    bad = tokens.clone()
    bad[:, 1] = 0.0
    bad[:, 2] = torch.linspace(0, 1, 16)  # constant over samples, not over entries
    bad[17, 3, 2] = torch.nan
    bad[5, 4, 0] = torch.inf
    bad[:, 5] += 1e6 * torch.linspace(0, 1, 16)  # varies by a millionth of its range
    mixtures = fit(bad)
    assert mixtures.reasons == ("", "collapsed", "collapsed", "non-finite", "non-finite", "collapsed", "")
    assert mixtures.active.tolist() == [True, False, False, False, False, False, True]
    assert same_unit(mixtures, 0, good, 0)
    assert same_unit(mixtures, 6, good, 6)
    assert not mixtures.alive[1:6].any()
    assert not any(value.isnan().any() for value in tensors(mixtures).values())


@pytest.mark.parametrize("num_samples", [0, 1])
def test_fewer_than_two_samples_leave_every_unit_inactive(num_samples: int) -> None:
    mixtures = fit(curves()[:num_samples])
    assert mixtures.reasons == ("too few samples",) * 3
    assert not mixtures.active.any()
    assert mixtures.scale.tolist() == [1, 1, 1]


def test_fewer_samples_than_components_use_fewer_components() -> None:
    mixtures = fit(curves()[:3], num_gaussians=8, min_count=1)
    assert mixtures.active.all()
    assert mixtures.alive.sum(1).max() <= 3
    assert not any(value.isnan().any() for value in tensors(mixtures).values())
    assert fit(curves()[:3], num_gaussians=8, min_count=10).alive.sum(1).tolist() == [1, 1, 1]


def test_repeated_tokens_get_one_component_each() -> None:
    values = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    mixtures = fit(values.repeat(40, 1).unsqueeze(1), num_gaussians=8)
    assert mixtures.alive.sum(1).tolist() == [3]
    tokens = (mixtures.means[0] * mixtures.scale + mixtures.offset)[mixtures.alive[0]]
    assert sorted(map(tuple, tokens.round(decimals=4).abs().tolist())) == [(0, 0), (0, 1), (1, 0)]


def test_half_precision_tokens_give_float32_mixtures_on_the_same_tokens() -> None:
    tokens = curves().bfloat16()
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors(fit(tokens)).values(), tensors(fit(tokens.float())).values(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_gaussians": 9}, r"num_gaussians=9 must lie in 1\.\.max_gaussians=8"),
        ({"num_gaussians": 0}, r"num_gaussians=0 must lie in 1\.\.max_gaussians=8"),
        ({"em_steps": 0}, r"em_steps=0 and min_count=10\.0 must be at least 1"),
        ({"min_count": 0.5}, r"em_steps=30 and min_count=0\.5 must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(curves(), **options)


def test_tokens_without_a_unit_axis_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens must have shape \(S, N, D\), found \(800, 16\)"):
        fit(curves()[:, 0])


def test_a_fit_that_goes_on_from_another_keeps_its_components_and_needs_few_steps() -> None:
    tokens, labels = blobs()
    first = fit(tokens, num_gaussians=4)
    again = fit(tokens, num_gaussians=4, seed=1, start=first)
    assert torch.allclose(again.means, first.means, atol=1e-5)  # in the same order: no other seeds were drawn
    assert again.log_likelihood[0].mean() > first.log_likelihood[0].mean() + 0.2
    components = joint(normalise(tokens, again), again).argmax(-1)
    for unit in range(tokens.shape[1]):
        assert len(set(zip(labels[:, unit].tolist(), components[:, unit].tolist(), strict=True))) == 4


def test_a_fit_that_goes_on_from_another_starts_at_its_densities() -> None:
    """But for the ridge: the earlier covariances have it in them, and get it again."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(600, 2, 3, generator=generator, dtype=torch.float64)  # too wide for an axis to be left out
    first = fit(tokens)
    normalised, eye = normalise(tokens, first), torch.eye(3, dtype=torch.float64)
    ridge = RIDGE * normalised.var(0, correction=0).sum(-1)
    covariances = torch.linalg.inv(first.precision_cholesky.mT @ first.precision_cholesky)
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariances + ridge[:, None, None, None] * eye))
    expected = joint_log_density(normalised, first.log_weights, first.means, whitening).logsumexp(-1).mean(0)
    again = fit(tokens, seed=1, start=first)
    torch.testing.assert_close(again.log_likelihood[0], expected, rtol=0, atol=1e-6)


def test_a_unit_that_has_grown_and_moved_as_a_whole_goes_on_where_it_was() -> None:
    tokens = curves()
    first = fit(tokens, num_gaussians=8, num_splits=0)
    grown = fit(3.0 * tokens + 2.0, num_gaussians=8, num_splits=0, seed=1, start=first)
    cold = fit(3.0 * tokens + 2.0, num_gaussians=8, num_splits=0, seed=1)
    assert grown.log_likelihood[0].mean() > cold.log_likelihood[0].mean() + 1
    assert (grown.log_likelihood[-1] >= first.log_likelihood[-1] - 0.05).all()


def test_a_unit_without_an_earlier_mixture_is_seeded() -> None:
    tokens = curves()
    collapsed = tokens.clone()
    collapsed[:, 1] = 1.0
    first = fit(collapsed)
    assert first.active.tolist() == [True, False, True]
    again = fit(tokens, seed=3, start=first)
    assert again.active.all()
    assert again.log_likelihood[-1, 1] == pytest.approx(fit(tokens, seed=3).log_likelihood[-1, 1].item(), abs=1e-6)


@pytest.mark.parametrize("num_gaussians", [2, 8])
def test_an_earlier_fit_is_wider_or_narrower_than_the_seeds(num_gaussians: int) -> None:
    first = fit(curves(), num_gaussians=4, num_splits=0)
    again = fit(curves(), num_gaussians=num_gaussians, num_splits=0, start=first)
    assert torch.equal(again.alive.sum(1), first.alive.sum(1))
