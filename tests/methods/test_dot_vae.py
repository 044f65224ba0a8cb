"""DOT-VAE: locked units, interventions, the players, and the residual."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.data import open_dataset
from raydis.data.dataset import ArrayDataset
from raydis.engine.evaluate import evaluate
from raydis.engine.state import Training
from raydis.engine.step import backward, next_batch, optimizer_step
from raydis.methods.contract import Batch
from raydis.methods.dot_vae import DotVae
from raydis.methods.vae import bernoulli_loss, gaussian_kl

OFF = {"reencoding_weight": 0.0, "adversarial_weight": 0.0}


def config_of(**options: object) -> RunConfig:
    method = {"kind": "dot_vae", "num_units": 3, "residual_dim": 5, "hidden_dim": 16, **options}
    train = {"batch_size": 8, "num_images": 64, "learning_rate": 1e-3}
    return RunConfig.model_validate({"data": {"image_size": 16}, "method": method, "train": train})


def make(num_open: int = 0, **options: object) -> DotVae:
    torch.manual_seed(0)
    built = build_method(config_of(**options), 3)
    assert isinstance(built, DotVae)
    built.unlocking.num_open.fill_(num_open)
    return built


def images(count: int = 8) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def batch_of(method: DotVae, count: int = 8) -> Batch:
    return Batch(images(count), method.draw(count, torch.Generator().manual_seed(2)))


# ---- locked units


def test_locked_units_are_zero_and_change_no_bit_of_an_image() -> None:
    method = make(num_open=1)
    units = method.units(images())
    assert torch.equal(units[:, 1:], torch.zeros(8, 2))
    assert bool((units[:, 0] != 0).all())
    codes, residual = torch.randn(8, 3, 1), torch.randn(8, 5, 1, 1)
    locked, unlocked = codes.clone(), codes.clone()
    locked[:, 1:] += 7.0
    unlocked[:, 0] += 7.0
    assert torch.equal(method.decode(locked, residual), method.decode(codes, residual))
    assert not torch.equal(method.decode(unlocked, residual), method.decode(codes, residual))


def test_locked_units_get_no_gradient() -> None:
    method = make(num_open=1)
    method(batch_of(method), "vae")["loss"].backward()
    first, head = method.decoder.layers[0], method.encoder.heads[0]
    assert isinstance(first, nn.Linear)
    last = list(head.children())[-1]
    assert isinstance(last, nn.Linear)
    assert first.weight.grad is not None
    assert last.weight.grad is not None
    assert first.weight.grad.abs().sum(0).gt(0).tolist() == [True, False, False] + [True] * 5
    assert last.weight.grad.abs().sum(1).gt(0).tolist() == [True, False, False] * 2  # means, then log variances


def test_without_open_units_it_is_a_vae_of_the_residual_and_has_nothing_to_score() -> None:
    method = make()
    losses = method(batch_of(method), "vae")
    assert losses["kl"].item() == 0.0
    assert losses["loss"].item() == pytest.approx((losses["reconstruction"] + losses["residual_kl"]).item())
    assert method.not_ready() == (
        "no unit is open yet: the first one opens after 10 % of train.num_images (method.pretraining_share)"
    )
    assert make(num_open=1).not_ready() is None


def test_a_method_without_open_units_is_not_ready_instead_of_zero() -> None:
    levels = {"floor_hue": 2, "wall_hue": 1, "object_hue": 1, "scale": 2, "shape": 2, "orientation": 1}
    tree = config_of().model_dump(exclude_unset=True)
    tree["data"] |= {"name": "shapes3d_procedural", "levels": levels}
    config = RunConfig.model_validate(tree)
    training = Training(config, open_dataset(config.data), device=torch.device("cpu"))
    scores = evaluate(training.method, training.dataset, training.loader, config.evaluation)
    assert scores is not None
    assert (scores.status, scores.num_images) == ("not_ready", 0)
    assert scores.values == {}


# ---- the schedule


def test_the_residuals_weight_grows_from_one_after_the_pretraining() -> None:
    method, found = make(max_beta=8.0, pretraining_share=0.2), []
    for share in (0.0, 0.1, 0.2, 0.6, 1.0):
        method.begin_step(share)
        found.append((round(method.beta.item(), 5), method.unlocking.count()))
    assert found == [(1.0, 0), (1.0, 0), (1.0, 1), (4.5, 1), (8.0, 1)]


def test_a_refit_measures_the_divergence_that_opens_the_next_unit() -> None:
    method = make(num_open=1, min_kl=0.0)
    assert method.refit([images(4), images(4)], torch.Generator()) == {}
    mean, log_variance = method.encoder(images(4))[0]
    for unit in range(3):
        kl = gaussian_kl(mean[:, unit : unit + 1], log_variance[:, unit : unit + 1])
        assert method.unlocking.kl[unit].item() == pytest.approx(kl.item(), rel=1e-5)
    method.begin_step(0.5)
    assert method.unlocking.count() == 2


def test_a_unit_may_open_every_twentieth_of_the_budget() -> None:
    assert make().refit_images == 3  # of 64
    assert make(unlock_share=0.5).refit_images == 32


# ---- losses


def test_without_interventions_all_open_it_is_a_beta_vae_with_a_beta_for_each_part() -> None:
    method = make(num_open=3, **OFF)
    method.beta.fill_(4.0)
    batch = batch_of(method)
    (mean, log_variance), (rest, rest_log_variance) = method.encoder(batch.images)
    sample = torch.cat(
        [
            mean + (0.5 * log_variance).exp() * batch.draws["noise"],
            rest + (0.5 * rest_log_variance).exp() * batch.draws["residual_noise"],
        ],
        dim=1,
    )
    expected = (
        bernoulli_loss(method.decoder(sample), batch.images)
        + gaussian_kl(mean, log_variance)
        + 4.0 * gaussian_kl(rest, rest_log_variance)
    )
    assert method(batch, "vae")["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    method = make(num_open=2, reencoding_weight=3.0, adversarial_weight=0.5)
    losses = {name: loss.item() for name, loss in method(batch_of(method), "vae").items()}
    data = losses["reconstruction"] + losses["kl"] + losses["residual_kl"]
    assert losses["loss"] == pytest.approx(data + 3 * losses["reencoding"] + 0.5 * losses["adversarial"], rel=1e-6)


@pytest.mark.parametrize("intervention", ["prior", "batch"])
def test_an_intervention_changes_one_open_unit_of_each_image_and_the_decoder_gets_the_residual_as_it_is(
    intervention: str,
) -> None:
    method, seen = make(num_open=2, intervention=intervention), list[Tensor]()
    method.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    method(batch_of(method), "vae")
    data, changed = seen
    differs = data != changed
    assert differs[:, :2].sum(1).tolist() == [1] * 8
    assert not bool(differs[:, 2:].any())
    assert [move.couples for move in method.moves] == [intervention == "batch"] * 2


def test_nothing_is_changed_while_no_unit_is_open() -> None:
    method, seen = make(), list[Tensor]()
    method.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    losses = method(batch_of(method), "vae")
    assert torch.equal(*seen)
    assert losses["reencoding"].item() > 0.0  # which does not count yet
    losses["loss"].backward()
    assert make(num_open=1)(batch_of(method), "vae")["loss"].item() != losses["loss"].item()


def test_the_likelihood_divides_by_a_variance_of_at_least_a_twentieth() -> None:
    squared, divided = make(num_open=3, reencoding_loss="mse"), make(num_open=3)
    for method in (squared, divided):
        for head in method.encoder.heads:
            last = list(head.children())[-1]
            assert isinstance(last, nn.Linear)
            with torch.no_grad():
                last.weight.zero_()
                last.bias.fill_(-20.0)  # a variance of 2e-9, and the same mean for all images
    losses = [method(batch_of(method), "vae")["reencoding"].item() for method in (squared, divided)]
    assert losses[1] == pytest.approx(losses[0] / (2 * 0.05), rel=1e-5)


class Answering(nn.Module):
    """A discriminator that gives all images one logit."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, shown: Tensor) -> Tensor:
        return self.logit.expand(len(shown), 1)


