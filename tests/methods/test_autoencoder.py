from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.data import Loader
from raydis.data.dataset import ArrayDataset
from raydis.engine.evaluate import encode_images
from raydis.errors import ConfigError, MetricError
from raydis.methods.autoencoder import AutoencoderMethod
from raydis.methods.contract import Batch, Draws

SIZES = {"stem_stride": 2, "model_dim": 8, "multipliers": [1, 2], "num_blocks": 1, "latent_dim": 3}


def make(kind: str = "vq", **options: object) -> AutoencoderMethod:
    codebook = {"num_embeddings": 32} if kind == "vq" else {}
    tree = {
        "data": {"image_size": 16},
        "first_stage": {"kind": "pixel"},
        "method": {"kind": kind, **SIZES, **codebook, **options},
        "train": {"num_images": 1000},
        "evaluation": {"protocol": "none"},
    }
    torch.manual_seed(0)
    method = build_method(RunConfig.model_validate(tree), 3)
    assert isinstance(method, AutoencoderMethod)
    return method


def images(count: int = 4) -> Tensor:
    """Smooth pictures: each channel a plane of random slope."""
    generator = torch.Generator().manual_seed(1)
    slopes = torch.randn(count, 3, 2, 1, 1, generator=generator)
    line = torch.linspace(-1.0, 1.0, 16)
    return torch.tanh(slopes[:, :, 0] * line[:, None] + slopes[:, :, 1] * line)


def draw(method: AutoencoderMethod, count: int = 4, seed: int = 0) -> Draws:
    return method.draw(count, torch.Generator().manual_seed(seed))


def loss_of(method: AutoencoderMethod, draws: Draws) -> Tensor:
    losses = method(Batch(images(), draws), "reconstruct")
    assert losses.keys() == {"loss"}
    return losses["loss"]


def gradients(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(weight) if weight.grad is None else weight.grad.clone() for weight in module.parameters()]


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_the_loss_is_the_absolute_error_and_the_weighted_loss_of_the_latents(kind: str) -> None:
    weight = {"vq": {"codebook_weight": 0.5}, "kl": {"kl_weight": 0.5}}[kind]
    method = make(kind, **weight)
    draws = draw(method)
    reconstruction, latent_loss = method.network(images(), draws["noise"])
    expected = (reconstruction - images()).abs().mean() + 0.5 * latent_loss
    torch.testing.assert_close(loss_of(method, draws), expected)


