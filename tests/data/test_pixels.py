from __future__ import annotations

import numpy as np
import pytest
import torch

from raydis.data.pixels import denormalise, normalise
from tests.double import double_precision

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_each_level_comes_back() -> None:
    images = LEVELS.reshape(2, 8, 16, 1).expand(2, 8, 16, 3)
    assert normalise(images).shape == (2, 3, 8, 16)
    assert torch.equal(denormalise(normalise(images)), images)
    with double_precision():
        assert torch.equal(denormalise(normalise(images)), images)


def test_channels_keep_their_places() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8))
    assert torch.equal(denormalise(normalise(images)), images)


@pytest.mark.parametrize(
    ("value", "level"), [(-1.0, 0), (1.0, 255), (-7.0, 0), (7.0, 255), (0.0, 128), (1 / 127.5 - 1, 1), (0.9999, 255)]
)
def test_values_go_to_the_nearest_level_and_no_further_than_black_and_white(value: float, level: int) -> None:
    assert denormalise(torch.full((1, 3, 2, 2), value)).unique().tolist() == [level]
