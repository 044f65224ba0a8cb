from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from raydis.models.blocks import (
    ResBlock,
    TokenTransformer,
    drop_skip_channels,
    group_norm,
    overlap,
    split_heads,
    timestep_embedding,
    zero_init,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: nn.Module) -> nn.Module:
    """The module with every parameter drawn anew, so that nothing is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


@pytest.mark.parametrize(
    ("channels", "groups"), [(512, 32), (64, 32), (192, 32), (32, 16), (24, 4), (6, 1), (9, 1), (1, 1)]
)
def test_norms_have_32_groups_or_fewer_with_two_channels_each(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_a_zero_initialised_layer_is_silent() -> None:
    layer = zero_init(nn.Conv2d(3, 5, 3))
    assert layer(normal(1, 3, 8, 8)).count_nonzero() == 0


def test_skip_dropout_of_rate_zero_is_the_identity() -> None:
    skip = normal(2, 8, 3, 3)
    assert torch.equal(drop_skip_channels(skip, 0.0), skip)


def test_skip_dropout_takes_whole_channels_and_scales_the_others() -> None:
    torch.manual_seed(0)
    skip = normal(16, 64, 3, 3)
    dropped = drop_skip_channels(skip, 0.2)
    gone = (dropped == 0).all(dim=(2, 3))
    assert torch.equal(gone, (dropped == 0).any(dim=(2, 3)))
    assert torch.equal(dropped[~gone], skip[~gone] * torch.tensor(1 / 0.8))


def test_skip_dropout_drops_the_asked_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = drop_skip_channels(torch.ones(500, 200, 1, 1), 0.2)
    # 5 standard deviations of a share of 100,000 fair draws
    assert (dropped == 0).double().mean().item() == pytest.approx(0.2, abs=5 * (0.16 / 100_000) ** 0.5)
    assert dropped.mean().item() == pytest.approx(1.0, abs=5 * (0.25 / 100_000) ** 0.5)


def test_skip_dropout_draws_for_each_image_and_each_channel_alone() -> None:
    torch.manual_seed(0)
    kept = (drop_skip_channels(torch.ones(400, 40, 1, 1), 0.5) > 0).double().flatten(1)
    for variables in (kept, kept.t()):
        correlations = torch.corrcoef(variables[:20]) - torch.eye(20)
        assert correlations.abs().max() < 5 / variables.shape[1] ** 0.5
    assert len(torch.unique(kept, dim=0)) == 400


def test_skip_dropout_passes_gradients_to_kept_channels_only() -> None:
    torch.manual_seed(0)
    skip = normal(4, 16, 2, 2).requires_grad_()
    dropped = drop_skip_channels(skip, 0.5)
    dropped.sum().backward()
    assert skip.grad is not None
    assert torch.equal(skip.grad, torch.where(dropped == 0, 0.0, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_skip_dropout_keeps_the_number_format(dtype: torch.dtype) -> None:
    assert drop_skip_channels(normal(1, 2, 3, 3).to(dtype), 0.3).dtype == dtype


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_skip_dropout_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"rate={rate} must lie in \[0, 1\)"):
        drop_skip_channels(torch.ones(1, 1, 1, 1), rate)


@pytest.mark.parametrize("dim", [32, 64, 33])
def test_time_embeddings_equal_those_of_diffusers(dim: int) -> None:
    times = torch.tensor([0, 1, 10, 500, 999])
    theirs = get_timestep_embedding(times, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(times, dim), theirs, rtol=0, atol=1e-4)


def test_heads_are_cut_from_neighbouring_channels() -> None:
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert torch.equal(heads[1, 2, 0], x[1, 0, 4:6])


@pytest.mark.parametrize("resample", ["none", "down", "up"])
def test_an_untrained_residual_block_only_resamples(resample: str) -> None:
    x = normal(2, 8, 6, 6)
    expected = {"none": x, "down": F.avg_pool2d(x, 2), "up": x.repeat_interleave(2, 2).repeat_interleave(2, 3)}
    out = ResBlock(8, 8, 0.1, resample)(x, normal(2, 16))
    assert torch.equal(out, expected[resample])


@pytest.mark.parametrize("resample", ["none", "down", "up"])
@pytest.mark.parametrize("out_dim", [64, 128])
def test_residual_blocks_equal_those_of_diffusers(resample: str, out_dim: int) -> None:
    ours = randomised(ResBlock(64, out_dim, 0.0, resample))
    theirs = ResnetBlock2D(
        in_channels=64,
        out_channels=out_dim,
        temb_channels=16,
        groups=32,
        eps=1e-5,
        time_embedding_norm="scale_shift",
        down=resample == "down",
        up=resample == "up",
    )
    names = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2"}
    if out_dim != 64:
        names["shortcut"] = "conv_shortcut"
    for name, other in names.items():
        getattr(theirs, other).load_state_dict(getattr(ours, name).state_dict())
    x, embedding = normal(2, 64, 8, 8), normal(2, 16, seed=1)
    projected = theirs.time_emb_proj(F.silu(embedding))
    torch.testing.assert_close(ours(x, projected), theirs(x, embedding), rtol=1e-4, atol=1e-4)


def test_residual_blocks_drop_out_in_training_only() -> None:
    block = randomised(ResBlock(8, 8, 0.5))
    x, time = normal(1, 8, 4, 4), normal(1, 16)
    assert not torch.equal(block(x, time), block(x, time))
    block.eval()
    assert torch.equal(block(x, time), block(x, time))


def test_an_untrained_transformer_is_the_identity() -> None:
    x = normal(2, 16, 4, 4)
    assert torch.equal(TokenTransformer(16, 2)(x, normal(2, 5, 32)), x)


@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_transformers_equal_those_of_diffusers(num_heads: int) -> None:
    ours = randomised(TokenTransformer(64, num_heads))
    theirs = Transformer2DModel(
        num_attention_heads=num_heads,
        attention_head_dim=64 // num_heads,
        in_channels=64,
        norm_num_groups=32,
        cross_attention_dim=12,
    )
    names = {
        "norm": "norm",
        "proj_in": "proj_in",
        "norm_self": "transformer_blocks.0.norm1",
        "self_out": "transformer_blocks.0.attn1.to_out.0",
        "norm_cross": "transformer_blocks.0.norm2",
        "cross_q": "transformer_blocks.0.attn2.to_q",
        "cross_out": "transformer_blocks.0.attn2.to_out.0",
        "norm_feed": "transformer_blocks.0.norm3",
        "feed_in": "transformer_blocks.0.ff.net.0.proj",
        "feed_out": "transformer_blocks.0.ff.net.2",
        "proj_out": "proj_out",
    }
    state = {
        f"{names[layer]}.{kind}": weight
        for layer, kind, weight in ((*name.split("."), weight) for name, weight in ours.state_dict().items())
        if layer in names
    }
    key_value = normal(128, 12, seed=3) * 0.2
    state |= {
        f"transformer_blocks.0.{name}.weight": weight
        for name, weight in zip(
            ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_k", "attn2.to_v"),
            (*ours.self_qkv.weight.chunk(3), *key_value.chunk(2)),
            strict=True,
        )
    }
    theirs.load_state_dict(state)  # strict: nothing is left as it was drawn
    x, tokens = 0.01 * normal(2, 64, 4, 4), normal(2, 5, 12, seed=1)  # faint, so that a norm's epsilon counts
    (expected,) = theirs(x, encoder_hidden_states=tokens, return_dict=False)
    torch.testing.assert_close(ours(x, tokens @ key_value.t()), expected, rtol=1e-4, atol=1e-4)


def attention(*rows: list[float]) -> Tensor:
    """Attention weights (1, 1, L, N) from one row of N weights for each position."""
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def test_tokens_that_write_to_disjoint_positions_do_not_overlap() -> None:
    weights = attention([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    assert overlap(weights, normal(1, 1, 3, 5).double()).item() == pytest.approx(0.0, abs=1e-15)


def test_tokens_that_write_everywhere_alike_overlap_fully_however_much_they_write() -> None:
    weights = attention([0.2, 0.3, 0.5], [0.2, 0.3, 0.5])
    assert overlap(weights, normal(1, 1, 3, 5).double()).item() == pytest.approx(1.0, abs=1e-12)


def test_the_overlap_is_the_mean_cosine_of_what_pairs_of_tokens_write() -> None:
    torch.manual_seed(0)
    weights, values = torch.rand(2, 3, 6, 4, dtype=torch.float64).softmax(-1), normal(2, 3, 4, 5).double()
    written = torch.einsum("bhln,bhnc->bnlhc", weights, values) * 0  # laid out as (B, N, L, heads, C)
    for token in range(4):
        written[:, token] = (weights[..., token, None] * values[:, :, None, token]).transpose(1, 2)
    maps = written.flatten(3).norm(dim=-1)  # (B, N, L)
    cosines = [
        F.cosine_similarity(maps[image, a], maps[image, b], dim=0)
        for image in range(2)
        for a in range(4)
        for b in range(4)
        if a != b
    ]
    torch.testing.assert_close(overlap(weights, values), torch.stack(cosines).mean())
    order = [2, 0, 3, 1]
    torch.testing.assert_close(overlap(weights[..., order], values[:, :, order]), overlap(weights, values))


def test_a_token_that_writes_nothing_overlaps_with_none() -> None:
    weights, values = attention([0.5, 0.25, 0.25], [0.5, 0.25, 0.25]), normal(1, 1, 3, 5).double()
    values[:, :, 2] = 0.0
    # of six ordered pairs, two are of the tokens that write, and they write alike
    assert overlap(weights, values).item() == pytest.approx(2 / 6, abs=1e-12)


def test_a_transformer_that_measures_its_overlap_computes_the_same() -> None:
    block = randomised(TokenTransformer(16, 4)).double()
    x, keys_values = normal(2, 16, 3, 3).double(), normal(2, 5, 32, seed=1).double().requires_grad_()
    overlaps: list[Tensor] = []
    torch.testing.assert_close(block(x, keys_values, overlaps), block(x, keys_values))
    assert len(overlaps) == 1
    assert 0.0 < overlaps[0].item() < 1.0
    overlaps[0].backward()
    assert torch.isfinite(keys_values.grad).all()
    assert keys_values.grad.abs().sum() > 0
