"""DisDiff's networks: the U-Net without a condition, and the decoder of the fields, whose units are in the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raydis.models.shift_unet import Condition, Features, ShiftDecoder, UnconditionalUNet, orthogonal
from tests.double import double_precision

NUM_UNITS, UNIT_DIM, BATCH = 3, 4, 2


def networks() -> tuple[UnconditionalUNet, ShiftDecoder]:
    """Small networks in the default precision, whose last layers do not end in zeros."""
    torch.manual_seed(0)
    sizes = {"model_dim": 8, "multipliers": (1, 2), "num_blocks": 2, "attention_sizes": (8, 4), "num_heads": 2}
    unet = UnconditionalUNet(latent_dim=3, latent_size=8, dropout_rate=0.0, **sizes)
    decoder = ShiftDecoder(unet, num_units=NUM_UNITS, unit_dim=UNIT_DIM, concept_dim=5)
    for layer in (*unet.modules(), *decoder.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.any():
            layer.reset_parameters()
    return unet, decoder


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and codes."""
    return torch.randn(BATCH, 3, 8, 8), torch.tensor([3, 700]), torch.randn(BATCH, NUM_UNITS, UNIT_DIM)


def test_the_embeddings_of_the_units_are_orthonormal_and_are_the_matrix_exponential() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(128, 128, dtype=torch.float64, requires_grad=True)
    found, skew = orthogonal(matrix), matrix - matrix.t()
    # Ten squarings double an error of rounding each time; a norm of 512 leaves 1e-11 of the polynomial.
    torch.testing.assert_close(found @ found.t(), torch.eye(128, dtype=torch.float64), rtol=0, atol=1e-11)
    torch.testing.assert_close(found, torch.matrix_exp(skew), rtol=0, atol=1e-11)
    probe = torch.randn(128, 128, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((exp * probe).sum(), matrix)[0] for exp in (found, torch.matrix_exp(skew)))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    large = 8.0 * matrix.detach()  # a spectral norm of about 250
    torch.testing.assert_close(orthogonal(large), torch.matrix_exp(large - large.t()), rtol=0, atol=1e-10)


def test_the_embeddings_are_the_first_rows() -> None:
    decoder = networks()[1]
    concepts = decoder.concepts()
    assert concepts.shape == (NUM_UNITS, 5)
    torch.testing.assert_close(concepts @ concepts.t(), torch.eye(NUM_UNITS))


def test_the_fields_of_all_units_at_once_are_those_of_one_unit_after_the_other() -> None:
    with double_precision():
        unet, decoder = networks()
        latents, times, codes = inputs()
        features, condition = unet.contract(latents, times), decoder.condition(codes)
        together = decoder(features, condition)
        assert together.shape == (NUM_UNITS, BATCH, 3, 8, 8)
        for unit in range(NUM_UNITS):
            decoder.num_units = 1
            alone = Condition(condition.concepts[unit : unit + 1], condition.codes[unit : unit + 1])
            torch.testing.assert_close(decoder(features, alone)[0], together[unit])


def plain_field(decoder: ShiftDecoder, features: Features, code: Tensor, concept: Tensor) -> Tensor:
    """The field of one unit, written block by block with norms that are scaled and shifted twice."""
    time = features.time + decoder.concept_in(concept)
    times = decoder.time_proj(nn.functional.silu(time)).split(decoder.widths, dim=-1)
    codes = decoder.code_proj(nn.functional.silu(decoder.code_in(code))).split(decoder.widths, dim=-1)
    h, skips = features.bottleneck, list(features.skips)
    stages = [*decoder.middle, *decoder.up]
    for index, (stage, time_part, code_part) in enumerate(zip(stages, times, codes, strict=True)):
        block = stage.block
        if index >= 2 and block.resample != "up":
            h = torch.cat([h, skips.pop()], 1)
        x, inner = h, nn.functional.silu(block.norm_in(h))
        if block.resample == "up":
            x, inner = (nn.functional.interpolate(each, scale_factor=2.0) for each in (x, inner))
        inner = block.norm_out(block.conv_in(inner))
        for part in (time_part, code_part):
            scale, shift = part[:, :, None, None].chunk(2, 1)
            inner = inner * (1 + scale) + shift
        h = block.shortcut(x) + block.conv_out(nn.functional.silu(inner))
        if stage.attention is not None:
            attention, size = stage.attention, h.shape[2:]
            qkv = torch.einsum("bchw,dc->bdhw", attention.norm(h), attention.qkv.weight)
            query, key, value = (qkv + attention.qkv.bias[:, None, None]).flatten(2).chunk(3, 1)
            heads = [part.chunk(attention.num_heads, 1) for part in (query, key, value)]
            mixed = []
            for q, k, v in zip(*heads, strict=True):
                weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
                mixed.append(v @ weights.transpose(1, 2))
            out = torch.einsum("bcl,dc->bdl", torch.cat(mixed, 1), attention.out.weight)
            h = h + (out + attention.out.bias[:, None]).unflatten(2, size)
    return decoder.conv_out(nn.functional.silu(decoder.norm_out(h)))


def test_a_field_is_that_of_a_plainly_written_decoder() -> None:
    with double_precision():
        unet, decoder = networks()
        latents, times, codes = inputs()
        features = unet.contract(latents, times)
        found, concepts = decoder(features, decoder.condition(codes)), decoder.concepts()
        for unit in range(NUM_UNITS):
            expected = plain_field(decoder, features, codes[:, unit], concepts[unit])
            torch.testing.assert_close(found[unit], expected)


def test_a_field_depends_on_the_code_of_its_own_unit_alone_and_on_the_number_of_the_unit() -> None:
    with double_precision():
        unet, decoder = networks()
        latents, times, codes = inputs()
        features = unet.contract(latents, times)
        before = decoder(features, decoder.condition(codes))
        codes[:, 1] += 1.0
        after = decoder(features, decoder.condition(codes))
        assert [bool((one != other).any()) for one, other in zip(before, after, strict=True)] == [False, True, False]
        codes[:] = codes[:, :1]
        alike = decoder(features, decoder.condition(codes))
        assert float((alike[0] - alike[1]).detach().abs().max()) > 1e-3


def test_a_fresh_decoder_shifts_nothing_and_a_fresh_unet_predicts_zero() -> None:
    torch.manual_seed(0)
    sizes = {"model_dim": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_sizes": (), "num_heads": 1}
    unet = UnconditionalUNet(latent_dim=3, latent_size=8, dropout_rate=0.0, **sizes)
    decoder = ShiftDecoder(unet, num_units=NUM_UNITS, unit_dim=UNIT_DIM, concept_dim=5)
    latents, times, codes = inputs()
    features = unet.contract(latents, times)
    assert not bool(decoder(features, decoder.condition(codes)).any())
    assert not bool(unet(latents, times).any())


@pytest.mark.parametrize("size", [8, 16])
def test_the_two_halves_make_the_prediction(size: int) -> None:
    unet = networks()[0]
    latents, times = torch.randn(2, 3, size, size), torch.tensor([0, 999])
    assert torch.equal(unet(latents, times), unet.expand(unet.contract(latents, times)))
    assert unet(latents, times).shape == latents.shape
