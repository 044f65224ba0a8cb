"""The variant of DyGA+SD that is trained by flow matching, with a penalty on tokens that write to the same places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.methods.contract import Batch
from raydis.methods.dyga_sd import DygaSd
from tests.double import double_precision

FLOW = {"diffusion": {"schedule": "straight", "prediction": "flow", "loss": "l2"}}


def untrained(**method: Any) -> DygaSd:
    torch.manual_seed(0)
    sections = {"unet": {"skip_dropout_rate": 0.0}, **FLOW, **method}
    built = build_method(RunConfig.model_validate(expand({"preset": "tiny", "method": sections})), 3)
    assert isinstance(built, DygaSd)
    built.first_stage.fit(images(64, seed=1))
    return built


def awake(**method: Any) -> DygaSd:
    """A method whose zero-initialised layers are drawn at random, as after some training."""
    built = untrained(**method)
    for layer in built.unet.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.any():
            layer.reset_parameters()
    return built


def images(count: int, *, seed: int = 0) -> Tensor:
    """Smooth images in [-1, 1], (B, 3, 16, 16)."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).to(torch.get_default_dtype())
    return nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") * 2 - 1


def losses(method: DygaSd, count: int = 8) -> dict[str, Tensor]:
    batch = Batch(images(count), method.draw(count, torch.Generator().manual_seed(0)))
    return method(batch, "denoise")


def test_the_loss_is_the_squared_distance_to_the_velocity_of_the_straight_path() -> None:
    method = awake()
    latents, draws = method.first_stage.encode(images(8)), method.draw(8, torch.Generator().manual_seed(0))
    tau = ((draws["timesteps"] + 0.5) / 1000).view(-1, 1, 1, 1)
    path = (1 - tau) * latents + tau * draws["noise"]
    path = path / ((1 - tau).square() + tau.square()).sqrt()  # what the network reads has unit variance

    predicted = method.unet(path, draws["timesteps"], method.unet.condition(method.encode(images(8))))

    expected = (predicted - (draws["noise"] - latents)).square().mean()
    torch.testing.assert_close(losses(method)["loss"], expected)


def test_the_penalty_adds_its_weight_times_the_overlap_and_both_parts_are_reported() -> None:
    with double_precision():
        plain, penalised = losses(awake()), losses(awake(overlap_weight=0.5))
    assert plain.keys() == {"loss"}
    torch.testing.assert_close(penalised["denoising"], plain["loss"])
    assert 0.0 < penalised["overlap"].item() <= 1.0
    torch.testing.assert_close(penalised["loss"], plain["loss"] + 0.5 * penalised["overlap"])


def test_the_penalty_of_a_batch_is_the_mean_over_its_parts() -> None:
    with double_precision():
        method = awake(overlap_weight=0.5)
        batch = Batch(images(8), method.draw(8, torch.Generator().manual_seed(0)))
        parts = [method(part, "denoise")["overlap"] for part in batch.split(4)]
        torch.testing.assert_close(torch.stack(parts).mean(), method(batch, "denoise")["overlap"])


def test_training_with_the_penalty_makes_tokens_write_to_other_places() -> None:
    def overlap_after(steps: int, weight: float) -> float:
        method = awake(overlap_weight=weight).train()
        optimizer = torch.optim.AdamW(method.moves[0].weights, lr=2e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            losses(method, 2)["loss"].backward()
            optimizer.step()
        return losses(method)["overlap"].item()

    before, after = overlap_after(0, 20.0), overlap_after(25, 20.0)
    assert after < before - 0.1
    assert after < overlap_after(25, 1e-9) - 0.1


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValidationError, match="overlap_weight"):
        RunConfig.model_validate(expand({"preset": "tiny", "method": {"overlap_weight": -1.0}}))