def test_the_published_weight_of_the_divergence_counts_sums_over_an_image() -> None:
    """latent-diffusion minimises sum |error| + 1e-6 * sum KL per image: ours is that, divided by the image's values."""
    method = make("kl")
    draws = draw(method)
    reconstruction, _ = method.network(images(), draws["noise"])
    mean, log_variance = method.network.to_latent(method.network.encoder(images())).chunk(2, dim=1)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))
    error = (reconstruction - images()).abs().sum((1, 2, 3))
    published = (error + 1e-6 * divergence).mean() / images()[0].numel()
    torch.testing.assert_close(loss_of(method, draws), published)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_overfitting_a_few_images_lowers_the_loss_and_raises_the_psnr(kind: str) -> None:
    method = make(kind)
    method.start([images()], torch.Generator())
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    losses, decibels = [], []
    for step in range(100):
        loss = loss_of(method, draw(method, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step in (0, 99):
            errors = (method.reconstruct(images()) - images()).square().mean((1, 2, 3))
            decibels.append((10 * (4 / errors).log10()).mean().item())
    assert losses[-1] < 0.4 * losses[0]
    assert decibels[1] > decibels[0] + 6


def test_both_players_learn_from_one_sum_and_neither_from_the_others_term() -> None:
    """The gradient of the sum is, in each player's weights, that of the player's own loss computed apart."""
    method = make("vq", discriminator_weight=0.5, discriminator_channels=[8, 16])
    assert method.discriminator is not None
    draws = draw(method)
    loss_of(method, draws).backward()
    network, discriminator = gradients(method.network), gradients(method.discriminator)

    method.zero_grad()
    reconstruction, latent_loss = method.network(images(), draws["noise"])
    verdict = method.discriminator(reconstruction).mean()
    ((reconstruction - images()).abs().mean() + latent_loss - 0.5 * verdict).backward()
    torch.testing.assert_close(network, gradients(method.network))
    assert any(tensor.abs().sum() > 0 for tensor in gradients(method.discriminator))  # which the sum must not have

    method.zero_grad()
    real, drawn = method.discriminator(images()), method.discriminator(reconstruction.detach())
    (0.5 * ((1 - real).clamp_min(0).mean() + (1 + drawn).clamp_min(0).mean())).backward()
    torch.testing.assert_close(discriminator, gradients(method.discriminator))


def test_a_discriminator_that_begins_later_counts_from_then_on_and_always_has_gradients() -> None:
    method = make("vq", discriminator_weight=0.5, discriminator_start_images=500, discriminator_channels=[8])
    plain = make("vq")
    draws, losses = draw(method), {}
    for share in (0.0, 0.499, 0.5, 0.9):
        method.begin_step(share)
        method.zero_grad()
        loss = loss_of(method, draws)
        loss.backward()
        losses[share] = loss.item()
        assert all(weight.grad is not None for weight in method.parameters())  # or several workers would wait for ever
        assert method.discriminator is not None
        assert any(weight.grad.abs().sum() > 0 for weight in method.discriminator.parameters()) == (share >= 0.5)
    assert losses[0.0] == pytest.approx(loss_of(plain, draws).item(), rel=1e-6)
    assert losses[0.499] == losses[0.0]
    assert losses[0.9] == losses[0.5] != losses[0.0]
    assert "adversarial" not in method.state_dict()


def test_a_discriminator_that_is_not_wanted_is_not_there() -> None:
    method = make("vq")
    assert method.discriminator is None
    (move,) = method.moves
    assert (move.name, list(move.modules)) == ("reconstruct", [method.network])
    assert {name.partition(".")[0] for name in method.state_dict()} == {"network"}


def test_draws_repeat_with_their_generator_and_have_the_latents_shape() -> None:
    method = make("kl")
    assert torch.equal(draw(method, 5)["noise"], draw(method, 5)["noise"])
    assert draw(method, 5)["noise"].shape == (5, 3, 4, 4)
    assert method.network.raw(images()).shape == (4, 3, 4, 4)


def test_perceptual_weights_of_the_user_add_their_term(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights, inputs = {}, 3
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for number, width in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), widths, strict=True):
        weights[f"features.{number}.weight"] = torch.randn(width, inputs, 3, 3) * math.sqrt(2 / (9 * inputs))
        weights[f"features.{number}.bias"] = torch.zeros(width)
        inputs = width
    path = tmp_path / "vgg16.safetensors"
    save_file(weights, path)
    method = make("vq", perceptual_weights=str(path), perceptual_weight=0.1)
    assert method.perceptual is not None
    draws = draw(method)
    reconstruction, _ = method.network(images(), draws["noise"])
    expected = loss_of(make("vq"), draws) + 0.1 * method.perceptual(reconstruction, images())
    torch.testing.assert_close(loss_of(method, draws), expected)
    assert method.state_dict().keys() == make("vq").state_dict().keys()


def test_perceptual_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"perceptual_weights=/no/file .*give a \.safetensors file .*or null"):
        make("vq", perceptual_weights="/no/file")
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match=r"does not hold VGG16's weights \(there is no features\.0\.weight\)"):
        make("vq", perceptual_weights=str(path))


def test_a_first_stage_has_no_codes_to_score() -> None:
    pictures = np.zeros((4, 16, 16, 3), np.uint8)
    loader = Loader(ArrayDataset("blank", pictures, None, fingerprint="blank"), batch_size=1, seed=0)
    with pytest.raises(MetricError, match=r"AutoencoderMethod has no units to score: set evaluation\.protocol=none"):
        encode_images(make("vq"), loader, np.arange(4))
