from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raydis.config.dyga_sd import EncoderConfig
from raydis.models.encoder import Encoder, UnitMLP

TINY = {"stem_stride": 4, "channels": (8, 16), "hidden_dims": (12,), "token_hidden_dims": (10, 9)}


def tiny(*, norm: str = "group", token_activation: str = "relu", **sizes: object) -> Encoder:
    torch.manual_seed(0)
    settings = {"image_size": 16, "image_channels": 3, "num_units": 5, "unit_dim": 7, **TINY, **sizes}
    return Encoder(norm=norm, token_activation=token_activation, **settings)


def images(count: int = 3, size: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linears(mlp: UnitMLP, unit: int) -> nn.Sequential:
    """One unit's MLP as nn.Linear layers with the same weights."""
    layers: list[nn.Module] = []
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        layer = nn.Linear(*weight.shape[1:])
        layer.load_state_dict({"weight": weight[unit].t(), "bias": bias[unit, 0]})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*(layers if mlp.activation == "relu" else layers[:-1]))


@pytest.mark.parametrize(("num_units", "expected"), [(10, 22_082_634), (20, 23_570_324), (40, 26_545_704)])
def test_the_reference_encoder_has_the_released_number_of_parameters(num_units: int, expected: int) -> None:
    with torch.device("meta"):
        encoder = Encoder(
            image_size=64,
            image_channels=3,
            num_units=num_units,
            unit_dim=32,
            **EncoderConfig().model_dump(exclude={"kind"}),
        )
    assert count(encoder) == expected
    assert count(encoder.convolutions) == 2_764_800
    assert count(encoder.tokens) == 148_512 * num_units


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_batched_unit_mlps_equal_a_loop_of_linear_layers(activation: str) -> None:
    torch.manual_seed(0)
    mlp = UnitMLP(6, 4, (8, 16), activation)
    units = torch.randn(5, 6)
    loop = torch.stack([linears(mlp, i)(units[:, i : i + 1]) for i in range(6)], dim=1)
    torch.testing.assert_close(mlp(units), loop)


def test_unit_mlps_start_in_the_range_of_linear_layers() -> None:
    torch.manual_seed(0)
    mlp = UnitMLP(50, 8, (16, 64), "relu")
    for weight, bias, bound in zip(mlp.weights, mlp.biases, (1.0, 0.25, 0.125), strict=True):
        for parameter in (weight, bias):
            assert parameter.abs().max() <= bound
            assert parameter.abs().max() > 0.97 * bound
            assert parameter.mean().abs() < 0.1 * bound


@pytest.mark.parametrize("stem_stride", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_a_scalar_and_a_token_for_each_unit(stem_stride: int, channels: int) -> None:
    encoder = tiny(stem_stride=stem_stride, image_channels=channels)
    batch = images(channels=channels)
    assert encoder.units(batch).shape == (3, 5)
    assert encoder(batch).shape == (3, 5, 7)


def test_a_token_depends_on_its_own_scalar_alone() -> None:
    encoder = tiny()
    units = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    changed = units.clone()
    changed[:, 2] += 1.0
    moved = (encoder.tokens(changed) != encoder.tokens(units)).any(2)
    assert moved.tolist() == [[False, False, True, False, False]] * 3


def test_equal_scalars_of_two_units_give_different_tokens() -> None:
    tokens = tiny(token_activation="none").tokens(torch.full((1, 5), 0.5))[0]
    assert torch.unique(tokens, dim=0).shape == tokens.shape


def test_tokens_are_those_of_the_scalars() -> None:
    encoder = tiny()
    assert torch.equal(encoder(images()), encoder.tokens(encoder.units(images())))


@pytest.mark.parametrize(("activation", "has_negatives"), [("relu", False), ("none", True)])
def test_tokens_are_non_negative_with_a_last_relu_only(activation: str, has_negatives: bool) -> None:
    tokens = tiny(token_activation=activation)(images(16))
    assert bool((tokens < 0).any()) == has_negatives
    assert (tokens > 0).any()


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_in_eval_mode_an_image_is_encoded_without_its_batch_mates(norm: str) -> None:
    encoder = tiny(norm=norm)
    encoder(images(8))  # gives batch norms running statistics that are not the initial ones
    encoder.eval()
    batch = images()
    torch.testing.assert_close(encoder(batch)[:1], encoder(batch[:1]))


@pytest.mark.parametrize(("norm", "independent"), [("batch", False), ("group", True)])
def test_in_training_group_norm_alone_ignores_batch_mates(norm: str, independent: bool) -> None:
    encoder = tiny(norm=norm)
    batch = images()
    first, second = encoder.units(batch)[0], encoder.units(batch[:2])[0]
    assert torch.allclose(first, second, atol=1e-6) == independent


def test_every_parameter_of_the_encoder_learns() -> None:
    encoder = tiny(token_activation="none")
    encoder(images(8)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
