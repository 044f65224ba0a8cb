from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.methods.contract import Batch, Losses
from raydis.methods.vae import (
    AnnealedVae,
    BetaVae,
    Posterior,
    Vae,
    bernoulli_loss,
    covariance_of,
    gaussian_kl,
    gaussian_kls,
    total_correlation,
)
from tests.double import double_precision


def build(kind: str, **options: object) -> Vae:
    torch.manual_seed(0)
    method = {"kind": kind, "num_units": 3, "hidden_dim": 16, **options}
    built = build_method(RunConfig.model_validate({"data": {"image_size": 16}, "method": method}), 3)
    assert isinstance(built, Vae)
    return built


def make(beta: float = 1.0, **options: object) -> BetaVae:
    built = build("beta_vae", beta=beta, **options)
    assert isinstance(built, BetaVae)
    return built


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def losses_of(method: Vae, shown: Tensor) -> Losses:
    return method(Batch(shown, method.draw(len(shown), torch.Generator().manual_seed(2))), "vae")


def entropy(share: float) -> float:
    return -share * math.log(share) - (1 - share) * math.log(1 - share)


# ---- the divergence


def test_a_standard_normal_posterior_has_no_divergence() -> None:
    assert gaussian_kl(torch.zeros(5, 3), torch.zeros(5, 3)).item() == 0.0


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 1.0), (0.0, 2.0), (-3.0, 0.1), (0.5, 0.7)])
def test_the_divergence_of_a_normal_is_that_of_the_formula(mean: float, deviation: float) -> None:
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - ln s, and torch's own."""
    found = gaussian_kl(torch.full((4, 1), mean), torch.full((4, 1), 2 * math.log(deviation))).item()
    assert found == pytest.approx((mean**2 + deviation**2 - 1) / 2 - math.log(deviation), rel=1e-5)
    normal = torch.distributions.Normal(mean, deviation)
    theirs = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    assert found == pytest.approx(theirs.item(), rel=1e-5)


def test_the_divergence_is_summed_over_units_and_averaged_over_images() -> None:
    mean = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # 0.5 nats each, of the first image alone
    assert gaussian_kl(mean, torch.zeros(2, 2)).item() == pytest.approx((0.5 + 0.5) / 2)


# ---- the reconstruction


def test_doubling_the_resolution_quadruples_the_loss_and_doubling_the_batch_changes_nothing() -> None:
    shown, logits = images(), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    loss = bernoulli_loss(logits, shown)
    larger = bernoulli_loss(F.interpolate(logits, scale_factor=2), F.interpolate(shown, scale_factor=2))
    torch.testing.assert_close(larger, 4 * loss)
    torch.testing.assert_close(bernoulli_loss(logits.repeat(2, 1, 1, 1), shown.repeat(2, 1, 1, 1)), loss)


