from __future__ import annotations

import pytest
import torch
from torch import nn

from raydis.models.conv_vae import (
    ConvDecoder,
    ConvEncoder,
    PairEncoder,
    SplitEncoder,
    dense_network,
    glorot,
)


def num_parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    """disentanglement_lib's `conv_encoder` and `deconv_decoder` at 64 px, with three channels and 10 units."""
    assert num_parameters(ConvEncoder(64, 3, (10, 10))) == 310_228
    assert num_parameters(ConvDecoder(64, 3, 10)) == 382_339


def test_the_discriminator_has_the_published_number_of_parameters() -> None:
    """Six hidden layers of 1000: 10 * 1000 + 1000, five times 1000 * 1000 + 1000, and 1000 * 2 + 2."""
    assert num_parameters(dense_network(10, (1000,) * 6, 2)) == 11_000 + 5 * 1_001_000 + 2_002 == 5_018_002


def test_a_split_encoder_has_four_kernels_of_4_px_and_a_network_for_each_part() -> None:
    """InfoGAN-CR's FactorVAE: a dense layer of 128 without activation. Its trunk has 247,616 parameters."""
    encoder = SplitEncoder(64, 3, (10, 5))
    kernels = [layer.kernel_size[0] for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels == [4, 4, 4, 4]
    assert isinstance(encoder.trunk[-1], nn.Linear)
    convolutions = (48 * 32 + 32) + (512 * 32 + 32) + (512 * 64 + 64) + (1024 * 64 + 64)
    assert num_parameters(encoder.trunk) == convolutions + 1024 * 128 + 128 == 247_616
    assert num_parameters(encoder.heads) == 2 * (128 * 128 + 128) + 129 * 20 + 129 * 10
    shown = torch.randn(2, 3, 64, 64)
    (mean, log_variance), (rest, _) = encoder(shown)
    assert (mean.shape, log_variance.shape, rest.shape) == ((2, 10), (2, 10), (2, 5))
    hidden = encoder.heads[0](encoder.trunk(shown))
    assert torch.equal(torch.cat([mean, log_variance], dim=1), hidden)


def test_a_pair_encoder_sees_both_images_in_their_order() -> None:
    torch.manual_seed(0)
    encoder, (first, second) = PairEncoder(16, 3, 8, hidden_dim=16), torch.randn(2, 4, 3, 16, 16)
    assert encoder(first, second).shape == (4, 8)
    assert not torch.equal(encoder(first, second), encoder(second, first))
    assert not torch.equal(encoder(first, second), encoder(first, first))
    assert encoder.scale.item() == 1.0


def test_the_kernels_are_the_published_ones() -> None:
    """4, 4, 2 and 2 pixels wide in the encoder, 4 in the decoder; all of them halve or double."""
    encoder = [layer for layer in ConvEncoder(64, 3, (10,)).modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.kernel_size[0], layer.stride[0], layer.out_channels) for layer in encoder] == [
        (4, 2, 32),
        (4, 2, 32),
        (2, 2, 64),
        (2, 2, 64),
    ]
    decoder = [layer for layer in ConvDecoder(64, 3, 10).modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [(layer.kernel_size[0], layer.stride[0], layer.out_channels) for layer in decoder] == [
        (4, 2, 64),
        (4, 2, 32),
        (4, 2, 32),
        (4, 2, 3),
    ]


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_multiple_of_16_goes_through_both(size: int, channels: int) -> None:
    first, second = ConvEncoder(size, channels, (5, 7), hidden_dim=8)(torch.randn(2, channels, size, size))
    assert (first.shape, second.shape) == ((2, 5), (2, 7))
    assert ConvDecoder(size, channels, 5, hidden_dim=8)(first).shape == (2, channels, size, size)


@pytest.mark.parametrize(
    "network",
    [ConvEncoder(64, 3, (10, 10)), ConvDecoder(64, 3, 10), SplitEncoder(64, 3, (10, 5)), dense_network(9, (7,), 2)],
)
def test_tensorflow_1_draws_by_glorots_rule(network: nn.Module) -> None:
    """Uniform within the square root of 6 / (fan in + fan out), and biases of 0."""
    network.apply(glorot)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    assert layers
    for layer in layers:
        field = layer.weight[0, 0].numel()  # of a kernel; 1 for a dense layer
        bound = (6.0 / (field * (layer.weight.shape[0] + layer.weight.shape[1]))) ** 0.5
        largest = layer.weight.abs().max().item()
        assert bound * 0.5 ** (20 / layer.weight.numel()) < largest <= bound  # else a chance below 1e-6
        assert layer.bias is not None
        assert not layer.bias.any()


def test_a_dense_network_ends_in_a_linear_layer_and_leaks_by_a_fifth() -> None:
    network = dense_network(1, (1,), 1)
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.weight.fill_(1.0)
                layer.bias.zero_()
        torch.testing.assert_close(network(torch.tensor([[-5.0], [5.0]])), torch.tensor([[-1.0], [5.0]]))
