from __future__ import annotations

import pytest
import torch
from torch import nn

from raydis.build import build_autoencoder
from raydis.config.first_stage import KlNetwork, VqNetwork
from raydis.models import coder


def count(*modules: nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def test_the_defaults_have_the_published_numbers_of_parameters() -> None:
    """Those of latent-diffusion's f=4 network as EncDiff and DyGA+SD configure it."""
    network = build_autoencoder(VqNetwork(), 3)
    assert count(network.encoder) == 1_403_363
    assert count(network.decoder) == 2_068_547
    assert count(network.codebook) == 2048 * 3
    assert count(network.to_latent, network.from_latent) == 24


def test_a_gaussian_latent_takes_three_more_channels_of_the_last_convolution() -> None:
    network = build_autoencoder(KlNetwork(), 3)
    assert count(network.encoder) == 1_403_363 + 3 * (9 * 128 + 1)
    assert count(network.decoder) == 2_068_547
    assert count(network.to_latent, network.from_latent) == (6 * 6 + 6) + (3 * 3 + 3)


@pytest.mark.parametrize(
    ("stem_stride", "multipliers", "reduction"), [(1, (1, 2, 4), 4), (1, (2,), 1), (4, (1, 2), 8), (2, (1,), 2)]
)
def test_images_are_reduced_and_restored(stem_stride: int, multipliers: tuple[int, ...], reduction: int) -> None:
    sizes = {"stem_stride": stem_stride, "model_dim": 4, "multipliers": multipliers, "num_blocks": 1}
    latents = coder.encoder(3, 5, **sizes)(torch.randn(2, 3, 16, 24))
    assert latents.shape == (2, 5, 16 // reduction, 24 // reduction)
    assert coder.decoder(3, 5, **sizes)(latents).shape == (2, 3, 16, 24)
    assert VqNetwork(stem_stride=stem_stride, multipliers=multipliers).reduction == reduction


def test_attention_is_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    layer = coder.PixelAttention(4)
    x = torch.randn(2, 4, 3, 5)
    query, key, value = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # (B, C, H*W)
    weights = torch.softmax(torch.einsum("bci,bcj->bij", query, key) / 2.0, dim=2)
    expected = x + layer.out(torch.einsum("bij,bcj->bci", weights, value).view_as(x))
    torch.testing.assert_close(layer(x), expected)