def test_logits_of_zero_cost_a_bit_a_value() -> None:
    assert bernoulli_loss(torch.zeros(2, 3, 16, 16), images(2)).item() == pytest.approx(3 * 256 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_loss_cannot_fall_below_the_entropy_of_its_targets(share: float) -> None:
    shown = torch.full((2, 3, 16, 16), 2 * share - 1)
    right = math.log(share / (1 - share))
    losses = {shift: bernoulli_loss(torch.full_like(shown, right + shift), shown).item() for shift in (-0.1, 0.0, 0.1)}
    assert losses[0.0] == pytest.approx(3 * 256 * entropy(share), rel=1e-5)
    assert min(losses[-0.1], losses[0.1]) > losses[0.0]


def test_black_and_white_can_be_told_for_nothing() -> None:
    shown = torch.ones(1, 1, 2, 2)
    assert bernoulli_loss(torch.full_like(shown, 100.0), shown).item() == pytest.approx(0.0, abs=1e-6)
    assert bernoulli_loss(torch.full_like(shown, -100.0), -shown).item() == pytest.approx(0.0, abs=1e-6)


# ---- the method


def test_beta_one_is_the_vae_and_any_other_weighs_the_divergence() -> None:
    vae, other = losses_of(make(), images()), losses_of(make(beta=4.0), images())
    assert vae["loss"].item() == pytest.approx((vae["reconstruction"] + vae["kl"]).item())
    assert other["loss"].item() == pytest.approx((vae["reconstruction"] + 4 * vae["kl"]).item())
    assert other["kl"].item() == vae["kl"].item() > 0


def test_the_posterior_is_sampled_with_the_noise_it_is_given() -> None:
    method = make()
    mean, log_variance, codes = method.sample_posterior(images(), torch.full((4, 3), 2.0))
    torch.testing.assert_close(codes, mean + 2 * (0.5 * log_variance).exp())
    assert torch.equal(method.sample_posterior(images(), torch.zeros(4, 3))[2], mean)


def test_a_unit_is_the_mean_of_its_posterior_and_an_image_the_mean_of_its_pixels() -> None:
    method = make()
    assert torch.equal(method.units(images()), method.encoder((images() + 1) / 2)[0])
    codes = torch.randn(4, 3, 1)
    torch.testing.assert_close(method.decode(codes), method.decoder(codes[:, :, 0]).sigmoid() * 2 - 1)


def test_the_networks_begin_and_read_as_published() -> None:
    """disentanglement_lib: biases begin at 0, the encoder reads black as 0, and the decoder writes it as 0."""
    method = make()
    layers = [layer for layer in method.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    assert len(layers) == 7 + 6
    assert all(layer.bias is not None and not layer.bias.any() for layer in layers)
    black = torch.full((1, 3, 16, 16), -1.0)
    assert not method.units(black).any()
    posterior = method.sample_posterior(black, torch.zeros(1, 3))
    assert not posterior.mean.any()
    assert not posterior.log_variance.any()
    assert method.units(-black).any()


def test_adam_is_the_published_one() -> None:
    (move,) = make().moves
    assert (move.betas, move.weight_decay, move.learning_rate_scale, move.couples) == ((0.9, 0.999), 0.0, 1.0, False)


def test_half_precision_changes_the_loss_by_its_rounding_alone() -> None:
    method, shown = make(), images()
    exact = losses_of(method, shown)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses_of(method, shown)
    assert {loss.dtype for loss in rounded.values()} == {torch.float32}
    assert rounded["loss"].item() == pytest.approx(exact["loss"].item(), rel=1e-2)


def test_overfitting_a_few_images_lowers_the_loss_and_lets_units_tell_them_apart() -> None:
    method, shown = make(hidden_dim=64), torch.tensor([-0.9, -0.3, 0.3, 0.9])[:, None, None, None].expand(4, 3, 16, 16)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses = []
    for step in range(200):
        loss = method(Batch(shown, method.draw(4, torch.Generator().manual_seed(step))), "vae")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    bound = 3 * 256 * (entropy(0.05) + entropy(0.35)) / 2
    assert bound < losses[-1] < bound + 0.25 * (losses[0] - bound)
    assert (method.decode(method.encode(shown)) - shown).abs().mean().item() < 0.1


# ---- AnnealedVAE


def annealed(**options: object) -> AnnealedVae:
    method = build("annealed_vae", **options)
    assert isinstance(method, AnnealedVae)
    return method


def test_the_capacity_rises_linearly_and_stays() -> None:
    method, found = annealed(max_capacity=30.0, capacity_share=0.25), []
    for share in (0.0, 0.125, 0.25, 0.9):
        method.begin_step(share)
        found.append(method.capacity.item())
    assert found == [0.0, 15.0, 30.0, 30.0]


def test_a_divergence_at_capacity_costs_nothing_and_others_their_distance() -> None:
    method = annealed(gamma=100.0)
    kl = losses_of(method, images())["kl"]
    for distance in (0.0, 2.0, -2.0):
        method.capacity.fill_(kl.item() - distance)
        losses = losses_of(method, images())
        excess = losses["loss"].item() - losses["reconstruction"].item()
        assert excess == pytest.approx(100 * abs(distance), abs=1e-3)
        assert losses["capacity"].item() == pytest.approx(kl.item() - distance)


def test_the_distance_from_the_capacity_is_that_of_the_whole_batch() -> None:
    """Of two images on both sides of it, each alone is far from the capacity."""
    method = annealed(gamma=1.0)
    with torch.no_grad():
        kls = gaussian_kls(*method.encoder(images(2))).sum(1)
    method.capacity.fill_(kls.mean().item())
    assert kls[0] != kls[1]
    mean, log_variance = method.encoder(images(2))
    regulariser, _ = method.regularise(Posterior(mean, log_variance, mean), gaussian_kl(mean, log_variance), {})
    assert regulariser.item() == pytest.approx(0.0, abs=1e-6)
    assert method.moves[0].couples


# ---- DIP-VAE

DIP = pytest.mark.parametrize("kind", ["dip_vae_i", "dip_vae_ii"])


def posterior_with(covariance: Tensor, log_variance: float, count: int = 64) -> Posterior:
    """Posteriors in float64 whose means have exactly this covariance (N, N), all with the same log variance."""
    values = torch.randn(count, len(covariance), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = values - values.mean(0)
    whitening = torch.linalg.inv(torch.linalg.cholesky(values.T @ values / count))
    mean = values @ whitening.T @ torch.linalg.cholesky(covariance).T + 5.0
    return Posterior(mean, torch.full_like(mean, log_variance), mean)


def penalty_of(kind: str, posterior: Posterior, **options: object) -> float:
    method = build(kind, **options)
    regulariser, terms = method.regularise(posterior, torch.tensor(7.0), {})
    assert regulariser.item() == pytest.approx(7.0 + terms["covariance_penalty"].item())
    assert method.moves[0].couples
    return terms["covariance_penalty"].item()


def test_a_covariance_has_the_divisor_of_the_batch_and_no_order() -> None:
    values = torch.randn(50, 4, dtype=torch.float64)
    ours = covariance_of(values)
    torch.testing.assert_close(ours, torch.cov(values.T, correction=0), rtol=0, atol=1e-13)
    torch.testing.assert_close(covariance_of(values.flip(0) + 3.0), ours, rtol=0, atol=1e-12)


@DIP
def test_an_identity_covariance_has_no_penalty(kind: str) -> None:
    """DIP-VAE-II adds the mean variance of the posteriors, here 1/4."""
    variance = 1.0 if kind == "dip_vae_i" else 0.75
    identity = variance * torch.eye(3, dtype=torch.float64)
    assert penalty_of(kind, posterior_with(identity, math.log(0.25))) == pytest.approx(0.0, abs=1e-20)


@DIP
def test_the_penalty_counts_both_triangles_and_weighs_the_diagonal(kind: str) -> None:
    """Covariances of 0.5, 0 and 0.2, and variances 2, 1 and 0.5 (DIP-VAE-II: 2.25, 1.25 and 0.75)."""
    covariance = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=torch.float64)
    added = 0.0 if kind == "dip_vae_i" else 0.25
    off_diagonal = 2 * (0.5**2 + 0.2**2)
    diagonal = sum((variance + added - 1.0) ** 2 for variance in (2.0, 1.0, 0.5))
    found = penalty_of(kind, posterior_with(covariance, math.log(0.25)), off_diagonal_weight=3.0, diagonal_factor=2.0)
    assert found == pytest.approx(3.0 * (off_diagonal + 2.0 * diagonal), rel=1e-9)


# ---- beta-TCVAE


def test_posteriors_that_are_all_the_same_are_at_the_estimates_floor() -> None:
    """-(N - 1) ln B: -37.43 for 10 units and 64 images, because the estimate drops its constants."""
    mean, log_variance = torch.full((64, 10), 0.3), torch.full((64, 10), -1.0)
    found = total_correlation(Posterior(mean, log_variance, torch.randn(64, 10))).item()
    assert found == pytest.approx(-9 * math.log(64), rel=1e-5)
    assert found == pytest.approx(-37.43, abs=0.005)


def test_the_estimate_is_that_of_the_densities_written_out() -> None:
    with double_precision():
        mean, log_variance, sample = torch.randn(3, 6, 2).unbind(0)
        density = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        expected = 0.0
        for row in range(6):
            densities = density.log_prob(sample[row]).exp()  # (6, 2): of sample `row` under each posterior
            joint = densities.prod(1).sum().log()
            expected += (joint - densities.sum(0).log().sum()).item() / 6
        found = total_correlation(Posterior(mean, log_variance, sample)).item()
        assert found == pytest.approx(expected, rel=1e-12)


def test_units_that_are_one_have_the_total_correlation_of_a_gaussian() -> None:
    """Of two units with correlation 0.9 it is -ln(1 - 0.81) / 2 = 0.83 nats more than of two independent ones."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1500, generator=generator)
    found = []
    for correlation in (0.0, 0.9):
        codes = torch.stack([first, correlation * first + math.sqrt(1 - correlation**2) * second], dim=1)
        wide = torch.full_like(codes, math.log(0.02))  # the posterior of a sample, which blurs the density a little
        found.append(total_correlation(Posterior(codes, wide, codes)).item())
    assert found[1] - found[0] == pytest.approx(0.83, abs=0.12)


def test_beta_weighs_the_total_correlation_less_the_one_that_the_divergence_holds() -> None:
    losses = losses_of(build("beta_tcvae", beta=6.0), images())
    expected = losses["reconstruction"] + losses["kl"] + 5.0 * losses["total_correlation"]
    assert losses["loss"].item() == pytest.approx(expected.item())


# ---- the family


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("beta_vae", {"beta": 1.0}),
        ("dip_vae_i", {"off_diagonal_weight": 0.0}),
        ("dip_vae_ii", {"off_diagonal_weight": 0.0}),
        ("beta_tcvae", {"beta": 1.0}),
        ("factor_vae", {"gamma": 0.0, "discriminator_dims": [8]}),
        ("proto_vae", {"prototype_weight": 0.0, "isometry_weight": 0.0, "cycle_weight": 0.0}),
    ],
)
def test_every_method_contains_the_vae(kind: str, options: dict[str, object]) -> None:
    method, vae = build(kind, **options), make()
    vae.load_state_dict({name: tensor for name, tensor in method.state_dict().items() if name in vae.state_dict()})
    batch = Batch(images(), method.draw(4, torch.Generator().manual_seed(2)))
    losses, expected = method(batch, "vae"), vae(batch, "vae")
    assert losses["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    assert losses["reconstruction"].item() == expected["reconstruction"].item()


def test_a_constant_capacity_of_zero_makes_annealed_vae_a_beta_vae() -> None:
    losses = losses_of(annealed(gamma=3.0), images())
    assert losses["loss"].item() == pytest.approx((losses["reconstruction"] + 3 * losses["kl"]).item())


@pytest.mark.parametrize("kind", ["annealed_vae", "dip_vae_i", "dip_vae_ii", "beta_tcvae"])
def test_the_regularisers_are_computed_in_single_precision(kind: str) -> None:
    method, shown = build(kind), images()
    exact = losses_of(method, shown)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses_of(method, shown)
    assert {loss.dtype for loss in rounded.values()} == {torch.float32}
    assert rounded["loss"].item() == pytest.approx(exact["loss"].item(), rel=1e-2)
