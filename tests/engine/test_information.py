"""What units tell, measured on methods whose units are known: they read levels off the pixels that hold them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydis.data import Loader
from raydis.data.dataset import ArrayDataset
from raydis.data.space import FactorSpace
from raydis.engine import information
from raydis.engine.information import effects_of, information_of
from raydis.metrics.telling import label_units

SPACE = FactorSpace(("hue", "scale"), (5, 4))


def dataset_of(space: FactorSpace | None) -> ArrayDataset:
    """Pixel 0 holds the hue, pixel 1 the scale; for the rest see `Reading`."""
    images = np.zeros((len(SPACE), 8, 8, 3), np.uint8)
    images[:, 0, :2, 0] = SPACE.factors(np.arange(len(SPACE))) * 50
    return ArrayDataset("read", images, space, fingerprint="f")


class Reading:
    """Units: the scale, nothing, the hue on a folded curve, and the scale again where the decoder does not look."""

    noise_shape = (1, 2, 2)
    max_steps: int | None = 1000

    @property
    def default_steps(self) -> int | None:
        return self.max_steps

    def __init__(self) -> None:
        self.seen = self.drawn = 0

    def represent(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(images)
        hue, scale = images[:, 0, 0, 0], images[:, 0, 0, 1]
        units = torch.stack([scale, torch.zeros(len(images)), hue, scale], dim=1)
        return units, self.lift(units)

    def write(self, codes: Tensor, units: Tensor) -> Tensor:
        assert codes.shape[:-1] == units.shape
        return self.lift(units)

    def lift(self, units: Tensor) -> Tensor:
        return torch.stack([units, (units + 0.2).abs()], dim=-1)  # (B, N, 2)

    def decode(self, codes: Tensor, noise: Tensor, steps: int | None, sampler: str | None) -> Tensor:
        assert (steps is None) == (sampler is None) == (self.max_steps is None)
        assert len(codes) == len(noise)
        self.drawn += len(codes)
        pixels = (codes[:, :3].sum((1, 2)) + noise.sum((1, 2, 3))) / 10  # the noise is the same on both sides of a pair
        return pixels[:, None, None, None].expand(-1, 3, 8, 8)


def told(space: FactorSpace | None = SPACE) -> Any:
    method, dataset = Reading(), dataset_of(space)
    found = information_of(method, dataset, Loader(dataset, batch_size=4, seed=0), seed=0)
    return SimpleNamespace(found=found, seen=method.seen)


def test_units_are_measured_by_the_scalars_that_an_edit_sets_and_by_what_the_decoder_makes_of_them() -> None:
    labels = label_units(told().found, SPACE.names, 4)
    assert [str(label) for label in labels] == ["scale 100 %", "inactive", "hue 100 %", "inactive"]


def test_each_image_is_looked_at_once_and_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told().seen == len(SPACE)
    monkeypatch.setattr(information, "MAX_IMAGES", 7)
    assert told().seen == 7


def test_without_factors_there_is_nothing_to_tell() -> None:
    assert vars(told(None)) == {"found": None, "seen": 0}


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_an_effect_is_the_change_of_pixels_when_one_unit_is_exchanged(at_once: int) -> None:
    units = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    others = torch.tensor([[1.0, 0.0, 0.5, 7.0], [1.0, 0.0, 0.5, 7.0]])  # the third image has no partner
    method = Reading()
    ours, theirs = ((scalars, method.lift(scalars)) for scalars in (units, others))
    found = effects_of(method, ours, theirs, seed=3, at_once=at_once)
    # A unit that goes from 0 to x >= 0 moves its two numbers by x each, and pixels by 127.5 * 2 x / 10.
    np.testing.assert_allclose(found, [25.5 / np.sqrt(2), 0.0, 12.75, 0.0], atol=1e-4)
    assert method.drawn == 2 * (4 + 1)


def test_a_method_that_draws_from_noise_in_a_single_pass_is_given_no_steps() -> None:
    """Its noise is the residual of a latent."""
    method, images = Reading(), torch.rand(6, 3, 8, 8)
    method.max_steps = None
    units, codes = method.represent(images)
    effects = effects_of(method, (units, codes), (units.flip(0), codes.flip(0)), seed=0, at_once=8)  # pyright: ignore
    assert effects.shape == (4,)
    assert effects[0] > 0
    assert effects[3] == 0