@pytest.mark.parametrize("logit", [0.0, 2.0])
def test_the_adversarial_losses_are_those_of_a_game_that_does_not_saturate(logit: float) -> None:
    method = make(num_open=1)
    method.discriminator = Answering(logit)  # pyright: ignore[reportAttributeAccessIssue]
    fooled, caught = math.log1p(math.exp(-logit)), math.log1p(math.exp(logit))
    assert method(batch_of(method), "vae")["adversarial"].item() == pytest.approx(fooled)
    assert method(batch_of(method), "discriminator")["loss"].item() == pytest.approx(fooled + caught)


def test_the_discriminator_sees_real_images_and_changed_ones() -> None:
    method, seen, batch = make(num_open=1), list[Tensor](), batch_of(make())
    method.decoder.register_forward_hook(lambda module, arguments, logits: seen.append(logits.sigmoid() * 2 - 1))
    method.discriminator.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    method(batch, "discriminator")
    drawn, shown = seen
    assert torch.equal(shown[:8], batch.images)
    torch.testing.assert_close(shown[8:], drawn)
    assert not shown.requires_grad


# ---- players


@pytest.mark.parametrize("name", ["vae", "discriminator"])
def test_each_move_changes_its_own_player_alone(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    config = config_of(pretraining_share=0.0)
    training = Training(config, ArrayDataset("noise", pixels, None, fingerprint="f"), device=torch.device("cpu"))
    method = training.method
    assert isinstance(method, DotVae)
    players = {"vae": nn.ModuleList([method.encoder, method.decoder]), "discriminator": method.discriminator}
    before = {player: [weight.detach().clone() for weight in module.parameters()] for player, module in players.items()}
    (move,) = (move for move in method.moves if move.name == name)
    backward(training, move, next_batch(training))
    optimizer_step(training, move)
    for player, module in players.items():
        changed = [not torch.equal(new, old) for new, old in zip(module.parameters(), before[player], strict=True)]
        assert all(changed) if player == name else not any(changed)
    other = players["discriminator" if name == "vae" else "vae"]
    assert all(weight.grad is None for weight in other.parameters())


def test_the_players_have_the_published_optimisers() -> None:
    vae, discriminator = make().moves
    assert (vae.betas, vae.weight_decay, vae.learning_rate_scale) == ((0.9, 0.999), 0.0, 1.0)
    assert (discriminator.betas, discriminator.weight_decay, discriminator.learning_rate_scale) == (
        (0.5, 0.999),
        0.0,
        2.0,
    )


# ---- the residual


def test_the_residual_of_an_image_is_the_mean_of_its_posterior_and_draws_the_image_again() -> None:
    method = make(num_open=3)
    shown = images()
    residual = method.invert(method.encode(shown), shown)
    assert residual.shape == (8, *method.noise_shape)
    (mean, _), (rest, _) = method.encoder(shown)
    drawn = method.decode(method.encode(shown), residual)
    torch.testing.assert_close(drawn, method.decoder(torch.cat([mean, rest], dim=1)).sigmoid() * 2 - 1)


def test_the_diagnosis_tells_open_units_from_locked_ones() -> None:
    method = make(num_open=1)
    found = method.diagnose([images()], None, [])
    assert found is not None
    assert [row[0] for row in found.rows] == ["yes", "no", "no"]
    assert method.unit_counts() == {"open": [1, 0, 0]}


def test_half_precision_changes_the_losses_by_their_rounding_alone() -> None:
    method = make(num_open=2)
    batch = batch_of(method)
    for move in ["vae", "discriminator"]:
        exact = method(batch, move)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = method(batch, move)
        assert {loss.dtype for loss in rounded.values()} == {torch.float32}
        assert rounded["loss"].item() == pytest.approx(exact["loss"].item(), rel=1e-2)
