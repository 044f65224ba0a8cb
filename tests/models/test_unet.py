from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from raydis.config.dyga_sd import EncoderConfig, UNetConfig
from raydis.models import unet as unet_file
from raydis.models.blocks import drop_skip_channels
from raydis.models.encoder import Encoder
from raydis.models.unet import UNet
from tests.benchmarks.plain import PlainUNet, copy_unet, plain_encoder
from tests.double import double_precision

REFERENCE = {"latent_dim": 3, "latent_size": 16, "unit_dim": 32, **UNetConfig().model_dump()}
SMALL = {
    "latent_dim": 4,
    "latent_size": 8,
    "unit_dim": 6,
    "model_dim": 16,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention_sizes": (8, 4),
    "num_heads": 2,
    "dropout_rate": 0.0,
    "skip_dropout_rate": 0.5,
    "skip_dropout_sizes": (8,),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def untrained(**settings: object) -> UNet:
    torch.manual_seed(0)
    return UNet(**{**SMALL, **settings})


def awake(unet: UNet) -> UNet:
    """The network with its zero-initialised layers drawn at random, as after some training."""
    torch.manual_seed(1)
    for layer in unet.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.any():
            layer.reset_parameters()
    return unet


def predict(unet: UNet, batch_size: int = 2, *, tokens: Tensor | None = None, seed: int = 0) -> Tensor:
    size = SMALL["latent_size"] if unet.model_dim == SMALL["model_dim"] else REFERENCE["latent_size"]
    latents = normal(batch_size, unet.conv_in.in_channels, size, size, seed=seed)
    timesteps = torch.linspace(10, 990, batch_size).long()
    tokens = normal(batch_size, 5, unet.token_proj.in_features, seed=9) if tokens is None else tokens
    return unet(latents, timesteps, unet.condition(tokens))


def test_an_odd_number_of_channels_works() -> None:
    unet = UNet(**{**SMALL, "model_dim": 9, "num_heads": 3})
    assert unet(normal(2, 4, 8, 8), torch.tensor([1, 9]), unet.condition(normal(2, 5, 6))).shape == (2, 4, 8, 8)


@pytest.fixture
def dropped_from(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(channels, size) of each skip connection that Skip Dropout touches, in order."""
    touched: list[tuple[int, int]] = []

    def record(skip: Tensor, rate: float) -> Tensor:
        touched.append((skip.shape[1], skip.shape[2]))
        return drop_skip_channels(skip, rate)

    monkeypatch.setattr(unet_file, "drop_skip_channels", record)
    return touched


@pytest.mark.parametrize(("unit_dim", "expected"), [(16, 37_469_635), (32, 37_549_507), (64, 37_709_251)])
def test_the_reference_unet_has_the_released_number_of_parameters(unit_dim: int, expected: int) -> None:
    with torch.device("meta"):
        unet = UNet(**{**REFERENCE, "unit_dim": unit_dim})
    assert sum(parameter.numel() for parameter in unet.parameters()) == expected


def test_the_reference_skips_and_the_six_that_drop_channels_are_the_released_ones(
    dropped_from: list[tuple[int, int]],
) -> None:
    unet = UNet(**REFERENCE)
    skips: list[tuple[int, int]] = []

    def record(module: nn.Module, args: object, output: Tensor) -> None:
        skips.append((output.shape[1], output.shape[2]))

    unet.conv_in.register_forward_hook(record)
    for stage in unet.down:
        (stage.transformer or stage.block).register_forward_hook(record)
    predict(unet, 1)
    assert skips == [
        *[(64, 16), (64, 16), (64, 16), (64, 8), (128, 8), (128, 8)],
        *[(128, 4), (256, 4), (256, 4), (256, 2), (256, 2), (256, 2)],
    ]
    assert dropped_from == skips[5::-1]
    assert sum(stage.transformer is not None for stage in (*unet.down, *unet.middle, *unet.up)) == 16


def test_skip_dropout_touches_the_configured_sizes_in_training_only(dropped_from: list[tuple[int, int]]) -> None:
    predict(untrained(skip_dropout_sizes=(4,)))
    assert dropped_from == [(32, 4), (16, 4)]
    dropped_from.clear()
    predict(untrained().eval())
    predict(untrained(skip_dropout_rate=0.0))
    predict(untrained(skip_dropout_sizes=()))
    assert not dropped_from


def test_skip_dropout_makes_training_random_and_leaves_evaluation_alone() -> None:
    unet = awake(untrained())
    assert not torch.equal(predict(unet), predict(unet))
    assert torch.equal(predict(unet.eval()), predict(awake(untrained(skip_dropout_rate=0.0))))


def test_an_untrained_unet_predicts_zero_which_costs_0_798() -> None:
    predicted = predict(untrained(), 128)
    assert predicted.count_nonzero() == 0
    noise = normal(*predicted.shape, seed=3)
    assert (predicted - noise).abs().mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)


def test_the_order_of_the_tokens_does_not_matter_but_their_values_do() -> None:
    unet = awake(untrained()).eval()
    tokens = normal(2, 5, 6, seed=9)
    shuffled = predict(unet, tokens=tokens[:, [3, 0, 4, 1, 2]])
    torch.testing.assert_close(shuffled, predict(unet, tokens=tokens), rtol=0, atol=1e-5)
    assert (predict(unet, tokens=normal(2, 5, 6, seed=10)) - shuffled).abs().max() > 1e-3


def test_time_changes_the_prediction() -> None:
    unet = awake(untrained()).eval()
    latents, condition = normal(1, 4, 8, 8), unet.condition(normal(1, 5, 6))
    early, late = unet(latents, torch.tensor([10]), condition), unet(latents, torch.tensor([900]), condition)
    assert (early - late).abs().max() > 1e-3


def test_a_prediction_does_not_depend_on_its_batch() -> None:
    unet = awake(untrained()).eval()
    latents, tokens, times = normal(3, 4, 8, 8), normal(3, 5, 6), torch.tensor([1, 500, 990])
    together = unet(latents, times, unet.condition(tokens))
    alone = [unet(latents[i : i + 1], times[i : i + 1], unet.condition(tokens[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_any_number_of_units_conditions_the_same_weights() -> None:
    unet = awake(untrained()).eval()
    one, many = predict(unet, tokens=normal(2, 1, 6)), predict(unet, tokens=normal(2, 1, 6).expand(2, 40, 6))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5)  # equal tokens share the attention


def test_every_parameter_of_the_unet_learns() -> None:
    unet = awake(untrained())
    predict(unet).square().sum().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("settings", [SMALL, REFERENCE], ids=["small", "reference"])
def test_predictions_equal_those_of_a_plainly_written_unet(settings: dict) -> None:
    ours = awake(UNet(**settings)).eval()
    plain = PlainUNet(**settings).eval()
    copy_unet(plain, ours)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in ours.parameters())
    size = settings["latent_size"]
    latents, tokens = normal(1, settings["latent_dim"], size, size), normal(1, 5, settings["unit_dim"], seed=1)
    times = torch.tensor([700])
    torch.testing.assert_close(
        ours(latents, times, ours.condition(tokens)), plain(latents, times, tokens), rtol=1e-4, atol=1e-5
    )


def test_gradients_equal_those_of_a_plainly_written_unet_and_encoder() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(channels=(8, 16), stem_stride=4, hidden_dims=(12,), token_hidden_dims=(10, 9))
    encoder = Encoder(
        image_size=16, image_channels=3, num_units=5, unit_dim=6, **config.model_dump(exclude={"kind"})
    ).eval()
    ours = awake(untrained()).eval()
    plain, plain_tokens = PlainUNet(**SMALL).eval(), plain_encoder(encoder)
    copy_unet(plain, ours)
    images, latents, noise = normal(4, 3, 16, 16), normal(4, 4, 8, 8, seed=1), normal(4, 4, 8, 8, seed=2)
    times = torch.tensor([3, 300, 700, 990])
    (ours(latents, times, ours.condition(encoder(images))) - noise).abs().mean().backward()
    (plain(latents, times, plain_tokens(images)) - noise).abs().mean().backward()
    for mine, theirs in (
        (ours.conv_in.weight, plain.conv_in.weight),
        (ours.time_in.weight, plain.time_embed[0].weight),
        (encoder.convolutions[0].weight, plain_tokens.convolutions[0].weight),
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-7)
    for unit, mlp in enumerate(plain_tokens.mlps):
        torch.testing.assert_close(encoder.tokens.weights[0].grad[unit].t(), mlp[0].weight.grad, rtol=1e-3, atol=1e-7)


def test_every_transformer_measures_its_overlap_which_the_order_of_the_tokens_does_not_change() -> None:
    overlaps: list[Tensor] = []
    shuffled: list[Tensor] = []
    with double_precision():
        unet = awake(untrained()).eval()
        latents, times, tokens = normal(2, 4, 8, 8).double(), torch.tensor([3, 700]), normal(2, 5, 6, seed=9).double()

        predicted = unet(latents, times, unet.condition(tokens), overlaps)
        unet(latents, times, unet.condition(tokens[:, [3, 0, 4, 1, 2]]), shuffled)

        torch.testing.assert_close(predicted, unet(latents, times, unet.condition(tokens)))
    assert len(overlaps) == len(unet.token_dims)
    torch.testing.assert_close(torch.stack(overlaps), torch.stack(shuffled))
