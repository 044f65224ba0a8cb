"""The encoder of EncDiff and DisDiff: published sizes, published layout, norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.encoder import UnitMLP
from raydis.models.residual_encoder import ResidualEncoder, VectorEncoder
from tests.double import double_precision

PUBLISHED: dict[str, Any] = {"image_size": 64, "image_channels": 3, "model_dim": 128, "norm": "batch"}
SMALL: dict[str, Any] = {"image_size": 32, "image_channels": 3, "model_dim": 8}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images(number: int = 4, size: int = 32) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_encoders_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        encdiff = ResidualEncoder(**PUBLISHED, num_units=20, unit_dim=16, token_hidden_dims=(64, 128))
        disdiff = VectorEncoder(**PUBLISHED, num_units=6, unit_dim=32)
    assert count(encdiff) == 1_374_292
    assert (count(encdiff.convolutions) + count(encdiff.head), count(encdiff.tokens)) == (1_164_052, 210_240)
    assert count(disdiff) == 1_516_480


def plainly(encoder: ResidualEncoder, x: Tensor) -> Tensor:
    """The feature maps, written layer by layer as the reference describes them, in eval mode."""
    convs = [module for module in encoder.convolutions.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in encoder.convolutions.modules() if isinstance(module, nn.BatchNorm2d)]

    def norm(x: Tensor, index: int) -> Tensor:
        layer = norms[index]
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    for index in range(4):
        x = norm(F.conv2d(x, convs[index].weight, convs[index].bias, stride=2, padding=1), index)
        x = x if index == 2 else x.relu()
    h = norm(F.conv2d(x.relu(), convs[4].weight, convs[4].bias, padding=1), 4)
    x = x + F.conv2d(h.relu(), convs[5].weight, convs[5].bias)
    x = norm(x, 5).relu()
    h = norm(F.conv2d(x.relu(), convs[6].weight, convs[6].bias, padding=1), 6)
    return x + F.conv2d(h.relu(), convs[7].weight, convs[7].bias)


def test_the_layers_stand_in_the_published_order() -> None:
    with double_precision():
        torch.manual_seed(0)
        encoder = ResidualEncoder(**SMALL, norm="batch", num_units=3, unit_dim=4, token_hidden_dims=(5, 6))
        encoder(images().double())  # running statistics that are not those of a fresh norm
        encoder.eval()
        torch.testing.assert_close(encoder.convolutions(images().double()), plainly(encoder, images().double()))
        units = encoder.units(images().double())
        torch.testing.assert_close(encoder(images().double()), encoder.tokens(units))


def test_batched_mlps_equal_a_loop_of_linear_layers_with_elu() -> None:
    with double_precision():
        torch.manual_seed(0)
        mlp = UnitMLP(4, 5, (6, 7), "none", F.elu)
        units, tokens = torch.randn(3, 4), []
        for unit in range(4):
            h = units[:, unit : unit + 1]
            for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
                h = F.linear(h, weight[unit].t(), bias[unit, 0])
                h = F.elu(h) if layer < 2 else h
            tokens.append(h)
        torch.testing.assert_close(mlp(units), torch.stack(tokens, dim=1))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_vectors_depend_on_their_own_image_alone_in_eval_mode(norm: str) -> None:
    with double_precision():
        torch.manual_seed(0)
        encoder = VectorEncoder(**SMALL, norm=norm, num_units=3, unit_dim=4)
        encoder(images().double())
        together = encoder.eval()(images().double())
        assert together.shape == (4, 3, 4)
        torch.testing.assert_close(encoder(images().double()[1:2]), together[1:2])
        in_training = encoder.train()(images().double()[1:2])
        assert torch.allclose(in_training, together[1:2]) is (norm == "group")
