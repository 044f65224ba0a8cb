"""Properties of EncDiff (arXiv 2402.09712), which is DyGA+SD's class with its own encoder and both parts off."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.methods.contract import Batch
from raydis.methods.dyga_sd import DygaSd
from tests.double import double_precision


def make() -> DygaSd:
    torch.manual_seed(0)
    unet = {"model_dim": 16, "num_heads": 4}
    encoder = {"kind": "residual", "model_dim": 16}
    run = expand({"preset": "encdiff_small", "method": {"num_units": 5, "encoder": encoder, "unet": unet}})
    method = build_method(RunConfig.model_validate(run), 3)
    assert isinstance(method, DygaSd)
    return method.train()


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_loss_starts_at_the_mean_size_of_the_noise_and_the_encoder_learns_from_the_third_step_on() -> None:
    """First the output convolution is zero, then the last layers of the transformers are."""
    method = make()
    method.start([pictures(32)], torch.Generator())
    (move,) = method.moves
    optimizer, norms, losses = torch.optim.AdamW(move.weights, lr=2.56e-4), [], []
    for step in range(3):
        batch = Batch(pictures(8), method.draw(8, torch.Generator().manual_seed(step)))
        loss = method(batch, "denoise")["loss"]
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        gradients = [weight.grad for weight in method.encoder.parameters() if weight.grad is not None]
        norms.append(float(nn.utils.get_total_norm(gradients)))
        optimizer.step()
    count = 8 * math.prod(method.latent_shape)
    # Five standard errors of the mean |eps|, whose variance is 1 - 2 / pi.
    assert losses[0] == pytest.approx(math.sqrt(2 / math.pi), abs=5 * math.sqrt((1 - 2 / math.pi) / count))
    assert (norms[0], norms[1]) == (0.0, 0.0)
    assert norms[2] > 0.0


def test_units_are_exchangeable_except_through_their_own_networks() -> None:
    with double_precision():
        method = make()
        for layer in method.unet.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.any():
                layer.reset_parameters()
        latents, times, order = torch.randn(2, *method.latent_shape), torch.tensor([10, 700]), torch.randperm(5)
        tokens = torch.randn(2, 5, method.unit_dim)
        straight, mixed = (
            method.unet(latents, times, method.unet.condition(each)) for each in (tokens, tokens[:, order])
        )
        torch.testing.assert_close(mixed, straight)
        changed = method.unet(latents, times, method.unet.condition(tokens.flip(0)))
        assert not torch.allclose(changed, straight)
