"""C-S DisMo: the map by which a style customises the content, the loss, and what the two units hold."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.config.presets import PRESETS
from raydis.methods.contract import Batch
from raydis.methods.cs_dismo import CsDismo, pyramid_loss
from raydis.models.customised import Customisation, CustomisedGenerator, standardise
from tests.double import double_precision

SIZES = {"content_dim": 6, "style_dim": 3, "hidden_dim": 16, "channels": [8, 8, 8]}
VARIANTS = pytest.mark.parametrize("variant", ["single", "multiple"])


def make(seed: int = 0, image_size: int = 16, **options: Any) -> CsDismo:
    torch.manual_seed(seed)
    data = {"name": "shapes3d_procedural", "image_size": image_size}
    tree = {"data": data, "first_stage": {"kind": "pixel"}, "method": {"kind": "cs_dismo", **SIZES, **options}}
    method = build_method(RunConfig.model_validate(tree), 3)
    assert isinstance(method, CsDismo)
    return method


def images_of(count: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---- the map and the generator


def test_with_scale_one_and_shift_zero_the_map_gives_the_standardised_content() -> None:
    customisation = Customisation(3, 6)
    for layer in (customisation.scale, customisation.shift):
        torch.nn.init.zeros_(layer.weight)
    content, style = standardise(torch.randn(5, 6)), torch.randn(5, 3)
    assert torch.equal(customisation(content, style), content)


def test_the_map_is_affine_in_the_content_and_linear_in_the_style() -> None:
    with double_precision():
        customisation = Customisation(3, 4)
        hidden, styles = torch.randn(2, 4, 3, 3), torch.randn(2, 3)
        scale = styles @ customisation.scale.weight.T + 1.0
        shift = styles @ customisation.shift.weight.T
        expected = scale[:, :, None, None] * hidden + shift[:, :, None, None]
        torch.testing.assert_close(customisation(hidden, styles), expected)


def test_a_standardised_content_has_mean_zero_and_variance_one_whatever_the_scale() -> None:
    with double_precision():
        raw = torch.randn(7, 16) * torch.logspace(-1, 3, 7)[:, None] + 5.0
        content = standardise(raw)
        assert float(content.mean(1).abs().max()) < 1e-12
        # layer_norm divides by sqrt(v + 1e-5), so the variance is v / (v + 1e-5).
        variance = raw.var(1, correction=0)
        torch.testing.assert_close(content.var(1, correction=0), variance / (variance + 1e-5))


@VARIANTS
def test_both_variants_draw_images_within_range_that_depend_on_content_and_style(
    variant: Literal["single", "multiple"],
) -> None:
    torch.manual_seed(0)
    generator = CustomisedGenerator(
        image_size=32,
        image_channels=1,
        content_dim=6,
        style_dim=3,
        variant=variant,
        hidden_dim=16,
        channels=(8, 8, 4),
    )
    content, style = standardise(torch.randn(4, 6)), torch.randn(4, 3)
    drawn = generator(content, style).detach()
    assert drawn.shape == (4, 1, 32, 32)
    assert float(drawn.abs().max()) <= 1.0
    assert not torch.allclose(drawn, generator(content.flip(0), style), atol=1e-4)
    assert not torch.allclose(drawn, generator(content, style.flip(0)), atol=1e-4)
    assert len(generator.customisations) == {"single": 1, "multiple": 3}[variant]


def test_the_small_preset_has_the_known_number_of_parameters() -> None:
    method = build_method(PRESETS["cs_dismo_small"], 3)
    assert isinstance(method, CsDismo)
    counts = [
        sum(weight.numel() for weight in module.parameters())
        for module in (method.content_encoder, method.style_encoder, method.generator)
    ]
    # The trunk of the VAEs' encoder and heads of 256 x 16 and 256 x 8; for the generator see the sum below.
    dense = 16 * 256 + 256 + 256 * 1024 + 1024
    convolutions = 16 * (64 * 64 + 64 * 64 + 64 * 32 + 32 * 3) + 64 + 64 + 32 + 3
    maps = 2 * (8 + 1) * (64 + 64 + 32)
    assert counts[0] - counts[1] == 257 * 8
    assert counts[2] == dense + convolutions + maps


# ---- the loss


def test_the_pyramid_loss_is_zero_for_equal_images_and_with_one_level_the_mean_absolute_error() -> None:
    difference = images_of(2)
    assert float(pyramid_loss(torch.zeros(2, 3, 16, 16), 3)) == 0.0
    assert float(pyramid_loss(difference, 1)) == float(difference.abs().mean())


def test_the_levels_are_what_coarser_pictures_lack() -> None:
    with double_precision():
        ours, theirs = images_of(2, seed=1).double(), images_of(2, seed=2).double()

        def levels(picture: Tensor) -> list[Tensor]:
            half, quarter = F.avg_pool2d(picture, 2), F.avg_pool2d(picture, 4)
            grow = lambda image: image.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
            return [picture - grow(half), half - grow(quarter), quarter]

        pairs = zip(levels(ours), levels(theirs), strict=True)
        expected = sum((mine - other).abs().mean() for mine, other in pairs)
        torch.testing.assert_close(pyramid_loss(ours - theirs, 3), expected)


def test_a_constant_error_counts_once_and_a_checkerboard_in_the_finest_level_only() -> None:
    assert float(pyramid_loss(torch.full((1, 3, 16, 16), 0.25), 3)) == 0.25
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1.0).expand(1, 3, 16, 16)
    assert float(pyramid_loss(board, 3)) == 1.0


def test_the_noise_is_added_to_the_content_and_its_deviation_scales_it() -> None:
    images, method = images_of(4), make(content_noise=0.5)
    draws = method.draw(4, torch.Generator().manual_seed(0))
    assert draws["noise"].shape == (4, 6)
    content, style = method.cut(method.encode(images))
    with torch.no_grad():
        drawn = method.generator(content + 0.5 * draws["noise"], style)
        assert float(method(Batch(images, draws), "reconstruct")["loss"]) == float(pyramid_loss(drawn - images, 3))
        silent = make(content_noise=0.0)
        expected = pyramid_loss(silent.generator(content, style) - images, 3)
        assert float(silent(Batch(images, draws), "reconstruct")["loss"]) == float(expected)


# ---- the two units


def test_content_and_style_are_the_two_units_and_the_content_follows_one_law() -> None:
    method = make()
    codes = method.encode(images_of(8))
    assert (method.num_units, method.unit_widths, codes.shape) == (2, (6, 3), (8, 2, 6))
    content, _ = method.cut(codes)
    torch.testing.assert_close(content.mean(1), torch.zeros(8), rtol=0, atol=1e-5)
    assert not codes[:, 1, 3:].any()


def test_the_content_does_not_depend_on_the_style_encoder() -> None:
    method, images = make(), images_of(4)
    before = method.encode(images)
    torch.nn.init.normal_(method.style_encoder.heads[0].weight)
    after = method.encode(images)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_swapping_both_units_reproduces_the_other_image() -> None:
    method, images = make().eval(), images_of(6)
    codes, others = method.encode(images), method.encode(images.flip(0))
    swapped = codes.clone()
    swapped[:, 0] = others[:, 0]
    assert not torch.equal(method.decode(swapped), method.decode(others))
    swapped[:, 1] = others[:, 1]
    assert torch.equal(method.decode(swapped), method.decode(others))


def test_a_content_that_an_edit_moved_is_drawn_as_its_standardised_self() -> None:
    method = make().eval()
    codes = method.encode(images_of(3))
    moved = codes.clone()
    moved[:, 0] = 3.0 * moved[:, 0] + 2.0  # the same after standardising
    torch.testing.assert_close(method.decode(moved), method.decode(codes), rtol=0, atol=1e-4)


def bars(count: int = 256) -> Tensor:
    """Bars over half of the width, at 8 places and in 8 shades of grey, on a ground of the opposite shade."""
    places, shades = np.divmod(np.arange(count) % 64, 8)
    found = np.zeros((count, 3, 16, 16), np.float32)
    for image, place, shade in zip(found, places, shades, strict=True):
        image[:, :, (2 * place + np.arange(16)) % 16] = (np.arange(16) < 8) * 2.0 - 1.0
        image *= 0.1 + 0.1 * shade
    return torch.from_numpy(found)


def test_training_lowers_the_error_and_makes_swaps_consistent() -> None:
    method, images = make(variant="single", content_dim=8, hidden_dim=32), bars()
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3, betas=(0.5, 0.999))
    generator, losses = torch.Generator().manual_seed(0), list[float]()
    for step in range(150):
        batch = shuffled[32 * (step % 8) :][:32]
        loss = method(Batch(batch, method.draw(32, generator)), "reconstruct")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-8:]) < 0.6 * losses[0]
    method.calibrate(shuffled.split(64))
    told = method.diagnose(shuffled.split(64), None, ())
    assert told is not None
    assert told.columns == ("part", "width", "share on axis", "taken", "kept")
    for row, name, width in zip(told.rows, ("content", "style"), (8, 3), strict=True):
        part, found_width, share, taken, kept = row
        assert (part, found_width) == (name, width)
        assert isinstance(share, float)
        assert isinstance(taken, float)
        assert isinstance(kept, float)
        assert 1 / width < share <= 1.0
        assert taken == kept  # of two units, to take one over is to keep the other
        assert taken > 0.6  # 0.4 before the training


def test_a_single_image_has_no_swaps_to_measure() -> None:
    assert make().diagnose([images_of(1)], None, ()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content_dim": 1}, r"method\.cs_dismo\.content_dim"),
        ({"style_dim": 0}, r"method\.cs_dismo\.style_dim"),
        ({"channels": [8, 8]}, r"method\.cs_dismo\.channels"),
        ({"content_noise": -0.1}, r"method\.cs_dismo\.content_noise"),
        ({"variant": "double"}, r"method\.cs_dismo\.variant"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**options)


def test_images_that_cannot_be_halved_four_times_are_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"data\.image_size=24 must be a multiple of 16 for method\.kind=cs_dismo"
    ):
        make(image_size=24)
