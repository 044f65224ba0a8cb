from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raydis.config import DataConfig, EvaluationConfig
from raydis.data import FactorDataset, Loader
from raydis.data.celeba import read_attributes
from raydis.data.open import open_dataset
from raydis.engine.evaluate import check_scorable, evaluate, scored_indices
from raydis.errors import DataError
from raydis.methods.contract import Move, UnitMethod
from raydis.metrics.protocol import PUBLISHED, SEARCH
from tests.data.official import write_celeba


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_celeba(tmp_path / "celeba")
    return tmp_path / "celeba"


def opened(folder: Path) -> FactorDataset:
    config = DataConfig(name="celeba", path=str(folder), image_size=16)
    return open_dataset(config, cache_dir=folder.parent / "cache")


def test_attributes_of_minus_1_and_1_are_levels_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    levels = write_celeba(tmp_path / "celeba", seed=3)
    dataset = opened(tmp_path / "celeba")
    assert dataset.space is None
    assert dataset.factor_names == ("Smiling", "Male", "Young")
    assert dataset.image_shape == (16, 16, 3)
    every = np.arange(24)
    factors = dataset.factors(every)
    assert factors.dtype == np.int64
    np.testing.assert_array_equal(factors, levels)
    light = dataset.images(every)[:, 8, [0, -1], 0] > 120  # of both halves
    np.testing.assert_array_equal(light, levels[:, :2] == 1)


def test_other_attributes_are_another_data_set(folder: Path) -> None:
    before, path = opened(folder), folder / "Anno" / "list_attr_celeba.txt"
    lines = path.read_text().splitlines(keepends=True)
    lines[2] = lines[2][:-3] + {"-1": " 1", " 1": "-1"}[lines[2][-3:-1]] + "\n"
    path.write_text("".join(lines))
    after = opened(folder)
    assert (after.factors(np.arange(24)) != before.factors(np.arange(24))).sum() == 1
    assert after.fingerprint != before.fingerprint


class Halves(UnitMethod):
    """Units that are the brightness at the left and the right edge of an image, and a constant one."""

    num_units, unit_dim = 3, 1

    @property
    def moves(self) -> Sequence[Move]:
        return []

    def units(self, images: Tensor) -> Tensor:
        edges = images[:, 0, :, [0, -1]].mean(1)
        return torch.cat([edges, torch.zeros(len(images), 1)], dim=1)

    def decode(self, codes: Tensor, noise: object, steps: object, sampler: object) -> Tensor:
        raise AssertionError("scoring drew an image")


def test_tad_counts_the_attributes_that_single_units_tell(folder: Path) -> None:
    """Two of three attributes have a unit of their own; the other units tell nothing, and each counts 1 - 1/2."""
    dataset, config = opened(folder), EvaluationConfig(metrics=("tad",))
    check_scorable(dataset, config)
    scores = evaluate(Halves(), dataset, Loader(dataset, batch_size=1, seed=0), config)
    assert scores is not None
    assert (scores.status, scores.num_images) == ("valid", 24)
    assert scores.values["tad"] == pytest.approx(1.0, abs=1e-6)
    assert scores.details["num_captured_attributes"] == 2


def test_search_scores_pictures_that_are_spread_over_the_set_and_published_all(folder: Path) -> None:
    dataset = opened(folder)
    np.testing.assert_array_equal(scored_indices(dataset, protocol=SEARCH, max_images=3), [0, 11, 23])
    np.testing.assert_array_equal(scored_indices(dataset, protocol=SEARCH, max_images=100), np.arange(24))
    np.testing.assert_array_equal(scored_indices(dataset, protocol=PUBLISHED, max_images=3), np.arange(24))


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: next(folder.rglob(name)).unlink()


def twice(folder: Path) -> None:
    shutil.copytree(folder / "Img" / "img_align_celeba", folder / "Img" / "img_celeba")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("list_attr_celeba.txt"), "no files list_attr_celeba.txt below .*: set data.path to a folder with"),
        (without("000007.jpg"), "1 of 24 pictures that list_attr_celeba.txt names are not below .* being 000007.jpg"),
        (twice, "two pictures 000001.jpg below .*: keep those of img_align_celeba alone"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(folder: Path, spoil: Callable[[Path], object], words: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=words):
        opened(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty and has 0 lines below"),
        ("2\nA B\na.jpg 1 -1\n", "begins with '2' and has 1 lines below .*: download it again"),
        ("A B\na.jpg 1 -1\nb.jpg 1 1\n", "begins with 'A B'"),
        ("1\nA B\na.jpg 1 0\n", "line 3 of .* is no name with 2 values -1 or 1"),
        ("1\nA B\na.jpg 1\n", "line 3 of .* is no name with 2 values"),
        ("2\nA B\na.jpg 1 1\na.jpg 1 1\n", "names a picture or an attribute twice"),
        ("1\nA A\na.jpg 1 1\n", "names a picture or an attribute twice"),
    ],
)
def test_a_list_of_another_form_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "list_attr_celeba.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        read_attributes(tmp_path / "list_attr_celeba.txt")
