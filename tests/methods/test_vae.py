from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.methods.contract import Batch, Losses
from raydis.methods.vae import BetaVae, bernoulli_loss, gaussian_kl


def make(beta: float = 1.0, **options: object) -> BetaVae:
    torch.manual_seed(0)
    method = {"kind": "beta_vae", "beta": beta, "num_units": 3, "hidden_dim": 16, **options}
    built = build_method(RunConfig.model_validate({"data": {"image_size": 16}, "method": method}), 3)
    assert isinstance(built, BetaVae)
    return built


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def losses_of(method: BetaVae, shown: Tensor) -> Losses:
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
    assert torch.equal(method.units(images()), method.encoder(images())[0])
    codes = torch.randn(4, 3, 1)
    torch.testing.assert_close(method.decode(codes), method.decoder(codes[:, :, 0]).sigmoid() * 2 - 1)


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
