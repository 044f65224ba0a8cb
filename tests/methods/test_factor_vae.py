from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.data.dataset import ArrayDataset
from raydis.engine.state import Training
from raydis.engine.step import backward, next_batch, optimizer_step
from raydis.methods.contract import Batch
from raydis.methods.factor_vae import FactorVae, shuffle_units
from raydis.methods.vae import BetaVae

VAE = {"num_units": 3, "hidden_dim": 16}


def config_of(**options: object) -> RunConfig:
    method = {"kind": "factor_vae", **VAE, "discriminator_dims": [8, 8], **options}
    train = {"batch_size": 8, "num_images": 64, "learning_rate": 1e-3}
    return RunConfig.model_validate({"data": {"image_size": 16}, "method": method, "train": train})


def make(**options: object) -> FactorVae:
    torch.manual_seed(0)
    built = build_method(config_of(**options), 3)
    assert isinstance(built, FactorVae)
    return built


def batch_of(method: FactorVae, count: int = 8) -> Batch:
    images = torch.rand(2 * count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images[:count], method.draw(count, torch.Generator().manual_seed(2)), images[count:])


def answering(method: FactorVae, joint: float, shuffled: float) -> FactorVae:
    """The method with a discriminator that gives every code the same two logits."""
    for weight in method.discriminator.parameters():
        nn.init.zeros_(weight)
    with torch.no_grad():
        list(method.discriminator.parameters())[-1].copy_(torch.tensor([joint, shuffled]))
    return method


def state_of(module: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def changed(module: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(new, old) for new, old in zip(module.parameters(), before, strict=True)]


# ---- shuffling


def test_shuffling_keeps_what_every_column_holds_and_breaks_the_rows() -> None:
    codes = torch.randn(64, 5)
    keys = torch.rand(64, 5)
    shuffled = shuffle_units(codes, keys)
    assert torch.equal(shuffled.sort(dim=0).values, codes.sort(dim=0).values)
    assert not torch.equal(shuffled.sort(dim=0).indices, codes.sort(dim=0).indices)
    together = shuffle_units(torch.arange(64.0)[:, None].expand(64, 2), keys[:, :2])
    assert not torch.equal(together[:, 0], together[:, 1])  # each column has an order of its own


def test_shuffling_follows_its_keys() -> None:
    codes = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    keys = torch.tensor([[0.3, 0.1], [0.1, 0.2], [0.2, 0.3]])
    assert shuffle_units(codes, keys).tolist() == [[2.0, 10.0], [3.0, 20.0], [1.0, 30.0]]
    assert torch.equal(shuffle_units(codes, keys), shuffle_units(codes, keys))


def test_the_draws_of_the_two_batches_and_of_the_shuffling_differ() -> None:
    draws = make().draw(64, torch.Generator().manual_seed(0))
    assert set(draws) == {"noise", "others_noise", "shuffle"}
    assert not torch.equal(draws["noise"], draws["others_noise"])
    assert 0 <= float(draws["shuffle"].min()) < float(draws["shuffle"].max()) < 1


# ---- losses


def test_a_discriminator_that_answers_zero_finds_no_total_correlation() -> None:
    method = answering(make(gamma=35.0), 0.0, 0.0)
    batch = batch_of(method)
    losses = method(batch, "vae")
    assert losses["total_correlation"].item() == 0.0
    torch.manual_seed(0)
    vae = BetaVae(encoder=method.encoder, decoder=method.decoder, num_units=3)
    assert losses["loss"].item() == pytest.approx(vae(batch, "vae")["loss"].item())
    assert method(batch, "discriminator")["loss"].item() == pytest.approx(math.log(2))  # it knows nothing


def test_the_total_correlation_is_the_difference_of_the_logits_and_weighs_gamma() -> None:
    method = answering(make(gamma=10.0), 0.75, -0.25)
    losses = method(batch_of(method), "vae")
    assert losses["total_correlation"].item() == pytest.approx(1.0)
    assert losses["loss"].item() == pytest.approx((losses["reconstruction"] + losses["kl"]).item() + 10.0)


def test_the_discriminator_learns_that_the_first_logit_is_the_posterior() -> None:
    """With logits (a, b) for all, the mean of -ln softmax over both labels."""
    method = answering(make(), 1.0, -1.0)
    softplus = math.log1p(math.exp(2.0))
    assert method(batch_of(method), "discriminator")["loss"].item() == pytest.approx((softplus + softplus - 2) / 2)


def test_the_discriminator_sees_the_first_batch_whole_and_the_second_shuffled() -> None:
    method, seen = make(), list[Tensor]()
    batch = batch_of(method)
    method.discriminator.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    method(batch, "discriminator")
    assert batch.others is not None
    joint = method.sample_posterior(batch.images, batch.draws["noise"])[2]
    others = method.sample_posterior(batch.others, batch.draws["others_noise"])[2]
    (codes,) = seen
    assert not codes.requires_grad  # its loss cannot reach the encoder
    assert torch.equal(codes[:8], joint)
    assert torch.equal(codes[8:].sort(dim=0).values, others.sort(dim=0).values)
    assert not torch.equal(codes[8:], others)


def test_a_discriminator_learns_a_correlation_that_is_there() -> None:
    """Of two units with correlation 0.9 the total correlation is -ln(1 - 0.81) / 2 = 0.83 nats."""
    method = make(num_units=2, discriminator_dims=[32, 32])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(method.discriminator.parameters(), lr=3e-3, betas=(0.5, 0.9))

    def codes(count: int) -> Tensor:
        first, second = torch.randn(2, count, generator=generator)
        return torch.stack([first, 0.9 * first + math.sqrt(0.19) * second], dim=1)

    for _ in range(600):
        shuffled = shuffle_units(codes(256), torch.rand(256, 2, generator=generator))
        logits = method.discriminator(torch.cat([codes(256), shuffled]))
        loss = nn.functional.cross_entropy(logits, torch.arange(2).repeat_interleave(256))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        joint, shuffled = method.discriminator(codes(20_000)).unbind(1)
    assert (joint - shuffled).mean().item() == pytest.approx(-math.log(1 - 0.81) / 2, abs=0.12)


# ---- moves


@pytest.mark.parametrize("name", ["vae", "discriminator"])
def test_each_move_changes_its_own_player_alone(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    training = Training(
        config_of(), ArrayDataset("noise", pixels, None, fingerprint="f" * 64), device=torch.device("cpu")
    )
    method = training.method
    assert isinstance(method, FactorVae)
    players = {"vae": nn.ModuleList([method.encoder, method.decoder]), "discriminator": method.discriminator}
    before = {player: state_of(module) for player, module in players.items()}
    (move,) = (move for move in method.moves if move.name == name)
    backward(training, move, next_batch(training))
    optimizer_step(training, move)
    for player, module in players.items():
        assert all(changed(module, before[player])) if player == name else not any(changed(module, before[player]))
    other = players["discriminator" if name == "vae" else "vae"]
    assert all(weight.grad is None for weight in other.parameters())  # nor has it paid for their gradients


def test_the_players_have_the_published_optimisers() -> None:
    vae, discriminator = make(discriminator_rate_scale=0.5).moves
    assert (vae.betas, vae.weight_decay, vae.learning_rate_scale, vae.couples) == ((0.9, 0.999), 0.0, 1.0, False)
    assert (discriminator.betas, discriminator.weight_decay) == ((0.5, 0.9), 0.0)
    assert (discriminator.learning_rate_scale, discriminator.couples) == (0.5, True)


def test_the_average_follows_the_vae_alone() -> None:
    method = make()
    assert list(method.averaged_modules) == [method.encoder, method.decoder]
